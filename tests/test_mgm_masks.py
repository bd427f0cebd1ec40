"""Masks: equal counts for every kind, guides against known motion and slow references, and whether masks lie where
something moves."""
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from primenb.core import PrimenbError
from primenb.data.corpus import clips
from primenb.mgm.masks import (
    UNGUIDED, GUIDED, MASKS, UNEVEN, Guide, Masks, background, box_distance, continuity, diagnose, optical_flow,
    guide, hide_top_k, jitter, no_guide, object_recall, smoothed, stack_guides, texture, to_grid)
from primenb.media.motion import Motion, cached_motion, read_motion
from primenb.media.video import NoMotionVectors, encode, read_frames

GRID = (8, 14, 14)


def motion(field, measured=None, camera=None):
    "A Motion of 8-pixel cells."
    number, (h, w) = np.arange(len(field)), field.shape[1:3]
    if measured is None: measured = np.ones(len(field), bool)
    return Motion(
        np.asarray(field, np.float32), np.arange(w + 1.0) * 8, np.arange(h + 1.0) * 8, number / 12, number,
        np.full(len(field), "P"), measured, camera)

def guides(n, grid, seed=0):
    "Guides of clips in which much moves, and of one in which nothing does."
    rng = np.random.default_rng(seed)
    found = Guide(
        rng.normal(0, 0.5, (n, *grid, 2)).astype(np.float32), rng.random((n, *grid), np.float32) ** 3,
        ("measured",) * n)
    return stack_guides([found, no_guide(grid)])

def mover(grid=GRID, size=4):
    "(1,S,h,w) a square that goes to the right and down, a token in each slot."
    energy = np.zeros((1, *grid), np.float32)
    for t in range(grid[0]): energy[0, t, t : t + size, t : t + size] = 1
    return energy


# ---- counts

@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(MASKS)), st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(2, 9)),
    st.floats(0.02, 0.98), st.integers(1, 4), st.integers(0, 99))
def test_every_clip_hides_the_same_number(kind, grid, ratio, n, seed):
    k = round(ratio * grid[1] * grid[2])
    if not 0 < k < grid[1] * grid[2]: return
    masks = Masks(kind, grid, ratio)(guides(n, grid, seed), np.random.default_rng(seed))
    assert masks.dtype == bool and masks.shape == (n + 1, np.prod(grid))
    assert (masks.sum(1) == grid[0] * k).all()
    if kind not in UNEVEN: assert (masks.reshape(n + 1, grid[0], -1).sum(2) == k).all()

@pytest.mark.parametrize("kind", MASKS)
def test_masks_come_from_the_seed_alone(kind):
    masks, given = pickle.loads(pickle.dumps(Masks(kind, GRID, 0.6))), guides(3, GRID)
    before = pickle.dumps(given)
    first, again = (masks(given, np.random.default_rng(1)) for _ in range(2))
    other = masks(given, np.random.default_rng(2))
    assert (first == again).all()
    assert (kind == "inverse_mgm" or (first[:3] != other[:3]).any())
    assert (first[3] != other[3]).any()
    assert pickle.dumps(given) == before

def test_the_highest_scores_are_hidden():
    score = np.random.default_rng(0).normal(size=(4, 3, 5, 6))
    for n in range(4):
        assert set(np.flatnonzero(hide_top_k(score, 7, per_clip=True)[n])) == set(np.argsort(score[n].ravel())[-21:])
        for s in range(3):
            assert set(np.flatnonzero(hide_top_k(score, 7)[n, s])) == set(np.argsort(score[n, s].ravel())[-7:])

def test_tokens_are_in_the_order_of_transformers():
    energy = np.zeros((1, 4, 3, 5), np.float32)
    energy[0, 2, 1, 3] = 1
    masks = Masks("mgm", (4, 3, 5), 1 / 15, dict(smooth=0, blur=0))(
        Guide(np.zeros((1, 4, 3, 5, 2)), energy, ("measured",)), np.random.default_rng(0))
    assert masks[0, 2 * 15 + 1 * 5 + 3] and masks.sum() == 4


# ---- kinds

def made(
    kind, ratio=0.5, n=20, **more): return Masks(kind, GRID, ratio, more)(n, np.random.default_rng(0)).reshape(n, *GRID)

