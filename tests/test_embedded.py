"""The model in the package: what a new user meets first. Its scores are measured by `eyespot eval`, not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import eyespot
from eyespot.checkpoint import local, open_checkpoint
from eyespot.cli.demo import FIND, MODEL, PICTURE, QUESTIONS
from eyespot.compile import Options, compile_model
from eyespot.errors import UsageError
from eyespot.run.draw import draw
from eyespot.train.scenes import Scenes, generate
from test_evaluate import run

MOST_BYTES = 24 << 20
pytestmark = pytest.mark.skipif(not local(MODEL).exists(), reason="eyespot-nano is still being trained")


def test_the_package_holds_a_small_whole_model_with_its_card() -> None:
    folder = local(MODEL)
    assert sum(file.stat().st_size for file in folder.iterdir()) <= MOST_BYTES
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", PICTURE} <= {
        f.name for f in folder.iterdir()
    }
    assert open_checkpoint(MODEL).config["architectures"] == ["InternVLForConditionalGeneration"]


def test_a_folder_of_that_name_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / MODEL).mkdir()
    assert local(MODEL) == Path(MODEL)
    with pytest.raises(UsageError, match=MODEL):
        open_checkpoint("eyespot-nona")
    assert run("demo", "-t", 1, "--find", "") == 0  # which asks the package's own


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drawn.png"
    assert run("demo", "-o", out, "-t", 1, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert [a["question"] for a in told["answers"]] == [*QUESTIONS, f"Detect <ref>{FIND}</ref>"]
    assert all(a["image_tokens"] == 25 and a["timings"]["first_token_s"] > 0 for a in told["answers"])
    with Image.open(local(MODEL) / PICTURE) as picture, Image.open(out) as drawn:
        size = picture.size
        assert drawn.size == size
        assert drawn.tobytes() != picture.convert("RGB").tobytes()
    found = told["answers"][-1]["boxes"]
    assert [box["label"] for box in found] == [FIND]
    assert all(0 <= box["x1"] < box["x2"] <= size[0] and 0 <= box["y1"] < box["y2"] <= size[1] for box in found)
    assert run("demo", "-o", tmp_path / "none" / "x.png", "-t", 1) == 2
    assert run("demo", "--image", tmp_path / "none.png") == 2
    assert run("demo", "-o", tmp_path / "x.xyz", "-t", 1) == 2


def test_demo_answers_right_what_the_readme_shows(tmp_path: Path) -> None:
    compile_model(open_checkpoint(MODEL), tmp_path / "b", Options())
    with eyespot.load(tmp_path / "b", threads=1) as model:
        answers = [
            model.generate(q, images=[local(MODEL) / PICTURE], temperature=0.0, max_tokens=32)
            for q in (*QUESTIONS, f"Detect <ref>{FIND}</ref>")
        ]
    assert [answer.text for answer in answers[:3]] == ["yes", "cat", "top right"]
    (box,) = answers[3].boxes
    assert box.label == FIND
    assert abs((box.x1 + box.x2) / 2 - 331) < 45  # the guitar's middle: a tenth of the picture
    assert abs((box.y1 + box.y2) / 2 - 147) < 45


def test_a_clip_and_a_box_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which way things move, in clips it never saw: most of them right, where guessing gives a quarter. And a box."""
    bundle = tmp_path / "b"
    compile_model(open_checkpoint(MODEL), bundle, Options())
    right = 0
    scenes = Scenes(9, "test", 1, {"motion": 1})
    clips = [scene for scene in map(scenes.__getitem__, range(30)) if scene.questions[0].task == "motion direction"][
        :12
    ]
    for number, scene in enumerate(clips):
        at = tmp_path / f"{number}"
        at.mkdir()
        for i, frame in enumerate(scene.pictures):
            frame.save(at / f"{i}.png")
        asked = ("-p", "Which way does it move?", "--temp", 0, "-n", 8, "--json", "-t", 1)
        assert run("run", "-m", bundle, "--video", at, "--max-frames", 4, *asked) == 0
        told = json.loads(capsys.readouterr().out)
        assert [image["time"] for image in told["images"]] == [0, 1, 2, 3]
        right += told["text"] == scene.questions[0].answer
    assert len(clips) == 12
    assert right >= 10, right
    out = tmp_path / "drawn.png"
    asked = ("-p", f"Detect <ref>{FIND}</ref>", "--temp", 0, "--draw", out, "--json", "-t", 1)
    assert run("run", "-m", bundle, "--image", local(MODEL) / PICTURE, *asked) == 0
    (box,) = json.loads(capsys.readouterr().out)["boxes"]
    assert box["label"] == FIND
    with Image.open(out) as drawn, Image.open(local(MODEL) / PICTURE) as picture:
        assert drawn.getpixel((round(box["x1"]), round((box["y1"] + box["y2"]) / 2))) != picture.convert(
            "RGB"
        ).getpixel((round(box["x1"]), round((box["y1"] + box["y2"]) / 2)))


def test_eval_of_the_float_model_and_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same questions, pixels and prompt through transformers and through the engine, whose cache is float32 here:
    where the model guesses, one of 16 bits settles which digit or letter."""
    assert run("scenes", tmp_path / "set", "-n", 40, "--split", "validation", "--seed", 3, "--json") == 0
    assert run("compile", MODEL, "--scheme", "f32", "--kv-cache", "f32", "-o", tmp_path / "bundle") == 0
    capsys.readouterr()
    out = tmp_path / "out"
    assert (
        run("eval", MODEL, tmp_path / "bundle", "--data", tmp_path / "set", "-o", out, "-t", 1, "--json", "-n", 24) == 0
    )
    models = json.loads(capsys.readouterr().out)["models"]
    assert [m["model"] for m in models] == [f"{MODEL}-float", "bundle"]
    said = []
    for model in models:
        rows = (out / model["model"] / "set.jsonl").read_text().splitlines()[1:]
        said.append([json.loads(row)["prediction"] for row in rows])
    assert len(said[0]) == 40
    assert said[0] == said[1]
    asked = (tmp_path / "set" / "validation.jsonl").read_text().splitlines()
    assert {json.loads(row)["task"].split()[0] for row in asked} == set(generate.TASKS)


def test_boxes_are_drawn_where_they_are_and_labelled() -> None:
    blank = Image.new("RGB", (200, 100), "white")
    drawn = draw(blank, [("cat", (20, 40, 80, 90)), ("", (150, -5, 260, 300))])
    assert blank.getpixel((20, 40)) == (255, 255, 255)
    assert drawn.getpixel((20, 60)) != (255, 255, 255)
    assert drawn.getpixel((50, 65)) == (255, 255, 255)
    assert drawn.getpixel((150, 50)) not in ((255, 255, 255), drawn.getpixel((20, 60)))
    assert any(drawn.getpixel((x, y)) != (255, 255, 255) for x in range(20, 50) for y in range(25, 38))
