"""Reads a foreign config.json into typed fields: bounds checked, every fault listed, keys that nobody read reported.

Knows no family: each names the keys it needs. Nothing is built before `Findings.raise_if_any` has passed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eyespot import limits
from eyespot.errors import Faults, UnsupportedModel

# Keys of any Hugging Face config that say nothing about inference, or that only other tools use.
_KEYS = """
    _attn_implementation _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention
    architectures attention_dropout attn_implementation attn_pdrop auto_map bad_words_ids begin_suppress_tokens
    bos_token_id chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty
    do_sample drop_path_rate dropout dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id hidden_dropout_prob
    id2label initializer_factor initializer_range is_decoder is_encoder_decoder label2id layer_scale_init_value
    length_penalty max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams
    num_return_sequences output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp
    problem_type projection_dropout pruned_heads remove_invalid_values repetition_penalty resid_pdrop
    return_dict return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature
    tf_legacy_loss tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version
    typical_p use_bfloat16 use_cache use_flash_attn use_flash_attn_2 use_return_dict
"""
BOOKKEEPING = frozenset(_KEYS.split())


def _short(value: Any) -> str:
    try:
        return repr(value)[:24]
    except ValueError:  # Python does not print integers of thousands of digits
        return "a huge number"


class Findings:
    """What is wrong with a config: faults (it cannot be right) and refusals (right, but not built here)."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.faults = Faults(what)
        self.refusals: list[str] = []

    def raise_if_any(self) -> None:
        """EyespotError naming all faults; if there are none, UnsupportedModel naming all refusals."""
        self.faults.raise_if_any(cause="config.json is damaged or of another family")
        if self.refusals:
            raise UnsupportedModel(f"{self.what}: not supported: {', '.join(self.refusals)}")


class Fields:
    """One object of a config. A value that breaks its rule is noted in `findings`, and a harmless one returned."""

    def __init__(self, raw: Mapping[str, Any], findings: Findings, where: str = "") -> None:
        self.raw, self.findings, self.where = raw, findings, where
        self._read: set[str] = set()
        self._inner: list[Fields] = []

    def __contains__(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.raw.get(key) is not None

    def _value(self, key: str) -> Any:
        self._read.add(key)
        return self.raw.get(key)

    @property
    def faults(self) -> int:
        """How many faults were found so far, here and elsewhere."""
        return len(self.findings.faults.items)

    def fault(self, key: str, rule: str) -> None:
        value = self.raw.get(key)
        found = "is missing" if value is None else f"is {_short(value)}"
        self.findings.faults.add(f"{self.where}{key} {found}, expected {rule}")

    def refuse(self, key: str, rule: str) -> None:
        """Notes a value that is legal in its family but that eyespot does not build."""
        self.findings.refusals.append(f"{self.where}{key} = {_short(self.raw.get(key))} (only {rule})")

    def integer(self, key: str, high: int, low: int = 1, default: int | None = None) -> int:
        """An integer in [low, high]; `default` when the key is missing or null, a fault when there is none."""
        value = self._value(key)
        if value is None and default is not None:
            return default
        if type(value) is not int or not low <= value <= high:
            self.fault(key, f"an integer in {low}..{high}")
            return low
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        """A finite number in [low, high]."""
        value = self._value(key)
        if value is None and default is not None:
            return default
        if type(value) not in (int, float) or not low <= value <= high:
            self.fault(key, f"a number in {low:g}..{high:g}")
            return low
        return float(value)

    def numbers(self, key: str, count: int, low: float, high: float) -> tuple[float, ...]:
        """A list of exactly `count` numbers in [low, high]."""
        value = self._value(key)
        if (
            not isinstance(value, list)
            or len(value) != count
            or not all(type(v) in (int, float) and low <= v <= high for v in value)
        ):
            self.fault(key, f"a list of {count} numbers in {low:g}..{high:g}")
            return (low,)
        return tuple(float(v) for v in value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, bool):
            self.fault(key, "true or false")
            return False
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str) or len(value) > limits.TEMPLATE_CHARS:
            self.fault(key, "a string")
            return ""
        return value

    def only(self, key: str, allowed: Sequence[Any], default: Any = None) -> Any:
        """A value among `allowed`; others are refused, since they are other models that we do not build."""
        value = self._value(key)
        if value is None and default is not None:
            return default
        for item in allowed:
            if type(item) is type(value) and item == value:
                return item
        if value is None:
            self.fault(key, f"one of {', '.join(map(str, allowed))}")
        else:
            self.refuse(key, ", ".join(map(str, allowed)))
        return allowed[0]

    def inner(self, key: str) -> Fields:
        """An object inside this one; a fault when it is missing."""
        value = self._value(key)
        if not isinstance(value, Mapping):
            self.fault(key, "an object")
            value = {}
        fields = Fields(value, self.findings, f"{self.where}{key}.")
        self._inner.append(fields)
        return fields

    def ids(self, key: str, vocab_size: int) -> tuple[int, ...]:
        """Token ids: null, one, or a list."""
        value = self._value(key)
        listed = [] if value is None else value if isinstance(value, list) else [value]
        if len(listed) > 64 or not all(type(v) is int and 0 <= v < vocab_size for v in listed):
            self.fault(key, f"token ids in 0..{vocab_size - 1}")
            return ()
        return tuple(listed)

    def ignore(self, *keys: str) -> None:
        """Names keys that are known and change nothing here."""
        self._read.update(keys)

    def override(self, key: str, value: Any) -> None:
        """Lets an outer object's word stand above this one's."""
        self.raw = {**self.raw, key: value}

    def unknown(self) -> tuple[str, ...]:
        """Keys that nobody read, with the path to them, in the order of the file."""
        own = (f"{self.where}{k}" for k in self.raw if k not in self._read and k not in BOOKKEEPING)
        return (*own, *(k for fields in self._inner for k in fields.unknown()))
