"""The report of a run: one HTML page with its settings, curves, scores, samples and time."""

import ast
import base64
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ultraflash_cli.train.record import VALIDATION, RunRecord, read_record
from ultraflash_cli.train.run_log import NOT_LOSSES, RunLog
from ultraflash_cli.video.partial import output_errors, partial_file

__all__ = ["REPORT", "report_page", "settings_by_name", "write_report"]

REPORT = "report.html"
"""The page, in the run's folder."""

SHOWN_SAMPLES = 6
"""Sample pictures on the page: the first, the last, and some between."""

CHART_WIDTH, CHART_HEIGHT = 300, 110

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1000px; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top }
figcaption { font-size: 13px } img { max-width: 100%; image-rendering: auto }
svg { background: color-mix(in srgb, currentColor 6%, transparent) }
polyline { fill: none; stroke: #2a7ab0; stroke-width: 1.5 } details { margin: .5rem 0 }
@media (prefers-color-scheme: dark) { body { background: #14161a; color: #e4e6ea } }
"""


def write_report(folder: Path) -> Path:
    """Write the page of a run into its folder; return its path. Raises InputError if
    the folder contains no run, OutputError if it cannot be written.
    """
    page = report_page(folder)
    with output_errors(folder), partial_file(folder / REPORT) as part:
        part.write_text(page, encoding="utf-8")
    return folder / REPORT


def report_page(folder: Path) -> str:
    """Return the self-contained page of a run. Raises InputError if the folder contains
    no run."""
    record = read_record(folder)
    rows, scores = RunLog(folder).rows(), RunLog(folder, name=VALIDATION).rows()
    title = f"{record.recipe}, {record.steps} steps"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _table(_facts(record, rows)),
        _section("Losses", _charts(rows, NOT_LOSSES)),
        _section("Validation", _charts(scores, ("step",)) + _last_scores(scores)),
        _section("Gradient norm and seconds per step", _charts(rows, (), only=("norm", "s_per_step"))),
        _section("Samples", _samples(folder / "samples")),
        "<details><summary>Settings</summary>" + _table(settings_by_name(record.config)) + "</details>",
    ]
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def settings_by_name(config: str) -> dict[str, str]:
    """Return every setting of a record by the dotted name that ``--set`` takes; a
    record that cannot be parsed is returned whole under ``config``."""
    try:
        tree = ast.parse(config, mode="eval").body
    except (SyntaxError, ValueError):
        return {"config": config}
    return dict(_leaves(tree)) if isinstance(tree, ast.Call) else {"config": config}


def _leaves(node: ast.expr, name: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(node, ast.Call) and node.keywords and not node.args:
        for keyword in node.keywords:
            yield from _leaves(keyword.value, f"{name}.{keyword.arg}" if name else str(keyword.arg))
    else:
        yield name, ast.unparse(node)


def _facts(record: RunRecord, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the key facts of a run, in display order."""
    seconds, before = 0.0, 0
    for row in rows:
        seconds += row.get("s_per_step", 0.0) * (row["step"] - before)
        before = row["step"]
    skipped = sum(int(row.get("skipped", 0)) for row in rows)
    processes = f"{record.processes}, {record.batches} batches per step"
    return {
        "Steps": str(record.steps),
        "Time": f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min",
        "Skipped steps": f"{skipped} (gradient not finite)" if skipped else "none",
        "Processes": processes,
        "Seed": str(record.seed),
        "Data": record.data_hash,
        "Recipe and settings": record.recipe_hash,
        "Starting weights": record.start_hash or "none",
    }


def _charts(rows: Sequence[Mapping[str, Any]], left_out: Sequence[str], *, only: Sequence[str] = ()) -> str:
    names = dict.fromkeys(name for row in rows for name in row)
    chosen = [name for name in names if name in only or (not only and name not in left_out)]
    return "".join(_chart(name, rows) for name in chosen)


def _chart(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one curve over the steps, with its last value and its range as a
    caption."""
    points = [(float(row["step"]), float(row[name])) for row in rows if math.isfinite(row.get(name, math.nan))]
    if not points:
        return ""
    steps, values = zip(*points, strict=True)
    low, high = min(values), max(values)
    last = max(steps[-1], 1.0)
    places = " ".join(
        f"{step / last * CHART_WIDTH:.1f},{(high - value) / max(high - low, 1e-12) * (CHART_HEIGHT - 6) + 3:.1f}"
        for step, value in points
    )
    curve = f"<svg width='{CHART_WIDTH}' height='{CHART_HEIGHT}'><polyline points='{places}'/></svg>"
    words = f"{html.escape(name)}: {values[-1]:.5g} (from {low:.5g} to {high:.5g}, step {steps[-1]:g})"
    return f"<figure>{curve}<figcaption>{words}</figcaption></figure>"


def _last_scores(scores: Sequence[Mapping[str, Any]]) -> str:
    if not scores:
        return ""
    names = list(dict.fromkeys(name for row in scores for name in row if name != "step"))
    head = "".join(f"<th class='number'>{html.escape(name)}</th>" for name in ["step", *names])
    body = "".join(
        "<tr>" + "".join(f"<td class='number'>{_cell(row.get(name))}</td>" for name in ["step", *names]) + "</tr>"
        for row in scores
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _samples(folder: Path) -> str:
    pictures = sorted(folder.glob("*.png"))
    if len(pictures) > SHOWN_SAMPLES:
        step = (len(pictures) - 1) / (SHOWN_SAMPLES - 1)
        pictures = [pictures[round(i * step)] for i in range(SHOWN_SAMPLES)]
    return "".join(
        f"<figure><img src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}' "
        f"alt='samples'><figcaption>step {int(path.stem)}</figcaption></figure>"
        for path in reversed(pictures)
        if path.stem.isdigit()
    )


def _section(title: str, content: str) -> str:
    return f"<h2>{title}</h2>{content}" if content else ""


def _table(values: Mapping[str, str]) -> str:
    rows = (f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in values.items())
    return f"<table>{''.join(rows)}</table>"
