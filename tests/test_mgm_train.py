"""Contracts of pre-training: what is read and what is left out, the same window for pixels and motion, equal counts,
and runs that can be stopped and compared."""
import os, shutil, subprocess, sys
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from conftest import project
from primenb.core import PrimenbError
from primenb.data.corpus import films as corpus_films
from primenb.learn.engine import Trainer, warmup_cosine
from primenb.learn.runs import expand_grid, load
from primenb.mgm.masks import MASKS, Masks, guide
from primenb.mgm.model import pixel_values, to_patches
from primenb.mgm.train import (
    CELLS_PER_TOKEN, Footage, MaskedClips, MaskedRun, Segment, collate, crop_resize, crop_resize_cells, draw_windows,
    epochs_for, find_segments, motion_loss, pixel_loss, sidecar, to_cells, tokens_per_clip, train_masked,
    untrained_model)
from primenb.media.motion import read_motion, to_tokens
from primenb.data.records import Clip
from primenb.media.video import encode, read_frames

pytestmark = pytest.mark.usefixtures("one_thread")
small = dict(
    epochs=2, batch_size=4, width=32, depth=1, heads=2, decoder_width=32, decoder_depth=1, ratio=0.5, device="cpu",
    cache_size=32)


def sprite(frames=16, size=(64, 64), start=(8, 8), speed=(3, 1), seed=0):
    "(T,H,W,3) a textured square of 20 pixels that moves over a textured ground."
    rng, (width, height) = np.random.default_rng(seed), size
    ground = np.kron(rng.integers(90, 130, (height // 4, width // 4, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    thing = np.kron(rng.integers(0, 256, (5, 5, 3)), np.ones((4, 4, 1))).astype(np.uint8)
    film = np.repeat(ground[None], frames, 0)
    for t in range(frames):
        x, y = start[0] + speed[0] * t, start[1] + speed[1] * t
        film[t, y : y + 20, x : x + 20] = thing[: max(0, height - y), : max(0, width - x)]
    return film


PLAIN = dict(bf="0", refs="1", sc_threshold="0")

@pytest.fixture(scope="module")
def films(tmp_path_factory):
    "Twelve small films of moving squares."
    folder = tmp_path_factory.mktemp("films")
    for n in range(12):
        encode(
            folder / f"{n:02d}.mp4", sprite(start=(2 + n, 4 + n % 5), speed=(2 + n % 2, n % 3), seed=n), 12, crf=10,
            options=PLAIN)
    return folder


@pytest.fixture(scope="module")
def footage(films, tmp_path_factory): return Footage(
    find_segments([str(films)]), 4, 2, tmp_path_factory.mktemp("sidecars"))


def batch_of(footage, numbers, kind="mgm", seed=0, **how):
    np.random.seed(seed)
    return collate(MaskedClips(footage, Masks(kind, (4, 4, 4), 0.5), **how).__getitems__(numbers))


def test_what_cannot_be_used_is_named(films, tmp_path):
    records = find_segments([str(films)])
    shutil.copy(records[0].path, tmp_path / "cut.mp4")
    os.truncate(tmp_path / "cut.mp4", 1500)
    (tmp_path / "text.mp4").write_text("no film")
    bad = [
        Segment("cut", tmp_path / "cut.mp4"), Segment("text", tmp_path / "text.mp4"),
        Segment("gone", tmp_path / "gone.mp4"), Clip("bare", None, {}), records[1]._replace(key="short", stop=7)]
    footage = Footage([*records, *bad], 4, 2, tmp_path)
    assert len(footage) == 12 and len(footage.damages) == 5
    for word, damage in zip(("cut", "text", "gone", "bare", "short fills 3 slots"), footage.damages):
        assert word in damage.name + damage.cause
    with pytest.raises(PrimenbError, match="cut.mp4"): Footage([*records, *bad], 4, 2, tmp_path, damaged="raise")
    with pytest.raises(PrimenbError, match="not one clip can be used; the first is .*cut.mp4"):
        Footage(bad, 4, 2, tmp_path)
    with pytest.raises(PrimenbError, match="no video files"): find_segments([str(tmp_path / "nowhere")])


def test_one_corrupt_file_in_many_is_found_wherever_it_is_damaged(films, tmp_path):
    content, found = (films / "03.mp4").read_bytes(), 0
    for n, at in enumerate(np.linspace(100, len(content) - 200, 8).astype(int)):
        path = tmp_path / f"{n}.mp4"
        path.write_bytes(content[:at] + bytes(60) + content[at + 60 :])
        try:
            read_frames(path, threads=1)
            whole = True
        except PrimenbError: whole = False
        try: footage = Footage([*find_segments([str(films)])[:2], Segment("x", path)], 4, 2, tmp_path)
        except PrimenbError: pytest.fail("one bad file stopped all")
        assert len(footage) == 2 + whole and len(footage.damages) == 1 - whole
        found += not whole
    assert found, "none of the files was damaged"


def test_statuses_and_fallbacks_are_counted(films, tmp_path):
    rng = np.random.default_rng(0)
    still = np.repeat(np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)[None], 16, 0)
    encode(tmp_path / "still.mp4", still, 12, options=PLAIN)
    encode(tmp_path / "intra.mp4", sprite(), 12, options=dict(g="1"))
    footage = Footage(
        [Segment(p.stem, p) for p in (tmp_path / "still.mp4", tmp_path / "intra.mp4", films / "00.mp4")], 4, 2,
        tmp_path)
    assert footage.statuses == dict(still=1, none=1, measured=1) and not footage.damages
    batch = batch_of(footage, [0, 1, 2])
    assert batch["fallback"].tolist() == [True, True, False]
    assert batch["hidden"].sum(1).tolist() == [32, 32, 32]
    with_flow = Footage([Segment("intra", tmp_path / "intra.mp4")], 4, 2, tmp_path, source="flow")
    assert with_flow.statuses == dict(measured=1), "optical flow needs no vectors"
    again = Footage([Segment("intra", tmp_path / "intra.mp4")], 4, 2, tmp_path, source="canonical")
    assert again.statuses == dict(measured=1), "nor does a canonical copy, which has its own"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 1), st.floats(0, 1))
