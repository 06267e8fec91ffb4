"""Bundles that were damaged, cut, edited or made to hurt: each is named, none crashes the engine or is believed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import handmade
from eyespot.errors import EyespotError, UnsupportedModel
from eyespot.run.engine import Engine
from handmade import Handmade
from test_native import TILES
from test_tensorfile import denied


def edited(made: Handmade, path: Path, edit: Callable[[Any], Any]) -> Path:
    """A copy whose program.json went through `edit`; the manifest is right about it."""
    shutil.copytree(made.path, path)
    text = json.loads((path / "program.json").read_text())
    edit(text)
    (path / "program.json").write_text(json.dumps(text))
    handmade.seal(path)
    return path


def text_ops(program: Any) -> list[Any]:
    return [op for block in program["graphs"]["text"]["blocks"] for op in block["ops"]]


def op_of(program: Any, kind: str) -> Any:
    return next(op for op in text_ops(program) if op["kind"] == kind)


FAULTS: dict[str, tuple[Callable[[Any], Any], type[EyespotError], str]] = {
    "format": (lambda p: p.update(format=2), UnsupportedModel, "format"),
    "layout": (lambda p: p.update(layout="r8q4"), UnsupportedModel, "packed for another target"),
    "no layout": (lambda p: p.pop("layout"), EyespotError, "layout"),
    "kind": (lambda p: op_of(p, "swiglu").update(kind="geglu"), UnsupportedModel, "geglu"),
    "scheme": (lambda p: p["weights"]["layers.0.o.weight"].update(scheme="W2A16"), UnsupportedModel, "W2A16"),
    "kv type": (lambda p: p["memory"]["kv_cache"].update(type="f8"), UnsupportedModel, "f8"),
    "vector scheme": (lambda p: p["weights"]["norm.weight"].update(scheme="f16"), UnsupportedModel, "f16"),
    "role": (lambda p: op_of(p, "linear")["weights"].update(gate="norm.weight"), EyespotError, "role"),
    "no role": (lambda p: op_of(p, "linear")["weights"].pop("weight"), EyespotError, "is missing"),
    "attribute": (lambda p: op_of(p, "rope")["attrs"].update(heads=9), EyespotError, "do not fit"),
    "attribute type": (lambda p: op_of(p, "rms_norm")["attrs"].update(eps="1e-5"), EyespotError, "eps"),
    "no attribute": (lambda p: op_of(p, "rms_norm")["attrs"].clear(), EyespotError, "eps"),
    "inputs": (
        lambda p: p["graphs"]["text"]["inputs"].extend(
            {"name": f"x{i}", "shape": ["n"], "dtype": "i32"} for i in range(9)
        ),
        EyespotError,
        "too many inputs",
    ),
    "input": (lambda p: op_of(p, "select").update({"in": ["rows", "rows"]}), EyespotError, "matrix"),
    "undefined": (lambda p: op_of(p, "swiglu").update({"in": ["post.head"]}), EyespotError, "not defined"),
    "shape": (lambda p: op_of(p, "linear").update(shape=["n", 81]), EyespotError, "recorded shape"),
    "weight shape": (lambda p: p["weights"]["head.weight"].update(shape=[131, 45]), EyespotError, "expected"),
    "part": (lambda p: p["weights"]["head.weight"].update(part="layer_00"), EyespotError, "part"),
    "path": (lambda p: p["graphs"]["text"]["blocks"][0].update(part="../x"), EyespotError, "plain file name"),
    "cache layer": (lambda p: op_of(p, "attention")["attrs"].update(layer=1), EyespotError, "written twice"),
    "cache bytes": (lambda p: p["memory"]["kv_cache"]["layers"][0].update(bytes=64), EyespotError, "has 64 bytes"),
    "scratch": (lambda p: p["memory"]["scratch"].__setitem__(1, 64), EyespotError, "memory.scratch has 64 bytes"),
    "partial": (lambda p: p["memory"]["partial"].__setitem__(1, 64), EyespotError, "memory.partial has 64 bytes"),
    "no group_kv": (lambda p: p["memory"].pop("group_kv"), EyespotError, "group_kv"),
    "offset": (
        lambda p: p["memory"]["values"]["text"]["embed_tokens.embed"].__setitem__(0, 1 << 40),
        EyespotError,
        "out of range",
    ),
    "alignment": (lambda p: p["memory"]["scratch"].__setitem__(0, 4), EyespotError, "aligned"),
    "no place": (lambda p: p["memory"]["values"]["text"].pop("post.head"), EyespotError, "no place"),
    "overlap": (
        lambda p: p["memory"]["values"]["text"].update(
            {"layer_00.rms_norm": p["memory"]["values"]["text"]["embed_tokens.scale"]}
        ),
        EyespotError,
        "overlaps",
    ),
    "arena": (lambda p: p["memory"].update(arena_bytes=1 << 50), EyespotError, "out of range"),
    "vocabulary": (lambda p: p["info"].update(vocab_size=132), EyespotError, "vocabulary"),
    "output": (lambda p: p["graphs"]["text"].update(outputs=["post.rms_norm"]), EyespotError, "output"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_programs_are_named(bundle: Callable[..., Handmade], tmp_path: Path, fault: str) -> None:
    edit, kind, words = FAULTS[fault]
    with pytest.raises(EyespotError, match=words) as caught:
        Engine(edited(bundle("W8A8-g32", eyes=False), tmp_path / "b", edit))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_select_may_not_look_past_its_rows(bundle: Callable[..., Handmade], tmp_path: Path) -> None:
    """rows[] counts tokens: selecting from a value with fewer rows would read outside it."""

    def twice(program: Any) -> None:
        post = program["graphs"]["text"]["blocks"][-1]["ops"]
        again = {**post[0], "out": "post.again", "in": [post[0]["out"], "rows"]}
        post.insert(1, again)
        values = program["memory"]["values"]["text"]
        values["post.again"] = [program["memory"]["arena_bytes"], values[post[0]["out"]][1]]
        program["memory"]["arena_bytes"] += 4096

    with pytest.raises(EyespotError, match="one row a token"):
        Engine(edited(bundle(eyes=False), tmp_path / "b", twice))


def test_an_absurd_arena_costs_nothing(bundle: Callable[..., Handmade], tmp_path: Path) -> None:
    path = edited(bundle(eyes=False), tmp_path / "b", lambda p: p["memory"].update(arena_bytes=64 << 30))
    start = time.perf_counter()
    with Engine(path) as engine:
        engine.prefill([1, 2, 3])
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("name", ["layer_00.safetensors", "program.json", "manifest.json"])
def test_missing_and_cut_files(bundle: Callable[..., Handmade], tmp_path: Path, name: str) -> None:
    made = bundle("W8A8", eyes=False)
    path = tmp_path / "b"
    shutil.copytree(made.path, path)
    data = (path / name).read_bytes()
    for keep in (None, 0, 5, len(data) // 2, len(data) - 1):
        (path / name).unlink(missing_ok=True)
        if keep is not None:
            (path / name).write_bytes(data[:keep])
        for sealed in (False, True):
            if sealed and name != "manifest.json":
                handmade.seal(path)
            with pytest.raises(EyespotError, match=name):
                Engine(path)
        if name != "manifest.json":
            shutil.copy(made.path / "manifest.json", path)


@pytest.mark.parametrize("name", ["layer_00.safetensors", "program.json", "manifest.json"])
def test_a_pipe_in_place_of_a_file_is_told_at_once(bundle: Callable[..., Handmade], tmp_path: Path, name: str) -> None:
    path = tmp_path / "b"
    shutil.copytree(bundle(eyes=False).path, path)
    (path / name).unlink()
    os.mkfifo(path / name)
    code = "import sys; from eyespot.run.engine import Engine; Engine(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
    assert f"EyespotError: {name}: not a regular file\n" in done.stderr  # in a process: C++ would not hear an alarm


def test_files_that_cannot_be_read_have_causes_of_their_own(bundle: Callable[..., Handmade], tmp_path: Path) -> None:
    path = tmp_path / "b"
    shutil.copytree(bundle(eyes=False).path, path)
    with denied(path), pytest.raises(EyespotError, match=r"\(Permission denied\); likely cause: this user may not"):
        Engine(path)
    with pytest.raises(
        EyespotError, match=r"\(No such file or directory\); likely cause: the directory is not a bundle"
    ):
        Engine(tmp_path / "nowhere")
    os.truncate(path / "layer_00.safetensors", 1 << 40)  # has no blocks on the disk, and fits no small address space
    code = (
        "import resource, sys; from eyespot.run.engine import Engine\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36)); Engine(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
    assert "layer_00.safetensors: cannot be read (Cannot allocate memory); likely cause: the machine has" in done.stderr
    (path / "layer_00.safetensors").write_bytes(b"")
    with pytest.raises(EyespotError, match=r"^layer_00.safetensors: is empty$"):
        Engine(path)


@pytest.mark.parametrize("name", ["layer_01.safetensors", "vision.safetensors"])
def test_a_part_that_shrinks_is_told(bundle: Callable[..., Handmade], tmp_path: Path, name: str) -> None:
    """The bytes past the new end would end the process with SIGBUS."""
    path = tmp_path / "b"
    shutil.copytree(bundle().path, path)
    data = (path / name).read_bytes()
    with Engine(path) as engine:
        logits = engine.prefill([1, 2])
        for size in (len(data) - 1, 0):
            os.truncate(path / name, size)
            words = f"{name}: the file shrank while it was in use; found {size} bytes; expected {len(data)} bytes"
            for call in (lambda: engine.encode(TILES), lambda: engine.prefill([1, 2]), lambda: engine.decode(1)):
                with pytest.raises(EyespotError, match=words):
                    call()
        assert engine.past == 2
        (path / name).write_bytes(data)
        engine.truncate(0)
        assert np.array_equal(engine.prefill([1, 2]), logits)
        (path / "new").write_bytes(b"")
        (path / "new").rename(path / name)  # what is open stays what it was
        engine.truncate(0)
        assert np.array_equal(engine.prefill([1, 2]), logits)


HOSTILE = [
    0, 1, -1, 2, 63, 64, 65, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 62) + 1, (1 << 63) - 1, -(1 << 63), 1 << 64, 1e308,
    -0.0, 1e-320, 0.5, True, False, None, "", "n", "o", "t", "f", "9999999*n", "0*n", "W8A8", "W4A16-g32", "f16",
    "x" * 600, "../../etc/passwd", "\u0000", "é\ud83d", [], {}, [[]], [0, 0], [0, 1 << 62],
]  # fmt: skip


def spots(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        found.append((value, key))
        spots(item, found)
    return found


def swapped(text: str, rng: random.Random) -> bytes:
    """JSON text with one to three values replaced, exchanged, doubled or removed."""
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = spots(value, [])
        container, key = rng.choice(places)
        other, other_key = rng.choice(places)
        action = rng.randrange(6)
        try:
            if action <= 1:
                container[key] = rng.choice(HOSTILE)
            elif action == 2 and isinstance(container[key], int):
                container[key] += rng.choice((-64, -1, 1, 64, 4096))
            elif action == 3:
                container[key] = json.loads(json.dumps(other[other_key]))
            elif action == 4:
                container[key], other[other_key] = other[other_key], container[key]
            elif isinstance(container, dict):
                del container[key]
            else:
                container.insert(key, container[key])
            json.dumps(value)  # an exchange may have put a value into itself
        except (ValueError, RecursionError, KeyError, IndexError):
            value = json.loads(text)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def flipped(data: bytes, rng: random.Random, within: int) -> bytes:
    """Bytes changed, cut out or doubled in the first `within`."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(min(within, len(out)))
        action = rng.randrange(4)
        if action == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            out[at] = rng.choice(b'{}[]",:0189-.eE\\u \x00\xff')
        elif action == 2:
            del out[at : at + rng.randrange(1, 9)]
        else:
            out[at:at] = out[at : at + rng.randrange(1, 40)]
    return bytes(out)


