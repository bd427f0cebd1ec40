"Contracts of grouping: every choice of scenes is as good as the best that trying all of them finds, knobs do what they say, and tables fit their shots."
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primenb.core import PrimenbError
from primenb.corpus import films
from primenb.public import feature_films
from primenb.records import frames_table
from primenb.scenes.grouping import (count_scenes, distances, group, grouping_scores, mean_distance, scene_columns, scene_table, scenes_by_number,
                                     scenes_by_threshold, scenes_per_hour)
from primenb.scenes.metrics import Judged, pooled_ap

many = settings(max_examples=60, deadline=None)


def cuts_of(scenes): return (np.flatnonzero(np.diff(scenes)) + 1).tolist()


def spans(cuts, n): return list(zip((0, *cuts), (*cuts, n)))


def film(lengths, rate=24):
    "The shot table of shots with these lengths, in frames."
    stops = np.cumsum(lengths)
    return frames_table("film", np.stack([stops - lengths, stops], 1), rate)


def apart(seed, n, size=3): return distances(np.random.default_rng(seed).normal(size=(n, size)))


def additive(D, cuts): return sum(D[a:b, a:b].sum() for a, b in spans(cuts, len(D)))


def normalised(D, cuts): return additive(D, cuts) / sum((b - a) ** 2 for a, b in spans(cuts, len(D)))


def scatter(D, cuts): return sum(D[a:b, a:b].sum() / (b - a) for a, b in spans(cuts, len(D)))


def all_cuts(n, number): return combinations(range(1, n), number - 1)


@pytest.mark.parametrize("cost", [additive, normalised, scatter])
@many
@given(st.integers(0, 10**6), st.integers(1, 8), st.data())
def test_no_grouping_costs_less(cost, seed, n, data):
    number, D = data.draw(st.integers(1, n)), apart(seed, n)
    scenes = group(D, number, cost.__name__)
    assert scenes[0] == 0 and scenes[-1] == number - 1 and set(np.diff(scenes)) <= {0, 1}
    assert cost(D, cuts_of(scenes)) == pytest.approx(min(cost(D, cuts) for cuts in all_cuts(n, number)), abs=1e-9)


def test_scatter_is_k_means_along_the_film():
    v = np.random.default_rng(0).normal(size=(12, 4))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    sse = sum(((v[a:b] - v[a:b].mean(0)) ** 2).sum() for a, b in spans([3, 7], 12))
    assert scatter(distances(v), [3, 7]) == pytest.approx(sse, rel=1e-5)


def test_clean_scenes_of_any_length_are_found():
    truth = np.repeat(np.arange(5), [1, 30, 2, 8, 1])
    D = distances(np.eye(5)[truth])
    for cost in ("scatter", "normalised", "additive"): assert group(D, 5, cost).tolist() == truth.tolist()
    assert scenes_by_threshold(grouping_scores(D), 0).tolist() == truth.tolist()


@many
@given(st.integers(0, 10**6), st.integers(1, 7), st.sampled_from([None, 0.05, 0.4, 3.0]))
def test_scores_are_what_an_end_saves(seed, n, price):
    D = apart(seed, n)
    paid = mean_distance(D) if price is None else price
    every = [(scatter(D, cuts) + paid * (len(cuts) + 1), cuts) for number in range(1, n + 1) for cuts in all_cuts(n, number)]
    slow = [min(c for c, cuts in every if j not in cuts) - min(c for c, cuts in every if j in cuts) for j in range(1, n)]
    scores = grouping_scores(D, price)
    assert scores.shape == (n - 1,) and scores == pytest.approx(slow, abs=1e-9)
    if (np.abs(scores) > 1e-9).all(): assert cuts_of(scenes_by_threshold(scores, 0)) == list(min(every)[1])  # else two groupings are equally good


def test_distances_of_all_kinds_of_vectors():
    v = np.array([[3, 0], [1, 0], [0, 2], [-1, 0], [np.nan, 1], [0, 0]], np.float32)
    D = distances(v)
    assert D[:4, :4] == pytest.approx(np.array([[0, 0, 1, 2], [0, 0, 1, 2], [1, 1, 0, 1], [2, 2, 1, 0]]), abs=1e-6)
    assert mean_distance(D[:4, :4]) == pytest.approx(7 / 6) and D[4:, :4] == pytest.approx(7 / 6) and D[4, 5] == pytest.approx(7 / 6)
    assert (np.diag(D) == 0).all() and (D == D.T).all() and D.min() == 0
    assert distances([[1, 2]]).tolist() == [[0]] and mean_distance(np.zeros((1, 1))) == 0
    with pytest.raises(PrimenbError, match="tt1: none of its shots has a vector"): distances(np.full((3, 2), np.nan), "tt1")


