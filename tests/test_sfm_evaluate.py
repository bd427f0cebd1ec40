"The measures of a camera track: as `evo` computes them, as slow loops compute them, and what must not change them."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation

from primenb.core import PrimenbError
from primenb.sfm.evaluate import AREAS, ERRORS, MEASURES, THRESHOLDS, align, angle, auc, count_failures, draw_paths, evaluate, improvement, pair_errors, similar
from primenb.sfm.geometry import CameraTrack, Tracks, inverse, pose, umeyama

K = np.array([[450.0, 0, 240], [0, 450, 135], [0, 0, 1]])


def cameras(rng, T=20, path=1.0, turn=0.3):
    "Wandering cameras."
    def walk(): return np.cumsum(rng.normal(size=(T, 3)), 0) / np.sqrt(T)
    R = Rotation.from_rotvec(turn * walk()).as_matrix()
    return pose(R, -np.einsum("tij,tj->ti", R, path * walk()))


def shaken(true, rng, noise=0.02):
    "The same with noise on centres and orientations, in another world."
    R = Rotation.from_rotvec(noise * rng.normal(size=(len(true), 3))).as_matrix() @ true[:, :3, :3]
    centres = inverse(true)[:, :3, 3] + noise * rng.normal(size=(len(true), 3))
    return elsewhere(pose(R, -np.einsum("tij,tj->ti", R, centres)), rng)


def elsewhere(T, rng): return similar(T, rng.uniform(0.2, 5), Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix(), rng.normal(size=3))


def track(T, f=450.0):
    n, none = len(T), np.zeros(0, int)
    return CameraTrack((480, 270), np.tile(K * [[f / 450, f / 450, 1], [f / 450, f / 450, 1], [1, 1, 1]], (n, 1, 1)), T, np.full(n, "solved"), np.zeros((0, 3)), Tracks(none, none, np.zeros((0, 2)), n, (480, 270)),
                       np.zeros((0, 3), np.uint8), np.zeros((n, 2)), np.full(n, np.nan))


def measured(T, true, depth=5.0, **more): return evaluate(track(T), np.tile(K, (len(true), 1, 1)), true, depth, **more)


def missing(T, frames):
    T = T.copy()
    T[frames] = np.nan
    return T


def along_a_line(true, x):
    T = true.copy()
    T[:, :3, 3] = -np.einsum("tij,tj->ti", T[:, :3, :3], x[:, None] * [1.0, 2, -1])
    return T


# --- beside others


@pytest.mark.parametrize("seed", range(5))
def test_ate_and_rpe_are_those_of_evo(seed):
    metrics, trajectory = pytest.importorskip("evo.core.metrics"), pytest.importorskip("evo.core.trajectory")
    rng = np.random.default_rng(seed)
    true = cameras(rng)
    found = shaken(true, rng, 0.1)
    ours = measured(found, true)
    reference, other = (trajectory.PosePath3D(poses_se3=list(inverse(T))) for T in (true, found))
    other.align(reference, correct_scale=True)
    for name, metric in dict(ate=metrics.APE(metrics.PoseRelation.translation_part), rpe_translation=metrics.RPE(metrics.PoseRelation.translation_part, delta=1, delta_unit=metrics.Unit.frames),
                             rpe_rotation=metrics.RPE(metrics.PoseRelation.rotation_angle_deg, delta=1, delta_unit=metrics.Unit.frames)).items():
        metric.process_data((reference, other))
        assert ours[name] == pytest.approx(metric.get_statistic(metrics.StatisticsType.rmse), abs=1e-6), name


