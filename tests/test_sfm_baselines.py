"Other systems on our tracks: what is written, what comes back, who solves what, and that it is the same each time."
import numpy as np
import pycolmap
import pytest

from primenb.core import PrimenbError
from primenb.data.corpus import tracking_shots
from primenb.sfm.baselines import (
    IMAGE_BASELINES, RELAXED, SFM_BASELINES, frame_pairs, images_database, initial_pairs, solve_baseline, solve_images,
    to_database,
)
from primenb.sfm.evaluate import evaluate_track
from primenb.sfm.geometry import Tracks, pose, project, rays


def scene(path_over_depth, T=20, n=300, noise=0.3, f=450.0, seed=0, zoom=1.0):
    "Tracks of points at 2 to 10 m, K, cameras and the median depth."
    rng = np.random.default_rng(seed)
    s = np.linspace(0, 1, T)
    size = (480, 270)
    K = np.array([[[f * z, 0, 240], [0, f * z, 135], [0, 0, 1.0]] for z in zoom**s])
    z = rng.uniform(2, 10, n)
    points = rays(rng.uniform(0, size, (n, 2)), K[0]) * z[:, None]
    centres = np.stack([s, 0.2 * np.sin(3 * s), 0.3 * s**2], -1)
    centres *= path_over_depth * np.median(z) / max(np.linalg.norm(np.diff(centres, axis=0), axis=1).sum(), 1e-9)
    R = pose(np.stack([0.03 * np.sin(4 * s), 0.05 * s, 0 * s], -1), np.zeros((T, 3)))[:, :3, :3]
    gt = pose(R, -np.einsum("tij,tj->ti", R, centres))
    xy, depth = project(points[:, None], gt, K)
    xy = xy + noise * rng.normal(size=xy.shape)
    track, frame = np.nonzero((depth > 0.2) & (xy > 0).all(-1) & (xy < size).all(-1))
    return Tracks(frame, track, xy[track, frame], T, size).keep(
        np.ones(len(track), bool), min_length=2
    )[0], K, gt, float(np.median(z))


@pytest.fixture(scope="module")
def high(tmp_path_factory):
    "A scene of ample parallax with its database."
    tracks, K, gt, depth = scene(0.3)
    return tracks, K, gt, depth, to_database(tracks, tmp_path_factory.mktemp("high") / "tracks.db", K)


# --- the database


@pytest.mark.parametrize("frames", [1, 2, 3, 16, 17, 40, 200])
def test_pairs(frames):
    pairs = frame_pairs(frames)
    assert pairs == sorted(set(pairs)) and all(0 <= i < j < frames for i, j in pairs)
    assert len(pairs) == frames * (frames - 1) // 2 if frames <= 16 else len(pairs) < 10 * frames
    assert {(i, i + 1) for i in range(frames - 1)} <= set(pairs) and (frames < 2 or (0, frames - 1) in pairs)


def test_database_holds_the_tracks(high):
    tracks, K, _, _, base = high
    assert base.pairs == len(frame_pairs(20)) and base.verified > 0.9 * base.pairs and base.seconds > 0
    with pycolmap.Database.open(base.path) as db:
        assert db.num_images() == 20 and db.num_cameras() == 1
        lens = db.read_all_cameras()[0]
        assert np.allclose(
            lens.calibration_matrix(), K[0]
        ) and lens.has_prior_focal_length and (lens.width, lens.height) == tracks.size
        for i, j in ((0, 1), (0, 19), (3, 6)):
            a, b = (np.flatnonzero(tracks.frame == k) for k in (i, j))
            matches = db.read_matches(i + 1, j + 1)
            assert np.array_equal(tracks.track[a[matches[:, 0]]], tracks.track[b[matches[:, 1]]])
            assert len(matches) == len(np.intersect1d(tracks.track[a], tracks.track[b]))
            assert np.allclose(db.read_keypoints(i + 1), tracks.xy[a], atol=1e-4)


def test_unknown_focal_is_guessed_and_known_zoom_is_kept(tmp_path):
    tracks, K, _, _ = scene(0.3, T=4, n=60, zoom=1.5)
    to_database(tracks, tmp_path / "free.db"), to_database(tracks, tmp_path / "zoom.db", K)
    with pycolmap.Database.open(tmp_path / "free.db") as db:
        lens, = db.read_all_cameras()
        assert lens.focal_length == 1.2 * 480 and not lens.has_prior_focal_length and (
            lens.principal_point_x, lens.principal_point_y
        ) == (240, 135)
    with pycolmap.Database.open(tmp_path / "zoom.db") as db:
        assert np.allclose([db.read_camera(db.read_image(i + 1).camera_id).calibration_matrix() for i in range(4)], K)


