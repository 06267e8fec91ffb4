"""LLaVA's rows: the same turns as InternVL's, in one JSON array; a picture stands where the text says and nowhere else.

Source: the LLaVA repository's finetuning data. Knows one row; files of them are lines.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eyespot.train.data import internvl
from eyespot.train.data.record import Place, Record


def read(row: Mapping[str, Any], place: Place, root: Path) -> Record:
    """The record of one row; pictures are looked for from `root`. BadRecord names the fault."""
    return internvl.plain(row, place, root)
