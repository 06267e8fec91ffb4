"""A recipe: what a YAML file says about one stage of training, as a frozen record under the field's own key names.

Names are those of transformers' TrainingArguments and of InternVL's scripts. Knows the rules of each key; does no work.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from eyespot import limits
from eyespot.errors import EyespotError, Faults, UsageError
from eyespot.tensorfile import read_bytes

RECIPE_BYTES = limits.MIB
STEPS = 1_000_000_000


@dataclass(frozen=True)
class Span:
    """Bounds of a number, both included."""

    low: float
    high: float


Count = Annotated[int, Span(1, STEPS)]
CountOrNone = Annotated[int, Span(0, STEPS)]
Width = Annotated[int, Span(1, limits.DIM)]
Heads = Annotated[int, Span(1, limits.HEADS)]
Layers = Annotated[int, Span(1, limits.LAYERS)]
Share = Annotated[float, Span(0, 1)]
Rate = Annotated[float, Span(0, 1e6)]


@dataclass(frozen=True, slots=True)
class Source:
    """One set of training data: a path that `open_set` takes, or `scenes`, the number of scenes that are drawn.

    format, root: as `open_set` has them. seed, split, questions, tasks, sides: as `scenes.Scenes` has them.
    """

    path: str | None = None
    format: str | None = None
    root: Path | None = None
    scenes: Annotated[int, Span(1, limits.RECORDS)] | None = None
    seed: CountOrNone = 0
    split: str = "train"
    questions: Annotated[int, Span(1, 64)] = 4
    tasks: Mapping[str, float] | None = None
    sides: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """An InternViT, in the words of its config."""

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    image_size: Annotated[int, Span(8, limits.IMAGE_SIDE)] = 448
    patch_size: Annotated[int, Span(1, limits.IMAGE_SIDE)] = 14
    attention_bias: bool = True
    layer_norm_eps: Share = 1e-6
    layer_scale_init_value: Share = 0.1


@dataclass(frozen=True, slots=True)
class TextConfig:
    """A Qwen2, in the words of its config; the vocabulary's size is the tokenizer's."""

    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Heads
    num_key_value_heads: Heads
    max_position_embeddings: Annotated[int, Span(16, limits.CONTEXT)] = 2048
    rope_theta: Annotated[float, Span(1, 1e12)] = 10_000.0
    rms_norm_eps: Share = 1e-6


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model that does not exist yet. vocab_size: of the tokenizer to be trained on `data` and on English docstrings,
    added tokens included; or tokenizer_name_or_path, a directory with the tokenizer to take."""

    vision_config: VisionConfig
    text_config: TextConfig
    vocab_size: Annotated[int, Span(300, limits.VOCAB)] = 3072
    tokenizer_name_or_path: Path | None = None
    downsample_ratio: Share = 0.5
    max_dynamic_patch: Annotated[int, Span(1, limits.TILES)] = 12
    tie_word_embeddings: bool = True


@dataclass(frozen=True, slots=True)
class ComposeConfig:
    """A BlueLM-V of two models: a SigLIP and a language model, each a directory, with a new projector between them.

    vision_feature_layer: the hidden state that is taken, as transformers counts them; downsample: patches a side that
    become one token; alpha, image_grids: as `resolution.BlueLMV` has them, its own grids where none are named.
    """

    vision_model_name_or_path: Path
    text_model_name_or_path: Path
    vision_feature_layer: Annotated[int, Span(-limits.LAYERS, limits.LAYERS)] = -1
    downsample: Annotated[int, Span(1, 8)] = 2
    alpha: Share = 0.1
    image_grids: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Recipe:
    """One stage. Where a key is None or 0 the stage or the model decides. docs/training.md explains every key."""

    stage: Literal["create", "distil", "label", "align", "tune", "transfer"]
    output_dir: Path

    model_name_or_path: Path | None = None
    model: ModelConfig | None = None
    compose: ComposeConfig | None = None
    vision_select_layer: Annotated[int, Span(-limits.LAYERS, limits.LAYERS)] | None = None
    freeze_backbone: bool | None = None
    freeze_mlp: bool | None = None
    freeze_llm: bool | None = None
    use_backbone_lora: Annotated[int, Span(0, 4096)] = 0
    use_llm_lora: Annotated[int, Span(0, 4096)] = 0

    data: tuple[Source, ...] = ()
    general_data: tuple[Source, ...] = ()
    mix_ratio: str | None = None
    max_dynamic_patch: Annotated[int, Span(1, limits.TILES)] | None = None
    max_seq_length: Annotated[int, Span(1, limits.CONTEXT)] | None = None
    max_packed_tokens: Annotated[int, Span(1, limits.CONTEXT)] | None = None
    num_images_expected: Annotated[int, Span(1, 4096)] = 48
    skip_bad: bool = False
    dataloader_num_workers: Annotated[int, Span(0, 256)] = 0

    learning_rate: Rate = 4e-5
    lr_scheduler_type: Literal["cosine", "cosine_with_min_lr", "linear", "constant_with_warmup"] = "cosine"
    min_lr_rate: Share = 0.1
    warmup_ratio: Share = 0.03
    warmup_steps: CountOrNone = 0
    weight_decay: Share = 0.01
    vit_layer_decay_rate: Share = 1.0
    adam_beta1: Share = 0.9
    adam_beta2: Share = 0.999
    adam_epsilon: Share = 1e-8
    max_grad_norm: Rate = 1.0
    loss_reduction: Literal["token", "sample", "square"] = "square"
    label_weight: Rate = 0.0

    per_device_train_batch_size: Annotated[int, Span(1, 1 << 16)] = 8
    gradient_accumulation_steps: Annotated[int, Span(1, 1 << 16)] = 1
    num_train_epochs: Rate = 1.0
    max_steps: CountOrNone = 0
    bf16: Literal["auto", True, False] = "auto"
    grad_checkpoint: bool = False
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"
    torch_compile: bool = False
    seed: CountOrNone = 42

    teacher_model_name_or_path: Path | None = None
    distill_layers: Layers = 1
    layer_pairing: Literal["last", "uniform"] | tuple[tuple[int, int], ...] = "last"
    width_adapter: Literal["layer", "shared", "none"] = "layer"
    teacher_image_size: Annotated[int, Span(8, limits.IMAGE_SIDE)] | None = None
    kd_ratio: Share = 0.5
    kd_temperature: Annotated[float, Span(1e-3, 1e3)] = 1.0

    logging_steps: Count = 10
    save_steps: Count = 500
    save_total_limit: Annotated[int, Span(1, 10_000)] = 2
    report_to: tuple[Literal["tensorboard"], ...] = ("tensorboard",)
    torch_dtype: Literal["bfloat16", "float32"] = "bfloat16"


