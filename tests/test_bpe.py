"""The fast form of byte-level tokenizers gives the same ids and texts as the tokenizers library, at any length."""

from __future__ import annotations

import json
import random
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

import eyespot
import models
from eyespot.bundle.byte_bpe import FILE, SHELL, ByteBpe, file_bytes, open_byte_bpe, tabulate
from eyespot.checkpoint import open_checkpoint, tokenizer_json
from eyespot.checkpoint.sentencepiece import CONTROL
from eyespot.compile import Options, compile_model
from eyespot.compile import tokenizer as proof
from eyespot.errors import EyespotError
from eyespot.run.tokenizer import Tokenizer as RunTokenizer
from test_tokenizers import CONTROLS, byte_level_gguf, spm_gguf

PRES = ("qwen2", "llama-bpe", "smollm", "gpt-2", "default")
TEXTS = 5_000  # a pre-tokenizer
SPEEDUP = 30  # at most so many times the time for eight times the length; quadratic would be 64


@lru_cache
def trained() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE trained on docstrings and this repository's own tests."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=4_000, initial_alphabet=alphabet, show_progress=False)
    lines = [path.read_text() for path in sorted(Path(__file__).parent.glob("test_*.py"))]
    tokenizer.train_from_iterator([*lines, *models.corpus(), "   " * 50, "1234567890 " * 20, "é中文👍 " * 50], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), [" ".join(pair) for pair in model["merges"]]


def library(data: bytes) -> Tokenizer:
    return Tokenizer.from_str(data.decode())


def fast(data: bytes) -> ByteBpe:
    table = tabulate(json.loads(data), library(data))
    assert table is not None
    return ByteBpe(*table)


def of_pre(folder: Path, pre: str) -> bytes:
    texts, merges = trained()
    keys = {
        "tokenizer__ggml__tokens": [*texts, *CONTROLS],
        "tokenizer__ggml__token_type": [1] * len(texts) + [CONTROL] * len(CONTROLS),
        "tokenizer__ggml__merges": merges,
        "tokenizer__ggml__bos_token_id": len(texts) + 1,
    }
    return tokenizer_json(byte_level_gguf(folder / "m.gguf", pre, **keys))


def variant(**parts: Any) -> bytes:
    """A tokenizer.json of the trained vocabulary, with `parts` of the library's Tokenizer set."""
    texts, merges = trained()
    vocab = {text: i for i, text in enumerate(texts)}
    options = parts.pop("options", {})
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=[tuple(m.split(" ")) for m in merges], **options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    added = parts.pop("added", [])
    for name, value in parts.items():
        setattr(tokenizer, name, value)
    tokenizer.add_tokens(added)
    return tokenizer.to_str().encode()


WORDS = (
    *CONTROLS, *("the", " The", "return", "self.assert", "def f(x):\n", "    ", "\t", "\n", "\r\n", " ", "  ", "'s"),
    *("'LL", "1", "23", "4567", "½", "٣", "é", "e\u0301", "中文", "한글", "ह\u093fन", "👍", "👩\u200d👧", "\u00a0"),
    *("\u200b", "\x00", "!", "...", "=", "->", "{", "}", "_", "\\", "<|", "|>", "<|im_", "ﬁ", "İ", "ß", "x" * 40),
)  # fmt: skip


def texts(rng: random.Random, count: int) -> list[str]:
    """Words glued together, random characters of every plane, both mixed, and bytes of the vocabulary at random."""
    out = []
    for i in range(count):
        size = rng.randint(0, 30)
        wild = [chr(p) for p in (rng.randrange(rng.choice((128, 0x800, 0xD800, 0x3000))) for _ in range(size))]
        wild += [chr(rng.randrange(0xE000, 0x110000)) for _ in range(rng.randint(0, 2))]
        words = rng.choices(WORDS, k=size)
        out.append("".join((words, wild, rng.sample(words + wild, len(words) + len(wild)))[i % 3]))
    return out


def same(ours: ByteBpe, theirs: Tokenizer, text: str, rng: random.Random) -> None:
    special = rng.random() < 0.5
    ids = theirs.encode(text, add_special_tokens=special).ids
    assert ours.encode(text, add_special_tokens=special).ids == ids, repr(text)
    cut = [*ids[rng.randint(0, 3) :], *(rng.randrange(5_000) for _ in range(3))]  # characters cut, ids that are none
    assert ours.decode(cut, skip_special_tokens=special) == theirs.decode(cut, skip_special_tokens=special)


