"""Tokenizers that eyespot builds: the same ids as llama.cpp and sentencepiece give for the same vocabulary.

The golden lines were printed by llama.cpp (llama-cpp-python 0.3.36, vocab_only) for the two vocabularies below; where
that package is installed beside a real SmolLM2 the last test compares the two on thousands of texts.
"""

from __future__ import annotations

import json
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from eyespot.checkpoint import Checkpoint, open_checkpoint, sentencepiece, tokenizer_json
from eyespot.checkpoint.sentencepiece import CONTROL, UNKNOWN, USER_DEFINED
from eyespot.checkpoint.tokenizer import PRE, directory_files
from eyespot.errors import EyespotError
from test_checkpoint_gguf import write_gguf

# A byte-level vocabulary: the 256 byte letters, a merge for each cut the pre-tokenizers disagree on, control tokens.
PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that stand for themselves
HIDDEN = [b for b in range(256) if b not in PRINTED]
LETTERS = [chr(b) if b in PRINTED else chr(256 + HIDDEN.index(b)) for b in range(256)]
MERGES = [
    "Ġ t", "h e", "Ġt he", "l l", "' s", "' S", "Ġ 1", "1 2", "12 3", "3 4", "Ġ Ġ", "ĠĠ ĠĠ", "Ċ Ċ", "č Ċ", "! !",
    ". .", ".. .", "Ġ !", "Ã ©", "x y", "Ġ xy", "_ x", "$ 1",
]  # fmt: skip
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTE_LEVEL = LETTERS + [m.replace(" ", "") for m in MERGES] + CONTROLS
TEXTS = [
    "the hell's  the", "IT'S it's", "1234 12345", "a\n\n b\r\n\r\nc", " !!! ...", "é xy_xy $1",
    "<|im_start|>the<|im_end|>\n the", "    x  \t y", "½12",
]  # fmt: skip
SAME = ["Ġ !! ! Ġ ...", "Ã© Ġxy _ xy Ġ $ 1", "<|im_start|> t he <|im_end|> Ċ Ġthe", "ĠĠ Ġ Ġ x ĠĠ ĉ Ġ y"]
LINES = ["a ĊĊ Ġ b čĊ č Ċ c", "a ĊĊ Ġ b čĊ čĊ c"]
CONTRACTED, PARTED = ["t he Ġ he ll 's Ġ Ġthe", "I T ' S Ġ i t 's"], ["t he Ġ he ll ' s Ġ Ġthe", "I T ' S Ġ i t ' s"]
EITHER_CASE = ["t he Ġ he ll 's Ġ Ġthe", "I T 'S Ġ i t 's"]
GOLDEN = {
    "smollm": [*CONTRACTED, "1 2 3 4 Ġ 1 2 3 4 5", LINES[0], *SAME, "Â ½ 1 2"],
    "qwen2": [*EITHER_CASE, "1 2 3 4 Ġ 1 2 3 4 5", LINES[1], *SAME, "Â ½ 1 2"],
    "llama-bpe": [*EITHER_CASE, "123 4 Ġ 123 4 5", LINES[1], *SAME, "Â ½ 12"],
    "gpt-2": [*CONTRACTED, "123 4 Ġ1 2 34 5", LINES[0], *SAME, "Â ½ 12"],
    "default": [*PARTED, "123 4 Ġ 123 4 5", LINES[0], *SAME, "Â ½ 12"],
}

