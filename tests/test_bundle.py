"""A bundle appears whole or not at all, and opens only when every listed byte is the one that was written."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from eyespot import tensorfile
from eyespot.bundle import Settings, open_bundle, read, write
from eyespot.bundle.write import BundleWriter
from eyespot.compile.schedule import plan
from eyespot.errors import FAILED, UNSUPPORTED, EyespotError, UsageError
from eyespot.program import Program, verify
from test_program import toy
from test_tensorfile import denied, hurried

PROGRAM = toy(2)
SETTINGS = Settings(64, stop_tokens=(3,), bos=1)
IMAGE = {
    "rule": "internvl", "size": 28, "min_tiles": 1, "max_tiles": 12, "thumbnail": True, "mean": [0.5] * 3,
    "std": [0.2] * 3, "resample": "bicubic", "tokens_per_tile": 4, "placeholder": "<image>", "before": "<img>",
    "token": "<IMG_CONTEXT>", "after": "</img>",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "eyespot" / "verified"


def make(out: Path, fill: int = 1) -> Path:
    """A small bundle of `toy` whose weights are all `fill`."""
    with BundleWriter(out) as bundle:
        for part in PROGRAM.parts():
            weights = [w for w in PROGRAM.weights.values() if w.part == part]
            with bundle.create(f"{part}.safetensors") as file:
                stored = {w.name: ("F32", w.shape) for w in weights}
                order = tensorfile.layout(stored, {})[1]
                tensorfile.write(file, stored, ((n, np.full(order[n].shape, fill, np.float32)) for n in order))
        bundle.add("tokenizer.json", b"{}")
        memory = plan(PROGRAM, 64, 8, "f16").to_json()
        bundle.add_json("program.json", {**PROGRAM.to_json(), "memory": memory}, indent=None)
        bundle.add_json("config.json", SETTINGS.to_json())
        bundle.write_manifest({"eyespot": "test", "source": {"fill": fill}, "report": None}, ("config.json",))
        return bundle.seal()


def test_what_was_written_is_what_opens(tmp_path: Path) -> None:
    bundle = open_bundle(make(tmp_path / "b"), verify=True)
    assert bundle.verified
    assert bundle.settings == SETTINGS
    assert bundle.program.parts == ("embed_tokens", "layer_00", "layer_01", "post")
    assert (bundle.program.ctx, bundle.program.prefill_chunk, bundle.program.kv_type) == (64, 8, "f16")
    assert bundle.program.info == PROGRAM.info
    assert bundle.tokenizer == tmp_path / "b" / "tokenizer.json"
    assert bundle.file("config.json") is None  # not listed, so not vouched for
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "cache"]
    again = verify(Program.from_json(bundle.program.raw))
    assert again.to_json() == PROGRAM.to_json()
    part = tensorfile.TensorFile(tmp_path / "b" / "layer_01.safetensors")
    assert (part.raw("model.layers.1.norm.weight") == 1).all()


def break_files(out: Path, what: str) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    part = out / "layer_01.safetensors"
    match what:
        case "missing":
            part.unlink()
        case "truncated":
            part.write_bytes(part.read_bytes()[:-1])
        case "changed":
            data = bytearray(part.read_bytes())
            data[-1] ^= 1
            part.write_bytes(data)
        case "directory":
            part.unlink()
            part.mkdir()
        case "fifo":
            part.unlink()
            os.mkfifo(part)
        case "newer":
            manifest["format"] = read.FORMAT + 1
        case "older":
            manifest["format"] = read.FORMAT - 1
        case "no format":
            manifest["format"] = 0
        case "traversal":
            manifest["files"]["../evil"] = manifest["files"]["post.safetensors"]
        case "unlisted":
            del manifest["files"]["layer_01.safetensors"]
        case "digest":
            manifest["files"]["post.safetensors"]["sha256"] = "0" * 63
        case "bool":
            manifest["files"]["post.safetensors"]["bytes"] = True
        case "program":
            text = (out / "program.json").read_text().replace('"format":1', '"format":9')
            (out / "program.json").write_text(text)
        case "cut":
            (out / "manifest.json").write_text((out / "manifest.json").read_text()[:200])
            return
    (out / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("what", "fault"),
    [
        ("missing", r"layer_01.safetensors: cannot be read \(No such file"),
        ("truncated", r"layer_01.safetensors: wrong size; found \d+ bytes; expected \d+"),
        ("changed", r"layer_01.safetensors: SHA-256 differs"),
        ("directory", "layer_01.safetensors: not a regular file"),
        ("fifo", "layer_01.safetensors: not a regular file"),
        ("newer", "manifest.json: unknown format; found 3; expected 2; likely cause: a newer eyespot"),
        (
            "older",
            "manifest.json: unknown format; found 1; expected 2; likely cause: an older eyespot.*compile the model",
        ),
        ("no format", "manifest.json: bad format"),
        ("traversal", "bad file name; found ../evil"),
        ("unlisted", "lists no layer_01.safetensors"),
        ("digest", "entry of post.safetensors is malformed"),
        ("bool", "entry of post.safetensors is malformed"),
        ("program", "program.json: SHA-256 differs"),
        ("cut", "manifest.json: not valid JSON"),
    ],
)
def test_faults_are_named(tmp_path: Path, what: str, fault: str) -> None:
    out = make(tmp_path / "b")
    break_files(out, what)
    with pytest.raises(EyespotError, match=fault) as caught:
        open_bundle(out)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == (UNSUPPORTED if what in ("newer", "older") else FAILED)


def test_newer_program_is_named_when_hashes_are_not_asked(tmp_path: Path) -> None:
    out = make(tmp_path / "b")
    break_files(out, "program")
    with pytest.raises(EyespotError, match=r"program.json: unknown format; found 9; expected 1"):
        open_bundle(out, verify=False)


def test_wrong_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, fault in (
        ("nothing", "no such bundle"),
        ("file", "is a file"),
        (".", r"manifest.json: cannot be read \(No such file"),
    ):
        with pytest.raises(UsageError, match=fault):
            open_bundle(tmp_path / path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="names no format"):
        open_bundle(tmp_path)


@pytest.mark.parametrize("name", ["manifest.json", "config.json"])
def test_a_pipe_in_place_of_a_file_is_told_at_once(tmp_path: Path, name: str) -> None:
    out = make(tmp_path / "b")
    (out / name).unlink()
    os.mkfifo(out / name)
    with hurried(), pytest.raises(EyespotError, match=f"{name}: not a regular file"):
        open_bundle(out)
    if name == "manifest.json":
        with hurried(), pytest.raises(UsageError, match="not a bundle is never replaced"):
            make(out)


def test_paths_that_lead_nowhere_are_usage_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed directory above, a name too long, a null byte, a working directory that is gone: one line each."""
    for path in (tmp_path / ("x" * 300), Path("a\0b")):
        for call in (open_bundle, make):
            with pytest.raises(UsageError, match=r"no such bundle|cannot be (opened|created)") as caught:
                call(path)
            assert "\n" not in str(caught.value)
    (tmp_path / "closed" / "b").mkdir(parents=True)
    with denied(tmp_path / "closed"):
        with pytest.raises(UsageError, match=r"cannot be opened \(Permission denied\)"):
            open_bundle(tmp_path / "closed" / "b")
        with pytest.raises(UsageError, match=r"cannot be created \(Permission denied\)"):
            make(tmp_path / "closed" / "b")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(UsageError, match="no such bundle"):
        open_bundle("b")
    with pytest.raises(UsageError, match=r"b: cannot be created \(No such file"):
        make(Path("b"))


