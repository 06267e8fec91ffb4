"""Sets of records: opened from a path in any of FORMATS, joined, repeated, picked from, and read with bad ones skipped.

Knows which reader takes which file. Every set has a length and records by index: nothing but offsets is in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eyespot.errors import EyespotError, UsageError
from eyespot.tensorfile import read_json
from eyespot.train.data import internvl, llama_factory, llava, meta, swift, webdataset
from eyespot.train.data.lines import Lines
from eyespot.train.data.record import BadRecord, Place, Record, checked

Reader = Callable[[Mapping[str, Any], Place, Path], Record]


class Dataset(Protocol):
    """Records by index; reading a malformed one raises BadRecord. warnings: what the set says and does not keep."""

    @property
    def name(self) -> str: ...

    @property
    def warnings(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class Rows:
    """The rows of one file, JSON Lines or a JSON array. root: where relative paths of pictures begin."""

    def __init__(self, path: Path, read: Reader, root: Path | None = None, warnings: tuple[str, ...] = ()) -> None:
        self.name, self.lines, self.read, self.warnings = str(path), Lines(path), read, warnings
        self.root = path.parent if root is None else root

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: int) -> Record:
        return self.read(self.lines.row(index), self.lines.place(index), self.root)


@dataclass(frozen=True)
class Passes:
    """`count` samples of a set: its first part, or several passes over it; with the settings of a meta file."""

    inner: Dataset
    count: int
    data_augment: bool = False
    max_dynamic_patch: int | None = None
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.inner.name

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < self.count:
            raise IndexError(index)
        found = self.inner[index % len(self.inner)]
        most = found.max_dynamic_patch if self.max_dynamic_patch is None else self.max_dynamic_patch
        return replace(found, data_augment=self.data_augment or found.data_augment, max_dynamic_patch=most)


@dataclass(frozen=True)
class Picked:
    """The samples of a set that `indices` names, in that order."""

    inner: Dataset
    indices: npt.NDArray[np.int64]
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.inner.name

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.inner[int(self.indices[index])]


class Joined:
    """Sets one after the other."""

    def __init__(self, name: str, parts: Sequence[Dataset]) -> None:
        self.name, self.parts = name, tuple(parts)
        self.warnings = tuple(warning for part in parts for warning in part.warnings)
        self.ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.parts) else 0

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part][index - (int(self.ends[part - 1]) if part else 0)]


def once(data: Dataset) -> Iterator[tuple[Dataset, int]]:
    """Every row that `data` uses, one time however often it is repeated: the set it stands in, and its index there."""
    match data:
        case Joined():
            for part in data.parts:
                yield from once(part)
        case Passes():
            yield from ((data, index) for index in range(min(data.count, len(data.inner))))
        case Picked():
            yield from ((data.inner, int(index)) for index in np.unique(data.indices))
        case _:
            yield from ((data, index) for index in range(len(data)))


@dataclass
class Skipped:
    """Counts the bad records that were left out, by file; the first few are kept to be shown."""

    files: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)

    def add(self, bad: BadRecord) -> None:
        self.files[bad.place.file] += 1
        if len(self.shown) < 8:
            self.shown.append(str(bad))

    @property
    def total(self) -> int:
        return self.files.total()


def records(data: Dataset, order: Iterable[int], skipped: Skipped | None = None) -> Iterator[Record]:
    """The records at the indices `order`, sound ones only: without `skipped` a bad one raises BadRecord, with it it is
    counted there and left out."""
    for index in order:
        try:
            yield checked(data[index])
        except BadRecord as bad:
            if skipped is None:
                raise
            skipped.add(bad)


def open_set(source: str | Path, format: str | None = None, root: Path | None = None) -> Dataset:
    """The set at `source`: a file, a directory of shards, `name-{000..009}.tar`, or `file.json#name` for one set of a
    file that names several.

    format: one of FORMATS, when the file's own marks shall not decide. root: where relative paths of pictures begin,
    when not beside the file. UsageError when nothing is there or FORMATS has no such word; EyespotError for an empty
    set or a file that is no set. Bad rows are told when they are read.
    """
    path, _, name = str(source).partition("#") if not Path(source).exists() else (str(source), "", "")
    if format is not None and format not in FORMATS:
        raise UsageError(f"no data format '{format}'", expected=", ".join(FORMATS))
    if not webdataset.BRACES.fullmatch(path) and not Path(path).exists():
        raise UsageError(f"{path}: no such set", expected="a .jsonl, .json or .tar file, or a directory of shards")
    data = FORMATS[format or detect(path)](path, name or None, root)
    if not len(data):
        raise EyespotError(f"{source}: the set is empty")
    return data


def detect(path: str) -> str:
    """The format of a set, by its own marks: the kind of file, and the keys of its first row."""
    if path.endswith(".tar") or Path(path).is_dir():
        return "webdataset"
    lines = Lines(Path(path), most=100)
    if not lines.is_array and not path.endswith(".jsonl"):
        raw = read_json(Path(path))
        values = [value for value in raw.values() if isinstance(value, dict)] if isinstance(raw, dict) else []
        if any("annotation" in value for value in values):
            return "meta"
        if any(key in value for value in values for key in ("file_name", "hf_hub_url", "formatting")):
            return "llama_factory"
        raise EyespotError(f"{path}: not a set", expected="a meta file, a dataset_info.json, or an array of records")
    for index in range(len(lines)):
        try:
            row = lines.row(index)
        except BadRecord:
            continue
        if "messages" in row:
            return "swift"
        if "conversations" in row:
            return "llava" if lines.is_array else "internvl"
    if not len(lines):
        raise EyespotError(f"{path}: the set is empty")
    raise EyespotError(
        f"{path}: of no known format", expected="rows with conversations or messages", cause="--format can say which"
    )


def _rows(read: Reader) -> Callable[[str, str | None, Path | None], Dataset]:
    return lambda path, name, root: Rows(Path(path), read, root)


def _meta(path: str, name: str | None, root: Path | None) -> Dataset:
    parts = []
    for entry in meta.entries(Path(path), name):
        warnings = [f"'{entry.name}': {key} is not used" for key in entry.unused]
        rows = Rows(entry.annotation, internvl.read, root or entry.root)
        if entry.length is not None and entry.length != len(rows):
            warnings.append(f"'{entry.name}': length says {entry.length}, the file has {len(rows)} rows")
        count = entry.samples(len(rows))
        parts.append(Passes(rows, count, entry.data_augment, entry.max_dynamic_patch, tuple(warnings)))
    return Joined(path, parts)


def _llama_factory(path: str, name: str | None, root: Path | None) -> Dataset:
    parts = []
    for spec in llama_factory.specs(Path(path), name):
        warnings = tuple(f"'{spec.name}': {key} is not used" for key in spec.unused)
        parts.append(Rows(spec.file, spec.read, root or Path(path).parent, warnings))
    return Joined(path, parts)


# Each opens (path, name of one set in it or None, root or None).
FORMATS: dict[str, Callable[[str, str | None, Path | None], Dataset]] = {
    "internvl": _rows(internvl.read),
    "meta": _meta,
    "llava": _rows(llava.read),
    "swift": _rows(swift.read),
    "llama_factory": _llama_factory,
    "webdataset": lambda path, name, root: webdataset.Shards(webdataset.shards(path)),
}
