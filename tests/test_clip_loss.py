"""The losses of CLIP.

Equal to open_clip's where nothing is distilled, to two slow loops where something is, to themselves on two processes;
they work in open_clip's own training loop, and refuse what cannot work.
"""
import math, os, time, types, warnings
from copy import deepcopy
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from open_clip import CLIP
from open_clip.loss import ClipLoss
from open_clip_train.data import DataInfo
from open_clip_train.train import train_one_epoch
from timm.utils import ModelEmaV3
from torch import distributed, multiprocessing
from torch.nn import functional as F
from scipy.stats import kstest
from torch.utils.data import DataLoader, TensorDataset

from primenb.clip.loss import (
    PSD_MISMATCH, PSD_SCHEDULES, PSD_TARGETS, MomentumClipLoss, PSDClipLoss, SmoothedClipLoss, distilled_share, flagged,
    log_odds, logsumexp_negatives, mismatch_pvalue, soft_targets, wrap_scheduler
)
from primenb.core import PrimenbError

PARTITIONS = ("random", "low_similarity", "low_likelihood")  # "mismatch" has a reference and tests of its own

pytestmark = pytest.mark.usefixtures("one_thread")
quick = settings(max_examples=30, deadline=None)


def units(n=7, d=5, seed=0, scale=6.0):
    "Unit embeddings of images and captions, and a scale."
    g = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(n, d, generator=g), dim=1) for _ in range(2)] + [torch.tensor(scale)]


def dist(v, t, s, bias=None):
    return dict(
        dist_image_features=v, dist_text_features=t, dist_logit_scale=s
    ) | ({} if bias is None else dict(dist_logit_bias=bias))


def constant(share=0.4, **more):
    "A loss whose share does not move."
    return PSDClipLoss(**dict(alpha_end=share, schedule="constant") | more)


def graded(loss, v, t, s, name=None, **more):
    "Value and gradients with respect to images, captions and scale; of one term, if `name` is given."
    leaves = [x.detach().clone().requires_grad_() for x in (v, t, s)]
    value = loss(*leaves, output_dict=name is not None, **more)
    value = value if name is None else value[name]
    return value.detach(), torch.autograd.grad(value, leaves)


def agree(one, other, **tolerance):
    "The same value and the same gradients."
    for a, b in zip([one[0], *one[1]], [other[0], *other[1]]):
        torch.testing.assert_close(
            torch.as_tensor(a).double(), torch.as_tensor(b).double(), **dict(rtol=2e-5, atol=2e-6) | tolerance
        )


def refused(make, *words):
    with pytest.raises(PrimenbError) as caught: make()
    for word in words: assert word in str(caught.value), str(caught.value)


def distilled_rows(loss, n):
    "Which of n rows are distilled, by the gradient: a teacher that prefers the next caption changes the diagonal."
    one = torch.eye(n)
    next_one = torch.eye(n).roll(1, 1)
    s = torch.tensor(1.0)
    gradient = graded(loss, one, one, s, **dist(one, next_one.T.contiguous(), torch.tensor(1000.0)))[1][0].diagonal()
    return (gradient > 0).nonzero()[:, 0].tolist()


# ---- the slow reference: two loops, in float64, with the gradient from the formula

def softmax(numbers):
    top = max(numbers)
    powers = [math.exp(x - top) for x in numbers]
    return [x / sum(powers) for x in powers]


def grid(v, t, s):
    "All logits of images and captions."
    v, t = v.double().tolist(), t.double().tolist()
    def logit(x, y): return float(s) * sum(a * b for a, b in zip(x, y))
    return [[logit(x, y) for y in t] for x in v]


def column(matrix, j): return [row[j] for row in matrix]


def distribution(Z, i, side, ratio):
    "The distribution of image i (side 0) over all captions, or of caption i (side 1) over all images."
    return softmax([z / ratio for z in (column(Z, i) if side else Z[i])])


def rows_of(Z, partition, k):
    "The k rows that the teacher agrees with least."
    n = len(Z)
    score = [Z[i][i] if partition == "low_similarity" else math.log(
        distribution(Z, i, 0, 1)[i]
    ) + math.log(distribution(Z, i, 1, 1)[i]) for i in range(n)]
    return sorted(range(n), key=lambda i: score[i])[:k]


def soft_target(Z, i, side, target, ratio):
    "The soft target of image or caption i."
    own, other = distribution(Z, i, side, ratio), distribution(Z, i, 1 - side, ratio)
    return dict(direct=own, swapped=other, mixed=[(a + b) / 2 for a, b in zip(own, other)])[target]


def slow(v, t, s, q):
    "Value and gradients for targets q[side][i]."
    S = grid(v, t, s)
    n = len(v)
    d = v.shape[1]
    value, G = 0.0, np.zeros((n, n))
    for i in range(n):
        for side in (0, 1):
            p = distribution(S, i, side, 1)
            for j in range(n):
                value -= q[side][i][j] * math.log(p[j]) / (2 * n)
                G[(j, i) if side else (i, j)] += (p[j] - q[side][i][j]) / (2 * n)
    V = v.double().numpy()
    T = t.double().numpy()
    gv = np.zeros((n, d))
    gt = np.zeros((n, d))
    gs = 0.0
    for i in range(n):
        for j in range(n):
            gv[i] += float(s) * G[i, j] * T[j]
            gt[j] += float(s) * G[i, j] * V[i]
            gs += G[i, j] * float(V[i] @ T[j])
    return value, (gv, gt, np.array(gs))


def one_hot(n): return [np.eye(n).tolist() for _ in (0, 1)]


