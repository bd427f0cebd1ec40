"Measures of image–text models: slow references, parity with open_clip, scikit-learn and SciPy, models of known score."
import itertools, json, math, tracemalloc, warnings

import matplotlib.pyplot as plt
import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings, strategies as st
from open_clip_train.train import get_clip_metrics
from scipy import stats
from scipy.special import expit, logit, ndtr, ndtri
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score, top_k_accuracy_score

from primenb.clip.evaluate import (
    class_embeddings, class_probabilities, compare_robustness, draw_prediction, draw_robustness, effective_robustness,
    fit_line, mean_average_precision, retrieval, target_agreement, wrong_pair_auroc, zero_shot
)
from primenb.learn.stats import accuracy_interval, paired_gain
from primenb.learn.probes import linear_probe
from primenb.core import PrimenbError, rounded
from primenb.data.corpus import gt_captions, pairs

seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=40, deadline=None)


def unit(x): return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def embeddings(rng, n, d=8): return unit(rng.normal(size=(n, d)))


def refused(make, *words):
    with pytest.raises(PrimenbError) as caught: make()
    for word in words: assert word in str(caught.value)


@pytest.fixture(scope="module")
def tiny():
    "A small untrained open_clip model with the tokeniser that open_clip brings along."
    torch.manual_seed(0)
    vision = dict(image_size=16, layers=1, width=32, patch_size=8, head_width=16)
    text = dict(context_length=16, vocab_size=49408, width=32, heads=2, layers=1)
    model = open_clip.CLIP(24, vision, text, output_dict=True).eval()
    tokenizer = open_clip.SimpleTokenizer(context_length=16)
    class Texts:
        @torch.no_grad()
        def encode_texts(self, texts): return model.encode_text(tokenizer(texts), normalize=True)
    return model, tokenizer, Texts()


# ---- class embeddings

NAMES = ["cat", "small dog", "lorry"]


@pytest.mark.parametrize(
    "templates",
    [["a photo of a {}", "{}", "there is one {} here"], [lambda c: f"a photo of a {c}.", lambda c: f"the {c}"]]
)
def test_class_embeddings_are_those_of_open_clip(tiny, templates):
    model, tokenizer, clip = tiny
    reference = open_clip.build_zero_shot_classifier(model, tokenizer, NAMES, templates).T.numpy()
    np.testing.assert_allclose(class_embeddings(clip, NAMES, templates), reference, atol=1e-6)


def test_synonyms_are_averaged_text_by_text(tiny):
    clip = tiny[2]
    got = class_embeddings(clip, [["plane", "aircraft"], "bird"], ["{}", "a {}"])
    mean = np.stack([clip.encode_texts([t])[0].numpy() for t in ("plane", "a plane", "aircraft", "a aircraft")]).mean(0)
    np.testing.assert_allclose(got[0], unit(mean), atol=1e-6)
    np.testing.assert_allclose(class_embeddings(clip, [["aircraft", "plane"], "bird"], ["a {}", "{}"]), got, atol=1e-6)
    np.testing.assert_allclose(
        class_embeddings(clip, [["a plane", "plane", "a aircraft", "aircraft"], ["bird", "a bird"]]), got, atol=1e-6
    )  # whole prompts


@pytest.mark.parametrize("names, templates, words", [
    (
        ["cat"], ["{}"], "at least two classes"
    ), ([], ["{}"], "there are 0"), (["cat", []], ["{}"], "class 1"), (["cat", ""], ["{}"], "class 1"),
    (["cat", [3]], ["{}"], "class 1"), (NAMES, "a {}", "give a list"), (NAMES, [], "give a list"), (
        NAMES, ["a photo"], "no place for the name"
    )])
def test_class_names_that_are_none_are_refused(tiny, names, templates, words):
    refused(lambda: class_embeddings(tiny[2], names, templates), words)


def test_a_text_tower_that_fails_is_named():
    class Tower:
        def __init__(self, rows): self.rows = rows
        def encode_texts(self, texts): return self.rows
    refused(lambda: class_embeddings(Tower(np.full((2, 3), np.nan, np.float32)), ["a", "b"]), "text embeddings", "NaN")
    refused(lambda: class_embeddings(Tower(np.eye(3, dtype=np.float32)[:2] * 3), ["a", "b"]), "length 1")
    opposite = np.array([[1, 0], [-1, 0], [0, 1]], np.float32)
    refused(lambda: class_embeddings(Tower(opposite), [["a", "b"], "c"]), "class 0 cancel")


# ---- zero-shot

