"""Every family against transformers at tiny size: logits, greedy decoding, features; then hostile and real configs."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2.sandbox
import numpy as np
import pytest

import models
import shapes
from eyespot import families
from eyespot.errors import EyespotError, UnsupportedModel, UsageError
from eyespot.families.config import Fields, Findings
from eyespot.families.rope import read_rope
from eyespot.program import Rows, Weight, dump
from eyespot.program.reference import Reference
from eyespot.program.transforms import materialize, resize_position, source_faults

SEED = int.from_bytes(os.urandom(3), "little")  # new weights every run; failures print it
STEPS = 32
LIMIT = 1e-4  # of the largest logit


class Loaded:
    """A checkpoint directory built by its family and run by the reference."""

    def __init__(self, directory: Path, edit: Callable[[dict[str, Any]], None] | None = None, **options: Any) -> None:
        from safetensors.numpy import load_file

        self.config = json.loads((directory / "config.json").read_text())
        if edit is not None:
            edit(self.config)
        self.tensors = load_file(directory / "model.safetensors")
        self.shapes = {name: array.shape for name, array in self.tensors.items()}
        self.built = families.build(self.config, self.shapes, **{"ctx_size": 256, **options})
        self.weights = self.built.program.weights

    def read(self, name: str, start: int, stop: int | None) -> np.ndarray:
        return self.tensors[name][start:stop]

    def reference(self) -> Reference:
        faults = source_faults(self.weights.values(), self.shapes)
        assert not faults, faults
        return Reference(self.built.program, lambda name: materialize(self.weights[name], self.read))


def prompt(length: int = 20) -> np.ndarray:
    return np.random.default_rng(SEED).integers(0, 384, length)


def assert_near(found: np.ndarray, truth: np.ndarray, what: str) -> None:
    error = float(np.abs(found - truth).max() / np.abs(truth).max())
    assert error <= LIMIT, f"{what} differ by {error:.2e} of the largest (seed {SEED})"


def assert_same_model(reference: Reference, model: Any, tokens: np.ndarray, pixels: np.ndarray | None = None) -> None:
    """All prompt logits, then STEPS greedy tokens with both caches; a near tie may fall either way.

    The image token is never chosen: it needs a feature row, and only a random model would say it.
    """
    import torch

    allowed = np.arange(reference.program.info.vocab_size) != reference.program.info.image_token_id
    extra = {} if pixels is None else {"pixel_values": torch.tensor(pixels)}
    features = None if pixels is None else reference.encode(pixels)
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens)[None], use_cache=True, **extra)
        assert_near(reference.prefill(tokens, features, want=len(tokens)), out.logits[0].numpy(), "prompt logits")
        truth = out.logits[0, -1].numpy()
        for step in range(STEPS):
            token = int(np.where(allowed, truth, -np.inf).argmax())
            out = model(input_ids=torch.tensor([[token]]), past_key_values=out.past_key_values, use_cache=True)
            found, truth = reference.decode(token), out.logits[0, -1].numpy()
            assert_near(found, truth, f"logits of step {step}")
            chosen = [int(np.where(allowed, logits, -np.inf).argmax()) for logits in (found, truth)]
            tie = abs(float(truth[chosen[0]] - truth[chosen[1]])) <= LIMIT * np.abs(truth).max()
            assert chosen[0] == chosen[1] or tie, f"step {step} chooses another token (seed {SEED})"


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4], "long_factor": [1.5, 2.0, 4.0, 8.0, 16.0],
}  # fmt: skip
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen2-untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2-window": ("qwen2", {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1}),
    "qwen2-yarn": ("qwen2", {"rope_parameters": YARN}),
    "llama": ("llama", {}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-head_dim": ("llama", {"head_dim": 16, "num_key_value_heads": 3}),
    "llama-multihead": ("llama", {"num_key_value_heads": 6}),
    "llama-linear": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}}),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
    "llama-llama3": ("llama", {"rope_parameters": LLAMA3}),
    "internlm2": ("internlm2", {}),
    "internlm2-bias": ("internlm2", {"bias": True, "num_key_value_heads": 3}),
    "internlm2-dynamic": ("internlm2", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}}),
    "phi3": ("phi3", {}),
    "phi3-window": ("phi3", {"sliding_window": 9}),
    "phi3-partial": ("phi3", {"num_attention_heads": 5, "num_key_value_heads": 5,
                              "partial_rotary_factor": 0.5}),
    "phi3-short": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256}),
    "phi3-long": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 16}),
    "minicpm": ("minicpm", {}),
    "minicpm-untied": ("minicpm", {"tie_word_embeddings": False}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_language_model_equals_transformers(case: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    model = models.TINY[family](tmp_path, SEED, **copy.deepcopy(settings))
    loaded = Loaded(tmp_path)
    assert loaded.built.program.family == family
    assert loaded.built.unknown_keys == ()
    assert loaded.built.eos[0] == models.token_ids()["<|im_end|>"]
    assert_same_model(loaded.reference(), model, prompt())


@pytest.mark.parametrize("case", ["qwen2-yarn", "llama-linear", "llama-dynamic", "llama-llama3", "phi3-long"])
def test_old_rope_keys_mean_the_same(case: str, tmp_path: Path) -> None:
    family, settings = CASES[case]
    models.TINY[family](tmp_path, SEED, **copy.deepcopy(settings))

    def old(config: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        rope.pop("partial_rotary_factor", None)
        kind = rope.pop("rope_type")
        config["rope_scaling"] = {"type": {"longrope": "su"}.get(kind, kind), **rope}

    assert Loaded(tmp_path, old).built.program.constants == Loaded(tmp_path).built.program.constants


ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e6},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "llama3": {**LLAMA3, "rope_theta": 5e5, "original_max_position_embeddings": 8192},
    "yarn": {**YARN, "original_max_position_embeddings": 32768},
    "yarn-mscale": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0, "beta_fast": 24.0, "truncate": False},
    "longrope": {
        "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096,
        "short_factor": [1.0 + i / 9 for i in range(32)], "long_factor": [1.0 + i for i in range(32)],
    },
}  # fmt: skip


@pytest.mark.parametrize("ctx_size", [2048, 32768, 60000])
@pytest.mark.parametrize("name", ROPES)
def test_rope_rules_equal_transformers(name: str, ctx_size: int) -> None:
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = ROPES[name]
    longest = 131072 if name in ("llama3", "longrope") else 32768
    config = transformers.LlamaConfig(
        hidden_size=512, num_attention_heads=8, max_position_embeddings=longest, rope_parameters=dict(parameters)
    )
    fields = Fields({"rope_parameters": parameters}, Findings("a config"))
    rope = read_rope(fields, 64, longest, ctx_size)
    fields.findings.raise_if_any()
    assert fields.unknown() == ()
    if parameters["rope_type"] == "default":
        truth, factor = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding.compute_default_rope_parameters(
            config
        )
    else:
        truth, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, seq_len=ctx_size)
    np.testing.assert_allclose(rope.inv_freq, truth.numpy(), rtol=1e-6)
    assert math.isclose(rope.factor, factor, rel_tol=1e-6)


def test_gguf_rope_divisors_replace_the_rule(tmp_path: Path) -> None:
    """GGUF carries Llama 3's rule as finished divisors: the two spellings must meet."""
    models.tiny_llama(tmp_path, SEED, rope_parameters=dict(LLAMA3))
    plain = Loaded(tmp_path, lambda c: c.update(rope_parameters={"rope_type": "default", "rope_theta": 500.0}))
    scaled = Loaded(tmp_path).built.program.constants["rope.inv_freq"]
    divisors = [p / s for p, s in zip(plain.built.program.constants["rope.inv_freq"], scaled, strict=True)]

    def gguf(config: dict[str, Any]) -> None:
        del config["rope_parameters"]
        config.update(rope_theta=500.0, rope_freqs=divisors)

    np.testing.assert_allclose(Loaded(tmp_path, gguf).built.program.constants["rope.inv_freq"], scaled, rtol=1e-6)


