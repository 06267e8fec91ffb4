"""Qwen2.5-VL against transformers in float32: eyes at odd sizes, windows, positions, logits, films, greedy tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
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
from eyespot.run.engine import Engine
from eyespot.run.model import Model, load
from eyespot.run.processor import Prompt
from test_compile import Stored

torch = pytest.importorskip("torch")
IDS = models.token_ids(models.QWEN_TOKENS)
SIZES = [(28, 28), (140, 84), (112, 112), (252, 140), (300, 35), (90, 230)]  # the last are resized


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Model]]:
    """transformers' model, and ours in float32."""
    at = tmp_path_factory.mktemp("qwen")
    truth = models.tiny_qwen2_5_vl(at / "c")
    options = Options(scheme="f32", vision_scheme="f32", kv_cache="f32", ctx_size=512, image_tokens=96)
    compile_model(open_checkpoint(at / "c"), at / "b", options)
    with load(at / "b", threads=2) as model:
        yield truth, model


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def theirs(model: Model, pictures: list[Any]) -> tuple[Any, Any]:
    """What transformers' processor makes of pictures: patches [n, 1176], and the grid of each."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    rule = model.bundle.settings.image.resolution  # type: ignore[union-attr]
    made = Qwen2VLImageProcessorPil(min_pixels=rule.min_pixels, max_pixels=rule.max_pixels)  # type: ignore[union-attr]
    found = made(images=pictures, return_tensors="pt")
    return found["pixel_values"], found["image_grid_thw"]


def forget(model: Model) -> None:
    """The engine begins anew, and the cache knows."""
    model.engine.truncate(0)
    model.cache.keys.clear()


def features(model: Model, picture: Any) -> np.ndarray:
    loaded = images.load(picture)
    parts = []
    for seen in model.processor.seen(loaded, model.processor.cut(loaded)):
        rows = model.engine.encode(seen.pixels, seen.places, seen.windows, seen.frames)
        parts.append(rows[seen.order])
    return np.concatenate(parts)


@pytest.mark.parametrize("size", SIZES)
def test_eyes_are_transformers(pair: tuple[Any, Model], size: tuple[int, int]) -> None:
    truth, model = pair
    picture = noise(size)
    patches, grid = theirs(model, [picture])
    with torch.inference_mode():
        expected = truth.model.get_image_features(patches, grid).pooler_output[0].numpy()
    found = features(model, picture)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_the_reference_agrees_with_the_engine(pair: tuple[Any, Model]) -> None:
    _, model = pair
    stored = Stored(model.bundle.path)
    reference = Reference(stored.program, stored.__getitem__)
    loaded = images.load(noise((140, 84)))
    (seen,) = model.processor.seen(loaded, model.processor.cut(loaded))
    ours = model.engine.encode(seen.pixels, seen.places, seen.windows, seen.frames)
    slow = reference.encode(seen.pixels, seen.places, seen.windows, seen.frames)
    assert np.abs(ours - slow).max() < 1e-4 * np.abs(slow).max()


def prompt(model: Model, pictures: list[Any]) -> Prompt:
    content: list[dict[str, Any]] = [{"type": "image", "image": p} for p in pictures]
    turns = model.processor.messages([{"role": "user", "content": [*content, {"type": "text", "text": "What is it?"}]}])
    return model.processor.chat(turns)


@pytest.mark.parametrize("sizes", [SIZES[:1], SIZES[1:2], SIZES[2:5], []])
def test_positions_and_logits_are_transformers(pair: tuple[Any, Model], sizes: list[tuple[int, int]]) -> None:
    truth, model = pair
    pictures = [noise(size, i) for i, size in enumerate(sizes)]
    ours = prompt(model, pictures)
    ids = torch.tensor(ours.ids[None], dtype=torch.long)
    kinds = (ids == IDS["<|image_pad|>"]).int()
    given: dict[str, Any] = {}
    if pictures:
        patches, grid = theirs(model, pictures)
        given = {"pixel_values": patches, "image_grid_thw": grid}
    with torch.inference_mode():
        positions, _ = truth.model.get_rope_index(ids, kinds, image_grid_thw=given.get("image_grid_thw"))
        expected = truth(input_ids=ids, mm_token_type_ids=kinds, **given).logits[0].numpy()
    assert ours.positions is not None
    assert ours.positions.tolist() == positions[:, 0].T.tolist()
    rows = np.concatenate([features(model, p) for p in pictures]) if pictures else None
    forget(model)
    found = model.engine.prefill(ours.ids, rows, len(ours.ids), ours.positions)  # type: ignore[attr-defined]
    forget(model)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_greedy_tokens_are_transformers(pair: tuple[Any, Model]) -> None:
    truth, model = pair
    picture = noise((252, 140), 4)
    ours = prompt(model, [picture])
    patches, grid = theirs(model, [picture])
    ids = torch.tensor(ours.ids[None], dtype=torch.long)
    with torch.inference_mode():
        out = truth.generate(
            input_ids=ids, mm_token_type_ids=(ids == IDS["<|image_pad|>"]).int(), pixel_values=patches,
            image_grid_thw=grid, max_new_tokens=12, do_sample=False, eos_token_id=None,
        )[0, len(ours.ids) :].tolist()  # fmt: skip
    answer = model.generate("What is it?", images=[picture], max_tokens=12)
    kept = [i for i in out if i != IDS["<|im_end|>"]]
    assert list(answer.tokens) == kept[: len(answer.tokens)]
    assert len(answer.tokens) >= 1


def test_a_second_question_goes_on_from_the_first(pair: tuple[Any, Model]) -> None:
    """The cache with its positions gives what a fresh prefill of the same tokens gives; the picture is encoded once."""
    _, model = pair
    picture = noise((140, 84), 5)
    session = model.chat()
    first = session.send("one", [picture], max_tokens=4)
    second = session.send("two", max_tokens=4)
    assert first.images[0].encoded
    assert not second.images[0].encoded
    assert second.timings.reused_tokens > first.images[0].tokens
    said = session._turns[1][2]
    assert said.positions is not None
    fresh = model.processor._positions(said, np.empty((0, 3), np.int32))
    assert said.positions.tolist() == fresh.tolist()
    asked = len(said.ids) - len(second.tokens)
    with Engine(model.bundle.path) as engine:
        logits = engine.prefill(said.ids[:asked], features(model, picture), 1, said.positions[:asked])[0]
        tokens = []
        for _ in second.tokens:
            logits[IDS["<|image_pad|>"]] = -np.inf
            tokens.append(int(logits.argmax()))
            logits = engine.decode(tokens[-1])
    assert tuple(tokens) == second.tokens


# Films


def patches_of(model: Model, frames: list[Image.Image]) -> Any:
    """The reference page's flattening, from the authors' code: [gt * gh * gw, 1176]."""
    rule = model.bundle.settings.image
    assert rule is not None
    stack = np.stack([np.asarray(f, np.float32) / 255 for f in frames])
    values = ((stack - np.array(rule.mean)) / np.array(rule.std)).transpose(0, 3, 1, 2).astype(np.float32)
    t, c, h, w = values.shape
    gt, gh, gw = t // 2, h // 14, w // 14
    cut = values.reshape(gt, 2, c, gh // 2, 2, 14, gw // 2, 2, 14).transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return torch.from_numpy(cut.reshape(gt * gh * gw, -1).copy()), torch.tensor([[gt, gh, gw]])


@pytest.mark.parametrize("count", [1, 8])
def test_films_are_transformers(pair: tuple[Any, Model], tmp_path: Path, count: int) -> None:
    """A directory of frames: features, positions by the authors' rule, and logits at those positions."""
    truth, model = pair
    frames = [noise((84, 56), i) for i in range(count)]
    for i, frame in enumerate(frames):
        frame.save(tmp_path / f"{i}.png")
    turns = model.processor.messages(
        [{"role": "user", "content": [{"type": "video", "video": tmp_path, "fps": 1.0}, {"type": "text", "text": "?"}]}]
    )
    ours = model.processor.chat(turns)
    placed = ours.pictures[0]
    shown = frames if count > 1 else frames * 2
    patches, grid = patches_of(model, shown)
    with torch.inference_mode():
        expected = truth.model.get_video_features(patches, grid).pooler_output[0].numpy()
    parts = []
    for seen in model.processor.seen(placed.picture, placed.cut):
        parts.append(model.engine.encode(seen.pixels, seen.places, seen.windows, seen.frames)[seen.order])
    found = np.concatenate(parts)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert ours.positions is not None
    at, rows, columns = placed.start, 2, 3  # of tokens, in a frame
    vision = ours.positions[at : at + placed.rows].reshape(-1, rows, columns, 3)
    interval = (
        2 if count > 1 else 2 * 2 / 2
    )  # tokens_per_second * seconds a pair: 2 frames at 1 a second; 2 at 2 a second
    for t, h, w in np.ndindex(vision.shape[:3]):
        assert vision[t, h, w].tolist() == [at + int(t * 2 * interval), at + h, at + w]
    assert ours.positions[at + placed.rows].tolist() == [int(vision.max()) + 1] * 3
    ids = torch.tensor(ours.ids[None], dtype=torch.long)
    embedded = truth.model.get_input_embeddings()(ids)
    embedded[0, at : at + placed.rows] = torch.from_numpy(expected)
    with torch.inference_mode():
        logits = truth(
            inputs_embeds=embedded, position_ids=torch.from_numpy(ours.positions.T[:, None].astype(np.int64))
        ).logits[0].numpy()  # fmt: skip
    forget(model)
    got = model.engine.prefill(ours.ids, found, len(ours.ids), ours.positions)  # type: ignore[attr-defined]
    forget(model)
    assert np.abs(got - logits).max() < 1e-4 * np.abs(logits).max()


