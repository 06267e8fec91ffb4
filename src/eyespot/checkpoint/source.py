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

HUB_ID = re.compile(  # org/name, @revision, :file.gguf, whose folders may not begin with a dot
    r"([A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96})(?:@([\w./-]{1,200}))?(?::((?:[\w-][\w.-]*/){0,4}[\w-][\w.-]*\.gguf))?",
    re.ASCII,
)
EMBEDDED = {"eyespot-nano": Path(__file__).parents[1] / "models" / "eyespot-nano"}  # come with the package
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "merges.txt"]
HUB_NOT = ["*/*", "consolidated*", "adapter_*"]  # subfolders repeat the weights for other runtimes
CONFIG_BYTES = limits.MIB - 1  # real ones take 1 to 30 KiB; below 1 MiB parse_json bounds the depth too
WANTED = "model.safetensors, or model.safetensors.index.json and its shards, or one *.safetensors, or one *.gguf"


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Opens a directory of safetensors, one .safetensors or .gguf file, a model that comes with the package
    (`eyespot-nano`), or a hub id: `org/name`, then `@revision` and `:file.gguf` as needed.

    Reads headers and side files only. Raises UsageError when nothing is there, UnsupportedModel for a GGUF
    architecture without a mapping, EyespotError for any fault in the files.
    """
    if not str(source).strip():
        raise UsageError("no checkpoint given", expected="a directory, a .gguf file, or a hub id org/name")
    path = local(source)
    try:
        if path.is_file():
            return _open_file(path)
        if path.is_dir():
            return _open_directory(path)
        match = HUB_ID.fullmatch(str(source))
        if match is None:
            raise UsageError(
                f"{source}: no such file or directory",
                expected=f"a path that exists, a hub id org/name, or {', '.join(EMBEDDED)}",
            )
        return _open_hub(*match.groups())
    except OSError as error:
        raise UsageError(f"{source}: cannot be read ({error.strerror})") from None


def local(source: str | Path) -> Path:
    """Where an embedded model lies, unless something of its name lies here; any other source as a path."""
    path, embedded = Path(source), EMBEDDED.get(str(source))
    return path if embedded is None or path.exists() else embedded


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
    raise _no_weights(str(path), names)


def _no_weights(where: str, names: list[str]) -> EyespotError:
    pickled = any(n.endswith((".bin", ".pt", ".pth")) for n in names)
    return EyespotError(
        f"{where}: no weights", found=", ".join(names[:8]) or "an empty directory", expected=WANTED,
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


def _open_hub(repo: str, revision: str | None, file: str | None) -> Checkpoint:
    """The repository's safetensors; or its GGUF file `file`, or the only one it has where there are no safetensors."""
    if file is None:
        snapshot = _from_hub(repo, revision)  # named by its commit; not there when no file was wanted
        if any(snapshot.glob("*.safetensors")):
            return replace(_open_directory(snapshot), name=f"{repo}@{revision or snapshot.name}")
        names = _hub_names(repo, snapshot)
        ggufs = [name for name in names if name.endswith(".gguf")]
        if not ggufs:
            raise _no_weights(repo, names)
        if len(ggufs) > 1:
            raise UsageError(
                f"{repo}: several GGUF files and no safetensors", found=", ".join(ggufs[:8]),
                expected=f"one of them: {repo}{'@' + revision if revision else ''}:{ggufs[0]}",
            )  # fmt: skip
        file = ggufs[0]
    path = _from_hub(repo, revision, file)
    commit = path.parents[file.count("/")].name
    return replace(_open_file(path), name=f"{repo}@{revision or commit}:{file}")


def _hub_names(repo: str, snapshot: Path) -> list[str]:
    """All files of the repository; those in the cache where the hub cannot be asked."""
    from huggingface_hub import list_repo_files

    try:
        return sorted(list_repo_files(repo, revision=snapshot.name))
    except Exception:  # see _from_hub
        return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())


def _from_hub(repo: str, revision: str | None, file: str | None = None) -> Path:
    """`file` of a hub's repository, or the directory of all that eyespot reads; HF_HOME and HF_HUB_OFFLINE hold."""
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if file is not None:
            return Path(hf_hub_download(repo, file, revision=revision))
        return Path(snapshot_download(repo, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=HUB_NOT))
    except (
        Exception
    ) as error:  # the library's error tree changes from version to version, and it wraps two HTTP clients
        reason = str(error).strip().partition("\n")[0]
        where = f"{repo}{'@' + revision if revision else ''}{':' + file if file else ''}"
        raise UsageError(
            f"{where}: no such path, and the hub does not give it",
            found=f"{type(error).__name__}: {reason}",
            cause="a typing error, no network, HF_HUB_OFFLINE without a cached copy, or a gated model without a token",
        ) from None
