"""Training data: every format into the same record, broken and hostile sets, tokens and labels, the check, its page."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel

from eyespot import boxes, images, limits, tensorfile
from eyespot.errors import EyespotError, UsageError
from eyespot.families.internvl import CONVERSATIONS, chat_template
from eyespot.resolution import InternVL
from eyespot.train.data import lines, video
from eyespot.train.data.check import Check
from eyespot.train.data.encode import IGNORE, PLAIN, Encoder, ImageRule, open_encoder
from eyespot.train.data.lines import Lines
from eyespot.train.data.page import draw
from eyespot.train.data.record import BadRecord, Place, Record, Turn, Video, checked, dialogue
from eyespot.train.data.sets import Dataset, Skipped, open_set, records
from eyespot.train.data.write import write_jsonl
from eyespot.video import evenly

SRC = Path(__file__).parent.parent / "src"
ENV = {**os.environ, "PYTHONPATH": str(SRC), "NO_COLOR": "1", "COLUMNS": "200"}
ASK, BOX = "<image>\nDetect <ref>cat</ref>", "<ref>cat</ref><box>[[100,250,500,750]]</box>"  # pixels: 20 20 100 60


def picture(path: Path, size: tuple[int, int] = (200, 80), colour: str = "navy") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def jsonl(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def talk(question: str = ASK, answer: str = BOX) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def row(**more: Any) -> dict[str, Any]:
    return {"image": "a.png", "conversations": talk(), **more}


def shard(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def png(size: tuple[int, int] = (200, 80)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size).save(out, "PNG")
    return out.getvalue()


def eyespot(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "eyespot", *map(str, arguments)],
        capture_output=True, text=True, env=ENV, timeout=60, check=False, cwd=cwd,
    )  # fmt: skip


# Formats


def internvl_set(at: Path) -> Path:
    return jsonl(at / "set.jsonl", row(id="7"))


def meta_set(at: Path) -> Path:
    internvl_set(at)
    entry = {"root": ".", "annotation": "set.jsonl", "data_augment": False, "repeat_time": 1, "length": 1}
    (at / "meta.json").write_text(json.dumps({"cats": entry}))
    return at / "meta.json"


def llava_set(at: Path) -> Path:
    (at / "set.json").write_text(json.dumps([row(id="7")], indent=2))
    return at / "set.json"


def swift_set(at: Path) -> Path:
    messages = [
        {"role": "user", "content": "<image>\nDetect <ref-object>"},
        {"role": "assistant", "content": "<ref-object><bbox>"},
    ]
    objects = {"ref": ["cat", "cat"], "bbox": [[20, 20, 100, 60]]}
    return jsonl(at / "set.jsonl", {"id": "7", "messages": messages, "images": ["a.png"], "objects": objects})


def llama_factory_set(at: Path) -> Path:
    words = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {
        "file_name": "set.json", "formatting": "sharegpt", "tags": words,
        "columns": {"messages": "messages", "images": "images"},
    }  # fmt: skip
    (at / "dataset_info.json").write_text(json.dumps({"cats": entry}))
    messages = [{"role": "user", "content": ASK}, {"role": "assistant", "content": BOX}]
    (at / "set.json").write_text(json.dumps([{"id": "7", "messages": messages, "images": ["a.png"]}]))
    return at / "dataset_info.json"


def webdataset_set(at: Path) -> Path:
    data = json.dumps({"conversations": talk()}).encode()
    return shard(at / "set.tar", ("7.json", data), ("7.png", png()))


FORMATS = {
    "internvl": internvl_set,
    "meta": meta_set,
    "llava": llava_set,
    "swift": swift_set,
    "llama_factory": llama_factory_set,
    "webdataset": webdataset_set,
}


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_becomes_the_same_record(format: str, forced: bool, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    data = open_set(FORMATS[format](tmp_path), format if forced else None)
    assert len(data) == 1
    record = checked(data[0])
    assert record.turns == dialogue(ASK, BOX)
    assert record.id == "7"
    assert [images.size(p) for p in record.images] == [(200, 80)]
    assert record.unused == ()
    assert list(Check(data).faults()) == []
    assert pickle.loads(pickle.dumps(data))[0] == record  # as workers get it
    written = tmp_path / "out" / "again.jsonl"
    assert write_jsonl([record], written) == 1
    again = open_set(written)[0]
    assert (again.turns, images.load(again.images[0]).width) == (record.turns, 200)


def test_a_row_keeps_its_tiles_and_its_augmentation(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    record = replace(checked(open_set(jsonl(tmp_path / "a.jsonl", row()))[0]), max_dynamic_patch=3, data_augment=True)
    assert write_jsonl([record], tmp_path / "b.jsonl") == 1
    again = open_set(tmp_path / "b.jsonl")[0]
    assert (again.max_dynamic_patch, again.data_augment, again.unused) == (3, True, ())
    with pytest.raises(BadRecord, match="max_dynamic_patch is 0"):
        open_set(jsonl(tmp_path / "c.jsonl", row(max_dynamic_patch=0)))[0]
    meta = {"one": {"root": ".", "annotation": "b.jsonl", "repeat_time": 1}}  # says nothing of either: the row counts
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    said = open_set(f"{tmp_path / 'meta.json'}#one")[0]
    assert (said.max_dynamic_patch, said.data_augment) == (3, True)


def test_pictures_that_cannot_be_written_are_counted(tmp_path: Path) -> None:
    """Bytes are decoded when they are written: that is a bad record too."""
    good = Record(dialogue("<image>\nWhat?", "A."), (Image.new("RGB", (4, 4)),))
    bad = replace(good, images=(b"no picture",), place=Place("shard.tar", "7"))
    with pytest.raises(BadRecord, match=r"shard\.tar:7: .*not a picture"):
        write_jsonl([good, bad], tmp_path / "x.jsonl")
    skipped = Skipped()
    assert write_jsonl([bad, good, bad], tmp_path / "x.jsonl", skipped) == 1
    assert skipped.total == 2
    assert images.load(open_set(tmp_path / "x.jsonl")[0].images[0]).width == 4


def test_internvl_puts_one_picture_first_and_llava_does_not(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    one = row(conversations=talk("What is it?", "A cat."))
    assert checked(open_set(jsonl(tmp_path / "a.jsonl", one))[0]).turns[0].text == "<image>\nWhat is it?"
    (tmp_path / "a.json").write_text(json.dumps([one]))
    with pytest.raises(BadRecord, match="0 <image> for 1 images"):
        checked(open_set(tmp_path / "a.json")[0])


def test_system_turn_several_pictures_and_stated_sizes(tmp_path: Path) -> None:
    turns = [{"from": "system", "value": "Be brief."}, *talk("<image><image>\nSame?", "Yes.")]
    raw = {"image": ["a.png", "b.png"], "width_list": [4, 5], "height_list": [6, 7], "conversations": turns, "x": 1}
    record = checked(open_set(jsonl(tmp_path / "a.jsonl", raw), root=Path("/data"))[0])
    assert record.turns[0] == Turn("system", "Be brief.")
    assert record.images == (Path("/data/a.png"), Path("/data/b.png"))
    assert record.sizes == ((4, 6), (5, 7))
    assert record.unused == ("x",)


@pytest.mark.parametrize(
    ("kind", "box"),
    [("real", [20, 20, 100, 60]), ("norm1", [0.1, 0.25, 0.5, 0.75]), ("norm1000", [100, 250, 500, 750])],
)
def test_swift_boxes_of_every_unit(kind: str, box: list[float], tmp_path: Path) -> None:
    picture(tmp_path / "a.png", (9, 9))
    picture(tmp_path / "b.png")
    raw = {
        "messages": [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "<bbox>"}],
        "images": ["a.png", "b.png"],
        "objects": {"bbox": [box], "bbox_type": kind, "image_id": [1]},
    }
    record = checked(open_set(jsonl(tmp_path / "a.jsonl", raw))[0])
    assert record.turns == dialogue("<image>\n<image>\nWhere?", "<box>[[100,250,500,750]]</box>")


def test_meta_repeats_cuts_and_sets(tmp_path: Path) -> None:
    picture(tmp_path / "pictures" / "a.png")
    jsonl(tmp_path / "set.jsonl", *(row(id=i) for i in range(10)))
    base = {"root": "pictures", "annotation": "set.jsonl"}
    sets = {
        "first": {**base, "repeat_time": 0.35, "max_dynamic_patch": 4},
        "twice": {**base, "repeat_time": 2, "data_augment": True, "length": 11, "conv_style": "x"},
    }
    (tmp_path / "meta.json").write_text(json.dumps(sets))
    data = open_set(tmp_path / "meta.json")
    assert [data[i].id for i in range(len(data))] == [str(i) for i in [0, 1, 2, *range(10), *range(10)]]
    assert (data[2].max_dynamic_patch, data[2].data_augment) == (4, False)
    assert (data[3].max_dynamic_patch, data[22].data_augment) == (None, True)
    assert data.warnings == (
        "'twice': conv_style is not used",
        "'twice': length says 11, the file has 10 rows",
    )
    with pytest.raises(IndexError):
        data[23]
    check = Check(data)
    assert list(check.faults()) == []
    assert (check.records, len(data)) == (13, 23)
    assert len(open_set(f"{tmp_path / 'meta.json'}#first")) == 3


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"repeat_time": 1.5}, "repeat_time"),
        ({"repeat_time": 0}, "repeat_time"),
        ({"root": 3}, "not a path"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch"),
        ({"data_augment": "yes"}, "data_augment"),
        ({"annotation": "gone.jsonl"}, "gone.jsonl: cannot be read"),
    ],
)
def test_bad_meta(entry: dict[str, Any], words: str, tmp_path: Path) -> None:
    jsonl(tmp_path / "set.jsonl", row())
    (tmp_path / "meta.json").write_text(json.dumps({"s": {"root": ".", "annotation": "set.jsonl", **entry}}))
    with pytest.raises(EyespotError, match=words):
        open_set(tmp_path / "meta.json")


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"hf_hub_url": "org/set"}, "names no file"),
        ({"file_name": "set.json"}, "formatting; found alpaca"),
        ({"file_name": "set.json", "formatting": "sharegpt", "ranking": True}, "preferences"),
        ({"file_name": "set.json", "formatting": "sharegpt", "columns": {"audios": "a"}}, "audios"),
    ],
)
def test_llama_factory_sets_that_are_refused(entry: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"s": entry}))
    with pytest.raises(EyespotError, match=words):
        open_set(tmp_path / "dataset_info.json", "llama_factory")


# Shards


def test_shards_captions_parts_and_ranges(tmp_path: Path) -> None:
    asked = json.dumps({"messages": [{"role": "user", "content": "Same?"}, {"role": "assistant", "content": "No."}]})
    shard(tmp_path / "s-00.tar", ("x/1.png", png()), ("x/1.txt", b" A cat. "), ("x/1.json", b'{"width": 3}'))
    found = {"ref": ["cat"], "bbox": [[20, 20, 100, 60]]}
    boxed = [{"role": "user", "content": "<ref-object>?"}, {"role": "assistant", "content": "<bbox>"}]
    shard(
        tmp_path / "b" / "s.tar",
        ("1.png", png()),
        ("1.json", json.dumps({"messages": boxed, "objects": found}).encode()),
    )
    assert checked(open_set(tmp_path / "b")[0]).turns == dialogue(
        "<image>\n<ref>cat</ref>?", "<box>[[100,250,500,750]]</box>"
    )
    shard(tmp_path / "s-01.tar", ("2.0.png", png()), ("2.json", asked.encode()), ("2.1.PNG", png((5, 4))))
    for source in (tmp_path, f"{tmp_path}/s-{{00..01}}.tar"):
        data = open_set(source)
        first, second = checked(data[0]), checked(data[1])
        assert len(data) == 2
        assert first.turns == dialogue("<image>\nDescribe the picture.", "A cat.")
        assert first.place == Place(str(tmp_path / "s-00.tar"), "x/1")
        assert second.turns[0].text == "<image>\n<image>\nSame?"
        assert [images.size(p) for p in second.images] == [(200, 80), (5, 4)]


def test_shard_with_long_names(tmp_path: Path) -> None:
    names = ["d" * 150 + f"/{i}" for i in range(3)]
    shard(tmp_path / "s.tar", *((f"{n}.{k}", d) for n in names for k, d in (("png", png()), ("txt", b"a cat"))))
    data = open_set(tmp_path / "s.tar")
    assert [data[i].id for i in range(len(data))] == names


def test_broken_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = shard(tmp_path / "s.tar", ("1.png", png()), ("1.txt", b"a"), ("2.png", png()), ("2.txt", b"b" * 900))
    (tmp_path / "cut.tar").write_bytes(whole.read_bytes()[:3700])
    faults = [str(fault) for fault in Check(open_set(tmp_path / "cut.tar")).faults()]
    assert len(faults) == 2
    assert all("cut off" in fault for fault in faults)
    (tmp_path / "no.tar").write_bytes(b"\x1f\x8b" + bytes(2000))
    with pytest.raises(EyespotError, match=r"no.tar: cannot be read as a tar file"):
        open_set(tmp_path / "no.tar")
    monkeypatch.setattr(limits, "RECORD_BYTES", 800)
    with pytest.raises(BadRecord, match=r"s.tar:2: txt of 900 bytes, expected at most 800"):
        open_set(whole)[1]


@pytest.mark.parametrize("size", [-512, -1])
def test_a_header_in_a_shard_may_not_lead_back_to_itself(tmp_path: Path, size: int) -> None:
    info = tarfile.TarInfo("a.json")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" + (size & ((1 << 88) - 1)).to_bytes(11, "big")  # base 256
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + 8 * 32 + sum(header[156:]))
    (tmp_path / "s.tar").write_bytes(bytes(header) + bytes(4096))
    with pytest.raises(EyespotError, match="cannot be read as a tar file"):
        open_set(tmp_path / "s.tar")


def test_a_header_in_a_shard_may_not_claim_gigabytes(tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, (8 << 30) - 1
    (tmp_path / "s.tar").write_bytes(info.tobuf(tarfile.USTAR_FORMAT) + bytes(4096))
    tracemalloc.start()
    with pytest.raises(EyespotError, match="cannot be read as a tar file"):
        open_set(tmp_path / "s.tar")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


# Lines

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=4), max_size=6)


@settings(max_examples=150, deadline=None)
@given(rows=OBJECTS, indent=st.sampled_from([None, 0, 3]), ascii=st.booleans(), chunk=st.sampled_from([1, 7, 1 << 20]))
def test_rows_of_an_array_by_offset(
    rows: list[dict[str, Any]], indent: int | None, ascii: bool, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("array") / "a.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "CHUNK", chunk)
        found = Lines(path)
    assert [found.row(i) for i in range(len(found))] == rows
    data = path.read_bytes()
    assert [found.place(i).line for i in range(len(found))] == [data[:s].count(b"\n") + 1 for s in found.starts]


def test_lines_blank_windows_and_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'\n{"a": 1}\r\n   \n\n{"a": "\xc3\xa9\xe2\x80\xa8"}\r\n{"a": 3}')
    found = Lines(tmp_path / "a.jsonl")
    assert [found.row(i)["a"] for i in range(3)] == [1, "é\u2028", 3]
    assert [found.place(i).line for i in range(len(found))] == [2, 5, 6]


def test_one_line_may_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECORD_BYTES", 1000)
    jsonl(tmp_path / "a.jsonl", row(), "x" * 100_000, row())
    found = Lines(tmp_path / "a.jsonl")
    assert len(found) == 3
    assert found.row(2) == row()
    with pytest.raises(BadRecord, match=r"a.jsonl:2: 100001 bytes in one record, expected at most 1000"):
        found.row(1)
    (tmp_path / "a.json").write_text(json.dumps([row(), row(id="x" * 50_000), row()]))
    with pytest.raises(BadRecord, match="50"):
        Lines(tmp_path / "a.json").row(1)


def test_a_large_set_is_not_held_in_memory(tmp_path: Path) -> None:
    text = json.dumps(row(id="x" * 400)) + "\n"
    with open(tmp_path / "a.jsonl", "w") as file:
        for _ in range(50):
            file.write(text * 1000)
    tracemalloc.start()
    data = open_set(tmp_path / "a.jsonl")
    assert len(data) == 50_000
    assert data[49_999].place.line == 50_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "a.jsonl").stat().st_size > 25e6
    assert peak < 3e6  # 24 bytes a row, arrays that grow


@pytest.mark.parametrize(
    "tail", ['{"a": 1', ', {"a": 1}', "] x", '{"a": 1} {"b"', "3]", '{"a": nul}]', '{"a": "' + "\\u12", "", ","]
)
def test_an_array_that_breaks_off_keeps_what_came_before(tail: str, tmp_path: Path) -> None:
    comma = "" if tail.startswith((",", "]")) or not tail else ","
    (tmp_path / "a.json").write_text(f'[\n{{"a": 0}}{comma}\n{tail}')
    found = Lines(tmp_path / "a.json")
    assert found.row(0) == {"a": 0}
    with pytest.raises(BadRecord, match=r"a.json:3: the JSON array is malformed"):
        found.row(len(found) - 1)


# What is wrong with a record

BAD_ROWS: dict[str, tuple[Any, str]] = {
    "not JSON": ('{"image": ', "not valid JSON"),
    "not an object": ("[1]", "not an object but a list"),
    "duplicate key": ('{"image": "a.png", "image": "b.png"}', "duplicate key"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "no conversation": ({"image": "a.png"}, "the conversation is None, expected a list of turns"),
    "turn without text": (row(conversations=[{"from": "human"}]), "turn 1"),
    "unknown speaker": (row(conversations=[{"from": "dog", "value": "woof"}]), "turn 1: from is 'dog', expected"),
    "no answer": (row(conversations=talk()[:1]), "turns are user, expected"),
    "two questions": (row(conversations=[talk("And?")[0], *talk()]), "turns are user user assistant"),
    "empty answer": (row(conversations=talk(ASK, " ")), "an empty answer"),
    "a picture too many": (row(image=["a.png", "a.png"]), "1 <image> for 2 images"),
    "a mark too many": (row(conversations=talk("<image><image>")), "2 <image> for 1 images"),
    "a mark in the answer": (row(conversations=talk(ASK, "<image>")), "in a turn of the assistant"),
    "missing picture": (row(image="gone.png"), "picture '.*gone.png' cannot be read (No such file"),
    "no picture": (row(image="note.txt"), "note.txt: not a picture eyespot reads"),
    "cut off": (row(image="cut.jpg"), "cut.jpg: the picture cannot be decoded"),
    "huge": (row(image="huge.png"), "huge.png: the picture is too large"),
    "on the net": (row(image="https://a.b/c.png"), "nothing is downloaded here"),
    "not a path": (row(image=[3]), "image is 3, expected a path"),
    "wrong size": (row(width=80, height=200), "picture 1 is 200x80 pixels, the record says 80x200"),
    "half a size": (row(width=80), "width and height"),
    "box outside": (row(conversations=talk(ASK, "<box>[[0,0,1001,5]]</box>")), "[0,0,1001,5] leaves the picture"),
    "box upside down": (row(conversations=talk(ASK, "<box>[[9,0,3,5]]</box>")), "[9,0,3,5] leaves the picture"),
    "box of three": (row(conversations=talk(ASK, "<box>[[1,2,3]]</box>")), "malformed box"),
    "box in words": (row(conversations=talk(ASK, "<box>here</box>")), "malformed box"),
    "box left open": (row(conversations=talk(ASK, "<box>[[1,2,3,4]]")), "malformed box"),
    "clip gone": ({"video": "clip", "conversations": talk("<video>?", "A.")}, "clip' cannot be read"),
    "clip in words": ({"video": "d", "clip": "all", "conversations": talk("<video>", "A.")}, "clip is 'all'"),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path) -> Path:
    picture(tmp_path / "a.png")
    (tmp_path / "note.txt").write_text("a note")
    out = io.BytesIO()
    Image.effect_noise((200, 80), 50).convert("RGB").save(out, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(out.getvalue()[:2000])
    huge = bytearray(png((1, 1)))
    huge[16:24] = (60_000).to_bytes(4, "big") * 2
    huge[29:33] = zlib.crc32(huge[12:29]).to_bytes(4, "big")
    (tmp_path / "huge.png").write_bytes(huge)
    return tmp_path


@pytest.mark.parametrize("name", BAD_ROWS)
def test_every_fault_is_told_with_file_and_line(name: str, place: Path) -> None:
    raw, words = BAD_ROWS[name]
    data = open_set(jsonl(place / "set.jsonl", row(), "", raw, row()), "internvl")
    check = Check(data)
    [fault] = check.faults()
    assert str(fault).startswith(f"{place / 'set.jsonl'}:3: ")
    for part in words.split(".*"):
        assert part in fault.what
    assert (check.records, check.good, check.bad) == (3, 2, 1)


def test_faults_of_one_record_come_together(place: Path) -> None:
    bad = row(image=["gone.png", "cut.jpg"], conversations=talk("<image><image>", "Yes."))
    faults = list(Check(open_set(jsonl(place / "set.jsonl", bad))).faults())
    assert len(faults) == 2
    assert "gone.png" in faults[0].what
    assert "cut.jpg" in faults[1].what
    quick = list(Check(open_set(place / "set.jsonl"), decode=False).faults())
    assert [f.what for f in quick] == [faults[0].what]


def test_bad_swift_rows(place: Path) -> None:
    messages = [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "<bbox>"}]

    def fault(**more: Any) -> str:
        path = jsonl(place / "set.jsonl", {"messages": messages, "images": ["a.png"], **more})
        with pytest.raises(BadRecord) as caught:
            open_set(path)[0]
        return str(caught.value)

    assert "0 of them in objects" in fault(objects={"ref": [], "bbox": [], "x": 1})
    assert "leaves the picture" in fault(objects={"bbox": [[0, 0, 201, 5]]})
    assert "no area" in fault(objects={"bbox": [[5, 5, 5, 9]]})
    assert "no area" in fault(objects={"bbox": [[float(5), 5, 5, 9]], "bbox_type": "real"})
    assert "bbox_type is 'cm'" in fault(objects={"bbox": [[0, 0, 1, 1]], "bbox_type": "cm"})
    assert "image_id 1 is 1" in fault(objects={"bbox": [[0, 0, 1, 1]], "image_id": [1]})
    assert "as ms-swift 3 writes it" in fault(objects="[{}]")
    assert "audios" in fault(audios=["a.wav"])
    assert "gone.png" in fault(images=["gone.png"], objects={"bbox": [[0, 0, 1, 1]]})
    messages[1]["loss"] = False  # type: ignore[assignment]
    assert "'loss' of a message" in fault()


def test_skip_bad_counts(place: Path) -> None:
    data = open_set(jsonl(place / "set.jsonl", row(id=1), "{", row(id=2), row(image=[])))
    with pytest.raises(BadRecord, match=":2: "):
        list(records(data, range(4)))
    skipped = Skipped()
    assert [r.id for r in records(data, [2, 1, 0, 3], skipped)] == ["2", "1"]
    assert skipped.total == 2
    assert ":2: " in skipped.shown[0]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
@pytest.mark.parametrize("text", ["", " \n\n", "[]", "{}", '{"a": {}}', "\x00", '[{"q": 1}]', '{"q": 1}\n'])
def test_files_that_are_no_sets(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(EyespotError, match=r"a.json"):
        open_set(tmp_path / name)


def test_sets_that_are_not_there(tmp_path: Path) -> None:
    for source in (tmp_path / "no.jsonl", f"{tmp_path}/no.json#x"):
        with pytest.raises(UsageError, match="no such set"):
            open_set(source)
    with pytest.raises(EyespotError, match="no shards"):
        open_set(tmp_path)
    with pytest.raises(UsageError, match="no data format 'alpaca'"):
        open_set(tmp_path, "alpaca")


# Boxes


@settings(max_examples=200)
@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_there_and_back(size: tuple[int, int], at: list[float]) -> None:
    x1, x2 = sorted((at[0] * size[0], at[1] * size[0]))
    y1, y2 = sorted((at[2] * size[1], at[3] * size[1]))
    if not (x1 < x2 and y1 < y2):
        return
    box = boxes.to_thousandths((x1, y1, x2, y2), size)
    found, faults = boxes.find(f"x {boxes.write([box, box])} y")
    assert found == [box, box]
    assert faults == []
    back = boxes.to_pixels(box, size)
    half = [side / 2000 * (1 + 1e-9) for side in size]  # rounding to whole thousandths
    assert all(abs(a - b) <= half[i % 2] for i, (a, b) in enumerate(zip(back, (x1, y1, x2, y2), strict=True)))


def test_box_texts() -> None:
    assert boxes.find("<box>[[1, 2, 3, 4],[5,6 , 7,8]]</box>") == ([(1, 2, 3, 4), (5, 6, 7, 8)], [])
    assert len(boxes.find("<box>" + "[" * 100_000)[1]) == 1
    with pytest.raises(EyespotError, match="no area"):
        boxes.check((float("nan"), 0, 1, 1), (2, 2))


# Tokens


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = ByteLevel()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"])
    return made


RULE = ImageRule(InternVL(32, 4, max_tiles=6))
TURNS = (*dialogue("<image>\nWhat?", "A cat."), *dialogue("Sure?", "Yes."))


@pytest.mark.parametrize("template", ["Hermes-2", "internvl2_5"])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_tokens_are_those_of_the_chat_template(template: str, system: str | None, tokenizer: Tokenizer) -> None:
    conversation = CONVERSATIONS[template]
    turns = TURNS if system is None else (Turn("system", system), *TURNS)
    record = Record(turns, (Image.new("RGB", (64, 32)),))
    encoded = Encoder(tokenizer, RULE, conversation).encode(record)
    messages = [{"role": turn.role, "content": turn.text} for turn in turns]
    truth = jinja2.Template(chat_template(conversation, conversation.system)).render(messages=messages)
    assert encoded.tiles[0].tiles == 3  # two and the thumbnail
    assert encoded.image_tokens == 12
    expected = truth.replace("<image>", "<img>" + "<IMG_CONTEXT>" * 12 + "</img>")
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == expected
    learned = [label for label in encoded.labels if label != IGNORE]
    assert tokenizer.decode(learned, skip_special_tokens=False) == "A cat.<|im_end|>Yes.<|im_end|>"
    assert all(label in (IGNORE, i) for i, label in zip(encoded.ids, encoded.labels, strict=True))


def test_pictures_share_the_tiles(tokenizer: Tokenizer) -> None:
    wide = Image.new("RGB", (320, 64))
    two = Record(dialogue("<image><image>?", "A."), (wide, wide))
    assert [cut.columns * cut.rows for cut in RULE.cut(Record(dialogue("<image>", "A."), (wide,)))] == [5]
    assert [cut.columns * cut.rows for cut in RULE.cut(two)] == [3, 3]
    assert [cut.columns * cut.rows for cut in RULE.cut(replace(two, max_dynamic_patch=1))] == [1, 1]
    encoded = Encoder(tokenizer, RULE).encode(two)
    assert encoded.image_tokens == encoded.ids.count(tokenizer.token_to_id("<IMG_CONTEXT>")) == 2 * 4 * 4


def test_text_may_not_speak_control_tokens(tokenizer: Tokenizer) -> None:
    encoder = Encoder(tokenizer, RULE)
    for token in ("<IMG_CONTEXT>", "<|im_end|>", "<|im_start|>"):
        with pytest.raises(BadRecord, match="control token"):
            encoder.encode(Record(dialogue(f"a {token} b", "A.")))
    with pytest.raises(EyespotError, match="lacks tokens; found <img>"):
        Encoder(Tokenizer(models.BPE({"a": 0}, [])), RULE)
    assert Encoder(tokenizer, RULE).conversation is PLAIN


def test_a_sample_longer_than_the_context(place: Path, tokenizer: Tokenizer) -> None:
    data = open_set(jsonl(place / "set.jsonl", row(), row(conversations=talk(ASK, "x" * 500))))
    check = Check(data, Encoder(tokenizer, RULE), ctx_size=400)
    [fault] = check.faults()
    assert fault.place.line == 2
    assert "tokens, 16 of them pictures, expected at most 400" in fault.what
    lengths = check.summary()["lengths"]
    assert lengths["image_tokens"] == {"min": 16, "median": 16, "p95": 16, "max": 16, "total": 16}
    assert lengths["learned"]["total"] == len(BOX) + 1


def test_encoder_of_a_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    encoder = open_encoder(tmp_path / "tokenizer.json", max_tiles=2)
    assert encoder.rule == ImageRule(InternVL(448, 256, max_tiles=2))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(EyespotError, match="not a tokenizer"):
        open_encoder(tmp_path / "tokenizer.json")


def test_encoder_of_a_checkpoint(tokenizer: Tokenizer, tmp_path: Path) -> None:
    eyes = {
        "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 1, "patch_size": 4,
        "image_size": 32, "layer_norm_eps": 1e-6, "norm_type": "layer_norm", "qkv_bias": True, "hidden_act": "gelu",
        "qk_normalization": False,
    }  # fmt: skip
    words = {
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096,
        "vocab_size": 300, "rope_theta": 1e6, "hidden_act": "silu", "tie_word_embeddings": True,
    }  # fmt: skip
    config = {
        "architectures": ["InternVLChatModel"], "vision_config": eyes, "llm_config": words, "template": "Hermes-2",
        "max_dynamic_patch": 5, "downsample_ratio": 0.5, "ps_version": "v2", "use_thumbnail": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with open(tmp_path / "model.safetensors", "wb") as file:
        tensorfile.write(file, {"x": ("F32", (1,))}, [("x", np.zeros(1, np.float32))])
    encoder = open_encoder(tmp_path)
    assert encoder.rule == ImageRule(InternVL(32, 16, min_tiles=1, max_tiles=5, thumbnail=False))
    assert encoder.conversation == CONVERSATIONS["Hermes-2"]


# Clips


def test_clips_become_frames(tmp_path: Path) -> None:
    for i in range(100):
        picture(tmp_path / "clip" / f"{i:03}.png", (8, 8))
    record = Record(dialogue("<video>\nWhat moves?", "A cat."), videos=(Video(tmp_path / "clip"),))
    made = video.expand(record)
    assert [p.name for p in made.images] == [f"{i:03}.png" for i in evenly(100, 40)]  # type: ignore[union-attr]
    assert len(made.images) == 40
    assert made.turns[0].text.startswith("Frame1: <image>\nFrame2: <image>\n")
    assert made.turns[0].text.endswith("Frame40: <image>\nWhat moves?")
    assert made.max_dynamic_patch == 1
    checked(made)


def test_a_written_clip_is_read_again(tmp_path: Path) -> None:
    picture(tmp_path / "film" / "0.png", (8, 8))
    record = Record(dialogue("<video>\nWhat moves?", "A cat."), videos=(Video(tmp_path / "film", (0.5, 2.25)),))
    assert write_jsonl([record], tmp_path / "set.jsonl") == 1
    (video,) = open_set(tmp_path / "set.jsonl")[0].videos
    assert video.clip == (0.5, 2.25)


def test_a_column_may_hold_the_system_turn(tmp_path: Path) -> None:
    """LLaMA-Factory's; a turn of the conversation goes first."""
    entry = {"file_name": "set.json", "formatting": "sharegpt", "columns": {"system": "rule"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"s": entry}))
    own = [{"from": "system", "value": "Be long."}, *talk("Why?", "So.")]
    rows = [{"conversations": said, "rule": "Be brief."} for said in (talk("Why?", "So."), own)]
    (tmp_path / "set.json").write_text(json.dumps(rows))
    found = [record.turns for record in open_set(tmp_path / "dataset_info.json", "llama_factory")]
    assert [turns[0] for turns in found] == [Turn("system", "Be brief."), Turn("system", "Be long.")]
    assert [len(turns) for turns in found] == [3, 3]