def test_windows_lie_in_the_image(seed, min_crop, flip):
    rng = np.random.default_rng(seed)
    sizes, spare = rng.integers(20, 90, (30, 2)), rng.integers(0, 5, 30)
    windows = draw_windows(sizes, spare, rng, min_crop, flip)
    (left, top), (right, bottom) = windows.crop.T[:2], windows.crop.T[2:]
    assert (left >= 0).all() and (top >= 0).all() and (right <= sizes[:, 1]).all() and (bottom <= sizes[:, 0]).all()
    assert ((right - left) == (bottom - top)).all()
    assert ((right - left) >= np.floor(min_crop * sizes.min(1))).all()
    assert ((right - left) <= sizes.min(1)).all()
    assert (windows.slot >= 0).all() and (windows.slot <= spare).all()
    assert flip > 0 or not windows.flip.any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_motion_goes_through_the_window_of_the_pixels(films, seed):
    "Displacements are those of `to_tokens` under the same slot, crop, resize and mirror."
    rng = np.random.default_rng(seed)
    path = films / f"{rng.integers(12):02d}.mp4"
    motion = read_motion(path, remove_camera=True)
    found = guide(motion, 8, 2, frames=read_frames(path, threads=1))
    cells = np.concatenate([found.energy[0][..., None], found.flow[0] * 8 / 64], -1)
    windows = draw_windows(np.array([[64, 64]]), np.array([4]), rng, 0.4, 0.5)
    slot, crop = windows.slot[0], windows.crop[0]
    flip = windows.flip[0]
    flow, energy = crop_resize_cells(cells[None, slot : slot + 4], (1, 1), windows.crop / 64, windows.flip, (4, 4, 4))
    whole = type(motion)(
        **{**vars(motion), "field": motion.field + motion.camera[:, None, None]})[2 * slot : 2 * slot + 8]
    expected = to_tokens(whole, 8, 2, size=(32, 32), crop=tuple(crop), flip=bool(flip), vectors=True) * 2 / 8
    assert np.allclose(flow[0], expected, atol=1e-3)
    speeds = type(motion)(**{**vars(motion), "field": np.stack([found.energy[0], np.zeros_like(found.energy[0])], -1)})
    expected = to_tokens(
        speeds[slot : slot + 4], 8, 1, size=(32, 32), crop=tuple(crop), flip=bool(flip)) * (crop[2] - crop[0]) / 32
    assert np.allclose(energy[0], expected, atol=1e-3)