def picture_prompt(tiles: int, tokens_per_tile: int) -> np.ndarray:
    image = models.token_ids(True)["<IMG_CONTEXT>"]
    return np.concatenate([prompt(5), np.full(tiles * tokens_per_tile, image), prompt(9)[::-1]])


def pixels(tiles: int, size: int) -> np.ndarray:
    return np.random.default_rng(SEED).standard_normal((tiles, 3, size, size)).astype(np.float32)


EYES: dict[str, Callable[[Path], Any]] = {
    "hf-qwen2": lambda d: models.tiny_internvl_hf(d, SEED),
    "hf-early-names-untied": lambda d: models.tiny_internvl_hf(d, SEED, early_names=True, tie=False),
    "hf-llama": lambda d: models.tiny_internvl_hf(d, SEED, llm="llama", tie=False),
    "chat-qwen2": lambda d: models.tiny_internvl(d, SEED),
    "chat-qwen2-untied": lambda d: models.tiny_internvl(d, SEED, tie=False, template="internvl2_5"),
    "chat-llama": lambda d: models.tiny_internvl(d, SEED, llm="llama", tie=False),
    "chat-internlm2": lambda d: models.tiny_internvl(d, SEED, llm="internlm2", tie=False, template="internlm2-chat"),
    "chat-phi3": lambda d: models.tiny_internvl(d, SEED, llm="phi3", tie=False, template="phi3-chat"),
    "chat-no-qkv-bias": lambda d: models.tiny_internvl(d, SEED, vision={"attention_bias": False}),
}


