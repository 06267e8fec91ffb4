"""Byte-level BPE in a form that opens in a millisecond: the file tokenizer.safetensors, made from a tokenizer.json.

The tokenizers library builds its maps of 150k tokens anew each time, for a third of a second. Here the tokens and
merges lie sorted in a mapped file and C++ looks them up there; the library still does all else, as a shell without
vocabulary: it normalizes, finds added tokens, cuts words, adds what a template adds, and decodes. Knows no model.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

from eyespot import _native, limits, tensorfile
from eyespot.bundle.read import FAST_TOKENIZER as FILE
from eyespot.errors import EyespotError
from eyespot.tensorfile import Array, TensorFile

SHELL, WHOLE_WORDS = "shell", "whole_words"  # keys of its metadata
# Tensors as _native.Bpe takes them, and the ids of the added tokens in the shell's order.
TABLE = {
    "text": ("U8", 1),
    "offsets": ("I32", 1),
    "order": ("I32", 1),
    "letters": ("I32", 1),
    "lefts": ("I32", 1),
    "merges": ("I32", 2),
    "added": ("I32", 1),
}
LETTERS = 324  # code points below it hold all 256 letters that stand for bytes
# The shell's model is a Unigram that knows one token, which no text holds. It joins what it does not know and gives it
# back as it came, under this token's id: so a word stays one word, in byte letters.
NO_TEXT, WORD = "\ufdd0", 0


class Encoding(NamedTuple):
    """What the library's Encoding has that we use."""

    ids: list[int]


