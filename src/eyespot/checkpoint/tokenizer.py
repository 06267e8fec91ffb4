"""tokenizer.json for every checkpoint: carried as it came, or built from GGUF metadata, tokenizer.model, or vocab.json.

Knows how text is cut before BPE (PRE) and how sentencepiece scores become merges. The truth is what Hugging Face's own
tokenizer.json of the same model does; knows no model's weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eyespot import limits
from eyespot.checkpoint import sentencepiece
from eyespot.checkpoint.checkpoint import Checkpoint
from eyespot.checkpoint.gguf import Metadata
from eyespot.checkpoint.sentencepiece import CONTROL, NORMAL, UNKNOWN, USER_DEFINED
from eyespot.errors import EyespotError
from eyespot.tensorfile import parse_json, read_bytes, read_json

SIDE_FILES = (  # carried along unread
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
SOURCES = "tokenizer.json, tokenizer.model, or vocab.json with merges.txt"
SPECIAL = (UNKNOWN, CONTROL)  # types of tokens that are never text
TEXT_CHARS = limits.HEADER_BYTES  # of all tokens together: bounds the work of deriving merges


@dataclass(frozen=True, slots=True)
class Pre:
    """How byte-level BPE cuts text first: each pattern cuts the pieces the one before has left."""

    splits: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token is taken whole
    nfc: bool = False
    bos: bool = False  # unless the file says otherwise


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_QWEN2 = Pre((_WORDS + r"\p{N}" + _REST,), nfc=True)
_LLAMA3 = Pre((_WORDS + r"\p{N}{1,3}" + _REST,), ignore_merges=True, bos=True)
_DIGITS = Pre((r"\p{N}", _GPT2))
PRE = {  # by tokenizer.ggml.pre
    "default": Pre((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": Pre((_GPT2,)),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}
PRE_OF_CLASS = {  # by tokenizer_config.json's tokenizer_class, for checkpoints of vocab.json and merges.txt
    "Qwen2Tokenizer": "qwen2",
    "Qwen2TokenizerFast": "qwen2",
    "GPT2Tokenizer": "gpt-2",
    "GPT2TokenizerFast": "gpt-2",
}


@dataclass(frozen=True, slots=True)
class Added:
    """A token found in the text before it is cut. Special ones may be left out when decoding."""

    text: str
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    single_word: bool = False


@dataclass(frozen=True, slots=True)
class Built:
    """A tokenizer built from GGUF metadata: its file, texts and types by id, and the token it puts first, if any."""

    json: bytes
    texts: dict[int, str]
    types: list[int]
    bos: str | None


def tokenizer_json(checkpoint: Checkpoint) -> bytes:
    """The checkpoint's tokenizer.json, as it came or built. EyespotError when it has no tokenizer."""
    data = checkpoint.files.get("tokenizer.json")
    if data is None:
        raise EyespotError(f"{checkpoint.path.name}: no tokenizer", expected=SOURCES)
    return data


def check_tokenizer(tokenizer: bytes, vocab_size: int) -> None:
    """Raises EyespotError when a token id of a tokenizer.json has no row in an embedding of `vocab_size` rows.

    A larger embedding is fine: checkpoints pad theirs.
    """
    raw = parse_json(tokenizer, "tokenizer.json")
    model = raw.get("model") if isinstance(raw, dict) else None
    vocab = model.get("vocab") if isinstance(model, dict) else None
    added = raw.get("added_tokens") or [] if isinstance(raw, dict) else []
    if not isinstance(vocab, dict | list) or not isinstance(added, list):
        raise EyespotError("tokenizer.json: no vocabulary", expected="model.vocab and added_tokens")
    ids = set(vocab.values() if isinstance(vocab, dict) else range(len(vocab)))
    ids |= {token.get("id") if isinstance(token, dict) else None for token in added}
    if not all(type(i) is int and 0 <= i < limits.VOCAB for i in ids):
        raise EyespotError("tokenizer.json: an id is not a number in range", expected=f"0 to {limits.VOCAB - 1}")
    past = sum(i >= vocab_size for i in ids)
    if past:
        raise EyespotError(
            "the tokenizer does not fit the vocabulary", found=f"{past} of {len(ids)} ids up to {max(ids)}",
            expected=f"ids below {vocab_size}", cause="it is of another model, or tokens were added without resizing",
        )  # fmt: skip