@pytest.mark.parametrize("case", EYES)
def test_internvl_equals_transformers(case: str, tmp_path: Path) -> None:
    import torch

    model = EYES[case](tmp_path)
    loaded = Loaded(tmp_path)
    built = loaded.built
    assert built.unknown_keys == ()
    assert built.program.info.image_token_id == models.token_ids(True)["<IMG_CONTEXT>"]
    assert built.image is not None
    assert built.image["tokens_per_tile"] == built.program.info.tile_tokens == 4
    tiles = pixels(3, 56)
    reference = loaded.reference()
    with torch.no_grad():
        truth = model.model.get_image_features(torch.tensor(tiles)).pooler_output.numpy()
    assert_near(reference.encode(tiles).reshape(truth.shape), truth, "features")
    assert_same_model(reference, model, picture_prompt(3, 4), tiles)
    assert_same_model(loaded.reference(), model, prompt())


@pytest.mark.parametrize("size", [28, 84, 112])
def test_another_picture_size_resizes_the_position_table(size: int, tmp_path: Path) -> None:
    model = models.tiny_internvl(tmp_path, SEED)
    loaded = Loaded(tmp_path, image_size=size)
    info = loaded.built.program.info
    assert (info.tile_size, info.tile_tokens) == (size, (size // 28) ** 2)
    assert_same_model(loaded.reference(), model, picture_prompt(2, info.tile_tokens), pixels(2, size))


@pytest.mark.parametrize("layer", [-2, 1])
def test_select_layer(layer: int, tmp_path: Path) -> None:
    import torch

    model = models.tiny_internvl(tmp_path, SEED)
    loaded = Loaded(tmp_path, lambda c: c.update(select_layer=layer))
    with torch.no_grad():
        truth = model.model.get_image_features(torch.tensor(pixels(2, 56)), vision_feature_layer=layer)
    assert_near(loaded.reference().encode(pixels(2, 56)).reshape(2, 4, -1), truth.pooler_output.numpy(), "features")
    left = set(loaded.shapes) - {rows.tensor for w in loaded.weights.values() for rows in w.sources}
    assert left
    assert all(name.startswith("vision_model.encoder.layers.1.") for name in left)


def test_resize_position_equals_torch() -> None:
    import torch

    rng = np.random.default_rng(SEED)
    for old, new in [(4, 6), (4, 3), (32, 16), (16, 32), (5, 1), (1, 4), (7, 7)]:
        table = rng.standard_normal((1, 1 + old * old, 8)).astype(np.float32)
        grid = torch.tensor(table[0, 1:]).reshape(1, old, old, 8).permute(0, 3, 1, 2)
        truth = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
        found = resize_position(table, new)
        np.testing.assert_array_equal(found[0], table[0, 0])
        np.testing.assert_allclose(found[1:], truth.permute(0, 2, 3, 1).reshape(-1, 8).numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("family", ["qwen2", "minicpm", "internvl", "internvl_hf"])
def test_tie_trap(family: str, tmp_path: Path) -> None:
    """A head in the file counts even when the config says tied; a missing one is a fault when it says untied."""
    models.TINY[family](tmp_path, SEED)
    tied = Loaded(tmp_path)
    name = next(n for n in tied.weights if n.endswith("lm_head.weight"))
    source = tied.weights[name].sources[0].tensor
    assert source.endswith("embed_tokens.weight")

    head = "lm_head.weight" if family == "internvl_hf" else name
    with_head = families.build(tied.config, {**tied.shapes, head: tied.shapes[source]})
    assert with_head.program.weights[name].sources == (Rows(head),)

    config = copy.deepcopy(tied.config)
    for level in (config, *(v for v in config.values() if isinstance(v, dict))):
        level["tie_word_embeddings"] = False
    untied = families.build(config, tied.shapes)
    assert source_faults(untied.program.weights.values(), tied.shapes) == [f"'{head}' is missing"]


@pytest.mark.parametrize("family", models.TINY)
def test_any_rows_of_a_weight(family: str, tmp_path: Path) -> None:
    models.TINY[family](tmp_path, SEED)
    loaded, rng = Loaded(tmp_path), random.Random(SEED)
    asked: list[int] = []

    def read(name: str, start: int, stop: int | None) -> np.ndarray:
        rows = loaded.read(name, start, stop)
        asked.append(len(rows))
        return rows

    for weight in loaded.weights.values():
        whole = materialize(weight, loaded.read)
        assert whole.shape == weight.shape
        assert whole.dtype == np.float32
        start, stop = sorted(rng.randint(0, weight.shape[0]) for _ in range(2))
        asked.clear()
        np.testing.assert_array_equal(materialize(weight, read, start, stop), whole[start:stop])
        assert weight.transform or sum(asked) == stop - start, "reads more rows than were asked for"


def test_source_faults_are_all_listed(tmp_path: Path) -> None:
    models.tiny_internvl(tmp_path, SEED, llm="internlm2", tie=False)
    loaded = Loaded(tmp_path)
    shapes_now = dict(loaded.shapes)
    changes = {
        "language_model.model.layers.0.attention.wqkv.weight": (101, 60),  # a row that nobody reads
        "language_model.model.layers.1.feed_forward.w1.weight": (99, 60),
        "language_model.model.norm.weight": (61,),
        "vision_model.embeddings.position_embedding": (1, 18, 36),
        "vision_model.encoder.layers.0.attn.qkv.bias": (107,),
    }
    shapes_now.update(changes)
    del shapes_now["mlp1.3.bias"]
    faults = source_faults(loaded.weights.values(), shapes_now)
    for name in (*changes, "mlp1.3.bias"):
        assert sum(f"'{name}'" in fault for fault in faults) >= 1, (name, faults)
    assert all(any(f"'{n}'" in fault for n in (*changes, "mlp1.3.bias")) for fault in faults), faults


def test_materialize_refuses_rows_that_are_not_there() -> None:
    weight = Weight("w", (4, 2), "p", (Rows("a", 0, 3), Rows("b", 1, 2)))
    tensors = {"a": np.arange(6.0).reshape(3, 2), "b": np.arange(4.0).reshape(2, 2)}
    rows = materialize(weight, lambda name, start, stop: tensors[name][start:stop], 2, 4)
    np.testing.assert_array_equal(rows, [[4, 5], [2, 3]])
    for start, stop in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(EyespotError, match="no such rows"):
            materialize(weight, lambda name, start, stop: tensors[name][start:stop], start, stop)
    with pytest.raises(EyespotError, match="wrong size"):
        materialize(weight, lambda name, start, stop: tensors[name][start : start + 1])


# Real shapes: tests/shapes.py spells the tensors out on its own.


def test_internvl2_1b_at_its_real_shapes() -> None:
    tensors = shapes.internvl_shapes(shapes.INTERNVL2_1B)
    built = families.build(shapes.INTERNVL2_1B, tensors, ctx_size=4096)
    info = built.program.info
    assert source_faults(built.program.weights.values(), tensors) == []
    assert built.unknown_keys == ()
    assert (info.image_token_id, info.tile_size, info.tile_tokens, info.vocab_size) == (151648, 448, 256, 151655)
    assert built.eos == (151645,)
    eyes = sum(math.prod(w.shape) for w in built.program.weights.values() if w.name.startswith("vision_model."))
    assert eyes == 304_012_288
    assert built.image == {
        "rule": "internvl", "size": 448, "min_tiles": 1, "max_tiles": 12, "thumbnail": True,
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "resample": "bicubic", "tokens_per_tile": 256,
        "placeholder": "<image>", "before": "<img>", "token": "<IMG_CONTEXT>", "after": "</img>",
    }  # fmt: skip
    used = {rows.tensor for w in built.program.weights.values() for rows in w.sources}
    assert used == set(tensors)
    assert built.program.parts() == ["vision", "embed_tokens", *(f"layer_{n:02d}" for n in range(24)), "post"]
    assert len(dump(built.program).splitlines()) < 90  # equal layers are folded


@pytest.mark.parametrize("config", [shapes.QWEN2_05B, shapes.LLAMA3_8B], ids=["qwen2-0.5b", "llama3-8b"])
def test_real_language_models(config: dict[str, Any]) -> None:
    tensors = shapes.llm_shapes(config)
    built = families.build(config, tensors)
    assert source_faults(built.program.weights.values(), tensors) == []
    assert {rows.tensor for w in built.program.weights.values() for rows in w.sources} == set(tensors)


def test_image_token_id(tmp_path: Path) -> None:
    """The tokenizer's word first, then the config's, then the order of the added tokens."""
    models.tiny_internvl(tmp_path, SEED)
    assert Loaded(tmp_path).built.program.info.image_token_id == 389
    by_config = Loaded(tmp_path, lambda c: c.update(img_context_token_id=390))
    assert by_config.built.program.info.image_token_id == 390
    both = Loaded(tmp_path, lambda c: c.update(img_context_token_id=390), token_ids={"<IMG_CONTEXT>": 391})
    assert both.built.program.info.image_token_id == 391
    with pytest.raises(EyespotError, match="vocabulary of 396"):
        Loaded(tmp_path, token_ids={"<IMG_CONTEXT>": 396})


# Prompts.


def render(template: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    """As transformers renders, and as plain Jinja does: a family's template must not depend on which."""
    texts = set()
    for trim in (True, False):
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim)
        texts.add(environment.from_string(template).render(messages=messages, bos_token="<s>", **variables))
    assert len(texts) == 1
    return texts.pop()


SYSTEM_1 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
ASK = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
PROMPTS = {
    "Hermes-2": f"<|im_start|>system\n{SYSTEM_1}<|im_end|><|im_start|>user\n<image>\nWhat?<|im_end|>"
    "<|im_start|>assistant\n",
    "internvl2_5": f"<|im_start|>system\n{SYSTEM_2_5}<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n"
    "<|im_start|>assistant\n",
    "internlm2-chat": f"<s><|im_start|>system\n{SYSTEM_1}<|im_end|><|im_start|>user\n<image>\nWhat?<|im_end|>"
    "<|im_start|>assistant\n",
    "phi3-chat": f"<s><|system|>\n{SYSTEM_1}<|end|><|user|>\n<image>\nWhat?<|end|><|assistant|>\n",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_internvl_conversations(name: str, tmp_path: Path) -> None:
    models.tiny_internvl(tmp_path, SEED, template=name)
    built = Loaded(tmp_path).built
    assert built.template_wins
    template = built.chat_template
    assert template is not None
    assert render(template, ASK, add_generation_prompt=True) == PROMPTS[name]
    closed = render(template, [*ASK, {"role": "assistant", "content": "It's a cat."}])
    assert closed.startswith(PROMPTS[name] + "It's a cat.")
    assert closed.endswith(("<|im_end|>", "<|end|>", "<|im_end|>\n"))


def test_conversation_variants(tmp_path: Path) -> None:
    models.tiny_internvl(tmp_path, SEED)
    template = Loaded(tmp_path).built.chat_template
    assert template is not None
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert render(template, own) == "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHi<|im_end|>"
    two = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "or "}, {"type": "image"}]}]
    assert "user\n<image>\nor <image>\n<|im_end|>" in render(template, two)
    said = Loaded(tmp_path, lambda c: c.update(system_message="It's {{ odd }}\\n\n{% x %}")).built.chat_template
    assert said is not None
    assert render(said, ASK).startswith("<|im_start|>system\nIt's {{ odd }}\\n\n{% x %}<|im_end|><|im_start|>user\n")


