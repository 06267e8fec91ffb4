"""What a verb needs beyond the base install, and what is said where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from eyespot.errors import UsageError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """For the imports in its body: a package that is not installed becomes a UsageError that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UsageError(f"the package {error.name} is missing", cause=f"pip install eyespot[{extra}]") from None
