"""Rows of a JSON Lines file or of one JSON array, found by offset, so that a set of millions stays on the disk.

Knows JSON's brackets and no format: what a row means is its reader's business.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from eyespot import limits
from eyespot.errors import EyespotError
from eyespot.tensorfile import parse_json, reading
from eyespot.train.data.record import BadRecord, Place

CHUNK = 1 << 20
LETTERS = " \t\n\r"
DECODER = json.JSONDecoder()


class Lines:
    """The rows of a file: their number, and each one by its index. 24 bytes of memory a row.

    What cannot be a row (too long, or an array that breaks off) has an index too, and fails when it is read.
    """

    def __init__(self, path: Path, most: int = limits.RECORDS) -> None:
        """most: rows to find and no more."""
        self.path = path
        self.starts, self.stops, self.numbers = array("q"), array("q"), array("q")
        with reading(path) as file:
            first = file.read(4096).lstrip()[:1]
            file.seek(0)
            self.is_array = first == b"["
            for start, stop, number in _elements(file, path.name) if self.is_array else _lines(file):
                if len(self.starts) == most < limits.RECORDS:
                    break
                if len(self.starts) == limits.RECORDS:
                    raise EyespotError(f"{path.name}: too many records", expected=f"at most {limits.RECORDS}")
                self.starts.append(start)
                self.stops.append(stop)
                self.numbers.append(number)

    def __len__(self) -> int:
        return len(self.starts)

    def place(self, index: int) -> Place:
        return Place(str(self.path), self.numbers[index])

    def row(self, index: int) -> dict[str, Any]:
        """Row `index`, an object. BadRecord when it is malformed."""
        start, stop, place = self.starts[index], self.stops[index], self.place(index)
        if stop < 0:
            raise BadRecord(place, ["the JSON array is malformed or breaks off here: the rest cannot be read"])
        if stop - start > limits.RECORD_BYTES:
            raise BadRecord(place, [f"{stop - start} bytes in one record, expected at most {limits.RECORD_BYTES}"])
        with reading(self.path) as file:
            file.seek(start)
            data = file.read(stop - start)
        try:
            row = parse_json(data, "record")
        except EyespotError as error:
            raise BadRecord(place, [str(error)]) from None
        if not isinstance(row, dict):
            raise BadRecord(place, [f"not an object but a {type(row).__name__}"])
        return row


def _lines(file: BufferedReader) -> Iterator[tuple[int, int, int]]:
    """Start, stop and number of every line that is not blank. No more than a record's limit is ever in memory."""
    start = number = 0
    while line := file.readline(limits.RECORD_BYTES):
        number += 1
        stop = start + len(line)
        blank = line.isspace()
        while not line.endswith(b"\n") and (line := file.readline(limits.RECORD_BYTES)):
            stop += len(line)
            blank = False
        if not blank:
            yield start, stop, number
        start = stop


def _elements(file: BufferedReader, name: str) -> Iterator[tuple[int, int, int]]:
    """Start, stop and line of every object of a JSON array; stop -1 where the array goes wrong.

    The bytes are read as Latin-1: one letter a byte, and JSON's own marks are ASCII, so positions are offsets.
    """
    text, at, base, line, counted = "", 0, 0, 1, 0

    def more() -> bool:
        """Reads on, behind what is still wanted."""
        nonlocal text, at, base, line, counted
        chunk = file.read(max(CHUNK, len(text) - at)).decode("latin-1")
        line += text.count("\n", counted, at)
        text, base, at, counted = text[at:] + chunk, base + at, 0, 0
        return bool(chunk)

    def mark() -> str:
        """The next letter that is no space; "" at the end of the file."""
        nonlocal at
        while True:
            while at < len(text) and text[at] in LETTERS:
                at += 1
            if at < len(text) or not more():
                return text[at : at + 1]

    def number() -> int:
        nonlocal line, counted
        line, counted = line + text.count("\n", counted, at), at
        return line

    mark()
    at += 1  # the bracket that made this an array
    if mark() == "]":
        at += 1
    else:
        while True:
            if mark() != "{":
                yield base + at, -1, number()
                return
            first = number()
            while True:
                try:
                    _, stop = DECODER.raw_decode(text, at)
                    break
                except (ValueError, RecursionError):
                    if len(text) - at > limits.RECORD_BYTES or not more():
                        yield base + at, -1, first
                        return
            yield base + at, base + stop, first
            at = stop
            after = mark()
            at += 1
            if after == "]":
                break
            if after != ",":
                yield base + at - 1, -1, number()
                return
    if mark():
        yield base + at, -1, number()
