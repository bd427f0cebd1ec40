"Films in and out: real codecs, broken files, colour, memory, writing, sound."
import os, shutil, subprocess, sys, threading, warnings
from fractions import Fraction
from pathlib import Path
from zlib import crc32

import av
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from primenb.core import PrimenbError
from primenb.media.images import hdr_to_srgb
from primenb.media.video import (
    Frame, VideoError, canonicalise, encode, frame_times, frames_at, iter_frames, iter_vectors, probe,
    read_audio, read_frames,
)

# name: codec, width and height as shown, bits, shown frames
films = {
    "animated.gif": ("gif", 64, 48, 8, 4),
    "av1_video.mkv": ("av1", 640, 360, 8, 125),
    "bt2020_10bit.mp4": ("hevc", 320, 240, 10, 60),
    "bt601_full_range.mp4": ("h264", 320, 240, 8, 60),
    "bt601_limited_range.mp4": ("h264", 320, 240, 8, 60),
    "bt709_full_range.mp4": ("h264", 1280, 720, 8, 30),
    "discard_first_keyframe.mp4": ("h264", 64, 64, 8, 25),
    "frame_exceeds_screen.gif": ("gif", 4, 4, 8, 1),
    "gradient.gif": ("gif", 1280, 720, 8, 1),
    "h264_10bits.mp4": ("h264", 200, 200, 10, 30),
    "h265_10bits.mp4": ("hevc", 200, 200, 10, 30),
    "h265_video.mp4": ("hevc", 128, 128, 8, 10),
    "nasa_13013.mp4": ("h264", 480, 270, 8, 390),
    "nasa_13013_hdr.mp4": ("hevc", 320, 180, 10, 325),
    "nasa_13013_rotated.mp4": ("h264", 270, 480, 8, 17),
    "test_non_zero_start.mp4": ("h264", 200, 112, 8, 12),
    "testsrc2.mp4": ("h264", 1280, 720, 8, 60),
    "testsrc2_12bit_hdr.mp4": ("hevc", 320, 180, 12, 60),
    "testsrc2_444_10bit_hevc.mp4": ("hevc", 321, 241, 10, 25),
    "testsrc2_444_12bit_hevc.mp4": ("hevc", 321, 241, 12, 25),
    "testsrc2_444_8bit_hevc.mp4": ("hevc", 321, 241, 8, 25),
    "testsrc2_av1_10bit.mp4": ("av1", 320, 240, 10, 25),
    "testsrc2_h265.mp4": ("hevc", 1280, 720, 8, 60),
    "testsrc2_hdr.mp4": ("hevc", 320, 180, 10, 60),
    "testsrc2_mpeg4.avi": ("mpeg4", 1280, 720, 8, 30),
    "testsrc2_mpeg4.mp4": ("mpeg4", 64, 64, 8, 1),
    "testsrc2_odd_height_444.mp4": ("h264", 320, 241, 8, 25),
    "testsrc2_odd_height_and_width_444.mp4": ("h264", 321, 241, 8, 25),
    "testsrc2_odd_height_and_width_444_10bit.mp4": ("h264", 321, 241, 10, 25),
    "testsrc2_odd_height_and_width_mpeg2.mp4": ("mpeg2video", 121, 81, 8, 10),
    "testsrc2_odd_height_and_width_vp9.mp4": ("vp9", 321, 241, 8, 25),
    "testsrc2_odd_height_and_width_vp9_10bit.mp4": ("vp9", 321, 241, 10, 25),
    "testsrc2_odd_height_vp9.mp4": ("vp9", 320, 241, 8, 25),
    "testsrc2_odd_height_vp9_10bit.mp4": ("vp9", 320, 241, 10, 25),
    "testsrc2_odd_width_444.mp4": ("h264", 321, 240, 8, 25),
    "testsrc2_odd_width_mpeg2.mp4": ("mpeg2video", 121, 80, 8, 10),
    "testsrc2_odd_width_vp9.mp4": ("vp9", 321, 240, 8, 25),
    "testsrc2_odd_width_vp9_10bit.mp4": ("vp9", 321, 240, 10, 25),
    "testsrc2_vp8.webm": ("vp8", 1280, 720, 8, 30),
    "testsrc2_vp9.webm": ("vp9", 1280, 720, 8, 30),
    "transparent.gif": ("gif", 64, 48, 8, 1),
}
hdr = {"bt2020_10bit.mp4", "nasa_13013_hdr.mp4", "testsrc2_12bit_hdr.mp4", "testsrc2_hdr.mp4"}


