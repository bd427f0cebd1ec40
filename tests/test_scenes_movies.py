"Scenes of similar films: batches, positives against a slow search, the encoder, exact resuming, probes, LVU's lists."
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
from primenb.learn.runs import load
from primenb.scenes.movies import (
    SCENE_POSITIVES, Scene, SceneNet, SceneObjective, SceneRun, Scenes, allowed_films, corpus_scenes, embed_scenes,
    evaluate_lvu, evaluate_scenes, film_scenes, labels_of, pad_scenes, positive_scenes, scene_net, train_scenes)
from primenb.scenes.similarity import Similarity

pytestmark = pytest.mark.usefixtures("one_thread")
tiny = SceneRun(
    k=2, width=8, heads=2, embed_dim=4, queue=32, num_steps=6, steps_per_epoch=3, batch_size=8, device="cpu")


def similarity_of(keys, seed=0):
    values = np.random.default_rng(seed).normal(size=(len(keys), len(keys)))
    values += values.T
    np.fill_diagonal(values, np.nan)
    return Similarity(tuple(keys), values)


def some_scenes(F=5, each=4, d=6, seed=0):
    rng = np.random.default_rng(seed)
    def scene(f, n): return Scene(f"film {f}", n, rng.normal(size=(rng.integers(1, 7), d)), dict(genre="ab"[f % 2]))
    return [scene(f, n) for f in range(F) for n in range(each)]


# --- scenes and batches

rows_of_shots = st.lists(st.lists(st.booleans(), min_size=1, max_size=8).filter(any), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(rows_of_shots, st.integers(1, 5), st.integers(0, 99))
def test_batches_hold_the_shots_that_are_known(known, max_shots, seed):
    scenes = []
    for n, row in enumerate(known):
        x = np.arange(len(row))[:, None] + np.array([100.0 * n, 0.5])
        x[~np.array(row)] = np.nan
        scenes.append(Scene("film", n, x))
    stacked, order = Scenes(scenes), torch.randperm(len(scenes), generator=torch.Generator().manual_seed(seed))
    batch = pad_scenes(stacked, order)
    assert torch.isfinite(batch.features).all()
    for i, n in enumerate(order.tolist()):
        expected = np.flatnonzero(known[n])
        assert batch.position[i, batch.mask[i]].tolist() == expected.tolist()
        assert np.array_equal(batch.features[i, batch.mask[i]], scenes[n].features[expected].astype(np.float32))
    np.testing.assert_allclose(stacked.means, [np.nanmean(s.features, 0) for s in scenes], rtol=1e-5)
    torch.manual_seed(seed)
    batch = pad_scenes(stacked, order, max_shots)
    for i, n in enumerate(order.tolist()):
        stretch, shots = batch.position[i, batch.mask[i]].tolist(), np.flatnonzero(known[n]).tolist()
        assert len(stretch) == min(max_shots, len(shots))
        assert any(shots[j : j + len(stretch)] == stretch for j in range(len(shots)))


def test_scenes_of_a_film_with_holes():
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    x[[1, 4]] = np.nan
    shots = frames_table("Sintel", np.stack([np.arange(6), np.arange(1, 7)], 1) * 10, 24)
    film = ShotFeatures("Sintel", shots, np.array([0, 0, 1, 1, 2, 3]), dict(colour=x))
    unlabelled = ShotFeatures("Sintel", film.shots, None, film.features)
    damages = Damages("skip")
    scenes = film_scenes(film, "colour", damages)
    assert [(s.scene, s.known.tolist()) for s in scenes] == [(0, [True, False]), (1, [True, True]), (3, [True])]
    assert [d.name for d in damages] == ["Sintel, scene 2"]
    with pytest.raises(PrimenbError, match="Sintel, scene 2: not one shot"): film_scenes(film, "colour")
    with pytest.raises(PrimenbError, match="no features 'sound', only colour"): film_scenes(film, "sound")
    with pytest.raises(PrimenbError, match="scenes are not marked"): film_scenes(unlabelled, "colour")


def test_scenes_of_the_corpus():
    film = next(iter(films("test", check=False)))
    scenes = corpus_scenes(film, np.arange(len(film.shots))[:, None] * np.ones(3))
    assert np.array_equal(np.concatenate([s.features[:, 0] for s in scenes]), np.arange(len(film.shots)))
    labels = labels_of(scenes)
    assert labels["place"] == film.scenes.place.tolist()
    assert set(labels["genre"]) == {film.genres[0]} and set(labels["year"]) == {float(film.year)}
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
    (lambda: Scenes([Scene("a", 1, np.ones((2, 3))), Scene("b", 2, np.ones((2, 4)))]), "b, scene 2: its shots have"),
    (lambda: embed_scenes(SceneNet(3, 8, heads=2), some_scenes(d=6)), "6 features, and the network was made for 3")])
