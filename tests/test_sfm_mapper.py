"Cameras for every frame: refusals, pans, accuracy on simulated and rendered shots, invariance to order and unit."
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from primenb.core import PrimenbError
from primenb.data.corpus import move_shots, tracking_shots
from primenb.data.public import posed_frames
from primenb.sfm.adjust import Adjustment
from primenb.sfm.evaluate import evaluate_track
from primenb.sfm.geometry import Tracks, inverse, pose, project, umeyama
from primenb.sfm.mapper import MAX_FILLED_RUN, MAX_KEY_FRAMES, guessed_intrinsics, track_noise, solve_tracks
from primenb.sfm.mapper import select_key_frames, track_camera
from primenb.sfm.priors import DepthMaps, depth_of, sensor_depth
from primenb.sfm.tracks import klt_tracks
from primenb.media.video import read_frames


SIZE = (480, 270)
LENS = np.array([[500., 0, 240], [0, 500, 135], [0, 0, 1]])


@cache
def shot(key): return next(s for s in tracking_shots() if s.key == key)


@cache
def footage(key="track_20"):
    "Frames, intrinsics and depth prior of a starter shot."
    return shot(key).frames(), shot(key).cameras.K, depth_of(shot(key))


def made(T=20, n=160, path=0.6, turn=0.15, noise=0.1, seed=0, zoom=1.0):
    "Tracks of points before a curved, turning path, with its intrinsics, cameras, centres and points."
    rng, s = np.random.default_rng(seed), np.linspace(0, 1, T)
    centres = path * np.stack([s, 0.2 * np.sin(3 * s), 0.3 * s**2], 1)
    cameras = pose(np.stack([0.2 * turn * np.sin(5 * s), turn * s, 0 * s], 1), np.zeros((T, 3)))
    cameras[:, :3, 3] = -np.einsum("tij,tj->ti", cameras[:, :3, :3], centres)
    K = np.tile(LENS, (T, 1, 1))
    K[:, [0, 1], [0, 1]] *= zoom ** s[:, None]
    X = np.c_[rng.uniform(-3, 3, n), rng.uniform(-1.5, 1.5, n), rng.uniform(3, 8, n)]
    xy, z = project(X[:, None], cameras, K)
    seen = (z > 0) & (xy > 0).all(2) & (xy < SIZE).all(2)
    track, frame = np.nonzero(seen)
    tracks, _ = Tracks(
        frame, track, xy[seen] + rng.normal(0, noise, (seen.sum(), 2)), T, SIZE
    ).keep(np.ones(len(frame), bool), 1)
    return tracks, K, cameras, centres, X


def flat(T, value=5.0): return DepthMaps(np.full((T, 27, 48), value, np.float32))


def off(found, centres):
    "Root mean squared distance from the true centres as a share of the path."
    s, R, t = umeyama(found, centres)
    return np.sqrt(((s * found @ R.T + t - centres) ** 2).sum(1).mean()) / np.linalg.norm(
        np.diff(centres, axis=0), axis=1
    ).sum()


def refused(make, *words):
    with pytest.raises(PrimenbError) as caught: make()
    for word in words: assert word in str(caught.value), str(caught.value)


def sound(track, frames):
    "What every answer must have."
    assert track.cam_from_world.shape == (frames, 4, 4) and track.posed.all()
    assert len(track.status) == frames == len(track.sigma) == len(track.K)
    R = track.cam_from_world[:, :3, :3]
    assert np.allclose(R @ R.swapaxes(1, 2), np.eye(3), atol=1e-8) and (np.linalg.det(R) > 0).all()
    assert set(track.status) <= {"solved", "filled", "rotation_only"}
    assert (track.sigma >= 0).all() and np.isfinite(track.sigma).all()
    assert len(track.points) == len(track.tracks) == len(track.colours) and np.isfinite(track.points).all()
    return track


# ---- what cannot be tracked

def test_one_frame_is_refused(): refused(lambda: track_camera(footage()[0][:1]), "1 frame", "longer shot")


