"""The side files of a bundle and its config.json, from what a checkpoint carries and what its family knows.

Knows Hugging Face's small JSON files; reads them as hostile bytes. Knows no weight and no op.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from jinja2 import Environment, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from tokenizers import Tokenizer

from eyespot import limits
from eyespot.bundle.settings import SamplingDefaults, Settings
from eyespot.errors import EyespotError
from eyespot.families import Built
from eyespot.tensorfile import parse_json

GENERATION = "generation_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CARRIED = ("tokenizer.json", TOKENIZER_CONFIG, GENERATION, "preprocessor_config.json")
CHAT_TEMPLATE = "chat_template.jinja"
# Tokens that end a turn in some chat template. A stop token, when the template writes it and the tokenizer has it.
TURN_ENDS = ("<|im_end|>", "<|end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "[UNUSED_TOKEN_145]", "</s>")


def added_tokens(files: Mapping[str, bytes]) -> dict[str, int]:
    """Text -> id of the tokens added to the vocabulary; empty without a tokenizer."""
    raw = _object(files, "tokenizer.json").get("added_tokens", [])
    tokens = {t.get("content"): t.get("id") for t in raw if isinstance(t, dict)} if isinstance(raw, list) else {}
    return {text: i for text, i in tokens.items() if isinstance(text, str) and type(i) is int and 0 <= i < limits.VOCAB}


def image_processor(files: Mapping[str, bytes]) -> Mapping[str, Any]:
    """How a checkpoint wants its pictures; transformers 5 keeps inside processor_config.json what had its own file."""
    inner = _object(files, "processor_config.json").get("image_processor")
    return inner if isinstance(inner, dict) else _object(files, "preprocessor_config.json")


def open_tokenizer(data: bytes) -> Tokenizer:
    """The tokenizer of a tokenizer.json. EyespotError when the library does not take it."""
    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception
        raise EyespotError("tokenizer.json: not a tokenizer", found=error) from None


def side_files(given: Mapping[str, bytes], built: Built, warnings: list[str]) -> dict[str, bytes]:
    """Files to put beside the parts: those carried, and the chat template in a file of its own."""
    files = {name: given[name] for name in CARRIED if name in given} | _with_special_tokens(given)
    own = _chat_template(given)
    template = built.chat_template if built.template_wins and built.chat_template else own or built.chat_template
    if template is None:
        warnings.append("there is no chat template: only raw prompts will work")
    elif len(template) > limits.TEMPLATE_CHARS:
        raise EyespotError("chat template too long", found=len(template), expected=f"at most {limits.TEMPLATE_CHARS}")
    else:
        _check_template(template)
        files[CHAT_TEMPLATE] = template.encode()
    return files


def _with_special_tokens(given: Mapping[str, bytes]) -> dict[str, bytes]:
    """tokenizer_config.json with the eos_token and its like of an older special_tokens_map.json, which no bundle holds.

    As in transformers the map's word counts, unless the config lists its added tokens, and so was written later.
    """
    config, older = (_object(given, name) for name in (TOKENIZER_CONFIG, "special_tokens_map.json"))
    tokens = {name: token for name, token in older.items() if name.endswith("_token")}
    merged = {**tokens, **config} if "added_tokens_decoder" in config else {**config, **tokens}
    if merged == config:
        return {}
    try:
        return {TOKENIZER_CONFIG: json.dumps(merged, indent=2, allow_nan=False).encode()}
    except (ValueError, RecursionError) as error:
        raise EyespotError(f"{TOKENIZER_CONFIG}: cannot be written again ({error})") from None


def _chat_template(given: Mapping[str, bytes]) -> str | None:
    """The checkpoint's own: a file, or a text in one of two JSON files; of several named ones the 'default'."""
    try:
        if CHAT_TEMPLATE in given:
            return given[CHAT_TEMPLATE].decode()
    except UnicodeDecodeError:
        raise EyespotError(f"{CHAT_TEMPLATE}: not UTF-8") from None
    for name in ("chat_template.json", TOKENIZER_CONFIG):
        found = _object(given, name).get("chat_template")
        if isinstance(found, list):
            named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
            found = named.get("default", next(iter(named.values()), None))
        if isinstance(found, str):
            return found
    return None


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}` marks the answer for training; run/template.py renders its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _check_template(template: str) -> None:
    """EyespotError when a chat template is not Jinja: told here, and not by a bundle that cannot chat."""
    try:
        Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(template)
    except (TemplateError, RecursionError, ValueError, OverflowError) as error:
        raise EyespotError(
            f"{CHAT_TEMPLATE}: not a Jinja template",
            found=f"line {error.lineno}: {error.message}" if isinstance(error, TemplateSyntaxError) else error,
            cause="the template was cut off or mistyped",
        ) from None


def make_settings(files: Mapping[str, bytes], built: Built, ctx_size: int, warnings: list[str]) -> Settings:
    """config.json of the bundle. files: as `side_files` gave them. EyespotError when tokenizer and model do not fit."""
    info = built.program.info
    tokenizer = open_tokenizer(files["tokenizer.json"]) if "tokenizer.json" in files else None
    if tokenizer is None:
        warnings.append("there is no tokenizer: the bundle takes token ids only")
    else:
        _check_fit(tokenizer, built)
    stop = _stop_tokens(files, built, tokenizer)
    for i in stop:
        if i >= info.vocab_size:
            warnings.append(f"stop token {i} is outside the vocabulary of {info.vocab_size} and left out")
    settings = Settings(
        ctx_size=ctx_size,
        stop_tokens=tuple(i for i in stop if i < info.vocab_size),
        bos=None if tokenizer is None else _bos(tokenizer),
        sampling=_sampling(_object(files, GENERATION)),
    ).to_json()
    image = None if built.image is None else dict(built.image)
    # Through the reader's checks: what it would refuse must not be written.
    return Settings.parse(_as_json(settings | {"image": image}), ctx_size, info.vocab_size)


def _check_fit(tokenizer: Tokenizer, built: Built) -> None:
    info = built.program.info
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if largest >= info.vocab_size:
        raise EyespotError(
            "the tokenizer does not fit the vocabulary",
            found=f"ids up to {largest}",
            expected=f"ids below {info.vocab_size}",
            cause="a tokenizer of another model, or tokens added without resizing the embedding",
        )
    if built.image is not None and tokenizer.token_to_id(built.image["token"]) != info.image_token_id:
        raise EyespotError(
            f"the tokenizer's {built.image['token']} is not the model's image token",
            found=tokenizer.token_to_id(built.image["token"]),
            expected=info.image_token_id,
        )


def _stop_tokens(files: Mapping[str, bytes], built: Built, tokenizer: Tokenizer | None) -> list[int]:
    """Ids that end an answer: of generation_config, config and tokenizer_config, and the ends of a turn."""
    stop = [*_ids(_object(files, GENERATION).get("eos_token_id")), *built.eos]
    if tokenizer is not None:
        eos = _object(files, TOKENIZER_CONFIG).get("eos_token")
        template = files.get(CHAT_TEMPLATE, b"").decode()
        texts = [eos.get("content") if isinstance(eos, dict) else eos, *(t for t in TURN_ENDS if t in template)]
        found = (tokenizer.token_to_id(text) for text in texts if isinstance(text, str))
        stop += [i for i in found if i is not None]
    return sorted(set(stop))


def _ids(value: object) -> list[int]:
    return [i for i in (value if isinstance(value, list) else [value]) if type(i) is int and 0 <= i < limits.VOCAB]


def _bos(tokenizer: Tokenizer) -> int | None:
    """The token that the tokenizer puts before every text, if it puts one."""
    with_specials = tokenizer.encode("a", add_special_tokens=True).ids
    plain = tokenizer.encode("a", add_special_tokens=False).ids
    first: int | None = with_specials[0] if with_specials and with_specials[:1] != plain[:1] else None
    return first


def _sampling(raw: Mapping[str, Any]) -> SamplingDefaults:
    """generation_config.json's, under Hugging Face's rule that nothing is drawn unless do_sample says so."""
    names = ("temperature", "top_k", "top_p", "min_p") if raw.get("do_sample") is True else ()
    given = {name: raw[name] for name in (*names, "repetition_penalty") if raw.get(name) is not None}
    if names:
        given.setdefault("temperature", 1.0)
    top_k = given.get("top_k")
    if type(top_k) is float and top_k.is_integer():
        given["top_k"] = top_k = int(top_k)
    if top_k == -1:  # as other engines write "all"
        given["top_k"] = 0
    return SamplingDefaults.parse(GENERATION, asdict(SamplingDefaults()) | given)


def _as_json(value: Any) -> Any:
    """Tuples become lists, as json.dumps would make them."""
    if isinstance(value, Mapping):
        return {k: _as_json(v) for k, v in value.items()}
    return [_as_json(v) for v in value] if isinstance(value, list | tuple) else value


def _object(files: Mapping[str, bytes], name: str) -> Mapping[str, Any]:
    """The JSON object in file `name`; empty when there is none."""
    if name not in files:
        return {}
    value = parse_json(files[name], name)
    if not isinstance(value, dict):
        raise EyespotError(f"{name}: not an object", found=type(value).__name__)
    return value
