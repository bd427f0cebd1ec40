"Grouping: every choice of scenes is as good as the best of all choices, options hold, and tables fit their shots."
import tracemalloc
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primenb.core import PrimenbError
from primenb.data.corpus import films
from primenb.data.public import feature_films
from primenb.data.records import frames_table
from primenb.scenes.grouping import (
    LONGEST_SCENE, count_scenes, distances, group_shots, grouping_scores, mean_distance, scene_columns, scene_table,
    scenes_by_number, scenes_by_threshold, scenes_per_hour)
from primenb.scenes.evaluate import ScoredFilm, pooled_ap

many = settings(max_examples=60, deadline=None)


def cuts_of(scenes): return (np.flatnonzero(np.diff(scenes)) + 1).tolist()


def spans(cuts, n): return list(zip((0, *cuts), (*cuts, n)))


def film(lengths, rate=24):
    "The shot table of shots with these lengths, in frames."
    stops = np.cumsum(lengths)
    return frames_table("film", np.stack([stops - lengths, stops], 1), rate)


def vectors(seed, n, size=3): return np.random.default_rng(seed).normal(size=(n, size))


def board(v):
    "(n,n) distances of all pairs, one at a time; v has a vector for each shot."
    v = np.asarray(v, float) / np.linalg.norm(v, axis=1, keepdims=True)
    return np.array([[0 if a is b else 1 - a @ b for b in v] for a in v])


def fits(cuts, n, longest): return max(b - a for a, b in spans(cuts, n)) <= longest


def additive(D, cuts): return sum(D[a:b, a:b].sum() for a, b in spans(cuts, len(D)))


def normalised(D, cuts): return additive(D, cuts) / sum((b - a) ** 2 for a, b in spans(cuts, len(D)))


def scatter(D, cuts): return sum(D[a:b, a:b].sum() / (b - a) for a, b in spans(cuts, len(D)))


def all_cuts(n, number): return combinations(range(1, n), number - 1)


