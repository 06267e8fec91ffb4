"""The engine against program/reference.py, on bundles written by hand: every op kind, scheme and cache type.

Then its promises: threads, chunks, truncation, cancelling, forks, NaN.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import handmade
from eyespot import _native
from eyespot.compile import schedule
from eyespot.errors import Cancelled, EyespotError, UsageError
from eyespot.images import Picture, load
from eyespot.program.op import OPS
from eyespot.quantize import formats
from eyespot.resolution import Cut, Fixed
from eyespot.run.engine import Engine
from eyespot.run.processor import Placed, Prompt, Seen
from eyespot.run.sequence import Sequence
from handmade import IMAGE, SIDE, TILE_TOKENS, VOCAB, Handmade

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


def test_handmade_program_has_every_op() -> None:
    both = (handmade.program(), handmade.program(any_size=True))
    assert {op.kind for made in both for graph in made.graphs.values() for _, op in graph.ops()} == set(OPS)


def any_size_picture(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Eight tiles: windows of four, three and one of them, two frames."""
    runs = np.repeat([0, 0, 0, 0, 1, 1, 1, 2], 4).astype(np.int32)
    pixels = rng.standard_normal((8, 6, 8, 8)).astype(np.float32)
    return pixels, rng.integers(0, 9, (32, 2)).astype(np.int32), runs, np.repeat([0, 1], 16).astype(np.int32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", ["f32", "W8A16", "W8A8-g32", "W4A16-g64"])
def test_eyes_of_any_size_agree_with_the_reference(tmp_path: Path, scheme: str, isa: str) -> None:
    """Every instruction set; the same bits for any number of threads; positions given, implied, after truncating."""
    built = handmade.with_schemes(handmade.program(any_size=True), scheme)
    made = handmade.write(tmp_path / "b", built, units={"n": 8, "o": 2, "t": 8})
    tolerance = 2e-2 if "A8" in scheme else 5e-6
    rng = np.random.default_rng(3)
    seen = any_size_picture(rng)
    ids = np.array([1, 2, *[handmade.IMAGE] * 8, 3, 4, 5], np.int32)
    positions = rng.integers(0, 40, (len(ids), 3)).astype(np.int32)
    reference = made.reference()
    features = reference.encode(*seen)
    wanted = reference.prefill(ids, features, len(ids), positions)
    after = reference.prefill([6, 7], None, 2)
    found = []
    for threads in (1, 2, 3):
        with Engine(made.path, threads, isa=isa) as engine:
            rows = engine.encode(*seen)
            close(rows, features, tolerance)
            close(engine.prefill(ids, features, len(ids), positions), wanted, tolerance)
            close(engine.prefill([6, 7], None, 2), after, tolerance)
            state = engine.save(engine.past)
            engine.truncate(len(ids))
            again = engine.prefill([6, 7], None, 2)
            close(again, after, tolerance)
            engine.truncate(0)
            engine.load(state, len(ids) + 2)
            engine.truncate(len(ids))
            np.testing.assert_array_equal(engine.prefill([6, 7], None, 2), again)
            found.append((rows.tobytes(), again.tobytes()))
    assert len(set(found)) == 1


def test_positions_without_a_rope_that_reads_them(tmp_path: Path) -> None:
    """A graph may take positions and rotate by implied ones: odd, and safe."""
    built = handmade.with_schemes(handmade.program(any_size=True), "f32")
    made = handmade.write(tmp_path / "b", built, units={"n": 8, "o": 2, "t": 8})
    program = json.loads((made.path / "program.json").read_text())
    for block in program["graphs"]["text"]["blocks"]:
        for op in block["ops"]:
            if op["kind"] == "rope_at":
                op["kind"] = "rope"
                op["in"], op["weights"] = op["in"][:1], {"inv_freq": op["weights"]["inv_freq"]}
    (made.path / "program.json").write_text(json.dumps(program))
    handmade.seal(made.path)
    with Engine(made.path) as engine:
        assert np.isfinite(engine.prefill([1, 2, 3], None, 1, np.full((3, 3), 7, np.int32))).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_agrees_with_reference(bundle: Callable[..., Handmade], scheme: str, isa: str) -> None:
    made = bundle(scheme, window=5)
    # A value half way between two int8 steps may fall to either side, and A8 then differs by a step of one row; where
    # vision attends in words, many do.
    tolerance, seen = (2e-3, 2e-2) if "A8" in scheme else (5e-6, 5e-6)
    reference = made.reference()
    with Engine(made.path, isa=isa) as engine:
        assert engine.info["isa"] == isa
        wanted = reference.encode(TILES)
        close(engine.encode(TILES), wanted, seen)
        features = wanted[: 2 * TILE_TOKENS]
        close(engine.prefill(TOKENS, features, want=9), reference.prefill(TOKENS, features, want=9), tolerance)
        for token in (1, 2, 3):
            close(engine.decode(token), reference.decode(token), tolerance)
        assert engine.past == reference.past == len(TOKENS) + 3


@pytest.mark.parametrize("scheme", ["W8A8", "W8A16", "f32"])
@pytest.mark.parametrize("isa", ISAS)
def test_vision_attends_in_words_where_int8_follows(bundle: Callable[..., Handmade], scheme: str, isa: str) -> None:
    """Products of int16 where the result is rounded to int8 anyway."""
    with Engine(bundle(scheme).path, isa=isa) as engine:
        numbers = {(op["graph"], op["numbers"]) for op in engine.profiled() if op["kind"] == "attention"}
        features = engine.encode(TILES)
    words = scheme == "W8A8" and isa in ("avx2", "avxvnni", "avx512")
    assert numbers == {("text", "float32"), ("vision", "int16" if words else "float32")}
    truth = bundle("f32").reference().encode(TILES)
    off = np.linalg.norm(bundle(scheme).reference().encode(TILES) - truth)  # 2 % at W8A8
    assert np.linalg.norm(features - truth) <= 1.05 * off + 1e-5 * np.linalg.norm(truth)


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

        def seen(picture: Picture, cut: Cut) -> Iterator[Seen]:
            engine.cancel()
            yield Seen(TILES[:1])

        ids = np.array([1, *[IMAGE] * TILE_TOKENS, 2], np.int32)
        picture = load(Image.new("RGB", (SIDE, SIDE)))
        placed = Placed(picture, Fixed(SIDE, TILE_TOKENS).cut(SIDE, SIDE), start=1, rows=TILE_TOKENS)
        cache = Sequence(engine, seen)
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
