"The protocol: every method gets the same tracks, a refusal is a row, real windows see only their own frames."
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import project
from hypothesis import given, strategies as st

from primenb.core import PrimenbError, root
from primenb.data.depth import affine_disparity, fill_holes
from primenb.reports import run
from primenb.sfm.protocol import (
    MethodRun, compare_windows, evaluate_case, judged_case, load_sequence, no_cameras, read_rows, read_sequence,
    run_judged, run_method, run_starter, starter_case, window_case, window_firsts,
)

DATA = root() / "data"


@pytest.fixture(scope="module")
def case(): return starter_case("track_12", DATA, max_tracks=60)


def test_a_row_for_each_method_and_truth(case, tmp_path):
    shaken = case.gt_poses["exact"].copy()
    shaken[:, 0, 3] += np.linspace(0, 0.01, len(shaken))
    found = evaluate_case(
        replace(case, gt_poses=case.gt_poses | dict(shaken=shaken)),
        [
            MethodRun("glomap"),
            MethodRun("depth_guided", "shifted_10"),
            MethodRun("depth_guided", "scaled_10", known_K=False),
        ],
        tmp_path,
    )
    assert [(r["method"], r["prior"], r["known_K"], r["gt"]) for r in found] == [
        (m, p, k, t)
        for m, p, k in (
            ("glomap", None, True), ("depth_guided", "shifted_10", True), ("depth_guided", "scaled_10", False)
        )
        for t in ("exact", "shaken")
    ]
    assert all(r["registered"] == 1 and r["ate_over_path"] < 0.05 for r in found) and found[2]["ate_over_path"] < 0.01
    assert found[2]["drift"] < 0.5 and found[0]["drift"] is None and list(tmp_path.iterdir()) == []


def test_a_refusal_is_a_failed_row(case, tmp_path):
    few = replace(case, tracks=replace(case.tracks.keep(case.tracks.track < 8)[0], sway=np.inf))
    track, facts = run_method(few, MethodRun("depth_guided", "scaled_10"))
    assert not track.posed.any() and "tracks" in facts["reason"]
    row, = evaluate_case(few, [MethodRun("depth_guided", "scaled_10")], tmp_path)
    assert row["failed"] and row["registered"] == 0 and row["ate_over_path"] == 1 and row["reason"] == facts["reason"]
    assert no_cameras(case.tracks, case.K).posed.sum() == 0


def test_the_job_writes_what_can_be_read_again(tmp_path):
    out = tmp_path / "track_12.json"
    run_starter("track_12", str(DATA), 60, (0.1, 0.25), [MethodRun("depth_guided", "scaled_25")], str(out))
    table = read_rows([out, out])
    assert len(table) == 2 and table.prior.eq("scaled_25").all() and json.loads(out.read_text())[0]["move"] == "truck"


@pytest.mark.slow
def test_real_windows(real):
    whole = read_sequence(real / "hololens", max_features=800)
    assert whole.floors["colmap_to_glomap"] < 0.02 and whole.reference is not None and whole.floors[
        "glomap_to_published"
    ] < 0.02
    case = window_case(whole, 30, 8, max_features=400)
    assert case.tracks.frames == 8 and case.tracks.frame.max() < 8 and set(case.gt_poses) == {"published", "reference"}
    track, facts = run_method(case, MethodRun("depth_guided", "sensor"))
    assert facts["reason"] is None and track.posed.all()


# --- depth as networks deliver it


def test_holes_take_the_depth_of_the_nearest_pixel():
    rng = np.random.default_rng(0)
    depth = rng.uniform(1, 9, (12, 17))
    depth[rng.random(depth.shape) < 0.7] = 0
    filled, known = fill_holes(depth), np.argwhere(depth > 0)
    for y, x in np.ndindex(depth.shape):
        far = np.hypot(*(known - [y, x]).T)
        near = {depth[tuple(k)] for k in known[far <= far.min() * 1.05 + 1e-9]}  # distances are those of a 5x5 mask
        assert filled[y, x] in near
    with pytest.raises(PrimenbError, match="single value"):
        fill_holes(np.zeros((3, 3)))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_scale_for_each_frame_and_one_shift_undo_the_affine_maps(bits):
    y, x = np.mgrid[:60, :80]
    depth = np.stack([2 + 0.02 * x + 0.01 * y + 0.1 * t for t in range(5)])
    depth[:, :4, :4] = np.nan
    maps = affine_disparity(depth, bits, seed=3)
    assert maps.min() >= 1 and maps.max() == 2**bits - 1 and (maps == np.rint(maps)).all()
    inner = np.s_[10:50, 10:70]
    fits = [np.polyfit(1 / z[inner].ravel(), d[inner].ravel(), 1) for d, z in zip(maps, depth)]
    for d, z, fit in zip(maps, depth, fits):
        assert np.abs(np.polyval(fit, 1 / z[inner]) - d[inner]).max() < 1 + 2e-3 * 2**bits
    scales, offsets = np.array(fits).T
    assert np.ptp(offsets / scales) < 0.02 and scales.std() / scales.mean() > 0.05
    assert np.array_equal(maps, affine_disparity(depth, bits, seed=3))


