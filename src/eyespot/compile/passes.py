"""The passes of the compiler, in order. Each takes the Job, adds its one thing, and raises EyespotError when it cannot.

Nothing touches the disk before `write`; nothing is seen under the bundle's name before `seal`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import eyespot
from eyespot import families, limits
from eyespot.bundle.read import CONFIG, FAST_TOKENIZER, PROGRAM
from eyespot.bundle.settings import ImageRule
from eyespot.bundle.write import BundleWriter
from eyespot.compile.job import Job
from eyespot.compile.schedule import plan
from eyespot.compile.settings import added_tokens, image_processor, make_settings, open_tokenizer, side_files
from eyespot.compile.tokenizer import fast_form
from eyespot.compile.weights import total_bytes, write_parts
from eyespot.errors import Faults, GateFailed, UsageError
from eyespot.program.transforms import materialize, source_faults
from eyespot.quantize.formats import F32, LAYOUT, SCHEMES, Scheme, parse
from eyespot.quantize.recipe import AS_STORED, NO_TWIN, assign, default_rules, parse_rule, split_matches, twin_rules
from eyespot.quantize.report import best_tokens, measure
from eyespot.resolution import Qwen, Rule

TALK = 768  # tokens of prompt and answer beside the largest picture, when nobody says how large a context should be
DEFAULT_CTX, CTX_STEP = 1024, 256
CHECKS = ("none", "layers", "full")


def read_options(job: Job) -> None:
    """What can be refused without opening anything."""
    o = job.options
    if o.check not in CHECKS:
        raise UsageError("unknown check", found=o.check, expected=", ".join(CHECKS))
    if o.min_cosine is not None and (o.check == "none" or not -1 <= o.min_cosine <= 1):
        raise UsageError(
            "min-cosine cannot be honoured", found=o.min_cosine, expected="-1 to 1, with a check to measure it"
        )
    if o.check != "none" and job.open_engine is None:
        raise UsageError("a check needs the engine", cause="the native module is not built")
    if not 0 <= o.threads <= limits.THREADS:
        raise UsageError("threads out of range", found=o.threads, expected=f"0 to {limits.THREADS}")
    if o.image_size is not None and not 1 <= o.image_size <= limits.IMAGE_SIDE:
        raise UsageError("image size out of range", found=o.image_size, expected=f"1 to {limits.IMAGE_SIDE}")
    if o.scheme == AS_STORED and job.source.format != "gguf":
        raise UsageError(f"scheme '{AS_STORED}' takes over what a GGUF file has", found=f"{job.source.format} files")
    for scheme in (o.vision_scheme,) if o.scheme == AS_STORED else (o.scheme, o.vision_scheme):
        parse(scheme)
    for rule in o.tensor_schemes:
        parse_rule(rule)
    job.warnings += job.source.warnings


def build(job: Job) -> None:
    """The float Program, by the family of the checkpoint's architecture."""
    shapes = {name: tensor.shape for name, tensor in job.source.tensors.items()}
    o, token_ids, pictures = job.options, added_tokens(job.source.files), image_processor(job.source.files)

    def built(ctx_size: int | None) -> families.Built:
        return families.build(job.source.config, shapes, o.image_size, ctx_size, token_ids, pictures)

    job.ctx_size = default_ctx(within(built(None), o.image_tokens)) if o.ctx_size is None else o.ctx_size
    job.built = within(built(job.ctx_size), o.image_tokens)  # anew: rope rules and windows go by the context
    job.program = job.built.program
    job.warnings += job.built.warnings
    if job.built.unknown_keys:
        job.warnings.append(f"config keys that nobody read: {_few(job.built.unknown_keys)}")
    if o.image_size is not None and "vision" not in job.program.graphs:
        raise UsageError("the model has no eyes, so no image size", found=o.image_size)


def picture_rule(image: Mapping[str, Any]) -> Rule:
    """How a bundle with these image settings cuts pictures."""
    return ImageRule.parse("image", dict(image)).resolution


