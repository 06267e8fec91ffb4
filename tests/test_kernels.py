"""The C++ programs, built here if they are not: every kernel passes its test, eyespot-run keeps its word."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import handmade
from eyespot import _native

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "native"


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of eyespot-run and eyespot-kernel-test, built from the sources as they stand."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    assert cmake is not None, "cmake is missing: pip install 'eyespot[test]' brings it"
    if not (BUILD / "CMakeCache.txt").is_file():
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"] if ninja else []
        configure = [cmake, "-S", ROOT, "-B", BUILD, f"-DPython_EXECUTABLE={sys.executable}", *generator]
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    targets = ["eyespot-run", "eyespot-kernel-test"]
    built = subprocess.run([cmake, "--build", BUILD, "--target", *targets], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return BUILD


def test_every_kernel(programs: Path) -> None:
    done = subprocess.run([programs / "eyespot-kernel-test"], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout
    passed, failed = (int(word) for word in lines[-1].split() if word.isdecimal())
    assert failed == 0
    executed = {line.split(":")[0] for line in lines if line.endswith(": executed")}
    assert executed == {name for name, runs in _native.isas().items() if runs}
    assert passed > 40_000 * len(executed)  # every kernel of every set at every size, not an empty list


def run(programs: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [programs / "eyespot-run", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_runner_decodes_greedily(programs: Path, tmp_path: Path) -> None:
    made = handmade.write(tmp_path / "b", handmade.with_schemes(handmade.program(eyes=False), "f32"))
    reference = made.reference()
    logits, expected = reference.prefill([3, 1, 4, 1, 5])[0], []
    for _ in range(6):
        expected.append(int(np.argmax(logits)))
        logits = reference.decode(expected[-1])
    done = run(programs, "-m", made.path, "--tokens", "3,1,4,1,5", "-n", 6, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == expected
    plain = run(programs, "-m", made.path, "--tokens", "3,1,4,1,5", "-n", 6, "-t", 3)
    assert plain.stdout.strip() == ",".join(map(str, expected))
    full = run(programs, "-m", made.path, "--tokens", "3,1,4", "-n", 1000, "-c", 8)  # stops where the context ends
    assert len(full.stdout.split(",")) == 6


def hears(pid: int, number: signal.Signals) -> bool:
    """The process has a handler of its own for the signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def test_runner_ends_at_every_ctrl_c(programs: Path, tmp_path: Path) -> None:
    """Wherever it falls: most of a step is the last block here, after the last look of that call at the request."""
    program = handmade.with_schemes(handmade.program(eyes=False, vocab=1 << 14), "f32")
    made = handmade.write(tmp_path / "b", program, ctx=1 << 15)
    command = [programs / "eyespot-run", "-m", made.path, "--tokens", "3,1,4", "-n", "32000", "-t", "1"]
    rng = random.Random()
    for _ in range(20):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not hears(process.pid, signal.SIGINT):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=5)  # all of it would take half a minute
        assert (process.returncode, out, errors) == (130, "", "eyespot-run: interrupted\n")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--help"], 0, "usage: eyespot-run"),
        (["--version"], 0, _native.version()),
        ([], 2, "-m BUNDLE is missing"),
        (["-m", "nowhere"], 2, "--tokens is missing"),
        (["-m", "nowhere", "--tokens", "1,x"], 2, "whole number"),
        (["-m", "nowhere", "--tokens", "1,"], 2, "whole number"),
        (["-m", "nowhere", "--tokens", "99999999999"], 2, "whole number"),
        (["-m", "nowhere", "--tokens", "1", "--frob"], 2, "--frob"),
        (["-m", "nowhere", "--tokens", "1", "-t"], 2, "needs a value"),
        (["-m", "nowhere", "--tokens", "1"], 1, "manifest.json"),
        (["-m", "nowhere", "--tokens", "1", "--isa", "mmx"], 2, "expected one of scalar"),
    ],
)
def test_runner_exit_codes(programs: Path, arguments: list[str], status: int, words: str) -> None:
    done = run(programs, *arguments)
    assert done.returncode == status
    assert words in done.stdout + done.stderr
    assert status == 0 or done.stderr.count("\n") == 1
