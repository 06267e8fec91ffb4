"""Sound and speech models: reading WAV and other files, telling models by their files, and what is no sound.

No package holds a small model of sherpa-onnx: that one understands is not tested here, only that it is loaded as asked.
"""

from __future__ import annotations

import sys
import types
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from eyespot import limits
from eyespot.errors import EyespotError, UsageError
from eyespot.run import speech
from eyespot.run.speech import kind_of, transcribe

FILES = {
    "transducer": ["encoder-1.int8.onnx", "encoder-1.onnx", "decoder-1.onnx", "joiner-1.onnx", "tokens.txt"],
    "moonshine": ["preprocess.onnx", "encode.int8.onnx", "uncached_decode.onnx", "cached_decode.onnx", "tokens.txt"],
    "whisper": ["tiny.en-encoder.onnx", "tiny.en-decoder.onnx", "tiny.en-tokens.txt"],
    "sense-voice": ["model.int8.onnx", "tokens.txt"],
    "paraformer": ["model.onnx", "tokens.txt"],
}  # fmt: skip


def directory(at: Path, kind: str) -> Path:
    folder = at / f"sherpa-onnx-{kind}-en"
    folder.mkdir()
    for name in FILES[kind]:
        (folder / name).touch()
    return folder


def tone(path: Path, rate: int = 8000, seconds: float = 0.5, channels: int = 1) -> np.ndarray:
    """A sine in a WAV file; its samples."""
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.repeat((32767 * samples).astype("<i2"), channels).tobytes())
    return samples


@pytest.mark.parametrize("kind", FILES)
def test_models_are_told_by_their_files(tmp_path: Path, kind: str) -> None:
    constructor, files = kind_of(directory(tmp_path, kind))
    assert constructor == f"from_{kind.replace('-', '_')}"
    assert all(Path(path).exists() for path in files.values())
    if kind == "transducer":
        assert files["encoder"].endswith("int8.onnx")
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    assert hasattr(sherpa_onnx.OfflineRecognizer, constructor)


@pytest.mark.parametrize("channels", [1, 2])
def test_wav(tmp_path: Path, channels: int) -> None:
    samples = tone(tmp_path / "a.wav", channels=channels)
    found, rate = speech.read(tmp_path / "a.wav")
    assert rate == 8000
    assert np.abs(found - samples).max() < 1e-3


def test_other_sound(tmp_path: Path) -> None:
    samples = tone(tmp_path / "a.wav", rate=16000)
    with av.open(str(tmp_path / "a.flac"), "w") as container:
        stream = container.add_stream("flac", rate=16000)
        frame = av.AudioFrame.from_ndarray((32767 * samples).astype(np.int16)[None], format="s16", layout="mono")
        frame.rate = 16000
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    found, rate = speech.read(tmp_path / "a.flac")
    assert rate == 16000
    assert np.abs(found[: len(samples)] - samples).max() < 1e-3


class Recognizer:
    """Says how it was made and what it heard."""

    made: dict[str, Any]

    def create_stream(self) -> Any:
        return types.SimpleNamespace(accept_waveform=lambda rate, samples: setattr(self, "heard", (rate, len(samples))))

    def decode_stream(self, stream: Any) -> None:
        stream.result = types.SimpleNamespace(text=self.said)

    said = " what is on the table "


def test_the_loading_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recognizer = Recognizer()

    def make(**files: Any) -> Recognizer:
        recognizer.made = files
        return recognizer

    fake = types.SimpleNamespace(OfflineRecognizer=types.SimpleNamespace(from_whisper=make))
    monkeypatch.setitem(sys.modules, "sherpa_onnx", fake)
    tone(tmp_path / "a.wav")
    folder = directory(tmp_path, "whisper")
    assert transcribe(tmp_path / "a.wav", folder, threads=2) == "what is on the table"
    assert recognizer.made["num_threads"] == 2
    assert recognizer.made["encoder"] == str(folder / "tiny.en-encoder.onnx")
    recognizer.said = "  "
    with pytest.raises(EyespotError, match="nothing was understood"):
        transcribe(tmp_path / "a.wav", folder)


def test_what_is_no_sound_and_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tone(tmp_path / "a.wav")
    with pytest.raises(UsageError, match="no directory of a speech model"):
        transcribe(tmp_path / "a.wav", tmp_path / "none")
    with pytest.raises(UsageError, match="not a speech model eyespot knows"):
        transcribe(tmp_path / "a.wav", tmp_path)
    folder = directory(tmp_path, "whisper")
    for name, data in {
        "text.wav": b"no sound",
        "empty.wav": b"",
        "cut.wav": (tmp_path / "a.wav").read_bytes()[:30],
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(EyespotError, match=name):
            transcribe(tmp_path / name, folder)
    with pytest.raises(UsageError, match="the path is wrong"):
        transcribe(tmp_path / "gone.wav", folder)
    monkeypatch.setattr(limits, "AUDIO_SECONDS", 0.4)
    with pytest.raises(EyespotError, match="too long"):
        transcribe(tmp_path / "a.wav", folder)
