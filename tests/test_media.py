"""Films as they come from phones, camcorders, discs and the air: what is read is what a player shows.

The numbers in the frames are drawn as white and black blocks, so that each frame says which one it is.
`media/fields.ts` is the beginning of an ITU-T conformance stream, for testing only.
"""

import shutil, subprocess, warnings
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from primenb.media.video import (
    VideoError, canonicalise, encode, frame_times, frames_at, iter_frames, probe, read_audio, read_frames,
)

here = Path(__file__).parent / "media"
trimmed, fields = here / "trimmed.mp4", here / "fields.ts"
BITS = 14


def stamped(n, width=320, height=180):
    "A grey image with its number in the lowest eighth: a white block, then a block for each bit, the lowest first."
    image = np.full((height, width, 3), 90 + n % 60, np.uint8)
    blocks = [1, *(n >> i & 1 for i in range(BITS)), 0]
    edges = np.linspace(0, width, BITS + 3).astype(int)
    for bit, a, b in zip(blocks, edges, edges[1:]): image[-height // 8 :, a:b] = 255 * bit
    return image


def number(image):
    "The number that an image carries."
    height, width = image.shape[:2]
    block, row = width / (BITS + 2), image[height - height // 16].mean(-1)
    return sum(1 << i for i in range(BITS) if row[int((i + 1.5) * block)] > 110)


def numbers(path, **how): return [number(frame.image) for frame in iter_frames(path, **how)]


def film(path, count=100, codec="libx264", first=0, images=None, tone=None, rate=25, aspect=None, **options):
    "Writes a film with PyAV alone, with a tone if one is given."
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate, options={"g": "25", "bf": "2", **options})
        images = [stamped(first + n) for n in range(count)] if images is None else images
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        if aspect: stream.codec_context.sample_aspect_ratio = aspect
        sound = tone and out.add_stream("mp2" if codec == "mpeg2video" else "aac", rate=44100, layout="mono")
        for image in images: out.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        out.mux(stream.encode())
        if sound: write_tone(out, sound, tone, len(images) / rate)
    return path


def write_tone(out, stream, pitch, seconds):
    samples = (0.5 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * 44100)) / 44100)).astype(np.float32)
    resampler = av.AudioResampler(format=stream.codec_context.format, layout="mono", rate=44100)
    frame = av.AudioFrame.from_ndarray(samples[None], "fltp", "mono")
    frame.sample_rate, frame.pts = 44100, 0
    fifo = av.AudioFifo()
    for piece in resampler.resample(frame): fifo.write(piece)
    for piece in fifo.read_many(stream.codec_context.frame_size or 1024, partial=True): out.mux(stream.encode(piece))
    out.mux(stream.encode())


def remuxed(source, path):
    "The same packets in another container."
    with av.open(str(source)) as film, av.open(str(path), "w") as copy:
        streams = {s.index: copy.add_stream_from_template(s) for s in film.streams if s.type in ("video", "audio")}
        for packet in film.demux():
            if not packet.size or packet.stream_index not in streams: continue
            packet.stream = streams[packet.stream_index]
            copy.mux(packet)
    return path


# ---- trimmed without encoding again

def edited(path, first, count):
    "The trimmed film with another edit: `count` frames from number `first` on."
    data = bytearray(trimmed.read_bytes())
    movie, edit = data.index(b"mvhd"), data.index(b"elst")
    ticks = int.from_bytes(data[movie + 16 : movie + 20])
    data[edit + 12 : edit + 16] = (count * ticks // 25).to_bytes(4)
    begin = int.from_bytes(data[edit + 16 : edit + 20]) - 78 * 512
    data[edit + 16 : edit + 20] = (begin + first * 512).to_bytes(4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("first, count", [(78, 100), (0, 100), (31, 1), (199, 50), (0, 250)])
def test_a_trimmed_film_is_what_is_left_of_it(tmp_path, first, count):
    path = edited(tmp_path / "film.mp4", first, count)
    info = probe(path)
    assert info.damage is None and (info.frames, round(info.duration, 6)) == (count, count / 25)
    assert numbers(path) == list(range(first, first + count))
    middle = count // 2
    assert number(read_frames(path, frames=(middle, middle + 1))[0]) == first + middle


# ---- two packets, one image

@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".mp4"])
def test_two_fields_are_one_frame(tmp_path, suffix):
    path = fields if suffix == ".ts" else remuxed(fields, tmp_path / f"film{suffix}")
    with av.open(str(path)) as container:
        shown = [float(f.pts * f.time_base) for f in container.decode(video=0)]
    info = probe(path)
    assert info.interlaced and info.rate == 25 and abs(info.duration - len(shown) / 25) < 0.021
    assert np.allclose(frame_times(path), np.array(shown) - shown[0], atol=1e-3)
    assert len(read_frames(path, size=64)) == len(shown)


