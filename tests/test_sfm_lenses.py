"Lenses: OpenCV's formulas, what the solver finds by itself or is given, cameras of others as a start."
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from primenb.core import PrimenbError
from primenb.data.corpus import tracking_shots
from primenb.sfm.geometry import Lens, Tracks, pose, project, row_slip, umeyama
from primenb.sfm.lenses import Look, look_case, seen_through
from primenb.sfm.mapper import MAX_FOCAL_SIGMA, solve_tracks, track_camera

SIZE = (320, 180)
LENS = np.array([[230.0, 0, 160], [0, 230, 90], [0, 0, 1]])
small = st.floats(-0.05, 0.05)


def spun(lens=Lens(), zoom=0.0, axis=(0.0, 0.0), T=24, n=260, noise=0.05, seed=0, focal=LENS[0, 0]):
    "Tracks of points that a lens shows of a path with turns, its intrinsics, cameras and centres."
    rng, s = np.random.default_rng(seed), np.linspace(0, 1, T)
    def camera(s):
        centre = 0.8 * np.stack([np.sin(2 * s), 0.5 * np.sin(3 * s + 1), 0.6 * s * s], -1)
        turn = np.stack([0.12 * np.sin(5 * s), 0.35 * s - 0.15, 0.1 * np.sin(4 * s)], -1)
        cameras = pose(turn, np.zeros_like(turn))
        cameras[..., :3, 3] = -np.einsum("...ij,...j->...i", cameras[..., :3, :3], centre)
        return cameras, centre
    cameras, centres = camera(s)
    K = np.tile(LENS, (T, 1, 1))
    K[:, [0, 1], [0, 1]] *= (1 + zoom * s)[:, None] * focal / LENS[0, 0]
    K[:, :2, 2] += axis
    X = np.c_[rng.uniform(-4, 4, n), rng.uniform(-2.2, 2.2, n), rng.uniform(2.5, 8, n)]
    xy, z = project(X[:, None], cameras, K)
    for _ in range(4 if lens.readout else 0):
        late = s + lens.readout * (lens.distort(xy, K)[..., 1] / SIZE[1] - 0.5) / (T - 1)
        xy, z = project(X[:, None], camera(late)[0], K)
    shown = lens.distort(xy, K)
    seen = (z > 0) & (shown > 0).all(2) & (shown < SIZE).all(2) & (np.abs(xy - SIZE) < 600).all(2)
    track, frame = np.nonzero(seen)
    measured = shown[seen] + rng.normal(0, noise, (seen.sum(), 2))
    tracks, _ = Tracks(frame, track, measured, T, SIZE).keep(np.ones(len(frame), bool), 3)
    return tracks, K, cameras, centres


def off(track, centres):
    "Root mean squared distance from the true centres as a share of the path."
    s, R, t = umeyama(track.centres, centres)
    gaps = s * track.centres @ R.T + t - centres
    return np.sqrt((gaps**2).sum(1).mean()) / np.linalg.norm(np.diff(centres, axis=0), axis=1).sum()


# ---- the formulas

@settings(max_examples=30, deadline=None)
@given(st.tuples(small, small, small), st.tuples(small, small))
def test_distortion_is_opencvs(k, p):
    rng = np.random.default_rng(0)
    xy, lens = rng.uniform(0, 1, (40, 2)) * SIZE, Lens(k=k, p=p)
    x = np.c_[(xy - LENS[:2, 2]) / 230, np.ones(40)]
    by = cv2.projectPoints(x, np.zeros(3), np.zeros(3), LENS, np.array(lens.numbers[:5]))[0][:, 0]
    assert np.allclose(lens.distort(xy, LENS), by, atol=1e-9)
    assert np.allclose(lens.undistort(by, LENS), xy, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.tuples(small, small, small, small))
def test_the_fisheye_is_opencvs(k):
    xy, lens = np.random.default_rng(1).uniform(0, 1, (40, 2)) * SIZE, Lens("fisheye", k)
    x = np.c_[(xy - LENS[:2, 2]) / 230, np.ones(40)]
    by = cv2.fisheye.projectPoints(x[:, None], np.zeros(3), np.zeros(3), LENS, np.array(k))[0][:, 0]
    assert np.allclose(lens.distort(xy, LENS), by, atol=1e-6)
    assert np.allclose(lens.undistort(by, LENS), xy, atol=1e-5)


