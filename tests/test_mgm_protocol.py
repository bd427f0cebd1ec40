"Contracts of comparisons: words are arms, each is trained and judged once, and foreground is measured as a slow loop measures it."
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import project
from hypothesis import given, settings
from hypothesis import strategies as st

from primenb.core import PrimenbError
from primenb.mgm.protocol import SOURCES, Asked, arm, examine, exams, foreground, soon
from primenb.mgm.contrast import ContrastRun
from primenb.mgm.masks import MASKS
from primenb.mgm.train import TARGETS, Run
from primenb.media.motion import Motion

pytestmark = pytest.mark.usefixtures("one_thread")
small = dict(clips=48, epochs=1, batch=16, width=32, depth=1, heads=2, decoder_width=32, decoder_depth=1, target="motion", device="cpu", keep=32)
asked = Asked(("direction",), ("direction",), labelled=160)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(MASKS)), st.sampled_from((0.5, 0.75)), st.permutations(("source", "target")), st.sampled_from(SOURCES), st.sampled_from(sorted(TARGETS)), st.integers(0, 2))
def test_words_mean_what_they_say(kind, ratio, order, source, target, count):
    words = dict(source=source, target=target)
    run = arm(":".join([kind, str(ratio), *(words[name] for name in order[:count])]), Run(seed=3))
    assert (run.mask, run.ratio, run.seed) == (kind, ratio, 3)
    assert run.motion == (source if "source" in order[:count] else "vectors") and run.target == (target if "target" in order[:count] else "pixels")


def test_arms_of_other_kinds():
    base = Run(width=64, seed=2, target="motion")
    assert arm("mgm:0.5:box=0.2:smooth=2", base).options == "box=0.2 smooth=2"
    assert arm("untrained", base) == replace(base, mask="tube", epochs=0)
    contrast = arm("contrast:share=0.5", base)
    assert isinstance(contrast, ContrastRun) and (contrast.share, contrast.width, contrast.seed) == (0.5, 64, 2)


@pytest.mark.parametrize("words, why", [("mgm", "no share"), ("mgm:half", "no share"), ("mgm:0.5:sound", "'sound' means nothing"), ("maze:0.5", "no such kind"), ("mgm:0.5:boxes=1", "no setting boxes"), ("mgm:2", "hides"), ("untrained:0.5", "no such kind"), ("contrast:fast", "fast"), ("contrast:queue=many", "queue"), ("contrast:mask=tube", "hides nothing")])
def test_words_without_meaning_are_refused(words, why):
    with pytest.raises(PrimenbError, match=why): arm(words, Run())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from((1, 2)))
def test_foreground_is_a_weighted_mean(seed, finer):
    rng = np.random.default_rng(seed)
    T, h, w = 3, 2, 3
    field, movers, measured = rng.normal(size=(T, h * finer, w * finer, 2)), rng.random((T, h, w)), np.array([False, True, True])
    motion = Motion(field, np.arange(w * finer + 1) * 8, np.arange(h * finer + 1) * 8, np.arange(T) / 12, np.arange(T), np.array(list("IPP")), measured, None)
    sums = np.zeros((2, 2))
    for t, y, x in np.ndindex(T, h * finer, w * finer):
        share, speed = movers[t, y // finer, x // finer], float(np.hypot(*field[t, y, x]))
        if measured[t]: sums += [[share * speed, share], [(1 - share) * speed, 1 - share]]
    assert np.allclose(foreground(motion, movers), sums[:, 0] / sums[:, 1])
    assert np.isnan(foreground(motion, np.zeros((T, h, w))).front)
    with pytest.raises(PrimenbError, match="its shape is"): foreground(motion, movers[:2])


def test_labelled_clips_are_spread_over_all_batches():
    learn, test = exams("data", 32, 8, 1, 160)
    assert len(learn) == 160 and len(test) == 264 and learn.labels.place.nunique() > 5


@pytest.fixture
def examined(tmp_path): return lambda words, **how: examine(arm(words, Run(**small, sidecars=str(tmp_path / "motion"), **how)), tmp_path / words.replace(":", "-"), asked)


def test_an_arm_is_trained_and_judged_once(examined, tmp_path):
    one = examined("mgm:0.75")
    marks = pd.DataFrame(one["marks"])
    assert set(marks.control) == {"", "single_frame", "shuffled", "reversed_pairs"} and set(marks.probe) == {"linear", "attentive"}
    assert one["encoder_tokens"] == 48 * 16 and marks.accuracy.between(0, 1).all()
    before = (tmp_path / "mgm-0.75/marks.json").stat().st_mtime_ns
    assert examined("mgm:0.75") == one and (tmp_path / "mgm-0.75/marks.json").stat().st_mtime_ns == before
    (tmp_path / "mgm-0.75/marks.json").unlink()
    assert examined("mgm:0.75")["marks"] == one["marks"], "judged anew, not trained anew"
    with pytest.raises(PrimenbError, match="seed was 0 and is 1"): examined("mgm:0.75", seed=1)


def test_other_arms_sit_the_same_exam(examined):
    none, contrast = examined("untrained"), examined("contrast")
    assert none["encoder_tokens"] == none["seconds"] == 0 and none["curve"] == {}
    assert contrast["encoder_tokens"] == 48 * 128
    keys = [[{k: m[k] for k in ("question", "probe", "control", "clips")} for m in r["marks"]] for r in (none, contrast)]
    assert keys[0] == keys[1]


def test_how_soon():
    assert soon([[0.0, 1.0], [0.2, 0.8]], 0.5) == 1.5
    assert soon([[0.1, 0.2]], 0.9) is None


@pytest.mark.parametrize("file", sorted((project / "params").rglob("mgm.yaml")), ids=lambda file: file.parent.name)
def test_the_arms_that_are_compared_mean_something(file):
    given = yaml.safe_load(file.read_text())
    base = Run(target=given["target"])
    arms = given["arms"].split()
    assert {given["reference"], *given["ours"].split(), *given["watched"].split()} <= {*arms} and len({arm(words, base) for words in arms}) == len(arms)
    for words in given["equal"].split(): arm(words, base)