@pytest.mark.parametrize("cost", [additive, normalised, scatter])
@many
@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([2, 3, 5, LONGEST_SCENE]), st.data())
def test_no_grouping_costs_less(cost, seed, n, longest, data):
    v, number = vectors(seed, n), data.draw(st.integers(-(-n // longest), n))
    D, scenes = board(v), group_shots(distances(v, longest), number, cost.__name__)
    assert scenes[0] == 0
    assert scenes[-1] == number - 1
    assert set(np.diff(scenes)) <= {0, 1}
    assert fits(cuts_of(scenes), n, longest)
    assert cost(D, cuts_of(scenes)) == pytest.approx(
        min(cost(D, cuts) for cuts in all_cuts(n, number) if fits(cuts, n, longest)), abs=1e-6)


def test_scatter_is_k_means_along_the_film():
    v = np.random.default_rng(0).normal(size=(12, 4))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    sse = sum(((v[a:b] - v[a:b].mean(0)) ** 2).sum() for a, b in spans([3, 7], 12))
    assert scatter(board(v), [3, 7]) == pytest.approx(sse, rel=1e-5)


def test_clean_scenes_of_any_length_are_found():
    truth = np.repeat(np.arange(5), [1, 30, 2, 8, 1])
    D, price = distances(np.eye(5)[truth]), mean_distance(np.eye(5)[truth])
    for cost in ("scatter", "normalised", "additive"): assert group_shots(D, 5, cost).tolist() == truth.tolist()
    assert scenes_by_threshold(grouping_scores(D, price), 0).tolist() == truth.tolist()


@many
@given(
    st.integers(0, 10**6), st.integers(1, 7), st.sampled_from([2, 3, LONGEST_SCENE]),
    st.sampled_from([0.05, 0.4, 0.9, 3.0]))
def test_scores_are_what_an_end_saves(seed, n, longest, price):
    v = vectors(seed, n)
    D = board(v)
    every = [
        (scatter(D, cuts) + price * (len(cuts) + 1), cuts) for number in range(1, n + 1)
        for cuts in all_cuts(n, number) if fits(cuts, n, longest)]
    slow = [
        min(c for c, cuts in every if j not in cuts) - min(c for c, cuts in every if j in cuts) for j in range(1, n)]
    scores = grouping_scores(distances(v, longest), price)
    assert scores.shape == (n - 1,) and scores == pytest.approx(slow, abs=1e-6)
    if (np.abs(scores) > 1e-6).all():
        assert cuts_of(scenes_by_threshold(scores, 0)) == list(min(every)[1])  # else two groupings are equally good


@many
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([2, 7, 40, LONGEST_SCENE]), st.sampled_from([0, 0.2]))
def test_distances_are_a_band_of_those_of_all_pairs(seed, n, longest, holes):
    rng, v = np.random.default_rng(seed), vectors(seed, n, 5)
    there = rng.random(n) >= holes
    there[rng.integers(n)] = True
    D = board(v)
    pairs = D[np.ix_(there, there)]
    mean = pairs.sum() / max(len(pairs) * (len(pairs) - 1), 1)
    D[~there] = D[:, ~there] = mean
    band = distances(np.where(there[:, None], v, np.nan), longest)
    assert band.shape == (n, min(n, longest) - 1)
    assert mean_distance(np.where(there[:, None], v, 0)) == pytest.approx(mean, abs=1e-6)
    for step in range(1, band.shape[1] + 1):
        assert band[: n - step, step - 1] == pytest.approx(np.diag(D, step), abs=1e-6)
        assert (band[n - step :, step - 1] == 0).all()


def test_distances_of_all_kinds_of_vectors():
    v = np.array([[3, 0], [1, 0], [0, 2], [-1, 0], [np.nan, 1], [0, 0]], np.float32)
    m = 7 / 6
    assert distances(v) == pytest.approx(
        np.array([[0, 1, 2, m, m], [1, 2, m, m, 0], [1, m, m, 0, 0], [m, m, 0, 0, 0], [m, 0, 0, 0, 0], [0] * 5]),
        abs=1e-6)
    assert mean_distance(v) == mean_distance(v[:4]) == pytest.approx(m) and distances(v).min() == 0
    assert distances([[1, 2]]).shape == (1, 0)
    assert mean_distance([[1, 2]]) == 0
    assert mean_distance(np.ones((9, 3))) == pytest.approx(0, abs=1e-6)
    for refused in (distances, mean_distance):
        with pytest.raises(PrimenbError, match="tt1: none of its shots has an embedding"):
            refused(np.full((3, 2), np.nan), name="tt1")


def test_a_scene_of_more_shots_than_the_longest():
    "It is cut, no shot is lost, the true end beside it stays; and a film of one image has no end better than another."
    truth = np.repeat([0, 1, 2], [40, 30, 100])
    v = np.eye(8)[truth] + np.random.default_rng(0).normal(0, 0.05, (170, 8))
    cuts = cuts_of(scenes_by_threshold(grouping_scores(distances(v, 64), mean_distance(v)), 0))
    assert {40, 70} <= set(cuts) and len(cuts) == 3 and fits(cuts, 170, 64)
    assert cuts_of(scenes_by_threshold(grouping_scores(distances(v), mean_distance(v)), 0)) == [40, 70]
    for cost in ("scatter", "normalised", "additive"):
        assert fits(cuts_of(group_shots(distances(v, 64), 5, cost)), 170, 64)
    scores = grouping_scores(distances(np.ones((170, 4)), 64), 0.5)
    assert np.isfinite(scores).all()
    assert scores.max() == pytest.approx(0, abs=1e-5)
    assert fits(cuts_of(group_shots(distances(np.ones((170, 4)), 64), 3)), 170, 64)


def test_a_shot_without_a_vector_neither_binds_nor_parts():
    truth = np.repeat([0, 1], 6)
    v = np.eye(2)[truth] + np.random.default_rng(0).normal(0, 0.1, (12, 2))
    v[[2, 9]] = np.nan
    assert group_shots(distances(v), 2).tolist() == truth.tolist()


def test_number_of_scenes():
    rng = np.random.default_rng(0)
    assert count_scenes(rng.normal(size=(6, 60))[np.repeat(np.arange(6), 10)] + rng.normal(0, 0.5, (60, 60))) in (5, 6)
    for size in (30, 4):  # more dimensions than shots, and fewer: then at most size + 1 values are not zero
        v = vectors(0, 20, size)
        y = np.log(np.linalg.svd(board(v), compute_uv=False)[: min(10, size + 1)])
        line = [y[0] + (y[-1] - y[0]) * i / (len(y) - 1) for i in range(len(y))]
        assert count_scenes(v) == count_scenes(np.vstack([v, np.full((3, size), np.nan)])) == max(
            range(len(y)), key=lambda i: line[i] - y[i])
    assert [count_scenes(np.ones((n, 2))) for n in (1, 2, 9)] == [1, 1, 1], "a film of one picture"


@many
@given(
    st.lists(st.tuples(st.integers(1, 100), st.integers(-20, 20)), min_size=1, max_size=8),
    st.sampled_from([0, 1, 2.5, 4]), st.data())
def test_no_choice_of_ends_has_a_higher_sum(shots_, shortest, data):
    table, scores, n = film([length for length, _ in shots_]), [score / 10 for _, score in shots_][1:], len(shots_)
    times = np.append(table.start, table.end.iloc[-1])
    def fits(cuts): return not cuts or all(times[b] - times[a] >= shortest - 1e-6 for a, b in spans(cuts, n))
    number = data.draw(st.integers(1, n))
    sums = [sum(scores[c - 1] for c in cuts) for cuts in all_cuts(n, number) if fits(cuts)]
    if not sums:
        with pytest.raises(PrimenbError, match=f"{number} scenes: of film's {n} shots only 1 to"):
            scenes_by_number(scores, table, number, shortest)
        return
    scenes = scenes_by_number(scores, table, number, shortest)
    assert len(cuts_of(scenes)) == number - 1 and fits(cuts_of(scenes))
    assert sum(scores[c - 1] for c in cuts_of(scenes)) == pytest.approx(max(sums))


@many
@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=40), st.floats(0, 4000), st.sampled_from([0, 3, 10]),
    st.integers(0, 10**6))
