"Initialisation: exact on exact data, the better of the two ways wins, and all frames are registered."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation

from primenb.sfm.adjust import Adjustment
from primenb.sfm.geometry import Tracks, inverse, unproject, pose, project, umeyama
from primenb.sfm.start import (
    MIN_POINTS, initial_pair, inlier_tolerance, refine, register_frames, relative_pose, resect, second_frame,
)

SIZE, K = (640, 480), np.array([[600., 0, 320], [0, 600, 240], [0, 0, 1]])


def made(T=8, n=100, path=0.3, turn=0.05, noise=0.0, depth_noise=0.0, seed=0):
    "Tracks, true cameras, true points, and the prior's disparity at each observation."
    rng, s = np.random.default_rng(seed), np.linspace(0, 1, T)[:, None]
    cameras = pose(s * [0.2 * turn, turn, 0.1 * turn], -path * s * [1, 0.1, 0.3])
    X = np.c_[
        rng.uniform(-1.2, 1.2, n), rng.uniform(-0.8, 0.8, n), np.ones(n)
    ] * rng.uniform(3, 8, (n, 1)) * [0.35, 0.35, 1]
    xy, z = project(X[:, None], cameras, K)
    tracks = Tracks(
        np.tile(np.arange(T), n),
        np.repeat(np.arange(n), T),
        xy.reshape(-1, 2) + rng.normal(0, noise, (n * T, 2)),
        T,
        SIZE,
    )
    return tracks, cameras, X, 1 / (z * np.exp(rng.normal(0, depth_noise, (n, 1)))).ravel()


def Ks(T): return np.tile(K, (T, 1, 1))
def degrees(A, B): return np.degrees(Rotation.from_matrix(A[:3, :3] @ B[:3, :3].T).magnitude())


def direction(a, b): return np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b))


# ---- one camera

@settings(max_examples=25, deadline=None)
@given(turn=st.tuples(*[st.floats(-0.4, 0.4)] * 3), shift=st.tuples(*[st.floats(-1, 1)] * 3), seed=st.integers(0, 99))
def test_a_camera_is_found_exactly_from_exact_points(turn, shift, seed):
    rng, gt = np.random.default_rng(seed), pose(np.array(turn), np.array(shift))
    seen = np.c_[rng.uniform(0, 640, 40), rng.uniform(0, 480, 40)]
    X = unproject(seen, rng.uniform(2, 9, 40), gt, K)
    found, agree = resect(X, seen, K, SIZE)
    assert agree.all() and np.allclose(found, gt, atol=1e-5)


def test_wrong_points_do_not_carry_the_camera_away():
    rng, gt = np.random.default_rng(0), pose(np.array([0.1, 0.2, 0]), np.array([0.3, 0, 0.1]))
    seen = np.c_[rng.uniform(0, 640, 100), rng.uniform(0, 480, 100)]
    X = unproject(seen, rng.uniform(2, 9, 100), gt, K)
    seen[:50] += rng.uniform(20, 100, (50, 2))
    found, agree = resect(X, seen, K, SIZE)
    assert not agree[:50].any() and agree[50:].all() and np.allclose(found, gt, atol=1e-4)


@pytest.mark.parametrize("n", [0, 3, MIN_POINTS - 1])
def test_too_few_points_give_no_camera(n):
    found, agree = resect(np.ones((n, 3)), np.ones((n, 2)), K, SIZE)
    assert found is None and agree.shape == (n,) and not agree.any()


def test_points_that_have_nothing_to_do_with_the_picture_give_no_camera():
    rng = np.random.default_rng(0)
    assert resect(rng.uniform(-2, 2, (200, 3)) + [0, 0, 5], rng.uniform(0, 480, (200, 2)), K, SIZE)[0] is None


def test_the_tolerance_grows_with_the_picture():
    assert inlier_tolerance((100, 50)) == 1
    assert inlier_tolerance((1920, 1080)) == inlier_tolerance((1080, 1920)) == pytest.approx(5.76)


# ---- two cameras

def test_the_essential_matrix_finds_turn_and_direction_and_counts_wide_points():
    tracks, cameras, X, d = made(path=2.0)
    found, wide = relative_pose(tracks, Ks(8), 0, 7)
    assert degrees(found, cameras[7]) < 0.05 and direction(found[:3, 3], cameras[7, :3, 3]) < 0.5 and wide > 90
    assert np.linalg.norm(found[:3, 3]) == pytest.approx(1)


