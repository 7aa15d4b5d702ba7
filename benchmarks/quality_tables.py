"""Tables from the JSON files of `benchmarks.quality`, and updated tables of a page.

Marks in a page select the table and its files. Files without a folder are in
benchmarks/results; a name with a star is the last one by name that fits, or none:

    <!-- table: means FILE... -->       every method's means, by kind
    <!-- table: clips FILE... -->       VMAF-NEG clip by clip, beside the best of the other methods
    <!-- table: stage FILE... -->       what is gained over the same cascade without a stage
    <!-- end of table -->

    python -m benchmarks.quality_tables docs/quality.md             # rewrites the page
    python -m benchmarks.quality_tables --print clips FILE...       # prints one table
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from benchmarks.likeness import LIKENESS
from benchmarks.scores import METRICS

__all__ = [
    "KINDS",
    "RESULTS",
    "TABLES",
    "Row",
    "clips_table",
    "main",
    "mean_rows",
    "means_table",
    "read_rows",
    "rewritten",
    "stage_table",
]

KINDS = ("clean", "deg", "aigc")
BOTH = ("clean", "deg")
"""Kinds whose mean ranks the methods; random degradations have too few samples for a
ranking."""
SHOWN = {**METRICS, **LIKENESS}
"""All columns that a table may have."""
OURS = "ultraflash"
RESULTS = Path(__file__).parent / "results"
BLOCK = re.compile(r"(<!-- table: (\w+) ([^>]*?)-->\n).*?(<!-- end of table -->)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Row:
    """Scores of one method on one case, or the mean over all clips of a kind."""

    method: str
    kind: str
    clip: str
    seconds: float
    """Wall time, including decoding and lossless encoding, and for the installed
    command also its start."""
    scores: dict[str, float]


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """Return the rows by clip of all files; of two rows for one case and method the later file's counts."""
    rows: dict[tuple[str, str, str], Row] = {}
    for path in (file for each in paths for file in _files(each)):
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        for values in found["clips"]:
            row = Row(**values)
            rows[row.kind, row.method, row.clip] = row
    return list(rows.values())


def _files(path: Path) -> list[Path]:
    folder = RESULTS if path.parent == Path() and not path.exists() else path.parent
    return sorted(folder.glob(path.name))[-1:] if "*" in path.name else [folder / path.name]


def mean_rows(rows: Sequence[Row]) -> list[Row]:
    """Return one row for each kind and method: the mean over its clips, in order of appearance."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.method), []).append(row)
    return [
        Row(
            method=method,
            kind=kind,
            clip="mean",
            seconds=float(np.mean([row.seconds for row in group])),
            scores=_mean_scores(group),
        )
        for (kind, method), group in sorted(groups.items(), key=lambda item: KINDS.index(item[0][0]))
    ]


def _mean_scores(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean of every score that all of the rows have."""
    names = [name for name in SHOWN if all(name in row.scores for row in rows)]
    return {name: float(np.mean([row.scores[name] for row in rows])) for name in names}


