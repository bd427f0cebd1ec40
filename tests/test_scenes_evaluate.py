"Metrics of scene boundaries: each equals a slow loop that follows its definition, and every special case has its rule."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primenb.core import PrimenbError
from primenb.data.public import feature_films, movienet_films
from primenb.data.records import ShotFeatures, frames_table
from primenb.scenes.evaluate import (
    ScoredFilm, boundary_auc, coverage_overflow, evaluate_boundaries, film_metrics, macro_ap, miou, paired_bootstrap,
    pooled_ap, precision_recall_f1, prior, random_scores, recall_near)


@st.composite
def judged(draw, name="film", most=12):
    "A film with up to `most` shots, some with gaps between them; truth of all kinds, scores with ties."
    n = draw(st.integers(1, most))
    steps = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 60)), min_size=n, max_size=n))
    stops = np.cumsum([gap + length for gap, length in steps])
    frames = np.stack([stops - [length for _, length in steps], stops], 1)
    truth = draw(st.lists(st.sampled_from([0, 0, 0, 1, -1, np.nan]), min_size=n - 1, max_size=n - 1))
    scores = draw(st.lists(st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]), min_size=n - 1, max_size=n - 1))
    return ScoredFilm(name, scores, truth, frames, draw(st.sampled_from([12, 24, 24000 / 1001])))


films = st.lists(judged(), min_size=1, max_size=5)
many = settings(max_examples=60, deadline=None)


def known(f): return [(score, truth != 0) for score, truth in zip(f.scores, f.gt) if not np.isnan(truth)]


def slow_ap(list_):
    "Area under precision over recall, one threshold after another."
    total, area, before = sum(end for _, end in list_), 0.0, 0.0
    for threshold in sorted({score for score, _ in list_}, reverse=True):
        taken = [end for score, end in list_ if score >= threshold]
        recall, precision = sum(taken) / total, sum(taken) / len(taken)
        area, before = area + (recall - before) * precision, recall
    return area


@many
@given(films)
def test_order_of_scores(some):
    list_ = [pair for f in some for pair in known(f)]
    ends, others = [s for s, end in list_ if end], [s for s, end in list_ if not end]
    assert prior(some) == pytest.approx(len(ends) / len(list_) if list_ else np.nan, nan_ok=True)
    assert pooled_ap(some) == pytest.approx(slow_ap(list_) if ends else np.nan, nan_ok=True)
    aps = [slow_ap(known(f)) for f in some if any(end for _, end in known(f))]
    assert macro_ap(some) == pytest.approx(np.mean(aps) if aps else np.nan, nan_ok=True)
    pairs = [(a > b) + (a == b) / 2 for a in ends for b in others]
    assert boundary_auc(some) == pytest.approx(np.mean(pairs) if pairs else np.nan, nan_ok=True)


@many
@given(films)
def test_counts(some):
    list_ = [pair for f in some for pair in known(f)]
    hits, found, true = sum(s >= 0.5 and e for s, e in list_), sum(s >= 0.5 for s, _ in list_), sum(e for _, e in list_)
    got = precision_recall_f1(some)
    assert got["f1"] == pytest.approx(2 * hits / (found + true) if found + true else 1)
    if found: assert got["precision"] == pytest.approx(hits / found)
    if true: assert got["recall"] == pytest.approx(hits / true)


@many
@given(judged(), st.sampled_from([0.5, 1.0, 3.0]))
def test_recall_near(f, seconds):
    hits = []
    for i, truth in enumerate(f.gt):
        if np.isnan(truth) or not truth: continue
        hits.append(
            any(
                not np.isnan(f.gt[j]) and f.scores[j] >= 0.5
                and abs(f.frames[i, 1] - f.frames[j, 1]) / f.fps < seconds for j in range(len(f.scores))))
    assert recall_near(f, seconds=seconds) == pytest.approx(np.mean(hits) if hits else np.nan, nan_ok=True)


def slow_scenes(ends, trailing=True):
    "Lists of shots."
    scenes, scene = [], []
    for shot, end in enumerate([*ends, trailing]):
        scene.append(shot)
        if end:
            scenes.append(scene)
            scene = []
    return scenes


