"""Task formats: what each converter asks and answers, coordinates there and back, and what is written checks clean."""

from __future__ import annotations

import json
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eyespot import boxes, images, multi_view
from eyespot.errors import EyespotError, UsageError
from eyespot.multi_view import CELL, STITCHED, VIEWS
from eyespot.resolution import InternVL
from eyespot.train.data.check import Check
from eyespot.train.data.record import BadRecord, Place, Record, dialogue
from eyespot.train.data.sets import Skipped, open_set
from eyespot.train.data.write import write_jsonl
from eyespot.train.tasks import classification, mixing, region
from eyespot.train.tasks import multi_view as multi_view_rows
from eyespot.train.tasks.annotation import Annotated, Annotations, Thing, grounded
from eyespot.train.tasks.convert import TASKS, Request, convert
from eyespot.train.tasks.grounding import detect
from test_train_data import eyespot, jsonl, picture

CATS = (Thing("cat", (500, 100, 700, 900)), Thing("dog", (0, 0, 250, 500)), Thing("cat", (100, 250, 500, 750)))
CLASSES = ("ant", "bee", "cat", "dog", "eel")


def scene(label: str = "cat") -> Annotated:
    return Annotated(Image.new("RGB", (200, 80)), (200, 80), Place("set", 3), label, CATS)


def texts(record: Record) -> tuple[str, ...]:
    return tuple(turn.text for turn in record.turns)


def test_classification_offers_every_class_or_some() -> None:
    record = classification.multiple_choice(scene(), CLASSES, random.Random(1))
    question, answer = texts(record)
    assert question.startswith("<image>\nClassify the image within one of the given classes: ")
    assert question.endswith(". Answer with one word or short phrase.")
    assert sorted(question.split(": ")[1].split(". ")[0].split(", ")) == list(CLASSES)
    assert answer == "cat"
    some = texts(classification.multiple_choice(scene(), CLASSES, random.Random(1), choices=3))[0]
    offered = some.split(": ")[1].split(". ")[0].split(", ")
    assert len(set(offered)) == 3
    assert "cat" in offered


def test_letters_point_at_the_label_and_no_place_is_favoured() -> None:
    places = {"A": 0, "B": 0, "C": 0, "D": 0}
    for seed in range(400):
        record = classification.multiple_choice(scene(), CLASSES, random.Random(seed), choices=4, letters=True)
        question, letter = texts(record)
        assert f"\n{letter}. cat\n" in question
        places[letter] += 1
    assert min(places.values()) > 60  # 100 expected, sigma 8.7


def test_nothing_to_choose() -> None:
    for labels, choices in ((("cat",), 0), (CLASSES, 1), (CLASSES, -1)):
        with pytest.raises(UsageError, match="nothing to choose"):
            classification.multiple_choice(scene(), labels, random.Random(0), choices)
    with pytest.raises(UsageError, match="more classes than letters"):
        classification.multiple_choice(scene(), ["cat", *map(str, range(26))], random.Random(0), letters=True)


def test_grounding_asks_once_for_a_name() -> None:
    assert [texts(record) for record in detect(scene())] == [
        ("<image>\nDetect <ref>cat</ref>", "<ref>cat</ref><box>[[100,250,500,750], [500,100,700,900]]</box>"),
        ("<image>\nDetect <ref>dog</ref>", "<ref>dog</ref><box>[[0,0,250,500]]</box>"),
    ]


def test_region_both_ways() -> None:
    written, drawn = list(region.written(scene())), list(region.drawn(scene()))
    at = "<box>[[0,0,250,500]]</box>"
    assert texts(written[1]) == (f"<image>\nWhat object is in this location{at}", f"<ref>dog</ref>{at}")
    assert texts(drawn[1]) == ("<image>\nWhat object is in the red box?", "dog")
    seen = np.asarray(images.load(drawn[1].images[0]).image)
    red = np.argwhere((seen == region.COLOUR).all(axis=2))
    assert red.min(axis=0).tolist() == [0, 0]
    assert abs(red.max(axis=0) - [40, 50]).max() <= 1
    assert not (seen[10:30, 10:40] == region.COLOUR).all(axis=2).any()  # a frame, not a field


# Six cameras

