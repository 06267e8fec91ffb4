"""Flags declared once and read twice: at once for a plain command line, by typer for help, completion and mistakes.

Importing typer and building its parser takes 130 ms, a quarter of what an answer's first token may take.
"""

from __future__ import annotations

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


DEBUG = flag("--debug", help="Show the traceback of a failure.")  # of every verb


def flags(command: Command) -> dict[str, tuple[Any, Flag]]:
    """Parameter -> its type and Flag; empty for a command declared in typer's own way."""
    hints = get_type_hints(command, include_extras=True)
    pairs = {name: get_args(hint) for name, hint in hints.items() if get_origin(hint) is Annotated}
    return {name: (pair[0], pair[1]) for name, pair in pairs.items() if isinstance(pair[1], Flag)}


def quick(command: Command, arguments: Sequence[str]) -> dict[str, Any] | None:
    """The keyword arguments, `debug` too, of a plain, correct command line; None where typer shall have the word."""
    known = flags(command)
    if not known:
        return None
    known["debug"] = bool, DEBUG
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
    return values if all(name in values for name in needed) else None


def _kind(hint: Any) -> tuple[Callable[..., Any], bool]:
    """The type that reads one value, and whether there may be several."""
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    return (get_args(hint)[0], True) if get_origin(hint) is list else (hint, False)


def for_typer(command: Command, call: Command) -> Command:
    """`call` with the name, help and parameters of `command`: typer's Options in the place of Flags, and `debug`."""
    import typer

    def same(**values: Any) -> Any:
        return call(**values)

    def option(hint: Any, flag: Flag, shown: bool) -> Any:
        given = typer.Option(*flag.names, help=flag.help, metavar=flag.metavar, min=flag.least, show_default=shown)
        return Annotated[hint, given]

    known, parameters = flags(command), []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if name in known:
            shown = parameter.default not in (None, "", False, inspect.Parameter.empty)
            parameter = parameter.replace(annotation=option(*known[name], shown))
        parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    debug = inspect.Parameter(
        "debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=option(bool, DEBUG, False)
    )
    same.__name__, same.__doc__ = command.__name__, command.__doc__
    same.__signature__ = inspect.Signature([*parameters, debug])  # type: ignore[attr-defined]
    same.__annotations__ = {parameter.name: parameter.annotation for parameter in [*parameters, debug]}
    return same