def test_no_points_are_wide_where_nothing_moves():
    for turn in (0.0, 0.1):
        tracks = made(path=0.0, turn=turn)[0]
        assert relative_pose(tracks, Ks(8), 0, 7)[1] == 0
    few = made(n=MIN_POINTS - 1)[0]
    assert relative_pose(few, Ks(8), 0, 7) == (None, 0)


def test_the_partner_is_far_but_shares_enough():
    tracks = made(T=10, n=100)[0]
    assert second_frame(tracks, 0) == 9 and second_frame(tracks, 9) == 0
    short, _ = tracks.keep((tracks.frame < 6) | (tracks.track < 30))  # later frames share three tenths
    assert second_frame(short, 0) == 5


def test_a_short_step_is_found_by_depth_and_a_long_one_by_triangles():
    tracks, cameras, X, d = made(T=2, n=200, path=0.02, noise=0.3, depth_noise=0.1)
    found, points = initial_pair(tracks, Ks(2), d, 0)
    z = points[:, 2]
    assert np.allclose(z, 1 / d[::2]) and degrees(found[1], cameras[1]) < 0.1  # all lifted, as the prior says
    tracks, cameras, X, d = made(T=2, n=200, path=2.0, noise=0.3, depth_noise=0.1)
    found, points = initial_pair(tracks, Ks(2), d, 0)
    assert degrees(found[1], cameras[1]) < 0.2 and direction(found[1, :3, 3], cameras[1, :3, 3]) < 1
    ratio = points[:, 2] / X[:, 2]
    assert np.nanstd(np.log(ratio)) < 0.03  # far better than the prior's 0.1
    assert abs(np.nanmedian(np.log(ratio))) < 0.05  # at the prior's scale


def test_without_the_prior_only_triangles_count():
    tracks, cameras, X, d = made(T=2, n=200, path=1.0)
    found, points = initial_pair(tracks, Ks(2), np.full(len(d), np.nan), 0, use_depth=False)
    assert degrees(found[1], cameras[1]) < 0.05 and np.isfinite(points).all(1).sum() > 150


# ---- all cameras

@pytest.mark.parametrize("path", [0.01, 0.1, 1.0])
def test_growing_is_exact_on_exact_data(path):
    tracks, cameras, X, d = made(T=9, path=path)
    scene = register_frames(Adjustment(tracks, Ks(9), d), *initial_pair(tracks, Ks(9), d, 0))
    assert np.allclose(scene.cam_from_world, cameras, atol=2e-4 * path + 1e-6) and np.allclose(
        scene.points, X, rtol=1e-2, atol=1e-2
    )


def test_growing_reaches_frames_that_the_first_does_not_see():
    tracks, cameras, X, d = made(T=30, n=300, path=0.6, noise=0.1, depth_noise=0.05)
    alive = np.abs(tracks.frame - tracks.track % 30) <= 8  # each track is seen in some frames only
    d, (tracks, _) = d[alive], tracks.keep(alive)
    scene = register_frames(Adjustment(tracks, Ks(30), d), *initial_pair(tracks, Ks(30), d, 0))
    found, gt = inverse(scene.cam_from_world)[:, :3, 3], inverse(cameras)[:, :3, 3]
    s, R, t = umeyama(found, gt)
    assert np.isfinite(found).all() and np.linalg.norm(s * found @ R.T + t - gt, axis=1).max() < 0.05 * 0.6


def test_a_frame_that_sees_nothing_known_stays_without_a_camera():
    tracks, cameras, X, d = made(T=8, n=60)
    rows = (tracks.frame != 5) | (tracks.track < MIN_POINTS - 2)
    d, (tracks, _) = d[rows], tracks.keep(rows)
    scene = register_frames(Adjustment(tracks, Ks(8), d), *initial_pair(tracks, Ks(8), d, 0))
    assert np.isnan(scene.cam_from_world[5]).all() and np.isfinite(np.delete(scene.cam_from_world, 5, 0)).all()


def test_the_spread_tightens_and_slow_walkers_lose_their_weight():
    tracks, cameras, X, d = made(T=16, n=120, path=0.3, noise=0.05)
    moving = tracks.track < 30
    xy = tracks.xy + np.where(moving, tracks.frame * 0.4, 0)[:, None] * [0, 1]  # across the way of the camera
    tracks = Tracks(tracks.frame, tracks.track, xy, 16, SIZE)
    problem = Adjustment(tracks, Ks(16), d)
    scene = register_frames(problem, *initial_pair(tracks, Ks(16), d, 0))
    px = problem.errors(scene)[0]
    assert problem.sigma_px < 0.3 and np.median(px[moving]) > 5 * np.median(px[~moving])
    again = refine(problem, scene)
    assert problem.cost(again) <= problem.cost(scene) * (1 + 1e-9)