def test_refusals(make, says):
    with pytest.raises(PrimenbError, match=says): make()


# --- positives

@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SCENE_POSITIVES)), st.integers(3, 6), st.integers(1, 3), st.integers(1, 2),
    st.integers(0, 99))
def test_positives_against_a_slow_search(kind, F, each, k, seed):
    keys, N = [f"film {f}" for f in range(F)], F * each
    film = torch.arange(F).repeat_interleave(each)[torch.randperm(N, generator=torch.Generator().manual_seed(seed))]
    vectors = torch.randn(N, 5, generator=torch.Generator().manual_seed(seed))
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    similarity = similarity_of(keys, seed)
    allowed, (where, how) = allowed_films(kind, keys, similarity, k, seed), SCENE_POSITIVES[kind]
    for a in range(F):
        near = sorted((b for b in range(F) if b != a), key=lambda b: -similarity.values[a, b])[:k]
        expected = dict(similar=set(near), all=set(range(F)) - {a}, same={a}, none=set()).get(where)
        found = set(np.flatnonzero(allowed[a]))
        assert found == expected if expected is not None else len(found) == k and a not in found
    torch.manual_seed(seed)
    query = torch.randint(F * each, (7,))
    found = positive_scenes(how, query, film, torch.from_numpy(allowed), vectors).tolist()
    for q, p in zip(query.tolist(), found):
        candidates = [s for s in range(F * each) if s != q and allowed[film[q], film[s]]]
        assert p in (candidates or [q])
        if how == "nearest": assert vectors[q] @ vectors[p] == max(vectors[q] @ vectors[s] for s in candidates)


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
        with pytest.raises(PrimenbError, match="film c: there are no"): allowed_films(kind, keys, similarity, 1)
        with pytest.raises(PrimenbError, match="choose 1 to 1"): allowed_films(kind, keys[:2], similarity, 2)
    assert allowed_films("all_nearest", keys, similarity, 1).sum() == 6, "the others need no metadata"
    with pytest.raises(PrimenbError, match="'oracle': there is no such kind.*similar_nearest"):
        allowed_films("oracle", keys, similarity, 1)


# --- the encoder

def test_an_embedding_depends_on_the_scene_alone():
    torch.manual_seed(0)
    scenes, net = some_scenes(), SceneNet(6, 8, 2, 2, 4)
    def embed(scenes, **options): return embed_scenes(net, scenes, **options)
    together = embed(scenes, batch_size=3)
    np.testing.assert_allclose(together, np.concatenate([embed([s]) for s in scenes]), atol=1e-5)
    np.testing.assert_allclose(embed(scenes[::-1]), together[::-1], atol=1e-5)
    assert np.allclose(np.linalg.norm(embed(scenes, head=True), axis=1), 1, atol=1e-5) and net.training
    long = next(s for s in scenes if len(s.features) > 3)
    backwards = replace(long, features=long.features[::-1])
    assert not np.allclose(embed([backwards]), embed([long]), atol=1e-4), "order counts"
    gap, other_gap = long.features.copy(), long.features.copy()
    gap[1], other_gap[1] = np.nan, [np.inf] * 6
    found = [embed([replace(long, features=x)]) for x in (gap, other_gap)]
    assert np.array_equal(*found), "a shot without features says nothing"