def test_a_bundle_is_hashed_once_a_machine(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    real = read.check_hashes
    monkeypatch.setattr(read, "check_hashes", lambda path, files: hashed.append(path) or real(path, files))
    out = make(tmp_path / "b")
    assert open_bundle(out).verified
    assert hashed == []  # its maker vouched for it
    copy = shutil.copytree(out, tmp_path / "copy")
    assert open_bundle(copy).verified
    assert open_bundle(copy).verified
    assert not open_bundle(copy, verify=False).verified
    assert hashed == [copy]
    os.utime(copy / "post.safetensors")
    open_bundle(copy)
    assert hashed == [copy, copy]
    open_bundle(copy, verify=True)
    assert hashed == [copy] * 3
    for stamp in cache.iterdir():
        stamp.write_bytes(b"[" * 100_000)
    open_bundle(copy)
    assert hashed == [copy] * 4
    data = bytearray((copy / "post.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "post.safetensors").write_bytes(data)
    with pytest.raises(EyespotError, match=r"post.safetensors: SHA-256"):
        open_bundle(copy)
    with pytest.raises(EyespotError, match=r"post.safetensors: SHA-256"):
        open_bundle(copy)


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flat").write_text("a file where a directory should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "flat"))
    out = make(tmp_path / "b")
    assert open_bundle(out).verified


@pytest.mark.parametrize(
    ("path", "value", "fault"),
    [
        (["ctx_size"], 65, r"config.json: ctx_size; found 65; expected an integer from 1 to 64"),
        (["ctx_size"], True, "found True"),
        (["threads"], -1, "threads"),
        (["stop_tokens"], [3, 11], r"stop_tokens\[1\]; found 11; expected an integer from 0 to 10"),
        (["stop_tokens"], 3, "a list of"),
        (["bos"], "x", "bos"),
        (["sampling", "temperature"], "hot", r"sampling.temperature; found 'hot'; expected a number from 0 to 100"),
        (["sampling", "top_p"], 1.5, r"sampling.top_p; found 1.5"),
        (["sampling", "top_k"], 1.5, "an integer"),
        (["sampling", "topk"], 1, "'topk' is not a setting"),
        (["sampling"], None, "sampling is not an object"),
        (["extra"], 1, "'extra' is not a setting"),
        (["image"], {**IMAGE, "size": 28}, "image.size is not what the model was compiled for"),
        (["image"], {**IMAGE, "rule": "magic"}, "image.rule"),
        (["image"], {**IMAGE, "std": [0.2, 0.2, 0]}, r"image.std\[2\]"),
        (["image"], {**IMAGE, "std": [0.2, 0.2]}, "a list of 3 items"),
        (["image"], {**IMAGE, "min_tiles": 13}, "min_tiles is above"),
        (["image"], {**IMAGE, "thumbnail": 1}, "true or false"),
        (["image"], {**IMAGE, "token": ""}, "image.token"),
    ],
)
def test_bad_settings(tmp_path: Path, path: list[str], value: object, fault: str) -> None:
    out = make(tmp_path / "b")
    config = json.loads((out / "config.json").read_text())
    place = config
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(EyespotError, match=fault):
        open_bundle(out)


def test_settings_survive_json() -> None:
    raw = {**SETTINGS.to_json(), "image": IMAGE}
    settings = Settings.parse(json.loads(json.dumps(raw)))
    assert settings.image is not None
    assert settings.image.std == (0.2, 0.2, 0.2)
    assert json.loads(json.dumps(settings.to_json())) == json.loads(json.dumps(raw))
    for key in raw:
        with pytest.raises(EyespotError, match=f"'{key}' is missing"):
            Settings.parse({k: v for k, v in raw.items() if k != key})


def test_only_bundles_and_empty_directories_are_replaced(tmp_path: Path) -> None:
    taken = tmp_path / "photos"
    taken.mkdir()
    make(taken)  # empty: may be used
    make(taken, fill=2)  # a bundle: replaced
    assert open_bundle(taken).manifest["source"] == {"fill": 2}
    other = tmp_path / "web"
    other.mkdir()
    for content in (None, "{}", '{"name": "my page", "icons": []}'):
        (other / "cat.jpg").write_text("precious")
        if content is not None:
            (other / "manifest.json").write_text(content)
        with pytest.raises(UsageError, match="not a bundle is never replaced"):
            make(other)
        assert (other / "cat.jpg").read_text() == "precious"
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not a directory"):
        make(tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be created"):
        make(tmp_path / "file" / "below")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "file", "photos", "web"]


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    make(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    make(tmp_path / "link", fill=5)
    assert (tmp_path / "link").is_symlink()
    assert open_bundle(tmp_path / "real").manifest["source"] == {"fill": 5}


@pytest.mark.parametrize("exchange", [True, False])
def test_swap_with_and_without_renameat2(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(write, "_exchange", lambda a, b: False)
    make(tmp_path / "b")
    make(tmp_path / "b", fill=7)
    assert open_bundle(tmp_path / "b", verify=True).manifest["source"] == {"fill": 7}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "cache"]


def test_a_failure_leaves_the_old_bundle(tmp_path: Path) -> None:
    make(tmp_path / "b")
    with pytest.raises(ZeroDivisionError), BundleWriter(tmp_path / "b") as bundle:
        bundle.add("post.safetensors", b"half")
        raise ZeroDivisionError
    assert open_bundle(tmp_path / "b", verify=True).manifest["source"] == {"fill": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "cache"]


def test_a_failure_takes_the_directories_it_made_along(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), BundleWriter(tmp_path / "a" / "b" / "c"):
        raise ZeroDivisionError
    with pytest.raises(UsageError, match="cannot be created here"):
        BundleWriter(tmp_path / "a" / "b" / ("x" * 250)).__enter__()  # the bundle's own name fits, a draft's does not
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(ZeroDivisionError), BundleWriter(tmp_path / "mine" / "a" / "b" / "c"):
        (tmp_path / "mine" / "a" / "note").write_text("another program's")
        raise ZeroDivisionError
    assert [p.name for p in (tmp_path / "mine" / "a").iterdir()] == ["note"]
    assert open_bundle(make(tmp_path / "d" / "e" / "f")).verified


def test_too_small_a_disk_is_told_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=50 << 20))
    with BundleWriter(tmp_path / "b") as bundle:
        bundle.need(30 << 20)
        with pytest.raises(EyespotError, match="not enough disk space; found 50 MiB free; expected 56 MiB"):
            bundle.need(40 << 20)