def test_only_images_are_counted_as_images(tmp_path):
    "Interlaced H.264 whose images are coded whole has as many frames as packets."
    path = film(tmp_path / "film.ts", 30, **{"x264-params": "interlaced=1"})
    assert probe(path).frames == 30 and numbers(path) == list(range(30))


# ---- transport streams

@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("suffix", [".ts", ".m2ts", ".mpg", ".flv", ".mkv"])
def test_any_frame_of_any_container(tmp_path, codec, suffix):
    if (codec, suffix) in [("mpeg2video", ".flv"), ("libx264", ".mpg")]: pytest.skip("does not hold this codec")
    path = film(tmp_path / f"film{suffix}", 120, codec, g="40")
    order = np.random.default_rng(0).permutation(120)[:25].tolist()
    assert [number(read_frames(path, frames=(n, n + 1))[0]) for n in order] == order


def test_an_avi_made_of_another_container_keeps_its_speed(tmp_path):
    "AVI then holds an empty place for each frame that is shown later than it is decoded."
    path = remuxed(film(tmp_path / "film.mkv", 60, "mpeg4"), tmp_path / "film.avi")
    assert probe(path).rate == 25 and abs(probe(path).duration - 2.4) < 0.1 and len(read_frames(path, size=32)) == 60


# ---- pixels that are not square

def disc(width, height, aspect):
    "A white disc that is round where pixels are `aspect` times as wide as high."
    y, x = np.mgrid[:height, :width]
    inside = ((x - width / 2) * float(aspect)) ** 2 + (y - height / 2) ** 2 < (height / 3) ** 2
    return np.repeat(np.where(inside, 235, 16).astype(np.uint8)[..., None], 3, -1)


def roundness(image):
    "Width over height of what is bright."
    bright = image.mean(-1) > 128
    return np.ptp(np.flatnonzero(bright.any(0))) / np.ptp(np.flatnonzero(bright.any(1)))


@pytest.mark.parametrize("suffix, codec", [
    (".mp4", "libx264"), (".mpg", "mpeg2video"), (".mkv", "libx264"), (".ts", "libx264")])
@pytest.mark.parametrize("size, aspect, shown", [
    ((720, 576), Fraction(64, 45), (1024, 576)), ((720, 480), Fraction(8, 9), (640, 480)),
    ((1440, 1080), Fraction(4, 3), (1920, 1080))])
def test_a_disc_is_round(tmp_path, suffix, codec, size, aspect, shown):
    if codec == "mpeg2video": aspect = {576: Fraction(64, 45), 480: Fraction(8, 9)}.get(size[1], aspect)
    path = film(tmp_path / f"film{suffix}", images=[disc(*size, aspect)] * 3, codec=codec, aspect=aspect)
    info = probe(path)
    assert (info.width, info.height, info.pixel_aspect) == (*shown, aspect)
    copy = canonicalise(path, tmp_path / "copy.mp4")
    whole, small, copied = read_frames(path)[0], next(frames_at(path, [0], size=200)).image, read_frames(copy)[0]
    assert whole.shape[1::-1] == shown and probe(copy).pixel_aspect == 1
    assert all(abs(roundness(image) - 1) < 0.02 for image in (whole, small, copied))


# ---- recordings that were joined

@pytest.mark.parametrize("suffix, codec", [
    (".ts", "libx264"), (".ts", "mpeg2video"), (".mpg", "mpeg2video"), (".m2ts", "libx264")])