@pytest.mark.parametrize("lens", [Lens(k=(-0.2, 0.1)), Lens("fisheye", (0.05, -0.02)), Lens("fisheye")])
def test_the_slope_of_the_radial_factor_is_that_of_finite_differences(lens):
    r2 = np.r_[1e-3, np.linspace(0.01, 1, 20)]
    both = lens.radial(r2 + 1e-6)[0] - lens.radial(r2 - 1e-6)[0]
    assert np.allclose(lens.radial(r2)[1], both / 2e-6, atol=1e-5)


@pytest.mark.parametrize("wrong", [dict(model="wide"), dict(k=(1, 2, 3, 4)), dict(p=(1,)), dict(k=(np.nan,)),
                                   dict(model="fisheye", p=(0.1, 0.1))])
def test_numbers_that_are_no_lens_are_refused(wrong):
    with pytest.raises(PrimenbError, match="lens"): Lens(**wrong)


# ---- what is found without a hint

@pytest.mark.parametrize("k1", [-0.3, -0.1, -0.03, 0.03, 0.1, 0.3])
def test_distortion_is_found(k1):
    tracks, K, _, centres = spun(Lens(k=(k1,)))
    track = solve_tracks(tracks)
    assert track.facts["lens_found"] == "distortion" and track.facts["focal_sigma"] < MAX_FOCAL_SIGMA
    assert abs(track.K[0, 0, 0] / 230 - 1) < 0.02 and abs(track.lens.k[0] - k1) < 0.02 and off(track, centres) < 2e-3


@pytest.mark.parametrize("zoom", [0.03, 0.08, 0.15, 0.3])
def test_a_zoom_that_nobody_announces_is_found(zoom):
    tracks, K, _, centres = spun(zoom=zoom)
    track = solve_tracks(tracks)
    assert track.facts["lens_found"] == "zoom" and track.lens.is_pinhole
    assert np.abs(track.K[:, 0, 0] / K[:, 0, 0] - 1).max() < 0.03 and off(track, centres) < 5e-3


@pytest.mark.parametrize("known", [True, False])
def test_a_rolling_shutter_is_found(known):
    tracks, K, _, centres = spun(Lens(readout=0.9))
    track = solve_tracks(tracks, K if known else None)
    assert track.facts["lens_found"] == "shutter" and track.lens.readout == pytest.approx(0.9, abs=0.1)
    blind = solve_tracks(tracks, K if known else None, lens="pinhole", zoom=False)
    assert off(track, centres) < 0.5 * off(blind, centres) and off(track, centres) < 5e-3


def test_a_principal_point_off_the_middle_is_found_or_the_focal_length_is_no_claim():
    tracks, K, _, centres = spun(axis=(30.0, 20.0))
    track = solve_tracks(tracks)
    error = abs(track.K[0, 0, 0] / 230 - 1)
    assert "axis" in track.facts["lens_found"] and np.abs(track.K[0, :2, 2] - K[0, :2, 2]).max() < 3
    assert error < max(0.02, 2 * track.facts["focal_sigma"])


@pytest.mark.parametrize("known", [True, False])
def test_a_pinhole_stays_one(known):
    tracks, K, *_ = spun()
    track = solve_tracks(tracks, K if known else None)
    assert track.facts["lens_found"] == "" and track.lens == Lens() and np.ptp(track.K[:, 0, 0]) == 0


def test_a_lens_that_is_called_a_pinhole_is_not_searched():
    track = solve_tracks(spun(Lens(k=(-0.1,)))[0], lens="pinhole", zoom=False)
    assert track.lens == Lens() and track.facts["lens_found"] == ""


def test_a_fisheye_is_found_in_its_own_model():
    tracks, K, _, centres = spun(Lens("fisheye", (0.03,)))
    track = solve_tracks(tracks, lens="fisheye", zoom=False)
    assert track.lens.model == "fisheye" and abs(track.lens.k[0] - 0.03) < 0.03
    assert abs(track.K[0, 0, 0] / 230 - 1) < 0.03 and off(track, centres) < 3e-3


# ---- what is given

@pytest.mark.parametrize("lens", [Lens(k=(-0.2, 0.05), p=(0.003, -0.002)), Lens("fisheye", (0.02, 0.01)),
                                  Lens(k=(0.1,), readout=0.5)])
def test_a_given_lens_is_kept_and_observations_are_those_of_the_film(lens):
    tracks, K, _, centres = spun(lens)
    track = solve_tracks(tracks, K, lens=lens)
    assert track.lens == lens and (track.K == K).all() and off(track, centres) < 3e-3
    rows = {(f, x, y) for f, (x, y) in zip(tracks.frame.tolist(), tracks.xy.tolist())}
    kept = {(f, x, y) for f, (x, y) in zip(track.tracks.frame.tolist(), track.tracks.xy.tolist())}
    assert kept <= rows and len(kept) > 0.9 * len(rows)


