"Contracts of scenes learnt from similar films: batches, positives against a slow search, the encoder, exact resuming, frozen readers and LVU's lists."
import json, signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from primenb.core import PrimenbError
from primenb.data.corpus import films
from primenb.data.public import feature_films
from primenb.data.records import Damages, ShotFeatures, frames_table
from primenb.scenes.movies import (POSITIVES, Objective, Scene, SceneNet, SceneRun, Scenes, allowed_films, batch_of, corpus_scenes, embed, film_scenes,
                                   judge_lvu, judge_scenes, labels_of, load_trained, positive_scenes, scene_net, train)
from primenb.scenes.similarity import Similarity

pytestmark = pytest.mark.usefixtures("one_thread")
tiny = SceneRun(k=2, width=8, heads=2, vector=4, queue=32, steps=6, every=3, batch=8, device="cpu")


def similarity_of(keys, seed=0):
    values = np.random.default_rng(seed).normal(size=(len(keys), len(keys)))
    values += values.T; np.fill_diagonal(values, np.nan)
    return Similarity(tuple(keys), values)


def some_scenes(F=5, each=4, d=6, seed=0):
    rng = np.random.default_rng(seed)
    return [Scene(f"film {f}", n, rng.normal(size=(rng.integers(1, 7), d)), dict(genre="ab"[f % 2])) for f in range(F) for n in range(each)]


# --- scenes and batches

@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=8).filter(any), min_size=1, max_size=5), st.integers(1, 5), st.integers(0, 99))
def test_batches_hold_the_shots_that_are_known(known, most, seed):
    scenes = []
    for n, row in enumerate(known):
        x = np.arange(len(row))[:, None] + np.array([100.0 * n, 0.5]); x[~np.array(row)] = np.nan
        scenes.append(Scene("film", n, x))
    stacked, order = Scenes(scenes), torch.randperm(len(scenes), generator=torch.Generator().manual_seed(seed))
    x, place, there = batch_of(stacked, order)
    for i, n in enumerate(order.tolist()):
        wanted = np.flatnonzero(known[n])
        assert place[i, there[i]].tolist() == wanted.tolist()
        assert np.array_equal(x[i, there[i]], scenes[n].features[wanted].astype(np.float32))
        assert torch.isfinite(x).all()
    np.testing.assert_allclose(stacked.means, [np.nanmean(s.features, 0) for s in scenes], rtol=1e-5)
    torch.manual_seed(seed)
    _, place, there = batch_of(stacked, order, most)
    for i, n in enumerate(order.tolist()):
        seen, all_ = place[i, there[i]].tolist(), np.flatnonzero(known[n]).tolist()
        assert len(seen) == min(most, len(all_)) and any(all_[j : j + len(seen)] == seen for j in range(len(all_)))


def test_scenes_of_a_film_with_holes():
    x = np.arange(12, dtype=np.float32).reshape(6, 2); x[[1, 4]] = np.nan
    film = ShotFeatures("Sintel", frames_table("Sintel", np.stack([np.arange(6), np.arange(1, 7)], 1) * 10, 24), np.array([0, 0, 1, 1, 2, 3]), dict(colour=x))
    damages = Damages("skip")
    scenes = film_scenes(film, "colour", damages)
    assert [(s.scene, s.known.tolist()) for s in scenes] == [(0, [True, False]), (1, [True, True]), (3, [True])]
    assert [d.name for d in damages] == ["Sintel, scene 2"]
    with pytest.raises(PrimenbError, match="Sintel, scene 2: not one shot has features"): film_scenes(film, "colour")
    with pytest.raises(PrimenbError, match="no features 'sound', only colour"): film_scenes(film, "sound")
    with pytest.raises(PrimenbError, match="scenes are not marked"): film_scenes(ShotFeatures("Sintel", film.shots, None, film.features), "colour")


