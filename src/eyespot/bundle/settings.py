"""config.json of a bundle: the run-time settings a person may edit, as frozen records whose every value is checked.

compile writes it, run reads it. Knows no model: how pictures are cut is resolution.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from eyespot import limits, resolution
from eyespot.errors import EyespotError

RESAMPLE = ("bicubic", "bilinear")


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What flags fall back to. Zero is greedy for temperature, all for top_k, the whole sequence for the window."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 0

    @classmethod
    def parse(cls, where: str, raw: object) -> SamplingDefaults:
        """A checked record of parsed JSON. EyespotError names `where` and the first key that is off."""
        checks = {
            "temperature": _real(0, 100),
            "top_k": _whole(0, limits.VOCAB),
            "top_p": _real(0, 1),
            "min_p": _real(0, 1),
            "repetition_penalty": _real(0.01, 100),
            "repetition_window": _whole(0, limits.CONTEXT),
        }
        return cls(**_object(where, raw, checks))


@dataclass(frozen=True, slots=True)
class ImageRule:
    """How a picture becomes pixels, then text: before, a token for each feature row, after.

    resolution: how it is cut. mean, std: of RGB in 0..1. placeholder: what stands for a picture in a rendered prompt.
    In JSON the numbers of the resolution stand beside the rest, its name under "rule".
    """

    resolution: resolution.Rule
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str
    placeholder: str
    before: str
    token: str
    after: str

    def to_json(self) -> dict[str, Any]:
        own = asdict(self)  # the rule's dataclass too
        return {"rule": self.resolution.name, **own.pop("resolution"), **own}

    @classmethod
    def parse(cls, where: str, raw: object) -> ImageRule:
        """A checked record of parsed JSON. EyespotError names `where` and the first key that is off."""
        name = raw.get("rule") if isinstance(raw, dict) else None
        kind = resolution.RULES.get(name) if isinstance(name, str) else None
        names = [field.name for field in fields(kind)] if kind else []
        checks = {
            "rule": _one_of(tuple(resolution.RULES)),
            **{key: RESOLUTION[key] for key in names},
            "mean": _list(_real(-100, 100), 3, 3),
            "std": _list(_real(1e-6, 100), 3, 3),
            "resample": _one_of(RESAMPLE),
            "placeholder": _text(1),
            "before": _text(0),
            "token": _text(1),
            "after": _text(0),
        }
        if kind is None and isinstance(raw, dict):
            checks["rule"](f"{where}.rule", name)
        values = _object(where, raw, checks)
        assert kind is not None
        values.pop("rule")
        rule = kind(**{key: values.pop(key) for key in names})
        for low, high in (("min_tiles", "max_tiles"), ("min_pixels", "max_pixels")):
            least, most = (getattr(rule, key, 0) for key in (low, high))
            if least > most:
                raise EyespotError(f"{where}.{low} is above {high}", found=least, expected=f"at most {most}")
        if any(columns * rows > limits.TILES for columns, rows in getattr(rule, "grids", ())):
            raise EyespotError(f"{where}.grids: more tiles than a picture may have", expected=f"at most {limits.TILES}")
        if rule.most() < 1:
            raise EyespotError(f"{where}.max_pixels is less than a token", expected=f"at least {rule.size**2}")
        return cls(rule, **values)


@dataclass(frozen=True, slots=True)
class Settings:
    """config.json. ctx_size in tokens; threads 0 means as many as the machine has; stop_tokens end an answer."""

    ctx_size: int
    threads: int = 0
    stop_tokens: tuple[int, ...] = ()
    bos: int | None = None
    sampling: SamplingDefaults = SamplingDefaults()
    image: ImageRule | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "image": None if self.image is None else self.image.to_json()}

    @classmethod
    def parse(cls, raw: object, ctx_size: int = limits.CONTEXT, vocab_size: int = limits.VOCAB) -> Settings:
        """A checked record of parsed JSON. EyespotError names the first key that is missing, unknown or out of bounds.

        ctx_size, vocab_size: what the bundle was compiled for; no setting may exceed them.
        """
        token = _whole(0, vocab_size - 1)
        top = {
            "ctx_size": _whole(1, ctx_size),
            "threads": _whole(0, limits.THREADS),
            "stop_tokens": _list(token, 0, 1024),
            "bos": lambda where, value: None if value is None else token(where, value),
            "sampling": SamplingDefaults.parse,
            "image": lambda where, value: None if value is None else ImageRule.parse(where, value),
        }
        return cls(**_object("config.json", raw, top))


Check = Callable[[str, Any], Any]


def _object(where: str, value: object, checks: Mapping[str, Check]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise EyespotError(f"{where} is not an object", found=type(value).__name__)
    wrong = sorted(set(value) ^ set(checks))
    if wrong:
        what = "is missing" if wrong[0] in checks else "is not a setting"
        raise EyespotError(f"{where}: '{wrong[0]}' {what}", expected=f"the keys {', '.join(checks)}")
    prefix = f"{where}: " if where.endswith(".json") else f"{where}."
    return {key: check(prefix + key, value[key]) for key, check in checks.items()}


def _whole(low: int, high: int) -> Check:
    def check(where: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise EyespotError(where, found=repr(value), expected=f"an integer from {low} to {high}")
        return value

    return check


def _real(low: float, high: float) -> Check:
    def check(where: str, value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise EyespotError(where, found=repr(value), expected=f"a number from {low:g} to {high:g}")
        return float(value)

    return check


def _flag(where: str, value: Any) -> bool:
    if type(value) is not bool:
        raise EyespotError(where, found=repr(value), expected="true or false")
    return value


def _one_of(names: tuple[str, ...]) -> Check:
    def check(where: str, value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise EyespotError(where, found=repr(value), expected=" or ".join(names))
        return value

    return check


def _text(least: int) -> Check:
    def check(where: str, value: Any) -> str:
        if not isinstance(value, str) or not least <= len(value) <= limits.NAME_CHARS:
            raise EyespotError(
                where, found=repr(value), expected=f"a text of {least} to {limits.NAME_CHARS} characters"
            )
        return value

    return check


def _list(item: Check, least: int, most: int) -> Check:
    def check(where: str, value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            raise EyespotError(where, found=repr(value), expected=f"a list of {count} items")
        return tuple(item(f"{where}[{i}]", v) for i, v in enumerate(value))

    return check


def _window(where: str, value: Any) -> int:
    """Tokens a side of a window. Multiples of four: so only a picture's last window is no whole block of the engine's
    keys, which is all it has room for."""
    found: int = _whole(4, limits.IMAGE_SIDE)(where, value)
    if found % 4:
        raise EyespotError(where, found=value, expected="a multiple of 4")
    return found


# What the numbers of a resolution rule may be.
RESOLUTION: dict[str, Check] = {
    "size": _whole(1, limits.IMAGE_SIDE),
    "tokens_per_tile": _whole(1, limits.CONTEXT),
    "min_tiles": _whole(1, limits.TILES),
    "max_tiles": _whole(1, limits.TILES),
    "thumbnail": _flag,
    "grids": _list(_list(_whole(1, limits.TILES), 2, 2), 1, 1024),
    "alpha": _real(0, 1),
    "patch": _whole(1, limits.IMAGE_SIDE),
    "merge": _whole(2, 2),
    "min_pixels": _whole(1, limits.IMAGE_PIXELS),
    "max_pixels": _whole(1, limits.IMAGE_PIXELS),
    "window": _window,
    "tokens_per_second": _real(0, 1000),
}
