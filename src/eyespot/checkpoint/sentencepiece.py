"""The few fields of a sentencepiece tokenizer.model that a BPE tokenizer needs, read as hostile protobuf bytes.

Knows the wire format and nothing of how text is split. Field numbers: google/sentencepiece, sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from eyespot import limits
from eyespot.errors import EyespotError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = (
    1,
    2,
    3,
    4,
    5,
    6,
)  # SentencePiece.Type; GGUF uses the same numbers
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType


@dataclass(frozen=True, slots=True)
class Model:
    """Pieces by id: text, score, type. `prefix_space`: a space is put before the text."""

    texts: list[str]
    scores: list[float]
    types: list[int]
    prefix_space: bool


def parse(data: bytes, name: str) -> Model:
    """Reads a model; EyespotError when it is malformed, not BPE, or rewrites its text by a character map."""
    texts: list[str] = []
    scores: list[float] = []
    types: list[int] = []
    trainer, normalizer = b"", b""
    for number, value in _fields(data, name):
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value, name))
            text, score, kind = piece.get(1, b""), piece.get(2, 0.0), piece.get(3, NORMAL)
            if not isinstance(text, bytes) or not isinstance(score, float) or not isinstance(kind, int):
                raise EyespotError(f"{name}: piece {len(texts)} is malformed")
            texts.append(_text(text, name))
            scores.append(score)
            types.append(kind)
        elif number == 2 and isinstance(value, bytes):
            trainer = value
        elif number == 3 and isinstance(value, bytes):
            normalizer = value
        if len(texts) > limits.VOCAB:
            raise EyespotError(f"{name}: too many pieces", expected=f"at most {limits.VOCAB}")
    spec, rules = dict(_fields(trainer, name)), dict(_fields(normalizer, name))
    kind = spec.get(3, UNIGRAM)
    if not texts or kind != BPE:
        found = "no pieces" if not texts else "unigram" if kind == UNIGRAM else f"model type {kind!r}"
        raise EyespotError(f"{name}: not a BPE model", found=found, expected="BPE, or a tokenizer.json beside it")
    if rules.get(2, b""):
        found = f"normalizer {rules.get(1, b'')!r}"
        raise EyespotError(f"{name}: rewrites text before splitting it", found=found, expected="normalizer 'identity'")
    if rules.get(4, 1):
        raise EyespotError(
            f"{name}: drops repeated spaces", expected="remove_extra_whitespaces off, or a tokenizer.json"
        )
    return Model(texts, scores, types, bool(rules.get(3, 1)))


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise EyespotError(f"{name}: a piece is not UTF-8", found=data[:32]) from None


def _fields(data: bytes, name: str) -> Iterator[tuple[int, int | float | bytes]]:
    """(field number, value) of one message: varints as int, 4-byte values as float, the rest as bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at, name)
        wire, size = tag & 7, 0
        if wire == 0:
            value, at = _varint(data, at, name)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at, name)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise EyespotError(f"{name}: not a sentencepiece model", found=f"wire type {wire} at byte {at}")
        if size > len(data) - at:
            raise EyespotError(f"{name}: cut off", found=f"{size} bytes wanted at {at} of {len(data)}")
        raw = data[at : at + size]
        at += size
        yield tag >> 3, struct.unpack("<f", raw)[0] if wire == 5 else raw


def _varint(data: bytes, at: int, name: str) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise EyespotError(f"{name}: cut off or corrupted", found=f"an endless number at byte {at}")
