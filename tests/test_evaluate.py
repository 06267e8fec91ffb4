"""Metrics against published examples, sets read as hostile input, runs that are broken off, pages and the verb."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eyespot.cli import eval as verb
from eyespot.cli.main import main
from eyespot.errors import EyespotError, UsageError
from eyespot.evaluate import METRICS, TASKS, evaluate, load_set, metrics, pictures
from eyespot.evaluate.report import interval, report
from eyespot.evaluate.vqa_words import normalise

# Metrics. Sources stand beside each table.

ANLS = [  # the ANLS page of the Robust Reading Competition: "What soft drink company name is on the red disk?"
    ("The Coca", 0.0),
    ("CocaCola", 0.89),
    ("Coca cola", 1.0),
    ("Cola", 0.0),
    ("Cat", 0.0),
]


@pytest.mark.parametrize(("said", "score"), ANLS)
def test_anls_as_published(said: str, score: float) -> None:
    assert metrics.anls(said, ["Coca Cola", "Coca Cola Company"]) == pytest.approx(score, abs=0.005)


@given(st.text("ab c", max_size=8), st.text("ab c", max_size=8))
def test_levenshtein_is_a_distance(a: str, b: str) -> None:
    d = metrics._levenshtein(a, b)
    assert d == metrics._levenshtein(b, a)
    assert abs(len(a) - len(b)) <= d <= max(len(a), len(b))
    assert (d == 0) == (a == b)
    assert metrics._levenshtein(f"{a}x", f"{b}x") == d


RELAXED = [  # ChartQA (Masry et al. 2022, 5.1): 5 % for numbers, equality for the rest
    ("95", "100", 1),
    ("105", "100", 1),
    ("94.9", "100", 0),
    ("-95", "-100", 1),
    ("95", "-100", 0),
    ("49%", "50%", 1),
    ("0.49", "50%", 1),
    ("44%", "50%", 0),
    ("0", "0", 1),
    ("0.001", "0", 0),
    ("Yes", "yes", 1),
    ("Yes.", "yes", 0),
    ("2011", "2010", 1),  # the metric's known weakness: years are numbers too
    ("nan", "5", 0),
    ("", "5", 0),
]


@pytest.mark.parametrize(("said", "right", "score"), RELAXED)
def test_relaxed_accuracy(said: str, right: str, score: int) -> None:
    assert metrics.relaxed_accuracy(said, [right]) == score


NORMALISED = [  # visualqa.org/evaluation: the steps and examples listed there
    ("Dont", "don't"),  # "convert dont to don't"
    ("100,978", "100978"),  # "no space is inserted if a comma is between digits"
    ("2:50 pm", "2:50 pm"),  # "we do not remove colons, which often refer to time"
    ("girl's", "girl's"),  # "we do not remove apostrophes"
    ("The two dogs", "2 dogs"),
    ("an apple.", "apple"),
    ("3.5", "3.5"),
    ("red/white", "red white"),
    ("red , white", "red white"),
    ("couldnt've", "couldn't've"),
    ("none", "0"),
    ("well", "well"),
]


@pytest.mark.parametrize(("said", "normal"), NORMALISED)
def test_vqa_normalisation(said: str, normal: str) -> None:
    assert normalise(said) == normal


def test_textvqa_makes_words_alike_first() -> None:
    """A possessive stands alone and thousands lose their comma, where the VQA script keeps one and joins the other."""
    answers = ["joe 's cafe"] * 9 + ["1,000"]
    assert metrics.textvqa_accuracy("Joe's Cafe?", answers) == 1
    assert metrics.vqa_accuracy("Joe's Cafe?", answers) == 0
    assert metrics.textvqa_accuracy("1000", ["1,000"] * 10) == 1


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_vqa_accuracy_over_ten_people(matches: int, score: float) -> None:
    """The well-known steps of "averaged over all 10 choose 9 sets of human annotators"."""
    answers = ["yes"] * matches + [f"other {i}" for i in range(10 - matches)]
    assert metrics.vqa_accuracy("Yes.", answers) == pytest.approx(score)


LETTERS = [
    ("B", "B"),
    ("b.", "B"),
    ("(C)", "C"),
    ("(C) a dog", "C"),
    ("D: the cat", "D"),
    ("**A**", "A"),
    ("A. cat", "A"),
    ("Option B", "B"),
    ("The answer is (C).", "C"),
    ("Answer: D", "D"),
    ("A dog", ""),  # an article
    ("A\nBecause it barks", "A"),
    ("The answer is a dog", ""),
    ("The answer is B because it barks", "B"),
    ("A dog, so the answer is B", "B"),
    ("Because of the light", ""),
    ("I think it is red", ""),
    ("", ""),
]


@pytest.mark.parametrize(("said", "letter"), LETTERS)
def test_option_letter(said: str, letter: str) -> None:
    assert metrics.letter(said) == letter
    assert metrics.option_letter(said, ["B"]) == (letter == "B")


def test_contains_as_ocrbench() -> None:
    assert metrics.contains("The sign says\nSTOP HERE.", ["stop here"]) == 1
    assert metrics.contains("stop", ["stop here"]) == 0
    assert metrics.contains("CENTRE", ["center", "centre"]) == 1


def test_iou_as_torchvision() -> None:
    """The integer boxes of torchvision's own test of box_iou."""
    boxes = [(0, 0, 100, 100), (0, 0, 50, 50), (200, 200, 300, 300), (0, 0, 25, 25)]
    expected = [[1, 0.25, 0], [0.25, 1, 0], [0, 0, 1], [0.0625, 0.25, 0]]
    assert [[metrics.iou(a, b) for b in boxes[:3]] for a in boxes] == expected