def test_a_mirrored_window_mirrors_motion(footage):
    cells = np.stack([footage.cells(i, 2) for i in range(12)])
    window, plain = np.tile([0.1, 0, 0.9, 0.8], (12, 1)), np.zeros(12, bool)
    one, other = (crop_resize_cells(cells, (1, 1), window, flip, (4, 4, 4)) for flip in (plain, ~plain))
    assert np.allclose(one[1], other[1][..., ::-1], atol=1e-6)
    assert np.allclose(one[0][..., 0], -other[0][..., ::-1, 0], atol=1e-5)
    assert np.allclose(one[0][..., 1], other[0][..., ::-1, 1], atol=1e-5)
    frames = footage.frames(0, 2)
    assert torch.equal(
        crop_resize(frames, (6, 0, 58, 52), True, 32), crop_resize(frames, (6, 0, 58, 52), False, 32).flip(-1))


def test_masks_lie_on_what_moves(footage):
    "The square takes about a tenth of the picture; a mask over half of the tokens should hide nearly all of it."
    hidden = []
    for n in range(12):
        inside = np.zeros((16, 64, 64), np.float32)
        for t in range(16):
            x, y = 2 + n + (2 + n % 2) * t, 4 + n % 5 + (n % 3) * t
            inside[t, y : y + 20, x : x + 20] = 1
        np.random.seed(n)
        slot = draw_windows(
            np.array([[64, 64]]), np.array([4]),
            np.random.default_rng(np.random.randint(2**31, size=(2, 4))[0])).slot[0]
        mask = batch_of(footage, [n], seed=n)["hidden"].numpy().reshape(4, 4, 4)
        share = inside[2 * slot : 2 * slot + 8].reshape(4, 2, 4, 16, 4, 16).mean((1, 3, 5))
        hidden.append((share * mask).sum() / share.sum())
    assert np.mean(hidden) > 0.9


def test_mixed_sizes_in_one_batch(films, tmp_path):
    encode(tmp_path / "wide.mp4", sprite(size=(120, 72), start=(10, 20), speed=(5, 1)), 12, options=PLAIN)
    records = [*find_segments([str(films)])[:2], Segment("wide", tmp_path / "wide.mp4")]
    for cache_size in (0, 40):
        footage = Footage(records, 4, 2, tmp_path, cache_size=cache_size)
        both = batch_of(footage, [0, 2, 1, 2], min_crop=0.6, flip=0.5)
        assert both["pixels"].shape == (4, 8, 3, 32, 32) and both["hidden"].sum(1).tolist() == [32] * 4
        assert footage.middle().shape == (3, 8, 3, 32, 32)


def test_cached_images_are_the_decoded_images(films, footage, tmp_path):
    kept = Footage(find_segments([str(films)]), 4, 2, tmp_path, cache_size=64)
    one, other = (batch_of(f, list(range(12)), min_crop=0.5, flip=0.5) for f in (footage, kept))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_kind_sees_the_same_images(footage):
    batches = [batch_of(footage, [3, 1, 7], kind, min_crop=0.5) for kind in MASKS]
    assert all(torch.equal(b["pixels"], batches[0]["pixels"]) for b in batches)
    assert {tuple(b["hidden"].sum(1).tolist()) for b in batches} == {(32, 32, 32)}


def test_steps_from_frame_to_frame(films, tmp_path):
    footage = Footage(find_segments([str(films)])[:2], 2, 4, tmp_path)
    data = MaskedClips(footage, Masks("mgm", (2, 4, 4), 0.5), image_size=64, frame_stride=2, min_crop=1)
    np.random.seed(1)
    batch = data.__getitems__([0])
    frames = torch.from_numpy(read_frames(footage.segments[0].path)).permute(0, 3, 1, 2)
    assert any(torch.equal(batch["pixels"][0], frames[first : first + 8 : 2]) for first in range(0, 9, 4))


def test_single_samples_make_the_same_kind_of_batch(footage):
    data = MaskedClips(footage, Masks("tube", (4, 4, 4), 0.5))
    batch = collate([data[0], data[5]])
    assert batch["pixels"].shape == (2, 8, 3, 32, 32) and batch["key"].tolist() == [0, 5]


