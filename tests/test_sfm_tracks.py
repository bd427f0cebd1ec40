"Tracks: a moved texture is tracked to a tenth of a pixel, matches are joined as by a slow union, masks, bad input."
import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from primenb.core import PrimenbError
from primenb.data.corpus import tracking_shots
from primenb.data.public import posed_frames
from primenb.sfm.tracks import GRID, auto_tracks, check_frames, join_matches, klt_tracks, sift_tracks

followers = pytest.mark.parametrize("make", [klt_tracks, sift_tracks])


def moved(T=6, step=(1.3, -0.7), size=(320, 180), seed=0):
    "A smooth random texture that slides by a known step from frame to frame."
    rng = np.random.default_rng(seed)
    big = cv2.GaussianBlur(rng.random((size[1] + 60, size[0] + 60, 3)).astype(np.float32), (0, 0), 1.6)
    big = (big - big.min()) / np.ptp(big) * 255
    shifts = [np.float32([[1, 0, n * step[0] - 30], [0, 1, n * step[1] - 30]]) for n in range(T)]
    return np.stack([cv2.warpAffine(big, M, size, flags=cv2.INTER_CUBIC) for M in shifts]).clip(0, 255).astype(np.uint8)


def tidy(tracks, least):
    "What every table of tracks promises."
    assert (np.lexsort((tracks.frame, tracks.track)) == np.arange(len(tracks.frame))).all(), "sorted"
    assert len(np.unique(tracks.track * tracks.frames + tracks.frame)) == len(tracks.frame), "one place in a frame"
    assert (np.unique(tracks.track) == np.arange(len(tracks))).all() and (tracks.lengths >= least).all()
    assert ((tracks.xy >= 0) & (tracks.xy <= tracks.size)).all()


# ---- following and recognising

@followers
@pytest.mark.parametrize("step", [(1.3, -0.7), (0.25, 0.1), (-6.5, 4.2)])
def test_a_known_motion_is_found(make, step):
    tracks = make(moved(step=step), min_length=3)
    tidy(tracks, 3)
    assert len(tracks) > 50 and tracks.size == (320, 180) and tracks.frames == 6
    first = np.flatnonzero(np.diff(tracks.track, prepend=-1))[tracks.track]
    error = np.linalg.norm(tracks.xy - tracks.xy[first] - (tracks.frame - tracks.frame[first])[:, None] * step, axis=1)
    assert np.median(error) < (0.1 if make is klt_tracks else 0.25) and np.quantile(error, 0.9) < 0.6


@followers
def test_places_count_from_the_corner_of_the_first_pixel(make):
    middles = np.stack(
        np.meshgrid(np.arange(20, 300, 28), np.arange(20, 170, 26)), -1
    ).reshape(-1, 2) + np.random.default_rng(0).integers(-4, 5, (60, 2))
    frame = np.full((180, 320, 3), 60, np.uint8)
    for x, y in middles.tolist():
        frame[y - 2 : y + 3, x - 2 : x + 3] = 60 + 3 * ((x * y) % 60)  # squares around the middles of pixels
    tracks = make(np.stack([frame] * 3))
    away = tracks.xy[:, None] - (middles + 0.5)
    away = away[range(len(away)), np.linalg.norm(away, axis=2).argmin(1)]
    assert len(tracks) > 20 and np.abs(np.median(away[np.linalg.norm(away, axis=1) < 6], 0)).max() < 0.3


@followers
def test_masks_hide(make):
    frames = moved()
    mask = np.zeros((6, 18, 32), bool)
    mask[:, :, :16] = True
    tracks = make(frames, mask)
    assert len(tracks) > 20 and tracks.xy[:, 0].min() > 158
    walking = np.zeros((6, 180, 320), bool)
    walking[3:] = mask[3:].repeat(10, 1).repeat(10, 2)
    assert make(frames, walking).xy[make(frames, walking).frame >= 3][:, 0].min() > 158
    assert len(make(frames, ~np.ones((6, 18, 32), bool)).xy) == len(make(frames).xy)