class ByteBpe:
    """A tokenizers.Tokenizer for those methods that a run uses, with the same results."""

    def __init__(self, tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
        """tensors: those of TABLE, not copied. EyespotError when they do not fit together."""
        _check(tensors, metadata)
        try:
            self._shell = Tokenizer.from_str(metadata[SHELL])
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in the library is no Exception
            raise EyespotError(f"{FILE}: not a tokenizer ({error})", cause="the file is corrupted") from None
        try:
            table = {name: tensors[name] for name in TABLE if name != "added"}
            self._bpe = _native.Bpe(**table, whole_words=WHOLE_WORDS in metadata)
        except _native.Error as error:
            raise EyespotError(f"{FILE}: {error.args[1]}") from None
        self._decoder = self._shell.decoder
        self._ids = [WORD, *tensors["added"].tolist()]  # of the shell's ids
        shown = self._shell.get_added_tokens_decoder()
        if sorted(shown) != list(range(1, len(self._ids))) or self._shell.get_vocab_size(with_added_tokens=False) != 1:
            raise EyespotError(f"{FILE}: shell and table differ", found=len(shown), expected=len(self._ids) - 1)
        self._added = {self._ids[i]: token for i, token in shown.items()}
        self._id_of = {token.content: id for id, token in self._added.items()}

    def encode(self, text: str, add_special_tokens: bool = True) -> Encoding:
        """The ids of `text`; with add_special_tokens also those that the template puts around it."""
        cut = self._shell.encode(text, add_special_tokens=add_special_tokens)
        ids: list[int] = []
        for id, word, place in zip(cut.ids, cut.tokens, cut.word_ids, strict=True):
            if place is None:  # the template's: no word of the text, and no id of the shell
                ids.append(id)
            elif id == WORD:
                ids += self._bpe.encode(word)
            else:
                ids.append(self._ids[id])
        return Encoding(ids)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; those that are no tokens are left out."""
        texts = []
        for id in ids:
            added = self._added.get(id)
            text = self.id_to_token(id)
            if text is not None and not (skip_special_tokens and added is not None and added.special):
                texts.append(text)
        return " ".join(texts) if self._decoder is None else self._decoder.decode(texts)

    def token_to_id(self, token: str) -> int | None:
        found = self._id_of.get(token)
        return self._bpe.find(token.encode("utf-8", "surrogatepass")) if found is None else found

    def id_to_token(self, id: int) -> str | None:
        """The token as the vocabulary writes it."""
        if (added := self._added.get(id)) is not None:
            return added.content
        found = self._bpe.text(id)
        return None if found is None else found.decode(errors="replace")

    def get_added_tokens_decoder(self) -> dict[int, AddedToken]:
        return dict(self._added)


def _check(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> None:
    for name, (dtype, rank) in TABLE.items():
        array = tensors.get(name)
        if array is None or array.dtype != tensorfile.STORED[dtype] or array.ndim != rank or not array.flags.aligned:
            raise EyespotError(f"{FILE}: tensor '{name}' is missing or malformed", expected=f"{dtype} of rank {rank}")
    if tensors["merges"].shape[1] != 3:
        raise EyespotError(f"{FILE}: merges are misshapen", found=tensors["merges"].shape, expected="[rows, 3]")
    added = tensors["added"].tolist()
    if not all(0 <= id < limits.VOCAB for id in added) or len(set(added)) != len(added):
        raise EyespotError(f"{FILE}: an added token's id is out of range or there twice")
    if SHELL not in metadata:
        raise EyespotError(f"{FILE}: metadata holds no '{SHELL}'")


def open_byte_bpe(path: Path) -> ByteBpe:
    """The tokenizer in a tokenizer.safetensors, mapped. EyespotError for a damaged file."""
    file = TensorFile(path)
    missing = sorted(set(TABLE) - set(file.entries))
    if missing:
        raise EyespotError(f"{path.name}: tensor '{missing[0]}' is missing")
    return ByteBpe({name: file.raw(name) for name in TABLE}, file.metadata)


def tabulate(raw: Mapping[str, Any], full: Tokenizer) -> tuple[dict[str, Array], dict[str, str]] | None:
    """Tensors and metadata for ByteBpe, None when the tokenizer is of another kind.

    raw: the parsed tokenizer.json. full: the library's tokenizer of it, so that it is known to be sound.
    """
    model, added = raw["model"], raw.get("added_tokens") or []
    vocab = full.get_vocab(with_added_tokens=False)
    contents = [token["content"] for token in added]
    tokens = max(vocab.values(), default=-1) + 1
    if (
        not _merges_bytes(raw, vocab)
        or tokens > limits.VOCAB
        or len(set(vocab.values())) != len(vocab)  # two texts for one id: the library shows either
        or "" in vocab
        or len({"", NO_TEXT, *contents}) != len(contents) + 2
    ):
        return None
    texts = [b""] * tokens
    for text, id in vocab.items():
        texts[id] = text.encode()
    rows = {}
    for rank, pair in enumerate(model["merges"]):
        if isinstance(pair, str) and pair.startswith("#version"):
            continue  # the first line of an old merges.txt
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        rows[vocab[left], vocab[right]] = (rank, vocab[left + right])  # of a pair that is there twice, the last counts
    merges = np.array([(*pair, *row) for pair, row in sorted(rows.items())], np.int32).reshape(-1, 4)
    tensors: dict[str, Array] = {
        "text": np.frombuffer(b"".join(texts), np.uint8),
        "offsets": np.cumsum([0, *map(len, texts)]).astype(np.int32),
        "order": np.array(sorted(vocab.values(), key=texts.__getitem__), np.int32),
        "letters": np.array([vocab.get(chr(point), -1) for point in range(LETTERS)], np.int32),
        "lefts": np.searchsorted(merges[:, 0], np.arange(tokens + 1)).astype(np.int32),
        "merges": np.ascontiguousarray(merges[:, 1:]),
        "added": np.array([full.token_to_id(content) for content in contents], np.int32),
    }
    shell = {
        **raw,
        "truncation": None,
        "padding": None,
        "added_tokens": [{**token, "id": i} for i, token in enumerate(added, WORD + 1)],
        "model": {"type": "Unigram", "unk_id": WORD, "vocab": [[NO_TEXT, 0.0]], "byte_fallback": False},
    }
    metadata = {SHELL: json.dumps(shell, separators=(",", ":"))}
    return tensors, metadata | ({WHOLE_WORDS: "true"} if model.get("ignore_merges") else {})


def _merges_bytes(raw: Mapping[str, Any], vocab: Mapping[str, int]) -> bool:
    """Whether the tokenizer is BPE on words of byte letters, with nothing that bends its merges."""
    model, pre = raw["model"], raw.get("pre_tokenizer") or {}
    steps = pre.get("pretokenizers") or [{}] if pre.get("type") == "Sequence" else [pre]
    whole = all(letter in vocab for letter in ByteLevel.alphabet())
    bent = ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    return (
        model.get("type") == "BPE"
        and steps[-1].get("type") == "ByteLevel"  # what it gives is letters, whatever came before
        and (whole or model.get("unk_token") is None)
        and not any(model.get(key) for key in bent)
    )


def file_bytes(tensors: Mapping[str, Array], metadata: Mapping[str, str]) -> bytes:
    """The bytes of tokenizer.safetensors."""
    out = io.BytesIO()
    shapes = {name: (TABLE[name][0], array.shape) for name, array in tensors.items()}
    tensorfile.write(out, shapes, tensors.items(), metadata)
    return out.getvalue()