@pytest.mark.parametrize("times", [2, 3, 8])
@pytest.mark.parametrize("known", [True, False])
def test_a_still_photograph_is_static(times, known):
    frames, K, depth = footage()
    for prior in (None, DepthMaps(depth.maps[[0] * times])):
        track = track_camera(frames[[0] * times], K=K[0] if known else None, depth=prior)
        assert track.outcome == "static" and set(track.status) == {"static"} and len(track.status) == times
        assert (track.cam_from_world == np.eye(4)).all() and not np.isfinite(track.facts["focal_sigma"])


def test_a_title_card_is_static():
    card = np.zeros((20, 180, 320, 3), np.uint8)
    for n, image in enumerate(card):
        image[:] = np.random.default_rng(n).normal(20, 2, image.shape).clip(0, 255)
        cv2.putText(image, "THE END", (60, 100), cv2.FONT_HERSHEY_SIMPLEX, 1.5, (220,) * 3, 2, cv2.LINE_AA)
    assert track_camera(card).outcome == "static"


@pytest.mark.parametrize("name", ["bottle-detection", "car-detection", "one-by-one-person-detection"])
def test_real_cameras_that_are_held_are_static(real, name):
    frames = read_frames(real / f"static_camera/{name}.mp4", size=(640, 360))[:400]
    track = track_camera(frames)
    assert track.outcome == "static" and (track.cam_from_world == np.eye(4)).all()


# ---- cameras that only turn, long shots

@pytest.mark.parametrize("key", [f"move_{n:02d}" for n in (2, 4, 6)])
@pytest.mark.parametrize("known", [True, False])
def test_pans_of_8_20_and_40_degrees_only_turn(key, known):
    pan = next(s for s in move_shots(check=False) if s.key == key)
    track = track_camera(pan.frames(), K=pan.cameras.K if known else None)
    assert track.outcome == "rotation_only" and np.ptp(track.centres, axis=0).max() == 0
    assert abs(track.K[0, 0, 0] / pan.cameras.K[0, 0, 0] - 1) < 0.01


def test_a_long_slow_shot_is_solved():
    slow = next(s for s in move_shots(check=False) if s.key == "move_08")
    track = track_camera(slow.frames(), K=slow.cameras.K)
    centres = inverse(slow.cameras.cam_from_world)[:, :3, 3]
    assert set(track.status) == {"solved"} and len(track.K) == 300 and off(track.centres, centres) < 0.01


def test_frames_without_points_are_interpolated_for_a_short_while_only():
    tracks, K, cameras, centres, X = made(T=60)
    gap = (20, 20 + MAX_FILLED_RUN + 1)
    track = solve_tracks(tracks.keep((tracks.frame < gap[0]) | (tracks.frame >= gap[1]), 2)[0], K, None)
    assert set(track.status[slice(*gap)]) == {"missing"} and not track.posed[slice(*gap)].any()
    assert (np.delete(track.status, range(*gap)) == "solved").all() and track.outcome == "filled"
    few = tracks.keep(tracks.frame < 20, 2)[0]
    refused(lambda: solve_tracks(few, K, None), "20 of 60 frames", "frames 0 to 20")


# ---- priors that are none

@pytest.mark.parametrize("key", ["track_05", "track_09", "track_14"])
@pytest.mark.parametrize("metric", [True, False])
def test_disparity_given_as_depth_is_noticed(key, metric):
    one = shot(key)
    prior, known = depth_of(one), klt_tracks(one.frames(), max_tracks=200)
    wrong = DepthMaps(1000 / prior.maps, "depth", metric)
    right, found = (solve_tracks(known, one.cameras.K, maps) for maps in (prior, wrong))
    assert right.facts["prior"] == "as given" and found.facts["prior"] == "inverted"
    centres = inverse(one.cameras.cam_from_world)[:, :3, 3]
    assert off(found.centres, centres) < 1.5 * off(right.centres, centres) + 0.005


# ---- several things move