def test_joined_recordings_follow_each_other(tmp_path, suffix, codec):
    parts = [film(tmp_path / f"{i}{suffix}", 50, codec, 50 * i, tone=tone) for i, tone in enumerate((440, 1760, 880))]
    path = tmp_path / f"joined{suffix}"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    info = probe(path)
    assert info.damage is None and "clock starts anew at 2.00 s, and 1 more time" in info.notes[0]
    assert np.allclose(frame_times(path), np.arange(150) / 25, atol=2e-3) and abs(info.duration - 6) < 0.01
    assert numbers(path) == list(range(150))
    assert [number(f.image) for f in frames_at(path, [0.5, 2.5, 5.9])] == [12, 62, 147]
    sound = read_audio(path, rate=16000)
    pitches = [np.abs(np.fft.rfft(sound[int(16000 * t) :][:8000])).argmax() * 2 for t in (0.7, 2.7, 4.7)]
    assert np.allclose(pitches, [440, 1760, 880], atol=4)


def test_joined_recordings_whose_packets_say_no_duration(tmp_path):
    images = [np.full((64, 96, 3), n, np.uint8) for n in range(60)]
    once = encode(tmp_path / "once.ts", images, 25, options={"bf": "3"})  # without sound
    (tmp_path / "twice.ts").write_bytes(once.read_bytes() * 2)
    assert np.allclose(frame_times(tmp_path / "twice.ts"), np.arange(120) / 25, atol=2e-3)
    assert probe(tmp_path / "twice.ts").damage is None


def test_joined_recordings_of_two_sizes_lose_no_frame(tmp_path):
    sizes = [(320, 240), (640, 360)]
    images = {w: [stamped(n, w, h) for n in range(30)] for w, h in sizes}
    parts = [film(tmp_path / f"{w}.ts", images=some, codec="mpeg2video") for w, some in images.items()]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert numbers(path) == [*range(30), *range(30)] and probe(canonicalise(path, tmp_path / "copy.mp4")).frames == 60


def test_a_clock_that_is_an_hour_ahead(tmp_path):
    with av.open(str(tmp_path / "b.ts"), "w", options={"output_ts_offset": "3600"}) as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for n in range(50): out.mux(stream.encode(av.VideoFrame.from_ndarray(stamped(50 + n), "rgb24")))
        out.mux(stream.encode())
    path = tmp_path / "joined.ts"
    path.write_bytes(film(tmp_path / "a.ts", 50).read_bytes() + (tmp_path / "b.ts").read_bytes())
    assert numbers(path) == list(range(100)) and abs(probe(path).duration - 4) < 0.01 and probe(path).notes


# ---- recordings that begin anywhere

@pytest.mark.parametrize("suffix, codec", [
    (".ts", "mpeg2video"), (".ts", "libx264"), (".mpg", "mpeg2video"), (".ts", "libx265")])
@pytest.mark.parametrize("share", [0.1, 0.45])
def test_a_recording_that_begins_within_a_group_of_images(tmp_path, suffix, codec, share):
    quiet = {"x265-params": "log-level=none:keyint=25"} if codec == "libx265" else {}
    data = film(tmp_path / f"whole{suffix}", 100, codec, **quiet).read_bytes()
    path = tmp_path / f"begun{suffix}"
    path.write_bytes(data[int(share * len(data)) :])
    info = probe(path)
    found = numbers(path)
    assert info.damage is None and "within a group of images" in info.notes[0] and len(found) == info.frames
    assert found == list(range(found[0], 100)) and frame_times(path)[0] == 0
    assert 100 * share - 10 < found[0] < 100 * share + 30


def test_a_recording_that_ends_within_an_image(tmp_path):
    data = film(tmp_path / "whole.ts", 60, bf="0").read_bytes()
    path = tmp_path / "ended.ts"
    for share in (0.5, 0.7, 0.93):
        path.write_bytes(data[: int(share * len(data))])
        found = numbers(path)
        assert probe(path).damage is None and found in (list(range(len(found))), [*range(len(found) - 1), found[-1]])


# ---- losses

