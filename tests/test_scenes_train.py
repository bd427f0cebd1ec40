"Training of shot encoders: what is drawn, what is left out, resuming, and bad input."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, strategies as st

from conftest import SHOT_NAMES, train_until_killed
from primenb.core import PrimenbError
from primenb.data.corpus import films
from primenb.learn.engine import Trainer
from primenb.data.records import ShotFeatures, frames_table
from primenb.learn.runs import load
from primenb.scenes.model import (
    Shots, ShotNet, augment_features, augment_frames, embed_shots, feature_shots, shot_key_frames)
from primenb.scenes.find import find_scenes
from primenb.scenes.positives import l2_normalize, positive_distribution, purity
from primenb.scenes.train import ShotObjective, ShotRun, adapt_features, beside, make_shot_net, train_shots
from primenb.media.video import read_frames

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ShotRun(epochs=2, batch_size=16, queue=64, width=16, embed_dim=8, device="cpu")

def toy(seed=0, n=4, length=24, d=12):
    rng = np.random.default_rng(seed)
    scene = np.tile(np.repeat(np.arange(4), length // 4), n)
    return Shots(
        tuple(f"film {i}" for i in range(n)), np.arange(n + 1) * length,
        (rng.normal(size=(n * 4, d)).repeat(length // 4, 0) + rng.normal(size=(n * length, d))).astype(np.float32),
        scene)


def test_films_are_joined_and_parted():
    def record(name, n, d=3):
        return ShotFeatures(
            name, frames_table(name, np.arange(n)[:, None] * 10 + [0, 10], 24), np.zeros(n, int),
            dict(v=np.full((n, d), n, np.float32)))
    shots = feature_shots([record("a", 2), record("b", 3)], "v")
    assert shots.films == ("a", "b")
    assert shots.first.tolist() == [0, 2, 5]
    assert [len(p) for p in shots.split(shots.inputs)] == [2, 3]
    assert shots.select([1]).inputs.tolist() == [[3] * 3] * 3 and shots.select([1, 0]).first.tolist() == [0, 3, 5]
    gap = shots.positions[2] - shots.positions[1]
    assert gap > 1000 and (np.diff(shots.positions)[[0, 2, 3]] == 1).all()
    with pytest.raises(PrimenbError, match="no features 'w'"): feature_shots([record("a", 2)], "w")
    with pytest.raises(PrimenbError, match="differ in shape"): feature_shots([record("a", 2), record("b", 2, 4)], "v")
    with pytest.raises(PrimenbError, match="no films"): feature_shots([], "v")

def test_key_frames_are_those_of_the_film():
    film = list(films("test", check=False))[0]
    shots = shot_key_frames([film], (32, 18))
    frames = read_frames(film.path, size=(32, 18))
    for shot in (0, 7, len(film.shots) - 1):
        for k in range(3):
            wanted = frames[int(round(film.shots[f"key{k + 1}"].iloc[shot] * film.attributes["rate"]))]
            assert np.abs(shots.inputs[shot][..., 3 * k : 3 * k + 3].astype(int) - wanted).mean() < 1
    assert (shots.scene == film.shots.scene).all()

def test_views_change_shots_and_not_their_kind():
    torch.manual_seed(0)
    x = torch.rand(8, 9, 18, 32)
    seen = augment_frames(x)
    assert seen.shape == x.shape
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert (seen - x).abs().mean((1, 2, 3)).min() > 0.01
    same = augment_frames(x[:1].repeat(1, 1, 1, 1)[:, :3].repeat(1, 3, 1, 1))
    assert torch.allclose(
        same[:, :3], same[:, 3:6]) and torch.allclose(same[:, :3], same[:, 6:]), "key-frames of a shot change alike"
    flipped = torch.stack([augment_frames(x[:1], 1.0, 0.0)[0] for _ in range(20)])
    assert all(torch.allclose(f, x[0], atol=1e-4) or torch.allclose(f, x[0].flip(-1), atol=1e-4) for f in flipped)
    f = augment_features(torch.ones(2000, 5), 0.3, 0.0)
    assert ((f == 0) | (f > 1.4)).all() and abs((f == 0).float().mean() - 0.3) < 0.03

def test_wrong_answers_leave_out_what_belongs_to_the_query(tmp_path, monkeypatch):
    seen = {}
    import primenb.scenes.train as module
    monkeypatch.setattr(
        module, "info_nce", lambda q, k, others, own, t: seen.update(own=own) or ((q * 0).sum(), own.float().mean()))
    shots, run = toy(), replace(TINY, positives="adjacent", exclude_radius=3, window=2)
    objective = ShotObjective(shots, run)
    net = make_shot_net(run, shots)
    trainer = Trainer(net, objective, torch.optim.SGD(net.parameters(), 0.1), tmp_path, ema=0.9, device="cpu")
    query = torch.tensor([5, 30, 50])
    objective(trainer, dict(shot=query))
    places, kept = shots.positions, objective.queue.kept[0].numpy()
    for row, q, key in zip(seen["own"].numpy(), query.numpy(), kept):
        assert abs(key - places[q]) == 1
        assert (row == ((np.abs(kept - places[q]) <= 3) | (kept == key))).all() and row.any()

@pytest.mark.parametrize("positives", ["nearest", "decayed", "self_segmented", "adjacent"])
def test_shots_that_may_be_positives_are_spared(positives, tmp_path, monkeypatch):
    seen = {}
    import primenb.scenes.train as module
    monkeypatch.setattr(
        module, "info_nce", lambda q, k, others, own, t: seen.update(own=own) or ((q * 0).sum(), own.float().mean()))
    shots, run = toy(), replace(TINY, positives=positives, exclude_radius=-1, window=3, spare_positives=True)
    objective, net = ShotObjective(shots, run), make_shot_net(run, shots)
    trainer = Trainer(net, objective, torch.optim.SGD(net.parameters(), 0.1), tmp_path, ema=0.9, device="cpu")
    query = torch.tensor([0, 5, 30, 31, 50, 95])
    for _ in range(3): objective(trainer, dict(shot=query))
    places, kept = shots.positions, objective.queue.kept[0].numpy()
    for row, q, key in zip(seen["own"].numpy(), query.numpy(), kept):
        possible = {places[q] + n - 3 for n, weight in enumerate(objective.p[q]) if weight > 0}
        assert row.tolist() == [k in possible or k == key for k in kept]


@pytest.mark.parametrize("change", [
    dict(epochs=0), dict(epochs=-1), dict(batch_size=1), dict(batch_size=2.5), dict(width=0), dict(embed_dim=0),
    dict(queue=-1), dict(window=0), dict(momentum=1.0), dict(momentum=-0.1), dict(dropout=1.0), dict(temperature=0.0),
])
def test_settings_that_teach_nothing_are_refused(change, tmp_path):
    (name,) = change
    with pytest.raises(PrimenbError, match=name): train_shots(replace(TINY, **change), toy(), tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("parts, weights", [
    ([], None), ([np.ones((3, 2)), np.ones((4, 2))], None), ([np.ones(3)], None), ([np.ones((3, 2))], [1, 1]),
    ([np.ones((3, 2))] * 2, [0, 0]), ([np.ones((3, 2))] * 2, [2, -1]), ([np.ones((3, 2))] * 2, [1, np.nan]),
])
def test_tables_that_do_not_stand_side_by_side_are_refused(parts, weights):
    with pytest.raises(PrimenbError, match="beside"): beside(parts, weights)


def test_same_seed_same_weights(tmp_path):
    for name in ("a", "b"): train_shots(TINY, toy(), tmp_path / name)
    a, b = (load(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    train_shots(replace(TINY, seed=1), toy(), tmp_path / "c")
    assert not torch.equal(load(tmp_path / "c").state_dict()["head.1.weight"], a["head.1.weight"])

def test_scenes_do_not_matter_but_for_the_oracle(tmp_path):
    blind = replace(toy(), scene=None)
    result = [train_shots(TINY, shots, tmp_path / name) for name, shots in (("seen", toy()), ("blind", blind))]
    assert result[0]["curve"]["contrast_loss"] == result[1]["curve"]["contrast_loss"]
    assert "purity" in result[0]["curve"]
    assert "purity" not in result[1]["curve"]
    with pytest.raises(PrimenbError, match="not known"):
        train_shots(replace(TINY, positives="oracle"), blind, tmp_path / "oracle")

@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    train_until_killed(replace(TINY, epochs=6), tmp_path / "killed", 9, given="__import__('test_scenes_train').toy(), ",
                       names=SHOT_NAMES)
    once, again = train_shots(replace(TINY, epochs=6), toy(), tmp_path / "once"), train_shots(
        replace(TINY, epochs=6), toy(), tmp_path / "killed")
    a, b = (load(tmp_path / name).state_dict() for name in ("once", "killed"))
    assert all(torch.equal(a[k], b[k]) for k in a) and once["curve"]["contrast_loss"] == again["curve"]["contrast_loss"]

def test_oracle_positives_teach_scenes(tmp_path):
    shots = toy(n=12, length=48)
    shots = replace(
        shots,
        inputs=np.hstack([shots.inputs, 4 * np.random.default_rng(1).normal(size=(len(shots), 24))]).astype(np.float32))
    train_shots(
        ShotRun("oracle", epochs=15, batch_size=64, queue=256, width=32, embed_dim=16, device="cpu"), shots,
        tmp_path)
    def right(v):
        return np.mean(
            [
                purity(positive_distribution(x, "nearest", 8), s) for x,
                s in zip(shots.split(v), shots.split(shots.scene))])
    assert right(embed_shots(load(tmp_path), shots.inputs)) > right(shots.inputs) + 0.05

def test_a_network_of_timm_and_its_errors():
    net = ShotNet((32, 32, 9), "resnet10t", 16, 8)
    assert embed_shots(net, np.zeros((3, 32, 32, 9), np.uint8)).shape == (3, 8)
    assert embed_shots(net, np.zeros((3, 32, 32, 9), np.uint8), head=False).shape == (3, 16)
    with pytest.raises(PrimenbError, match="resnet_of_mine"): ShotNet((32, 32, 9), "resnet_of_mine")
    with pytest.raises(PrimenbError, match="do not fit"): embed_shots(net, np.zeros((3, 16, 16, 9), np.uint8))

@pytest.mark.parametrize("change, message", [
    (dict(positives="closest"), "choose one of"),
    (dict(positive_options=dict(heat=2)), "no option heat"),
    (dict(window=0), "at least 1")])
def test_bad_settings(change, message, tmp_path):
    with pytest.raises(PrimenbError, match=message): train_shots(replace(TINY, **change), toy(), tmp_path)

def test_results_are_not_mixed_up(tmp_path):
    train_shots(TINY, toy(), tmp_path)
    with pytest.raises(PrimenbError, match="other settings"): train_shots(replace(TINY, seed=3), toy(), tmp_path)
    with pytest.raises(PrimenbError, match="no finished run"): load(tmp_path / "none")


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 5)), min_size=1, max_size=4), st.integers(1, 12))
def test_side_by_side_the_cosine_is_the_weighted_mean(parts, n):
    rng = np.random.default_rng(n)
    each, weights = [rng.normal(size=(n, d)) for d, _ in parts], [w for _, w in parts]
    mean = np.average([l2_normalize(z) @ l2_normalize(z).T for z in each], axis=0, weights=weights)
    found = beside(each, weights)
    assert np.allclose(found @ found.T, mean, atol=1e-5) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)


def records(seed=0, **shape):
    shots = toy(seed, **shape)
    parts = zip(shots.films, shots.split(shots.inputs), shots.split(shots.scene))
    return [ShotFeatures(name, frames_table(name, np.arange(len(v))[:, None] * 24 + [0, 24], 24), s, dict(v=v))
            for name, v, s in parts]


def own_scene(film, name):
    return purity(positive_distribution(film.features[name], "nearest", 8), film.scene_of_shot)


def test_adapted_features_know_scenes_better_and_keep_the_others():
    rng, series = np.random.default_rng(0), records(n=4, length=48)
    loud = [np.hstack([f.features["v"], 3 * rng.normal(size=(48, 24))]).astype(np.float32) for f in series]
    series = [replace(f, features=dict(v=v)) for f, v in zip(series, loud)]
    adapted = adapt_features(series, "v", members=2, device="cpu")
    before, after = ([own_scene(f, name) for f in found] for found, name in ((series, "v"), (adapted, "embeddings")))
    assert np.mean(after) > np.mean(before) + 0.05
    assert all(np.array_equal(a.features["v"], b.features["v"]) and "embeddings" not in b.features
               for a, b in zip(adapted, series))
    one, again = (adapt_features(series[:1], "v", members=1, steps=8, device="cpu")[0] for _ in range(2))
    assert np.array_equal(one.features["embeddings"], again.features["embeddings"])


@pytest.mark.parametrize("n", [1, 2, 15])
def test_a_film_of_few_shots_keeps_its_features(n):
    film = records(n=1, length=24)[0]
    few = replace(film, shots=film.shots[:n], scene_of_shot=None, features=dict(v=film.features["v"][:n]))
    with pytest.warns(UserWarning, match=f"{n} shots are too few"): adapted = adapt_features([few], "v")[0]
    assert np.allclose(adapted.features["embeddings"], l2_normalize(few.features["v"]))


def test_scenes_of_a_film_and_of_a_series_that_features_are_adapted_to():
    series = records(n=3, length=48)
    truth = np.flatnonzero(np.diff(series[0].scene_of_shot))
    for adapt in (True, series, series[1:]):
        ends = find_scenes(series[0], features="v", adapt=adapt).last_shot.to_numpy()[:-1]
        assert len(set(ends) & set(truth)) >= 2
    holes = series[0].features["v"].copy()
    holes[5] = np.nan
    assert len(find_scenes(replace(series[0], features=dict(v=holes)), adapt=True)) >= 2
    with pytest.raises(PrimenbError, match="film 1"):
        find_scenes(series[0], features="v", adapt=[replace(series[1], features={})])
    with pytest.raises(PrimenbError, match="list with a str"): find_scenes(series[0], features="v", adapt=["film"])


def test_a_film_too_short_to_learn_from_is_cut_as_without_adapt():
    film = records(n=1, length=24)[0]
    few = replace(film, shots=film.shots[:12], scene_of_shot=None, features=dict(v=film.features["v"][:12]))
    with pytest.warns(UserWarning, match="12 shots are too few"): adapted = find_scenes(few, adapt=True)
    pd.testing.assert_frame_equal(adapted, find_scenes(few))


@pytest.mark.parametrize("adapt", [[], (), None, 1, "film", np.nan, records(n=1, length=24)[0], [None]])
def test_what_is_no_series_is_refused(adapt):
    film = records(n=1, length=24)[0]
    with pytest.raises(PrimenbError, match="adapt"): find_scenes(film, adapt=adapt)


def test_a_series_is_learnt_from_once(monkeypatch):
    "Films that are given twice count once, another film of the same name counts, and a generator is read once."
    import primenb.scenes.train as module
    learnt = []
    monkeypatch.setattr(module, "adapt_features", lambda films: learnt.append([len(f) for f in films]) or films)
    film, other = records(n=2, length=24)
    namesake = replace(other, film=film.film)
    find_scenes(film, adapt=(f for f in [film, other, other, namesake]))
    assert learnt == [[24, 24, 24]]


@pytest.mark.parametrize("per_hour", [0, -1, float("nan")])
def test_no_scenes_an_hour_are_refused_at_once(per_hour):
    with pytest.raises(PrimenbError, match="per_hour"): find_scenes("no film", per_hour=per_hour)
