"""Contracts of comparisons: a mapping is a variant, each is trained and evaluated once, and foreground motion is that
of a slow loop."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import project
from hypothesis import given, settings
from hypothesis import strategies as st

from primenb.core import PrimenbError
from primenb.media.motion import Motion
from primenb.mgm.contrast import MotionContrastRun
from primenb.mgm.masks import MASKS
from primenb.mgm.protocol import (
    EvalPlan, control_pairs, eval_sets, foreground_motion, mean_epochs_to_target, train_and_evaluate, variant_run,
    variant_runs)
from primenb.mgm.train import MASKED_TARGETS, MOTION_SOURCES, MaskedRun

pytestmark = pytest.mark.usefixtures("one_thread")
small = dict(
    num_clips=48, epochs=1, batch_size=16, width=32, depth=1, heads=2, decoder_width=32, decoder_depth=1,
    target="motion", device="cpu", cache_size=32)
untrained, contrast = (dict(name=name, method=name) for name in ("untrained", "contrast"))
mgm = dict(name="mgm", mask="mgm", ratio=0.75)
plan = EvalPlan(("direction",), ("direction",), num_labelled=160)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MASKS)), st.sampled_from((0.5, 0.75)), st.sampled_from(MOTION_SOURCES),
    st.sampled_from(sorted(MASKED_TARGETS)), st.sets(st.sampled_from(("motion", "target"))))
def test_a_variant_changes_what_it_says(kind, ratio, motion, target, given_fields):
    changes = {name: value for name, value in dict(motion=motion, target=target).items() if name in given_fields}
    run = variant_run(dict(name="a", mask=kind, ratio=ratio, **changes), MaskedRun(seed=3))
    assert (run.mask, run.ratio) == (kind, ratio)
    assert run.seed == 3
    assert run.motion == changes.get("motion", "vectors")
    assert run.target == changes.get("target", "pixels")


def test_variants_of_other_methods():
    base = MaskedRun(width=64, seed=2, target="motion")
    assert variant_run(mgm | dict(mask_settings=dict(box=0.2)), base).masks.settings == dict(box=0.2)
    assert variant_run(untrained, base) == replace(base, mask="tube", epochs=0)
    run = variant_run(contrast | dict(motion_share=0.5), base)
    assert isinstance(run, MotionContrastRun)
    assert (run.motion_share, run.width, run.seed) == (0.5, 64, 2)


@pytest.mark.parametrize("variant, why", [
    (dict(name="a", mask="mgm"), "no ratio"), (dict(name="a", ratio=0.5), "no mask"),
    (mgm | dict(ratio="half"), "ratio is 'half'"),
    (mgm | dict(motion="sound"), "no such motion"), (mgm | dict(target="sound"), "no such target"),
    (mgm | dict(sound=True), "'sound'"), (mgm | dict(mask="maze"), "no such kind"), (mgm | dict(ratio=2), "hides"),
    (mgm | dict(mask_settings=dict(boxes=1)), "no setting boxes"), (untrained | dict(ratio=0.5), "no ratio"),
    (contrast | dict(fast=True), "fast"), (contrast | dict(queue="many"), "queue is 'many'"),
    (contrast | dict(mask="tube"), "no parameter 'mask'"),
    (contrast | dict(motion_share=1.5), "no share"), (dict(name="a", method="magic"), "no method 'magic'")])
def test_variants_without_meaning_are_refused(variant, why):
    with pytest.raises(PrimenbError, match=why): variant_run(variant, MaskedRun())


def test_every_variant_has_a_name_of_its_own():
    assert list(variant_runs([mgm, untrained], MaskedRun())) == ["mgm", "untrained"]
    for wrong in ([mgm, mgm], [mgm, dict(mask="tube", ratio=0.5)]):
        with pytest.raises(PrimenbError, match="missing or given twice"): variant_runs(wrong, MaskedRun())


def test_control_pairs_differ_in_the_mask_alone():
    tube = dict(name="tube", mask="tube", ratio=0.9)
    variants = [mgm, tube, *(v | dict(name=f"{v['name']}:flow", motion="flow") for v in (mgm, tube)),
                mgm | dict(name="mgm:pixels", target="pixels"), mgm | dict(name="mgm:0.5", ratio=0.5), untrained]
    assert control_pairs(variants, "mgm", "tube") == [("mgm:flow", "tube:flow")]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from((1, 2)))
def test_foreground_is_a_weighted_mean(seed, finer):
    rng = np.random.default_rng(seed)
    T, (h, w) = 3, (2, 3)
    field, movers = rng.normal(size=(T, h * finer, w * finer, 2)), rng.random((T, h, w))
    measured = np.array([False, True, True])
    motion = Motion(
        field, np.arange(w * finer + 1) * 8, np.arange(h * finer + 1) * 8, np.arange(T) / 12, np.arange(T),
        np.array(list("IPP")), measured, None)
    sums = np.zeros((2, 2))
    for t, y, x in np.ndindex(T, h * finer, w * finer):
        share, speed = movers[t, y // finer, x // finer], float(np.hypot(*field[t, y, x]))
        if measured[t]: sums += [[share * speed, share], [(1 - share) * speed, 1 - share]]
    assert np.allclose(foreground_motion(motion, movers), sums[:, 0] / sums[:, 1])
    assert np.isnan(foreground_motion(motion, np.zeros((T, h, w))).foreground)
    with pytest.raises(PrimenbError, match="its shape is"): foreground_motion(motion, movers[:2])


def test_labelled_clips_are_spread_over_all_batches():
    learn, test = eval_sets("data", 32, 8, 1, 160)
    assert len(learn) == 160 and len(test) == 264 and learn.labels.place.nunique() > 5


@pytest.fixture
def evaluated(tmp_path):
    def evaluate(variant, **changes):
        base = MaskedRun(**small, sidecars=str(tmp_path / "motion"), **changes)
        return train_and_evaluate(variant_run(variant, base), tmp_path / variant["name"], plan)
    return evaluate


def test_a_variant_is_trained_and_evaluated_once(evaluated, tmp_path):
    one = evaluated(mgm)
    scores = pd.DataFrame(one["scores"])
    assert set(scores.control) == {"", "single_frame", "shuffled", "reversed_pairs"}
    assert set(scores.probe) == {"linear", "attentive"}
    assert one["encoder_tokens"] == 48 * 16 and scores.accuracy.between(0, 1).all()
    before = (tmp_path / "mgm/scores.json").stat().st_mtime_ns
    assert evaluated(mgm) == one and (tmp_path / "mgm/scores.json").stat().st_mtime_ns == before
    (tmp_path / "mgm/scores.json").unlink()
    assert evaluated(mgm)["scores"] == one["scores"], "evaluated again, not trained again"
    with pytest.raises(PrimenbError, match="seed was 0 and is 1"): evaluated(mgm, seed=1)


def test_other_variants_have_the_same_evaluation(evaluated):
    none, other = evaluated(untrained), evaluated(contrast)
    assert none["encoder_tokens"] == none["seconds"] == 0 and none["curve"] == {}
    assert other["encoder_tokens"] == 48 * 128
    columns = ["task", "probe", "control", "num_clips"]
    assert pd.DataFrame(none["scores"])[columns].equals(pd.DataFrame(other["scores"])[columns])


def test_epochs_of_the_mean_curve():
    assert mean_epochs_to_target([[0.0, 1.0], [0.2, 0.8]], 0.5) == 1.5
    assert mean_epochs_to_target([[0.1, 0.2]], 0.9) is None


@pytest.mark.parametrize("file", sorted((project / "params").rglob("mgm.yaml")), ids=lambda file: file.parent.name)
def test_the_variants_that_are_compared_mean_something(file):
    given = yaml.safe_load(file.read_text())
    runs = variant_runs(given["variants"], MaskedRun(target=given["target"]))
    assert len(set(runs.values())) == len(runs)
    for name in ("under_test", "monitored", "controlled", "equal_tokens", "baselines"):
        assert {*given.get(name, [])} <= {*runs}
    assert given["reference"] in runs