def test_a_clip_is_answered(pair: tuple[Any, Model], tmp_path: Path) -> None:
    _, model = pair
    for i in range(6):
        noise((84, 56), i).save(tmp_path / f"{i}.png")
    content = [{"type": "video", "video": tmp_path, "fps": 1.0}, {"type": "text", "text": "When?"}]
    answer = model.generate([{"role": "user", "content": content}], max_tokens=3)
    assert answer.images[0].tokens == 3 * 2 * 3
    noise((28, 28)).save(tmp_path / "6.png")
    with pytest.raises(EyespotError, match="frames of different sizes"):
        model.generate([{"role": "user", "content": content}], max_tokens=3)


def test_a_clip_past_the_last_position_is_refused(pair: tuple[Any, Model], tmp_path: Path) -> None:
    """Few tokens, but hours between two of them: time is a position."""
    _, model = pair
    for i in range(4):
        noise((84, 56), i).save(tmp_path / f"{i}.png")
    (turn,) = model.processor.messages([{"role": "user", "content": [{"type": "video", "video": tmp_path}]}])
    last = model.bundle.program.info.max_position

    def ends(seconds: float) -> int:
        long = replace(turn.pictures[0], times=(0.0, seconds))
        positions = model.processor.chat([replace(turn, pictures=(long,))]).positions
        return -1 if positions is None else int(positions.max())

    assert last - 100 < ends(last / 2 - 50) < last
    for seconds in (last / 2, 2.0**31, 2.0**31 + 5, 1e9):  # the second and third would be small ones in 32 bits
        with pytest.raises(EyespotError, match=f"model's positions; found position .*; expected below {last};"):
            ends(seconds)


