"""Text to token ids and back, on the tokenizers library; a user's words never act as control tokens.

Control tokens are the added tokens that steer the model: those that end an answer, stand for a picture, occur in the
chat template, or look like <|...|>. Text from outside has them letter by letter, and answers do not show them.
Other added tokens are part of what a model may be told and may say (<ref>cat</ref>), and stay tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer as HFTokenizer

from eyespot import limits
from eyespot.bundle.byte_bpe import open_byte_bpe
from eyespot.bundle.read import FAST_TOKENIZER
from eyespot.errors import EyespotError

OPEN, CLOSE = "\ufdd0", "\ufdd1"  # noncharacters of Unicode: never in sound text
MARK = re.compile(f"{OPEN}([0-9]+){CLOSE}")
PENDING = 8  # tokens to wait for the rest of a character: UTF-8 takes at most 4 bytes, so what follows is no part of it


class Tokenizer:
    """One bundle's tokenizer.

    path: tokenizer.json, or the bundle's fast form of it, which is the same tokenizer and opens at once.
    controls: ids and texts known to steer the model. template: the chat template's source.
    """

    def __init__(self, path: Path, controls: Iterable[int | str] = (), template: str = "") -> None:
        self._inner = open_byte_bpe(path) if path.name == FAST_TOKENIZER else _open_library(path)
        known, added = set(controls), self._inner.get_added_tokens_decoder()
        self.control_ids = {
            id
            for id, token in added.items()
            if id in known
            or token.content in known
            or re.fullmatch(r"<\|.*\|>", token.content, re.DOTALL)
            or (token.content and token.content in template)
        }
        texts = {added[id].content for id in self.control_ids} | {c for c in known if isinstance(c, str) and c}
        self._literals = [*sorted(texts, key=len, reverse=True), OPEN, CLOSE]  # the longest match first
        self._number = {text: i for i, text in enumerate(self._literals)}
        self._control = re.compile("|".join(map(re.escape, self._literals)))
        plain = (t for id, t in sorted(added.items()) if id in self.control_ids and not (t.lstrip or t.rstrip))
        self._lead = next((token.content for token in plain if not token.single_word), "")

    def id(self, text: str) -> int | None:
        """The id of one token, None when there is no such token."""
        found = self._inner.token_to_id(text)
        return None if found is None else int(found)

    def text(self, id: int) -> str | None:
        """The text of one token as the vocabulary writes it."""
        found = self._inner.id_to_token(id)
        return None if found is None else str(found)

    def mark(self, text: str, keep: str = "") -> str:
        """`text` with every control token, but for `keep`, in a form that encode() takes letter by letter."""
        text = text.encode("utf-8", "replace").decode()  # a lone surrogate is not text

        def number(match: re.Match[str]) -> str:
            return match[0] if match[0] == keep else f"{OPEN}{self._number[match[0]]}{CLOSE}"

        return self._control.sub(number, text)

    def encode(self, text: str, first: bool = True, special: bool = False) -> list[int]:
        """Token ids of `text`: control tokens are tokens, marked ones are letters.

        first: the text begins the sequence; else it goes on after a control token, and some tokenizers add no space.
        special: add what the tokenizer itself puts around a text, such as <s>.
        """
        pieces = MARK.split(text)
        if len(pieces) == 1 and first:
            return list(self._inner.encode(text, add_special_tokens=special).ids)
        ids = self.encode(pieces[0], special=special) if first else self._rest(pieces[0])
        for number, after in zip(pieces[1::2], pieces[2::2], strict=True):
            ids += self._letters(self._literals[int(number)]) if int(number) < len(self._literals) else []
            ids += self._rest(after)
        return ids

    def _rest(self, text: str) -> list[int]:
        if not text:
            return []
        ids = list(self._inner.encode(self._lead + text, add_special_tokens=False).ids)
        return ids[1:] if self._lead else ids

    def _letters(self, text: str) -> list[int]:
        """`text` as ordinary text though it is a control token: in two pieces, neither of which is one."""
        ids = self._rest(text[:1]) + self._rest(text[1:])
        if self.control_ids.isdisjoint(ids):
            return ids
        return [id for letter in text for id in self._rest(letter) if id not in self.control_ids]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` without control tokens; bytes that are not UTF-8 become U+FFFD."""
        return str(self._inner.decode([id for id in ids if id not in self.control_ids], skip_special_tokens=False))


def _open_library(path: Path) -> HFTokenizer:
    if path.stat().st_size > limits.JSON_BYTES:
        raise EyespotError(f"{path.name}: too large", expected=f"at most {limits.JSON_BYTES} bytes")
    try:
        tokenizer = HFTokenizer.from_file(str(path))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic in the library is no Exception
        raise EyespotError(f"{path.name}: not a tokenizer ({error})", cause="the file is corrupted") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Detokenizer:
    """Tokens in, text out, as soon as it is whole: a character is never split, and spaces come as in the whole text.

    context: the tokens before the first one, where the text goes on from them. The pieces, flush included, sum up to
    the text of all tokens.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = [id for id in context if id not in tokenizer.control_ids]
        self._from, self._read = 0, len(self._ids)  # decoded again each time: tokens before _read give the context

    def push(self, id: int) -> str:
        """The text that is whole now; "" while a character is incomplete."""
        if id in self._tokenizer.control_ids:
            return ""
        self._ids.append(id)
        text = self._pending()
        if not text or (text.endswith("\ufffd") and len(self._ids) - self._read <= PENDING):
            return ""
        self._from, self._read = self._read, len(self._ids)
        return text

    def flush(self) -> str:
        """What is left, though it be incomplete."""
        text = self._pending()
        self._from, self._read = self._read, len(self._ids)
        return text

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._ids[self._from : self._read])
        return self._tokenizer.decode(self._ids[self._from :])[len(before) :]