def targets_of(Z, rows, target="swapped", ratio=1.0, labels=None):
    "Targets of both sides: the labels, and the teacher's distribution in some rows."
    q = labels or one_hot(len(Z))
    def row(i, side): return soft_target(Z, i, side, target, ratio) if i in rows else q[side][i]
    return [[row(i, side) for i in range(len(Z))] for side in (0, 1)]


SETTINGS = [dict(teacher=a, target=b, partition=c, ratio=r) for a, b, c, r in product(
    ("self", "external"), PSD_TARGETS, PARTITIONS, (0.5, 1.0, 2.0)
) if (a, b, r) != ("self", "direct", 1.0)]


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda k: "-".join(map(str, k.values())))
def test_every_setting_is_the_two_loops(kind):
    student, teacher = units(), units(seed=1, scale=9.0)
    more = dist(*teacher) if kind["teacher"] == "external" else {}
    loss = constant(seed=3, **kind)
    Z = grid(*(teacher if more else student))
    rows = distilled_rows(
        constant(seed=3, teacher="external", target="direct"), 7
    ) if kind["partition"] == "random" else rows_of(Z, kind["partition"], 3)
    assert len(rows) == 3
    agree(graded(loss, *student, **more), slow(*student, targets_of(Z, rows, kind["target"], kind["ratio"])))


@pytest.mark.parametrize("share,n", [(0.0, 7), (0.07, 7), (0.5, 6), (0.9, 7), (0.3, 2)])
def test_the_share_is_rounded_to_whole_rows(share, n):
    student = units(n)
    rows = rows_of(grid(*student), "low_likelihood", round(share * n))
    agree(
        graded(constant(share, partition="low_likelihood"), *student), slow(*student, targets_of(grid(*student), rows))
    )


# ---- nothing distilled

@pytest.mark.parametrize("bias", [None, -7.0])
@pytest.mark.parametrize("make", [lambda: PSDClipLoss(total_steps=10), lambda: PSDClipLoss(
    total_steps=10, partition="low_likelihood", target="mixed"
), lambda: constant(0.0, target="direct"),
                                  lambda: SmoothedClipLoss(smoothing=0.0), lambda: PSDClipLoss(
                                      False, False, True, 0, 1, False, total_steps=10
                                  )])
def test_alpha_0_is_open_clips_loss(make, bias):
    more = {} if bias is None else dict(logit_bias=torch.tensor(bias))
    for n in (2, 33, 256):
        agree(
            graded(make(), *units(n, 16, seed=n), **more), graded(ClipLoss(), *units(n, 16, seed=n), **more), rtol=1e-5,
            atol=1e-7
        )


@pytest.mark.parametrize(
    "loss", [PSDClipLoss(total_steps=10, teacher="external"), MomentumClipLoss(total_steps=10)],
    ids=lambda x: type(x).__name__
)
def test_an_external_teacher_has_no_effect_at_alpha_0(loss):
    agree(graded(loss, *units(), **dist(*units(seed=1))), graded(ClipLoss(), *units()), rtol=1e-5, atol=1e-7)


def test_a_bias_moves_nothing():
    "It is the same for all pairs, so the softmax does not see it; neither may rows and targets."
    for kind in (
        dict(partition="low_likelihood"), dict(partition="low_similarity", target="direct", teacher="external")
    ):
        more = dist(*units(seed=1)) if "teacher" in kind else {}
        agree(graded(
            constant(**kind), *units(), logit_bias=torch.tensor(-10.0), **more,
            **dict(dist_logit_bias=torch.tensor(3.0)) if more else {}
        ), graded(constant(**kind), *units(), **more))


# ---- targets

@quick
@given(
    st.integers(0, 10**6), st.integers(2, 9), st.sampled_from(PSD_TARGETS), st.floats(0.05, 20),
    st.sampled_from([0.01, 1.0, 100.0, 10000.0]), st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
)
def test_targets_are_distributions_without_gradient(seed, n, target, ratio, scale, dtype):
    g = torch.Generator().manual_seed(seed)
    own, other = (scale * torch.randn(4, n, generator=g).to(dtype).requires_grad_() for _ in range(2))
    q = soft_targets(own, other, target, ratio)
    assert q.shape == own.shape and q.dtype == torch.float32 and not q.requires_grad and q.grad_fn is None
    assert (q >= 0).all()
    torch.testing.assert_close(q.sum(1), torch.ones(4))
    torch.testing.assert_close(soft_targets(own, own, "mixed", ratio), soft_targets(own, other, "direct", ratio))
    torch.testing.assert_close(soft_targets(other, own, "direct", ratio), soft_targets(own, other, "swapped", ratio))


