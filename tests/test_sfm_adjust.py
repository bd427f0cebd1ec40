"Bundle adjustment: the same minimum as COLMAP's and as a slow dense solver's, calibrated covariance, invariances."
from dataclasses import replace

import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import least_squares

import primenb.sfm.adjust as adjust
from primenb.core import PrimenbError
from primenb.sfm.adjust import Adjustment, Reconstruction, inlier_sigma
from primenb.sfm.geometry import Tracks, inverse, pose, project, umeyama

size, f = (480, 270), 450.
K = np.array([[f, 0, 240], [0, f, 135], [0, 0, 1]])
seeds = st.integers(0, 2**32 - 1)
SQUARES = 1e5  # errors so far off that all count in full


def world(T=6, P=40, px=0.3, depth=0.1, seed=0, far=1., missing=0.2):
    "Cameras that move sideways, tracks and disparity with noise and gaps: (problem's data, ground-truth scene)."
    rng = np.random.default_rng(seed)
    cameras = pose(rng.normal(0, 0.02, (T, 3)), np.stack([-np.linspace(0, far, T), *rng.normal(0, 0.05, (2, T))], 1))
    z = rng.uniform(4, 8, P)
    X = np.stack([rng.uniform(-0.3, 0.45, P) * z, rng.uniform(-0.2, 0.2, P) * z, z], 1)
    seen = rng.random((P, T)) > missing
    seen[:, :2] = True
    track, frame = np.nonzero(seen)
    xy, depths = project(X[track], cameras[frame], K)
    tracks = Tracks(frame, track, xy + rng.normal(0, px, xy.shape), T, size)
    disparity = np.exp(rng.normal(0, depth, len(frame))) / depths if depth else 1 / depths
    return tracks, disparity, Reconstruction(cameras, X, np.zeros(T), np.zeros(T))


def shaken(scene, seed=1, turn=0.01, shift=0.05, points=0.1):
    "Every camera but the first a little off, and every point."
    rng = np.random.default_rng(seed)
    motion = pose(rng.normal(0, turn, (len(scene.log_scale), 3)), rng.normal(0, shift, (len(scene.log_scale), 3)))
    motion[0] = np.eye(4)
    return replace(
        scene,
        cam_from_world=motion @ scene.cam_from_world,
        points=scene.points + rng.normal(0, points, scene.points.shape),
    )


def carried(scene, motion, size=1.):
    "The same scene with the world moved and made larger."
    cameras = scene.cam_from_world @ inverse(motion)
    cameras[:, :3, 3] *= size
    return replace(
        scene,
        cam_from_world=cameras,
        points=size * (scene.points @ motion[:3, :3].T + motion[:3, 3]),
        log_scale=scene.log_scale + np.log(size),
    )


def same_path(a, b, shift, turn):
    "Two lists of cameras agree after the best similarity."
    ca, cb = inverse(a)[:, :3, 3], inverse(b)[:, :3, 3]
    s, R, t = umeyama(ca, cb)
    assert np.abs(s * ca @ R.T + t - cb).max() < shift
    assert np.abs(a[:, :3, :3] @ R.T - b[:, :3, :3]).max() < turn


# ---- trusted libraries

