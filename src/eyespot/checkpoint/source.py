"""From what a user types (a directory, a file, a hub id) to an open Checkpoint.

Knows where files lie and which to prefer; their contents are read by shards.py, gguf_model.py and tokenizer.py.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from eyespot import limits
from eyespot.checkpoint import gguf_model, shards, tokenizer
from eyespot.checkpoint.checkpoint import Checkpoint
from eyespot.errors import EyespotError, UsageError
from eyespot.tensorfile import read_json, reading

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(?:@([\w./-]{1,200}))?", re.ASCII)
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt"]
HUB_NOT = ["*/*", "consolidated*", "adapter_*"]  # subfolders repeat the weights for other runtimes
CONFIG_BYTES = limits.MIB - 1  # real ones take 1 to 30 KiB; below 1 MiB parse_json bounds the depth too
WANTED = "model.safetensors, or model.safetensors.index.json and its shards, or one *.safetensors, or one *.gguf"


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Opens a directory of safetensors, one .safetensors or .gguf file, or a hub id `org/name` or `org/name@revision`.

    Reads headers and side files only. Raises UsageError when nothing is there, UnsupportedModel for a GGUF
    architecture without a mapping, EyespotError for any fault in the files.
    """
    if not str(source).strip():
        raise UsageError("no checkpoint given", expected="a directory, a .gguf file, or a hub id org/name")
    path = Path(source)
    try:
        if path.is_file():
            return _open_file(path)
        if path.is_dir():
            return _open_directory(path)
        match = HUB_ID.fullmatch(str(source))
        if match is None:
            raise UsageError(
                f"{source}: no such file or directory", expected="a path that exists, or a hub id org/name"
            )
        snapshot = _snapshot(match[1], match[2])  # a directory named by its commit
        return replace(_open_directory(snapshot), name=f"{match[1]}@{match[2] or snapshot.name}")
    except OSError as error:
        raise UsageError(f"{source}: cannot be read ({error.strerror})") from None


def _open_file(path: Path) -> Checkpoint:
    with reading(path) as file:
        magic = file.read(4)
    if magic == b"GGUF":
        return gguf_model.open_gguf(path)
    if path.suffix == ".safetensors":
        return _safetensors(path.parent, path.name)
    raise UsageError(
        f"{path.name}: not a checkpoint", found=f"first bytes {magic!r}", expected="*.safetensors or a GGUF file"
    )


def _open_directory(path: Path) -> Checkpoint:
    names = sorted(entry.name for entry in path.iterdir())
    single = [n for n in names if n.endswith(".safetensors")]
    ggufs = [n for n in names if n.endswith(".gguf")]
    for name in ("model.safetensors", shards.INDEX):
        if name in names:
            return _safetensors(path, name)
    if len(single) == 1:
        return _safetensors(path, single[0])
    if single:
        raise EyespotError(
            f"{path}: several safetensors files and no {shards.INDEX}", found=", ".join(single[:8]), expected=WANTED
        )
    if len(ggufs) == 1:
        return _open_file(path / ggufs[0])
    if ggufs:
        raise UsageError(f"{path}: several GGUF files", found=", ".join(ggufs[:8]), expected="the path of one of them")
    pickled = any(n.endswith((".bin", ".pt", ".pth")) for n in names)
    raise EyespotError(
        f"{path}: no weights", found=", ".join(names[:8]) or "an empty directory", expected=WANTED,
        cause="the weights are pickles, which eyespot does not open" if pickled else None,
    )  # fmt: skip


def _safetensors(directory: Path, name: str) -> Checkpoint:
    tensors, storage, warnings = shards.open_shards(directory, name)
    config = _config(directory / "config.json")
    return Checkpoint(
        directory,
        directory.absolute().name,
        "safetensors",
        config,
        tensors,
        warnings,
        storage,
        lambda: tokenizer.directory_files(directory, config),
    )


def _config(path: Path) -> dict[str, Any]:
    config = read_json(path, CONFIG_BYTES)
    if not isinstance(config, dict):
        raise EyespotError(f"{path.name}: not an object", found=type(config).__name__)
    return config


def _snapshot(repo: str, revision: str | None) -> Path:
    """The hub's snapshot of the files eyespot reads; HF_HOME and HF_HUB_OFFLINE are honoured by the library."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_NOT))
    except (
        Exception
    ) as error:  # the library's error tree changes from version to version, and it wraps two HTTP clients
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"{repo}{'@' + revision if revision else ''}: no such path, and the hub does not give it",
            found=f"{type(error).__name__}: {reason}",
            cause="a typing error, no network, HF_HUB_OFFLINE without a cached copy, or a gated model without a token",
        ) from None
