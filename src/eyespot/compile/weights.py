"""Streams weights from the checkpoint into the parts of a bundle, a few thousand rows at a time, parts side by side.

Memory stays near one chunk a thread, whatever the model's size. Knows schemes by name and nothing of what ops do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from threading import Event, Lock

from eyespot import tensorfile
from eyespot.bundle.write import BundleWriter
from eyespot.compile.job import Progress
from eyespot.errors import EyespotError
from eyespot.program import Program, Weight
from eyespot.program.transforms import Read, materialize
from eyespot.quantize.formats import PANEL, SCHEMES, pack, stored_as, stored_bytes
from eyespot.tensorfile import Array

CHUNK_ELEMENTS = 1 << 20  # 4 MiB of float32: the passes over a chunk stay within a core's cache
RELEASE_BYTES = 64 << 20  # how much of a mapped checkpoint a thread may hold before it gives pages back

Stored = dict[str, tuple[str, tuple[int, ...]]]


def stored_tensors(weights: list[Weight]) -> Stored:
    """Tensor name -> (dtype, shape) of a part with `weights`."""
    return {w.name: stored_as(w.shape, SCHEMES[w.scheme]) for w in weights}


def total_bytes(program: Program) -> int:
    """What all weights take on disk, less headers."""
    return sum(stored_bytes(w.shape, SCHEMES[w.scheme]) for w in program.weights.values())


def write_parts(
    program: Program,
    read: Read,
    release: Callable[[str], None],
    bundle: BundleWriter,
    threads: int = 0,
    progress: Progress | None = None,
) -> None:
    """Writes NAME.safetensors for every part. threads 0: one a core. Errors name the weight that cannot be stored."""
    parts: dict[str, list[Weight]] = {name: [] for name in program.parts()}
    for weight in program.weights.values():
        parts[weight.part].append(weight)
    total, done, lock, stopped = sum(prod(w.shape) for w in program.weights.values()), 0, Lock(), Event()

    def advance(elements: int) -> None:
        nonlocal done
        if stopped.is_set():
            raise EyespotError("another part failed")
        with lock:
            done += elements
            if progress is not None:
                progress(done, total)

    def write(name: str) -> None:
        stored = stored_tensors(parts[name])
        with bundle.create(f"{name}.safetensors") as file:
            tensorfile.write(file, stored, _chunks(parts[name], stored, read, release, advance))

    # The largest part first: it must not be the one everybody waits for at the end.
    order = sorted(parts, key=lambda name: -sum(prod(w.shape) for w in parts[name]))
    with ThreadPoolExecutor(threads or _cores()) as pool:
        jobs = [pool.submit(write, name) for name in order]
        try:
            for job in jobs:
                job.result()
        except BaseException:  # Ctrl-C too: nobody waits for parts that will be thrown away
            stopped.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _chunks(
    weights: list[Weight],
    stored: Stored,
    read: Read,
    release: Callable[[str], None],
    advance: Callable[[int], None],
) -> Iterator[tuple[str, Array]]:
    """(tensor, next rows) in the order of the file, which is hashed while written."""
    named = {w.name: w for w in weights}
    for name in tensorfile.layout(stored, {})[1]:
        yield from ((name, array) for array in pack_rows(named[name], read, release, advance))


def pack_rows(
    weight: Weight,
    read: Read,
    release: Callable[[str], None],
    advance: Callable[[int], None] = lambda elements: None,
) -> Iterator[Array]:
    """`weight` as stored, a chunk of rows at a time; whole panels, but for the last."""
    scheme, width = SCHEMES[weight.scheme], prod(weight.shape[1:])
    step = weight.shape[0] if weight.transform else max(1, CHUNK_ELEMENTS // max(width, 1) // PANEL) * PANEL
    unreleased = 0
    for start in range(0, weight.shape[0], step):
        stop = min(start + step, weight.shape[0])
        rows = materialize(weight, read, start, stop)
        try:
            yield pack(rows, scheme)
        except EyespotError as error:
            raise EyespotError(
                f"weight '{weight.name}', rows {start} to {stop}: {error.what}",
                found=error.found,
                expected=error.expected,
                cause=error.cause,
            ) from None
        advance((stop - start) * width)
        unreleased += rows.nbytes
        if unreleased >= RELEASE_BYTES or stop == weight.shape[0]:
            unreleased = 0
            for source in weight.sources:
                release(source.tensor)