def test_iou_at_half() -> None:
    right = "<ref>cat</ref><box>[[0, 0, 100, 100]]</box>"
    assert metrics.iou_at_half("<box>[[0,0,100,50]]</box>", [right]) == 1  # one half exactly
    assert metrics.iou_at_half("<box>[[0,0,100,49]]</box>", [right]) == 0
    assert metrics.iou_at_half("[0,0,99.5,100]", [right]) == 1
    assert metrics.iou_at_half("no box", [right]) == 0
    assert metrics.iou_at_half("[[100,100,0,0]]", [right]) == 0  # turned around: no area


def test_exact_and_phrases() -> None:
    assert metrics.exact_match(" Ice  cream. ", ["ice cream"]) == 1
    assert metrics.exact_match("ice", ["ice cream"]) == 0
    assert metrics.exact_text("Jam", ["jam"]) == 0
    assert metrics.phrases("two dogs and a cat", ["a cat, two dogs"]) == 1
    assert metrics.phrases("a cat", ["a cat and two dogs"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("metric", METRICS)
@given(said=st.text(max_size=40), right=st.text(max_size=40))
@settings(max_examples=50)
def test_any_text_has_a_score(metric: str, said: str, right: str) -> None:
    assert 0 <= METRICS[metric](said, [right, "x"]) <= 1
    assert METRICS[metric](said, []) == 0


def test_every_task_has_its_metric() -> None:
    assert {task.metric for task in TASKS.values()} <= set(METRICS)


# Sets


def row(i: int, question: str, answer: str, **extras: Any) -> dict[str, Any]:
    talk = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": f"q{i}", "image": "dot.png", "conversations": talk, **extras}


def written(folder: Path, *rows: dict[str, Any] | str) -> Path:
    Image.new("RGB", (64, 48), "orange").save(folder / "dot.png")
    path = folder / "set.jsonl"
    path.write_text("".join(f"{r if isinstance(r, str) else json.dumps(r)}\n" for r in rows))
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return written(
        tmp_path,
        row(0, "What is this?", "dot", task="name"),
        row(1, "How many dots?", "1", task="count", answers=["1", "one"], novel=True),
        row(2, "What is this?\nA. cat\nB. dot\nC. car", "B", task="choice", options=["cat", "dot", "car"]),
        row(3, "Detect <ref>dot</ref>", "<box>[[0,0,500,500]]</box>", task="find"),
    )


def test_a_set_becomes_messages(questions: Path) -> None:
    first = load_set(questions)[0]
    image = str(questions.parent / "dot.png")
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "\nWhat is this?"}]
    assert first.messages() == [{"role": "user", "content": parts}]
    assert load_set(questions.parent) == load_set(questions)
    assert [s.task for s in load_set(questions, tasks=["find", "name"])] == ["name", "find"]


