"Evidence, heads and the scenes of a film: slow references, films with a known answer, real films, and bad input."

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import project
from primenb.core import PrimenbError
from primenb.data.corpus import films
from primenb.data.public import feature_films
from primenb.data.records import ShotFeatures, frames_table
from primenb.scenes.boundaries import (
    Evidence,
    FusedHead,
    Head,
    NoveltyHead,
    score_films,
    score_held_out,
    window_indices,
)
from primenb.scenes.protocol import (
    SHOT_HEADS,
    FilmSource,
    evaluate_shot_run,
    film_set,
    raw_features,
    scored_films,
    with_embeddings,
)
from primenb.scenes.files import load_scenes
from primenb.scenes.find import colour_histogram, find_scenes, zero_shot_boundaries
from primenb.scenes.evaluate import ScoredFilm, evaluate_boundaries, paired_bootstrap, pooled_ap
from primenb.media.shots import detect_shots

real = project / os.environ.get("PRIMENB_REAL", "data/real")
needs_real = pytest.mark.skipif(not (real / "ovsd").is_dir(), reason=f"no open films in {real}; set PRIMENB_REAL")


def film(seed, n=40, d=16, noise=0.7, name=None):
    "A film whose scenes are points with noise."
    rng = np.random.default_rng(seed)
    scene = np.append(0, (rng.random(n - 1) < 0.2).cumsum())
    vectors = rng.normal(size=(scene.max() + 1, d))[scene] + noise * rng.normal(size=(n, d))
    ends = np.cumsum(rng.integers(10, 90, n))
    return ShotFeatures(
        name or f"film {seed}",
        frames_table(name or f"film {seed}", np.stack([np.append(0, ends[:-1]), ends], 1), 24),
        scene,
        dict(v=vectors.astype(np.float32)),
    )


FILMS = [film(seed) for seed in range(8)]
SIMILAR = Evidence("similarity", "v")


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 99))
def test_evidence_pair_by_pair(n, k, seed):
    record = film(seed, n)
    z = record.features["v"] / np.linalg.norm(record.features["v"], axis=1, keepdims=True)
    shots = [[min(max(j, 0), n - 1) for j in range(b - k, b + k)] for b in range(1, n)]
    assert window_indices(n, k).tolist() == shots
    assert np.allclose(
        Evidence("similarity", "v", k)(record),
        [[z[i] @ z[j] for x, i in enumerate(s) for j in s[x + 1 :]] for s in shots],
        atol=1e-5,
    )
    assert np.allclose(
        Evidence("window", "v", k)(record), [np.concatenate([record.features["v"][j] for j in s]) for s in shots]
    )
    length = np.log((record.shots.end - record.shots.start).to_numpy())
    assert np.allclose(Evidence("durations", "", k)(record)[:, :-1], [[length[j] for j in s] for s in shots])


def test_heads_tell_scenes_that_can_be_told():
    for head in (Head(SIMILAR), FusedHead((Head(SIMILAR), Head(Evidence("durations")))), NoveltyHead("v")):
        assert evaluate_boundaries(score_held_out(head, FILMS)).ap > (0.7 if isinstance(head, NoveltyHead) else 0.8), (
            head
        )
    assert evaluate_boundaries(score_held_out(Head(Evidence("durations")), FILMS)).ap < 0.4, "lengths say nothing here"
    perceptron = evaluate_boundaries(score_held_out(Head(Evidence("window", "v"), "mlp", (16,)), FILMS))
    assert perceptron.ap > perceptron.prior


def test_above_one_half_lie_as_many_as_there_are_ends():
    rng = np.random.default_rng(0)
    hard = [
        replace(f, features=dict(v=f.features["v"] + 1.5 * rng.normal(size=f.features["v"].shape)))
        for f in (film(n) for n in range(30))
    ]
    for head in (Head(SIMILAR), FusedHead((Head(SIMILAR), Head(Evidence("durations")))), Head(SIMILAR, "mlp", (8,))):
        found = np.concatenate([j.scores >= 0.5 for j in score_films(head.fit(hard[:20]), hard[20:])]).sum()
        assert 0.6 < found / sum(f.boundaries.sum() for f in hard[20:]) < 1.6, head


def test_nothing_is_learnt_of_the_film_that_is_score_films():
    first = score_held_out(Head(SIMILAR), FILMS)[0]
    lied = replace(FILMS[0], scene_of_shot=np.arange(40))
    assert (score_held_out(Head(SIMILAR), [lied, *FILMS[1:]])[0].scores == first.scores).all()


