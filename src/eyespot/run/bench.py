"""Times a bundle: rows of work, the bytes and operations each takes, and the most this machine can do, all in one run.

Knows an engine and the schemes of its program's weights; prints nothing. What each row does stands in Work.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from eyespot import images
from eyespot.bundle.read import Bundle, open_bundle
from eyespot.errors import EyespotError, UsageError
from eyespot.run.engine import Engine, threads_for
from eyespot.run.processor import load_processor

if TYPE_CHECKING:
    from eyespot.images import Source

TEXT, ANSWER, PICTURE = 32, 64, 448  # e2e: text tokens of the prompt, tokens of the answer, pixels a side
QUIET = 0.5  # the load average from which on other work disturbs

Ids = npt.NDArray[np.int32]
Lap = Callable[[], None]
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Spec:
    """A row as it is asked for: kind 'vit', 'pp', 'tg' or 'e2e', n tokens, after `depth` tokens."""

    kind: str
    n: int = 0
    depth: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}{self.n or ''}" + (f"@d{self.depth}" if self.depth else "")

    @classmethod
    def parse(cls, text: str) -> Spec:
        found = re.fullmatch(r"vit|e2e|pp([1-9]\d{0,8})|tg([1-9]\d{0,8})(?:@d(\d{1,9}))?", text)
        if found is None:
            raise UsageError("no such row", found=text, expected="vit, ppN, tgN, tgN@dN or e2e, N a number of tokens")
        return cls(text[: 2 if text[:2] in ("pp", "tg") else 3], int(found[1] or found[2] or 0), int(found[3] or 0))


@dataclass(frozen=True, slots=True)
class Work:
    """What a row does: `prepare`, not timed, then `run`, which calls its argument at the end of each lap.

    laps: their names; all count from the start of the run. tokens: how many a run takes in; 0: the row is told in ms.
    """

    laps: tuple[str, ...]
    prepare: Callable[[], None]
    run: Callable[[Lap], None]
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes of weights, cached keys and values that were read; operations (a multiply-add is two) by their kind."""

    bytes: int
    operations: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.operations.values())


@dataclass(frozen=True, slots=True)
class OpTime:
    """What all ops of one name took in one run; `name` without its layer. numbers: what its products are made of."""

    graph: str
    name: str
    kind: str
    numbers: str
    calls: float
    seconds: float
    bytes: float
    operations: float


@dataclass(frozen=True, slots=True)
class Row:
    """One measured row, or in `absent` why there is none. seconds: of each repetition. tokens as in Work."""

    name: str
    seconds: tuple[float, ...] = ()
    tokens: int = 0
    cost: Cost = Cost(0, {})
    ops: tuple[OpTime, ...] = ()
    absent: str = ""

    @property
    def unit(self) -> str:
        return "tokens/s" if self.tokens else "ms"

    @property
    def values(self) -> list[float]:
        """Each repetition in `unit`."""
        return [self.tokens / s if self.tokens else s * 1e3 for s in self.seconds]

    def to_json(self, ceilings: Mapping[str, Ceiling]) -> dict[str, Any]:
        """Rates are those of the mean time; percents of what the ceilings allow, None where there is no ceiling."""
        if self.absent:
            return {"name": self.name, "absent": self.absent}
        mean_s = statistics.fmean(self.seconds)
        least_s = [n / ceilings[kind].mean if ceilings[kind].mean else None for kind, n in self.cost.operations.items()]
        arithmetic = None if None in least_s else sum(filter(None, least_s)) / mean_s
        return {
            "name": self.name,
            "unit": self.unit,
            "mean": statistics.fmean(self.values),
            "sd": deviation(self.values),
            "values": self.values,
            "bytes": self.cost.bytes,
            "operations": self.cost.total,
            "operations_by_kind": dict(self.cost.operations),
            "gb_per_s": self.cost.bytes / mean_s / 1e9,
            "gop_per_s": self.cost.total / mean_s / 1e9,
            "percent_of_read": 100 * self.cost.bytes / ceilings["read"].mean / mean_s,
            "percent_of_arithmetic": None if arithmetic is None else 100 * arithmetic,
            **({"ops": [{k: getattr(op, k) for k in OpTime.__slots__} for op in self.ops]} if self.ops else {}),
        }


