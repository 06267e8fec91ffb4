"""Checkpoints: tensors under Hugging Face names, the raw config, the tokenizer's files. No torch.

Reads safetensors directories, GGUF files and hub ids as hostile bytes; knows no model family.
"""

from eyespot.checkpoint.checkpoint import Checkpoint, TensorInfo
from eyespot.checkpoint.source import local, open_checkpoint
from eyespot.checkpoint.tokenizer import check_tokenizer, tokenizer_json

__all__ = ["Checkpoint", "TensorInfo", "check_tokenizer", "local", "open_checkpoint", "tokenizer_json"]
