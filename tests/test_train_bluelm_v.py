"""BlueLM-V put together from a SigLIP and a language model, trained, compiled, asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import models
from eyespot import images
from eyespot.checkpoint import open_checkpoint
from eyespot.errors import EyespotError
from eyespot.resolution import BlueLMV
from eyespot.train.data.encode import IGNORE
from eyespot.train.data.record import Place, Record, dialogue
from eyespot.train.model import open_model
from training import finished, losses, made, same, tune

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A SigLIP and a Qwen2 as a hub would have them."""
    import transformers

    at = tmp_path_factory.mktemp("parts")
    eyes = models.randomize(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**models.SIGLIP)), 3)
    eyes.save_pretrained(at / "siglip")
    models.tiny_qwen2(at / "qwen2")
    return {"vision_model_name_or_path": str(at / "siglip"), "text_model_name_or_path": str(at / "qwen2")}


@pytest.fixture(scope="module")
def composed(parts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("composed")
    grids = [[2, 1], [1, 2], [1, 1]]
    return finished(made(at / "run", stage="create", compose={**parts, "alpha": 0.2, "image_grids": grids}))


def encoded(path: Path, size: tuple[int, int]) -> tuple[Any, Record, Any]:
    """A model, a record about noise of that size, and the record in its tokens."""
    loaded = open_model(path)
    picture = Image.effect_noise(size, 90).convert("RGB")
    record = Record(dialogue("<image>\nWhat is it?", "A cat."), (picture,), place=Place("-", 1))
    return loaded, record, loaded.view.encoder.encode(record)


def test_parts_keep_what_they_know(parts: dict[str, str], composed: Path) -> None:
    """The same features and logits as of the parts by themselves, with the projector of the tests' own truth."""
    import transformers

    loaded, record, seen = encoded(composed, (75, 75))
    vlm = loaded.vlm.eval()
    tiles = torch.from_numpy(loaded.view.eye.tiles(record.images, seen.tiles))
    pixels = loaded.view.eye.normalized(tiles)
    eyes = transformers.SiglipVisionModel.from_pretrained(parts["vision_model_name_or_path"]).eval()
    text = transformers.AutoModelForCausalLM.from_pretrained(parts["text_model_name_or_path"]).eval()
    truth = models.BlueLMV(eyes, text, -1)
    truth.projector.load_state_dict(vlm.model.multi_modal_projector.state_dict())
    ids = torch.tensor([seen.ids])
    with torch.no_grad():
        features = truth.features(pixels)
        looked = vlm.model.get_image_features(pixels).pooler_output
        torch.testing.assert_close(looked, features, rtol=1e-5, atol=1e-6)
        ours = vlm(ids, pixels).logits[0]
        rows = text.get_input_embeddings()(ids.clamp(max=text.config.vocab_size - 1)).clone()
        rows[0, ids[0] == vlm.config.image_token_id] = features
        theirs = text(inputs_embeds=rows).logits[0]
    torch.testing.assert_close(ours[:, : theirs.shape[1]], theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("size", "tiles"), [((75, 75), 1), ((150, 75), 3), ((60, 170), 3)])
def test_what_is_trained_is_what_runs(composed: Path, tmp_path: Path, size: tuple[int, int], tiles: int) -> None:
    """Tokens, pixels and logits of the training are those of the bundle, padding and thumbnail included."""
    pytest.importorskip("eyespot._native", exc_type=ImportError)
    import eyespot
    from eyespot.compile import compile_model
    from test_bluelm_v import EXACT

    loaded, record, seen = encoded(composed, size)
    assert [cut.tiles for cut in seen.tiles] == [tiles]
    assert seen.image_tokens == tiles * 9
    prompt_ids = seen.ids[: next(i for i, label in enumerate(seen.labels) if label != IGNORE)]
    compile_model(open_checkpoint(str(composed)), tmp_path / "b", EXACT)
    with eyespot.load(str(tmp_path / "b"), threads=1) as model:
        (picture,) = record.images
        prompt = model.processor.chat(model.processor.messages("What is it?", [picture]))
        assert prompt.ids.tolist() == prompt_ids
        (placed,) = prompt.pictures
        assert placed.cut == seen.tiles[0]
        run = models.pixels(model.processor, placed.picture, placed.cut)
        shown = loaded.view.eye.normalized(torch.from_numpy(loaded.view.eye.tiles(record.images, seen.tiles)))
        np.testing.assert_allclose(shown.numpy(), run, rtol=1e-6, atol=1e-6)
        with torch.no_grad():
            expected = loaded.vlm.eval()(torch.tensor([prompt_ids]), shown).logits[0, -1].numpy()
        found = model.engine.prefill(prompt.ids, model.engine.encode(run), 1)[-1]  # type: ignore[attr-defined]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_it_learns_and_answers(composed: Path, rows: Path, tmp_path: Path) -> None:
    """Colours by heart, from a projector that knew nothing; the float model and its bundle say them."""
    pytest.importorskip("eyespot._native", exc_type=ImportError)
    import eyespot
    from eyespot.compile import Options, compile_model
    from eyespot.train.answer import open_float

    recipe = tune(tmp_path / "run", composed, rows, max_steps=120, learning_rate=5e-3, save_steps=1000,
                  per_device_train_batch_size=8, grad_checkpoint=True)  # fmt: skip
    model = finished(recipe)
    assert losses(recipe)[-1] < 0.1 < 3 < losses(recipe)[0]
    config = json.loads((model / "config.json").read_text())
    assert config["architectures"] == ["BlueLMVForConditionalGeneration"]
    assert (config["alpha"], config["image_grids"]) == (0.2, [[2, 1], [1, 2], [1, 1]])
    assert not same(composed / "model.safetensors", model / "model.safetensors")
    result = compile_model(open_checkpoint(str(model)), tmp_path / "b", Options(scheme="f32", vision_scheme="f32"))
    assert result.family == "bluelm_v/qwen2"
    ask = open_float(model, 8)
    with eyespot.load(str(tmp_path / "b"), threads=1) as bundle:
        assert isinstance(bundle.processor.rule(), BlueLMV)
        for colour in ("red", "green", "orange", "black"):
            picture = rows.parent / f"{colour}.png"
            answer = bundle.generate("Which color?", images=[picture], max_tokens=8, temperature=0.0)
            assert answer.text == colour
            parts = [{"type": "image", "image": str(picture)}, {"type": "text", "text": "\nWhich color?"}]
            assert ask([{"role": "user", "content": parts}]) == colour


def test_layers_behind_the_one_that_is_taken_are_left_out(parts: dict[str, str], tmp_path: Path) -> None:
    import transformers

    model = finished(made(tmp_path / "run", stage="create", compose={**parts, "vision_feature_layer": -2}))
    again = finished(made(tmp_path / "again", stage="create", compose={**parts, "vision_feature_layer": -2}))
    assert same(model / "model.safetensors", again / "model.safetensors")  # of one seed
    config = json.loads((model / "config.json").read_text())
    assert config["vision_config"]["num_hidden_layers"] == 2
    assert not any("layers.2." in name for name in open_checkpoint(model).tensors if "vision_tower" in name)
    loaded, record, seen = encoded(model, (75, 75))
    assert images.size(record.images[0]) == (75, 75)
    with torch.no_grad():
        shown = loaded.view.eye.normalized(torch.from_numpy(loaded.view.eye.tiles(record.images, seen.tiles)))
        seen_states = loaded.vlm.model.get_image_features(shown).last_hidden_state
        eyes = transformers.SiglipVisionModel.from_pretrained(parts["vision_model_name_or_path"]).eval()
        theirs = eyes(pixel_values=shown, output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(seen_states, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"vision_feature_layer": 9}, "compose.vision_feature_layer; found 9"),
        ({"vision_model_name_or_path": "QWEN"}, "cannot be loaded|tensors are missing"),
        ({"text_model_name_or_path": "SIGLIP"}, "cannot be loaded|no tokenizer"),
        ({"text_model_name_or_path": "/nowhere"}, "/nowhere"),
        ({"vision_model_name_or_path": "/nowhere"}, "/nowhere"),
        ({"image_grids": [[0, 1]]}, r"image_grids: \[0, 1\]"),
        ({"image_grids": [[50, 50]]}, r"image_grids: \[50, 50\]"),
    ],
)
def test_what_cannot_be_composed(parts: dict[str, str], tmp_path: Path, change: dict[str, Any], said: str) -> None:
    paths = {"QWEN": parts["text_model_name_or_path"], "SIGLIP": parts["vision_model_name_or_path"]}
    change = {key: paths.get(str(value), value) for key, value in change.items()}
    with pytest.raises(EyespotError, match=said):
        finished(made(tmp_path / "run", stage="create", compose={**parts, **change}))
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("part", "file", "change", "said"),
    [
        ("text", "tokenizer.json", b"{}", "not a tokenizer|tokenizer"),
        ("text", "model.safetensors", 500, "model.safetensors"),
        ("vision", "model.safetensors", 500, "model.safetensors"),
        ("text", "config.json", {"hidden_size": "x"}, "cannot be loaded"),
        ("text", "config.json", {"num_attention_heads": 0}, "cannot be loaded"),
        ("vision", "config.json", {"patch_size": 0}, "cannot be loaded"),
        ("vision", "config.json", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("text", "config.json", {"architectures": ["Qwen3ForCausalLM"]}, "no family here builds"),
    ],
)
def test_parts_that_are_damaged(
    parts: dict[str, str], tmp_path: Path, part: str, file: str, change: Any, said: str
) -> None:
    """One line, and nothing is written that the next stage could not open."""
    at = tmp_path / part
    shutil.copytree(parts[f"{part}_model_name_or_path"], at)
    if isinstance(change, dict):
        config = json.loads((at / file).read_text())
        (at / file).write_text(json.dumps(config | change))
    else:
        (at / file).write_bytes(change if isinstance(change, bytes) else (at / file).read_bytes()[:change])
    with pytest.raises(EyespotError, match=said):
        finished(made(tmp_path / "run", stage="create", compose={**parts, f"{part}_model_name_or_path": str(at)}))
    assert not (tmp_path / "run" / "model").exists()


