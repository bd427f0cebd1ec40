"The protocol: every method gets the same tracks, a refusal is a row, real windows see only their own frames."
import json
from dataclasses import replace

import numpy as np
import pytest

from primenb.core import root
from primenb.sfm.protocol import (
    MethodRun, evaluate_case, no_cameras, read_rows, read_sequence, run_method, run_starter, starter_case, window_case,
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
