"""What annotators write, before it is a question: a picture with a label, or with named boxes.

Rows: `{"image", "label"}`, and `{"image", "objects": {"ref", "bbox", "bbox_type"}}` with ms-swift's words.
multi_view.py has rows of its own. Knows no question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eyespot import images
from eyespot.boxes import Size
from eyespot.errors import EyespotError, UsageError
from eyespot.train.data import fields, swift
from eyespot.train.data.lines import Lines
from eyespot.train.data.record import BadRecord, Place

if TYPE_CHECKING:
    from eyespot.images import Source


@dataclass(frozen=True, slots=True)
class Thing:
    """A named box, in thousandths of its picture."""

    name: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Annotated:
    """A picture and what is known of it. size: width, height in pixels."""

    picture: Source
    size: Size
    place: Place
    label: str = ""
    things: tuple[Thing, ...] = ()


class Annotations:
    """The rows of a .jsonl or .json file, or the pictures in the directories of a directory, which name their classes.

    Reading a malformed row raises BadRecord. root: where paths of pictures begin, when not beside the file.
    """

    def __init__(self, source: str, root: Path | None = None) -> None:
        path = Path(source)
        if not path.exists():
            raise UsageError(f"{source}: no such file or directory")
        self.root = root or (path if path.is_dir() else path.parent)
        self.rows = _folders(path) if path.is_dir() else Lines(path)
        if not len(self.rows):
            raise EyespotError(f"{source}: the set is empty")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Mapping[str, Any], Place, Path]:
        """Row `index`, its place, and where its paths begin."""
        if isinstance(self.rows, Lines):
            return self.rows.row(index), self.rows.place(index), self.root
        row = self.rows[index]
        return row, Place(str(self.root / row["image"])), self.root


def labelled(row: Mapping[str, Any], place: Place, root: Path) -> Annotated:
    """A picture with a label. BadRecord names the fault."""
    label = row.get("label")
    if not isinstance(label, str) or not label.strip():
        raise fields.bad(place, "label", label, "a text")
    picture = _picture(row, place, root)
    return Annotated(picture, _size(picture, place), place, label)


def grounded(row: Mapping[str, Any], place: Place, root: Path) -> Annotated:
    """A picture with named boxes. BadRecord names the fault, boxes outside the picture too."""
    picture = _picture(row, place, root)
    size = _size(picture, place)
    names, found = placed(row, place, lambda _: size, 1)
    made = tuple(Thing(name, box.thousandths) for name, box in zip(names, found, strict=True))
    return Annotated(picture, size, place, things=made)


def placed(
    row: Mapping[str, Any], place: Place, size_of: Callable[[int], Size], pictures: int
) -> tuple[list[str], list[swift.Placed]]:
    """The `objects` of a row, a name for each box. size_of: of picture i of `pictures`, in pixels."""
    names, found = swift.objects(row.get("objects"), place, size_of, pictures)
    if not found or len(names) != len(found):
        raise fields.bad(place, f"{len(names)} names for {len(found)} boxes", ..., "one each, and at least one")
    if not all(name.strip() for name in names):
        raise fields.bad(place, "a name is empty")
    return names, found


def _picture(row: Mapping[str, Any], place: Place, root: Path) -> Path:
    found = fields.paths(row.get("image"), place, root, "image")
    if len(found) != 1:
        raise fields.bad(place, "image", row.get("image"), "one path")
    return found[0]


def _size(picture: Path, place: Place) -> Size:
    try:
        return images.size(picture)
    except EyespotError as error:
        raise BadRecord(place, [str(error)]) from None


def _folders(path: Path) -> list[dict[str, str]]:
    """`{"image", "label"}` of every file in the directories below `path`."""
    return [
        {"image": f"{folder.name}/{file.name}", "label": folder.name}
        for folder in sorted(entry for entry in path.iterdir() if entry.is_dir())
        for file in sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    ]