# A sentencepiece vocabulary: specials, 256 bytes, a user's token, joined pieces best first, single characters.
JOINED = ["▁t", "he", "▁the", "in", "▁in", "▁▁", "▁▁▁▁", "ab", "abc", "bc", "▁a", "▁ab", "é▁", "12"]
PIECES: list[tuple[str, float, int]] = [
    ("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL),
    *((f"<0x{byte:02X}>", 0.0, sentencepiece.BYTE) for byte in range(256)),
    ("<tool>", 0.0, USER_DEFINED), ("<end>", 0.0, CONTROL),
    *((text, -float(i), sentencepiece.NORMAL) for i, text in enumerate([*JOINED, *"▁thenabci12é中."])),
]  # fmt: skip
SPM_TEXTS = [
    "the inn",
    "  the  in\n",
    "abc bc babc",
    "é 12 中",
    "x<tool>the<end> in",
    "     a",
    "THE the.",
    "👍",
    "<unk> <s>",
]
SPM_GOLDEN = {
    True: [
        "▁the ▁in n", "▁▁ ▁the ▁ ▁in <0x0A>", "▁ abc ▁ bc ▁ b abc", "▁ é▁ 12 ▁ 中",
        "▁ <0x78> <tool> ▁the <end> ▁ ▁in", "▁▁▁▁ ▁▁ a", "▁ <0x54> <0x48> <0x45> ▁the .",
        "▁ <0xF0> <0x9F> <0x91> <0x8D>", "<unk> ▁▁ <s>",
    ],
    False: [
        "t he ▁in n", "▁ ▁the ▁ ▁in <0x0A>", "abc ▁ bc ▁ b abc", "é▁ 12 ▁ 中", "<0x78> <tool> t he <end> ▁in",
        "▁▁▁▁ ▁a", "<0x54> <0x48> <0x45> ▁the .", "<0xF0> <0x9F> <0x91> <0x8D>", "<unk> ▁ <s>",
    ],
}  # fmt: skip


def byte_level_gguf(path: Path, pre: str, **keys: Any) -> Checkpoint:
    vocabulary = {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": pre,
        "tokenizer__ggml__tokens": BYTE_LEVEL,
        "tokenizer__ggml__token_type": [1] * (len(BYTE_LEVEL) - 3) + [CONTROL] * 3,
        "tokenizer__ggml__merges": MERGES,
        "tokenizer__ggml__bos_token_id": len(BYTE_LEVEL) - 2,
        "tokenizer__ggml__eos_token_id": len(BYTE_LEVEL) - 1,
    }
    table = {"token_embd.weight": np.zeros((len(BYTE_LEVEL), 32), np.float32)}
    return open_checkpoint(write_gguf(path, table, **(vocabulary | keys)))


def spm_gguf(path: Path, arch: str = "llama", **keys: Any) -> Checkpoint:
    texts, scores, types = (list(column) for column in zip(*PIECES, strict=True))
    vocabulary = {
        "tokenizer__ggml__model": "llama",
        "tokenizer__ggml__tokens": texts,
        "tokenizer__ggml__scores": scores,
        "tokenizer__ggml__token_type": types,
        "tokenizer__ggml__bos_token_id": 1,
        "tokenizer__ggml__eos_token_id": 2,
        "tokenizer__ggml__unknown_token_id": 0,
    }
    table = {"token_embd.weight": np.zeros((len(texts), 32), np.float32)}
    return open_checkpoint(write_gguf(path, table, arch, **(vocabulary | keys)))


def load(data: bytes) -> Tokenizer:
    return Tokenizer.from_str(data.decode())


def tokens(tokenizer: Tokenizer, text: str) -> str:
    return " ".join(tokenizer.id_to_token(i) for i in tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("pre", GOLDEN)
def test_byte_level_cuts_as_llama_cpp_does(tmp_path: Path, pre: str) -> None:
    tokenizer = load(tokenizer_json(byte_level_gguf(tmp_path / "m.gguf", pre)))
    assert [tokens(tokenizer, text) for text in TEXTS] == GOLDEN[pre]
    assert tokenizer.get_vocab() == {text: i for i, text in enumerate(BYTE_LEVEL)}
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert tokenizer.decode(tokenizer.encode("<|im_start|>the").ids, skip_special_tokens=True) == "the"


def test_qwen2_composes_characters_as_its_own_tokenizer_does(tmp_path: Path) -> None:
    tokenizer = load(tokenizer_json(byte_level_gguf(tmp_path / "m.gguf", "qwen2")))
    assert tokens(tokenizer, "e\u0301") == tokens(tokenizer, "é") == "Ã©"
    other = load(tokenizer_json(byte_level_gguf(tmp_path / "o.gguf", "smollm")))
    assert tokens(other, "e\u0301") == "e Ì ģ"


def test_llama3_takes_whole_words_before_merges(tmp_path: Path) -> None:
    """ignore_merges: a word that is a token is one token, even where no merge leads to it."""
    words = [*BYTE_LEVEL[:-3], "then", *CONTROLS]
    types = [1] * (len(words) - 3) + [CONTROL] * 3
    keys = {"tokenizer__ggml__tokens": words, "tokenizer__ggml__token_type": types}
    found = {pre: tokens(load(tokenizer_json(byte_level_gguf(tmp_path / pre, pre, **keys))), "then") for pre in PRE}
    assert {pre for pre, result in found.items() if result == "then"} == {"llama-bpe", "llama3", "llama-v3"}
    assert found["gpt-2"] == "t he n"


@pytest.mark.parametrize("add", [True, False, None])
@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2"])
def test_first_token_of_byte_level(tmp_path: Path, pre: str, add: bool | None) -> None:
    checkpoint = byte_level_gguf(tmp_path / "m.gguf", pre, tokenizer__ggml__add_bos_token=add)
    first = pre == "llama-bpe" if add is None else add
    assert load(tokenizer_json(checkpoint)).encode("the").tokens == ["<|im_start|>"] * first + ["t", "he"]
    assert json.loads(checkpoint.files["tokenizer_config.json"])["add_bos_token"] is first


def test_companions_of_a_gguf_tokenizer(tmp_path: Path) -> None:
    checkpoint = byte_level_gguf(tmp_path / "m.gguf", "qwen2", tokenizer__chat_template="{{ messages }}")
    settings = json.loads(checkpoint.files["tokenizer_config.json"])
    assert (settings["bos_token"], settings["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    end = [BYTE_LEVEL.index("<|endoftext|>"), BYTE_LEVEL.index("<|im_end|>")]
    start = BYTE_LEVEL.index("<|im_start|>")
    assert json.loads(checkpoint.files["generation_config.json"]) == {"eos_token_id": end, "bos_token_id": start}
    assert checkpoint.files["chat_template.jinja"] == b"{{ messages }}"


@pytest.mark.parametrize("prefix", [True, False])
def test_scores_become_merges_as_llama_cpp_joins(tmp_path: Path, prefix: bool) -> None:
    checkpoint = spm_gguf(tmp_path / "m.gguf", tokenizer__ggml__add_space_prefix=prefix)
    tokenizer = load(tokenizer_json(checkpoint))
    assert [tokens(tokenizer, text) for text in SPM_TEXTS] == SPM_GOLDEN[prefix]
    assert tokenizer.get_vocab() == {text: i for i, (text, _, _) in enumerate(PIECES)}
    assert tokenizer.encode("the").tokens == ["<s>", *(["▁the"] if prefix else ["t", "he"])]
    for text in ("the inn", "abc é 中\n", "👍 THE"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_phi3_eats_the_space_after_a_role(tmp_path: Path) -> None:
    tokenizer = load(tokenizer_json(spm_gguf(tmp_path / "m.gguf", "phi3", tokenizer__ggml__add_bos_token=False)))
    assert tokens(tokenizer, "<end>\n the<s> the") == "<end> ▁the <s> ▁ ▁the"


def test_transformers_reads_the_same_gguf_alike(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = load(tokenizer_json(spm_gguf(tmp_path / "m.gguf")))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    rng = random.Random(7)
    for _ in range(300):
        text = "a" + "".join(rng.choice("the in abc 12 é 中 .\n👍") for _ in range(rng.randint(0, 30)))
        assert ours.encode(text, add_special_tokens=False).ids == theirs.encode(text, add_special_tokens=False)


def varint(value: int) -> bytes:
    head = b""
    while value > 127:
        head, value = head + bytes([value & 127 | 128]), value >> 7
    return head + bytes([value])


def field(number: int, value: bytes | int | float) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def spm_model(kind: int = 2, prefix: bool = True, charsmap: bytes = b"", squeeze: bool = False) -> bytes:
    """A tokenizer.model of PIECES, in the wire format of sentencepiece_model.proto."""
    pieces = b"".join(field(1, field(1, t.encode()) + field(2, s) + field(3, k)) for t, s, k in PIECES)
    normalizer = field(1, b"identity") + field(2, charsmap) + field(3, int(prefix)) + field(4, int(squeeze))
    return pieces + field(2, field(3, kind) + field(35, 1)) + field(3, normalizer)


@pytest.mark.parametrize("prefix", [True, False])
def test_tokenizer_model(tmp_path: Path, prefix: bool) -> None:
    (tmp_path / "tokenizer.model").write_bytes(spm_model(prefix=prefix))
    tokenizer = load(directory_files(tmp_path, {})["tokenizer.json"])
    assert [tokens(tokenizer, text) for text in SPM_TEXTS] == SPM_GOLDEN[prefix]
    assert tokenizer.encode("the").tokens[0] == "<s>"
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    assert load(directory_files(tmp_path, {})["tokenizer.json"]).encode("the").tokens[0] != "<s>"


def test_tokenizer_model_equals_the_library(tmp_path: Path) -> None:
    """A model trained here by sentencepiece itself, where that is installed."""
    library = pytest.importorskip("sentencepiece")
    import inspect
    import io

    lines = inspect.getsource(inspect).splitlines()
    buffer = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=buffer, vocab_size=900, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(buffer.getvalue())
    theirs = library.SentencePieceProcessor(model_proto=buffer.getvalue())
    tokenizer = load(directory_files(tmp_path, {})["tokenizer.json"])
    for line in [*lines, "中文 é", "  two  spaces ", "====----", "\t x"]:
        assert tokenizer.encode(line, add_special_tokens=False).ids == theirs.encode(line)


def test_added_tokens_of_a_tokenizer_model(tmp_path: Path) -> None:
    """A fine-tune renames a piece its base never used and adds tokens behind the vocabulary, with a gap."""
    spare, past = len(PIECES) - 1, len(PIECES) + 2
    decoder = {
        str(spare): {"content": "<|im_end|>", "special": True},
        str(past): {"content": "<box>", "special": False},
        str(past + 1): {"content": "<|plug|>", "special": True},
    }
    (tmp_path / "tokenizer.model").write_bytes(spm_model())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    tokenizer = load(directory_files(tmp_path, {})["tokenizer.json"])
    assert tokens(tokenizer, "the<box>in<|im_end|><|plug|>") == "▁the <box> ▁in <|im_end|> <|plug|>"
    for text, i in (("<|im_end|>", spare), ("<box>", past), ("<|plug|>", past + 1)):
        assert tokenizer.token_to_id(text) == i
    ids = [tokenizer.token_to_id(text) for text in ("▁the", "<box>", "<|im_end|>", "<|plug|>")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the<box>"


@pytest.mark.parametrize("decoder", [True, False])
def test_vocab_and_merges(tmp_path: Path, decoder: bool) -> None:
    """The older form of Qwen2 checkpoints, as InternVL2-1B ships."""
    (tmp_path / "vocab.json").write_text(json.dumps({text: i for i, text in enumerate(BYTE_LEVEL[:-3])}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    first = len(BYTE_LEVEL) - 3
    added = {text: first + i for i, text in enumerate([*CONTROLS, "<IMG_CONTEXT>"])}
    if decoder:
        tokens_decoder = {str(i): {"content": text, "special": text in CONTROLS} for text, i in added.items()}
        settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": tokens_decoder}
    else:
        settings = {"tokenizer_class": "Qwen2Tokenizer", "additional_special_tokens": CONTROLS}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    files = directory_files(tmp_path, {})
    tokenizer = load(files["tokenizer.json"])
    assert [tokens(tokenizer, text) for text in TEXTS] == GOLDEN["qwen2"]
    ids = tokenizer.encode("<IMG_CONTEXT><|im_end|>").ids
    assert ids == [first + 3, first + 2]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<IMG_CONTEXT>"
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "added_tokens.json"}
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Qwen2Tokenizer.from_pretrained(tmp_path)
    for text in [*TEXTS, "e\u0301 <IMG_CONTEXT> x", "def f(x):\n\treturn x\n"]:
        assert tokenizer.encode(text).ids == theirs.encode(text)


def test_what_cannot_be_built_is_said(tmp_path: Path) -> None:
    def refused(expected: str, model: bytes) -> None:
        (tmp_path / "tokenizer.model").write_bytes(model)
        with pytest.raises(EyespotError, match=expected):
            directory_files(tmp_path, {})

    refused("not a BPE model; found unigram", spm_model(kind=1))
    refused("rewrites text before splitting it; found normalizer b'identity'", spm_model(charsmap=b"x"))
    refused("drops repeated spaces", spm_model(squeeze=True))
    refused("not a BPE model; found no pieces", b"")
    refused("cut off", spm_model()[:-3])
    refused("an endless number", b"\xff" * 20)
    refused("wire type 3", b"\x0b")
    refused("cut off", varint(1 << 3 | 2) + varint(2**63))
    (tmp_path / "tokenizer.model").unlink()
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(EyespotError, match=r"unknown tokenizer_class for vocab.json; found None; expected Qwen2Tok"):
        directory_files(tmp_path, {})
    with pytest.raises(EyespotError, match="a merge of tokens that are not there; found a b"):
        directory_files(tmp_path, {"model_type": "qwen2"})
    with pytest.raises(
        EyespotError, match=r"unknown tokenizer.ggml.pre; found tekken; expected default, gpt-2, smollm"
    ):
        tokenizer_json(byte_level_gguf(tmp_path / "a.gguf", "tekken"))
    with pytest.raises(EyespotError, match="unknown kind of tokenizer; found t5; expected gpt2 or llama"):
        tokenizer_json(spm_gguf(tmp_path / "b.gguf", tokenizer__ggml__model="t5"))
    with pytest.raises(EyespotError, match=r"tokenizer.ggml.scores is not \d+ numbers"):
        tokenizer_json(spm_gguf(tmp_path / "c.gguf", tokenizer__ggml__scores=[1.0]))
    with pytest.raises(EyespotError, match="more gaps than tokens"):
        (tmp_path / "added_tokens.json").write_text('{"x": 4000000}')
        directory_files(tmp_path, {"model_type": "qwen2"})


def test_damaged_models_give_one_line(tmp_path: Path) -> None:
    rng = random.Random(8)
    whole = spm_model()
    refused = lines = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        try:
            load(directory_files(tmp_path, {})["tokenizer.json"]).encode("the inn")
        except EyespotError as error:
            refused += 1
            lines += str(error).count("\n")
    assert 100 < refused < 300
    assert lines == 0


def test_a_real_vocabulary_against_llama_cpp(gguf: Path) -> None:
    """SmolLM2 beside llama.cpp itself, where that is installed: building it takes longer than all these tests."""
    llama_cpp = pytest.importorskip("llama_cpp")
    ours = load(tokenizer_json(open_checkpoint(gguf)))
    theirs = llama_cpp.Llama(str(gguf), vocab_only=True, verbose=False)
    rng = random.Random(9)
    words = [
        *CONTROLS,
        " ",
        "  ",
        "\n",
        "\t",
        "'s",
        "'S",
        "12",
        "345",
        "½",
        "é",
        "e\u0301",
        "中文",
        "!",
        "...",
        " The",
        "def ",
    ]
    texts = [Path(__file__).read_text(), json.__doc__ or "", os.__doc__ or ""]
    for _ in range(1000):
        texts.append("".join(rng.choice(words) for _ in range(rng.randint(1, 40))))
        texts.append("".join(chr(rng.choice([rng.randint(32, 126), rng.randint(0x80, 0xD7FF)])) for _ in range(20)))
    for text in texts:
        ids = theirs.tokenize(text.encode(), add_bos=False, special=True)
        assert ours.encode(text, add_special_tokens=False).ids == ids, repr(text)
