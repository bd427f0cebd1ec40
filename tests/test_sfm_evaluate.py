"The measures of a camera track: as `evo` computes them, as slow loops compute them, and what must not change them."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation

from primenb.core import PrimenbError
from primenb.sfm.evaluate import (
    AUCS,
    ERRORS,
    MAX_EPIPOLAR,
    METRICS,
    THRESHOLDS,
    align,
    count_failures,
    draw_paths,
    epipolar_errors,
    epipolar_metrics,
    epipolar_pairs,
    evaluate_track,
    improvement,
    pair_errors,
    pose_auc,
    ratio_to_best,
    rotation_angle,
    split_tracks,
    transform_cameras,
)
from primenb.sfm.geometry import CameraTrack, Tracks, inverse, pose, umeyama

K = np.array([[450.0, 0, 240], [0, 450, 135], [0, 0, 1]])


def cameras(rng, T=20, path=1.0, turn=0.3):
    "Wandering cameras."

    def walk():
        return np.cumsum(rng.normal(size=(T, 3)), 0) / np.sqrt(T)

    R = Rotation.from_rotvec(turn * walk()).as_matrix()
    return pose(R, -np.einsum("tij,tj->ti", R, path * walk()))


def shaken(gt, rng, noise=0.02):
    "The same with noise on centres and orientations, in another world."
    R = Rotation.from_rotvec(noise * rng.normal(size=(len(gt), 3))).as_matrix() @ gt[:, :3, :3]
    centres = inverse(gt)[:, :3, 3] + noise * rng.normal(size=(len(gt), 3))
    return elsewhere(pose(R, -np.einsum("tij,tj->ti", R, centres)), rng)


def elsewhere(T, rng):
    return transform_cameras(
        T, rng.uniform(0.2, 5), Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix(), rng.normal(size=3)
    )


def track(T, f=450.0):
    n, none = len(T), np.zeros(0, int)
    return CameraTrack(
        (480, 270),
        np.tile(K * [[f / 450, f / 450, 1], [f / 450, f / 450, 1], [1, 1, 1]], (n, 1, 1)),
        T,
        np.full(n, "solved"),
        np.zeros((0, 3)),
        Tracks(none, none, np.zeros((0, 2)), n, (480, 270)),
        np.zeros((0, 3), np.uint8),
        np.zeros((n, 2)),
        np.full(n, np.nan),
    )


def measured(T, gt, depth=5.0, **more):
    return evaluate_track(track(T), np.tile(K, (len(gt), 1, 1)), gt, depth, **more)


def missing(T, frames):
    T = T.copy()
    T[frames] = np.nan
    return T


def along_a_line(gt, x):
    T = gt.copy()
    T[:, :3, 3] = -np.einsum("tij,tj->ti", T[:, :3, :3], x[:, None] * [1.0, 2, -1])
    return T


# --- beside others


@pytest.mark.parametrize("seed", range(5))
def test_ate_and_rpe_are_those_of_evo(seed):
    metrics, trajectory = pytest.importorskip("evo.core.metrics"), pytest.importorskip("evo.core.trajectory")
    rng = np.random.default_rng(seed)
    gt = cameras(rng)
    found = shaken(gt, rng, 0.1)
    under_test = measured(found, gt)
    reference, other = (trajectory.PosePath3D(poses_se3=list(inverse(T))) for T in (gt, found))
    other.align(reference, correct_scale=True)
    for name, metric in dict(
        ate=metrics.APE(metrics.PoseRelation.translation_part),
        rpe_translation=metrics.RPE(metrics.PoseRelation.translation_part, delta=1, delta_unit=metrics.Unit.frames),
        rpe_rotation=metrics.RPE(metrics.PoseRelation.rotation_angle_deg, delta=1, delta_unit=metrics.Unit.frames),
    ).items():
        metric.process_data((reference, other))
        assert under_test[name] == pytest.approx(metric.get_statistic(metrics.StatisticsType.rmse), abs=1e-6), name


