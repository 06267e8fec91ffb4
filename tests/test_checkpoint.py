"""Safetensors checkpoints: what torch wrote is what is read, and no damaged file gives anything but one line."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from eyespot import limits
from eyespot.checkpoint import check_tokenizer, open_checkpoint, tokenizer_json
from eyespot.checkpoint.source import HUB_FILES, HUB_NOT
from eyespot.errors import EyespotError, UsageError
from test_tensorfile import hurried

CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 6, "rope_scaling": None}
VOCAB = {"a": 0, "b": 1, "ab": 2, "Ġ": 3, "Ġab": 4}
RNG = np.random.default_rng(0)
TENSORS = {
    "model.embed_tokens.weight": RNG.standard_normal((7, 6)).astype(np.float32),
    "model.norm.weight": RNG.standard_normal(6).astype(np.float16),
    "model.layers.0.mlp.up_proj.weight": RNG.standard_normal((9, 6)).astype(np.float32),
}


def write_checkpoint(directory: Path, sharded: bool = False) -> Path:
    """A small checkpoint with a tokenizer of vocab.json and merges.txt; `sharded` into two files and an index."""
    directory.mkdir(parents=True, exist_ok=True)
    names = list(TENSORS)
    shards = {"model-00001-of-00002.safetensors": names[:1], "model-00002-of-00002.safetensors": names[1:]}
    for file, held in (shards if sharded else {"model.safetensors": names}).items():
        save_file({n: TENSORS[n] for n in held}, directory / file, {"format": "pt"})
    if sharded:
        index = {"metadata": {"total_size": 1}, "weight_map": {n: f for f, held in shards.items() for n in held}}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {"5": {"content": "<|im_end|>", "special": True}, "6": {"content": "<img>"}},
    }
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "generation_config.json").write_text('{"eos_token_id": 5}')
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "added_tokens.json").write_text('{"<|im_end|>": 5, "<img>": 6}')
    (directory / "vocab.json").write_text(json.dumps(VOCAB))
    (directory / "merges.txt").write_text("#version: 0.2\na b\nĠ ab\n")
    return directory


@pytest.mark.parametrize("sharded", [False, True])
def test_reads_what_was_written(tmp_path: Path, sharded: bool) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, sharded))
    assert checkpoint.format == "safetensors"
    assert checkpoint.config == CONFIG
    assert {n: i.shape for n, i in checkpoint.tensors.items()} == {n: v.shape for n, v in TENSORS.items()}
    for name, value in TENSORS.items():
        for start, stop in ((0, None), (2, 5), (0, 0), (len(value), None)):
            rows = checkpoint.read(name, start, stop)
            assert rows.dtype == np.float32
            np.testing.assert_array_equal(rows, value[start:stop].astype(np.float32))
        checkpoint.release(name)
        checkpoint.read(name)[:] = 0  # a copy: the file is not written, and the next read is not spoilt
        np.testing.assert_array_equal(checkpoint.read(name), value.astype(np.float32))
    assert checkpoint.dtype("model.norm.weight") == "F16"
    assert checkpoint.warnings == ()
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(checkpoint.files)
    with pytest.raises(EyespotError, match="no such rows"):
        checkpoint.read("model.norm.weight", 3, 7)
    with pytest.raises(EyespotError, match="not in the checkpoint"):
        checkpoint.read("lm_head.weight")


def test_bf16_equals_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    values = torch.randn(50, 33, generator=torch.Generator().manual_seed(1)).bfloat16()
    save_torch({"w": values, "scalar": torch.tensor(0.5).bfloat16()}, tmp_path / "any.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path / "any.safetensors")
    np.testing.assert_array_equal(checkpoint.read("w", 3, 41), values[3:41].float().numpy())
    assert checkpoint.read("scalar") == 0.5
    assert open_checkpoint(str(tmp_path)).dtype("w") == "BF16"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
def test_release_gives_pages_back(tmp_path: Path) -> None:
    save_file({"w": np.ones((64, 1 << 18), np.float32)}, tmp_path / "model.safetensors")  # 64 MiB
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    for row in range(64):
        checkpoint.read("w", row, row + 1)
    held = resident() - before
    checkpoint.release("w")
    assert held > 48 * limits.MIB
    assert resident() - before < 16 * limits.MIB


def test_integer_tensor_is_refused_by_name_when_read(tmp_path: Path) -> None:
    save_file({"position_ids": np.arange(4), "w": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    np.testing.assert_array_equal(checkpoint.read("w"), 1)
    with pytest.raises(EyespotError, match=r"'position_ids' has dtype I64; expected F32, F16, BF16"):
        checkpoint.read("position_ids")


def test_extra_tensors_of_a_shard_are_reported(tmp_path: Path) -> None:
    index = write_checkpoint(tmp_path, sharded=True) / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    del raw["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(raw))
    checkpoint = open_checkpoint(tmp_path)
    assert "model.norm.weight" not in checkpoint.tensors
    assert checkpoint.warnings == (
        "model-00002-of-00002.safetensors: 1 tensors are not in the index: model.norm.weight",
    )


def damage_index(change: str):
    def apply(directory: Path) -> None:
        path = write_checkpoint(directory, sharded=True) / "model.safetensors.index.json"
        raw = json.loads(path.read_text())
        raw["weight_map"]["model.norm.weight"] = change
        path.write_text(json.dumps(raw))

    return apply


def remove(name: str):
    return lambda directory: (write_checkpoint(directory, sharded=name != "model.safetensors") / name).unlink()


def replace(name: str, data: bytes):
    return lambda directory: (write_checkpoint(directory, name.endswith("index.json")) / name).write_bytes(data)


def cut(name: str, size: int):
    def apply(directory: Path) -> None:
        path = write_checkpoint(directory) / name
        path.write_bytes(path.read_bytes()[:size])

    return apply


def twice_in_shards(directory: Path) -> None:
    write_checkpoint(directory, sharded=True)
    save_file(TENSORS, directory / "model-00002-of-00002.safetensors")


def several_files(directory: Path) -> None:
    write_checkpoint(directory)
    (directory / "model.safetensors").rename(directory / "a.safetensors")
    shutil.copy(directory / "a.safetensors", directory / "b.safetensors")


FAULTS = {
    "config missing": (remove("config.json"), "config.json: cannot be read"),
    "config not an object": (replace("config.json", b"[1]"), "config.json: not an object; found list"),
    "config cut off": (replace("config.json", b'{"a": 1'), "config.json: not valid JSON"),
    "config too deep": (replace("config.json", b'{"a":' * 9999 + b"1" + b"}" * 9999), "nested too deeply"),
    "config too large": (replace("config.json", b'{"a":"' + b"x" * limits.MIB + b'"}'), "config.json: too large"),
    "config with a key twice": (replace("config.json", b'{"a":1,"a":2}'), "duplicate key; found a"),
    "shard missing": (remove("model-00002-of-00002.safetensors"), "shard model-00002-of-00002.safetensors is missing"),
    "no weights": (
        remove("model.safetensors"),
        "found added_tokens.json, config.json.*expected model.safetensors, or .*gguf",
    ),
    "empty directory": (lambda directory: directory.mkdir(), "no weights; found an empty directory; expected model"),
    "pickles": (lambda d: (d.mkdir(), (d / "pytorch_model.bin").touch()), "the weights are pickles"),
    "several files": (several_files, "several safetensors files.*a.safetensors, b.safetensors"),
    "weights cut off": (cut("model.safetensors", 400), "lies past the end of the file"),
    "header cut off": (cut("model.safetensors", 40), "header does not fit"),
    "empty weights": (cut("model.safetensors", 0), "header does not fit"),
    "header of 2**60": (replace("model.safetensors", (1 << 60).to_bytes(8, "little") + b"{}"), "header does not fit"),
    "shard outside": (damage_index("../secret.safetensors"), "names a bad file; found ../secret.safetensors"),
    "shard absolute": (damage_index("/etc/x.safetensors"), "names a bad file"),
    "shard a number": (damage_index(7), "names a bad file; found 7"),  # type: ignore[arg-type]
    "tensor in another shard": (damage_index("model-00001-of-00002.safetensors"), "'model.norm.weight' is not in"),
    "tensor in both shards": (twice_in_shards, "tensor 'model.embed_tokens.weight' is in both"),
    "index without map": (replace("model.safetensors.index.json", b'{"weight_map": 3}'), "no usable weight_map"),
    "index empty": (replace("model.safetensors.index.json", b'{"weight_map": {}}'), "holds no tensors"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(tmp_path: Path, fault: str) -> None:
    damage, message = FAULTS[fault]
    damage(tmp_path / "m")
    with pytest.raises(EyespotError, match=message) as caught:
        open_checkpoint(tmp_path / "m")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["", "  ", "no/such/directory", "nowhere", "a/b/c", "../x", "org/na me", "\0", "x" * 9999]
)
def test_what_is_not_there_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"expected|cannot be read") as caught:
        open_checkpoint(source)
    assert caught.value.exit_code == 2


def test_a_file_that_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"notes.txt: not a checkpoint; found first bytes b'hell'"):
        open_checkpoint(tmp_path / "notes.txt")


def test_hub_ids_from_an_offline_cache(tmp_path: Path) -> None:
    """The hub's own cache layout, read in a process that may not use the network."""
    repo, sha = tmp_path / "hub" / "models--org--tiny", "0123456789abcdef0123456789abcdef01234567"
    write_checkpoint(repo / "snapshots" / sha)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(sha)
    (repo / "refs" / "v1").write_text(sha)
    code = """
import sys
from eyespot.checkpoint import open_checkpoint
from eyespot.errors import EyespotError
for source in sys.argv[1:]:
    try:
        checkpoint = open_checkpoint(source)
        print(len(checkpoint.tensors), checkpoint.name)
    except EyespotError as error:
        print(error.exit_code, error)
"""
    sources = ["org/tiny", "org/tiny@v1", "org/tiny@v2", "org/none"]
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    env["PYTHONPATH"] = str(Path(__file__).parent.parent / "src")
    result = subprocess.run([sys.executable, "-c", code, *sources], env=env, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"3 org/tiny@{sha}", "3 org/tiny@v1"]
    assert re.match(r"2 org/tiny@v2: no such path, and the hub does not give it; found \w+", lines[2])
    assert re.match(r"2 org/none: no such path, and the hub does not give it; found \w+", lines[3])
    assert len(lines) == 4


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.gguf"])
def test_a_pipe_in_place_of_a_file_is_told_at_once(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if name == "model.gguf":
        (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / name)
    with hurried(), pytest.raises(EyespotError, match=f"^{name}: not a regular file$"):
        open_checkpoint(tmp_path)


def test_a_checkpoint_is_called_as_its_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(tmp_path / "SmolLM2")
    assert open_checkpoint(tmp_path / "SmolLM2").name == "SmolLM2"
    monkeypatch.chdir(tmp_path / "SmolLM2")
    for source in (".", "model.safetensors"):
        assert open_checkpoint(source).name == "SmolLM2"


def test_only_what_is_needed_is_downloaded() -> None:
    from huggingface_hub.utils import filter_repo_objects

    wanted = ["config.json", "model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    wanted += ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "chat_template.jinja"]
    other = ["pytorch_model.bin", "onnx/model.onnx", "onnx/config.json", "original/consolidated.safetensors"]
    other += ["consolidated.safetensors", "README.md", "model-Q4_K_M.gguf", "modeling_x.py", "picture.jpg"]
    kept = filter_repo_objects(wanted + other, allow_patterns=HUB_FILES, ignore_patterns=HUB_NOT)
    assert list(kept) == wanted


def test_tokenizer_and_vocabulary(tmp_path: Path) -> None:
    tokenizer = tokenizer_json(open_checkpoint(write_checkpoint(tmp_path)))
    check_tokenizer(tokenizer, 7)
    check_tokenizer(tokenizer, 100)  # padded embeddings are usual
    with pytest.raises(EyespotError, match="found 2 of 7 ids up to 6; expected ids below 5"):
        check_tokenizer(tokenizer, 5)
    for broken in (
        b"[]",
        b"{}",
        b'{"model": {"vocab": 3}}',
        b'{"model": {"vocab": {"a": "b"}}}',
        b'{"model": {"vocab": {"a": -1}}}',
    ):
        with pytest.raises(EyespotError, match=r"no vocabulary|not a number in range"):
            check_tokenizer(broken, 5)
    for name in ("vocab.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(EyespotError, match=r"no tokenizer; expected tokenizer.json, tokenizer.model, or vocab.json"):
        tokenizer_json(open_checkpoint(tmp_path))


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One random accident: flipped bytes, a cut, a repeat, or a number grown absurd."""
    kind = rng.randrange(5)
    at = rng.randrange(len(data) + 1)
    if kind == 0:
        damaged = bytearray(data or b"x")
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(min(len(damaged), 600))] = rng.randrange(256)
        return bytes(damaged)
    if kind == 1:
        return data[:at]
    if kind == 2:
        return data[:at] + data[max(0, at - rng.randint(1, 40)) :]
    if kind == 3:
        words = (b"{", b"]", b'"', b"\\ud800", b"\xff", b"\0", b"null", b"1e999", b"../", b"[" * 500, b'{"a":' * 300)
        return data[:at] + rng.choice(words) + data[at:]
    numbers = list(re.finditer(rb"\d+", data[:600]))
    if not numbers:
        return data[at:]
    spot = rng.choice(numbers)
    value = rng.choice([b"-1", b"0", b"4294967296", b"9" * 19, b"9" * 5000, b"1.5", b"true", b'"1"', b"[]"])
    return data[: spot.start()] + value + data[spot.end() :]


def test_only_eyespot_errors_escape(tmp_path: Path) -> None:
    """1,200 accidents to every file of a checkpoint. What still opens must be readable or refused in one line too."""
    rng = random.Random(20)
    write_checkpoint(tmp_path / "m", sharded=True)
    files = {path.name: path.read_bytes() for path in (tmp_path / "m").iterdir()}
    refused = lines = 0
    for _ in range(1200):
        name = rng.choice(sorted(files))
        (tmp_path / "m" / name).write_bytes(mutate(files[name], rng))
        try:
            checkpoint = open_checkpoint(tmp_path / "m")
            check_tokenizer(tokenizer_json(checkpoint), 7)
            for tensor in checkpoint.tensors:
                checkpoint.read(tensor)
                checkpoint.release(tensor)
        except EyespotError as error:
            refused += 1
            lines += str(error).count("\n")
        (tmp_path / "m" / name).write_bytes(files[name])
    assert 400 < refused < 1200
    assert lines == 0
