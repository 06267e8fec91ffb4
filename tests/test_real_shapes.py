"""Real sizes, random weights (`make test-slow`): time, memory and agreement at the shapes users run."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import models
import shapes

pytestmark = pytest.mark.slow
GIB = 1 << 30


def measured(*arguments: str | Path) -> tuple[float, int, str]:
    """Runs `eyespot ...` in a process of its own: (seconds, peak resident bytes, stdout)."""
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run([sys.executable, '-m', 'eyespot', *sys.argv[1:]], capture_output=True, text=True)\n"
        "print(done.stdout); print(done.stderr, file=sys.stderr)\n"
        "print(f'\\npeak={resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024}')\n"
        "sys.exit(done.returncode)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    peak = re.search(r"peak=(\d+)", done.stdout)
    assert peak is not None
    return seconds, int(peak.group(1)), done.stdout[: peak.start()]


@pytest.fixture(scope="module")
def internvl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("internvl2-1b")
    shapes.internvl2_1b(folder / "checkpoint")
    picture = np.random.default_rng(5).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(picture).resize((1792, 1344), Image.Resampling.BICUBIC).save(folder / "picture.png")
    return folder


def test_internvl2_1b_compiles_and_answers(internvl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """W8A8-g32, W8A8 vision: under 90 s and 3 GB; a 12-tile picture and its thumbnail answered at cosine > 0.999."""
    from eyespot.checkpoint import open_checkpoint
    from eyespot.families import build
    from eyespot.program.reference import Reference
    from eyespot.program.transforms import materialize
    from eyespot.run.engine import Engine
    from eyespot.run.model import load

    source, bundle = internvl / "checkpoint", internvl / "bundle"
    seconds, peak, _ = measured("compile", source, "-o", bundle)
    with capsys.disabled():
        print(f"\n  InternVL2-1B to W8A8-g32 + W8A8 vision: {seconds:.1f} s, peak {peak / GIB:.2f} GiB")
    assert seconds < 90
    assert peak < 3e9

    picture = internvl / "picture.png"
    seconds, peak, out = measured(
        *("run", "-m", bundle, "--image", picture, "-p", "What is this?", "-n", "4", "--temp", "0", "--json")
    )
    with capsys.disabled():
        print(f"  12 tiles + thumbnail answered: {seconds:.1f} s, peak {peak / GIB:.2f} GiB\n  {out.strip()[:400]}")
    assert json.loads(out)["image_tokens"] == 13 * 256

    processor = load(bundle).processor
    prompt = processor.chat(processor.messages("What is this?", [picture]))
    placed = prompt.pictures[0]
    pixels = models.pixels(processor, placed.picture, placed.cut)
    engine = Engine(bundle)
    features = engine.encode(pixels)
    logits = engine.prefill(prompt.ids, features)[-1]
    engine.close()

    checkpoint = open_checkpoint(source)
    built = build(checkpoint.config, {k: v.shape for k, v in checkpoint.tensors.items()})
    weights = built.program.weights
    reference = Reference(built.program, lambda name: materialize(weights[name], checkpoint.read))
    wanted = np.concatenate([reference.encode(pixels[i : i + 1]) for i in range(len(pixels))])
    truth = reference.prefill(prompt.ids, wanted)[-1]

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))

    with capsys.disabled():
        print(f"  cosine to float32: features {cosine(features, wanted):.6f}, logits {cosine(logits, truth):.6f}")
    assert len(pixels) == 13
    assert cosine(logits, truth) > 0.999
    assert cosine(features, wanted) > 0.99


def test_nine_tiles_with_overlap_are_no_slower(internvl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two threads, by turns: pixels prepared while others are encoded, and one after the other."""
    from eyespot import images
    from eyespot.run.model import load

    if not (internvl / "bundle").exists():
        measured("compile", internvl / "checkpoint", "-o", internvl / "bundle")
    picture = images.load(Image.open(internvl / "picture.png").resize((1344, 1344)))
    times: dict[bool, list[float]] = {True: [], False: []}
    with load(internvl / "bundle", threads=2) as model:
        cut = model.processor.cut(picture, model.rule({"max_tiles": 9}))
        assert cut.columns * cut.rows == 9
        for _ in range(4):
            for overlap in (True, False):
                model.cache.overlap = overlap
                model.cache.features._kept.clear()
                start = time.perf_counter()
                model.cache.look(picture, cut)
                times[overlap].append(time.perf_counter() - start)
    together, apart = (statistics.median(times[overlap][1:]) for overlap in (True, False))
    with capsys.disabled():
        print(f"\n  nine tiles and a thumbnail: {together:.2f} s with overlap, {apart:.2f} s without")
    assert together < 1.03 * apart