def test_pair_errors_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    gt = cameras(rng, 9)
    found = missing(shaken(gt, rng), [4])
    rotation, direction = pair_errors(found, gt, min_distance=0.4)
    n = 0
    for i in range(9):
        for j in range(9):
            if i == j:
                continue
            a, b = found[i] @ np.linalg.inv(found[j]), gt[i] @ np.linalg.inv(gt[j])  # camera j in the axes of camera i
            turn = (
                np.degrees(np.arccos(np.clip((np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2, -1, 1)))
                if 4 not in (i, j)
                else 180
            )
            cosine = abs(a[:3, 3] @ b[:3, 3]) / np.linalg.norm(a[:3, 3]) / np.linalg.norm(b[:3, 3])
            aside = np.degrees(np.arccos(min(cosine, 1))) if 4 not in (i, j) else 180
            assert rotation[n] == pytest.approx(turn, abs=1e-5)
            if np.linalg.norm(b[:3, 3]) > 0.4:
                assert direction[n] == pytest.approx(aside, abs=1e-5)
            else:
                assert np.isnan(direction[n])
            n += 1
    assert n == len(rotation) and np.isnan(direction).any() and (rotation == 180).sum() == 16


def test_area_is_that_of_a_fine_sum():
    errors = np.random.default_rng(0).exponential(3, 4000)
    for t in THRESHOLDS:
        assert pose_auc(errors, t) == pytest.approx(np.clip(1 - errors / t, 0, None).mean(), abs=1e-3)
    assert pose_auc(np.zeros(3), 5) == 1 and pose_auc(np.full(3, 180.0), 20) == 0


# --- the two worlds


def test_bent_paths_are_aligned_as_by_their_centres():
    rng = np.random.default_rng(1)
    gt = cameras(rng)
    found = shaken(gt, rng, 0.1)
    s, R, t = align(found, gt)
    s2, R2, t2 = umeyama(inverse(found)[:, :3, 3], inverse(gt)[:, :3, 3])
    assert s == pytest.approx(s2, rel=1e-8) and np.allclose(R, R2, atol=1e-8) and np.allclose(t, t2, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["bent", "line", "place"]), st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_copy_in_another_world_has_no_error(seed, kind, size):
    rng = np.random.default_rng(seed)
    gt = cameras(rng, 12, path=size)
    if kind != "bent":
        gt = along_a_line(gt, size * (np.sort(rng.uniform(size=12)) if kind == "line" else np.ones(12)))
    m = measured(elsewhere(gt, rng), gt, depth=5 * size)
    assert m["rpe_rotation"] < 1e-6 and m["auc_rotation"] > 1 - 1e-5 and not m["failed"]
    if kind == "place":
        assert [m[name] for name in ("ate", "rpe_translation", "jitter", "auc_translation", "auc_both")] == [None] * 5
    else:
        assert (
            m["ate_over_path"] < 1e-5
            and m["rpe_translation_over_path"] < 1e-5
            and m["jitter"] < 1e-4
            and m["auc_both"] > 1 - 1e-4
        )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_no_measure_depends_on_the_worlds(seed, straight):
    rng = np.random.default_rng(seed)
    gt = cameras(rng, 12)
    if straight:
        gt = along_a_line(gt, np.linspace(0, 1, 12) ** 2)
    found = missing(shaken(gt, rng, 0.03), [5])
    a = measured(found, gt)
    b = measured(elsewhere(found, rng), elsewhere(gt, np.random.default_rng(7)), depth=5 * scale_of(gt))
    for name in (*ERRORS, *AUCS, "registered", "jitter", "path_over_depth"):
        assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), name


def scale_of(gt):
    "How much larger the other world of seed 7 is."
    centres = [inverse(T)[:, :3, 3] for T in (elsewhere(gt, np.random.default_rng(7)), gt)]
    return np.linalg.norm(np.diff(centres[0], axis=0)) / np.linalg.norm(np.diff(centres[1], axis=0))