@quick
@given(seeds, st.integers(2, 12), st.integers(1, 40))
def test_zero_shot_is_that_of_scikit_learn(seed, c, n):
    rng = np.random.default_rng(seed)
    v = embeddings(rng, n)
    w = embeddings(rng, c)
    y = rng.integers(0, c, n)
    S, got = v @ w.T, zero_shot(v, w, y)
    assert math.isclose(got["top1"], (S.argmax(1) == y).mean(), abs_tol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # labels that do not occur
        assert math.isclose(got["per_class"], balanced_accuracy_score(y, S.argmax(1)), abs_tol=1e-9)
    assert ("top5" in got) == (c > 5) and got["num_images"] == n and got["num_classes"] == len(set(y))
    if c > 5: assert math.isclose(got["top5"], top_k_accuracy_score(y, S, k=5, labels=np.arange(c)), abs_tol=1e-9)


@quick
@given(seeds, st.integers(2, 9))
def test_zero_shot_does_not_depend_on_the_order_of_images_or_classes(seed, c):
    rng = np.random.default_rng(seed)
    w, y = embeddings(rng, c), rng.integers(0, c, 30)
    v = unit(w[y] + rng.normal(size=(30, 8)))
    order, renumber = rng.permutation(30), rng.permutation(c)
    assert zero_shot(v[order], w[renumber], np.argsort(renumber)[y[order]]) == pytest.approx(zero_shot(v, w, y))


def test_perfect_embeddings_score_one_and_constant_ones_chance():
    w, y = np.eye(8, dtype=np.float32), np.arange(80) % 8
    assert zero_shot(w[y], w, y) == dict(top1=1, top5=1, per_class=1, num_images=80, num_classes=8)
    for labels in (np.zeros(80, int), y):
        assert zero_shot(np.tile(w[:1], (80, 1)), np.tile(w[:1], (8, 1)), labels) == pytest.approx(
            dict(top1=1 / 8, top5=5 / 8, per_class=1 / 8, num_images=80, num_classes=len(set(labels)))
        )


def test_a_rare_class_counts_as_much_as_a_common_one():
    w, y = np.eye(3, dtype=np.float32), np.array([0] * 9 + [1])
    got = zero_shot(w[np.zeros(10, int)], w, y)
    assert (got["top1"], got["per_class"], got["num_classes"]) == (0.9, 0.5, 2)


def test_tensors_of_any_precision_are_taken():
    rng = np.random.default_rng(0)
    v = embeddings(rng, 20, 64)
    w = embeddings(rng, 4, 64)
    y = rng.integers(0, 4, 20)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        got = zero_shot(torch.tensor(v, requires_grad=True).to(dtype), torch.tensor(w).to(dtype), torch.tensor(y))
        assert abs(got["top1"] - zero_shot(v, w, y)["top1"]) <= 0.1


@pytest.mark.parametrize("change, words", [
    (
        lambda v, w, y: (v * np.float32("nan"), w, y), ["image embeddings", "row 0 holds NaN"]
    ), (lambda v, w, y: (2 * v, w, y), ["image embeddings", "length 1"]),
    (lambda v, w, y: (v, 0 * w, y), ["class embeddings", "length 1"]), (lambda v, w, y: (v[:, :3], w, y), ["length"]),
    (
        lambda v, w, y: (unit(v[:, :3]), w, y), ["3 dimensions", "8"]
    ), (lambda v, w, y: (v[0], w, y), ["shape (8,)"]), (lambda v, w, y: (v[:0], w, y), ["shape (0, 8)"]),
    (lambda v, w, y: (v, w, y[:5]), ["(5,)", "6 samples"]), (lambda v, w, y: (v, w, y + 0.), ["float64"]), (
        lambda v, w, y: (v, w, y + 3), ["not one of the 3 classes"]
    ),
    (lambda v, w, y: (v, w, y - 1), ["-1 is not one"]), (lambda v, w, y: (v, w[:1], 0 * y), ["one class"]), (
        lambda v, w, y: (np.round(v).astype(int), w, y), ["int64"]
    )])
def test_zero_shot_refuses_what_does_not_fit(change, words):
    rng = np.random.default_rng(0)
    refused(lambda: zero_shot(*change(embeddings(rng, 6), embeddings(rng, 3), np.arange(6) % 3)), *words)


@pytest.mark.parametrize("k, n", [(0, 10), (10, 10), (37, 60), (1, 1)])
def test_the_interval_of_an_accuracy_is_that_of_clopper_and_pearson(k, n):
    low, high = accuracy_interval(k / n, n)
    if k: assert math.isclose(stats.binom.sf(k - 1, n, low), 0.025, abs_tol=1e-8)
    if k < n: assert math.isclose(stats.binom.cdf(k, n, high), 0.025, abs_tol=1e-8)
    assert low <= k / n <= high
    wide = accuracy_interval(k / n, n, 0.99)
    assert wide[0] <= low and wide[1] >= high


def test_an_accuracy_in_per_cent_is_refused():
    for a, n in ((55, 100), (-0.1, 10), (float("nan"), 10), (0.5, 0)): refused(lambda: accuracy_interval(a, n), "share")


# ---- the prediction for an image

def test_probabilities_are_the_softmax_of_the_logits():
    rng = np.random.default_rng(0)
    v, w = embeddings(rng, 5), embeddings(rng, 4)
    np.testing.assert_allclose(
        class_probabilities(v, w, 20), torch.softmax(20 * torch.tensor(v) @ torch.tensor(w).T, 1), atol=1e-6
    )
    np.testing.assert_allclose(class_probabilities(v, w, torch.tensor(100., requires_grad=True)).sum(1), 1, atol=1e-5)


def test_an_image_is_drawn_with_the_best_classes_of_each_model():
    p = {"a": np.array([.1, .2, .3, .4]), "b": torch.tensor([.7, .1, .1, .1])}
    fig = draw_prediction(np.zeros((8, 8, 3), np.uint8), p, list("wxyz"), true=2, top=3)
    a, b = fig.axes[1:]
    assert [t.get_text() for t in a.get_yticklabels()] == list("zyx")
    assert b.get_yticklabels()[0].get_text() == "w"
    assert (a.get_title(), b.get_title()) == ("a", "b")
    np.testing.assert_allclose([bar.get_width() for bar in a.patches], [.4, .3, .2])
    assert a.patches[0].get_facecolor() == a.patches[2].get_facecolor() != a.patches[1].get_facecolor()
    plt.close(fig)
    for wrong in (np.array([.5, .5]), np.array([.5, .5, .5, .5]), np.array([2, -1, 0, 0.]), np.full(4, np.nan)):
        refused(
            lambda: draw_prediction(np.zeros((8, 8, 3), np.uint8), {"a": wrong}, list("wxyz")), "a:", "no distribution"
        )


# ---- retrieval

def slow_recall(S, gt, k):
    "Recall at k, query after query and candidate after candidate, ties by all orders that are possible."
    found = []
    for s, true in zip(S, gt):
        if not any(true): continue
        groups = {}
        for j, score in enumerate(s): groups.setdefault(round(float(score), 5), []).append(bool(true[j]))
        places, chance = k, 0.
        for score in sorted(groups, reverse=True):
            group = groups[score]
            if len(group) <= places:
                places -= len(group)
                if any(group):
                    chance = 1.
                    break
            else:
                draws = list(itertools.combinations(group, places))
                chance = sum(any(d) for d in draws) / len(draws)
                break
        found.append(chance)
    return np.mean(found)


@quick
@given(seeds, st.integers(3, 9), st.integers(3, 9), st.booleans())
def test_retrieval_is_that_of_a_double_loop(seed, n, m, tied):
    rng = np.random.default_rng(seed)
    d = 3
    v, t = (np.eye(d, dtype=np.float32)[rng.integers(0, d, k)] if tied else embeddings(rng, k, d) for k in (n, m))
    gt = rng.random((n, m)) < 0.3
    gt[0, 0] = True
    got = retrieval(v, t, gt, (1, 2, 3))
    for k in (1, 2, 3):
        assert math.isclose(got[f"image_to_text_r{k}"], slow_recall(v @ t.T, gt, k), abs_tol=1e-9)
        assert math.isclose(got[f"text_to_image_r{k}"], slow_recall(t @ v.T, gt.T, k), abs_tol=1e-9)
    assert (got["images"], got["images_left_out"]) == (gt.any(1).sum(), (~gt.any(1)).sum())
    assert (got["texts"], got["texts_left_out"]) == (gt.any(0).sum(), (~gt.any(0)).sum())


def test_one_caption_each_is_what_open_clip_counts():
    rng = np.random.default_rng(0)
    v = embeddings(rng, 200, 16)
    t = unit(v + 0.5 * rng.normal(size=v.shape))
    reference, got = get_clip_metrics(torch.tensor(v), torch.tensor(t), 100.), retrieval(v, t, np.arange(200))
    assert got == retrieval(v, t, np.eye(200, dtype=bool))
    for side, k in itertools.product(("image_to_text", "text_to_image"), (1, 5, 10)):
        assert math.isclose(got[f"{side}_r{k}"], reference[f"{side}_R@{k}"], abs_tol=1e-9)


def test_open_clips_diagonal_punishes_a_model_without_fault():
    v = torch.eye(2)[[0, 0, 1, 1]]
    assert get_clip_metrics(v, v, 1.)["image_to_text_R@1"] == 0.5
    gt = np.kron(np.eye(2), np.ones((2, 2))).astype(bool)
    assert retrieval(v, v, gt, (1,))["image_to_text_r1"] == 1
    with pytest.raises(Exception): get_clip_metrics(v, torch.cat([v, v, v]), 1.)  # several captions each


@quick
@given(seeds)
def test_retrieval_does_not_depend_on_order_and_grows_with_k(seed):
    rng = np.random.default_rng(seed)
    v = embeddings(rng, 12)
    t = embeddings(rng, 20)
    gt = rng.random((12, 20)) < 0.2
    gt[3, 4] = True
    got = retrieval(v, t, gt, (1, 2, 5, 12))
    i, j = rng.permutation(12), rng.permutation(20)
    assert retrieval(v[i], t[j], gt[i][:, j], (1, 2, 5, 12)) == pytest.approx(got)
    for side in ("image_to_text", "text_to_image"):
        by_k = [got[f"{side}_r{k}"] for k in (1, 2, 5, 12)]
        assert by_k == sorted(by_k) and 0 <= by_k[0] and by_k[-1] <= 1
    assert math.isclose(got["text_to_image_r12"], 1)
    more = gt | (rng.random(gt.shape) < 0.3) & gt.any(1)[:, None] & gt.any(0)
    assert all(retrieval(v, t, more, (2,))[key] >= got[key] - 1e-9 for key in ("image_to_text_r2", "text_to_image_r2"))


@quick
@given(seeds)
def test_own_captions_by_number_are_those_by_matrix(seed):
    rng = np.random.default_rng(seed)
    v = embeddings(rng, 10)
    t = embeddings(rng, 25)
    owner = rng.integers(0, 10, 25)
    assert retrieval(v, t, owner, (1, 5)) == retrieval(v, t, owner == np.arange(10)[:, None], (1, 5)) == retrieval(
        torch.tensor(v), torch.tensor(t), torch.tensor(owner), (1, 5)
    )


@pytest.mark.parametrize("first", [True, False])
def test_a_collapsed_model_gets_chance_wherever_the_true_ones_stand(first):
    n, m = 20, 100
    v, t = np.tile(
        embeddings(np.random.default_rng(0), 1, 512), (n, 1)
    ), np.tile(embeddings(np.random.default_rng(1), 1, 512), (m, 1))
    owner = np.repeat(np.arange(n), 5) if first else np.repeat(np.arange(n), 5)[::-1].copy()
    got = retrieval(v, t, owner, (1, 5, 10))
    for k in (1, 5, 10):
        assert got[f"image_to_text_r{k}"] == pytest.approx(stats.hypergeom.sf(0, m, 5, k))
        assert got[f"text_to_image_r{k}"] == pytest.approx(k / n)


def test_what_only_rounding_tells_apart_is_a_tie():
    rng = np.random.default_rng(0)
    v, owner = np.tile(embeddings(rng, 1, 512), (20, 1)), np.repeat(np.arange(20), 5)
    t = (np.tile(embeddings(rng, 1, 512), (100, 1)) * (1 + 3e-7 * rng.normal(size=(100, 512)))).astype(np.float32)
    assert len(np.unique(v @ t.T)) > 1
    got = retrieval(v, t, owner, (1, 5))
    assert (got["image_to_text_r1"], got["text_to_image_r1"]) == pytest.approx((5 / 100, 1 / 20))
    assert got["image_to_text_r5"] == pytest.approx(stats.hypergeom.sf(0, 100, 5, 5))


def test_perfect_embeddings_find_all():
    v, owner = np.eye(12, dtype=np.float32), np.repeat(np.arange(12), 3)
    assert {value for key, value in retrieval(v, v[owner], owner).items() if "_r" in key} == {1.}


@quick
@given(seeds, st.integers(2, 9), st.integers(2, 9))
def test_average_precision_is_that_of_a_walk_down_the_list(seed, n, m):
    rng = np.random.default_rng(seed)
    v = embeddings(rng, n)
    t = embeddings(rng, m)
    gt = rng.random((n, m)) < 0.4
    gt[0, 0] = True
    def walk(scores, true):
        found = 0
        total = 0.0
        R = int(true.sum())
        for k, j in enumerate(sorted(range(len(scores)), key=lambda j: -scores[j])[:R], 1):
            found += bool(true[j])
            total += found / k if true[j] else 0
        return total / R
    for got, S, T in zip(mean_average_precision(v, t, gt).values(), (v @ t.T, t @ v.T), (gt, gt.T)):
        assert math.isclose(got, np.mean([walk(s, r) for s, r in zip(S, T) if r.any()]), abs_tol=1e-9)


def test_average_precision_of_models_that_are_known():
    v, owner = np.eye(12, dtype=np.float32), np.repeat(np.arange(12), 3)
    assert set(mean_average_precision(v, v[owner], owner).values()) == {1.0}
    one = np.tile(v[:1], (400, 1))  # collapsed: half of the answers are true wherever one looks
    gt = np.arange(400)[:, None] % 2 == np.arange(400) % 2
    for value in mean_average_precision(one, one, gt).values(): assert abs(value - 0.25) < 0.05
    refused(lambda: mean_average_precision(v, v, np.zeros((12, 12), bool)), "no text is true")


@pytest.mark.parametrize("change, words", [
    (
        lambda v, t, r, ks: (v * np.float32("inf"), t, r, ks), ["image embeddings", "NaN or infinity"]
    ), (lambda v, t, r, ks: (v, 0.5 * t, r, ks), ["text embeddings", "length"]),
    (
        lambda v, t, r, ks: (v, unit(t[:, :4]), r, ks), ["4 dimensions"]
    ), (lambda v, t, r, ks: (v, t, r.T, ks), ["gt", "(9, 6)"]), (lambda v, t, r, ks: (v, t, r + 0., ks), ["float64"]),
    (lambda v, t, r, ks: (v, t, np.arange(9), ks), ["image 6 of 6"]), (
        lambda v, t, r, ks: (v, t, np.arange(9) - 1, ks), ["image -1"]
    ), (lambda v, t, r, ks: (v, t, np.arange(6), ks), ["(6,)"]),
    (lambda v, t, r, ks: (v, t, r & False, ks), ["no text is true"]), (
        lambda v, t, r, ks: (v, t, r, (1, 7)), ["ks", "6 images"]
    ), (lambda v, t, r, ks: (v, t, r, (0,)), ["ks"]), (lambda v, t, r, ks: (v, t, r, ()), ["ks"])])
def test_retrieval_refuses_what_does_not_fit(change, words):
    rng = np.random.default_rng(0)
    refused(lambda: retrieval(*change(embeddings(rng, 6), embeddings(rng, 9), rng.random((6, 9)) < 0.5, (1,))), *words)


def test_retrieval_of_a_large_set_needs_little_memory():
    rng = np.random.default_rng(0)
    v = embeddings(rng, 3000, 32)
    owner = np.repeat(np.arange(3000), 5)
    t = unit(v[owner] + 0.2 * rng.normal(size=(15000, 32)))
    tracemalloc.start()
    got = retrieval(v, t, owner)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6 and got["image_to_text_r1"] > 0.5  # the whole matrix alone has 180 MB


def test_the_stills_have_several_true_captions_and_images():
    test = list(pairs("test", check=False))[:120]
    owner, gt = np.repeat(np.arange(120), [len(p.captions) for p in test]), gt_captions(test)
    rng = np.random.default_rng(0)
    v, t = embeddings(rng, 120), embeddings(rng, len(owner))
    lenient, strict = retrieval(v, t, gt), retrieval(v, t, owner)
    assert gt[owner, np.arange(len(owner))].all() and all(lenient[key] >= strict[key] for key in lenient if "_r" in key)
    assert abs(strict["text_to_image_r10"] - 10 / 120) < 0.05 and strict["texts"] == len(owner)


# ---- linear probe

def clouds(rng, n, c=4, d=16, noise=1.0, cone=0.):
    y = rng.integers(0, c, n)
    return unit(np.random.default_rng(7).normal(size=(c, d))[y] + noise * rng.normal(size=(n, d)) + cone), y


def test_the_probe_is_scikit_learns_regression_at_the_chosen_strength():
    rng = np.random.default_rng(0)
    (x, y), (xt, yt) = clouds(rng, 60, noise=2), clouds(rng, 400, noise=2)
    got = linear_probe(x, y, xt, yt)
    z = (x - x.mean(0)) / (x - x.mean(0)).std()
    found = LogisticRegression(C=got["C"], max_iter=2000).fit(z, y).predict((xt - x.mean(0)) / (x - x.mean(0)).std())
    assert got["accuracy"] == pytest.approx((found == yt).mean(), abs=0.006)
    assert got["per_class"] == pytest.approx(balanced_accuracy_score(yt, found), abs=0.006)
    assert got["validation"][got["C"]] == max(got["validation"].values()) and got["samples"] == 400
    json.dumps(rounded(got))


def test_the_probe_does_not_see_a_rotation_a_cone_or_the_names_of_classes():
    rng = np.random.default_rng(0)
    (x, y), (xt, yt) = clouds(rng, 800, cone=4), clouds(rng, 400, cone=4)
    got, turn = linear_probe(x, y, xt, yt), np.linalg.qr(rng.normal(size=(16, 16)))[0]
    assert linear_probe(x @ turn, y, xt @ turn, yt)["accuracy"] == pytest.approx(got["accuracy"], abs=0.006)
    assert linear_probe(x, 10 * y - 7, xt, 10 * yt - 7) == got
    assert linear_probe(torch.tensor(x), torch.tensor(y), torch.tensor(xt), torch.tensor(yt)) == got
    bare = LogisticRegression(C=1e4, max_iter=5000).fit(x, y).score(xt, yt)
    assert got["accuracy"] > bare - 0.03


def test_the_strength_is_chosen_without_a_look_at_the_test_set():
    rng = np.random.default_rng(0)
    (x, y), (xt, yt) = clouds(rng, 300), clouds(rng, 200)
    one, other = linear_probe(x, y, xt, yt), linear_probe(x, y, xt, rng.permutation(yt))
    assert one["C"] == other["C"] and one["validation"] == other["validation"] and other["accuracy"] < one["accuracy"]


def test_a_probe_on_noise_gets_chance_and_prefers_small_weights():
    rng = np.random.default_rng(0)
    got = linear_probe(
        embeddings(rng, 600, 32), rng.integers(0, 3, 600), embeddings(rng, 600, 32), rng.integers(0, 3, 600)
    )
    assert abs(got["accuracy"] - 1 / 3) < 0.08


def test_a_probe_takes_rare_classes_and_says_what_it_cannot_do():
    rng = np.random.default_rng(0)
    x, y = clouds(rng, 60)
    y[0] = 9  # seen once
    assert 0 <= linear_probe(x, y, x, y)["accuracy"] <= 1
    refused(lambda: linear_probe(x, 0 * y, x, y), "training labels", "all are 0")
    refused(lambda: linear_probe(x, y, x, y + 100), "test labels", "not one of")
    refused(lambda: linear_probe(x, y[:5], x, y), "training labels", "60 samples")
    refused(lambda: linear_probe(x, y, x[:, :4] / 0.1, y), "test vectors")
    refused(
        lambda: linear_probe(np.where(np.arange(60)[:, None] == 7, np.nan, x), y, x, y), "training vectors", "row 7"
    )
    refused(lambda: linear_probe(x[:2], np.array([0, 1]), x, y % 2), "too few")


# ---- effective robustness

FORTH = dict(linear=(lambda a: a, lambda a: a), logit=(logit, expit), probit=(ndtri, ndtr))


@quick
@given(seeds, st.sampled_from(list(FORTH)), st.floats(0.3, 1.2), st.floats(-0.2, 0.1))
def test_a_line_that_was_made_is_found_and_heights_above_it_too(seed, transform, slope, intercept):
    rng, (forth, back) = np.random.default_rng(seed), FORTH[transform]
    x = rng.uniform(0.35, 0.75, 8)
    y = back(slope * forth(x) + intercept)
    if not ((y > 0.02) & (y < 0.95)).all(): return
    line = fit_line(x, y, transform)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept), abs=1e-6) and line.r2 == pytest.approx(1)
    height = rng.uniform(-0.02, 0.05, 5)
    got = effective_robustness(x, y, x[:5], y[:5] + height, transform=transform, draws=50)
    np.testing.assert_allclose(got.effective, height, atol=1e-6)
    np.testing.assert_allclose(
        got[["low", "high"]], np.stack([height, height], 1), atol=1e-6
    )  # such a line has no uncertainty
    assert not got.outside.any()