def means_table(rows: Sequence[Row]) -> str:
    """Return the means over the clips as a Markdown table, with the scores that all
    methods have; our rows are last in each kind."""
    means = mean_rows(rows)
    shown = {name: metric for name, metric in SHOWN.items() if all(name in row.scores for row in means)}
    heads = [f"{metric.title} {metric.unit}".strip() for metric in shown.values()]
    lines = ["| input | method | " + " | ".join(heads) + " |", "|---|---" + "|---:" * len(heads) + "|"]
    for kind in KINDS:
        for row in sorted((row for row in means if row.kind == kind), key=lambda row: _is_ours(row.method)):
            cells = [f"{row.scores[name]:.{metric.digits}f}" for name, metric in shown.items()]
            lines.append(f"| {kind} | {_shown(row.method)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def clips_table(rows: Sequence[Row]) -> str:
    """Return VMAF-NEG by clip, ours and the best other method's, for each kind and for the mean of clean and deg.

    The best other method is the one with the highest mean over the clips there.
    """
    clips = list(dict.fromkeys(row.clip for row in rows))
    lines = [
        "| input | method | " + " | ".join(clips) + " | mean | ahead in |",
        "|---|---" + "|---:" * (len(clips) + 2) + "|",
    ]
    for name, kinds in _groups(rows):
        scores = {method: by_clip(rows, method, kinds, "vmaf_neg") for method in _methods(rows)}
        scores = {method: values for method, values in scores.items() if values.keys() == set(clips)}
        others = {method: values for method, values in scores.items() if not _is_ours(method)}
        if OURS not in scores or not others:
            continue
        best = max(others, key=lambda method: _mean(others[method]))
        ahead = sum(scores[OURS][clip] > others[best][clip] for clip in clips)
        for method, count in ((best, ""), (OURS, f"{ahead} of {len(clips)}")):
            cells = [f"{scores[method][clip]:.1f}" for clip in clips]
            lines.append(
                f"| {name} | {_shown(method)} | " + " | ".join([*cells, f"{_mean(scores[method]):.1f}", count]) + " |"
            )
    return "\n".join(lines)


def stage_table(rows: Sequence[Row]) -> str:
    """Return the gain of the whole cascade over one without a stage: VMAF-NEG, and the
    relative reduction of tdiff. Clips with at least 0.3 more VMAF-NEG or at least 3 %
    less tdiff count.
    """
    lines = ["| left out | input | VMAF-NEG | tdiff | clips that gain as much |", "|---|---|---:|---:|---:|"]
    for method in _methods(rows):
        if not method.startswith(f"{OURS} without "):
            continue
        for name, kinds in _groups(rows):
            neg, without_neg = (by_clip(rows, each, kinds, "vmaf_neg") for each in (OURS, method))
            tdiff, without_tdiff = (by_clip(rows, each, kinds, "tdiff") for each in (OURS, method))
            clips = [clip for clip in neg if clip in without_neg]
            gains = [neg[clip] - without_neg[clip] for clip in clips]
            steadier = [1 - tdiff[clip] / without_tdiff[clip] for clip in clips]
            if clips:
                count = sum(gain >= 0.3 or less >= 0.03 for gain, less in zip(gains, steadier, strict=True))
                less = 1 - sum(tdiff[clip] for clip in clips) / sum(without_tdiff[clip] for clip in clips)
                cells = [f"{float(np.mean(gains)):+.2f}", f"{-100 * less:+.1f} %", f"{count} of {len(clips)}"]
                lines.append(f"| {method.removeprefix(f'{OURS} without ')} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES: Mapping[str, Callable[[Sequence[Row]], str]] = MappingProxyType(
    {"means": means_table, "clips": clips_table, "stage": stage_table}
)
"""Tables by the names that pages give them."""


def by_clip(rows: Sequence[Row], method: str, kinds: Sequence[str], score: str) -> dict[str, float]:
    """Return a method's score on each clip, the mean over these kinds; clips that lack one are left out."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.method == method and row.kind in kinds:
            found.setdefault(row.clip, {})[row.kind] = row.scores[score]
    return {clip: _mean(values) for clip, values in found.items() if len(values) == len(kinds)}


def rewritten(page: str) -> str:
    """Return a page with updated tables between its marks."""

    def made(block: re.Match[str]) -> str:
        rows = read_rows([Path(name) for name in block[3].split()])
        return f"{block[1]}\n{TABLES[block[2]](rows)}\n\n{block[4]}"

    return BLOCK.sub(made, page)


def _groups(rows: Sequence[Row]) -> list[tuple[str, tuple[str, ...]]]:
    """Return the groups to compare: each existing kind, and clean and deg together."""
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in rows)]
    groups: list[tuple[str, tuple[str, ...]]] = [(kind, (kind,)) for kind in kinds]
    if all(kind in kinds for kind in BOTH):
        groups.append((" and ".join(BOTH), BOTH))
    return groups


def _methods(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.method for row in rows))


def _is_ours(method: str) -> bool:
    return method.split(" ")[0] == OURS


def _shown(method: str) -> str:
    if method == OURS:
        return f"**{OURS}** (lite)"
    return method.replace(OURS, "lite")


def _mean(values: Mapping[str, float]) -> float:
    return float(np.mean(list(values.values())))


def main(arguments: Sequence[str] | None = None) -> None:
    """Rewrite pages, or print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", choices=TABLES, help="print this table of the files instead")
    parser.add_argument("files", nargs="+", type=Path, help="pages; with --print, JSON files")
    asked = parser.parse_args(arguments)
    if asked.print:
        sys.stdout.write(TABLES[asked.print](read_rows(asked.files)) + "\n")
        return
    for page in asked.files:
        page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
