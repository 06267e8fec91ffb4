"""WebDataset shards: tar files whose members `key.json` (or `key.txt`) and `key.jpg` make one sample.

Knows tar and which member means what; the row in `key.json` is internvl.py's or swift.py's. Memory: 12 bytes a sample.
"""

from __future__ import annotations

import re
import tarfile
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast

from eyespot import limits
from eyespot.errors import EyespotError
from eyespot.tensorfile import parse_json, reading
from eyespot.train.data import fields, internvl, swift
from eyespot.train.data.record import IMAGE, BadRecord, Place, Record, dialogue, marked

PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp"}
CAPTION = f"{IMAGE}\nDescribe the picture."  # the question of a sample that has a text and no conversation
BRACES = re.compile(r"(.*)\{(\d{1,9})\.\.(\d{1,9})\}(.*)")


class Shards:
    """The samples of a list of shards: their number, and each one by its index. Pictures come as bytes."""

    warnings: tuple[str, ...] = ()

    def __init__(self, paths: list[Path]) -> None:
        self.paths, self.name = paths, str(paths[0].parent if len(paths) > 1 else paths[0])
        self.shards, self.starts = array("i"), array("q")
        for shard, path in enumerate(paths):
            for start in _samples(path):
                if len(self.starts) == limits.RECORDS:
                    raise EyespotError(f"{path}: too many records", expected=f"at most {limits.RECORDS}")
                self.shards.append(shard)
                self.starts.append(start)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Record:
        """Record `index`, read from its shard. BadRecord names shard and key."""
        path = self.paths[self.shards[index]]
        if self.starts[index] < 0:
            raise BadRecord(Place(str(path)), ["the shard is cut off or corrupted: the rest cannot be read"])
        key = ""
        parts: dict[str, bytes] = {}
        with reading(path) as file:
            for member, data in _members(file, path, self.starts[index]):
                stem, kind = split(member.name)
                if parts and stem != key:
                    break
                key = stem
                if len(parts) > limits.IMAGES:
                    raise BadRecord(Place(str(path), key), [f"more than {limits.IMAGES} members"])
                parts[kind] = _content(data, member, kind, Place(str(path), key))
        return record(parts, Place(str(path), key), path.parent)


def record(parts: Mapping[str, bytes], place: Place, root: Path) -> Record:
    """The record of one sample. parts: the contents of its members by what follows the key's first dot."""
    pictures = tuple(data for kind, data in parts.items() if kind.rpartition(".")[2] in PICTURES)
    row: Any = {}
    if "json" in parts:
        try:
            row = parse_json(parts["json"], "json")
        except EyespotError as error:
            raise BadRecord(place, [str(error)]) from None
    if not isinstance(row, dict):
        raise fields.bad(place, "json", row, "an object")
    if "conversations" in row:
        made = internvl.plain({**row, "image": None}, place, root)  # its pictures are the members
    elif "messages" in row:
        made = swift.read(row, place, root, pictures)
    elif "txt" in parts:
        made = Record(dialogue(CAPTION, parts["txt"].decode("utf-8", "replace").strip()), place=place)
    else:
        found = ", ".join(parts)
        raise fields.bad(place, "the sample", found, "json with conversations or messages, or txt")
    turns = marked(made.turns, IMAGE, len(pictures))
    return replace(made, turns=turns, images=pictures, id=made.id or str(place.line))


def split(name: str) -> tuple[str, str]:
    """Key and kind of a member: `a/b.0.jpg` is part `0.jpg` of sample `a/b`."""
    directory, slash, base = name.rpartition("/")
    stem, _, kind = base.partition(".")
    return directory + slash + stem, kind.lower()


def shards(source: str) -> list[Path]:
    """The tar files that `source` means: one, a directory of them, or `name-{000..009}.tar`."""
    if match := BRACES.fullmatch(source):
        before, first, last, after = match.groups()
        if not 0 <= int(last) - int(first) < limits.SHARD_FILES:
            raise EyespotError(f"{source}: a bad range of shards", expected=f"at most {limits.SHARD_FILES}")
        return [Path(f"{before}{n:0{len(first)}}{after}") for n in range(int(first), int(last) + 1)]
    path = Path(source)
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.tar"))
    if not found:
        raise EyespotError(f"{source}: no shards", expected="*.tar")
    return found


class _Bounded:
    """A file that never reads more than a header may take: a tar's own sizes are not to be believed."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > limits.MIB:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self.file.read(size)


def _members(file: IO[bytes], path: Path, start: int = 0) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """Header, and file at its data, of each regular member from the one at `start`."""
    file.seek(start)
    try:
        tar = tarfile.open(fileobj=cast("IO[bytes]", _Bounded(file)), mode="r:", errorlevel=0)  # noqa: SIM115
        behind = -1
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined] # or it would keep them all
            if member.size < 0 or member.offset <= behind:  # a header may claim so, and lead back to itself
                raise tarfile.ReadError(f"a member of {member.size} bytes at {member.offset}")
            behind = member.offset
            if member.isfile():
                file.seek(member.offset_data)
                yield member, file
    except (tarfile.TarError, OverflowError, ValueError) as error:
        cause = "compressed, cut off, or no tar file"
        raise EyespotError(f"{path}: cannot be read as a tar file ({error})", cause=cause) from None


def _samples(path: Path) -> Iterator[int]:
    """Where each sample of a shard begins; -1 where it breaks off."""
    last = None
    with reading(path) as file:
        try:
            for member, _ in _members(file, path):
                key = split(member.name)[0]
                if key != last:
                    yield member.offset
                last = key
        except EyespotError:
            if last is None:
                raise
            yield -1


def _content(file: IO[bytes], member: tarfile.TarInfo, kind: str, place: Place) -> bytes:
    limit = limits.IMAGE_FILE_BYTES if kind.rpartition(".")[2] in PICTURES else limits.RECORD_BYTES
    if member.size > limit:
        raise fields.bad(place, f"{kind} of {member.size} bytes", ..., f"at most {limit}")
    data = file.read(member.size)
    if len(data) < member.size:
        raise fields.bad(place, f"{kind} is cut off")
    return data