BOX = st.tuples(*[st.floats(0, 1)] * 4)


def cameras(size: tuple[int, int] = (160, 90)) -> dict[str, Image.Image]:
    return {view: Image.new("RGB", size, (0, 40 * i, 0)) for i, view in enumerate(VIEWS)}


def test_six_cameras_make_twelve_tiles_and_a_thumbnail() -> None:
    assert STITCHED == (2688, 896)
    cut = InternVL(448, 256).cut(*STITCHED)
    assert (cut.columns, cut.rows, cut.tiles) == (6, 2, 13)


def test_cameras_lie_in_their_cells_with_their_names() -> None:
    seen = np.asarray(multi_view.stitch(cameras()))
    assert seen.shape == (896, 2688, 3)
    for i, _ in enumerate(VIEWS):
        row, column = divmod(i, 3)
        cell = seen[row * 448 : row * 448 + 448, column * 896 : column * 896 + 896]
        assert (cell[200:] == (0, 40 * i, 0)).all()
        letters = np.argwhere((cell == multi_view.MAGENTA).all(axis=2))
        assert len(letters) > 500
        assert letters.max(axis=0)[0] < 70
    assert [VIEWS[0], VIEWS[5]] == ["FRONT_LEFT", "BACK_RIGHT"]


@given(view=st.sampled_from(VIEWS), at=BOX, size=st.tuples(st.integers(20, 4000), st.integers(20, 4000)))
def test_coordinates_there_and_back(view: str, at: tuple[float, ...], size: tuple[int, int]) -> None:
    (x1, x2), (y1, y2) = sorted(at[:2]), sorted(at[2:])
    if x2 - x1 < 0.02 or y2 - y1 < 0.02:  # smaller than the thousandths can tell
        return
    box = (x1 * size[0], y1 * size[1], x2 * size[0], y2 * size[1])
    there = multi_view.to_stitched(view, box, size)
    found, back = multi_view.off_canvas(boxes.to_pixels(there, STITCHED), dict.fromkeys(VIEWS, size))
    assert found == view
    # Half a thousandth of the stitched picture, in pixels of the camera.
    half = [STITCHED[k] / 2000 / CELL[k] * size[k] * (1 + 1e-9) for k in (0, 1)]
    assert all(abs(a - b) <= half[i % 2] for i, (a, b) in enumerate(zip(back, box, strict=True)))


def test_stitched_coordinates_of_known_boxes() -> None:
    whole = (0, 0, 1600, 900)
    assert multi_view.to_stitched("FRONT_LEFT", whole, (1600, 900)) == (0, 0, 333, 500)
    assert multi_view.to_stitched("BACK_RIGHT", whole, (1600, 900)) == (667, 500, 1000, 1000)
    assert multi_view.to_stitched("FRONT", (800, 450, 1600, 900), (1600, 900)) == (500, 250, 667, 500)
    with pytest.raises(EyespotError, match="leaves the picture"):
        multi_view.to_stitched("FRONT", (0, 0, 1601, 900), (1600, 900))


def views(at: Path) -> dict[str, str]:
    for view, image in cameras().items():
        image.save(at / f"{view}.png")
    return {view: f"{view}.png" for view in VIEWS}


def test_bad_views(tmp_path: Path) -> None:
    good: dict[str, Any] = {"views": views(tmp_path), "objects": {"ref": ["car"], "bbox": [[0, 0, 80, 90]]}}

    def fault(**more: Any) -> str:
        with pytest.raises(BadRecord) as caught:
            multi_view_rows.annotated({**good, **more}, Place("set", 4), tmp_path)
        return str(caught.value)

    assert fault().startswith("set:4: objects.view is None")
    assert "objects.view" in fault(objects={**good["objects"], "view": ["UP"]})
    assert "expected 0 boxes, one for each view" in fault(objects={**good["objects"], "view": []})
    assert "objects.bbox is 5" in fault(objects={"ref": ["car"], "bbox": 5, "view": ["FRONT"]})
    assert "views is ['FRONT']" in fault(views={"FRONT": "FRONT.png"})
    outside = {"ref": ["car"], "bbox": [[0, 0, 161, 90]], "view": ["BACK"]}
    assert "within 160x90 pixels" in fault(objects=outside)
    (tmp_path / "BACK.png").write_bytes(b"no")
    assert "BACK.png" in fault(objects={**good["objects"], "view": ["FRONT"]})