def test_animations_and_their_clips(tmp_path: Path) -> None:
    stills = [Image.new("RGB", (6, 6), (40 * i, 0, 0)) for i in range(6)]
    stills[0].save(tmp_path / "a.gif", save_all=True, append_images=stills[1:], duration=500)
    found = video.frames(Video(tmp_path / "a.gif"))
    assert len(found) == 6
    assert abs(found[5].getpixel((0, 0))[0] - 200) < 8  # type: ignore[union-attr]
    part = video.frames(Video(tmp_path / "a.gif", (0.9, 2.4)))
    assert [round(f.getpixel((0, 0))[0] / 40) for f in part] == [1, 2, 3, 4]  # type: ignore[union-attr]
    with pytest.raises(EyespotError, match="no frame in that time"):
        video.frames(Video(tmp_path / "a.gif", (9, 10)))
    stills[0].save(tmp_path / "a.webp", save_all=True, append_images=stills[1:], duration=500)
    assert len(video.frames(Video(tmp_path / "a.webp"), 4)) == 4
    (tmp_path / "b.webp").write_bytes((tmp_path / "a.webp").read_bytes()[:-40])
    (tmp_path / "c.gif").write_bytes(b"GIF89a")
    for name in ("b.webp", "c.gif", "gone.gif"):
        with pytest.raises(EyespotError, match=name):
            video.frames(Video(tmp_path / name))


