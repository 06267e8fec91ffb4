"""A prompt in a file: the next run goes on from it, pictures included; a file that does not fit is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import models
from eyespot.checkpoint import open_checkpoint
from eyespot.compile import Options, compile_model
from eyespot.errors import EyespotError, UsageError
from eyespot.run.model import load

FAMILIES: dict[str, Callable[..., Any]] = {
    "internvl": models.tiny_internvl_hf, "qwen2_5_vl": models.tiny_qwen2_5_vl, "bluelm_v": models.tiny_bluelm_v,
}  # fmt: skip


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (120, 200, 3), np.uint8))


def made(at: Path, family: str = "internvl", kv_cache: str = "f16") -> Path:
    FAMILIES[family](at / "c")
    compile_model(open_checkpoint(at / "c"), at / "b", Options(ctx_size=512, kv_cache=kv_cache))
    return at / "b"


@pytest.mark.parametrize("kv_cache", ["f16", "int8"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_next_run_goes_on(tmp_path: Path, family: str, kv_cache: str) -> None:
    bundle = made(tmp_path, family, kv_cache)
    asked: dict[str, Any] = {"images": [noise(0), noise(1)], "max_tokens": 6}
    with load(bundle, threads=1) as model:
        first = model.generate("Which one?", **asked)
        tokens = model.save_prompt(tmp_path / "p.cache")
        assert tokens == first.timings.prompt_tokens + max(0, len(first.tokens) - (first.stop_reason != "stop"))
    with load(bundle, threads=2) as model:
        model.generate("Something else first", images=[noise(2)], max_tokens=2)  # numbers of pictures differ now
        assert model.load_prompt(tmp_path / "p.cache") == tokens
        again = model.generate("Which one?", **asked)
        assert again.tokens == first.tokens
        assert again.timings.reused_tokens == again.timings.prompt_tokens - 1
        assert not any(image.encoded for image in again.images)
        assert model.load_prompt(tmp_path / "p.cache") == tokens
        other = model.generate("Which two?", **asked)
        assert first.image_tokens < other.timings.reused_tokens < other.timings.prompt_tokens - 1
        assert not any(image.encoded for image in other.images)
        assert model.load_prompt(tmp_path / "p.cache") == tokens
        assert model.generate("Which one?", images=[noise(3), noise(1)], max_tokens=1).images[0].encoded


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    bundle = made(tmp_path)
    with load(bundle, threads=1) as model:
        before = model.generate("hello", max_tokens=3)
        model.save_prompt(tmp_path / "p.cache")
        with pytest.raises(UsageError, match="cannot be written"):
            model.save_prompt(tmp_path / "none" / "p.cache")
    with load(bundle, threads=1, ctx_size=256) as model, pytest.raises(EyespotError, match="another context size"):
        model.load_prompt(tmp_path / "p.cache")
    data = (tmp_path / "p.cache").read_bytes()
    rng = np.random.default_rng(0)
    with load(bundle, threads=1) as model:
        (tmp_path / "text").write_text("no cache")
        for wrong in (tmp_path / "text", bundle / "vision.safetensors", bundle / "post.safetensors"):
            with pytest.raises(EyespotError):
                model.load_prompt(wrong)
        for n in range(200):
            damaged = bytearray(data)
            for at in rng.integers(0, min(len(data), 900), 3):  # the header, mostly
                damaged[at] = int(rng.integers(256))
            (tmp_path / "d").write_bytes(damaged[: int(rng.integers(1, len(data)))] if n % 4 == 0 else damaged)
            try:
                model.load_prompt(tmp_path / "d")
            except EyespotError:
                continue
        for at in rng.integers(900, len(data), 20):  # what it holds
            damaged = bytearray(data)
            damaged[at] ^= 1 << int(rng.integers(8))
            (tmp_path / "d").write_bytes(damaged)
            with pytest.raises(EyespotError, match="damaged"):
                model.load_prompt(tmp_path / "d")
        model.cache.forget()
        assert model.generate("hello", max_tokens=3).tokens == before.tokens
    assert not list(tmp_path.glob(".p.cache*"))
