"""Opens a bundle: versions, the list of files, their sizes and hashes, and the settings are checked before any use.

Every byte is taken as hostile. Knows the manifest, config.json and the outline of program.json, no op and no weight.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eyespot import limits
from eyespot.bundle.settings import Settings
from eyespot.errors import EyespotError, UnsupportedModel, UsageError
from eyespot.program import FORMAT as PROGRAM_FORMAT
from eyespot.program import Info
from eyespot.tensorfile import parse_json, read_bytes, read_json, reading

FORMAT = 2  # of manifest.json
MANIFEST, PROGRAM, CONFIG = "manifest.json", "program.json", "config.json"
FAST_TOKENIZER = "tokenizer.safetensors"  # what tokenizer.json says, in the form of bundle/byte_bpe.py
FILES = limits.LAYERS + 64
A_BUNDLE = "a directory made by 'eyespot compile'"

Verify = bool | Literal["auto"]
Stamp = dict[str, list[int]]  # file name -> size, mtime_ns, inode


@dataclass(frozen=True, slots=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Outline:
    """program.json without its ops: what the caller of an engine needs. Sizes in bytes; raw: all of it, unchecked."""

    family: str
    info: Info
    parts: tuple[str, ...]
    ctx: int
    prefill_chunk: int
    kv_type: str
    arena_bytes: int
    raw: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are all there. `verified`: their hashes were compared, now or when last seen unchanged."""

    path: Path
    manifest: Mapping[str, Any]
    files: Mapping[str, File]
    program: Outline
    settings: Settings
    verified: bool

    def file(self, name: str) -> Path | None:
        """The path of a listed file, None when the bundle has none of that name. Files nobody listed are not served."""
        return self.path / name if name in self.files else None

    @property
    def tokenizer(self) -> Path | None:
        return self.file("tokenizer.json")

    @property
    def fast_tokenizer(self) -> Path | None:
        return self.file(FAST_TOKENIZER)

    @property
    def chat_template(self) -> Path | None:
        return self.file("chat_template.jinja")


def open_bundle(path: str | Path, verify: Verify = "auto") -> Bundle:
    """The bundle in directory `path`.

    verify: True hashes every file, False none, "auto" those of a bundle not yet seen on this machine in this state.
    Errors: UsageError when `path` is no bundle; EyespotError naming the file that is missing, cut off, changed or bad.
    """
    path = Path(path)
    data, manifest = _manifest(path)
    files = _files(manifest)
    stats = {name: _stat(path, name, file) for name, file in files.items()}
    if PROGRAM not in files:
        raise EyespotError(f"{MANIFEST}: lists no {PROGRAM}")
    key, stamp = hashlib.sha256(data).hexdigest(), {n: [s.st_size, s.st_mtime_ns, s.st_ino] for n, s in stats.items()}
    verified = verify == "auto" and _seen(path, key, stamp)
    if verify is True or (verify == "auto" and not verified):
        check_hashes(path, files)
        _stamp(path, key, stamp)
        verified = True
    outline = _outline(read_json(path / PROGRAM), files)
    settings = Settings.parse(read_json(path / CONFIG), outline.ctx, outline.info.vocab_size)
    if settings.image is not None and settings.image.resolution.size != outline.info.tile_size:
        raise EyespotError(
            f"{CONFIG}: image.size is not what the model was compiled for",
            found=settings.image.resolution.size,
            expected=outline.info.tile_size,
        )
    return Bundle(path, manifest, files, outline, settings, verified)


def check_hashes(path: Path, files: Mapping[str, File]) -> None:
    """Hashes all files, several at once. EyespotError names those whose bytes are not the ones that were written."""
    from concurrent.futures import ThreadPoolExecutor  # only here: a bundle seen before opens without it

    def changed(name: str) -> bool:
        with reading(path / name) as file:
            return hashlib.file_digest(file, "sha256").hexdigest() != files[name].sha256

    largest_first = sorted(files, key=lambda name: -files[name].bytes)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        wrong = [name for name, bad in zip(largest_first, pool.map(changed, largest_first), strict=True) if bad]
    if wrong:
        more = f" (+{len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise EyespotError(
            f"{', '.join(sorted(wrong)[:3])}{more}: SHA-256 differs from {MANIFEST}",
            cause="the file was damaged or edited; compile or copy the bundle again",
        )


def remember(path: Path) -> None:
    """Notes that the bundle just written in `path` has the hashes it lists: its first use need not read it all."""
    data, manifest = _manifest(path)
    stats = {name: _stat(path, name, file) for name, file in _files(manifest).items()}
    _stamp(path, hashlib.sha256(data).hexdigest(), {n: [s.st_size, s.st_mtime_ns, s.st_ino] for n, s in stats.items()})


def _manifest(path: Path) -> tuple[bytes, dict[str, Any]]:
    if (fault := _no_directory(path)) is not None:
        raise UsageError(f"{path}: {fault}", expected=A_BUNDLE)
    try:
        data = read_bytes(path / MANIFEST, limits.HEADER_BYTES)
    except EyespotError as error:
        raise UsageError(f"{path}: not a bundle: {error.what}", expected=A_BUNDLE, cause=error.cause) from None
    manifest = parse_json(data, MANIFEST)
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise UsageError(f"{path}: not a bundle: {MANIFEST} names no format")
    _check_format(MANIFEST, manifest["format"], FORMAT)
    if not isinstance(manifest.get("eyespot"), str) or not isinstance(manifest.get("source"), dict):
        raise EyespotError(f"{MANIFEST}: 'eyespot' or 'source' is missing or malformed")
    if not isinstance(manifest.get("report"), dict | None):
        raise EyespotError(f"{MANIFEST}: 'report' is malformed", expected="an object or null")
    return data, manifest