def two_groups(share, T=30, noise=0.05):
    "A thing that turns and travels in the middle of the image with this share of the tracks, and a background."
    rng, size = np.random.default_rng(0), (640, 360)
    K = np.array([[600, 0, 320], [0, 600, 180], [0, 0, 1.0]])
    s = np.linspace(0, 1, T)[:, None]
    cameras = pose(s * [0.02, 0.1, 0.01], -s * [0.4, 0.05, 0.2])
    background = rng.uniform([-5, -3, 5], [5, 3, 12], (2500, 3))
    thing = rng.uniform([-1.5, -0.8, -0.4], [1.5, 0.8, 0.4], (int(400 * share), 3))
    path = s[:, None] * [0.5, 0, -0.3] + [0, 0, 4]
    places = np.concatenate([
        (pose(s * [0, 0.3, 0], 0 * s)[:, None, :3, :3] @ thing[..., None])[..., 0] + path,
        np.repeat(background[None], T, 0)], 1)
    xy, z = project(places, cameras[:, None], K)
    seen = (z > 0) & (xy > 2).all(-1) & (xy < np.array(size) - 2).all(-1)
    behind = (np.abs(xy - [320, 180]) < [260, 135]).all(-1)
    behind[:, : len(thing)] = False
    track, frame = np.nonzero((seen & ~behind).T)
    order = np.flatnonzero(np.bincount(track, minlength=places.shape[1]) >= 8)
    order = order[: 400]
    rows = np.isin(track, order)
    track, frame = track[rows], frame[rows]
    points = xy[frame, track] + rng.normal(0, noise, (len(frame), 2))
    return Tracks(frame, np.searchsorted(order, track), points, T, size), K, cameras


@pytest.mark.parametrize("share", [0.55, 0.75])
@pytest.mark.parametrize("known", [True, False])
def test_the_background_is_tracked_though_most_tracks_are_on_a_thing_that_moves(share, known):
    tracks, K, cameras = two_groups(share)
    track = solve_tracks(tracks, K if known else None, None)
    assert off(track.centres, inverse(cameras)[:, :3, 3]) < 0.01 and track.facts["mover"] > 0.5


def test_black_frames_are_refused():
    refused(lambda: track_camera(np.zeros((8, 90, 160, 3), np.uint8)), "no texture", "dark")
def test_a_single_colour_is_refused():
    refused(lambda: track_camera(np.full((8, 90, 160, 3), 120, np.uint8)), "no texture")


@pytest.mark.parametrize("seed", range(3))
def test_white_noise_is_refused(seed):
    frames = np.random.default_rng(seed).integers(0, 256, (16, 135, 240, 3), dtype=np.uint8)
    refused(lambda: track_camera(frames, depth=np.ones((16, 27, 48), np.float32)), "tracks")


@cache
def patches(n, T, seed, speed=2.0):
    "A film of textured patches, each on its own straight way."
    rng, side = np.random.default_rng(seed), 24
    at = rng.random((n, 2)) * SIZE
    step = rng.normal(size=(n, 2)) * speed
    out = np.zeros((T, SIZE[1] + 2 * side, SIZE[0] + 2 * side, 3), np.uint8)
    looks = [cv2.GaussianBlur(rng.integers(1, 256, (side, side, 3)).astype(np.uint8), (5, 5), 1.0) for _ in range(n)]
    for t in range(T):
        for place, move, look in zip(at, step, looks):
            (x, y) = divmod((place + move * t) % (np.array(SIZE) + side), 1)[0].astype(int)
            (dx, dy) = ((place + move * t) % (np.array(SIZE) + side)) % 1
            cell = cv2.warpAffine(look, np.float32([[1, 0, dx], [0, 1, dy]]), (side + 1, side + 1))
            there = out[t, y : y + side + 1, x : x + side + 1]
            there[cell.sum(2) > 0] = cell[cell.sum(2) > 0]
    return out[:, side:-side, side:-side].copy()


@pytest.mark.parametrize("n, T, seed", [(30, 24, 0), (80, 20, 1), (150, 12, 2)])
@pytest.mark.parametrize("known", [True, False])
def test_a_film_of_which_all_moves_is_refused(n, T, seed, known):
    frames = patches(n, T, seed)
    refused(
        lambda: track_camera(frames, K=LENS if known else None, depth=np.ones((T, 27, 48), np.float32)),
        "tracks",
        "still background",
    )


