"""Writes a bundle: its name shows a whole one or none at every moment. A temporary sibling, fsynced, then renamed.

Knows files, hashes and directories; what stands in them is compile's business.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

from eyespot.bundle.read import FORMAT, MANIFEST, remember
from eyespot.errors import EyespotError, UsageError
from eyespot.files import sync
from eyespot.tensorfile import read_json

SPARE_BYTES = 16 << 20  # disk left free beside the bundle: JSON files, directory entries, other writers


class BundleWriter:
    """One bundle in the making: `create` its files, `seal` it. Leaving the `with` block unsealed removes all of it,
    directories made on the way to `out` too.

    Errors: UsageError when `out` is taken by something that is not a bundle; EyespotError when the disk is too small.
    """

    def __init__(self, out: Path) -> None:
        self.out = check_target(out)
        self.files: dict[str, dict[str, Any]] = {}
        self.path: Path
        self._made: list[Path] = []  # directories above `out` that were not there, nearest first
        self._lock = -1

    def __enter__(self) -> BundleWriter:
        try:
            self._made = [path for path in self.out.parents if not path.exists()]
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            self.path = Path(tempfile.mkdtemp(dir=self.out.parent, prefix=f"{self._prefix()}{os.getpid()}-"))
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells a live compile from a killed one
            os.chmod(self.path, 0o777 & ~_umask())
        except OSError as error:
            self._remove_made()
            raise UsageError(f"{self.out}: cannot be created here ({error.strerror})") from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._lock)
        shutil.rmtree(self.path, ignore_errors=True)  # after seal: the bundle that stood here before, or nothing
        self._remove_made()

    def need(self, size: int) -> None:
        """EyespotError unless the disk takes `size` bytes more; called before anything is written."""
        free = shutil.disk_usage(self.path).free
        if free < size + SPARE_BYTES:
            raise EyespotError(
                f"{self.out.name}: not enough disk space",
                found=f"{free >> 20} MiB free",
                expected=f"{(size + SPARE_BYTES) >> 20} MiB",
                cause="the old bundle stays until the new one is whole",
            )

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A new file of the bundle, hashed while written, front to back; on the disk when the block ends."""
        try:
            with open(self.path / name, "xb", buffering=0) as raw:
                file = HashedFile(raw)
                yield cast(BinaryIO, file)
                os.fsync(raw.fileno())
        except OSError as error:
            raise EyespotError(f"{name}: cannot be written ({error.strerror})") from None
        self.files[name] = {"bytes": file.size, "sha256": file.digest.hexdigest()}

    def add(self, name: str, data: bytes) -> None:
        with self.create(name) as file:
            file.write(data)

    def add_json(self, name: str, value: object, indent: int | None = 1) -> None:
        self.add(name, _json(value, indent))

    def write_manifest(self, manifest: Mapping[str, Any], unlisted: tuple[str, ...]) -> None:
        """manifest.json with `files` filled in, less `unlisted`. May be called again: the last one stays."""
        listed = {name: self.files[name] for name in sorted(self.files) if name not in unlisted}
        data = _json({"format": FORMAT, **manifest, "files": listed})
        try:
            with open(self.path / MANIFEST, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EyespotError(f"{MANIFEST}: cannot be written ({error.strerror})") from None

    def seal(self) -> Path:
        """Puts the bundle in its place. From here on `out` is the new bundle; the old one, if any, is removed after."""
        check_target(self.out)  # things may have changed while we wrote
        try:
            os.fsync(self._lock)
            if not self.out.exists():
                os.rename(self.path, self.out)
            elif not _exchange(self.path, self.out):
                aside = self.path.with_name(f"{self.path.name}-old")
                os.rename(self.out, aside)
                os.rename(self.path, self.out)
                os.rename(aside, self.path)
            sync(self.out.parent)
        except OSError as error:
            raise EyespotError(f"{self.out}: cannot be put in place ({error.strerror})") from None
        remember(self.out)
        return self.out

    def _remove_made(self) -> None:
        with suppress(OSError):  # not empty: it holds the bundle, or what somebody else put there
            for path in self._made:
                path.rmdir()

    def _prefix(self) -> str:
        return f".{self.out.name}.tmp-"

    def _remove_leftovers(self) -> None:
        """Directories of compiles of this target that were killed: nobody holds their lock."""
        for path in self.out.parent.iterdir():
            if not path.name.startswith(self._prefix()) or path.is_symlink() or not path.is_dir():
                continue
            try:
                handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except OSError:
                continue  # gone meanwhile, or another user's
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            except BlockingIOError:
                pass  # another compile of the same target is running
            finally:
                os.close(handle)


class HashedFile(io.RawIOBase):
    """A file written front to back; its SHA-256 is ready with the last byte. `seek` may only go where it stands."""

    def __init__(self, raw: io.FileIO) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self._raw = raw

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        done = 0
        while done < len(view):  # one call writes at most 2 GiB
            done += self._raw.write(view[done:]) or 0
        self.size += done
        return done

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if (offset, whence) != (0, os.SEEK_END) and (offset, whence) != (self.size, os.SEEK_SET):
            raise EyespotError("a bundle's files are written front to back", found=offset, expected=self.size)
        return self.size


def check_target(out: Path) -> Path:
    """Where `out` really lies: a link to a bundle stays a link, to the new one.

    UsageError unless it is free, an empty directory, or a bundle that may be replaced.
    """
    try:
        real = Path(os.path.realpath(out))
        taken = real.exists()
        if taken and not real.is_dir():
            raise UsageError(f"{out}: exists and is not a directory", cause="-o names the bundle's directory")
        if taken and any(real.iterdir()):
            _check_bundle(real)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise UsageError(f"{out}: cannot be created ({getattr(error, 'strerror', error)})") from None
    return real


def _check_bundle(out: Path) -> None:
    try:
        manifest = read_json(out / MANIFEST)
        ours = isinstance(manifest, dict) and {"format", "eyespot", "files"} <= set(manifest)
    except EyespotError:
        ours = False
    if not ours:
        raise UsageError(
            f"{out}: a directory that is not a bundle is never replaced",
            cause="choose another -o, or remove it yourself",
        )


def _json(value: object, indent: int | None = 1) -> bytes:
    separators = (",", ":") if indent is None else None
    return (
        json.dumps(value, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False) + "\n"
    ).encode()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two directories in one step (Linux renameat2); False where the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library before glibc 2.28
        return False
    at_cwd, exchange = -100, 2
    if renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code))
