"""A set of scenes on disk: PNG pictures and one InternVL jsonl, for training elsewhere and for `eyespot eval`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from eyespot.errors import UsageError
from eyespot.files import atomic
from eyespot.train.scenes.generate import Scenes

COUNT = 10_000_000  # scenes of one set


def write(scenes: Scenes, out: Path, count: int, done: Callable[[int], None] = lambda n: None) -> Path:
    """Writes the first `count` scenes: OUT/SPLIT.jsonl, a row for every question, and the pictures in OUT/SPLIT/.

    Returns the path of the jsonl, which appears last, when all its pictures are there. done: called with the number of
    scenes written. UsageError when the jsonl exists or the count is off.
    """
    if not 1 <= count <= COUNT:
        raise UsageError("the number of scenes is off", found=count, expected=f"1 to {COUNT}")
    path = out / f"{scenes.split}.jsonl"
    if path.exists():
        raise UsageError(f"{path} exists", expected="a new place", cause="a set is never overwritten")
    with atomic(path, parents=True) as file:
        for index in range(count):
            scene = scenes[index]
            names = [f"{scenes.split}/{index // 1000:03}/{index:06}-{i}.png" for i in range(len(scene.pictures))]
            for name, picture in zip(names, scene.pictures, strict=True):
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                picture.save(out / name, compress_level=3)
            for row in scene.rows(names):
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            done(index + 1)
    return path