def test_tracks_that_wander_at_random_are_refused():
    rng = np.random.default_rng(0)
    ways = rng.uniform(50, 220, (100, 1, 2)) + np.cumsum(rng.normal(0, 4, (100, 15, 2)), 1)
    tracks = Tracks(np.tile(np.arange(15), 100), np.repeat(np.arange(100), 15), ways.reshape(-1, 2), 15, SIZE)
    refused(lambda: solve_tracks(tracks, LENS, flat(15)), "tracks")


def test_depth_that_does_not_fit_is_refused():
    frames, K, depth = footage()
    refused(lambda: track_camera(frames, K=K, depth=depth[:10]), "10 maps for 32 frames")
    refused(lambda: track_camera(frames, K=K, depth=np.ones((32, 90, 90))), "another shape")
    refused(lambda: track_camera(frames, K=K, depth=np.full((32, 54, 96), np.nan)), "not one value")


def test_holes_in_the_depth_are_no_harm():
    frames, K, depth = footage()
    maps = depth.maps.copy()
    maps[:, :20] = np.nan
    maps[5] = np.nan
    maps[7] = 0
    track = sound(track_camera(frames, K=K, depth=DepthMaps(maps, depth.kind)), 32)
    assert set(track.status) == {"solved"} and off(
        track.centres, inverse(shot("track_20").cameras.cam_from_world)[:, :3, 3]
    ) < 0.01


def test_masks_that_hide_too_much_are_refused():
    frames, K, depth = footage()
    hidden = np.ones(frames.shape[:3], bool)
    refused(lambda: track_camera(frames, K=K, depth=depth, mask=hidden), "hides everything")
    hidden[:, :10, :10] = False
    refused(lambda: track_camera(frames, K=K, depth=depth, mask=hidden), "mask less of it")
    refused(lambda: track_camera(frames, K=K, depth=depth, mask=hidden[:5]), "mask")
    hidden[0] = False
    refused(lambda: track_camera(frames, K=K, depth=depth, mask=hidden), "tracks")


@pytest.mark.parametrize("name, K", [
    ("shape", np.eye(4)), ("focal", np.eye(3)), ("frames", np.stack([LENS] * 5)), (
        "outside", LENS * [[4, 1, 4], [1, 4, 4], [1, 1, 1]]
    ), ("form", 4 * LENS), ("form", LENS * np.nan),
    ("skew", LENS + [[0, 9, 0], [0, 0, 0], [0, 0, 0]]), ("form", LENS.T), (
        "focal", LENS * [[-1, 1, 1], [1, -1, 1], [1, 1, 1]]
    )])
def test_intrinsics_that_do_not_fit_are_refused(name, K):
    refused(lambda: solve_tracks(made()[0], K), "K", name)


def test_unknown_trackers_and_wrong_pictures_are_refused(tmp_path):
    frames, K, depth = footage()
    refused(lambda: track_camera(frames, tracker="magic"), "magic", "klt or sift")  # and auto
    refused(lambda: track_camera(frames / 255.0), "uint8")
    refused(lambda: track_camera(frames[0]), "no shot")
    refused(lambda: track_camera(tmp_path / "none.mp4"), "no such file")


# ---- what can

@pytest.mark.parametrize("key", ["track_25"])
def test_a_pan_about_the_lens_only_turns(key):
    frames, K, depth = footage(key)
    track, gt = sound(track_camera(frames, K=K, depth=depth), len(frames)), shot(key).cameras.cam_from_world
    assert set(track.status) == {"rotation_only"} and np.ptp(track.centres, axis=0).max() < 1e-9
    assert evaluate_track(track, K, gt, shot(key).facts["median_depth"])["rpe_rotation"] < 0.02


def test_frames_without_tracks_are_filled():
    frames, K, depth = footage()
    frames = frames.copy()
    frames[-3:] = 0
    track = sound(track_camera(frames, K=K, depth=depth), 32)
    assert track.status.tolist() == ["solved"] * 29 + ["filled"] * 3
    assert track.sigma[-1, 0] > 3 * track.sigma[:28, 0].max()
    assert off(track.centres[:29], inverse(shot("track_20").cameras.cam_from_world[:29])[:, :3, 3]) < 0.01


