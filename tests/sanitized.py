"""`make sanitize`: a pytest plugin that puts the engine in EYESPOT_NATIVE, built with sanitizers, in its place."""

import importlib.util
import os
import sys

spec = importlib.util.spec_from_file_location("eyespot._native", os.environ["EYESPOT_NATIVE"])
assert spec is not None
assert spec.loader is not None
module = importlib.util.module_from_spec(spec)
sys.modules["eyespot._native"] = module
spec.loader.exec_module(module)

import eyespot  # noqa: E402

eyespot._native = module  # type: ignore[attr-defined]
