"""Leftover plan folders: found by their contents, removed file by file."""

import json
import os
import re
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from ultraflash_cli.errors import OutputError
from ultraflash_cli.jobs.cluster.lease import holder_of
from ultraflash_cli.jobs.cluster.presence import PRESENCE, alone_in
from ultraflash_cli.jobs.cluster.units import PLAN, Plan, read_plan
from ultraflash_cli.jobs.resume.entries import count_frames
from ultraflash_cli.jobs.resume.leftovers import Leftover
from ultraflash_cli.jobs.resume.owned_files import LOCK, check_ours, is_own_name, is_plain, read_text, size_bytes
from ultraflash_cli.jobs.resume.work_folder import OutputLock, looks_like_work

__all__ = ["find_plans", "remove_plan"]

_DEFAULT_NAME = re.compile(r"\..+\.units")
_SILENCE_S = 600.0
"""Time without an update, on the file system's clock, after which a worker on another
machine is presumed dead; workers themselves wait a tenth of that and trust no clock."""
_AT_THE_TOP = re.compile(rf"{re.escape(PLAN)}|{LOCK}|{PRESENCE}|worker-\d+\.log")
_OF_A_FILE = re.compile(r"(settings|joined|failed)\.json")
_OF_A_UNIT = re.compile(r"lease|\.lease\.[0-9a-f]+(\.old)?|failure-\d\.json|deaths\.json")
_ATTEMPT = re.compile(r"done|try-[0-9a-f]+")
_DRAFT = re.compile(r"\..+\.\d+\.(part|\d+)")
"""Names of partial files left by a killed process."""


def find_plans(folders: Iterable[Path], *, recursive: bool) -> list[Leftover]:
    """Find folders of plans among `folders` and in them, without following links."""
    found: list[Leftover] = []
    for folder in folders:
        candidates = [folder]
        for base, names, _ in os.walk(folder):
            candidates += [Path(base, name) for name in sorted(names)]
            names[:] = sorted(
                name for name in names if recursive and not looks_like_work(name) and not _is_plan(Path(base, name))
            )
        found += [_describe(each) for each in candidates if _is_plan(each)]
    return found


def remove_plan(leftover: Leftover) -> bool:
    """Remove the folder of a plan unless it is in use; returns whether it is gone. Only
    files created by the program are deleted; a folder with other files is kept.
    """
    folder = leftover.folder
    if leftover.refusal is not None:
        return False
    with suppress(OSError, OutputError), ExitStack() as stack:
        stack.enter_context(OutputLock(folder))
        if not stack.enter_context(alone_in(folder)) or _is_leased(_plan(folder)):
            return False
        _discard(folder)
    return not os.path.lexists(folder)


def _is_plan(folder: Path) -> bool:
    """Return whether a folder contains a plan, or the remains of a killed `plan`."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    if not is_plain(folder / PLAN):
        return _DEFAULT_NAME.fullmatch(folder.name) is not None and is_plain(folder / LOCK)
    try:
        head, *_ = read_text(folder / PLAN).splitlines() or [""]
        return {"format", "version"} <= json.loads(head).keys()
    except (OSError, OutputError, ValueError, AttributeError):
        return False


def _describe(folder: Path) -> Leftover:
    try:
        check_ours(folder)
    except OutputError as error:
        return Leftover(folder=folder, size_bytes=0, frames=0, in_use=False, refusal=str(error))
    plan = _plan(folder)
    in_use = True
    with suppress(OSError, OutputError), ExitStack() as stack:
        stack.enter_context(OutputLock(folder))
        in_use = not stack.enter_context(alone_in(folder)) or _is_leased(plan)
    frames = sum(max(map(count_frames, [unit.done_folder, *unit.tries])) for unit in plan.units)
    return Leftover(folder=folder, size_bytes=size_bytes(folder), frames=frames, in_use=in_use)


def _plan(folder: Path) -> Plan:
    """Return the plan; an empty one if it cannot be read."""
    try:
        return read_plan(folder, is_new=True)
    except OutputError:
        return Plan(folder, {})


def _is_leased(plan: Plan) -> bool:
    """Return whether a worker may be alive: local processes are looked up, remote ones
    must have stopped updating their leases."""
    clock = plan.folder / PRESENCE
    os.utime(clock)
    now_s = clock.stat().st_mtime
    for path in plan.folder.glob("files/*/units/*/lease"):
        holder = holder_of(read_text(path))
        if holder is not None and holder.is_gone:
            continue
        if (holder is not None and holder.is_local) or now_s - path.stat().st_mtime < _SILENCE_S:
            return True
    return False


def _discard(folder: Path) -> None:
    """Delete our files in the folder of a plan, and folders that become empty; symlinks
    are not followed."""
    for base, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(base, name)
            if _is_ours(path.relative_to(folder).parts):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            os.rmdir(base)


def _is_ours(parts: tuple[str, ...]) -> bool:
    """Return whether this path in the folder of a plan is one that the program
    creates."""
    if _DRAFT.fullmatch(parts[-1]) and (len(parts) == 1 or parts[0] == "files"):
        return True
    match parts:
        case (name,):
            return _AT_THE_TOP.fullmatch(name) is not None
        case ("files", _, name):
            return _OF_A_FILE.fullmatch(name) is not None
        case ("files", _, "units", _, name):
            return _OF_A_UNIT.fullmatch(name) is not None
        case ("files", _, "units", _, attempt, name, *_):
            return _ATTEMPT.fullmatch(attempt) is not None and (name == "unit.json" or is_own_name(name))
        case _:
            return False