@pytest.mark.parametrize("pre", PRES)
def test_equals_the_library(tmp_path: Path, pre: str) -> None:
    data, rng = of_pre(tmp_path, pre), random.Random(pre)
    ours, theirs = fast(data), library(data)
    lengths = []
    for text in texts(rng, TEXTS):
        same(ours, theirs, text, rng)
        lengths.append(len(theirs.encode(text).ids))
    assert max(lengths) > 40
    for id in range(5_000):
        assert ours.id_to_token(id) == theirs.id_to_token(id)
        text = theirs.id_to_token(id) or "no token"
        assert ours.token_to_id(text) == theirs.token_to_id(text)
    assert repr(ours.get_added_tokens_decoder()) == repr(theirs.get_added_tokens_decoder())


VARIANTS: dict[str, dict[str, Any]] = {
    "prefix space": {"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)},
    "digits first": {
        "pre_tokenizer": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    },
    "rewritten": {"normalizer": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])},
    "whole words": {"options": {"ignore_merges": True}},
    "no decoder": {"decoder": None},
    "decoder with steps": {"decoder": decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])},
    "template": {
        "post_processor": processors.TemplateProcessing(
            single="! $A the", special_tokens=[("!", 0), ("the", 3)]
        )  # ids that mean other things in the shell
    },
    "added tokens": {
        "added": [
            AddedToken("<ref>", special=False),
            AddedToken("é", special=False),  # one letter, and another byte as a letter
            AddedToken("the", single_word=True),  # a token of the vocabulary
            AddedToken("Ünï", normalized=True),
            AddedToken("<pad>", lstrip=True, rstrip=True, special=True),
            AddedToken("<|im_end|>", special=True),
            AddedToken("中", special=False),
        ]
    },
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_the_library(name: str) -> None:
    data, rng = variant(**VARIANTS[name]), random.Random(name)
    ours, theirs = fast(data), library(data)
    assert proof.difference(ours, theirs) is None
    for text in [*texts(rng, 1_000), " the <pad>  the\u00e9the Ünï ünï<ref>"]:
        same(ours, theirs, text, rng)


def test_missing_letters_are_left_out_as_the_library_does() -> None:
    raw = json.loads(variant())
    for letter in "xyzé":
        del raw["model"]["vocab"][letter]
    raw["model"]["vocab"] = {text: i for i, text in enumerate(raw["model"]["vocab"])}
    raw["model"]["merges"] = [m for m in raw["model"]["merges"] if not set("".join(m)) & set("xyzé")]
    raw["model"]["merges"].append(raw["model"]["merges"][0])  # a pair that is there twice: its last rank counts
    raw["model"]["vocab"] = {t: i for t, i in raw["model"]["vocab"].items() if len(t) == 1 or not set(t) & set("xyzé")}
    data = json.dumps(raw).encode()
    assert proof.difference(fast(data), library(data)) is None
    assert fast(data).encode("xyz").ids == []


def test_a_real_vocabulary(gguf: Path) -> None:
    data, rng = tokenizer_json(open_checkpoint(gguf)), random.Random(5)
    ours, theirs = fast(data), library(data)
    for text in [*texts(rng, TEXTS), *(p.read_text() for p in Path(__file__).parent.glob("*.py"))]:
        same(ours, theirs, text, rng)
    assert proof.difference(ours, theirs, seed=6) is None


@pytest.mark.parametrize("unit", ["a", "ab", " ", "\n", "the", "é", "0123456789"])
def test_long_words_take_no_quadratic_time(unit: str) -> None:
    data = variant(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    ours, theirs = fast(data), library(data)
    assert ours.encode(unit * 20_000).ids == theirs.encode(unit * 20_000).ids
    taken = []
    for size in (125_000, 1_000_000):
        text = (unit * size)[:size]
        started = time.process_time()
        ids = ours.encode(text).ids
        taken.append(time.process_time() - started)
        assert ours.decode(ids) == text
    assert taken[1] < SPEEDUP * taken[0] + 0.1


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"byte_fallback": True}},
        {"model": {"dropout": 0.5}},
        {"model": {"continuing_subword_prefix": "##"}},
        {"model": {"end_of_word_suffix": "</w>"}},
        {"model": {"type": "WordLevel"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Metaspace"}]}},
        {"added_tokens": [{"content": "\ufdd0"}]},
        {"added_tokens": [{"content": "<a>"}, {"content": "<a>"}]},
    ],
)
def test_other_kinds_have_no_fast_form(change: dict[str, Any]) -> None:
    raw = json.loads(variant())
    full = library(json.dumps(raw).encode())
    assert tabulate(raw, full) is not None
    changed = raw | {"model": raw["model"] | change["model"]} if "model" in change else raw | change
    assert tabulate(changed, full) is None