def test_distortion_without_a_focal_length_is_refused():
    with pytest.raises(PrimenbError, match="focal"): solve_tracks(spun()[0], lens=Lens(k=(0.1,)))


def test_rows_slip_by_velocity_and_height():
    frame, xy = np.arange(4), np.array([[10.0, 0], [12, 45], [14, 90], [16, 180]])
    slip = row_slip(Tracks(frame, np.zeros(4, int), xy, 4, (320, 180)))
    assert np.allclose(slip[:, 0], 2 * (xy[:, 1] / 180 - 0.5)) and slip[2].tolist() == [0, 0]


# ---- cameras of others

@pytest.mark.parametrize("known", [True, False])
def test_cameras_of_others_are_refined_in_their_own_world(known):
    tracks, K, cameras, centres = spun()
    rng, world = np.random.default_rng(0), pose(np.array([0.3, -1, 0.4]), np.array([5.0, 2, -3]))
    rough = pose(rng.normal(0, 0.02, (24, 3)), rng.normal(0, 0.05, (24, 3))) @ cameras @ world
    rough[:, :3, 3] *= 7
    whole = solve_tracks(tracks, K)
    start = replace(whole, cam_from_world=rough, K=K * [[1.1, 1, 1], [1, 1.1, 1], [1, 1, 1]])
    track = solve_tracks(tracks, K if known else None, start=start)
    s, R, t = umeyama(track.centres, start.centres)
    assert off(track, centres) < 2e-3 < 0.02 < off(start, centres)
    assert abs(s - 1) < 1e-6 and np.allclose(R, np.eye(3), atol=1e-6) and np.allclose(t, 0, atol=1e-6)
    assert np.median(np.hypot(*(project(track.points[track.tracks.track], track.cam_from_world[track.tracks.frame],
                                        track.K[track.tracks.frame])[0] - track.tracks.xy).T)) < 0.2


def test_the_focal_length_of_a_start_is_where_the_search_begins():
    tracks, K, cameras, centres = spun(n=900, T=16, focal=700.0)
    start = replace(solve_tracks(tracks, K), cam_from_world=cameras, K=K * [[1.05, 1, 1], [1, 1.05, 1], [1, 1, 1]])
    track = solve_tracks(tracks, None, start=start)
    assert track.outcome == "solved" and off(track, centres) < 2e-3
    assert track.K[0, 0, 0] == pytest.approx(700, rel=0.03) and track.facts["lens_found"] == ""


def test_a_start_with_holes_is_filled_and_one_that_does_not_fit_is_refused():
    tracks, K, cameras, centres = spun()
    start = solve_tracks(tracks, K)
    holes = start.cam_from_world.copy()
    holes[5:8] = np.nan
    track = solve_tracks(tracks, K, start=replace(start, cam_from_world=holes))
    assert track.posed.all() and off(track, centres) < 2e-3
    none = np.full_like(holes, np.nan)
    for wrong in (dict(K=K[:5], cam_from_world=cameras[:5]), dict(size=(640, 360)), dict(cam_from_world=none)):
        with pytest.raises(PrimenbError, match="start"): solve_tracks(tracks, K, start=replace(start, **wrong))


# ---- drawn shots through other lenses

def test_a_look_that_is_none_changes_nothing():
    shot = next(s for s in tracking_shots() if s.key == "track_20")
    frames, K = seen_through(Look(), shot.frames()[:3], shot.cameras.K[:3], shot.cameras.cam_from_world[:3],
                             shot.depth()[:3])
    assert (frames == shot.frames()[:3]).all() and (K == shot.cameras.K[:3]).all()


def test_a_drawn_zoom_is_noticed_in_its_images():
    case = look_case("track_20", Look(zoom=0.08), None)
    track = solve_tracks(case.tracks)
    assert track.facts["lens_found"] == "zoom"
    assert np.abs(track.K[:, 0, 0] / case.K[:, 0, 0] - 1).max() < 0.05


def test_track_camera_takes_cameras_of_others():
    shot = next(s for s in tracking_shots() if s.key == "track_20")
    frames, K = shot.frames()[:16], shot.cameras.K[:16]
    track = track_camera(frames, K=K)
    again = track_camera(frames, K=K, start=track)
    assert np.abs(again.centres - track.centres).max() < 0.05 * np.linalg.norm(np.ptp(track.centres, axis=0))