def test_unequal_counts_are_refused():
    with pytest.raises(PrimenbError, match="one clip hides 3 tokens and another 5"):
        collate([dict(hidden=torch.arange(8) < n) for n in (3, 5)])


def test_the_slots_must_fit(footage):
    with pytest.raises(PrimenbError, match="8 slots and the footage for 4"):
        MaskedClips(footage, Masks("tube", (8, 4, 4), 0.5))


def test_workers_change_nothing(footage):
    def seen(workers):
        batches, data = [], MaskedClips(footage, Masks("mgm", (4, 4, 4), 0.5), min_crop=0.5)
        model = torch.nn.Linear(1, 1)
        def note(trainer, batch):
            batches.append(batch)
            return dict(a_loss=model.weight.sum())
        Trainer(
            model, note, torch.optim.SGD(model.parameters(), 0.1), f"{footage.sidecars}/{workers}",
            device="cpu").fit(DataLoader(data, 4, shuffle=True, collate_fn=collate, num_workers=workers), 2)
        return batches
    for one, other in zip(seen(0), seen(2)): assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_sidecar_is_made_once(films, tmp_path):
    segment = find_segments([str(films)])[0]
    path = sidecar(segment, 2, tmp_path)
    before = path.stat().st_mtime_ns
    assert sidecar(segment, 2, tmp_path) == path and path.stat().st_mtime_ns == before
    others = [sidecar(segment, 4, tmp_path), sidecar(segment._replace(first=2), 2, tmp_path)]
    assert len({*others, sidecar(segment, 2, tmp_path, "flow"), path}) == 4


def test_pieces_of_shots_do_not_cross_cuts():
    film = next(iter(corpus_films("validation", check=False)))
    pieces = [p for p in find_segments(["films"], "validation", 12) if p.path == film.path]
    borders = list(zip(film.shots.start_frame, film.shots.end_frame))
    assert pieces and all(any(start < p.first and p.stop <= end for start, end in borders) for p in pieces)
    assert all(p.stop - p.first == 12 for p in pieces) and all(a.stop <= b.first for a, b in zip(pieces, pieces[1:]))


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 0.9), st.integers(2, 6), st.integers(2, 9))
def test_tokens_are_those_that_masks_leave(ratio, slots, side):
    grid = slots, side, side
    try: masks = Masks("tube", grid, ratio)
    except PrimenbError: return
    visible = (~masks(3, np.random.default_rng(0))).sum(1)
    assert (visible == tokens_per_clip(grid, ratio)).all()
    epochs = epochs_for(1e5, 100, tokens_per_clip(grid, ratio))
    spent = epochs * 100 * tokens_per_clip(grid, ratio)
    assert epochs == 1 or abs(spent - 1e5) <= 50 * tokens_per_clip(grid, ratio)


