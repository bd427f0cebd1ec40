"Cameras and points: pycolmap, scipy and plain loops agree, and what is done can be undone."
import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from primenb.data.corpus import tracking_shots
from primenb.sfm.geometry import (
    CameraTrack, Tracks, directions, inverse, pose, project, rays, triangulate, umeyama, unproject, widest_angle,
)

size = (480, 270)
K = np.array([[450., 0, 238], [0, 430, 137], [0, 0, 1]])
seeds = st.integers(0, 2**32 - 1)
colmap = pycolmap.Camera(model="PINHOLE", width=480, height=270, params=[450, 430, 238, 137])


def shot(seed, T=5, P=20, px=0., missing=0.3):
    "Cameras, points before them, and which see which: (cameras, points, tracks)."
    rng = np.random.default_rng(seed)
    cameras = pose(rng.normal(0, 0.1, (T, 3)), rng.normal(0, 0.7, (T, 3)))
    X = np.stack([*rng.uniform(-2, 2, (2, P)), rng.uniform(5, 9, P)], 1)
    seen = rng.random((P, T)) > missing
    seen[:, :2] = True
    track, frame = np.nonzero(seen)
    return cameras, X, Tracks(
        frame, track, project(X[track], cameras[frame], K)[0] + rng.normal(0, px, (len(frame), 2)), T, size
    )


def stack(T): return np.broadcast_to(K, (T, 3, 3))


# ---- motions

@settings(max_examples=50, deadline=None)
@given(seeds)
def test_motions_compose_and_undo(seed):
    rng = np.random.default_rng(seed)
    turns, shifts = rng.normal(size=(2, 3, 3)), rng.normal(size=(2, 3, 3))
    T = pose(turns, shifts)
    assert T.shape == (2, 3, 4, 4) and np.allclose(
        inverse(T) @ T, np.eye(4), atol=1e-12
    ) and np.allclose(inverse(T), np.linalg.inv(T))
    assert np.allclose(T[..., :3, :3].reshape(-1, 3, 3), Rotation.from_rotvec(turns.reshape(-1, 3)).as_matrix())
    assert np.allclose(pose(T[..., :3, :3], T[..., :3, 3]), T) and np.allclose(pose(turns[0, 0], shifts[0, 0]), T[0, 0])
    assert pose(T[:1, 0, :3, :3], np.zeros((5, 3))).shape == (5, 4, 4)


# ---- images

@settings(max_examples=50, deadline=None)
@given(seeds)
def test_projection_is_colmaps(seed):
    cameras, X, tracks = shot(seed)
    for o in range(0, len(tracks.frame), 7):
        rigid, x = pycolmap.Rigid3d(cameras[tracks.frame[o], :3]), X[tracks.track[o]]
        there = rigid * x
        assert np.allclose(tracks.xy[o], colmap.img_from_cam(there), atol=1e-8)
        assert np.allclose(rays(tracks.xy[o], K)[:2], colmap.cam_from_img(tracks.xy[o])) and np.isclose(
            project(x, cameras[tracks.frame[o]], K)[1], there[2]
        )


@settings(max_examples=50, deadline=None)
@given(seeds)
def test_lifted_pixels_are_seen_where_they_were(seed):
    rng = np.random.default_rng(seed)
    cameras = pose(rng.normal(size=(4, 1, 3)), rng.normal(size=(4, 1, 3)))
    xy = rng.uniform(0, 480, (4, 9, 2))
    z = rng.uniform(0.1, 50, (4, 9))
    seen, depth = project(unproject(xy, z, cameras, K), cameras, K)
    assert np.allclose(seen, xy, atol=1e-6) and np.allclose(depth, z)


def test_what_is_behind_has_negative_depth_and_the_middle_is_finite():
    assert project(np.array([0, 0, -2.]), np.eye(4), K)[1] == -2
    assert np.isfinite(project(np.zeros(3), np.eye(4), K)[0]).all()


def test_true_depth_of_starter_shots_lands_on_itself_in_other_frames():
    one = next(s for s in tracking_shots(check=False) if s.key == "track_16")
    depth, cameras = one.depth().astype(float), one.cameras
    h, w = depth.shape[1:]
    xy = (np.stack(np.meshgrid(np.arange(w), np.arange(h)), -1).reshape(-1, 2) + 0.5) * [480 / w, 270 / h]
    z = depth[0].ravel()
    seen, there = project(
        unproject(xy[z < 1e3], z[z < 1e3], cameras.cam_from_world[0], cameras.K[0]),
        cameras.cam_from_world[10],
        cameras.K[10],
    )
    inside = ((seen > 4) & (seen < [476, 266])).all(1)
    column, row = (seen[inside] * [w / 480, h / 270]).astype(int).T
    assert np.median(np.abs(np.log(there[inside] / depth[10][row, column]))) < 0.01


# ---- tracks