def test_the_line_is_scipys_and_its_bootstrap_a_slow_one():
    rng = np.random.default_rng(0)
    x = rng.uniform(0.3, 0.8, 12)
    y = expit(0.9 * logit(x) - 0.5 + 0.1 * rng.normal(size=12))
    reference, got = stats.linregress(logit(x), logit(y)), fit_line(x, y)
    assert (got.slope, got.intercept, got.r2) == pytest.approx(
        (reference.slope, reference.intercept, reference.rvalue**2)
    )
    assert float(got(0.5)) == pytest.approx(expit(reference.intercept))
    slow = []
    for _ in range(3000):
        k = rng.integers(0, 12, 12)
        fit = stats.linregress(logit(x[k]), logit(y[k]))
        slow.append(0.5 - expit(fit.intercept + fit.slope * logit(0.6)))
    got = effective_robustness(x, y, [0.6], [0.5], draws=8000)
    np.testing.assert_allclose(got.loc[0, ["low", "high"]].astype(float), np.quantile(slow, [0.025, 0.975]), atol=0.003)


def test_the_images_add_their_sampling_error():
    rng = np.random.default_rng(0)
    x = rng.uniform(0.3, 0.8, 20)
    y = 0.8 * x
    got = effective_robustness(x, y, [0.5], [0.45], transform="linear", n=400)
    assert tuple(got.loc[0, ["y_low", "y_high"]]) == pytest.approx(accuracy_interval(0.45, 400))
    assert got.low[0] == pytest.approx(got.y_low[0] - 0.4, abs=0.01)
    assert got.high[0] == pytest.approx(got.y_high[0] - 0.4, abs=0.01)
    assert (effective_robustness(x, y, [0.5], [0.45], transform="linear", n=40).high - got.high)[0] > 0.05