@pytest.mark.parametrize("kind", ["tube", "block"])
def test_some_kinds_stay_in_place(kind):
    assert (made(kind) == made(kind)[:, :1]).all() and len({m.tobytes() for m in made(kind)}) == 20

def test_frames_are_hidden_whole():
    slots = made("frame", 0.5).mean((2, 3))
    assert (np.sort(slots) == np.repeat([0, 1], 4)).all() and len(np.unique(slots, axis=0)) > 5
    assert np.allclose(np.sort(made("frame", 0.3).mean((2, 3)))[:, -3:-2], 8 * round(0.3 * 196) / 196 - 2)

def test_random_is_no_tube_and_every_token_gets_its_turn():
    share = made("random", n=2000).mean(0)
    assert abs(share - 0.5).max() < 0.06 and (made("random")[:, 0] != made("random")[:, 1]).any()

def test_a_box_is_a_rectangle():
    distance = box_distance(np.full((1, 8, 2), 7.0), np.array([4.0]), GRID)
    mask = hide_top_k(-distance, 36)[0, 0]  # 12 high, 3 wide
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert len(rows) in (12, 13, 14) and len(columns) in (3, 4) and mask.sum() == 36

def test_a_box_at_the_border_grows_on_its_other_sides():
    corner = hide_top_k(-box_distance(np.zeros((1, 8, 2)), np.ones(1), GRID), 49)[0, 0]
    assert corner[:7, :7].all()

def test_simulated_motion_goes_straight():
    centres = [np.stack([np.argwhere(slot).mean(0) for slot in m]) for m in made("smm", 0.05, n=50)]
    bends = [np.linalg.norm(c[4] - (c[0] + (c[-1] - c[0]) * 4 / 7)) for c in centres]
    assert np.median(bends) < 0.7 and np.median([np.linalg.norm(c[-1] - c[0]) for c in centres]) > 4

def test_the_box_follows_the_motion():
    energy = mover()
    found = Guide(np.zeros((*energy.shape, 2)), energy, ("measured",))
    for box in (0, 0.4, 1):
        masks = Masks("mgm", GRID, 0.3, dict(box=box))(found, np.random.default_rng(0))
        assert object_recall(masks, energy)[0] > 0.95
        assert continuity(masks, GRID)[0] > 0.6

def test_what_is_in_two_places_is_found():
    energy = np.zeros((1, *GRID), np.float32)
    energy[0, :, 2:5, :2] = energy[0, :, 2:5, 12:] = 1
    found = Guide(np.zeros((*energy.shape, 2)), energy, ("measured",))
    def recall(box):
        masks = Masks("mgm", GRID, 0.15, dict(box=box))(found, np.random.default_rng(0))
        return object_recall(masks, energy)[0]
    assert recall(0.4) > 0.95 and recall(1) < 0.6

def test_soft_masks_prefer_more_energy_and_inverse_ones_less():
    energy = np.full((200, 2, 6, 6), 0.1, np.float32)
    energy[..., :3] = 0.3
    found = Guide(np.zeros((*energy.shape, 2)), energy, ("measured",) * 200)
    def share(kind, **settings):
        masks = Masks(kind, (2, 6, 6), 0.25, settings)(found, np.random.default_rng(0))
        return masks.reshape(energy.shape)[..., :3].sum() / (200 * 2 * 9)
    assert 0.65 < share("soft_mgm", blur=0, sharpness=1.0) < 0.8  # nearly 3 of 4, as sampled without replacement
    assert share("inverse_mgm") == 0

def test_soft_masks_draw_without_replacement():
    weights = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    energy = np.broadcast_to(weights.reshape(1, 1, 1, 4), (20000, 1, 1, 4)).copy()
    one = Masks("soft_mgm", (1, 1, 4), 0.25, dict(blur=0, smooth=0, sharpness=1.0))(
        Guide(np.zeros((*energy.shape, 2)), energy, ("measured",) * 20000), np.random.default_rng(0))
    assert np.allclose(one.mean(0), weights, atol=0.015)