def test_no_code_of_a_checkpoint_is_run(parts: dict[str, str], tmp_path: Path) -> None:
    text = tmp_path / "text"
    shutil.copytree(parts["text_model_name_or_path"], text)
    config = json.loads((text / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "conf.Conf", "AutoModelForCausalLM": "conf.Model"}}
    (text / "config.json").write_text(json.dumps(config))
    (text / "conf.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(EyespotError, match="cannot be loaded"):
        finished(made(tmp_path / "run", stage="create", compose={**parts, "text_model_name_or_path": str(text)}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "keys", [{"stage": "label"}, {"use_backbone_lora": 2, "use_llm_lora": 2}, {"vision_select_layer": 2}]
)
def test_every_way_of_training(composed: Path, rows: Path, tmp_path: Path, keys: dict[str, Any]) -> None:
    data = [{"scenes": 4, "sides": [64], "tasks": {"name": 1}}]
    model = finished(tune(tmp_path / "run", composed, rows, data=data, max_steps=2, **keys))
    assert open_model(model).max_length > 0
    assert not same(composed / "model.safetensors", model / "model.safetensors")
    with pytest.raises(EyespotError, match="vision_select_layer"):
        finished(tune(tmp_path / "embeddings", composed, rows, vision_select_layer=-4))


def test_a_language_model_without_chatml(parts: dict[str, str], tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(parts["text_model_name_or_path"], plain)
    tokenizer = json.loads((plain / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["content"] != "<|im_end|>"]
    tokenizer["model"]["vocab"].pop("<|im_end|>", None)
    (plain / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(EyespotError, match=r"the tokenizer lacks tokens; found <\|im_end\|>"):
        finished(made(tmp_path / "run", stage="create", compose={**parts, "text_model_name_or_path": str(plain)}))


def test_a_recipe_makes_one_thing(parts: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(EyespotError, match="expected either model or compose"):
        made(tmp_path / "run", stage="create")
    with pytest.raises(EyespotError, match="compose: only stage create makes one"):
        made(tmp_path / "run", stage="tune", model_name_or_path="x", data=[{"scenes": 1}], compose=parts)