def test_the_ratio_softens_and_sharpens():
    own, other = (torch.randn(4, 9, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    entropies = [
        -(q * q.log()).sum(1).mean()
        for q in (soft_targets(own, other, "direct", r) for r in (0.25, 0.5, 1.0, 2.0, 100.0))
    ]
    assert entropies == sorted(entropies) and math.isclose(entropies[-1], math.log(9), rel_tol=1e-3)


def test_no_gradient_reaches_the_teacher():
    student, teacher = units(), [x.requires_grad_() for x in units(seed=1)]
    loss = constant(teacher="external", target="direct")(*[x.requires_grad_() for x in student], **dist(*teacher))
    loss.backward()
    assert all(x.grad is None for x in teacher) and all(x.grad.abs().max() > 0 for x in student)


# ---- the terms

@quick
@given(
    st.integers(0, 10**6), st.integers(2, 20), st.floats(0, 0.95), st.sampled_from(PARTITIONS),
    st.sampled_from(["swapped", "mixed"]), st.sampled_from([0.5, 1.0, 3.0])
)
def test_terms_add_up_and_do_not_fall_below_the_entropy(seed, n, share, partition, target, ratio):
    student = units(n, seed=seed)
    loss = constant(share, partition=partition, target=target, ratio=ratio)
    terms = loss(*student, output_dict=True)
    assert list(terms) == ["contrastive_loss", "psd_loss"]
    torch.testing.assert_close(sum(terms.values()), loss(*student))
    rows = distilled_rows(
        constant(share, teacher="external", target="direct"), n
    ) if partition == "random" else rows_of(grid(*student), partition, min(round(share * n), n - 1))
    assert len(rows) == min(round(share * n), n - 1)
    distilled = targets_of(grid(*student), rows, target, ratio)
    entropy = sum(-x * math.log(x) for side in (0, 1) for i in rows for x in distilled[side][i]) / (2 * n)
    assert terms["psd_loss"] >= entropy * (1 - 1e-5) - 1e-6 and terms["contrastive_loss"] >= -1e-6


@pytest.mark.parametrize(
    "loss,more", [(SmoothedClipLoss(), {}), (MomentumClipLoss(total_steps=5), dist(*units(seed=1)))],
    ids=["smoothed", "momentum"]
)
def test_other_losses_give_one_term(loss, more):
    terms = loss(*units(), output_dict=True, **more)
    assert list(terms) == ["contrastive_loss"] and terms["contrastive_loss"] == loss(*units(), **more)


@quick
@given(
    st.integers(0, 10**6), st.integers(3, 24), st.floats(0, 0.9), st.sampled_from(["low_likelihood", "low_similarity"]),
    st.booleans()
)
def test_the_order_of_the_batch_does_not_matter(seed, n, share, partition, given_teacher):
    student, teacher = units(n, seed=seed), units(n, seed=seed + 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    loss = constant(share, partition=partition, teacher="external" if given_teacher else "self")
    value = lambda o: graded(
        loss, student[0][o], student[1][o], student[2],
        **dist(teacher[0][o], teacher[1][o], teacher[2]) if given_teacher else {}
    )
    (one, (gv, gt, gs)), other = value(slice(None)), value(order)
    agree((one, (gv[order], gt[order], gs)), other)


# ---- the combination without a gradient

def test_direct_targets_of_the_model_itself_have_no_gradient():
    student = units(16)
    for target, learns in dict(direct=False, swapped=True, mixed=True).items():
        value, gradients = graded(
            constant(teacher="external", target=target), *student, name="psd_loss", **dist(*student)
        )
        assert value > 0.1 and (max(float(g.abs().max()) for g in gradients) > 1e-2) == learns, target
        if not learns: assert max(float(g.abs().max()) for g in gradients) < 1e-6
    for ratio in (0.5, 2.0):
        assert graded(constant(target="direct", ratio=ratio), *student, name="psd_loss")[1][0].abs().max() > 1e-2


def test_it_is_refused_with_the_reason():
    refused(lambda: constant(target="direct"), "direct", "gradient is zero", "swapped", "EMA")
    refused(lambda: PSDClipLoss(total_steps=9, target="direct"), "gradient is zero")
    for fine in (
        dict(target="direct", ratio=0.5), dict(target="direct", teacher="external"),
        dict(target="direct", alpha_end=0.0), dict(target="mixed")
    ):
        PSDClipLoss(total_steps=9, **fine)


def test_it_is_refused_where_the_share_only_falls():
    refused(lambda: PSDClipLoss(total_steps=9, target="direct", alpha_start=0.5, alpha_end=0.0), "gradient is zero")


# ---- which rows

def probe(step=0, seed=0, share=0.4, n=20, **more):
    loss = constant(share, seed=seed, teacher="external", target="direct", **more)
    loss.set_step(step)
    return distilled_rows(loss, n)


def test_random_rows_depend_on_seed_and_step_alone():
    assert probe() == probe() and len(probe()) == 8
    drawn = {tuple(probe(step, seed)) for step in range(5) for seed in range(5)}
    assert len(drawn) == 25
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert tuple(probe(4, 4)) in drawn and torch.equal(before, torch.random.get_rng_state())


def test_random_rows_are_all_alike():
    counts = np.zeros(20)
    for step in range(200): counts[probe(step)] += 1
    assert abs(counts / 200 - 0.4).max() < 0.15  # more than four standard deviations


def test_all_calls_of_a_step_see_the_same_rows():
    loss = constant(teacher="external", target="direct")
    loss.set_step(7)
    first = [distilled_rows(loss, 20) for _ in range(4)]
    loss.set_step(8)
    second = distilled_rows(loss, 20)
    loss.set_step(7)
    assert first == [distilled_rows(loss, 20)] * 4 and second != first[0]


def test_a_wrong_pair_is_found():
    "Twelve pairs that agree, of which two captions were exchanged."
    v, order = F.normalize(torch.randn(12, 32, generator=torch.Generator().manual_seed(0)), dim=1), torch.arange(12)
    order[[2, 7]] = order[[7, 2]]
    for partition in ("low_likelihood", "low_similarity"):
        q = graded(constant(2 / 12, partition=partition, ratio=0.1, target="direct"), v, v[order], torch.tensor(20.0))
        agree(q, slow(v, v[order], 20.0, targets_of(grid(v, v[order], 20.0), [2, 7], "direct", 0.1)))


def test_likelihood_forgives_what_is_rare():
    "A pair far from all others that is still its own best keeps its label; a pair that prefers others does not."
    v = torch.eye(4)
    t = torch.eye(4)
    s = torch.tensor(10.0)
    t[0] = torch.tensor([0.6, 0, 0, -0.8])   # 0.6 to its own image, less to all others: low similarity, high likelihood
    t[1] = torch.tensor([0, 0.7, 0.714, 0])  # 0.7 to its own, 0.714 to another
    for partition, row in dict(low_similarity=0, low_likelihood=1).items():
        assert rows_of(grid(v, t, s), partition, 1) == [row]
        agree(
            graded(constant(0.25, partition=partition), v, t, s), slow(v, t, s, targets_of(grid(v, t, s), [row])),
            rtol=1e-4
        )


# ---- how much, and when

@quick
@given(
    st.floats(0, 1), st.floats(0, 0.99), st.sampled_from(sorted(PSD_SCHEDULES)), st.floats(0, 0.9), st.floats(0.01, 1),
    st.lists(st.floats(0, 1), min_size=2, max_size=20)
)
def test_the_share_moves_one_way_between_its_ends(start, end, schedule, begins, lasts, moments):
    rise = begins, min(begins + lasts, 1.0)
    shares = [distilled_share(p, start, end, schedule, rise) for p in sorted(moments)]
    low, high = sorted((start, end))
    assert all(low - 1e-9 <= x <= high + 1e-9 for x in shares)
    assert all((b - a) * (end - start) >= -1e-9 for a, b in zip(shares, shares[1:]))
    assert math.isclose(distilled_share(rise[1], start, end, schedule, rise), end, abs_tol=1e-9)
    if schedule != "constant":
        assert math.isclose(distilled_share(rise[0], start, end, schedule, rise), start, abs_tol=1e-9)


def test_the_share_of_known_moments():
    cosine = lambda p: 0.7 * (1 - math.cos(math.pi * p)) / 2
    loss = PSDClipLoss(total_steps=11)
    assert loss.alpha == 0
    for step in range(14):
        loss.set_step(step)
        assert math.isclose(loss.alpha, cosine(min(step, 10) / 10), abs_tol=1e-12)
    early = PSDClipLoss(total_steps=101, alpha_end=0.4, rise=(0.05, 0.15), schedule="linear")
    assert [
        round(distilled_share(p, 0.0, 0.4, "linear", early.rise), 6) for p in (0.05, 0.1, 0.15, 1)
    ] == [0, 0.2, 0.4, 0.4]
    early.set_step(10)
    assert math.isclose(early.alpha, 0.2)
    assert constant(0.3).alpha == 0.3 and PSDClipLoss(total_steps=1).alpha == 0


def test_the_wrapped_scheduler_sets_the_step_and_passes_on():
    loss, seen = PSDClipLoss(total_steps=11), []
    def scheduler(step):
        seen.append(step)
        return "lr"
    both = wrap_scheduler(loss, scheduler)
    assert both(5) == "lr" and loss.step == 5 and seen == [5] and math.isclose(loss.alpha, 0.35)
    assert wrap_scheduler(loss)(10) is None and loss.step == 10 and math.isclose(loss.alpha, 0.7)


def test_a_loss_whose_step_is_never_set_warns():
    loss, pair = PSDClipLoss(total_steps=10_000), units(2, 2)
    with pytest.warns(UserWarning, match="without set_step.*wrap_scheduler") as caught:
        for _ in range(600): loss(*pair)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stepped = PSDClipLoss(total_steps=10_000)
        still = constant()
        evaluated = PSDClipLoss(total_steps=10_000).eval()
        for step in range(600):
            stepped.set_step(step)
            for loss in (stepped, still, evaluated): loss(*pair)


# ---- the caller's own targets

def labels_of(matrix):
    "Both sides of a matrix, each row divided by its sum."
    sides = [x.double().numpy() for x in (matrix, matrix.T)]
    return [(side / side.sum(1, keepdims=True)).tolist() for side in sides]


@pytest.mark.parametrize("kind", [
    dict(share=0.0), dict(partition="low_likelihood"),
    dict(teacher="external", target="direct", partition="low_similarity")
], ids=["labels", "distilled", "external"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_several_true_captions(kind, dtype):
    student, teacher = units(), units(seed=1)
    matrix = torch.eye(7) + (
        torch.rand(7, 7, generator=torch.Generator().manual_seed(2)) < 0.3
    ).float() * (1 if dtype == torch.bool else 3)
    more = dist(*teacher) if "teacher" in kind else {}
    Z, loss = grid(*(teacher if more else student)), constant(**kind)
    rows = rows_of(Z, kind.get("partition", "low_likelihood"), round(loss.alpha * 7))
    q = targets_of(Z, rows, kind.get("target", "swapped"), labels=labels_of(matrix.to(dtype)))
    agree(graded(loss, *student, targets=matrix.to(dtype), **more), slow(*student, q))


def test_the_weight_of_the_targets_does_not_matter_and_one_to_one_is_the_label():
    student, loss = units(), constant(partition="low_likelihood")
    agree(graded(loss, *student, targets=torch.eye(7)), graded(loss, *student))
    agree(graded(loss, *student, targets=37 * torch.eye(7)), graded(loss, *student))


@pytest.mark.parametrize("targets,word", [(torch.eye(6), "(6, 6)"), (torch.ones(7), "(7,)"), (
    torch.ones(7, 8), "(7, 8)"
), (torch.ones(1, 7, 7), "(1, 7, 7)"), (-torch.eye(7), "negative"), (torch.eye(7) - 0.1, "negative"),
                                          (torch.eye(7) * (torch.arange(7) > 0), "no true partner"), (
                                              torch.ones(7, 7) * (torch.arange(7) > 0), "no true partner"
                                          ), (torch.full((7, 7), math.nan), "targets")])
def test_targets_that_do_not_fit_are_refused(targets, word):
    refused(lambda: constant()(*units(), targets=targets), "targets", word)


def test_infinite_targets_are_refused():
    infinite = torch.eye(7)
    infinite[0, 1] = math.inf
    refused(lambda: constant()(*units(), targets=infinite), "targets")


# ---- what is refused

@pytest.mark.parametrize("wrong,words", [(dict(target="both"), ["target='both'", "swapped"]), (
    dict(partition="best"), ["partition='best'", "low_likelihood"]
), (dict(teacher="ema"), ["teacher='ema'", "external"]), (dict(schedule="step"), ["cosine"]),
                                         (dict(alpha_end=1.0), ["1.0", "below 1"]), (dict(alpha_end=-0.1), ["-0.1"]), (
                                             dict(alpha_end=math.nan), ["nan"]
                                         ), (
                                             dict(alpha_start=1.5), ["1.5"]
                                         ), (dict(ratio=0.0), ["ratio=0.0"]), (dict(ratio=-1.0), ["ratio"]),
                                         (dict(ratio=math.nan), ["ratio"]), (dict(rise=(0.5, 0.5)), ["rise"]), (
                                             dict(rise=(0.5, 0.2)), ["rise"]
                                         ), (
                                             dict(rise=(-0.1, 0.5)), ["rise"]
                                         ), (dict(rise=(0.5, 1.5)), ["rise"]), (dict(rise=(0.1,)), ["rise"]),
                                         (
                                             dict(total_steps=None), ["total_steps", "constant"]
                                         ), (dict(total_steps=0), ["total_steps=0"])], ids=str)
def test_settings_that_cannot_work_are_refused(wrong, words):
    refused(lambda: PSDClipLoss(**dict(total_steps=10) | wrong), *words)


def test_a_batch_of_one_is_refused():
    refused(lambda: constant()(*units(1)), "batch of one", "drop_last=True")
    refused(lambda: constant(teacher="external")(*units(1), **dist(*units(1))), "batch of one")


def test_a_batch_of_one_is_refused_with_momentum():
    refused(lambda: MomentumClipLoss(total_steps=5)(*units(1), **dist(*units(1))), "batch of one")


def test_momentum_has_diagnostics():
    loss = MomentumClipLoss(total_steps=5)
    loss.set_step(4)
    loss(*units(), **dist(*units(seed=1)))
    assert set(loss.last_stats) == {"alpha", "distilled", "negative_similarity", "entropy", "label_weight"}


def test_a_teacher_that_is_missing_or_superfluous_is_refused():
    for loss in (constant(teacher="external"), MomentumClipLoss(total_steps=5)):
        refused(lambda: loss(*units()), "no dist_* features", "pass")
    refused(lambda: constant()(*units(), **dist(*units())), "teacher='self'", "dist_* features were given")


# ---- the older losses

@pytest.mark.parametrize("smoothing", [0.1, 0.5, 1.0])
def test_label_smoothing_is_the_two_loops(smoothing):
    q = [((1 - smoothing) * np.array(side) + smoothing / 7).tolist() for side in one_hot(7)]
    agree(graded(SmoothedClipLoss(smoothing=smoothing), *units(), logit_bias=torch.tensor(2.0)), slow(*units(), q))


@pytest.mark.parametrize("step,share", [(0, 0.0), (5, 0.2), (10, 0.4), (99, 0.4)])
def test_momentum_distillation_is_the_two_loops(step, share):
    student, teacher = units(), units(seed=1, scale=9.0)
    loss = MomentumClipLoss(total_steps=101)
    wrap_scheduler(loss)(step)
    assert math.isclose(loss.alpha, share)
    q = targets_of(grid(*teacher), range(7), "direct")
    mixed = [((1 - share) * np.array(hard) + share * np.array(soft)).tolist() for hard, soft in zip(one_hot(7), q)]
    agree(graded(loss, *student, **dist(*teacher)), slow(*student, mixed))


# ---- half precision

@pytest.mark.parametrize("kind", [
    dict(), dict(partition="low_likelihood", target="direct", ratio=0.5), dict(teacher="external", target="direct"),
    "smoothed", "momentum"
], ids=str)
@pytest.mark.parametrize("scale", [14.0, 100.0])
def test_bf16_is_finite_and_near(kind, scale):
    student, teacher = units(64, 32, scale=scale), units(64, 32, seed=1, scale=scale)
    older = dict(smoothed=SmoothedClipLoss, momentum=lambda: MomentumClipLoss(total_steps=9))
    loss = older[kind]() if isinstance(kind, str) else constant(**kind)
    if kind == "momentum": loss.set_step(8)
    more = dist(*teacher) if getattr(loss, "teacher", "self") == "external" else {}
    exact = graded(loss, *student, **more)
    half = lambda x: {k: v.bfloat16() if v.ndim else v for k, v in x.items()}
    with torch.autocast("cpu", torch.bfloat16): auto = graded(loss, *student, **more)
    pure = graded(loss, *[x.bfloat16() for x in student[:2]], student[2], **half(more))
    for value, gradients in (auto, pure):
        assert value.dtype == torch.float32 and value.isfinite() and all(g.isfinite().all() for g in gradients)
        assert abs(value - exact[0]) < 0.02 * exact[0]
        assert (gradients[0].float() - exact[1][0]).norm() < 0.1 * exact[1][0].norm()


# ---- detecting a collapse

def test_the_diagnostics_of_a_healthy_batch():
    v, t, s = units(32, 64, scale=20.0)
    loss = constant(0.25, partition="low_likelihood")
    assert loss.last_stats == {}
    loss(v.requires_grad_(), t, s)
    stats = loss.last_stats
    assert set(stats) == {"alpha", "distilled", "negative_similarity", "entropy", "label_weight"}
    assert all(isinstance(x, torch.Tensor) and x.ndim == 0 and not x.requires_grad for x in stats.values())
    Z = grid(v.detach(), t, s)
    rows = rows_of(Z, "low_likelihood", 8)
    q = [soft_target(Z, i, 0, "swapped", 1) for i in rows]
    expected = dict(alpha=0.25, distilled=0.25, negative_similarity=np.mean(
        [Z[i][j] / 20 for i in range(32) for j in range(32) if i != j]
    ), entropy=np.mean([-sum(x * math.log(x) for x in one) for one in q]) / math.log(32),
                    label_weight=np.mean([one[i] for i, one in zip(rows, q)]))
    for name, value in expected.items(): assert math.isclose(stats[name], value, rel_tol=1e-4, abs_tol=1e-6), name
    same = F.normalize(torch.ones(32, 64) + 0.01 * v.detach(), dim=1)
    loss(same, same, s)
    assert loss.last_stats["negative_similarity"] > 0.99
    assert loss.last_stats["entropy"] > 0.99
    assert loss.last_stats["label_weight"] < 0.05
    assert stats["negative_similarity"] < 0.1 and stats["entropy"] < 0.9


def test_nothing_distilled_gives_zeros():
    loss = PSDClipLoss(total_steps=10)
    loss(*units())
    assert loss.last_stats["alpha"] == loss.last_stats["distilled"] == loss.last_stats["entropy"] == 0


def test_a_bias_is_no_similarity():
    plain, biased = constant(), constant()
    plain(*units())
    biased(*units(), logit_bias=torch.tensor(-10.0))
    torch.testing.assert_close(biased.last_stats, plain.last_stats)


# ---- two processes

GATHERING = [(False, False), (False, True), (True, True)]  # local_loss, gather_with_grad
SPREAD = dict(open_clip=None, random=dict(), mismatch=dict(
    partition="mismatch", target="direct", ratio=0.5, max_fdr=0.7
), low_likelihood=dict(
    partition="low_likelihood"
), low_similarity=dict(partition="low_similarity", target="mixed"), external=dict(
    teacher="external", target="direct", partition="low_likelihood"
),
              external_random=dict(
                  teacher="external", ratio=0.5
              ), targets=dict(partition="low_likelihood"), smoothed="smoothed", momentum="momentum")
PAIRS = 12


def spread(name, **where):
    "A loss, and what else it gets of the whole batch."
    kind = SPREAD[name]
    matrix = torch.eye(PAIRS) + (torch.rand(PAIRS, PAIRS, generator=torch.Generator().manual_seed(5)) < 0.2)
    if kind is None: loss = ClipLoss(**where)
    elif kind == "smoothed": loss = SmoothedClipLoss(**where)
    elif kind == "momentum": loss = MomentumClipLoss(total_steps=9, **where)
    else: loss = constant(0.45, seed=2, **kind, **where)
    if hasattr(loss, "set_step"): loss.set_step(4)
    return loss, "external" in name or name == "momentum", dict(targets=matrix) if name == "targets" else {}


def part_of(rank, name, local, gather):
    "Value and gradients of one of two processes."
    here = slice(rank * PAIRS // 2, (rank + 1) * PAIRS // 2)
    (v, t, s), (a, b, c) = units(PAIRS, 6), units(PAIRS, 6, seed=1)
    loss, distilled, more = spread(name, local_loss=local, gather_with_grad=gather, rank=rank, world_size=2)
    return graded(loss, v[here], t[here], s, **more, **dist(a[here], b[here], c) if distilled else {})


def process(rank, folder):
    "One of two processes: it computes everything that is to be compared."
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save({(name, way): part_of(rank, name, *way) for name in SPREAD for way in GATHERING}, f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "What two processes computed."
    folder, before = tmp_path_factory.mktemp("two"), dict(os.environ)
    os.environ |= dict(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    how = "spawn" if torch.cuda.is_available() else "fork"  # a fork is quicker, but must not inherit a GPU
    team, end = multiprocessing.start_processes(
        process, (str(folder),), nprocs=2, join=False, start_method=how
    ), time.monotonic() + 120
    try:
        while not team.join(timeout=5): assert time.monotonic() < end, "two processes did not come to an end"
    finally:
        os.environ.clear()
        os.environ.update(before)
        for one in team.processes: one.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def together(two, name, way):
    "The mean value of the processes, and the gradients of the whole batch; the scale's as their mean, as in DDP."
    values, gradients = zip(*(part[name, way] for part in two))
    return sum(values) / 2, [torch.cat(x) for x in list(zip(*gradients))[:2]] + [sum(g[2] for g in gradients) / 2]


def alone(name):
    "The same in one process."
    loss, distilled, more = spread(name)
    return graded(loss, *units(PAIRS, 6), **more, **dist(*units(PAIRS, 6, seed=1)) if distilled else {})


@pytest.mark.parametrize("way", GATHERING, ids=lambda w: f"local_loss={w[0]}-gather_with_grad={w[1]}")
@pytest.mark.parametrize("name", SPREAD)
def test_two_processes_are_one(two, name, way):
    "The gradients of the embeddings are those of one process, times what open_clip's own loss has in this setting."
    times = 2 if way[1] else 1
    value, gradients = alone(name)
    agree(together(two, name, way), (value, [times * gradients[0], times * gradients[1], gradients[2]]))
    if not way[0]: assert two[0][name, way][0] == two[1][name, way][0]


# ---- in open_clip's own training loop

@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    return CLIP(
        8, dict(image_size=8, patch_size=4, width=16, head_width=8, layers=1),
        dict(context_length=5, vocab_size=20, width=16, heads=2, layers=1), output_dict=True
    )


class Log:
    "Takes what open_clip would write for TensorBoard."
    def __init__(self): self.rows = {}
    def add_scalar(self, name, value, step): self.rows.setdefault(step, {})[name] = value


def loader(accumulation=1, n=24, batch=6):
    g = torch.Generator().manual_seed(0)
    data = DataLoader(
        TensorDataset(torch.randn(n, 3, 8, 8, generator=g), torch.randint(20, (n, 5), generator=g)), batch
    )
    data.num_batches, data.num_samples = len(data), n
    off = dict(distill=False, skip_scheduler=False, horovod=False, wandb=False)
    args = dict(device="cpu", precision="fp32", accum_freq=accumulation, grad_clip_norm=None, log_every_n_steps=1)
    args |= dict(batch_size=batch, world_size=1, rank=0, local_rank=0)
    return data, types.SimpleNamespace(**args, **off)


def train(tiny, loss, accumulation=1, epochs=2, **changed):
    "A tiny model trained by open_clip; its weights, and what was logged."
    model = deepcopy(tiny)
    (data, args) = loader(accumulation)
    log = Log()
    vars(args).update(changed)
    average = ModelEmaV3(model, decay=0.9)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    both = wrap_scheduler(loss, lambda step: average.update(model))
    for epoch in range(epochs):
        train_one_epoch(
            model, {"train": DataInfo(data)}, loss, epoch, optimizer, None, both,
            average.module if args.distill else None, args, log
        )
    return model.state_dict(), log.rows


def by_hand(tiny, loss, accumulation=1, epochs=2):
    "The same, with the whole batch of a step in one piece."
    model, (data, _) = deepcopy(tiny), loader()
    optimizer, batches = torch.optim.AdamW(model.parameters(), 1e-2), list(data)
    for step, start in enumerate([b for _ in range(epochs) for b in range(0, len(batches), accumulation)]):
        loss.set_step(step)
        out = [model(*b) for b in batches[start : start + accumulation]]
        optimizer.zero_grad()
        loss(
            torch.cat([o["image_features"] for o in out]), torch.cat([o["text_features"] for o in out]),
            sum(o["logit_scale"] for o in out) / len(out)
        ).backward()
        if accumulation > 1: model.logit_scale.grad *= accumulation  # open_clip sums it over the passes
        optimizer.step()
        with torch.no_grad(): model.logit_scale.clamp_(0, math.log(100))
    return model.state_dict()


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "kind", [dict(alpha_start=0.2), dict(partition="low_likelihood", target="direct", ratio=0.5)],
    ids=["random", "low_likelihood"]
)
def test_open_clips_own_loop(tiny, kind, accumulation):
    "As by hand: with accumulation all passes of a step see the same rows, or their gradients would not add up."
    steps = 8 // accumulation
    make = lambda: PSDClipLoss(total_steps=steps, **kind)
    loss = make()
    weights, log = train(tiny, loss, accumulation)
    assert sorted(log) == list(range(steps))
    assert loss.step == steps - 1
    assert math.isclose(loss.alpha, 0.7)
    assert loss.last_stats["alpha"] == torch.tensor(loss.alpha)
    for row in log.values():
        assert math.isclose(row["train/contrastive_loss"] + row["train/psd_loss"], row["train/loss"], rel_tol=1e-5)
        assert math.isfinite(row["train/loss"])
    assert log[steps - 1]["train/psd_loss"] > 0 and (log[0]["train/psd_loss"] > 0) == bool(loss.alpha_start)
    torch.testing.assert_close(weights, by_hand(tiny, make(), accumulation), rtol=1e-3, atol=2e-4)
    assert not torch.equal(weights["logit_scale"], tiny.logit_scale)


@pytest.mark.parametrize(
    "make",
    [lambda: PSDClipLoss(total_steps=8, teacher="external", target="direct"), lambda: MomentumClipLoss(total_steps=8)],
    ids=["psd", "momentum"]
)
def test_an_ema_teacher_works_in_open_clips_loop(tiny, make):
    loss = make()
    weights, log = train(tiny, loss, distill=True)
    assert len(log) == 8
    assert loss.step == 7
    assert loss.alpha > 0.3
    assert all(math.isfinite(row["train/loss"]) for row in log.values())
    assert not torch.equal(
        weights["logit_scale"], train(tiny, PSDClipLoss(total_steps=8, alpha_end=0.0))[0]["logit_scale"]
    )


def test_open_clips_loop_in_half_precision(tiny):
    _, log = train(tiny, PSDClipLoss(total_steps=8, **{**PSD_MISMATCH, "rise": (0.0, 0.2)}), precision="amp_bf16")
    assert len(log) == 8 and all(math.isfinite(row["train/loss"]) for row in log.values())


def test_open_clip_passes_no_teacher_when_it_accumulates(tiny):
    refused(lambda: train(tiny, PSDClipLoss(total_steps=8, teacher="external"), 2, distill=True), "no dist_* features")


def mismatched_by_hand(Z, precision):
    "Rows that are flagged, one comparison at a time; None where two shares are too near to call."
    n = len(Z)
    against = lambda i, j: math.log(
        sum(math.exp(Z[i][k]) for k in range(n) if k not in (i, j))
    ) + math.log(sum(math.exp(Z[k][j]) for k in range(n) if k not in (i, j)))
    fits = lambda i, j: 2 * Z[i][j] - against(i, j)
    negative = [fits(i, (i + k) % n) for i in range(n) for k in range(1, min(16, n - 1) + 1)]
    if min(abs(fits(i, i) - s) for i in range(n) for s in negative) < 1e-4: return None
    u = [sum(s > fits(i, i) for s in negative) / len(negative) for i in range(n)]
    wrong, best = min(sum(x > 0.7 for x in u) / (1 - 0.7), n), 0.7
    for x in u:
        if abs(x - 0.7) < 1e-4 or abs(wrong * (1 - x) - precision * sum(y > x for y in u)) < 1e-4: return None
        if x < best and wrong * (1 - x) >= precision * sum(y > x for y in u): best = x
    return [i for i in range(n) if u[i] > best]


@quick
@given(st.integers(0, 10**6), st.integers(4, 40), st.floats(0.05, 0.95), st.integers(0, 20))
def test_mismatched_rows_are_found_one_by_one(seed, n, precision, right):
    v, t, scale = units(n, seed=seed)
    v = torch.cat([t[:right], v[right:]])  # some pairs fit well
    Z = grid(v, t, scale)
    rows = mismatched_by_hand(Z, precision)
    if rows is None or len(rows) > n - 1: return
    got = constant(0.999, partition="mismatch", max_fdr=1 - precision)(v, t, scale, output_dict=True)["psd_loss"]
    Q = targets_of(Z, rows, "swapped", 1.0)
    logs = [(np.array(side) - np.log(np.exp(side).sum(1, keepdims=True))).tolist() for side in (Z, np.transpose(Z))]
    expected = -sum(q * logs[side][i][j] for side in (0, 1) for i in rows for j, q in enumerate(Q[side][i])) / (2 * n)
    assert math.isclose(float(got), expected, rel_tol=1e-3, abs_tol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 0.6), st.floats(0.3, 0.9))
def test_flagged_pairs_keep_the_false_discovery_rate(seed, part, precision):
    "Where wrong ones are flat and right ones near 0, whatever their shares."
    g = torch.Generator().manual_seed(seed)
    wrong = torch.rand(20_000, generator=g) < part
    u = torch.where(wrong, torch.rand(20_000, generator=g), 0.1 * torch.randn(20_000, generator=g).abs())
    flags = flagged(u, 1 - precision)
    assert (wrong[flags].float().mean() > precision - 0.06) and flags[u > 0.7].all()
    assert flagged(u, 1 - precision / 2).sum() >= flags.sum()


def test_ties_at_the_top_are_not_flagged():
    u = torch.cat([torch.zeros(70), torch.linspace(0.01, 1, 30)])
    assert flagged(u).tolist() == [False] * 70 + [True] * 30
    assert not flagged(torch.zeros(10)).any()


@pytest.mark.parametrize("scale", (5, 20, 100))
@pytest.mark.parametrize("part", (0.0, 0.1, 0.4))
def test_wrong_pairs_are_anywhere_and_right_ones_near_0(scale, part):
    "Also where every right pair stands out, so that its row and column look different from those of a wrong one."
    g = torch.Generator().manual_seed(int(scale + 10 * part))
    t, wrong = F.normalize(torch.randn(1024, 64, generator=g), dim=1), torch.rand(1024, generator=g) < part
    v = torch.where(wrong[:, None], F.normalize(torch.randn(1024, 64, generator=g), dim=1), t)
    Z, labels = scale * v @ t.T, torch.arange(1024)
    u = mismatch_pvalue(*log_odds(Z, labels, logsumexp_negatives(Z.T, labels)))
    assert u[~wrong].max() < 0.05 and u.isfinite().all()
    flags = flagged(u)
    assert not flags[~wrong].any() if part == 0 else wrong[flags].float().mean() > 0.45
    if part:
        assert kstest(u[wrong].numpy(), "uniform").statistic < 0.15 and abs((u > 0.7).float().mean() / 0.3 - part) < 0.1


def test_a_p_value_is_a_share_of_negatives():
    assert mismatch_pvalue(
        torch.tensor([-1.0, 0.0, 1.0, 2.0]), torch.tensor([0.0, 1.0])
    ).tolist() == [1.0, 0.5, 0.0, 0.0]


def test_of_two_pairs_none_is_mismatched():
    assert constant(0.9, partition="mismatch", target="direct", ratio=0.5)(*units(2), output_dict=True)["psd_loss"] == 0


def test_no_more_rows_are_distilled_than_may_be():
    loss = PSDClipLoss(total_steps=10, **PSD_MISMATCH)
    for step in range(10):
        loss.set_step(step)
        assert torch.isfinite(loss(*units(64, seed=step)))
        assert loss.last_stats["distilled"] <= loss.last_stats["alpha"] + 1 / 128


def test_the_false_discovery_rate_is_a_share():
    refused(lambda: PSDClipLoss(total_steps=3, partition="mismatch", max_fdr=0.0), "low_likelihood")


def test_where_all_captions_fit_nothing_is_mismatched():
    v = F.normalize(torch.randn(32, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    assert constant(0.9, partition="mismatch")(v, v, torch.tensor(20.0), output_dict=True)["psd_loss"] == 0