def test_scenes_of_the_corpus():
    film = next(iter(films("test", check=False)))
    scenes = corpus_scenes(film, np.arange(len(film.shots))[:, None] * np.ones(3))
    assert np.array_equal(np.concatenate([s.features[:, 0] for s in scenes]), np.arange(len(film.shots)))
    labels = labels_of(scenes)
    assert labels["place"] == film.scenes.place.tolist() and set(labels["genre"]) == {film.genres[0]} and set(labels["year"]) == {float(film.year)}
    shown = film.timeline["shots"]
    for s in scenes:
        inside = [record["shown"] for record in shown if record["scene"] == s.scene]
        assert s.labels["people"] == max(len(x.get("people", [])) for x in inside)
        assert set(s.labels["actions"]) == {p["action"] for x in inside for p in x.get("people", [])}


@pytest.mark.parametrize("make, says", [
    (lambda: Scene("a", 1, np.full((2, 3), np.nan)), "a, scene 1: not one shot"),
    (lambda: Scene("a", 1, np.zeros((0, 3))), "a, scene 1: not one shot"),
    (lambda: Scene("a", 1, np.zeros(3)), "a, scene 1"),
    (lambda: Scenes([]), "there are none"),
    (lambda: Scenes([Scene("a", 1, np.ones((2, 3))), Scene("b", 2, np.ones((2, 4)))]), "b, scene 2: its shots have 4 features"),
    (lambda: embed(SceneNet(3, 8, heads=2), some_scenes(d=6)), "6 features, and the network was made for 3")])
def test_refusals(make, says):
    with pytest.raises(PrimenbError, match=says): make()


# --- positives

@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(POSITIVES)), st.integers(3, 6), st.integers(1, 3), st.integers(1, 2), st.integers(0, 99))
def test_positives_against_a_slow_search(kind, F, each, k, seed):
    keys = [f"film {f}" for f in range(F)]
    film = torch.arange(F).repeat_interleave(each)[torch.randperm(F * each, generator=torch.Generator().manual_seed(seed))]
    vectors = torch.nn.functional.normalize(torch.randn(F * each, 5, generator=torch.Generator().manual_seed(seed)), dim=1)
    similarity = similarity_of(keys, seed)
    allowed, (where, how) = allowed_films(kind, keys, similarity, k, seed), POSITIVES[kind]
    for a in range(F):
        near = sorted((b for b in range(F) if b != a), key=lambda b: -similarity.values[a, b])[:k]
        wanted = dict(similar=set(near), all=set(range(F)) - {a}, same={a}, none=set()).get(where)
        got = set(np.flatnonzero(allowed[a]))
        assert got == wanted if wanted is not None else len(got) == k and a not in got
    torch.manual_seed(seed)
    query = torch.randint(F * each, (7,))
    found = positive_scenes(how, query, film, torch.from_numpy(allowed), vectors).tolist()
    for q, p in zip(query.tolist(), found):
        there = [s for s in range(F * each) if s != q and allowed[film[q], film[s]]]
        assert p in (there or [q])
        if how == "nearest": assert vectors[q] @ vectors[p] == max(vectors[q] @ vectors[s] for s in there)


def test_random_positives_reach_every_scene_that_is_allowed():
    torch.manual_seed(0)
    film, allowed = torch.tensor([0, 0, 0, 1, 1]), torch.eye(2, dtype=torch.bool)
    found = positive_scenes("random", torch.zeros(600, dtype=torch.long), film, allowed, torch.eye(5))
    counts = torch.bincount(found, minlength=5) / 600
    assert counts[[0, 3, 4]].sum() == 0 and abs(counts[1] - 0.5) < 0.08


def test_unknown_films_and_kinds():
    keys = ["a", "b", "c"]
    similarity = similarity_of(["a", "b"])
    for kind in ("similar_nearest", "similar_random", "random_films_nearest"):
        with pytest.raises(PrimenbError, match="film c: the metadata know no such film"): allowed_films(kind, keys, similarity, 1)
        with pytest.raises(PrimenbError, match="ask for 1 to 1"): allowed_films(kind, keys[:2], similarity, 2)
    assert allowed_films("all_nearest", keys, similarity, 1).sum() == 6, "the others need no metadata"
    with pytest.raises(PrimenbError, match="'oracle': there is no such kind.*similar_nearest"): allowed_films("oracle", keys, similarity, 1)


