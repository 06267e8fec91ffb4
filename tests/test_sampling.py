"""Sampling against transformers' own logits processors, and what holds for any logits."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eyespot import limits
from eyespot.errors import EyespotError, UsageError
from eyespot.run.sampling import Sampler, Sampling


def logits(vocab: int, seed: int, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(vocab) * spread).astype(np.float32)


def probabilities(sampling: Sampling, scores: np.ndarray, sequence: list[int]) -> np.ndarray:
    ids, weights = Sampler(sampling, 0).distribution(scores, sequence)
    out = np.zeros(len(scores))
    out[ids] = weights.astype(np.float64) / weights.sum(dtype=np.float64)
    return out


@pytest.mark.parametrize("vocab", [50, 3000])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.6),
        Sampling(temperature=1.0, top_k=7),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(temperature=0.7, min_p=0.1),
        Sampling(temperature=1.0, repetition_penalty=1.3),
        Sampling(temperature=0.9, repetition_penalty=0.8, repetition_window=5),
        Sampling(temperature=0.8, top_k=40, top_p=0.9, min_p=0.02, repetition_penalty=1.1),
        Sampling(temperature=5.0, top_p=0.97),
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_distribution_is_that_of_transformers(sampling: Sampling, vocab: int, seed: int) -> None:
    import torch
    from transformers.generation import logits_process as truth

    scores = logits(vocab, seed)
    sequence = np.random.default_rng(seed).integers(0, vocab, 12).tolist()
    steps = [truth.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty)]
    steps.append(truth.TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        steps.append(truth.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        steps.append(truth.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        steps.append(truth.MinPLogitsWarper(sampling.min_p))
    row, seen = torch.tensor(scores[None]), torch.tensor([sequence[-sampling.repetition_window :]])
    for step in steps:
        row = step(seen, row)
    expected = torch.softmax(row.double(), -1)[0].numpy()
    found = probabilities(sampling, scores, sequence)
    assert np.array_equal(found > 0, expected > 0)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-12)


RECORDS = st.builds(
    Sampling,
    temperature=st.floats(0.05, 10),
    top_k=st.integers(0, 60),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.5, 2),
    repetition_window=st.integers(0, 8),
)


@settings(max_examples=200, deadline=None)
@given(RECORDS, st.integers(0, 1 << 32), st.integers(1, 400))
def test_a_pick_is_a_candidate_and_seeds_repeat(sampling: Sampling, seed: int, vocab: int) -> None:
    scores, sequence = logits(vocab, seed), [0, -5, 3, vocab - 1]
    banned = [1] if vocab > 1 else []
    picks = [Sampler(sampling, seed, banned).pick(scores, sequence) for _ in range(2)]
    assert picks[0] == picks[1]
    ids, weights = Sampler(sampling, seed, banned).distribution(scores, sequence)
    assert picks[0] in ids
    assert 1 not in ids[weights > 0] or vocab == 1
    assert len(ids) == len(weights) <= (sampling.top_k or vocab)
    assert weights.max() == pytest.approx(1)
    assert weights.min() >= sampling.min_p


class Row:
    """Tells its best logits, as the engine does; counts how often all were asked for."""

    def __init__(self, row: np.ndarray) -> None:
        self.row, self.whole = row, 0

    def top(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        assert 0 < k <= limits.TOP
        ids = np.argsort(-self.row, kind="stable")[:k].astype(np.int32)
        return ids, self.row[ids]

    def logits(self) -> np.ndarray:
        self.whole += 1
        return self.row


@settings(max_examples=300, deadline=None)
@given(
    st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
        top_k=st.sampled_from([0, 1, 5, 40, 200, 1023]),
        top_p=st.sampled_from([1.0, 0.9]),
        min_p=st.sampled_from([0.0, 0.05, 0.9]),
        repetition_penalty=st.sampled_from([1.0, 1.3, 5.0, 0.8]),
        repetition_window=st.sampled_from([0, 3]),
    ),
    st.integers(1, 3000),
    st.lists(st.integers(-2, 3100), max_size=60),
    st.sampled_from([0.0, 0.3, 3.0]),
    st.sampled_from([None, 1.0]),
    st.integers(0, 1 << 20),
)
def test_the_best_logits_tell_as_much_as_all(
    sampling: Sampling, vocab: int, sequence: list[int], spread: float, step: float | None, seed: int
) -> None:
    """Ties (a spread of 0, logits in whole steps) and penalized favourites included."""
    scores = logits(vocab, seed, spread)
    if step:
        scores = np.round(scores / step) * np.float32(step)
    favourites = np.argsort(-scores)[: seed % 7].tolist()
    banned = [vocab // 2] if vocab > 1 else []
    row = Row(scores)
    for sampler in (Sampler(sampling, seed, banned), Sampler(sampling, seed)):
        ids, weights = sampler.distribution(row, sequence + favourites)
        all_ids, all_weights = sampler.distribution(scores, sequence + favourites)
        assert np.array_equal(ids, all_ids)
        assert np.array_equal(weights, all_weights)


def test_few_logits_are_asked_for() -> None:
    scores = logits(50_000, 5)
    scores[:30] += 20
    row = Row(scores)
    for sampling in (
        Sampling(),
        Sampling(repetition_penalty=1.2),
        Sampling(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1, repetition_window=64),
        Sampling(temperature=0.7, min_p=0.1),
    ):
        Sampler(sampling, 0, banned=[7]).pick(row, list(range(100)))
    assert row.whole == 0
    Sampler(Sampling(temperature=1.0), 0).pick(row, [])
    assert row.whole == 1


@pytest.mark.parametrize("vocab", [3, 512, 513, 2000])
def test_draws_follow_the_distribution(vocab: int) -> None:
    scores = logits(vocab, 3)
    sampler, share = Sampler(Sampling(temperature=1.0), 11), probabilities(Sampling(temperature=1.0), scores, [])
    n = 20_000
    counts = np.bincount([sampler.pick(scores, []) for _ in range(n)], minlength=vocab)
    deviation = np.abs(counts - n * share) / np.sqrt(n * share * (1 - share) + 1)
    assert deviation.max() < 5.5  # of 2000 bins none should be off by more than 5.5 sigma


def test_greedy_takes_the_lowest_id_of_equals_and_heeds_the_penalty() -> None:
    scores = np.array([1, 5, 5, -2], np.float32)
    assert Sampler(Sampling(), 0).pick(scores, []) == 1
    assert Sampler(Sampling(repetition_penalty=2.0), 0).pick(scores, [1]) == 2
    assert Sampler(Sampling(repetition_penalty=2.0, repetition_window=1), 0).pick(scores, [1, 0]) == 1
    assert Sampler(Sampling(), 0, banned=[1, 2]).pick(scores, []) == 0
    assert np.array_equal(scores, np.array([1, 5, 5, -2], np.float32))  # the caller's logits stay


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    scores = logits(100, 0)
    scores[17] = bad
    for sampling in (Sampling(), Sampling(temperature=1.0, top_k=5, top_p=0.9)):
        with pytest.raises(EyespotError, match="not finite"):
            Sampler(sampling, 0).pick(scores, [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1}, {"temperature": float("nan")}, {"temperature": "hot"}, {"top_k": -1}, {"top_k": 2.5},
        {"top_p": 1.5}, {"min_p": -0.1}, {"repetition_penalty": 0}, {"repetition_window": True},
    ],
)  # fmt: skip
def test_bounds(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 1 << 64, 1.5, True])
def test_bad_seeds(seed: object) -> None:
    with pytest.raises(UsageError, match="seed"):
        Sampler(Sampling(), seed)  # type: ignore[arg-type]


def test_a_large_vocabulary_is_not_sorted() -> None:
    scores = logits(151_936, 0)
    scores[:30] += 20  # peaked, as a language model is
    sequence = list(range(2000))
    for sampling in (
        Sampling(temperature=0.7, top_k=40, top_p=0.9, repetition_penalty=1.1),
        Sampling(temperature=0.7, top_p=0.95, min_p=0.05),
        Sampling(temperature=1.0),
    ):
        sampler = Sampler(sampling, 0)
        times = []
        for _ in range(9):
            started = time.perf_counter()
            sampler.pick(scores, sequence)
            times.append(time.perf_counter() - started)
        assert min(times) < 4e-3  # 0.2 to 0.6 ms when measured; a full sort takes 10