@dataclass(slots=True)
class Ceiling:
    """Bytes or operations a second, measured before the first row and after each; 0: this instruction set has none."""

    instruction: str
    samples: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.samples)


@dataclass(frozen=True, slots=True)
class Report:
    """load_s: Engine(...), which maps and checks the files. first_s: one token then, the first touch of the weights.
    peak_bytes: VmHWM of this process after the last row, None where the system does not tell."""

    bundle: Bundle
    engine: Mapping[str, Any]
    load_s: float
    first_s: float
    peak_bytes: int | None
    load_average: float
    rows: tuple[Row, ...]
    ceilings: Mapping[str, Ceiling]

    def to_json(self) -> dict[str, Any]:
        weights = self.bundle.program.raw["weights"].values()
        return {
            "bundle": self.bundle.path.name,
            "family": self.bundle.program.family,
            "schemes": sorted({w["scheme"] for w in weights}),
            "engine": dict(self.engine),
            "load_s": self.load_s,
            "first_s": self.first_s,
            "peak_bytes": self.peak_bytes,
            "load_average": self.load_average,
            "ceilings": {
                kind: {"instruction": c.instruction, "mean": c.mean, "sd": deviation(c.samples), "samples": c.samples}
                for kind, c in self.ceilings.items()
            },
            "rows": [row.to_json(self.ceilings) for row in self.rows],
        }


def deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def bench(
    path: str | Path,
    specs: Sequence[Spec],
    repetitions: int = 5,
    threads: int = 0,
    ctx_size: int = 0,
    isa: str = "",
    picture: Source | None = None,
    ops: bool = False,
    tell: Tell = lambda _: None,
) -> Report:
    """Opens the bundle in directory `path` and measures `specs` in order.

    Each row: one run to warm up, one in which the engine counts bytes and operations, `repetitions` timed. ops: as many
    again with a clock at every op. picture: of e2e; None: one of PICTURE x PICTURE pixels. tell: hears how far it is.
    Errors: those of open_bundle, Engine and images.load; UsageError for repetitions below 1.
    """
    if repetitions < 1:
        raise UsageError("repetitions is out of range", found=repetitions, expected="at least 1")
    load_average = os.getloadavg()[0]
    bundle = open_bundle(path)
    shown = images.load(picture if picture is not None else synthetic(PICTURE))
    started = time.perf_counter()
    with Engine(
        bundle.path, threads_for(threads, bundle.settings.threads), ctx_size or bundle.settings.ctx_size, isa
    ) as engine:
        opened = time.perf_counter()
        bencher = _Bencher(bundle, engine, shown, repetitions, ops, tell)
        ready = time.perf_counter()
        bencher.touch()
        touched = time.perf_counter()
        rows = tuple(row for spec in specs for row in bencher.rows(spec))
        info = engine.info
        peak = peak_bytes()
    return Report(bundle, info, opened - started, touched - ready, peak, load_average, rows, bencher.measure_ceilings())


def synthetic(side: int) -> Any:
    """A picture of side x side pixels: slow waves and noise, always the same."""
    from PIL import Image

    at = np.arange(side) / side
    waves = np.sin(6 * at)[:, None, None] + np.cos(9 * at)[None, :, None] * np.array([1.0, 0.5, -1.0])
    noise = np.random.default_rng(0).normal(0, 0.2, (side, side, 3))
    return Image.fromarray(np.clip(128 + 48 * (waves + noise), 0, 255).astype(np.uint8), "RGB")


