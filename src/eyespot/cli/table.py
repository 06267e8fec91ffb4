"""Tables for the eye on a terminal, aligned columns for a pipe. Knows rows of text only."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def show_table(title: str, headers: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints rows under headers to stdout; a column whose cells are all numbers is flushed right."""
    cells = [[str(cell) for cell in row] for row in rows]
    right = [
        bool(rows) and all(isinstance(row[i], int | float) or _quantity(row[i]) for row in rows)
        for i in range(len(headers))
    ]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        from eyespot.cli.options import CONTROLS

        table = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
        for header, is_right in zip(headers, right, strict=True):
            table.add_column(header, justify="right" if is_right else "left")
        for row in cells:
            table.add_row(*(Text(cell.translate(CONTROLS)) for cell in row))  # names from files are not markup
        Console().print(table)
        return
    widths = [max(len(line[i]) for line in [list(headers), *cells]) for i in range(len(headers))]
    print(title)
    for line in [list(headers), *cells]:
        columns = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        print("  " + "  ".join(columns).rstrip())


def _quantity(cell: object) -> bool:
    return isinstance(cell, str) and cell[:1].isdigit()


def count(n: int) -> str:
    """Elements as a person reads them: 1.2 M, 3.4 K."""
    return f"{n / 1e6:.1f} M" if n >= 1e6 else f"{n / 1e3:.1f} K"


def size(n: int) -> str:
    """Bytes as a person reads them: 123 B, 56.7 MiB."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if n >= unit:
            return f"{n / unit:.1f} {name}"
    return f"{n} B"