def test_models_of_one_run_are_drawn_together():
    rng = np.random.default_rng(0)
    x = rng.uniform(0.3, 0.8, 10)
    y = 0.8 * x + 0.03 * rng.normal(size=10)
    def width(runs, times):
        return float(np.diff(effective_robustness(
            np.repeat(x, times), np.repeat(y, times), [0.5], [0.5], runs=runs, transform="linear", draws=8000
        )[["low", "high"]].to_numpy()[0])[0])
    assert width(np.repeat(np.arange(10), 9), 9) == pytest.approx(width(None, 1), rel=1e-6)  # nine copies are no news
    assert width(None, 9) < 0.5 * width(None, 1)
    assert width(
        np.array([f"seed {k}" for k in np.repeat(np.arange(10), 2)]), 2
    ) == pytest.approx(width(None, 1), rel=1e-6)


def test_what_lies_beyond_the_line_is_marked():
    got = effective_robustness([0.3, 0.4, 0.5], [0.2, 0.3, 0.35], [0.2, 0.45, 0.9], [0.2, 0.3, 0.9])
    assert got.outside.tolist() == [True, False, True]


@pytest.mark.parametrize("make, words", [
    (lambda: fit_line([30, 40, 50], [20, 30, 40]), ["not per cent"]), (
        lambda: fit_line([0.3, 0.4], [0.2, 0.3]), ["no line"]
    ), (lambda: fit_line([0.3] * 4, [0.2, 0.3, 0.2, 0.3]), ["no line"]),
    (lambda: fit_line([0.3, 0.4, 1], [0.2, 0.3, 0.4]), ["0 or 1", "linear"]), (
        lambda: fit_line([0.3, 0.4, 0.5], [0.2, 0.3]), ["3 accuracies", "2"]
    ), (lambda: fit_line([0.3, 0.4, float("nan")], [0.2, 0.3, 0.4]), ["shares"]),
    (lambda: fit_line([0.3, 0.4, 0.5], [0.2, 0.3, 0.4], "log"), ["log", "probit"]), (
        lambda: effective_robustness([0.3, 0.4, 0.5], [0.2, 0.3, 0.4], [0.5, 0.6], [0.4]), ["2 accuracies", "1"]
    ),
    (lambda: effective_robustness([0.3, 0.4, 0.5], [0.2, 0.3, 0.4], [1.0], [0.4]), ["x:", "0 or 1"]), (
        lambda: effective_robustness([0.3, 0.4, 0.5], [0.2, 0.3, 0.4], [0.4], [0.4], runs=[1, 2]), ["runs", "3 models"]
    )])