def test_frames_stand_where_the_text_has_them(tmp_path: Path) -> None:
    path = written(tmp_path, row(0, "x", "left") | {"image": ["dot.png", "dot.png"]})
    talk = [{"from": "human", "value": "Frame1: <image>\nFrame2: <image>\nWhere?"}, {"from": "gpt", "value": "left"}]
    path.write_text(json.dumps(row(0, "x", "left") | {"image": ["dot.png", "dot.png"], "conversations": talk}))
    kinds = [(p["type"], p.get("text")) for p in load_set(path)[0].messages()[0]["content"]]
    assert kinds == [
        ("text", "Frame1: "),
        ("image", None),
        ("text", "\nFrame2: "),
        ("image", None),
        ("text", "\nWhere?"),
    ]


def test_each_turn_of_a_conversation_is_asked_alone(tmp_path: Path) -> None:
    base = row(0, "What?", "dot")
    base["conversations"] += [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "1"}]
    both = load_set(written(tmp_path, base))
    assert [(s.id, s.question, s.answers) for s in both] == [
        ("q0-0", "<image>\nWhat?", ("dot",)),
        ("q0-1", "<image>\nHow many?", ("1",)),
    ]


BAD = [
    ("{", "not JSON"),
    ("[" * 5000, "not JSON"),
    ("[1]", "malformed"),
    ({"id": "a"}, "no conversations"),
    (row(0, "x", "y") | {"image": []}, "1 <image> for 0 pictures"),
    (row(0, "<image> x", "y"), "2 <image> for 1 pictures"),
    (row(0, "x", "y") | {"image": 3}, "'image' is malformed"),
    (row(0, "x", "y", task=["a"]), "task"),
    (row(0, "x", "y", metric="magic"), "unknown metric"),
    (row(0, "x\nA. a\nB. b", "C", options=["a", "b"]), "options"),
    (row(0, "x", "A", options=["a", "b"]), "options"),
    (row(0, "x", "y") | {"conversations": [{"from": "human", "value": "x"}]}, "out of order"),
    (row(0, "x", "y") | {"conversations": [{"from": "human", "value": 1}, {"from": "gpt", "value": "y"}]}, "turn"),
]


@pytest.mark.parametrize(("bad", "words"), BAD, ids=[words for _, words in BAD])
def test_a_bad_row_is_named_with_file_and_line(tmp_path: Path, bad: Any, words: str) -> None:
    path = written(tmp_path, row(9, "x", "y"), bad)
    with pytest.raises(EyespotError, match=r"set\.jsonl:2: ") as error:
        load_set(path)
    assert words in str(error.value)


def test_bad_sets(tmp_path: Path) -> None:
    with pytest.raises(EyespotError, match="twice"):
        load_set(written(tmp_path, row(0, "x", "y"), row(0, "x", "y")))
    with pytest.raises(UsageError, match="no such task"):
        load_set(written(tmp_path, row(0, "x", "y", task="name")), tasks=["count"])
    with pytest.raises(UsageError, match="no question"):
        load_set(written(tmp_path, ""))
    with pytest.raises(UsageError, match="no set"):
        load_set(tmp_path / "absent")
    (tmp_path / "two.jsonl").write_text("")
    with pytest.raises(UsageError, match="2 jsonl"):
        load_set(tmp_path)


# Runs


class Fake:
    """Answers from a table by question, and counts what it was asked."""

    def __init__(self, table: dict[str, str], stop_after: int = 1 << 30) -> None:
        self.table, self.asked, self.stop_after = table, [], stop_after  # type: ignore[var-annotated]

    def __call__(self, messages: list[dict[str, Any]]) -> str:
        if len(self.asked) == self.stop_after:
            raise KeyboardInterrupt
        text = messages[0]["content"][-1]["text"].strip()
        self.asked.append(text)
        return self.table.get(text, "")


TABLE = {
    "What is this?": "Dot.",
    "How many dots?": "two",
    "What is this?\nA. cat\nB. dot\nC. car": "B",
    "Detect <ref>dot</ref>": "<box>[[0,0,400,500]]</box>",
}


def test_scores_by_task(questions: Path) -> None:
    samples = load_set(questions)
    results = evaluate(Fake(TABLE), samples)
    assert [r.score for r in results] == [1, 0, 1, 1]
    summed = report("m", samples, results)
    assert [(r.task, r.count, r.score) for r in summed.rows] == [
        ("name", 1, 1),
        ("count", 1, 0),
        ("choice", 1, 1),
        ("find", 1, 1),
        ("novel", 1, 0),
        ("all", 4, 0.75),
    ]