def test_an_animation_may_not_decode_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stills = [Image.new("RGB", (10, 10), (40 * i, 0, 0)) for i in range(6)]
    stills[0].save(tmp_path / "a.gif", save_all=True, append_images=stills[1:])
    monkeypatch.setattr(limits, "VIDEO_PIXELS", 599)
    with pytest.raises(EyespotError, match="too large; found 6 frames, 10x10"):
        video.frames(Video(tmp_path / "a.gif"))


# Sizes, the page, the verb


def test_size_reads_the_header_as_load_reads_the_picture(tmp_path: Path) -> None:
    for orientation in range(10):
        exif = Image.Exif()
        exif[images.EXIF_ORIENTATION] = orientation
        Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
        loaded = images.load(tmp_path / "a.jpg")
        assert images.size(tmp_path / "a.jpg") == (loaded.width, loaded.height)
    assert images.size(Image.new("L", (3, 4))) == (3, 4)


def test_samples_are_spread_and_drawn(place: Path) -> None:
    bad = row(image="gone.png")
    rows = [
        bad if i in (0, 50) else row(id=i, conversations=talk(ASK, BOX + "\nein Wört\x07 字 " * 99)) for i in range(95)
    ]
    check = Check(open_set(jsonl(place / "set.jsonl", *rows)))
    assert len(list(check.faults())) == 2
    numbers = [int(record.id) for record in check.samples]
    assert len(numbers) == 10
    assert all(abs(n - 9.5 * i) <= 1.5 for i, n in enumerate(numbers))
    draw(check.samples, place / "page.png")
    page = Image.open(place / "page.png")
    assert page.size == (1680, 1700)
    colours = {colour for _, colour in page.getcolors(1 << 24)}
    assert (0xE6, 0x19, 0x4B) in colours  # the box
    assert (0, 0, 128) in colours  # the picture
    assert not list(place.glob(".page*"))


