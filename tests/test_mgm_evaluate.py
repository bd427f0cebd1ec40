"""Contracts of the evaluation: what probes can and cannot find, views, controls that must fail, fine-tuning, and what
is read off a curve."""
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from primenb.core import PrimenbError
from primenb.mgm.model import features, videomae
from primenb.mgm.evaluate import (
    TASK_GROUPS, CONTROLS, PROBES, EvalSet, classifier, epochs_to_target, read_eval_set, fine_tune, evaluate_encoder,
    class_numbers, opposite, reversed_pairs, shuffled_frames, single_frame, encode_tokens, clip_views)
from primenb.learn.probes import (
    AttentiveProbe, attentive_probe, fit_attentive_probe, knn_probe, mean_token_probe, low_shot, pooled)
from primenb.data.records import Clip

pytestmark = pytest.mark.usefixtures("one_thread")
tiny = dict(
    image_size=16, num_frames=4, patch_size=8, tubelet_size=2, width=32, depth=2, heads=2, decoder_width=32,
    decoder_depth=1)


def clusters(n=120, tokens=5, width=8, classes=3, gap=2.0, seed=0):
    "Tokens (n,N,d) about one middle for each class, and class numbers."
    rng = np.random.default_rng(seed)
    middles = np.random.default_rng(9).normal(size=(classes, 1, width))
    y = np.arange(n) % classes
    return torch.from_numpy(rng.normal(size=(n, tokens, width)) + gap * middles[y]).float(), y