def test_files_are_written_front_to_back(tmp_path: Path) -> None:
    with (
        BundleWriter(tmp_path / "b") as bundle,
        pytest.raises(EyespotError, match="front to back"),
        bundle.create("x") as file,
    ):
        file.write(b"abc")
        file.seek(1)


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(tmp_path: Path) -> None:
    dead, other = tmp_path / ".b.tmp-1-dead", tmp_path / ".bb.tmp-1-dead"
    dead.mkdir()
    other.mkdir()
    (dead / "big").write_text("x")
    with BundleWriter(tmp_path / "b") as living:
        assert not dead.exists()
        make(tmp_path / "b", fill=3)
        assert living.path.exists()
        living.add("x", b"still here")
    assert other.exists()  # another target's
    assert sorted(p.name for p in tmp_path.iterdir()) == [".bb.tmp-1-dead", "b", "cache"]


KILLED = """
import sys, itertools
from pathlib import Path
from test_bundle import make
for fill in itertools.count(int(sys.argv[2])):
    make(Path(sys.argv[1]), fill)
    print(fill, flush=True)
"""


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """SIGKILL at random moments of a process that does nothing but write: the name shows a whole bundle or nothing."""
    out, seen, rng = tmp_path / "b", set(), random.Random(int(time.time()))
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(read.__file__).parents[2])])
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(out), str(1 + max(seen, default=0))],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()  # past the imports, one bundle written
        time.sleep(rng.uniform(0, 0.03))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        fill = open_bundle(out, verify=True).manifest["source"]["fill"]
        for name in ("embed_tokens", "post"):
            file = tensorfile.TensorFile(out / f"{name}.safetensors")
            assert all((file.raw(tensor) == fill).all() for tensor in file.entries)
        seen.add(fill)
    assert len(seen) == 8
    make(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b", "cache"]


def mutate(value: object, rng: random.Random) -> object:
    """`value` with one thing in it replaced, dropped or doubled."""
    junk = [None, True, -1, 0, 2**63, 10**400, 1.5, "", "x", "../x", "n", "9*o", [], {}, [[]], {"a": 1}, [1, "n"]]
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return {**value, rng.choice(["x", "", "../x", "format"]): rng.choice(junk)}
        return {**value, key: mutate(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.85:
        at = rng.randrange(len(value))
        return [*value[:at], mutate(value[at], rng), *value[at + 1 :]]
    return rng.choice(junk)


def test_fuzz(tmp_path: Path) -> None:
    """2,400 mutations of every kind of file: an EyespotError of one line, or a bundle that passed every check."""
    out = make(tmp_path / "b")
    seed = int(time.time())
    rng = random.Random(seed)
    names = ["manifest.json", "config.json", "program.json", "layer_00.safetensors"]
    originals = {name: (out / name).read_bytes() for name in names}
    refused, several_lines = dict.fromkeys(names, 0), 0
    for turn in range(2400):
        name = names[turn % 4]
        data = originals[name]
        structured = name.endswith("json") and rng.random() < 0.7
        if structured:
            data = json.dumps(mutate(json.loads(data), rng)).encode()
        else:
            raw = bytearray(data)
            for _ in range(rng.randint(1, 4)):
                raw[rng.randrange(min(len(raw), 400))] = rng.randrange(256)
            data = bytes(raw[: rng.randint(0, len(raw))] if rng.random() < 0.2 else raw)
        (out / name).write_bytes(data)
        listed = json.loads(originals["manifest.json"])
        if name not in ("manifest.json", "config.json") and rng.random() < 0.5:  # a forger keeps the size in order
            listed["files"][name]["bytes"] = len(data)
            (out / "manifest.json").write_text(json.dumps(listed))
        try:
            bundle = open_bundle(out, verify=rng.choice([True, False, "auto"]))
            verify(Program.from_json(bundle.program.raw))
        except EyespotError as error:
            refused[name] += 1
            several_lines += "\n" in str(error)
        finally:
            (out / name).write_bytes(originals[name])
            (out / "manifest.json").write_bytes(originals["manifest.json"])
    assert several_lines == 0, f"seed {seed}"
    assert min(refused.values()) > 100, refused
    assert open_bundle(out, verify=True).verified
