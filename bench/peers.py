"""`make bench-peers`: eyespot beside its CPU peers, the same weights, one run, by turns; quality beside speed.

Every contestant is a process of its own that stays loaded and is stopped while another works. Knows calls and clocks;
contestants.py says who competes, weights.py with what, table.py what the numbers mean.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import weights  # noqa: E402
from contestants import MODELS, PEERS, WORK, Contestant, contestants, python  # noqa: E402
from table import HIGHER, LOWER, bars_table, number, rows_table  # noqa: E402

CALL_SECONDS = 900  # a call that takes longer is taken for hung
DISTURBED, TRIES = 0.15, 3  # a time is taken again when other processes had more than this share of the machine


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of work, timed. peers: who does it ((): all that have the model).

    touch: what replaces arguments in an untimed call just before, for the kernel may have taken back the pages of a
    file whose process stood still.
    """

    name: str
    group: str
    model: str
    unit: str
    sense: str
    call: str
    arguments: dict[str, int] = field(default_factory=dict)
    touch: dict[str, int] = field(default_factory=dict)
    peers: tuple[str, ...] = ()

    def value(self, seconds: float) -> float:
        return self.arguments["n"] / seconds if self.unit == "token/s" else seconds


RIVALS = tuple(peer for peer in PEERS if not peer.startswith("eyespot"))
QWEN2, SMOLLM2, INTERNVL2 = MODELS
ROWS = (
    Row("kl", "quality", SMOLLM2, "nats a token", LOWER, "logits"),
    Row("vit-error", "quality", INTERNVL2, "relative to float", LOWER, "features"),
    Row("tg64", "qwen2", QWEN2, "token/s", HIGHER, "decode", {"n": 64}, {"n": 1}),
    Row("tg64@d1024", "qwen2", QWEN2, "token/s", HIGHER, "decode", {"n": 64, "depth": 1024}, {"n": 1}),
    Row("pp128", "qwen2", QWEN2, "token/s", HIGHER, "prefill", {"n": 128}, {"n": 16}),
    Row("pp512", "qwen2", QWEN2, "token/s", HIGHER, "prefill", {"n": 512}, {"n": 16}),
    Row("smollm2-tg64", "smollm2", SMOLLM2, "token/s", HIGHER, "decode", {"n": 64}, {"n": 1}),
    Row("smollm2-pp128", "smollm2", SMOLLM2, "token/s", HIGHER, "prefill", {"n": 128}, {"n": 16}),
    Row("smollm2-pp512", "smollm2", SMOLLM2, "token/s", HIGHER, "prefill", {"n": 512}, {"n": 16}),
    Row("vit", "picture", INTERNVL2, "s", LOWER, "encode"),
    Row("pp288", "picture", QWEN2, "s", LOWER, "prefill", {"n": 288}, {"n": 16}, RIVALS),
    Row("e2e", "picture", INTERNVL2, "s", LOWER, "look", {"text": 32}, {}, ("eyespot", "eyespot-avx2")),
    Row("cold", "start", QWEN2, "s", LOWER, "first", {"n": 16}),
    Row("memory", "start", QWEN2, "MB", LOWER, "first", {"n": 16}),
)