@followers
def test_the_same_twice(make):
    frames = moved()
    a, b = make(frames), make(frames)
    assert (a.track == b.track).all() and (a.frame == b.frame).all() and (a.xy == b.xy).all()


@followers
@pytest.mark.parametrize(
    "frames", [np.zeros((4, 90, 160, 3), np.uint8), np.full((4, 90, 160, 3), 200, np.uint8)], ids=["black", "flat"]
)
def test_nothing_to_follow_is_an_empty_table(make, frames):
    tracks = make(frames)
    assert len(tracks) == 0 and tracks.xy.shape == (0, 2) and tracks.frames == 4


def test_every_part_of_the_picture_has_its_share():
    frames = moved(size=(480, 270))
    frames[:, :, 160:] = (frames[:, :, 160:] // 4).astype(np.uint8)  # two thirds of it four times fainter
    tracks = klt_tracks(frames, max_tracks=128)
    xy = tracks.xy[tracks.frame == 0]
    cells = np.histogram2d(*xy.T, (GRID, GRID), ((0, 480), (0, 270)))[0]
    assert (cells > 0).mean() > 0.9 and cells.max() <= 128 / GRID**2


def test_tracks_begin_where_others_ended():
    frames = np.concatenate([moved(6, seed=1), moved(10, seed=2)])  # a cut: nothing survives
    tracks = klt_tracks(frames)
    across = (tracks.frame[np.searchsorted(tracks.track, np.arange(len(tracks)))] < 6) & (
        np.maximum.reduceat(tracks.frame, np.flatnonzero(np.diff(tracks.track, prepend=-1))) >= 6
    )
    assert across.mean() < 0.05 and (tracks.frame >= 12).any()


def test_starter_shots_are_followed():
    shot = next(s for s in tracking_shots(check=False) if s.key == "track_12")
    tracks = klt_tracks(shot.frames(), max_tracks=250)
    tidy(tracks, 3)
    assert len(tracks) > 200 and np.median(tracks.lengths) > 20


# ---- joining

def slowly(points, matches, least):
    "Tracks by merging sets, one match after the other."
    sets = {(n, i): {(n, i)} for n, p in enumerate(points) for i in range(len(p))}
    for a, i, b, j in matches:
        if sets[a, i] is not sets[b, j]:
            sets[a, i] |= sets[b, j]
            for one in sets[b, j]: sets[one] = sets[a, i]
    found = set()
    for group in {id(s): s for s in sets.values()}.values():
        frames = [n for n, _ in group]
        single = frozenset((n, *points[n][i]) for n, i in group if frames.count(n) == 1)
        if len(single) >= least: found.add(single)
    return found


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.integers(0, 40), st.integers(1, 3))
def test_join_is_the_union_of_sets(seed, frames, count, least):
    rng = np.random.default_rng(seed)
    points = [rng.uniform(0, 100, (rng.integers(0, 6), 2)) for _ in range(frames)]
    held = [n for n in range(frames) if len(points[n])]
    rows = []
    for _ in range(count if len(held) > 1 else 0):
        a, b = rng.choice(held, 2, replace=False)
        rows.append((a, rng.integers(len(points[a])), b, rng.integers(len(points[b]))))
    tracks = join_matches(points, np.array(rows, int).reshape(-1, 4), (100, 100), least)
    tidy(tracks, least)
    found = {
        frozenset(
            (f, *xy) for f, xy in zip(tracks.frame[tracks.track == j].tolist(), tracks.xy[tracks.track == j].tolist())
        )
        for j in range(len(tracks))
    }
    assert found == slowly([p.tolist() for p in points], rows, least)


# ---- bad input

