"""A record as the model is trained on it: token ids, the labels among them, and how each picture is cut into tiles.

Knows the conversation templates of families/internvl.py that need no begin token, and the rules of two families;
makes no pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from eyespot import families, images
from eyespot.checkpoint import local, open_checkpoint
from eyespot.errors import EyespotError, UnsupportedModel
from eyespot.families.internvl import CONTEXT_TOKEN, CONVERSATIONS, Conversation
from eyespot.resolution import RULES, BlueLMV, Cut, InternVL
from eyespot.tensorfile import parse_json, read_bytes
from eyespot.train.data.record import IMAGE, BadRecord, Record

IGNORE = -100  # label of a token that is not learned, as torch's cross entropy has it
ROLE = "{{ message['role'] }}"  # in a Conversation's `turn`
PLAIN = Conversation("", end="<|im_end|>\n")  # transformers' own template: no system prompt of its own


@dataclass(frozen=True, slots=True)
class ImageRule:
    """How pictures are cut, and what stands for one in the text: `token`, as often as it has rows, in its frame."""

    resolution: InternVL | BlueLMV
    before: str = "<img>"
    token: str = CONTEXT_TOKEN
    after: str = "</img>"

    def at_most(self, tiles: int) -> ImageRule:
        """The same rule for so many tiles, a thumbnail not counted."""
        return replace(self, resolution=self.resolution.capped(tiles))

    def cut(self, record: Record) -> tuple[Cut, ...]:
        """How each picture is cut: all of them share max_tiles, as in InternVL's training. Reads pictures' headers."""
        most = record.max_dynamic_patch or self.resolution.max_tiles
        each = self.at_most(max(1, most // max(1, len(record.images)))).resolution
        sizes = record.sizes or [images.size(picture) for picture in record.images]
        return tuple(each.cut(*size) for size in sizes)


INTERNVL = ImageRule(InternVL(448, 256))


@dataclass(frozen=True, slots=True)
class Encoded:
    """ids [n], labels [n]: the answers' tokens with their end, IGNORE elsewhere. tiles: of each picture, in order.

    image_tokens: those of `ids` that stand for tiles.
    """

    ids: list[int]
    labels: list[int]
    tiles: tuple[Cut, ...]
    image_tokens: int


class Encoder:
    """Turns records into tokens. EyespotError when the tokenizer lacks the marks of the template or of a picture."""

    def __init__(self, tokenizer: Tokenizer, rule: ImageRule, conversation: Conversation = PLAIN) -> None:
        if conversation.begin:
            raise UnsupportedModel("conversation templates with a begin token are not trained here")
        self.tokenizer, self.rule, self.conversation = tokenizer, rule, conversation
        self.end = conversation.end.rstrip("\n")  # learned with the answer; the line break after it is not
        self.picture = rule.before + rule.token + rule.after
        marks = tuple(mark for mark in (rule.before, rule.token, rule.after, self.end) if mark)
        if missing := [mark for mark in marks if tokenizer.token_to_id(mark) is None]:
            raise EyespotError("the tokenizer lacks tokens", found=", ".join(missing), expected=" ".join(marks))
        self.context = tokenizer.token_to_id(rule.token)
        control = (rule.token, self.end, conversation.system_turn.partition("system")[0])
        self.control = tuple(mark for mark in control if mark != IMAGE)  # a record's own word for a picture

    def encode(self, record: Record) -> Encoded:
        """The record in tokens. Its clips must be frames by now. BadRecord when its text holds control tokens."""
        if record.videos:
            raise BadRecord(record.place, ["a clip, expected its frames"])
        written = "".join(turn.text for turn in record.turns)
        if held := [mark for mark in self.control if mark in written]:
            raise BadRecord(record.place, [f"the text holds the control token {mark}" for mark in held])
        tiles = self.rule.cut(record)
        widths = [cut.tiles * self.rule.resolution.tokens_per_tile for cut in tiles]
        left = iter(widths)
        ids: list[int] = []
        labels: list[int] = []

        def add(text: str, learned: bool) -> None:
            pictures = text.replace(IMAGE, self.picture)
            for i in self.tokenizer.encode(pictures, add_special_tokens=False).ids:
                run = next(left) if i == self.context else 1
                ids.extend([i] * run)
                labels.extend([i if learned else IGNORE] * run)

        c, prompt = self.conversation, ""
        if c.system and record.turns[0].role != "system":
            prompt = c.system_turn + c.system + c.end
        for turn in record.turns:
            if turn.role == "assistant":  # its header ends a prompt: what follows is cut into tokens by itself
                add(prompt + c.assistant, learned=False)
                add(turn.text + self.end, learned=True)
                prompt = c.end.removeprefix(self.end)
            else:
                opening = c.system_turn if turn.role == "system" else c.turn.replace(ROLE, turn.role)
                prompt += opening + turn.text + c.end
        if prompt:
            add(prompt, learned=False)
        return Encoded(ids, labels, tiles, sum(widths))


def open_encoder(path: Path, max_tiles: int | None = None) -> Encoder:
    """The encoder of a tokenizer.json, with InternVL's image rule and a plain template, or of a checkpoint, with its
    own. max_tiles: of a sample's pictures together, when not the model's."""
    path = local(path)
    if path.is_dir():
        checkpoint = open_checkpoint(path)
        if "tokenizer.json" not in checkpoint.files:
            raise EyespotError(f"{path}: the checkpoint has no tokenizer")
        data, config = checkpoint.files["tokenizer.json"], checkpoint.config
        shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
        built = families.build(config, shapes, image_processor=picture_config(checkpoint.files))
        rule, conversation = _rule(built.image), _conversation(config)
    else:
        data, rule, conversation = read_bytes(path), INTERNVL, PLAIN
    return Encoder(tokenizer_of(data, path), rule if max_tiles is None else rule.at_most(max_tiles), conversation)


def tokenizer_of(data: bytes, path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json. EyespotError naming `path` for one that is none."""
    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # the library raises bare Exception
        raise EyespotError(f"{path}: not a tokenizer", found=error) from None


def picture_config(files: Mapping[str, bytes]) -> dict[str, Any]:
    """preprocessor_config.json among a checkpoint's files; empty where there is none."""
    data = files.get("preprocessor_config.json")
    raw = parse_json(data, "preprocessor_config.json") if data else None
    return raw if isinstance(raw, dict) else {}


def _rule(image: Mapping[str, Any] | None) -> ImageRule:
    if image is None:
        return INTERNVL
    kind = RULES[image["rule"]]
    if kind not in (InternVL, BlueLMV):
        raise UnsupportedModel("pictures of this model are not trained here", found=kind.name)
    numbers = {f.name: image[f.name] for f in fields(kind)}
    if "grids" in numbers:
        numbers["grids"] = tuple(map(tuple, numbers["grids"]))
    return ImageRule(kind(**numbers), image["before"], image["token"], image["after"])


def _conversation(config: Mapping[str, Any]) -> Conversation:
    """InternVL's files name one of its templates; transformers' have the plain one."""
    found = CONVERSATIONS.get(config.get("template", ""))
    system = config.get("system_message")
    return PLAIN if found is None else replace(found, system=system) if isinstance(system, str) else found