class Worker:
    """A contestant's process. RuntimeError, with the last line it wrote, when it fails."""

    def __init__(self, c: Contestant, threads: int, every_logit: bool = False) -> None:
        peer = PEERS[c.peer]
        command = [python(c.peer), HERE / peer.adapter, weights.opened(c, every_logit), threads, *peer.extra]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        if peer.packages:
            environment.pop("PYTHONPATH", None)
        (WORK / "logs").mkdir(parents=True, exist_ok=True)
        self.log = WORK / "logs" / f"{c.model} {c}.log".replace("/", "-").replace(" ", "_")
        with open(self.log, "w") as log:
            self.started = time.perf_counter()
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                bufsize=0,
            )

    def call(self, name: str, **arguments: object) -> object:
        """The adapter's answer. The process runs during the call and is stopped after it, so that none spins idly."""
        process, line = self.process, json.dumps({"call": name, **arguments}) + "\n"
        assert process.stdin is not None
        assert process.stdout is not None
        process.send_signal(signal.SIGCONT)
        answer = b""
        try:
            process.stdin.write(line.encode())
            if select.select([process.stdout], [], [], CALL_SECONDS)[0]:
                answer = process.stdout.readline()
        except BrokenPipeError:
            pass
        if not answer:
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"it ended or hung in {name}: {''.join(last)[-160:]}")
        process.send_signal(signal.SIGSTOP)
        given = json.loads(answer)
        if "error" in given:
            raise RuntimeError(f"{name}: {given['error'][:160]}")
        return given["result"]

    def peak_bytes(self) -> int:
        """The most memory the process ever held, mapped pages of its files among it."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Run:
    """One run: what was measured, and why what was not measured was not."""

    def __init__(self, peers: tuple[str, ...], only: tuple[str, ...], rounds: int, threads: int) -> None:
        self.peers, self.only, self.rounds, self.threads = peers, only, rounds, threads
        self.values: dict[str, dict[Contestant, list[float]]] = {row.name: {} for row in ROWS}
        self.others: dict[str, dict[Contestant, list[float]]] = {row.name: {} for row in ROWS}
        self.reasons: dict[Contestant, str] = {}
        self.own: list[str] = []  # lines about our own bars
        self.load: dict[str, tuple[float, float]] = {}  # group -> load average before it and after

    def entered(self, row: Row) -> list[Contestant]:
        """All that the tables name for a row, chosen or not."""
        return contestants(row.model, row.peers or tuple(PEERS))

    def running(self, row: Row) -> list[Contestant]:
        return [c for c in self.entered(row) if c.peer in self.peers and c not in self.reasons]

    @contextmanager
    def told(self, c: Contestant) -> Iterator[None]:
        """A contestant that fails is out, and its rows say why; the others go on."""
        try:
            yield
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            self.reasons[c] = " ".join(str(error).split())[:240]
            print(f"{c.model} {c}: {self.reasons[c]}", file=sys.stderr)

    def all(self) -> None:
        groups: dict[str, Callable[[list[Row]], None]] = {
            "quality": self.quality,
            "qwen2": self.compete,
            "smollm2": self.compete,
            "picture": self.compete,
            "start": self.start,
        }
        for c in {c: None for row in ROWS for c in self.entered(row) if c.peer not in self.peers}:
            self.reasons[c] = "left out by --peers"
        for c in {c: None for row in ROWS if self.wanted(row) for c in self.running(row)}:
            with self.told(c):  # everything is made before anything is timed
                python(c.peer)
                weights.opened(c)
        for name, work in groups.items():
            rows = [row for row in ROWS if row.group == name and self.wanted(row)]
            if rows:
                before = os.getloadavg()[0]
                work(rows)
                self.load[name] = before, os.getloadavg()[0]

    def wanted(self, row: Row) -> bool:
        return not self.only or row.name in self.only or (row.name in ("vit", "pp288") and "e2e" in self.only)

    def compete(self, rows: list[Row]) -> None:
        """All contestants of the rows loaded, then round by round, row by row, one after another."""
        workers: dict[Contestant, Worker] = {}
        try:
            for c in {c: None for row in rows for c in self.running(row)}:
                with self.told(c):
                    workers[c] = Worker(c, self.threads)
                    for row in rows:
                        if c in self.running(row):
                            workers[c].call(row.call, **row.arguments)  # warm-up
            for i in range(self.rounds):
                print(
                    f"{rows[0].group}: round {i + 1} of {self.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr
                )
                for row in rows:
                    for c in self.running(row):
                        with self.told(c):
                            self.measure(row, c, workers[c])
        finally:
            for worker in workers.values():
                worker.close()

    def measure(self, row: Row, c: Contestant, worker: Worker) -> None:
        """One value of a round: the least disturbed of up to TRIES, the first undisturbed one where there is one."""
        tries: list[tuple[float, float]] = []  # share of the machine that others took, seconds
        while len(tries) < TRIES and not (tries and tries[-1][0] <= DISTURBED):
            worker.call(row.call, **row.arguments | row.touch)
            share, seconds = others(worker.process.pid, lambda: worker.call(row.call, **row.arguments))
            tries.append((share, float(str(seconds))))
        share, seconds = min(tries)
        self.values[row.name].setdefault(c, []).append(row.value(seconds))
        self.others[row.name].setdefault(c, []).append(share)

    def sum_parts(self) -> None:
        """No peer here runs the whole: the fastest vision part and a text part of the same round are added up."""
        visions = {c: v for c, v in self.values["vit"].items() if not c.ours}
        if not visions:
            return
        eye = min(visions, key=lambda c: statistics.median(visions[c]))
        for c, seconds in self.values["pp288"].items():
            both = Contestant(INTERNVL2, "sum of parts:", f"{eye} + {c}, 288 tokens")
            self.values["e2e"][both] = [a + b for a, b in zip(visions[eye], seconds, strict=False)]

    def start(self, rows: list[Row]) -> None:
        """Process start to first token, files in the page cache; then peak memory after 128 + 64 tokens more."""
        for i in range(max(self.rounds, 5) + 1):
            for c in self.running(rows[0]):
                with self.told(c):
                    worker = Worker(c, self.threads)
                    try:
                        worker.call("first", n=16)
                        seconds = time.perf_counter() - worker.started
                        if i == 0:  # warms the files up
                            continue
                        self.values["cold"].setdefault(c, []).append(seconds)
                        if i == 1:
                            worker.call("prefill", n=128)
                            worker.call("decode", n=64)
                            self.values["memory"][c] = [worker.peak_bytes() / 1e6]
                            if c.ours:
                                self.own_memory(c, worker)
                    finally:
                        worker.close()

    def own_memory(self, c: Contestant, worker: Worker) -> None:
        info = worker.call("info")
        assert isinstance(info, dict)
        bundle = sum(f.stat().st_size for f in weights.opened(c).iterdir())
        allowed, peak = (bundle + info["kv_bytes"] + 80e6) / 1e6, self.values["memory"][c][0]
        met = "yes" if peak <= allowed else "no"
        self.own.append(f"| peak memory, {c} | ≤ bundle + cache + 80 MB = {allowed:.0f} MB | {peak:.0f} MB | {met} |")

    def quality(self, rows: list[Row]) -> None:
        """kl: mean Kullback-Leibler divergence a token from transformers' float32, on real text with real weights.
        vit-error: |y - float| / |y| of the features, float being onnxruntime's."""
        out = WORK / "answer.npy"
        for row in rows:
            if row.name == "kl":
                truth = np.load(weights.true_logits())
                ids, logits = truth["ids"], truth["logits"]
                for c in self.running(row):
                    with self.told(c):
                        self.values["kl"][c] = [self.divergence(c, ids, logits, out)]
            else:
                true: np.ndarray | None = None
                for c in sorted(self.running(row), key=lambda c: c.form != "float"):
                    with self.told(c), self.worker(c) as worker:
                        worker.call("features", out=str(out))
                        y = np.load(out).reshape(-1)
                        true = y if c.form == "float" else true
                        if true is None:
                            raise RuntimeError("onnxruntime's float features are missing to compare with")
                        self.values["vit-error"][c] = [float(np.linalg.norm(y - true) / np.linalg.norm(true))]

    @contextmanager
    def worker(self, c: Contestant, every_logit: bool = False) -> Iterator[Worker]:
        worker = Worker(c, self.threads, every_logit)
        try:
            yield worker
        finally:
            worker.close()

    def divergence(self, c: Contestant, ids: np.ndarray, truth: np.ndarray, out: Path) -> float:
        total = 0.0
        with self.worker(c, every_logit=True) as worker:
            for window, logits in zip(ids, truth, strict=True):
                worker.call("logits", ids=window.tolist(), out=str(out))
                total += divergence(logits, np.load(out))
        return total / ids.size

    def report(self) -> str:
        self.sum_parts()
        lines = [machine(), f"{self.threads} threads, {self.rounds} rounds by turns; load average before and after:"]
        lines += [f"{group} {a:.1f}, {b:.1f};" for group, (a, b) in self.load.items()] + [""]
        for row in ROWS:
            lines += rows_table(
                row.name, row.unit, row.sense, self.values, self.reasons, self.entered(row), self.others[row.name]
            )
        lines += bars_table(self.values)
        lines += ["With AVX2 alone on both sides:", "", *bars_table(self.values, "eyespot-avx2", "-avx2")]
        lines += ["| our own | bar | measured | met |", "|---|---|---|---|", *self.depth(), *self.own, ""]
        return "\n".join(lines)

    def depth(self) -> list[str]:
        lines = []
        for c, deep in self.values["tg64@d1024"].items():
            if c.ours and deep:
                ratio = statistics.median(deep) / statistics.median(self.values["tg64"][c])
                met = "yes" if ratio >= 0.9 else "no"
                lines.append(f"| depth 1024 / depth 0, {c} | ≥ 0.9 | {number(ratio)} | {met} |")
        return lines

    def as_json(self) -> str:
        rows = {
            row: [
                {"model": c.model, "peer": c.peer, "format": c.form, "values": v, "others": self.others[row].get(c, [])}
                for c, v in found.items()
            ]
            for row, found in self.values.items()
        }
        reasons = {f"{c.model} {c}": reason for c, reason in self.reasons.items()}
        facts = {"machine": machine(), "threads": self.threads, "load": self.load}
        return json.dumps({**facts, "rows": rows, "not run": reasons}, indent=1)


