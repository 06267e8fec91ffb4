"""Resolution rules: the authors' golden cases, second implementations on 20,000 sizes, budgets, and the way back."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eyespot import images, resolution
from eyespot.errors import EyespotError, UsageError
from eyespot.resolution import BlueLMV, Cut, Fixed, InternVL, LlavaNext, Qwen, Rule, Size

NINE = tuple((m, n) for m in range(3, 0, -1) for n in range(3, 0, -1))  # 3:3 to 1:1, as in BlueLM-V's comparison
INTERNVL = InternVL(448, 256)
BLUELM, LLAVA = BlueLMV(384, 196, NINE), LlavaNext(384, 196, NINE)
RULES: dict[str, Rule] = {
    "fixed": Fixed(448, 256),
    "internvl": INTERNVL,
    "llava_next": LlavaNext(336, 576),
    "bluelm_v": BlueLMV(384, 196),
    "qwen2_5_vl": Qwen(),
}


def sizes(count: int = 20_000, least: int = 1, most: int = 5000) -> list[Size]:
    """Random widths and heights, of all magnitudes alike, no narrower than Qwen takes."""
    rng = Random(3)
    low, high = math.log(least), math.log(most)
    found: list[Size] = []
    while len(found) < count:
        w, h = (round(math.exp(rng.uniform(low, high))) for _ in range(2))
        if max(w, h) <= 200 * min(w, h):
            found.append((w, h))
    return found


# The authors' cases


@pytest.mark.parametrize(
    ("size", "most", "grid"),
    [
        ((448, 448), 12, (1, 1)),
        ((380, 76), 6, (5, 1)),  # the model authors' example
        ((900, 400), 12, (2, 1)),  # 9:4 is as far from 2:1 as from 5:2; too small for ten tiles
        ((2250, 1000), 12, (5, 2)),
        ((800, 600), 12, (4, 3)),
        ((1, 16_000), 12, (1, 12)),
    ],
)
def test_internvl(size: Size, most: int, grid: tuple[int, int]) -> None:
    assert resolution.nearest(*size, 448, 1, most) == grid


def test_a_single_tile_has_no_thumbnail() -> None:
    assert InternVL(448, 256, max_tiles=1).cut(300, 300).tiles == 1
    cut = InternVL(10, 4).cut(800, 600)
    assert (cut.tiles, cut.resized, cut.thumbnail) == (13, (40, 30), "last")


@pytest.mark.parametrize(
    ("size", "grid"), [((394, 390), (1, 1)), ((380, 76), (1, 1)), ((380, 393), (1, 1)), ((500, 102), (2, 1))]
)
def test_bluelm_does_not_enlarge(size: Size, grid: tuple[int, int]) -> None:
    assert BLUELM.choose(*size) == grid
    assert BlueLMV(384, 196).choose(*size) == grid


@pytest.mark.parametrize("size", [(1, 1600), (1, 5000), (16000, 1), (4, 16000)])
def test_a_thread_is_not_drawn_largest(size: Size) -> None:
    wide, tall = max(BlueLMV(384, 196).choose(*size)), min(BlueLMV(384, 196).choose(*size))
    assert tall == 1
    assert wide <= 4


def test_llava_next_enlarges_what_is_a_pixel_too_wide() -> None:
    assert LLAVA.choose(394, 390) == (2, 2)


def test_a_phones_screen_is_nine_tiles() -> None:
    cut = BlueLMV(384, 196).cut(768, 1536)
    assert (cut.columns, cut.rows, cut.tiles, BlueLMV(384, 196).tokens(cut)) == (2, 4, 9, 1764)
    assert (cut.at, cut.resized) == ((0, 0), (768, 1536))


# Second implementations


@settings(max_examples=400, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 4), st.integers(4, 14), st.sampled_from([56, 448]))
def test_grids_are_those_of_transformers(width: int, height: int, least: int, most: int, side: int) -> None:
    from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as truth

    assert list(resolution.grids(least, most)) == truth.get_all_supported_aspect_ratios(least, most)
    expected = truth.get_optimal_tiled_canvas((height, width), (side, side), least, most)
    assert resolution.nearest(width, height, side, least, most) == expected


def test_internvl_is_transformers_on_random_sizes() -> None:
    from transformers.models.got_ocr2 import image_processing_pil_got_ocr2 as truth

    for width, height in sizes():
        cut = INTERNVL.cut(width, height)
        assert (cut.columns, cut.rows) == truth.get_optimal_tiled_canvas((height, width), (448, 448), 1, 12)


def test_llava_next_is_transformers_on_random_sizes() -> None:
    from transformers.image_processing_utils import select_best_resolution

    rule = LlavaNext(336, 576)
    candidates = [(336 * rows, 336 * columns) for columns, rows in rule.grids]
    for width, height in sizes():
        cut = rule.cut(width, height)
        assert cut.canvas[::-1] == select_best_resolution((height, width), candidates)


def test_qwen_is_transformers_on_random_sizes() -> None:
    """transformers differs from the authors' code below half a token a side, where it rounds to nothing."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    for most in (16384 * 784, 1280 * 784, 100_000):
        rule = Qwen(max_pixels=most)
        for width, height in sizes(least=15):
            expected = smart_resize(height, width, 28, rule.min_pixels, most)
            if expected[0] * expected[1] > most:  # narrow, and a side of one token: the budget holds here
                continue
            assert rule.cut(width, height).canvas[::-1] == expected