def test_pair_errors_are_those_of_a_slow_loop():
    rng = np.random.default_rng(0)
    true = cameras(rng, 9)
    found = missing(shaken(true, rng), [4])
    rotation, direction = pair_errors(found, true, least=0.4)
    n = 0
    for i in range(9):
        for j in range(9):
            if i == j: continue
            a, b = found[i] @ np.linalg.inv(found[j]), true[i] @ np.linalg.inv(true[j])  # camera j in the axes of camera i
            turn = np.degrees(np.arccos(np.clip((np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2, -1, 1))) if 4 not in (i, j) else 180
            cosine = abs(a[:3, 3] @ b[:3, 3]) / np.linalg.norm(a[:3, 3]) / np.linalg.norm(b[:3, 3])
            aside = np.degrees(np.arccos(min(cosine, 1))) if 4 not in (i, j) else 180
            assert rotation[n] == pytest.approx(turn, abs=1e-5)
            if np.linalg.norm(b[:3, 3]) > 0.4: assert direction[n] == pytest.approx(aside, abs=1e-5)
            else: assert np.isnan(direction[n])
            n += 1
    assert n == len(rotation) and np.isnan(direction).any() and (rotation == 180).sum() == 16


def test_area_is_that_of_a_fine_sum():
    errors = np.random.default_rng(0).exponential(3, 4000)
    for t in THRESHOLDS: assert auc(errors, t) == pytest.approx(np.clip(1 - errors / t, 0, None).mean(), abs=1e-3)
    assert auc(np.zeros(3), 5) == 1 and auc(np.full(3, 180.0), 20) == 0


# --- the two worlds


def test_bent_paths_are_aligned_as_by_their_centres():
    rng = np.random.default_rng(1)
    true = cameras(rng)
    found = shaken(true, rng, 0.1)
    s, R, t = align(found, true)
    s2, R2, t2 = umeyama(inverse(found)[:, :3, 3], inverse(true)[:, :3, 3])
    assert s == pytest.approx(s2, rel=1e-8) and np.allclose(R, R2, atol=1e-8) and np.allclose(t, t2, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["bent", "line", "place"]), st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_copy_in_another_world_has_no_error(seed, kind, size):
    rng = np.random.default_rng(seed)
    true = cameras(rng, 12, path=size)
    if kind != "bent": true = along_a_line(true, size * (np.sort(rng.uniform(size=12)) if kind == "line" else np.ones(12)))
    m = measured(elsewhere(true, rng), true, depth=5 * size)
    assert m["rpe_rotation"] < 1e-6 and m["auc_rotation"] > 1 - 1e-5 and not m["failed"]
    if kind == "place": assert [m[name] for name in ("ate", "rpe_translation", "jitter", "auc_translation", "auc_both")] == [None] * 5
    else: assert m["ate_over_path"] < 1e-5 and m["rpe_translation_over_path"] < 1e-5 and m["jitter"] < 1e-4 and m["auc_both"] > 1 - 1e-4


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_no_measure_depends_on_the_worlds(seed, straight):
    rng = np.random.default_rng(seed)
    true = cameras(rng, 12)
    if straight: true = along_a_line(true, np.linspace(0, 1, 12) ** 2)
    found = missing(shaken(true, rng, 0.03), [5])
    a, b = measured(found, true), measured(elsewhere(found, rng), elsewhere(true, np.random.default_rng(7)), depth=5 * scale_of(true))
    for name in (*ERRORS, *AREAS, "registered", "jitter", "path_over_depth"): assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), name


def scale_of(true):
    "How much larger the other world of seed 7 is."
    centres = [inverse(T)[:, :3, 3] for T in (elsewhere(true, np.random.default_rng(7)), true)]
    return np.linalg.norm(np.diff(centres[0], axis=0)) / np.linalg.norm(np.diff(centres[1], axis=0))


def test_a_line_turned_about_itself_is_told_by_the_orientations():
    rng = np.random.default_rng(3)
    true = along_a_line(cameras(rng), np.linspace(0, 1, 20))
    found = elsewhere(true, rng)
    assert np.allclose(similar(found, *align(found, true)), true, atol=1e-4)


# --- what is counted how


def test_missing_frames():
    rng = np.random.default_rng(4)
    true = cameras(rng)
    whole, holes, lost = (measured(missing(true, frames), true, seconds=2.5) for frames in ([], [3, 4], slice(None)))
    step = np.linalg.norm(np.diff(inverse(true)[:, :3, 3], axis=0), axis=1)
    turn = angle(true[:-1, :3, :3], true[1:, :3, :3])
    assert whole["ate"] < 1e-6 and holes["ate"] < 1e-6 and lost["ate"] == lost["path"] == pytest.approx(step.sum()) and lost["ate_over_path"] == 1
    assert holes["rpe_translation"] == pytest.approx(np.sqrt((step[2:5] ** 2).sum() / 19), abs=1e-5)
    assert holes["rpe_rotation"] == pytest.approx(np.sqrt((turn[2:5] ** 2).sum() / 19), abs=1e-5)
    assert lost["rpe_translation"] == lost["still_translation"] == pytest.approx(np.sqrt((step**2).mean()))
    assert lost["rpe_rotation"] == lost["still_rotation"] == pytest.approx(np.sqrt((turn**2).mean()))
    assert holes["auc_rotation"] == pytest.approx(18 * 17 / (20 * 19), abs=1e-4) and [lost[name] for name in AREAS] == [0, 0, 0]
    assert (holes["registered"], holes["failed"], lost["registered"], lost["failed"], lost["seconds"]) == (0.9, False, 0, True, 2.5)
    assert measured(missing(true, slice(0, 5)), true)["failed"] and not measured(missing(true, slice(0, 4)), true)["failed"]
    assert lost["focal_error"] is None and lost["jitter"] is None


def test_results_are_plain():
    rng = np.random.default_rng(5)
    true = cameras(rng)
    for found in (shaken(true, rng), missing(true, slice(None))):
        assert {type(v) for v in measured(found, true).values()} <= {float, bool, type(None)}


def test_one_place_shows_no_direction():
    true = cameras(np.random.default_rng(6))
    turning = true.copy()
    turning[:, :3, 3] = -true[:, :3, :3] @ [3.0, 1, 2]
    m = measured(turning, true)
    assert m["auc_rotation"] > 0.999 and m["auc_translation"] == m["auc_both"] == 0 and m["ate"] > 0


def test_near_pairs_have_no_direction():
    true = along_a_line(cameras(np.random.default_rng(6), 3), np.array([0, 1e-3, 1.0]))
    assert np.isnan(pair_errors(true, true, least=0.01)[1]).sum() == 2
    assert measured(true, true, depth=5.0)["auc_translation"] == pytest.approx(1) and measured(true, true, depth=5000.0)["auc_translation"] is None