def divergence(truth: np.ndarray, logits: np.ndarray) -> float:
    """Sum over rows of the Kullback-Leibler divergence of softmax(logits) from softmax(truth), both [n, vocab]."""
    total = 0.0
    for a, b in zip(truth, logits[:, : truth.shape[1]], strict=True):  # a padded vocabulary is cut
        p, q = log_softmax(a), log_softmax(b)
        total += float((np.exp(p) * (p - q)).sum())
    return total


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64) - x.max()
    return x - np.log(np.exp(x).sum())


def machine() -> str:
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{len(names)} x {names[0].partition(':')[2].strip()}, {platform.system()} {platform.release()}"


def others(pid: int, call: Callable[[], object]) -> tuple[float, object]:
    """The share of all processors' time that went to processes other than `pid` during the call, and its answer."""

    def ticks() -> tuple[int, int]:
        busy = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
        own = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        idle = int(busy[3]) + int(busy[4])
        return sum(map(int, busy[:8])) - idle, int(own[11]) + int(own[12])

    start, (all_before, own_before) = time.perf_counter(), ticks()
    answer = call()
    all_after, own_after = ticks()
    machine_ticks = (time.perf_counter() - start) * os.sysconf("SC_CLK_TCK") * (os.cpu_count() or 1)
    return max(0.0, (all_after - all_before - (own_after - own_before)) / machine_ticks), answer


def words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=words, default=(), metavar="ROW,ROW", help=", ".join(r.name for r in ROWS))
    parser.add_argument("--peers", type=words, default=tuple(PEERS), metavar="A,B", help=", ".join(PEERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    for kind, chosen, known in (("row", given.only, {r.name for r in ROWS}), ("peer", given.peers, set(PEERS))):
        if unknown := sorted(set(chosen) - known):
            parser.error(f"no such {kind}: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    if given.rounds < 1 or given.threads < 1:
        parser.error("--rounds and --threads start at 1")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the workers end with it
    run = Run(given.peers, given.only, given.rounds, given.threads)
    try:
        run.all()
    finally:  # what an interrupted run has measured is shown
        report = run.report()
        if given.json:
            given.json.write_text(run.as_json())
        print(report)


if __name__ == "__main__":
    main()