def peak_bytes() -> int | None:
    """The most memory this process ever had resident: VmHWM. None where /proc does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM:")), None)
    except (OSError, ValueError):
        return None


class _Bencher:
    def __init__(
        self, bundle: Bundle, engine: Engine, picture: images.Picture, repetitions: int, ops: bool, tell: Tell
    ) -> None:
        self.bundle, self.engine, self.picture = bundle, engine, picture
        self.repetitions, self.ops, self.tell = repetitions, ops, tell
        self.info, self.rng = engine.info, np.random.default_rng(0)
        self.ceilings: dict[str, Ceiling] = {}

    def touch(self) -> None:
        """One token: the weights of text are read for the first time."""
        self.engine.feed(self._tokens(1))

    def measure_ceilings(self) -> dict[str, Ceiling]:
        """Measures them once more. In a process of its own: what it reads through must not count as our memory."""
        self.tell("ceilings")
        code = "import json, sys; from eyespot import _native\n"
        code += "print(json.dumps(_native.ceilings(int(sys.argv[1]), sys.argv[2])))"
        command = [sys.executable, "-c", code, str(self.info["threads"]), self.info["isa"]]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise EyespotError("the ceilings could not be measured", found=done.stderr.strip().rpartition("\n")[2])
        for kind, found in json.loads(done.stdout).items():
            self.ceilings.setdefault(kind, Ceiling(found["instruction"])).samples.append(found["per_second"])
        return self.ceilings

    def rows(self, spec: Spec) -> Iterator[Row]:
        """The rows of a spec: one a lap, or one that says why there is none."""
        work = self._work(spec)
        if isinstance(work, str):
            yield Row(spec.name, absent=work)
            return
        self.measure_ceilings()
        self.tell(f"{spec.name} warm-up")
        self._laps(work, time.perf_counter)
        self.engine.profile(True)
        profiles = [self._laps(work, self.engine.profiled) for _ in range(self.repetitions if self.ops else 1)]
        self.engine.profile(False)
        times = []
        for i in range(self.repetitions):
            self.tell(f"{spec.name} {i + 1}/{self.repetitions}")
            started, *laps = self._laps(work, time.perf_counter)
            times.append([lap - started for lap in laps])
        for i, name in enumerate(work.laps):
            spent = [_spent(before, laps[i]) for before, *laps in profiles]
            ops = _by_name(spent) if self.ops else ()
            yield Row(name, tuple(laps[i] for laps in times), work.tokens, self._cost(spent[0]), ops)

    def _laps(self, work: Work, look: Callable[[], Any]) -> list[Any]:
        """What `look` sees when the run begins and at the end of each lap."""
        work.prepare()
        seen = [look()]
        work.run(lambda: seen.append(look()))
        return seen

    @staticmethod
    def _cost(spent: Sequence[OpTime]) -> Cost:
        operations: dict[str, int] = {}
        for op in spent:
            if op.operations:
                operations[op.numbers] = operations.get(op.numbers, 0) + int(op.operations)
        return Cost(sum(int(op.bytes) for op in spent), operations)

    # What the rows do

    def _work(self, spec: Spec) -> Work | str:
        """The work of a row, or why this bundle cannot do it."""
        match spec.kind:
            case "vit":
                return self._vit() if self.info["tile_size"] else "no eyes"
            case "pp":
                return self._room(spec.n) or self._pp(spec)
            case "tg":
                return self._room(spec.depth + 1 + spec.n) or self._tg(spec)
        return self._e2e() if self.info["tile_size"] else "no eyes"

    def _room(self, tokens: int) -> str:
        """Why that many tokens do not fit; "" when they do."""
        have = self.info["ctx_size"]
        return f"context {have} too small: compile with -c {tokens}" if tokens > have else ""

    def _tokens(self, n: int) -> Ids:
        """Tokens drawn at random, none of them an image token."""
        ids = self.rng.integers(0, self.info["vocab_size"] - 1, n, dtype=np.int32)
        return ids + (ids >= self.info["image_token_id"]) if self.info["image_token_id"] >= 0 else ids

    def _next(self) -> int:
        """The likeliest token, or the second where the first is the image token, which text cannot hold."""
        best = self.engine.top(2)[0]
        return int(best[1] if best[0] == self.info["image_token_id"] else best[0])

    def _decode(self, n: int) -> None:
        for _ in range(n):
            self.engine.feed([self._next()])

    def _vit(self) -> Work:
        side = self.info["tile_size"]
        if self.info["tile_patches"]:  # a picture of any size: sixteen tokens in one window
            patches = 16 * self.info["tile_patches"]
            places = np.stack(np.divmod(np.arange(patches), 8), axis=1)
            one = np.zeros(patches, np.int32)
            given: tuple[npt.NDArray[Any], ...] = (
                self.rng.standard_normal((16, self.info["tile_channels"], side, side), np.float32),
                places,
                one,
                one,
            )
        else:
            given = (self.rng.standard_normal((1, 3, side, side), np.float32),)

        def run(lap: Lap) -> None:
            self.engine.encode(*given)
            lap()

        return Work(("vit",), lambda: None, run)

    def _pp(self, spec: Spec) -> Work:
        ids = self._tokens(spec.n)

        def run(lap: Lap) -> None:
            self.engine.feed(ids)
            lap()

        return Work((spec.name,), lambda: self.engine.truncate(0), run, spec.n)

    def _tg(self, spec: Spec) -> Work:
        ids = self._tokens(spec.depth + 1)
        self.engine.truncate(0)

        def prepare() -> None:
            self.engine.truncate(min(self.engine.past, spec.depth))
            self.engine.feed(ids[self.engine.past :])

        def run(lap: Lap) -> None:
            self._decode(spec.n)
            lap()

        return Work((spec.name,), prepare, run, spec.n)

    def _e2e(self) -> Work | str:
        try:
            processor = load_processor(self.bundle)
        except EyespotError as error:
            return str(error)
        cut = processor.cut(self.picture)
        shown = np.full(processor.image_tokens(cut), self.info["image_token_id"], np.int32)
        ids = np.concatenate([shown, self._tokens(TEXT)])
        if fault := self._room(len(ids) + ANSWER - 1):
            return fault

        def run(lap: Lap) -> None:
            parts = [
                (self.engine.encode(seen.pixels, seen.places, seen.windows, seen.frames), seen.order)
                for seen in processor.seen(self.picture, cut)
            ]
            self.engine.feed(ids, np.concatenate([rows if order is None else rows[order] for rows, order in parts]))
            self._next()
            lap()
            self._decode(ANSWER - 1)
            self._next()
            lap()

        return Work(("e2e", f"e2e@{ANSWER}"), lambda: self.engine.truncate(0), run)


def _spent(before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]) -> list[OpTime]:
    """What each op took between two looks at the engine's profile."""
    return [
        OpTime(
            b["graph"],
            b["op"],
            b["kind"],
            b["numbers"],
            b["calls"] - a["calls"],
            (b["nanoseconds"] - a["nanoseconds"]) / 1e9,
            b["bytes"] - a["bytes"],
            2 * (b["multiply_adds"] - a["multiply_adds"]),
        )
        for a, b in zip(before, after, strict=True)
    ]


def _by_name(runs: Sequence[Sequence[OpTime]]) -> tuple[OpTime, ...]:
    """Means over runs, summed over the layers; the longest first."""
    sums: dict[tuple[str, str, str, str], list[float]] = {}
    for op in (op for run in runs for op in run if op.calls):
        name = re.sub(r"^.*\.", "", op.name).rstrip("_")
        spent = sums.setdefault((op.graph, name, op.kind, op.numbers), [0.0] * 4)
        for i, value in enumerate((op.calls, op.seconds, op.bytes, op.operations)):
            spent[i] += value / len(runs)
    ops = [OpTime(*key, *spent) for key, spent in sums.items()]
    return tuple(sorted(ops, key=lambda op: -op.seconds))
