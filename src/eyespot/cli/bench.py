"""`eyespot bench`: how fast a bundle runs here, with the bytes it moves and the machine's ceilings beside it.

Names, flags and defaults follow llama-bench where they mean the same. Knows how to print; run/bench.py measures.
"""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

from eyespot.cli import options as o
from eyespot.cli.flags import flag

if TYPE_CHECKING:
    from eyespot.run.bench import Spec

FORMATS = ("md", "csv", "json")


def command(
    model: o.ModelPath,
    prompt: Annotated[
        list[str] | None, flag("-p", "--n-prompt", metavar="N,...", help="Rows ppN; 0: none. [default: 128,512]")
    ] = None,
    gen: Annotated[
        list[str] | None, flag("-n", "--n-gen", metavar="N,...", help="Rows tgN; 0: none. [default: 64]")
    ] = None,
    depth: Annotated[
        list[str] | None, flag("-d", "--n-depth", metavar="N,...", help="Depths of the rows tgN. [default: 0,1024]")
    ] = None,
    rows: Annotated[
        list[str] | None, flag("--rows", metavar="ROW,...", help="These rows alone, such as vit,pp128,tg64@d1024,e2e.")
    ] = None,
    repetitions: Annotated[int, flag("-r", "--repetitions", least=1, help="Timed runs of each row.")] = 5,
    threads: Annotated[
        int | None, flag("-t", "--threads", least=1, help="Default: EYESPOT_THREADS, or as config.json says.")
    ] = None,
    ctx_size: o.CtxSize = 0,
    isa: o.Isa = "",
    image: Annotated[str | None, flag("--image", metavar="PATH", help="The picture of e2e.")] = None,
    ops: Annotated[bool, flag("--ops", help="Also what each op took, layers summed.")] = False,
    output: Annotated[str, flag("-o", "--output", metavar="FORMAT", help="md, csv or json.")] = "md",
    as_json: Annotated[bool, flag("--json", help="The same as -o json.")] = False,
) -> int:
    """Measure how fast a bundle runs, beside what this machine can do.

    vit: one tile encoded. ppN: N tokens prefilled at depth 0. tgN: N greedy decode steps after one warm token;
    tgN@dD: the same after D tokens. e2e: a picture (448x448, or --image) and 32 text tokens to the first token;
    e2e@64: to the 64th. Mean and standard deviation after two runs to warm up. moved: weights, keys and values read.
    work: multiplications and additions of linears and attention. Ceilings, measured before each row and after the
    last with as many threads: reading memory mapped as weights are; multiply-adds in registers. of read, of
    arithmetic: the row's mean rate as a share of them. load: opening the bundle; first touch: the first token then.
    """
    from eyespot.errors import OK, UsageError

    chosen = "json" if as_json else output
    if chosen not in FORMATS:
        raise UsageError("no such output format", found=output, expected=", ".join(FORMATS))
    specs = asked(prompt, gen, depth, rows)

    from eyespot.run.bench import QUIET, bench

    with _Progress() as progress:
        report = bench(model, specs, repetitions, threads or 0, ctx_size, isa, image, ops, progress.tell).to_json()
    if report["load_average"] >= QUIET:
        _note(f"the load average was {report['load_average']:.2f} before the run: other work disturbs these figures")
    if chosen == "json":
        print(json.dumps(report))
    elif chosen == "csv":
        _csv(report)
    else:
        o.show(markdown(report), sys.stdout)
    return OK


def asked(
    prompt: list[str] | None, gen: list[str] | None, depth: list[str] | None, rows: list[str] | None
) -> list[Spec]:
    """The rows that the flags ask for, in order. UsageError when they contradict one another or name none."""
    from eyespot.errors import UsageError
    from eyespot.run.bench import Spec

    if rows is not None:
        if prompt or gen or depth:
            raise UsageError("--rows names all rows: no -p, -n or -d beside it")
        specs = [Spec.parse(name.strip()) for item in rows for name in item.split(",")]
    else:
        prompts, answers = _numbers("-p", prompt, "128,512"), _numbers("-n", gen, "64")
        depths = _numbers("-d", depth, "0,1024")
        specs = [Spec("vit"), *(Spec("pp", n) for n in prompts if n)]
        specs += [Spec("tg", n, d) for n in answers if n for d in depths]
        specs.append(Spec("e2e"))
    return list(dict.fromkeys(specs))


def _numbers(name: str, given: list[str] | None, default: str) -> list[int]:
    from eyespot import limits
    from eyespot.errors import UsageError

    words = [word.strip() for item in given or [default] for word in item.split(",")]
    wrong = [w for w in words if not (w.isascii() and w.isdecimal() and len(w) < 9 and int(w) <= limits.CONTEXT)]
    if wrong:
        raise UsageError(f"{name} is off", found=wrong[0], expected=f"numbers from 0 to {limits.CONTEXT}")
    return [int(word) for word in words]