# --- the encoder

def test_a_vector_depends_on_the_scene_alone():
    torch.manual_seed(0)
    scenes, net = some_scenes(), SceneNet(6, 8, 2, 2, 4)
    together = embed(net, scenes, batch=3)
    np.testing.assert_allclose(together, np.concatenate([embed(net, [s]) for s in scenes]), atol=1e-5)
    np.testing.assert_allclose(embed(net, scenes[::-1]), together[::-1], atol=1e-5)
    assert np.allclose(np.linalg.norm(embed(net, scenes, head=True), axis=1), 1, atol=1e-5) and net.training
    long = next(s for s in scenes if len(s.features) > 3)
    assert not np.allclose(embed(net, [replace(long, features=long.features[::-1])]), embed(net, [long]), atol=1e-4), "order counts"
    holed = long.features.copy(); holed[1] = np.nan
    other = holed.copy(); other[1] = [np.inf] * 6
    assert np.array_equal(embed(net, [replace(long, features=holed)]), embed(net, [replace(long, features=other)])), "a shot without features says nothing"


def test_features_are_standardised_by_the_scenes_of_the_training():
    scenes = some_scenes()
    scaled = [replace(s, features=1000 * s.features + 7) for s in scenes]
    a, b = (embed(scene_net(tiny, Scenes(x)), x) for x in (scenes, scaled))
    np.testing.assert_allclose(a, b, atol=1e-3)
    assert not np.allclose(a, embed(scene_net(replace(tiny, seed=1), Scenes(scenes)), scenes))


def test_views_show_some_of_the_scene():
    scenes = Scenes(some_scenes())
    net = scene_net(tiny, scenes)
    torch.manual_seed(0)
    x, place, there = Objective(scenes, np.eye(5, dtype=bool), replace(tiny, shots=4, skip=0.9, drop=0, noise=0)).view(net, torch.arange(20))
    assert x.shape[1] <= 4 and there.any(1).all(), "something is always seen"
    plain, _, all_ = Objective(scenes, np.eye(5, dtype=bool), replace(tiny, skip=0, drop=0, noise=0)).view(net, torch.arange(20))
    assert there.sum() < all_.sum() and torch.equal(plain, net.ready(batch_of(scenes, torch.arange(20), 8)[0]))


# --- training

def test_the_own_scene_and_its_positive_are_no_wrong_answers(tmp_path, monkeypatch):
    seen = []
    import primenb.scenes.movies as movies
    def spy(q, k, others, own, temperature): seen.append(own); return info_nce(q, k, others, own, temperature)
    info_nce = movies.info_nce
    monkeypatch.setattr(movies, "info_nce", spy)
    train(replace(tiny, positives="all_nearest", steps=3), some_scenes(F=2, each=1), similarity_of(["film 0", "film 1"]), tmp_path)
    assert all(own.all() for own in seen), "of two scenes one is the query and the other the positive"


def power_cut(): raise RuntimeError
def control_c(): signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("search, stop, error, again", [("frozen", control_c, KeyboardInterrupt, 1), ("current", control_c, KeyboardInterrupt, 1), ("current", power_cut, RuntimeError, 3)])
def test_a_run_that_was_cut_off_goes_on_exactly(tmp_path, monkeypatch, search, stop, error, again):
    "After an interrupt in the middle of a search's steps, and from the last checkpoint."
    run, scenes, similarity = replace(tiny, search=search), some_scenes(), similarity_of([f"film {f}" for f in range(5)])
    whole = train(run, scenes, similarity, tmp_path / "whole")
    calls, call = [], Objective.__call__
    def cut(self, trainer, batch):
        calls.append(0)
        if len(calls) == 5: stop()
        return call(self, trainer, batch)
    monkeypatch.setattr(Objective, "__call__", cut)
    with pytest.raises(error): train(run, scenes, similarity, tmp_path / "cut")
    assert not (tmp_path / "cut" / "result.json").exists()
    with pytest.raises(PrimenbError, match="no finished run"): load_trained(tmp_path / "cut")
    resumed = train(run, scenes, similarity, tmp_path / "cut")
    assert len(calls) == 5 + again and resumed["curve"] == whole["curve"] and whole["curve"]["step"] == [3, 6]
    assert np.array_equal(embed(load_trained(tmp_path / "cut"), scenes), embed(load_trained(tmp_path / "whole"), scenes))
    assert train(run, scenes, similarity, tmp_path / "cut") == resumed and len(calls) == 5 + again


