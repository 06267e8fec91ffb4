"""The ways of seeing from the command line: rules, budgets, clips, cameras, boxes, schemas, traces, spoken words."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import models
from eyespot import images
from eyespot.checkpoint import open_checkpoint
from eyespot.compile import Options, compile_model
from eyespot.multi_view import VIEWS
from eyespot.resolution import BlueLMV
from eyespot.run import speech
from eyespot.run.model import Model, load
from eyespot.run.timeline import EVENTS, Timeline
from test_evaluate import run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("seeing")
    models.tiny_internvl_hf(at / "c")
    compile_model(open_checkpoint(at / "c"), at / "b", Options(ctx_size=1024))
    return at / "b"


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise(300, 100).save(tmp_path / "wide.png")
    return tmp_path / "wide.png"


def answer(bundle: Path, capsys: pytest.CaptureFixture[str], *flags: object) -> dict[str, Any]:
    capsys.readouterr()
    assert run("run", "-m", bundle, "-p", "What?", "-n", 4, "-t", 1, "--temp", 0, "--json", "--no-stats", *flags) == 0
    return json.loads(capsys.readouterr().out)


# Rules and budgets


def test_rules_and_budgets(bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tile is worth four tokens; 3:1 is three tiles and a thumbnail by the model's own rule."""
    noise(180, 60).save(picture)
    relaxed = BlueLMV(56, 4)
    tokens = {
        (): 16, ("--image-tokens", 15): 12, ("--image-tokens", 4): 4, ("--max-tiles", 2): 12,
        ("--image-rule", "fixed"): 4, ("--image-ms", 1e-6): 4, ("--image-ms", 1e6): 16,
        ("--image-rule", "bluelm_v"): relaxed.tokens(relaxed.cut(180, 60)),
        ("--image-rule", "bluelm_v", "--image-tokens", 16): 16,
    }  # fmt: skip
    for flags, expected in tokens.items():
        assert answer(bundle, capsys, "--image", picture, *flags)["image_tokens"] == expected, flags
    for flags in (("--image-tokens", 3), ("--image-rule", "qwen2_5_vl"), ("--image-ms", 0), ("--max-tiles", 0)):
        assert run("run", "-m", bundle, "-p", "x", "--image", picture, *flags) == 2, flags