def test_visible_tokens_are_carried_along():
    flow = np.zeros((30, *GRID, 2), np.float32)
    flow[..., 0] = 1  # one token to the right in each slot
    found = Guide(flow, np.ones((30, *GRID), np.float32), ("measured",) * 30)
    seen = ~Masks("mgmae", GRID, 0.8)(found, np.random.default_rng(0)).reshape(30, *GRID)
    carried = np.mean([(seen[:, t + 1, :, 5:10] == seen[:, t, :, 4:9]).mean() for t in range(7)])
    in_place = np.mean([(seen[:, t + 1, :, 5:10] == seen[:, t, :, 5:10]).mean() for t in range(7)])
    assert carried > 0.9 > in_place + 0.05
    tube = Masks("mgmae", GRID, 0.8)(no_guide(GRID), np.random.default_rng(0)).reshape(GRID)
    assert (tube == tube[:1]).all()

@pytest.mark.parametrize("kind", [k for k in GUIDED if k != "mgmae"])
def test_clips_with_nothing_to_follow_get_simulated_motion(kind):
    energy = mover()
    both = stack_guides([Guide(np.zeros((*energy.shape, 2), np.float32), energy, ("measured",)), no_guide(GRID)])
    assert both.still.tolist() == [False, True]
    masks = Masks(kind, GRID, 0.2)(both, np.random.default_rng(0)).reshape(2, *GRID)
    for slot in masks[1]:  # a box: full between its corners, but for the last row or column it did not fill
        rows, columns = slot.any(1).sum(), slot.any(0).sum()
        assert slot.sum() >= 0.7 * rows * columns


# ---- the camera

def polynomial(rng, h, w):
    y, x = np.meshgrid(np.linspace(-1, 1, h), np.linspace(-1, 1, w), indexing="ij")
    return np.einsum(
        "hwk,kc->hwc", np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1), rng.normal(0, 2, (6, 2)))