@pytest.mark.parametrize("frames, word", [
    (np.zeros((1, 9, 16, 3), np.uint8), "needs two"), (np.zeros((4, 9, 16, 3)), "float64"), (
        np.zeros((4, 9, 16, 4), np.uint8), "no shot"
    ),
    (np.zeros((4, 9, 16), np.uint8), "no shot"), (np.zeros((9, 16, 3), np.uint8), "no shot"), ([], "no shot")])
def test_frames_that_are_none_are_refused(frames, word):
    for check in (check_frames, klt_tracks, sift_tracks):
        with pytest.raises(PrimenbError, match=word) as caught: check(frames)
    assert "give" in str(caught.value)


@pytest.mark.parametrize("mask, word", [
    (np.zeros((3, 9, 16)), "one mask a frame"), (np.zeros((9, 16)), "one mask a frame"), (
        np.zeros((4, 16, 9)), "aspect ratio"
    ), (np.ones((4, 9, 16)), "hides everything")])
def test_masks_that_do_not_fit_are_refused(mask, word):
    with pytest.raises(PrimenbError, match=word): check_frames(np.zeros((4, 90, 160, 3), np.uint8), mask)


def test_masks_of_any_size_are_brought_to_the_pictures_size():
    mask = np.zeros((4, 9, 16), bool)
    mask[:, :3, 5] = True
    grown = check_frames(np.zeros((4, 90, 160, 3), np.uint8), mask)
    assert grown.shape == (4, 90, 160) and (grown == mask.repeat(10, 1).repeat(10, 2)).all()


# ---- whatever the speed

def link(tracks, n):
    "How many tracks are seen both before frame n and from it on, counted one by one."
    seen = [tracks.frame[tracks.track == j] for j in range(len(tracks))]
    return sum(frames.min() < n <= frames.max() for frames in seen)


def slid(steps, seed=0):
    "A texture in which a window moves to the right by the steps, in pixels."
    big = moved(1, size=(1000, 180), seed=seed)[0]
    return np.stack([big[:, x : x + 320] for x in np.cumsum([0, *steps])])


@settings(max_examples=4, deadline=None)
@given(step=st.integers(0, 5), seed=st.integers(0, 99))
def test_at_ordinary_speed_auto_is_klt(step, seed):
    frames = slid([step] * 5, seed)
    plain, auto, stream = klt_tracks(frames), auto_tracks(frames), auto_tracks(iter(frames))
    for one in (auto, stream):
        assert (one.tracker, one.sway) == ("klt", plain.sway)
        for name in ("frame", "track", "xy"): assert (getattr(one, name) == getattr(plain, name)).all()


def test_a_jump_is_bridged_where_all_frames_are_there():
    frames = slid([3] * 4 + [140] + [3] * 4)
    bridged, stream = auto_tracks(frames), auto_tracks(iter(frames))
    tidy(bridged, 3)
    assert bridged.tracker == "sift" and link(bridged, 5) > 20 > link(klt_tracks(frames), 5)
    assert stream.tracker.startswith("klt") and stream.frames == len(frames)


def test_matching_is_not_taken_where_it_links_no_better():
    frames = np.concatenate([slid([3] * 4, seed=1), slid([3] * 4, seed=2)])  # a cut
    plain, auto = klt_tracks(frames), auto_tracks(frames)
    assert auto.tracker.startswith("klt") and len(auto) >= len(plain) and link(auto, 5) <= link(plain, 5) + 2


def test_people_that_walk_into_the_mask_are_not_lost_tracks():
    frames, mask = slid([3] * 5), np.zeros((6, 180, 320), bool)
    mask[3, :, 40:] = True
    assert auto_tracks(frames, mask).tracker == "klt"


def test_a_fast_real_camera_is_followed(real):
    images = [f.image for n, f in zip(range(45), posed_frames(real / "hololens_fast", check=False)) if n >= 37]
    frames = np.stack(images)
    plain, auto = klt_tracks(frames), auto_tracks(frames)
    worst = [min(link(made, n) for n in range(1, 8)) for made in (plain, auto)]
    assert auto.tracker == "sift" and worst[1] > 1.5 * worst[0]