def colmap(tracks, scene, loss, scale, refine):
    "COLMAP's bundle adjustment from the same start: cameras and focal length."
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=1, model="SIMPLE_PINHOLE", width=size[0], height=size[1], params=[f, 240, 135])
    )
    place = np.empty(len(tracks.frame), int)
    for t in range(tracks.frames):
        rows = np.flatnonzero(tracks.frame == t)
        place[rows] = np.arange(len(rows))
        model.add_image_with_trivial_frame(
            pycolmap.Image(name=f"{t}", keypoints=tracks.xy[rows], camera_id=1, image_id=t + 1),
            pycolmap.Rigid3d(scene.cam_from_world[t, :3]),
        )
    for p, X in enumerate(scene.points):
        model.add_point3D(
            X,
            pycolmap.Track(
                [
                    pycolmap.TrackElement(int(tracks.frame[o]) + 1, int(place[o]))
                    for o in np.flatnonzero(tracks.track == p)
                ]
            ),
            np.zeros(3, np.uint8),
        )
    options = pycolmap.BundleAdjustmentOptions(
        refine_focal_length=refine, refine_extra_params=False, print_summary=False
    )
    options.ceres.loss_function_type, options.ceres.loss_function_scale = loss, scale
    options.ceres.solver_options.gradient_tolerance, options.ceres.solver_options.num_threads = 1e-10, 1
    pycolmap.bundle_adjustment(model, options)
    return np.stack(
        [np.vstack([model.images[t + 1].cam_from_world().matrix(), [0, 0, 0, 1]]) for t in range(tracks.frames)]
    ), model.cameras[1].params[0]


@pytest.mark.parametrize("refine", [False, True], ids=["focal known", "focal unknown"])
@pytest.mark.parametrize("robust", [False, True], ids=["squares", "cauchy"])
def test_without_depth_it_is_colmaps_bundle_adjustment(robust, refine):
    tracks, _, gt = world()
    if robust:
        tracks = replace(
            tracks, xy=tracks.xy + np.where(np.random.default_rng(3).random((len(tracks.xy), 1)) < 0.05, 15., 0.)
        )
    start = shaken(gt)
    loss = pycolmap.LossFunctionType.CAUCHY if robust else pycolmap.LossFunctionType.TRIVIAL
    theirs, focal = colmap(tracks, start, loss, 1., refine)  # half a pixel, counted in full up to two spreads
    ours = Adjustment(
        tracks,
        K,
        sigma_px=0.5,
        cauchy_scale=2. if robust else SQUARES,
        metric=True,
        focal="one" if refine else "fixed",
        focal_sigma=1e4,
    ).solve(start, 100, 1e-15)
    same_path(ours.cam_from_world, theirs, 1e-4, 1e-5)
    assert ours.intrinsics(np.repeat(K[None], 6, 0))[0, 0, 0] == pytest.approx(focal, rel=1e-4)


def slow_residuals(x, tracks, disparity, problem):
    "All errors over their spreads, one observation after the other; scipy sums their squares."
    T, P = tracks.frames, len(tracks)
    motion = x[: 6 * T].reshape(T, 6)
    a = x[6 * T : 7 * T]
    phi = x[7 * T]
    b = x[7 * T + 1]
    X = x[7 * T + 2 :].reshape(P, 3)
    cameras, out = pose(motion[:, :3], motion[:, 3:]), []
    for o, (i, j) in enumerate(zip(tracks.frame, tracks.track)):
        x_c, y_c, z = cameras[i, :3, :3] @ X[j] + cameras[i, :3, 3]
        out.append((np.exp(phi) * f * x_c / z + 240 - tracks.xy[o, 0]) / problem.sigma_px)
        out.append((np.exp(phi) * f * y_c / z + 135 - tracks.xy[o, 1]) / problem.sigma_px)
        if not disparity[o] > 0: continue
        samples = sum(disparity[k] > 0 for k in np.flatnonzero(tracks.track == j))
        out.append(
            np.log(z * (np.exp(-a[i]) * disparity[o] + b)) / np.sqrt(
                problem.sigma_frame**2 + samples * problem.sigma_track**2
            )
        )
    return np.array([*out, *(a / adjust.SCALE_SIGMA), phi / problem.focal_sigma, b / adjust.SHIFT_SIGMA])


def packed(scene):
    "A scene as the vector that `slow_residuals` takes."
    from scipy.spatial.transform import Rotation
    motion = np.concatenate(
        [Rotation.from_matrix(scene.cam_from_world[:, :3, :3]).as_rotvec(), scene.cam_from_world[:, :3, 3]], 1
    )
    return np.concatenate([motion.ravel(), scene.log_scale, [scene.log_focal[0], scene.shift], scene.points.ravel()])


