"""Chat templates: a bundle's Jinja text rendered in a sandbox whose time and memory are bounded.

The template is hostile, for it came with a checkpoint. It is rewritten before it is compiled, so that every loop step,
every call, every text it emits or joins and every list it builds is charged to one budget. Knows no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from eyespot import limits
from eyespot.errors import EyespotError

# All that chat templates use, and nothing that pads, repeats or formats to a width a template may choose.
FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items",
    "last", "length", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round",
    "safe", "select", "selectattr", "sort", "title", "trim", "unique", "upper",
)  # fmt: skip
TEXT_METHODS = (
    "capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower", "isspace",
    "isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind", "rindex",
    "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper",
)  # fmt: skip
INTEGER_BITS = 256
CALL_STEPS = 10  # a call takes about as long as so many other steps


class _Refused(Exception):
    """The template itself raised, or reached a bound; the text goes to the user."""


class Template:
    """A compiled chat template. EyespotError when it is too long or not Jinja."""

    def __init__(self, source: str) -> None:
        self.source = source
        if len(source) > limits.TEMPLATE_CHARS:
            raise EyespotError(
                "chat template is too long",
                found=f"{len(source)} characters",
                expected=f"at most {limits.TEMPLATE_CHARS}",
            )
        self._environment = _Environment()
        try:
            tree = _Charge(self._environment).visit(self._environment.parse(source))
            self._template = self._environment.from_string(tree)
        except (TemplateError, RecursionError, SyntaxError, ValueError, OverflowError) as error:
            raise EyespotError(f"chat template cannot be compiled ({error})") from None

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt of `messages`. Not for two threads at once. EyespotError when the template refuses, fails, or asks
        for too much."""
        budget = self._environment.budget
        budget.reset()
        try:
            return self._template.render(messages=messages, **variables)
        except _Refused as error:
            raise EyespotError(f"chat template: {error}") from None
        except RecursionError:
            raise EyespotError("chat template: nested too deeply") from None
        except MemoryError:
            raise EyespotError("chat template: out of memory") from None
        except Exception as error:  # any operator on any type may fail inside a template, in its own way
            raise EyespotError(f"chat template failed ({type(error).__name__}: {error})") from None