def test_a_shot_without_a_vector_neither_binds_nor_parts():
    truth = np.repeat([0, 1], 6)
    v = np.eye(2)[truth] + np.random.default_rng(0).normal(0, 0.1, (12, 2))
    v[[2, 9]] = np.nan
    assert group(distances(v), 2).tolist() == truth.tolist()


def test_number_of_scenes():
    rng = np.random.default_rng(0)
    assert count_scenes(distances(rng.normal(size=(6, 60))[np.repeat(np.arange(6), 10)] + rng.normal(0, 0.5, (60, 60)))) in (5, 6)
    D = apart(0, 20, 30)
    y = np.log(np.linalg.svd(D, compute_uv=False)[:10])
    line = [y[0] + (y[-1] - y[0]) * i / 9 for i in range(10)]
    assert count_scenes(D) == max(range(10), key=lambda i: line[i] - y[i])
    assert [count_scenes(distances(np.ones((n, 2)))) for n in (1, 2, 9)] == [1, 1, 1], "a film of one picture"


@many
@given(st.lists(st.tuples(st.integers(1, 100), st.integers(-20, 20)), min_size=1, max_size=8), st.sampled_from([0, 1, 2.5, 4]), st.data())
def test_no_choice_of_ends_has_a_higher_sum(shots_, shortest, data):
    table, scores, n = film([length for length, _ in shots_]), [score / 10 for _, score in shots_][1:], len(shots_)
    times = np.append(table.start, table.end.iloc[-1])
    def fits(cuts): return not cuts or all(times[b] - times[a] >= shortest - 1e-6 for a, b in spans(cuts, n))
    number = data.draw(st.integers(1, n))
    sums = [sum(scores[c - 1] for c in cuts) for cuts in all_cuts(n, number) if fits(cuts)]
    if not sums:
        with pytest.raises(PrimenbError, match=f"{number} scenes: of film's {n} shots only 1 to"): scenes_by_number(scores, table, number, shortest)
        return
    scenes = scenes_by_number(scores, table, number, shortest)
    assert len(cuts_of(scenes)) == number - 1 and fits(cuts_of(scenes))
    assert sum(scores[c - 1] for c in cuts_of(scenes)) == pytest.approx(max(sums))


@many
@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.floats(0, 4000), st.sampled_from([0, 3, 10]), st.integers(0, 10**6))
def test_the_knob(lengths, wanted, shortest, seed):
    table, scores = film(lengths), np.random.default_rng(seed).random(len(lengths) - 1)
    scenes = scenes_per_hour(scores, table, wanted, shortest)
    asked, got = max(round(wanted * table.end.iloc[-1] / 3600), 1), scenes[-1] + 1
    lasts = scene_table(table, scenes).eval("end - start")
    assert got <= asked and (got == 1 or lasts.min() >= shortest - 1e-5)
    if got < asked:
        with pytest.raises(PrimenbError, match="can be made"): scenes_by_number(scores, table, got + 1, shortest)
    if not shortest: assert got == min(asked, len(lengths)) and set(cuts_of(scenes)) == set((np.argsort(-scores)[: got - 1] + 1).tolist())


def test_thresholds():
    assert scenes_by_threshold([0.2, 0.5, 0.9]).tolist() == [0, 0, 1, 2] and scenes_by_threshold([]).tolist() == [0]
    assert scenes_by_threshold([-1, 2, 0], 0).tolist() == [0, 0, 1, 2]


@many
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 1)), min_size=1, max_size=15), st.sampled_from([12, 24000 / 1001]))
def test_tables_fit_their_shots(rows, rate):
    shots, scene = film([length for length, _ in rows], rate), np.cumsum([step for _, step in rows])
    table = scene_table(shots, scene)
    assert list(table) == scene_columns and table.scene.tolist() == sorted(set(scene.tolist()))
    for row in table.itertuples():
        inside = shots[scene == row.scene]
        assert (row.first_shot, row.last_shot) == (inside.shot.min(), inside.shot.max())
        assert (row.start, row.end, row.start_frame, row.end_frame) == (inside.start.min(), inside.end.max(), inside.start_frame.min(), inside.end_frame.max())
    assert (table.start_frame.to_numpy()[1:] == table.end_frame.to_numpy()[:-1]).all()
    assert np.repeat(table.scene, table.last_shot - table.first_shot + 1).tolist() == scene.tolist()