def markdown(report: dict[str, Any]) -> str:
    """Three tables: the run, the ceilings, the rows; with --ops one more for each row."""
    from eyespot.cli.table import size

    e, name = report["engine"], report["bundle"]
    peak = "unknown" if report["peak_bytes"] is None else size(report["peak_bytes"])
    facts = {
        "bundle": name,
        "family": report["family"],
        "schemes": " ".join(report["schemes"]),
        "isa": e["isa"],
        "threads": e["threads"],
        "cache": e["kv_type"],
        "context": e["ctx_size"],
        "weights": size(e["weight_bytes"]),
        "load": f"{report['load_s'] * 1e3:.0f} ms",
        "first touch": f"{report['first_s'] * 1e3:.0f} ms",
        "peak memory": peak,
        "load average": f"{report['load_average']:.2f}",
    }
    out = [_table([list(facts), [str(v) for v in facts.values()]])]
    ceilings = [["ceiling", "measured", "by"]]
    for kind, c in report["ceilings"].items():
        unit = "GB/s" if kind == "read" else "GOP/s"
        shown = f"{c['mean'] / 1e9:.1f} ± {c['sd'] / 1e9:.1f} {unit}" if c["mean"] else "none"
        ceilings.append([kind, shown, c["instruction"] or "loads"])
    out.append(_table(ceilings))
    rows = [["row", "result", "moved", "GB/s", "of read", "work", "GOP/s", "of arithmetic"]]
    rows += [_cells(row) for row in report["rows"]]
    out.append(_table(rows))
    out += [_ops(row) for row in report["rows"] if "ops" in row]
    return "\n".join(out)


def _cells(row: dict[str, Any]) -> list[str]:
    if "absent" in row:
        return [row["name"], f"n/a: {row['absent']}", *[""] * 6]
    share = row["percent_of_arithmetic"]
    return [
        row["name"],
        f"{row['mean']:.1f} ± {row['sd']:.1f} {row['unit']}",
        f"{row['bytes'] / 1e6:.1f} MB",
        f"{row['gb_per_s']:.2f}",
        f"{row['percent_of_read']:.0f} %",
        f"{row['operations'] / 1e9:.2f} GOP",
        f"{row['gop_per_s']:.1f}",
        "" if share is None else f"{share:.0f} %",
    ]


def _ops(row: dict[str, Any]) -> str:
    total = sum(op["seconds"] for op in row["ops"])
    lines = [[f"{row['name']}: op", "kind", "calls", "ms", "of time", "GB/s", "GOP/s"]]
    for op in row["ops"]:
        s = op["seconds"]
        lines.append(
            [
                f"{op['graph']} {op['name']}",
                op["kind"],
                f"{op['calls']:.0f}",
                f"{s * 1e3:.2f}",
                f"{100 * s / total:.1f} %",
                f"{op['bytes'] / s / 1e9:.2f}" if op["bytes"] else "",
                f"{op['operations'] / s / 1e9:.1f}" if op["operations"] else "",
            ]
        )
    return _table(lines)


def _table(lines: list[list[str]]) -> str:
    """A markdown table whose columns line up; all but the first are flushed right."""
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(cells[0]))]
    cells.insert(1, ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])])
    padded = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in cells)
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)


def _csv(report: dict[str, Any]) -> None:
    """A line a row; what holds for all rows stands in each, as llama-bench does."""
    e = report["engine"]
    run = {k: report[k] for k in ("bundle", "family", "load_s", "first_s", "peak_bytes", "load_average")}
    run |= {k: e[k] for k in ("isa", "threads", "kv_type", "ctx_size", "weight_bytes")}
    run |= {f"{kind}_per_s": c["mean"] for kind, c in report["ceilings"].items()}
    own = ("name", "absent", "unit", "mean", "sd", "bytes", "operations", "gb_per_s", "gop_per_s")
    fields = [*own, "percent_of_read", "percent_of_arithmetic", *run]
    writer = csv.DictWriter(sys.stdout, fields, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in report["rows"]:
        writer.writerow(run | row)


class _Progress:
    """Tells how far the run is on stderr: on one line of a terminal; elsewhere a line for each row."""

    def __init__(self) -> None:
        self.live, self.last = sys.stderr.isatty(), ""

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            sys.stderr.write("\r\x1b[K")

    def tell(self, step: str) -> None:
        row = step.split()[0]
        if self.live:
            sys.stderr.write(f"\r\x1b[K{step}")
        elif row != self.last and row != "ceilings":
            sys.stderr.write(f"{row}\n")
        self.last = row
        sys.stderr.flush()


def _note(text: str) -> None:
    print(f"eyespot: note: {text}", file=sys.stderr)
