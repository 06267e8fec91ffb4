"""GGUF checkpoints: blocks decoded as the gguf package does, rows in Hugging Face's order, hostile files refused."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import random
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eyespot.checkpoint import check_tokenizer, open_checkpoint, tokenizer_json
from eyespot.checkpoint.gguf import BLOCKS
from eyespot.errors import EyespotError, UnsupportedModel

gguf = pytest.importorskip("gguf")

SIZES = {"block_count": 1, "embedding_length": 256, "feed_forward_length": 512, "context_length": 128}
HEADS = {"attention__head_count": 8, "attention__head_count_kv": 2, "attention__layer_norm_rms_epsilon": 1e-5}


def write_gguf(path: Path, tensors: dict[str, Any], arch: str = "llama", **keys: Any) -> Path:
    """A GGUF by the gguf package. Tensors: float arrays, or (bytes [rows, row bytes], block type). `__` means `.`."""
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (SIZES | HEADS | keys).items():
        top = key.startswith(("tokenizer__", "general__", "split__"))
        full = key.replace("__", ".") if top else f"{arch}.{key.replace('__', '.')}"
        if value is None:
            continue
        if isinstance(value, list):
            writer.add_array(full, value)
        else:
            kind = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            kind[type(value)](full, value)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[0], raw_dtype=gguf.GGMLQuantizationType[value[1]])
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def embedding(rows: int = 8) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((rows, 256)).astype(np.float32)


@pytest.mark.parametrize("kind", [block.name for block in BLOCKS.values()])
def test_every_block_format_row_by_row(tmp_path: Path, kind: str) -> None:
    """Row ranges against the package's own decoding of the whole tensor; formats it cannot write get random bytes."""
    rng = np.random.default_rng(4)
    values = rng.standard_normal((11, 512)).astype(np.float32)
    ggml = gguf.GGMLQuantizationType[kind]
    try:
        data = gguf.quantize(values, ggml)
    except NotImplementedError:
        size = 512 // gguf.GGML_QUANT_SIZES[ggml][0] * gguf.GGML_QUANT_SIZES[ggml][1]
        data = rng.integers(0, 0x3C, (11, size), dtype=np.uint8)  # any float16 in there is below one
    whole = gguf.dequantize(data, ggml)
    tensors = {"token_embd.weight": embedding(), "blk.0.ffn_up.weight": (data, kind)}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", tensors))
    name = "model.layers.0.mlp.up_proj.weight"
    assert checkpoint.tensors[name].shape == (11, 512)
    assert checkpoint.dtype(name) == kind
    for start, stop in ((0, None), (3, 8), (10, 11), (5, 5)):
        rows = checkpoint.read(name, start, stop)
        assert rows.dtype == np.float32
        np.testing.assert_array_equal(rows, whole[start:stop])
    checkpoint.release(name)
    np.testing.assert_array_equal(checkpoint.read(name, 2, 4), whole[2:4])


