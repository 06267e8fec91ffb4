"""python recipes/nano/mean.py MODEL MODEL OUT: a model whose weights are the mean of two, of one lineage, as OUT.

What a short training at the end gains in what it asks about, it loses in the rest; halfway between the two keeps most
of both (Wortsman et al., "Model soups", arXiv 2203.05482).
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

one, other, out = map(Path, sys.argv[1:])
shutil.copytree(other, out)
ours, theirs = (load_file(model / "model.safetensors") for model in (one, other))
mean = {name: ((ours[name].float() + theirs[name].float()) / 2).to(ours[name].dtype) for name in ours}
save_file(mean, out / "model.safetensors", metadata={"format": "pt"})
