"""The engine against program/reference.py, on bundles written by hand: every op kind, scheme and cache type.

Then its promises (threads, chunks, truncation, cancelling, forks, NaN), and hostile bundles.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import handmade
from eyespot import _native
from eyespot.compile import schedule
from eyespot.errors import Cancelled, EyespotError, UnsupportedModel, UsageError
from eyespot.images import Picture, load
from eyespot.program.op import OPS
from eyespot.quantize import formats
from eyespot.run.engine import Engine
from eyespot.run.processor import Placed, Prompt
from eyespot.run.sequence import Sequence
from eyespot.tiling import Tiling
from handmade import IMAGE, SIDE, TILE_TOKENS, VOCAB, Handmade
from test_tensorfile import denied

ISAS = [name for name, runs in _native.isas().items() if runs]
SCHEMES = list(formats.SCHEMES)
RNG = np.random.default_rng(11)
TILES = RNG.standard_normal((5, 3, SIDE, SIDE)).astype(np.float32)
TOKENS = [*RNG.integers(0, IMAGE, 7).tolist(), *[IMAGE] * 2 * TILE_TOKENS, *RNG.integers(0, IMAGE, 6).tolist()]


def close(got: np.ndarray, wanted: np.ndarray, tolerance: float = 5e-6) -> None:
    """Off by at most `tolerance` of the largest number: float32 sums of a few hundred terms through a few layers."""
    assert got.shape == wanted.shape
    assert got.dtype == np.float32
    assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Handmade]:
    made: dict[tuple[Any, ...], Handmade] = {}

    def get(scheme: str = "f32", kv: str = "f32", table: str = "f32", **options: Any) -> Handmade:
        key = (scheme, kv, table, *sorted(options.items()))
        if key not in made:
            program = handmade.with_schemes(handmade.program(**options), scheme, table)
            made[key] = handmade.write(tmp_path_factory.mktemp("bundle") / "b", program, kv_type=kv)
        return made[key]

    return get


def test_handmade_program_has_every_op() -> None:
    kinds = {op.kind for graph in handmade.program().graphs.values() for _, op in graph.ops()}
    assert kinds == set(OPS)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_agrees_with_reference(bundle: Callable[..., Handmade], scheme: str, isa: str) -> None:
    made = bundle(scheme, window=5)
    # A value half way between two int8 steps may fall to either side, and A8 then differs by a step of one row.
    tolerance = 2e-3 if "A8" in scheme else 5e-6
    reference = made.reference()
    with Engine(made.path, isa=isa) as engine:
        assert engine.info["isa"] == isa
        wanted = reference.encode(TILES)
        close(engine.encode(TILES), wanted, tolerance)
        features = wanted[: 2 * TILE_TOKENS]
        close(engine.prefill(TOKENS, features, want=9), reference.prefill(TOKENS, features, want=9), tolerance)
        for token in (1, 2, 3):
            close(engine.decode(token), reference.decode(token), tolerance)
        assert engine.past == reference.past == len(TOKENS) + 3


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kv", ["f32", "f16", "int8"])
@pytest.mark.parametrize("table", ["f32", "f16", "bf16"])
def test_caches_and_tables(bundle: Callable[..., Handmade], kv: str, table: str, isa: str) -> None:
    made = bundle("f32", kv, table, eyes=False)
    reference = made.reference()
    with Engine(made.path, isa=isa) as engine:
        assert engine.info["kv_type"] == kv
        tolerance = {"f32": 5e-6, "f16": 1e-3, "int8": 5e-3}[kv]  # one cached number may round the other way
        close(engine.prefill(TOKENS[:7] * 4, want=28), reference.prefill(TOKENS[:7] * 4, want=28), tolerance)
        close(engine.decode(9), reference.decode(9), tolerance)


def test_compilers_plan_gives_the_same_bits(bundle: Callable[..., Handmade], tmp_path: Path) -> None:
    """A plan that shares and reuses bytes against one that does not: nothing is overwritten too early."""
    apart = bundle("W8A8", "int8")
    memory = replace(schedule.plan(apart.program, 64, 8, "int8"), units={"n": 8, "o": 1, "t": 1}).to_json()
    packed = handmade.write(tmp_path / "b", apart.program, kv_type="int8", memory=memory)
    assert memory["arena_bytes"] < json.loads((apart.path / "program.json").read_text())["memory"]["arena_bytes"]
    with Engine(apart.path) as one, Engine(packed.path) as two:
        features = one.encode(TILES)
        assert np.array_equal(features, two.encode(TILES))
        for engine in (one, two):
            engine.prefill([1, 2, 3])
        rows = features[: 2 * TILE_TOKENS]
        assert np.array_equal(one.prefill(TOKENS, rows, want=20), two.prefill(TOKENS, rows, want=20))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", ["W8A8", "W4A16-g32", "f16"])
def test_same_bits_for_any_threads_and_chunks(bundle: Callable[..., Handmade], scheme: str, isa: str) -> None:
    made = bundle(scheme, "int8", window=5)
    with Engine(made.path, threads=1, isa=isa) as alone:
        features = alone.encode(TILES)
        logits = alone.prefill(TOKENS, features[: 2 * TILE_TOKENS], want=len(TOKENS))
    for threads in (2, 3, 7):
        with Engine(made.path, threads=threads, isa=isa) as engine:
            assert engine.info["threads"] == threads
            assert np.array_equal(engine.encode(TILES), features)
            got = []
            at = images = 0
            for size in (1, 8, 9, 3, 10):  # across and inside chunks of 8, and inside the run of image tokens
                part = TOKENS[at : at + size]
                rows = part.count(IMAGE)
                got.append(engine.prefill(part, features[images : images + rows] if rows else None, want=len(part)))
                at, images = at + size, images + rows
            assert at == len(TOKENS)
            assert np.array_equal(np.concatenate(got), logits)


def test_truncate_forgets(bundle: Callable[..., Handmade]) -> None:
    made = bundle("f16", "f16", eyes=False)
    with Engine(made.path) as engine, Engine(made.path) as fresh:
        engine.prefill(list(range(20)))
        engine.truncate(9)
        assert engine.past == 9
        fresh.prefill(list(range(9)))
        assert np.array_equal(engine.prefill([7, 7, 50]), fresh.prefill([7, 7, 50]))
        with pytest.raises(UsageError, match="truncate"):
            engine.truncate(13)
        engine.truncate(0)
        assert engine.past == 0


def test_want_none_and_all(bundle: Callable[..., Handmade]) -> None:
    made = bundle(eyes=False)
    with Engine(made.path) as engine:
        assert engine.prefill([1, 2, 3], want=0).shape == (0, VOCAB)
        assert engine.past == 3
        engine.truncate(0)
        assert engine.prefill(list(range(30)), want=30).shape == (30, VOCAB)


def test_the_best_logits_are_told_without_the_rest(bundle: Callable[..., Handmade]) -> None:
    made = bundle("W8A8-g32")
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    with Engine(made.path) as whole:
        wanted = whole.prefill(tokens)[0]
    order = np.argsort(-wanted, kind="stable")
    for threads in (1, 2, 5):
        with Engine(made.path, threads=threads) as engine:
            for call in (lambda: engine.top(1), engine.logits):
                with pytest.raises(UsageError, match="no logits"):
                    call()
            engine.feed(tokens)
            assert engine.past == len(tokens)
            for k in (1, 2, 9, VOCAB - 1, VOCAB, 1024):
                ids, best = engine.top(k)
                assert np.array_equal(ids, order[:k])
                assert np.array_equal(best, wanted[ids])
            assert np.array_equal(engine.logits(), wanted)
            for k in (0, -1, 1025):
                with pytest.raises(UsageError, match="k is out of range"):
                    engine.top(k)
            engine.encode(TILES[:1])  # which works in the bytes that the logits stood in
            with pytest.raises(UsageError, match="no logits"):
                engine.top(1)
            engine.prefill([1], want=0)
            with pytest.raises(UsageError, match="no logits"):
                engine.logits()


def test_equal_logits_are_told_by_rising_ids(tmp_path: Path) -> None:
    program = handmade.with_schemes(handmade.program(eyes=False, vocab=3000), "f32")
    weights = handmade.random_weights(program)
    weights["head.weight"][:] = weights["head.weight"][np.arange(3000) % 7]  # seven logits, again and again
    made = handmade.write(tmp_path / "b", program, weights)
    for threads in (1, 3):
        with Engine(made.path, threads=threads) as engine:
            wanted = engine.prefill([5])[0]
            for k in (1, 10, 500, 1000):
                assert np.array_equal(engine.top(k)[0], np.argsort(-wanted, kind="stable")[:k])


def test_costs_by_op(bundle: Callable[..., Handmade]) -> None:
    made = bundle("W8A8", "int8", eyes=False)
    with Engine(made.path) as engine:
        engine.prefill([1, 2, 3])
        assert not any(cost["calls"] for cost in engine.profiled())
        engine.profile()
        engine.prefill([4] * 10, want=2)
        engine.profile(False)
        engine.decode(1)
        costs = engine.profiled()
    ops = [(b.name, op.output, op.kind) for b, op in made.program.graphs["text"].ops()]
    assert [(c["block"], c["op"], c["kind"]) for c in costs] == ops
    assert {c["graph"] for c in costs} == {"text"}
    by = {c["op"]: c for c in costs}
    assert by["layer_00.swiglu"]["calls"] == 2  # chunks of 8 and 2
    assert by["post.head"]["calls"] == 1
    assert by["post.head"]["multiply_adds"] == 2 * VOCAB * handmade.WIDTH
    stored = formats.stored_bytes((VOCAB, handmade.WIDTH), formats.SCHEMES["W8A8"])
    assert by["post.head"]["bytes"] == stored
    attention = by["layer_00.attention"]
    keys = sum(range(4, 14))  # of ten rows after three
    assert attention["multiply_adds"] == 2 * keys * handmade.HEADS * handmade.HEAD_DIM
    assert attention["bytes"] == (11 + 13) * handmade.KV_HEADS * 2 * (handmade.HEAD_DIM + 4)
    assert all(c["nanoseconds"] >= 0 for c in costs)
    assert sum(c["nanoseconds"] for c in costs) > 0


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("kv", "window"), [("f32", 0), ("f16", 0), ("int8", 0), ("f16", 300), ("int8", 5)])
def test_same_bits_however_spans_of_keys_are_shared_out(
    bundle: Callable[..., Handmade], tmp_path: Path, kv: str, window: int, isa: str
) -> None:
    """Two key/value heads go whole to 1 or 2 threads; for 3 or 5 a decoded token's keys are cut into spans."""
    program = handmade.with_schemes(handmade.program(eyes=False, window=window), "f16")
    made = handmade.write(tmp_path / "b", program, kv_type=kv, ctx=1100, units={"n": 128, "o": 1, "t": 1})
    tokens = np.random.default_rng(3).integers(0, IMAGE, 1090).tolist()
    steps = (1, 255, 257, 511, 513, 700, 1023, 1025, 1089)
    wanted: dict[int, np.ndarray] = {}
    for threads in (1, 2, 3, 5):
        with Engine(made.path, threads=threads, isa=isa) as engine:
            for at in steps:
                engine.prefill(tokens[engine.past : at], want=0)
                logits = engine.decode(tokens[at])
                assert np.array_equal(wanted.setdefault(at, logits), logits)
    with Engine(made.path, isa=isa) as engine:  # and as rows of one prefill
        rows = engine.prefill(tokens, want=1090 - 511)
        for at in steps[3:]:
            assert np.array_equal(rows[at - 511], wanted[at])


