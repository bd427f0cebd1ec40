"Sound of shots: a slow transform, known tones, cuts in the right place, training, fusion, silent and real films."

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_video import mux, pattern, sound

from conftest import SHOT_NAMES, train_until_killed
from primenb.core import PrimenbError
from primenb.data.records import ShotFeatures, frames_table
from primenb.scenes.boundaries import Evidence, FusedHead, Head, score_held_out
from primenb.learn.runs import load
from primenb.scenes.model import Shots, augment_sound, embed_shots
from primenb.scenes.train import ShotRun, augment_shots, make_shot_net, train_shots
from primenb.scenes.evaluate import evaluate_boundaries
from primenb.scenes.positives import l2_normalize
from primenb.media.sound import centred, film_sound, log_mel
from primenb.scenes.sound import concat_embeddings, sound_shots
from primenb.media.shots import detect_shots

pytestmark = pytest.mark.usefixtures("one_thread")
RATE = 8000
TINY = ShotRun("adjacent", epochs=2, batch_size=16, queue=64, width=16, embed_dim=8, device="cpu")


# --- pictures of sound


def mel(hertz):
    return 2595 * np.log10(1 + hertz / 700)


def knots(mels, rate):
    return 700 * (10 ** (np.linspace(mel(50), mel(min(14000, rate / 2)), mels + 2) / 2595) - 1)


def slow_log_mel(x, rate, mels, hop):
    "One number after the other."
    s = round(hop * rate)
    w, edges, padded = np.hanning(2 * s + 1)[:-1], knots(mels, rate), np.concatenate([np.zeros(s), x, np.zeros(s)])
    bins = np.linspace(0, rate / 2, s + 1)
    F = np.stack([np.interp(bins, edges[b : b + 3], [0, 1, 0]) for b in range(mels)])
    rows = []
    for n in range(1 + len(x) // s):
        X = [
            sum(w * padded[n * s : n * s + 2 * s] * np.exp(-2j * np.pi * k * np.arange(2 * s) / (2 * s)))
            for k in range(s + 1)
        ]
        rows.append(F @ np.abs(X) ** 2 * 2 / (s * (w**2).sum()))
    return (10 * np.log10(np.maximum(np.stack(rows, 1), 1e-10)) + 100).clip(0, 100) * 2.55


@pytest.mark.parametrize("mels, hop, length", [(16, 0.016, 1000), (8, 0.02, 1600), (12, 0.032, 100)])
def test_log_mel_number_by_number(mels, hop, length):
    x = (0.2 * np.random.default_rng(0).normal(size=length)).astype(np.float32)
    found = log_mel(x, RATE, mels, hop)
    assert found.dtype == np.uint8 and found.shape == (mels, 1 + length // round(hop * RATE))
    assert np.abs(found - slow_log_mel(x, RATE, mels, hop)).max() <= 0.51


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.floats(-60, -6))
def test_a_tone_lights_its_band_and_keeps_its_loudness(band, level):
    pitch = knots(32, RATE)[band + 1]
    x = (10 ** (level / 20) * np.sin(2 * np.pi * pitch * np.arange(RATE) / RATE)).astype(np.float32)
    found = log_mel(x, RATE, 32)[:, 1:-1].astype(float)
    assert (abs(found.argmax(0) - band) <= (band < 4)).all(), "the lowest bands are as narrow as the transform resolves"
    whole = 10 * np.log10((10 ** (found / 25.5 - 10)).sum(0))
    assert np.abs(whole - level).max() < 0.5


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 40), st.integers(1, 40))
def test_the_middle_is_kept(length, size):
    x = np.arange(1, length + 1)
    found = centred(x, size)
    kept = found[found > 0]
    assert len(found) == size and len(kept) == min(length, size) and (np.diff(kept) == 1).all()
    before, after = (
        (kept[0] - 1, length - kept[-1]) if length > size else ((found[::step] > 0).argmax() for step in (1, -1))
    )
    assert not length or abs(before - after) <= 1


def test_silence_and_what_is_no_sound():
    assert log_mel(np.zeros(RATE, np.float32), RATE).max() == 0
    assert log_mel(np.zeros(0, np.float32), RATE).shape == (64, 1)
    assert log_mel(np.ones(RATE, np.float32) * 100, RATE).max() == 255, "what is too loud stays at the upper end"
    with pytest.raises(PrimenbError, match="sample 7 is not finite"):
        log_mel(np.append(np.zeros(7), np.inf), RATE)


# --- shots of films


def film(path, samples, borders, key="film"):
    "A film at 25 frames a second, its sound stored without loss, with shots between the borders (seconds)."
    table = frames_table(key, np.stack([borders[:-1], borders[1:]], 1) * 25, 25)
    return SimpleNamespace(
        path=mux(path, list(pattern(round(borders[-1] * 25))), samples, rate=RATE, audio_codec="flac"),
        shots=table,
        key=key,
    )


