"""Contracts of motion contrast: the loss, the queue, windows and their motion, exact resuming, and encoders that are
saved as any other."""
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import train_until_killed
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import VideoMAEModel

from primenb.core import PrimenbError
from primenb.learn.engine import Trainer
from primenb.learn.runs import load
from primenb.mgm.contrast import (
    ClipPairs, MotionContrastRun, MotionPathway, MotionContrastObjective, Pathways, pathways, train_motion_contrast)
from primenb.learn.contrast import Queue, info_nce
from primenb.mgm.model import features, pixel_values, videomae
from primenb.mgm.train import CELLS_PER_TOKEN, Footage, MaskedRun, Segment, train_masked, untrained_model
from primenb.media.video import encode

pytestmark = pytest.mark.usefixtures("one_thread")
tiny = dict(
    image_size=16, num_frames=4, patch_size=8, tubelet_size=2, width=32, depth=1, heads=2, decoder_width=32,
    decoder_depth=1)
CANONICAL = dict(bf="0", refs="1", sc_threshold="0", threads="1")


@pytest.fixture(scope="module")
def movies(tmp_path_factory):
    """Twelve films of a textured square that moves right or left by two pixels a frame before a still, textured
    background."""
    folder, rng = tmp_path_factory.mktemp("movies"), np.random.default_rng(0)
    for n in range(12):
        ground, square = (
            rng.integers(0, 256, (s // 4, s // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1) for s in (48, 16))
        frames = []
        for t in range(12):
            x = 4 + 2 * t if n % 2 else 28 - 2 * t
            frames.append(ground.copy())
            frames[-1][16:32, x : x + 16] = square
        encode(folder / f"{n:02d}.mp4", frames, 12, options=CANONICAL)
    return folder


@pytest.fixture
def small(movies, tmp_path):
    return dict(
        **tiny, data=[str(movies)], epochs=2, batch_size=4, cache_size=0, queue=8, embed_dim=16, motion_width=16,
        device="cpu", sidecars=str(tmp_path / "motion"))


def unit(*shape, seed=0): return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# --- the loss and the queue

@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.floats(0.05, 2), st.integers(0, 1000))
def test_the_loss_is_the_formula(n, K, temperature, seed):
    q, k = unit(n, 6, seed=seed), unit(n, 6, seed=seed + 1)
    others = unit(K, 6, seed=seed + 2)
    own = torch.rand(n, K, generator=torch.Generator().manual_seed(seed)) < 0.3
    losses, hits = [], []
    for i in range(n):
        right = math.exp(float(q[i] @ k[i]) / temperature)
        wrong = [math.exp(float(q[i] @ others[j]) / temperature) for j in range(K) if not own[i, j]]
        losses.append(-math.log(right / (right + sum(wrong))))
        hits.append(right > max(wrong, default=0))
    loss, hit = info_nce(q, k, others, own, temperature)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-3, abs=1e-5)
    assert hit.item() == pytest.approx(np.mean(hits))


def test_the_own_clip_is_never_a_wrong_answer():
    q, k = unit(3, 8), unit(3, 8, seed=1)
    others = unit(20, 8, seed=2)
    own = torch.zeros(3, 20, dtype=torch.bool)
    own[:, 4:9] = True
    changed = others.clone()
    changed[4:9] = q[:1]
    assert torch.equal(info_nce(q, k, others, own)[0], info_nce(q, k, changed, own)[0])
    assert info_nce(q, k, others, own | True)[0] == 0, "with no wrong answers left there is nothing to learn"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 10), st.lists(st.integers(1, 4), min_size=1, max_size=8))
def test_a_queue_keeps_the_newest(most, sizes):
    queue, pushed = Queue(most), []
    for size in sizes:
        numbers = torch.arange(len(pushed), len(pushed) + size)
        queue.push(numbers, numbers[:, None].float() * 2)
        pushed += numbers.tolist()
        kept = queue.kept[0].tolist()
        assert len(kept) == min(len(pushed), max(most, size)) and kept[:size] == numbers.tolist()
        assert len(set(kept)) == len(kept)
        oldest = len(pushed) - len(kept) - max(sizes)
        assert min(kept) > oldest, "of the oldest batch that still has a place, any part may stay"
        assert torch.equal(queue.kept[1][:, 0], queue.kept[0] * 2.0)
        assert queue.own(torch.tensor([pushed[0], -1])).tolist() == [
            [n == pushed[0] for n in kept], [False] * len(kept)]


# --- pathways