def test_an_unknown_token_matters_where_a_letter_is_missing(tmp_path: Path) -> None:
    raw = json.loads(variant(options={"unk_token": "!"}))
    full = library(json.dumps(raw).encode())
    assert tabulate(raw, full) is not None
    del raw["model"]["vocab"]["é"]
    raw["model"]["merges"] = [m for m in raw["model"]["merges"] if "é" not in "".join(m)]
    raw["model"]["vocab"] = {t: i for i, t in enumerate(raw["model"]["vocab"])}
    assert tabulate(raw, library(json.dumps(raw).encode())) is None
    sentencepiece = tokenizer_json(spm_gguf(tmp_path / "s.gguf"))
    warnings: list[str] = []
    assert proof.fast_form(sentencepiece, library(sentencepiece), warnings) is None
    assert warnings == []


@pytest.mark.parametrize("tensor", ["merges", "letters", "added", "order", "text"])
def test_a_form_that_differs_is_dropped_with_a_warning(tensor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = variant(added=[AddedToken("<a>"), AddedToken("<b>")])
    table = tabulate(json.loads(data), library(data))
    assert table is not None
    wrong = table[0][tensor].copy()
    # Two neighbours may be swapped without harm where the vocabulary happens to be such: first and last merge may not.
    one, two = {"added": (0, 1), "merges": (0, -1)}.get(tensor, (70, 71))
    wrong[[one, two]] = wrong[[two, one]]
    monkeypatch.setattr("eyespot.bundle.byte_bpe.tabulate", lambda *_: ({**table[0], tensor: wrong}, table[1]))
    warnings: list[str] = []
    assert proof.fast_form(data, library(data), warnings) is None
    assert len(warnings) == 1
    assert "the fast form of the tokenizer is left out" in warnings[0]
    monkeypatch.undo()
    assert proof.fast_form(data, library(data), warnings) == file_bytes(*table)


def test_damaged_files_give_one_line(tmp_path: Path) -> None:
    data = variant(added=[AddedToken("<a>")])
    table = tabulate(json.loads(data), library(data))
    assert table is not None
    whole, path, rng = file_bytes(*table), tmp_path / FILE, random.Random(3)
    path.write_bytes(whole)
    places = {name: (entry.start, entry.stop) for name, entry in eyespot.tensorfile.read_header(path)[0].items()}
    refused: list[str] = []
    opened = 0
    for turn in range(600):
        damaged = bytearray(whole)
        start, stop = [*places.values(), (0, 1024)][turn % (len(places) + 1)]
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(start, stop)] = rng.randrange(256)
        path.write_bytes(damaged[: len(damaged) if turn % 20 else rng.randrange(len(damaged))])
        try:
            tokenizer = open_byte_bpe(path)
        except EyespotError as error:
            refused.append(str(error))
            continue
        opened += 1
        ids = tokenizer.encode(" the end<a>é = " * 20).ids
        tokenizer.decode([*ids, *range(-3, 4_100)])
        tokenizer.token_to_id("the")
    assert len(refused) > 100
    assert not any("\n" in line for line in refused)
    assert opened > 100


INT = np.int32