def test_plain_templates(tmp_path: Path) -> None:
    asked = [{"role": "user", "content": "Hi"}]
    expected = {
        "qwen2": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n",
        "internlm2": "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        "phi3": "<|user|>\nHi<|end|>\n<|assistant|>\n",
        "minicpm": "<s><用户>Hi<AI>",
        "llama": None,
    }
    for family, text in expected.items():
        models.TINY[family](tmp_path, SEED)
        built = Loaded(tmp_path).built
        assert not built.template_wins
        got = built.chat_template and render(built.chat_template, asked, add_generation_prompt=True)
        assert got == text


def test_hf_template_is_transformers_own_shape(tmp_path: Path) -> None:
    models.tiny_internvl_hf(tmp_path, SEED)
    built = Loaded(tmp_path).built
    assert built.chat_template is not None
    assert not built.template_wins
    assert built.image is not None
    assert built.image["placeholder"] == "<IMG_CONTEXT>"
    expected = "<|im_start|>user\n<IMG_CONTEXT>\nWhat?<|im_end|>\n<|im_start|>assistant\n"
    assert render(built.chat_template, ASK, add_generation_prompt=True) == expected


def test_end_tokens_come_from_the_tokenizer_too(tmp_path: Path) -> None:
    models.tiny_phi3(tmp_path, SEED)
    assert Loaded(tmp_path, token_ids={"<|end|>": 7, "<|system|>": 8}).built.eos == (386, 7)


