"""A small model's own tokenizer: byte-level BPE cut as Qwen2's, learned from the texts at hand and English docstrings.

Knows InternVL's and ChatML's added tokens. Any text can be written in it, for every byte is a token.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Iterable, Iterator

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from eyespot.checkpoint.tokenizer import PRE
from eyespot.errors import EyespotError
from eyespot.train.data.record import IMAGE, VIDEO, Record

CHAT = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PICTURES = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>")
# Standard modules with much English in their docstrings.
ENGLISH = (
    "argparse", "asyncio", "calendar", "collections", "datetime", "decimal", "difflib", "email.message", "fractions",
    "functools", "http.client", "inspect", "itertools", "json", "logging", "os", "pathlib", "random", "shutil",
    "sqlite3", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "tkinter",
    "unittest", "urllib.request", "xml.etree.ElementTree", "zipfile",
)  # fmt: skip


def english() -> Iterator[str]:
    """Docstrings of the standard library, without doctests; those of modules that are not there are left out."""
    for name in ENGLISH:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some members say on sight that they are deprecated
            owners = [module, *(value for _, value in inspect.getmembers(module, inspect.isclass))]
        texts = {
            inspect.getdoc(value) for owner in owners for _, value in sorted(vars(owner).items()) if callable(value)
        }
        for text in sorted(text for text in texts if text):
            yield from (
                line for line in text.splitlines() if line.strip() and not line.lstrip().startswith((">>>", "..."))
            )


def spoken(records: Iterable[Record]) -> Iterator[str]:
    """What is said in records, added tokens left out: they are never parts of other tokens."""
    for record in records:
        for turn in record.turns:
            text = turn.text
            for mark in (IMAGE, VIDEO, *PICTURES):
                text = text.replace(mark, " ")
            yield text


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of at most `vocab_size` tokens, added ones included and last. EyespotError without texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    cut = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE["qwen2"].splits]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = CHAT + PICTURES
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(added),
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() <= 256:
        raise EyespotError("no text to learn a tokenizer from")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in added])
    return tokenizer