def test_accuracies_that_make_no_line_are_refused(make, words): refused(make, *words)


# ---- methods against a line

def a_method(rng, seeds=3, epochs=8, above=0., spread=0.1, names=0):
    gx = np.sort(rng.normal(0.5, 0.4, (seeds, epochs)), 1)
    gy = 0.9 * gx - 0.8 + above + rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 0.03, (seeds, epochs))
    return expit(gx).ravel(), expit(gy).ravel(), np.repeat(np.arange(seeds), epochs) + names


@pytest.mark.parametrize("names, seeds", [(0, 3), (100, 3), (100, 5)])
def test_the_interval_over_runs_covers_what_it_promises(names, seeds):
    rng = np.random.default_rng(1)
    held = [(
        got := compare_robustness(*a_method(rng, seeds), *a_method(rng, seeds, names=names), draws=150)
    )["low"] < 0 < got["high"] for _ in range(200)]
    assert 0.9 <= np.mean(held) <= 0.995


def test_a_method_above_the_line_is_found_and_more_so_with_more_runs():
    rng = np.random.default_rng(2)
    three, many = (compare_robustness(*a_method(rng, n), *a_method(rng, n, above=0.5)) for n in (3, 12))
    assert 0 < three["low"] < 0.1 < three["high"]
    assert three["runs"] == 3
    assert many["standard_error"] < three["standard_error"] * 1.5
    assert many["high"] - many["low"] < three["high"] - three["low"]
    assert np.mean(list(many["by_run"].values())) == pytest.approx(many["effective"]) and 0 <= many["outside"] <= 1
    json.dumps(rounded(many))