def test_vectors_have_length_one_and_pathways_are_apart():
    net = Pathways(videomae(**tiny), embed_dim=16, motion_width=16)
    pixels, motion = torch.randint(256, (6, 4, 3, 16, 16), dtype=torch.uint8), torch.randn(6, 2, 4, 4, 3)
    v, m = net(pixel_values(net, pixels), motion)
    assert torch.allclose(v.norm(dim=1), torch.ones(6)) and torch.allclose(m.norm(dim=1), torch.ones(6))
    assert torch.equal(net(pixel_values(net, pixels), 2 * motion)[0], v)
    assert torch.equal(net(pixel_values(net, pixels.flip(0)), motion)[1], m)
    assert torch.equal(
        features(net, pixels), features(videomae(**tiny), pixels)), "the encoder is that of the model, untouched"


def test_the_motion_pathway_tells_directions_apart():
    torch.manual_seed(0)
    pathway = MotionPathway(16, 16).eval()
    right = torch.zeros(1, 2, 4, 4, 3)
    right[..., 0] = 1
    assert not torch.allclose(pathway(right), pathway(-right), atol=1e-3)
    assert torch.isfinite(pathway(torch.zeros(1, 2, 4, 4, 3))).all(), "a clip in which nothing moves"


def test_the_seed_decides_the_weights():
    runs = [MotionContrastRun(**tiny, seed=s) for s in (1, 1, 2)]
    a, b = (pathways(run).state_dict() for run in runs[:2])
    c = pathways(runs[2]).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["motion.projection.0.weight"], c["motion.projection.0.weight"])
    masked = untrained_model(MaskedRun(**tiny, seed=1)).videomae.state_dict()
    assert all(torch.equal(masked[k], a[f"videomae.{k}"]) for k in masked), "it begins where a run with masks begins"


# --- data

def test_windows_are_mirrored_together_and_motion_with_them(movies, tmp_path):
    footage = Footage([Segment(f.name, f) for f in sorted(movies.glob("*.mp4"))], 2, 2, tmp_path, cache_size=48)
    data = ClipPairs(footage, (2, 2, 2), image_size=16, min_crop=1.0, flip=0.5)
    to_right = {}
    for seed in range(12):
        np.random.seed(seed)
        batch = data.__getitems__(list(range(12)))
        assert batch["pixels"].shape == batch["other"].shape == (12, 4, 3, 16, 16)
        assert batch["motion"].shape == (12, 2, 2 * CELLS_PER_TOKEN, 2 * CELLS_PER_TOKEN, 3)
        for i in range(12):
            d, energy = batch["motion"][i, ..., 0], batch["motion"][i, ..., 2]
            to_right.setdefault(i, set()).add(bool((d * energy).sum() > 0))
    assert all(ways == {True, False} for ways in to_right.values()), "with mirrors, each film goes both ways"
    plain = ClipPairs(footage, (2, 2, 2), image_size=16)
    for seed in range(3):
        np.random.seed(seed)
        m = plain.__getitems__(list(range(12)))["motion"]
        goes_right = ((m[..., 0] * m[..., 2]).sum((1, 2, 3)) > 0).tolist()
        assert goes_right == [bool(n % 2) for n in range(12)], "and without, its own"


def test_both_windows_show_the_same_mirror(movies, tmp_path):
    "The background stands still, so whole windows of one film differ only by the square and by the mirror."
    footage = Footage([Segment(f.name, f) for f in sorted(movies.glob("*.mp4"))], 2, 2, tmp_path, cache_size=48)
    data, seen = ClipPairs(footage, (2, 2, 2), image_size=48, flip=0.5), set()
    for seed in range(6):
        np.random.seed(seed)
        batch = data.__getitems__(list(range(12)))
        a, b = batch["pixels"][:, 0, :, :12].float(), batch["other"][:, 0, :, :12].float()  # above the square
        apart, mirrored = (a - b).abs().mean((1, 2, 3)), (a - b.flip(-1)).abs().mean((1, 2, 3))
        assert (apart < mirrored / 3).all()
        still = torch.stack([footage.frames(i, 0)[0, :12].permute(2, 0, 1) for i in range(12)]).float()
        seen |= set(((a - still).abs().mean((1, 2, 3)) < (a - still.flip(-1)).abs().mean((1, 2, 3))).tolist())
    assert seen == {True, False}


# --- training