# Keys that may differ between a run and the one that goes on from it: they do not touch a number of the model.
FREE = {
    "output_dir",
    "save_steps",
    "save_total_limit",
    "logging_steps",
    "report_to",
    "dataloader_num_workers",
    "torch_dtype",
    "skip_bad",  # streams count the places of bad records too
}


def read_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file. overrides: `key=value`, a dot for each step down, that win over the file.

    UsageError for a missing file or an override that is none; EyespotError listing all faults: unknown keys by name.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such recipe", expected="a YAML file")
    raw = _yaml(read_bytes(path, RECIPE_BYTES), path.name)
    if not isinstance(raw, dict):
        raise EyespotError(f"{path.name}: not a recipe", found=type(raw).__name__, expected="keys and values")
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError("not an override", found=text, expected="KEY=VALUE")
        at = raw
        *above, last = key.split(".")
        for step in above:
            at = at.setdefault(step, {})
            if not isinstance(at, dict):
                raise UsageError(f"{key}: {step} has no keys of its own")
        at[last] = _yaml(value.encode(), key)
    faults = Faults(path.name)
    recipe: Recipe = _record(Recipe, raw, "", faults)
    if not faults.items:
        _check(recipe, faults)
    faults.raise_if_any()
    return recipe


def as_json(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, what a checkpoint remembers of it."""
    plain = dataclasses.asdict(recipe)
    return {key: _plain(value) for key, value in plain.items() if key not in FREE}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key which is there twice, with the numbers of YAML 1.2: 1e-4 is one, and 1:4 is none."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as the base class has it
        letter: [(tag, rule) for tag, rule in rules if tag.rpartition(":")[2] not in ("int", "float", "timestamp")]
        for letter, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        name = loader.construct_object(key)
        if not isinstance(name, str):
            raise yaml.MarkedYAMLError(problem=f"a key is not a text: {name!r:.40}", problem_mark=key.start_mark)
        if name in seen:
            raise yaml.MarkedYAMLError(problem=f"the key '{name}' is there twice", problem_mark=key.start_mark)
        seen.add(name)
    return dict(loader.construct_mapping(node, deep=True))


_SIGNED = list("-+0123456789.")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?(0|[1-9][0-9]*)$"), _SIGNED)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, _SIGNED)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _yaml(data: bytes, name: str) -> Any:
    try:
        return yaml.load(data, _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        raise EyespotError(f"{name}{f':{mark.line + 1}' if mark else ''}: not YAML ({problem})") from None


def _record(kind: Any, raw: Mapping[str, Any], where: str, faults: Faults) -> Any:
    """A dataclass from a mapping; every fault is noted under its dotted name."""
    hints = get_type_hints(kind, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            faults.add(f"unknown key {where}{key}" + (f" (did you mean {near[0]}?)" if near else ""))
    values = {}
    for name, spec in fields.items():
        if name in raw:
            values[name] = _value(hints[name], raw[name], where + name, faults)
        elif spec.default is MISSING and spec.default_factory is MISSING:
            faults.add(f"{where}{name} is missing")
            values[name] = None
    return kind(**values)


def _value(kind: Any, raw: Any, where: str, faults: Faults) -> Any:
    """`raw` as `kind`; a fault, and None, where it is not."""
    trial = Faults("")
    value = _typed(kind, raw, where, trial)
    faults.items += trial.items
    return value


def _typed(kind: Any, raw: Any, where: str, faults: Faults) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value, before = _typed(inner[0], raw, where, faults), len(faults.items)
        span: Span = inner[1]
        if before == 0 and not span.low <= value <= span.high:
            faults.add(f"{where} is {raw!r:.40}, expected {span.low:g} to {span.high:g}")
        return value
    if origin in (Union, types.UnionType):
        tried = []
        for part in inner:
            attempt = Faults("")
            value = _typed(part, raw, where, attempt)
            if not attempt.items:
                return value
            tried.append(attempt)
        worst = tried[0] if raw is not None else tried[-1]
        faults.items += worst.items
        return None
    if kind is types.NoneType:
        if raw is not None:
            faults.add(f"{where} is {raw!r:.40}, expected nothing")
        return None
    if origin is Literal:
        if not any(type(raw) is type(one) and raw == one for one in inner):
            faults.add(f"{where} is {raw!r:.40}, expected {', '.join(_word(one) for one in inner)}")
        return raw
    if origin is tuple:
        if not isinstance(raw, list | tuple):
            faults.add(f"{where} is {raw!r:.40}, expected a list")
            return ()
        if inner[-1] is not Ellipsis and len(raw) != len(inner):
            faults.add(f"{where} has {len(raw)} entries, expected {len(inner)}")
            return ()
        kinds = inner if inner[-1] is not Ellipsis else (inner[0],) * len(raw)
        return tuple(_typed(k, one, f"{where}[{i}]", faults) for i, (k, one) in enumerate(zip(kinds, raw, strict=True)))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(raw, dict):
            faults.add(f"{where} is {raw!r:.40}, expected keys and values")
            return {}
        return {str(k): _typed(inner[1], v, f"{where}.{k}", faults) for k, v in raw.items()}
    if dataclasses.is_dataclass(kind):
        if not isinstance(raw, dict):
            faults.add(f"{where} is {raw!r:.40}, expected keys and values")
            return None
        before = len(faults.items)
        made = _record(kind, raw, f"{where}.", faults)
        return made if len(faults.items) == before else None
    return _scalar(kind, raw, where, faults)


def _scalar(kind: Any, raw: Any, where: str, faults: Faults) -> Any:
    if kind is float and type(raw) in (int, float):
        return float(raw)
    if kind is Path and isinstance(raw, str) and raw and "\0" not in raw:
        return Path(raw)
    if type(raw) is kind and kind in (int, bool, str):
        return raw
    word = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", Path: "a path"}[kind]
    faults.add(f"{where} is {raw!r:.40}, expected {word}")
    return 0 if kind in (int, float) else None


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check(r: Recipe, faults: Faults) -> None:
    """What keys demand of each other."""
    if r.stage == "create":
        if (r.model is None) == (r.compose is None):
            faults.add("expected either model or compose: one of them is what stage create makes")
        elif r.model is not None and r.model.tokenizer_name_or_path is None and not r.data:
            faults.add("data is missing: the tokenizer learns from its texts")
        for columns, rows in r.compose.image_grids if r.compose is not None else ():
            if min(columns, rows) < 1 or columns * rows > limits.TILES:
                faults.add(f"compose.image_grids: [{columns}, {rows}], expected 1 to {limits.TILES} tiles")
        if r.model_name_or_path is not None:
            faults.add("model_name_or_path: stage create makes a model and takes none")
    else:
        if r.model_name_or_path is None:
            faults.add("model_name_or_path is missing")
        for key in ("model", "compose"):
            if getattr(r, key) is not None:
                faults.add(f"{key}: only stage create makes one")
        if not r.data:
            faults.add("data is missing")
    for key, sources in (("data", r.data), ("general_data", r.general_data)):
        for number, source in enumerate(sources):
            if (source.path is None) == (source.scenes is None):
                faults.add(f"{key}[{number}]: expected either path or scenes")
    if r.stage == "distil" and r.teacher_model_name_or_path is None:
        faults.add("teacher_model_name_or_path is missing: stage distil learns from it")
    if r.label_weight and (r.stage in ("create", "distil", "label") or r.teacher_model_name_or_path is not None):
        faults.add("label_weight is for answers: stages align, tune and transfer, without a teacher")
    if bool(r.general_data) != (r.mix_ratio is not None):
        faults.add("general_data and mix_ratio go together, such as mix_ratio: 1:4")
    if r.general_data and r.stage != "transfer":
        faults.add(f"general_data is for stage transfer, not {r.stage}")
    if r.max_packed_tokens and not r.max_steps and r.stage != "create":
        faults.add("max_steps is missing: with max_packed_tokens nobody knows how many steps an epoch takes")
    if r.max_packed_tokens and r.max_seq_length and r.max_seq_length > r.max_packed_tokens:
        faults.add(f"max_seq_length {r.max_seq_length} is above max_packed_tokens {r.max_packed_tokens}")
    if not r.max_steps and not r.num_train_epochs:
        faults.add("neither max_steps nor num_train_epochs is above 0")