def test_features_are_standardised_by_the_scenes_of_the_training():
    scenes = some_scenes()
    scaled = [replace(s, features=1000 * s.features + 7) for s in scenes]
    a, b = (embed_scenes(scene_net(tiny, Scenes(x)), x) for x in (scenes, scaled))
    np.testing.assert_allclose(a, b, atol=1e-3)
    assert not np.allclose(a, embed_scenes(scene_net(replace(tiny, seed=1), Scenes(scenes)), scenes))


def test_augmentation_shows_a_part_of_the_scene():
    scenes = Scenes(some_scenes())
    net = scene_net(tiny, scenes)
    def augment(**changed):
        run = replace(tiny, dropout=0, feature_noise=0, **changed)
        return SceneObjective(scenes, np.eye(5, dtype=bool), run).augment(net, torch.arange(20))
    torch.manual_seed(0)
    few = augment(max_shots=4, shot_dropout=0.9)
    assert few.features.shape[1] <= 4 and few.mask.any(1).all(), "something is always shown"
    plain = augment(shot_dropout=0)
    assert few.mask.sum() < plain.mask.sum()
    assert torch.equal(plain.features, net.normalize(pad_scenes(scenes, torch.arange(20), 8).features))


# --- training

def test_the_own_scene_and_its_positive_are_no_negatives(tmp_path, monkeypatch):
    import primenb.scenes.movies as movies
    seen, info_nce = [], movies.info_nce
    def spy(q, k, others, ignored, temperature):
        seen.append(ignored)
        return info_nce(q, k, others, ignored, temperature)
    monkeypatch.setattr(movies, "info_nce", spy)
    run, scenes = replace(tiny, positives="all_nearest", num_steps=3), some_scenes(F=2, each=1)
    train_scenes(run, scenes, similarity_of(["film 0", "film 1"]), tmp_path)
    assert seen and all(ignored.all() for ignored in seen), "of two scenes one is the query and the other the positive"


def power_cut(): raise RuntimeError
def control_c(): signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("search, stop, error, again", [
    ("frozen", control_c, KeyboardInterrupt, 1), ("current", control_c, KeyboardInterrupt, 1),
    ("current", power_cut, RuntimeError, 3)])
def test_a_run_that_was_cut_off_goes_on_exactly(tmp_path, monkeypatch, search, stop, error, again):
    "After an interrupt in the middle of a search's steps, and from the last checkpoint."
    scenes, similarity = some_scenes(), similarity_of([f"film {f}" for f in range(5)])
    def train(name): return train_scenes(replace(tiny, search=search), scenes, similarity, tmp_path / name)
    def embed(name): return embed_scenes(load(tmp_path / name), scenes)
    whole = train("whole")
    calls, call = [], SceneObjective.__call__
    def cut(self, trainer, batch):
        calls.append(0)
        if len(calls) == 5: stop()
        return call(self, trainer, batch)
    monkeypatch.setattr(SceneObjective, "__call__", cut)
    with pytest.raises(error): train("cut")
    assert not (tmp_path / "cut" / "run.json").exists()
    with pytest.raises(PrimenbError, match="no finished run"): load(tmp_path / "cut")
    resumed = train("cut")
    assert len(calls) == 5 + again and resumed["curve"] == whole["curve"] and whole["curve"]["step"] == [3, 6]
    assert np.array_equal(embed("cut"), embed("whole"))
    assert train("cut") == resumed and len(calls) == 5 + again