@pytest.mark.parametrize("kind", ["ts", "mpeg2 ts", "webm", "mkv"])
def test_nothing_is_lost_in_silence(tmp_path, kind):
    "One spot in the middle is spoiled, or cut out: all frames are there, or it is said."
    codec = {"mpeg2 ts": "mpeg2video", "webm": "libvpx"}.get(kind, "libx264")
    path = film(tmp_path / f"film.{kind.split()[-1]}", 100, codec, **({"cpu-used": "8"} if kind == "webm" else {}))
    data, broken = path.read_bytes(), tmp_path / f"broken.{kind.split()[-1]}"
    short = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        at, length = int(rng.integers(len(data) // 5, len(data) * 4 // 5)), int(rng.choice([1, 16, 188, 1000, 4000]))
        middle = b"" if seed % 3 == 0 else rng.bytes(length)
        broken.write_bytes(data[:at] + middle + data[at + length :])
        try: held = len(read_frames(broken, size=32))
        except VideoError: continue
        if held != 100 and probe(broken).damage is None: short.append((seed, at, length, held))
    assert short == []


def test_a_loss_is_named_with_its_time_and_the_rest_can_be_read(tmp_path):
    data = film(tmp_path / "film.ts", 100).read_bytes()
    half = len(data) // 376 * 188
    (tmp_path / "lost.ts").write_bytes(data[:half] + data[half + 376 :])
    with pytest.raises(VideoError, match=r"missing at \d\.\d\d s") as error: read_frames(tmp_path / "lost.ts")
    assert "--skip-damaged" in error.value.remedy
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(read_frames(tmp_path / "lost.ts", damaged="skip", size=32)) > 80
    assert "packets are missing" in str(caught[0].message)


# ---- what is no film, and names that mean more

@pytest.mark.parametrize("text", [
    "ffconcat version 1.0\nfile 'secret.mp4'\n", "#EXTM3U\n#EXTINF:2,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    "\ufeff#EXTM3U\n{folder}/secret.ts\n", "<?xml version='1.0'?><MPD><BaseURL>secret.mp4</BaseURL></MPD>",
    "[playlist]\nFile1=secret.mp4\n", "v=0\nm=video 5004 RTP/AVP 96\n"])
@pytest.mark.parametrize("name", ["holiday.mp4", "holiday.m3u8", "holiday.ffconcat", "holiday"])
def test_a_text_that_names_films_opens_none_of_them(tmp_path, monkeypatch, text, name):
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "secret.mp4", 5)
    shutil.copy(film(tmp_path / "once.ts", 5), tmp_path / "secret.ts")
    (tmp_path / name).write_text(text.replace("{folder}", str(tmp_path)))
    with pytest.raises(VideoError, match="one file is one film") as error: probe(tmp_path / name)
    assert name in str(error.value)


def test_a_pattern_in_a_name_is_part_of_the_name(tmp_path):
    for n in range(3): Image.fromarray(stamped(n)).save(tmp_path / f"image{n}.png")
    Image.fromarray(stamped(9)).save(tmp_path / "image%d.png")
    try: assert numbers(tmp_path / "image%d.png") == [9]
    except VideoError as error: assert "image%d.png" in str(error)


@pytest.mark.parametrize("name", ["image.jpg", "image.png", "image.tif", "image.bmp", "image.webp"])
def test_a_still_image_is_a_film_of_one_frame(tmp_path, name):
    Image.fromarray(stamped(77)).save(tmp_path / name, **({"quality": 95} if "jpg" in name else {}))
    assert numbers(tmp_path / name) == [77]


def test_animated_webp_is_refused_by_name(tmp_path):
    images = [Image.fromarray(stamped(n)) for n in range(3)]
    images[0].save(tmp_path / "moving.webp", save_all=True, append_images=images[1:])
    with pytest.raises(VideoError, match="animated WebP is not supported"): probe(tmp_path / "moving.webp")
    images[0].save(tmp_path / "still.webp")
    assert probe(tmp_path / "still.webp").frames == 1


# ---- the player's clock and the file's timecode

def test_the_first_image_may_come_after_the_sound(tmp_path):
    with av.open(str(tmp_path / "late.mp4"), "w") as out:
        stream, sound = out.add_stream("libx264", rate=25), out.add_stream("aac", rate=44100, layout="mono")
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for n in range(25):
            frame = av.VideoFrame.from_ndarray(stamped(n), "rgb24")
            frame.pts, frame.time_base = 75 + n, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        write_tone(out, sound, 440, 4)
    info = probe(tmp_path / "late.mp4")
    assert abs(info.offset - 3) < 0.05 and frame_times(tmp_path / "late.mp4")[0] == 0 and info.duration == 1
    assert probe(film(tmp_path / "plain.mp4", 5)).offset == 0


@pytest.mark.parametrize("suffix", [".mov", ".mp4", ".mxf", ".mkv"])
@pytest.mark.parametrize("timecode", ["01:00:00:00", "10:59:30:12"])
def test_the_timecode_of_the_file(tmp_path, suffix, timecode):
    path = tmp_path / f"film{suffix}"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg2video" if suffix == ".mxf" else "libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        (out if suffix == ".mxf" else stream).metadata["timecode"] = timecode
        for n in range(10): out.mux(stream.encode(av.VideoFrame.from_ndarray(stamped(n), "rgb24")))
        out.mux(stream.encode())
    assert probe(path).timecode == timecode and probe(trimmed).timecode is None


# ---- colours

KR = {"709": (0.2126, 0.0722), "2020": (0.2627, 0.0593)}  # shares of red and blue in brightness
BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])  # from BT.709
COLOURS = np.array([[255, 0, 0], [0, 200, 0], [0, 0, 255], [128, 128, 128], [200, 120, 40], [255, 255, 255]])