def bluelm_by_the_paper(width: int, height: int, side: int, alpha: float) -> tuple[int, int]:
    """The pseudocode of arXiv 2411.10640 line by line, over candidates from 3:3 down to 1:1."""
    best, re_max, rw_min = None, 0.0, float("inf")
    for ratio in [(3, 3), (3, 2), (3, 1), (2, 3), (2, 2), (2, 1), (1, 3), (1, 2), (1, 1)]:
        target = side * ratio[0], side * ratio[1]
        scale = np.min(np.divide(target, (width, height)))
        shrunk = math.floor(width * scale) * math.floor(height * scale)
        effective = shrunk if shrunk < width * height else width * height
        wasted = np.prod(target) - effective
        much_more = (effective - re_max) > alpha * re_max
        about_as_much = (re_max - effective) < alpha * re_max
        if much_more or (about_as_much and wasted < rw_min):
            best, re_max, rw_min = ratio, effective, wasted
    assert best is not None
    return best


def test_bluelm_is_the_paper_and_never_enlarges_more_than_llava_next() -> None:
    smaller = total = 0
    for width, height in sizes():
        ours, theirs = BLUELM.cut(width, height), LLAVA.cut(width, height)
        assert (ours.columns, ours.rows) == bluelm_by_the_paper(width, height, 384, 0.1)
        assert ours.enlargement((width, height)) <= theirs.enlargement((width, height))
        smaller += ours.enlargement((width, height)) < theirs.enlargement((width, height))
        total += 1
    print(f"BlueLM-V's canvas is smaller than LLaVA-NeXT's for {smaller / total:.1%} of {total} sizes")
    assert 0.01 < smaller / total < 0.9


# What every rule keeps


@pytest.mark.parametrize("name", RULES)
@settings(max_examples=300, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.data())
def test_points_go_there_and_back(name: str, width: int, height: int, data: st.DataObject) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    rule = RULES[name]
    cut = rule.cut(width, height)
    x, y = data.draw(st.floats(0, width)), data.draw(st.floats(0, height))
    there = cut.to_canvas(x, y, (width, height))
    assert -1e-6 <= there[0] <= cut.canvas[0] + 1e-6
    assert -1e-6 <= there[1] <= cut.canvas[1] + 1e-6
    back = cut.to_picture(*there, (width, height))
    assert back == pytest.approx((x, y), abs=1e-6 * max(width, height))
    assert rule.tokens(cut) <= rule.most()
    assert len(cut.places()) == cut.tiles
    budget = data.draw(st.integers(1, rule.most()))
    try:
        limited = rule.within(budget)
    except UsageError:
        assert budget < getattr(rule, "tokens_per_tile", 1)
    else:
        assert limited.tokens(limited.cut(width, height)) <= min(budget, limited.most())