def test_a_finished_run_belongs_to_its_scenes_films_and_settings(tmp_path):
    scenes, keys = some_scenes(), [f"film {f}" for f in range(5)]
    train_scenes(tiny, scenes, similarity_of(keys), tmp_path)
    changes = (
        (replace(tiny, lr=0.1), scenes, similarity_of(keys)), (tiny, some_scenes(seed=1), similarity_of(keys)),
        (tiny, scenes, similarity_of(keys, 3)))
    for run, changed, similarity in changes:
        with pytest.raises(PrimenbError, match="other settings: (lr|checksum) was"):
            train_scenes(run, changed, similarity, tmp_path)
    with pytest.raises(PrimenbError, match="no such search"):
        train_scenes(replace(tiny, search="best"), scenes, similarity_of(keys), tmp_path / "b")


def test_similar_films_teach_their_genre_and_random_films_do_not(tmp_path):
    rng, number = np.random.default_rng(3), np.arange(36)
    spread = np.r_[np.full(8, 0.3), np.ones(40)]
    def shots(f, look):
        scene = np.r_[4 * np.eye(6)[look], 1.5 * np.eye(2)[f % 2], np.zeros(40)] + spread * rng.normal(size=48)
        return scene + 0.5 * rng.normal(size=(rng.integers(2, 6), 48))
    toys = [Scene(f"film {f}", n, shots(f, n), dict(genre="ab"[f % 2])) for f in number for n in range(6)]
    values = np.where(np.eye(36) > 0, np.nan, (number[:, None] + number) % 2 == 0)
    alike = Similarity(tuple(f"film {f}" for f in number), values)
    film, score = np.repeat(number, 6), {}
    size = dict(width=32, max_shots=4, num_steps=80, steps_per_epoch=40, batch_size=48, lr=2e-3, device="cpu")
    for kind in ("similar_nearest", "random_films_nearest"):
        train_scenes(SceneRun(kind, k=8, **size), toys[: 26 * 6], alike, tmp_path / kind)
        embeddings = embed_scenes(load(tmp_path / kind), toys)
        score[kind] = evaluate_scenes(embeddings, labels_of(toys), film < 6, film >= 26).score["genre"]
    assert score["similar_nearest"] > score["random_films_nearest"] + 0.05


# --- probes

def test_probes_are_scikit_learns():
    rng = np.random.default_rng(0)
    y = np.array(["a", "b", "c"])[rng.integers(3, size=90)]
    x = rng.normal(size=(90, 5)) + (y == "b")[:, None]
    part = np.arange(90) < 60
    labels = dict(word=list(y), words=[(v,) for v in y], number=(x[:, 0] * 2 + 1).tolist())
    labels["pair"] = [None if v == "c" else v for v in y]
    metrics = evaluate_scenes(x, labels, part, ~part)
    scale = StandardScaler().fit(x[part])
    probe = LogisticRegression(C=0.1, max_iter=2000).fit(scale.transform(x[part]), y[part])
    p = probe.predict_proba(scale.transform(x[~part]))
    precision = np.mean([average_precision_score(y[~part] == c, p[:, i]) for i, c in enumerate("abc")])
    assert metrics.score["word"] == pytest.approx(precision)
    assert metrics.accuracy["word"] == pytest.approx(probe.score(scale.transform(x[~part]), y[~part]))
    assert metrics.chance[["word", "words", "pair"]].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 2])
    assert metrics.tested["pair"] == (y[~part] != "c").sum()
    assert metrics.score["number"] > 0.999 and metrics.mse["number"] < 0.05 and np.isnan(metrics.accuracy["number"])


def test_labels_that_are_not_in_training_count_against_accuracy_only():
    x = np.array([[0.0], [1], [0], [1], [0], [1], [5]])
    part = np.arange(7) < 4
    words = [("a",), ("b",), ("a",), ("b", "a"), ("a",), ("b",), ("new",)]
    metrics = evaluate_scenes(x, dict(word=["a", "b", "a", "b", "a", "b", "new"], words=words), part, ~part)
    assert metrics.accuracy["word"] == pytest.approx(2 / 3)
    assert metrics.score["word"] < 1, "the new scene stands among the b"
    assert np.isfinite(metrics.score["words"])