def test_on_a_line_without_uncertainty_the_standard_error_is_that_of_the_mean_over_runs():
    one, other = a_method(np.random.default_rng(5)), a_method(np.random.default_rng(6), names=9)
    got = compare_robustness(one[0], expit(0.9 * logit(one[0]) - 0.8), one[2], *other, draws=40000)
    assert got["standard_error"] == pytest.approx(stats.sem(list(got["by_run"].values())), rel=0.02)
    wide = stats.t.ppf(0.975, 2) * got["standard_error"]
    assert (got["low"], got["high"]) == pytest.approx((got["effective"] - wide, got["effective"] + wide))


def test_more_epochs_of_the_same_runs_make_nothing_surer():
    rng = np.random.default_rng(3)
    one, other = a_method(rng), a_method(rng, above=0.3, names=9)
    once = compare_robustness(*one, *other)
    thrice = compare_robustness(*(np.tile(a, 3) for a in one), *(np.tile(a, 3) for a in other))
    assert thrice["standard_error"] == pytest.approx(once["standard_error"], rel=1e-6)
    assert thrice["effective"] == pytest.approx(once["effective"])


def test_a_method_lies_on_its_own_line():
    one = a_method(np.random.default_rng(4))
    got = compare_robustness(*one, *one)
    # the same runs are drawn together
    assert abs(got["effective"]) < 0.01
    assert got["standard_error"] < 0.005
    assert got["low"] < 0 < got["high"]
    assert got["outside"] == 0