def test_bad_input_is_refused(high, tmp_path):
    tracks, K, _, _, base = high
    with pytest.raises(PrimenbError, match="already"): to_database(tracks, base.path, K)
    with pytest.raises(PrimenbError, match="one matrix for each frame"): to_database(tracks, tmp_path / "a.db", K[0])
    with pytest.raises(PrimenbError, match="colmap_relaxed"): solve_baseline(tracks, "best", K)


def test_first_pairs_are_far_apart_and_well_joined(high, tmp_path):
    tracks, K, _, _, base = high
    assert initial_pairs(base, 20) == [(0, 19), (0, 10), (10, 19)]
    # no track is seen in both halves
    short = tracks.keep((tracks.frame < 12) == (tracks.track % 2 == 0), min_length=2)[0]
    pairs = initial_pairs(to_database(short, tmp_path / "halves.db", K), 20)
    assert pairs[0] == (0, 10) or pairs[0][1] < 12
    assert all((i < 12) == (j < 12) for i, j in pairs) and len(pairs) >= 3
    assert initial_pairs(base, 20, min_matches=10**6) == []


# --- the solvers


@pytest.mark.parametrize("method", SFM_BASELINES)
def test_high_parallax_is_solved_by_all(high, method):
    tracks, K, gt, depth, base = high
    track, facts = solve_baseline(tracks, method, K, base=base)
    m = evaluate_track(track, K, gt, depth, facts["seconds"])
    assert m["registered"] == 1 and m["ate_over_path"] < 0.01 and m["rpe_rotation"] < 0.1 and m[
        "focal_error"
    ] == 0 and not m["failed"]
    assert set(track.status) == {"solved"} and facts["reason"] is None and track.facts is facts
    assert facts["seconds"] > facts[
        "verification"
    ] == base.seconds and facts["points"] == len(track.points) > 200 and 0.2 < facts["error"] < 0.5


@pytest.mark.parametrize("method", SFM_BASELINES)
def test_unknown_focal_is_found(method):
    tracks, K, gt, depth = scene(0.5, T=12, n=150)
    track, _ = solve_baseline(tracks, method)
    m = evaluate_track(track, K, gt, depth)
    assert m["registered"] == 1 and m["focal_error"] < 0.02 and m["ate_over_path"] < 0.02


def test_low_parallax_stops_colmap_but_not_the_expert(tmp_path):
    tracks, K, gt, depth = scene(0.01)
    base = to_database(tracks, tmp_path / "low.db", K)
    track, facts = solve_baseline(tracks, "colmap", K, base=base)
    assert not track.posed.any() and set(track.status) == {"missing"} and "parallax" in facts["reason"]
    assert facts["models"] == facts["points"] == len(track.points) == 0
    assert evaluate_track(track, K, gt, depth)["failed"]
    track, facts = solve_baseline(tracks, "colmap_relaxed", K, base=base)
    assert evaluate_track(track, K, gt, depth)["ate_over_path"] < 0.1 and facts["runs"] == 3


def test_the_question_changes_no_answer(tmp_path, monkeypatch):
    "Where no pair passes the loosest round, COLMAP itself finds no model in any round."
    tracks, K, _, _ = scene(0.01, T=8, n=150)
    base = to_database(tracks, tmp_path / "low.db", K)
    assert not solve_baseline(tracks, "colmap", K, base=base)[1]["models"]
    monkeypatch.setattr(pycolmap.logging, "minloglevel", 3)
    assert pycolmap.incremental_mapping(
        base.path, tmp_path, tmp_path, pycolmap.IncrementalPipelineOptions(dict(random_seed=0, num_threads=1))
    ) == {}


def test_same_each_time(tmp_path):
    tracks, K, _, _ = scene(0.1, T=8, n=150)
    for method in SFM_BASELINES:
        a, b = (solve_baseline(tracks, method, K, seed=3)[0] for _ in range(2))
        assert np.array_equal(
            a.cam_from_world, b.cam_from_world, equal_nan=True
        ) and np.array_equal(a.points, b.points), method


def test_zoom_is_solved_if_known():
    tracks, K, gt, depth = scene(0.3, T=10, n=200, zoom=1.4)
    track, _ = solve_baseline(tracks, "glomap", K)
    m = evaluate_track(track, K, gt, depth)
    assert np.allclose(track.K, K) and m["registered"] == 1 and m["ate_over_path"] < 0.01


# --- what comes back