def header_swapped(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    head = swapped(data[8 : 8 + length].decode(), rng)
    return len(head).to_bytes(8, "little") + head + data[8 + length :]


def try_out(path: Path) -> bool:
    """Opens and uses a bundle that may be broken; True when it could be used."""
    try:
        with Engine(path, threads=1) as engine:
            info = engine.info
            tokens = [t for t in (1, 2, info["image_token_id"]) if 0 <= t < info["vocab_size"]]
            features = np.ones((tokens.count(info["image_token_id"]), info["hidden_size"]), np.float32)
            if info["tile_size"] and info["tile_size"] < 100:
                side = info["tile_size"]
                engine.encode(np.ones((1, 3, side, side), np.float32))
            engine.prefill(tokens, features if len(features) else None, want=len(tokens))
            engine.decode(tokens[0])
    except EyespotError as error:
        if not str(error).isprintable():
            raise
        return False
    return True


def test_two_thousand_mutations(bundle: Callable[..., Handmade], tmp_path: Path) -> None:
    """No crash, no hang, no huge allocation: an error of one line, or an engine that works."""
    made = bundle("W8A8", "int8", window=3)
    path = tmp_path / "b"
    shutil.copytree(made.path, path)
    originals = {f.name: f.read_bytes() for f in path.iterdir()}
    assert try_out(path)
    parts = [name for name in originals if name.endswith(".safetensors")]
    rng = random.Random(20)
    used = 0
    for i in range(2400):
        name = rng.choice(["program.json"] * 5 + ["manifest.json", rng.choice(parts), rng.choice(parts)])
        data = originals[name]
        if name.endswith(".json"):
            data = swapped(data.decode(), rng) if i % 3 else flipped(data, rng, len(data))
        else:
            data = header_swapped(data, rng) if i % 2 else flipped(data, rng, 8 + int.from_bytes(data[:8], "little"))
        (path / name).write_bytes(data)
        if name != "manifest.json":
            handmade.seal(path)
        used += try_out(path)
        (path / name).write_bytes(originals[name])
        (path / "manifest.json").write_bytes(originals["manifest.json"])
    assert 0 < used < 2000  # some changes do no harm; most must be noticed
