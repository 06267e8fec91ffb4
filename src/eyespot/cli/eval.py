"""`eyespot eval`: bundles and float models on a set of questions, side by side. Opens them; evaluate/ does the rest."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from eyespot.evaluate import Report, Row

Generate = Callable[[list[dict[str, Any]]], Any]


def command(
    model: Annotated[
        list[str], typer.Argument(help="A bundle, or a checkpoint as float model; several stand side by side.")
    ],
    data: Annotated[Path, typer.Option("--data", help="A jsonl of questions, or a directory with one.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Directory for answers, report and failures; a run goes on from there.")
    ] = Path("eval"),
    task: Annotated[list[str] | None, typer.Option(help="Only this task; may be given again.")] = None,
    scheme: Annotated[
        list[str] | None, typer.Option(help="Compile the checkpoints so too, such as W8A8-g32; may be given again.")
    ] = None,
    limit: Annotated[int, typer.Option(min=0, help="Most questions of a task; 0: all.")] = 0,
    circular: Annotated[bool, typer.Option(help="Multiple choice counts only if right in every rotation.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a plot by task, such as scores.png.")] = None,
    failures: Annotated[int, typer.Option(min=0, help="Most wrong answers on a model's page of pictures.")] = 36,
    max_tokens: Annotated[int, typer.Option("-n", "--max-tokens", min=1, help="Most tokens of an answer.")] = 64,
    threads: Annotated[int, typer.Option("-t", "--threads", min=0, help="0: as config.json says.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on stdout.")] = False,
) -> None:
    """Score models on a set of questions, by task."""
    from eyespot.bundle.read import MANIFEST
    from eyespot.checkpoint import local
    from eyespot.cli.progress import progress
    from eyespot.errors import UsageError
    from eyespot.evaluate import evaluate, load_set, pictures
    from eyespot.evaluate.report import report

    samples = load_set(data, task or (), limit, circular)
    if scheme and all(os.path.isfile(local(m) / MANIFEST) for m in model):
        raise UsageError("--scheme compiles checkpoints", found="bundles alone", expected="a checkpoint among them")
    contestants = [c for m in model for c in _contestants(m, scheme or (), out)]
    names = [name for name, _ in contestants]
    if len(set(names)) < len(names):
        raise UsageError("two models have the same name", found=", ".join(names), cause="their answers would mix")
    reports = []
    for name, path in contestants:
        with opened(path, max_tokens, threads) as (generate, identity), progress(name, len(samples), as_json) as done:
            answers = out / name / f"{data.stem}.jsonl"
            results = evaluate(generate, samples, answers, identity, done)
        reports.append(report(name, samples, results))
        shown = pictures.failures(samples, results, answers.with_suffix(".png"), failures) if failures else 0
        if shown:
            print(f"eyespot: {shown} wrong answers of {name}: {answers.with_suffix('.png')}", file=sys.stderr)
    if plot is not None:
        pictures.plot(reports, plot)
    found = {"data": str(data), "questions": len(samples), "models": [r.to_json() for r in reports]}
    (out / f"{data.stem}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    if as_json:
        print(json.dumps(found))
    else:
        show(reports, f"{data}: {len(samples)} questions, score in % and its 95 % interval")


def _contestants(model: str, schemes: Sequence[str], out: Path) -> Iterator[tuple[str, Path]]:
    """Name and place of a bundle, or of a checkpoint and the bundles of it, which are compiled below `out`. The float
    model is the checkpoint itself where transformers and a training know its layout, else a bundle of float32."""
    from eyespot import families
    from eyespot.checkpoint import local, open_checkpoint
    from eyespot.compile import Options, compile_model

    path = local(model)
    whole = path.resolve()
    name = whole.parent.name if whole.name == "model" else whole.name  # a stage leaves OUTPUT_DIR/model
    if _ready(path):
        yield name, path
        return
    checkpoint = open_checkpoint(path)
    options = {scheme: Options(scheme=scheme) for scheme in schemes}
    if families.is_trained(checkpoint.config):
        yield f"{name}-float", path
    else:
        options = {"float": Options(scheme="f32", vision_scheme="f32", kv_cache="f32"), **options}
    for scheme, chosen in options.items():
        bundle = out / f"{name}-{scheme}" / "bundle"
        compile_model(checkpoint, bundle, chosen)
        yield f"{name}-{scheme}", bundle


def _ready(path: Path) -> bool:
    """Whether it is a bundle, or nothing at all: load() tells what is wrong with that."""
    from eyespot.bundle.read import MANIFEST

    return os.path.isfile(path / MANIFEST) or not os.path.exists(path)


@contextmanager
def opened(path: Path, max_tokens: int, threads: int) -> Iterator[tuple[Generate, str]]:
    """generate(messages) of the model at `path`, at temperature 0, and what tells its answers from another's."""
    if not _ready(path):
        from eyespot.checkpoint import open_checkpoint
        from eyespot.cli.extras import needs

        with needs("train"):
            from eyespot.train.answer import open_float
        checkpoint = open_checkpoint(path)
        digest = hashlib.sha256(repr(sorted(checkpoint.files.items())).encode())
        for name in sorted(checkpoint.tensors):
            digest.update(checkpoint.read(name).tobytes())
        yield open_float(path, max_tokens), f"{digest.hexdigest()[:16]} float max_tokens={max_tokens}"
        return
    from eyespot.run.model import load

    with load(path, threads) as model:
        rule = model.bundle.settings.image
        placeholder = "" if rule is None else rule.placeholder

        def generate(messages: list[dict[str, Any]]) -> Any:
            # As one text with placeholders, so that the prompt is to the letter what a training row would be.
            parts = messages[-1]["content"]
            text = "".join(p["text"] if p["type"] == "text" else placeholder for p in parts)
            shown = [p["image"] for p in parts if p["type"] == "image"]
            return model.generate([{"role": "user", "content": text}], shown, max_tokens=max_tokens, temperature=0.0)

        bundle = model.bundle
        parts = sorted((name, file.sha256) for name, file in bundle.files.items())
        seen = repr((parts, bundle.settings.image, bundle.settings.sampling))
        yield generate, f"{hashlib.sha256(seen.encode()).hexdigest()[:16]} max_tokens={max_tokens}"


def show(reports: Sequence[Report], title: str) -> None:
    """One table, a column for each model."""
    from eyespot.cli.table import show_table

    rows = []
    for i, row in enumerate(reports[0].rows):
        cells = [_cell(r.rows[i]) for r in reports]
        rows.append((row.task, row.metric, row.count, *cells))
    show_table(title, ("task", "metric", "questions", *(r.model for r in reports)), rows)
    for r in reports:
        if refused := r.rows[-1].errors:
            print(f"eyespot: warning: {r.model} refused {refused} questions, which score 0", file=sys.stderr)


def _cell(row: Row) -> str:
    return f"{100 * row.score:.1f} ({100 * row.low:.0f}-{100 * row.high:.0f})"