def tiny(seed=0, cauchy_scale=SQUARES):
    "A small problem with everything unknown: depth with gaps, scales, a shift, a wrong focal length."
    tracks, d, gt = world(4, 14, 0.2, 0.05, seed)
    rng = np.random.default_rng(seed)
    d = d * np.exp(rng.normal(0, 0.05, 4))[tracks.frame] - 0.01
    d[rng.random(len(d)) < 0.2] = np.nan
    return tracks, d, Adjustment(
        tracks,
        K,
        d,
        sigma_px=0.3,
        focal="one",
        shift=True,
        focal_sigma=0.1,
        cauchy_scale=cauchy_scale,
    ), gt


def test_with_depth_it_is_the_minimum_of_a_slow_dense_solver():
    tracks, d, problem, gt = tiny()
    anchored = carried(gt, gt.cam_from_world[0])
    ours = problem.solve(shaken(anchored), 200, 1e-15)
    x = packed(shaken(anchored))
    free = np.arange(len(x)) >= 6  # the first camera is the anchor
    def errors(part): return slow_residuals(np.where(free, np.concatenate([np.zeros(6), part]), x), tracks, d, problem)
    theirs = least_squares(errors, x[free], xtol=1e-15, ftol=1e-15, gtol=1e-12, x_scale="jac")
    assert problem.cost(ours) == pytest.approx(2 * theirs.cost, rel=1e-7)
    found = packed(ours)[free]
    assert np.abs(found[:18] - theirs.x[:18]).max() < 1e-4, "cameras"
    assert np.abs(found[18:24] - theirs.x[18:24]).max() < 1e-4, "scales, focal length, shift"


def test_the_answer_is_a_minimum_of_the_robust_cost():
    tracks, d, problem, gt = tiny(5)
    far = np.random.default_rng(0).random(len(d)) < 0.1
    problem = Adjustment(
        replace(tracks, xy=tracks.xy + 20 * far[:, None]),
        K,
        d * np.where(far[::-1], 3, 1),
        sigma_px=0.3,
        focal="one",
        shift=True,
    )
    start = shaken(gt)
    found = problem.solve(start, 300, 1e-15)
    def slope(at, h=1e-6):
        moved = np.eye(len(problem.free))[problem.free] * h
        return np.array(
            [
                problem.cost(problem._changed(at, m, at.points)) - problem.cost(problem._changed(at, -m, at.points))
                for m in moved
            ]
        ) / (2 * h)
    assert np.abs(slope(found)).max() < 1e-3 * np.abs(slope(start)).max()
    assert problem.cost(found) < problem.cost(gt) < problem.cost(start)


def test_covariance_is_that_of_the_dense_inverse():
    tracks, d, problem, gt = tiny(2)
    at = problem.solve(carried(gt, gt.cam_from_world[0]), 100, 1e-15)
    n, P = len(problem.free), len(tracks)
    def errors(change):
        there = problem._changed(at, change[:n], at.points + change[n:].reshape(P, 3))
        return slow_residuals(packed(there), tracks, d, problem)
    A = np.stack([(errors(e * 1e-6) - errors(e * -1e-6)) / 2e-6 for e in np.eye(n + 3 * P)], 1)
    free = np.append(problem.free, np.ones(3 * P, bool))
    free[6] = False  # the anchor's scale: how large the world is
    whole = np.zeros((len(free),) * 2)
    whole[np.ix_(free, free)] = np.linalg.inv(A[:, free].T @ A[:, free])
    rows = (np.arange(4)[:, None] * problem.width + np.arange(6)).ravel()
    wanted = whole[np.ix_(rows, rows)]
    # points are held a little, so that blocks can always be inverted
    assert np.abs(problem.covariance(at) - wanted).max() < 1e-2 * np.abs(wanted).max()
    assert (problem.covariance(at)[:6] == 0).all()