def test_a_letter_by_habit_does_not_survive_rotation(questions: Path) -> None:
    samples = load_set(questions, tasks=["choice"], circular=True)
    assert [(s.answers[0], s.options) for s in samples] == [
        ("B", ("cat", "dot", "car")),
        ("A", ("dot", "car", "cat")),
        ("C", ("car", "cat", "dot")),
    ]
    for sample in samples:
        assert sample.options["ABC".index(sample.answers[0])] == "dot"
        assert "\n".join(f"{a}. {o}" for a, o in zip("ABC", sample.options, strict=True)) in sample.question
    habit = evaluate(lambda messages: "B", samples)
    assert [r.score for r in habit] == [1, 0, 0]
    assert report("m", samples, habit).rows[-1].score == 0

    def sees(messages: list[dict[str, Any]]) -> str:
        return next(line[0] for line in messages[0]["content"][-1]["text"].splitlines() if line.endswith(". dot"))

    (choice, total) = report("m", samples, evaluate(sees, samples)).rows
    assert (choice.score, choice.count, total.count) == (1, 1, 1)


def test_a_broken_run_goes_on_where_it_was(questions: Path, tmp_path: Path) -> None:
    samples, out = load_set(questions), tmp_path / "answers.jsonl"
    whole = evaluate(Fake(TABLE), samples)
    first = Fake(TABLE, stop_after=2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(first, samples, out, "m")
    with open(out, "ab") as file:
        file.write(b'{"id": "q2", "pred')  # the process died while it wrote
    second = Fake(TABLE)
    assert evaluate(second, samples, out, "m") == whole
    assert first.asked + second.asked == [s.messages()[0]["content"][-1]["text"].strip() for s in samples]
    third = Fake({})
    assert evaluate(third, samples, out, "m") == whole
    assert third.asked == []


def test_a_run_cut_off_in_its_header_starts_anew(questions: Path, tmp_path: Path) -> None:
    samples, out = load_set(questions), tmp_path / "answers.jsonl"
    out.write_bytes(b'{"eyespot": "ans')
    assert evaluate(Fake(TABLE), samples, out, "m") == evaluate(Fake(TABLE), samples)
    assert len(out.read_text().splitlines()) == 1 + len(samples)


def test_answers_of_another_run_are_not_mixed(questions: Path, tmp_path: Path) -> None:
    samples, out = load_set(questions), tmp_path / "answers.jsonl"
    evaluate(Fake(TABLE), samples, out, "m")
    with pytest.raises(EyespotError, match="another run"):
        evaluate(Fake(TABLE), samples, out, "other")
    with pytest.raises(EyespotError, match="another run"):
        evaluate(Fake(TABLE), samples[:2], out, "m")
    lines = out.read_text().splitlines()
    out.write_text("\n".join([lines[0], '{"id": "zzz", "prediction": ""}', ""]))
    with pytest.raises(EyespotError, match="line 2 answers no question"):
        evaluate(Fake(TABLE), samples, out, "m")


def test_what_the_model_refuses_scores_nothing_and_is_counted(questions: Path, tmp_path: Path) -> None:
    samples, out = load_set(questions), tmp_path / "answers.jsonl"

    def refuses(messages: list[dict[str, Any]]) -> str:
        raise EyespotError("the prompt does not fit")

    results = evaluate(refuses, samples)
    assert {(r.score, r.error) for r in results} == {(0.0, "the prompt does not fit")}
    assert report("m", samples, results).rows[-1].errors == 4
    assert evaluate(refuses, samples, out, "m") == results
    assert evaluate(Fake(TABLE), samples, out, "m") == evaluate(Fake(TABLE), samples)  # refusals are asked again


def test_interval_against_wilsons_own_numbers() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611, by Wilson's method."""
    for hits, n, low, high in ((81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611)):
        assert interval([1.0] * hits + [0.0] * (n - hits)) == pytest.approx((low, high), abs=1e-4)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_an_interval_holds_its_mean(scores: list[float]) -> None:
    low, high = interval(scores)
    assert 0 <= low <= sum(scores) / len(scores) <= high <= 1


# Pages and the verb


def test_failures_are_pictures(questions: Path, tmp_path: Path) -> None:
    samples = load_set(questions)
    results = evaluate(Fake({**TABLE, "Detect <ref>dot</ref>": "<box>[[600,600,900,900]]</box>"}), samples)
    page = tmp_path / "page.png"
    assert pictures.failures(samples, results, page) == 2  # the count and the box
    image = Image.open(page).convert("RGB")
    assert image.size == (2 * pictures.CELL[0], pictures.CELL[1])
    colours = {colour for _, colour in image.getcolors(1 << 16) or []}
    assert {pictures.RIGHT, pictures.WRONG, (255, 165, 0)} <= colours
    assert pictures.failures(samples[:1], results[:1], tmp_path / "none.png") == 0
    assert not (tmp_path / "none.png").exists()
    (questions.parent / "dot.png").write_bytes(b"no picture")
    assert pictures.failures(samples, results, page) == 2


def test_a_plot_is_drawn(questions: Path, tmp_path: Path) -> None:
    samples = load_set(questions)
    summed = [report(name, samples, evaluate(Fake(TABLE), samples)) for name in ("one", "two")]
    pictures.plot(summed, tmp_path / "scores.png")
    assert Image.open(tmp_path / "scores.png").size[1] == 600
    with pytest.raises(UsageError, match=r"\.png"):
        pictures.plot(summed, tmp_path / "scores.xyz")


@pytest.fixture
def fake_models(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def opened(path: str, max_tokens: int, threads: int) -> Any:
        yield Fake(TABLE if Path(path).name == "good" else {}), f"{path} {max_tokens}"

    monkeypatch.setattr(verb, "opened", opened)


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        main([str(a) for a in arguments])
    return int(done.value.code or 0)


@pytest.mark.usefixtures("fake_models")
def test_the_verb_sets_models_side_by_side(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run("eval", "good", "bad", "--data", questions, "-o", out, "--plot", tmp_path / "p.png") == 0
    table = capsys.readouterr().out.splitlines()
    assert table[1].split() == ["task", "metric", "questions", "good", "bad"]
    assert table[-1].split()[:4] == ["all", "mixed", "4", "75.0"]
    assert {p.name for p in (out / "good").iterdir()} == {"set.jsonl", "set.png"}
    assert run("eval", "good", "bad", "--data", questions, "-o", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [m["tasks"][-1]["score"] for m in found["models"]] == [0.75, 0.0]
    assert json.loads((out / "set.json").read_text()) == found


@pytest.mark.usefixtures("fake_models")
def test_the_verb_says_no_in_a_line(questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("eval", "a/good", "b/good", "--data", questions, "-o", tmp_path / "o") == 2
    assert run("eval", "good", "--data", tmp_path / "none.jsonl", "-o", tmp_path / "o") == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 2
    assert "same name" in errors[0]
    assert run("eval", "good", "--data", questions, "--task", "count", "--task", "nmae", "-o", tmp_path / "o") == 2
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "manifest.json").write_text("{}")
    assert run("eval", tmp_path / "good", "--data", questions, "--scheme", "W8A8-g32", "-o", tmp_path / "o") == 2
    errors = capsys.readouterr().err.splitlines()
    assert "no such task; found nmae; expected choice, count, find, name" in errors[0]
    assert "--scheme compiles checkpoints" in errors[1]


def test_a_checkpoint_that_is_not_trained_here_is_its_own_float_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import models

    models.tiny_internvl(tmp_path / "chat")
    one = written(tmp_path, row(0, "What is this?", "dot", task="name"))
    out = tmp_path / "out"
    assert run("eval", tmp_path / "chat", "--scheme", "W8A8-g32", "--data", one, "-o", out, "-n", 2, "--json") == 0
    assert [m["model"] for m in json.loads(capsys.readouterr().out)["models"]] == ["chat-float", "chat-W8A8-g32"]
    assert json.loads((out / "chat-float" / "bundle" / "manifest.json").read_text())


def test_one_picture_without_a_mark_comes_first(tmp_path: Path) -> None:
    """As in a training row."""
    line = row(0, "What is this?", "dot")
    line["conversations"][0]["value"] = "What is this?"
    assert load_set(written(tmp_path, line))[0].question == "<image>\nWhat is this?"


def test_a_model_that_is_not_there_is_told_in_a_line(
    questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x" * 300, str(tmp_path / "none"), "eyespot-nona"):
        assert run("eval", name, "--data", questions, "-o", tmp_path / "o") in (1, 2)
        assert len(capsys.readouterr().err.splitlines()) == 1
