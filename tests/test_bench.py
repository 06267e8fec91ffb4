"""`eyespot bench`: the counts against formulas of their own, the rows against what they say, and the ceilings."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from math import prod
from pathlib import Path
from typing import Any

import pytest

import models
from eyespot import _native
from eyespot.cli.bench import asked
from eyespot.errors import UsageError
from eyespot.run import bench as b
from eyespot.run.bench import Spec, bench
from eyespot.tensorfile import read_header
from test_cli import ENV, EYESPOT, eyespot, one_error_line
from test_session import compiled

NAMES = ("vit", "pp128", "pp512", "tg64", "tg64@d1024", "e2e")


@pytest.fixture(scope="module")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("bench")
    models.tiny_internvl(where / "hf")
    return compiled(where / "hf", where / "bundle", ctx_size=256)


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed weights: W8A8 in text, a head of its own scheme."""
    where = tmp_path_factory.mktemp("blind")
    models.tiny_qwen2(where / "hf")
    return compiled(where / "hf", where / "bundle", scheme="W8A8", kv_cache="f16", ctx_size=128)


def program(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "program.json").read_text())


def read_by_text(bundle: Path, calls: int, tokens: int) -> int:
    """Bytes of the matrices that `calls` calls of `tokens` tokens in all read: of the embedding, a row a token."""
    raw, total = program(bundle), 0
    for block in raw["graphs"]["text"]["blocks"]:
        entries, _ = read_header(bundle / f"{block['part']}.safetensors")
        for op in block["ops"]:
            entry = entries.get(op["weights"].get("weight", ""))
            if op["kind"] in ("linear", "head"):
                total += calls * (entry.stop - entry.start)
            elif op["kind"] == "embed":
                total += tokens * (entry.stop - entry.start) // entry.shape[0]
    return total


def attention_ops(bundle: Path) -> list[dict[str, Any]]:
    ops = [op for block in program(bundle)["graphs"]["text"]["blocks"] for op in block["ops"]]
    return [op["attrs"] for op in ops if op["kind"] == "attention"]


def products(bundle: Path, kind: str) -> int:
    """Multiply-adds of all ops of `kind` in text, for a row."""
    raw = program(bundle)
    ops = [op for block in raw["graphs"]["text"]["blocks"] for op in block["ops"] if op["kind"] == kind]
    return sum(prod(raw["weights"][op["weights"]["weight"]]["shape"]) for op in ops)


# Rows


def test_rows_by_name_and_by_flags() -> None:
    assert tuple(spec.name for spec in asked(None, None, None, None)) == NAMES
    assert [s.name for s in asked(["64,256"], ["0"], None, None)] == ["vit", "pp64", "pp256", "e2e"]
    assert [s.name for s in asked(["0"], ["16"], ["0", "32"], None)] == ["vit", "tg16", "tg16@d32", "e2e"]
    assert asked(None, None, None, ["tg8@d4,vit", "tg8@d4"]) == [Spec("tg", 8, 4), Spec("vit")]
    assert all(Spec.parse(name).name == name for name in NAMES)
    for wrong in ("", "pp", "pp0", "tg", "tg8@", "tg8@d", "pp8@d4", "pp-1", "vit ", "VIT", "pp" + "9" * 20, "pp٣"):
        with pytest.raises(UsageError):
            Spec.parse(wrong)
    for flags in (["x"], ["-1"], ["1,"], ["9" * 12]):
        with pytest.raises(UsageError):
            asked(flags, None, None, None)
    with pytest.raises(UsageError, match="--rows"):
        asked(["8"], None, None, ["vit"])


def test_decode_counts_what_formulas_count(blind: Path) -> None:
    """Bytes: every matrix once a step, one row of the embedding, the keys and values so far. Operations: twice the
    multiply-adds of linears, head and attention, by the arithmetic of their scheme."""
    steps, depth = 5, 40
    (row,) = bench(blind, [Spec("tg", steps, depth)], repetitions=1).rows
    item = 2  # f16
    kept = [depth + 2 + i for i in range(steps)]  # keys that step i sees, its own and the warm token's among them
    cached = sum(sum(kept) * 2 * a["kv_heads"] * a["head_dim"] * item for a in attention_ops(blind))
    assert row.cost.bytes == read_by_text(blind, steps, steps) + cached
    attended = sum(sum(kept) * 2 * a["heads"] * a["head_dim"] for a in attention_ops(blind))
    by_kind = {"int8": 2 * steps * products(blind, "linear"), "float32": 2 * attended}
    head = {w["scheme"] for n, w in program(blind)["weights"].items() if w["part"] == "post" and len(w["shape"]) == 2}
    by_kind["int8" if "A8" in head.pop() else "float32"] += 2 * steps * products(blind, "head")
    assert row.cost.operations == by_kind