def test_the_verb(place: Path) -> None:
    jsonl(place / "set.jsonl", row(), row(image="gone.png"), row(odd=1))
    done = eyespot("train", "--check-data", "set.jsonl", cwd=place)
    assert done.returncode == 1
    assert "set.jsonl:2: picture 'gone.png' cannot be read" in done.stdout
    assert "odd of 1 records is not used" in done.stdout
    assert done.stderr == "eyespot: error: set.jsonl: 1 of 3 records are bad; expected none, or --skip-bad\n"
    assert (place / "samples.png").exists()
    done = eyespot("train", "--check-data", "set.jsonl", "--skip-bad", "--json", "--page", "p.png", cwd=place)
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert [(f["file"], f["line"]) for f in found["faults"]] == [("set.jsonl", 2)]
    assert (found["good"], found["bad"], found["page"]) == (2, 1, "p.png")
    jsonl(place / "set.jsonl", row(image="gone.png"))
    done = eyespot("train", "--check-data", "set.jsonl", "--skip-bad", "--no-page", cwd=place)
    assert (done.returncode, done.stderr) == (1, "eyespot: error: set.jsonl: no sound record; found 1 bad ones\n")
    done = eyespot("train", "--check-data", "set.jsonl", "-c", "9", cwd=place)
    assert done.returncode == 2


def test_a_set_is_any_object_of_this_shape(place: Path) -> None:
    data: Dataset = open_set(jsonl(place / "set.jsonl", row()))
    assert (data.name, data.warnings) == (str(place / "set.jsonl"), ())