def some_eval_set(n=12, seed=0, V=1, words=("left", "right", "")):
    rng = np.random.default_rng(seed)
    clips = torch.from_numpy(rng.integers(0, 256, (n, V, 4, 3, 16, 16), np.uint8))
    direction = [words[i % len(words)] for i in range(n)]
    return EvalSet(clips, pd.DataFrame(dict(direction=direction, shape=["ball", "box", "", ""] * (n // 4))))


class Film:
    "A clip whose frame number stands in its pixels."
    def __init__(self, key="a", frames=12, size=(8, 12), labels=None, broken=False):
        self.key, self.labels = key, labels or dict(direction="left")
        self.n, self.size = frames, size
        self.broken = broken
    def frames(self, **how):
        if self.broken: raise PrimenbError(self.key, "it is damaged", "bring it again")
        return np.broadcast_to(np.arange(self.n, dtype=np.uint8)[:, None, None, None], (self.n, *self.size, 3))


# --- the evaluation set

@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 3), st.integers(1, 5), st.integers(1, 3))
def test_views_lie_evenly_and_inside(length, count, step, windows, crops):
    film = Film(frames=length).frames()
    span = (count - 1) * step + 1
    if span > length:
        with pytest.raises(PrimenbError, match=f"spans {span}"): clip_views(film, count, 8, step, windows, crops)
        return
    found = clip_views(film, count, 8, step, windows, crops)
    assert found.shape == (windows * crops, count, 3, 8, 8) and found.dtype == torch.uint8
    firsts = found[::crops, 0, 0, 0, 0].int()
    assert (found[:, :, 0, 0, 0].int().diff(dim=1) == step).all()
    if windows == 1: assert firsts[0] == (length - span) // 2
    else: assert (firsts[0], firsts[-1]) == (0, length - span) and firsts.diff().max() - firsts.diff().min() <= 1


@pytest.mark.parametrize("size, axis", [((8, 20), 1), ((20, 8), 0)])
def test_crops_go_along_the_longer_side(size, axis):
    ramp = np.broadcast_to(
        np.expand_dims(np.arange(20, dtype=np.uint8), (0, 3) + ((1,) if axis else (2,))), (4, *size, 3))
    found = clip_views(ramp, 4, 8, crops=3)[:, 0, 0]
    assert [int(v.min()) for v in found] == [0, 6, 12] and [int(v.max()) for v in found] == [7, 13, 19]


def test_an_evaluation_set_names_what_it_leaves_out():
    found = read_eval_set(
        [Film("good"), Film("short", frames=3), Film("torn", broken=True), Film("other", labels=dict(shape="box"))],
        side=8, num_frames=4)
    assert len(found) == 2
    assert [d.cause for d in found.damages] == ["it has 3 frames, and a view of 4 spans 4", "it is damaged"]
    assert found.labels.to_dict("list") == dict(direction=["left", ""], shape=["", "box"])
    assert found.has_label("shape").tolist() == [False, True]
    with pytest.raises(PrimenbError, match="it is damaged"):
        read_eval_set([Film(broken=True)], num_frames=4, damaged="raise")
    with pytest.raises(PrimenbError, match="not one clip"): read_eval_set([Film(broken=True)], num_frames=4)
    with pytest.raises(PrimenbError, match="no such label"): found.has_label("colour")


def test_clips_of_the_records_make_an_evaluation_set(tmp_path):
    from primenb.media.video import encode
    encode(tmp_path / "a.mp4", [np.full((16, 24, 3), 20 * t, np.uint8) for t in range(10)], 10)
    found = read_eval_set(
        [Clip("a", tmp_path / "a.mp4", dict(action="jump", number=3)), Clip("b", None, dict(action="run"))], side=16,
        num_frames=4, windows=2)
    assert found.clips.shape == (1, 2, 4, 3, 16, 16)
    assert found.labels.to_dict("list") == dict(action=["jump"], number=["3"])
    assert len(found.damages) == 1


# --- probes

@pytest.mark.parametrize("probe", PROBES.values())
def test_probes_find_what_is_there_and_nothing_else(probe):
    (x, y), (xt, yt) = clusters(), clusters(seed=1)
    assert probe(x, y, xt, yt)["accuracy"] > 0.95
    (x, y), (xt, yt) = clusters(gap=0), clusters(300, gap=0, seed=1)
    assert abs(probe(x, y, xt, yt)["accuracy"] - 1 / 3) < 0.12


@pytest.mark.parametrize("probe", PROBES.values())
def test_the_same_seed_gives_the_same_accuracy(probe):
    (x, y), (xt, yt) = clusters(gap=0.3), clusters(gap=0.3, seed=1)
    torch.manual_seed(1)
    first = probe(x, y, xt, yt, seed=4)["accuracy"]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert probe(x, y, xt, yt, seed=4)["accuracy"] == first
    assert torch.equal(torch.get_rng_state(), before), "a probe leaves the random numbers of others alone"


@pytest.mark.parametrize("probe", PROBES.values())
def test_embeddings_tokens_and_views_are_taken(probe):
    (x, y), (xt, yt) = clusters(tokens=6), clusters(tokens=6, seed=1)
    for change in (lambda t: t.mean(1), lambda t: t, lambda t: t.unflatten(1, (2, 3))):
        assert probe(change(x), y, change(xt), yt)["accuracy"] > 0.9


def test_linear_and_knn_are_those_of_scikit_learn():
    (x, y), (xt, yt) = clusters(gap=0.4), clusters(gap=0.4, seed=1)
    found = mean_token_probe(x, y, xt, yt)
    unit = lambda t: t.mean(1).numpy() / np.linalg.norm(t.mean(1).numpy(), axis=1, keepdims=True)
    centre = unit(x).mean(0)
    size = np.sqrt(((unit(x) - centre) ** 2).mean()) * np.sqrt(8 / 9)  # one component more, which is zero
    theirs = LogisticRegression(C=found["C"], max_iter=2000).fit((unit(x) - centre) / size, y)
    assert found["accuracy"] == pytest.approx(theirs.score((unit(xt) - centre) / size, yt), abs=0.02)
    centre = x.mean((0, 1)).numpy()
    nearest = KNeighborsClassifier(10, metric="cosine").fit(x.mean(1).numpy() - centre, y)
    assert knn_probe(x, y, xt, yt)["accuracy"] == pytest.approx(
        nearest.score(xt.mean(1).numpy() - centre, yt), abs=0.01)


def test_embeddings_of_zeros_can_be_read():
    "Flow of a still clip is zero everywhere."
    x, y = clusters()
    x[::5] = 0
    for probe in PROBES.values(): assert 0 <= probe(x, y, x, y)["accuracy"] <= 1


def test_only_attention_finds_one_token_among_many():
    rng = np.random.default_rng(0)
    where, y = rng.integers(30, size=400), rng.integers(2, size=400)
    x = torch.from_numpy(rng.normal(size=(400, 30, 6))).float()
    x[torch.arange(400), where, 0], x[torch.arange(400), where, 1] = 6, torch.from_numpy(4.0 * y - 2).float()
    halves = x[:300], y[:300], x[300:], y[300:]
    assert attentive_probe(*halves)["accuracy"] > 0.9
    assert mean_token_probe(*halves)["accuracy"] < 0.75
    weights = fit_attentive_probe(x[:300], torch.from_numpy(y[:300]), 2).weights(x[300:]).detach()
    assert torch.allclose(weights.sum(1), torch.ones(100, 8), atol=1e-5)
    assert (weights.amax(2).argmax(1).numpy() == where[300:]).mean() > 0.8


def test_attention_is_cross_attention_with_one_query():
    "The same as torch's own attention with keys, values and one query."
    x, y = clusters(width=8)
    probe, lead = AttentiveProbe(x, 3, heads=1), torch.nn.MultiheadAttention(8, 1, bias=False, batch_first=True)
    z = (x - probe.mean) / probe.spread
    query = torch.randn(1, 1, 8)
    q, k = lead.in_proj_weight.detach().chunk(3)[:2]
    with torch.no_grad():
        probe.query.weight.copy_((query[0] @ q.T @ k) / 8**0.5)
        _, weights = lead(query.expand(len(x), -1, -1), z, z)
        assert torch.allclose(probe.weights(x)[..., 0], weights[:, 0], atol=1e-5)


def test_predictions_are_averaged_over_views():
    "Two views that disagree: the surer one wins."
    x, y = clusters(gap=3.0)
    probe = fit_attentive_probe(x, torch.from_numpy(y), 3)
    sure, unsure = x[y == 0][:1], x[y == 1][:1] * 0.2
    logits = probe(torch.cat([sure, unsure])).detach()
    found = attentive_probe(x, y, torch.stack([sure, unsure], 1), np.array([int(logits.mean(0).argmax())]), seeds=1)
    assert found["accuracy"] == 1


def test_low_shot_draws_k_of_each_class():
    drawn = []
    def spy(x, y, xt, yt, seed=0):
        drawn.append((x, y))
        return dict(accuracy=0.5)
    x, y = clusters(90)
    found = low_shot(torch.arange(90.0)[:, None], y, x, y, k=4, repeats=3, probe=spy)
    assert found == dict(accuracy=0.5, spread=0.0, accuracies=[0.5] * 3)
    for some, classes in drawn:
        assert np.bincount(classes).tolist() == [4, 4, 4] and len(some.unique()) == 12
        assert (y[some[:, 0].long()] == classes).all()
    assert len({tuple(some[:, 0].tolist()) for some, _ in drawn}) == 3
    with pytest.raises(PrimenbError, match="one class has only 30"): low_shot(x, y, x, y, k=31)


# --- tasks and controls

def test_unknown_and_lone_classes_are_refused():
    train, test = some_eval_set(), some_eval_set(words=("left", "up"))
    with pytest.raises(PrimenbError, match="no clip to train with is 'up'"): class_numbers(train, test, "direction")
    with pytest.raises(PrimenbError, match="there are 1 classes"):
        class_numbers(some_eval_set(words=("left",)), train, "direction")
    (a, y), (_, yt) = class_numbers(train, train, "direction")
    assert a.sum() == len(y) == 8 and y.tolist() == yt.tolist() == [0, 1] * 4


def test_all_tasks_with_labels_are_evaluated():
    encode = lambda clips: clips.float().mean((3, 4)).flatten(2)
    found = evaluate_encoder(encode, some_eval_set(48), some_eval_set(24, 1))
    assert found.columns.tolist() == ["group", "task", "probe", "accuracy", "chance", "num_clips"]
    assert found.task.unique().tolist() == ["direction", "shape"] and found.probe.unique().tolist() == list(PROBES)
    assert set(found.group) == {TASK_GROUPS["direction"], TASK_GROUPS["shape"]}
    assert (found.query("task == 'direction'").num_clips == 16).all()
    with pytest.raises(PrimenbError, match=r"gave shape \(48, 3\)"):
        evaluate_encoder(lambda c: torch.zeros(48, 3), some_eval_set(48), some_eval_set(48))
    with pytest.raises(PrimenbError, match="NaN"):
        encode_tokens(lambda c: torch.full((len(c), 2, 2), torch.nan), some_eval_set())


def test_controls_change_what_they_say():
    one = some_eval_set(V=2)
    still, mixed = single_frame(one), shuffled_frames(one)
    assert torch.equal(still.clips[:, :, 0], one.clips[:, :, 2]) and (still.clips == still.clips[:, :, :1]).all()
    assert torch.equal(mixed.clips.long().sum(2), one.clips.long().sum(2)) and not torch.equal(mixed.clips, one.clips)
    assert torch.equal(shuffled_frames(one).clips, mixed.clips)
    assert not torch.equal(shuffled_frames(one, 1).clips, mixed.clips)
    for control in CONTROLS.values(): assert control(one).labels.equals(one.labels)


@pytest.mark.parametrize("label, back", [
    ("right", "left"), ("down left", "up right"), ("walk forwards", "walk backwards"), ("turn left", "turn right"),
    ("wave slowly", "wave slowly")])
def test_opposites(label, back): assert opposite(label) == back and opposite(back) == label


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_a_model_without_order_is_right_half_of_the_time(seed):
    "Whatever the probe."
    rng = np.random.default_rng(seed)
    pairs = reversed_pairs(some_eval_set(24, seed), "direction")
    half = len(pairs) // 2
    assert half == 16 and torch.equal(pairs.clips[half:], pairs.clips[:half].flip(2))
    assert (pairs.labels.order[:half].to_numpy() != pairs.labels.order[half:].to_numpy()).all()
    assert (pairs.labels.direction[:half].map(opposite).to_numpy() == pairs.labels.direction[half:].to_numpy()).all()
    blind = (pairs.clips.long().sum((1, 2, 3, 4, 5)).numpy() * int(rng.integers(1, 999))) % 7 < 3
    assert ((pairs.labels.order == "one way").to_numpy() == blind).mean() == 0.5


def test_reversed_pairs_need_an_opposite():
    with pytest.raises(PrimenbError, match="none of its labels has an opposite"):
        reversed_pairs(some_eval_set(), "shape")
    both = reversed_pairs(
        some_eval_set(), "shape", opposite=lambda label: dict(ball="box", box="ball").get(label, label))
    assert len(both) == 12 and set(both.labels["shape"]) == {"ball", "box"}


# --- the whole encoder

def ramps(n, seed):
    "Clips that get brighter or darker; their middle frames are alike."
    g = torch.Generator().manual_seed(seed)
    rise = torch.randint(2, (n,), generator=g) * 2 - 1
    slope = rise[:, None, None, None, None, None] * torch.tensor([-60, -20, 20, 60])[:, None, None, None]
    clips = 128 + slope + torch.randint(-9, 9, (n, 1, 4, 3, 16, 16), generator=g)
    return EvalSet(clips.byte(), pd.DataFrame(dict(tone=np.where(rise > 0, "brighter", "darker"))))


def test_fine_tuning_learns_what_the_mean_cannot_tell(tmp_path):
    model = videomae(**tiny)
    before = {name: v.clone() for name, v in model.state_dict().items()}
    settings = dict(epochs=8, batch_size=16, lr=5e-3, device="cpu")
    found = fine_tune(model, ramps(96, 0), ramps(40, 1), "tone", tmp_path, **settings)
    assert found["accuracy"] > 0.9 and len(found["curve"]) == 8
    assert all(torch.equal(before[name], v) for name, v in model.state_dict().items()), "the start stays as it is"
    assert fine_tune(model, ramps(96, 0), ramps(40, 1), "tone", tmp_path, **settings) == found
    with pytest.raises(PrimenbError, match="other settings"):
        fine_tune(videomae(**tiny, seed=5), ramps(96, 0), ramps(40, 1), "tone", tmp_path, **settings)


def test_a_classifier_begins_with_the_encoder_and_uniform_predictions():
    model = videomae(**tiny)
    new, clips = classifier(model, 3), torch.randint(256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    from primenb.mgm.model import pixel_values
    with torch.no_grad():
        assert torch.equal(new(pixel_values(new, clips)).logits, torch.zeros(2, 3))
        tokens = model.videomae.layernorm(new.videomae(pixel_values(new, clips)).last_hidden_state)
    assert torch.allclose(tokens, features(model, clips), atol=1e-5)


# --- curves

@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1))
def test_where_a_curve_reaches_a_target(values, target):
    curve = pd.Series(values, index=np.arange(1, len(values) + 1) * 10)
    found = epochs_to_target(curve, target)
    if max(values) < target: assert found is None
    else:
        first = next(i for i, v in enumerate(values) if v >= target)
        assert (10 if first == 0 else 10 * first) - 1e-6 <= found <= 10 * (first + 1) + 1e-6
        assert first == 0 or np.interp(found, curve.index, values) == pytest.approx(target, abs=1e-6)


def test_pooled_takes_the_mean_of_everything_inside():
    x = torch.arange(48.0).reshape(2, 2, 3, 4)
    assert np.allclose(pooled(x), x.mean((1, 2)).numpy()) and np.allclose(pooled(x[:, 0, 0]), x[:, 0, 0].numpy())


def test_the_callback_evaluates_a_model_in_training(tmp_path):
    from primenb.learn.engine import Trainer
    from primenb.mgm.evaluate import probe_callback
    model = videomae(**tiny)
    trainer = Trainer(model, None, torch.optim.SGD(model.parameters(), 0.1), tmp_path, device="cpu")
    train, test = some_eval_set(48), some_eval_set(24, 1)
    found = probe_callback(train, test, ("direction", "shape"), "knn")(trainer)
    expected = evaluate_encoder(
        partial(features, model), train, test, ["direction", "shape"], ["knn"]).accuracy.tolist()
    assert list(found) == ["direction_knn", "shape_knn"] and list(found.values()) == expected
