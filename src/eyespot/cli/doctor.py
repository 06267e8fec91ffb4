"""`eyespot doctor`: what this machine is, what the engine will use of it, and what is missing."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib import metadata
from typing import Annotated, Any

from eyespot import limits
from eyespot.cli.flags import flag

LIBRARIES = ("numpy", "tokenizers", "Pillow", "jinja2", "huggingface-hub", "typer", "rich", "gguf")


def command(
    as_json: Annotated[bool, flag("--json", help="All of it as JSON.")] = False,
) -> int:
    """Show this machine and what the engine will use of it. Exit code 1 when the engine does not load."""
    from eyespot.cli.options import line
    from eyespot.errors import FAILED, OK

    found = examine()
    if as_json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            line(f"{name:<12} {_text(value)}", sys.stdout)
    return OK if found["engine"]["error"] is None and found["threads"]["error"] is None else FAILED


def examine() -> dict[str, Any]:
    """Facts by name; sizes in bytes."""
    from eyespot import __version__

    return {
        "eyespot": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu(),
        "threads": _threads(),
        "memory": _memory(),
        "engine": _engine(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("EYESPOT_")},
        "executable": sys.executable,
    }


def _text(value: Any) -> str:
    if isinstance(value, dict) and value and all(isinstance(v, bool) for v in value.values()):
        return " ".join(k if v else f"({k})" for k, v in value.items())  # in brackets: not on this machine
    if isinstance(value, dict):
        shown = (f"{k}: {_text(v)}" for k, v in value.items() if v is not None)
        return ", ".join(shown) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value >= 1 << 24:
        return f"{value / (1 << 30):.1f} GiB"
    return str(value)


def _threads() -> dict[str, Any]:
    """Processors of the machine, those this process may use, and the threads of a run that names none."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    forced, error = os.environ.get("EYESPOT_THREADS", ""), None
    if forced and not (
        forced.isascii() and forced.isdigit() and len(forced) < 10 and 1 <= int(forced) <= limits.THREADS
    ):
        error = f"EYESPOT_THREADS={forced} cannot be honoured; expected 1 to {limits.THREADS}"
    chosen = None if error else int(forced or min(usable, limits.THREADS))
    return {"machine": os.cpu_count(), "usable": usable, "chosen": chosen, "error": error}


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("model name", "Model"):
                    return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> dict[str, int]:
    """Bytes in all and available, as far as this system tells."""
    try:
        with open("/proc/meminfo", encoding="ascii", errors="replace") as file:
            lines = dict(line.split(":", 1) for line in file if ":" in line)
        return {
            name: int(lines[key].split()[0]) << 10
            for name, key in (("total", "MemTotal"), ("available", "MemAvailable"))
            if key in lines
        }
    except (OSError, ValueError):
        return {}


def _engine() -> dict[str, Any]:
    """Instruction sets as name -> whether this machine runs them; chosen: the one a run will use."""
    try:
        from eyespot import _native
    except ImportError as error:
        return {"version": None, "isas": {}, "chosen": None, "error": f"{error}; build it with `make native`"}
    isas = dict(_native.isas())
    forced = os.environ.get("EYESPOT_ISA", "")
    best = [name for name, runs in isas.items() if runs]
    refused = None
    if forced and forced not in best:
        refused = f"EYESPOT_ISA={forced} cannot be honoured here; expected one of {', '.join(best)}"
    return {
        "version": _native.version(),
        "isas": isas,
        "chosen": None if refused else forced or (best[-1] if best else None),
        "error": refused,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
