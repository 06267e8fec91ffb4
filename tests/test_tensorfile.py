"""Safetensors: what we write the library reads and the other way round; damaged headers give one-line errors."""

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from eyespot import limits, tensorfile
from eyespot.errors import EyespotError


def test_round_trip_with_the_library(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((5, 3)).astype(np.float32),
        "b": rng.integers(-128, 127, (7, 9)).astype(np.int8),
        "c": rng.standard_normal(4).astype(np.float16),
    }
    names = {"float32": "F32", "int8": "I8", "float16": "F16"}
    with open(tmp_path / "ours.safetensors", "wb") as file:
        shapes = {k: (names[str(v.dtype)], v.shape) for k, v in arrays.items()}
        chunks = [("a", arrays["a"][:2]), ("b", arrays["b"]), ("a", arrays["a"][2:]), ("c", arrays["c"])]
        tensorfile.write(file, shapes, chunks, {"format": "pt"})
    theirs = load_file(tmp_path / "ours.safetensors")
    save_file(arrays, tmp_path / "theirs.safetensors")
    for path in ("ours.safetensors", "theirs.safetensors"):
        ours = tensorfile.TensorFile(tmp_path / path)
        for key, value in arrays.items():
            np.testing.assert_array_equal(ours.raw(key), value)
            np.testing.assert_array_equal(theirs[key], value)
            ours.release(key)
            np.testing.assert_array_equal(ours.raw(key), value)
    entries, _ = tensorfile.read_header(tmp_path / "ours.safetensors")
    assert [entry.start % 4 for entry in entries.values() if entry.dtype == "F32"] == [0]
    assert entries["c"].start % 2 == 0


def test_missing_or_extra_bytes_are_refused(tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as file, pytest.raises(EyespotError, match="bytes are missing"):
        tensorfile.write(file, {"a": ("F32", (2,))}, [("a", np.zeros(1, np.float32))])
    with open(tmp_path / "x", "wb") as file, pytest.raises(EyespotError, match="more bytes"):
        tensorfile.write(file, {"a": ("F32", (2,))}, [("a", np.zeros(3, np.float32))])


def test_bf16_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    bits = np.random.default_rng(1).integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32)
    values = np.concatenate([bits.view(np.float32), np.float32([0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-45])])
    theirs = torch.tensor(values).bfloat16()
    ours = tensorfile.f32_to_bf16(values)
    finite = ~np.isnan(values)
    np.testing.assert_array_equal(ours[finite], theirs.view(torch.int16).numpy().view(np.uint16)[finite])
    assert np.isnan(tensorfile.bf16_to_f32(ours[~finite])).all()
    back = tensorfile.bf16_to_f32(ours[finite])
    np.testing.assert_array_equal(back, theirs.float().numpy()[finite])