def test_a_finished_run_belongs_to_its_scenes_films_and_settings(tmp_path):
    scenes, keys = some_scenes(), [f"film {f}" for f in range(5)]
    train(tiny, scenes, similarity_of(keys), tmp_path)
    for run, changed, similarity in ((replace(tiny, rate=0.1), scenes, similarity_of(keys)), (tiny, some_scenes(seed=1), similarity_of(keys)), (tiny, scenes, similarity_of(keys, 3))):
        with pytest.raises(PrimenbError, match="other settings: (rate|checksum) was"): train(run, changed, similarity, tmp_path)
    with pytest.raises(PrimenbError, match="no such search"): train(replace(tiny, search="best"), scenes, similarity_of(keys), tmp_path / "b")


def test_similar_films_teach_their_genre_and_random_films_do_not(tmp_path):
    rng, number = np.random.default_rng(3), np.arange(36)
    spread = np.r_[np.full(8, 0.3), np.ones(40)]
    def shots(f, look): return np.r_[4 * np.eye(6)[look], 1.5 * np.eye(2)[f % 2], np.zeros(40)] + spread * rng.normal(size=48) + 0.5 * rng.normal(size=(rng.integers(2, 6), 48))
    toys = [Scene(f"film {f}", n, shots(f, n), dict(genre="ab"[f % 2])) for f in number for n in range(6)]
    alike = Similarity(tuple(f"film {f}" for f in number), np.where(np.eye(36) > 0, np.nan, (number[:, None] + number) % 2 == 0))
    film, score = np.repeat(number, 6), {}
    for kind in ("similar_nearest", "random_films_nearest"):
        train(SceneRun(kind, k=8, width=32, shots=4, steps=80, every=40, batch=48, rate=2e-3, device="cpu"), toys[: 26 * 6], alike, tmp_path / kind)
        score[kind] = judge_scenes(embed(load_trained(tmp_path / kind), toys), labels_of(toys), film < 6, film >= 26).score["genre"]
    assert score["similar_nearest"] > score["random_films_nearest"] + 0.05


# --- frozen readers

def test_readers_are_scikit_learns():
    rng = np.random.default_rng(0)
    y = np.array(["a", "b", "c"])[rng.integers(3, size=90)]
    x = rng.normal(size=(90, 5)) + (y == "b")[:, None]
    part = np.arange(90) < 60
    judged = judge_scenes(x, dict(word=list(y), words=[(v,) for v in y], number=(x[:, 0] * 2 + 1).tolist(), pair=[None if v == "c" else v for v in y]), part, ~part)
    scale = StandardScaler().fit(x[part])
    reader = LogisticRegression(C=0.1, max_iter=2000).fit(scale.transform(x[part]), y[part])
    p = reader.predict_proba(scale.transform(x[~part]))
    assert judged.score["word"] == pytest.approx(np.mean([average_precision_score(y[~part] == c, p[:, i]) for i, c in enumerate("abc")]))
    assert judged.accuracy["word"] == pytest.approx(reader.score(scale.transform(x[~part]), y[~part]))
    assert judged.chance[["word", "words", "pair"]].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 2]) and judged.asked["pair"] == (y[~part] != "c").sum()
    assert judged.score["number"] > 0.999 and judged.mse["number"] < 0.05 and np.isnan(judged.accuracy["number"])


def test_answers_that_never_came_up_in_training_count_against_accuracy_only():
    x = np.array([[0.0], [1], [0], [1], [0], [1], [5]])
    part = np.arange(7) < 4
    judged = judge_scenes(x, dict(word=["a", "b", "a", "b", "a", "b", "new"], words=[("a",), ("b",), ("a",), ("b", "a"), ("a",), ("b",), ("new",)]), part, ~part)
    assert judged.accuracy["word"] == pytest.approx(2 / 3) and judged.score["word"] < 1, "the new scene stands among the b"
    assert np.isfinite(judged.score["words"])