@settings(max_examples=30, deadline=None)
@given(st.integers(0, 999), st.integers(6, 24), st.integers(6, 24))
def test_the_motion_of_a_flat_surface_is_found(seed, h, w):
    rng = np.random.default_rng(seed)
    camera = np.stack([polynomial(rng, h, w) for _ in range(2)])
    assert np.abs(background(camera) - camera).max() < 0.15
    flow = camera.copy()
    flow[:, h // 2 : h // 2 + max(h // 5, 1), w // 3 : w // 3 + max(w // 4, 1)] += 12
    assert np.abs(background(flow) - camera).mean() < 1

def test_a_turning_and_zooming_camera_leaves_nothing():
    rng = np.random.default_rng(0)
    w, h = 40, 30
    y, x = np.meshgrid(np.arange(h) - h / 2, np.arange(w) - w / 2, indexing="ij")
    flow = np.stack([3 + 0.1 * x - 0.05 * y, -2 + 0.1 * y + 0.05 * x], -1)[None] + rng.normal(0, 0.2, (4, h, w, 2))
    left = np.linalg.norm(flow - background(flow), axis=-1)
    assert np.median(left) < 0.3

@pytest.mark.parametrize("ground", [2, 4, 6])
def test_ground_that_rushes_by_is_background(ground):
    rng = np.random.default_rng(0)
    h, w = 16, 24
    flow, who = rng.normal(0, 0.2, (1, h, w, 2)), np.zeros((h, w), bool)
    # a kink at the horizon that no polynomial of second degree follows
    flow[0, ..., 0] += ground * np.maximum(np.linspace(-1, 1, h), 0)[:, None]
    who[6:13, 10:13] = True
    flow[0, who] = rng.normal(0, 0.2, (who.sum(), 2))  # someone the camera follows
    left = np.linalg.norm(flow - background(flow), axis=-1)[0]
    assert np.median(left[9:13][who[9:13]]) > 1.5 * np.quantile(left[~who], 0.9)

def test_what_fills_a_row_is_not_its_background():
    rng, flow = np.random.default_rng(0), np.zeros((1, 12, 16, 2))
    flow += rng.normal(0, 0.1, flow.shape)
    flow[0, 5:7, :, 0] += 5
    left = np.linalg.norm(flow - background(flow), axis=-1)[0]
    assert left[5:7].mean() > 3 > 1 > np.delete(left, (5, 6), 0).mean()


# ---- guides

def scene(size=96, frames=16, speed=3, pan=2, seed=0):
    "A textured square that goes its own way over a textured background that pans; and its share of 8-pixel cells."
    rng = np.random.default_rng(seed)
    world = cv2.GaussianBlur(rng.integers(0, 255, (size, size + pan * frames + 8, 3)).astype(np.uint8), (0, 0), 1.5)
    thing = cv2.GaussianBlur(rng.integers(0, 255, (24, 24, 3)).astype(np.uint8), (0, 0), 1)
    images, share = np.empty((frames, size, size, 3), np.uint8), np.zeros((frames, size, size), np.float32)
    for t in range(frames):
        images[t] = world[:, pan * t : pan * t + size]
        y, x = 36, 10 + speed * t
        images[t, y : y + 24, x : x + 24], share[t, y : y + 24, x : x + 24] = thing[:, : size - x], 1
    return images, share.reshape(frames, size // 8, 8, size // 8, 8).mean((2, 4))

def test_displacements_come_in_patches_per_slot():
    still = np.zeros((8, 6, 6, 2))
    still[..., 0] = 2
    found = guide(motion(still), 8, 2)
    assert found.grid == (4, 6, 6) and np.allclose(found.flow, [0.5, 0]) and found.status == ("still",)
    assert np.allclose(guide(motion(still), 16, 4, size=(96, 96)).flow, [1, 0])
    apart = motion(np.zeros_like(still), camera=np.tile(np.float32([2, 0]), (8, 1)))  # as `remove_camera` stores it
    assert np.allclose(guide(apart, 8, 2).flow, found.flow)

def test_a_mirrored_clip_has_a_mirrored_guide():
    images, _ = scene()
    field = np.random.default_rng(0).normal(0, 2, (16, 12, 12, 2))
    a = guide(motion(field), 8, 2, frames=images)
    b = guide(motion(field), 8, 2, flip=True, frames=np.ascontiguousarray(images[:, :, ::-1]))
    assert np.allclose(a.energy, b.energy[..., ::-1], atol=1e-3)
    assert np.allclose(a.flow * [-1, 1], b.flow[..., ::-1, :], atol=1e-4)

def test_a_crop_of_whole_tokens_has_a_part_of_the_flow():
    field = np.random.default_rng(0).normal(0, 2, (16, 12, 12, 2))
    whole, part = guide(motion(field), 8, 2), guide(motion(field), 8, 2, crop=(16, 8, 80, 72))
    assert part.grid == (8, 8, 8) and np.allclose(part.flow, whole.flow[:, :, 1:9, 2:10], atol=1e-5)

def test_key_frames_are_filled_in_and_noted():
    field, measured = np.random.default_rng(0).normal(0, 2, (16, 8, 8, 2)), np.arange(16) > 0
    assert guide(motion(field, measured), 8, 2).status == ("measured",)
    assert guide(motion(field, measured & (np.arange(16) > 1)), 8, 2).status == ("filled",)
    nothing = guide(motion(field, measured & False), 8, 2)
    assert nothing.status == ("none",) and nothing.still.all()

@pytest.mark.parametrize("options", [{"bf": "0", "refs": "1"}, {"bf": "3", "refs": "3"}, {"bf": "0", "g": "4"}])
@pytest.mark.parametrize("pan", [0, 2])
def test_a_thing_over_a_panning_background_is_hidden(tmp_path, options, pan):
    recalls = []
    for seed in range(4):
        images, share = scene(pan=pan, seed=seed)
        path = encode(tmp_path / f"{seed}.mp4", images, 12, crf=20, options=options)
        found = guide(read_motion(path, remove_camera=True), 8, 2, frames=images)
        masks = Masks("mgm", found.grid, 0.3)(found, np.random.default_rng(0))
        recalls += [object_recall(masks, to_grid(share, found.grid)[None])[0]]
    assert np.mean(recalls) > 0.9

def test_a_file_of_key_frames_has_no_guide(tmp_path):
    path = encode(tmp_path / "intra.mp4", scene()[0], 12, options={"g": "1"})
    with pytest.raises(NoMotionVectors): read_motion(path, remove_camera=True)
    masks = Masks("mgm", (8, 12, 12), 0.75)(stack_guides([no_guide((8, 12, 12))] * 3), np.random.default_rng(0))
    assert (masks.sum(1) == 8 * 108).all()

def test_optical_flow_takes_the_place_of_vectors():
    images, share = scene(pan=2, speed=4)
    found = optical_flow(images)
    assert found.field.shape == (16, 12, 12, 2) and not found.measured[0] and found.measured[1:].all()
    assert np.allclose(np.median(found.field, (0, 1, 2)), [-2, 0], atol=0.2)
    seen = guide(found, 8, 2, frames=images)
    masks = Masks("mgm", seen.grid, 0.3)(seen, np.random.default_rng(0))
    assert object_recall(masks, to_grid(share, seen.grid)[None])[0] > 0.9

def test_texture_is_the_smaller_eigenvalue():
    images = scene(size=64)[0]
    found = texture(images, (8, 8, 8))
    for s, y, x in ((0, 0, 0), (3, 4, 5), (7, 7, 7)):
        grey = cv2.cvtColor(images[2 * s + 1], cv2.COLOR_RGB2GRAY).astype(np.float32)
        gy, gx = (g[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].ravel() for g in np.gradient(grey))
        assert np.isclose(
            found[s, y, x] ** 2,
            np.linalg.eigvalsh(
                np.cov(np.stack([gx, gy]), bias=True) + np.outer([gx.mean(), gy.mean()], [gx.mean(), gy.mean()]))[0],
            rtol=1e-3)

def test_flat_places_and_straight_edges_have_no_texture():
    edge = np.zeros((4, 32, 32, 3), np.uint8)
    edge[:, :, 20:] = 255
    board = np.kron(
        np.indices((16, 16)).sum(0) % 2,
        np.ones((2, 2)))[None, ..., None].repeat(4, 0).repeat(3, 3).astype(np.uint8) * 255
    assert texture(edge, (2, 4, 4)).max() < 1e-2 and texture(board, (2, 4, 4)).min() > 10


# ---- measures

@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_measures_equal_slow_ones(seed):
    rng, grid = np.random.default_rng(seed), (4, 5, 6)
    masks, movers = rng.random((3, 120)) < 0.4, rng.random((3, *grid)) * (rng.random((3, *grid)) < 0.3)
    masks[:, ::30] = True  # no slot is empty
    for n in range(3):
        m = masks[n].reshape(4, 30)
        assert np.isclose(object_recall(masks, movers)[n], sum(movers[n].ravel()[masks[n]]) / movers[n].sum())
        assert np.isclose(
            continuity(masks, grid)[n], np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(m, m[1:])]))
        centres = np.array([np.argwhere(slot.reshape(5, 6)).mean(0) for slot in m])
        assert np.isclose(
            jitter(masks, grid)[n],
            np.mean([np.linalg.norm(centres[t + 2] - 2 * centres[t + 1] + centres[t]) for t in range(2)]))