def within(built: families.Built, tokens: int | None) -> families.Built:
    """The same model, whose pictures take at most so many tokens. UsageError when they cannot."""
    if tokens is None:
        return built
    if built.image is None:
        raise UsageError("the model has no eyes, so no image tokens", found=tokens)
    rule = picture_rule(built.image).within(tokens)
    numbers = json.loads(json.dumps(asdict(rule)))  # type: ignore[call-overload] # with lists, as config.json has them
    return replace(built, image={**built.image, **numbers})


def default_ctx(built: families.Built) -> int:
    """Tokens of context when nobody says: with eyes, for a picture of the most tiles and some talk about it."""
    info, image, wanted = built.program.info, built.image, DEFAULT_CTX
    if image is not None:
        largest = picture_rule(image).most()
        wanted = -(-(largest + TALK) // CTX_STEP) * CTX_STEP
    return min(wanted, info.max_position, limits.CONTEXT)


def check_weights(job: Job) -> None:
    """All missing and misshapen tensors at once; tensors that nobody reads are told, not refused."""
    weights, tensors = job.program.weights.values(), job.source.tensors
    faults = Faults(f"{job.source.name} is not a whole {job.program.family} checkpoint")
    faults.items += source_faults(weights, {name: tensor.shape for name, tensor in tensors.items()})
    faults.raise_if_any(cause="a shard is missing, or the weights and config.json are of two models")
    used = {rows.tensor for weight in weights for rows in weight.sources}
    known = re.compile("|".join(f"(?:{p})" for p in job.built.unused_tensors) or r"(?!)")
    extra = sorted(name for name in set(tensors) - used if not known.fullmatch(name))
    if extra:
        job.warnings.append(f"tensors of the checkpoint that the model does not use: {_few(extra)}")


def choose_schemes(job: Job) -> None:
    """A scheme for every weight: the user's overrides, then the defaults."""
    o = job.options
    rules = [parse_rule(text) for text in o.tensor_schemes]
    job.warnings += split_matches(job.program, rules)
    if o.scheme == AS_STORED:
        twins, warnings = twin_rules(job.program, job.source.dtype)
        rules += twins
        job.warnings += warnings
    scheme = parse(NO_TWIN if o.scheme == AS_STORED else o.scheme)
    rules += default_rules(scheme, parse(o.vision_scheme), _table_scheme(job, scheme))
    job.program = assign(job.program, rules)


def _table_scheme(job: Job, scheme: Scheme) -> Scheme:
    """A looked-up row costs no time, so the table keeps what the checkpoint has, in 16 bits."""
    tables = [op.weights["weight"] for _, op in job.program.graphs["text"].ops() if op.kind == "embed"]
    stored = {job.source.dtype(rows.tensor) for name in tables for rows in job.program.weights[name].sources}
    if scheme.name == "f32" or (job.options.scheme == AS_STORED and stored == {"F32"}):
        return SCHEMES["f32"]
    return SCHEMES["bf16" if stored <= {"F32", "BF16"} else "f16"]


def schedule(job: Job) -> None:
    """The memory plan."""
    o = job.options
    tiles = 1  # at once; a picture of any size is encoded as a whole
    if job.built.image is not None and (rule := picture_rule(job.built.image)).name == Qwen.name:
        tiles = rule.most()
    job.memory = plan(job.program, job.ctx_size, o.prefill_chunk, o.kv_cache, tiles)


def settle(job: Job) -> None:
    """Side files and config.json, in memory; a tokenizer that does not fit is refused before weights are written."""
    job.files = side_files(job.source.files, job.built, job.warnings)
    job.settings = make_settings(job.files, job.built, job.memory.ctx, job.warnings)
    if (data := job.files.get("tokenizer.json")) is not None:
        fast = fast_form(data, open_tokenizer(data), job.warnings)
        job.files |= {} if fast is None else {FAST_TOKENIZER: fast}


def write(job: Job) -> None:
    """Everything but the manifest, into a temporary sibling of the bundle."""
    program = {**job.program.to_json(), "layout": LAYOUT, "memory": job.memory.to_json()}
    job.bundle = job.exit.enter_context(BundleWriter(job.out))
    job.bundle.need(total_bytes(job.program) + sum(map(len, job.files.values())))
    source = job.source
    write_parts(job.program, source.read, source.release, job.bundle, job.options.threads, progress=job.progress)
    for name, data in job.files.items():
        job.bundle.add(name, data)
    job.bundle.add_json(PROGRAM, program, indent=None)
    job.bundle.add_json(CONFIG, job.settings.to_json())
    _manifest(job)


def _manifest(job: Job) -> None:
    architectures = job.source.config.get("architectures")
    source = {
        "name": job.source.name,
        "format": job.source.format,
        "architectures": architectures if isinstance(architectures, list) else [],
        "options": {name: value for name, value in asdict(job.options).items() if name != "threads"},
    }
    job.bundle.write_manifest(
        {"eyespot": eyespot.__version__, "source": source, "report": job.report}, unlisted=(CONFIG,)
    )


def check(job: Job) -> None:
    """The unsealed bundle in the engine beside the float reference. GateFailed when a block is further than allowed."""
    o = job.options
    if o.check == "none" or job.open_engine is None:
        return
    if "tokenizer.json" not in job.files:
        raise UsageError("a check needs a tokenizer", cause="the checkpoint has none")
    tokenizer = open_tokenizer(job.files["tokenizer.json"])
    tokens = tokenizer.encode(o.check_prompt, add_special_tokens=False).ids
    info, room = job.program.info, job.memory.ctx - 1  # one more token is decoded
    if not 0 < len(tokens) <= room:
        raise UsageError("the check prompt does not fit", found=f"{len(tokens)} tokens", expected=f"1 to {room}")
    eyes = "vision" in job.program.graphs
    picture = min(room - len(tokens), job.memory.units["t"] * info.tile_tokens) if eyes else 0
    picture = picture if picture >= info.tile_tokens else 0
    if eyes and not picture:
        job.warnings.append(f"eyes not checked: a tile's {info.tile_tokens} tokens do not fit the context")
    engine = job.open_engine(job.bundle.path)
    try:
        report, expected, got = measure(job.built.program, FloatWeights(job), engine, tokens, picture)
    finally:
        engine.close()
    job.report = {"check": o.check, "prompt": o.check_prompt, **report}
    if o.check == "full":
        job.report["next_token"] = best_tokens(
            expected, got, lambda i: tokenizer.decode([i], skip_special_tokens=False)
        )
    worst, first = min(report["blocks"], key=lambda row: row["cosine"]), report["worst"][0]
    if o.min_cosine is not None and worst["cosine"] < o.min_cosine:
        raise GateFailed(
            f"{worst['phase']}, block '{worst['block']}' is too far from float32",
            found=f"cosine {worst['cosine']:.6f}",
            expected=f"at least {o.min_cosine}",
            cause=f"the error grows most at {first['block']}: --tensor-scheme '{first['pattern']}=f16' keeps it finer",
        )
    _manifest(job)


class FloatWeights:
    """Float32 weights of the Program by name, read anew each time: the reference holds one at a time."""

    def __init__(self, job: Job) -> None:
        self._weights, self._source = job.built.program.weights, job.source

    def __call__(self, name: str) -> F32:
        weight = self._weights[name]
        values: F32 = materialize(weight, self._source.read)
        for rows in weight.sources:
            self._source.release(rows.tensor)
        return values


def seal(job: Job) -> None:
    """Under its name, whole, on the disk."""
    job.bundle.seal()


def _few(names: tuple[str, ...] | list[str], shown: int = 6) -> str:
    return ", ".join(names[:shown]) + (f" (+{len(names) - shown} more)" if len(names) > shown else "")
