"""InternVL's meta file: name -> root, annotation, data_augment, max_dynamic_patch, repeat_time, length.

Source: internvl_chat of the InternVL repository. Knows which sets are mixed how often; their rows are internvl.py's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eyespot import limits
from eyespot.errors import EyespotError
from eyespot.tensorfile import read_json
from eyespot.train.data.fields import unused

KNOWN = {"root", "annotation", "data_augment", "max_dynamic_patch", "repeat_time", "length"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One set of a meta file. repeat_time: below 1 the first part of the rows, above 1 so many passes over them.
    length: rows it says it has; unused: its keys that nobody reads."""

    name: str
    root: Path
    annotation: Path
    data_augment: bool
    max_dynamic_patch: int | None
    repeat_time: float
    length: int | None
    unused: tuple[str, ...]

    def samples(self, rows: int) -> int:
        """How many samples `rows` rows become."""
        return int(rows * self.repeat_time)


def entries(path: Path, name: str | None = None) -> list[Entry]:
    """The sets of a meta file, or the one called `name`; relative paths begin at the meta file's directory."""
    raw = read_json(path)
    if not isinstance(raw, dict) or not raw:
        raise EyespotError(f"{path}: not a meta file", expected='{name: {"root": ..., "annotation": ...}}')
    if name is not None and name not in raw:
        raise EyespotError(f"{path}: no set '{name}'", expected=", ".join(map(str, raw)))
    return [_entry(path, key, raw[key]) for key in ([name] if name is not None else raw)]


def _entry(path: Path, name: str, raw: object) -> Entry:
    where = f"{path}: '{name}'"
    if not isinstance(raw, dict):
        raise EyespotError(f"{where} is not an object", found=raw)
    root, annotation = raw.get("root"), raw.get("annotation")
    if not isinstance(root, str) or not isinstance(annotation, str) or not annotation or "\0" in root + annotation:
        raise EyespotError(f"{where}: root or annotation is not a path", found=raw)
    times = raw.get("repeat_time", 1)
    if type(times) not in (int, float) or not 0 < times <= 1000 or (times > 1 and times != int(times)):
        raise EyespotError(f"{where}: repeat_time", found=times, expected="above 0 to 1, or a whole number of passes")
    most = raw.get("max_dynamic_patch")
    if most is not None and (type(most) is not int or not 1 <= most <= limits.TILES):
        raise EyespotError(f"{where}: max_dynamic_patch", found=most, expected=f"1 to {limits.TILES}")
    augment, length = raw.get("data_augment", False), raw.get("length")
    if not isinstance(augment, bool):
        raise EyespotError(f"{where}: data_augment", found=augment, expected="true or false")
    return Entry(
        name, path.parent / root, path.parent / annotation, augment, most, times,
        length if type(length) is int else None, unused(raw, KNOWN),
    )  # fmt: skip