@pytest.mark.parametrize(
    ("tensor", "value", "fault"),
    [
        ("offsets", np.array([0], INT), "offsets do not rise from 0"),
        ("offsets", np.array([], INT), "sizes are out of range"),
        ("lefts", np.array([0], INT), "lefts do not rise from 0"),
        ("lefts", np.array([], INT), "lefts do not rise from 0"),
        ("order", np.array([0, 1 << 20], INT), "order is out of range; found 1048576"),
        ("order", np.array([-1], INT), "order is out of range; found -1"),
        ("letters", np.array([-2], INT), "letters is out of range; found -2"),
        ("merges", np.zeros((3, 3), INT), "lefts do not rise from 0 to 3"),
        ("merges", np.zeros((3, 2), INT), "merges are misshapen"),
        ("merges", np.zeros(3, INT), "'merges' is missing or malformed; expected I32 of rank 2"),
        ("text", np.zeros(3, INT), "'text' is missing or malformed; expected U8 of rank 1"),
        ("text", np.zeros(3, np.uint8), "offsets do not rise from 0 to 3"),
        ("added", np.array([5, 5], INT), "out of range or there twice"),
        ("added", np.array([-1], INT), "out of range or there twice"),
        ("added", np.array([], INT), "shell and table differ"),
        ("order", np.zeros(9, np.uint8)[1:].view(INT), "'order' is missing or malformed"),
    ],
)
def test_tables_that_point_outside_are_refused(tensor: str, value: np.ndarray, fault: str) -> None:
    data = variant(added=[AddedToken("<a>")])
    table = tabulate(json.loads(data), library(data))
    assert table is not None
    with pytest.raises(EyespotError, match=f"^{FILE}: .*{fault}"):
        ByteBpe({**table[0], tensor: value}, table[1])


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("value", [-1, 1 << 22])
def test_merges_into_nothing_are_refused(at: int, value: int) -> None:
    table = tabulate(json.loads(variant()), library(variant()))
    assert table is not None
    merges = table[0]["merges"].copy()
    merges[7, at] = value
    with pytest.raises(EyespotError, match=f"merges are out of range; found {value}"):
        ByteBpe({**table[0], "merges": merges}, table[1])


@pytest.mark.parametrize("shell", ["", "{}", '{"version": "1.0"}', variant().decode()])
def test_shells_that_are_none_are_refused(shell: str) -> None:
    table = tabulate(json.loads(variant()), library(variant()))
    assert table is not None
    with pytest.raises(EyespotError, match=r"not a tokenizer|shell and table differ"):
        ByteBpe(table[0], {**table[1], SHELL: shell})
    with pytest.raises(EyespotError, match="metadata holds no 'shell'"):
        ByteBpe(table[0], {})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fast")
    models.tiny_qwen2(folder / "checkpoint")
    result = compile_model(open_checkpoint(folder / "checkpoint"), folder / "bundle", Options(scheme="f32"))
    assert result.warnings == ()
    return folder / "bundle"


def test_a_bundle_opens_with_the_fast_form(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(path: str) -> Tokenizer:
        raise AssertionError(f"{path} was loaded")

    assert set(json.loads((bundle / "manifest.json").read_text())["files"]) >= {FILE, "tokenizer.json"}
    prompt = "Say <|im_end|> and \ud800 déjà vu"  # a control token is a text here, half a pair becomes '?'
    with eyespot.load(bundle) as model:
        expected = model.generate(prompt, max_tokens=8, temperature=0.0)
        assert isinstance(model.processor.tokenizer._inner, ByteBpe)
    monkeypatch.setattr("eyespot.run.tokenizer.HFTokenizer.from_file", never, raising=False)
    monkeypatch.setattr("eyespot.run.tokenizer._open_library", never)
    with eyespot.load(bundle) as model:
        assert model.generate(prompt, max_tokens=8, temperature=0.0).tokens == expected.tokens


def test_a_bundle_without_it_answers_the_same(bundle: Path, tmp_path: Path) -> None:
    with eyespot.load(bundle) as model:
        expected = model.generate("déjà vu", max_tokens=8, temperature=0.0)
    older = tmp_path / "older"
    older.mkdir()
    for path in bundle.iterdir():
        if path.name != FILE:
            (older / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["files"][FILE]
    (older / "manifest.json").write_text(json.dumps(manifest))
    with eyespot.load(older) as model:
        assert isinstance(model.processor.tokenizer._inner, Tokenizer)
        assert model.generate("déjà vu", max_tokens=8, temperature=0.0).text == expected.text


def test_run_sees_one_tokenizer_in_both_forms(bundle: Path) -> None:
    forms = [RunTokenizer(bundle / name, template=models.CHATML) for name in (FILE, "tokenizer.json")]
    assert forms[0].control_ids == forms[1].control_ids
    rng = random.Random(11)
    for text in texts(rng, 500):
        text += rng.choice(("", "\udcff"))
        marked = forms[0].mark(text)
        assert forms[1].mark(text) == marked
        ids = [form.encode(marked, first=bool(len(text) % 2), special=bool(len(text) % 3)) for form in forms]
        assert ids[0] == ids[1], repr(text)
        assert forms[0].decode(ids[0]) == forms[1].decode(ids[0])
    assert forms[0].id("\ud800") is None