def test_prefill_reads_weights_once_a_chunk_and_makes_one_row_of_logits(blind: Path) -> None:
    (row,) = bench(blind, [Spec("pp", 100)], repetitions=1).rows
    chunk = program(blind)["memory"]["units"]["n"]
    head = products(blind, "head")
    attended = sum(100 * 101 // 2 * 2 * a["heads"] * a["head_dim"] for a in attention_ops(blind))
    assert row.cost.total == 2 * (100 * products(blind, "linear") + head + attended)
    assert chunk >= 100
    cached = sum(100 * 2 * a["kv_heads"] * a["head_dim"] * 2 for a in attention_ops(blind))
    assert row.cost.bytes == read_by_text(blind, 1, 100) + cached


def test_every_row_and_the_ceilings(eyes: Path, tmp_path: Path) -> None:
    report = bench(eyes, [Spec.parse(n) for n in ("vit", "pp24", "tg4", "tg4@d16", "e2e")], repetitions=3, ops=True)
    rows = {row.name: row for row in report.rows}
    assert list(rows) == ["vit", "pp24", "tg4", "tg4@d16", "e2e", "e2e@64"]
    assert all(len(row.seconds) == 3 and min(row.seconds) > 0 and row.cost.bytes > 0 for row in rows.values())
    assert [row.unit for row in rows.values()] == ["ms", "tokens/s", "tokens/s", "tokens/s", "ms", "ms"]
    assert all(late > early for early, late in zip(rows["e2e"].seconds, rows["e2e@64"].seconds, strict=True))
    assert rows["tg4@d16"].cost.bytes > rows["tg4"].cost.bytes
    assert all(len(c.samples) == 6 for c in report.ceilings.values())  # before five rows, and after them
    # What --ops shows is what the row counts: nothing is left out.
    for row in rows.values():
        assert sum(op.operations for op in row.ops) == pytest.approx(row.cost.total)
        assert sum(op.bytes for op in row.ops) == pytest.approx(row.cost.bytes)
    assert {op.graph for op in rows["e2e"].ops} == {"vision", "text"}
    assert {op.graph for op in rows["vit"].ops} == {"vision"}
    # A picture of one tile takes less: --image is what e2e sees.
    b.synthetic(56).save(tmp_path / "small.png")
    (small, _) = bench(eyes, [Spec("e2e")], repetitions=1, picture=str(tmp_path / "small.png")).rows
    assert small.cost.total < rows["e2e"].cost.total


def test_shares_are_of_what_the_ceilings_allow() -> None:
    ceilings = {"read": b.Ceiling("", [8e9, 12e9]), "int8": b.Ceiling("x", [4e9]), "float32": b.Ceiling("y", [1e9])}
    row = b.Row("pp9", (1.0, 3.0), 9, b.Cost(5_000_000_000, {"int8": 4_000_000_000, "float32": 500_000_000}))
    told = row.to_json(ceilings)
    assert told["percent_of_read"] == pytest.approx(25)  # 2.5 GB/s of 10
    assert told["percent_of_arithmetic"] == pytest.approx(75)  # 1.5 s at the ceilings, of 2
    assert (told["mean"], told["gop_per_s"]) == (pytest.approx((9 + 3) / 2), pytest.approx(2.25))
    scalar = {**ceilings, "float32": b.Ceiling("", [0.0])}
    assert row.to_json(scalar)["percent_of_arithmetic"] is None


def test_the_picture_is_always_the_same() -> None:
    first, second = b.synthetic(64), b.synthetic(64)
    assert first.size == (64, 64)
    assert first.tobytes() == second.tobytes()
    assert len(set(first.tobytes())) > 100


# Ceilings


@pytest.mark.parametrize("isa", [name for name, runs in _native.isas().items() if runs])
def test_ceilings_of_each_instruction_set(isa: str) -> None:
    found = _native.ceilings(1, isa)
    assert list(found) == ["read", "float32", "int16", "int8", "int4"]
    assert 1e8 < found["read"]["per_second"] < 1e12
    for kind in ("float32", "int16", "int8", "int4"):
        rate = found[kind]["per_second"]
        assert rate == 0 if isa == "scalar" else 1e8 < rate < 1e13
        assert bool(found[kind]["instruction"]) == (isa != "scalar")


def test_ceilings_refuse() -> None:
    for threads, isa, words in ((0, "", "threads"), (-1, "", "threads"), (10**6, "", "threads"), (1, "sse9", "sse9")):
        with pytest.raises(_native.Error, match=words):
            _native.ceilings(threads, isa)


def test_the_ceilings_memory_is_not_ours(blind: Path) -> None:
    """They read through 64 MiB at least, and are measured once more after the peak was taken."""
    code = "import sys; from eyespot.run.bench import *\n"
    code += "print(bench(sys.argv[1], [Spec('pp', 8)], 1).peak_bytes, peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code, blind], capture_output=True, text=True, env=ENV, check=True)
    told, after = map(int, done.stdout.split())
    assert 0 < told <= after < told + (32 << 20)


# The verb


def test_three_formats_say_the_same(eyes: Path) -> None:
    flags = ("bench", "-m", eyes, "--rows", "vit,pp8,tg2,tg2@d1024", "-r", "2", "-t", "1")
    done = eyespot(*flags, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [row["name"] for row in told["rows"]] == ["vit", "pp8", "tg2", "tg2@d1024"]
    assert told["rows"][3] == {"name": "tg2@d1024", "absent": "context 256 too small: compile with -c 1027"}
    assert told["engine"]["threads"] == 1
    assert told["peak_bytes"] > 1 << 20
    assert told["load_s"] > 0 < told["first_s"]
    assert all(len(row["values"]) == 2 for row in told["rows"][:3])
    assert [line for line in done.stderr.splitlines() if "note" not in line] == ["vit", "pp8", "tg2"]
    lines = list(csv.DictReader(io.StringIO(eyespot(*flags, "-o", "csv").stdout)))
    assert [line["name"] for line in lines] == ["vit", "pp8", "tg2", "tg2@d1024"]
    assert lines[3]["absent"]
    assert all(float(line["mean"]) > 0 and line["isa"] == told["engine"]["isa"] for line in lines[:3])
    assert [int(line["bytes"]) for line in lines[:3]] == [row["bytes"] for row in told["rows"][:3]]
    table = eyespot(*flags).stdout
    assert "| n/a: context 256 too small: compile with -c 1027 |" in table.replace("  ", "")
    for block in table.strip().split("\n\n"):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_rows_that_need_eyes(blind: Path) -> None:
    told = json.loads(eyespot("bench", "-m", blind, "--rows", "vit,e2e,pp4", "-r", "1", "-o", "json").stdout)
    assert [row.get("absent") for row in told["rows"]] == ["no eyes", "no eyes", None]


def test_bad_input_is_one_line(blind: Path, tmp_path: Path) -> None:
    one_error_line(eyespot("bench", "-m", tmp_path / "nowhere"), 2, "no such bundle")
    one_error_line(eyespot("bench", "-m", tmp_path), 2, "not a bundle")
    one_error_line(eyespot("bench", "-m", blind, "--rows", "tg"), 2, "no such row")
    one_error_line(eyespot("bench", "-m", blind, "-o", "xml"), 2, "md, csv, json")
    one_error_line(eyespot("bench", "-m", blind, "--isa", "sse9"), 2, "sse9")
    one_error_line(eyespot("bench", "-m", blind, "--image", tmp_path / "none.png"), 2, "cannot be read")
    for flags in (["-t", "0"], ["-r", "0"], ["-t", "x"]):
        done = eyespot("bench", "-m", blind, *flags)
        assert (done.returncode, done.stdout) == (2, "")
        assert "Traceback" not in done.stderr


def test_interrupted_it_prints_no_figures(blind: Path) -> None:
    command = [*EYESPOT, "bench", "-m", str(blind), "--rows", "pp64", "-r", "1000000"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENV,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job inherits it ignored
    ) as run:
        try:
            assert run.stderr is not None
            assert run.stderr.readline() == "pp64\n"
            time.sleep(0.2)
            os.kill(run.pid, signal.SIGINT)
            out, err = run.communicate(timeout=60)
        finally:
            run.kill()  # of no effect on one that ended
    assert run.returncode == 130
    assert out == ""
    assert "interrupted" in err
    assert "Traceback" not in err