def to_pairs(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of a Hugging Face Llama."""
    return (
        weights.reshape(heads, 2, len(weights) // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)
    )


@pytest.mark.parametrize("arch", ["llama", "minicpm", "internlm2", "qwen2"])
def test_rows_of_q_and_k_come_back_in_hugging_face_order(tmp_path: Path, arch: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=40, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True,
    )  # fmt: skip
    state = {k: v.numpy() for k, v in LlamaForCausalLM(config).state_dict().items()}
    state = {k: v + np.arange(v.size, dtype=np.float32).reshape(v.shape) for k, v in state.items()}
    theirs = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    tensors = {}
    for name, value in state.items():
        heads = 4 if ".q_proj." in name else 2 if ".k_proj." in name and arch != "qwen2" else 0
        stored = to_pairs(value, heads) if heads and arch != "qwen2" else value
        tensors[theirs.get_name(name, (".weight", ".bias"))] = stored
    keys = {"block_count": 2, "embedding_length": 64, "attention__head_count": 4, "attention__head_count_kv": 2}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", tensors, arch, **{"feed_forward_length": 96} | keys))
    assert set(checkpoint.tensors) == set(state)
    for name, value in state.items():
        np.testing.assert_array_equal(checkpoint.read(name), value, err_msg=name)
        middle = len(value) // 3
        np.testing.assert_array_equal(checkpoint.read(name, middle, 2 * middle + 1), value[middle : 2 * middle + 1])


def test_config_of_a_llama(tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": embedding(),
        "output.weight": embedding(),
        "rope_freqs.weight": np.float32([1, 2, 8]),
    }
    keys = {"rope__freq_base": 5e5, "rope__dimension_count": 32, "tokenizer__ggml__eos_token_id": 7}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", tensors, **keys))
    assert checkpoint.format == "gguf"
    assert checkpoint.config == {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 8, "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 2,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "hidden_act": "silu",
        "tie_word_embeddings": False, "eos_token_id": 7, "head_dim": 32, "attention_bias": False, "mlp_bias": False,
        "rope_freqs": [1.0, 2.0, 8.0],
    }  # fmt: skip
    assert set(checkpoint.tensors) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert "tokenizer.json" not in checkpoint.files


ROPES = {
    "linear": ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, {"factor": 4.0}),
    "yarn": (
        {"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0, "rope__scaling__original_context_length": 64},
        {"factor": 2.0, "original_max_position_embeddings": 64},
    ),
}


@pytest.mark.parametrize("kind", ROPES)
def test_config_of_rope_scaling(tmp_path: Path, kind: str) -> None:
    keys, expected = ROPES[kind]
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", {"token_embd.weight": embedding()}, "qwen2", **keys))
    assert checkpoint.config["architectures"] == ["Qwen2ForCausalLM"]
    assert checkpoint.config["rope_scaling"] == {"type": kind, "rope_type": kind} | expected
    assert checkpoint.config["tie_word_embeddings"]


def test_config_and_names_of_a_phi3(tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": embedding(),
        "blk.0.attn_qkv.weight": embedding(384),
        "blk.0.ffn_up.weight": embedding(1024),
        "rope_factors_long.weight": np.float32([4, 5]),
        "rope_factors_short.weight": np.float32([1, 1.1]),
    }
    keys = {"rope__dimension_count": 24, "attention__sliding_window": 100, "rope__scaling__original_context_length": 64}
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", tensors, "phi3", **keys))
    layer = "model.layers.0"
    assert {f"{layer}.self_attn.qkv_proj.weight", f"{layer}.mlp.gate_up_proj.weight"} < set(checkpoint.tensors)
    np.testing.assert_array_equal(checkpoint.read(f"{layer}.self_attn.qkv_proj.weight"), embedding(384))
    config = checkpoint.config
    assert (config["partial_rotary_factor"], config["sliding_window"]) == (0.75, 100)
    assert config["original_max_position_embeddings"] == 64
    scaling = {"long_factor": [4.0, 5.0], "short_factor": [1.0, 1.1], "original_max_position_embeddings": 64}
    assert config["rope_scaling"] == {"type": "longrope", "rope_type": "longrope"} | scaling


@pytest.mark.parametrize("written", [True, False])
def test_scales_of_a_minicpm(tmp_path: Path, written: bool) -> None:
    """The converter writes derived scales; older files have none and mean MiniCPM-2B's."""
    derived = {"embedding_scale": 10.0, "residual_scale": 1.5 / 40**0.5, "logit_scale": 256 / 64}
    keys = {"block_count": 40} | (derived if written else {})
    checkpoint = open_checkpoint(write_gguf(tmp_path / "m.gguf", {"token_embd.weight": embedding()}, "minicpm", **keys))
    scales = [checkpoint.config[key] for key in ("scale_emb", "scale_depth", "dim_model_base")]
    assert scales == ([10.0, 1.5, 64] if written else [12.0, 1.4, 256])
    assert checkpoint.config["architectures"] == ["MiniCPMForCausalLM"]


def test_a_directory_with_one_gguf(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", {"token_embd.weight": embedding()})
    assert open_checkpoint(tmp_path).format == "gguf"
    write_gguf(tmp_path / "b.gguf", {"token_embd.weight": embedding()})
    with pytest.raises(EyespotError, match=r"several GGUF files; found a.gguf, b.gguf; expected the path of one"):
        open_checkpoint(tmp_path)


def test_other_architectures_are_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"token_embd.weight": embedding()}, "mamba")
    with pytest.raises(UnsupportedModel, match="found mamba; expected llama, qwen2, phi3, minicpm, internlm2"):
        open_checkpoint(path)
    path = write_gguf(tmp_path / "e.gguf", {"token_embd.weight": embedding()}, expert_count=8)
    with pytest.raises(UnsupportedModel, match="mixture of experts"):
        open_checkpoint(path)