@pytest.mark.parametrize("method", SFM_BASELINES)
def test_observations_show_the_points(high, method):
    tracks, K, _, _, base = high
    t = solve_baseline(tracks, method, K, base=base)[0]
    kept = t.tracks
    assert len(kept) == len(t.points) == len(t.colours) and (np.diff(kept.track) >= 0).all() and (
        kept.lengths >= 2
    ).all()
    assert len(set(zip(kept.track, kept.frame))) == len(kept.track)
    xy, z = project(t.points[kept.track], t.cam_from_world[kept.frame], t.K[kept.frame])
    assert (z > 0).all() and np.sqrt(((xy - kept.xy) ** 2).sum(1).mean()) < 0.6
    rows = {(f, *xy) for f, xy in zip(tracks.frame, tracks.xy)}
    assert all((f, *xy) in rows for f, xy in zip(kept.frame, kept.xy))


def test_frames_without_tracks_are_missing():
    tracks, K, _, _ = scene(0.3, T=10, n=150)
    track, facts = solve_baseline(tracks.keep(tracks.frame != 4, min_length=2)[0], "glomap", K)
    assert np.flatnonzero(
        track.status == "missing"
    ).tolist() == [4] and np.flatnonzero(~track.posed).tolist() == [4] and facts["reason"] is None


@pytest.mark.parametrize("method", SFM_BASELINES)
def test_too_little_is_a_reason_and_no_crash(method):
    tracks, K, _, _ = scene(0.3, T=6, n=100)
    few = tracks.keep(tracks.track < 5)[0]
    none = tracks.keep(tracks.track < 0)[0]
    single = scene(0.3, T=1, n=100)[0]
    for t in (few, none): assert solve_baseline(t, method, K)[1]["reason"]
    assert not solve_baseline(single, method, K[:1])[0].posed.any()


def test_nothing_is_said(high, capfd):
    level = pycolmap.logging.minloglevel
    for method in SFM_BASELINES: solve_baseline(scene(0.02, T=6, n=80)[0], method, None)
    assert capfd.readouterr() == ("", "") and pycolmap.logging.minloglevel == level
    assert min(RELAXED.values()) < 1


# --- from images


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    "Some frames of a drawn shot, and COLMAP's own features of them."
    shot = next(s for s in tracking_shots() if s.key == "track_12")
    frames, K = shot.frames()[:24:4], shot.cameras.K[:24:4]
    base = images_database(frames, tmp_path_factory.mktemp("drawn") / "images.db", K)
    return frames, K, shot.cameras.cam_from_world[:24:4], shot.facts["median_depth"], base


def test_keypoints_are_those_of_colmap(drawn):
    frames, K, _, _, (keypoints, base) = drawn
    assert base.pairs == 15 and base.verified > 10 and base.seconds > 0
    assert keypoints.frames == 6 and keypoints.size == (frames.shape[2], frames.shape[1])
    with pycolmap.Database.open(base.path) as db:
        lens, = db.read_all_cameras()
        assert np.allclose(lens.calibration_matrix(), K[0]) and lens.has_prior_focal_length
        for image in db.read_all_images():
            xy = keypoints.xy[keypoints.frame == int(image.name[:6])]
            assert np.allclose(xy, db.read_keypoints(image.image_id)[:, :2])


@pytest.mark.parametrize("method", IMAGE_BASELINES)
def test_images_are_solved_and_again_the_same(drawn, method):
    frames, K, gt, depth, base = drawn
    track, facts = solve_images(frames, method, K, base=base)
    metrics = evaluate_track(track, K, gt, depth)
    assert facts["seconds"] > base[1].seconds
    if method == "colmap_default":  # which needs more parallax than there is
        assert not track.posed.any() and "parallax" in facts["reason"]
    else:
        assert metrics["registered"] == 1 and metrics["ate_over_path"] < 0.05
    again = solve_images(frames, method, K, base=base)[0]
    assert np.array_equal(track.cam_from_world, again.cam_from_world, equal_nan=True)


def test_long_windows_are_matched_in_sequence_and_an_unknown_lens_is_radial(drawn, tmp_path):
    frames = drawn[0]
    base = images_database(frames, tmp_path / "free.db", exhaustive=4)[1]
    with pycolmap.Database.open(base.path) as db:
        lens, = db.read_all_cameras()
    assert lens.model.name == "SIMPLE_RADIAL" and base.pairs <= 15 and base.verified > 0


def test_images_of_a_zoom_are_refused(drawn, tmp_path):
    frames, K, *_ = drawn
    zoom = K * np.linspace(1, 2, len(K))[:, None, None]
    with pytest.raises(PrimenbError, match="changes within the shot"):
        images_database(frames, tmp_path / "zoom.db", zoom)
    with pytest.raises(PrimenbError, match="colmap_default"):
        solve_images(frames, "colmap")