def directory_files(directory: Path, config: Mapping[str, Any]) -> dict[str, bytes]:
    """Side files of a checkpoint directory by name; tokenizer.json is built when it is only there in an older form."""
    files = {name: read_bytes(directory / name) for name in SIDE_FILES if (directory / name).is_file()}
    if "tokenizer.json" not in files:
        settings = _object(directory / "tokenizer_config.json")
        added = _added_tokens(directory, settings)
        if (directory / "tokenizer.model").is_file():
            files["tokenizer.json"] = _from_sentencepiece(directory / "tokenizer.model", settings, added)
        elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
            files["tokenizer.json"] = _from_vocab(directory, settings, added, config)
    return files


def gguf_tokenizer(name: str, metadata: Metadata, arch: str) -> Built:
    """Builds tokenizer.json from `tokenizer.ggml.*`. EyespotError for kinds and cuts that are not known here."""
    kind, texts = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.tokens")
    if kind not in ("gpt2", "llama"):
        raise EyespotError(f"{name}: unknown kind of tokenizer", found=kind, expected="gpt2 or llama")
    if not isinstance(texts, list) or not 0 < len(texts) <= limits.VOCAB:
        raise EyespotError(f"{name}: tokenizer.ggml.tokens is not a list of 1 to {limits.VOCAB} texts")
    types = [int(t) for t in _numbers(name, metadata, "token_type", len(texts)) or [NORMAL] * len(texts)]
    vocab = {text: i for i, text in enumerate(texts)}
    tokens = {i: text for text, i in vocab.items()}  # a text that is there twice belongs to its last id
    spelled = metadata.get("tokenizer.ggml.merges")
    merges = [_pair(m, name) for m in spelled] if isinstance(spelled, list) else None
    rstrip = arch == "phi3" and kind == "llama"  # Phi-3's own tokenizer eats the space after a role token
    added = {
        i: Added(tokens[i], types[i] in SPECIAL, rstrip=rstrip and tokens[i] not in ("<unk>", "<s>", "<|endoftext|>"))
        for i in tokens
        if types[i] in SPECIAL or types[i] == USER_DEFINED
    }
    pre_name = metadata.get("tokenizer.ggml.pre", "default")
    pre = PRE.get(pre_name) if isinstance(pre_name, str) else None
    if kind == "gpt2" and pre is None:
        raise EyespotError(f"{name}: unknown tokenizer.ggml.pre", found=pre_name, expected=", ".join(PRE))
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or (pre is not None and pre.bos))
    bos_id = metadata.get("tokenizer.ggml.bos_token_id", 1 if kind == "llama" else None)
    bos = tokens.get(bos_id) if add_bos is True and type(bos_id) is int else None
    if kind == "gpt2" and pre is not None:
        if merges is None:
            raise EyespotError(f"{name}: no tokenizer.ggml.merges")
        return Built(_byte_level(name, vocab, merges, pre, added, bos), tokens, types, bos)
    if merges is None:
        scores = _numbers(name, metadata, "scores", len(texts))
        if scores is None:
            raise EyespotError(f"{name}: no tokenizer.ggml.scores")
        merges = _merges(name, [(text, scores[i], types[i]) for text, i in vocab.items()])
    prefix_space = metadata.get("tokenizer.ggml.add_space_prefix", True) is True
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    unk = tokens.get(unknown) if type(unknown) is int else None
    return Built(_sentencepiece(name, vocab, merges, prefix_space, unk, added, bos), tokens, types, bos)


def _numbers(name: str, metadata: Metadata, key: str, count: int) -> list[float] | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    if not isinstance(value, np.ndarray) or len(value) != count or not np.isfinite(value).all():
        raise EyespotError(f"{name}: tokenizer.ggml.{key} is not {count} numbers")
    numbers: list[float] = value.tolist()
    return numbers


