"Motion vectors and the field made of them: against reference vectors, slow painters and known pans; caching."
import multiprocessing, shutil, time
from fractions import Fraction
from zlib import crc32

import av
import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from primenb.media.motion import Motion, cached_motion, iter_motion, read_motion, to_tokens
from primenb.media.video import (
    NoMotionVectors, VideoError, canonicalise, encode, frame_times, iter_frames, iter_vectors, probe)
from test_video import matrices, pattern, turn

fields = ("source", "w", "h", "src_x", "src_y", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")


def facts(v):
    "Everything `iter_vectors` says of a frame in a comparable form; padding between the fields left out."
    rows = () if v.table is None else (len(v.table), *(crc32(np.ascontiguousarray(v.table[name])) for name in fields))
    return (v.number, v.kind, round(v.time, 6), v.size, v.turns, v.since, v.until, *rows)

def all_facts(path): return [facts(v) for v in iter_vectors(path)]

def same(a, b):
    return all(
        np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y
        for x, y in ((getattr(a, k), getattr(b, k)) for k in vars(a))
    )


# ---- vectors as stored

@pytest.mark.parametrize("codec", ["h264", "mpeg4_part2"])
def test_vectors_equal_the_reference(real, codec):
    folder = real / "motion_vectors"
    for v in iter_vectors(folder / f"vid_{codec}.mp4", frames=(0, 20)):
        expected = np.load(folder / f"reference/{codec}/mvs-{v.number}.npy")
        found = (
            np.empty((0, 10), int)
            if v.table is None
            else np.stack([v.table[name].astype(int) for name in fields], 1)
        )
        assert np.array_equal(found, expected.reshape(-1, 10)), f"frame {v.number}"
    assert v.number == 19

@pytest.mark.parametrize("codec", ["h264", "mpeg4_part2"])
def test_frame_types_equal_the_reference(real, codec):
    folder = real / "motion_vectors"
    expected = (folder / f"reference/{codec}/frame_types.txt").read_text().split()
    assert len(expected) == 337
    assert [v.kind for v in iter_vectors(folder / f"vid_{codec}.mp4")] == expected

@pytest.mark.slow
@pytest.mark.parametrize(
    "name, b_frames",
    [
        ("film_clips/bigbuckbunny.mp4", False),
        ("film_clips/bbb_60s.mp4", False),
        ("film_clips/bikes.mp4", True),
        ("codecs/nasa_13013.mp4", True),
    ],
)
def test_every_reading_gives_the_same_vectors(real, name, b_frames):
    path = real / name
    once = all_facts(path)
    assert any(f[1] == "B" for f in once) == b_frames and len(once) == len(frame_times(path))
    with multiprocessing.get_context("spawn").Pool(4) as pool: readings = pool.map(all_facts, [path] * 10, chunksize=1)
    assert all(r == once for r in readings)

@pytest.mark.parametrize(
    "name",
    [
        "film_clips/bikes.mp4",
        "film_clips/bigbuckbunny.mp4",
        "motion_vectors/vid_mpeg4_part2.mp4",
        "codecs/nasa_13013.mp4",
    ],
)
@pytest.mark.parametrize("a, b", [(0, 3), (17, 40), (101, 104), (125, 131)])
def test_a_stretch_of_vectors_is_a_slice_of_the_whole(real, name, a, b):
    path = real / name
    whole = all_facts(path)
    assert [facts(v) for v in iter_vectors(path, frames=(a, b))] == whole[a:b]
    times = frame_times(path)
    assert [facts(v) for v in iter_vectors(path, seconds=(times[a], times[b]))] == whole[a:b]
    stretch, film = read_motion(path, frames=(a, b)), read_motion(path)[a:b]
    assert stretch.measured.any() and len(stretch) == b - a
    for k in ("times", "numbers", "kinds", "measured"): assert np.array_equal(getattr(stretch, k), getattr(film, k))
    assert np.array_equal(stretch.field[stretch.measured], film.field[stretch.measured])

def test_stretches_in_one_pass_equal_each_alone(real):
    path, bounds = real / "film_clips/bikes.mp4", [5, 30, 76, 77, 137]
    found, taken = list(iter_motion(path, bounds)), iter_motion(path, bounds, remove_camera=True)
    assert len(found) == 4
    # but for the first frame, which is measured from before the stretch when it is read alone
    for motion, a, b in zip(found, bounds, bounds[1:]):
        assert motion.numbers.tolist() == list(range(a, b)) and not motion.measured[0] or b - a == 1
        assert b - a == 1 or same(motion[1:], read_motion(path, frames=(a, b))[1:])
        alone = read_motion(path, frames=(a, b), remove_camera=True)
        camera = next(taken).camera
        assert b - a == 1 or np.array_equal(camera[1:], alone.camera[1:])

@pytest.mark.parametrize(
    "name", ["h265_video.mp4", "testsrc2_vp8.webm", "testsrc2_odd_height_and_width_vp9.mp4", "testsrc2_av1_10bit.mp4"]
)
def test_codecs_without_vectors(real, tmp_path, name):
    path = real / "codecs" / name
    for reader in (read_motion, lambda p: list(iter_vectors(p)), lambda p: cached_motion(p, tmp_path)):
        with pytest.raises(NoMotionVectors, match="canonicalise") as error: reader(path)
        assert str(path) in str(error.value)
    assert list(tmp_path.iterdir()) == []
    copy = canonicalise(path, tmp_path / "copy.mp4")
    motion = read_motion(copy)
    assert motion.measured[1:].any() and motion.speed.max() > 0 and len(motion) == len(frame_times(path))
    cached = cached_motion(path, tmp_path, canonical=True)
    assert np.allclose(cached.field, motion.field, rtol=1e-3) and np.array_equal(cached.kinds, motion.kinds)

def test_a_film_of_key_frames_only(tmp_path):
    path = encode(tmp_path / "film.mp4", pattern(8), options={"g": "1"})
    with pytest.raises(NoMotionVectors, match="canonicalise"): read_motion(path)


def test_an_interlaced_film_is_refused(tmp_path):
    path = write(tmp_path / "film.mkv", window(8, 0, 4), "libx264", crf=14, **{"x264-params": "interlaced=1"})
    with pytest.raises(NoMotionVectors, match="interlaced.*canonicalise"): read_motion(path)
    canonical_motion = cached_motion(path, tmp_path, canonical=True, remove_camera=True)
    assert np.abs(np.median(canonical_motion.camera[1:], 0) - (0, -4)).max() < 0.3


# ---- from vectors to a field

def paint(vectors):
    "The field by its definition, vector by vector and pixel by pixel: (T,H,W,2) as stored; NaN where there is none."
    images = []
    for v in vectors:
        width, height = v.size
        sides = {True: np.full((height, width, 2), np.nan), False: np.full((height, width, 2), np.nan)}
        for row in v.table if v.table is not None else ():
            past = row["source"] < 0
            w = int(row["w"])
            h = int(row["h"])
            m = np.array([row["motion_x"], row["motion_y"]]) / row["motion_scale"]
            left, top = int(row["dst_x"]) - w // 2, int(row["dst_y"]) - h // 2
            sides[past][max(top, 0) : top + h, max(left, 0) : left + w] = -m / v.since if past else m / max(v.until, 1)
        one_side = np.where(np.isnan(sides[True]), sides[False], sides[True])
        images.append(
            np.where(np.isnan(sides[True]) | np.isnan(sides[False]), one_side, (sides[True] + sides[False]) / 2)
        )
    return np.stack(images)

def fill(images, measured):
    "Frames that were not measured take the nearest one that was; of two, the later."
    known = np.flatnonzero(measured)
    return np.stack([images[min(known, key=lambda k: (abs(k - t), -k))] for t in range(len(images))])

def pixels(motion):
    "The field with a displacement for every pixel."
    cells = lambda borders: np.searchsorted(borders, np.arange(borders[-1]) + 0.5) - 1
    return motion.field[:, cells(motion.y)][:, :, cells(motion.x)]

@pytest.mark.parametrize(
    "name, frames",
    [
        ("film_clips/bigbuckbunny.mp4", (3, 9)),
        ("film_clips/bikes.mp4", (26, 36)),
        ("motion_vectors/vid_h264.mp4", (0, 5)),
        ("motion_vectors/vid_mpeg4_part2.mp4", (8, 15)),
        ("codecs/nasa_13013.mp4", (245, 255)),
        ("codecs/testsrc2_odd_height_and_width_mpeg2.mp4", (0, 10)),
        ("codecs/testsrc2_odd_height_and_width_444.mp4", (0, 12)),
        ("codecs/test_non_zero_start.mp4", (0, 12)),
    ],
)
def test_the_field_equals_the_slow_painting(real, name, frames):
    vectors = list(iter_vectors(real / name, frames=frames))
    motion = read_motion(real / name, frames=frames)
    painted = paint(vectors)
    measured = [v.table is not None for v in vectors]
    assert np.array_equal(motion.measured, measured) and motion.speed.max() > 0
    assert np.allclose(pixels(motion), fill(np.nan_to_num(painted), measured), atol=1e-4)

@pytest.mark.parametrize(
    "name, frames", [("film_clips/bikes.mp4", (77, 90)), ("film_clips/bigbuckbunny.mp4", (60, 70))])
def test_camera_motion_is_the_median_where_there_are_vectors(real, name, frames):
    vectors = list(iter_vectors(real / name, frames=frames))
    motion = read_motion(real / name, frames=frames, remove_camera=True)
    measured = [v.table is not None for v in vectors]
    corners = paint(vectors)[:, ::8, ::8]  # every cell once
    camera = np.array([np.nanmedian(p.reshape(-1, 2), 0) if m else (0, 0) for p, m in zip(corners, measured)])
    sure = measured & (np.hypot(*camera.T) > 0.25)
    assert sure.sum() >= 5 and np.allclose(motion.camera[sure], camera[sure], atol=1e-4)
    known = ~np.isnan(corners[..., 0]) & sure[:, None, None]
    assert np.allclose(motion.field[known], (corners - camera[:, None, None])[known], atol=1e-4)

@pytest.mark.parametrize("name, share", [("bottle", 0.5), ("car", 0.5), ("one-by-one-person", 0.5)])
def test_a_standing_camera_stands_and_noise_is_no_motion(real, name, share):
    path, seconds = real / f"static_camera/{name}-detection.mp4", (0, 20)
    found, stored = read_motion(path, seconds=seconds, remove_camera=True), read_motion(path, seconds=seconds)
    assert np.hypot(*found.camera.T).mean() < 0.05
    images = [cv2.GaussianBlur(cv2.cvtColor(f.image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1)
              for f in iter_frames(path, seconds=seconds)]
    change = [b - a - np.median(b - a) for a, b in zip(images, images[1:])]
    near = [cv2.dilate((np.abs(c) > 12).astype(np.uint8), np.ones((49, 49))) for c in change]
    nothing = np.stack(near)[:, ::8, ::8][:, : len(found.y) - 1, : len(found.x) - 1] == 0
    nothing &= found.measured[1:, None, None]
    def moving(motion): return (motion.speed[1:] > 0.25)[nothing].mean()
    assert nothing.mean() > 0.5 and moving(found) < share * moving(stored) and moving(found) < 0.1

def flicker(images, seed=0):
    "The same images from a noisy sensor under light that changes from place to place and frame to frame."
    rng = np.random.default_rng(seed)
    for image in images:
        light = cv2.GaussianBlur(rng.normal(size=image.shape[:2]), (0, 0), 12)
        noisy = image + 6 * (light / light.std())[..., None] + rng.normal(0, 3, image.shape)
        yield np.clip(noisy, 0, 255).astype(np.uint8)

def still_scene(thing_moves, frames=20, size=(192, 256)):
    wall = np.full((*size, 3), 90, np.uint8)
    wall[24:88, 24:88] = next(window(1, 0, 0, 64, 64))
    thing = next(window(1, 0, 0, 48, 48, seed=5))
    for t in range(frames):
        image = wall.copy()
        if thing_moves: image[112:160, 16 + 6 * t : 64 + 6 * t] = thing
        yield image

@pytest.mark.parametrize("seed", range(3))
def test_noise_stands_still_and_what_moves_in_it_moves(tmp_path, seed):
    found = {}
    for moves in (False, True):
        path = encode(tmp_path / f"{moves}.mp4", flicker(still_scene(moves), seed), options={"bf": "0", "refs": "1"})
        found[moves] = read_motion(path, remove_camera=True)
        assert np.hypot(*found[moves].camera.T).max() < 0.3 and found[moves].noise.mean() > 0.05
        stored = (read_motion(path).speed > 0.25)[1:].mean()
        rest = (found[moves].speed > 0.25)[1:, :12]  # above the thing
        assert stored > 0.15 and rest.mean() < 0.2 * stored
    for t in range(4, 16):
        inside = found[True].field[t, 15:19, 4 + 6 * t // 8 : 6 + 6 * t // 8]
        assert np.abs(np.median(inside, (0, 1)) - (6, 0)).max() < 1

def test_a_film_without_noise_loses_nothing(tmp_path):
    path = encode(tmp_path / "film.mp4", still_scene(True), **canonical)
    taken, stored = read_motion(path, remove_camera=True), read_motion(path)
    assert np.array_equal(taken.field, stored.field) and not taken.noise.any() and not taken.camera.any()

@pytest.mark.parametrize("aspect, clockwise", [(Fraction(2), 0), (Fraction(1, 2), 0), (Fraction(64, 45), 90)])
def test_motion_is_in_pixels_as_shown(tmp_path, aspect, clockwise):
    path = tmp_path / "film.mp4"
    images = list(window(8, 4, 2, 96, 64))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"bf": "0", "refs": "1", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for image in images: out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        out.mux(stream.encode())
    if clockwise: turn(path, clockwise)
    info, wide = probe(path), round(96 * aspect)
    motion, plain = read_motion(path), read_motion(path, remove_camera=True)
    assert (motion.x[-1], motion.y[-1]) == (info.width, info.height) == ((64, wide) if clockwise else (wide, 64))
    expected = (2, -4 * wide / 96) if clockwise else (-4 * wide / 96, -2)
    assert np.abs(np.median(motion.field[1:], (0, 1, 2)) - expected).max() < 0.5
    assert np.abs(np.median(plain.camera[1:], 0) - expected).max() < 0.5

def window(n, dx, dy, width=192, height=128, seed=0):
    "A camera that moves by whole pixels over a large soft image with something to see everywhere."
    noise = np.random.default_rng(seed).normal(size=(height + 320, width + 320, 3))
    spectrum = np.fft.rfft2(noise, axes=(0, 1))
    fy, fx = np.fft.fftfreq(noise.shape[0])[:, None], np.fft.rfftfreq(noise.shape[1])
    soft = np.fft.irfft2(spectrum * np.exp(-(fx**2 + fy**2) / 0.06**2)[..., None], noise.shape[:2], axes=(0, 1))
    image = np.clip(128 + 55 * soft / soft.std(), 0, 255).astype(np.uint8)
    for i in range(n):
        x, y = 160 + dx * i, 160 + dy * i
        yield image[y : y + height, x : x + width]

canonical = dict(crf=10, preset="veryfast", options={"bf": "0", "refs": "1"})
# several frames between references, and only one to choose
b_frames = dict(crf=10, options={"bf": "3", "refs": "1", "b-pyramid": "none"})
steps = st.integers(-6, 6)

@pytest.mark.slow
@settings(max_examples=10, deadline=None, derandomize=True)
@given(dx=steps, dy=steps, seed=st.integers(0, 9))
@pytest.mark.parametrize("how", [canonical, b_frames], ids=["canonical", "b-frames"])
def test_a_pan_is_measured_in_pixels_per_frame(tmp_path_factory, how, dx, dy, seed):
    path = encode(tmp_path_factory.mktemp("pan") / "pan.mp4", window(16, dx, dy, seed=seed), **how)
    kinds = {v.kind for v in iter_vectors(path)}
    motion = read_motion(path)
    assert ("B" in kinds) <= (how is b_frames) and motion.measured[1:].all()
    right = np.abs(motion.field - (-dx, -dy)).max(-1) < 0.3
    assert right.mean() > 0.7 and np.median(right.mean((1, 2))) > 0.8
    taken = read_motion(path, remove_camera=True)
    assert np.abs(np.median(taken.camera, 0) - (-dx, -dy)).max() < 0.3 and np.median(taken.speed) < 0.1

def write(path, images, codec, **options):
    "A film made with PyAV alone, in a codec and with settings of our choice."
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options={k: str(v) for k, v in options.items()})
        for i, image in enumerate(images):
            if not i:
                stream.height, stream.width = image.shape[:2]
                stream.pix_fmt, stream.bit_rate = "yuv420p", 3_000_000
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path

@pytest.mark.parametrize(
    "codec, name",
    [
        ("mpeg4", "pan.mp4"),
        ("mpeg4", "pan.avi"),
        ("mpeg2video", "pan.mkv"),
        ("mpeg2video", "pan.ts"),
        ("mpeg1video", "pan.mkv"),
    ],
)
@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_pan_in_older_codecs(tmp_path, codec, name, b_frames):
    motion = read_motion(write(tmp_path / name, window(13, 3, -2), codec, bf=b_frames, g=60))
    assert len(motion) == 13 and ("B" in motion.kinds) == bool(b_frames)
    assert np.abs(np.median(motion.field, (1, 2)) - (-3, 2)).max() < 0.3

@settings(max_examples=8, deadline=None)
@given(dx=steps, dy=steps)
def test_nothing_is_left_when_everything_pans(tmp_path_factory, dx, dy):
    assume(dx or dy)
    motion = read_motion(
        encode(tmp_path_factory.mktemp("pan") / "pan.mp4", window(8, dx, dy), **canonical), remove_camera=True
    )
    inner = motion.field[2:, 2:-2, 2:-2]  # at the border comes in what nobody has seen before
    assert np.array_equal(motion.camera[2:], np.broadcast_to((-dx, -dy), (6, 2)))
    assert np.mean(inner == 0) > 0.97

def test_what_moves_by_itself_is_left(tmp_path):
    def scene():
        thing = next(window(1, 0, 0, 64, 64, seed=5))
        for i, image in enumerate(window(10, 3, 1)):
            image = image.copy()
            image[32:96, 40 + 4 * i : 104 + 4 * i] = thing
            yield image
    field = read_motion(encode(tmp_path / "film.mp4", scene(), **canonical), remove_camera=True).field
    for i in range(3, 10):
        assert np.abs(np.median(field[i, 5:11, 6 + (4 * i) // 8 : 12 + (4 * i) // 8], (0, 1)) - (7, 1)).max() < 0.3
        assert np.median(np.abs(field[i])) < 0.1

@pytest.mark.parametrize("clockwise", matrices)
@pytest.mark.parametrize("size", [(96, 64), (100, 60), (90, 74)])
def test_a_turned_film_has_turned_motion(tmp_path, clockwise, size):
    path = encode(tmp_path / "film.mp4", window(8, 3, 1, *size), **canonical)
    stored = pixels(read_motion(path))
    turn(path, clockwise)
    (a, b), (c, d) = np.reshape(matrices[clockwise], (2, 2))
    q, p = np.mgrid[: stored.shape[1], : stored.shape[2]]
    x, y = a * p + c * q, b * p + d * q
    expected = np.empty((len(stored), np.ptp(y) + 1, np.ptp(x) + 1, 2), np.float32)
    expected[:, y - y.min(), x - x.min()] = stored @ np.array([[a, b], [c, d]], np.float32)
    found = read_motion(path)
    assert np.array_equal(found.speed.shape[1:], (len(found.y) - 1, len(found.x) - 1))
    assert pixels(found).shape == expected.shape and np.allclose(pixels(found), expected, atol=1e-5)
    assert np.abs(np.median(found.field, (1, 2)) - np.array([a * -3 + c * -1, b * -3 + d * -1])).max() < 0.3


# ---- from the field to tokens

def random_motion(seed, frames, width, height, narrow_first):
    rng = np.random.default_rng(seed)
    def borders(n):
        b = np.minimum(np.arange(-(-n // 8) + 1) * 8, n).astype(float)
        return n - b[::-1] if narrow_first else b
    x, y = borders(width), borders(height)
    field = rng.normal(size=(frames, len(y) - 1, len(x) - 1, 2)).astype(np.float32)
    return Motion(
        field, x, y, np.arange(frames) / 25, np.arange(frames), np.full(frames, "P"), np.ones(frames, bool), None
    )

def slow_tokens(motion, patch, tubelet, crop, up, down, flip, vectors):
    "Pixel by pixel: crop, enlarge by `up` and shrink by `down`, mirror, average over boxes; displacements grow too."
    (left, top), (right, bottom) = crop[:2], crop[2:]
    d = pixels(motion)[:, top:bottom, left:right]
    d = d.repeat(up[1], 1).repeat(up[0], 2) * (np.array(up) / down)
    if flip: d = d[:, :, ::-1] * (-1, 1)
    across, deep = patch * down[0], patch * down[1]
    T = len(d) // tubelet
    h = d.shape[1] // deep
    w = d.shape[2] // across
    values = d if vectors else np.hypot(d[..., 0], d[..., 1])[..., None]
    boxes = values[: T * tubelet, : h * deep, : w * across].reshape(T, tubelet, h, deep, w, across, -1).mean((1, 3, 5))
    return boxes if vectors else boxes[..., 0]

zooms = st.sampled_from([(1, 1), (2, 1), (3, 1), (3, 2), (1, 2), (2, 3), (5, 4)])

@settings(max_examples=150, deadline=None)
@given(
    data=st.data(),
    width=st.integers(20, 90),
    height=st.integers(20, 70),
    frames=st.integers(1, 5),
    tubelet=st.integers(1, 3),
    patch=st.sampled_from([4, 7, 8, 16]),
    flip=st.booleans(),
    vectors=st.booleans(),
    narrow_first=st.booleans(),
    zoom_x=zooms,
    zoom_y=zooms,
)
def test_tokens_equal_the_pixelwise_way(
    data, width, height, frames, tubelet, patch, flip, vectors, narrow_first, zoom_x, zoom_y
):
    (ux, dx), (uy, dy) = zoom_x, zoom_y
    across = data.draw(st.integers(1, width // dx)) * dx
    deep = data.draw(st.integers(1, height // dy)) * dy
    size = across * ux // dx, deep * uy // dy
    assume(size[0] >= patch and size[1] >= patch and frames >= tubelet)
    left = data.draw(st.integers(0, width - across))
    top = data.draw(st.integers(0, height - deep))
    crop = (left, top, left + across, top + deep)
    motion = random_motion(width, frames, width, height, narrow_first)
    found = to_tokens(motion, patch, tubelet, size=size, crop=crop, flip=flip, vectors=vectors)
    expected = slow_tokens(motion, patch, tubelet, crop, (ux, uy), (dx, dy), flip, vectors)
    assert found.shape == expected.shape and np.allclose(found, expected, atol=1e-4)

@pytest.mark.parametrize(
    "crop, size", [((0, 0, 97, 64), None), ((-1, 0, 50, 50), None), ((5, 5, 5, 50), None), (None, (8, 8))]
)
def test_tokens_that_cannot_be(crop, size):
    with pytest.raises(ValueError): to_tokens(random_motion(0, 4, 96, 64, False), 16, 2, crop=crop, size=size)
    with pytest.raises(ValueError): to_tokens(random_motion(0, 1, 96, 64, False), 16, 2)


# ---- kept beside the film

@pytest.fixture()
def film(tmp_path): return encode(tmp_path / "film.mp4", window(6, 2, 1, 64, 48))

def test_the_sidecar_holds_what_was_read(film, tmp_path):
    for how in ({}, dict(remove_camera=True), dict(frames=(1, 4)), dict(seconds=(0.04, 0.2), remove_camera=True)):
        found, expected = cached_motion(film, tmp_path / "cache", **how), read_motion(film, **how)
        assert np.allclose(found.field, expected.field, rtol=1e-3)
        assert (found.camera is None) == (expected.camera is None)
        for k in ("x", "y", "times", "numbers", "kinds", "measured"):
            assert np.array_equal(getattr(found, k), getattr(expected, k))
        assert same(found, cached_motion(film, tmp_path / "cache", **how))

def test_a_sidecar_for_each_content_and_setting(film, tmp_path):
    cache = tmp_path / "cache"
    settings_ = [
        {},
        dict(frames=(0, 3)),
        dict(frames=(0, 4)),
        dict(seconds=(0, 0.1)),
        dict(remove_camera=True),
        dict(damaged="skip"),
        dict(stream=0),
        dict(canonical=True),
    ]
    for i, how in enumerate(settings_, 1):
        cached_motion(film, cache, **how)
        assert len(list(cache.iterdir())) == i
    encode(film, window(6, -3, 0, 64, 48))
    cached_motion(film, cache)
    assert len(list(cache.iterdir())) == len(settings_) + 1

def test_beside_the_film_by_default(film):
    cached_motion(film)
    assert len(list(film.parent.iterdir())) == 2

def test_a_film_replaced_under_its_name(film, tmp_path):
    before = cached_motion(film, tmp_path / "cache")
    encode(film, window(6, -3, 0, 64, 48))
    after = cached_motion(film, tmp_path / "cache")
    assert np.abs(np.median(before.field, (0, 1, 2)) - (-2, -1)).max() < 0.3
    assert np.abs(np.median(after.field, (0, 1, 2)) - (3, 0)).max() < 0.3

@pytest.mark.parametrize("harm", ["empty", "cut", "text", "flips", "other arrays"])
def test_a_damaged_sidecar_is_made_again(film, tmp_path, harm):
    cache = tmp_path / "cache"
    expected = cached_motion(film, cache)
    sidecar, = cache.iterdir()
    whole, rng = sidecar.read_bytes(), np.random.default_rng(0)
    def broken():
        if harm == "empty": yield b""
        if harm == "text": yield b"no archive"
        if harm == "cut":
            yield from (whole[:n] for n in (1, 4, len(whole) // 3, len(whole) // 2, len(whole) - 30, len(whole) - 1))
        if harm == "flips":
            for at in rng.integers(0, len(whole), 150):
                data = bytearray(whole)
                data[at] ^= 1 << int(rng.integers(8))
                yield bytes(data)
    if harm == "other arrays":
        np.savez(sidecar, field=np.zeros(3))
        assert same(cached_motion(film, cache), expected)
    for data in broken():
        sidecar.write_bytes(data)
        assert same(cached_motion(film, cache), expected)
        assert [f.name for f in cache.iterdir()] == [sidecar.name]

def ask(path, cache, at, harm):
    time.sleep(max(0, at - time.time()))
    motion = cached_motion(path, cache)
    return motion.field.tobytes(), motion.times.tobytes()

@pytest.mark.slow
@pytest.mark.parametrize("harm", [False, True])
def test_many_processes_at_once(film, tmp_path, harm):
    expected = cached_motion(film, tmp_path / "alone")
    with multiprocessing.get_context("spawn").Pool(8) as pool:
        pool.map(time.sleep, [0.2] * 8, chunksize=1)
        for round_ in range(8):
            cache = tmp_path / f"cache{round_}"
            if harm:
                cache.mkdir()
                (cache / next((tmp_path / "alone").iterdir()).name).write_bytes(b"PK\3\4 no more")
            answers = pool.starmap_async(ask, [(film, cache, time.time() + 0.1, harm)] * 8, chunksize=1).get(timeout=60)
            assert set(answers) == {(expected.field.tobytes(), expected.times.tobytes())}
            assert len(list(cache.iterdir())) == 1

def test_a_folder_that_cannot_be_written_to(film, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    try: (locked / "probe").touch()
    except PermissionError: pass
    else: pytest.skip("this user may write anywhere")
    with pytest.raises(VideoError, match="cannot be written"): cached_motion(film, locked)

@pytest.mark.parametrize("how", [dict(frames=(0, 99)), dict(frames=(-1, 3)), dict(seconds=(0.2, 0.1))])
def test_ranges_the_film_does_not_have(film, how):
    with pytest.raises(VideoError) as error: read_motion(film, **how)
    assert str(film) in str(error.value)

def test_what_is_no_film_leaves_no_sidecar(tmp_path):
    (tmp_path / "film.mp4").write_text("no film")
    for path in (tmp_path / "film.mp4", tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(VideoError): cached_motion(path, tmp_path / "cache")
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())

@pytest.mark.parametrize("how", [dict(frames=(3, 3)), dict(seconds=(0.081, 0.1))])
def test_ranges_that_hold_no_motion(film, how):
    with pytest.raises(VideoError) as error: read_motion(film, **how)
    assert str(film) in str(error.value)

def test_the_folder_is_a_file(film, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(VideoError) as error: cached_motion(film, tmp_path / "taken")
    assert "taken" in str(error.value) and error.value.remedy

def test_nothing_is_measured_across_a_cut(tmp_path):
    images = [*window(12, 3, 1, seed=1), *window(12, -2, 2, seed=2)]
    film = encode(
        tmp_path / "cut.mp4", images, crf=10, preset="veryfast", options={"bf": "0", "refs": "1", "sc_threshold": "0"}
    )
    before, after = iter_motion(film, [0, 12, 24])
    assert read_motion(film).measured[12] and not after.measured[0]
    assert (after.field[0] == after.field[1]).all() and np.abs(np.median(after.field[0], (0, 1)) - (2, -2)).max() < 0.3

def test_a_short_stretch_holds_little_memory(film):
    motion = read_motion(film, frames=(0, 3))
    base = motion.field
    while base.base is not None: base = base.base
    assert base.nbytes < 4 * motion.field.nbytes

def test_motion_is_cut_with_slices_only(film):
    motion = read_motion(film)
    assert len(motion[2:5]) == 3 and (motion[2:5].field == motion.field[2:5]).all()
    with pytest.raises(TypeError, match="slices"): motion[2]


def test_the_sidecar_of_a_film_with_the_longest_name(film, tmp_path):
    longest = tmp_path / f"{'f' * 251}.mp4"
    shutil.copy(film, longest)
    assert (cached_motion(longest).field == cached_motion(longest).field).all()
    assert len(list(tmp_path.glob("*.motion.npz"))) == 1