def test_black_frames_in_the_middle_are_filled_between_their_neighbours():
    tracks, K, cameras, centres, X = made(T=24)
    tracks, _ = tracks.keep((tracks.frame < 9) | (tracks.frame > 12), 2)
    track = sound(solve_tracks(tracks, K, None), 24)
    assert (track.status == "filled").nonzero()[0].tolist() == [9, 10, 11, 12] and set(
        np.delete(track.status, range(9, 13))
    ) == {"solved"}
    assert off(track.centres, centres) < 0.02


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("few", [1, 2])
def test_frames_that_see_one_or_two_points_stay_with_their_neighbours(few, known):
    "Between keyframes each camera is aimed on its own; one or two points leave it free to turn about them."
    tracks, K, cameras, centres, X = made(T=MAX_KEY_FRAMES + 32)
    long = np.argsort(-tracks.lengths, kind="stable")[:few]
    tracks, _ = tracks.keep((tracks.frame >= 12) | np.isin(tracks.track, long), 2)
    assert np.bincount(tracks.frame)[:12].tolist() == [few] * 12
    track = sound(solve_tracks(tracks, K if known else None, None), MAX_KEY_FRAMES + 32)
    assert track.status.tolist() == ["filled"] * 12 + ["solved"] * (MAX_KEY_FRAMES + 20) and off(
        track.centres[12:], centres[12:]
    ) < 0.05
    step = np.linalg.norm(np.diff(track.centres, axis=0), axis=1)
    assert step[:11].max() < 3 * step[12:].max() and (track.sigma[:12, 0] > track.sigma[12:, 0].max()).all()


def test_geometry_without_a_solution_is_refused(monkeypatch):
    def singular(self, *more): raise np.linalg.LinAlgError("Singular matrix")
    monkeypatch.setattr(Adjustment, "refine_cameras", singular)
    refused(
        lambda: solve_tracks(made(T=MAX_KEY_FRAMES + 2)[0], LENS),
        "do not determine the cameras (Singular matrix)",
        "longer shot",
    )


@pytest.mark.parametrize("turn", [0, 0.4])
def test_pixels_that_are_not_square_are_reckoned_with(turn):
    "The same tracks on images that are lower by a seventh: the same cameras and one lens, found or usual."
    tracks = made(path=0.8, turn=turn)[0]
    low = replace(tracks, size=(480, 232), xy=tracks.xy * [1, 232 / 270])
    square = solve_tracks(tracks, None, flat(20))
    oblong = solve_tracks(low, None, DepthMaps(np.full((20, 23, 48), 5, np.float32)), pixel=270 / 232)
    assert np.allclose(oblong.K[:, 0, 0], oblong.K[:, 1, 1] * 270 / 232, rtol=1e-12)
    assert abs(oblong.K[0, 0, 0] / square.K[0, 0, 0] - 1) < 0.03 and off(oblong.centres, square.centres) < 0.03


@pytest.mark.parametrize("seed", range(3))
def test_a_made_up_shot_with_a_known_lens_is_found(seed):
    tracks, K, cameras, centres, X = made(seed=seed)
    track = sound(solve_tracks(tracks, K, flat(20)), 20)
    assert set(track.status) == {"solved"} and off(track.centres, centres) < 0.01
    turned = track.cam_from_world[:, :3, :3] @ track.cam_from_world[0, :3, :3].T
    assert np.abs(turned - cameras[:, :3, :3] @ cameras[0, :3, :3].T).max() < 2e-3


@pytest.mark.parametrize("lens", [0.75, 1.0, 1.4])
def test_the_lens_is_found_where_the_camera_turns(lens):
    tracks = made(path=0.8, turn=0.4, noise=0.1)[0]
    if lens != 1:
        tracks = replace(
            tracks,
            size=tuple(int(n / lens) for n in SIZE),
            xy=tracks.xy + (np.array([int(n / lens) for n in SIZE]) - SIZE) / 2,
        )
    track = solve_tracks(tracks, None, flat(20))
    assert abs(track.K[0, 0, 0] / 500 - 1) < 0.03 and np.ptp(track.K[:, 0, 0]) == 0 and track.facts["focal_sigma"] < 0.1


