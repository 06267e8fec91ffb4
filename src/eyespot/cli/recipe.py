"""Carries out a training recipe for the verbs `train` and `distill`: progress on stderr, a summary."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eyespot.cli.extras import needs
from eyespot.errors import UsageError

if TYPE_CHECKING:
    from eyespot.train.loop import Told, Watch
    from eyespot.train.recipe import Recipe
    from eyespot.train.stages import Result


def carry_out(path: Path, overrides: Sequence[str], skip_bad: bool, export: bool, as_json: bool, teacher: bool) -> None:
    """Runs the recipe at `path`, or only exports its newest checkpoint. teacher: whether it must have one, or must not.

    UsageError when it does not fit the verb.
    """
    with needs("train"):
        from eyespot.train.recipe import read_recipe

        recipe = read_recipe(path, [*overrides, "skip_bad=true"] if skip_bad else overrides)
        _fits(path, recipe, teacher)
        from eyespot.train.stages import export_checkpoint, newest, run
    if export:
        checkpoint = newest(recipe)
        out = recipe.output_dir / f"model-{checkpoint.name.removeprefix('checkpoint-')}"
        export_checkpoint(recipe, checkpoint, out)
        print(json.dumps({"model": str(out)}) if as_json else out)
        return
    with _watching(as_json, recipe.logging_steps) as watch:
        result = run(recipe, watch)
    if result is not None:
        if as_json:
            print(json.dumps(_summary(result)))
        else:
            _show(result)


def _fits(path: Path, recipe: Recipe, teacher: bool) -> None:
    if (recipe.teacher_model_name_or_path is not None) != teacher:
        verb, other = ("distill", "train") if teacher else ("train", "distill")
        what = "no teacher_model_name_or_path" if teacher else "a teacher_model_name_or_path"
        raise UsageError(f"{path} has {what}, so it is not for `eyespot {verb}`", expected=f"eyespot {other} {path}")


@contextmanager
def _watching(quiet: bool, every: int) -> Iterator[Watch]:
    """A bar with loss, tokens/s and time left when somebody is looking; a line every `every` steps elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield (lambda told: None) if quiet else (lambda told: _line(told, every))
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def show(told: Told) -> None:
            bar.update(task, completed=told.step, total=told.steps, description=_words(told))

        yield show


def _line(told: Told, every: int) -> None:
    if told.step % every == 0 or told.step == told.steps or told.note:
        note = f", {told.note}" if told.note else ""
        print(f"step {told.step}/{told.steps}: {_words(told)}{note}", file=sys.stderr, flush=True)


def _words(told: Told) -> str:
    return f"loss {told.loss:.4f}, {told.tokens_per_second:.0f} tokens/s, {timedelta(seconds=round(told.left))} left"


def _summary(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = {"model": str(result.model), **(result.made or {})}
    if result.ended is not None:
        ended = result.ended
        found |= {"checkpoint": str(ended.checkpoint), "steps": ended.steps, "loss": ended.loss, "tokens": ended.tokens}
        found |= {"seconds": ended.seconds, "skipped": len(ended.skipped)}
    return found | {"plot": None if result.plot is None else str(result.plot)}


def _show(result: Result) -> None:
    from eyespot.cli.options import line

    if result.made is not None:
        print(f"{result.made['parameters'] / 1e6:.2f} M parameters, vocabulary of {result.made['vocabulary']}")
        if left_out := result.made.get("skipped"):
            print(f"eyespot: warning: {left_out} bad records were left out", file=sys.stderr)
    if (ended := result.ended) is not None:
        for skipped in ended.skipped[:8]:
            line(f"eyespot: warning: left out: {skipped}", sys.stderr)
        if len(ended.skipped) > 8:
            print(f"eyespot: warning: {len(ended.skipped)} bad records were left out in all", file=sys.stderr)
        took = timedelta(seconds=round(ended.seconds))
        print(f"{ended.steps} steps, {ended.tokens} tokens in {took}, loss {ended.loss:.4f}")
    if result.plot is not None:
        print(f"loss: {result.plot}")
    print(f"model: {result.model}")