def test_threads_by_environment(bundle: Callable[..., Handmade], monkeypatch: pytest.MonkeyPatch) -> None:
    made = bundle(eyes=False)
    monkeypatch.setenv("EYESPOT_THREADS", "3")
    with Engine(made.path) as engine:
        assert engine.info["threads"] == 3
        assert engine.info["processors"] == len(os.sched_getaffinity(0))
    with Engine(made.path, threads=2) as engine:
        assert engine.info["threads"] == 2
    for wrong in ("0", "-1", "257", "two", "1 ", "99999999999"):
        monkeypatch.setenv("EYESPOT_THREADS", wrong)
        with pytest.raises(UsageError, match=r"EYESPOT_THREADS; found .*; expected 1 to 256"):
            Engine(made.path)
    monkeypatch.setenv("EYESPOT_THREADS", "")
    with Engine(made.path) as engine:
        assert engine.info["threads"] == len(os.sched_getaffinity(0))


def test_trace_gives_every_block(bundle: Callable[..., Handmade]) -> None:
    made = bundle("W4A16-g64")
    theirs: list[tuple[str, str, np.ndarray]] = []
    ours: list[tuple[str, str, np.ndarray]] = []
    reference = made.reference(lambda *block: theirs.append(block))
    with Engine(made.path) as engine:
        engine.trace(lambda *block: ours.append(block))
        for runner in (engine, reference):
            runner.encode(TILES[:2])
            runner.prefill([1, 2, 3, 4], want=1)
        engine.trace(None)
        engine.decode(1)
    assert [block[:2] for block in ours] == [block[:2] for block in theirs]
    assert len(ours) == 4 + 4
    for mine, reference_block in zip(ours, theirs, strict=True):
        close(mine[2], reference_block[2])