class _Budget:
    """What one rendering may still spend: steps (loop items, list items, calls, values looked at) and characters."""

    steps = chars = 0

    def reset(self) -> None:
        self.steps, self.chars = limits.TEMPLATE_STEPS, limits.PROMPT_CHARS

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise _Refused(f"more than {limits.TEMPLATE_STEPS} steps")

    def char(self, count: int) -> None:
        self.chars -= count
        if self.chars < 0:
            raise _Refused(f"more than {limits.PROMPT_CHARS} characters")

    def value(self, value: Any) -> Any:
        """`value`, after its whole size was charged; shared parts count as often as they occur, as str() would."""
        self.step()
        todo = [value]
        while todo:
            item = todo.pop()
            if isinstance(item, str):
                self.char(len(item))
            elif isinstance(item, int):
                if item.bit_length() > INTEGER_BITS:
                    raise _Refused(f"an integer of more than {INTEGER_BITS} bits")
            elif isinstance(item, Mapping):
                self.step(1 + len(item))
                todo += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | set):
                self.step(1 + len(item))
                todo += item
        return value

    def product(self, left: Any, right: Any) -> None:
        """Charges left * right before it exists."""
        for a, b in ((left, right), (right, left)):
            if isinstance(a, str) and isinstance(b, int):
                self.char(len(a) * max(b, 0))
            elif isinstance(a, list | tuple) and isinstance(b, int):
                self.step(len(a) * max(b, 0))


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation])
        self.budget = budget = _Budget()
        self.filters = {name: self.filters[name] for name in FILTERS}
        self.filters |= {
            "join": lambda items, d="", attribute=None: str(d).join(_parts(self, d, items, attribute)),
            "list": lambda items: budget.value(list(_steps(budget, items))),
            "replace": lambda text, old, new, count=-1: _replace(budget, str(text), str(old), str(new), count),
            "string": lambda value: str(budget.value(value)),
            "tojson": lambda value, **options: _json(budget, value, **options),
            "_emit": lambda value: _emit(budget, value),
            "_steps": lambda items: _steps(budget, items),
            "_value": budget.value,
            "_concat": lambda items: "".join(str(budget.value(item)) for item in items),
        }
        self.globals = {
            "range": lambda *bounds: _range(budget, *bounds),
            "namespace": self.globals["namespace"],
            "dict": dict,
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form),
        }

    def wrap_str_format(self, value: Any) -> None:
        """Of jinja2 3.1.6: would let `format` pass, with widths of the template's choice; call() refuses it."""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.step()
        if operator == "**" or (operator == "%" and isinstance(left, str)):
            raise _Refused(f"operator {operator} is not for templates")
        if operator == "*":
            self.budget.product(left, right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            self.budget.char(len(left) + len(right))
            return left + right
        return self.budget.value(super().call_binop(context, operator, left, right))

    def call(self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self.budget.step(CALL_STEPS)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            self.budget.char(len(owner))
            if name not in TEXT_METHODS:
                raise _Refused(f"method {name} of a text is not for templates")
            if name == "replace":
                return _replace(self.budget, owner, *args, **kwargs)
            if name == "join":
                args = (_parts(self, owner, *args),)
        return self.budget.value(super().call(__context, __obj, *args, **kwargs))


class _Charge(NodeTransformer):
    """Routes through the budget what a template could use to grow (loops, output, joined texts, lists) or to spend time
    on again and again (filters, tests, comparisons, slices)."""

    def __init__(self, environment: _Environment) -> None:
        self.environment = environment

    def _filter(self, node: Any, name: str) -> nodes.Expr:
        charged = nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
        charged.set_environment(self.environment)
        return charged

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self._filter(node.iter, "_steps")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        for i, child in enumerate(node.nodes):
            text = nodes.Const(child.data) if isinstance(child, nodes.TemplateData) else child
            node.nodes[i] = self._filter(text, "_emit")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def _result(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return self._filter(node, "_value")

    visit_List = visit_Dict = _result

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._result(node) if node.ctx == "load" else node  # else the targets of an assignment

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        if isinstance(node.arg, nodes.Slice):
            return self._result(node)
        return self.generic_visit(node)

    def _operand(self, node: nodes.Filter | nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        if node.node is not None:  # None: the body of a filter block, which was charged as it was emitted
            node.node = self._filter(node.node, "_value")
        return node

    visit_Filter = visit_Test = _operand

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = self._filter(node.expr, "_value")
        for operand in node.ops:
            operand.expr = self._filter(operand.expr, "_value")
        return node


class _Generation(Extension):
    """`{% generation %}` ... `{% endgeneration %}` marks the answer for training; here its body is just rendered."""

    tags = {"generation"}  # noqa: RUF012 - jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _emit(budget: _Budget, value: Any) -> str:
    if isinstance(value, Undefined):
        return str(value)
    return str(budget.value(value))


def _steps(budget: _Budget, items: Any) -> Any:
    """The same items, each charged as it is taken. Sized ones stay sized, for `loop.length` and `loop.last`."""
    if isinstance(items, Undefined):
        return items
    if hasattr(items, "__len__"):
        budget.step(len(items))
        return items
    return _each(budget, items)


def _each(budget: _Budget, items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        budget.step()
        yield item


def _range(budget: _Budget, *bounds: int) -> range:
    numbers = range(*bounds)
    budget.step(len(numbers))
    return numbers


def _parts(environment: _Environment, separator: Any, items: Iterable[Any], attribute: Any = None) -> list[str]:
    budget = environment.budget
    parts = [i if attribute is None else environment.getitem(i, attribute) for i in _each(budget, items)]
    budget.char(len(str(separator)) * len(parts))
    return [str(part) for part in budget.value(parts)]


def _replace(budget: _Budget, text: str, old: str, new: str, count: int = -1) -> str:
    count = -1 if count is None else count
    times = text.count(old)
    budget.char(len(text) + len(new) * (times if count < 0 else min(times, count)))
    return text.replace(old, new, count)


def _json(budget: _Budget, value: Any, indent: int | None = None, **options: Any) -> str:
    """As transformers writes it: readable text, no escapes for HTML."""
    if indent is not None and not 0 <= int(indent) <= 16:
        raise _Refused(f"an indent of {indent}")
    known = {k: v for k, v in options.items() if k in ("ensure_ascii", "separators", "sort_keys")}
    text = json.dumps(budget.value(value), indent=indent, **({"ensure_ascii": False} | known))
    budget.char(len(text))
    return text


def _raise(message: Any) -> NoReturn:
    raise _Refused(str(message))
