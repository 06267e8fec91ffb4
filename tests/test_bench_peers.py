"""`make bench-peers` without a peer: the weights it writes, the rows it prints, the bars it judges, its processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest

import contestants
import peers
import shapes
import table
import weights
from contestants import Contestant
from eyespot.checkpoint import open_checkpoint

TINY = shapes.QWEN2_05B | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "eos_token_id": 299,
}
OURS = Contestant("qwen2-0.5b", "eyespot", "W4A8-g32")
FINER = Contestant("qwen2-0.5b", "eyespot", "W4A8-g32-asym+W8A8-g32")
LLAMA = Contestant("qwen2-0.5b", "llama.cpp", "Q4_0")
GENAI = Contestant("qwen2-0.5b", "onnxruntime-genai", "int4")
BAR = table.Bar("decode", "tg64", table.HIGHER, 1.25, bits=4, quality="kl")


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen2")
    shapes.write_checkpoint(folder, TINY, shapes.llm_shapes(TINY))
    shapes.write_tokenizer(folder, 297, shapes.QWEN_ADDED)
    return folder


def tensors(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def floats(tensor: gguf.ReaderTensor) -> np.ndarray:
    return gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])


@pytest.mark.parametrize(("form", "body", "head"), [("Q8_0", "Q8_0", "Q8_0"), ("Q4_0+Q8_0", "Q4_0", "Q8_0")])
def test_gguf_of_a_checkpoint(form: str, body: str, head: str, qwen2: Path, tmp_path: Path) -> None:
    weights.qwen2_gguf(qwen2, tmp_path / "it.gguf", form)
    found, source = tensors(tmp_path / "it.gguf"), open_checkpoint(qwen2)
    assert len(found) == len(source.tensors)
    assert found["token_embd.weight"].tensor_type.name == head
    assert found["blk.1.ffn_down.weight"].tensor_type.name == body
    np.testing.assert_array_equal(
        floats(found["blk.0.attn_k.bias"]), source.read("model.layers.0.self_attn.k_proj.bias")
    )
    for ours, theirs, steps in (
        ("token_embd.weight", "model.embed_tokens.weight", 127),
        ("blk.1.attn_output.weight", "model.layers.1.self_attn.o_proj.weight", 127 if body == "Q8_0" else 8),
    ):
        wanted = source.read(theirs)
        step = np.abs(wanted.reshape(-1, 32)).max(axis=1, keepdims=True) / steps
        error = np.abs(floats(found[ours]) - wanted).reshape(-1, 32)
        assert (error <= 1.01 * step).all()  # Q4_0 clips what would be +8
        assert error.max() > 0


def test_gguf_says_what_llama_cpp_asks_for(qwen2: Path, tmp_path: Path) -> None:
    weights.qwen2_gguf(qwen2, tmp_path / "it.gguf", "Q8_0")
    fields = {k: f.contents() for k, f in gguf.GGUFReader(tmp_path / "it.gguf").fields.items()}
    assert fields["general.architecture"] == "qwen2"
    assert fields["qwen2.block_count"] == 2
    assert fields["qwen2.attention.head_count_kv"] == 2
    assert fields["qwen2.rope.freq_base"] == 1e6
    assert len(fields["tokenizer.ggml.tokens"]) == 320
    assert fields["tokenizer.ggml.tokens"][297:301] == [*shapes.QWEN_ADDED, "unused300"]
    assert len(fields["tokenizer.ggml.merges"]) == 297 - 256


def test_requantizing_keeps_every_other_fact(qwen2: Path, tmp_path: Path) -> None:
    weights.qwen2_gguf(qwen2, tmp_path / "8.gguf", "Q8_0")
    weights.requantized_gguf(tmp_path / "8.gguf", tmp_path / "4.gguf", "Q4_1+Q8_0")
    before, after = gguf.GGUFReader(tmp_path / "8.gguf"), gguf.GGUFReader(tmp_path / "4.gguf")
    facts = [
        {k: f.contents() for k, f in r.fields.items() if k.split(".")[0] in ("qwen2", "tokenizer")}
        for r in (before, after)
    ]
    assert facts[0] == facts[1]
    old, new = tensors(tmp_path / "8.gguf"), tensors(tmp_path / "4.gguf")
    assert new["blk.0.ffn_up.weight"].tensor_type.name == "Q4_1"
    np.testing.assert_allclose(floats(new["token_embd.weight"]), floats(old["token_embd.weight"]), atol=1e-4)
    np.testing.assert_array_equal(floats(new["output_norm.weight"]), floats(old["output_norm.weight"]))


def test_an_interrupted_making_leaves_nothing(tmp_path: Path) -> None:
    def broken(out: Path) -> None:
        out.mkdir()
        raise RuntimeError("no more paper")

    with pytest.raises(RuntimeError, match="no more paper"):
        weights.once(tmp_path / "model", broken)
    assert not (tmp_path / "model").exists()
    made = weights.once(tmp_path / "model", lambda out: out.write_text("whole"))
    weights.once(made, broken)
    assert made.read_text() == "whole"


def test_a_failing_converter_is_told_by_its_last_words(tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, "-c", "print('first'); raise SystemExit('out of memory')"]
    with pytest.raises(RuntimeError, match="out of memory"):
        weights.run(command, tmp_path / "model")


def test_the_fastest_of_no_worse_quality_stands_for_us() -> None:
    speed = {OURS: [200.0, 210.0, 190.0], FINER: [150.0], LLAMA: [100.0, 90.0, 110.0], GENAI: [80.0]}
    verdict = table.judge(BAR, {"tg64": speed, "kl": {OURS: [0.3], FINER: [0.1], LLAMA: [0.2]}})
    assert (verdict.ours, verdict.theirs) == (FINER, LLAMA)
    assert verdict.ratio == 1.5
    assert verdict.quality == (0.1, 0.2)
    assert verdict.met is True


def test_faster_but_worse_does_not_count() -> None:
    verdict = table.judge(BAR, {"tg64": {OURS: [200.0], LLAMA: [100.0]}, "kl": {OURS: [0.3], LLAMA: [0.2]}})
    assert verdict.ratio == 2
    assert verdict.met is False


def test_a_bar_below_its_limit_is_missed_and_one_without_a_rival_is_not_judged() -> None:
    assert table.judge(BAR, {"tg64": {OURS: [120.0], LLAMA: [100.0]}}).met is False
    assert table.judge(BAR, {"tg64": {OURS: [126.0], LLAMA: [100.0]}}).met is True
    alone = table.judge(BAR, {"tg64": {OURS: [120.0]}})
    assert (alone.ratio, alone.met) == (None, None)
    less = table.Bar("cold", "cold", table.LOWER, 0.25, peer="onnxruntime-genai")
    seconds = {OURS: [0.2], FINER: [0.3], GENAI: [1.0], LLAMA: [0.1]}
    assert table.judge(less, {"cold": seconds}).theirs == GENAI
    assert table.judge(less, {"cold": seconds}).ratio == 0.2
    assert table.judge(less, {"cold": seconds}).met is True


def test_avx2_is_judged_beside_avx2() -> None:
    ours, theirs = (
        Contestant("qwen2-0.5b", p, f) for p, f in (("eyespot-avx2", "W8A8-g32"), ("llama.cpp-avx2", "Q8_0"))
    )
    bar = next(b for b in table.BARS if b.row == "tg64" and b.bits == 8)
    values = {"tg64": {ours: [30.0], theirs: [20.0], Contestant("qwen2-0.5b", "llama.cpp", "Q8_0"): [99.0]}}
    verdict = table.judge(bar, values, "eyespot-avx2", "-avx2")
    assert (verdict.ours, verdict.theirs, verdict.ratio) == (ours, theirs, 1.5)


def test_every_contestant_has_its_line() -> None:
    lines = table.rows_table(
        *("tg64", "token/s", table.HIGHER, {"tg64": {OURS: [90.0, 120.0, 100.0], LLAMA: [50.0]}}),
        *({GENAI: "no wheel for this machine"}, [OURS, LLAMA, GENAI], {OURS: [0.0, 0.1, 0.02]}),
    )
    assert "| eyespot W4A8-g32 | 100.0 | 120.0 | 30% | 2.00 | 2% |" in lines
    assert "| llama.cpp Q4_0 | 50.0 | 50.0 | 0% | 1.00 |  |" in lines
    assert "| onnxruntime-genai int4 | not run: no wheel for this machine | | | | |" in lines


def test_a_run_without_any_peer_prints_every_row_and_bar(capsys: pytest.CaptureFixture[str]) -> None:
    run = peers.Run((), (), 1, 1)
    run.all()
    report = run.report()
    for row in peers.ROWS:
        assert f"| {row.name} ({row.unit}) |" in report
    for bar in table.BARS:
        assert f"| {bar.work} |" in report
    assert report.count("not run: left out by --peers") == sum(len(run.entered(row)) for row in peers.ROWS)


def test_a_picture_is_beside_the_sum_of_the_fastest_parts() -> None:
    run = peers.Run((), (), 3, 1)
    fast, slow, ours, text = (
        *(Contestant("internvl2-1b", "onnxruntime", form) for form in ("int8", "float")),
        Contestant("internvl2-1b", "eyespot", "W8A8-g32/W8A8"),
        Contestant("qwen2-0.5b", "openvino", "int8"),
    )
    run.values["vit"] = {fast: [1.0, 2.0, 3.0], slow: [9.0, 9.0, 9.0], ours: [0.1, 0.1, 0.1]}
    run.values["pp288"], run.values["e2e"] = {text: [0.5, 0.25]}, {ours: [0.6, 0.7]}  # ended in round 3
    report = run.report()
    assert [v for c, v in run.values["e2e"].items() if not c.ours] == [[1.5, 2.25]]
    assert "| sum of parts: onnxruntime int8 + openvino int8, 288 tokens | 1.875 | 1.5 |" in report
    verdict = table.judge(next(b for b in table.BARS if b.row == "e2e"), run.values)
    assert verdict.ratio == pytest.approx(0.65 / 1.875)


def test_divergence() -> None:
    truth = np.log(np.array([[0.5, 0.5], [0.9, 0.1]]))
    assert peers.divergence(truth, truth + 7) == pytest.approx(0, abs=1e-12)
    other = np.log(np.array([[0.25, 0.75], [0.9, 0.1]]))
    padded = np.concatenate([other, np.zeros((2, 3))], axis=1)
    assert peers.divergence(truth, padded) == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Contestant:
    """A contestant whose adapter echoes, fails and dies on demand."""
    script = tmp_path / "run_echo.py"
    script.write_text(
        f"import os, sys; sys.path.insert(0, {str(peers.HERE)!r})\n"
        "from worker import serve\n"
        "def fail(): print('noise on stdout'); raise ValueError('wrong shape')\n"
        "def die(): print('killed by a bug', file=sys.stderr, flush=True); os._exit(3)\n"
        "serve({'echo': lambda **given: [sys.argv[1:], given], 'fail': fail, 'die': die})\n"
    )
    monkeypatch.setitem(contestants.PEERS, "echo", contestants.Peer(str(script), extra=("more",)))
    monkeypatch.setattr(weights, "opened", lambda c, every_logit: tmp_path / "model")
    monkeypatch.setattr(peers, "WORK", tmp_path)
    return Contestant("qwen2-0.5b", "echo", "plain")


def test_a_worker_answers_fails_and_dies_in_words(adapter: Contestant, tmp_path: Path) -> None:
    worker = peers.Worker(adapter, 3)
    try:
        assert worker.call("echo", n=5) == [[str(tmp_path / "model"), "3", "more"], {"n": 5}]
        state = Path(f"/proc/{worker.process.pid}/stat").read_text().rpartition(") ")[2][0]
        assert state in "TRS"  # stopping is not waited for
        assert worker.peak_bytes() > 1e6
        with pytest.raises(RuntimeError, match=r"fail: ValueError: wrong shape"):
            worker.call("fail")
        assert worker.call("echo") == [[str(tmp_path / "model"), "3", "more"], {}]
        with pytest.raises(RuntimeError, match="killed by a bug"):
            worker.call("die")
    finally:
        worker.close()


def test_who_else_worked_during_a_call_is_seen() -> None:
    spin = "import time; end = time.time() + 20\nwhile time.time() < end: pass"
    other = subprocess.Popen([sys.executable, "-c", spin])
    try:  # two shares of one half second: with the other process among the others, and without
        share, (less, answer) = peers.others(
            os.getpid(), lambda: peers.others(other.pid, lambda: time.sleep(0.5) or "done")
        )
    finally:
        other.kill()
        other.wait()
    assert answer == "done"
    assert 0 <= less < share


def test_formats_are_spelled_as_their_makers_read_them() -> None:
    for model, by_peer in contestants.MODELS.items():
        for c in contestants.contestants(model, tuple(by_peer)):
            kind = c.peer.removesuffix("-avx2")
            assert kind in weights.MAKERS
            assert kind not in ("onnxruntime-genai",) or c.form in weights.GENAI_FORMATS
            assert kind not in ("openvino",) or c.form in weights.OPENVINO_FORMATS
            if kind == "llama.cpp":
                assert all(hasattr(gguf.GGMLQuantizationType, part) for part in c.form.split("+"))