def test_a_line_turned_about_itself_is_told_by_the_orientations():
    rng = np.random.default_rng(3)
    gt = along_a_line(cameras(rng), np.linspace(0, 1, 20))
    found = elsewhere(gt, rng)
    assert np.allclose(transform_cameras(found, *align(found, gt)), gt, atol=1e-4)


# --- what is counted how


def test_missing_frames():
    rng = np.random.default_rng(4)
    gt = cameras(rng)
    whole, holes, lost = (measured(missing(gt, frames), gt, seconds=2.5) for frames in ([], [3, 4], slice(None)))
    step = np.linalg.norm(np.diff(inverse(gt)[:, :3, 3], axis=0), axis=1)
    turn = rotation_angle(gt[:-1, :3, :3], gt[1:, :3, :3])
    assert whole["ate"] < 1e-6 and holes["ate"] < 1e-6
    assert lost["ate"] == lost["path"] == pytest.approx(step.sum()) and lost["ate_over_path"] == 1
    assert holes["rpe_translation"] == pytest.approx(np.sqrt((step[2:5] ** 2).sum() / 19), abs=1e-5)
    assert holes["rpe_rotation"] == pytest.approx(np.sqrt((turn[2:5] ** 2).sum() / 19), abs=1e-5)
    assert lost["rpe_translation"] == lost["still_translation"] == pytest.approx(np.sqrt((step**2).mean()))
    assert lost["rpe_rotation"] == lost["still_rotation"] == pytest.approx(np.sqrt((turn**2).mean()))
    assert holes["auc_rotation"] == pytest.approx(18 * 17 / (20 * 19), abs=1e-4) and [lost[name] for name in AUCS] == [
        0,
        0,
        0,
    ]
    assert (holes["registered"], holes["failed"], lost["registered"], lost["failed"], lost["seconds"]) == (
        0.9,
        False,
        0,
        True,
        2.5,
    )
    assert measured(missing(gt, slice(0, 5)), gt)["failed"] and not measured(missing(gt, slice(0, 4)), gt)["failed"]
    assert lost["focal_error"] is None and lost["jitter"] is None


def test_results_are_plain():
    rng = np.random.default_rng(5)
    gt = cameras(rng)
    for found in (shaken(gt, rng), missing(gt, slice(None))):
        assert {type(v) for v in measured(found, gt).values()} <= {float, bool, type(None)}


def test_one_place_shows_no_direction():
    gt = cameras(np.random.default_rng(6))
    turning = gt.copy()
    turning[:, :3, 3] = -gt[:, :3, :3] @ [3.0, 1, 2]
    m = measured(turning, gt)
    assert m["auc_rotation"] > 0.999 and m["auc_translation"] == m["auc_both"] == 0 and m["ate"] > 0


def test_near_pairs_have_no_direction():
    gt = along_a_line(cameras(np.random.default_rng(6), 3), np.array([0, 1e-3, 1.0]))
    assert np.isnan(pair_errors(gt, gt, min_distance=0.01)[1]).sum() == 2
    assert (
        measured(gt, gt, depth=5.0)["auc_translation"] == pytest.approx(1)
        and measured(gt, gt, depth=5000.0)["auc_translation"] is None
    )


def test_focal_error_is_a_median():
    gt = cameras(np.random.default_rng(0))
    found = track(gt, f=450 * 1.1)
    found.K[3] *= 7
    assert evaluate_track(found, np.tile(K, (20, 1, 1)), gt, 5.0)["focal_error"] == pytest.approx(0.1)