def test_movers_come_onto_the_grid():
    values = np.random.default_rng(0).random((16, 8, 8))
    assert np.allclose(to_grid(values, (8, 4, 4)), values.reshape(8, 2, 4, 2, 4, 2).mean((1, 3, 5)), atol=1e-6)

def test_where_nothing_moves_there_is_no_recall():
    assert np.isnan(object_recall(np.ones((1, 8), bool), np.zeros((1, 2, 2, 2)))).all()

def test_smoothing_keeps_a_constant():
    assert np.allclose(smoothed(np.full((2, 4, 5, 6), 0.3)), 0.3)


# ---- faults

@pytest.mark.parametrize("make, message", [
    (lambda: Masks("tubes", GRID, 0.5), "no such kind"),
    (lambda: Masks("tube", GRID, 0.001), "hides 0 of the 196"),
    (lambda: Masks("tube", GRID, 1.0), "hides 196 of the 196"),
    (lambda: Masks("smm", GRID, 0.5, dict(box=1)), "no setting box; its settings are: aspect"),
    (lambda: Masks("mgm", GRID, 0.5)(4, np.random.default_rng(0)), "give a Guide"),
    (
        lambda: Masks("mgm", GRID, 0.5)(no_guide((8, 7, 7)), np.random.default_rng(0)),
        r"\(8, 14, 14\) and that of the guide \(8, 7, 7\)"),
    (lambda: stack_guides([no_guide((8, 7, 7)), no_guide(GRID)]), "2 different grids"),
    (lambda: stack_guides([]), "0 different grids"),
    (lambda: guide(motion(np.zeros((1, 8, 8, 2))), 8, 2), "do not fill a slot of 2"),
    (
        lambda: guide(motion(np.zeros((4, 8, 8, 2))), 8, 2, frames=np.zeros((4, 64, 32, 3), np.uint8)),
        "frames of 32x64 pixels"),
    (lambda: optical_flow(np.zeros((1, 8, 8, 3), np.uint8)), "at least two")])
