"""What a person looks at: a bar plot of scores by task, and pages of failures with their pictures and boxes."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from eyespot import images
from eyespot.errors import EyespotError, UsageError
from eyespot.evaluate.metrics import box
from eyespot.evaluate.report import Report
from eyespot.evaluate.runner import Result
from eyespot.evaluate.sets import IMAGE, Sample

CELL, PICTURE, COLUMNS = (260, 380), 240, 6  # pixels; cells in a row of the page
RIGHT, WRONG = (20, 160, 60), (220, 40, 40)  # colours of boxes and answers
SHOWN = 6  # frames of one question


def plot(reports: Sequence[Report], path: Path) -> None:
    """Writes a plot of every model's scores by task; the ending of the path says the format."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError("a plot needs matplotlib", cause="pip install eyespot[report]") from None
    names = [row.task for row in reports[0].rows]
    figure = Figure(figsize=(max(6.0, 0.8 * len(names)), 4), layout="constrained")
    axes, width = figure.subplots(), 0.8 / len(reports)
    for i, report in enumerate(reports):
        places = [n + (i - (len(reports) - 1) / 2) * width for n in range(len(names))]
        scores = [100 * row.score for row in report.rows]
        below = [100 * (row.score - row.low) for row in report.rows]
        above = [100 * (row.high - row.score) for row in report.rows]
        axes.bar(places, scores, width * 0.95, yerr=(below, above), label=report.model, capsize=2)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set(ylim=(0, 105), ylabel="score, %")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except ValueError as error:
        raise UsageError(f"the plot cannot be written ({error})", expected=".png, .svg or .pdf") from None


def failures(samples: Sequence[Sample], results: Sequence[Result], path: Path, most: int = 36) -> int:
    """Writes a PNG page of up to `most` wrong answers, taken from all tasks by turns; returns how many. None: no file.

    Each with its pictures, question, what was expected and what was said; boxes are drawn, the right one green.
    """
    chosen = _by_turns([(s, r) for s, r in zip(samples, results, strict=True) if r.score < 1], most)
    if not chosen:
        return 0
    columns = min(COLUMNS, len(chosen))
    page = Image.new("RGB", (columns * CELL[0], -(-len(chosen) // columns) * CELL[1]), "white")
    for i, (sample, result) in enumerate(chosen):
        page.paste(_cell(sample, result), (i % columns * CELL[0], i // columns * CELL[1]))
    page.save(path, "PNG")
    return len(chosen)


def _by_turns(wrong: Sequence[tuple[Sample, Result]], most: int) -> list[tuple[Sample, Result]]:
    """One of each task, then a second of each, and so on."""
    nth: dict[str, int] = {}
    ranked = []
    for pair in wrong:
        nth[pair[0].task] = nth.get(pair[0].task, 0) + 1
        ranked.append((nth[pair[0].task], pair))
    kept = sorted(ranked, key=lambda r: r[0])[:most]
    return sorted((pair for _, pair in kept), key=lambda pair: pair[0].task)


def _cell(sample: Sample, result: Result) -> Image.Image:
    cell = Image.new("RGB", CELL, "white")
    shown = sample.images[:SHOWN]
    across = 1 if len(shown) < 2 else 2 if len(shown) <= 4 else 3
    side, bottom = PICTURE // across, 4
    for i, path in enumerate(shown):
        picture = _picture(path)
        scale = side / max(picture.size)
        picture = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
        if len(shown) == 1:
            _draw_boxes(picture, sample, result)
        x, y = 8 + i % across * side, 4 + i // across * side
        cell.paste(picture, (x, y))
        bottom = max(bottom, y + picture.height)
    pen, font, y = ImageDraw.Draw(cell), ImageFont.load_default(12), bottom + 4
    question = sample.question.replace(IMAGE, "").strip().replace("\n", " / ")
    for text, colour in (
        (f"{sample.task}: {question}", (0, 0, 0)),
        (f"expected {sample.answers[0]}", RIGHT),
        (f"said {result.error or result.prediction or 'nothing'}", WRONG),
    ):
        for line in textwrap.wrap(text, 42)[:5]:
            pen.text((8, y), line, font=font, fill=colour)
            y += 14
    return cell


def _picture(path: Path) -> Image.Image:
    """The picture, or a grey one where it cannot be read: the page is about answers."""
    try:
        return images.load(path).image
    except EyespotError:
        return Image.new("RGB", (PICTURE, PICTURE), "lightgrey")


def _draw_boxes(picture: Image.Image, sample: Sample, result: Result) -> None:
    pen = ImageDraw.Draw(picture)
    for text, colour in ((sample.question, (40, 90, 215)), (sample.answers[0], RIGHT), (result.prediction, WRONG)):
        found = box(text)
        if found is not None:
            x1, x2 = sorted(v * picture.width / 1000 for v in found[::2])
            y1, y2 = sorted(v * picture.height / 1000 for v in found[1::2])
            pen.rectangle((x1, y1, x2, y2), outline=colour, width=2)