def test_the_sheet_of_cuts(bundle: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "cuts.png"
    assert run("inspect", "--image", picture, "-o", sheet, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    ways = {way["rule"]: way for way in told["rules"]}
    assert list(ways) == ["fixed", "internvl", "llava_next", "bluelm_v", "qwen2_5_vl"]
    assert ways["internvl"]["tokens"] == 4 * 256
    assert ways["qwen2_5_vl"]["canvas"] == [308, 112]
    with Image.open(sheet) as drawn:
        assert drawn.width > 1200
        assert drawn.convert("RGB").getcolors(100) is None  # more than a hundred
    assert run("inspect", bundle, "--image", picture, "-o", sheet, "--image-tokens", 8) == 0
    table = capsys.readouterr().out
    assert "internvl" in table
    assert "qwen" not in table
    noise(2, 500).save(tmp_path / "thread.png")
    assert run("inspect", "--image", tmp_path / "thread.png", "-o", sheet, "--json") == 0
    assert "too narrow" in json.loads(capsys.readouterr().out)["refused"]["qwen2_5_vl"]
    assert run("inspect", "--image", tmp_path / "none.png", "-o", sheet) == 2
    assert run("inspect", "--image", picture, "-o", tmp_path / "none" / "x.png") == 2
    assert run("inspect", "--image", picture, "--verify") == 2
    assert run("inspect") == 2


# Clips and cameras


def test_a_clip_is_frames_with_their_times(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(20):
        noise(60, 50, i).save(tmp_path / f"{i:02}.png")
    seen = answer(bundle, capsys, "--video", tmp_path)["images"]
    assert [frame["time"] for frame in seen] == [1, 3, 6, 8, 11, 13, 15, 18]  # the model card's rule
    assert all(frame["tiles"] == 1 for frame in seen)
    part = answer(bundle, capsys, "--video", tmp_path, "--fps", 0.5, "--video-start", 4, "--video-end", 11)["images"]
    assert [frame["time"] for frame in part] == [4, 6, 8, 10]
    whole = answer(bundle, capsys, "--video", tmp_path, "--video-end", 4, "--max-frames", 4)["images"]
    assert [frame["time"] for frame in whole] == [0, 1, 2, 3]  # all there are
    fast = answer(bundle, capsys, "--video", tmp_path, "--frame-rate", 4, "--max-frames", 2)["images"]
    assert [frame["time"] for frame in fast] == [1.0, 3.5]
    past = answer(bundle, capsys, "--video", tmp_path, "--fps", 0.3, "--video-end", 60)["images"]
    assert [frame["time"] for frame in past] == [0, 3, 6, 10, 13, 16]  # not one more for time that is not there
    few = answer(bundle, capsys, "--video", tmp_path, "--fps", 1, "--max-frames", 2)["images"]
    assert [frame["time"] for frame in few] == [5, 15]
    noise(9, 9).save(tmp_path / "00.gif")
    (tmp_path / "08.png").write_bytes(b"broken")
    assert run("run", "-m", bundle, "-p", "x", "--video", tmp_path, "--fps", 1) == 1
    assert "08.png" in capsys.readouterr().err
    for flags in (("--video", tmp_path / "none"), ("--video", tmp_path, "--image", tmp_path / "00.png"), ("--fps", 1),
                  ("--video", tmp_path, "--video-start", 99), ("--video", tmp_path, "--fps", -1),
                  ("--video", tmp_path / "00.gif", "--frame-rate", 4)):  # fmt: skip
        assert run("run", "-m", bundle, "-p", "x", *flags) == 2, flags


def test_six_cameras(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags: list[object] = []
    for i, view in enumerate(VIEWS):
        noise(160, 90, i).save(tmp_path / f"{view}.png")
        flags += ["--view", f"{view}={tmp_path / view}.png"]
    told = answer(bundle, capsys, *flags, "--max-tiles", 4)
    assert (told["images"][0]["width"], told["images"][0]["height"]) == (2688, 896)
    assert run("run", "-m", bundle, "-p", "x", *flags[:-2]) == 2
    assert "BACK_RIGHT" in capsys.readouterr().err
    assert run("run", "-m", bundle, "-p", "x", "--view", "FRONT") == 2
    with load(bundle, threads=1) as model:
        views = {view: tmp_path / f"{view}.png" for view in VIEWS}
        prompt = model.processor.chat(
            model.processor.messages([{"role": "user", "content": [{"type": "views", "views": views}]}]),
            rule=model.rule({"max_tiles": 4}),
        )
        (box,), faults = model.processor.boxes("<ref>bus</ref><box>[[334,0,500,250]]</box>", prompt)
    assert faults == ()
    assert (box.view, box.label) == ("FRONT", "bus")
    assert box.corners == pytest.approx((0, 0, 80, 45), abs=0.5)


# Boxes and schemas


def test_boxes_are_drawn(bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer that a tiny model would hardly give: its words are put into its mouth."""
    said = "<ref>cat</ref><box>[[100,200,500,900]]</box><box>[[5000,0,6000,9]]</box>"
    monkeypatch.setattr("eyespot.run.tokenizer.Detokenizer.flush", lambda self: said)
    out = tmp_path / "drawn.png"
    assert run("run", "-m", bundle, "-p", "Find it", "--image", picture, "--draw", out, "-n", 1, "-t", 1) == 0
    with Image.open(out) as drawn, Image.open(picture) as before:
        assert drawn.size == before.size
        assert drawn.getpixel((30, 50)) != before.convert("RGB").getpixel((30, 50))
        assert drawn.getpixel((90, 50)) == before.convert("RGB").getpixel((90, 50))
    assert run("run", "-m", bundle, "-p", "x", "--draw", out) == 2
    assert run("run", "-m", bundle, "-p", "x", "--image", picture, "--draw", tmp_path / "none" / "a.png", "-n", 1) == 2


def test_answers_that_follow_a_schema_parse(bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = json.dumps(
        {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    )
    for seed in range(3):
        flags = ("--json-schema", schema, "--temp", 1, "--seed", seed, "-n", 200)
        told = answer(bundle, capsys, "--image", picture, *flags)
        assert told["stop_reason"] == "stop"
        assert json.loads(told["text"])["n"] in (1, 2)
    assert run("run", "-m", bundle, "-p", "x", "--json-schema", '{"enum": []}') == 2
    assert run("run", "-m", bundle, "-p", "x", "--json-schema", "none.json") == 2


# Time


def test_pixels_are_prepared_while_tiles_are_encoded(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.json"
    noise(600, 600).save(tmp_path / "square.png")
    assert run("run", "-m", bundle, "-p", "x", "--image", tmp_path / "square.png", "-n", 3, "--trace", trace) == 0
    events = json.loads(trace.read_text())["traceEvents"]
    names = [event["name"] for event in events]
    assert names.count("encode") == 3  # nine tiles and a thumbnail, four at a time
    assert names.count("prefill") == 1
    assert names.count("decode") >= 1
    assert {event["tid"] for event in events if event["name"] == "prepare"} != {"MainThread"}
    assert sum(event["args"].get("tiles", 0) for event in events) == 10
    assert all(event["dur"] >= 0 and event["ph"] == "X" for event in events)
    capsys.readouterr()
    assert run("run", "-m", bundle, "-p", "x", "--trace", tmp_path / "none" / "t.json", "-n", 1, "--json") == 2
    assert json.loads(capsys.readouterr().out)["tokens"]  # what was answered is not lost


def test_a_timeline_does_not_grow_for_ever() -> None:
    timeline = Timeline()
    for _ in range(EVENTS + 10):
        with timeline.span("x"):
            pass
    assert len(timeline.events) == EVENTS


def test_a_picture_is_encoded_before_it_is_asked_about(bundle: Path, picture: Path) -> None:
    with load(bundle, threads=1) as model:
        model.look([picture], max_tiles=2)
        asked = model.generate("What?", images=[picture], max_tokens=1, max_tiles=2)
        assert not asked.images[0].encoded
        assert model.generate("What?", images=[picture], max_tokens=1).images[0].encoded  # cut another way


def test_released_eyes_see_again(bundle: Path, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(bundle, threads=1) as model:
        first = model.generate("What?", images=[picture], max_tokens=4)
        model.cache.forget()
        model.cache.features._kept.clear()
        gone: list[bool] = []
        release = model.engine.release_eyes
        monkeypatch.setattr(model.engine, "release_eyes", lambda: (gone.append(True), release()))
        model.generate("What else?", images=[noise(90, 60, 7)], max_tokens=1)
        assert not gone  # there is room
        monkeypatch.setattr("eyespot.run.model._available", lambda: 1000.0)
        again = model.generate("What?", images=[picture], max_tokens=4)
        assert again.images[0].encoded
        assert again.tokens == first.tokens
        assert gone == [True]
        model.look([noise(90, 60, 8)])
        assert gone == [True, True]


def test_spoken_words_come_after_the_text(
    bundle: Path, picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures are encoded while the words are heard."""
    spans: dict[str, tuple[float, float]] = {}

    def transcribe(audio: str, model: str) -> str:
        begun = time.perf_counter()
        time.sleep(0.2)
        spans["heard"] = begun, time.perf_counter()
        return "what colour is it"

    def look(self: Model, pictures: Any, **options: Any) -> None:
        begun = time.perf_counter()
        real(self, pictures, **options)
        spans["seen"] = begun, time.perf_counter()

    real = Model.look
    monkeypatch.setattr(speech, "transcribe", transcribe)
    monkeypatch.setattr(Model, "look", look)
    flags = ("-m", bundle, "--audio", tmp_path / "a.wav", "--audio-model", tmp_path, "--image", picture, "-n", 1)
    assert run("run", *flags, "--json") == 0
    out = capsys.readouterr()
    assert "heard: what colour is it" in out.err
    assert not json.loads(out.out)["images"][0]["encoded"]
    assert spans["seen"][0] < spans["heard"][1]
    assert run("run", "-m", bundle, "--audio", tmp_path / "a.wav") == 2
    assert run("run", "-m", bundle) == 2


def test_equal_pictures_are_one(bundle: Path) -> None:
    """By what they show, not by the list they come in."""
    one, two = images.load(noise(90, 60, 1)), images.load(noise(90, 60, 2))
    with load(bundle, threads=1) as model:
        model.generate("a", images=[one, two], max_tokens=1)
        assert [i.encoded for i in model.generate("b", images=[two, one, noise(90, 60, 1)], max_tokens=1).images] == [
            False
        ] * 3