@pytest.mark.parametrize("labels, train_, says", [
    (dict(t=["a", "a", "b", "a"]), [1, 1, 0, 0], "2 scenes to learn, 2 to ask, 1 answers"),
    (dict(t=["a", "b", None, None]), [1, 1, 0, 0], "2 scenes to learn, 0 to ask"),
    (dict(t=["a", 1.0, "a", "b"]), [1, 1, 0, 0], "different kinds"),
    (dict(t=[None] * 4), [1, 1, 0, 0], "there are no answers"),
    (dict(t=["a", "b", "c", "d"]), [1, 1, 0, 0], "no answer that is asked for"),
    (dict(t=["a", "b", "a"]), [1, 1, 0, 0], "3 answers and 4 vectors")])
def test_readers_refuse(labels, train_, says):
    part = np.array(train_, bool)
    with pytest.raises(PrimenbError, match=says): judge_scenes(np.eye(4), labels, part, ~part)
    with pytest.raises(PrimenbError, match="1 scenes are to be learnt and asked"): judge_scenes(np.eye(4), labels, part, np.array([0, 1, 1, 0]))
    with pytest.raises(PrimenbError, match="vector of scene 2 is not finite"): judge_scenes(np.where(np.arange(4)[:, None] == 2, np.nan, np.eye(4)), labels, part, ~part)


def test_lvu_lists(tmp_path):
    rng = np.random.default_rng(0)
    clips = {f"clip{n}": rng.normal(size=4) for n in range(60)}
    def write(name, rows):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join(rows) + "\n")
    for split, some in (("train", range(40)), ("val", range(40, 44)), ("test", range(44, 60))):
        write(f"genre/{split}.csv", ["class_id class_name youtube_id imdb_id"] + [f"{int(clips[f'clip{n}'][0] > 0)} {'war' if clips[f'clip{n}'][0] > 0 else 'noir'} clip{n} tt{n}" for n in some])
        write(f"view_count/{split}.csv", ["view_count youtube_id imdb_id"] + [f"{int(1000 * np.exp(clips[f'clip{n}'][1]))} clip{n} tt{n}" for n in some])
    for gone in ("clip3", "clip50", "clip51"): del clips[gone]
    judged = judge_lvu(clips, tmp_path)
    assert judged.index.tolist() == ["genre", "view_count"] and judged.missing.tolist() == [3, 3] and judged.asked.tolist() == [14, 14]
    assert judged.score["genre"] > 0.9 and judged.score["view_count"] > 0.99
    with pytest.raises(PrimenbError, match="task 'genre'.*not one of its 56 clips"): judge_lvu({}, tmp_path)


def test_real_scenes_of_real_films(real, tmp_path):
    "Nineteen films with scenes of one shot and of a hundred; who is like whom is taken from their colours."
    records = [r for r in feature_films(real / "ovsd", damaged="skip") if "vgg19" in r.features][:8]
    scenes = [s for r in records for s in film_scenes(r, "vgg19", Damages("skip"))]
    assert min(len(s.features) for s in scenes) == 1 and max(len(s.features) for s in scenes) > 30
    means = np.stack([np.mean([s.features[s.known].mean(0) for s in scenes if s.film == r.film], 0) for r in records])
    similarity = Similarity(tuple(r.film for r in records), np.where(np.eye(8) > 0, np.nan, np.corrcoef(means)))
    result = train(SceneRun(steps=20, every=10, batch=32, device="cpu"), scenes, similarity, tmp_path)
    vectors = embed(load_trained(tmp_path), scenes)
    assert vectors.shape == (len(scenes), 128) and np.isfinite(vectors).all()
    assert json.loads((tmp_path / "result.json").read_text()) == result and result["curve"]["contrast_loss"][-1] < result["curve"]["contrast_loss"][0] + 1
