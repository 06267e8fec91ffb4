"""The fast form of a tokenizer, made beside tokenizer.json and proven equal to it before it is kept.

Knows how to make texts that find differences; the form itself is bundle/byte_bpe.py's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from eyespot.tensorfile import parse_json

if TYPE_CHECKING:
    from eyespot.bundle.byte_bpe import ByteBpe

TEXTS, TOKENS, VOCABULARY = 150, 40, 10_000  # texts drawn, most pieces of one, tokens of the vocabulary encoded again
# Where tokenizers part: cases, digits, kinds of space, code, joined and composed letters, scripts, emoji, controls.
PIECES = (
    *("a", "the", " The", "'s", "'LL", " don't", "Ünï", "e\u0301", "ﬁ", "İ", "ß", "中文", "日本", "한글", "ह\u093fन"),
    *("0", "12", " 345", "1234567", "½", "٣", "x²", " ", "  ", "   ", "\t", "\n", "\r\n", "\n\n ", "\u00a0", "\u3000"),
    *(".", "...", "!!", "()", "{\n\t", "};", "==", "->", "#include <", "def f(x):", "https://", "_", "\\n", "$1", "%"),
    *("👍", "👩\u200d👩\u200d👧", "🇫🇷", "\ufe0f", "\u200b", "\ufeff", "\x00", "\x1b[0m", "\ufffd", "\U0010ffff"),
)  # fmt: skip


def fast_form(data: bytes, full: Tokenizer, warnings: list[str]) -> bytes | None:
    """tokenizer.safetensors for the tokenizer.json `data`, which `full` is; None for kinds that have no such form.

    A form that differs anywhere from the library's tokenizer is dropped, with a warning.
    """
    try:
        from eyespot.bundle.byte_bpe import ByteBpe, file_bytes, tabulate
    except ImportError:
        warnings.append("the native module is not built: the tokenizer has no fast form, and the bundle opens slower")
        return None
    if (table := tabulate(parse_json(data, "tokenizer.json"), full)) is None:
        return None
    differing = difference(ByteBpe(*table), full)
    if differing is not None:
        warnings.append(f"the fast form of the tokenizer is left out, and the bundle opens slower: {differing} differs")
        return None
    return file_bytes(*table)


def difference(fast: ByteBpe, full: Tokenizer, seed: int = 0) -> str | None:
    """The first thing found in which the two differ, or None. Looks all ids up, encodes and decodes texts."""
    rng = random.Random(seed)
    if repr(fast.get_added_tokens_decoder()) != repr(full.get_added_tokens_decoder()):
        return "the list of added tokens"
    vocab = full.get_vocab(with_added_tokens=True)
    most = max(vocab.values(), default=0) + 2  # and ids that are none
    for id in range(most):
        text = full.id_to_token(id)
        if fast.id_to_token(id) != text or (text is not None and fast.token_to_id(text) != full.token_to_id(text)):
            return f"token {id}"
    for text in _texts(full, sorted(vocab.values()), rng):
        for special in (False, True):
            ids = full.encode(text, add_special_tokens=special).ids
            if fast.encode(text, add_special_tokens=special).ids != ids:
                return f"the encoding of {text!r}"
        skip, noise = rng.random() < 0.5, [*ids, *(rng.randrange(most) for _ in range(8))]  # characters cut anywhere
        if fast.decode(noise, skip_special_tokens=skip) != full.decode(noise, skip_special_tokens=skip):
            return f"the decoding of {noise}"
    return None


def _texts(full: Tokenizer, ids: list[int], rng: random.Random) -> Iterator[str]:
    added = [token.content for token in full.get_added_tokens_decoder().values()]
    yield from ("", *PIECES, *added[:TEXTS], *(text * 1000 for text in (" ", "a", "ab", "aab", "\n", "é", "👍", "0")))
    for _ in range(TEXTS):
        words = rng.choices((*PIECES, *rng.choices(added, k=4)) if added else PIECES, k=rng.randrange(TOKENS))
        tokens = rng.choices(ids or [0], k=rng.randrange(TOKENS))
        points = (rng.choice((0x80, 0x800, 0x10000, 0x110000)) for _ in range(rng.randrange(TOKENS)))
        wild = [chr(point) for most in points if not 0xD800 <= (point := rng.randrange(most)) < 0xE000]
        yield "".join(words)
        yield "".join(wild)
        yield full.decode(tokens, skip_special_tokens=False)  # bytes cut anywhere become U+FFFD
        yield "".join(rng.sample([*words, *wild], len(words) + len(wild)))
    drawn = rng.sample(ids, min(VOCABULARY, len(ids)))
    for at in range(0, len(drawn), TOKENS):  # real tokens, which take all of their merges
        yield " ".join(full.decode([id], skip_special_tokens=False) for id in drawn[at : at + TOKENS])
