"Ways to choose a positive: against slow references, as distributions, and with bad input."

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primenb.core import PrimenbError
from primenb.scenes.positives import (
    SHOT_POSITIVES,
    band,
    fill_missing,
    l2_normalize,
    novelty,
    positive_distribution,
    positive_similarity,
    purity,
    sample_positives,
)


def vectors_of(n, seed=0, d=6):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(SHOT_POSITIVES)), st.integers(1, 30), st.integers(1, 9), st.integers(0, 99))
def test_rows_are_distributions_over_the_neighbours(kind, n, m, seed):
    scene = np.sort(np.random.default_rng(seed).integers(0, 4, n))
    p, numbers = positive_distribution(vectors_of(n, seed), kind, m, scene), band(n, m)
    assert p.shape == (n, 2 * m + 1) and np.allclose(p.sum(1), 1, atol=1e-5) and (p >= 0).all()
    assert (p[numbers < 0] == 0).all()
    alone = p[:, m] > 0
    if kind == "augmentation" or n == 1:
        assert alone.all()
    elif kind == "oracle":
        assert all((scene[max(t - m, 0) : t + m + 1] == scene[t]).sum() == 1 for t in np.flatnonzero(alone))
    else:
        assert not alone.any()


def slow(kind, z, m, scene):
    "The same, shot by shot."
    z, n = z / np.linalg.norm(z, axis=1, keepdims=True), len(z)
    p = np.zeros((n, n))
    for t in range(n):
        near = [j for j in range(max(t - m, 0), min(t + m, n - 1) + 1) if j != t]
        weight = dict(
            random=lambda j: 1,
            adjacent=lambda j: abs(j - t) == 1,
            soft=lambda j: np.exp(z[t] @ z[j] / 0.2),
            decayed=lambda j: np.exp(z[t] @ z[j] / 0.2 - abs(j - t) / 4),
            nearest=lambda j: j == max(near, key=lambda i: z[t] @ z[i]),
            oracle=lambda j: scene[j] == scene[t],
        )[kind]
        p[t, near] = [float(weight(j)) for j in near]
        if not p[t].any():
            p[t, t] = 1
        p[t] /= p[t].sum()
    return p


@pytest.mark.parametrize("kind", ["random", "adjacent", "soft", "decayed", "nearest", "oracle"])
def test_against_shot_by_shot(kind):
    z, scene = vectors_of(25, 3), np.sort(np.random.default_rng(1).integers(0, 9, 25))
    p, numbers = positive_distribution(z, kind, 5, scene), band(25, 5)
    whole = np.zeros((25, 25))
    for t in range(25):
        whole[t, numbers[t][numbers[t] >= 0]] = p[t][numbers[t] >= 0]
    assert np.allclose(whole, slow(kind, z, 5, scene), atol=1e-5)


def test_self_segmented_stays_between_peaks_of_the_novelty():
    rng = np.random.default_rng(0)
    scene = np.repeat(np.arange(5), [6, 7, 5, 8, 6])
    z = np.eye(5)[scene] + 0.05 * rng.normal(size=(32, 5))
    p = positive_distribution(z, "self_segmented", 8, scene)
    assert purity(p, scene) == pytest.approx(1)
    change = novelty(l2_normalize(z))
    assert set(np.flatnonzero(np.diff(scene))) <= set(np.flatnonzero(change >= 0.5))
    far = positive_distribution(z, "self_segmented", 20, scene)
    assert np.allclose(far[:, 12:29], p, atol=1e-6), "the window only caps"


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(1, 6), st.integers(0, 50))
def test_novelty_pair_by_pair(n, w, seed):
    z = l2_normalize(vectors_of(n, seed))
    for b in range(1, n):
        left, right = z[max(b - w, 0) : b], z[b : b + w]
        inner = [
            np.mean([x @ y for i, x in enumerate(block) for y in block[i + 1 :]])
            for block in (left, right)
            if len(block) > 1
        ]
        assert novelty(z, w)[b - 1] == pytest.approx(
            (np.mean(inner) if inner else 1) - np.mean(left @ right.T), abs=1e-4
        )


def test_the_ends_of_a_film_are_no_news():
    change = np.mean(
        [novelty(l2_normalize(np.random.default_rng(seed).normal(size=(30, 40))), 4) for seed in range(60)], 0
    )
    assert np.abs(change).max() < 0.06, "shots that have nothing to do with each other change as much everywhere"


def test_drawn_as_often_as_likely():
    p = positive_distribution(vectors_of(9, 2), "soft", 4)
    drawn = np.stack([sample_positives(p, np.random.default_rng(s)) for s in range(6000)])
    assert np.abs(np.stack([(drawn == k).mean(0) for k in range(-4, 5)], 1) - p).max() < 0.03
    assert (np.arange(9) + drawn >= 0).all() and (np.arange(9) + drawn < 9).all()


def test_purity_and_sameness_by_hand():
    z, scene = np.array([[1.0, 0], [1, 0], [0, 1]]), np.array([0, 0, 1])
    p = positive_distribution(z, "adjacent", 1)
    assert purity(p, scene) == pytest.approx((1 + 0.5 + 0) / 3)
    assert positive_similarity(p, z) == pytest.approx((1 + 0.5 + 0) / 3)
    assert positive_similarity(positive_distribution(z, "augmentation", 1), z) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_holes_take_the_nearest(there):
    rows = np.where(np.array(there)[:, None], np.arange(len(there))[:, None] * np.ones(2), np.nan)
    if not any(there):
        with pytest.raises(PrimenbError, match="not one shot"):
            fill_missing(rows)
        return
    known = np.flatnonzero(there)
    assert [r[0] for r in fill_missing(rows)] == [min(known, key=lambda k: (abs(k - n), k)) for n in range(len(there))]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: positive_distribution(vectors_of(5), "closest"), "choose one of"),
        (lambda: positive_distribution(vectors_of(5), "soft", heat=1), "no option heat"),
        (lambda: positive_distribution(vectors_of(5), "nearest", 0), "at least 1"),
        (lambda: positive_distribution(vectors_of(5), "oracle"), "not known"),
        (
            lambda: positive_distribution(np.where(np.arange(5)[:, None] == 3, np.inf, vectors_of(5)), "random"),
            "shot 3",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(PrimenbError, match=message):
        make()