def pattern(n, width=96, height=64, seed=0):
    "Images that differ from each other: soft coloured blobs that drift, with a bar that counts."
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    phases = rng.uniform(0, 6, 3)
    for i in range(n):
        image = np.stack([127 + 90 * np.sin(x / 9 + phase + 0.3 * i) * np.cos(y / 7 + phase) for phase in phases], -1)
        image[:, i * width // n :][:, : max(2, width // n)] = 235
        yield image.astype(np.uint8)


def small(path, n=12, **how): return encode(path, pattern(n), **how)
def print_of(image): return crc32(np.ascontiguousarray(image))


def linear(path, stream=None):
    "The obvious way: every frame PyAV gives, from the beginning, as (seconds, image)."
    with av.open(str(path)) as container:
        chosen = container.streams.video[stream] if stream is not None else container.streams.best("video")
        chosen.thread_type, start = "AUTO", None
        for frame in container.decode(chosen):
            start = frame.pts if start is None else start
            hd = int(frame.colorspace) == 2 and frame.width >= 1280 and not frame.format.is_rgb  # as players take it
            how = dict(src_colorspace="ITU709") if hd else {}
            yield float((frame.pts - start) * frame.time_base), frame.to_ndarray(
                format="rgb24", interpolation="BICUBIC", **how
            )


# ---- real codecs

def test_every_codec_file_is_listed(real):
    assert set(films) == {f.name for f in (real / "codecs").iterdir()} - {"LICENSE"}

@pytest.mark.parametrize("name", films)
def test_probe_says_what_the_name_says(real, name):
    info = probe(real / "codecs" / name)
    assert (info.codec, info.width, info.height, info.bits, info.frames) == films[name]
    assert info.hdr == ("pq" if name in hdr else None)
    assert info.rotation == (90 if "rotated" in name else 0)
    assert (info.start > 1) == ("non_zero_start" in name)
    assert info.video_streams == (2 if name == "nasa_13013.mp4" else 1)
    assert info.damage is None

@pytest.mark.parametrize("name", films)
def test_reading_and_seeking_equal_linear_decoding(real, name):
    check_seeks(real / "codecs" / name, step=7, turned=name in hdr or "rotated" in name)

@pytest.mark.slow
@pytest.mark.parametrize("name, step", [("bikes.mp4", 31), ("bigbuckbunny.mp4", 23), ("bbb_60s.mp4", 137)])
def test_seeking_in_films_equals_linear_decoding(real, name, step): check_seeks(real / "film_clips" / name, step)

def check_seeks(path, step, turned=False):
    info = probe(path)
    whole = list(
        map(
            lambda f: (f.number, f.time, f.image.shape, f.image.dtype, print_of(f.image), f.image.std()),
            iter_frames(path),
        )
    )
    numbers, times = ([row[i] for row in whole] for i in (0, 1))
    shapes, dtypes = ([row[i] for row in whole] for i in (2, 3))
    prints, spread = ([row[i] for row in whole] for i in (4, 5))
    assert numbers == list(range(info.frames))
    assert set(shapes) == {(info.height, info.width, 3)}
    assert set(dtypes) == {np.dtype(np.uint8)}
    assert info.frames == 1 or max(spread) > 10  # an image and no grey slab
    if not turned:
        expected = [(t, print_of(image)) for t, image in linear(path)]
        assert [p for _, p in expected] == list(prints)
        assert np.allclose([t for t, _ in expected], times, atol=1e-6)
    for n in [*range(0, info.frames, step), info.frames - 1]:
        assert print_of(read_frames(path, frames=(n, n + 1))[0]) == prints[n]
    rng = np.random.default_rng(info.frames)
    for t in rng.uniform(0, info.duration, 5):
        shown = max(n for n in numbers if times[n] <= t)
        f, = frames_at(path, [t])
        assert (f.number, print_of(f.image)) == (shown, prints[shown])
    for _ in range(2):
        a, b = np.sort(rng.uniform(0, info.duration, 2))
        b = min(b, a + 1)
        found = [(f.number, print_of(f.image)) for f in iter_frames(path, seconds=(a, b), step=2)]
        assert found == [(n, prints[n]) for n in numbers if a <= times[n] < b][::2]

@pytest.mark.parametrize("stream, size", [(0, (180, 320)), (1, (270, 480))])
def test_each_video_stream_can_be_chosen(real, stream, size):
    path = real / "codecs/nasa_13013.mp4"
    found = read_frames(path, stream=stream, frames=(100, 103))
    expected = [image for _, image in zip(range(103), (i for _, i in linear(path, stream)))][100:]
    assert found.shape[1:3] == size and (found == expected).all()
    assert probe(path, stream).stream == stream

def test_a_video_stream_that_is_not_there(real):
    with pytest.raises(VideoError, match="no video stream 2.*choose 0 to 1"):
        read_frames(real / "codecs/nasa_13013.mp4", stream=2)

def test_a_rotated_file_is_its_original_turned(real):
    upright = read_frames(real / "codecs/nasa_13013.mp4", frames=(0, 17))
    assert (read_frames(real / "codecs/nasa_13013_rotated.mp4") == np.rot90(upright, 1, (1, 2))).all()

# The matrix of ISO 14496-12: (p, q) is shown at (a·p + c·q, b·p + d·q), shifted into view.
matrices = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}