def test_cold_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Process start to first token of a 16-token prompt, 0.5B at W8A8-g32, warm page cache: median of 5 under 0.5 s."""
    shapes.qwen2_05b(tmp_path / "checkpoint")
    measured("compile", tmp_path / "checkpoint", "-o", tmp_path / "bundle")
    prompt = "abcdefghijklmnopqrstuvwxyzabcdef"  # two letters a token
    command = [sys.executable, "-m", "eyespot", "run", "-m", str(tmp_path / "bundle")]
    command += ["--raw", "-p", prompt, "-n", "1", "--temp", "0", "--json"]
    times, tokens = [], 0
    for _ in range(7):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
        tokens = json.loads(done.stdout)["timings"]["prompt_tokens"]
    with capsys.disabled():
        print(f"\n  cold start, {tokens} prompt tokens: {[f'{t:.3f}' for t in times[2:]]} s")
    assert tokens == 16
    assert statistics.median(times[2:]) < 0.5


def test_llama3_8b_compiles_and_decodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8B at W4A8-g64 under 6 GB peak memory, and it decodes."""
    shapes.llama3_8b(tmp_path / "checkpoint")
    seconds, peak, _ = measured("compile", tmp_path / "checkpoint", "-o", tmp_path / "bundle", "--scheme", "W4A8")
    with capsys.disabled():
        print(f"\n  Llama-3-8B to W4A8-g64: {seconds:.0f} s, peak {peak / GIB:.2f} GiB")
    assert peak < 6e9
    _, peak, out = measured("run", "-m", tmp_path / "bundle", "--raw", "-p", "abc", "-n", "4", "--temp", "0", "--json")
    answer = json.loads(out)
    with capsys.disabled():
        print(f"  decodes {answer['timings']}, peak {peak / GIB:.2f} GiB")
    assert len(answer["tokens"]) == 4


def ceilings() -> dict[str, float]:
    """What this machine can do at most with two threads: bytes read, int8 products, a second."""
    from eyespot import _native

    found = _native.ceilings(2)
    return {name: found[name]["per_second"] for name in ("read", "int8", "float32")}


def test_qwen2_5_vl_3b_sees_a_picture_and_a_film(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """W4A16-g64 with int8 eyes under 6 GB; a picture of 448 x 448 is 256 tokens, eight frames of 308 x 308 are 484."""
    shapes.qwen2_5_vl_3b(tmp_path / "checkpoint")
    bundle = tmp_path / "bundle"
    schemes = ("--scheme", "W4A16", "--vision-scheme", "W8A8")
    seconds, peak, _ = measured(
        *("compile", tmp_path / "checkpoint", "-o", bundle, *schemes, "--image-tokens", "512", "-c", "2048")
    )
    size = sum(file.stat().st_size for file in bundle.iterdir())
    with capsys.disabled():
        print(f"\n  Qwen2.5-VL-3B to W4A16-g64, W8A8: {seconds:.0f} s, peak {peak / GIB:.2f} GiB, {size / 1e9:.2f} GB")
    assert peak < 6e9
    rng = np.random.default_rng(5)
    Image.fromarray(rng.integers(0, 255, (448, 448, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    (tmp_path / "film").mkdir()
    for i in range(8):
        Image.fromarray(rng.integers(0, 255, (308, 308, 3), dtype=np.uint8)).save(tmp_path / "film" / f"{i}.png")
    top = ceilings()
    vision, text = 0.63e9, (size - 0.67e9)
    for name, flags, tokens in (
        ("448 x 448", ("--image", tmp_path / "picture.png"), 256),
        ("8 frames of 308 x 308", ("--video", tmp_path / "film", "--fps", "1"), 484),
    ):
        _, peak, out = measured(
            *("run", "-m", bundle, *flags, "-p", "What is this?", "-n", "8", "--temp", "0", "--json", "-t", "2")
        )
        answer = json.loads(out)
        t = answer["timings"]
        least = 2 * vision * 4 * tokens / top["int8"]
        with capsys.disabled():
            print(
                f"  {name}: {answer['image_tokens']} tokens, eyes {t['encode_s']:.2f} s (products {least:.2f}), "
                f"prefill {t['prefill_s']:.2f} s, decode {t['tokens_per_s']:.1f} token/s (reading alone "
                f"{top['read'] / text:.1f}), peak {peak / GIB:.2f} GiB"
            )
        assert answer["image_tokens"] == tokens
        assert peak < 6e9


def test_bluelm_v_3b_sees_a_phones_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SigLIP-400M and 2.7 billion weights at W4A16, int8 eyes and cache: 9 tiles of 196 tokens; peak beside 2.2 GB."""
    shapes.bluelm_v_3b(tmp_path / "checkpoint")
    bundle = tmp_path / "bundle"
    schemes = ("--scheme", "W4A16", "--vision-scheme", "W8A8", "--kv-cache", "int8")
    seconds, peak, _ = measured("compile", tmp_path / "checkpoint", "-o", bundle, *schemes, "-c", "2048")
    with capsys.disabled():
        print(f"\n  BlueLM-V shape to W4A16-g64 + W8A8 eyes: {seconds:.0f} s, peak {peak / GIB:.2f} GiB")
    rng = np.random.default_rng(6)
    Image.fromarray(rng.integers(0, 255, (1536, 768, 3), dtype=np.uint8)).save(tmp_path / "screen.png")
    _, peak, out = measured("run", "-m", bundle, "--image", tmp_path / "screen.png", "-p", "What is this?", "-n", "8",
                            "--temp", "0", "--json", "-t", "2")  # fmt: skip
    answer = json.loads(out)
    with capsys.disabled():
        print(f"  768 x 1536: {answer['image_tokens']} tokens of {answer['images'][0]['tiles']} tiles, "
              f"peak {peak / 1e9:.2f} GB (published 2.2), {answer['timings']}")  # fmt: skip
    assert answer["images"][0]["tiles"] == 9
    assert answer["image_tokens"] == 1764