# Mixing


class Numbers:
    """A set whose records are numbers."""

    warnings: tuple[str, ...] = ()

    def __init__(self, name: str, length: int) -> None:
        self.name, self.length = name, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Record:
        return Record(dialogue("?", f"{self.name} {index}"))


@pytest.mark.parametrize(
    ("ratio", "general", "wanted"), [("1:4", 100, 10), ("1:1", 100, 40), ("0:1", 9, 0), ("2:1", 30, 80), ("1:5", 3, 8)]
)
def test_mixing_keeps_the_domain_and_draws_the_rest(ratio: str, general: int, wanted: int) -> None:
    mixed = mixing.mix(Numbers("g", general), Numbers("d", 40), mixing.ratio(ratio), seed=3)
    answers = [mixed[i].turns[1].text for i in range(len(mixed))]
    assert [a for a in answers if a[0] == "d"] == [f"d {i}" for i in range(40)]
    drawn = [a for a in answers if a[0] == "g"]
    assert len(drawn) == wanted
    times = [drawn.count(f"g {i}") for i in range(general)]
    assert max(times) - min(times) <= 1
    again = mixing.mix(Numbers("g", general), Numbers("d", 40), mixing.ratio(ratio), seed=3)
    assert [again[i].turns[1].text for i in range(len(again))] == answers


def test_another_seed_draws_others() -> None:
    drawn = [mixing.mix(Numbers("g", 100), Numbers("d", 40), Fraction(1, 4), seed)[0].turns for seed in range(8)]
    assert len(set(drawn)) > 1


@pytest.mark.parametrize("text", ["1", "1:0", "a:b", "-1:2", "1:2:3", "", "9999999999:1"])
def test_bad_ratios(text: str) -> None:
    with pytest.raises(UsageError, match="not a ratio"):
        mixing.ratio(text)


# Whole conversions


def sources(at: Path) -> dict[str, tuple[Path, dict[str, Any], int]]:
    """Task -> its source, options, and records it becomes."""
    for label in CLASSES:
        picture(at / "classes" / label / "1.png")
    picture(at / "a.png")
    found = {"ref": ["cat", "dog", "cat"], "bbox": [[100, 8, 140, 72], [0, 0, 50, 40], [20, 20, 100, 60]]}
    boxed = jsonl(at / "boxed.jsonl", {"image": "a.png", "objects": found}, {"image": "a.png", "objects": found})
    seen = {"ref": ["car", "bus"], "bbox": [[0, 0, 80, 90], [1, 1, 2, 2]], "view": ["BACK", "FRONT"]}
    six = jsonl(at / "six.jsonl", {"views": views(at), "objects": seen})
    for i in range(5):
        picture(at / "clip" / f"{i}.png")
    talk = [{"from": "human", "value": "What moves?"}, {"from": "gpt", "value": "A cat."}]
    clips = jsonl(at / "clips.jsonl", {"video": "clip", "conversations": talk})
    general = jsonl(at / "general.jsonl", *({"id": i, "conversations": talk} for i in range(9)))
    return {
        "internvl": (general, {}, 9),
        "multiple-choice": (at / "classes", {"choices": 3}, 5),
        "grounding": (boxed, {}, 4),
        "region": (boxed, {"drawn": True}, 6),
        "multi-view": (six, {}, 2),
        "frames": (clips, {"most_frames": 3}, 1),
        "mix": (clips, {"general": str(general), "ratio": "3:1"}, 4),
    }


def test_frames_of_a_question_stay_its_question(tmp_path: Path) -> None:
    """`eyespot eval` refuses clips and names this conversion: what makes a row a question must come through."""
    from eyespot.evaluate import load_set

    for i in range(5):
        picture(tmp_path / "clip" / f"{i}.png")
    choice = {"task": "choice", "options": ["cat", "dog"], "novel": True}
    asked = {"conversations": [{"from": "human", "value": "What?\nA. cat\nB. dog"}, {"from": "gpt", "value": "B"}]}
    clips = jsonl(tmp_path / "clips.jsonl", {"video": "clip", **asked, **choice})
    write_jsonl(convert("frames", Request(str(clips), most_frames=3)), tmp_path / "out.jsonl")
    (sample,) = load_set(tmp_path / "out.jsonl")
    assert (sample.task, sample.options, sample.novel, len(sample.images)) == ("choice", ("cat", "dog"), True, 3)