def test_all_missing_keys_are_listed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"w": embedding()}, block_count=None, context_length="long")
    with pytest.raises(
        EyespotError, match=r"3 faults: token_embd.weight is missing.*block_count is missing.*not an int"
    ):
        open_checkpoint(path)


def test_quantized_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write_gguf(tmp_path / "plain.gguf", {"token_embd.weight": embedding()})
    data = gguf.quantize(embedding(), gguf.GGMLQuantizationType.Q8_0)
    path = write_gguf(tmp_path / "q.gguf", {"token_embd.weight": (data, "Q8_0")})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert open_checkpoint(plain).read("model.embed_tokens.weight").shape == (8, 256)
    with pytest.raises(EyespotError, match=r"pip install 'eyespot\[gguf\]'"):
        open_checkpoint(path)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str) -> bytes:
    return u64(len(value.encode())) + value.encode()


def tensor(dims: tuple[int, ...], kind: int = 0, offset: int = 0, name: str = "t") -> bytes:
    return text(name) + struct.pack("<I", len(dims)) + b"".join(map(u64, dims)) + struct.pack("<IQ", kind, offset)


def header(tensors: int, keys: int, body: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + body


HOSTILE = {
    "cut at once": (b"GGUF", "not a GGUF file"),
    "version 1": (header(0, 0, version=1), "GGUF version 2 or 3"),
    "big-endian": (header(0, 0, version=3 << 24), "a big-endian file"),
    "tensors without end": (header(2**63, 0), "absurd counts"),
    "keys without end": (header(0, 2**64 - 1), "absurd counts"),
    "no tensors after all": (header(9, 0), "runs past its end"),
    "name without end": (header(1, 0, u64(2**63)), "a name is too long"),
    "text without end": (header(0, 1, text("k") + struct.pack("<IQ", 8, 2**20)), "runs past its end"),
    "array without end": (header(0, 1, text("k") + struct.pack("<IIQ", 9, 4, 2**62)), "runs past its end"),
    "texts without end": (header(0, 1, text("k") + struct.pack("<IIQ", 9, 8, 2**62)), "'k' is a bad array"),
    "array of arrays": (header(0, 1, text("k") + struct.pack("<IIQ", 9, 9, 1)), "'k' is a bad array"),
    "unknown type": (header(0, 1, text("k") + struct.pack("<I", 77)), "'k' has an unknown type; found 77"),
    "key twice": (header(0, 2, (text("k") + struct.pack("<IB", 0, 1)) * 2), "duplicate key 'k'"),
    "not UTF-8": (header(0, 1, u64(2) + b"\xff\xfe" + bytes(8)), "not UTF-8"),
    "bad alignment": (header(0, 1, text("general.alignment") + struct.pack("<II", 4, 48)), "bad general.alignment"),
    "rank 0": (header(1, 0, tensor(())), "bad rank; found 0"),
    "rank 2**31": (header(1, 0, text("t") + struct.pack("<I", 2**31)), "bad rank"),
    "shape of 2**63": (header(1, 0, tensor((2**63, 2))), "bad shape"),
    "product above 64 bits": (header(1, 0, tensor((2**39, 2**39, 2**39))), "bad shape"),
    "no rows": (header(1, 0, tensor((32, 0))), "bad shape"),
    "unknown block": (header(1, 0, tensor((32, 1), 99)), "unknown block format; found ggml type 99"),
    "rows that split blocks": (header(1, 0, tensor((40, 2), 8)), "does not fit Q8_0 blocks"),
    "offset past the end": (header(1, 0, tensor((32, 1), 0, 2**63)), "lies past the end"),
    "data cut off": (header(1, 0, tensor((32, 8))), "lies past the end of the file"),
    "tensor twice": (header(2, 0, tensor((32,)) * 2), "tensor 't' is there twice"),
    "overlap": (header(2, 0, tensor((32,), 0, 0, "a") + tensor((32,), 0, 32, "b") + bytes(600)), "overlaps another"),
    "no architecture": (header(0, 0), "no mapping for this architecture"),
}  # fmt: skip


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_headers_are_named(tmp_path: Path, fault: str) -> None:
    data, message = HOSTILE[fault]
    (tmp_path / "m.gguf").write_bytes(data)
    with pytest.raises(EyespotError, match=message) as caught:
        open_checkpoint(tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)


def test_one_part_of_several(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {"token_embd.weight": embedding()}, split__count=3)
    with pytest.raises(EyespotError, match=r"one part of several; expected a single file"):
        open_checkpoint(path)


def test_heads_that_do_not_divide(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": embedding(), "blk.0.attn_q.weight": embedding(20)}
    with pytest.raises(EyespotError, match=r"'model.layers.0.self_attn.q_proj.weight' does not split into heads"):
        open_checkpoint(write_gguf(tmp_path / "m.gguf", tensors))


def test_only_eyespot_errors_escape(tmp_path: Path) -> None:
    """600 accidents to a tiny GGUF with a tokenizer, most of them in its header."""
    rng = random.Random(6)
    vocabulary = {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__tokens": ["<unk>", "<s>", "</s>", "a", "b", "ab", "▁", "▁ab"],
        "tokenizer__ggml__scores": [0.0, 0.0, 0.0, -3.0, -4.0, -1.0, -5.0, -2.0],
        "tokenizer__ggml__token_type": [2, 3, 3, 1, 1, 1, 1, 1],
        "tokenizer__chat_template": "{{ messages }}",
        "tokenizer__ggml__bos_token_id": 1,
    }
    q = gguf.quantize(embedding(32), gguf.GGMLQuantizationType.Q4_0)
    tensors = {
        "token_embd.weight": embedding(),
        "blk.0.attn_q.weight": (q, "Q4_0"),
        "rope_freqs.weight": np.ones(4, np.float32),
    }
    path = write_gguf(tmp_path / "m.gguf", tensors, **vocabulary)
    whole = path.read_bytes()
    size = whole.index(b"rope_freqs.weight") + 60
    check_tokenizer(tokenizer_json(open_checkpoint(path)), 8)
    refused = lines = 0
    for _ in range(600):
        data = bytearray(whole)
        kind = rng.randrange(4)
        at = rng.randrange(size)
        if kind == 0:
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(size)] = rng.randrange(256)
        elif kind == 1:
            del data[rng.choice([at, rng.randrange(len(data))]) :]
        elif kind == 2:
            data[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
        else:
            data[at:at] = data[max(0, at - rng.randint(1, 30)) : at]
        path.write_bytes(data)
        try:
            checkpoint = open_checkpoint(path)
            for name in checkpoint.tensors:
                checkpoint.read(name)
                checkpoint.release(name)
            check_tokenizer(tokenizer_json(checkpoint), 8)
        except EyespotError as error:
            refused += 1
            lines += str(error).count("\n")
    assert 200 < refused < 600
    assert lines == 0


def test_no_package_for_plain_files(tmp_path: Path) -> None:
    """Reading float GGUFs and their headers leaves the gguf package alone."""
    path = write_gguf(tmp_path / "m.gguf", {"token_embd.weight": embedding()})
    code = """
import sys
from eyespot.checkpoint import open_checkpoint
open_checkpoint(sys.argv[1]).read("model.embed_tokens.weight")
print("gguf" in sys.modules)
"""
    env = {"PYTHONPATH": str(Path(__file__).parent.parent / "src")}
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=env, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repos: dict[str, dict[str, bytes]]) -> Iterator[str]:
    """A hub on this machine: its address. Speaks as much of the protocol as huggingface_hub asks for."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "models"] and (files := repos.get("/".join(parts[2:4]))) is not None:
                names = [{"rfilename": n} for n in files]
                tree = [{"type": "file", "path": n, "size": len(d), "oid": COMMIT} for n, d in files.items()]
                info = {"id": "/".join(parts[2:4]), "sha": COMMIT, "siblings": names}
                self.reply(json.dumps(tree if parts[4] == "tree" else info).encode())
            elif parts[2:3] == ["resolve"]:
                self.reply(repos.get("/".join(parts[:2]), {}).get("/".join(parts[4:])))
            else:
                self.reply(None)

        do_HEAD = do_GET

        def reply(self, data: bytes | None) -> None:
            self.send_response(404 if data is None else 200)
            if data is None:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(data or b"").hexdigest()}"')
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data or b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_hub_repositories_of_gguf_alone(tmp_path: Path) -> None:
    """The only GGUF file, or the one named; without a name the choice is the user's. Then once more from the cache."""
    data = write_gguf(tmp_path / "m.gguf", {"token_embd.weight": embedding()}).read_bytes()
    repos = {
        "org/one": {"README.md": b"#", "config.json": b"{}", "one-Q8_0.gguf": data},
        "org/bare": {"bare.gguf": data},
        "org/two": {"two-Q4.gguf": b"not asked for", "two-Q8.gguf": data, "deep/two-F16.gguf": data},
        "org/none": {"README.md": b"#", "pytorch_model.bin": b""},
    }
    code = """
import sys
from eyespot.checkpoint import open_checkpoint
from eyespot.errors import EyespotError
for source in sys.argv[1:]:
    try:
        checkpoint = open_checkpoint(source)
        print(checkpoint.format, checkpoint.name, len(checkpoint.tensors))
    except EyespotError as error:
        print(error.exit_code, error)
"""

    def opened(*sources: str, **env: str) -> list[str]:
        env = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1", **env}
        env["PYTHONPATH"] = str(Path(__file__).parent.parent / "src")
        command = [sys.executable, "-c", code, *sources]
        done = subprocess.run(command, env=os.environ | env, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    sources = ["org/one", "org/bare@v1", "org/two:two-Q8.gguf", "org/two@v1:deep/two-F16.gguf"]
    found = [
        f"gguf org/one@{COMMIT}:one-Q8_0.gguf 1",
        "gguf org/bare@v1:bare.gguf 1",
        f"gguf org/two@{COMMIT}:two-Q8.gguf 1",
        "gguf org/two@v1:deep/two-F16.gguf 1",
    ]
    with hub(repos) as address:
        lines = opened(*sources, "org/two@v1", "org/two:six.gguf", "org/none", "org/two:../m.gguf", HF_ENDPOINT=address)
    assert lines[:4] == found
    assert lines[4] == (
        "2 org/two: several GGUF files and no safetensors; found deep/two-F16.gguf, two-Q4.gguf, two-Q8.gguf; "
        "expected one of them: org/two@v1:deep/two-F16.gguf"
    )
    assert lines[5].startswith("2 org/two:six.gguf: no such path, and the hub does not give it; found ")
    assert lines[6].startswith("1 org/none: no weights; found README.md, pytorch_model.bin; expected model.safetensors")
    assert lines[6].endswith("the weights are pickles, which eyespot does not open")
    assert lines[7].startswith("2 org/two:../m.gguf: no such file or directory")
    assert len(lines) == 8
    assert opened(*sources, HF_HUB_OFFLINE="1") == found