def _from_sentencepiece(path: Path, settings: Mapping[str, Any], added: dict[int, Added]) -> bytes:
    model = sentencepiece.parse(read_bytes(path), path.name)
    texts = dict(enumerate(model.texts))
    for i, kind in enumerate(model.types):
        if kind in SPECIAL or kind == USER_DEFINED:
            added.setdefault(i, Added(model.texts[i], kind in SPECIAL))
    texts |= {i: token.text for i, token in added.items()}  # fine-tunes rename pieces that their base never used
    vocab = {text: i for i, text in texts.items()}
    pieces = [(t, model.scores[i], model.types[i]) for t, i in vocab.items() if i < len(model.texts) and i not in added]
    unk = next((texts[i] for i, kind in enumerate(model.types) if kind == UNKNOWN), None)
    bos = _token_text(settings.get("bos_token"), "<s>") if settings.get("add_bos_token", True) is not False else None
    merges = _merges(path.name, pieces)
    return _sentencepiece(path.name, vocab, merges, model.prefix_space, unk, added, bos if bos in vocab else None)


def _from_vocab(
    directory: Path, settings: Mapping[str, Any], added: dict[int, Added], config: Mapping[str, Any]
) -> bytes:
    vocab = _object(directory / "vocab.json")
    if not vocab or not all(type(i) is int and 0 <= i < limits.VOCAB for i in vocab.values()):
        raise EyespotError("vocab.json: not a map from text to id", expected=f"ids below {limits.VOCAB}")
    kind = settings.get("tokenizer_class", "Qwen2Tokenizer" if config.get("model_type") == "qwen2" else None)
    pre = PRE_OF_CLASS.get(kind) if isinstance(kind, str) else None
    if pre is None:
        expected = f"{', '.join(PRE_OF_CLASS)}, or a tokenizer.json"
        raise EyespotError(
            "tokenizer_config.json: unknown tokenizer_class for vocab.json", found=str(kind), expected=expected
        )
    lines = _decode(read_bytes(directory / "merges.txt"), "merges.txt").split(
        "\n"
    )  # not splitlines: U+0085 is a token's text
    merges = [_pair(line, "merges.txt") for line in lines if line.strip() and not line.startswith("#version")]
    bos = _token_text(settings.get("bos_token"), None) if settings.get("add_bos_token") is True else None
    vocab |= {token.text: i for i, token in added.items()}
    return _byte_level("vocab.json", vocab, merges, PRE[pre], added, bos if bos in vocab else None)


def _added_tokens(directory: Path, settings: Mapping[str, Any]) -> dict[int, Added]:
    """Added tokens by id, of tokenizer_config.json's added_tokens_decoder, or else of the older added_tokens.json."""
    added: dict[int, Added] = {}
    decoder = settings.get("added_tokens_decoder")
    if isinstance(decoder, dict) and decoder:
        for key, token in decoder.items():
            text = token.get("content") if isinstance(token, dict) else None
            if not isinstance(text, str) or not text or not key.isdecimal() or len(key) > 8 or int(key) >= limits.VOCAB:
                raise EyespotError("tokenizer_config.json: malformed added_tokens_decoder", found=f"{key}: {token}")
            flags = {f: bool(token.get(f, False)) for f in ("special", "lstrip", "rstrip", "normalized", "single_word")}
            added[int(key)] = Added(text, **flags)
        return added
    special = _special_texts(settings) | _special_texts(_object(directory / "special_tokens_map.json"))
    for text, i in _object(directory / "added_tokens.json").items():
        if type(i) is not int or not 0 <= i < limits.VOCAB or not text:
            raise EyespotError("added_tokens.json: not a map from text to id", found=f"{text}: {i}")
        added[i] = Added(text, special=text in special)
    return added


def _special_texts(settings: Mapping[str, Any]) -> set[str]:
    """Texts of eos_token, bos_token ... and additional_special_tokens."""
    more = settings.get("additional_special_tokens")
    values = [v for k, v in settings.items() if k.endswith("_token")] + (more if isinstance(more, list) else [])
    return {text for value in values if (text := _token_text(value, None)) is not None}