def test_a_clip_within_a_budget(pair: tuple[Any, Model], tmp_path: Path) -> None:
    """What somebody says a picture may take is kept, or refused: never silently passed."""
    _, model = pair
    for i in range(8):
        noise((280, 168), i).save(tmp_path / f"{i}.png")
    clip = {"type": "video", "video": tmp_path, "fps": 1.0}
    turns = model.processor.messages([{"role": "user", "content": [clip, {"type": "text", "text": "When?"}]}])
    rule = model.processor.rule(image_tokens=64)
    assert model.processor.chat(turns, rule=rule).image_tokens <= 64
    with pytest.raises(UsageError, match="found 40 for 8; expected at least 64, or --max-frames 4"):
        model.processor.chat(turns, rule=model.processor.rule(image_tokens=40))


def test_several_pictures_are_numbered(pair: tuple[Any, Model]) -> None:
    _, model = pair
    seen = "<|vision_start|><|image_pad|><|vision_end|>"
    two = model.processor.chat(model.processor.messages("Same?", [noise((56, 56)), noise((56, 56), 1)]))
    assert f"user\nPicture 1: {seen}Picture 2: {seen}Same?<|im_end|>" in two.text
    one = model.processor.chat(model.processor.messages("What?", [noise((56, 56))]))
    assert f"user\n{seen}What?<|im_end|>" in one.text


# Names, boxes, schemes, faults


def test_the_authors_names_are_the_same_model(tmp_path: Path, pair: tuple[Any, Model]) -> None:
    _, model = pair
    models.tiny_qwen2_5_vl(tmp_path / "c", early_names=True)
    options = Options(scheme="f32", vision_scheme="f32", kv_cache="f32", ctx_size=512, image_tokens=96)
    result = compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", options)
    assert result.warnings == ()
    with Engine(tmp_path / "b") as early:
        ours = prompt(model, [noise((140, 84))])
        rows = features(model, noise((140, 84)))
        forget(model)
        here = model.engine.prefill(ours.ids, rows, 1, ours.positions)  # type: ignore[attr-defined]
        forget(model)
        np.testing.assert_array_equal(early.prefill(ours.ids, rows, 1, ours.positions), here)


