"""A spoken instruction as text, by sherpa-onnx and any of its models that the user names. Knows sound files and
directories of models; knows no engine and no picture.
"""

from __future__ import annotations

import re
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eyespot import limits
from eyespot.errors import EyespotError, UsageError

F32 = npt.NDArray[np.float32]

# Kind -> (sherpa-onnx's constructor, its arguments and the pattern of the file that each one is). The first kind whose
# files are all there is taken; of several files that match, one with int8 in its name, else the first.
KINDS: dict[str, tuple[str, Mapping[str, str]]] = {
    "transducer": ("from_transducer", {"encoder": r"encoder.*\.onnx", "decoder": r"decoder.*\.onnx",
                                       "joiner": r"joiner.*\.onnx", "tokens": r".*tokens\.txt"}),
    "moonshine": ("from_moonshine", {"preprocessor": r"preprocess.*\.onnx", "encoder": r"encode\b.*\.onnx",
                                     "uncached_decoder": r"uncached_decode.*\.onnx",
                                     "cached_decoder": r"cached_decode.*\.onnx", "tokens": r"tokens\.txt"}),
    "whisper": ("from_whisper", {"encoder": r".*encoder.*\.onnx", "decoder": r".*decoder.*\.onnx",
                                 "tokens": r".*tokens\.txt"}),
    "sense-voice": ("from_sense_voice", {"model": r"model.*\.onnx", "tokens": r"tokens\.txt"}),
    "paraformer": ("from_paraformer", {"paraformer": r"model.*\.onnx", "tokens": r"tokens\.txt"}),
    "zipformer-ctc": ("from_zipformer_ctc", {"model": r".*\.onnx", "tokens": r"tokens\.txt"}),
    "nemo-ctc": ("from_nemo_ctc", {"model": r"model.*\.onnx", "tokens": r"tokens\.txt"}),
}  # fmt: skip
RATE = 384_000  # samples a second
NAMED = ("sense-voice", "paraformer", "zipformer-ctc", "nemo-ctc")  # one file: only the directory's name tells


def transcribe(audio: str | Path, model: str | Path, threads: int = 1) -> str:
    """What is said in a sound file. model: a directory of one of sherpa-onnx's offline models.

    UsageError for paths that lead nowhere or a directory that is no model; EyespotError for sound that cannot be read,
    is too long or says nothing, and where sherpa-onnx is missing.
    """
    constructor, files = kind_of(Path(model))
    samples, rate = read(Path(audio))
    try:
        import sherpa_onnx
    except ModuleNotFoundError:
        raise EyespotError("speech needs sherpa-onnx", cause="pip install eyespot[audio]") from None
    make: Callable[..., Any] = getattr(sherpa_onnx.OfflineRecognizer, constructor)
    try:
        recognizer = make(**files, num_threads=threads)
        stream = recognizer.create_stream()
        stream.accept_waveform(rate, samples)
        recognizer.decode_stream(stream)
        said = str(stream.result.text).strip()
    except (RuntimeError, ValueError, TypeError) as error:
        raise EyespotError(
            f"{model}: the speech model cannot be used ({error})", cause="files of another model"
        ) from None
    if not said:
        raise EyespotError(f"{audio}: nothing was understood", cause="silence, another language, or another model")
    return said


def kind_of(model: Path) -> tuple[str, dict[str, str]]:
    """The constructor of sherpa-onnx and its arguments for the files of a directory."""
    try:
        names = sorted(entry.name for entry in model.iterdir() if entry.is_file())
    except OSError as error:
        raise UsageError(f"{model}: no directory of a speech model ({error.strerror})") from None
    for kind, (constructor, patterns) in KINDS.items():
        if kind in NAMED and kind not in model.name.lower():
            continue
        found = {role: _pick(names, pattern) for role, pattern in patterns.items()}
        if all(found.values()):
            return constructor, {role: str(model / name) for role, name in found.items()}
    raise UsageError(
        f"{model}: not a speech model eyespot knows", found=", ".join(names[:8]) or "an empty directory",
        expected=f"files of one of {', '.join(KINDS)} ({', '.join(NAMED)}: in the directory's name)",
    )  # fmt: skip


def _pick(names: list[str], pattern: str) -> str:
    matching = [name for name in names if re.fullmatch(pattern, name)]
    return next((name for name in matching if "int8" in name), matching[0] if matching else "")


def read(path: Path) -> tuple[F32, int]:
    """Samples [n] from -1 to 1, one channel, and how many a second: of a WAV file of 16 bits, or with PyAV of any."""
    if not path.is_file():
        raise UsageError(f"sound '{path}' cannot be read", cause="the path is wrong")
    try:
        with wave.open(str(path)) as file:
            if file.getsampwidth() == 2:
                return _wav(file, path)
    except (wave.Error, EOFError, OSError):
        pass
    return _av(path)


def _wav(file: wave.Wave_read, path: Path) -> tuple[F32, int]:
    channels, rate, frames = file.getnchannels(), file.getframerate(), file.getnframes()
    _check(frames, rate, path)
    data = np.frombuffer(file.readframes(frames), "<i2").astype(np.float32) / 32768
    return data[: len(data) // channels * channels].reshape(-1, channels).mean(1), rate


def _av(path: Path) -> tuple[F32, int]:
    try:
        import av
    except ModuleNotFoundError:
        raise EyespotError(
            f"{path.name}: not a WAV file of 16 bits", cause="other sound needs pip install eyespot[video]"
        ) from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                raise EyespotError(f"{path.name}: there is no sound in this file")
            stream = container.streams.audio[0]
            to_mono = av.AudioResampler("flt", "mono", stream.rate)
            pieces, total = [], 0
            for frame in container.decode(stream):
                for piece in to_mono.resample(frame):
                    pieces.append(piece.to_ndarray()[0].astype(np.float32))
                    total += len(pieces[-1])
                    _check(total, stream.rate, path)
    except (av.error.FFmpegError, ValueError) as error:
        raise EyespotError(f"{path.name}: the sound cannot be read ({error})", cause="cut off or corrupted") from None
    if not pieces:
        raise EyespotError(f"{path.name}: no sound", cause="zero length")
    return np.concatenate(pieces), int(stream.rate)


def _check(samples: int, rate: int, path: Path) -> None:
    if samples < 1 or not 0 < rate <= RATE:
        raise EyespotError(f"{path.name}: no sound", found=f"{samples} samples, {rate} a second",
                           expected=f"some, at most {RATE} a second")  # fmt: skip
    if samples > rate * limits.AUDIO_SECONDS:
        raise EyespotError(f"{path.name}: too long", found=f"{samples / rate:.0f} s",
                           expected=f"at most {limits.AUDIO_SECONDS} s")  # fmt: skip