def test_error_in_trace_ends_the_call(bundle: Callable[..., Handmade]) -> None:
    made = bundle(eyes=False)

    def angry(graph: str, block: str, value: np.ndarray) -> None:
        raise KeyError(block)

    def angry_at_last(graph: str, block: str, value: np.ndarray) -> None:
        if block == "post":
            raise KeyError(block)

    with Engine(made.path) as engine:
        engine.trace(angry)
        with pytest.raises(KeyError, match="embed_tokens"):
            engine.prefill([1, 2, 3])
        assert engine.past == 0
        engine.trace(angry_at_last)
        with pytest.raises(KeyError, match="post"):
            engine.prefill([1, 2, 3])
        engine.trace(None)
        engine.truncate(0)
        assert engine.prefill([1, 2, 3]).shape == (1, VOCAB)  # nothing is left of how the others were stopped


def test_cancel_keeps_whole_chunks(bundle: Callable[..., Handmade]) -> None:
    made = bundle(eyes=False)
    with Engine(made.path) as engine:
        blocks = 0

        def cancel_in_second_chunk(graph: str, block: str, value: np.ndarray) -> None:
            nonlocal blocks
            blocks += 1
            if blocks == 5:  # a chunk without wanted rows has three blocks
                engine.cancel()

        engine.trace(cancel_in_second_chunk)
        with pytest.raises(Cancelled):
            engine.prefill(list(range(30)))
        assert blocks == 5
        assert engine.past == 8
        engine.trace(None)
        rest = engine.prefill(list(range(8, 30)))
        with Engine(made.path) as fresh:
            assert np.array_equal(rest, fresh.prefill(list(range(30))))


