"Smooth paths: derivatives, known variances are estimated, jitter is removed and shake stays, any scale of the world."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from primenb.sfm.geometry import inverse, pose
from primenb.sfm.path import second_differences, fit_path_prior, smooth


def walked(T=40, own=0.0, seed=0):
    "Cameras on an even way, whose centres bend by a random amount."
    rng = np.random.default_rng(seed)
    centres = np.cumsum(np.cumsum(rng.normal(0, own, (T, 3)) if own else np.zeros((T, 3)), 0) + [0.05, 0.01, 0.02], 0)
    cameras = pose(np.arange(T)[:, None] * [0.001, 0.01, 0.0], np.zeros((T, 3)))
    cameras[:, :3, 3] = -np.einsum("tij,tj->ti", cameras[:, :3, :3], centres)
    return cameras


def jittered(cameras, turn, go, seed=1):
    "The cameras with independent errors, and their covariance."
    rng, T = np.random.default_rng(seed), len(cameras)
    return pose(rng.normal(0, turn, (T, 3)), rng.normal(0, go, (T, 3))) @ cameras, np.diag(
        np.tile(np.repeat([turn, go], 3) ** 2, T)
    )


def centres(cameras): return inverse(cameras)[:, :3, 3]
def rms(x): return float(np.sqrt(np.mean(np.square(x))))
def bent(cameras): return rms(np.diff(centres(cameras), 2, axis=0))


def test_an_even_way_has_no_bends(): assert np.abs(second_differences(walked())[0]).max() < 1e-10


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), T=st.integers(3, 9))
def test_the_derivatives_are_those_of_small_steps(seed, T):
    rng = np.random.default_rng(seed)
    cameras = pose(rng.normal(0, 0.01, (T, 3)) + np.arange(T)[:, None] * [0, 0.02, 0], rng.normal(size=(T, 3)))
    y, B = second_differences(cameras)
    assert y.shape == (6 * (T - 2),) and B.shape == (6 * (T - 2), 6 * T)
    step = 1e-5 * rng.normal(size=(T, 6))
    change = second_differences(pose(step[:, :3], step[:, 3:]) @ cameras)[0] - y
    assert np.abs(change - B @ step.ravel()).max() < 0.05 * np.abs(change).max()


@pytest.mark.parametrize("own, noise", [(0.02, 0.005), (0.005, 0.02), (0.02, 0.02)])
def test_the_spreads_that_were_put_in_come_out(own, noise):
    found = []
    for seed in range(4):
        cameras, C = jittered(walked(64, own, seed), 1e-4, noise, seed + 10)
        y, B = second_differences(cameras)
        found.append(fit_path_prior(y, B @ C @ B.T)[1:])
    go, factor = np.median(found, 0)
    if own >= noise: assert 0.7 < go**0.5 / own < 1.4
    if noise >= own: assert 0.5 < factor < 2


def test_jitter_goes_from_a_dolly():
    gt = walked(40)
    cameras, C = jittered(gt, 1e-3, 5e-3)
    after, covariance, learnt = smooth(cameras, C)
    assert bent(after) < 0.1 * bent(cameras)
    errors = [rms(np.diff(centres(c) - centres(gt), axis=0)) for c in (cameras, after)]
    assert errors[1] < 0.3 * errors[0]
    assert covariance.shape == C.shape and np.linalg.eigvalsh(
        (covariance + covariance.T) / 2
    ).min() > -1e-9 and set(learnt) == {"sigma_turn", "sigma_move", "noise_factor"}


def test_a_shake_stays():
    gt = walked(40, own=0.02)
    cameras, C = jittered(gt, 1e-4, 1e-3)
    after = smooth(cameras, C)[0]
    assert 0.97 < bent(after) / bent(gt) < 1.03
    assert rms(centres(after) - centres(gt)) <= 1.1 * rms(centres(cameras) - centres(gt))


def test_the_covariance_may_be_wrong_by_a_factor():
    gt = walked(40)
    cameras, C = jittered(gt, 1e-3, 5e-3)
    after, _, learnt = smooth(cameras, C / 4)
    assert bent(after) < 0.15 * bent(cameras) and 1.3 < learnt["noise_factor"] < 3


def test_the_path_neither_grows_nor_shrinks():
    gt = walked(40, own=0.02)
    cameras, C = jittered(gt, 1e-4, 1e-3)
    T = len(cameras)
    grow = np.zeros((T, 6))
    grow[:, 3:] = -np.einsum("tij,tj->ti", cameras[:, :3, :3], centres(cameras) - centres(cameras).mean(0))
    after = smooth(cameras, C + np.outer(grow, grow))[0]  # the world's size is not known at all
    size = lambda c: np.linalg.norm(centres(c) - centres(c).mean(0))
    assert abs(size(after) / size(cameras) - 1) < 0.01


@settings(max_examples=10, deadline=None)
@given(unit=st.floats(1e-3, 1e3))
def test_the_unit_of_length_does_not_matter(unit):
    cameras, C = jittered(walked(20, own=0.01), 1e-3, 5e-3)
    other, scale = cameras.copy(), np.tile(np.repeat([1, unit], 3), 20)
    other[:, :3, 3] *= unit
    a, b = smooth(cameras, C)[0], smooth(other, C * scale[:, None] * scale)[0]
    assert np.allclose(b[:, :3, 3] / unit, a[:, :3, 3], atol=2e-3) and np.allclose(
        a[:, :3, :3], b[:, :3, :3], atol=2e-3
    )


@pytest.mark.parametrize("T", [1, 2, 3])
def test_short_shots_stay_as_they_are(T):
    cameras, C = jittered(walked(T), 1e-3, 5e-3)
    after, covariance, learnt = smooth(cameras, C)
    assert after is cameras and covariance is C and learnt == {}


def test_cameras_that_stand_still_stay():
    cameras = np.tile(np.eye(4), (10, 1, 1))
    after, covariance, _ = smooth(cameras, np.eye(60) * 1e-6)
    assert np.allclose(after, cameras, atol=1e-9) and np.isfinite(covariance).all()


def test_sure_cameras_hardly_move_and_unsure_ones_follow():
    gt = walked(30)
    cameras, C = jittered(gt, 1e-4, 1e-4)
    rng, unsure = np.random.default_rng(0), range(10, 14)
    for n in unsure:
        cameras[n, :3, 3] += rng.normal(0, 5e-3, 3)
        C[6 * n + 3 : 6 * n + 6, 6 * n + 3 : 6 * n + 6] = 5e-3**2 * np.eye(3)
    after = smooth(cameras, C)[0]
    off = lambda c: np.linalg.norm(centres(c) - centres(gt), axis=1)
    assert rms(off(after)[unsure]) < 0.3 * rms(off(cameras)[unsure]) and np.delete(off(after), unsure).max() < 1e-3
