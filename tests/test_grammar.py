"""Answers held to a schema: what comes out parses and obeys, what nothing meets is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models
from eyespot.errors import EyespotError, UsageError
from eyespot.run.grammar import BOXES, Grammar, Vocabulary, read_schema
from eyespot.run.sampling import Sampler, Sampling

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    path = tmp_path_factory.mktemp("tokens") / "tokenizer.json"
    path.write_text(models.tokenizer_json(False), encoding="utf-8")
    return Vocabulary(path, models.vocab_size(False), [models.token_ids(False)["<|im_end|>"]])


def written(vocabulary: Vocabulary, schema: dict[str, Any], seed: int, most: int = 4000) -> str:
    """What a model of random logits says under a schema; it likes to end, so that it does."""
    rng, end = np.random.default_rng(seed), models.token_ids(False)["<|im_end|>"]
    grammar, sampler, ids = Grammar(vocabulary, schema), Sampler(Sampling(temperature=1.0), seed), []
    for _ in range(most):
        logits = rng.normal(size=vocabulary.size).astype(np.float32)
        logits[end] += 5
        token = sampler.pick(logits, ids, grammar.mask())
        grammar.take(token)
        if token == end:
            return str(vocabulary.inner.decode_str(ids))
        ids.append(token)
    raise AssertionError("the answer did not end")


@pytest.mark.parametrize("seed", range(8))
def test_any_logits_make_a_record(vocabulary: Vocabulary, seed: int) -> None:
    person = json.loads(written(vocabulary, PERSON, seed))
    assert person.keys() == {"name", "age"}
    assert isinstance(person["name"], str)
    assert 0 <= person["age"] <= 99
    for box in json.loads(written(vocabulary, {**BOXES, "maxItems": 2}, seed)):
        assert box.keys() == {"bbox_2d", "label"}
        assert len(box["bbox_2d"]) == 4
        assert min(box["bbox_2d"]) >= 0


UNMET = {
    "bounds": {"type": "integer", "minimum": 5, "maximum": 3},
    "length": {"type": "string", "minLength": 5, "maxLength": 2},
    "no choice": {"enum": []},
    "two types": {"allOf": [{"type": "string"}, {"type": "integer"}]},
    "no such type": {"type": "picture"},
    "leads nowhere": {"$ref": "#/definitions/none"},
    "itself alone": {"$ref": "#"},
}


@pytest.mark.parametrize("name", UNMET)
def test_what_nothing_meets_is_refused(vocabulary: Vocabulary, name: str) -> None:
    with pytest.raises(UsageError, match="schema"):
        Grammar(vocabulary, UNMET[name])


def test_a_token_against_the_schema_is_an_error(vocabulary: Vocabulary) -> None:
    grammar = Grammar(vocabulary, PERSON)
    wrong = int(np.flatnonzero(~grammar.mask())[0])
    with pytest.raises(EyespotError, match="cannot be followed"):
        grammar.take(wrong)


def test_schemas_of_the_command_line(tmp_path: Path) -> None:
    assert read_schema("boxes") == BOXES
    assert read_schema(json.dumps(PERSON)) == PERSON
    (tmp_path / "s.json").write_text(json.dumps(PERSON))
    assert read_schema(str(tmp_path / "s.json")) == PERSON
    (tmp_path / "list.json").write_text("[1]")
    for text, fault in (
        (str(tmp_path / "gone.json"), "cannot be read"), ("{", "not JSON"),
        (str(tmp_path / "list.json"), "not an object"), ("{" + " " * 2_000_000, "too long"),
        ('{"a":' * 5000, "not JSON"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=fault):
            read_schema(text)


def test_a_model_that_cannot_end(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(models.tokenizer_json(False), encoding="utf-8")
    with pytest.raises(UsageError, match="no stop token"):
        Vocabulary(tmp_path / "tokenizer.json", 10, [])
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(EyespotError, match=r"broken\.json"):
        Vocabulary(tmp_path / "broken.json", 10, [1])