def test_cancel_waits_for_a_call(bundle: Callable[..., Handmade]) -> None:
    """Asked for between two calls, or in the last block of one, it ends the next: a Ctrl-C is never lost."""
    with Engine(bundle().path) as engine:
        blocks: list[str] = []
        engine.trace(lambda graph, block, value: blocks.append(block))
        for call in (lambda: engine.encode(TILES), lambda: engine.prefill([1, 2]), lambda: engine.decode(1)):
            engine.cancel()
            with pytest.raises(Cancelled):
                call()
            assert (blocks, engine.past) == ([], 0)
        engine.trace(lambda graph, block, value: engine.cancel() if block == "post" else None)
        engine.decode(1)
        with pytest.raises(Cancelled):
            engine.decode(2)
        engine.trace(None)
        engine.cancel()
        engine.cancel(False)
        engine.decode(2)
        assert engine.past == 2


def test_cancel_while_a_picture_is_prepared(bundle: Callable[..., Handmade]) -> None:
    with Engine(bundle().path) as engine:
        blocks: list[str] = []
        engine.trace(lambda graph, block, value: blocks.append(block))

        def pixels(picture: Picture, cut: Tiling) -> np.ndarray:
            engine.cancel()
            return TILES[:1]

        ids = np.array([1, *[IMAGE] * TILE_TOKENS, 2], np.int32)
        picture = load(Image.new("RGB", (SIDE, SIDE)))
        placed = Placed(picture, Tiling(1, 1, SIDE, False), start=1, rows=TILE_TOKENS)
        cache = Sequence(engine, pixels)
        with pytest.raises(Cancelled):
            cache.prefill(Prompt("", ids, ids.astype(np.int64), (placed,)), check=lambda: None)
        assert (blocks, engine.past, cache.past) == ([], 0, 0)


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Handmade:
    """A bundle that works for seconds on 4096 tokens."""
    program = handmade.with_schemes(handmade.program(eyes=False, layers=40), "f32")
    path = tmp_path_factory.mktemp("long") / "b"
    return handmade.write(path, program, ctx=4096, units={"n": 4, "o": 1, "t": 1})


