"""Safetensors files, read as hostile bytes and written as a stream. Ground floor: knows no model and no bundle.

Our own reader and not the library's, because every fault must be found before anything is allocated and named with
its tensor, and because parts are written tensor by tensor while the next one is still being quantized.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from math import gcd, prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from eyespot import limits
from eyespot.errors import EyespotError

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "I8": "i1", "U8": "u1"}  # dtypes we load
ALIGN = 64  # bytes; where a tensor's size allows it, its first byte lies on such a boundary of the file

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: dtype as safetensors names it, shape, and [start, stop) in bytes from the file's start."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def parse_json(data: bytes, what: str) -> Any:
    """JSON with no duplicate key, no NaN, bounded depth. EyespotError names `what`."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            raise EyespotError(f"{what}: duplicate key", found=Counter(k for k, _ in items).most_common(1)[0][0])
        return result

    def constant(name: str) -> Any:
        raise EyespotError(f"{what}: {name} is not JSON")

    depth = deepest = 0
    for byte in data.translate(None, _NOT_BRACKETS) if len(data) < 1 << 20 else b"":
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > limits.JSON_DEPTH * 4:  # brackets inside strings count too, hence the slack; json has its own guard
        raise EyespotError(f"{what}: nested too deeply", expected=f"at most {limits.JSON_DEPTH} levels")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=pairs, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise EyespotError(f"{what}: not valid JSON ({error})", cause="the file is corrupted or cut off") from None


_NOT_BRACKETS = bytes(b for b in range(256) if b not in b"[]{}")


@contextmanager
def reading(path: Path) -> Iterator[BufferedReader]:
    """`path`, open to be read. EyespotError unless it is a regular file: a pipe or a device might never end."""
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise EyespotError(f"{path.name}: not a regular file")
            yield file
    except OSError as error:
        cause = f"no such file in {path.parent}" if error.errno == errno.ENOENT else CAUSES.get(error.errno or 0)
        raise EyespotError(f"{path.name}: cannot be read ({error.strerror})", cause=cause) from None


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe that nobody writes to opens at once


CAUSES = {
    errno.EACCES: "this user may not read it, or a directory above it",
    errno.EPERM: "this user may not read it, or a directory above it",
    errno.ENOMEM: "the machine has no memory left for it",
}


def read_bytes(path: Path, limit: int = limits.JSON_BYTES) -> bytes:
    """All of `path`; EyespotError when it cannot be read or has more than `limit` bytes."""
    with reading(path) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise EyespotError(f"{path.name}: too large", expected=f"at most {limit} bytes")
    return data


