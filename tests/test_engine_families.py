"""Every family from a checkpoint to the engine's tokens: unquantized against transformers, quantized against the
reference over the same stored numbers.

The models are test_families': all of models.TINY, rope rules, windows, names and ties, with its weights of the day.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from eyespot import _native
from eyespot.checkpoint import open_checkpoint
from eyespot.compile import Options, compile_model
from eyespot.program.reference import Reference
from eyespot.run.engine import Engine
from test_compile import Stored
from test_families import CASES, EYES, LIMIT, SEED, STEPS, assert_near, picture_prompt, pixels, prompt

MODELS: dict[str, Callable[[Path], Any]] = {
    **{name: partial(models.TINY[family], seed=SEED, **settings) for name, (family, settings) in CASES.items()},
    **EYES,
}
PLAIN = Options(scheme="f32", vision_scheme="f32", kv_cache="f32", ctx_size=256, prefill_chunk=16)


@dataclass(frozen=True)
class Answer:
    """What transformers makes of a prompt: logits of every row [n, vocab], then greedy tokens and the logits after."""

    prompt: np.ndarray
    tokens: list[int]
    steps: list[np.ndarray]


def allowed(logits: np.ndarray, image_token: int) -> np.ndarray:
    """Without the image token, which needs a feature row and which only a random model would say."""
    return np.where(np.arange(logits.size) != image_token, logits, -np.inf)


def greedy(model: Any, tokens: np.ndarray, tiles: np.ndarray | None, image_token: int) -> Answer:
    import torch

    extra = {} if tiles is None else {"pixel_values": torch.tensor(tiles)}
    chosen: list[int] = []
    steps: list[np.ndarray] = []
    with torch.no_grad():
        out = model(input_ids=torch.tensor(tokens)[None], use_cache=True, **extra)
        answer = Answer(out.logits[0].numpy(), chosen, steps)
        for _ in range(STEPS):
            chosen.append(int(allowed(out.logits[0, -1].numpy(), image_token).argmax()))
            out = model(input_ids=torch.tensor([chosen[-1:]]), past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits[0, -1].numpy())
    return answer


def assert_same_answer(engine: Engine, truth: Answer, tokens: np.ndarray, tiles: np.ndarray | None) -> None:
    """All logits, and the same token every step; only two that transformers itself holds for equal may be exchanged."""
    image_token = engine.info["image_token_id"]
    features = None if tiles is None else engine.encode(tiles)
    found = engine.prefill(tokens, features, want=len(tokens))
    assert_near(found, truth.prompt, "prompt logits")
    logits, expected = found[-1], truth.prompt[-1]
    for step, token in enumerate(truth.tokens):
        chosen = int(allowed(logits, image_token).argmax())
        tie = abs(float(expected[chosen] - expected[token])) <= LIMIT * np.abs(expected).max()
        assert chosen == token or tie, f"step {step} chooses another token (seed {SEED})"
        logits, expected = engine.decode(token), truth.steps[step]
        assert_near(logits, expected, f"logits of step {step}")


@pytest.mark.parametrize("case", MODELS)
def test_the_engine_answers_as_transformers(case: str, tmp_path: Path) -> None:
    model = copy.deepcopy(MODELS[case])(tmp_path / "c")  # transformers writes into the settings it is given
    warnings = compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", PLAIN).warnings
    assert warnings == ()
    tokens, tiles = (picture_prompt(3, 4), pixels(3, 56)) if case in EYES else (prompt(), None)
    truth: Answer | None = None
    for isa, runs in _native.isas().items():
        if not runs:
            continue
        with Engine(tmp_path / "b", isa=isa) as engine:
            truth = truth or greedy(model, tokens, tiles, engine.info["image_token_id"])
            assert_same_answer(engine, truth, tokens, tiles)
    assert truth is not None
    assert len(truth.tokens) == STEPS == 32


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


# How far the engine may be from the reference. A8: a number that lies on the edge between two integers may go either
# way, which moves one of some 60 products by one part in 127.
# The reference does not round activations: 0.036 was seen on one row of a tiny model. The kernel test is bit-exact.
NEAR = {"W8A16": 1e-4, "W4A16-g64": 1e-4, "W8A8-g32": 0.08, "W4A8-g32-asym": 0.08}


@pytest.mark.parametrize("scheme", NEAR)
@pytest.mark.parametrize("family", models.TINY)
def test_the_engine_multiplies_with_what_is_stored(family: str, scheme: str, tmp_path: Path) -> None:
    """Sizes that fill neither panels nor groups; every instruction set of this machine."""
    models.TINY[family](tmp_path / "c", seed=SEED)
    options = Options(scheme=scheme, vision_scheme=scheme, kv_cache="f32", ctx_size=256, prefill_chunk=16)
    compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", options)
    stored = Stored(tmp_path / "b")
    shapes = [w.shape for w in stored.program.weights.values() if w.scheme == scheme]
    assert any(m % 16 for m, _ in shapes)
    assert any(k % 32 for _, k in shapes)
    reference = Reference(stored.program, stored.__getitem__)
    eyes = "vision" in stored.program.graphs
    tokens, tiles = (picture_prompt(2, 4), pixels(2, 56)) if eyes else (prompt(), None)
    truth_features = None if tiles is None else reference.encode(tiles)
    truth = reference.prefill(tokens, truth_features, want=len(tokens))
    step = reference.decode(7)
    ran = []
    for isa, runs in _native.isas().items():
        if runs:
            with Engine(tmp_path / "b", isa=isa) as engine:
                if tiles is not None:
                    assert distance(engine.encode(tiles), truth_features) < NEAR[scheme], isa
                assert distance(engine.prefill(tokens, truth_features, want=len(tokens)), truth) < NEAR[scheme], isa
                assert distance(engine.decode(7), step) < NEAR[scheme], isa
            ran.append(isa)
    assert "scalar" in ran


def test_no_family_is_left_out() -> None:
    used = {family for family, _ in CASES.values()} | {
        "internvl_hf" if n.startswith("hf-") else "internvl" for n in EYES
    }
    assert used == set(models.TINY)
