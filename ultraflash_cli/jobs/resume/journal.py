"""The journal of a running job: finished work, kept next to the output until the output is complete."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from ultraflash_cli.buffers import StateContent
from ultraflash_cli.errors import OutputError
from ultraflash_cli.files import sync, sync_folder
from ultraflash_cli.jobs.resume.entries import (
    FORMAT,
    BegunEntry,
    Placement,
    SegmentEntry,
    as_read,
    difference,
    read_journal,
)
from ultraflash_cli.jobs.resume.owned_files import (
    JOURNAL,
    JOURNAL_DRAFT,
    LOCK,
    SPOOL,
    check_ours,
    is_plain,
    make_new,
    open_existing,
    remove_own,
    segment_name,
    sweep,
)
from ultraflash_cli.video.segment_file import SegmentFile

__all__ = ["Journal", "discard", "empty"]


class Journal:
    """The record of finished work, in output order; every change is on disk before the
    call returns."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, object], *, first_frame: int = 0) -> None:
        """Open the journal in `folder` (locked by the caller); results with a different
        fingerprint are deleted, and `fresh_because` then describes what has changed.
        The work starts with `first_frame` of the output. Raises OutputError if the
        folder cannot be written.
        """
        self.folder = folder
        self.first_frame = first_frame
        self.segments: list[SegmentEntry] = []
        self.begun: BegunEntry | None = None
        self.complete = False
        self.placement: Placement | None = None
        self.fresh_because: str | None = None
        self._path = folder / JOURNAL
        self._fingerprint = as_read(fingerprint)
        swept = sweep(folder)
        found = read_journal(folder)
        if found is None:
            if swept:
                self.fresh_because = f"{', '.join(swept)} in {folder} was not a file of ultraflash"
            self._clear()
            self._rewrite()
            return

        self.fresh_because = found.refused or difference(found.fingerprint, self._fingerprint)
        if found.first_frame != first_frame:
            self.fresh_because = f"it started at frame {found.first_frame} and this run starts at {first_frame}"
        if self.fresh_because is not None:
            self._clear()
        elif found.placement is not None and all(file.is_there() for file in found.placement.files):
            # Some segments may be missing, but they are no longer needed.
            self.segments, self.complete, self.placement = found.segments, found.complete, found.placement
        else:
            self.placement = found.placement
            self.segments = self._usable(found.segments)
            whole = len(self.segments) == len(found.segments)
            self.complete = found.complete and whole
            self.begun = found.begun if whole and found.begun is not None and self._is_whole(found.begun) else None
            if found.has_records:  # before the records are deleted
                self._rewrite()
            self._clear()
        self._rewrite()

    @property
    def frames(self) -> int:
        """Number of finished frames of the output, including those before the first
        one."""
        return self.segments[-1].end_frame if self.segments else self.first_frame

    @property
    def placed(self) -> bool:
        """Whether all outputs are in place."""
        return self.placement is not None and all(file.is_there() for file in self.placement.files)

    @property
    def safe_frames(self) -> int:
        """Number of frames that need not be computed again: those of finished segments
        and those kept of the current one."""
        return self.begun.end_frame if self.begun is not None else self.frames

    @property
    def scene_first(self) -> int:
        """The first frame of the next frame's scene, if there is a state to continue
        from."""
        last = self.begun or self.segments[-1]
        return last.scene_first

    def files(self, output: int = 0) -> list[SegmentFile]:
        """Return the finished files of an output in order."""
        files = [entry.files[output] for entry in self.segments]
        return [file for file in files if file is not None]

    def segment_path(self) -> Path:
        """Return the path for the next segment."""
        return self.folder / segment_name(len(self.segments))

    def begun_path(self) -> Path:
        """Return the path for the pictures of the current segment."""
        return self.folder / f"begun-{len(self.segments):06d}.frames"

    def state_bytes(self) -> bytes | None:
        """Read the state after the last safe frame; None if a new scene begins."""
        name = self.begun.state if self.begun is not None else self._last_state()
        if name is None:
            return None
        with open(open_existing(self.folder / name), "rb") as file:
            return file.read()

    @property
    def guarded(self) -> tuple[int, int] | None:
        """Number of pixels of `safe_frames` that were blended back, and number of all
        compared; None if unknown."""
        last = self.begun or (self.segments[-1] if self.segments else None)
        return last.guarded if last is not None else None

    def begin(
        self,
        size_bytes: int,
        *,
        end_frame: int,
        scene_first: int,
        groups: int,
        state: StateContent,
        guarded: tuple[int, int] | None = None,
    ) -> None:
        """Enter the unfinished segment: the first bytes of `begun_path`, synced, and the state after it.

        Raises OSError from the file system.
        """
        before = self.begun
        path = self.begun_path()
        state_name = f"begun-{len(self.segments):06d}-{end_frame}.safetensors"
        state_sha256 = _write_state(self.folder / state_name, state)
        entry = BegunEntry(
            file=path.name,
            size_bytes=size_bytes,
            end_frame=end_frame,
            scene_first=scene_first,
            groups=groups,
            state=state_name,
            state_sha256=state_sha256,
            guarded=guarded,
        )
        self._append({"begun": asdict(entry)})
        self.begun = entry
        if before is not None and before.state != state_name:
            (self.folder / before.state).unlink(missing_ok=True)

    def add(
        self,
        files: Sequence[SegmentFile | None],
        *,
        first_frame: int,
        end_frame: int,
        scene_first: int,
        state: StateContent | None,
        guarded: tuple[int, int] | None = None,
    ) -> SegmentEntry:
        """Enter a finished segment together with the state after it; the state before it is deleted.

        Raises OSError from the file system.
        """
        before = self._last_state()
        state_name = state_sha256 = None
        if state is not None:
            state_name = f"state-{len(self.segments):06d}.safetensors"
            state_sha256 = _write_state(self.folder / state_name, state)

        entry = SegmentEntry(
            files=tuple(files),
            first_frame=first_frame,
            end_frame=end_frame,
            scene_first=scene_first,
            state=state_name,
            state_sha256=state_sha256,
            guarded=guarded,
        )
        self._append({"segment": entry.as_json()})

        begun, self.begun = self.begun, None
        self.segments.append(entry)
        for name in (before, begun.state if begun is not None else None, begun.file if begun is not None else None):
            if name is not None:
                (self.folder / name).unlink(missing_ok=True)
        return entry

    def adopt(self, entries: Sequence[SegmentEntry]) -> None:
        """Enter all segments of the clip at once, which were finished elsewhere and are
        in place. Raises OutputError."""
        self.segments, self.begun, self.complete = list(entries), None, True
        self._rewrite()

    def finish(self) -> None:
        """Record that the last segment ends the clip, so that only joining is left."""
        self._append({"complete": True})
        self.complete = True

    def place(self, placement: Placement) -> None:
        """Record the files that will be moved into place. Raises OSError."""
        self._append({"placement": asdict(placement)})
        self.placement = placement

    def _last_state(self) -> str | None:
        return self.segments[-1].state if self.segments else None

    def _usable(self, entries: list[SegmentEntry]) -> list[SegmentEntry]:
        """Return the leading segments that are intact and can be continued."""
        whole = 0
        for entry in entries:
            files = [file for file in entry.files if file is not None]
            if not all(is_plain(file.path) and file.path.stat().st_size == file.size_bytes for file in files):
                break
            whole += 1
        usable = entries[:whole]
        while usable and not self._has_state(usable[-1]):
            usable.pop()
        return usable

    def _has_state(self, entry: SegmentEntry | BegunEntry) -> bool:
        """Return whether the work can continue after `entry`."""
        if entry.state is None:
            return True
        path = self.folder / entry.state
        if not is_plain(path):
            return False
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == entry.state_sha256

    def _is_whole(self, begun: BegunEntry) -> bool:
        path = self.folder / begun.file
        # A later run appends to it, which would also affect hard links to the file.
        alone = is_plain(path) and path.stat().st_nlink == 1
        return alone and path.stat().st_size >= begun.size_bytes and self._has_state(begun)

    def _rewrite(self) -> None:
        records: list[dict[str, object]] = [{"format": FORMAT, "fingerprint": self._fingerprint}]
        if self.first_frame:
            records[0]["first_frame"] = self.first_frame
        records.extend({"segment": entry.as_json()} for entry in self.segments)
        if self.begun is not None:
            records.append({"begun": asdict(self.begun)})
        if self.complete:
            records.append({"complete": True})
        if self.placement is not None:
            records.append({"placement": asdict(self.placement)})
        text = "".join(json.dumps(record) + "\n" for record in records)
        scratch = self.folder / JOURNAL_DRAFT
        try:
            _write_synced(scratch, text.encode())
            scratch.replace(self._path)
            sync_folder(self.folder)
        except OSError as error:
            raise OutputError(f"cannot write in {self.folder}: {error.strerror}") from error

    def _append(self, record: dict[str, object]) -> None:
        with open(open_existing(self._path, os.O_WRONLY | os.O_APPEND), "ab") as file:
            file.write(json.dumps(record).encode() + b"\n")
            sync(file)
        sync_folder(self.folder)

    def _clear(self) -> None:
        """Delete all our files except the journal, a spool, and those still in use."""
        kept = {LOCK, JOURNAL, SPOOL, self._last_state()}
        if self.begun is not None:
            kept |= {self.begun.file, self.begun.state}
        kept.update(name for entry in self.segments for name in entry.names)
        remove_own(self.folder, lambda name: name in kept)


def empty(folder: Path) -> None:
    """Delete the remains of runs in a work folder, except its lock and a spool. Raises
    OSError."""
    remove_own(folder, lambda name: name in (LOCK, SPOOL))


def discard(folder: Path) -> bool:
    """Delete a work folder and the remains of runs in it, the journal last, because it
    records the finished work. Other files are kept, and the folder with them; returns
    whether nothing is left.
    """
    with suppress(OSError, OutputError):
        check_ours(folder)
        remove_own(folder, lambda name: name in (LOCK, JOURNAL))
        remove_own(folder, lambda name: name == LOCK)
        remove_own(folder)
        folder.rmdir()
    return not os.path.lexists(folder)


def _write_synced(path: Path, content: bytes) -> None:
    with make_new(path) as file:
        file.write(content)
        sync(file)


def _write_state(path: Path, state: StateContent) -> str:
    """Write a state incrementally, synced; return the SHA-256 of the file."""
    digest = hashlib.sha256()
    try:
        with make_new(path) as file:
            for piece in [state] if isinstance(state, bytes) else state.pieces():
                digest.update(piece)
                file.write(piece)
            sync(file)
    finally:
        if not isinstance(state, bytes):
            state.release()
    return digest.hexdigest()