def test_the_knob(lengths, wanted, shortest, seed):
    table, scores = film(lengths), np.random.default_rng(seed).random(len(lengths) - 1)
    scenes = scenes_per_hour(scores, table, wanted, shortest)
    asked, got = max(round(wanted * table.end.iloc[-1] / 3600), 1), scenes[-1] + 1
    lasts = scene_table(table, scenes).eval("end - start")
    assert got <= asked and (got == 1 or lasts.min() >= shortest - 1e-5)
    if got < asked:
        with pytest.raises(PrimenbError, match="can be made"): scenes_by_number(scores, table, got + 1, shortest)
    if not shortest:
        assert got == min(asked, len(lengths)) and set(cuts_of(scenes)) == set(
            (np.argsort(-scores)[: got - 1] + 1).tolist())


def test_thresholds():
    assert scenes_by_threshold([0.2, 0.5, 0.9]).tolist() == [0, 0, 1, 2] and scenes_by_threshold([]).tolist() == [0]
    assert scenes_by_threshold([-1, 2, 0], 0).tolist() == [0, 0, 1, 2]


@many
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 1)), min_size=1, max_size=15),
    st.sampled_from([12, 24000 / 1001]))
def test_tables_fit_their_shots(rows, rate):
    shots, scene = film([length for length, _ in rows], rate), np.cumsum([step for _, step in rows])
    table = scene_table(shots, scene)
    assert list(table) == scene_columns and table.scene.tolist() == sorted(set(scene.tolist()))
    for row in table.itertuples():
        inside = shots[scene == row.scene]
        assert (row.first_shot, row.last_shot) == (inside.shot.min(), inside.shot.max())
        assert (row.start, row.end, row.start_frame, row.end_frame) == (
            inside.start.min(), inside.end.max(), inside.start_frame.min(), inside.end_frame.max())
    assert (table.start_frame.to_numpy()[1:] == table.end_frame.to_numpy()[:-1]).all()
    assert np.repeat(table.scene, table.last_shot - table.first_shot + 1).tolist() == scene.tolist()


def test_tables_take_shots_by_position():
    shots = film([10, 20, 30, 40]).iloc[[1, 2, 3]].set_index(np.array([7, 7, 9]))
    assert scene_table(shots, [0, 0, 1])[
        ["first_shot", "last_shot", "start_frame", "end_frame"]].values.tolist() == [[1, 2, 10, 60], [3, 3, 60, 100]]