def read_json(path: Path, limit: int = limits.JSON_BYTES) -> Any:
    """The JSON value in `path`; EyespotError when it is missing, too large or malformed."""
    return parse_json(read_bytes(path, limit), path.name)


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries and metadata of a safetensors file; every size is checked against the file before it is believed."""
    name = path.name
    with reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length > limits.HEADER_BYTES or 8 + length > size:
            raise EyespotError(
                f"{name}: header does not fit",
                found=f"{size} bytes, header of {length}",
                expected="a safetensors file",
                cause="the file is cut off or is not safetensors",
            )
        raw = parse_json(file.read(length), name)
    if not isinstance(raw, dict):
        raise EyespotError(f"{name}: header is not an object")
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise EyespotError(f"{name}: __metadata__ is not a map of strings")
    if len(raw) > limits.TENSORS:
        raise EyespotError(f"{name}: too many tensors", found=len(raw), expected=f"at most {limits.TENSORS}")
    entries = {key: _entry(name, key, item, 8 + length, size) for key, item in raw.items()}
    end = 8 + length
    for key, entry in sorted(entries.items(), key=lambda kv: (kv[1].start, kv[1].stop)):
        if entry.start < end and entry.stop > entry.start:
            raise EyespotError(f"{name}: tensor '{key}' overlaps another", cause="the header is corrupted")
        end = max(end, entry.stop)
    return entries, metadata


def _entry(file: str, key: str, item: Any, base: int, size: int) -> Entry:
    where = f"{file}: tensor '{key}'"
    if len(key) > limits.NAME_CHARS or not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        raise EyespotError(f"{where}: malformed entry", expected="dtype, shape and data_offsets")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise EyespotError(f"{where}: unknown dtype", found=dtype, expected=", ".join(ITEM_BYTES))
    if (
        not isinstance(shape, list)
        or len(shape) > limits.RANK
        or not all(type(d) is int and 0 <= d <= limits.TENSOR_ELEMENTS for d in shape)
    ):
        raise EyespotError(f"{where}: bad shape", found=shape, expected=f"at most {limits.RANK} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(o) is int and o >= 0 for o in offsets):
        raise EyespotError(f"{where}: bad data_offsets", found=offsets)
    count, (start, stop) = prod(shape), offsets
    if count > limits.TENSOR_ELEMENTS or start > stop or base + stop > size:
        raise EyespotError(
            f"{where}: lies past the end of the file",
            found=f"{size} bytes",
            expected=f"at least {base + stop}",
            cause="the file is cut off",
        )
    if stop - start != count * ITEM_BYTES[dtype]:
        raise EyespotError(
            f"{where}: size and shape disagree",
            found=f"{stop - start} bytes",
            expected=f"{count * ITEM_BYTES[dtype]} for {dtype} {shape}",
        )
    return Entry(dtype, tuple(shape), base + start, base + stop)


class TensorFile:
    """A memory-mapped safetensors file. `entries` by name; `raw` gives a view, valid while this object lives."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries, self.metadata = read_header(path)
        with reading(path) as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def raw(self, name: str) -> Array:
        """The stored array, not copied; bf16 comes as uint16 bits. EyespotError for a dtype eyespot does not load."""
        entry = self.entries[name]
        if entry.dtype not in STORED:
            raise EyespotError(f"{self.path.name}: tensor '{name}' has dtype {entry.dtype}", expected=", ".join(STORED))
        dtype = np.dtype(STORED[entry.dtype])
        return np.frombuffer(self._map, dtype, prod(entry.shape), entry.start).reshape(entry.shape)

    def release(self, name: str) -> None:
        """Lets the kernel take back the pages of one tensor: reading a model must not grow the process by its size."""
        entry = self.entries[name]
        start = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and entry.stop - start >= mmap.PAGESIZE:
            self._map.madvise(mmap.MADV_DONTNEED, start, (entry.stop - start) // mmap.PAGESIZE * mmap.PAGESIZE)


def bf16_to_f32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 bits to float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """float32 to bfloat16 bits, round to nearest even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).astype(np.uint16)


def layout(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, Entry]]:
    """Header bytes, length prefix included, and entries of a file of `tensors` (name -> dtype, shape).

    The format allows no holes, so tensors come by the largest power of two (at most ALIGN) that divides their size, and
    each starts on a multiple of it: its items and panels are aligned.
    """
    bytes_of = {name: prod(shape) * ITEM_BYTES[dtype] for name, (dtype, shape) in tensors.items()}
    order = sorted(tensors, key=lambda n: -gcd(bytes_of[n], ALIGN))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset, places = 0, {}
    for name in order:
        dtype, shape = tensors[name]
        places[name] = (offset, offset + bytes_of[name])
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": list(places[name])}
        offset = places[name][1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGN)
    base = 8 + len(text)
    entries = {n: Entry(tensors[n][0], tensors[n][1], base + a, base + b) for n, (a, b) in places.items()}
    return len(text).to_bytes(8, "little") + text, entries


def write(
    file: BinaryIO,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    chunks: Iterable[tuple[str, Array]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file. `chunks` yields (name, next rows of that tensor) in any order; all bytes must come."""
    head, entries = layout(tensors, metadata or {})
    file.write(head)
    at = {name: entry.start for name, entry in entries.items()}
    for name, rows in chunks:
        data = np.ascontiguousarray(rows).view(np.uint8).reshape(-1)
        if at[name] + data.nbytes > entries[name].stop:
            raise EyespotError(f"tensor '{name}': more bytes than its shape takes")
        file.seek(at[name])
        file.write(data.data)
        at[name] += data.nbytes
    for name, entry in entries.items():
        if at[name] != entry.stop:
            raise EyespotError(
                f"tensor '{name}': bytes are missing", found=at[name] - entry.start, expected=entry.stop - entry.start
            )
    file.seek(0, os.SEEK_END)