def test_parts_hold_the_smaller_ones():
    class Spy:
        seen = []

        def fit(self, records):
            Spy.seen.append([r.film for r in records])
            return Head(SIMILAR).fit(records)

    parts = [(list(range(6)), [6, 7])]
    scored = [score_held_out(Spy(), FILMS, parts, fraction, seed=3) for fraction in (0.1, 0.5, 1.0)]
    assert [len(films) for films in Spy.seen] == [1, 3, 6]
    assert set(Spy.seen[0]) < set(Spy.seen[1]) < set(Spy.seen[2]) == {f.film for f in FILMS[:6]}
    assert [f.film for f in scored[-1]] == [f.film for f in FILMS[6:]]
    assert pooled_ap(scored[-1]) == pytest.approx(pooled_ap(score_films(Head(SIMILAR).fit(FILMS[:6]), FILMS[6:])))


def test_odd_films():
    one = film(0, 1)
    head = Head(SIMILAR).fit(FILMS)
    assert len(head.scores(one)) == 0 and len(zero_shot_boundaries(one.features["v"])) == 0
    assert len(FusedHead((Head(SIMILAR), Head(Evidence("durations")))).fit(FILMS).scores(one)) == 0
    holes = replace(
        FILMS[0], features=dict(v=np.where(np.arange(40)[:, None] % 7 == 3, np.nan, FILMS[0].features["v"]))
    )
    assert np.isfinite(head.scores(holes)).all()
    twice = replace(FILMS[0], features=dict(v=np.repeat(FILMS[0].features["v"][:20], 2, 0)))
    assert np.isfinite(head.scores(twice)).all() and np.isfinite(zero_shot_boundaries(twice.features["v"])).all()
    unsure = replace(FILMS[0], labels=np.where(np.arange(40) % 5 == 0, np.nan, np.append(FILMS[0].boundaries, 0)))
    assert np.isfinite(Head(SIMILAR).fit([unsure, *FILMS[1:]]).scores(FILMS[0])).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Evidence("sound"), "choose one of"),
        (lambda: Evidence("similarity", "v", 0), "at least 1"),
        (lambda: Head(Evidence("similarity", "w")).fit(FILMS), "no features 'w'"),
        (lambda: Head(SIMILAR, "forest").fit(FILMS), "logistic"),
        (lambda: Head(SIMILAR).fit([]), "no films"),
        (lambda: Head(SIMILAR).scores(FILMS[0]), "call fit first"),
        (lambda: Head(SIMILAR).fit([replace(FILMS[0], scene_of_shot=np.zeros(40, int))]), "a scene ends in 0"),
        (lambda: score_held_out(Head(SIMILAR), FILMS[:1]), "at least two"),
        (lambda: Head(SIMILAR).fit([replace(FILMS[0], scene_of_shot=None)]), "not marked"),
        (lambda: Head(SIMILAR).fit([replace(FILMS[0], features=dict(v=np.full((40, 3), np.nan)))]), "not one shot"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(PrimenbError, match=message):
        make()


# ---- the scenes of a film


def test_colours_are_shares():
    picture = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert (
        colour_histogram(picture).sum() == pytest.approx(1)
        and (colour_histogram(picture) == colour_histogram(picture[::-1, ::-1])).all()
    )
    halves = np.zeros((10, 10, 3), np.uint8)
    halves[:, 5:] = (255, 0, 0)
    assert sorted(colour_histogram(halves)[colour_histogram(halves) > 0]) == [0.5, 0.5]


def test_scenes_of_the_corpus_are_found():
    found, true = [], []
    for f in list(films("test", check=False))[:4]:
        scenes = find_scenes(f.path, shots=f.shots)
        assert scenes.end.iloc[-1] == f.shots.end.iloc[-1]
        assert scenes.start.iloc[0] == 0
        assert (scenes.first_shot.to_numpy()[1:] == scenes.last_shot.to_numpy()[:-1] + 1).all()
        assert np.isnan(scenes.score.iloc[-1]) and (scenes.score[:-1] > 0).all()
        found += [(f.key, e) for e in scenes.end_frame[:-1]]
        true += [(f.key, e) for e in f.scenes.end_frame[:-1]]
    assert len(set(found) & set(true)) >= 0.8 * max(len(found), len(true))


def test_the_knob_and_a_head():
    record = FILMS[0]
    hours = record.shots.end.iloc[-1] / 3600
    for number in (1, 3, 9):
        assert len(find_scenes(record, features="v", per_hour=number / hours)) == number
    head = Head(SIMILAR).fit(FILMS[1:])
    assert (
        len(find_scenes(record, features="v", head=head))
        == len(find_scenes(record, head=head))
        == 1 + (head.scores(record) >= 0.5).sum()
    )
    named = Head(Evidence("similarity", "embeddings")).fit(
        [replace(f, features=dict(embeddings=f.features["v"])) for f in FILMS[1:]]
    )
    scenes = find_scenes(record, features="v", head=named)
    scores = named.scores(replace(record, features=dict(embeddings=record.features["v"])))
    assert len(scenes) == 1 + (scores >= 0.5).sum()


def test_a_hole_in_the_features_of_a_film():
    record = FILMS[0]
    holes = replace(record, features=dict(v=np.where(np.arange(40)[:, None] == 7, np.nan, record.features["v"])))
    assert len(find_scenes(holes, features="v")) >= 1
    with pytest.raises(PrimenbError, match="not one shot"):
        find_scenes(replace(record, features=dict(v=np.full((40, 2), np.nan))), features="v")


@needs_real
def test_from_a_real_film_to_a_timeline_in_one_command(tmp_path):
    film = real / "film_clips/bbb_60s.mp4"
    subprocess.run(
        [Path(sys.executable).parent / "primenb", "analyse", film, "-o", tmp_path / "out", "--parts", "scenes"],
        check=True,
        capture_output=True,
    )
    shots = detect_shots(film)
    scenes = load_scenes(tmp_path / "out/scenes.otio", shots)
    assert scenes.end.iloc[-1] == pytest.approx(shots.end.iloc[-1]) and set(scenes.start) <= set(shots.start)
    assert pd.read_csv(tmp_path / "out/scenes.csv").end_frame.tolist() == scenes.end_frame.tolist()


@needs_real
def test_grouping_is_far_above_chance_on_open_films():
    records = [f for f in feature_films(real / "ovsd") if "vgg19" in f.features]
    scores = evaluate_boundaries([ScoredFilm.of(f, zero_shot_boundaries(f.features["vgg19"])) for f in records])
    assert scores.ap > 3 * scores.prior


@needs_real
def test_raw_features_give_what_others_measured():
    "Pooled average precision 0.298, measured elsewhere with the same head on the same films."
    source = FilmSource(str(real / "ovsd"), "vgg19")
    records, shots, parts = film_set(source)
    assert len(records) == 15 and len(parts) == 15
    films = score_held_out(
        SHOT_HEADS["similarity"], with_embeddings(records, raw_features(shots, "raw standardised")), parts
    )
    assert pooled_ap(films) == pytest.approx(0.298, abs=0.005)


# ---- the comparison


def test_gains_of_several_runs_are_drawn_together():
    rng = np.random.default_rng(0)

    def noisy(noise):
        return [ScoredFilm.of(f, f.boundaries + noise * rng.normal(size=39)) for f in FILMS]

    good, bad = [noisy(0.3) for _ in range(2)], [noisy(2.0) for _ in range(2)]
    gain, each = (
        paired_bootstrap(good, bad, samples=300),
        [paired_bootstrap(a, b, samples=300) for a, b in zip(good, bad)],
    )
    assert gain.gain == pytest.approx(np.mean([e.gain for e in each])) and 0 < gain.low <= gain.gain <= gain.high
    assert gain.high - gain.low < max(e.high - e.low for e in each)
    assert paired_bootstrap(bad, good, samples=300).gain == pytest.approx(-gain.gain)
    with pytest.raises(ValueError):
        paired_bootstrap(good, bad[:1])


def test_kept_scores_are_those_score_films(tmp_path):
    source = FilmSource(width=16, height=9)
    result = evaluate_shot_run("raw", source, tmp_path / "raw", fractions=(0.25,))
    assert evaluate_shot_run("raw", source, tmp_path / "raw", fractions=(0.25,)) == result
    test = [r for r in film_set(source)[0] if r.split == "test"]
    assert [j.film for j in scored_films(result, source)] == [r.film for r in test]
    with pytest.raises(PrimenbError, match="other settings"):
        evaluate_shot_run("raw", FilmSource(width=32, height=18), tmp_path / "raw", fractions=(0.25,))