def test_signals_are_heard_during_a_call(long: Handmade) -> None:
    """Ctrl-C in Python is an exception that a signal handler raises: it must not wait for the end of a prompt."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Engine(long.path, threads=1, isa="scalar") as engine:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                engine.prefill([1] * 4096, want=0)
            assert 0 < engine.past < 4096
            engine.truncate(0)
            assert engine.prefill([1, 2]).shape == (1, VOCAB)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_cancel_from_another_thread(long: Handmade) -> None:
    with Engine(long.path, threads=1, isa="scalar") as engine:
        started = threading.Event()
        engine.trace(lambda *block: started.set())
        killer = threading.Thread(target=lambda: (started.wait(), engine.cancel()))
        killer.start()
        with pytest.raises(Cancelled):
            engine.prefill([1] * 4096, want=0)
        killer.join()
        assert engine.past % 4 == 0
        assert engine.past < 4096


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("scheme", "value"), [("f32", np.nan), ("f32", np.inf), ("f32", 3e38), ("W8A8", np.nan), ("W8A8", np.inf)]
)
def test_nan_is_an_error_never_a_token(tmp_path: Path, scheme: str, value: float, isa: str) -> None:
    """Through int8 rows and an int8 cache, which have no NaN of their own."""
    program = handmade.with_schemes(handmade.program(eyes=False), scheme)
    weights = handmade.random_weights(program)
    weights["layers.0.norm1.weight"][7] = value
    made = handmade.write(tmp_path / "b", program, weights, kv_type="int8")
    with Engine(made.path, isa=isa) as engine:
        with pytest.raises(EyespotError, match="not finite"):
            engine.prefill([1, 2, 3])
        assert engine.past == 0
        engine.prefill([1, 2, 3], want=0)  # no logits, no complaint


def test_usage_errors_change_nothing(bundle: Callable[..., Handmade]) -> None:
    made = bundle()
    with Engine(made.path) as engine:
        engine.prefill([1, 2, 3])
        rows = np.zeros((2, handmade.WIDTH), np.float32)
        for call in (
            lambda: engine.prefill([1, VOCAB]),
            lambda: engine.prefill([1, -1]),
            lambda: engine.prefill([]),
            lambda: engine.prefill([1.5]),
            lambda: engine.prefill([[1, 2]]),
            lambda: engine.prefill("one"),
            lambda: engine.prefill([1 << 40]),
            lambda: engine.prefill([1] * 62),
            lambda: engine.prefill([1] * 100_000),
            lambda: engine.prefill([1, 2], want=3),
            lambda: engine.prefill([1, 2], want=-1),
            lambda: engine.prefill([1, IMAGE]),
            lambda: engine.prefill([1, IMAGE], rows),
            lambda: engine.prefill([1, IMAGE], rows[:1, :-1]),
            lambda: engine.prefill([1], rows),
            lambda: engine.decode(VOCAB),
            lambda: engine.decode(IMAGE),
            lambda: engine.encode(TILES[:, :, 1:]),
            lambda: engine.encode(TILES[:0]),
            lambda: engine.encode(TILES[0]),
            lambda: Engine(made.path, threads=257),
            lambda: Engine(made.path, threads=-1),
            lambda: Engine(made.path, ctx_size=65),
            lambda: Engine(made.path, isa="neon"),
        ):
            with pytest.raises(UsageError) as caught:
                call()
            assert "\n" not in str(caught.value)
        assert engine.past == 3
        # Strides, other dtypes and lists are taken as the numbers they are.
        assert np.array_equal(engine.encode(TILES[::2]), engine.encode(TILES[::2].astype(np.float64)))
    with Engine(bundle(eyes=False).path) as blind, pytest.raises(UsageError, match="no eyes"):
        blind.encode(TILES)
    with Engine(made.path, ctx_size=5) as small, pytest.raises(UsageError, match="context"):
        small.prefill([1] * 6)


def test_closed_engine_says_so(bundle: Callable[..., Handmade]) -> None:
    engine = Engine(bundle(eyes=False).path)
    engine.close()
    engine.close()
    for call in (lambda: engine.decode(1), lambda: engine.past, engine.cancel, lambda: engine.truncate(0)):
        with pytest.raises(UsageError, match="closed"):
            call()


FORKED = """
import os, signal, sys
import numpy as np
from eyespot.errors import UsageError
from eyespot.run.engine import Engine

engine = Engine(sys.argv[1], threads=3)
expected = engine.decode(1)
pixels = np.zeros((1, 3, engine.info["tile_size"], engine.info["tile_size"]))
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends a child that hangs
    for call in (lambda: engine.encode(pixels), lambda: engine.prefill([1, 2]), lambda: engine.decode(1)):
        try:
            call()
        except UsageError as error:
            print(error)
    engine.close()
    with Engine(sys.argv[1], threads=3) as own:
        print("same", (own.decode(1) == expected).all())
    sys.exit()