def test_faults_are_named(make, message):
    with pytest.raises(PrimenbError, match=message): make()

def test_guides_are_picked_like_arrays():
    both = guides(2, (2, 3, 4))
    assert len(both) == 3 and both.status == ("measured", "measured", "none")
    assert both[2:].status == ("none",) and both[np.array([2, 0])].status == ("none", "measured")
    assert (both[np.array([2, 0])].energy == both.energy[[2, 0]]).all()


# ---- does it find what moves?

def read(clip):
    frames = clip.frames()
    found = guide(read_motion(clip.path, remove_camera=True), 8, 2, frames=frames)
    return found, to_grid(clip.movers, found.grid)

def test_masks_lie_on_what_moves_in_the_corpus():
    tests = list(clips("test", check=False))
    found, movers = zip(*map(read, tests))
    found, movers = stack_guides(found), np.stack(movers)
    moving = np.array([c.labels["camera"] == "moving" for c in tests])
    recall = object_recall(Masks("mgm", found.grid, 0.3)(found, np.random.default_rng(0)), movers)
    assert np.nanmean(recall[~moving]) > 0.9 and np.nanmean(recall[moving]) > 0.85
    table = diagnose(found, movers)
    assert list(table.index) == list(MASKS)
    assert table.continuity["mgm"] > table.continuity["smm"]
    assert table.recall["shuffled_mgm"] < table.recall["soft_mgm"] - 0.2
    assert table.recall["inverse_mgm"] < 0.1
    assert abs(table.recall["random"] - 0.3) < 0.02
    assert table.fallbacks["mgm"] < 0.05
    assert (table.fallbacks[list(UNGUIDED)] == 0).all()

def test_masks_lie_on_what_moves_before_a_real_camera(real, tmp_path):
    path, size = real / "static_camera/car-detection.mp4", (320, 192)
    film = cached_motion(path, tmp_path, canonical=True, remove_camera=True)
    for first in (60, 180):  # cars drive by
        frames = read_frames(path, frames=(first, first + 16), size=size)
        found = guide(film[first : first + 16], 16, 2, size=size, frames=frames)
        grey = frames.astype(np.float32).mean(3)
        changed = to_grid(
            (np.abs(np.diff(grey, axis=0, append=grey[-1:])) > 25).astype(np.float32),
            (8, 192, 320)).reshape(8, 12, 16, 20, 16).mean((2, 4))[None]
        recall = object_recall(Masks("mgm", found.grid, 0.3)(found, np.random.default_rng(0)), changed)[0]
        assert changed.mean() > 0.005 and recall > 0.85

@pytest.mark.parametrize(
    "name, quiet, busy", [("car", 264, 192), ("one-by-one-person", 464, 192), ("bottle", 240, 336)])
def test_a_real_clip_in_which_nothing_moves_is_still(real, tmp_path, name, quiet, busy):
    path, size = real / f"static_camera/{name}-detection.mp4", (320, 192)
    found = {}
    for first in (quiet, busy):
        span = (first - 16, first + 32)  # noise is judged by what is around
        copy = encode(tmp_path / f"{first}.mp4", read_frames(path, frames=span, size=size), 12,
                      crf=10, preset="veryfast", options={"bf": "0", "refs": "1", "sc_threshold": "0"})
        seen = read_motion(copy, remove_camera=True)[16:32]
        found[first] = guide(seen, 16, 2, frames=read_frames(copy, frames=(16, 32)))
    assert found[quiet].status == ("still",) and found[busy].status == ("measured",)

def test_a_shuffled_mask_follows_the_clip_before():
    found = guides(3, GRID)
    shuffled = Masks("shuffled_mgm", GRID, 0.4)(found[:3], np.random.default_rng(5))
    soft = Masks("soft_mgm", GRID, 0.4)(found[np.array([2, 0, 1])], np.random.default_rng(5))
    assert (shuffled == soft).all()
    with pytest.raises(PrimenbError, match="only one"):
        Masks("shuffled_mgm", GRID, 0.4)(found[:1], np.random.default_rng(0))
