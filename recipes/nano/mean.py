"""python recipes/nano/mean.py MODEL MODEL OUT: a model whose weights are the mean of two, of one lineage, as OUT.

What a short training at the end gains in what it asks about, it loses in the rest; halfway between the two keeps most
of both (Wortsman et al., "Model soups", arXiv 2203.05482).
"""

import argparse
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from eyespot.checkpoint import local

WEIGHTS = "model.safetensors"

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
for name in ("one", "other", "out"):
    parser.add_argument(name, type=Path if name == "out" else local)
given = parser.parse_args()
for model in (given.one, given.other):
    if not (model / WEIGHTS).is_file():
        parser.error(f"{model}: no model, {WEIGHTS} is missing; likely cause: its recipe has not been run yet")
if (given.out / WEIGHTS).exists():
    parser.error(f"{given.out} holds a model already")
ours, theirs = (load_file(model / WEIGHTS) for model in (given.one, given.other))
if {name: t.shape for name, t in ours.items()} != {name: t.shape for name, t in theirs.items()}:
    parser.error(f"{given.one} and {given.other} have not the same tensors; expected two of one lineage")
mean = {name: ((ours[name].float() + theirs[name].float()) / 2).to(ours[name].dtype) for name in ours}
# The weights come last: what is left unfinished is no model.
shutil.copytree(given.other, given.out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(WEIGHTS))
save_file(mean, given.out / WEIGHTS, metadata={"format": "pt"})