def test_focal_error_is_a_median():
    true = cameras(np.random.default_rng(0))
    found = track(true, f=450 * 1.1)
    found.K[3] *= 7
    assert evaluate(found, np.tile(K, (20, 1, 1)), true, 5.0)["focal_error"] == pytest.approx(0.1)


def test_jitter_is_noise_and_not_drift():
    true, rng = along_a_line(cameras(np.random.default_rng(0), 40), np.linspace(0, 1, 40)), np.random.default_rng(1)
    def moved(d): T = true.copy(); T[:, :3, 3] -= np.einsum("tij,tj->ti", T[:, :3, :3], d); return measured(T, true)
    noise, drift = moved(0.01 * rng.normal(size=(40, 3))), moved(0.02 * np.sin(np.linspace(0, 6, 40))[:, None] * [0, 1, 2])
    assert drift["ate"] > noise["ate"] and noise["jitter"] > 10 * drift["jitter"]


@pytest.mark.parametrize("wrong", [dict(true=slice(0, 5)), dict(K=slice(0, 5)), dict(depth=0.0), dict(depth=np.nan), dict(nan=True)])
def test_truth_that_does_not_fit_is_refused(wrong):
    true = cameras(np.random.default_rng(0))
    found = track(true)
    true = missing(true, [2]) if "nan" in wrong else true
    with pytest.raises(PrimenbError): evaluate(found, np.tile(K, (20, 1, 1))[wrong.get("K", slice(None))], true[wrong.get("true", slice(None))], wrong.get("depth", 5.0))


# --- over many shots


@pytest.fixture(scope="module")
def rows():
    "Methods over eight shots, of which one is a nodal pan; method b fails on one shot with a few good frames."
    rows = []
    for shot in range(8):
        rng = np.random.default_rng(shot)
        true = cameras(rng, 15)
        if shot == 7: true = along_a_line(true, np.zeros(15))
        for method, noise in dict(ours=0.002, a=0.004, b=0.003, none=0).items():
            found = shaken(true, rng, noise)
            if method == "none" or (method == "b" and shot == 3): found = missing(found, slice(3 if method == "b" else 0, None))
            rows.append(dict(method=method, shot=f"s{shot}", **measured(found, true)))
    return pd.DataFrame(rows)


def test_failures_count_as_no_camera(rows):
    counted = count_failures(rows)
    assert rows.loc[rows.failed & (rows.method == "b"), "ate_over_path"].item() < 0.1  # three frames flatter
    b, none = (counted[(counted.method == m) & (counted.shot == "s3")].iloc[0] for m in ("b", "none"))
    for name in (*MEASURES, "ate", "rpe_translation", *(f"{a}_{t}" for a in AREAS for t in THRESHOLDS)): assert b[name] == pytest.approx(none[name]), name
    assert counted[~counted.failed].equals(rows[~rows.failed])
    pan = counted[(counted.method == "none") & (counted.shot == "s7")].iloc[0]
    assert pan.failed and np.isnan(pan.ate_over_path) and np.isnan(pan.auc_translation) and pan.auc_rotation == 0


def test_improvement_is_over_the_best_of_each_measure(rows):
    ours, others = rows[rows.method == "ours"], rows[rows.method != "ours"]
    got, counted = improvement(ours, others), count_failures(rows)
    means = counted.groupby("method")[list(MEASURES)].mean()
    for name in MEASURES:
        m = means[name] if name in ERRORS else 1 - means[name]
        best = m.drop("ours").min()
        assert got[name]["best"] == m.drop("ours").idxmin()
        assert got[name]["value"] == pytest.approx((best - m["ours"]) / best) and got[name]["low"] <= got[name]["value"] <= got[name]["high"]
    assert got["ate_over_path"]["best"] == "a"  # b is better but for the shot it lost
    assert got == improvement(ours.sample(frac=1, random_state=0), others) and got != improvement(ours, others, seed=1)
    assert all(abs(g["value"]) < 1e-12 for g in improvement(rows[rows.method == "a"], rows[rows.method == "a"]).values())


def test_improvement_wants_the_same_shots(rows):
    ours, others = rows[rows.method == "ours"], rows[rows.method == "a"]
    for a, b in ((ours, others.iloc[1:]), (ours.iloc[1:], others), (pd.concat([ours, ours]), others)):
        with pytest.raises(PrimenbError, match="same shots"): improvement(a, b)
    only_pan = improvement(ours[ours.shot == "s7"], others[others.shot == "s7"])
    assert only_pan["ate_over_path"] is None and only_pan["rpe_rotation"] is not None


def test_paths_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    true = cameras(rng)
    fig = draw_paths(true, dict(one=track(shaken(true, rng)), holes=track(missing(true, [3])), none=track(missing(true, slice(None)))))
    assert [line.get_label() for line in fig.axes[0].lines if line.get_label()[0] != "_"] == ["true", "one", "holes"]
    fig.savefig(tmp_path / "paths.png")