def test_tiles_show_what_their_places_say() -> None:
    """A picture of a slope: the mean of each tile is that of the part of the picture it shows; padding is black."""
    slope = np.broadcast_to(np.linspace(40, 255, 300, dtype=np.float32)[None, :, None], (200, 300, 3))
    picture = Image.fromarray(slope.astype(np.uint8))
    for name, rule in RULES.items():
        cut = rule.cut(300, 200)
        seen = images.tiles(picture, cut)
        assert seen.shape == (cut.tiles, cut.tile[1], cut.tile[0], 3)
        for tile, (left, top, width, height) in zip(seen, cut.places(), strict=True):
            x, y = np.meshgrid(left + width * (np.arange(64) + 0.5) / 64, top + height * (np.arange(64) + 0.5) / 64)
            inside = (x >= 0) & (x < 1) & (y >= 0) & (y < 1)
            expected = np.where(inside, 40 + 215 * np.clip(x, 0, 1), 0).mean()
            assert tile.mean() == pytest.approx(expected, abs=3), name


def test_padded_tiles_are_transformers() -> None:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    rng = np.random.default_rng(5)
    grids = LlavaNext(28, 4).grids
    truth = LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_center_crop=False, do_normalize=False,
        do_rescale=False, image_grid_pinpoints=[[28 * rows, 28 * columns] for columns, rows in grids],
    )  # fmt: skip
    for width, height in ((90, 40), (31, 77), (64, 64), (200, 33)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        theirs = np.asarray(truth(picture, return_tensors="np")["pixel_values"])[0].transpose(0, 2, 3, 1)
        cut = LlavaNext(28, 4).cut(width, height)
        assert cut.thumbnail == "first"
        ours = images.tiles(picture, cut)
        assert ours.shape == theirs[: len(ours)].shape
        assert np.abs(ours[1:].astype(int) - theirs[1 : len(ours)]).max() <= 1


# Other rules, fewer tiles


def test_another_rule_for_the_same_eyes() -> None:
    assert resolution.other(INTERNVL, "fixed") == Fixed(448, 256)
    assert resolution.other(INTERNVL, "bluelm_v") == BlueLMV(448, 256)
    assert resolution.other(Qwen(), "qwen2_5_vl") == Qwen()
    for rule, name in ((INTERNVL, "qwen2_5_vl"), (Qwen(), "fixed"), (INTERNVL, "none")):
        with pytest.raises(UsageError, match="no such rule"):
            resolution.other(rule, name)


def test_caps_count_tiles() -> None:
    assert resolution.capped(INTERNVL, 4) == InternVL(448, 256, max_tiles=4)
    assert resolution.capped(LlavaNext(336, 576), 2) == LlavaNext(336, 576, ((2, 1), (1, 2)))
    assert resolution.capped(LlavaNext(336, 576), 1).cut(999, 30).tiles == 1
    assert resolution.capped(Fixed(448, 256), 1) == Fixed(448, 256)
    with pytest.raises(UsageError, match="expected at least 3"):
        resolution.capped(InternVL(448, 256, min_tiles=3), 2)
    with pytest.raises(UsageError, match="not cut into tiles"):
        resolution.capped(Qwen(), 2)


def test_budgets() -> None:
    assert INTERNVL.within(256) == InternVL(448, 256, max_tiles=1)
    assert INTERNVL.within(3 * 256 - 1) == InternVL(448, 256, max_tiles=1)  # two tiles want a thumbnail too
    assert INTERNVL.within(3 * 256) == InternVL(448, 256, max_tiles=2)
    assert INTERNVL.within(10**6) == INTERNVL
    assert Qwen().within(256).cut(4000, 3000).canvas == (504, 364)
    assert LlavaNext(336, 576).within(600).grids == ((1, 1),)
    for rule in (INTERNVL, Fixed(448, 256), LlavaNext(448, 256)):
        with pytest.raises(UsageError, match="too few image tokens; found 255; expected at least 256"):
            rule.within(255)


def test_qwen_refuses_a_thread() -> None:
    assert Qwen().cut(200, 1).canvas[1] >= 28
    with pytest.raises(EyespotError, match="too narrow; found 1x30000"):
        Qwen().cut(1, 30_000)
    for rule in (INTERNVL, LLAVA, BLUELM, Fixed(448, 256)):
        cut = rule.cut(1, 30_000)
        assert isinstance(cut, Cut)
        assert min(cut.resized) >= 1
