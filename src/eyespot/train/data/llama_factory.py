"""LLaMA-Factory's sharegpt sets: dataset_info.json names files, and the keys and words of their rows.

Source: the LLaMA-Factory repository's data/README.md. Knows files at hand only, and neither its alpaca format nor
preferences nor tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eyespot.errors import EyespotError
from eyespot.tensorfile import read_json
from eyespot.train.data import fields
from eyespot.train.data.record import Place, Record, Turn, Video

COLUMNS = {"messages": "conversations", "system": "", "images": "", "videos": ""}
TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "system_tag": "system"}
REFUSED_TAGS = ("observation_tag", "function_tag")  # may be named: a row that has such a turn is refused
ENTRY = {"file_name", "formatting", "columns", "tags"}


@dataclass(frozen=True)
class Spec:
    """One entry of dataset_info.json. columns, tags: as COLUMNS and TAGS, with what the entry says instead."""

    name: str
    file: Path
    columns: Mapping[str, str]
    tags: Mapping[str, str]
    unused: tuple[str, ...]

    def read(self, row: Mapping[str, Any], place: Place, root: Path) -> Record:
        """The record of one row; pictures are looked for from `root`. BadRecord names the fault."""
        column, tag = self.columns, self.tags
        roles = {tag["system_tag"]: "system", tag["user_tag"]: "user", tag["assistant_tag"]: "assistant"}
        turns = fields.turns(row.get(column["messages"]), place, tag["role_tag"], tag["content_tag"], roles)
        system = row.get(column["system"])
        if system and turns[0].role != "system":
            if not isinstance(system, str):
                raise fields.bad(place, column["system"], system, "a text")
            turns.insert(0, Turn("system", system))
        return Record(
            tuple(turns),
            fields.paths(row.get(column["images"]), place, root, column["images"]),
            videos=tuple(map(Video, fields.paths(row.get(column["videos"]), place, root, column["videos"]))),
            id=fields.identity(row),
            place=place,
            unused=fields.unused(row, {"id", *column.values()}),
        )


def specs(info: Path, name: str | None = None) -> list[Spec]:
    """The sets of a dataset_info.json, or the one called `name`. EyespotError for one that cannot be read here."""
    raw = read_json(info)
    if not isinstance(raw, dict) or not raw:
        raise EyespotError(f"{info}: not a dataset_info.json", expected='{name: {"file_name": ...}}')
    if name is not None and name not in raw:
        raise EyespotError(f"{info}: no set '{name}'", expected=", ".join(map(str, raw)))
    return [_spec(info, key, raw[key]) for key in ([name] if name is not None else raw)]


def _spec(info: Path, name: str, raw: object) -> Spec:
    where = f"{info}: '{name}'"
    if not isinstance(raw, dict) or not isinstance(raw.get("file_name"), str):
        raise EyespotError(f"{where} names no file", found=raw, cause="a set on a hub: fetch it first")
    if raw.get("formatting", "alpaca") != "sharegpt":
        raise EyespotError(f"{where}: formatting", found=raw.get("formatting", "alpaca"), expected="sharegpt")
    if raw.get("ranking"):
        raise EyespotError(f"{where} holds preferences", expected="a set to imitate")
    return Spec(
        name,
        info.parent / raw["file_name"],
        _words(where, "columns", raw.get("columns"), COLUMNS),
        _words(where, "tags", raw.get("tags"), TAGS, REFUSED_TAGS),
        fields.unused(raw, ENTRY | {"ranking"}),
    )


def _words(
    where: str, key: str, raw: object, default: Mapping[str, str], ignored: tuple[str, ...] = ()
) -> Mapping[str, str]:
    given = {} if raw is None else raw
    if not isinstance(given, dict) or not all(isinstance(v, str) for v in given.values()):
        raise EyespotError(f"{where}: {key} is not a map of names", found=raw)
    if unknown := [k for k in given if k not in default and k not in ignored]:
        raise EyespotError(f"{where}: {key} that eyespot does not train on", found=unknown, expected=", ".join(default))
    return {**default, **{k: v for k, v in given.items() if k in default}}