def turn(path, clockwise):
    "Writes a display matrix into an MP4."
    data = bytearray(path.read_bytes())
    (a, b), (c, d) = np.reshape(matrices[clockwise], (2, 2))
    at = data.index(b"tkhd") + 4 + 40
    data[at : at + 36] = b"".join(
        int(v).to_bytes(4, "big", signed=True)
        for v in (a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    )
    path.write_bytes(data)

@pytest.mark.parametrize("clockwise", matrices)
def test_rotation_by_the_display_matrix(tmp_path, clockwise):
    stored = read_frames(small(tmp_path / "film.mp4"))
    turn(tmp_path / "film.mp4", clockwise)
    (a, b), (c, d) = np.reshape(matrices[clockwise], (2, 2))
    q, p = np.mgrid[: stored.shape[1], : stored.shape[2]]
    x, y = a * p + c * q, b * p + d * q
    expected = np.empty((len(stored), np.ptp(y) + 1, np.ptp(x) + 1, 3), np.uint8)
    expected[:, y - y.min(), x - x.min()] = stored
    found = read_frames(tmp_path / "film.mp4")
    assert found.shape == expected.shape and (found == expected).all()

@pytest.mark.parametrize(
    "name, size, shape",
    [
        ("film_clips/bigbuckbunny.mp4", 72, (72, 128)),
        ("film_clips/bigbuckbunny.mp4", (128, 45), (45, 128)),
        ("codecs/nasa_13013_rotated.mp4", 54, (96, 54)),
        ("codecs/nasa_13013_rotated.mp4", (45, 120), (120, 45)),
    ],
)
def test_resized_frames_are_averages_of_the_whole_ones(real, name, size, shape):
    found, whole = (read_frames(real / name, frames=(3, 4), size=s)[0].astype(float) for s in (size, None))
    assert found.shape[:2] == shape
    averages = whole.reshape(shape[0], whole.shape[0] // shape[0], shape[1], whole.shape[1] // shape[1], 3).mean((1, 3))
    assert np.abs(found - averages).mean() < 3


# ---- colour

# Kr and Kb, and the range: (offset of Y, scale of Y, scale of Cb and Cr)
weights = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
ranges = {"full": (0, 255, 255), "limited": (16, 219, 224)}

def flat_yuv(path, n=0, bits=8, radius=3):
    "The stored Y, Cb, Cr of frame `n` of a 4:2:0 film in [0,255], and where all three are flat."
    with av.open(str(path)) as container:
        frame = next(f for i, f in enumerate(container.decode(video=0)) if i == n)
        planes = [
            np.frombuffer(
                p, np.uint8 if bits == 8 else np.uint16
            ).reshape(p.height, -1)[:, : p.width].astype(float) / 2 ** (bits - 8)
            for p in frame.planes
        ]
    yuv = np.stack([planes[0], *(np.kron(p, np.ones((2, 2))) for p in planes[1:])], -1)
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(yuv, [(radius, radius)] * 2 + [(0, 0)], "edge"), (2 * radius + 1,) * 2, (0, 1)
    )
    return yuv, (np.ptp(windows, (-2, -1)) <= 1).all(-1)

def to_rgb(yuv, matrix, range_):
    (kr, kb), (offset, luma, chroma) = weights[matrix], ranges[range_]
    y = (yuv[..., 0] - offset) / luma
    b = (yuv[..., 1] - 128) / chroma
    r = (yuv[..., 2] - 128) / chroma
    red, blue = y + 2 * (1 - kr) * r, y + 2 * (1 - kb) * b
    return np.clip(np.stack([red, (y - kr * red - kb * blue) / (1 - kr - kb), blue], -1), 0, 1)

@pytest.mark.parametrize(
    "name, matrix, range_",
    [
        ("bt601_full_range.mp4", "bt601", "full"),
        ("bt601_limited_range.mp4", "bt601", "limited"),
        ("bt709_full_range.mp4", "bt709", "full"),
        ("av1_video.mkv", "bt709", "limited"),
    ],
)
def test_matrix_and_range(real, name, matrix, range_):
    path = real / "codecs" / name
    yuv, flat = flat_yuv(path, 5)
    found = read_frames(path, frames=(5, 6))[0]
    assert flat.sum() > 1000
    error = {
        (m, r): np.abs(255 * to_rgb(yuv[flat], m, r) - found[flat]).mean()
        for m in ("bt601", "bt709")
        for r in ranges
    }
    right = error.pop((matrix, range_))
    assert right < 1 and min(error.values()) > 2 * right, (right, error)


def tone_map(code, transfer):
    "One pixel by the standards: ST 2084 or BT.2100 HLG, BT.2390 from 1000 to 203 cd/m², BT.2020 to BT.709, sRGB."
    m1 = 0.1593017578125
    m2 = 78.84375
    c1 = 0.8359375
    c2 = 18.8515625
    c3 = 18.6875
    def eotf(e): return 10000 * (max(e ** (1 / m2) - c1, 0) / (c2 - c3 * e ** (1 / m2))) ** (1 / m1)
    def inverse(light): return ((c1 + c2 * (light / 10000) ** m1) / (1 + c3 * (light / 10000) ** m1)) ** m2
    if transfer == "pq": light = [eotf(e) for e in code]
    else:
        a = 0.17883277
        b = 1 - 4 * 0.17883277
        c = 0.5 - 0.17883277 * np.log(4 * 0.17883277)
        scene = [e * e / 3 if e <= 0.5 else (np.exp((e - c) / a) + b) / 12 for e in code]
        light = [1000 * s * (0.2627 * scene[0] + 0.6780 * scene[1] + 0.0593 * scene[2]) ** 0.2 for s in scene]
    brightest = max(light)
    if brightest > 0:
        top = inverse(1000)
        e, most = min(inverse(brightest) / top, 1), inverse(203) / top
        knee = 1.5 * most - 0.5
        if e >= knee:
            t = (e - knee) / (1 - knee)
            e = (2 * t**3 - 3 * t**2 + 1) * knee + (t**3 - 2 * t**2 + t) * (1 - knee) + (-2 * t**3 + 3 * t**2) * most
        light = [v * eotf(e * top) / brightest for v in light]
    def primaries(red, green, blue, white=(0.3127, 0.3290)):
        xyz = np.array([[x / y, 1, (1 - x - y) / y] for x, y in (red, green, blue)]).T
        x, y = white
        return xyz * np.linalg.solve(xyz, [x / y, 1, (1 - x - y) / y])
    bt2020 = primaries((0.708, 0.292), (0.170, 0.797), (0.131, 0.046))
    bt709 = primaries((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
    linear = np.clip(np.linalg.solve(bt709, bt2020 @ np.array(light)) / 203, 0, 1)
    return [255 * (12.92 * v if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055) for v in linear]

@pytest.mark.parametrize("transfer", ["pq", "hlg"])
def test_tone_mapping_equals_the_standards_pixel_by_pixel(transfer):
    codes = np.random.default_rng(0).uniform(0, 1, (12, 25, 3)) ** 1.5
    codes[0] = np.linspace(0, 1, 25)[:, None]
    codes = np.rint(65535 * codes).astype(np.uint16)
    expected = [[tone_map((pixel / 65535).tolist(), transfer) for pixel in row] for row in codes]
    assert np.abs(hdr_to_srgb(codes, transfer) - np.array(expected)).max() < 1

@pytest.mark.parametrize("name", sorted(hdr))
def test_hdr_films_equal_the_slow_way_on_flat_areas(real, name):
    path = real / "codecs" / name
    yuv, flat = flat_yuv(path, 30, probe(path).bits)
    found = read_frames(path, frames=(30, 31))[0]
    places = np.argwhere(flat)[:: max(1, flat.sum() // 200)]
    error = [
        np.abs(np.subtract(tone_map(to_rgb(yuv[y, x], "bt2020", "limited").tolist(), "pq"), found[y, x])).mean()
        for y, x in places
    ]
    assert len(error) > 30 and np.mean(error) < 2
    plain = [np.abs(255 * to_rgb(yuv[y, x], "bt2020", "limited") - found[y, x]).mean() for y, x in places]
    assert np.mean(plain) > 5 * np.mean(error)


# ---- what is no film

def assert_helpful(error, path):
    assert str(path) in str(error.value) and error.value.remedy and error.value.remedy in str(error.value)

def refuse(path):
    for reader in (probe, read_frames, lambda p: list(iter_vectors(p)), read_audio):
        with pytest.raises(VideoError) as error: reader(path)
        assert_helpful(error, path)

@pytest.mark.parametrize(
    "content", [b"", b"Dear all, the film is attached.\n" * 50, b"\0" * 5000, bytes(range(256)) * 40]
)
@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.avi"])
def test_no_film_in_it(tmp_path, content, name):
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name)

def test_a_folder_and_a_missing_file(tmp_path):
    refuse(tmp_path)
    refuse(tmp_path / "missing.mp4")

def sound(seconds=2.0, rate=44100, pitch=440):
    t = np.arange(int(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * pitch * t)).astype(np.float32)

def mux(path, images=(), samples=None, late=0.0, cover=None, rate=44100, start=0.0, audio_codec="aac"):
    "Writes a file with PyAV alone; the sound begins `late` seconds after the images, which begin at `start`."
    with av.open(str(path), "w") as out:
        video = cover_stream = audio = None
        if cover is not None:
            cover_stream = out.add_stream("mjpeg", rate=25, options={"q": "3"})
            cover_stream.height, cover_stream.width = cover.shape[:2]
            cover_stream.pix_fmt = "yuvj420p"
            cover_stream.disposition = av.stream.Disposition.attached_pic
        if len(images):
            video = out.add_stream("libx264", rate=25)
            video.height, video.width = images[0].shape[:2]
            video.pix_fmt = "yuv420p"
        if samples is not None: audio = out.add_stream(audio_codec, rate=rate, layout="mono")
        if cover_stream: out.mux(cover_stream.encode(av.VideoFrame.from_ndarray(cover, "rgb24")))
        if video:
            video.codec_context.time_base = Fraction(1, 25)
            for i, image in enumerate(images):
                frame = av.VideoFrame.from_ndarray(image, "rgb24")
                frame.pts, frame.time_base = round(25 * start) + i, Fraction(1, 25)
                out.mux(video.encode(frame))
            out.mux(video.encode())
        if audio:
            for at in range(0, len(samples), 1024):
                frame = av.AudioFrame.from_ndarray(samples[None, at : at + 1024], "fltp", "mono")
                frame.sample_rate = rate
                frame.pts = at + round((start + late) * rate)
                frame.time_base = Fraction(1, rate)
                out.mux(audio.encode(frame))
            out.mux(audio.encode())
    return path

@pytest.mark.parametrize("name, codec", [("sound.mp4", "aac"), ("sound.mp3", "libmp3lame")])
@pytest.mark.parametrize("cover", [False, True])
def test_sound_with_or_without_a_cover_is_no_film(tmp_path, name, codec, cover):
    path = mux(tmp_path / name, samples=sound(0.5), cover=next(pattern(1)) if cover else None, audio_codec=codec)
    with pytest.raises(VideoError, match="no video stream") as error: read_frames(path)
    assert_helpful(error, path)

def test_a_cover_beside_a_film_is_passed_over(tmp_path):
    path = mux(tmp_path / "film.mp4", list(pattern(5)), cover=next(pattern(1, 640, 480)))
    with av.open(str(path)) as container: assert len(container.streams.video) == 2
    info = probe(path)
    assert (info.width, info.height, info.frames, info.video_streams) == (96, 64, 5, 1)

@pytest.mark.parametrize(
    "name",
    [
        "a film with spaces.mp4",
        "фильм – 映画 é.mp4",
        "a:b.mp4",
        "http:x.mp4",
        "100% %03d.mp4",
        "-i.mp4",
        "[0:v];'\"&.mkv",
        "two\nlines.mp4",
    ],
)
def test_names(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / name):
        small(path, 3)
        assert probe(path).frames == len(read_frames(path)) == 3
        assert canonicalise(path, Path(path).with_suffix(".copy.mp4")).exists()


# ---- damage

def judge(paths, promised=None):
    "Reads each file: all of it, or a VideoError with a remedy. Prints a line each; the last one is the culprit."
    for path in paths:
        print(path, flush=True)
        outcomes = {}
        for damaged in ("raise", "skip"):
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                opened = False
                try:
                    count = probe(path).frames
                    opened = True
                    found = sum(1 for _ in iter_frames(path, size=32, damaged=damaged))
                except VideoError as e:
                    assert path in str(e) and e.remedy and e.remedy in str(e), e
                    assert damaged == "raise" or not opened, e
                    outcomes[damaged] = "error"
                    continue
            assert warned or found == count, f"{found} of {count} frames and no word about it"
            if damaged == "raise":
                assert (
                    found == count == int(promised or count)
                ), f"{found} frames, {count} in the file, {promised} before it was damaged, and no error"
            if damaged == "skip" and outcomes["raise"] == "error":
                assert warned, "something was left out without a warning"
            outcomes[damaged] = found
            if damaged == "raise": break  # it is whole
        print(outcomes, flush=True)

def judge_apart(paths, promised="", timeout=100):
    "In a process of its own, so that a crash and a hang are seen."
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, test_video; test_video.judge(sys.argv[2:], sys.argv[1])",
            str(promised),
            *map(str, paths)
        ],
        cwd=Path(__file__).parent,
        text=True,
        capture_output=True,
        timeout=timeout,
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout[-300:]}\n{done.stderr[-1500:]}"
    return done.stdout

def movie(real, tmp_path, kind):
    "A whole film of each container."
    if kind == "moov in front": return encode(tmp_path / "front.mp4", pattern(60))
    if kind == "mkv by encode": return encode(tmp_path / "made.mkv", pattern(60))
    return real / "codecs" / {
        "moov at end": "nasa_13013_rotated.mp4",
        "hevc": "h265_video.mp4",
        "mkv": "av1_video.mkv",
        "webm": "testsrc2_vp8.webm",
        "webm vp9": "testsrc2_vp9.webm",
        "avi": "testsrc2_mpeg4.avi",
        "gif": "animated.gif",
        "mpeg2": "testsrc2_odd_width_mpeg2.mp4",
        "vp9": "testsrc2_odd_width_vp9.mp4",
    }[kind]

@pytest.mark.parametrize(
    "kind", ["moov at end", "moov in front", "mkv", "mkv by encode", "webm", "webm vp9", "avi", "gif"]
)
def test_cut_films(real, tmp_path, kind):
    source = movie(real, tmp_path, kind)
    data, cut = source.read_bytes(), []
    if kind.startswith("moov"): assert (data.index(b"moov") < data.index(b"mdat")) == (kind == "moov in front")
    for percent in (30, 60, 90):
        cut.append(tmp_path / f"{percent}{source.suffix}")
        cut[-1].write_bytes(data[: len(data) * percent // 100])
    said = judge_apart(cut)
    assert said.count("'raise': 'error'") == 3
    assert ("'skip': 'error'" in said.splitlines()[-1]) == (kind == "moov at end")

@pytest.mark.parametrize("kind", ["moov in front", "mkv", "mkv by encode", "webm", "avi"])
def test_films_cut_between_two_frames(real, tmp_path, kind):
    source = movie(real, tmp_path, kind)
    with av.open(str(source)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    for n in (len(ends) // 3, len(ends) // 2):
        for extra in (0, 4, 8):
            (tmp_path / f"cut{source.suffix}").write_bytes(source.read_bytes()[: sorted(ends)[n] + extra])
            with pytest.raises(VideoError) as error: read_frames(tmp_path / f"cut{source.suffix}", size=32)
            assert_helpful(error, tmp_path / f"cut{source.suffix}")

@pytest.mark.parametrize("kind", ["moov at end", "avi", "mpeg2"])
def test_spoiled_pictures_are_noticed(real, tmp_path, kind):
    source = movie(real, tmp_path, kind)
    with av.open(str(source)) as container:
        place, size = max(((p.pos, p.size) for p in list(container.demux(video=0))[1:-2] if p.size), key=lambda p: p[1])
    data = bytearray(source.read_bytes())
    data[place + size // 3 : place + size] = np.random.default_rng(0).bytes(size - size // 3)
    (tmp_path / f"spoiled{source.suffix}").write_bytes(data)
    with pytest.raises(VideoError, match="cannot be decoded"): read_frames(tmp_path / f"spoiled{source.suffix}")

@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["moov at end", "moov in front", "hevc", "mkv", "mkv by encode", "webm", "avi", "gif", "mpeg2", "vp9"]
)
def test_flipped_bytes(real, tmp_path, kind):
    source = movie(real, tmp_path, kind)
    data, broken = np.frombuffer(source.read_bytes(), np.uint8), []
    for seed in range(50):
        rng = np.random.default_rng(seed)
        copy, places = data.copy(), rng.integers(len(data) // 5, len(data) * 4 // 5, 10)
        copy[places] ^= rng.integers(1, 256, 10, np.uint8)
        broken.append(tmp_path / f"{seed}{source.suffix}")
        broken[-1].write_bytes(copy.tobytes())
    judge_apart(broken, probe(source).frames)

def test_a_film_deleted_while_it_is_read(tmp_path):
    frames = iter_frames(small(tmp_path / "film.mp4", 60))
    first = next(frames)
    (tmp_path / "film.mp4").unlink()
    try: assert 1 + sum(1 for _ in frames) == 60
    except VideoError as e: assert "film.mp4" in str(e)
    assert first.image.shape == (64, 96, 3)

@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("reader", [iter_frames, iter_vectors])
def test_a_film_cut_while_it_is_read(tmp_path, reader, suffix):
    path = encode(tmp_path / f"film{suffix}", pattern(300, 320, 240), crf=1, preset="ultrafast")
    items = reader(path)
    next(items)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(VideoError) as error: list(items)
    assert_helpful(error, path)

def test_a_film_deleted_between_two_readings(tmp_path):
    path = small(tmp_path / "film.mp4")
    assert len(read_frames(path)) == 12
    path.unlink()
    refuse(path)

def test_a_film_replaced_between_two_readings(tmp_path):
    assert len(read_frames(small(tmp_path / "film.mp4", 12))) == 12
    assert len(read_frames(small(tmp_path / "film.mp4", 7))) == 7

@pytest.mark.parametrize(
    "how", [dict(frames=(5, 99)), dict(frames=(-3, 5)), dict(frames=(8, 4)), dict(seconds=(9, 10)), dict(frames=(3, 3))]
)
def test_ranges_the_film_does_not_have(tmp_path, how):
    path = small(tmp_path / "film.mp4")
    with pytest.raises(VideoError) as error: read_frames(path, **how)
    assert_helpful(error, path)

@pytest.mark.parametrize("t", [-0.1, 0.6])
def test_times_outside_the_film(tmp_path, t):
    with pytest.raises(VideoError, match="lasts 0.48 s"): list(frames_at(small(tmp_path / "film.mp4"), [0.1, t]))


# ---- streaming

def growth(path, reader):
    "Prints by how many megabytes memory grows after the 100th item, with the cycle collector off."
    import gc, primenb.media.video
    gc.disable()
    def resident(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
    for i, _ in enumerate(getattr(primenb.media.video, reader)(path)):
        if i == 100: before = resident()
    print(i + 1, (resident() - before) / 1000)

@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("reader", ["iter_frames", "iter_vectors"])
def test_memory_stays_flat_however_long_the_film(tmp_path, reader):
    loop = list(pattern(48, 320, 240))
    path = encode(tmp_path / "long.mp4", (loop[i % 48] for i in range(2400)), preset="ultrafast", options={"bf": "2"})
    done = subprocess.run(
        [sys.executable, "-c", "import sys, test_video; test_video.growth(*sys.argv[1:])", str(path), reader],
        cwd=Path(__file__).parent,
        text=True,
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    frames, megabytes = map(float, done.stdout.split())
    assert frames == 2400 and megabytes < 30  # the decoded frames are 275 MB

def test_reading_begins_before_the_film_is_over(tmp_path):
    "A frame is returned before the next one is decoded: closing early is fast and leaves no thread and no open file."
    path = small(tmp_path / "film.mp4", 200)
    threads = threading.active_count()
    files = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    frames = iter_frames(path)
    assert [next(frames).number for _ in range(3)] == [0, 1, 2]
    frames.close()
    assert threading.active_count() == threads
    if files: assert len(os.listdir("/proc/self/fd")) == files


# ---- writing

@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 20),
    width=st.integers(4, 80),
    height=st.integers(4, 60),
    rate=st.sampled_from([Fraction(24000, 1001), Fraction(30000, 1001), 24, 25, 30, 60, 12.5, 23.976]),
    suffix=st.sampled_from([".mp4", ".mkv", ".mov"]),
)
def test_what_is_written_is_read_again(tmp_path_factory, n, width, height, rate, suffix):
    images = list(pattern(n, 2 * width, 2 * height))
    path = encode(tmp_path_factory.mktemp("written") / f"film{suffix}", images, rate, crf=1)
    found, info = read_frames(path), probe(path)
    assert found.shape == (n, 2 * height, 2 * width, 3)
    assert np.abs(found.astype(int) - images).mean() < 8  # chroma has half the resolution
    assert np.abs(found.astype(int).mean((1, 2)) - np.mean(images, (1, 2))).max() < 4
    assert np.abs(frame_times(path) - np.arange(n) / float(rate)).max() < 1.1e-3
    assert not info.variable
    assert abs(info.duration - n / float(rate)) < 3e-3
    assert n == 1 or abs(float(info.rate) / float(rate) - 1) < 0.02

@settings(max_examples=25, deadline=None)
@given(
    gaps=st.lists(st.integers(5, 3000), min_size=1, max_size=15),
    start=st.integers(0, 5000),
    suffix=st.sampled_from([".mp4", ".mkv"]),
)
def test_uneven_times_are_kept(tmp_path_factory, gaps, start, suffix):
    times = (start + np.cumsum([0, *gaps])) / 1000
    path = encode(
        tmp_path_factory.mktemp("uneven") / f"film{suffix}",
        [Frame(image, t, i, 0) for i, (image, t) in enumerate(zip(pattern(len(times)), times))],
    )
    assert np.abs(frame_times(path) - (times - times[0])).max() < 1.1e-3
    assert abs(probe(path).start - times[0]) < 2e-3
    assert [f.time for f in iter_frames(path)] == frame_times(path).tolist()

def broken_off(error):
    yield from pattern(5)
    raise error

plain = np.zeros((64, 96, 3), np.uint8)
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize(
    "images, expected",
    [
        ([plain[:63]], "96x63"),
        ([plain[:, :95]], "95x64"),
        ([plain, plain[:32]], "image 1 is 96x32"),
        ([plain.astype(float)], "float64"),
        ([plain[..., 0]], "shape"),
        ([np.zeros((64, 96, 4), np.uint8)], "shape"),
        ([], "no images"),
        (RuntimeError("stop"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_film_is_written_whole_or_not_at_all(tmp_path, images, expected, existing):
    path = tmp_path / "film.mp4"
    if existing: path.write_bytes(b"what was there")
    error = expected if isinstance(expected, type) else VideoError
    with pytest.raises(error, match=expected if error is VideoError else None) as raised:
        encode(path, images if isinstance(images, list) else broken_off(images))
    if error is VideoError: assert_helpful(raised, path)
    assert [(f.name, f.read_bytes()) for f in tmp_path.iterdir()] == (
        [("film.mp4", b"what was there")] if existing else []
    )

def test_a_copy_that_fails_leaves_nothing(real, tmp_path):
    shutil.copy(real / "codecs/testsrc2_mpeg4.avi", tmp_path / "film.avi")
    os.truncate(tmp_path / "film.avi", 400_000)
    with pytest.raises(VideoError, match="film.avi"): canonicalise(tmp_path / "film.avi", tmp_path / "copy.mp4")
    with pytest.warns(UserWarning, match="film.avi"):
        canonicalise(tmp_path / "film.avi", tmp_path / "rescued.mp4", damaged="skip")
    assert {f.name for f in tmp_path.iterdir()} == {"film.avi", "rescued.mp4"}
    assert 0 < probe(tmp_path / "rescued.mp4").frames < 30

@pytest.mark.parametrize(
    "name",
    [
        "h265_video.mp4",
        "testsrc2_odd_height_and_width_vp9.mp4",
        "testsrc2_av1_10bit.mp4",
        "animated.gif",
        "nasa_13013_rotated.mp4",
        "testsrc2_odd_width_mpeg2.mp4",
        "testsrc2_hdr.mp4",
        "testsrc2_vp8.webm",
        "testsrc2_444_12bit_hevc.mp4",
        "test_non_zero_start.mp4",
        "discard_first_keyframe.mp4",
        "testsrc2_mpeg4.mp4",
        "frame_exceeds_screen.gif",
        "testsrc2_mpeg4.avi",
    ],
)
def test_the_canonical_copy(real, tmp_path, name):
    path, copy = real / "codecs" / name, tmp_path / "copy.mp4"
    canonicalise(path, copy)
    source, info = probe(path), probe(copy)
    even = [n // 2 * 2 for n in (source.width, source.height)]
    assert info.codec == "h264" and info.bits == 8 and info.hdr is None and info.rotation == 0 and not info.audio
    assert min(info.width, info.height) == min(256, *even)
    assert abs(info.width / source.width - info.height / source.height) < 2.01 / min(source.width, source.height)
    assert info.frames == source.frames and np.allclose(frame_times(copy), frame_times(path), atol=1e-4)
    assert {v.kind for v in iter_vectors(copy)} <= {"I", "P"}
    said = copy.read_bytes()  # the encoder notes its settings in the film
    assert b" ref=1 " in said and b" bframes=0 " in said and b" scenecut=0 " in said
    size = info.width, info.height
    a, b = (
        np.stack([f.image for f in iter_frames(p, size=size, frames=(0, min(5, info.frames)))]).astype(int)
        for p in (path, copy)
    )
    if info.height > 16: assert np.abs(a - b).mean() < 8

def test_the_canonical_copy_keeps_uneven_times(tmp_path):
    times = np.cumsum([0, 0.04, 0.2, 0.01, 0.5, 0.04])
    film = encode(tmp_path / "film.mkv", [Frame(image, t, 0, 0) for image, t in zip(pattern(6), times)])
    assert np.abs(frame_times(canonicalise(film, tmp_path / "copy.mp4")) - times).max() < 1.1e-3


# ---- sound

def pitch_of(samples, rate):
    return np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * rate / len(samples)

@pytest.mark.parametrize("name, codec", [("film.mp4", "aac"), ("film.mkv", "libmp3lame")])
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_tone_is_read_back(tmp_path, name, codec, rate):
    path = mux(tmp_path / name, list(pattern(50)), sound(2, pitch=997), audio_codec=codec)
    found = read_audio(path, rate=rate)
    assert found.dtype == np.float32 and found.shape == (2 * rate,)
    assert abs(pitch_of(found, rate) - 997) < 1
    middle = found[rate // 2 : -rate // 2]
    assert abs(np.sqrt((middle**2).mean()) - 0.5 / np.sqrt(2)) < 0.02
    assert probe(path).audio[0].rate == 44100 and probe(path).audio[0].channels == 1

def clicks(at, seconds=2.0, rate=44100):
    samples = np.zeros(int(seconds * rate), np.float32)
    for t in at:
        samples[round(t * rate) :][: rate // 100] = 0.8 * np.sin(2 * np.pi * 2000 * np.arange(rate // 100) / rate)
    return samples

def onsets(samples, rate):
    loud = np.flatnonzero(np.abs(samples) > 0.3)
    return loud[np.diff(loud, prepend=-rate) > rate // 10] / rate

@pytest.mark.parametrize("late", [0, 0.3])
@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_sound_is_aligned_with_the_pictures(tmp_path, late, start, suffix):
    path = mux(tmp_path / f"film{suffix}", list(pattern(75)), clicks([0.25, 0.8, 1.5]), late=late, start=start)
    found = read_audio(path)
    assert len(found) == 48000
    assert np.abs(onsets(found, 16000) - np.array([0.25, 0.8, 1.5]) - late).max() < 0.004
    if late: assert np.abs(found[: int(16000 * (late - 0.06))]).max() < 1e-3

@pytest.mark.parametrize("name", ["film_clips/bbb_60s.mp4", "film_clips/bigbuckbunny.mp4"])
def test_a_stretch_of_sound_is_a_slice_of_the_whole(real, name):
    whole = read_audio(real / name)
    assert len(whole) == round(16000 * probe(real / name).duration) and np.abs(whole).max() < 1.5 and whole.std() > 1e-3
    for a, b in ((0.5, 1.25), (2, 4.5), (3.1, probe(real / name).duration)):
        part = read_audio(real / name, seconds=(a, b))
        slice_ = whole[round(a * 16000) :][: round((b - a) * 16000)]
        assert part.shape == slice_.shape
        # equal but for less than half a sample
        part, slice_ = (np.convolve(x, np.ones(16) / 16)[16:-16] for x in (part, slice_))
        differences = [np.abs(part[9:-9] - slice_[9 + k : len(slice_) - 9 + k]).mean() for k in (-1, 0, 1)]
        assert differences[1] == min(differences) and differences[1] < 0.15 * slice_.std()

def test_each_sound_track_can_be_chosen(real):
    path = real / "codecs/nasa_13013.mp4"
    assert [a.rate for a in probe(path).audio] == [8000, 16000]
    assert read_audio(path, track=1).std() > 1e-3
    with pytest.raises(VideoError, match="2 sound tracks"): read_audio(path, track=2)

def test_a_film_without_sound(tmp_path):
    with pytest.raises(VideoError, match="0 sound tracks") as error: read_audio(small(tmp_path / "film.mp4"))
    assert_helpful(error, tmp_path / "film.mp4")


# --- containers with habits of their own, and what cannot be written

def test_matroska_short_of_two_frames(real, tmp_path):
    source = movie(real, tmp_path, "mkv by encode")
    with av.open(str(source)) as container:
        ends = sorted(packet.pos + packet.size for packet in container.demux(video=0) if packet.size)
    (tmp_path / "cut.mkv").write_bytes(source.read_bytes()[: ends[-3] + 4])
    with pytest.raises(VideoError): read_frames(tmp_path / "cut.mkv")

def avi(path, codec, drop=(), **options):
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=25, options={k: str(v) for k, v in options.items()})
        stream.width = 96
        stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 25)
        for i, image in enumerate(pattern(30)):
            if i in drop: continue
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path

def test_avi_with_dropped_frames_is_whole(tmp_path):
    "An AVI keeps empty chunks where a frame was dropped; its header counts them."
    path = avi(tmp_path / "film.avi", "mpeg4", drop=(5, 6, 7), bf=0)
    assert probe(path).damage is None and len(read_frames(path)) == 27
    assert abs(frame_times(path)[5] - 8 / 25) < 1e-3

def test_avi_of_h264_with_b_frames(tmp_path):
    "AVI has no presentation times: FFmpeg's are those of decoding plus one."
    path = avi(tmp_path / "film.avi", "libx264", bf=3)
    whole = read_frames(path)
    assert len(whole) == 30
    with av.open(str(path)) as container:
        expected = [f.to_ndarray(format="rgb24", interpolation="BICUBIC") for f in container.decode(video=0)]
    assert (whole == expected).all() and (read_frames(path, frames=(11, 17)) == whole[11:17]).all()

def test_encode_avi(tmp_path):
    path = encode(tmp_path / "film.avi", pattern(20), options={"bf": "0"})
    assert len(read_frames(path)) == 20 and abs(frame_times(path)[-1] - 19 / 25) < 1e-3

@pytest.mark.parametrize(
    "name, how",
    [
        ("film.xyz", {}),
        ("film", {}),
        ("film.webm", {}),
        ("film.mp4", dict(codec="nonsense")),
        ("film.mp4", dict(preset="nonsense")),
        ("film.mp4", dict(rate=0)),
    ],
)
def test_encode_says_what_it_cannot_write(tmp_path, name, how):
    with pytest.raises(VideoError) as error: encode(tmp_path / name, pattern(3), **how)
    assert str(tmp_path / name) in str(error.value)
    assert list(tmp_path.iterdir()) == []

def test_encode_refuses_times_that_do_not_grow(tmp_path):
    with pytest.raises(VideoError):
        encode(tmp_path / "film.mp4", [Frame(image, t, 0, 0) for image, t in zip(pattern(3), (0, 0.08, 0.04))])

def test_a_text_file_is_no_film(tmp_path):
    "FFmpeg draws a .txt as a film of a terminal."
    (tmp_path / "notes.txt").write_text("Dear all,\n" * 300)
    with pytest.raises(VideoError): read_frames(tmp_path / "notes.txt")

def test_a_film_is_not_overwritten_by_its_copy_nor_a_protected_one_at_all(tmp_path):
    film = encode(tmp_path / "film.mp4", pattern(5))
    before = film.read_bytes()
    with pytest.raises(VideoError, match="the film itself"): canonicalise(film, tmp_path / "." / "film.mp4")
    film.chmod(0o444)
    with pytest.raises(PrimenbError, match="write-protected"): encode(film, pattern(3))
    assert film.read_bytes() == before and list(tmp_path.iterdir()) == [film]

@pytest.mark.parametrize("seconds", [(0, 1000), (2, 1), (-1, 0.1)])
def test_seconds_the_film_does_not_have(tmp_path, seconds):
    film = encode(tmp_path / "film.mp4", pattern(5))
    with pytest.raises(VideoError, match="seconds"): read_frames(film, seconds=seconds)

def test_a_copy_is_the_same_on_any_number_of_cores(tmp_path):
    film = encode(tmp_path / "film.mp4", pattern(12))
    copies = []
    for cores in (1, len(os.sched_getaffinity(0))):
        code = f"import os, sys; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cores}]); "
        code += "from primenb.media.video import canonicalise; canonicalise(*sys.argv[1:])"
        subprocess.run([sys.executable, "-c", code, film, tmp_path / f"{cores}.mp4"], check=True)
        copies.append((tmp_path / f"{cores}.mp4").read_bytes())
    assert copies[0] == copies[-1]