# --- windows that are judged twice


@given(st.integers(2, 200), st.integers(2, 50), st.integers(1, 9))
def test_stated_windows_and_those_for_tuning(total, frames, windows):
    stated, tuning = (window_firsts(total, frames, windows, purpose) for purpose in ("stated", "tuning"))
    assert len(stated) <= windows and not set(stated) & set(tuning)
    assert all(n % 2 == 0 for n in stated) and all(n % 2 == 1 for n in tuning)
    assert all(0 <= n <= total - frames for n in stated + tuning)
    assert bool(stated) == (total >= frames)
    assert all(b - a >= frames / 10 - 2 for a, b in zip(stated, stated[1:]))


def made_rows(ate: dict, failed=()):
    "A row for each method and window, with these errors."
    still = dict(path=1.0, still_translation=0.1, still_rotation=3.0)
    still |= dict(rpe_translation=0.0, rpe_translation_over_path=0.0)
    return pd.DataFrame([
        dict(name=name, shot=f"w{n}", ate=e, ate_over_path=e, rpe_rotation=10 * e, epipolar=e, epipolar_rms=2 * e,
             failed=(name, n) in failed, **still)
        for name, errors in ate.items() for n, e in enumerate(errors)
    ])


def test_windows_are_compared_with_the_best_rival_and_a_failure_counts():
    ate = dict(ours=[0.01, 0.03, 0.10], a=[0.02, 0.02, 0.01], b=[0.001, 0.01, 0.02])
    found = compare_windows(made_rows(ate, failed={("b", 0)}), "ours", ["a", "b"])
    logs = {name: np.log(errors) for name, errors in (ate | dict(b=[1, 0.01, 0.02])).items()}  # lost: the whole path
    assert found["ate_ratio_best"] == "a"
    assert found["ate_ratio"] == pytest.approx(np.exp((logs["ours"] - logs["a"]).mean()))
    assert found["rivals"]["b"]["ate_ratio"] == pytest.approx(np.exp((logs["ours"] - logs["b"]).mean()))
    assert found["rivals"]["b"]["epipolar_ratio"] == pytest.approx(np.exp(np.mean(np.log(
        np.divide(ate["ours"], ate["b"])
    ))))  # which needs no ground truth, and is what was measured
    assert found["gross"] == 1 and found["rivals"]["a"]["gross"] == 0 and found["rivals"]["b"]["gross"] == 1
    assert found["failures"] == 0 and found["rivals"]["b"]["failures"] == 1 and found["windows"] == 3
    assert found["ate_ratio_interval"][0] <= found["ate_ratio"] <= found["ate_ratio_interval"][1]
    with pytest.raises(PrimenbError, match="same windows"):
        compare_windows(made_rows(ate).iloc[1:], "ours", ["a", "b"])


@pytest.mark.slow
def test_a_judged_window(real, tmp_path):
    whole = load_sequence(real / "hololens_fast")
    case = judged_case(whole, 4, 8, max_features=500)
    assert set(case.priors) == {"sensor", "affine_8", "affine_16"} and list(case.gt_poses) == ["published"]
    assert case.priors["affine_8"].kind == "disparity" and case.priors["affine_8"].valid.all()
    mine, other = (set(map(tuple, t.xy)) for t in (case.tracks, case.held_out))
    assert not mine & other and abs(len(case.tracks) - len(case.held_out)) <= 3
    runs = [MethodRun("depth_guided", "affine_8"), MethodRun("glomap_default"), MethodRun("colmap_relaxed")]
    run_judged(str(real / "hololens_fast"), 4, 8, 500, 0, runs, str(tmp_path / "w.json"))
    rows = read_rows([tmp_path / "w.json"])
    assert len(rows) == 3 and (rows.epipolar < 1).all() and rows.epipolar_pairs.nunique() == 1
    assert [f.name for f in tmp_path.iterdir()] == ["w.json"]


@pytest.mark.slow
def test_the_experiment_on_one_window(real, tmp_path):
    settings = dict(sequences=[str(real / "hololens_fast")], lengths=[8], unknown_lengths=[8], windows=1)
    params = project / "params/real/sfm_real.yaml"
    run(
        project / "nbs/exp/sfm_real.ipynb", params, tmp_path / "found", summary=str(tmp_path / "found.json"),
        headlines=["lengths.8.none.ate_ratio", "focal.median_error"], max_features=300, workers=1, **settings
    )
    assert not (tmp_path / "found/.jobs").exists()
    found = json.loads((tmp_path / "found.json").read_text())
    one = found["lengths"]["8"]["affine_8"]
    low, high = one["ate_ratio_interval"]
    assert low == pytest.approx(one["ate_ratio"]) == high and one["windows"] == 1  # a single window
    assert "bootstrap affine_8" in one["rivals"] and "colmap_default" in one["rivals"]
    assert {"median_error", "windows", "methods"} <= set(found["focal"]) and found["purpose"] == "stated"
