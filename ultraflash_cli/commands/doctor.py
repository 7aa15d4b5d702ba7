"""`ultraflash doctor`."""

from dataclasses import asdict
from pathlib import Path

from ultraflash_cli.console import Console
from ultraflash_cli.options import JsonOption, with_console

__all__ = ["doctor"]


@with_console(hidden=True)
def doctor(console: Console, json: JsonOption = False) -> int:
    """Check this machine and suggest a fix for each problem.

    It checks libraries, devices, codecs, weights and disk space.
    """
    from ultraflash_cli.jobs.doctor import examine
    from ultraflash_cli.jobs.weights.pull import open_store

    findings = examine(Path(), open_store(console.settings), waiting=console.settings.waiting)
    if json:
        console.data(
            {"ok": all(each.state != "fail" for each in findings), "findings": [asdict(each) for each in findings]}
        )
    else:
        for each in findings:
            console.text(f"{each.state:4}  {each.name:10}  {each.found}")
            if each.fix is not None:
                console.text(f"{'':18}-> {each.fix}")
    return next((each.exit_code for each in findings if each.state == "fail"), 0)
