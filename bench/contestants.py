"""Who competes: peers with what they need installed, the formats of each, and the file a contestant opens.

Data first; making is left to weights.py. Knows no clock.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / "build" / "peers"


@dataclass(frozen=True, slots=True)
class Peer:
    """packages: pinned to versions that were found to work together. extra: the adapter's last arguments.

    environment: of the installation. removed: packages that others drag in and that break them.
    """

    adapter: str
    packages: tuple[str, ...] = ()  # none: the environment this runs in
    extra: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()


LLAMA = ("llama-cpp-python==0.3.36", "numpy==2.4.6")
AVX2 = "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX512=OFF"
BUILD = {"CMAKE_BUILD_PARALLEL_LEVEL": "2", "FORCE_CMAKE": "1"}
ORT = ("onnxruntime==1.31.1", "onnx==1.23.2", "numpy==2.4.6")
TORCH = "torch==2.13.0"  # for conversion alone

PEERS: dict[str, Peer] = {
    "eyespot": Peer("run_eyespot.py"),
    "eyespot-avx2": Peer("run_eyespot.py", extra=("avx2",)),
    "llama.cpp": Peer("run_llama_cpp.py", LLAMA, environment=BUILD),
    "llama.cpp-avx2": Peer("run_llama_cpp.py", LLAMA, environment=BUILD | {"CMAKE_ARGS": AVX2}),
    "onnxruntime-genai": Peer(
        "run_genai.py", ("onnxruntime-genai==0.18.0", *ORT, "onnx-ir==1.1.0", TORCH, "transformers==5.23.0")
    ),
    "onnxruntime": Peer("run_onnxruntime.py", ORT),
    "openvino": Peer(
        "run_openvino.py",
        (
            "openvino-genai==2026.4.1.0",
            "openvino==2026.4.1",
            "optimum-intel==2.2.0",
            "nncf==3.4.0",
            "transformers==5.5.4",
            TORCH,
        ),
        removed=("torchvision",),  # its CUDA build does not load beside torch's CPU build
    ),
}

# Peer -> format -> bits of a weight. A format is LLM[+HEAD][/VISION]; no HEAD: as the rest.
TEXT_FORMATS: dict[str, dict[str, int]] = {
    "eyespot": {"W8A8-g32": 8, "W4A8-g32+W8A8-g32": 4, "W4A8-g32": 4, "W4A8-g32-asym+W8A8-g32": 4},
    "eyespot-avx2": {"W8A8-g32": 8, "W4A8-g32+W8A8-g32": 4},
    # +Q8_0: what llama-quantize makes of a tied model whose width is no multiple of 256
    "llama.cpp": {"Q8_0": 8, "Q4_0+Q8_0": 4, "Q4_0": 4, "Q4_1+Q8_0": 4},
    "llama.cpp-avx2": {"Q8_0": 8, "Q4_0+Q8_0": 4},
    "onnxruntime-genai": {"int8": 8, "int4": 4},
    "openvino": {"int8": 8, "int4": 4},
}
PICTURE_FORMATS: dict[str, dict[str, int]] = {
    "eyespot": {"W8A8-g32/W8A8": 8, "W4A8-g32+W8A8-g32/W8A8": 4},
    "eyespot-avx2": {"W4A8-g32+W8A8-g32/W8A8": 4},
    "onnxruntime": {"int8": 8, "int8-channel": 8, "float": 32},
}
MODELS: dict[str, dict[str, dict[str, int]]] = {
    "qwen2-0.5b": TEXT_FORMATS,
    "smollm2-135m": TEXT_FORMATS,
    "internvl2-1b": PICTURE_FORMATS,
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """One peer with one model in one format: one process while it competes."""

    model: str
    peer: str
    form: str

    @property
    def bits(self) -> int:
        return MODELS[self.model].get(self.peer, {}).get(self.form, 0)  # 0: put together from several

    @property
    def ours(self) -> bool:
        return self.peer.startswith("eyespot")

    def __str__(self) -> str:
        return f"{self.peer} {self.form}"


def contestants(model: str, peers: tuple[str, ...]) -> list[Contestant]:
    """All that run `model`, in the order of the tables above."""
    formats = MODELS[model]
    return [Contestant(model, peer, form) for peer in formats if peer in peers for form in formats[peer]]


def python(peer: str) -> Path:
    """The interpreter of a peer's environment, which is made when it is not there. RuntimeError when pip fails."""
    facts = PEERS[peer]
    if not facts.packages:
        return Path(sys.executable)
    folder = WORK / peer
    made, bin = folder / "made", folder / "bin"
    if made.is_file() and made.read_text() == recipe(facts):
        return bin / "python"
    print(f"installing {peer}: {', '.join(facts.packages)}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = ["nice", "-n", "10", str(bin / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # No wheel cache: two builds of one version differ by their environment alone.
    cache = ["--no-cache-dir"] if facts.environment else []
    commands = [[*pip, "install", *cache, *facts.packages]]
    if facts.removed:
        commands.append([*pip, "uninstall", "--yes", *facts.removed])
    for command in commands:
        done = subprocess.run(command, env=os.environ | facts.environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip failed: {done.stderr.strip().splitlines()[-1:]}")
    made.write_text(recipe(facts))
    return bin / "python"


def recipe(facts: Peer) -> str:
    return "\n".join([*facts.packages, *(f"{k}={v}" for k, v in facts.environment.items())])