def slow_miou(f, unit, trailing):
    "As the code of LGSS does it, scene by scene: the hull is the union."
    true, found = (
        [
            (f.frames[s[0], 0], f.frames[s[-1], 1]) if unit == "frames" else (s[0], s[-1] + 1)
            for s in slow_scenes(e, trailing)]
        for e in (f.gt_ends, f.predicted()))
    if not true: return np.nan
    if not found: return 0
    def iou(a, b):
        shared = min(a[1], b[1]) - max(a[0], b[0])
        return shared / (max(a[1], b[1]) - min(a[0], b[0])) if shared > 0 else 0
    return (
        np.mean(
            [max(iou(g, p) for p in found) for g in true]) + np.mean([max(iou(g, p) for g in true) for p in found])) / 2


@many
@given(judged(), st.sampled_from(["frames", "shots"]), st.booleans())
def test_miou(f, unit, trailing):
    assert miou(f, unit=unit, trailing=trailing) == pytest.approx(slow_miou(f, unit, trailing), nan_ok=True)


@many
@given(judged())
def test_coverage_and_overflow(f):
    true, found, n = slow_scenes(f.gt_ends), slow_scenes(f.predicted()), len(f.frames)
    coverage = overflow = 0
    for i, g in enumerate(true):
        coverage += max(len({*g} & {*p}) for p in found) / n
        beyond = sum(len({*p} - {*g}) for p in found if {*p} & {*g})
        beside = (len(true[i - 1]) if i else 0) + (len(true[i + 1]) if i + 1 < len(true) else 0)
        overflow += (min(beyond / beside, 1) if beside else 0) * len(g) / n
    assert coverage_overflow(f) == pytest.approx((coverage, overflow))


@many
@given(films)
def test_the_table_holds_what_the_functions_say(some):
    some = [replace(f, film=str(i)) for i, f in enumerate(some)]
    table, all_ = film_metrics(some), evaluate_boundaries(some)
    f, row = some[-1], table.iloc[-1]
    c, o = coverage_overflow(f)
    want = dict(ap=pooled_ap([f]), f1=precision_recall_f1([f])["f1"], recall_3s=recall_near(f),
                miou=miou(f), miou_shots=miou(f, unit="shots"), miou_lgss=miou(f, trailing=False),
                coverage=c, overflow=o, f_scene=2 * c * (1 - o) / (c + 1 - o))
    assert row.to_dict() == pytest.approx(want, nan_ok=True) and list(table.index) == [f.film for f in some]
    pooled = dict(
        prior=prior(some), ap=pooled_ap(some), auc=boundary_auc(some), **precision_recall_f1(some),
        ap_macro=macro_ap(some), miou=np.mean([miou(f) for f in some]))
    assert all_[list(pooled)].to_dict() == pytest.approx(pooled, nan_ok=True)


@many
@given(judged())
def test_the_truth_is_perfect_and_order_is_all_that_ap_sees(f):
    perfect = evaluate_boundaries([replace(f, scores=f.gt_ends)])
    assert {v for k, v in perfect.items() if k not in ("prior", "overflow") and not np.isnan(v)} <= {1.0}
    assert perfect.overflow == 0
    stretched = replace(f, scores=np.exp(3 * f.scores))
    assert pooled_ap([stretched]) == pytest.approx(pooled_ap([f]), nan_ok=True)
    assert boundary_auc([stretched]) == pytest.approx(boundary_auc([f]), nan_ok=True)


def steady(scores, truth, name="film"):
    return ScoredFilm(name, scores, truth, np.arange(len(scores) + 1)[:, None] * 24 + [0, 24], 24)


def test_ten_shots_by_hand():
    "Scenes end after shots 2, 3 and 6; found after 2, 5, 6: shot 3's end is found two shots, or two seconds, late."
    f = steady([0, 0, 1, 0, 0, 1, 1, 0, 0], [0, 0, 1, -1, 0, 0, 1, 0, 0])
    assert precision_recall_f1([f]) == pytest.approx(dict(precision=2 / 3, recall=2 / 3, f1=2 / 3))
    assert recall_near(f) == 1 and recall_near(f, seconds=1) == pytest.approx(2 / 3)
    assert miou(f) == miou(f, unit="shots") == pytest.approx((1 + 1 / 3 + 1 / 2 + 1) / 4)
    assert miou(f, trailing=False) == pytest.approx((1 + 1 / 3 + 1 / 2) / 3)
    assert coverage_overflow(f) == pytest.approx(((3 + 1 + 2 + 3) / 10, (2 / 6 * 1 + 1 / 4 * 3) / 10))


