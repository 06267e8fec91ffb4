"""Training: packs, every stage at tiny size, export, and the verbs."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

import models
from eyespot import images
from eyespot.checkpoint import open_checkpoint
from eyespot.errors import EyespotError
from eyespot.resolution import InternVL
from eyespot.train import checkpointing, stages
from eyespot.train.data.encode import IGNORE
from eyespot.train.data.record import Mark, Record
from eyespot.train.distill import Logits, matched, pair_layers
from eyespot.train.export import export
from eyespot.train.label import UNKNOWN, Heads, Marker
from eyespot.train.model import groups, open_model
from eyespot.train.objective import Batch, collate, logits, look
from eyespot.train.pixels import Eye
from eyespot.train.recipe import Recipe, Source
from eyespot.train.streams import Pack, State, Streams, load, open_data
from test_families import Loaded as Compiled
from training import SCENES, SRC, TEXT, VISION, finished, losses, made, same, tune, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def predicted(vlm: Any, batch: Batch, eye: Eye) -> torch.Tensor:
    return logits(vlm, batch, look(vlm, batch, eye))


# Packs and batches


def streams(tiny: Path, count: int = 3, max_tokens: int | None = 480, **keys: Any) -> Streams:
    view = open_model(tiny, 1).view
    data = open_data(Recipe("tune", Path("x"), data=(Source(scenes=40, questions=3, sides=(64,)),)))
    return Streams(data, (view,), count, 5, 240, max_tokens, **keys)


def told(packs: list[Pack]) -> list[tuple[Any, ...]]:
    return [(p.stream, p.after, [s.views[0].ids for s in p.samples], p.failure) for p in packs]


def test_packs_go_on_from_any_state_and_with_any_workers(tiny: Path) -> None:
    made = streams(tiny)
    whole = list(islice(load(made, range(3), {}, 0), 12))
    after = {pack.stream: pack.after for pack in whole[:6]}
    assert told(list(islice(load(made, range(3), after, 0), 6))) == told(whole[6:])
    assert told(list(islice(load(made, range(3), {}, 3), 12))) == told(whole)
    alone = list(islice(load(made, [1], {}, 0), 4))
    assert told(alone) == told(whole[1::3])
    assert any(len(pack.samples) > 1 for pack in whole)
    assert all(sum(len(s.views[0].ids) for s in pack.samples) <= 480 for pack in whole)


def test_every_sample_is_packed_once(tiny: Path) -> None:
    made = streams(tiny, count=1)
    seen: list[list[int]] = []
    state = State()
    for pack in load(made, [0], {}, 0):
        if state.read >= 40:
            break
        seen += [sample.views[0].ids for sample in pack.samples]
        state = pack.after
    waiting = [made.sample(index, []).views[0].ids for index in state.held]
    expected = [made.sample(index, []).views[0].ids for index in range(state.read)]
    assert sorted(seen + waiting) == sorted(expected)


def test_packed_samples_do_not_see_each_other(tiny: Path) -> None:
    loaded = open_model(tiny, 1)
    vlm = loaded.vlm.eval()
    packs = list(islice(load(streams(tiny), range(3), {}, 0), 3))
    samples = [sample.views[0] for pack in packs for sample in pack.samples]
    assert len(samples) > len(packs)
    with torch.no_grad():
        together = predicted(vlm, collate([[s.views[0] for s in p.samples] for p in packs], "token"), loaded.view.eye)
        apart = torch.cat([predicted(vlm, collate([[seen]], "token"), loaded.view.eye) for seen in samples])
        plain = vlm(
            input_ids=torch.tensor([samples[0].ids]),
            pixel_values=loaded.view.eye.normalized(torch.from_numpy(samples[0].tiles)),
        ).logits[0]
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    learned = [i - 1 for i, label in enumerate(samples[0].labels) if label != IGNORE]
    torch.testing.assert_close(together[: len(learned)], plain[learned], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("reduction", "power"), [("token", 0), ("sample", 1), ("square", 0.5)])
def test_weights_of_learned_tokens(tiny: Path, reduction: str, power: float) -> None:
    sample = streams(tiny).sample(0, []).views[0]
    count = sum(label != IGNORE for label in sample.labels)
    batch = collate([[sample, sample], [sample]], reduction)
    assert batch.weights.tolist() == pytest.approx([count**-power] * 3 * count)
    assert batch.targets.tolist() == 3 * [label for label in sample.labels if label != IGNORE]
    assert batch.tokens == 3 * len(sample.ids)
    assert int(batch.where.sum()) == 3 * count


def test_pixels_are_those_of_a_run() -> None:
    processor = pytest.importorskip("eyespot.run.processor")
    rng = np.random.default_rng(0)
    picture = images.load(Image.fromarray(rng.integers(0, 256, (90, 130, 3), np.uint8)))
    rule, eye = InternVL(32, 4, min_tiles=2, max_tiles=2), Eye(32, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    cut = rule.cut(80, 40)

    class Rule:
        mean, std, resample, resolution = eye.mean, eye.std, eye.resample, rule

    run = object.__new__(processor.Processor)
    run.bundle = type("Bundle", (), {"settings": type("Settings", (), {"image": Rule})})
    ours = eye.normalized(torch.from_numpy(eye.tiles([picture], [cut])))
    np.testing.assert_allclose(ours.numpy(), models.pixels(run, picture, cut), rtol=1e-6, atol=1e-6)


# Stages


def test_a_created_model_is_transformers_and_ours(tiny: Path) -> None:
    """The same logits from transformers, by its own tokenizer and template, and from our program's reference."""
    import transformers

    vlm = transformers.AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which color? Étoile 12"}]}]
    text = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n<IMG_CONTEXT>\nWhich color? Étoile 12<|im_end|>\n<|im_start|>assistant\n"
    text = text.replace("<IMG_CONTEXT>", "<img>" + 4 * "<IMG_CONTEXT>" + "</img>")
    ids = tokenizer(text).input_ids
    assert ids == Tokenizer.from_file(str(tiny / "tokenizer.json")).encode(text).ids
    assert tokenizer.decode(ids) == text
    picture = images.load(Image.effect_noise((32, 32), 90).convert("RGB"))
    eye = open_model(tiny).view.eye
    pixels = eye.normalized(torch.from_numpy(eye.tiles([picture], [InternVL(32, 4, max_tiles=1).cut(80, 40)])))
    processor = transformers.AutoImageProcessor.from_pretrained(tiny, backend="pil")
    theirs = processor(images=[picture.image], crop_to_patches=False, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        expected = vlm(input_ids=torch.tensor([ids]), pixel_values=pixels).logits[0]
    run = Compiled(tiny, ctx_size=1024).reference()
    found = run.prefill(np.array(ids), run.encode(pixels.numpy()), want=len(ids))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_a_model_is_created_once(tiny: Path, tmp_path: Path) -> None:
    model = {"tokenizer_name_or_path": str(tiny), "vision_config": {**VISION, "image_size": 28}, "text_config": TEXT}
    first = finished(made(tmp_path / "create", stage="create", model=model))
    before = (first / "model.safetensors").stat()
    again = stages.run(made(tmp_path / "create", stage="create", model=model))
    assert again is not None
    assert again.made is None
    assert (first / "model.safetensors").stat().st_mtime_ns == before.st_mtime_ns
    with pytest.raises(EyespotError, match="a model of another recipe"):
        stages.run(made(tmp_path / "create", stage="create", model=model, seed=3))
    for wrong, word in (({"image_size": 30}, "a multiple of 28"), ({"num_attention_heads": 5}, "24 over 5 heads")):
        bad = {**model, "vision_config": {**VISION, "image_size": 28, **wrong}}
        with pytest.raises(EyespotError, match=word):
            stages.run(made(tmp_path / "bad", stage="create", model=bad))


def test_tune_learns_and_the_engine_answers(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Eight colours learned by heart; the exported model says them from its bundle."""
    native = pytest.importorskip("eyespot._native", exc_type=ImportError)
    assert native is not None
    import eyespot
    from eyespot.compile import Options, compile_model

    recipe = tune(tmp_path / "run", tiny, rows, max_steps=150, learning_rate=5e-3, save_steps=1000,
                  per_device_train_batch_size=8, report_to=["tensorboard"], logging_steps=5)  # fmt: skip
    result = stages.run(recipe)
    assert result is not None
    assert losses(recipe)[-1] < 0.1 < 4 < losses(recipe)[0]
    assert result.plot is not None
    with Image.open(result.plot) as plot:
        assert plot.width > 400
    assert list((tmp_path / "run" / "runs").glob("events.out.tfevents.*"))
    compile_model(open_checkpoint(str(result.model)), tmp_path / "bundle", Options(scheme="f32", vision_scheme="f32"))
    with eyespot.load(str(tmp_path / "bundle"), threads=1) as model:
        for colour in ("red", "green", "orange", "black"):
            answer = model.generate(
                "Which color?", images=[rows.parent / f"{colour}.png"], max_tokens=8, temperature=0.0
            )
            assert answer.text == colour


def changed(before: Path, after: Path) -> set[str]:
    """Parts of the model whose tensors differ."""
    one, two = weights(before / "model.safetensors"), weights(after / "model.safetensors")
    assert one.keys() == two.keys()
    return {name.split(".")[1] for name in one if not np.array_equal(one[name], two[name])}


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        ({"stage": "align"}, {"multi_modal_projector"}),
        ({"freeze_llm": True}, {"vision_tower", "multi_modal_projector"}),
        ({"freeze_backbone": True, "freeze_mlp": True}, {"language_model"}),
        ({"stage": "align", "freeze_backbone": False}, {"multi_modal_projector", "vision_tower"}),
    ],
)
def test_what_is_frozen_stays(tiny: Path, rows: Path, tmp_path: Path, keys: dict[str, Any], parts: set[str]) -> None:
    model = finished(tune(tmp_path / "run", tiny, rows, max_steps=1, **keys))
    assert changed(tiny, model) == parts


def test_nothing_left_to_train(tiny: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(EyespotError, match="nothing is left to train"):
        stages.run(tune(tmp_path / "run", tiny, rows, freeze_llm=True, freeze_mlp=True, freeze_backbone=True))


def test_lora_is_merged_on_export(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """The exported weights predict what weights and adapters did, and nothing without an adapter has changed."""
    recipe = tune(tmp_path / "run", tiny, rows, use_llm_lora=4, use_backbone_lora=2, freeze_mlp=True,
                  learning_rate=1e-2, max_steps=6)  # fmt: skip
    model = finished(recipe)
    before, after = weights(tiny / "model.safetensors"), weights(model / "model.safetensors")
    touched = {name for name in before if not np.array_equal(before[name], after[name])}
    assert touched == {
        name for name in before
        if name.endswith(("_proj.weight", "projection_layer.weight", "fc1.weight", "fc2.weight"))
    }  # fmt: skip
    loaded, objective = stages.build(recipe)
    checkpointing.load_weights(checkpointing.checkpoints(recipe.output_dir)[-1], objective)
    packs = list(islice(load(streams(tiny, count=2), range(2), {}, 0), 2))
    batch = collate([[sample.views[0] for sample in pack.samples] for pack in packs], "token")
    merged = open_model(model, 1)
    with torch.no_grad():
        expected = predicted(objective.eval().vlm, batch, loaded.view.eye)
        found = predicted(merged.vlm.eval(), batch, merged.view.eye)
        plain = predicted(open_model(tiny, 1).vlm.eval(), batch, merged.view.eye)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 0.05


def test_deeper_layers_of_the_eyes_learn_faster(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = tune(tmp_path / "run", tiny, rows, vit_layer_decay_rate=0.5, weight_decay=0.1)
    loaded, objective = stages.build(recipe)
    names = {id(parameter): name for name, parameter in objective.named_parameters()}
    found = {names[id(p)]: group for group in groups(objective, recipe, 2) for p in group["params"]}
    assert len(found) == len(list(loaded.vlm.parameters()))
    at = "vlm.model.vision_tower."
    assert found[f"{at}embeddings.position_embeddings"]["scale"] == 0.125
    assert found[f"{at}encoder.layer.0.mlp.fc1.weight"]["scale"] == 0.25
    assert found[f"{at}encoder.layer.1.mlp.fc1.weight"]["scale"] == 0.5
    assert found["vlm.model.multi_modal_projector.linear_1.weight"]["scale"] == 1
    assert found["vlm.model.multi_modal_projector.linear_1.weight"]["weight_decay"] == 0.1
    assert found["vlm.model.multi_modal_projector.linear_1.bias"]["weight_decay"] == 0
    assert found[f"{at}embeddings.position_embeddings"]["weight_decay"] == 0


def test_transfer_mixes_general_data_in(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = tune(tmp_path / "run", tiny, rows, stage="transfer", general_data=[SCENES], mix_ratio="1:4", max_steps=2)
    assert len(open_data(recipe)) == 8 + 2
    finished(recipe)
    assert len(losses(recipe)) == 2


# Labels


def test_a_label_is_what_lies_at_a_point_of_the_patch() -> None:
    """Two tiles of 2 x 2 patches side by side, and a thumbnail of both."""
    marker = Marker(2, {"cat": 1, "a": 2}, {"red": 1})
    marks = (Mark("cat", "red", (0, 0, 30, 40)), Mark("a", "", (30, 0, 80, 40)))
    record = Record((), (Image.new("RGB", (80, 40)),), marks=(marks,))
    found = marker(record, (InternVL(16, 4, min_tiles=2, max_tiles=2).cut(80, 40),))
    assert found.shape == (3, 2, 2, 4)
    things = found[..., :2].reshape(3, 2, 4)  # half a patch each
    assert things[:, 0].tolist() == [[1, 1, 1, 2], [2, 2, 2, 2], [1, 2, 2, 2]]
    assert things[0, 1].tolist() == things[0, 0].tolist()
    colours = found[..., 2:].reshape(3, 2, 4)
    assert colours[:, 0].tolist() == [[1, 1, 1, -1], [-1, -1, -1, -1], [1, -1, -1, -1]]
    small = (Mark("cat", "red", (0, 0, 80, 16)), Mark("a", "", (10, 17, 12, 23)), Mark("a", "red", (70, 13, 75, 18)))
    (tile,) = marker(replace(record, marks=(small,)), (InternVL(16, 4, max_tiles=1).cut(80, 40),))  # 40 x 20 a patch
    assert tile[..., :2].reshape(2, 4).tolist() == [[1, 1, 1, 1], [2, 0, 0, 0]]  # small ones where nothing else is
    assert tile[..., 2:].reshape(2, 4).tolist() == [[1, 1, 1, 1], [-1, 0, 0, 0]]
    nothing = marker(replace(record, marks=((),)), (InternVL(16, 4, max_tiles=1).cut(80, 40),))
    assert not nothing.any()
    for wrong, why in ((None, "nothing is known"), (((Mark("dog", "", (0, 0, 1, 1)),),), "'dog', which has no class")):
        with pytest.raises(EyespotError, match=why):
            marker(replace(record, marks=wrong), (InternVL(16, 4, max_tiles=1).cut(80, 40),))


def test_eyes_learn_what_each_patch_shows(tiny: Path, rows: Path, tmp_path: Path) -> None:
    scenes = [{"scenes": 4, "sides": [64], "tasks": {"name": 1}}]
    recipe = tune(tmp_path / "run", tiny, rows, stage="label", data=scenes, max_steps=40, learning_rate=1e-2,
                  save_steps=1000)  # fmt: skip
    model = finished(recipe)
    found = losses(recipe)
    assert found[0] > 4  # of 250 classes, nothing known
    assert found[-1] < 1
    assert changed(tiny, model) == {"vision_tower"}
    assert any(
        name.startswith("heads.") for name in weights(recipe.output_dir / "checkpoint-40" / checkpointing.WEIGHTS)
    )
    both = [{**scenes[0], "tasks": {"name": 1, "compare": 1}}]
    beside = tune(tmp_path / "beside", tiny, rows, data=both, label_weight=0.2, max_steps=40, learning_rate=1e-2,
                  save_steps=1000)  # fmt: skip
    assert changed(tiny, finished(beside)) == {"vision_tower", "multi_modal_projector", "language_model"}
    assert losses(beside)[-1] < 0.3 * losses(beside)[0]
    with pytest.raises(EyespotError, match=r"set\.jsonl:1: nothing is known of where things are"):
        stages.run(tune(tmp_path / "rows", tiny, rows, stage="label"))
    with pytest.raises(EyespotError, match="stage label teaches the eyes alone"):
        stages.run(tune(tmp_path / "llm", tiny, rows, stage="label", data=scenes, freeze_llm=False))


def test_heads_tell_where_a_patch_stands() -> None:
    """Where nothing is known of what patches show, what is left to learn is each one's row and column."""
    torch.manual_seed(0)
    heads = Heads(24, 3, 2, side=4)
    states = torch.randn(2, 1 + 16, 24)
    states[1] = states[0]  # the same places in both tiles
    nothing = torch.full((2, 4, 4, 4), UNKNOWN, dtype=torch.int16)
    optimizer = torch.optim.Adam(heads.parameters(), 0.05)
    for _ in range(100):
        optimizer.zero_grad()
        heads(states, nothing).backward()
        optimizer.step()
    with torch.no_grad():
        assert heads(states, nothing) < 0.1
        rows, columns = (head(torch.nn.functional.layer_norm(states[0, 1:], (24,))).argmax(-1) for head in heads.places)
    assert rows.tolist() == [i // 4 for i in range(16)]
    assert columns.tolist() == [i % 4 for i in range(16)]


def test_heads_weigh_what_a_patch_shows() -> None:
    """One patch, by torch's own cross entropies: two things, the right half background, and two colours."""
    torch.manual_seed(0)
    heads, states = Heads(24, 3, 2, side=1), torch.randn(1, 1, 24)
    rows = torch.nn.functional.layer_norm(states[0], (24,))

    def told(*labels: int) -> float:
        return heads(states, torch.tensor(labels, dtype=torch.int16).view(1, 1, 1, 4)).item()

    def loss(number: int, label: int) -> float:
        return torch.nn.functional.cross_entropy(heads.names[number](rows), torch.tensor([label])).item()

    place = told(UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
    wanted = loss(0, 3) + 0.2 * loss(1, 0) + 0.4 * loss(2, 1) + 0.2 * 0.4 * loss(3, 0)
    assert told(3, 0, 1, 0) - place == pytest.approx(wanted, rel=1e-5)
    assert told(UNKNOWN, UNKNOWN, UNKNOWN, 2) - place == pytest.approx(0.4 * loss(3, 2), rel=1e-5)


def test_attention_either_way(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Packed samples stay apart in both."""
    keys = {"max_packed_tokens": 64, "max_steps": 2}
    recipes = [tune(tmp_path / way, tiny, rows, attn_implementation=way, **keys) for way in ("sdpa", "eager")]
    for recipe in recipes:
        finished(recipe)
    assert losses(recipes[0]) == pytest.approx(losses(recipes[1]), abs=1e-5)


# Distillation


@pytest.fixture(scope="module")
def teacher(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wider, deeper, finer patches, larger pictures; the same vocabulary as `tiny`."""
    vision = {**VISION, "hidden_size": 32, "num_hidden_layers": 3, "image_size": 48, "patch_size": 4}
    model = {
        "tokenizer_name_or_path": str(tiny), "vision_config": vision, "text_config": {**TEXT, "hidden_size": 40},
        "max_dynamic_patch": 2,
    }  # fmt: skip
    return finished(made(tmp_path_factory.mktemp("teacher") / "create", stage="create", model=model, seed=9))


def distil(at: Path, tiny: Path, teacher: Path, rows: Path, **keys: Any) -> Recipe:
    return tune(at, tiny, rows, **{"stage": "distil", "teacher_model_name_or_path": str(teacher), **keys})


@pytest.mark.parametrize(
    "keys",
    [
        {"distill_layers": 2, "layer_pairing": "last"},
        {"layer_pairing": [[1, 1], [2, 3]], "width_adapter": "shared", "teacher_image_size": 32},
    ],
)
def test_stage_0_brings_the_eyes_nearer(
    tiny: Path, teacher: Path, rows: Path, tmp_path: Path, keys: dict[str, Any]
) -> None:
    recipe = distil(tmp_path / "run", tiny, teacher, rows, max_steps=30, learning_rate=1e-2,
                    per_device_train_batch_size=8, save_steps=1000, **keys)  # fmt: skip
    model = finished(recipe)
    found = losses(recipe)
    assert -1 <= found[-1] < found[0] - 0.3
    assert changed(tiny, model) == {"vision_tower"}
    kept = weights(recipe.output_dir / "checkpoint-30" / checkpointing.WEIGHTS)
    assert any(name.startswith("adapters.") for name in kept)
    assert not any(name.startswith("teacher.") for name in kept)


def test_an_encoder_is_at_no_distance_from_itself(tiny: Path, rows: Path, tmp_path: Path) -> None:
    recipe = distil(tmp_path / "run", tiny, tiny, rows, width_adapter="none", distill_layers=2, max_steps=1)
    finished(recipe)
    assert losses(recipe)[0] == pytest.approx(-1, abs=1e-5)


def test_pairs_of_layers(tmp_path: Path) -> None:
    recipe = made(tmp_path / "r", stage="tune", model_name_or_path="m", data=[{"scenes": 1}])
    assert pair_layers(replace(recipe, distill_layers=3), 4, 12) == [(4, 12), (3, 11), (2, 10)]
    assert pair_layers(replace(recipe, distill_layers=4, layer_pairing="uniform"), 4, 12) == [
        (1, 3), (2, 6), (3, 9), (4, 12),
    ]  # fmt: skip
    for wrong in ({"distill_layers": 5}, {"layer_pairing": ((1, 13),)}, {"layer_pairing": ()}):
        with pytest.raises(EyespotError):
            pair_layers(replace(recipe, **wrong), 4, 12)  # type: ignore[arg-type]


def test_rows_of_other_grids_are_about_the_same_places() -> None:
    """A teacher of finer patches is averaged over each of the student's; class tokens meet where both have one."""
    fine = torch.arange(16.0).reshape(1, 16, 1)
    coarse = torch.zeros(1, 4, 1)
    ours, theirs = matched(coarse, fine)
    assert ours.shape == theirs.shape
    assert theirs.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    ours, theirs = matched(torch.zeros(1, 5, 1), torch.cat([torch.full((1, 1, 1), 7.0), fine], 1))
    assert theirs.flatten().tolist() == [7, 2.5, 4.5, 10.5, 12.5]
    assert matched(torch.zeros(1, 5, 1), fine)[0].shape == (1, 4, 1)
    assert matched(torch.zeros(1, 16, 1), coarse)[1].shape == (1, 16, 1)


def test_widths_need_an_adapter(tiny: Path, teacher: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(EyespotError, match="width_adapter: none; found widths 24 and 32"):
        stages.run(distil(tmp_path / "run", tiny, teacher, rows, width_adapter="none"))


def test_a_teacher_stays_as_it_answers(tiny: Path) -> None:
    student, master = open_model(tiny, 1), open_model(tiny, 1)
    objective = Logits(student, master, "token", 0.5, 1.0)
    objective.train()
    assert student.vlm.training
    assert not any(module.training for module in objective.teacher.modules())


def test_logits_of_a_teacher(tiny: Path, teacher: Path, rows: Path, tmp_path: Path) -> None:
    """Nothing to learn from oneself; from another, with other pictures and packed, the divergence falls."""
    itself = distil(tmp_path / "itself", tiny, tiny, rows, stage="tune", kd_ratio=1.0, max_steps=1)
    finished(itself)
    assert losses(itself)[0] == pytest.approx(0, abs=1e-5)
    recipe = distil(tmp_path / "run", tiny, teacher, rows, stage="tune", kd_ratio=1.0, kd_temperature=2.0,
                    max_steps=20, learning_rate=3e-3, max_packed_tokens=64, per_device_train_batch_size=2,
                    save_steps=1000)  # fmt: skip
    finished(recipe)
    assert losses(recipe)[-1] < 0.5 * losses(recipe)[0]


def test_how_a_teacher_is_weighed(tiny: Path) -> None:
    """(1 - ratio) of the cross entropy, and ratio x temperature^2 of the divergence, as torch.distributions has it."""
    from torch.distributions import Categorical, kl_divergence

    student, master = open_model(tiny, 1), open_model(tiny, 1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in master.vlm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    objective = Logits(student, master, "token", 0.3, 2.0).eval()
    batch = collate([[streams(tiny).sample(0, []).views[0]]], "token")
    with torch.no_grad():
        found, goal = (predicted(side.vlm, batch, side.view.eye) for side in (student, master))
        divergence = kl_divergence(Categorical(logits=goal / 2), Categorical(logits=found / 2)).sum()
        wanted = 0.7 * torch.nn.functional.cross_entropy(found, batch.targets, reduction="sum") + 0.3 * 4 * divergence
        assert divergence > 0.01
        assert objective(batch, batch).item() == pytest.approx(wanted.item(), rel=1e-4)


def test_a_teacher_of_another_vocabulary(tiny: Path, rows: Path, tmp_path: Path) -> None:
    import models

    models.tiny_internvl_hf(tmp_path / "other")
    with pytest.raises(EyespotError, match="another vocabulary"):
        stages.run(distil(tmp_path / "run", tiny, tmp_path / "other", rows, stage="tune"))


def test_a_head_of_its_own_is_exported_whatever_the_config_says(tiny: Path, tmp_path: Path) -> None:
    """transformers keeps a stored head untied though the config says tied."""
    untied = tmp_path / "untied"
    shutil.copytree(tiny, untied)
    stored = dict(weights(untied / "model.safetensors"))
    assert "lm_head.weight" not in stored
    stored["lm_head.weight"] = stored["model.language_model.embed_tokens.weight"] + np.float32(0.5)
    checkpointing.write_tensors(
        untied / "model.safetensors", {n: torch.from_numpy(w) for n, w in stored.items()}, {"format": "pt"}
    )
    loaded = open_model(untied, 1)
    export(loaded.vlm, loaded.files, tmp_path / "out", "float32")
    found = weights(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(found["lm_head.weight"], stored["lm_head.weight"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not config["tie_word_embeddings"]
    assert not config["text_config"]["tie_word_embeddings"]


def verb(*words: str | Path) -> int:
    from eyespot.cli.main import main

    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return int(end.value.code or 0)


def test_the_verbs(tiny: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train and distill take each its recipes; overrides, export of a checkpoint, JSON on stdout, lines on stderr."""
    tune(tmp_path / "run", tiny, rows, max_steps=2)
    assert verb("train", tmp_path / "run.yaml", "--set", "max_steps=1", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["steps"], summary["model"]) == (1, str(tmp_path / "run" / "model"))
    assert math.isfinite(summary["loss"])
    assert verb("train", tmp_path / "run.yaml", "--set", "max_steps=1", "--export") == 0
    exported = Path(capsys.readouterr().out.strip())
    assert exported == tmp_path / "run" / "model-1"
    assert same(exported / "model.safetensors", tmp_path / "run" / "model" / "model.safetensors")
    teacher = f"teacher_model_name_or_path={tiny}"
    assert verb("distill", tmp_path / "run.yaml", "--set", f"output_dir={tmp_path / 'kd'}", "--set", teacher) == 0
    assert "step 2/2: loss" in capsys.readouterr().err
    assert verb("distill", tmp_path / "run.yaml") == 2
    assert "expected eyespot train" in capsys.readouterr().err
    assert verb("train", tmp_path / "run.yaml", "--set", teacher) == 2
    assert verb("train") == verb("train", tmp_path / "run.yaml", "--check-data", rows) == 2
    capsys.readouterr()
    assert verb("train", tmp_path / "run.yaml", "--tokenizer", tiny) == 2
    assert verb("train", "--check-data", rows, "--set", "seed=1", "--export") == 2
    assert [line.split(";")[0] for line in capsys.readouterr().err.splitlines()] == [
        "eyespot: error: --tokenizer without effect here", "eyespot: error: --set, --export without effect here",
    ]  # fmt: skip
    assert verb("distill", tmp_path / "run.yaml", "--set", f"output_dir={tmp_path / 'kd'}", "--set", teacher,
                "--skip-bad") == 0  # fmt: skip


def test_what_cannot_teach_eyes(tiny: Path, rows: Path, tmp_path: Path) -> None:
    import models

    models.tiny_qwen2(tmp_path / "blind")
    with pytest.raises(EyespotError, match="no teacher for eyes"):
        stages.run(distil(tmp_path / "run", tiny, tmp_path / "blind", rows))
    shutil.copytree(tiny, tmp_path / "part")
    kept = {n: w for n, w in weights(tiny / "model.safetensors").items() if "vision_tower.encoder.layer.1." not in n}
    checkpointing.write_tensors(
        tmp_path / "part" / "model.safetensors", {n: torch.from_numpy(w) for n, w in kept.items()}, {"format": "pt"}
    )
    with pytest.raises(EyespotError, match="tensors of the eyes are missing"):
        stages.run(distil(tmp_path / "run", tiny, tmp_path / "part", rows))


def test_a_teacher_needs_no_pooler(tiny: Path, rows: Path, tmp_path: Path) -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    finished(distil(tmp_path / "run", tiny, tmp_path / "vit", rows, max_steps=1))


@pytest.mark.parametrize("size", [None, 48])
def test_siglip_teaches_at_any_size(tiny: Path, rows: Path, tmp_path: Path, size: int | None) -> None:
    import transformers

    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
    )
    transformers.SiglipVisionModel(config).save_pretrained(tmp_path / "siglip")
    keys = {} if size is None else {"teacher_image_size": size}
    recipe = distil(tmp_path / "run", tiny, tmp_path / "siglip", rows, max_steps=2, **keys)
    finished(recipe)
    assert all(math.isfinite(loss) for loss in losses(recipe))


def test_the_architecture_of_internvl2_1b(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Its own widths, heads and picture size, random weights and one layer of each kind: a step, and it compiles."""
    model = {
        "tokenizer_name_or_path": str(tiny),
        "vision_config": {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 16,
        },
        "text_config": {
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 1, "num_attention_heads": 14,
            "num_key_value_heads": 2, "max_position_embeddings": 32768, "rope_theta": 1e6,
        },
    }  # fmt: skip
    base = finished(made(tmp_path / "create", stage="create", model=model))
    recipe = tune(tmp_path / "run", base, rows, max_steps=1, per_device_train_batch_size=1, torch_dtype="bfloat16")
    built = finished(recipe)
    assert math.isfinite(losses(recipe)[0])
    checkpoint = open_checkpoint(str(built))
    assert checkpoint.dtype("model.language_model.layers.0.mlp.up_proj.weight") == "BF16"
    pytest.importorskip("eyespot._native", exc_type=ImportError)
    from eyespot.compile import Options, compile_model

    result = compile_model(checkpoint, tmp_path / "bundle", Options(scheme="W8A8", vision_scheme="W8A8"))
    assert result.family == "internvl/qwen2"


def test_the_model_of_the_package_by_its_name(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lends its tokenizer, teaches, and is transferred, from any directory: our own recipes, a step each."""
    monkeypatch.chdir(tmp_path)
    recipes, data = SRC.parent / "recipes", f"data=[{{path: {rows}}}]"
    few = [f"--set={each}" for each in ("max_steps=1", "warmup_steps=0", "per_device_train_batch_size=2", data)]
    master = ("--set", "teacher_model_name_or_path=eyespot-nano")
    assert verb("train", recipes / "student" / "create.yaml") == 0
    assert verb("distill", recipes / "student" / "distil.yaml", *few, *master) == 0
    assert verb("train", recipes / "student" / "tune.yaml", *few) == 0
    whole = ("--set", f"general_{data}", "--set", "torch_compile=false")
    assert verb("train", recipes / "nano" / "transfer.yaml", *few, *whole) == 0
    assert open_checkpoint(Path("build", "nano", "transfer", "model")).files.keys() >= {"tokenizer.json"}
    assert verb("train", "--check-data", rows, "--tokenizer", "eyespot-nano", "--no-page") == 0
