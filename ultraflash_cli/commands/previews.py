"""Output of `upscale --preview` besides the clip: pages, and single frames."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ultraflash_cli.console import Console
from ultraflash_cli.errors import UsageError

if TYPE_CHECKING:
    from ultraflash_cli.jobs.batch import Outcome
    from ultraflash_cli.jobs.planning.upscale import UpscaleJob

__all__ = ["check_pages", "show_still", "with_pages"]


def show_still(console: Console, jobs: "Sequence[UpscaleJob]", *, html: bool, dry_run: bool, json: bool) -> None:
    """Write the two pictures of `--preview frame@TIME` and print their paths. Raises
    UsageError for several inputs."""
    from ultraflash_cli.jobs.running.still import run_still

    if len(jobs) != 1:
        raise UsageError("--preview frame needs a single clip; give one input")
    if html or dry_run:
        flag = "--html" if html else "--dry-run"
        raise UsageError(f"--preview frame only writes two images; remove {flag}")
    report = run_still(jobs[0], console.info)
    if json:
        console.data(asdict(report))
        return
    size = f"{report.width}x{report.height}"
    console.info(f"{report.output}: the frame at {report.time_s:.2f} s, {size}, model {report.model}")
    console.info(f"{report.plain_output}: the same frame with lanczos")


def check_pages(jobs: "Sequence[UpscaleJob]") -> None:
    """Reject, before any work, jobs for which no page can be written. Raises
    UsageError, OutputError."""
    from ultraflash_cli.jobs.pages.previewing import check_preview

    for job in jobs:
        check_preview(job)


def with_pages(outcomes: "Iterable[Outcome]", jobs: "Sequence[UpscaleJob]", console: Console) -> "Iterator[Outcome]":
    """Yield the outcomes, each with a page next to its output."""
    from ultraflash_cli.jobs.pages.previewing import write_preview_page

    made_by = {str(job.source): job for job in jobs}
    for outcome in outcomes:
        if outcome.report is None or outcome.report.skipped:
            yield outcome
            continue
        page = write_preview_page(made_by[outcome.source], outcome.report)
        console.info(f"page: {page}")
        yield replace(outcome, page=str(page))