def test_boxes_come_back_in_the_pictures_pixels(pair: tuple[Any, Model]) -> None:
    """The model counts in pixels of what it was shown: 280 x 140 of a picture of 600 x 300."""
    _, model = pair
    ours = prompt(model, [noise((600, 300))])
    width, height = ours.pictures[0].cut.resized
    assert (width, height) != (600, 300)
    said = f'```json\n[{{"bbox_2d": [0, 0, {width // 2}, {height}], "label": "left half"}}]\n```'
    (box,), faults = model.processor.boxes(said, ours)
    assert faults == ()
    assert box.corners == pytest.approx((0, 0, 300, 300), abs=1)
    assert box.label == "left half"


@pytest.mark.parametrize("scheme", ["W8A8-g32", "W4A16-g32"])
def test_schemes_and_the_check_of_layers(tmp_path: Path, scheme: str) -> None:
    models.tiny_qwen2_5_vl(tmp_path / "c")
    options = Options(scheme=scheme, ctx_size=256, image_tokens=32, check="layers")
    result = compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b", options, lambda path: Engine(path, 1))
    assert result.report is not None
    assert {row["phase"] for row in result.report["blocks"]} == {"encode", "prefill", "decode"}
    assert result.report["min_cosine"] > (0.99 if scheme.startswith("W8") else 0.85)
    with load(tmp_path / "b", threads=1) as model:
        assert model.generate("hi", images=[noise((300, 200))], max_tokens=2).image_tokens <= 32
        with pytest.raises(UsageError, match="not cut into tiles"):
            model.generate("hi", images=[noise((300, 200))], max_tiles=2)
        assert model.generate("hi", images=[noise((300, 200))], image_tokens=8, max_tokens=1).image_tokens <= 8
        with pytest.raises(EyespotError, match="too narrow"):
            model.generate("hi", images=[noise((2, 900))])


def test_faults_of_calls(pair: tuple[Any, Model]) -> None:
    _, model = pair
    loaded = images.load(noise((56, 56)))
    (seen,) = model.processor.seen(loaded, model.processor.cut(loaded))
    loaded = images.load(noise((336, 224)))
    (large,) = model.processor.seen(loaded, model.processor.cut(loaded))
    assert seen.places is not None
    assert seen.windows is not None
    engine = model.engine
    for fault, given in {
        "have places": (seen.pixels,),
        "without their places": (seen.pixels, seen.places, seen.windows),
        "places are misshapen": (seen.pixels, seen.places[:-1], seen.windows, seen.frames),
        "place 0": (seen.pixels, seen.places - 1, seen.windows, seen.frames),
        "must not fall": (seen.pixels, seen.places, -np.arange(16, dtype=np.int32), seen.frames),
        "need more room": (large.pixels, large.places, np.arange(384, dtype=np.int32), large.frames),
    }.items():
        with pytest.raises(UsageError, match=fault):
            engine.encode(*given)
    many = np.zeros((97, 6, 28, 28), np.float32)
    with pytest.raises(UsageError, match="tiles"):
        engine.encode(many, np.zeros((388, 2), np.int32), np.zeros(388, np.int32), np.zeros(388, np.int32))
    with pytest.raises(UsageError, match="positions are misshapen"):
        engine.feed([1, 2], None, np.zeros((3, 3), np.int32))
    with pytest.raises(UsageError, match="position 0"):
        engine.feed([1, 2], None, np.full((2, 3), -1, np.int32))


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "section": ({"text_config": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}}, "mrope_section"),
    "sum": ({"text_config": {"rope_parameters": {"rope_theta": 1e4, "mrope_section": [1, 2, 2]}}}, "whose sum is 6"),
    "width": ({"vision_config": {"out_hidden_size": 61}}, "out_hidden_size is 61, expected 60"),
    "layers": ({"vision_config": {"fullatt_block_indexes": [9]}}, "fullatt_block_indexes"),
    "merge": ({"vision_config": {"spatial_merge_size": 3}}, "spatial_merge_size = 3"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_faults_of_configs(tmp_path: Path, name: str) -> None:
    models.tiny_qwen2_5_vl(tmp_path / "c")
    change, fault = CONFIGS[name]
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    for key, inner in change.items():
        config[key] |= inner
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    with pytest.raises((EyespotError, UnsupportedModel), match=fault):
        compile_model(open_checkpoint(tmp_path / "c"), tmp_path / "b")