@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0, 1), st.integers(1, 4))
def test_keep_is_a_plain_loop(seed, share, least):
    _, _, tracks = shot(seed % 100)
    rows = np.random.default_rng(seed).random(len(tracks.frame)) < share
    some, old = tracks.keep(rows, least)
    stay = [j for j in range(len(tracks)) if rows[tracks.track == j].sum() >= least]
    wanted = [
        (f, stay.index(j), *xy) for f, j, xy, r in zip(tracks.frame, tracks.track, tracks.xy, rows) if r and j in stay
    ]
    assert old.tolist() == stay and [(f, j, *xy) for f, j, xy in zip(some.frame, some.track, some.xy)] == wanted
    assert len(some) == len(stay) and some.lengths.tolist() == [int(rows[tracks.track == j].sum()) for j in stay]


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_points_are_where_rays_meet(seed):
    cameras, X, tracks = shot(seed)
    assert np.allclose(triangulate(tracks, cameras, stack(5)), X, atol=1e-4)
    d, centres = directions(tracks, cameras, stack(5)), inverse(cameras)[:, :3, 3]
    to = X[tracks.track] - centres[tracks.frame]
    assert np.allclose(d, to / np.linalg.norm(to, axis=1, keepdims=True), atol=1e-9)


def test_with_noise_it_is_the_nearest_point_to_the_rays_and_near_colmaps():
    cameras, X, tracks = shot(3, px=0.5)
    found = triangulate(tracks, cameras, stack(5))
    d = directions(tracks, cameras, stack(5))
    centres = inverse(cameras)[:, :3, 3]
    for j in range(5):
        rows = tracks.track == j
        def distance(x):
            return sum(np.sum(np.cross(x - centres[i], v) ** 2) for i, v in zip(tracks.frame[rows], d[rows]))
        assert np.allclose(found[j], minimize(distance, X[j], method="BFGS", options=dict(gtol=1e-12)).x, atol=1e-4)
        theirs = pycolmap.estimate_triangulation(
            tracks.xy[rows],
            [pycolmap.Rigid3d(cameras[i, :3]) for i in tracks.frame[rows]],
            [colmap] * rows.sum(),
            dict(ransac=dict(random_seed=0)),
        )
        if theirs: assert np.linalg.norm(found[j] - theirs["xyz"]) < 0.2


def test_parallel_rays_give_something_finite():
    tracks = Tracks(np.array([0, 1]), np.zeros(2, int), np.array([[100., 100]] * 2), 2, size)
    assert np.isfinite(triangulate(tracks, pose(np.zeros((2, 3)), np.array([[0, 0, 0], [1., 0, 0]])), stack(2))).all()
    assert np.isfinite(triangulate(tracks, pose(np.zeros((2, 3)), np.zeros((2, 3))), stack(2))).all()


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_widest_angle_is_at_least_half_of_the_widest_of_all_pairs(seed):
    cameras, X, tracks = shot(seed)
    centres, found = inverse(cameras)[:, :3, 3], widest_angle(tracks, X, cameras)
    for j in range(len(tracks)):
        seen = tracks.frame[tracks.track == j]
        pairs = {
            (a, b): pycolmap.calculate_triangulation_angle(centres[a], centres[b], X[j])
            for a in seen
            for b in seen
            if a < b
        }
        assert found[j] == pytest.approx(max(v for (a, _), v in pairs.items() if a == seen[0]), abs=1e-6)
        assert found[j] >= max(pairs.values()) / 2 - 1e-6


# ---- similarities

@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.01, 100))
def test_a_similarity_is_found_and_a_mirror_is_not(seed, s):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(12, 3))
    R = Rotation.random(random_state=seed).as_matrix()
    t = rng.normal(size=3)
    found = umeyama(a, s * a @ R.T + t)
    assert np.isclose(found[0], s) and np.allclose(found[1], R, atol=1e-9) and np.allclose(
        found[2], t, atol=1e-7 * max(s, 1)
    )
    assert np.isclose(np.linalg.det(umeyama(a, a * [1, 1, -1])[1]), 1)
    noisy = a + rng.normal(0, 0.1, a.shape)
    turn, _ = Rotation.align_vectors(noisy - noisy.mean(0), a - a.mean(0))
    assert np.allclose(umeyama(a, noisy)[1], turn.as_matrix(), atol=1e-6)


def test_a_single_place_has_no_size():
    s, R, t = umeyama(np.ones((4, 3)), np.full((4, 3), 3.))
    assert s == 1 and np.allclose(R @ np.ones(3) + t, 3)


def test_a_camera_track_says_where_cameras_stand_and_which_there_are():
    cameras, X, tracks = shot(0)
    cameras = cameras.copy()
    cameras[3] = np.nan
    track = CameraTrack(
        size,
        stack(5),
        cameras,
        np.array(["solved"] * 3 + ["missing", "solved"]),
        X,
        tracks,
        np.zeros((20, 3), np.uint8),
        np.zeros((5, 2)),
        np.ones(5),
    )
    assert track.posed.tolist() == [True, True, True, False, True]
    assert np.allclose(
        np.einsum("tij,tj->ti", cameras[track.posed, :3, :3], track.centres[track.posed]) + cameras[track.posed, :3, 3],
        0,
    )
