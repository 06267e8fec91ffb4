"""Messages and pictures into what the engine takes: token ids with room for each picture's features, and pixels.

Knows one bundle's tokenizer, chat template and image rule; knows no engine and keeps no sequence.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eyespot import boxes, images, limits, multi_view, resolution, video
from eyespot.boxes import Box
from eyespot.bundle.read import Bundle
from eyespot.errors import EyespotError, UsageError
from eyespot.images import Picture
from eyespot.resolution import Cut, Qwen, Rule
from eyespot.run.arguments import real, whole
from eyespot.tensorfile import read_json
from eyespot.video import Clip, open_clip

if TYPE_CHECKING:
    from PIL.Image import Image

    from eyespot.images import Source
    from eyespot.run.template import Template
    from eyespot.run.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]

ROLES = ("system", "user", "assistant")
FRAMES = 8  # of a clip, when nobody says: as in InternVL's model cards
LEAST_OF_A_PAIR = 16  # tokens of two frames, however many there are
BATCH = 4  # tiles that are prepared while others are encoded, as in BlueLM-V
CLIP_OPTIONS = frozenset({"fps", "max_frames", "start", "end", "rate"})
NUMBERED = 4096  # pictures whose keys are remembered


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. text: plain. pictures: those of this turn. content: what the template gets, control tokens marked."""

    role: str
    text: str
    pictures: tuple[Picture, ...] = ()
    content: str | list[dict[str, str]] = ""


@dataclass(frozen=True, slots=True)
class Placed:
    """A picture in a prompt: feature row i belongs to token `start` + i, for `rows` tokens."""

    picture: Picture
    cut: Cut
    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What the engine encodes in one call: pixels [tiles, channels, side, side], and for eyes of any resolution what
    es_encode_at wants beside them. order: the feature row that belongs to each token; None: as they come."""

    pixels: F32
    places: I32 | None = None
    windows: I32 | None = None
    frames: I32 | None = None
    order: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """ids [n]: for the engine. keys [n]: equal for equal tokens, and for image tokens only if picture and row are equal
    too. text: as rendered, placeholders and marks unexpanded. raw: the answer goes on from the text itself. positions
    [n, 3]: of a model whose tokens have one on each axis."""

    text: str
    ids: npt.NDArray[np.int32]
    keys: npt.NDArray[np.int64]
    pictures: tuple[Placed, ...] = ()
    raw: bool = False
    positions: I32 | None = None

    @property
    def image_tokens(self) -> int:
        return sum(placed.rows for placed in self.pictures)

    def extended(self, text: str, ids: Sequence[int]) -> Prompt:
        """This prompt and an answer to it; `text` marked."""
        return replace(
            self,
            text=self.text + text,
            ids=np.concatenate([self.ids, np.asarray(ids, np.int32)]),
            keys=np.concatenate([self.keys, np.asarray(ids, np.int64)]),
            positions=None if self.positions is None else _extended(self.positions, len(ids)),
        )


@dataclass(frozen=True, slots=True)
class Dialect:
    """A chat template and how it takes a message's content: as a string; as parts, with a placeholder for a picture."""

    template: Template
    takes_strings: bool
    takes_pictures: bool


