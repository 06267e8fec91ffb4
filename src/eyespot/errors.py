"""The one way eyespot says no: what was found, what was expected, the likely cause, and an exit code.

Ground floor: every folder may import this file; it imports nothing of ours.
"""

from __future__ import annotations

OK, FAILED, USAGE, UNSUPPORTED, GATE, INTERRUPTED = 0, 1, 2, 3, 4, 130  # exit codes of every verb


def one_line(text: object, limit: int = 400) -> str:
    """Hostile text stays on one printable line: control characters escaped, long text cut in the middle."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[-limit // 4 :]}"


class EyespotError(Exception):
    """A failure the user sees as one line. `exit_code` is what the process returns."""

    exit_code = FAILED

    def __init__(self, what: str, *, found: object = None, expected: object = None, cause: str | None = None) -> None:
        self.what, self.found, self.expected, self.cause = what, found, expected, cause
        parts = [one_line(what, 1_000)]  # may be a list of faults
        if found is not None:
            parts.append(f"found {one_line(found)}")
        if expected is not None:
            parts.append(f"expected {one_line(expected)}")
        if cause is not None:
            parts.append(f"likely cause: {one_line(cause)}")
        super().__init__("; ".join(parts))


class UsageError(EyespotError):
    """The command or call is off: a flag, a path, an argument (exit code 2)."""

    exit_code = USAGE


class UnsupportedModel(EyespotError):
    """The model is well-formed, but no family here builds it, or the bundle is of another format (exit code 3)."""

    exit_code = UNSUPPORTED


class MissingPackage(EyespotError):
    """An optional package is not installed: nothing is wrong with what was asked or with the data."""


class GateFailed(EyespotError):
    """An accuracy or latency gate the user set was not met (exit code 4)."""

    exit_code = GATE


class Cancelled(EyespotError):
    """The caller cancelled a running encode, prefill or decode (exit code 130)."""

    exit_code = INTERRUPTED


class Faults:
    """Collects faults, so that a user sees all of them at once and not one a run."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.items: list[str] = []

    def add(self, item: str) -> None:
        self.items.append(item)

    def raise_if_any(self, cause: str | None = None, shown: int = 8) -> None:
        """Raise EyespotError naming up to `shown` faults and the count of the rest."""
        if not self.items:
            return
        more = f" (+{len(self.items) - shown} more)" if len(self.items) > shown else ""
        count = f"{len(self.items)} fault{'s' if len(self.items) != 1 else ''}"
        raise EyespotError(f"{self.what}: {count}: {', '.join(self.items[:shown])}{more}", cause=cause)