def test_uncertainty_of_the_lens_is_that_of_the_dense_inverse():
    tracks, d, problem, gt = tiny(3)
    at = problem.solve(carried(gt, gt.cam_from_world[0]), 100, 1e-15)
    x = packed(at)
    A = np.stack(
        [
            (slow_residuals(x + e, tracks, d, problem) - slow_residuals(x - e, tracks, d, problem)) / 2e-6
            for e in 1e-6 * np.eye(len(x))[6:]
        ],
        1,
    )
    assert problem.focal_sigma_estimate(at) == pytest.approx(
        np.linalg.inv(A.T @ A)[6 * 3 + 4, 6 * 3 + 4] ** 0.5, rel=1e-3
    )
    assert Adjustment(tracks, K, d).focal_sigma_estimate(at) == 0


# ---- what must not matter

@settings(max_examples=25, deadline=None)
@given(seeds, st.floats(0.1, 10))
def test_cost_does_not_care_where_the_world_is_nor_how_large(seed, large):
    rng = np.random.default_rng(seed)
    tracks, d, gt = world(4, 20, seed=seed % 1000)
    scene, problem = replace(shaken(gt, seed), log_scale=rng.normal(0, 0.1, 4)), Adjustment(tracks, K, d)
    motion = pose(rng.normal(size=3), rng.normal(size=3))
    assert problem.cost(carried(scene, motion)) == pytest.approx(problem.cost(scene), rel=1e-8)
    larger = carried(scene, motion, large)
    assert problem._weights(problem._residuals(larger)[0])[1] == pytest.approx(
        problem._weights(problem._residuals(scene)[0])[1], rel=1e-8
    )  # only the expected scales know


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_the_anchor_does_not_change_the_path(seed):
    tracks, d, gt = world(5, 30, seed=seed % 1000)
    a, b = (Adjustment(tracks, K, d, anchor=n).solve(gt, 60, 1e-13) for n in (0, 3))
    same_path(a.cam_from_world, b.cam_from_world, 1e-3, 1e-4)
    assert (a.cam_from_world[0] == gt.cam_from_world[0]).all() and (b.cam_from_world[3] == gt.cam_from_world[3]).all()


@settings(max_examples=10, deadline=None)
@given(seeds)
def test_the_truth_stays_and_is_found_again(seed):
    tracks, d, gt = world(6, 40, 0, 0, seed % 1000)
    problem = Adjustment(tracks, K, d)
    assert problem.cost(gt) < 1e-12 and np.abs(problem.solve(gt).cam_from_world - gt.cam_from_world).max() < 1e-8
    found = problem.solve(shaken(gt, seed), 60, 1e-14)
    assert np.abs(found.cam_from_world - gt.cam_from_world).max() < 1e-3 and problem.cost(found) < 1e-6


def test_solving_never_makes_it_worse_and_is_the_same_twice():
    tracks, d, gt = world(seed=4)
    problem, start = Adjustment(tracks, K, d), shaken(gt, 2, 0.1, 0.5, 1.)
    costs = [problem.cost(problem.solve(start, n, 0)) for n in range(8)]
    assert (np.diff(costs) <= 0).all()
    assert (problem.solve(start).cam_from_world == problem.solve(start).cam_from_world).all()


# ---- choices

def test_a_wrong_focal_length_is_corrected():
    tracks, d, gt = world(8, 60, 0.02, 0, far=2)
    wrong = K * np.array([[1.1, 1, 1], [1, 1.1, 1], [1, 1, 1]])
    one = Adjustment(tracks, wrong, d, focal="one").solve(gt, 100, 1e-12)
    assert np.exp(one.log_focal) * 1.1 == pytest.approx(1, abs=0.01)
    assert len(set(one.log_focal)) == 1
    each = Adjustment(tracks, wrong, d, focal="each").solve(gt, 100, 1e-12)
    assert np.exp(each.log_focal) * 1.1 == pytest.approx(1, abs=0.02)
    assert (Adjustment(tracks, wrong, d).solve(gt).log_focal == 0).all()


