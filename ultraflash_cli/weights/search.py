"""Find the file on the hub for an entry in the list, by its tensors if names are
ambiguous."""

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import PurePosixPath

from ultraflash_cli.errors import WeightsError
from ultraflash_cli.weights.fetch import Hub, NotThere, RemoteFile, list_files, locate
from ultraflash_cli.weights.licences import licence_of
from ultraflash_cli.weights.manifest import WeightEntry

__all__ = ["Found", "HubSearch"]

_CHECKPOINTS = {".pt", ".pth", ".bin", ".ckpt", ".safetensors"}
"""Suffixes of files that may hold tensors."""
_SCALES = {2: r"(?<![a-z0-9])(1k|x2|2x)(?![a-z0-9])", 3: r"(?<![a-z0-9])(2k|x3|3x)(?![a-z0-9])"}
"""File-name patterns for the scale of networks whose tensors do not show it."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file found on the hub, and the matching entry."""

    place: WeightEntry
    """The entry at the location where it was found, with that location's architecture and licence."""
    remote: RemoteFile
    how: str | None = None
    """Explanation of how the file was found, if it is not the first one in the list."""


class HubSearch:
    """Searches a hub for entries; the content of each repository is requested only
    once."""

    def __init__(self, hub: Hub, entries: Iterable[WeightEntry], *, commercial: bool = False) -> None:
        """Search for some of ``entries``; ``commercial`` excludes locations whose
        licence does not allow commercial use."""
        self._hub = hub
        self._entries = tuple(entry for entry in entries if not entry.packaged)
        self._commercial = commercial
        self._commits: dict[str, str] = {}
        self._listed: dict[str, list[str]] = {}
        self._seen: dict[tuple[str, str], str | None] = {}

    def find(self, entry: WeightEntry) -> Found:
        """Return the first location that has the entry's weights.

        Locations are tried in the order of the list; a file at an unlocked location
        must have the right tensors, if they can be read without downloading it. If none
        matches, all other files in the entry's repositories are examined. Raises
        WeightsError with the locations tried.
        """
        places = self._allowed(entry)
        tried: list[str] = []
        refused: WeightsError | None = None
        for place in places:
            try:
                found = self._at(place, tried)
            except NotThere as error:
                tried.append(f"{place.repository}/{place.file} (not there)")
                refused = refused or (error if place.locked else None)
                continue
            except WeightsError as error:
                if len(places) == 1 or type(error) is not WeightsError:
                    raise  # a lost connection is not a result
                refused = refused or error
                tried.append(f"{place.repository}/{place.file} (refused)")
                continue
            if found is not None:
                return found if place == places[0] else self._said(entry, found, tried)

        found = None if self._hub.offline else self._unclaimed(entry, places, tried)
        if found is not None:
            return self._said(entry, found, tried)
        if refused is not None and (len(places) == 1 or all(text.endswith("(refused)") for text in tried)):
            raise refused
        raise self._nothing(entry, places, tried)

    def _allowed(self, entry: WeightEntry) -> list[WeightEntry]:
        if not self._commercial:
            return list(entry.places)
        places = [place for place in entry.places if licence_of(place.licence).commercial]
        if not places:
            stated = ", ".join(dict.fromkeys(place.licence for place in entry.places))
            raise WeightsError(
                f"{entry.name}: its licence ({stated}) does not allow commercial use or is not confirmed"
            )
        return places

    def _at(self, place: WeightEntry, tried: list[str]) -> Found | None:
        """Return the file at one location; None if its files contain other tensors.
        Raises NotThere, WeightsError."""
        assert place.repository is not None, "a file of the package is not on the hub"
        if place.locked or self._hub.offline:
            return Found(place=place, remote=locate(self._hub, place))

        remotes: list[RemoteFile] = []
        if "*" not in place.file:
            with suppress(NotThere):
                remotes = [self._locate(place, place.file)]

        if not remotes:
            named = PurePosixPath(place.file).name
            paths = [path for path in self._files(place.repository) if fnmatch(PurePosixPath(path).name, named)]
            if not paths:
                raise NotThere(f"{place.name}: {place.repository} has no {place.file}")
            remotes = [self._locate(place, path) for path in paths]

        fitting = [remote for remote in remotes if self._fits(place, remote, tried)]
        if len(fitting) > 1:
            names = ", ".join(remote.path for remote in fitting)
            raise WeightsError(
                f"{place.name}: {place.repository} has several matching files ({names}); download the right one and "
                f"import it: `ultraflash weights pull {place.name} --from FILE`"
            )

        return Found(place=place, remote=fitting[0]) if fitting else None

    def _unclaimed(self, entry: WeightEntry, places: list[WeightEntry], tried: list[str]) -> Found | None:
        """Examine every file in the unlocked repositories that no other entry names."""
        for repository in dict.fromkeys(place.repository for place in places if not place.locked):
            assert repository is not None
            try:
                paths = self._files(repository)
            except WeightsError:
                continue  # already reported for the locations
            wanted = [place for place in places if place.repository == repository and not place.locked]

            matching: list[Found] = []
            for path in paths:
                if PurePosixPath(path).suffix not in _CHECKPOINTS or self._claimed(entry, repository, path):
                    continue
                remote = self._locate(wanted[0], path)
                found = self._architecture(remote)
                place = next((each for each in wanted if each.architecture == found), None)
                if place is not None and self._scale_fits(entry, path):
                    matching.append(Found(place=place, remote=remote))
                elif not any(text.startswith(f"{remote} ") for text in tried):
                    tried.append(f"{remote} (contains {found or 'unknown tensors'})")

            if len(matching) > 1:
                names = ", ".join(each.remote.path for each in matching)
                raise WeightsError(
                    f"{entry.name}: {repository} has several matching files ({names}); download the right one and "
                    f"import it: `ultraflash weights pull {entry.name} --from FILE`"
                )
            if matching:
                return matching[0]
        return None

    def _claimed(self, entry: WeightEntry, repository: str, path: str) -> bool:
        """Return whether another entry of the same architecture names this file, and this one does not."""
        name = PurePosixPath(path).name

        def names(other: WeightEntry) -> bool:
            return any(
                place.repository == repository and fnmatch(name, PurePosixPath(place.file).name)
                for place in other.places
            )

        rivals = [e for e in self._entries if e.name != entry.name and e.architecture == entry.architecture]
        return not names(entry) and any(names(rival) for rival in rivals)

    def _fits(self, place: WeightEntry, remote: RemoteFile, tried: list[str]) -> bool:
        """Return whether a file has the tensors of its location; a file that cannot be
        examined is accepted."""
        if place.architecture == "tokenizer":
            return True
        found = self._architecture(remote)
        if found is None or found == place.architecture:
            return True
        tried.append(f"{remote} (contains {found})")
        return False

    def _architecture(self, remote: RemoteFile) -> str | None:
        """Return the architecture of a file's tensors; None if it cannot be determined without downloading."""
        from ultraflash_cli.weights.convert import recognise
        from ultraflash_cli.weights.peek import peek

        key = (remote.repository, remote.path)
        if key not in self._seen:
            content = peek(self._hub, remote)
            self._seen[key] = None if content is None else recognise(content) or "tensors of no known network"
        return self._seen[key]

    def _scale_fits(self, entry: WeightEntry, path: str) -> bool:
        """Return whether a file's name contains the entry's scale, or none."""
        wanted = re.search(r"_x([23])$", entry.name)
        if wanted is None or entry.architecture.endswith(("_x2", "_x3")):
            return True
        name = PurePosixPath(path).name.lower()
        return not any(re.search(sign, name) for scale, sign in _SCALES.items() if scale != int(wanted[1]))

    def _files(self, repository: str) -> list[str]:
        if repository not in self._listed:
            self._listed[repository] = list_files(self._hub, repository, self._commits.get(repository))
        return self._listed[repository]

    def _locate(self, place: WeightEntry, path: str) -> RemoteFile:
        repository = place.repository or ""
        remote = locate(self._hub, replace(place, file=path), revision=self._commits.get(repository))
        self._commits.setdefault(remote.repository, remote.revision)
        return remote

    def _said(self, entry: WeightEntry, found: Found, tried: list[str]) -> Found:
        how = f"{entry.name}: {found.remote} selected by its tensors"
        if found.place.locked:
            how = f"{entry.name}: {found.remote} selected"
        return Found(place=found.place, remote=found.remote, how=f"{how}; tried {', '.join(tried)}" if tried else how)

    def _nothing(self, entry: WeightEntry, places: list[WeightEntry], tried: list[str]) -> WeightsError:
        cure = f"download the right one and import it: `ultraflash weights pull {entry.name} --from FILE`"
        if len(tried) > 1 or "(not there)" not in tried[0]:
            return WeightsError(f"{entry.name}: no matching file on the hub, tried {', '.join(tried)}; {cure}")
        repository = places[0].repository or ""
        there = [path for path in self._files(repository) if not path.startswith(".")]
        some = ", ".join(there[:8]) or "nothing"
        return WeightsError(f"{entry.name}: {repository} has no {places[0].file}, only {some}; {cure}")
