"""A GGUF file, read as hostile bytes: metadata, tensor table, and rows decoded to float32.

Our own header reader, because every count and size must be checked against the file before it is believed; block
formats are decoded by the `gguf` package. Knows no architecture and no tensor's meaning.
"""

from __future__ import annotations

import importlib.util
import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eyespot import limits
from eyespot.errors import EyespotError
from eyespot.tensorfile import bf16_to_f32, reading

Value = int | float | bool | str | list[str] | npt.NDArray[np.generic]
Metadata = dict[str, Value]
Bytes = npt.NDArray[np.uint8]

VERSIONS = (2, 3)  # 1 had 32-bit counts and was out of use within weeks
METADATA_BYTES = limits.JSON_BYTES  # holds a whole tokenizer, so it is bounded like tokenizer.json
ALIGNMENT = 32  # unless general.alignment says otherwise
STRING, ARRAY = 8, 9
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}


@dataclass(frozen=True, slots=True)
class Block:
    """A storage format: `weights` of them in `bytes` bytes."""

    name: str
    weights: int
    bytes: int


BLOCKS = {  # by the number that GGUF files carry (ggml_type)
    0: Block("F32", 1, 4),
    1: Block("F16", 1, 2),
    2: Block("Q4_0", 32, 18),
    3: Block("Q4_1", 32, 20),
    6: Block("Q5_0", 32, 22),
    7: Block("Q5_1", 32, 24),
    8: Block("Q8_0", 32, 34),
    10: Block("Q2_K", 256, 84),
    11: Block("Q3_K", 256, 110),
    12: Block("Q4_K", 256, 144),
    13: Block("Q5_K", 256, 176),
    14: Block("Q6_K", 256, 210),
    30: Block("BF16", 1, 2),
}
PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` has the row axis first (GGUF stores it last); bytes [start, stop) count from the file's start."""

    block: Block
    shape: tuple[int, ...]
    start: int
    stop: int


class _Cursor:
    """Takes values off the front of a file; no length is believed before it is compared with what is left."""

    def __init__(self, data: mmap.mmap, name: str) -> None:
        self.data, self.name, self.at, self.end = data, name, 4, min(len(data), METADATA_BYTES)

    def take(self, count: int) -> int:
        """Moves over `count` bytes and returns where they start."""
        at = self.at
        if count > self.end - at:
            cause = "the file is cut off" if self.end == len(self.data) else f"metadata above {METADATA_BYTES} bytes"
            raise EyespotError(
                f"{self.name}: header runs past its end", found=f"{count} bytes wanted at {at}", cause=cause
            )
        self.at += count
        return at

    def number(self, code: str) -> int:
        value: int = struct.unpack_from(code, self.data, self.take(struct.calcsize(code)))[0]
        return value

    def text(self, limit: int = METADATA_BYTES) -> str:
        length = self.number("<Q")
        if length > limit:
            raise EyespotError(f"{self.name}: a name is too long", found=length, expected=f"at most {limit} bytes")
        at = self.take(length)
        try:
            return self.data[at : at + length].decode()
        except UnicodeDecodeError:
            raise EyespotError(f"{self.name}: text at byte {at} is not UTF-8", cause="the file is corrupted") from None

    def value(self, key: str) -> Value:
        kind = self.number("<I")
        if kind == STRING:
            return self.text()
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind != ARRAY:
            raise EyespotError(f"{self.name}: '{key}' has an unknown type", found=kind)
        kind, count = self.number("<I"), self.number("<Q")
        if kind in SCALARS:
            dtype = np.dtype(SCALARS[kind])
            return np.frombuffer(self.data, dtype, count, self.take(count * dtype.itemsize)).copy()
        if kind != STRING or count * 8 > self.end - self.at:
            raise EyespotError(f"{self.name}: '{key}' is a bad array", found=f"{count} items of type {kind}")
        return [self.text() for _ in range(count)]


class GgufFile:
    """A memory-mapped GGUF file. `tensors` under their GGUF names."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path) as file:
            size = file.seek(0, 2)
            if size < 24:
                raise EyespotError(f"{path.name}: not a GGUF file", found=f"{size} bytes", cause="the file is cut off")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.metadata, self.tensors = self._header()

    def _header(self) -> tuple[Metadata, dict[str, GgufTensor]]:
        name = self.path.name
        cursor = _Cursor(self._map, name)
        version = cursor.number("<I")
        if self._map[:4] != b"GGUF" or version not in VERSIONS:
            cause = "a big-endian file" if version & 0xFFFF == 0 else None
            found = f"{self._map[:4]!r} version {version}"
            raise EyespotError(
                f"{name}: not a GGUF file eyespot reads", found=found, expected="GGUF version 2 or 3", cause=cause
            )
        tensor_count, key_count = cursor.number("<Q"), cursor.number("<Q")
        if tensor_count > limits.TENSORS or key_count > limits.TENSORS:
            found = f"{tensor_count} tensors, {key_count} keys"
            raise EyespotError(f"{name}: absurd counts", found=found, expected=f"at most {limits.TENSORS}")
        metadata: Metadata = {}
        for _ in range(key_count):
            key = cursor.text(limits.NAME_CHARS)
            if key in metadata:
                raise EyespotError(f"{name}: duplicate key '{key}'")
            metadata[key] = cursor.value(key)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment <= limits.MIB or alignment & (alignment - 1):
            raise EyespotError(f"{name}: bad general.alignment", found=alignment, expected="a power of two")
        table: dict[str, tuple[Block, tuple[int, ...], int]] = {}
        for _ in range(tensor_count):
            key = cursor.text(limits.NAME_CHARS)
            if key in table:
                raise EyespotError(f"{name}: tensor '{key}' is there twice")
            table[key] = self._entry(cursor, f"{name}: tensor '{key}'", alignment)
        base = -(-cursor.at // alignment) * alignment
        tensors, end, size = {}, base, len(self._map)
        for key, (block, shape, offset) in sorted(table.items(), key=lambda item: item[1][2]):
            start = base + offset
            stop = start + prod(shape) // block.weights * block.bytes
            if stop > size:
                raise EyespotError(
                    f"{name}: tensor '{key}' lies past the end of the file", found=f"{size} bytes",
                    expected=f"at least {stop}", cause="the file is cut off",
                )  # fmt: skip
            if start < end:
                raise EyespotError(f"{name}: tensor '{key}' overlaps another", cause="the header is corrupted")
            tensors[key], end = GgufTensor(block, shape, start, stop), stop
        if any(t.block.name not in PLAIN for t in tensors.values()) and importlib.util.find_spec("gguf") is None:
            raise EyespotError(
                f"{name}: is quantized, and the gguf package is not here", expected="pip install 'eyespot[gguf]'"
            )
        return metadata, {key: tensors[key] for key in table}

    @staticmethod
    def _entry(cursor: _Cursor, where: str, alignment: int) -> tuple[Block, tuple[int, ...], int]:
        rank = cursor.number("<I")
        if not 1 <= rank <= limits.RANK:
            raise EyespotError(f"{where}: bad rank", found=rank, expected=f"1 to {limits.RANK}")
        dims = tuple(cursor.number("<Q") for _ in range(rank))
        if min(dims) < 1 or max(dims) > limits.TENSOR_ELEMENTS or prod(dims) > limits.TENSOR_ELEMENTS:
            raise EyespotError(f"{where}: bad shape", found=dims)
        kind, offset = cursor.number("<I"), cursor.number("<Q")
        block = BLOCKS.get(kind)
        if block is None:
            known = ", ".join(b.name for b in BLOCKS.values())
            raise EyespotError(f"{where}: unknown block format", found=f"ggml type {kind}", expected=known)
        if dims[0] % block.weights or offset % alignment:
            found = f"rows of {dims[0]}, offset {offset}"
            raise EyespotError(
                f"{where}: does not fit {block.name} blocks", found=found, cause="the header is corrupted"
            )
        return block, dims[::-1], offset

    def read(
        self, name: str, start: int, stop: int, order: npt.NDArray[np.intp] | None = None
    ) -> npt.NDArray[np.float32]:
        """Rows [start, stop) of the first axis (a vector's elements) in float32; with `order`, those rows instead."""
        tensor = self.tensors[name]
        data = np.frombuffer(self._map, np.uint8, tensor.stop - tensor.start, tensor.start)
        if len(tensor.shape) == 1:  # blocks run along a vector, so it is decoded whole: vectors are small
            return _decode(data.reshape(1, -1), tensor.block)[0, start:stop].copy()
        rows = data.reshape(tensor.shape[0], -1)
        picked = rows[start:stop] if order is None else rows[order]
        return _decode(picked, tensor.block).reshape(len(picked), *tensor.shape[1:])

    def release(self, name: str) -> None:
        """Lets the kernel take back the pages of one tensor."""
        tensor = self.tensors[name]
        start = -(-tensor.start // mmap.PAGESIZE) * mmap.PAGESIZE
        if hasattr(mmap, "MADV_DONTNEED") and tensor.stop - start >= mmap.PAGESIZE:
            length = (tensor.stop - start) // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, length)


def _decode(rows: Bytes, block: Block) -> npt.NDArray[np.float32]:
    """[n, bytes of a row] to [n, weights of a row]."""
    if block.name == "F32":
        return rows.view("<f4").astype(np.float32)
    if block.name == "F16":
        return rows.view("<f2").astype(np.float32)
    if block.name == "BF16":
        return bf16_to_f32(rows.view("<u2"))
    width = rows.shape[1] // block.bytes * block.weights
    if not len(rows):
        return np.empty((0, width), np.float32)
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # a hostile scale makes Inf or NaN; whoever packs the weight refuses it by name
        values: npt.NDArray[np.float32] = dequantize(rows, GGMLQuantizationType[block.name])
    return values.reshape(len(rows), width)