def test_a_shift_of_the_disparity_is_found():
    tracks, d, gt = world(8, 60, 0.02, 0, far=3)
    found = Adjustment(tracks, K, d + 0.05, shift=True, sigma_track=0.01, sigma_frame=0.01).solve(gt, 100, 1e-13)
    assert found.shift * np.exp(found.log_scale.mean()) == pytest.approx(-0.05, rel=0.1)


def test_a_camera_on_a_tripod_stays_and_metres_stay_metres():
    tracks, d, gt = world()
    still = replace(gt, cam_from_world=pose(gt.cam_from_world[:, :3, :3], np.zeros((6, 3))))
    found = Adjustment(tracks, K, d, nodal=True).solve(still)
    assert np.abs(inverse(found.cam_from_world)[:, :3, 3]).max() < 1e-12
    assert (Adjustment(tracks, K, d, metric=True).solve(gt).log_scale == 0).all()


def test_unknown_choice_is_refused():
    tracks, d, _ = world()
    with pytest.raises(PrimenbError, match="fixed, one or each"): Adjustment(tracks, K, d, focal="free")


# ---- parts and spreads

def test_a_part_is_the_problem_of_its_observations():
    tracks, d, gt = world()
    rows = np.random.default_rng(0).random(len(d)) < 0.7
    part, old = Adjustment(tracks, K, d).subset(rows)
    kept = rows & np.isin(tracks.track, [j for j in range(len(tracks)) if rows[tracks.track == j].sum() >= 2])
    few, names = tracks.keep(kept)
    alone = Adjustment(few, K, d[kept])
    assert (names == old).all()
    scene = shaken(replace(gt, points=gt.points[old]))
    assert part.cost(scene) == alone.cost(scene)


def test_aim_and_place_lower_the_cost_and_keep_the_rest():
    tracks, d, gt = world(px=0.1)
    problem, start = Adjustment(tracks, K, d), shaken(gt, 1, 0.005, 0.02, 0.02)
    aimed, covariance = problem.refine_cameras(start)
    placed = problem.refine_points(start, 6)
    assert problem.cost(aimed) < problem.cost(start) and (
        aimed.points == start.points
    ).all() and covariance.shape == (6, 6, 6)
    assert problem.cost(placed) < problem.cost(start) and (placed.cam_from_world == start.cam_from_world).all()
    alone, _ = problem.subset(tracks.frame != 4)
    assert np.diag(
        alone.refine_cameras(replace(start))[1][4]
    ).min() > 1e6, "nothing is known of a camera that sees nothing"
    assert (alone.solve(start).cam_from_world[4] == start.cam_from_world[4]).all()


@pytest.mark.parametrize("sigma_track, sigma_frame", [(0.1, 0.05), (0.2, 0.03), (0.04, 0.1)])
def test_spreads_are_learnt(sigma_track, sigma_frame):
    tracks, d, gt = world(12, 300, 0.2, 0, far=2)
    rng = np.random.default_rng(0)
    d = d * np.exp(rng.normal(0, sigma_track, 300)[tracks.track] + rng.normal(0, sigma_frame, len(d)))
    problem = Adjustment(tracks, K, d)
    problem.track_ratio = np.ones(300)
    scene = gt
    for _ in range(3):
        scene = problem.solve(scene)
        problem.estimate_sigmas(scene)
    assert [problem.sigma_px, problem.sigma_frame] == pytest.approx([0.2, sigma_frame], rel=0.3)
    # rather too little trust in depth than too much
    assert 0.8 * sigma_track < problem.sigma_track < 2 * sigma_track + 0.1


@settings(max_examples=20, deadline=None)
@given(seeds, st.floats(0.05, 2), st.floats(0, 0.4))
def test_bulk_is_the_spread_of_most(seed, sigma, moving):
    rng = np.random.default_rng(seed)
    px = np.hypot(*rng.normal(0, sigma, (2, 5000)))
    assert inlier_sigma(px) == pytest.approx(sigma, rel=0.1)
    px[: int(5000 * moving)] = 100
    assert sigma * 0.9 < inlier_sigma(px) < sigma * 1.6