@pytest.mark.parametrize("make, words", [
    (lambda: scene_table(film([5, 5]), [0]), "film: there are 2 shots, but the shape of scene_of_shot is (1,)"),
    (lambda: scene_table(film([5, 5, 5]), [0, 1, 0]), "film: the scene number falls after shot 1"),
    (lambda: scene_table(film([5, 5]).assign(film=["a", "b"]), [0, 1]), "not the shots of one film"),
    (lambda: scene_table(film([5])[:0], []), "not the shots of one film"),
    (
        lambda: scenes_by_number([0.1] * 3, film([5, 5, 5]), 2),
        "film: 3 shots have 2 boundaries, but the shape of scores is (3,)"),
    (lambda: scenes_per_hour([0.1], film([5, 5, 5]), 9), "shape of scores is (1,)"),
    (lambda: scenes_by_number([0.1, np.nan], film([5, 5, 5]), 2), "film, shot 1: the score of its end is nan"),
    (lambda: scenes_by_threshold([np.inf]), "shot 0: the score of its end is inf"),
    (lambda: scenes_by_threshold([[0.1, 0.2]]), "shape of scores is (1, 2)"),
    (lambda: scenes_by_number([0.1, 0.2], film([5, 5, 5]), 4), "4 scenes: of film's 3 shots only 1 to 3 scenes"),
    (lambda: group_shots(distances(vectors(0, 4)), 5), "5 scenes: they cannot be made of 4 shots"),
    (lambda: group_shots(distances(vectors(0, 4)), 0), "choose 1 to 4"),
    (
        lambda: group_shots(distances(vectors(0, 9), 4), 2),
        "2 scenes: they cannot be made of 9 shots, with at most 4 in each; choose 3 to 9"),
    (lambda: group_shots(distances(vectors(0, 3)), 2, "mean"), "cost 'mean': there is no such cost; choose"),
    (lambda: distances(vectors(0, 3), 1), "scenes of at most 1 shots: a scene would end after every shot"),
    (lambda: group_shots(board(vectors(0, 4)), 1), "no table of numbers with a row for each shot"),
    (lambda: group_shots(np.zeros((3, 0)), 1), "no table of numbers"),
    (lambda: grouping_scores(np.full((3, 2), np.nan), 1), "no table of numbers"),
    (lambda: grouping_scores(np.zeros(3), 1), "no table of numbers"),
    (lambda: count_scenes(np.zeros((3, 2))), "none of its shots has an embedding")])
def test_what_does_not_fit_is_refused(make, words):
    with pytest.raises(PrimenbError) as error: make()
    assert words in str(error.value)


def peak(work):
    "Bytes that are held at most."
    tracemalloc.start()
    work()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_memory_grows_as_the_film_does():
    "2,000 shots are two hours, and 4,000 take at most twice the memory. bench/scenes.py measures the time."
    rng, held = np.random.default_rng(0), []
    for n in (2000, 4000):
        v = (
            rng.normal(size=(100, 64))[
                np.sort(rng.integers(100, size=n))] + rng.normal(size=(n, 64))).astype(np.float32)
        D, price, shots = distances(v), mean_distance(v), film(rng.integers(12, 180, n))
        scores = grouping_scores(D, price)
        works = (
            lambda: distances(v), lambda: grouping_scores(D, price), lambda: group_shots(D, 100),
            lambda: scenes_by_number(scores, shots, 100, shortest=20), lambda: count_scenes(v))
        held.append([peak(work) for work in works])
    assert max(held[0]) < 5 * 2000 * LONGEST_SCENE * 8
    assert all(b < 2.1 * a for a, b in zip(*held))


def test_starter_films():
    for f in films("validation", check=False):
        table = scene_table(f.shots, f.shots.scene)
        same = [c for c in scene_columns if c not in ("start", "end")]
        assert table[same].values.tolist() == f.scenes[same].values.tolist()
        assert table.end.to_numpy() == pytest.approx(f.scenes.end_frame / f.attributes["rate"], abs=1e-5)


def test_real_films(real):
    films_ = [f for f in feature_films(real / "ovsd") if "vgg19" in f.features]
    def by_change(v): return distances(v)[:-1, 0]
    def by_group(v): return grouping_scores(distances(v), mean_distance(v))
    change, grouped = (
        pooled_ap([ScoredFilm.of(f, scores(f.features["vgg19"])) for f in films_])
        for scores in (by_change, by_group))
    assert len(films_) == 15 and grouped > 0.32 and grouped > change + 0.05
    assert 2 < np.median([count_scenes(f.features["vgg19"]) for f in films_]) < 40


def test_no_marked_scene_is_nearly_as_long_as_the_longest_that_is_considered(real):
    films_ = feature_films(real / "ovsd")
    longest = max(np.unique(f.scene_of_shot, return_counts=True)[1].max() for f in films_)
    assert longest < 100 < LONGEST_SCENE
    assert max(len(f) for f in films_) > LONGEST_SCENE, "or the bound is never met"
    for f in films_:
        if "vgg19" in f.features:
            v = f.features["vgg19"]
            assert grouping_scores(distances(v), mean_distance(v)) == pytest.approx(
                grouping_scores(distances(v, len(f)), mean_distance(v)), abs=1e-9)