def decoder_output(motion, tubelet, patch):
    "(n,N,P) what a decoder must output so that each pixel of a cell shows its motion."
    side, (h, w) = patch // CELLS_PER_TOKEN, motion.shape[2:4]
    image = motion.permute(0, 1, 4, 2, 3).repeat_interleave(tubelet, 1)
    image = image.repeat_interleave(side, 3).repeat_interleave(side, 4)
    return to_patches(image, (motion.shape[1], h // CELLS_PER_TOKEN, w // CELLS_PER_TOKEN))


def test_decoded_motion_is_compared_where_it_is():
    motion = torch.randn(3, 4, 4 * CELLS_PER_TOKEN, 4 * CELLS_PER_TOKEN, 3)
    decoded = decoder_output(motion, 2, 8)
    cells = to_cells(decoded, 2)
    for n, slot, row, column, y, x in np.ndindex(3, 4, 4, 4, CELLS_PER_TOKEN, CELLS_PER_TOKEN):
        found = cells[n, slot * 16 + row * 4 + column, y, x]
        true = motion[n, slot, CELLS_PER_TOKEN * row + y, CELLS_PER_TOKEN * column + x]
        assert torch.allclose(found, true, atol=1e-5)


def test_the_motion_of_hidden_tokens_is_the_target(footage, tmp_path):
    data = MaskedClips(footage, Masks("mgm", (4, 4, 4), 0.5), target="motion")
    np.random.seed(0)
    batch = collate(data.__getitems__([0, 3, 7]))
    plain = batch_of(footage, [0, 3, 7])
    assert all(torch.equal(batch[name], plain[name]) for name in plain), "the target changes neither windows nor masks"
    assert batch["motion"].shape == (3, 4, 4 * CELLS_PER_TOKEN, 4 * CELLS_PER_TOKEN, 3)
    assert batch["motion"][..., :2].norm(dim=-1).max() < 1
    model = untrained_model(MaskedRun(**small, target="motion"))
    trainer = Trainer(model, None, torch.optim.SGD(model.parameters(), 0.1), tmp_path / "t", device="cpu")
    right = decoder_output(batch["motion"], 2, 8)[batch["hidden"]].unflatten(0, (3, -1))
    def loss(answer):
        handle = model.decoder.head.register_forward_hook(lambda *_: answer)
        try: return motion_loss(trainer, batch)["motion_loss"].item()
        finally: handle.remove()
    assert loss(right) < 1e-10
    assert abs(loss(right + 1) - 1) < 1e-5
    elsewhere = decoder_output(batch["motion"], 2, 8)[~batch["hidden"]].unflatten(0, (3, -1))
    assert loss(elsewhere) > 1e-3


def test_a_run_learns_motion(films, tmp_path):
    run = MaskedRun(**{**small, "epochs": 30, "lr": 4e-3}, data=[str(films)], target="motion", sidecars=str(tmp_path))
    curve = train_masked(run, tmp_path / "run")["curve"]["motion_loss"]
    assert curve[-1] < 0.7 * curve[0]
    with pytest.raises(PrimenbError, match="target was motion and is pixels"):
        train_masked(replace(run, target="pixels"), tmp_path / "run")
    with pytest.raises(PrimenbError, match="no such target"):
        train_masked(MaskedRun(target="sound", sidecars=str(tmp_path)), tmp_path / "none")
    with pytest.raises(PrimenbError, match="there is no such motion"):
        train_masked(MaskedRun(motion="flwo", sidecars=str(tmp_path)), tmp_path / "none")


def test_motion_that_was_not_measured_is_no_target(films, tmp_path):
    "Films of a codec without motion vectors would teach that nothing ever moves."
    (tmp_path / "films").mkdir()
    for n in range(2): encode(tmp_path / f"films/{n}.mp4", sprite(seed=n), 12, codec="libvpx-vp9")
    footage = Footage(find_segments([str(tmp_path / "films")]), 4, 2, tmp_path)
    MaskedClips(footage, Masks("mgm", (4, 4, 4), 0.5))
    with pytest.raises(PrimenbError, match="of 2 clips 2 have no motion vectors"):
        MaskedClips(footage, Masks("mgm", (4, 4, 4), 0.5), target="motion")


def test_training_is_transformers_own_step_by_step(footage, tmp_path):
    "The losses of a run, and its last weights, are those of a plain loop over the same batches."
    run = MaskedRun(**small)
    batches = [batch_of(footage, [i, i + 1, i + 2], seed=i) for i in range(8)]
    plain, losses = untrained_model(run), []
    optimizer = torch.optim.AdamW(plain.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0)
    for n, b in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 1e-3 * warmup_cosine(n, 8)
        loss = plain(pixel_values(plain, b["pixels"]), bool_masked_pos=b["hidden"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    ours, seen = untrained_model(run), []
    def noted(trainer, batch):
        out = pixel_loss(trainer, batch)
        seen.append(out["pixel_loss"].item())
        return out
    Trainer(
        ours, noted, torch.optim.AdamW(ours.parameters(), 1e-3, betas=(0.9, 0.95), weight_decay=0, fused=True),
        tmp_path / "run", schedule=warmup_cosine, device="cpu").fit(batches, 1)
    assert seen == pytest.approx(losses, rel=1e-4)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain.state_dict().values(), ours.state_dict().values()))


def test_a_run_from_end_to_end(films, tmp_path):
    run = MaskedRun(data=[str(films)], sidecars=str(tmp_path / "s"), **small)
    heard = []
    result = train_masked(run, tmp_path / "a", lambda trainer: heard.append(trainer.epoch) or dict(probe=0.5))
    assert result["last"]["num_clips"] == 12
    assert result["last"]["damaged"] == []
    assert result["last"]["statuses"] == dict(measured=12)
    assert result["last"]["encoder_tokens"] == 2 * 12 * 32 and result["curve"]["encoder_tokens"] == [12 * 32, 24 * 32]
    assert heard == [0, 1] and result["curve"]["probe"] == [0.5, 0.5]
    assert pd.read_csv(tmp_path / "a" / "curve.csv").step.tolist() == [3, 6]
    assert train_masked(run, tmp_path / "a") == result
    model = load(tmp_path / "a")
    assert not all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), untrained_model(run).state_dict().values()))
    with pytest.raises(PrimenbError, match="other settings: lr was 0.001 and is 0.1"):
        train_masked(MaskedRun(data=[str(films)], sidecars=run.sidecars, **small, lr=0.1), tmp_path / "a")
    with pytest.raises(PrimenbError, match="no finished run"): load(tmp_path / "b")
    further = MaskedRun(
        data=[str(films)], sidecars=run.sidecars, init_from=str(tmp_path / "a" / "last"), **{**small, "epochs": 1})
    assert all(
        torch.equal(a, b) for a, b in zip(untrained_model(further).state_dict().values(), model.state_dict().values()))
    with pytest.raises(PrimenbError, match="its grid is"):
        untrained_model(MaskedRun(init_from=further.init_from, image_size=64))