def test_a_run_trains_and_is_saved_as_any_other(small, tmp_path):
    run = MotionContrastRun(**small)
    def evaluate(trainer):
        model = trainer.accelerator.unwrap_model(trainer.model)
        return dict(mean=float(features(model, torch.zeros(1, 4, 3, 16, 16, dtype=torch.uint8)).mean()))
    result = train_motion_contrast(run, tmp_path / "run", evaluate)
    assert set(result) == {"run", "seconds", "curve", "format", "last"}
    assert set(result["last"]) == {"num_clips", "statuses", "damaged", "encoder_tokens"}
    assert {"clip_loss", "motion_loss", "clip_hits", "motion_hits", "encoder_tokens", "mean"} <= set(result["curve"])
    assert result["last"]["encoder_tokens"] == 2 * 2 * 12 * 8 and train_motion_contrast(run, tmp_path / "run") == result
    model, other = load(tmp_path / "run"), VideoMAEModel.from_pretrained(tmp_path / "run" / "last")
    clips = torch.randint(256, (2, 4, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(other.eval()(pixel_values(model, clips)).last_hidden_state, features(model, clips))
    assert not torch.equal(features(model, clips), features(untrained_model(run), clips))
    masked = MaskedRun(
        **{k: v for k, v in small.items() if k not in ("queue", "embed_dim", "motion_width")}, mask="tube", ratio=0.5,
        init_from=str(tmp_path / "run" / "last"))
    assert train_masked(masked, tmp_path / "after")["last"]["num_clips"] == 12, "masks can go on where contrast ended"


def test_the_teacher_and_the_queue_learn_nothing(small, tmp_path):
    run = MotionContrastRun(**small)
    net = pathways(run)
    trainer = Trainer(net, None, torch.optim.SGD(net.parameters(), 0.1), tmp_path / "t", ema=0.9, device="cpu")
    pixels, other = (torch.randint(256, (4, 4, 3, 16, 16), dtype=torch.uint8) for _ in range(2))
    batch = dict(pixels=pixels, other=other, motion=torch.randn(4, 2, 4, 4, 3), key=torch.arange(4))
    objective = MotionContrastObjective(8, 0.1, 2 / 3)
    numbers = objective(trainer, batch)
    (numbers["clip_loss"] + numbers["motion_loss"]).backward()
    assert all(p.grad is None for p in trainer.teacher.parameters())
    assert not any(v.requires_grad for v in objective.queue.kept)
    assert all(p.grad is not None for p in net.parameters()), "and every weight of the model learns"
    assert objective.queue.kept[0].tolist() == [0, 1, 2, 3]
    assert MotionContrastObjective(8, 0.1, 0.0)(trainer, batch)["motion_loss"] == 0, "plain contrast"


def test_an_interrupted_run_goes_on(small, tmp_path):
    "Killed in the middle of an epoch, queue and all."
    run = MotionContrastRun(**{**small, "epochs": 3})
    train_motion_contrast(run, tmp_path / "whole")
    train_until_killed(run, tmp_path / "killed", names=("train_motion_contrast", "MotionContrastObjective"))
    train_motion_contrast(run, tmp_path / "killed")
    a, b = (torch.load(tmp_path / name / "checkpoint.pt")["parts"] for name in ("whole", "killed"))
    for part in ("model", "teacher"): assert all(torch.equal(a[part][k], b[part][k]) for k in a[part])
    assert all(torch.equal(x, y) for x, y in zip(a["objective"]["kept"], b["objective"]["kept"]))


def test_other_settings_are_refused(small, tmp_path):
    run = MotionContrastRun(**small)
    train_motion_contrast(run, tmp_path / "run")
    with pytest.raises(PrimenbError, match="other settings: temperature was 0.1 and is 0.5"):
        train_motion_contrast(replace(run, temperature=0.5), tmp_path / "run")
    for change in (dict(mask="mgm"), dict(ratio=0.75)):
        with pytest.raises(TypeError): replace(run, **change)
    with pytest.raises(PrimenbError, match="motion_share 1.5: it is no share"): replace(run, motion_share=1.5)


def test_a_budget_of_tokens_gives_the_epochs(small, tmp_path):
    run = MotionContrastRun(**{**small, "token_budget": 12 * 8 * 2 * 3 / 1e6})
    result = train_motion_contrast(run, tmp_path / "run")
    assert len(result["curve"]["epoch"]) == 3 and result["last"]["encoder_tokens"] == 12 * 8 * 2 * 3


def test_damaged_films_are_left_out_and_named(small, movies, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for f in sorted(movies.glob("*.mp4"))[:6]: (folder / f.name).write_bytes(f.read_bytes())
    (folder / "torn.mp4").write_bytes(b"no film")
    result = train_motion_contrast(MotionContrastRun(**{**small, "data": [str(folder)], "epochs": 1}), tmp_path / "run")
    assert result["last"]["num_clips"] == 6
    assert [Path(name).name for name, _ in result["last"]["damaged"]] == ["torn.mp4"]