def _no_directory(path: Path) -> str | None:
    """Why `path` cannot be looked into; None when it can."""
    try:
        return None if stat.S_ISDIR(os.stat(path).st_mode) else "is a file, not a bundle"
    except ValueError:  # a null byte
        return "no such bundle"
    except OSError as error:
        return "no such bundle" if error.errno == errno.ENOENT else f"cannot be opened ({error.strerror})"


def _check_format(name: str, found: object, known: int) -> None:
    if type(found) is not int or found < 1:
        raise EyespotError(f"{name}: bad format", found=repr(found), expected=known)
    if found != known:
        raise UnsupportedModel(
            f"{name}: unknown format",
            found=found,
            expected=known,
            cause="an older eyespot made it; compile the model again" if found < known else "a newer eyespot made it",
        )


def _files(manifest: Mapping[str, Any]) -> dict[str, File]:
    listed = manifest.get("files")
    if not isinstance(listed, dict) or not 0 < len(listed) <= FILES:
        raise EyespotError(f"{MANIFEST}: 'files' is missing or malformed", expected=f"1 to {FILES} files")
    files = {}
    for name, entry in listed.items():
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", name) or name in (MANIFEST, CONFIG):
            raise EyespotError(f"{MANIFEST}: bad file name", found=name, expected="a plain name")
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256"}:
            raise EyespotError(f"{MANIFEST}: entry of {name} is malformed", expected="bytes and sha256")
        size, digest = entry["bytes"], entry["sha256"]
        if (
            type(size) is not int
            or size < 0
            or not isinstance(digest, str)
            or not re.fullmatch(r"[0-9a-f]{64}", digest)
        ):
            raise EyespotError(f"{MANIFEST}: entry of {name} is malformed", found=entry)
        files[name] = File(size, digest)
    return files


def _stat(path: Path, name: str, file: File) -> os.stat_result:
    try:
        found = os.stat(path / name)
    except OSError as error:
        raise EyespotError(
            f"{name}: cannot be read ({error.strerror})", cause="the bundle was copied in part"
        ) from None
    if not stat.S_ISREG(found.st_mode):
        raise EyespotError(f"{name}: not a regular file")
    if found.st_size != file.bytes:
        raise EyespotError(
            f"{name}: wrong size",
            found=f"{found.st_size} bytes",
            expected=file.bytes,
            cause="the file was cut off or replaced",
        )
    return found


def _outline(raw: Any, files: Mapping[str, File]) -> Outline:
    if not isinstance(raw, dict):
        raise EyespotError(f"{PROGRAM}: not an object")
    _check_format(PROGRAM, raw.get("format"), PROGRAM_FORMAT)
    try:
        given, memory, graphs = raw["info"], raw["memory"], raw["graphs"]
        info = Info(**given)
        numbers = {k: getattr(info, k) for k in Info.__dataclass_fields__}
        ctx, chunk, arena = memory["ctx"], memory["units"]["n"], memory["arena_bytes"]
        kv_type, family = memory["kv_cache"]["type"], raw["family"]
        parts = tuple(dict.fromkeys(block["part"] for graph in graphs.values() for block in graph["blocks"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise EyespotError(f"{PROGRAM}: malformed ({type(error).__name__}: {error})") from None
    if not isinstance(family, str) or not isinstance(kv_type, str) or not all(isinstance(p, str) for p in parts):
        raise EyespotError(f"{PROGRAM}: family, cache type or a part is not a text")
    numbers |= {"memory.ctx": ctx, "memory.units.n": chunk, "memory.arena_bytes": arena}
    for name, value in numbers.items():
        low, high = BOUNDS[name]
        if type(value) is not int or not low <= value <= high:
            raise EyespotError(f"{PROGRAM}: {name}", found=repr(value), expected=f"an integer from {low} to {high}")
    for part in parts:
        if f"{part}.safetensors" not in files:
            raise EyespotError(f"{MANIFEST}: lists no {part}.safetensors, which {PROGRAM} needs")
    return Outline(family, info, parts, ctx, chunk, kv_type, arena, raw)


BOUNDS = {
    "vocab_size": (1, limits.VOCAB),
    "hidden_size": (1, limits.DIM),
    "max_position": (1, 1 << 40),
    "image_token_id": (-1, limits.VOCAB),
    "tile_size": (0, limits.IMAGE_SIDE),
    "tile_tokens": (0, limits.CONTEXT),
    "tile_channels": (1, 64),
    "memory.ctx": (1, limits.CONTEXT),
    "memory.units.n": (1, limits.CHUNK_ROWS),
    "memory.arena_bytes": (0, limits.ARENA_BYTES),
}


def _stamp_file(path: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        cache / "eyespot" / "verified" / f"{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]}.json"
    )


def _seen(path: Path, key: str, stamp: Stamp) -> bool:
    try:
        with open(_stamp_file(path), "rb") as file:
            return bool(json.loads(file.read(limits.HEADER_BYTES)) == {"manifest": key, "files": stamp})
    except (OSError, ValueError, RecursionError, RuntimeError):  # no home directory is a RuntimeError
        return False


def _stamp(path: Path, key: str, stamp: Stamp) -> None:
    """Best effort: a cache that cannot be written costs the next open its hashing, nothing else."""
    try:
        target = _stamp_file(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps({"manifest": key, "files": stamp}))
        os.replace(draft, target)
    except (OSError, RuntimeError):
        pass