@pytest.mark.parametrize("labels, train_, says", [
    (dict(t=["a", "a", "b", "a"]), [1, 1, 0, 0], "2 training scenes, 2 test scenes, 1 different labels"),
    (dict(t=["a", "b", None, None]), [1, 1, 0, 0], "2 training scenes, 0 test scenes"),
    (dict(t=["a", 1.0, "a", "b"]), [1, 1, 0, 0], "different kinds"),
    (dict(t=[None] * 4), [1, 1, 0, 0], "there are no labels"),
    (dict(t=["a", "b", "c", "d"]), [1, 1, 0, 0], "no label of the test scenes"),
    (dict(t=["a", "b", "a"]), [1, 1, 0, 0], "3 labels and 4 embeddings")])
def test_probes_refuse(labels, train_, says):
    part, nan = np.array(train_, bool), np.where(np.arange(4)[:, None] == 2, np.nan, np.eye(4))
    with pytest.raises(PrimenbError, match=says): evaluate_scenes(np.eye(4), labels, part, ~part)
    with pytest.raises(PrimenbError, match="1 scenes are for training and for testing"):
        evaluate_scenes(np.eye(4), labels, part, np.array([0, 1, 1, 0]))
    with pytest.raises(PrimenbError, match="embedding of scene 2 is not finite"):
        evaluate_scenes(nan, labels, part, ~part)


def test_lvu_lists(tmp_path):
    rng = np.random.default_rng(0)
    clips = {f"clip{n}": rng.normal(size=4) for n in range(60)}
    def write(name, header, rows):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("\n".join([header, *rows]) + "\n")
    def genre(n):
        war = clips[f"clip{n}"][0] > 0
        return f"{int(war)} {'war' if war else 'noir'} clip{n} tt{n}"
    def views(n): return f"{int(1000 * np.exp(clips[f'clip{n}'][1]))} clip{n} tt{n}"
    for split, some in (("train", range(40)), ("val", range(40, 44)), ("test", range(44, 60))):
        write(f"genre/{split}.csv", "class_id class_name youtube_id imdb_id", map(genre, some))
        write(f"view_count/{split}.csv", "view_count youtube_id imdb_id", map(views, some))
    for gone in ("clip3", "clip50", "clip51"): del clips[gone]
    metrics = evaluate_lvu(clips, tmp_path)
    assert metrics.index.tolist() == ["genre", "view_count"]
    assert metrics.missing.tolist() == [3, 3] and metrics.tested.tolist() == [14, 14]
    assert metrics.score["genre"] > 0.9 and metrics.score["view_count"] > 0.99
    with pytest.raises(PrimenbError, match="task 'genre'.*not one of its 56 clips"): evaluate_lvu({}, tmp_path)


def test_real_scenes_of_real_films(real, tmp_path):
    "Nineteen films with scenes of one shot and of a hundred; their similarity is that of their mean features."
    records = [r for r in feature_films(real / "ovsd", damaged="skip") if "vgg19" in r.features][:8]
    scenes = [s for r in records for s in film_scenes(r, "vgg19", Damages("skip"))]
    sizes = [len(s.features) for s in scenes]
    assert min(sizes) == 1 and max(sizes) > 30
    def mean(film): return np.mean([s.features[s.known].mean(0) for s in scenes if s.film == film], 0)
    keys = tuple(r.film for r in records)
    values = np.corrcoef(np.stack([mean(key) for key in keys]))
    similarity = Similarity(keys, np.where(np.eye(8) > 0, np.nan, values))
    run = SceneRun(num_steps=20, steps_per_epoch=10, batch_size=32, device="cpu")
    result = train_scenes(run, scenes, similarity, tmp_path)
    embeddings = embed_scenes(load(tmp_path), scenes)
    assert embeddings.shape == (len(scenes), 128) and np.isfinite(embeddings).all()
    assert json.loads((tmp_path / "run.json").read_text()) == result
    loss = result["curve"]["contrast_loss"]
    assert loss[-1] < loss[0] + 1