def header(tmp_path: Path, text: bytes, data: bytes = b"\0" * 64, length: int | None = None) -> Path:
    path = tmp_path / "bad.safetensors"
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def item(**change: object) -> bytes:
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **change}
    return json.dumps({"a": entry}).encode()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (item(shape=[5]), "disagree"),
        (item(shape=[-4]), "bad shape"),
        (item(shape=[True]), "bad shape"),
        (item(shape=[1] * 9), "at most 8"),
        (item(shape=[2**40, 2**40]), "past the end|disagree"),
        (item(data_offsets=[0, 2**62]), "past the end"),
        (item(data_offsets=[16, 0]), "past the end"),
        (item(data_offsets=[0]), "bad data_offsets"),
        (item(dtype="F128"), "unknown dtype"),
        (item(extra=1), "malformed"),
        (b'{"a":1}', "malformed"),
        (b"[]", "not an object"),
        (b"{", "not valid JSON"),
        (b"\xff{}", "not valid JSON"),
        (b'{"a":NaN}', "NaN is not JSON"),
        (item()[:-1] + b"," + item()[1:], "duplicate key"),
        (
            b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}',
            "overlaps",
        ),
        (b'{"__metadata__":{"a":1}}', "map of strings"),
        (b"[" * 5000 + b"]" * 5000, "nested|JSON"),
    ],
)
def test_bad_headers(tmp_path: Path, text: bytes, fault: str) -> None:
    with pytest.raises(EyespotError, match=fault) as caught:
        tensorfile.read_header(header(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "bad.safetensors" in str(caught.value)


def test_lengths_are_checked_before_anything_is_read(tmp_path: Path) -> None:
    for length in (limits.HEADER_BYTES + 1, 2**63, 2**64 - 1, 100):
        with pytest.raises(EyespotError, match="header does not fit"):
            tensorfile.read_header(header(tmp_path, b"{}", b"", length))
    (tmp_path / "short.safetensors").write_bytes(b"\1\2")
    with pytest.raises(EyespotError, match="header does not fit"):
        tensorfile.read_header(tmp_path / "short.safetensors")
    with pytest.raises(EyespotError, match="cannot be read"):
        tensorfile.read_header(tmp_path / "nothing.safetensors")


@contextmanager
def hurried(seconds: int = 10) -> Iterator[None]:
    """What hangs fails: the call it hangs in ends with an error that is not the one expected."""

    def alarm(number: int, frame: object) -> None:
        raise TimeoutError(f"still running after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def denied(directory: Path) -> Iterator[None]:
    """`directory` closed to this user; root, whom nothing is denied, is nobody meanwhile."""
    root = os.geteuid() == 0
    directory.chmod(0)
    try:
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o755)


READERS = {"json": tensorfile.read_json, "header": tensorfile.read_header, "tensors": tensorfile.TensorFile}


@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_told_at_once_and_with_its_own_cause(tmp_path: Path, reader: str) -> None:
    read = READERS[reader]
    os.mkfifo(tmp_path / "pipe")
    with hurried(), pytest.raises(EyespotError, match=r"^pipe: not a regular file$"):
        read(tmp_path / "pipe")
    with pytest.raises(
        EyespotError, match=r"^none: cannot be read \(No such file or directory\); likely cause: no such"
    ):
        read(tmp_path / "none")
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "file").write_bytes(item())
    with denied(tmp_path / "closed"), pytest.raises(EyespotError, match=r"\(Permission denied\).*this user may not"):
        read(tmp_path / "closed" / "file")
    with pytest.raises(EyespotError, match=r"cannot be read \(File name too long\)$"):
        read(tmp_path / ("x" * 300))
    with pytest.raises(EyespotError, match=r"cannot be read \(Is a directory\)$"):
        read(tmp_path)


def test_mutations_never_escape_as_anything_else(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros(5, np.int8)}, good)
    original = good.read_bytes()
    rng = random.Random(7)
    refused = 0
    for _ in range(2_000):
        data = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            where = rng.randrange(len(data) - 1)
            action = rng.randrange(3)
            if action == 0:
                data[where] = rng.randrange(256)
            elif action == 1:
                del data[where]
            else:
                data[where:where] = rng.choice([b"9", b'"', b"{", b"[", b"-", b"\0", b"1e9"])
        path = tmp_path / "mutant.safetensors"
        path.write_bytes(data)
        try:
            file = tensorfile.TensorFile(path)
            for key in file.entries:
                file.raw(key).sum()
        except EyespotError:
            refused += 1
    assert refused > 1_000


def test_big_tensors_are_aligned_and_small_ones_follow() -> None:
    shapes = {"norm": ("F32", (5,)), "q": ("I8", (3, 5)), "big": ("U8", (2, 64)), "scale": ("F16", (3,))}
    head, entries = tensorfile.layout(shapes, {})
    assert len(head) % tensorfile.ALIGN == 0
    assert sorted(entries, key=lambda n: entries[n].start) == ["big", "norm", "scale", "q"]
    assert entries["big"].start % tensorfile.ALIGN == 0