def test_a_budget_of_tokens_sets_the_epochs(films, tmp_path):
    budget = 4 * 12 * 32 / 1e6
    run = MaskedRun(data=[str(films)], sidecars=str(tmp_path), token_budget=budget, **small)
    results = {ratio: train_masked(replace(run, ratio=ratio), tmp_path / str(ratio)) for ratio in (0.5, 0.75)}
    assert {ratio: len(r["curve"]["epoch"]) for ratio, r in results.items()} == {0.5: 4, 0.75: 8}
    assert results[0.5]["last"] == results[0.75]["last"]


def test_a_killed_run_goes_on(films, tmp_path):
    run = MaskedRun(data=[str(films)], sidecars=str(tmp_path / "s"), **{**small, "epochs": 3})
    train_masked(run, tmp_path / "whole")
    program = f"""
import os, signal, torch
torch.set_num_threads(1)
from primenb.mgm.train import *
def evaluate(trainer):
    if trainer.epoch == 1: os.kill(os.getpid(), signal.SIGKILL)
    return {{}}
run = MaskedRun(**{asdict(run)!r})
train_masked(run, {str(tmp_path / 'killed')!r}, evaluate)
"""
    assert subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True).returncode == -9
    assert not (tmp_path / "killed" / "run.json").exists() and (tmp_path / "killed" / "checkpoint.pt").exists()
    train_masked(run, tmp_path / "killed")
    a, b = (load(tmp_path / name).state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("change, why", [
    (dict(mask="mgn"), "mgn"), (dict(ratio=0.999), "hides"), (dict(mask_settings=dict(bux=1)), "bux"),
    (dict(target="sound"), "no such target"), (dict(motion="flwo"), "there is no such motion")])
def test_runs_without_meaning_are_refused(change, why):
    with pytest.raises(PrimenbError, match=why): MaskedRun(**change)


def test_runs_are_read_from_a_parameter_file():
    "Lists and mappings, as YAML has them, make the same runs; a list of masks makes several."
    given = yaml.safe_load("{mask: [mgm, tube], ratio: 0.5, seed: [0, 1]}")
    runs = expand_grid(MaskedRun, given)
    assert len(runs) == len(set(runs)) == 4
    assert runs[-1] == MaskedRun(mask="tube", ratio=0.5, seed=1)
    made = MaskedRun(**yaml.safe_load("{data: [clips, films], mask: mgm, mask_settings: {box: 0.2, smooth: 2}}"))
    assert made == MaskedRun(data=("clips", "films"), mask="mgm", mask_settings=dict(box=0.2, smooth=2))
    assert hash(made) == hash(replace(made))
    assert made.masks.settings == dict(box=0.2, smooth=2)


def test_real_films(real, tmp_path):
    path = next(iter(sorted((real / "static_camera").glob("*.mp4"))), None)
    if path is None: pytest.skip("no real footage with a static camera")
    footage = Footage([Segment("real", path, 0, 48)], 4, 2, tmp_path)
    assert not footage.damages and batch_of(footage, [0, 0], min_crop=0.7)["hidden"].sum(1).tolist() == [32, 32]
