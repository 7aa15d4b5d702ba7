"""The table, the sentences and the picture of `benchmarks.curves`, from its JSON.

A mark in a page names the file. Without a folder it is in benchmarks/results; a name
with a star is the last one by name that fits:

    <!-- curves: FILE -->
    <!-- end of curves -->

    python -m benchmarks.curves_page docs/quality.md                        # rewrites the page
    python -m benchmarks.curves_page docs/quality.md --svg docs/curves.svg  # and its picture
"""

import argparse
import html
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.quality_tables import RESULTS

__all__ = [
    "CURVES",
    "Row",
    "is_worth_offering",
    "main",
    "relative",
    "rewritten",
    "sentences",
    "svg",
    "table",
]

CURVES: Mapping[str, str] = MappingProxyType({"budget": "key budget", "kv_len": "kv_len", "rules": "cache management"})
"""Titles of the curves."""
MEASURES: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {
        "seconds_per_frame": ("time", "#3b82f6", "circle"),
        "lpips": ("LPIPS", "#e0701a", "square"),
        "tdiff": ("tdiff", "#1f9d55", "triangle"),
    }
)
"""Title, colour and marker of what is drawn; the colours show on white and on black."""
LEAST_SAVING = 0.10
"""Share of the time that a rule must save to be worth offering."""
MOST_LPIPS = 0.02
"""Relative increase of LPIPS that it may cost."""
BLOCK = re.compile(r"(<!-- curves: (\S+) -->\n).*?(<!-- end of curves -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Results of one setting: means over all frames of all scenes."""

    curve: str
    """One of ``CURVES``."""
    setting: str
    is_profile: bool
    """Whether it works like the model's own profile."""
    key_blocks: float | None
    """Key blocks per query block once the cache is full; None without an SR
    transformer."""
    seconds_per_frame: float
    """CPU seconds of the whole model."""
    sr_seconds_per_frame: float
    """Those of the SR transformer."""
    seconds_by_stage: dict[str, float]
    """CPU seconds per frame of each stage."""
    lpips: float
    """Distance to the renderer's frames."""
    tdiff: float
    """Error of the change of luma between frames, in 8-bit levels."""
    lpips_by_scene: list[float]
    tdiff_by_scene: list[float]
    passes_skipped: float
    """Share of chunks without a context pass."""


def relative(rows: Sequence[Row], row: Row, measure: str) -> float:
    """Return the change of a measure relative to the profile's own setting on the same
    curve; 0.1 is 10 % more."""
    own = next(each for each in rows if each.curve == row.curve and each.is_profile)
    before = getattr(own, measure)
    return getattr(row, measure) / before - 1 if before else 0.0


def is_worth_offering(rows: Sequence[Row], rule: Row) -> bool:
    """Return whether a rule saves enough time without costing too much."""
    saved = -relative(rows, rule, "seconds_per_frame")
    return saved >= LEAST_SAVING and relative(rows, rule, "lpips") <= MOST_LPIPS


def table(rows: Sequence[Row]) -> str:
    """Return all rows as a Markdown table; the last columns are relative to the
    profile's setting."""
    heads = ["", "setting", "key blocks", "CPU s per frame", "SR transformer, CPU s"]
    heads += ["LPIPS", "tdiff, levels", "Δ time", "Δ LPIPS", "Δ tdiff"]
    lines = [f"| {' | '.join(heads)} |", "|---|---" + "|---:" * (len(heads) - 2) + "|"]
    for row in rows:
        name = f"**{row.setting}**" if row.is_profile else row.setting
        cells = [CURVES[row.curve], name, f"{row.key_blocks:.1f}" if row.key_blocks else ""]
        cells += [f"{row.seconds_per_frame:.3f}", f"{row.sr_seconds_per_frame:.4f}"]
        cells += [f"{row.lpips:.4f}", f"{row.tdiff:.3f}"]
        cells += [_percent(relative(rows, row, measure)) for measure in MEASURES]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _percent(change: float) -> str:
    """Return a relative change, as +1.2 %."""
    shown = f"{100 * change:+.1f}"
    return "0" if shown in ("+0.0", "-0.0") else f"{shown} %"


def sentences(found: Mapping[str, Any]) -> str:
    """Return what the curves of a report show, as a paragraph."""
    rows = [Row(**row) for row in found["rows"]]
    how, device = found["settings"], found["device"]
    threads = f"{device['threads']} thread{'s' if device['threads'] > 1 else ''}"
    clips: list[str] = []
    if any(row.curve != "rules" for row in rows):
        clips.append(f"{_clips(how['scenes'], how['seconds'])} for the key budget and `kv_len`")
    if any(row.curve == "rules" for row in rows):
        clips.append(f"{_clips(how['rules_scenes'], how['rules_seconds'])} for the rules")
    text = [
        f"Measured on {found['date']} on {threads} of {device['processor']} in "
        f"{device['precision']}: {', '.join(clips)}."
    ]
    curves = {name: [row for row in rows if row.curve == name] for name in CURVES}
    if curves["budget"]:
        text += _of_budget(curves["budget"])
    if curves["kv_len"]:
        text += _of_kv_len(curves["kv_len"])
    if curves["rules"]:
        text += _of_rules(curves["rules"])
    return " ".join(text)


def _clips(count: int, seconds: float) -> str:
    return f"{count} scene{'s' if count > 1 else ''} of {seconds:g} s"


def _of_budget(rows: Sequence[Row]) -> list[str]:
    own = next(row for row in rows if row.is_profile)
    share = own.sr_seconds_per_frame / own.seconds_per_frame
    best = min(rows, key=lambda row: row.lpips)
    text = [f"The SR transformer takes {100 * share:.0f} % of the time, so no setting of it can save more than that."]
    ends = [row for row in (rows[0], rows[-1]) if row is not own]
    effects = [f"with {row.setting} {_effect(rows, row)}" for row in ends]
    text.append(f"Compared with the profile's key budget of {own.setting}, {'; '.join(effects)}.")
    if best is own:
        text.append("No other budget has a lower LPIPS.")
    elif best in ends:
        text.append(f"LPIPS is lowest with {best.setting}.")
    else:
        text.append(f"LPIPS is lowest with {best.setting}: {_effect(rows, best)}.")
    return text


def _of_kv_len(rows: Sequence[Row]) -> list[str]:
    own, without = next(row for row in rows if row.is_profile), rows[0]
    if without is own:
        return []
    return [
        f"Compared with the profile's `kv_len` of {own.setting}, with {without.setting} "
        f"(no earlier groups) {_effect(rows, without)}."
    ]


def _of_rules(rows: Sequence[Row]) -> list[str]:
    text: list[str] = []
    for row in rows:
        if row.setting == "off":
            continue
        if row.is_profile:
            text.append(f"The rule `{row.setting}` changes nothing in this model.")
            continue
        skipped = ""
        if row.passes_skipped:
            skipped = f", which skips {100 * row.passes_skipped:.0f} % of the context passes"
        text.append(f"With the rule `{row.setting}`{skipped}, {_effect(rows, row)}.")
    text.append(
        f"A rule is worth offering if it saves at least {100 * LEAST_SAVING:.0f} % of the time "
        f"and raises LPIPS by at most {100 * MOST_LPIPS:.0f} %."
    )
    worth = [f"`{row.setting}`" for row in rows if is_worth_offering(rows, row)]
    if len(worth) == 1:
        text.append(f"Only {worth[0]} does.")
    else:
        text.append(f"{' and '.join(worth)} do." if worth else "None of them does.")
    return text


def _effect(rows: Sequence[Row], row: Row) -> str:
    """Return the effect of a setting in words."""
    changes = {measure: relative(rows, row, measure) for measure in MEASURES}
    told = [
        f"{'the time' if title == 'time' else title} {_in_words(changes[measure])}"
        for measure, (title, _, _) in MEASURES.items()
    ]
    return f"{told[0]}, {told[1]} and {told[2]}"


def _in_words(change: float) -> str:
    size = f"{100 * abs(change):.1f} %"
    if size == "0.0 %":
        return "stays the same"
    return f"{'rises' if change > 0 else 'falls'} by {size}"


PANEL_W, PANEL_H = 230, 190
LEFT, TOP, GAP = 58, 62, 66
BELOW = 52
INK, GRID = "#7a7a7a", "#8886"
LEAST_RANGE = 2.5
"""Per cent up and down that every axis shows, so that noise does not look like a trend."""


def svg(rows: Sequence[Row]) -> str:
    """Return a picture with one panel for each curve: time, LPIPS and tdiff relative to
    the profile's setting."""
    panels = [(name, [row for row in rows if row.curve == name]) for name in CURVES]
    panels = [(name, points) for name, points in panels if points]
    width = LEFT + len(panels) * (PANEL_W + GAP) - GAP + 16
    height = TOP + PANEL_H + BELOW
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="system-ui, sans-serif" '
        f'font-size="12" fill="{INK}" role="img">',
        "<title>Time, LPIPS and tdiff by setting, relative to the profile's</title>",
        *_legend(),
    ]
    for index, (name, points) in enumerate(panels):
        left = LEFT + index * (PANEL_W + GAP)
        parts += [f'<g transform="translate({left} {TOP})">', *_panel(name, points), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _legend() -> list[str]:
    parts: list[str] = []
    for index, (title, colour, marker) in enumerate(MEASURES.values()):
        x = LEFT + 8 + 90 * index
        parts.append(_marker(marker, x, 16, colour))
        parts.append(f'<text x="{x + 12}" y="20">{title}</text>')
    x = LEFT + 8 + 90 * len(MEASURES)
    return [*parts, f'<text x="{x}" y="20">lower is better; bold: the profile</text>']


def _panel(name: str, rows: Sequence[Row]) -> list[str]:
    """Return the axes, lines and markers of a panel whose top left is the origin."""
    changes = {measure: [100 * relative(rows, row, measure) for row in rows] for measure in MEASURES}
    values = [value for line in changes.values() for value in line]
    ticks = _ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def at_y(value: float) -> float:
        return PANEL_H * (high - value) / (high - low)

    def at_x(index: int) -> float:
        return PANEL_W * (index + 0.5) / len(rows)

    parts = [
        f'<text x="0" y="-12" font-size="13">{html.escape(CURVES[name])}</text>',
        f'<text transform="translate(-44 {PANEL_H / 2}) rotate(-90)" text-anchor="middle">change, %</text>',
    ]
    for tick in ticks:
        y, label = at_y(tick), f"{tick:+g}".replace("-", "−") if tick else "0"
        stroke = INK if tick == 0 else GRID
        parts.append(f'<path d="M0 {y:.1f}H{PANEL_W}" stroke="{stroke}"/>')
        parts.append(f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for index, row in enumerate(rows):
        weight = ' font-weight="bold"' if row.is_profile else ""
        label = html.escape(row.setting.removesuffix(" %"))
        parts.append(f'<text x="{at_x(index):.1f}" y="{PANEL_H + 18}" text-anchor="middle"{weight}>{label}</text>')
    unit = {"budget": "share of the pairs of blocks, %", "kv_len": "temporal blocks in the cache"}
    caption = unit.get(name, "rule")
    parts.append(f'<text x="{PANEL_W / 2}" y="{PANEL_H + 40}" text-anchor="middle">{caption}</text>')

    for number, (measure, (_, colour, marker)) in enumerate(MEASURES.items()):
        # Rules have no order: their markers are apart and not joined.
        apart = 14 * (number - 1) if name == "rules" else 0
        points = [(at_x(i) + apart, at_y(value)) for i, value in enumerate(changes[measure])]
        if name != "rules":
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [_marker(marker, x, y, colour) for x, y in points]
    return parts


def _marker(kind: str, x: float, y: float, colour: str) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"/>'
    if kind == "square":
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}"/>'
    return f'<path d="M{x:.1f} {y - 5:.1f}l5 9h-10z" fill="{colour}"/>'


def _ticks(low: float, high: float, *, most: int = 6) -> list[float]:
    """Return round values, evenly spaced, that enclose ``low``, ``high`` and the least
    range around 0."""
    low, high = min(low, -LEAST_RANGE), max(high, LEAST_RANGE)
    exponent = math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * 10.0**exponent
        first, last = math.floor(low / step), math.ceil(high / step)
        if last - first <= most:
            return [round(index * step, 9) for index in range(first, last + 1)]
    raise AssertionError("twenty times the smallest step is wide enough")


def rewritten(page: str) -> str:
    """Return a page with updated tables and sentences between its marks."""

    def made(block: re.Match[str]) -> str:
        found = read_report(block[2])
        rows = [Row(**row) for row in found["rows"]]
        return f"{block[1]}\n{table(rows)}\n\n{_wrapped(sentences(found))}\n\n{block[3]}"

    return BLOCK.sub(made, page)


def read_report(name: str) -> dict[str, Any]:
    """Return the report that a mark names."""
    path = Path(name)
    folder = RESULTS if path.parent == Path() else path.parent
    newest = sorted(folder.glob(path.name))[-1]
    return json.loads(newest.read_text(encoding="utf-8"))


def _wrapped(text: str, *, columns: int = 88) -> str:
    """Return a paragraph in lines; a number stays with its unit."""
    lines = [""]
    for word in text.replace(" %", "\0%").split(" "):
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) <= columns:
            lines[-1] = joined
        else:
            lines.append(word)
    return "\n".join(lines).replace("\0", " ")


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite a page and its picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--svg", type=Path, help="picture of the first file that the page names")
    asked = parser.parse_args(arguments)
    text = asked.page.read_text(encoding="utf-8")
    named = BLOCK.search(text)
    if named is None:
        parser.error(f"{asked.page} has no mark <!-- curves: FILE -->")
    asked.page.write_text(rewritten(text), encoding="utf-8")
    if asked.svg is not None:
        rows = [Row(**row) for row in read_report(named[2])["rows"]]
        asked.svg.write_text(svg(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
