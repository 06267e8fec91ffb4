"""Sets written as InternVL's jsonl, pictures that are no files beside it; every file whole or not there at all.

Knows one format to write; the readers know the others.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from eyespot import images
from eyespot.errors import EyespotError
from eyespot.files import atomic
from eyespot.train.data import internvl
from eyespot.train.data.record import BadRecord, Record

if TYPE_CHECKING:
    from PIL.Image import Image

    from eyespot.images import Source
    from eyespot.train.data.sets import Skipped

JPEG_QUALITY = 95


def write_jsonl(records: Iterable[Record], out: Path, skipped: Skipped | None = None) -> int:
    """Writes records to `out`, and to `NAME_images/` beside it those pictures that are not files. Returns their number;
    EyespotError when there is none. skipped: counts records whose pictures cannot be read; None: the first is an error.

    Paths are relative to the directory of `out`, so that the two can be moved together with what they point to.
    """
    count = 0
    with atomic(out, parents=True) as file:
        for record in records:
            try:
                pictures = [_place(picture, out, count, number) for number, picture in enumerate(record.images)]
            except EyespotError as error:
                bad = BadRecord(record.place, [str(error)])
                if skipped is None:
                    raise bad from None
                skipped.add(bad)
                continue
            row = internvl.row(record, pictures, [_relative(video.path, out) for video in record.videos])
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            count += 1
        if not count:
            raise EyespotError(f"{out}: no sound record to write")
    return count


def save_jpeg(image: Image, path: Path) -> None:
    """Writes an RGB picture."""
    with atomic(path, parents=True) as file:
        image.save(file, "JPEG", quality=JPEG_QUALITY, subsampling=0)


def _place(picture: Source, out: Path, count: int, number: int) -> str:
    """The path of a picture as the row names it; one that is no file yet is written."""
    if isinstance(picture, str | os.PathLike):
        return _relative(Path(picture), out)
    path = out.parent / f"{out.stem}_images" / f"{count // 1000:05}" / f"{count % 1000:03}_{number}.jpg"
    save_jpeg(images.load(picture).image, path)
    return path.relative_to(out.parent).as_posix()


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out.parent)).as_posix()
