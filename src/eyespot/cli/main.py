"""The command `eyespot`: finds the verb, imports its module and no other's, turns failures into one line and a code.

Knows the verbs' names; what they do stands in one module each, in a function `command` annotated with typer's Options
or with our Flags, which may return an exit code.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from eyespot.cli.flags import Command, for_typer, quick
from eyespot.errors import FAILED, INTERRUPTED, OK, EyespotError, UsageError

# verb -> (module under eyespot.cli, help)
VERBS = {
    "demo": ("demo", "See it work: compile the model that comes along, and ask it about a picture."),
    "compile": ("compile", "Compile a checkpoint into a bundle."),
    "run": ("run", "Answer one prompt, about text and pictures."),
    "chat": ("chat", "Talk with a model, turn by turn."),
    "bench": ("bench", "Measure how fast a bundle runs, beside what this machine can do."),
    "train": ("train", "Train a model by a recipe, or check training data."),
    "distill": ("distill", "Train a small model on what a larger one says."),
    "convert-data": ("convert_data", "Turn annotations and other formats into training data."),
    "eval": ("eval", "Score models on a set of questions, by task."),
    "scenes": ("scenes", "Draw pictures with questions and exact answers."),
    "inspect": ("inspect", "Show what is in a bundle or a checkpoint."),
    "doctor": ("doctor", "Show this machine and what the engine will use of it."),
}


def main(argv: list[str] | None = None) -> None:
    """Runs the command line and exits. argv: without the program's name; None = this process's."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = arguments[:1] == ["--debug"]  # of a verb it is a flag
    _open_streams()
    try:
        sys.exit(_exit_code(functools.partial(_run, arguments[debug:], debug), debug))
    finally:
        _flush_streams()


def _run(arguments: list[str], debug: bool) -> int:
    """Does what the words ask; exits by itself where typer has the word."""
    verb = _verb(arguments)
    command = importlib.import_module(f"eyespot.cli.{VERBS[verb][0]}").command if verb else None
    values = quick(command, arguments[1:]) if command is not None and arguments[:1] == [verb] else None
    if command is None or values is None:
        return _app(verb, command, debug)(arguments, prog_name="eyespot") or OK
    return _guarded(command, debug, values)


def _open_streams() -> None:
    """A stream that the caller closed leads nowhere; no other fails on a character its encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open to the end
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _flush_streams() -> None:
    """What cannot be written was told; the exit of Python must not tell it again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def report(error: EyespotError, debug: bool = False) -> int:
    """Prints the one line, or the traceback; returns the exit code."""
    with suppress(OSError):
        if debug:
            traceback.print_exception(error)
        else:
            print(f"eyespot: error: {error}", file=sys.stderr)
    return error.exit_code


def _verb(arguments: list[str]) -> str | None:
    """The verb of the command line, or of the one that a shell wants completed. UsageError when there is none such."""
    completing = "_EYESPOT_COMPLETE" in os.environ
    words = os.environ.get("COMP_WORDS", "").split()[1:] or os.environ.get("_TYPER_COMPLETE_ARGS", "").split()[1:]
    verb = next((word for word in (words if completing else arguments) if not word.startswith("-")), None)
    if verb is None or verb in VERBS:
        return verb
    if completing:
        return None
    import difflib

    near = difflib.get_close_matches(verb, VERBS, n=1)
    raise UsageError(
        f"no verb '{verb}'", expected=", ".join(VERBS), cause=f"did you mean '{near[0]}'?" if near else None
    )


def _app(chosen: str | None, command: Command | None, debug: bool) -> Command:
    """The whole command line for typer; of the verbs only the chosen one is more than a name."""
    import typer

    app = typer.Typer(
        help="Pocket vision-language models, from a checkpoint to an answer on a small device.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=False)
    def top(
        version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True, callback=_version),
        debug: bool = typer.Option(False, "--debug", help="Show the traceback of a failure."),
    ) -> None: ...

    def finish(**values: Any) -> None:
        assert command is not None
        raise typer.Exit(_guarded(command, debug, values))

    for verb, (_, help) in VERBS.items():
        if verb == chosen and command is not None:
            app.command(verb, short_help=help)(for_typer(command, finish))
        else:
            app.command(verb, help=help)(_absent)
    return app


def _absent() -> None:
    """Stands in the list of verbs for one that was not chosen."""


def _version(wanted: bool) -> None:
    if wanted:
        import typer

        from eyespot import __version__

        print(f"eyespot {__version__}")
        raise typer.Exit


def _guarded(command: Command, debug: bool, values: dict[str, Any]) -> int:
    """The exit code of a command that got these flags."""
    debug = values.pop("debug", False) or debug
    return _exit_code(functools.partial(command, **values), debug)


def _exit_code(call: Callable[[], int | None], debug: bool) -> int:
    """Runs a command; whichever way it ends becomes an exit code."""
    try:
        code = call()
        sys.stdout.flush()  # so that a closed pipe or a full disk is noticed here
        return code or OK
    except EyespotError as error:
        return report(error, debug)
    except KeyboardInterrupt:
        print("\neyespot: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `eyespot run ... | head`: the reader has had enough
        return FAILED
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        return report(EyespotError(f"{where}{error.strerror or error}"), debug)
    except MemoryError:
        return report(EyespotError("not enough memory"), debug)