def test_a_path_without_a_turn_keeps_the_usual_lens_and_says_so():
    tracks, K, cameras, centres, X = made(turn=0)
    track = solve_tracks(tracks, None, flat(20))
    assert track.facts["focal_sigma"] > 0.1 and np.array_equal(
        track.K, guessed_intrinsics(SIZE, 20)
    ) and off(track.centres, centres) < 0.1


def test_a_zoom_is_found_frame_by_frame():
    tracks, K, cameras, centres, X = made(path=0.8, turn=0.4, zoom=1.3)
    track = sound(solve_tracks(tracks, None, flat(20), zoom=True), 20)
    assert abs(np.log(track.K[-1, 0, 0] / track.K[0, 0, 0]) - np.log(1.3)) < 0.05 and np.abs(
        track.K[:, 0, 0] / K[:, 0, 0] - 1
    ).max() < 0.08


def test_depth_in_metres_keeps_metres():
    frames, K, _ = footage()
    track = track_camera(frames, K=K, depth=depth_of(shot("track_20"), "truth"))
    gt = inverse(shot("track_20").cameras.cam_from_world)[:, :3, 3]
    assert abs(umeyama(track.centres, gt)[0] - 1) < 0.02 and np.allclose(track.depth_scale, 1)
    assert abs(umeyama(solve_tracks(made()[0], LENS, replace(flat(20), metric=True)).centres, made()[3])[0] - 1) < 0.3


@pytest.mark.parametrize("T", [MAX_KEY_FRAMES + 1, 120])
def test_long_shots_have_all_their_frames(T):
    tracks, K, cameras, centres, X = made(T=T, n=120)
    track = sound(solve_tracks(tracks, K, flat(T)), T)
    assert set(track.status) == {"solved"} and off(track.centres, centres) < 0.01


def test_sift_does_as_well():
    frames, K, depth = footage()
    track = sound(track_camera(frames[:12], K=K[:12], depth=depth[:12], tracker="sift"), 12)
    assert set(track.status) == {"solved"} and off(
        track.centres, inverse(shot("track_20").cameras.cam_from_world[:12])[:, :3, 3]
    ) < 0.02


def test_the_same_twice_and_points_have_the_colours_of_the_image():
    frames, K, depth = footage()
    a, b = (track_camera(frames[:10], K=K[:10], depth=depth[:10]) for _ in range(2))
    for name in ("cam_from_world", "K", "points", "sigma", "colours", "depth_scale"):
        assert np.array_equal(getattr(a, name), getattr(b, name)), name
    assert a.colours.std() > 5 and "10 solved" in repr(a)
    first = np.flatnonzero(a.tracks.track == 7)[0]
    x, y = a.tracks.xy[first].astype(int)
    assert np.array_equal(a.colours[7], frames[a.tracks.frame[first], y, x])


def test_a_video_and_a_row_of_the_shot_table_give_the_same():
    frames, K, depth = footage()
    here, path = track_camera(frames[8:20], K=K[8:20], depth=depth[8:20]), shot("track_20").path
    class Row: start, end, start_frame = 8 / 24, 20 / 24, 8
    for part in ((8, 20), Row):
        there = track_camera(path, part, K=K[8:20], depth=depth[8:20])
        assert np.array_equal(here.cam_from_world, there.cam_from_world)
        assert (there.rate, there.start, here.start) == (24, 8, 0)
    assert np.array_equal(track_camera(frames, (8, 20), K=K[8:20], depth=depth[8:20]).points, here.points)


def test_two_frames_of_a_moving_camera_are_enough():
    frames, K, depth = footage()
    track = sound(track_camera(frames[[10, 14]], K=K[10], depth=DepthMaps(depth.maps[[10, 14]])), 2)
    gt = inverse(shot("track_20").cameras.cam_from_world[[10, 14]])
    # in the axes of the first
    step, right = (inverse(T)[1, :3, 3] @ T[0, :3, :3].T + T[0, :3, 3] for T in (track.cam_from_world, inverse(gt)))
    assert set(track.status) == {"solved"} and step @ right / np.linalg.norm(step) / np.linalg.norm(right) > 0.95