def flat_film(path, rgb, matrix, primaries=2, tag=2, size=(1280, 720), transfer=2):
    "A film of one colour, coded by the matrix of BT.709 or BT.2020, with these tags."
    red, blue = KR[matrix]
    r, g, b = np.array(rgb) / 255
    y = red * r + (1 - red - blue) * g + blue * b
    values = [16 + 219 * y, 128 + 112 * (b - y) / (1 - blue), 128 + 112 * (r - y) / (1 - red)]
    planes = [np.full(size[::-1], round(4 * v), np.uint16) for v in values]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv444p10le"
        c = stream.codec_context
        c.colorspace, c.color_primaries, c.color_trc, c.color_range = tag, primaries, transfer, 1
        frame = av.VideoFrame(*size, "yuv444p10le")
        for plane, values in zip(frame.planes, planes): plane.update(values.tobytes())
        frame.colorspace, frame.color_range = tag, 1
        for _ in range(2): out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("rgb", COLOURS.tolist())
def test_wide_primaries_become_srgb(tmp_path, rgb):
    wide = 255 * (BT2020 @ (np.array(rgb) / 255) ** 2.4) ** (1 / 2.4)
    path = flat_film(tmp_path / "wide.mp4", wide, "2020", primaries=9, tag=9, transfer=14)
    assert np.abs(read_frames(path)[0].mean((0, 1)) - rgb).max() < 4


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080), (720, 1280)])
@pytest.mark.parametrize("rgb", COLOURS.tolist())
def test_large_films_without_tags_are_bt709(tmp_path, rgb, size):
    path = flat_film(tmp_path / "untagged.mp4", rgb, "709", size=size)
    assert np.abs(read_frames(path)[0].mean((0, 1)) - rgb).max() < 4


def test_ffmpeg_counts_the_same_frames(tmp_path):
    "FFmpeg's own program, where it is installed, on all of these kinds."
    if not shutil.which("ffmpeg"): pytest.skip("no ffmpeg on this machine: on Debian or Ubuntu, apt-get install ffmpeg")
    once = film(tmp_path / "once.ts", 60)
    joined, begun = tmp_path / "joined.ts", tmp_path / "begun.ts"
    joined.write_bytes(once.read_bytes() * 2)
    begun.write_bytes(once.read_bytes()[once.stat().st_size // 3 :])
    for path in (trimmed, fields, once, joined, begun):
        command = ["ffmpeg", "-v", "error", "-i", path, "-map", "0:v:0", "-fps_mode", "passthrough", "-f"]
        command += ["framecrc", "-"]
        rows = [line.split(",") for line in subprocess.check_output(command, text=True).splitlines()]
        clock = next(Fraction(row[0].split(":")[1].strip()) for row in rows if row[0].startswith("#tb"))
        times = np.array([float(int(row[2]) * clock) for row in rows if not row[0].startswith("#")])
        assert np.allclose(times - times[0], frame_times(path), atol=2e-3), path
