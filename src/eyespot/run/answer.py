"""What comes back from a model: the answer, how each picture was taken, and what the time went into."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from eyespot.boxes import Box


@dataclass(frozen=True, slots=True)
class ImageUse:
    """One picture as the model saw it: width x height pixels, resized to `resized`, cut into `tiles` (a thumbnail
    included), worth `tokens`. encoded: False when its features were at hand. time: of a clip's frame, in seconds."""

    name: str
    width: int
    height: int
    resized: tuple[int, int]
    tiles: int
    tokens: int
    encoded: bool
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds, and the tokens they went into. first_token_s runs from the call; decode_s leaves out the caller's."""

    preprocess_s: float  # reading and resizing pictures
    encode_s: float
    prompt_tokens: int
    reused_tokens: int  # were in the cache already
    prefill_s: float
    first_token_s: float | None  # None: there was none
    decode_tokens: int  # after the first
    decode_s: float
    total_s: float

    @property
    def prefill_tokens(self) -> int:
        return self.prompt_tokens - self.reused_tokens

    @property
    def tokens_per_s(self) -> float | None:
        """Decoding speed; None when nothing was decoded."""
        return self.decode_tokens / self.decode_s if self.decode_tokens and self.decode_s > 0 else None


@dataclass(frozen=True, slots=True)
class Answer:
    """stop_reason: 'stop' (a stop token), 'length' (max_tokens), 'context' (the context is full) or 'cancelled'.

    boxes: what the text points at, in pixels of the picture as it was given, set upright. box_faults: of those that
    could not be read, or lie outside.
    """

    text: str
    tokens: tuple[int, ...]
    stop_reason: str
    seed: int
    images: tuple[ImageUse, ...]
    timings: Timings
    boxes: tuple[Box, ...] = ()
    box_faults: tuple[str, ...] = ()

    @property
    def image_tokens(self) -> int:
        return sum(image.tokens for image in self.images)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain JSON values."""
        speed = {"prefill_tokens": self.timings.prefill_tokens, "tokens_per_s": self.timings.tokens_per_s}
        record = asdict(self)
        return {**record, "image_tokens": self.image_tokens, "timings": {**record["timings"], **speed}}

    def stats(self) -> str:
        """One line for people."""
        t, parts = self.timings, []
        for image in self.images:
            size = "x".join(map(str, image.resized))
            parts.append(f"{image.name} {image.width}x{image.height} -> {size}, {image.tiles} tiles")
        if self.images:
            parts.append(f"{self.image_tokens} image tokens")
        parts.append(f"{t.prompt_tokens} prompt tokens" + (f" ({t.reused_tokens} reused)" if t.reused_tokens else ""))
        if t.first_token_s is not None:
            parts.append(f"first token {t.first_token_s:.2f} s")
        speed = f" at {t.tokens_per_s:.1f} tokens/s" if t.tokens_per_s else ""
        parts.append(f"{len(self.tokens)} tokens{speed}")
        return "; ".join([*parts, f"stopped: {self.stop_reason}"])
