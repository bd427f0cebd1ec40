"Shots: real cuts, agreement with PySceneDetect's own reader, and the shot table's promises."
import numpy as np
import pytest
import scenedetect
from hypothesis import given, strategies as st

from primenb.core import PrimenbError
from primenb.media.shots import detect_shots, detectors, load_shots, match_cuts, save_shots, shot_table
from primenb.media.video import Frame, encode, frame_times, iter_frames

bbb_cuts = [11.88, 15.75, 23.04, 47.71, 56.08]


def test_cuts_of_real_clips_with_one_setting(real):
    bikes = detect_shots(real / "film_clips/bikes.mp4")
    assert bikes.start_frame.tolist() == [0, 30, 76, 137, 187, 242]
    assert detect_shots(real / "film_clips/bigbuckbunny.mp4").start_frame.tolist() == [0]
    bbb = detect_shots(real / "film_clips/bbb_60s.mp4")
    assert bbb.start[1:].tolist() == pytest.approx(bbb_cuts, abs=1 / 24)


@pytest.mark.parametrize("name", ["adaptive", "content"])
def test_same_cuts_as_scenedetect_reading_by_itself(real, name):
    film = real / "film_clips/bikes.mp4"
    video = scenedetect.open_video(str(film), backend="pyav")
    manager = scenedetect.SceneManager()
    manager.add_detector(detectors[name](min_scene_len=0.6))
    manager.detect_scenes(video)
    theirs = [start.seconds for start, _ in manager.get_scene_list(start_in_scene=True)]
    assert detect_shots(film, name).start.tolist() == pytest.approx(theirs, abs=1e-3)


def test_threshold_finds_a_fade(tmp_path):
    ramp = np.concatenate(
        [np.full(30, 1.0), np.linspace(1, 0, 15), np.zeros(10), np.linspace(0, 1, 15), np.full(30, 1.0)]
    )
    noise = np.random.default_rng(0).integers(60, 255, (90, 120, 3))
    film = encode(tmp_path / "fade.mp4", [(noise * r).astype(np.uint8) for r in ramp], 25)
    shots = detect_shots(film, "threshold")
    assert len(shots) == 2 and 40 <= shots.start_frame[1] <= 60


def test_a_cut_is_found_at_its_second_when_time_stamps_are_uneven(tmp_path):
    rng = np.random.default_rng(1)
    scenes = [rng.integers(0, 255, (72, 96, 3), dtype=np.uint8) for _ in range(3)]
    times = np.cumsum(rng.uniform(0.02, 0.09, 90))
    film = encode(tmp_path / "uneven.mp4", [Frame(scenes[i // 30], t - times[0], i, 0) for i, t in enumerate(times)])
    assert detect_shots(film).start.tolist() == pytest.approx([0, *(times[[30, 60]] - times[0])], abs=1e-3)


def test_one_frame_is_one_shot(tmp_path):
    film = encode(tmp_path / "one.mp4", [np.zeros((64, 64, 3), np.uint8)])
    assert detect_shots(film)[["start_frame", "end_frame"]].values.tolist() == [[0, 1]]


def test_short_shots_are_merged_only_below_min_length(tmp_path):
    rng = np.random.default_rng(2)
    scenes = [rng.integers(0, 255, (72, 96, 3), dtype=np.uint8) for _ in range(4)]
    film = encode(tmp_path / "quick.mp4", [scenes[i // 10] for i in range(40)], 25)
    assert detect_shots(film, min_length=0.2).start_frame.tolist() == [0, 10, 20, 30]
    assert len(detect_shots(film, min_length=1.0)) < 4


def test_what_is_not_known_is_refused_with_what_is(tmp_path):
    film = encode(tmp_path / "one.mp4", [np.zeros((64, 64, 3), np.uint8)])
    with pytest.raises(PrimenbError, match="adaptive, content"): detect_shots(film, "neural")
    with pytest.raises(PrimenbError, match="thresold"): detect_shots(film, "content", thresold=3)


films = st.integers(1, 400).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=30)))


@given(films)
def test_shots_part_the_film_and_hold_their_key_frames(film):
    n, cuts = film
    times = np.arange(n) / 24
    shots = shot_table("f", sorted(cuts), times, n / 24)
    covered = np.concatenate([np.arange(a, b) for a, b in zip(shots.start_frame, shots.end_frame)])
    assert covered.tolist() == list(range(n))
    assert set(shots.start_frame) == cuts | {0}
    keys = shots[["key1", "key2", "key3"]].values
    assert (np.diff(keys, axis=1) >= 0).all()
    assert (keys[:, 0] >= shots.start - 1e-5).all() and (keys[:, 2] < shots.end).all()


frames = st.sets(st.integers(0, 60), max_size=8)


@given(frames, frames, st.integers(0, 3))
def test_matching_is_one_to_one_near_and_leaves_no_pair_unmatched(found, true, tolerance):
    pairs = match_cuts(sorted(found), sorted(true), tolerance)
    assert len({f for f, _ in pairs}) == len({t for _, t in pairs}) == len(pairs)
    assert all(f in found and t in true and abs(f - t) <= tolerance for f, t in pairs)
    left = [
        (f, t)
        for f in found - {f for f, _ in pairs}
        for t in true - {t for _, t in pairs} if abs(f - t) <= tolerance
    ]
    assert left == []


def test_a_table_survives_the_disk_and_a_damaged_one_is_refused(tmp_path):
    shots = shot_table("1917", [4, 9], np.arange(20) / 3, 20 / 3)
    save_shots(shots, tmp_path / "shots.csv")
    assert load_shots(tmp_path / "shots.csv").equals(shots)
    for damage in (b"", b"film,shot\n", b"\xff\xfe\x00"):
        (tmp_path / "shots.csv").write_bytes(damage)
        with pytest.raises(PrimenbError, match="shots.csv"): load_shots(tmp_path / "shots.csv")


def test_frames_of_the_table_are_those_of_the_reader(real):
    film = real / "film_clips/bikes.mp4"
    shots = detect_shots(film)
    assert shots.start.tolist() == pytest.approx(frame_times(film)[shots.start_frame].tolist())
    assert sum(
        1
        for _ in iter_frames(film, seconds=(shots.start[2], shots.end[2]), size=32)
    ) == shots.end_frame[2] - shots.start_frame[2]