def test_pooled_and_macro_differ_where_scales_do():
    low, high = steady([.1, .2, .3], [0, 0, 1], "low"), steady([.7, .8, .9], [0, 0, 1], "high")
    assert macro_ap([low, high]) == 1 and pooled_ap([low, high]) == pytest.approx((1 + 2 / 4) / 2)


@pytest.mark.filterwarnings("error")
def test_odd_films():
    single = ScoredFilm("single", [], [], [[0, 5]], 24)
    marks = evaluate_boundaries([single])
    assert marks[["ap", "auc", "ap_macro", "recall_3s", "prior", "miou_lgss"]].isna().all()
    assert marks[["f1", "miou", "miou_shots", "coverage", "f_scene"]].tolist() == [1] * 5 and marks.overflow == 0
    calm, other = steady([.9, .1], [0, 0], "calm"), steady([.9, .1], [1, 0], "other")
    assert macro_ap([calm, other]) == 1 > pooled_ap([calm, other])
    assert np.isnan(recall_near(calm))
    assert evaluate_boundaries([calm, other]).recall_3s == 1
    blind = steady([0, 0], [1, 0])
    assert (precision_recall_f1([blind])["f1"], recall_near(blind), miou(blind, trailing=False)) == (0, 0, 0)
    assert miou(blind, unit="shots") == pytest.approx((1 / 3 + 2 / 3) / 2 / 2 + 2 / 3 / 2)
    assert precision_recall_f1([steady([0], [0])])["f1"] == 1
    unknown = steady([1, 1, 0], [np.nan, 1, np.nan])
    assert unknown.known.tolist() == [False, True, False]
    assert precision_recall_f1([unknown])["precision"] == 1
    assert miou(unknown) == 1
    assert steady([.5], [1]).predicted(0.5).all(), "a score at the threshold counts"
    gap = ScoredFilm("gap", [1, 0], [0, 1], [[0, 24], [24, 48], [144, 168]], 24)
    assert recall_near(gap) == 1, "an end is where its shot ends, not where the next begins"


@pytest.mark.parametrize("change, words", [
    (dict(scores=[0, 0]), "4 shots have 3 boundaries, but the shape of scores is (2,)"),
    (dict(scores=[0] * 4), "shape of scores is (4,)"),
    (dict(gt=[0] * 4), "shape of gt is (4,)"),
    (dict(gt=[[0], [0], [0]]), "shape of gt"),
    (dict(scores=[0, np.nan, 0]), "film, shot 1: the score of its end is nan"),
    (dict(scores=[0, 0, np.inf]), "film, shot 2"),
    (dict(frames=[[0, 9]] * 4), "follow one another"),
    (dict(frames=[[0, 5], [5, 5], [5, 6], [6, 7]]), "follow one another"),
    (dict(frames=np.zeros((0, 2))), "follow one another"),
    (dict(frames=np.arange(4)), "follow one another")])
def test_what_does_not_fit_is_refused(change, words):
    good = dict(film="film", scores=[0, 0, 0], gt=[0, 1, 0], frames=[[0, 2], [2, 4], [4, 6], [7, 9]], fps=24)
    ScoredFilm(**good)
    with pytest.raises(PrimenbError) as error: ScoredFilm(**{**good, **change})
    assert words in str(error.value)


def test_units_have_names():
    with pytest.raises(ValueError, match='"frames" or "shots"'): miou(steady([0], [0]), unit="seconds")