def _merges(name: str, pieces: Sequence[tuple[str, float, int]]) -> list[tuple[str, str]]:
    """BPE merges that act like sentencepiece's scores: every split of a piece into two others, best score first.

    Sentencepiece joins the pair whose joint has the best score; ties go to the left, here to the longer left part.
    """
    if sum(len(text) for text, _, _ in pieces) > TEXT_CHARS:
        raise EyespotError(f"{name}: tokens too long", expected=f"at most {TEXT_CHARS} characters in all")
    ids = {text: i for i, (text, _, kind) in enumerate(pieces) if kind == NORMAL}
    found: list[tuple[float, int, int, str, str]] = []
    for text, i in ids.items():
        if len(text) > limits.NAME_CHARS:
            continue
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in ids and right in ids:
                found.append((-pieces[i][1], -cut, i, left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _byte_level(
    name: str,
    vocab: Mapping[str, int],
    merges: list[tuple[str, str]],
    pre: Pre,
    added: dict[int, Added],
    bos: str | None,
) -> bytes:
    from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

    tokenizer = _bpe(name, vocab, merges, ignore_merges=pre.ignore_merges)
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.splits]
    alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, alphabet])
    tokenizer.decoder = decoders.ByteLevel()
    plain = processors.ByteLevel(trim_offsets=False)
    tokenizer.post_processor = processors.Sequence([plain, _first(bos, vocab)]) if bos else plain
    return _finish(tokenizer, added)


def _sentencepiece(
    name: str, vocab: Mapping[str, int], merges: list[tuple[str, str]], prefix_space: bool, unk: str | None,
    added: dict[int, Added], bos: str | None,
) -> bytes:  # fmt: skip
    from tokenizers import decoders, normalizers

    all_bytes = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    tokenizer = _bpe(name, vocab, merges, unk_token=unk, fuse_unk=True, byte_fallback=all_bytes)
    space = [normalizers.Prepend("▁")] if prefix_space else []  # after each added token too, as llama.cpp has it
    tokenizer.normalizer = normalizers.Sequence([*space, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix_space else []
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    if bos:
        tokenizer.post_processor = _first(bos, vocab)
    return _finish(tokenizer, added)


def _bpe(name: str, vocab: Mapping[str, int], merges: list[tuple[str, str]], **options: Any) -> Any:
    """A tokenizer of one BPE model. Ids without a text get one nobody writes: the library takes gaps for corruption."""
    from tokenizers import Tokenizer, models

    used = set(vocab.values())
    if len(used) != len(vocab):
        raise EyespotError(f"{name}: one id stands for two tokens")
    if max(used) >= 2 * len(used) + 4096:
        raise EyespotError(f"{name}: more gaps than tokens", found=f"{len(used)} ids up to {max(used)}")
    for left, right in merges:
        if left not in vocab or right not in vocab or left + right not in vocab:
            raise EyespotError(f"{name}: a merge of tokens that are not there", found=f"{left} {right}")
    whole = {**{f"[eyespot unused {i}]": i for i in range(max(used)) if i not in used}, **vocab}
    try:
        return Tokenizer(models.BPE(vocab=whole, merges=merges, **options))
    except Exception as error:  # half a surrogate pair from JSON, for one; the library raises what its Rust side had
        raise EyespotError(f"{name}: the vocabulary is refused", found=str(error).partition("\n")[0]) from None


def _first(bos: str, vocab: Mapping[str, int]) -> Any:
    from tokenizers import processors

    start = [bos, "$A"]  # as a list: a token's own text may hold spaces
    return processors.TemplateProcessing(single=start, pair=[*start, "$B"], special_tokens=[(bos, vocab[bos])])


def _finish(tokenizer: Any, added: Mapping[int, Added]) -> bytes:
    from tokenizers import AddedToken

    for _, token in sorted(added.items()):
        if token.text:
            flags = {f: getattr(token, f) for f in ("special", "lstrip", "rstrip", "normalized", "single_word")}
            tokenizer.add_tokens([AddedToken(token.text, **flags)])
    text: str = tokenizer.to_str()
    return text.encode()


def _pair(line: str, name: str) -> tuple[str, str]:
    left, _, right = line.rstrip("\r").partition(" ")
    if not left or not right:
        raise EyespotError(f"{name}: a merge is not two tokens", found=line)
    return left, right


def _token_text(value: Any, default: str | None) -> str | None:
    """bos_token is a text, or an object with one."""
    text = value.get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else default


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise EyespotError(f"{path.name}: not an object", found=type(value).__name__)
    return value


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise EyespotError(f"{name}: not UTF-8", cause="the file is corrupted") from None
