"""`eyespot distill RECIPE`: a stage that learns from a larger model. The work is in train/stages.py."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SET = typer.Option("--set", metavar="KEY=VALUE", help="A key of the recipe, instead of what it says; may be repeated.")
EXPORT = typer.Option("--export", help="Only write the newest checkpoint as a model, to OUT/model-STEP.")
SKIP_BAD = typer.Option("--skip-bad", help="Count bad records and take the next ones, as skip_bad: true does.")


def command(
    recipe: Annotated[
        Path, typer.Argument(help="A YAML file with a teacher_model_name_or_path; see docs/training.md.")
    ],
    set: Annotated[list[str] | None, SET] = None,
    export: Annotated[bool, EXPORT] = False,
    skip_bad: Annotated[bool, SKIP_BAD] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.")] = False,
) -> None:
    """Train a small model on what a larger one says: hidden states of its eyes, or its predictions."""
    from eyespot.cli.recipe import carry_out

    carry_out(recipe, set or (), skip_bad, export, as_json, teacher=True)