@dataclass
class Processor:
    """Made by load_processor. source: the template's, "" when there is none. variables: what it sees beside messages,
    such as bos_token."""

    bundle: Bundle
    tokenizer: Tokenizer
    source: str
    variables: dict[str, Any]
    image_token_id: int = -1
    _numbers: dict[tuple[bytes, Cut], int] = field(default_factory=dict)
    _counter: itertools.count[int] = field(default_factory=itertools.count)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # a template renders one prompt at a time

    @cached_property
    def dialect(self) -> Dialect:
        """Made for the first message: jinja2 takes its time to import, and raw text does not need it."""
        if not self.source:
            raise UsageError("this bundle has no chat template", cause="a base model, which continues raw text (--raw)")
        from eyespot.run.template import Template

        template, rule = Template(self.source), self.bundle.settings.image

        def probe(content: str | list[dict[str, str]]) -> str:
            """What the template makes of one user message; "" when it refuses."""
            try:
                turns = [{"role": "user", "content": content}]
                return template.render(turns, add_generation_prompt=True, **self.variables)
            except EyespotError:
                return ""

        parts = [{"type": "image"}, {"type": "text", "text": "eyespot-probe"}]
        shown = probe(parts) if rule is not None else ""
        pictures = rule is not None and "eyespot-probe" in shown and shown.count(rule.placeholder) == 1
        return Dialect(template, "eyespot-probe" in probe("eyespot-probe"), pictures)

    # Messages

    def messages(self, prompt: str | Sequence[Mapping[str, Any]], pictures: Sequence[Source] = ()) -> list[Message]:
        """Checked messages of a prompt, which is the user's text or a list of {"role", "content"}.

        content: a string, or parts {"type": "text", "text"}, {"type": "image", "image": path, bytes or PIL image} and
        {"type": "video", "video": path, "fps", "max_frames", "start", "end", "rate"}
        and {"type": "views", "views": {camera: path}}.
        pictures: of the user's text, or of the last user message.
        """
        raw: Sequence[Mapping[str, Any]] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if not isinstance(raw, Sequence) or not raw or not all(isinstance(m, Mapping) for m in raw):
            raise UsageError("messages are malformed", expected='a list of {"role": ..., "content": ...}')
        last = max((i for i, m in enumerate(raw) if m.get("role") == "user"), default=-1)
        if pictures and last < 0:
            raise UsageError("pictures without a user message")
        made: list[Message] = []
        for i, m in enumerate(raw):
            before = sum(len(message.pictures) for message in made)
            made.append(self.message(m.get("role"), m.get("content"), pictures if i == last else (), before))
        return made

    def message(self, role: Any, content: Any, pictures: Sequence[Source] = (), before: int = 0) -> Message:
        """One checked message; reads its pictures. before: pictures of the messages before it."""
        if role not in ROLES:
            raise UsageError("message of an unknown role", found=role, expected=", ".join(ROLES))
        if isinstance(content, str):
            return self._compose(role, content, [images.load(p) for p in self._eyes(pictures)], before)
        if not isinstance(content, Sequence) or not all(isinstance(p, Mapping) for p in content):
            raise UsageError("message content is malformed", expected="a text or a list of parts")
        loaded = [images.load(p) for p in self._eyes(pictures)]
        parts: list[dict[str, str]] = [{"type": "image"} for _ in loaded]
        clips = [part for part in content if part.get("type") == "video"]
        if clips and (len(clips) > 1 or loaded or any(part.get("type") in ("image", "views") for part in content)):
            raise UsageError("a clip and other pictures in one message", expected="one clip, or pictures")
        for part in content:
            match dict(part):
                case {"type": "text", "text": str(text)}:
                    parts.append({"type": "text", "text": self.mark(text)})
                case {"type": "image", "image": source}:
                    loaded += [images.load(p) for p in self._eyes([source])]
                    parts.append({"type": "image"})
                case {"type": "views", "views": Mapping() as views}:
                    loaded.append(self._stitched(views))
                    parts.append({"type": "image"})
                case {"type": "video", "video": source, **how}:
                    frames = self._frames(source, how)
                    loaded += frames
                    parts += [{"type": "image"}] if self._axes else _labelled("Frame{}: ", len(frames))
                case _:
                    raise UsageError(
                        "message part is malformed",
                        found=sorted(map(str, part)),
                        expected='{"type": "text", "text": ...}, or of an image or a video',
                    )
        text = "".join(str(p["text"]) for p in content if p.get("type") == "text")
        return self._arranged(role, text, loaded, parts, before)

    def _stitched(self, views: Mapping[str, Source]) -> Picture:
        """Six cameras as one picture that knows them."""
        self._eyes([*views.values()])
        loaded = {name: images.load(source) for name, source in views.items()}
        picture = images.load(multi_view.stitch(loaded))
        sizes = tuple((name, (camera.width, camera.height)) for name, camera in loaded.items())
        return replace(picture, name="six cameras", views=sizes)

    def _frames(self, source: Any, how: Mapping[str, Any]) -> list[Picture]:
        """Frames of a clip as pictures of one tile, with their times. how: CLIP_OPTIONS, in seconds and frames a
        second; rate: of a directory."""
        self._eyes([source])
        if not isinstance(source, str | os.PathLike):
            raise UsageError("a clip has the wrong type", found=type(source).__name__, expected="a path")
        if unknown := sorted(set(how) - CLIP_OPTIONS):
            raise UsageError("unknown option of a clip", found=unknown[0], expected=", ".join(sorted(CLIP_OPTIONS)))
        given = {key: value for key, value in how.items() if value is not None}
        fps = real("fps", given["fps"], 1e-3, 1e3) if "fps" in given else None
        start, end = (real(key, given[key], 0, 1e9) if key in given else None for key in ("start", "end"))
        most = whole("max_frames", given.get("max_frames", FRAMES), 1, limits.IMAGES)
        rate = real("rate", given["rate"], 1e-3, 1e3) if "rate" in given else None
        clip = open_clip(os.fspath(source), rate)
        numbers = clip.within(start, end)
        if self._axes:
            return [self._footage(clip, numbers, fps or 2.0, given.get("max_frames"))]
        if fps is None:
            if len(numbers) > most:  # the rule would show some frames of a shorter one twice, and others not at all
                numbers = [numbers[i] for i in video.segments(len(numbers), most)]
        else:
            numbers = video.at_rate(clip.times, numbers, fps, min(clip.ends(numbers), end or clip.end))
            numbers = [numbers[i] for i in video.evenly(len(numbers), most)]
        loaded = zip(numbers, clip.read(numbers), strict=True)
        found = []
        for n, source in loaded:
            frame = images.load(source)
            if (small := video.shrunk(frame.image, len(numbers))) is not frame.image:
                frame = images.load(small)
            found.append(replace(frame, name=f"{clip.name} {clip.times[n]:.2f} s", time=clip.times[n]))
        return found

    def _footage(self, clip: Clip, numbers: list[int], fps: float, most: int | None) -> Picture:
        """A clip as one picture of several frames, as for Qwen2.5-VL: a token is two deep, time is a position.

        At a steady rate pairs are as far apart as the authors count them; else each is where its first frame is.
        """
        rate = clip.rate(numbers)
        chosen = [numbers[i] for i in video.qwen(len(numbers), rate, fps, most=min(most or 768, limits.IMAGES))]
        frames: list[Image] = []
        size, digest = (0, 0), hashlib.sha256()
        for source in clip.read(chosen):
            frame = images.load(source)
            if frames and frame.image.size != size:
                raise EyespotError(f"{clip.name}: frames of different sizes", expected="{}x{}".format(*size))
            size = frame.image.size
            digest.update(frame.digest)
            frames.append(video.shrunk(frame.image, len(chosen)))
        step = 2 * len(numbers) / len(chosen) / rate
        begins = [clip.times[n] - clip.times[chosen[0]] for n in chosen[::2]]
        times = [k * step for k in range(len(begins))] if clip.steady(numbers) else begins
        digest.update(repr(times).encode())
        picture = images.load(frames[0])
        return replace(
            picture, name=clip.name, digest=digest.digest(), frames=tuple(frames), times=tuple(times),
            time=clip.times[chosen[0]],
        )  # fmt: skip

    def _eyes(self, pictures: Sequence[Source]) -> Sequence[Source]:
        if not isinstance(pictures, list | tuple):
            raise UsageError("pictures are not a list", found=type(pictures).__name__, expected='images=["cat.jpg"]')
        if pictures and self.bundle.settings.image is None:
            raise UsageError("this model has no eyes", found=f"{len(pictures)} pictures", expected="none")
        if len(pictures) > limits.IMAGES:
            raise UsageError("too many pictures", found=len(pictures), expected=f"at most {limits.IMAGES}")
        return pictures

    def mark(self, text: str) -> str:
        """Text from outside, its control tokens and placeholders marked as letters."""
        if len(text) > limits.PROMPT_CHARS:
            raise UsageError("text is too long", found=len(text), expected=f"at most {limits.PROMPT_CHARS} characters")
        return self.tokenizer.mark(text)

    def _compose(self, role: str, text: str, pictures: list[Picture], before: int) -> Message:
        rule = self.bundle.settings.image
        if rule is None or not pictures:
            return self._arranged(role, text, [], [{"type": "text", "text": self.mark(text)}], before)
        written = text.count(rule.placeholder)
        if written == 0:
            parts = [{"type": "image"} for _ in pictures] + [{"type": "text", "text": self.mark(text)}]
            return self._arranged(role, text, pictures, parts, before)
        if written != len(pictures):
            raise UsageError(
                f"the text has {written} {rule.placeholder} for {len(pictures)} pictures",
                expected="one each, or none and the pictures come first",
            )
        content = self.tokenizer.mark(text, keep=rule.placeholder)
        return self._arranged(role, text, pictures, [{"type": "text", "text": content}], before)

    def _arranged(
        self, role: str, text: str, pictures: list[Picture], parts: list[dict[str, str]], before: int
    ) -> Message:
        """The message with its parts as the template takes them, several pictures numbered as the authors do it."""
        shown = sum(part["type"] == "image" for part in parts)
        if shown > 1 and pictures[0].time is None:  # frames have their own
            labelled = iter(_labelled("Picture {}: " if self._axes else "Image-{}: ", shown, before))
            parts = [p for part in parts for p in ([part] if part["type"] == "text" else itertools.islice(labelled, 2))]
        if self.dialect.takes_pictures if shown else not self.dialect.takes_strings:
            return Message(role, text, tuple(pictures), parts)
        rule, content = self.bundle.settings.image, ""
        for part in parts:
            if part["type"] == "text":
                content += part["text"]
            elif rule is not None:
                content += rule.placeholder + "\n"
        return Message(role, text, tuple(pictures), content)

    # Prompts

    def chat(self, messages: Sequence[Message], after: Prompt | None = None, rule: Rule | None = None) -> Prompt:
        """The prompt of a conversation, ready for the assistant's turn.

        after: what was said so far. When the new text begins with it, its tokens stand as they were generated and only
        the rest is encoded, so that the engine can go on from them. rule: how new pictures are cut.
        """
        turns = [{"role": m.role, "content": m.content} for m in messages]
        with self._lock:
            text = self.dialect.template.render(turns, add_generation_prompt=True, **self.variables)
        pictures = [picture for message in messages for picture in message.pictures]
        if after is not None and not text.startswith(after.text):
            after = None
        return self._encode(text, pictures, after, rule)

    def raw(self, text: str, pictures: Sequence[Source] = (), cut_by: Rule | None = None) -> Prompt:
        """The prompt of a text as it is, special tokens included, with the token before it that the bundle names."""
        loaded = [images.load(p) for p in self._eyes(pictures)]
        rule = self.bundle.settings.image
        if len(text) > limits.PROMPT_CHARS:
            raise UsageError("text is too long", found=len(text), expected=f"at most {limits.PROMPT_CHARS} characters")
        if rule is not None and loaded and rule.placeholder not in text:
            text = f"{rule.placeholder}\n" * len(loaded) + text
        text = text.encode("utf-8", "replace").decode()
        return replace(self._encode(text, loaded, None, cut_by, raw=True), raw=True)

    def _encode(
        self, text: str, pictures: list[Picture], after: Prompt | None, cut_by: Rule | None, raw: bool = False
    ) -> Prompt:
        rule, start = self.bundle.settings.image, len(after.text) if after else 0
        tail, placed = text[start:], after.pictures if after else ()
        fresh = pictures[len(placed) :]
        written = tail.count(rule.placeholder) if rule and pictures else 0
        if written != len(fresh):
            raise EyespotError(
                f"the prompt has {written} placeholders for {len(fresh)} pictures",
                cause="the text or the chat template drops or repeats them",
            )
        if rule and fresh:
            tail = tail.replace(rule.placeholder, rule.before + rule.token + rule.after)
        ids = self.tokenizer.encode(tail, first=after is None, special=raw)
        bos = self.bundle.settings.bos
        if raw and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        if not ids and after is None:
            raise UsageError("the prompt is empty")
        return self._expand(text, ids, fresh, [self.cut(picture, cut_by) for picture in fresh], after)

    def _expand(self, text: str, ids: list[int], fresh: list[Picture], cuts: list[Cut], after: Prompt | None) -> Prompt:
        """Each image token becomes as many as its picture has feature rows."""
        token = self.image_token_id
        places = [i for i, id in enumerate(ids) if id == token] if token >= 0 else []
        if len(places) != len(fresh):  # no text from outside gets here with one, except raw text
            raise UsageError(
                f"the prompt holds {len(places)} image tokens for {len(fresh)} pictures",
                cause="the text contains the image token itself",
            )
        start = len(after.ids) if after else 0
        before = after.pictures if after else ()
        short = np.array(ids, np.int32)
        repeats = np.ones(len(ids), np.int64)
        for place, picture, cut in zip(places, fresh, cuts, strict=True):
            repeats[place] = self.image_tokens(cut) * picture.frame_pairs
        starts, long = np.cumsum(repeats) - repeats, np.repeat(short, repeats)
        keys, placed = long.astype(np.int64), []
        for place, picture, cut in zip(places, fresh, cuts, strict=True):
            at, rows = int(starts[place]), int(repeats[place])
            keys[at : at + rows] = -1 - (self._number(picture.digest, cut) << 32) - np.arange(rows)
            placed.append(Placed(picture, cut, start + at, rows))
        if after:
            long, keys = np.concatenate([after.ids, long]), np.concatenate([after.keys, keys])
        prompt = Prompt(text, long, keys, (*before, *placed))
        if not self._axes:
            return prompt
        known = after.positions if after else None
        return replace(
            prompt, positions=self._positions(prompt, known if known is not None else np.empty((0, 3), np.int32))
        )

    @property
    def _axes(self) -> bool:
        """Whether tokens have positions on several axes."""
        image = self.bundle.settings.image
        return image is not None and isinstance(image.resolution, Qwen)

    def _positions(self, prompt: Prompt, known: I32) -> I32:
        """Of every token: text counts on, alike on all axes; a picture's tokens stand on a grid that begins one past
        what came before, and text goes on one past the largest of it. Source: get_rope_index of Qwen2.5-VL's authors.
        known: those of the first tokens."""
        image = self.bundle.settings.image
        assert image is not None
        assert isinstance(image.resolution, Qwen)
        side, rate = image.resolution.size, image.resolution.tokens_per_second
        parts, done = [known], len(known)
        after = int(known.max(initial=-1)) + 1
        for placed in prompt.pictures:
            if placed.start < done:
                continue
            parts.append(np.repeat(np.arange(after, after + placed.start - done)[:, None], 3, axis=1))
            after += placed.start - done
            columns, rows = (length // side for length in placed.cut.tile)
            times = placed.rows // (columns * rows)
            seconds = np.array(placed.picture.times or (0.0,))
            last, most = after + seconds.max() * rate, self.bundle.program.info.max_position
            if last >= most and seconds.any():
                raise EyespotError(
                    f"{placed.picture.name} ends past the model's positions", found=f"position {last:.0f}",
                    expected=f"below {most}", cause="time is a position: show a part (--video-start, --video-end)",
                )  # fmt: skip
            grid = np.empty((times, rows, columns, 3), np.int64)
            grid[..., 0] = after + np.floor(seconds * rate + 1e-6).astype(np.int64)[:, None, None]
            grid[..., 1] = after + np.arange(rows)[:, None]
            grid[..., 2] = after + np.arange(columns)
            parts.append(grid.reshape(-1, 3).astype(np.int32))
            after, done = int(grid.max()) + 1, placed.start + placed.rows
        parts.append(np.repeat(np.arange(after, after + len(prompt.ids) - done)[:, None], 3, axis=1))
        return np.concatenate(parts).astype(np.int32)

    def rule(
        self, name: str | None = None, max_tiles: int | None = None, image_tokens: int | None = None
    ) -> Rule | None:
        """How pictures are cut: by the bundle's rule, or the one called `name`; into at most `max_tiles` tiles, a
        thumbnail not counted; for at most `image_tokens` tokens each. None for a model without eyes."""
        if self.bundle.settings.image is None:
            return None
        rule = self.bundle.settings.image.resolution
        if name is not None:
            rule = resolution.other(rule, name)
        if max_tiles is not None:
            rule = resolution.capped(rule, whole("max_tiles", max_tiles, 1, limits.TILES))
        if image_tokens is not None:
            rule = rule.within(whole("image_tokens", image_tokens, 1, limits.CONTEXT))
        return rule

    def cut(self, picture: Picture, rule: Rule | None = None) -> Cut:
        """How `rule`, or the bundle's own, cuts a picture. A clip's frame is one tile whatever the rule, as the models
        were trained; the eyes of any resolution share what a picture may take among its frames."""
        if self.bundle.settings.image is None:
            raise UsageError("this model has no eyes")
        rule = rule or self.bundle.settings.image.resolution
        if picture.time is not None and not isinstance(rule, Qwen):
            rule = resolution.other(rule, "fixed")
        elif (pairs := picture.frame_pairs) > 1:  # what a picture may take is for all of them
            each, fit = rule.most() // pairs, rule.most() // LEAST_OF_A_PAIR
            if fit < pairs and rule != self.bundle.settings.image.resolution:  # so somebody said how many
                raise UsageError(
                    f"{picture.name}: too few tokens for its frames", found=f"{rule.most()} for {2 * pairs}",
                    expected=f"at least {LEAST_OF_A_PAIR * pairs}" + (f", or --max-frames {2 * fit}" if fit else ""),
                )  # fmt: skip
            rule = rule.within(max(LEAST_OF_A_PAIR, each))
        return rule.cut(picture.width, picture.height)

    def image_tokens(self, cut: Cut) -> int:
        """Tokens of a picture cut so."""
        image = self.bundle.settings.image
        return 0 if image is None else image.resolution.tokens(cut)

    def _number(self, digest: bytes, cut: Cut) -> int:
        """The same for the same pixels cut the same way, different for all others."""
        key = (digest, cut)
        with self._lock:
            if key not in self._numbers:
                if len(self._numbers) >= NUMBERED:
                    del self._numbers[next(iter(self._numbers))]
                self._numbers[key] = next(self._counter)
            return self._numbers[key]

    def numbered(self, keys: npt.NDArray[np.int64]) -> dict[str, dict[str, Any]]:
        """Number -> picture and cut, as JSON, of the pictures that keys speak of."""
        with self._lock:
            known = {number: (digest.hex(), asdict(cut)) for (digest, cut), number in self._numbers.items()}
        used = np.unique((-1 - keys[keys < 0]) >> 32).tolist()
        if not known.keys() >= set(used):
            raise EyespotError(
                "the prompt cannot be saved", cause="its pictures came too long ago: reset the conversation"
            )
        return {str(n): {"digest": known[n][0], "cut": known[n][1]} for n in used}

    def numbers_for(
        self, pictures: Mapping[int, tuple[bytes, Cut]], keys: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """Keys that another processor made, with the numbers that these pictures have here."""
        found = keys.copy()
        own = {number: self._number(*picture) for number, picture in pictures.items()}
        mine = np.flatnonzero(keys < 0)
        row = (-1 - keys[mine]) & 0xFFFFFFFF
        new = np.array([own[n] for n in ((-1 - keys[mine]) >> 32).tolist()], np.int64)
        found[mine] = -1 - (new << 32) - row
        return found

    # Boxes

    def boxes(self, text: str, prompt: Prompt) -> tuple[tuple[Box, ...], tuple[str, ...]]:
        """What an answer to `prompt` points at, in pixels of the picture that came last, and the faults of the rest."""
        if not prompt.pictures or self.bundle.settings.image is None:
            return (), ()
        placed = prompt.pictures[-1]
        size = placed.picture.width, placed.picture.height
        pixels = self._axes  # others say thousandths
        to_picture = (lambda x, y: placed.cut.to_picture(x, y, size)) if pixels else None
        found, faults = boxes.read(text, size, to_picture, len(prompt.pictures) - 1)
        if found and len(prompt.pictures) > 1:
            faults.append(
                f"the answer does not say which of {len(prompt.pictures)} pictures its boxes are about: the last"
            )
        if placed.picture.views:
            sizes = dict(placed.picture.views)
            at = [(box, *multi_view.off_canvas(box.corners, sizes)) for box in found]
            found = [replace(box, x1=c[0], y1=c[1], x2=c[2], y2=c[3], view=view) for box, view, c in at]
        return tuple(found), tuple(faults)

    # Pixels

    def seen(self, picture: Picture, cut: Cut) -> Iterator[Seen]:
        """What the engine is to encode for a picture, call by call: all its tiles, or each pair of its frames."""
        image = self.bundle.settings.image
        if image is None:
            raise UsageError("this model has no eyes")
        if not isinstance(image.resolution, Qwen):
            tiles = images.tiles(picture.image, cut, image.resample)
            for at in range(0, len(tiles), BATCH):
                yield Seen(self._normalized(tiles[at : at + BATCH]))
            return
        frames = picture.frames or (picture.image, picture.image)
        for pair in zip(frames[::2], frames[1::2], strict=True):
            yield _windowed(np.stack([self._normalized(images.tiles(f, cut, image.resample))[0] for f in pair]),
                            image.resolution)  # fmt: skip

    def _normalized(self, seen: npt.NDArray[np.uint8]) -> F32:
        """[t, 3, h, w] of bytes [t, h, w, 3]."""
        image = self.bundle.settings.image
        assert image is not None
        mean, std = np.array(image.mean, np.float32), np.array(image.std, np.float32)
        table = (np.arange(256, dtype=np.float32)[:, None] / 255 - mean) / std  # [256, 3]: what each byte becomes
        out = np.empty((len(seen), 3, *seen.shape[1:3]), np.float32)
        for channel in range(3):
            out[:, channel] = table[:, channel][seen[..., channel]]
        return out


def _labelled(label: str, count: int, before: int = 0) -> list[dict[str, str]]:
    """So many pictures as parts, each after the text that numbers it."""
    pairs = (({"type": "text", "text": label.format(before + i)}, {"type": "image"}) for i in range(1, count + 1))
    return [part for pair in pairs for part in pair]


def _extended(positions: I32, count: int) -> I32:
    """With those of so many more tokens of text."""
    first = int(positions.max(initial=-1)) + 1
    more = np.repeat(np.arange(first, first + count, dtype=np.int32)[:, None], 3, axis=1)
    return np.concatenate([positions, more])


def _windowed(pixels: F32, rule: Qwen) -> Seen:
    """Two frames [2, 3, h, w] as tiles of a token, window after window, as Qwen2.5-VL's eyes take them.

    A tile is [3 * 2, side, side]: channel before frame, as the patches' convolution has them.
    """
    side, merge = rule.size, rule.merge
    rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
    grid = pixels.reshape(2, 3, rows, side, columns, side).transpose(2, 4, 1, 0, 3, 5)  # row, column, channel, frame
    y, x = np.divmod(np.arange(rows * columns), columns)
    window = y // rule.window * -(-columns // rule.window) + x // rule.window
    by_window = np.argsort(window, kind="stable")
    patch_y, patch_x = np.divmod(np.arange(merge * merge), merge)
    places = np.stack([(merge * y[by_window, None] + patch_y), (merge * x[by_window, None] + patch_x)], axis=-1)
    return Seen(
        np.ascontiguousarray(grid.reshape(rows * columns, 6, side, side)[by_window]),
        places.reshape(-1, 2).astype(np.int32),
        np.repeat(window[by_window], merge * merge).astype(np.int32),
        np.zeros(rows * columns * merge * merge, np.int32),
        np.argsort(by_window),
    )


def load_processor(bundle: Bundle) -> Processor:
    """The tokenizer, the chat template and the image rule of a bundle. Takes a third of a second for 150k tokens where
    the tokenizer has no fast form."""
    from eyespot.run.tokenizer import Tokenizer

    if bundle.tokenizer is None:
        raise EyespotError("the bundle has no tokenizer.json", cause="the checkpoint had none when it was compiled")
    settings, rule = bundle.settings, bundle.settings.image
    source = ""
    if bundle.chat_template is not None:
        with open(bundle.chat_template, encoding="utf-8", errors="replace") as file:
            source = file.read(limits.TEMPLATE_CHARS + 1)
    config_path = bundle.file("tokenizer_config.json")
    config = read_json(config_path) if config_path else {}
    named = _special_tokens(config if isinstance(config, dict) else {})
    controls: list[int | str] = [*settings.stop_tokens, *(named[k] for k in ("bos_token", "eos_token") if k in named)]
    if settings.bos is not None:
        controls.append(settings.bos)
    if rule is not None:
        controls += [rule.placeholder, rule.before, rule.token, rule.after]
    tokenizer = Tokenizer(bundle.fast_tokenizer or bundle.tokenizer, controls, source)
    processor = Processor(bundle, tokenizer, source, {"tools": None, "documents": None, **named})
    if settings.bos is not None:
        processor.variables.setdefault("bos_token", tokenizer.text(settings.bos) or "")
    if rule is not None:
        processor.image_token_id = bundle.program.info.image_token_id
        if tokenizer.id(rule.token) != processor.image_token_id:
            raise EyespotError(
                f"config.json: image.token {rule.token} is not the model's image token",
                found=tokenizer.id(rule.token),
                expected=processor.image_token_id,
            )
        each = rule.resolution.tokens_per_tile
        if each != bundle.program.info.tile_tokens:
            raise EyespotError(
                "config.json: image.tokens_per_tile is not the model's",
                found=each,
                expected=bundle.program.info.tile_tokens,
            )
        if isinstance(rule.resolution, Qwen):
            room = bundle.program.raw["memory"]["units"].get("t", 1)
            if rule.resolution.most() > room:
                raise EyespotError(
                    "config.json: image.max_pixels is more than the bundle was compiled for",
                    found=f"{rule.resolution.most()} tokens", expected=f"at most {room}",
                    cause="compile with --image-tokens",
                )  # fmt: skip
    return processor


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and their like of a tokenizer_config.json: texts, or objects with `content`."""
    found = {}
    for name, value in config.items():
        if name.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                found[name] = text
    return found
