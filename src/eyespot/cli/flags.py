"""Flags declared once and read twice: at once for a plain command line, by typer for help, completion and mistakes.

Importing typer and building its parser takes 130 ms, a quarter of what an answer's first token may take.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

Command = Callable[..., Any]


@dataclass(frozen=True)
class Flag:
    """What stands in Annotated[type, flag(...)] of a command's parameter. least: the smallest number it takes."""

    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    least: int | None = None


def flag(*names: str, help: str, metavar: str | None = None, least: int | None = None) -> Flag:
    return Flag(names, help, metavar, least)


def flags(command: Command) -> dict[str, tuple[Any, Flag]]:
    """Parameter -> its type and Flag; empty for a command declared in typer's own way."""
    hints = get_type_hints(command, include_extras=True)
    pairs = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Annotated}
    return {name: (pair[0], pair[1]) for name, pair in pairs.items() if isinstance(pair[1], Flag)}


def quick(command: Command, arguments: Sequence[str]) -> dict[str, Any] | None:
    """The keyword arguments of a plain, correct command line; None where typer shall have the word."""
    known = flags(command)
    by_name = {name: parameter for parameter, (_, flag) in known.items() for name in flag.names}
    values: dict[str, Any] = {}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if name not in by_name:
            return None
        parameter = by_name[name]
        kind, many = _kind(known[parameter][0])
        if kind is bool:
            if equals:
                return None
            values[parameter] = True
            continue
        try:
            given = kind(value if equals else next(words))
        except (ValueError, StopIteration):
            return None
        least = known[parameter][1].least
        if least is not None and given < least:
            return None
        if many:
            values.setdefault(parameter, []).append(given)
        else:
            values[parameter] = given
    needed = (n for n, p in inspect.signature(command).parameters.items() if p.default is inspect.Parameter.empty)
    return values if known and all(name in values for name in needed) else None


def _kind(hint: Any) -> tuple[Callable[..., Any], bool]:
    """The type that reads one value, and whether there may be several."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    return (get_args(hint)[0], True) if get_origin(hint) is list else (hint, False)


def for_typer(command: Command) -> Command:
    """The same command with typer's Options in the place of Flags."""
    known = flags(command)
    if not known:
        return command
    import typer

    @functools.wraps(command)
    def same(*args: Any, **kwargs: Any) -> Any:
        return command(*args, **kwargs)

    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        hint, given = known[name]
        shown = parameter.default not in (None, "", False, inspect.Parameter.empty)
        option = typer.Option(*given.names, help=given.help, metavar=given.metavar, min=given.least, show_default=shown)
        parameters.append(parameter.replace(annotation=Annotated[hint, option]))
    del same.__wrapped__  # or typer would look through to the Flags
    same.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    same.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return same
