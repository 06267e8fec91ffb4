"""BlueLM-V's design against transformers' SigLIP and language model, put together by torch: features, logits, tiles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import models
from eyespot import images
from eyespot.checkpoint import open_checkpoint
from eyespot.compile import Options, compile_model
from eyespot.errors import EyespotError, UnsupportedModel, UsageError
from eyespot.program.reference import Reference
from eyespot.resolution import BlueLMV
from eyespot.run.engine import Engine
from eyespot.run.model import load
from test_compile import Stored

torch = pytest.importorskip("torch")
TOKEN = models.token_ids(models.BLUELM_TOKENS)["<image>"]
EXACT = Options(scheme="f32", vision_scheme="f32", kv_cache="f32", ctx_size=512)


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.mark.parametrize("layer", [-1, -2, 2])
def test_features_and_logits_are_transformers(tmp_path: Path, layer: int) -> None:
    truth = models.tiny_bluelm_v(tmp_path / "c", layer=layer)
    result = compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", EXACT)
    assert result.warnings == ()
    with load(tmp_path / "b", threads=2) as model:
        turns = model.processor.messages("What is it?", [noise((150, 75))])
        prompt = model.processor.chat(turns)
        (placed,) = prompt.pictures
        assert (placed.cut.columns, placed.cut.rows, placed.cut.thumbnail) == (2, 1, "last")
        assert placed.rows == 3 * 9
        pixels = models.pixels(model.processor, placed.picture, placed.cut)
        with torch.inference_mode():
            expected = truth.features(torch.from_numpy(pixels))
            logits = truth.logits(torch.tensor(prompt.ids[None], dtype=torch.long), expected, TOKEN).numpy()
        found = model.engine.encode(pixels)
        assert np.abs(found - expected.numpy()).max() < 1e-4 * expected.abs().max()
        got = model.engine.prefill(prompt.ids, found, len(prompt.ids))  # type: ignore[attr-defined]
        assert np.abs(got - logits).max() < 1e-4 * np.abs(logits).max()
        stored = Stored(tmp_path / "b")
        slow = Reference(stored.program, stored.__getitem__).encode(pixels)
        assert np.abs(slow - expected.numpy()).max() < 1e-4 * expected.abs().max()


def test_the_published_tile_has_196_tokens() -> None:
    """SigLIP-400M at 384: 27 x 27 patches, filled up to 28 x 28; a phone's screen is nine tiles."""
    from eyespot.families import build

    eyes = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 14, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
    }  # fmt: skip
    text = {
        "model_type": "qwen2", "hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 2,
        "num_attention_heads": 16, "num_key_value_heads": 2, "vocab_size": 1000, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
    }  # fmt: skip
    config = {"architectures": ["BlueLMVForConditionalGeneration"], "vision_config": eyes, "text_config": text}
    built = build(config, {}, token_ids={"<image>": 999})
    assert built.program.info.tile_tokens == 196
    assert built.image is not None
    rule = BlueLMV(384, 196)
    assert [list(g) for g in rule.grids] == built.image["grids"]
    assert rule.tokens(rule.cut(768, 1536)) == 1764


@pytest.mark.parametrize("scheme", ["W8A8-g32", "W4A16-g32"])
def test_schemes_and_the_check_of_layers(tmp_path: Path, scheme: str) -> None:
    models.tiny_bluelm_v(tmp_path / "c")
    options = Options(scheme=scheme, kv_cache="int8", ctx_size=256, check="layers")
    result = compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", options, lambda path: Engine(path, 1))
    assert result.report is not None
    assert {row["phase"] for row in result.report["blocks"]} == {"encode", "prefill", "decode"}
    with load(tmp_path / "b", threads=1) as model:
        assert model.generate("hi", images=[noise((300, 200))], max_tokens=2, image_tokens=30).image_tokens <= 30
        wide = model.processor.cut(images.load(noise((150, 300))))
        assert (wide.columns, wide.rows) == (2, 4)
        assert model.generate("hi", images=[noise((75, 75))], max_tokens=1).image_tokens == 9


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "layer": ({"vision_feature_layer": 9}, "vision_feature_layer is 9"),
    "first": ({"vision_feature_layer": -4}, "vision_feature_layer is -4"),
    "grids": ({"image_grids": [[1, 0]]}, "image_grids"),
    "alpha": ({"alpha": 2}, "alpha is 2"),
    "token": ({"image_token_id": 3}, "not an added token"),
    "llm": ({"text_config": {"model_type": "mamba"}}, "BlueLM-V around a language model that no family here builds"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_faults_of_configs(tmp_path: Path, name: str) -> None:
    models.tiny_bluelm_v(tmp_path / "c")
    change, fault = CONFIGS[name]
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    (tmp_path / "c" / "config.json").write_text(json.dumps(config | change))
    with pytest.raises((EyespotError, UnsupportedModel), match=fault):
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")


def test_tiles_have_one_size(tmp_path: Path) -> None:
    models.tiny_bluelm_v(tmp_path / "c", image_grids=[[2, 1], [1, 1]])
    with pytest.raises(UsageError, match="one size"):
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", Options(image_size=70))
    compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", EXACT)
    with load(tmp_path / "b", threads=1) as model:
        assert model.processor.cut(images.load(noise((900, 300)))).columns == 2