def test_tables_take_shots_by_position():
    shots = film([10, 20, 30, 40]).iloc[[1, 2, 3]].set_index(np.array([7, 7, 9]))
    assert scene_table(shots, [0, 0, 1])[["first_shot", "last_shot", "start_frame", "end_frame"]].values.tolist() == [[1, 2, 10, 60], [3, 3, 60, 100]]


@pytest.mark.parametrize("make, words", [
    (lambda: scene_table(film([5, 5]), [0]), "film: there are 2 shots, but the shape of scene_of_shot is (1,)"),
    (lambda: scene_table(film([5, 5, 5]), [0, 1, 0]), "film: the scene goes back after shot 1"),
    (lambda: scene_table(film([5, 5]).assign(film=["a", "b"]), [0, 1]), "not the shots of one film"),
    (lambda: scene_table(film([5])[:0], []), "not the shots of one film"),
    (lambda: scenes_by_number([0.1] * 3, film([5, 5, 5]), 2), "film: 3 shots have 2 boundaries, but the shape of scores is (3,)"),
    (lambda: scenes_per_hour([0.1], film([5, 5, 5]), 9), "shape of scores is (1,)"),
    (lambda: scenes_by_number([0.1, np.nan], film([5, 5, 5]), 2), "film, shot 1: the score of its end is nan"),
    (lambda: scenes_by_threshold([np.inf]), "shot 0: the score of its end is inf"),
    (lambda: scenes_by_threshold([[0.1, 0.2]]), "shape of scores is (1, 2)"),
    (lambda: scenes_by_number([0.1, 0.2], film([5, 5, 5]), 4), "4 scenes: of film's 3 shots only 1 to 3 scenes"),
    (lambda: group(apart(0, 4), 5), "5 scenes: they cannot be made of 4 shots"), (lambda: group(apart(0, 4), 0), "ask for 1 to 4"),
    (lambda: group(np.zeros((2, 3)), 1), "no symmetric table"), (lambda: group(np.array([[0, 1], [2, 0]]), 1), "no symmetric table"),
    (lambda: grouping_scores(np.full((3, 3), np.nan)), "no symmetric table"), (lambda: count_scenes(np.zeros(3)), "no symmetric table")])
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(PrimenbError) as error: make()
    assert words in str(error.value)


def test_costs_have_names():
    with pytest.raises(ValueError, match="'mean'; give"): group(apart(0, 3), 2, "mean")


def test_the_memory_of_a_film_of_two_hours():
    "2,000 shots: a few tables of all pairs. How long it takes is measured by bench/scenes.py."
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(100, 64))[np.sort(rng.integers(100, size=2000))] + rng.normal(size=(2000, 64))).astype(np.float32)
    D, shots = distances(vectors), film(rng.integers(12, 180, 2000))
    scores = grouping_scores(D)
    for work in (lambda: grouping_scores(D), lambda: group(D, 100), lambda: scenes_per_hour(scores, shots, 60, shortest=20)):
        tracemalloc.start()
        work()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert most < 160e6


def test_starter_films():
    for f in films("validation", check=False):
        table = scene_table(f.shots, f.shots.scene)
        same = [c for c in scene_columns if c not in ("start", "end")]
        assert table[same].values.tolist() == f.scenes[same].values.tolist()
        assert table.end.to_numpy() == pytest.approx(f.scenes.end_frame / f.attributes["rate"], abs=1e-5)


def test_real_films(real):
    films_ = [f for f in feature_films(real / "ovsd") if "vgg19" in f.features]
    apart_ = [distances(f.features["vgg19"], f.film) for f in films_]
    by_change, by_group = (pooled_ap([Judged.of(f, scores(d)) for f, d in zip(films_, apart_)]) for scores in (lambda d: np.diag(d, 1), grouping_scores))
    assert len(films_) == 15 and by_group > 0.32 and by_group > by_change + 0.05
    assert 2 < np.median([count_scenes(d) for d in apart_]) < 40