@pytest.mark.parametrize("task", TASKS)
def test_what_a_conversion_writes_checks_clean(task: str, tmp_path: Path) -> None:
    source, options, count = sources(tmp_path)[task]
    made = [texts(record) for record in convert(task, Request(str(source), **options))]
    out = tmp_path / "elsewhere" / "out.jsonl"
    assert write_jsonl(convert(task, Request(str(source), **options)), out) == count == len(made)
    data = open_set(out)
    assert list(Check(data).faults()) == []
    assert [texts(data[i]) for i in range(len(data))] == made


def test_the_verbs_there_and_back(tmp_path: Path) -> None:
    six = sources(tmp_path)["multi-view"][0]
    done = eyespot("convert-data", "multi-view", six, "-o", "out/six.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out/six.jsonl: 2 records\n", "")
    rows = [json.loads(line) for line in (tmp_path / "out" / "six.jsonl").read_text().splitlines()]
    assert rows[0]["image"] == "six_images/00000/000_0.jpg"
    assert (rows[0]["width"], rows[0]["height"]) == STITCHED
    assert rows[0]["conversations"][1]["value"] == "<ref>car</ref><box>[[333,500,500,1000]]</box>"
    done = eyespot("train", "--check-data", "out/six.jsonl", "--no-page", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "2 records, 2 pictures\n2 good, 0 bad\n")
    done = eyespot("convert-data", "sorting", six, "-o", "out/x.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert "no conversion 'sorting'; expected internvl, multiple-choice" in done.stderr


def test_a_bad_row_ends_a_conversion_or_is_counted(tmp_path: Path) -> None:
    good = {"image": "a.png", "label": "cat"}
    picture(tmp_path / "a.png")
    path = jsonl(tmp_path / "set.jsonl", good, {"image": "gone.png", "label": "dog"}, "{", {**good, "label": ""}, good)
    request = Request(str(path))
    out = tmp_path / "out.jsonl"
    with pytest.raises(BadRecord, match=r"set.jsonl:2: picture .*gone.png"):
        write_jsonl(convert("multiple-choice", request), out)
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))
    skipped = Skipped()
    made = list(convert("multiple-choice", Request(str(path), skipped=skipped)))
    assert [str(record.place) for record in made] == [f"{path}:1", f"{path}:5"]
    assert [shown.split(": ")[0] for shown in skipped.shown] == [f"{path}:{n}" for n in (2, 3, 4)]
    jsonl(path, "{")
    out.write_text("kept")
    with pytest.raises(EyespotError, match="no sound record"):
        write_jsonl(convert("grounding", Request(str(path), skipped=Skipped())), out)
    assert out.read_text() == "kept"


def test_bad_annotations(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")

    def fault(**objects: Any) -> str:
        with pytest.raises(BadRecord) as caught:
            grounded({"image": "a.png", "objects": objects}, Place("set", 2), tmp_path)
        return str(caught.value)

    assert fault() == "set:2: 0 names for 0 boxes, expected one each, and at least one"
    assert "1 names for 2 boxes" in fault(ref=["a"], bbox=[[0, 0, 1, 1]] * 2)
    assert "a name is empty" in fault(ref=[" "], bbox=[[0, 0, 1, 1]])
    both = fault(ref=["a", "b"], bbox=[[0, 0, 201, 1], [5, 0, 5, 1]])
    assert "leaves the picture" in both
    assert "no area" in both
    for task, words in (("mix", "takes --general and --ratio"), ("frames", "no such set")):
        with pytest.raises(UsageError, match=words):
            list(convert(task, Request(str(tmp_path / "gone.jsonl"))))
    with pytest.raises(UsageError, match="no such file"):
        Annotations(str(tmp_path / "gone.jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(EyespotError, match="the set is empty"):
        Annotations(str(tmp_path / "empty"))
