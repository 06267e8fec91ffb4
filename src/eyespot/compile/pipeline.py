"""The compiler: one visible list of passes over a Job, from a checkpoint to a sealed bundle.

After every pass the Program verifies and can be printed. Knows the order; passes.py knows the work.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from math import prod
from pathlib import Path

from eyespot.bundle.write import check_target
from eyespot.compile import passes
from eyespot.compile.job import CheckpointLike, CompileResult, Job, OpenEngine, Options, Progress, SchemeTotal
from eyespot.errors import UsageError
from eyespot.program import Program, dump, verify
from eyespot.quantize.formats import SCHEMES, stored_bytes

PASSES: dict[str, Callable[[Job], None]] = {
    "options": passes.read_options,
    "build": passes.build,
    "weights": passes.check_weights,
    "recipe": passes.choose_schemes,
    "schedule": passes.schedule,
    "settings": passes.settle,
    "write": passes.write,
    "check": passes.check,
    "seal": passes.seal,
}
DEFAULTS = Options()
DUMPABLE = ("build", "weights", "recipe", "schedule")  # passes that change or confirm the Program


def compile_model(
    source: CheckpointLike,
    out: Path | str,
    options: Options = DEFAULTS,
    open_engine: OpenEngine | None = None,
    progress: Progress | None = None,
) -> CompileResult:
    """Compiles `source` to a bundle in directory `out`, which appears whole or stays as it was.

    open_engine: opens a bundle directory for the checks. progress: called with elements done, of all; from any thread.
    Errors: UsageError, UnsupportedModel, GateFailed, EyespotError, each one line; then nothing is written.
    """
    started = time.perf_counter()
    check_target(Path(out))
    with ExitStack() as stack:
        job = Job(source, Path(out), options, stack, open_engine, progress)
        _run(job, "seal")
        return _result(job, time.perf_counter() - started)


def dump_after(source: CheckpointLike, options: Options, name: str) -> str:
    """The Program, and the memory plan once there is one, as text, as they stand after pass `name`. Writes nothing."""
    if name not in DUMPABLE:
        raise UsageError("no such pass to dump", found=name, expected=", ".join(DUMPABLE))
    with ExitStack() as stack:
        job = Job(source, Path(), replace(options, check="none", min_cosine=None), stack)
        _run(job, name)
        text = dump(job.program)
        return f"{text}\nmemory {json.dumps(job.memory.to_json(), indent=1)}" if name == "schedule" else text


def _run(job: Job, last: str) -> None:
    for name, step in PASSES.items():
        step(job)
        if name != "options":
            verify(job.program)
        if name == last:
            return


def _result(job: Job, seconds: float) -> CompileResult:
    scale = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return CompileResult(
        path=job.bundle.out,
        family=job.program.family,
        schemes=scheme_totals(job.program),
        bundle_bytes=sum(entry["bytes"] for entry in job.bundle.files.values()),
        memory=job.memory,
        report=job.report,
        warnings=tuple(job.warnings),
        seconds=seconds,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale,
    )


def scheme_totals(program: Program) -> dict[str, SchemeTotal]:
    """Scheme -> what its weights come to, the largest share first."""
    totals: dict[str, SchemeTotal] = {}
    for weight in program.weights.values():
        old = totals.get(weight.scheme, SchemeTotal(0, 0, 0))
        size = stored_bytes(weight.shape, SCHEMES[weight.scheme])
        totals[weight.scheme] = SchemeTotal(old.weights + 1, old.elements + prod(weight.shape), old.bytes + size)
    return dict(sorted(totals.items(), key=lambda item: -item[1].bytes))