assert os.waitpid(child, 0)[1] == 0
engine.truncate(0)
print("same", (engine.decode(1) == expected).all())
"""


def test_a_forked_child_is_told(bundle: Callable[..., Handmade]) -> None:
    """The engine's threads stay behind: to wait for them, at a call or at the end, would be for ever."""
    command = [sys.executable, "-c", FORKED, bundle().path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *told, child, parent = done.stdout.splitlines()
    assert len(told) == 3
    assert all("opened in another process" in line for line in told)
    assert (child, parent) == ("same True", "same True")


def test_isa_by_environment(bundle: Callable[..., Handmade], monkeypatch: pytest.MonkeyPatch) -> None:
    made = bundle(eyes=False)
    monkeypatch.setenv("EYESPOT_ISA", "scalar")
    with Engine(made.path) as engine:
        assert engine.info["isa"] == "scalar"
    monkeypatch.setenv("EYESPOT_ISA", "mmx")
    with pytest.raises(UsageError, match=r"EYESPOT_ISA.*mmx.*scalar"):
        Engine(made.path)


def test_calls_must_not_overlap(bundle: Callable[..., Handmade]) -> None:
    with Engine(bundle(eyes=False).path) as engine:
        faults: list[str] = []

        def meddle(*block: object) -> None:
            for call in (lambda: engine.decode(1), engine.close):
                with pytest.raises(UsageError) as caught:
                    call()
                faults.append(str(caught.value))

        engine.trace(meddle)
        engine.prefill([1])
        engine.trace(None)
        assert set(faults) == {"the engine is busy: calls on one engine must not overlap"}


# ---- hostile bundles ----


def edited(made: Handmade, path: Path, edit: Callable[[Any], Any]) -> Path:
    """A copy whose program.json went through `edit`; the manifest is right about it."""
    shutil.copytree(made.path, path)
    text = json.loads((path / "program.json").read_text())
    edit(text)
    (path / "program.json").write_text(json.dumps(text))
    handmade.seal(path)
    return path


def text_ops(program: Any) -> list[Any]:
    return [op for block in program["graphs"]["text"]["blocks"] for op in block["ops"]]


def op_of(program: Any, kind: str) -> Any:
    return next(op for op in text_ops(program) if op["kind"] == kind)


FAULTS: dict[str, tuple[Callable[[Any], Any], type[EyespotError], str]] = {
    "format": (lambda p: p.update(format=2), UnsupportedModel, "format"),
    "layout": (lambda p: p.update(layout="r8q4"), UnsupportedModel, "packed for another target"),
    "no layout": (lambda p: p.pop("layout"), EyespotError, "layout"),
    "kind": (lambda p: op_of(p, "swiglu").update(kind="geglu"), UnsupportedModel, "geglu"),
    "scheme": (lambda p: p["weights"]["layers.0.o.weight"].update(scheme="W2A16"), UnsupportedModel, "W2A16"),
    "kv type": (lambda p: p["memory"]["kv_cache"].update(type="f8"), UnsupportedModel, "f8"),
    "vector scheme": (lambda p: p["weights"]["norm.weight"].update(scheme="f16"), UnsupportedModel, "f16"),
    "role": (lambda p: op_of(p, "linear")["weights"].update(gate="norm.weight"), EyespotError, "role"),
    "no role": (lambda p: op_of(p, "linear")["weights"].pop("weight"), EyespotError, "is missing"),
    "attribute": (lambda p: op_of(p, "rope")["attrs"].update(heads=9), EyespotError, "do not fit"),
    "attribute type": (lambda p: op_of(p, "rms_norm")["attrs"].update(eps="1e-5"), EyespotError, "eps"),
    "no attribute": (lambda p: op_of(p, "rms_norm")["attrs"].clear(), EyespotError, "eps"),
    "inputs": (
        lambda p: p["graphs"]["text"]["inputs"].extend(
            {"name": f"x{i}", "shape": ["n"], "dtype": "i32"} for i in range(9)
        ),
        EyespotError,
        "too many inputs",
    ),
    "input": (lambda p: op_of(p, "select").update({"in": ["rows", "rows"]}), EyespotError, "matrix"),
    "undefined": (lambda p: op_of(p, "swiglu").update({"in": ["post.head"]}), EyespotError, "not defined"),
    "shape": (lambda p: op_of(p, "linear").update(shape=["n", 81]), EyespotError, "recorded shape"),
    "weight shape": (lambda p: p["weights"]["head.weight"].update(shape=[131, 45]), EyespotError, "expected"),
    "part": (lambda p: p["weights"]["head.weight"].update(part="layer_00"), EyespotError, "part"),
    "path": (lambda p: p["graphs"]["text"]["blocks"][0].update(part="../x"), EyespotError, "plain file name"),
    "cache layer": (lambda p: op_of(p, "attention")["attrs"].update(layer=1), EyespotError, "written twice"),
    "cache bytes": (lambda p: p["memory"]["kv_cache"]["layers"][0].update(bytes=64), EyespotError, "has 64 bytes"),
    "scratch": (lambda p: p["memory"]["scratch"].__setitem__(1, 64), EyespotError, "memory.scratch has 64 bytes"),
    "partial": (lambda p: p["memory"]["partial"].__setitem__(1, 64), EyespotError, "memory.partial has 64 bytes"),
    "no group_kv": (lambda p: p["memory"].pop("group_kv"), EyespotError, "group_kv"),
    "offset": (
        lambda p: p["memory"]["values"]["text"]["embed_tokens.embed"].__setitem__(0, 1 << 40),
        EyespotError,
        "out of range",
    ),
    "alignment": (lambda p: p["memory"]["scratch"].__setitem__(0, 4), EyespotError, "aligned"),
    "no place": (lambda p: p["memory"]["values"]["text"].pop("post.head"), EyespotError, "no place"),
    "overlap": (
        lambda p: p["memory"]["values"]["text"].update(
            {"layer_00.rms_norm": p["memory"]["values"]["text"]["embed_tokens.scale"]}
        ),
        EyespotError,
        "overlaps",
    ),
    "arena": (lambda p: p["memory"].update(arena_bytes=1 << 50), EyespotError, "out of range"),
    "vocabulary": (lambda p: p["info"].update(vocab_size=132), EyespotError, "vocabulary"),
    "output": (lambda p: p["graphs"]["text"].update(outputs=["post.rms_norm"]), EyespotError, "output"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_programs_are_named(bundle: Callable[..., Handmade], tmp_path: Path, fault: str) -> None:
    edit, kind, words = FAULTS[fault]
    with pytest.raises(EyespotError, match=words) as caught:
        Engine(edited(bundle("W8A8-g32", eyes=False), tmp_path / "b", edit))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_select_may_not_look_past_its_rows(bundle: Callable[..., Handmade], tmp_path: Path) -> None:
    """rows[] counts tokens: selecting from a value with fewer rows would read outside it."""

    def twice(program: Any) -> None:
        post = program["graphs"]["text"]["blocks"][-1]["ops"]
        again = {**post[0], "out": "post.again", "in": [post[0]["out"], "rows"]}
        post.insert(1, again)
        values = program["memory"]["values"]["text"]
        values["post.again"] = [program["memory"]["arena_bytes"], values[post[0]["out"]][1]]
        program["memory"]["arena_bytes"] += 4096

    with pytest.raises(EyespotError, match="one row a token"):
        Engine(edited(bundle(eyes=False), tmp_path / "b", twice))


def test_an_absurd_arena_costs_nothing(bundle: Callable[..., Handmade], tmp_path: Path) -> None:
    path = edited(bundle(eyes=False), tmp_path / "b", lambda p: p["memory"].update(arena_bytes=64 << 30))
    start = time.perf_counter()
    with Engine(path) as engine:
        engine.prefill([1, 2, 3])
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("name", ["layer_00.safetensors", "program.json", "manifest.json"])
def test_missing_and_cut_files(bundle: Callable[..., Handmade], tmp_path: Path, name: str) -> None:
    made = bundle("W8A8", eyes=False)
    path = tmp_path / "b"
    shutil.copytree(made.path, path)
    data = (path / name).read_bytes()
    for keep in (None, 0, 5, len(data) // 2, len(data) - 1):
        (path / name).unlink(missing_ok=True)
        if keep is not None:
            (path / name).write_bytes(data[:keep])
        for sealed in (False, True):
            if sealed and name != "manifest.json":
                handmade.seal(path)
            with pytest.raises(EyespotError, match=name):
                Engine(path)
        if name != "manifest.json":
            shutil.copy(made.path / "manifest.json", path)


@pytest.mark.parametrize("name", ["layer_00.safetensors", "program.json", "manifest.json"])
def test_a_pipe_in_place_of_a_file_is_told_at_once(bundle: Callable[..., Handmade], tmp_path: Path, name: str) -> None:
    path = tmp_path / "b"
    shutil.copytree(bundle(eyes=False).path, path)
    (path / name).unlink()
    os.mkfifo(path / name)
    code = "import sys; from eyespot.run.engine import Engine; Engine(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
    assert f"EyespotError: {name}: not a regular file\n" in done.stderr  # in a process: C++ would not hear an alarm


def test_files_that_cannot_be_read_have_causes_of_their_own(bundle: Callable[..., Handmade], tmp_path: Path) -> None:
    path = tmp_path / "b"
    shutil.copytree(bundle(eyes=False).path, path)
    with denied(path), pytest.raises(EyespotError, match=r"\(Permission denied\); likely cause: this user may not"):
        Engine(path)
    with pytest.raises(
        EyespotError, match=r"\(No such file or directory\); likely cause: the directory is not a bundle"
    ):
        Engine(tmp_path / "nowhere")
    os.truncate(path / "layer_00.safetensors", 1 << 40)  # has no blocks on the disk, and fits no small address space
    code = (
        "import resource, sys; from eyespot.run.engine import Engine\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36)); Engine(sys.argv[1])"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
    assert "layer_00.safetensors: cannot be read (Cannot allocate memory); likely cause: the machine has" in done.stderr
    (path / "layer_00.safetensors").write_bytes(b"")
    with pytest.raises(EyespotError, match=r"^layer_00.safetensors: is empty$"):
        Engine(path)


@pytest.mark.parametrize("name", ["layer_01.safetensors", "vision.safetensors"])
def test_a_part_that_shrinks_is_told(bundle: Callable[..., Handmade], tmp_path: Path, name: str) -> None:
    """The bytes past the new end would end the process with SIGBUS."""
    path = tmp_path / "b"
    shutil.copytree(bundle().path, path)
    data = (path / name).read_bytes()
    with Engine(path) as engine:
        logits = engine.prefill([1, 2])
        for size in (len(data) - 1, 0):
            os.truncate(path / name, size)
            words = f"{name}: the file shrank while it was in use; found {size} bytes; expected {len(data)} bytes"
            for call in (lambda: engine.encode(TILES), lambda: engine.prefill([1, 2]), lambda: engine.decode(1)):
                with pytest.raises(EyespotError, match=words):
                    call()
        assert engine.past == 2
        (path / name).write_bytes(data)
        engine.truncate(0)
        assert np.array_equal(engine.prefill([1, 2]), logits)
        (path / "new").write_bytes(b"")
        (path / "new").rename(path / name)  # what is open stays what it was
        engine.truncate(0)
        assert np.array_equal(engine.prefill([1, 2]), logits)


HOSTILE = [
    0, 1, -1, 2, 63, 64, 65, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 62) + 1, (1 << 63) - 1, -(1 << 63), 1 << 64, 1e308,
    -0.0, 1e-320, 0.5, True, False, None, "", "n", "o", "t", "f", "9999999*n", "0*n", "W8A8", "W4A16-g32", "f16",
    "x" * 600, "../../etc/passwd", "\u0000", "é\ud83d", [], {}, [[]], [0, 0], [0, 1 << 62],
]  # fmt: skip


def spots(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        found.append((value, key))
        spots(item, found)
    return found


def swapped(text: str, rng: random.Random) -> bytes:
    """JSON text with one to three values replaced, exchanged, doubled or removed."""
    value = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = spots(value, [])
        container, key = rng.choice(places)
        other, other_key = rng.choice(places)
        action = rng.randrange(6)
        try:
            if action <= 1:
                container[key] = rng.choice(HOSTILE)
            elif action == 2 and isinstance(container[key], int):
                container[key] += rng.choice((-64, -1, 1, 64, 4096))
            elif action == 3:
                container[key] = json.loads(json.dumps(other[other_key]))
            elif action == 4:
                container[key], other[other_key] = other[other_key], container[key]
            elif isinstance(container, dict):
                del container[key]
            else:
                container.insert(key, container[key])
            json.dumps(value)  # an exchange may have put a value into itself
        except (ValueError, RecursionError, KeyError, IndexError):
            value = json.loads(text)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def flipped(data: bytes, rng: random.Random, within: int) -> bytes:
    """Bytes changed, cut out or doubled in the first `within`."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(min(within, len(out)))
        action = rng.randrange(4)
        if action == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif action == 1:
            out[at] = rng.choice(b'{}[]",:0189-.eE\\u \x00\xff')
        elif action == 2:
            del out[at : at + rng.randrange(1, 9)]
        else:
            out[at:at] = out[at : at + rng.randrange(1, 40)]
    return bytes(out)


def header_swapped(data: bytes, rng: random.Random) -> bytes:
    length = int.from_bytes(data[:8], "little")
    head = swapped(data[8 : 8 + length].decode(), rng)
    return len(head).to_bytes(8, "little") + head + data[8 + length :]


def try_out(path: Path) -> bool:
    """Opens and uses a bundle that may be broken; True when it could be used."""
    try:
        with Engine(path, threads=1) as engine:
            info = engine.info
            tokens = [t for t in (1, 2, info["image_token_id"]) if 0 <= t < info["vocab_size"]]
            features = np.ones((tokens.count(info["image_token_id"]), info["hidden_size"]), np.float32)
            if info["tile_size"] and info["tile_size"] < 100:
                side = info["tile_size"]
                engine.encode(np.ones((1, 3, side, side), np.float32))
            engine.prefill(tokens, features if len(features) else None, want=len(tokens))
            engine.decode(tokens[0])
    except EyespotError as error:
        if not str(error).isprintable():
            raise
        return False
    return True


def test_two_thousand_mutations(bundle: Callable[..., Handmade], tmp_path: Path) -> None:
    """No crash, no hang, no huge allocation: an error of one line, or an engine that works."""
    made = bundle("W8A8", "int8", window=3)
    path = tmp_path / "b"
    shutil.copytree(made.path, path)
    originals = {f.name: f.read_bytes() for f in path.iterdir()}
    assert try_out(path)
    parts = [name for name in originals if name.endswith(".safetensors")]
    rng = random.Random(20)
    used = 0
    for i in range(2400):
        name = rng.choice(["program.json"] * 5 + ["manifest.json", rng.choice(parts), rng.choice(parts)])
        data = originals[name]
        if name.endswith(".json"):
            data = swapped(data.decode(), rng) if i % 3 else flipped(data, rng, len(data))
        else:
            data = header_swapped(data, rng) if i % 2 else flipped(data, rng, 8 + int.from_bytes(data[:8], "little"))
        (path / name).write_bytes(data)
        if name != "manifest.json":
            handmade.seal(path)
        used += try_out(path)
        (path / name).write_bytes(originals[name])
        (path / "manifest.json").write_bytes(originals["manifest.json"])
    assert 0 < used < 2000  # some changes do no harm; most must be noticed