# Refusals.


def test_unsupported_architectures_are_named() -> None:
    for config, word in (
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"model_type": "mamba"}, "mamba"),
        ({"architectures": []}, "neither"),
        ({"architectures": [["x"]]}, "neither"),
    ):
        with pytest.raises(UnsupportedModel, match=word) as caught:
            families.build(config, {})
        assert caught.value.exit_code == 3
        assert all(name in str(caught.value) for name in families.supported())
    inner = {**shapes.INTERNVL2_1B, "llm_config": {**shapes.QWEN2_05B, "architectures": ["MambaForCausalLM"]}}
    with pytest.raises(UnsupportedModel, match="MambaForCausalLM"):
        families.build(inner, {})


def edited(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy with changes; `vision_config__x` reaches inside."""
    config = copy.deepcopy(config)
    for key, value in changes.items():
        *path, last = key.split("__")
        target = config
        for step in path:
            target = target[step]
        target[last] = value
    return config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_config__norm_type": "rms_norm", "vision_config__qk_normalization": True}, ("norm_type", "qk_norm")),
        ({"ps_version": "v1"}, ("ps_version", "v2")),
        ({"template": "vicuna"}, ("vicuna", "Hermes-2")),
        ({"vision_config__hidden_act": "quick_gelu"}, ("hidden_act", "quick_gelu")),
        ({"llm_config__hidden_act": "relu"}, ("llm_config.hidden_act", "relu")),
        ({"llm_config__rope_scaling": {"type": "mrope", "mrope_section": [1]}}, ("rope_scaling.type", "mrope")),
        ({"use_llm_lora": 16}, ("use_llm_lora",)),
    ],
)
def test_what_is_refused_says_so(changes: dict[str, Any], words: tuple[str, ...]) -> None:
    config = edited(shapes.INTERNVL2_1B, **changes)
    with pytest.raises(UnsupportedModel) as caught:
        families.build(config, shapes.internvl_shapes(shapes.INTERNVL2_1B))
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_are_listed_together() -> None:
    config = edited(
        shapes.INTERNVL2_1B,
        llm_config__hidden_size=-1,
        llm_config__num_hidden_layers=10**30,
        llm_config__vocab_size="many",
        vision_config__num_attention_heads=True,
        vision_config__layer_norm_eps=float("nan"),
        select_layer=99,
    )
    del config["llm_config"]["rms_norm_eps"]
    with pytest.raises(EyespotError) as caught:
        families.build(config, {})
    keys = "hidden_size num_hidden_layers vocab_size num_attention_heads layer_norm_eps rms_norm_eps select_layer"
    for key in keys.split():
        assert key in str(caught.value), key
    assert type(caught.value) is EyespotError


def test_sizes_asked_for_that_do_not_fit() -> None:
    tensors = shapes.internvl_shapes(shapes.INTERNVL2_1B)
    for size in (0, -28, 447, 14, 1 << 40):
        with pytest.raises(UsageError, match="multiple of 28"):
            families.build(shapes.INTERNVL2_1B, tensors, image_size=size)
    for ctx in (0, -1, 32769):
        with pytest.raises(UsageError, match=r"1\.\.32768"):
            families.build(shapes.INTERNVL2_1B, tensors, ctx_size=ctx)


def test_unknown_keys_are_reported() -> None:
    config = edited(shapes.INTERNVL2_1B, novelty=1, vision_config__twist=2)
    assert families.build(config, {}).unknown_keys == ("novelty", "vision_config.twist")


def test_a_window_longer_than_the_context_is_dropped(tmp_path: Path) -> None:
    models.tiny_phi3(tmp_path, SEED, sliding_window=64)
    windows = {
        ctx: {op.attrs["window"] for _, op in Loaded(tmp_path, ctx_size=ctx).built.program.graphs["text"].ops()
              if op.kind == "attention"}
        for ctx in (64, 65)
    }  # fmt: skip
    assert windows == {64: {0}, 65: {64}}


HOSTILE: list[Any] = [
    -1, 0, 1, 2, 3, 7, 1 << 20, 1 << 31, 1 << 63, 10**5000, -(10**5000), True, False, None, 0.5, -0.5, 1e-320, 1e308,
    float("nan"), float("inf"), "", "x", "64", "\x1b[31m", [], {}, [1], [None] * 3, [10**5000], [[[]]], [1.0] * 5000,
    {"rope_type": "yarn"}, {"type": "longrope", "long_factor": [1e300] * 5, "short_factor": "x"}, {"x": {"y": {}}},
    {"rope_type": "yarn", "factor": 1e6, "rope_theta": 1.0001}, {"rope_type": "dynamic", "factor": 1e-3},
    {"rope_type": "llama3", "factor": 1.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0}, ["Qwen2ForCausalLM"],
    ["PhiForCausalLM"], ["full_attention"] * 3,
]  # fmt: skip


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else ()
    return [(*path, k) for k, _ in inner] + [s for k, v in inner for s in spots(v, (*path, k))]


def test_mutated_configs_fail_only_with_eyespot_errors(tmp_path: Path) -> None:
    """800 configs, each with one to three values replaced, removed or swapped; sizes asked for are hostile too."""
    rng = random.Random(SEED)
    seeds: list[tuple[dict[str, Any], Mapping[str, tuple[int, ...]]]] = []
    for family, write in models.TINY.items():
        write(tmp_path / family, SEED)
        loaded = Loaded(tmp_path / family)
        loaded.config.setdefault("rope_scaling", None)
        seeds.append((loaded.config, loaded.shapes))
    said, slowest = [], 0.0
    for _ in range(800):
        config, tensors = copy.deepcopy(rng.choice(seeds))
        for _ in range(rng.randint(1, 3)):
            path = rng.choice(spots(config))
            target = config
            for key in path[:-1]:
                target = target[key]
            if rng.random() < 0.15:
                target.pop(path[-1])
            elif rng.random() < 0.2:
                target[path[-1]] = copy.deepcopy(rng.choice(list(target.values())))
            else:
                target[path[-1]] = copy.deepcopy(rng.choice(HOSTILE))
        options: dict[str, Any] = {}
        if rng.random() < 0.2:
            options = {"image_size": rng.choice([28, 56, 10**20, -3]), "ctx_size": rng.choice([16, 2048, 1 << 40])}
        if rng.random() < 0.1:
            options["token_ids"] = {"<IMG_CONTEXT>": rng.choice([-1, 5, 1 << 70])}
        start = time.perf_counter()
        try:
            families.build(config, tensors, **options)
        except EyespotError as error:
            said.append(str(error))
        slowest = max(slowest, time.perf_counter() - start)
    assert 200 < len(said) < 800
    assert all(text.isprintable() and len(text) < 4000 for text in said)  # one line each
    assert slowest < 20, f"one config took {slowest:.1f} s (seed {SEED})"


def test_the_largest_legal_config_stays_small() -> None:
    """Every size at its limit is built without anything of that size being made."""
    from eyespot import limits

    config = edited(
        shapes.LLAMA3_8B,
        num_hidden_layers=limits.LAYERS,
        hidden_size=limits.DIM,
        intermediate_size=limits.DIM // 2,
        num_attention_heads=128,
        num_key_value_heads=64,
        head_dim=4096,
        vocab_size=limits.VOCAB,
        max_position_embeddings=limits.CONTEXT,
    )
    built = families.build(config, {})
    assert len(built.program.graphs["text"].blocks) == limits.LAYERS + 2
    assert dataclasses.asdict(built.program.info)["vocab_size"] == limits.VOCAB