def test_each_shot_is_heard_where_it_is(tmp_path):
    borders = np.array([0, 0.4, 2.4, 3.0])
    noise = (0.1 * np.random.default_rng(0).normal(size=3 * RATE)).astype(np.float32)
    made = film(tmp_path / "film.mkv", noise, borders)
    found = film_sound(made.path, made.shots, seconds=1.0, rate=RATE, mels=16)
    for x, (a, b) in zip(found, [(0, 0.4), (0.9, 1.9), (2.4, 3.0)]):
        part = noise[round(a * RATE) : round(b * RATE)]
        spare = RATE - len(part)
        wanted = log_mel(np.concatenate([np.zeros(spare // 2), part, np.zeros(spare - spare // 2)]), RATE, 16)
        assert x.shape == (*wanted.shape, 1) and np.abs(x[..., 0].astype(int) - wanted)[wanted > 40].max() <= 2
    silent = (found == 0).all((1, 3))
    assert silent[0, :8].all() and silent[0, -8:].all() and not silent[1].any() and silent[2, :5].all(), (
        "short shots lie in the middle of silence"
    )


def test_a_tone_of_a_neighbour_is_not_heard(tmp_path):
    tones = np.concatenate([sound(1.0, RATE, pitch) for pitch in (300, 2000, 300)])
    made = film(tmp_path / "film.mkv", tones, np.array([0, 1.0, 2.0, 3.0]))
    loudest = film_sound(made.path, made.shots, seconds=4.0, rate=RATE, mels=24)[..., 0].max(2).argmax(1)
    assert loudest[0] == loudest[2] < loudest[1] - 5


def test_films_become_shots(tmp_path):
    made = [film(tmp_path / f"{n}.mkv", sound(2.0, RATE, 200 * n), np.array([0, 1.0, 2.0]), str(n)) for n in (1, 2, 3)]
    shots = sound_shots(made, seconds=1.0, rate=RATE, mels=16)
    assert shots.films == ("1", "2", "3")
    assert shots.first.tolist() == [0, 2, 4, 6]
    assert shots.inputs.shape[3] == 1
    assert shots.scene is None
    for m in made:
        m.shots["scene"] = [4, 5]
    assert sound_shots(made, seconds=1.0, rate=RATE, mels=16).scene.tolist() == [4, 5] * 3
    with pytest.raises(PrimenbError, match="no films"):
        sound_shots([])


def test_films_that_cannot_be_heard(tmp_path):
    made = film(tmp_path / "film.mkv", sound(1.0, RATE), np.array([0, 1.0]))
    silent = mux(tmp_path / "silent.mp4", list(pattern(25)))
    with pytest.raises(PrimenbError, match="silent.mp4: it has no sound; leave it out"):
        film_sound(silent, made.shots)
    with pytest.raises(PrimenbError, match="2 shots up to 9.00 s for a film of 1.00 s"):
        film_sound(made.path, frames_table("other", [[0, 25], [25, 225]], 25))
    with pytest.raises(PrimenbError, match="0 shots"):
        film_sound(made.path, made.shots[:0])


# --- views, training and fusion


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(4, 40), st.integers(4, 60))
def test_views_of_sound(seed, mels, frames):
    torch.manual_seed(seed)
    x = 0.2 + 0.6 * torch.rand(3, 1, mels, frames)
    x[:, :, 0] = 0
    assert torch.equal(augment_sound(x, 0, 0, 0), x)
    moved = augment_sound(x, 0.5, 0, 0)
    for a, b in zip(x[:, 0], moved[:, 0]):
        assert any(torch.equal(b, a.roll(k, 1)) for k in range(frames)), "it only begins elsewhere"
    louder = augment_sound(x, 0, 0.1, 0) - x
    assert (
        (louder[:, :, 0] == 0).all() and louder[:, :, 1:].std((1, 2, 3)).max() < 1e-6 and louder.abs().max() <= 0.1
    ), "as much for all that is heard"
    hidden = augment_sound(x, 0, 0, 0.5) != x
    rows, columns = hidden[:, 0].all(2), hidden[:, 0].all(1)
    assert torch.equal(hidden[:, 0], rows[:, :, None] | columns[:, None]), "whole bands and moments"
    for line, most in ((rows, mels), (columns, frames)):
        assert (line.sum(1) <= 0.5 * most + 1).all() and (
            line.int().diff(dim=1).clamp(min=0).sum(1) + line[:, 0] <= 1
        ).all(), "in one piece"
    seen = augment_sound(x)
    assert seen.shape == x.shape and seen.min() >= 0 and seen.max() <= 1


def test_the_view_is_that_of_the_input():
    run = ShotRun(dropout=0.0, feature_noise=0.0, min_crop=1.0, color_jitter=0.0)
    x = torch.zeros(4, 1, 8, 9).index_fill(2, torch.tensor([3]), 0.5)
    assert (augment_shots(x, run)[:, :, 4] <= 0.1).all(), "sound is not turned over"
    assert torch.equal(augment_shots(x[:, 0, 0], run), x[:, 0, 0])
    assert augment_shots(torch.rand(2, 9, 8, 9), run).shape == (2, 9, 8, 9)


def humming(films=3, length=24, seed=0):
    "Shots as pictures of sound; a scene hums in a band of its own, and each shot rings in another."
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(length // 4), 4)
    x = rng.integers(30, 60, (films, length, 16, 20, 1)).astype(np.uint8)
    for f in range(films):
        for n, band in enumerate(rng.integers(0, 16, length // 4)[scene]):
            x[f, n, band] += 90
            x[f, n, rng.integers(16), :10] += 60
    return Shots(
        tuple(f"film {f}" for f in range(films)),
        np.arange(films + 1) * length,
        x.reshape(-1, *x.shape[2:]),
        np.tile(scene, films),
    )


def test_same_seed_same_weights(tmp_path):
    for name in ("a", "b"):
        train_shots(TINY, humming(), tmp_path / name)
    a, b = (load(tmp_path / name) for name in ("a", "b"))
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())
    vectors = embed_shots(a, humming().inputs)
    assert vectors.shape == (72, 8) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert not np.allclose(vectors, embed_shots(make_shot_net(TINY, humming()), humming().inputs), atol=1e-3)


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_weights(tmp_path):
    run = replace(TINY, epochs=4)
    train_until_killed(
        run, tmp_path / "killed", 9, given="__import__('test_scenes_sound').humming(), ", names=SHOT_NAMES
    )
    for name in ("once", "killed"):
        train_shots(run, humming(), tmp_path / name)
    a, b = (load(tmp_path / name).state_dict() for name in ("once", "killed"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_cosine_of_fused_vectors_is_the_mean():
    u, v = (np.random.default_rng(n).normal(size=(5, d)) for n, d in ((0, 3), (1, 7)))
    found = concat_embeddings(u, v)
    assert found.shape == (5, 10) and found.dtype == np.float32
    assert np.allclose(
        found @ found.T, (l2_normalize(u) @ l2_normalize(u).T + l2_normalize(v) @ l2_normalize(v).T) / 2, atol=1e-6
    )
    assert np.allclose(concat_embeddings(u), l2_normalize(u))


def both_senses(seed):
    "A film in which some scenes end for the eye and the others for the ear."
    rng = np.random.default_rng(seed)
    scene = np.repeat(np.arange(16), rng.integers(3, 7, 16))
    changes = rng.random(16) < 0.5
    eye, ear = (
        rng.normal(size=(17, 12))[np.cumsum(c)][scene] + 0.5 * rng.normal(size=(len(scene), 12))
        for c in (changes, ~changes)
    )
    ends = np.arange(1, len(scene) + 1) * 50
    return ShotFeatures(
        f"film {seed}",
        frames_table(f"film {seed}", np.stack([ends - 50, ends], 1), 25),
        scene,
        dict(picture=eye.astype(np.float32), sound=ear.astype(np.float32), both=concat_embeddings(eye, ear)),
    )


def test_two_senses_tell_more_than_one():
    records = [both_senses(seed) for seed in range(6)]
    head = {name: Head(Evidence("similarity", name)) for name in ("picture", "sound", "both")}
    ap = {
        name: evaluate_boundaries(score_held_out(h, records)).ap
        for name, h in {**head, "late": FusedHead((head["picture"], head["sound"]))}.items()
    }
    assert min(ap["late"], ap["both"]) > max(ap["picture"], ap["sound"]) + 0.1


def test_a_real_film(real):
    path = real / "film_clips/bbb_60s.mp4"
    shots = detect_shots(path)
    found = film_sound(path, shots, seconds=5.0, rate=16000)
    assert found.shape == (len(shots), 64, 1 + 5 * 16000 // 512, 1) and found.dtype == np.uint8
    heard = found[:, :, 20:-20].astype(float)
    assert (heard.std((1, 2, 3)) > 5).all() and 20 < heard.mean() < 230 and found.max() < 255, (
        "neither silent nor cut off"
    )
    assert np.isfinite(embed_shots(make_shot_net(TINY, Shots(("bbb",), np.array([0, len(shots)]), found)), found)).all()
    with pytest.raises(PrimenbError, match="bikes.mp4: it has no sound"):
        film_sound(real / "film_clips/bikes.mp4", shots)
