"""Recipe: ordered rules (pattern -> scheme); the first rule that matches a weight gives its scheme.

Policy as data, apart from packing. Knows labels and roles of weights, not their values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from eyespot.errors import UsageError
from eyespot.program import Program, Weight
from eyespot.quantize.formats import SCHEMES, Scheme, parse

MATRIX = {("linear", "weight"), ("head", "weight")}
TABLE = {("embed", "weight")}
# "--scheme gguf": for a type of GGUF the scheme that holds the same numbers, bit for bit; Q4_0 and Q4_1 where every
# block uses its whole range, which those made without an importance matrix do.
AS_STORED = "gguf"
TWINS = {
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "Q8_0": "W8A8-g32",
    "Q4_0": "W4A8-g32",
    "Q4_1": "W4A8-g32-asym",
}
NO_TWIN = "W8A8-g32"  # for all other types


@dataclass(frozen=True, slots=True)
class Rule:
    """Weights take `scheme` whose label 'part/name', or a checkpoint tensor they come from, is found by `pattern`."""

    pattern: str
    scheme: Scheme
    user: bool = False

    def matches(self, weight: Weight) -> bool:
        names = (weight.label, *(rows.tensor for rows in weight.sources))
        return any(re.search(self.pattern, name) for name in names)

    def __str__(self) -> str:
        return f"{self.pattern}={self.scheme}"


def parse_rule(text: str) -> Rule:
    """A user's 'REGEX=SCHEME'. UsageError for a bad pattern or scheme."""
    pattern, equals, scheme = text.rpartition("=")
    if not equals or not pattern:
        raise UsageError("tensor scheme is malformed", found=text, expected="REGEX=SCHEME, such as 'o_proj=W8A16'")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"tensor scheme '{text}': not a regular expression ({error})") from None
    return Rule(pattern, parse(scheme), user=True)


def default_rules(scheme: Scheme, vision_scheme: Scheme, table_scheme: Scheme) -> tuple[Rule, ...]:
    """The rules below the user's: vision part, token table, head, all else. Vectors are not asked: they stay f32."""
    return (
        Rule("^vision/", vision_scheme),
        Rule("^embed_tokens/", table_scheme),
        Rule("^post/", _head_scheme(scheme)),
        Rule("", scheme),
    )


def _head_scheme(scheme: Scheme) -> Scheme:
    """With layers at 4 bits the head takes 8, in groups of 32: 4 bits there cost the most, as llama-quantize knows."""
    return parse(f"W8A{scheme.activation_bits}-g32") if scheme.bits == 4 else scheme


def twin_rules(program: Program, dtype: Callable[[str], str]) -> tuple[tuple[Rule, ...], list[str]]:
    """A rule for every matrix, the twin of what a GGUF file stores it as (dtype: of a tensor), and warnings."""
    rules, unlike, roles = [], Counter[str](), program.roles()
    for weight in program.weights.values():
        if roles[weight.name] <= MATRIX and weight.part != "vision":
            types = {dtype(rows.tensor) for rows in weight.sources}
            twin = TWINS.get(*types) if len(types) == 1 else None
            if twin is None:
                unlike[" and ".join(sorted(types))] += 1
            rules.append(Rule(f"^{re.escape(weight.label)}$", SCHEMES[twin or NO_TWIN]))
    warnings = [f"{count} weights of {kind} have no exact twin: {NO_TWIN}" for kind, count in sorted(unlike.items())]
    return tuple(rules), warnings


def assign(program: Program, rules: Sequence[Rule]) -> Program:
    """The same Program with a scheme on every weight. Vectors, biases, prefixes and position tables are always f32.

    Errors: UsageError for a user's rule that no weight follows, or that puts on a weight what its op cannot read.
    """
    roles = program.roles()
    for i, rule in enumerate(rules):
        if rule.user:
            _check(rule, rules[:i], program, roles)
    return replace(
        program, weights={w.name: replace(w, scheme=_scheme(w, roles[w.name], rules)) for w in program.weights.values()}
    )


def _scheme(weight: Weight, roles: set[tuple[str, str]], rules: Sequence[Rule]) -> str:
    if not roles <= MATRIX | TABLE:
        return SCHEMES["f32"].name
    for rule in rules:
        # A table skips default W rules only; a user's W rule on a table is refused by _check.
        if rule.matches(weight) and not (rule.scheme.integer and roles & TABLE):
            return rule.scheme.name
    return SCHEMES["f32"].name


def split_matches(program: Program, rules: Sequence[Rule]) -> list[str]:
    """A warning for each rule that was meant for a part of a fused weight and gets the whole: v_proj gets qkv_proj."""
    warnings, roles = [], program.roles()
    matrices = [w for w in program.weights.values() if roles[w.name] <= MATRIX]
    for i, rule in enumerate(rules):
        fused = [w.label for w in matrices if _part_only(rule, w) and not any(r.matches(w) for r in rules[:i])]
        if fused:
            more = f" (+{len(fused) - 1} more)" if len(fused) > 1 else ""
            warnings.append(f"tensor scheme '{rule}' goes to all of {fused[0]}{more}, of which it matches a part")
    return warnings


def _part_only(rule: Rule, weight: Weight) -> bool:
    """Whether the pattern finds some of a weight's tensors, and in its label nothing but the tail of a word: the v_proj
    in qkv_proj was not meant."""
    matched = {bool(re.search(rule.pattern, rows.tensor)) for rows in weight.sources}
    named = (weight.label[: match.start()] for match in re.finditer(rule.pattern, weight.label))
    return matched == {True, False} and all(re.search(r"\w$", before) for before in named)


def _check(rule: Rule, earlier: Sequence[Rule], program: Program, roles: dict[str, set[tuple[str, str]]]) -> None:
    found = [w for w in program.weights.values() if rule.matches(w)]
    if not found:
        raise UsageError(f"tensor scheme '{rule}' matches no weight", expected=_near(rule.pattern, program))
    stored = [w for w in found if roles[w.name] <= MATRIX | TABLE]
    if not stored and rule.scheme.name != "f32":
        raise UsageError(
            f"tensor scheme '{rule}' matches vectors only, which stay f32", found=", ".join(w.label for w in found[:3])
        )
    won = [w for w in stored if not any(r.matches(w) for r in earlier)]
    if stored and not won:
        first = next(r for r in earlier if r.matches(stored[0]))
        raise UsageError(
            f"tensor scheme '{rule}' comes too late: earlier ones take all that it matches",
            found=f"'{first}' for {stored[0].label}",
            cause="a fused weight takes one scheme" if _part_only(rule, stored[0]) else None,
        )
    for weight in won:
        if rule.scheme.integer and roles[weight.name] & TABLE:
            raise UsageError(
                f"tensor scheme '{rule}' matches the token table {weight.label}",
                expected="f32, f16 or bf16 for it, or a pattern that leaves it out",
            )


def _near(pattern: str, program: Program) -> str:
    """Names like the pattern: labels, source names, and the words inside them, layer numbers folded."""
    names = {n for w in program.weights.values() for n in (w.label, *(r.tensor for r in w.sources))}
    words = {word for name in names for word in re.split(r"[./]", name) if not word.isdecimal()}
    near = get_close_matches(re.sub(r"[\\^$]", "", pattern), sorted(words) + sorted(names), n=4, cutoff=0.5)
    return f"a name such as {', '.join(near or sorted(words)[:8])}"
