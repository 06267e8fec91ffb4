"""The import rule of DESIGN.md: a folder uses only folders before it; heavy libraries stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "eyespot"
GROUND = {"errors", "limits", "files", "tensorfile", "images", "resolution", "boxes", "video", "multi_view"}
ALLOWED = {
    "errors": set(),
    "limits": set(),
    "files": set(),
    "tensorfile": {"errors", "limits"},
    "images": {"errors", "limits", "resolution", "boxes"},
    "resolution": {"errors"},
    "boxes": {"errors"},
    "video": {"errors", "limits", "images"},
    "multi_view": {"errors", "images", "boxes"},
    "checkpoint": GROUND,
    "program": GROUND,
    "families": GROUND | {"program"},
    "quantize": GROUND | {"program"},
    "bundle": GROUND | {"program", "quantize.formats", "_native"},
    "compile": GROUND | {"families", "program", "quantize", "bundle"},
    "run": GROUND | {"bundle", "_native"},
    "train": GROUND | {"checkpoint", "families"},
    "evaluate": GROUND,
    "cli": None,  # all, but inside functions: checked below
    "__init__": GROUND | {"run"},
    "__main__": {"cli"},
}
FOREIGN = {"torch", "transformers", "torchvision"}  # only train may import the first two, nobody the third


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, at top level?) for every import in a file, type-checking ones included."""
    tree = ast.parse(path.read_text())
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names = [f"{node.module}.{a.name}" for a in node.names] if node.module == "eyespot" else [node.module or ""]
            found += [(name, id(node) not in inside) for name in names]
    return found


def stage(path: Path) -> str:
    return path.relative_to(SRC).parts[0].removesuffix(".py").removesuffix(".pyi")


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_import_rule(path: Path) -> None:
    own, allowed = stage(path), ALLOWED[stage(path)]
    for module, top in imports(path):
        foreign = FOREIGN - {"torch", "transformers"} if own == "train" else FOREIGN
        assert module.split(".")[0] not in foreign, f"{path.name} imports {module}"
        if not module.startswith("eyespot.") or allowed is None:
            continue
        target = module.removeprefix("eyespot.")
        if target.split(".")[0] == own or (own == "run" and target.startswith("quantize.formats") and not top):
            continue
        assert any(target == a or target.startswith(f"{a}.") for a in allowed), f"{path.name} ({own}) imports {module}"


@pytest.mark.parametrize("verb", ["run", "chat", "doctor"])
def test_a_verb_loads_only_its_own(verb: str) -> None:
    """`eyespot run` must start fast: it may not load what compiles models."""
    code = f"""
import sys
from eyespot.cli import {verb}
ours = {{"eyespot.compile", "eyespot.families", "eyespot.checkpoint"}}
heavy = ours | {{"torch", "transformers", "gguf", "huggingface_hub"}}
print(sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