def test_jitter_is_noise_and_not_drift():
    gt, rng = along_a_line(cameras(np.random.default_rng(0), 40), np.linspace(0, 1, 40)), np.random.default_rng(1)

    def moved(d):
        T = gt.copy()
        T[:, :3, 3] -= np.einsum("tij,tj->ti", T[:, :3, :3], d)
        return measured(T, gt)

    noise = moved(0.01 * rng.normal(size=(40, 3)))
    drift = moved(0.02 * np.sin(np.linspace(0, 6, 40))[:, None] * [0, 1, 2])
    assert drift["ate"] > noise["ate"] and noise["jitter"] > 10 * drift["jitter"]


@pytest.mark.parametrize(
    "wrong", [dict(gt=slice(0, 5)), dict(K=slice(0, 5)), dict(depth=0.0), dict(depth=np.nan), dict(nan=True)]
)
def test_truth_that_does_not_fit_is_refused(wrong):
    gt = cameras(np.random.default_rng(0))
    found = track(gt)
    gt = missing(gt, [2]) if "nan" in wrong else gt
    with pytest.raises(PrimenbError):
        evaluate_track(
            found,
            np.tile(K, (20, 1, 1))[wrong.get("K", slice(None))],
            gt[wrong.get("gt", slice(None))],
            wrong.get("depth", 5.0),
        )


# --- over many shots


@pytest.fixture(scope="module")
def rows():
    "Methods over eight shots, of which one is a nodal pan; method b fails on one shot with a few good frames."
    rows = []
    for shot in range(8):
        rng = np.random.default_rng(shot)
        gt = cameras(rng, 15)
        if shot == 7:
            gt = along_a_line(gt, np.zeros(15))
        for method, noise in dict(under_test=0.002, a=0.004, b=0.003, none=0).items():
            found = shaken(gt, rng, noise)
            if method == "none" or (method == "b" and shot == 3):
                found = missing(found, slice(3 if method == "b" else 0, None))
            rows.append(dict(method=method, shot=f"s{shot}", **measured(found, gt)))
    return pd.DataFrame(rows)


def test_failures_count_as_no_camera(rows):
    counted = count_failures(rows)
    assert rows.loc[rows.failed & (rows.method == "b"), "ate_over_path"].item() < 0.1  # three frames flatter
    b, none = (counted[(counted.method == m) & (counted.shot == "s3")].iloc[0] for m in ("b", "none"))
    for name in (*METRICS, "ate", "rpe_translation", *(f"{a}_{t}" for a in AUCS for t in THRESHOLDS)):
        assert b[name] == pytest.approx(none[name]), name
    assert counted[~counted.failed].equals(rows[~rows.failed])
    pan = counted[(counted.method == "none") & (counted.shot == "s7")].iloc[0]
    assert pan.failed and np.isnan(pan.ate_over_path) and np.isnan(pan.auc_translation) and pan.auc_rotation == 0


def test_improvement_is_over_the_best_of_each_measure(rows):
    under_test, others = rows[rows.method == "under_test"], rows[rows.method != "under_test"]
    got, counted = improvement(under_test, others), count_failures(rows)
    means = counted.groupby("method")[list(METRICS)].mean()
    for name in METRICS:
        m = means[name] if name in ERRORS else 1 - means[name]
        best = m.drop("under_test").min()
        assert got[name]["best"] == m.drop("under_test").idxmin()
        assert (
            got[name]["value"] == pytest.approx((best - m["under_test"]) / best)
            and got[name]["low"] <= got[name]["value"] <= got[name]["high"]
        )
    assert got["ate_over_path"]["best"] == "a"  # b is better but for the shot it lost
    assert got == improvement(under_test.sample(frac=1, random_state=0), others)
    assert got != improvement(under_test, others, seed=1)
    assert all(
        abs(g["value"]) < 1e-12 for g in improvement(rows[rows.method == "a"], rows[rows.method == "a"]).values()
    )


def test_improvement_wants_the_same_shots(rows):
    under_test, others = rows[rows.method == "under_test"], rows[rows.method == "a"]
    twice = pd.concat([under_test, under_test])
    for a, b in ((under_test, others.iloc[1:]), (under_test.iloc[1:], others), (twice, others)):
        with pytest.raises(PrimenbError, match="same shots"):
            improvement(a, b)
    only_pan = improvement(under_test[under_test.shot == "s7"], others[others.shot == "s7"])
    assert only_pan["ate_over_path"] is None and only_pan["rpe_rotation"] is not None