def test_single_runs_are_refused():
    one = a_method(np.random.default_rng(0))
    refused(lambda: compare_robustness(*one, one[0], one[1], np.zeros(24)), "run once")
    refused(lambda: compare_robustness(one[0], one[1], np.zeros(24), *one), "run once")
    refused(lambda: compare_robustness(*one, one[0], one[1], one[2][:5]), "runs", "24 models")


@pytest.mark.parametrize("transform", list(FORTH))
def test_robustness_is_drawn_with_accuracies_on_the_axes(transform):
    one, other = a_method(np.random.default_rng(0)), a_method(np.random.default_rng(1), above=0.3)
    fig = draw_robustness(*one[:2], {"other": other[:2]}, runs=one[2], transform=transform, name="one")
    fig.canvas.draw()
    ax, forth = fig.axes[0], FORTH[transform][0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["one", "other"]
    for tick, text in zip(ax.get_xticks(), ax.get_xticklabels()):
        assert forth(float(text.get_text())) == pytest.approx(tick)
    np.testing.assert_allclose(ax.lines[2].get_xydata(), forth(np.stack(other[:2], 1)))
    plt.close(fig)


# ---- gains over seeds

def test_a_gain_is_scipys_paired_test():
    rng = np.random.default_rng(0)
    for n in (2, 3, 10):
        a, b = rng.normal(0.6, 0.05, n), rng.normal(0.5, 0.05, n)
        got, test = paired_gain(a, b), stats.ttest_rel(a, b)
        assert (
            got["gain"], got["standard_errors"], got["p"], got["n"]
        ) == pytest.approx(((a - b).mean(), test.statistic, test.pvalue, n))
        assert (got["low"], got["high"]) == pytest.approx(tuple(test.confidence_interval()))
        assert got["standard_error"] == pytest.approx(np.std(a - b, ddof=1) / np.sqrt(n))
        back = paired_gain(b, a)
        assert (back["gain"], back["standard_errors"], back["low"]) == pytest.approx(
            (-got["gain"], -got["standard_errors"], -got["high"])
        )
        json.dumps(rounded(got))


def test_the_pairing_matters():
    easy = np.array([0.3, 0.5, 0.7])
    assert paired_gain(easy + [0.02, 0.03, 0.025], easy)["standard_errors"] > 2 > paired_gain(
        easy + [0.02, 0.03, 0.025], easy[::-1]
    )["standard_errors"]


def test_differences_without_spread_claim_no_certainty():
    same = paired_gain([0.5, 0.6, 0.7], [0.5, 0.6, 0.7])
    assert (same["gain"], same["standard_errors"], same["low"], same["high"]) == (0, 0, 0, 0)
    shifted = paired_gain([0.6, 0.7, 0.8], [0.5, 0.6, 0.7])
    assert shifted["gain"] == pytest.approx(0.1) and shifted["standard_errors"] is None and shifted["low"] is None
    for got in (same, shifted): json.dumps(rounded(got))


def test_gains_of_one_seed_or_of_failed_runs_are_refused():
    refused(lambda: paired_gain([0.5], [0.4]), "1 seed")
    refused(lambda: paired_gain([], []), "0 seed")
    refused(lambda: paired_gain([0.5, 0.6], [0.4]), "(2,)", "(1,)")
    refused(lambda: paired_gain([0.5, float("nan")], [0.4, 0.3]), "NaN")


# ---- soft targets

@quick
@given(seeds, st.integers(2, 8), st.integers(3, 9), st.booleans())
def test_rank_correlations_are_those_of_scipy_and_the_roc_curve(seed, n, m, tied):
    rng = np.random.default_rng(seed)
    q = rng.integers(0, 3, (n, m)) if tied else rng.random((n, m))
    gt = rng.random((n, m)) < 0.4
    gt[0, :2] = True, False
    rows = [i for i in range(n) if 0 < gt[i].sum() < m]
    got = target_agreement(q, gt)
    def spearman(a, b): return 0. if len(set(a)) == 1 else stats.spearmanr(a, b).statistic
    assert got["soft_spearman_rows"] == pytest.approx(np.mean([spearman(q[i], gt[i]) for i in rows]))
    assert got["soft_spearman_overall"] == pytest.approx(spearman(q.ravel(), gt.ravel()))
    assert got["hard_spearman_overall"] == pytest.approx(spearman(np.eye(n, m).ravel(), gt.ravel()))
    assert got["soft_biserial_rows"] == pytest.approx(np.mean([2 * roc_auc_score(gt[i], q[i]) - 1 for i in rows]))
    assert got["soft_biserial_overall"] == pytest.approx(2 * roc_auc_score(gt.ravel(), q.ravel()) - 1)
    assert (got["rows"], got["rows_left_out"]) == (len(rows), n - len(rows))


@quick
@given(seeds, st.integers(3, 12))
def test_perfect_targets_agree_and_order_does_not_matter(seed, n):
    rng = np.random.default_rng(seed)
    gt = rng.random((n, n)) < 0.4
    gt[0, :2] = True, False
    q = gt + 0.5 * rng.random((n, n))
    got = target_agreement(q, gt)
    i = rng.permutation(n)
    j = rng.permutation(n)
    assert got["soft_biserial_rows"] == pytest.approx(1) == got["soft_biserial_overall"]
    assert target_agreement(gt, gt)["soft_spearman_rows"] == pytest.approx(1)
    assert got["soft_spearman_overall"] <= np.sqrt(
        3 * gt.mean() * (1 - gt.mean())
    ) * np.sqrt(n**4 / (n**4 - 1)) + 1e-9  # the ceiling of targets that all differ
    hard = np.eye(n)
    assert target_agreement(q[i][:, j], gt[i][:, j], hard[i][:, j]) == pytest.approx(got)
    assert target_agreement(
        torch.tensor(np.exp(3 * q)), torch.tensor(gt)
    )["soft_spearman_rows"] == pytest.approx(got["soft_spearman_rows"])


def test_constant_targets_get_zero():
    gt = np.eye(4, dtype=bool)
    flat = target_agreement(np.full((4, 4), 0.25), gt)
    assert [
        flat[f"soft_{k}"] for k in ("spearman_rows", "spearman_overall", "biserial_rows", "biserial_overall")
    ] == [0, 0, 0, 0]
    assert flat["hard_biserial_rows"] == 1
    refused(lambda: target_agreement(np.ones((3, 3)), np.ones((3, 3), bool)), "no order")
    refused(lambda: target_agreement(np.ones((3, 3)), np.eye(4, dtype=bool)), "(3, 3)", "(4, 4)")
    refused(lambda: target_agreement(np.ones((3, 3)), np.eye(3)), "float64")
    refused(lambda: target_agreement(np.ones(3), np.ones(3, bool)), "(3,)")
    refused(lambda: target_agreement(np.full((3, 3), np.nan), np.eye(3, dtype=bool)), "NaN")


@quick
@given(seeds, st.integers(2, 15))
def test_wrong_pairs_are_counted_pair_by_pair(seed, n):
    rng = np.random.default_rng(seed)
    s, wrong = rng.integers(0, 4, n) / 4, rng.random(n) < 0.5
    if wrong.all() or not wrong.any():
        refused(lambda: wrong_pair_auroc(s, wrong), "wrong", f"of {n} pairs")
        return
    slow = np.mean([1. if a < b else 0.5 if a == b else 0. for a in s[wrong] for b in s[~wrong]])
    for got in (
        wrong_pair_auroc(s, wrong), wrong_pair_auroc(torch.tensor(s), torch.tensor(wrong)),
        1 - wrong_pair_auroc(-s, wrong)
    ):
        assert got == pytest.approx(slow)


def test_scores_that_do_not_fit_are_refused():
    refused(lambda: wrong_pair_auroc([0.1, 0.2], np.array([0, 1])), "int64")
    refused(lambda: wrong_pair_auroc([0.1, 0.2], np.array([True])), "(2,)", "(1,)")
    refused(lambda: wrong_pair_auroc([0.1, float("nan")], np.array([True, False])), "NaN")
