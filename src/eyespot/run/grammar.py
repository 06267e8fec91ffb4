"""Answers held to a JSON schema, token by token, by llguidance. Knows a tokenizer's file and a schema, no engine."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eyespot import limits
from eyespot.errors import EyespotError, UsageError
from eyespot.tensorfile import read_bytes

Mask = npt.NDArray[np.bool_]

BOXES: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "bbox_2d": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 4, "maxItems": 4},
            "label": {"type": "string", "maxLength": 80},
        },
        "required": ["bbox_2d", "label"],
        "additionalProperties": False,
    },
    "maxItems": 64,
}
NAMED = {"boxes": BOXES}  # schemas that have a name of their own


def read_schema(text: str) -> dict[str, Any]:
    """The schema that a flag's value means: the name of one here, a file, or JSON. UsageError when it is none."""
    if text in NAMED:
        return NAMED[text]
    if not text.lstrip().startswith("{"):
        try:
            text = read_bytes(Path(text), limits.SCHEMA_CHARS).decode()
        except (EyespotError, ValueError) as error:
            raise UsageError(
                f"schema {text!r:.80} cannot be read ({error})", expected=f"a file, JSON, or one of: {', '.join(NAMED)}"
            ) from None
    if len(text) > limits.SCHEMA_CHARS:
        raise UsageError("the schema is too long", expected=f"at most {limits.SCHEMA_CHARS} characters")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the schema is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise UsageError("the schema is not an object", found=type(found).__name__)
    return found


class Vocabulary:
    """A tokenizer as llguidance has it; made once a model, for it takes a second where the vocabulary is large.

    path: tokenizer.json. stops: ids that end an answer.
    """

    def __init__(self, path: Path, size: int, stops: Sequence[int]) -> None:
        import llguidance

        if not stops:
            raise UsageError("this bundle has no stop token, so an answer that follows a schema could not end")
        self.size = size
        try:
            text = path.read_text(encoding="utf-8")
            self.inner = llguidance.LLTokenizer(text, n_vocab=size, eos_token=list(stops))
        except (OSError, ValueError, RuntimeError) as error:
            raise EyespotError(f"{path.name}: no schema can be followed with this tokenizer ({error})") from None


class Grammar:
    """One answer on its way: which tokens may come next. UsageError for a wrong schema, or one that nothing meets."""

    def __init__(self, vocabulary: Vocabulary, schema: Mapping[str, Any]) -> None:
        import llguidance

        self._size = vocabulary.size
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema))
        except (ValueError, TypeError, RecursionError) as error:
            raise UsageError(f"the schema is malformed ({error})") from None
        self._matcher = llguidance.LLMatcher(vocabulary.inner, grammar, log_level=0)
        self._check(UsageError)
        with suppress(EyespotError):  # of a schema that is nothing but a reference to itself
            if self.mask().any():
                return
        raise UsageError("the schema cannot be met", cause="its bounds contradict each other, or it means only itself")

    def mask(self) -> Mask:
        """[vocabulary]: whether each token may come next."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check(EyespotError)
        found = np.unpackbits(packed, bitorder="little", count=min(self._size, 8 * len(packed))).astype(np.bool_)
        return found if len(found) == self._size else np.pad(found, (0, self._size - len(found)))

    def take(self, token: int) -> None:
        """The token that was picked."""
        self._matcher.consume_token(token)
        self._check(EyespotError)

    def _check(self, kind: type[EyespotError]) -> None:
        if self._matcher.is_error():
            first = self._matcher.get_error().strip().splitlines()[0]
            raise kind(f"the schema cannot be followed ({first})", cause="a keyword or a bound that nothing meets")