def test_films_of_a_data_set():
    table = frames_table("f", [[0, 10], [10, 20], [25, 30]], 25)
    marked, labelled = ShotFeatures("f", table, np.array([0, 0, 1])), ShotFeatures(
        "f", table, np.array([0, 1, 1]), labels=np.array([-1, np.nan, 0]))
    one, two = (ScoredFilm.of(f, [0.2, 0.8]) for f in (marked, labelled))
    assert one.gt_ends.tolist() == [False, True]
    assert one.fps == pytest.approx(25)
    assert one.film == "f"
    assert one.frames.tolist() == [[0, 10], [10, 20], [25, 30]]
    assert two.gt_ends.tolist() == [True, False] and two.known.tolist() == [True, False]
    with pytest.raises(PrimenbError, match="not marked"): ScoredFilm.of(ShotFeatures("f", table), [0, 0])


def test_bootstrap_over_films():
    rng = np.random.default_rng(0)
    truths = [rng.random(30) < 0.2 for _ in range(10)]
    good, bad = ([steady(t + rng.normal(0, noise, 30), t, str(i)) for i, t in enumerate(truths)] for noise in (0.3, 1))
    got = paired_bootstrap(good, bad, samples=60)
    assert got.gain == pytest.approx(pooled_ap(good) - pooled_ap(bad))
    assert 0 < got.low < got.gain < got.high
    assert got.above == 1
    assert paired_bootstrap(good, bad, samples=60).equals(got)
    assert not paired_bootstrap(good, bad, samples=60, seed=1).equals(got)
    back = paired_bootstrap(bad, good, samples=60)
    assert [-back.high, -back.low] == pytest.approx([got.low, got.high]) and back.above == 0
    draws = np.random.default_rng(0).integers(10, size=(60, 10))
    slow = [macro_ap([good[i] for i in d]) - macro_ap([bad[i] for i in d]) for d in draws]
    assert paired_bootstrap(good, bad, macro_ap, samples=60)[["low", "high"]].tolist() == pytest.approx(
        np.quantile(slow, [0.025, 0.975]).tolist())
    with pytest.raises(PrimenbError, match="not the same film"): paired_bootstrap(good, bad[::-1])
    with pytest.raises(PrimenbError, match="same ground truth"):
        paired_bootstrap(good, [replace(f, gt=1 - f.gt) for f in bad])
    with pytest.raises(ValueError): paired_bootstrap(good, bad[:9])


def test_guesses_know_nothing():
    truth = np.random.default_rng(1).random(4000) < 0.1
    films = [steady(truth, truth)]
    assert pooled_ap(random_scores(films)) == pytest.approx(prior(films), abs=0.02)
    assert boundary_auc(random_scores(films)) == pytest.approx(0.5, abs=0.03)
    assert (random_scores(films)[0].scores == random_scores(films)[0].scores).all()
    assert (random_scores(films)[0].scores != random_scores(films, 1)[0].scores).any()


def test_labels_of_movienet(tmp_path):
    "One label too few, and a -1."
    for folder in ("label318", "shot_movie318", "meta"): (tmp_path / folder).mkdir()
    (tmp_path / "meta/split318.json").write_text('{"train": [], "val": [], "test": ["tt1"]}')
    (tmp_path / "shot_movie318/tt1.txt").write_text("".join(f"{i * 24} {i * 24 + 23} 1 2 3\n" for i in range(4)))
    (tmp_path / "label318/tt1.txt").write_text("0 -1\n1 0\n")
    film = ScoredFilm.of(next(iter(movienet_films(tmp_path))), [1, 0, 1])
    assert film.gt_ends.tolist() == [True, False, False] and film.known.tolist() == [True, True, False]
    assert evaluate_boundaries([film])[["ap", "f1", "miou"]].tolist() == [1, 1, 1]


def test_real_films(real):
    films = [ScoredFilm.of(f, np.zeros(len(f) - 1)) for f in feature_films(real / "ovsd")]
    marks = evaluate_boundaries(random_scores(films))
    assert len(films) == 19
    assert prior(films) == pytest.approx(0.078, abs=0.001)
    assert marks.ap == pytest.approx(prior(films), abs=0.02)
    perfect = film_metrics([replace(f, scores=f.gt_ends) for f in films])
    assert (perfect.drop(columns="overflow") == 1).all(axis=None) and (perfect.overflow == 0).all()
    assert isinstance(perfect, pd.DataFrame)