def test_paths_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    gt = cameras(rng)
    fig = draw_paths(
        gt, dict(one=track(shaken(gt, rng)), holes=track(missing(gt, [3])), none=track(missing(gt, slice(None))))
    )
    assert [line.get_label() for line in fig.axes[0].lines if line.get_label()[0] != "_"] == [
        "ground truth",
        "one",
        "holes",
    ]
    fig.savefig(tmp_path / "paths.png")


# --- without ground truth


def observed(gt, rng, noise=0.2, n=150):
    "Tracks of points in front of wandering cameras."
    points = rng.uniform([-3, -2, 6], [3, 2, 12], (n, 3))
    x = np.einsum("tij,nj->nti", gt[:, :3, :3], points) + gt[:, :3, 3]
    xy = (x @ K.T)[..., :2] / x[..., 2:] + noise * rng.normal(size=(n, len(gt), 2))
    shape = n, len(gt)
    seen = (x[..., 2] > 1) & (rng.random(shape) < 0.8)
    name, frame = np.nonzero(seen)
    return Tracks(frame, name, xy[name, frame], len(gt), (480, 270)).keep(np.ones(len(name), bool), 2)[0]


def slow_epipolar(found, tracks, min_motion):
    "Pair by pair; the epipolar line is drawn through two points of the other camera's ray."
    out = []
    for gap in (1, 2, 4, 8, 16, 32):
        for i in range(tracks.frames - gap):
            j, here = i + gap, []
            for name in range(len(tracks)):
                rows = {int(tracks.frame[r]): r for r in np.flatnonzero(tracks.track == name)}
                if i in rows and j in rows:
                    here.append((tracks.xy[rows[i]], tracks.xy[rows[j]]))
            if not here or np.median([np.hypot(*(b - a)) for a, b in here]) <= 0.02:
                continue
            for a, b in here:
                if np.hypot(*(b - a)) >= min_motion:
                    squares = [off_line(found[i], found[j], a, b) ** 2, off_line(found[j], found[i], b, a) ** 2]
                    out.append(np.sqrt(np.mean(squares)))
    return np.array(out)


def off_line(first, second, x, y):
    "Pixels from y, in the second image, to the line of those points whose image in the first is x."
    ends = []
    for z in (5.0, 50.0):
        point = np.linalg.inv(first) @ np.r_[z * np.linalg.inv(K) @ np.r_[x, 1], 1]
        image = K @ (second @ point)[:3]
        ends.append(image[:2] / image[2])
    along = (ends[1] - ends[0]) / np.hypot(*(ends[1] - ends[0]))
    return abs(along[0] * (y - ends[0])[1] - along[1] * (y - ends[0])[0])


def test_epipolar_errors_are_those_of_a_slow_loop():
    rng = np.random.default_rng(3)
    gt = cameras(rng, 9)
    gt[5] = gt[4]
    tracks = observed(gt, rng, n=60)
    again = tracks.frame == 5  # the image of frame 4, shown twice
    twin = {int(n): xy for n, xy in zip(tracks.track[tracks.frame == 4], tracks.xy[tracks.frame == 4])}
    for row in np.flatnonzero(again):
        tracks.xy[row] = twin.get(int(tracks.track[row]), tracks.xy[row])
    found = shaken(gt, rng)
    now = epipolar_errors(track(found), tracks, min_motion=2.0)
    assert np.allclose(now, slow_epipolar(found, tracks, 2.0), rtol=1e-6)
    pairs = tracks.frame[epipolar_pairs(tracks, min_motion=2.0)]
    assert not (pairs == [4, 5]).all(1).any() and len(pairs) == len(now) > 100