# ---- order and units

@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000), unit=st.floats(1e-3, 1e3))
def test_neither_order_of_tracks_nor_unit_of_depth_matters(seed, unit):
    tracks, K, *_ = made(T=10, n=80)
    number = np.random.default_rng(seed).permutation(len(tracks))
    order = np.lexsort((tracks.frame, number[tracks.track]))
    mixed = replace(tracks, frame=tracks.frame[order], track=number[tracks.track][order], xy=tracks.xy[order])
    a, b = solve_tracks(tracks, K, flat(10)), solve_tracks(mixed, K, flat(10, 5.0 * unit))
    s, R, t = umeyama(b.centres, a.centres)
    spread = np.linalg.norm(np.ptp(a.centres, axis=0))
    assert np.abs(s * b.centres @ R.T + t - a.centres).max() < 0.01 * spread and abs(np.log(s * unit)) < 0.05


def test_the_noise_of_tracks_is_measured_whatever_the_camera_does():
    for noise in (0.05, 0.3): assert 0.8 < track_noise(made(T=40, noise=noise)[0]) / noise < 1.2
    assert track_noise(made(T=3)[0]) == 0


# ---- real footage

@pytest.mark.parametrize("name, begin, limit", [("hololens", 24, 0.05), ("sevenscenes", 0, 0.15)])
def test_real_windows_are_solved_near_their_published_poses(real, name, begin, limit):
    posed = [f for n, f in zip(range(begin + 12), posed_frames(real / name)) if n >= begin]
    frames, K = np.stack([f.image for f in posed]), np.stack([f.K for f in posed])
    centres = inverse(np.stack([f.cam_from_world for f in posed]))[:, :3, 3]
    track = sound(track_camera(frames, K=K, depth=sensor_depth(posed)), 12)
    assert set(track.status) == {"solved"} and off(track.centres, centres) < limit
    assert 0.8 < umeyama(track.centres, centres)[0] < 1.25  # sensor depth is in metres


def test_without_depth_both_ways_to_begin_are_tried(real):
    posed = [f for n, f in zip(range(9), posed_frames(real / "hololens", check=False)) if n >= 1]
    centres = inverse(np.stack([f.cam_from_world for f in posed]))[:, :3, 3]
    tracks = klt_tracks(np.stack([f.image for f in posed]))
    track = sound(solve_tracks(tracks, np.stack([f.K for f in posed])), 8)
    # from points that are equally far: twice as much, at the same error in pixels
    assert off(track.centres, centres) < 0.06
    assert track.facts["tracker"] == "klt"


# ---- keyframes

def passing(T, stays, per_frame=20):
    "Tracks that begin in every frame and stay in view for some frames."
    begin = np.repeat(np.arange(T), per_frame)
    track, age = np.repeat(np.arange(len(begin)), stays), np.tile(np.arange(stays), len(begin))
    frame = begin[track] + age
    inside = frame < T
    xy = np.random.default_rng(0).uniform(0, 1, (inside.sum(), 2)) * SIZE
    return Tracks(frame[inside], track[inside], xy, T, SIZE)


def test_fast_shots_have_more_keyframes_and_slow_ones_as_many_as_before():
    slow, fast = passing(150, 40), passing(150, 5)
    even = np.unique(np.linspace(0, 149, MAX_KEY_FRAMES).round().astype(int))
    assert (select_key_frames(slow) == even).all()
    keys = select_key_frames(fast)
    assert set(even) < set(keys.tolist()) and len(keys) == 2 * MAX_KEY_FRAMES
    assert len(select_key_frames(passing(60, 2))) == 60 and (np.diff(keys) > 0).all()


def test_a_keyframe_is_added_where_two_share_too_little():
    tracks = passing(150, 12)
    blink = tracks.keep(~((tracks.frame[np.flatnonzero(np.diff(tracks.track, prepend=-1))] < 75)[tracks.track]
                          & (tracks.frame >= 75)))[0]  # all tracks end at frame 75
    more = np.setdiff1d(select_key_frames(blink), select_key_frames(tracks))
    assert len(more) and (np.abs(more - 75) < 8).all()