def test_exact_cameras_have_the_noise_and_wrong_ones_more():
    rng = np.random.default_rng(4)
    gt = cameras(rng, 12)
    tracks = observed(gt, rng, noise=0.4)
    exact = epipolar_metrics(epipolar_errors(track(gt), tracks))
    assert exact["epipolar_rms"] == pytest.approx(0.4 * np.sqrt(2), rel=0.06)
    other = epipolar_metrics(epipolar_errors(track(elsewhere(gt, rng)), tracks))
    assert other == pytest.approx(exact, rel=1e-6)  # of another world, the same cameras
    for wrong in (track(shaken(gt, rng)), track(gt, f=600.0), track(missing(gt, [3, 4]))):
        assert epipolar_metrics(epipolar_errors(wrong, tracks))["epipolar_rms"] > 1.1 * exact["epipolar_rms"]
    lost = epipolar_metrics(epipolar_errors(track(np.full_like(gt, np.nan)), tracks))
    assert lost["epipolar"] == lost["epipolar_rms"] == MAX_EPIPOLAR
    nothing = tracks.keep(np.zeros(len(tracks.frame), bool))[0]
    assert epipolar_metrics(epipolar_errors(track(gt), nothing))["epipolar"] is None


def test_cameras_at_one_place_are_judged_by_where_they_put_each_point():
    rng = np.random.default_rng(5)
    gt = cameras(rng, 6, path=0.0)
    tracks = observed(gt, rng, noise=0.0)
    assert epipolar_metrics(epipolar_errors(track(gt), tracks))["epipolar_rms"] < 1e-6
    turned = gt.copy()
    turned[3:, :3, :3] = Rotation.from_rotvec([0, 0.01, 0]).as_matrix() @ turned[3:, :3, :3]
    assert np.max(epipolar_errors(track(turned), tracks)) > 4


@given(st.integers(0, 99), st.integers(1, 30))
def test_halves_share_no_track_and_lose_none(seed, n):
    frame = np.tile(np.arange(3), n)
    whole = Tracks(frame, np.repeat(np.arange(n), 3), np.random.default_rng(seed).random((3 * n, 2)), 3, (10, 10))
    halves = split_tracks(whole, seed)
    assert [len(h) for h in halves] == [(n + 1) // 2, n // 2] and all((h.lengths == 3).all() for h in halves)
    assert sorted(map(tuple, np.concatenate([h.xy for h in halves]))) == sorted(map(tuple, whole.xy))
    assert np.array_equal(split_tracks(whole, seed)[0].xy, halves[0].xy)


@given(st.integers(0, 99), st.integers(2, 30), st.integers(1, 10))
def test_tracks_of_one_keypoint_stay_together(seed, n, twice):
    frame, xy = np.tile(np.arange(3), n + min(n, twice)), np.random.default_rng(seed).random((3 * n, 2))
    again = np.concatenate([xy, xy[: 3 * min(n, twice)]])
    halves = split_tracks(Tracks(frame, np.repeat(np.arange(len(frame) // 3), 3), again, 3, (10, 10)), seed)
    mine, other = (set(map(tuple, h.xy)) for h in halves)
    assert not mine & other and len(mine | other) == 3 * n
    assert abs(len(halves[0]) - len(halves[1])) <= 2


def test_ratio_to_the_best_by_hand():
    ours, others = np.array([1.0, 2.0, 4.0]), dict(a=np.array([2.0, 2.0, 2.0]), b=np.array([1.0, 8.0, 8.0]))
    found = ratio_to_best(ours, others)
    assert found["best"] == "a" and found["value"] == pytest.approx(1.0) and found["low"] < 1 < found["high"]
    assert ratio_to_best(ours / 3, others)["value"] == pytest.approx(1 / 3)
    alone = ratio_to_best(ours, dict(b=others["b"]))
    assert alone["value"] == pytest.approx((8 / 64) ** (1 / 3)) and alone["best"] == "b"
