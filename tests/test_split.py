"Clips hold exactly the frames of their shots: bit for bit where packets are copied, close where they are not."
import warnings
from fractions import Fraction

import av
import numpy as np
import pandas as pd
import pytest

from conftest import project
from primenb.core import PrimenbError
from primenb.media.shots import detect_shots
from primenb.media.split import split_film
from primenb.media.video import encode, frame_times, probe, read_audio, read_frames

cuts = [0, 30, 55, 90]  # in the films made here


def table(*edges):
    return pd.DataFrame(dict(shot=range(len(edges) - 1), start_frame=edges[:-1], end_frame=edges[1:]))


def picture(n, width, height):
    "An image of the scene that frame n lies in, moved a little, with noise to keep the encoder busy."
    scene = int(np.searchsorted(cuts, n, "right"))
    rng = np.random.default_rng(scene)
    image = rng.integers(60, 200, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    noise = np.random.default_rng(n).integers(-6, 7, image.shape)
    return (np.roll(image, n, 1) + noise).astype(np.uint8)


def film_of(path, codec="libx264", *, times=None, size=(64, 48), keys=(), options=None, sound=None, click=None,
            pix_fmt="yuv420p", turn=0, aspect=None, tags=None, fields=False):
    "A film of 90 frames with key-frames at some of them, and a click of the sound at a time."
    times = [n / 25 for n in range(90)] if times is None else times
    with av.open(str(path), "w") as file:
        video = file.add_stream(codec, rate=25, width=size[0], height=size[1], pix_fmt=pix_fmt, options=options or {})
        tick = Fraction(1, 25) if codec in ("mpeg4", "mpeg2video") or path.suffix == ".avi" else Fraction(1, 90000)
        video.codec_context.time_base = tick
        if turn: video.set_display_rotation(turn)
        if aspect: video.codec_context.sample_aspect_ratio = aspect
        for name, value in (tags or {}).items(): setattr(video.codec_context, name, value)
        voice = file.add_stream(sound, rate=48000, layout="stereo") if sound else None
        for n, second in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(n, *size), "rgb24")
            frame.pts, frame.time_base = round(second / tick), tick
            if n in keys: frame.pict_type = 1
            file.mux(video.encode(frame))
        file.mux(video.encode())
        if voice: mux_click(file, voice, click, times[-1] + 0.04)
    return path


def mux_click(file, voice, click, seconds):
    samples = np.zeros((2, round(seconds * 48000)), np.float32)
    samples[:, round(click * 48000) :][:, :300] = np.linspace(0.7, 0, 300)
    frame = av.AudioFrame.from_ndarray(samples, "fltp", "stereo")
    frame.sample_rate, frame.pts = 48000, 0
    file.mux([*voice.encode(frame), *voice.encode()])


def check(film, clips, folder, least=30):
    "Every clip has its shot's frames and times; copied ones are the same in every bit."
    times = frame_times(film)
    for clip, stop in zip(clips.itertuples(), clips.frames.cumsum()):
        first = stop - clip.frames
        assert clip.method in ("copied", "encoded"), clip.reason
        assert (clip.reason == "") == (clip.method == "copied")
        path = folder / clip.file
        info, whole = probe(path), probe(film)
        assert (info.width, info.height, info.rotation) == (whole.width, whole.height, whole.rotation)
        assert np.abs(frame_times(path) - (times[first:stop] - times[first])).max() < 1e-3
        old, new = read_frames(film, frames=(first, stop)), read_frames(path)
        assert len(new) == stop - first == clip.frames
        if clip.method == "copied": assert (old == new).all()
        else: assert 10 * np.log10(255**2 / np.mean((old.astype(float) - new) ** 2)) > least
        assert info.damage is None and info.offset < 0.1


def split(film, folder, edges=cuts, **how):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return split_film(film, table(*edges), folder, **how)


closed = dict(g="250", sc_threshold="0", bf="3")
films = {  # name -> how it is made, the methods of its shots, the endings of its clips
    "plain.mp4": (dict(options=closed, keys=(30, 55)), "ccc", ".mp4"),
    "no_b.mov": (dict(options=closed | dict(bf="0"), keys=(30, 55)), "ccc", ".mov"),
    "elsewhere.mp4": (dict(options=closed | dict(bf="0"), keys=(28, 50, 55)), "cec", ".mp4"),
    "b.mp4": (dict(options=closed, keys=(28, 50, 55)), "eec", ".mp4"),
    "long.mkv": (dict(options=closed | dict(bf="0")), "cee", ".mkv"),
    "steps.mp4": (dict(options=closed, keys=(30, 55), times=[n * n / 900 for n in range(90)]), "ccc", ".mp4"),
    "steps.mkv": (dict(options=closed, keys=(30,), times=[n * n / 900 for n in range(90)]), "cce", ".mkv"),
    "late.ts": (dict(options=closed, keys=(30, 55), times=[5 + n / 25 for n in range(90)]), "ccc", ".mp4"),
    "vp9.webm": (dict(codec="libvpx-vp9", keys=(30, 55), options={"auto-alt-ref": "1", "lag-in-frames": "16"}), "ccc",
                 ".webm"),
    "hevc.mp4": (dict(codec="libx265", keys=(30, 55), options={"x265-params": "log-level=error:open-gop=0:scenecut=0"}),
                 "ccc", ".mp4"),
    "turned.mp4": (dict(options=closed, keys=(30,), turn=90), "cce", ".mp4"),
    "wide.mp4": (dict(options=closed, keys=(30,), aspect=Fraction(4, 3)), "cce", ".mp4"),
    "ten.mp4": (dict(options=closed, keys=(30,), pix_fmt="yuv420p10le"), "cce", ".mp4"),
    "444.mkv": (dict(options=closed, keys=(30,), pix_fmt="yuv444p", size=(63, 35)), "cce", ".mkv"),
    "odd.webm": (dict(codec="libvpx-vp9", keys=(30,), size=(63, 35)), "cce", (".webm", ".mp4")),
    "ü [1] %d.mp4": (dict(options=closed, keys=(30, 55)), "ccc", ".mp4"),
    "a.avi": (dict(codec="mpeg4", keys=(30, 55), options=dict(g="250", sc_threshold="1000000000")), "ccc", ".mp4"),
    "order.avi": (dict(options=closed, keys=(30, 55)), "eee", ".mp4")}


@pytest.mark.parametrize("name", films)
def test_clips_are_the_shots(tmp_path, name):
    how, methods, endings = films[name]
    film = film_of(tmp_path / name, **how)
    clips = split(film, tmp_path / "clips")
    assert "".join(method[0] for method in clips.method) == methods, clips.reason.tolist()
    check(film, clips, tmp_path / "clips")
    for n, file in enumerate(clips.file): assert file.startswith(f"{film.stem}-{n:04}") and file.endswith(endings)
    assert sorted(clips.file) == sorted(file.name for file in (tmp_path / "clips").iterdir())


def test_depth_chroma_and_tags_are_kept_where_a_clip_is_coded_anew(tmp_path):
    tags = dict(color_trc=16, color_primaries=9, colorspace=9, color_range=1)  # PQ and BT.2020
    film = film_of(tmp_path / "a.mp4", options=closed, keys=(30,), pix_fmt="yuv422p10le", tags=tags)
    clips = split(film, tmp_path / "clips", (0, 30, 45, 90))
    info = probe(tmp_path / "clips" / clips.file[1])
    assert clips.method.tolist() == ["copied", "encoded", "encoded"]
    assert (info.pixel_format, info.hdr, info.bits) == ("yuv422p10le", "pq", 10)
    check(film, clips, tmp_path / "clips", least=25)  # on a screen, high dynamic range shows more of the noise


@pytest.mark.parametrize("codec, options", [
    ("libx264", {"x264-params": "open-gop=1:keyint=30:min-keyint=30:scenecut=0:bframes=3:b-adapt=0"}),
    ("libx264", {"x264-params": "intra-refresh=1:keyint=30:scenecut=0:bframes=0"}),
    ("libx265", {"x265-params": "open-gop=1:keyint=30:min-keyint=30:scenecut=0:bframes=3:b-adapt=0:log-level=error"}),
    ("mpeg2video", dict(g="30", bf="2", sc_threshold="1000000000"))], ids=["h264", "refresh", "hevc", "mpeg2"])
@pytest.mark.parametrize("ending", [".mp4", ".ts", ".mkv"])
def test_open_groups_are_not_cut_through(tmp_path, codec, options, ending):
    film = film_of(tmp_path / f"open{ending}", codec, options=options)
    edges = sorted({0, 90, *(n for k in (30, 60) for n in range(k - 3, k + 4))})
    clips = split(film, tmp_path / "clips", edges)
    check(film, clips, tmp_path / "clips")
    if codec in ("libx264",): assert set(clips.method[1:]) == {"encoded"}


@pytest.mark.parametrize("name, sound, how", [
    ("a.mp4", "aac", dict()), ("b.mp4", "aac", dict(keys=())), ("a.mkv", "flac", dict()), ("a.ts", "ac3", dict()),
    ("b.ts", "mp2", dict(keys=())), ("a.mov", "pcm_s16le", dict()), ("a.avi", "libmp3lame", dict(codec="mpeg4",
    options=dict(g="250", sc_threshold="1000000000"))), ("a.webm", "libopus", dict(codec="libvpx-vp9", options={})),
    ("b.webm", "libopus", dict(codec="libvpx-vp9", keys=(), options={}))])
def test_sound_is_in_step(tmp_path, name, sound, how):
    click = 1.9  # in the second shot
    film = film_of(tmp_path / name, **(dict(options=closed, keys=(30, 55)) | how), sound=sound, click=click)
    clips = split(film, tmp_path / "clips")
    check(film, clips, tmp_path / "clips")
    heard = np.abs(read_audio(film, rate=48000)).argmax() / 48000
    assert heard == pytest.approx(click, abs=0.03)
    for n, file in enumerate(clips.file):
        loud = np.abs(read_audio(tmp_path / "clips" / file, rate=48000))
        assert (loud.max() > 0.2) == (n == 1)
        if n == 1: assert loud.argmax() / 48000 == pytest.approx(heard - frame_times(film)[30], abs=0.002)
        with av.open(str(tmp_path / "clips" / file)) as clip: assert len(clip.streams.audio) == 1


def test_joined_recordings(tmp_path):
    one = film_of(tmp_path / "one.ts", options=closed | dict(bf="0"), sound="ac3", click=1.9).read_bytes()
    film = tmp_path / "joined.ts"
    film.write_bytes(one + one)
    clips = split(film, tmp_path / "clips", (0, 60, 120, 180))
    assert set(clips.method) == {"encoded"} and "clock starts anew" in clips.reason[0]
    check(film, clips, tmp_path / "clips")
    loud = [np.abs(read_audio(tmp_path / "clips" / file, rate=48000)) for file in clips.file]
    assert [sound.max() > 0.2 for sound in loud] == [True, False, True]
    begin = frame_times(film)[120]
    heard = begin + np.abs(read_audio(film, rate=48000, seconds=(begin, probe(film).duration))).argmax() / 48000
    assert begin + loud[2].argmax() / 48000 == pytest.approx(heard, abs=0.003)


@pytest.mark.parametrize("name", ["trimmed.mp4", "edit_both.mp4", "fields.ts", "slides_vfr.mp4"])
def test_films_with_hidden_images_and_fields(tmp_path, name):
    film = project / "tests/media" / name
    frames = probe(film).frames
    clips = split(film, tmp_path / "clips", sorted({0, frames // 3, frames // 2, frames}))
    check(film, clips, tmp_path / "clips")


def test_real_films(real, tmp_path):
    for name in ("codecs/testsrc2_vp8.webm", "film_clips/bikes.mp4", "codecs/bt2020_10bit.mp4"):
        film = real / name
        shots = detect_shots(film)
        clips = split_film(film, shots, tmp_path / film.stem)
        assert clips.frames.tolist() == (shots.end_frame - shots.start_frame).tolist()
        check(film, clips, tmp_path / film.stem)


def test_finished_clips_are_kept(tmp_path):
    film = film_of(tmp_path / "a.mp4", options=closed, keys=(30,))
    clips = split(film, tmp_path / "clips")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "clips").iterdir()}
    (tmp_path / "clips" / clips.file[2]).unlink()
    again = split(film, tmp_path / "clips")
    pd.testing.assert_frame_equal(again, clips)
    changed = [file.name for file, time in times.items() if file.stat().st_mtime_ns != time]
    assert changed == [clips.file[2]]


def test_clips_of_something_else_are_not_replaced(tmp_path):
    film = film_of(tmp_path / "a.mp4", options=closed, keys=(30,))
    mine = encode(tmp_path / "clips/a-0000.mp4", np.zeros((3, 48, 64, 3), np.uint8)).read_bytes()
    clips = split(film, tmp_path / "clips")
    assert clips.method.tolist() == ["failed", "copied", "encoded"] and clips.file[0] == ""
    assert "holds something else; remove it" in clips.reason[0]
    assert (tmp_path / "clips/a-0000.mp4").read_bytes() == mine


def test_a_spoiled_shot_is_named_and_the_others_go_on(tmp_path):
    film = film_of(tmp_path / "a.mp4", "mpeg4", options=dict(g="250", bf="0", sc_threshold="1000000000"), keys=(55,))
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as file:
        for n, packet in enumerate(file.demux(video=0)):
            if 40 <= n < 43: data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    film.write_bytes(data)
    clips = split(film, tmp_path / "clips")
    assert clips.method.tolist() == ["copied", "failed", "copied"] and "frame 40 cannot be decoded" in clips.reason[1]
    assert len(list((tmp_path / "clips").iterdir())) == 2


def test_copies_of_a_spoiled_film_are_spoiled_in_the_same_places(tmp_path):
    options = dict(g="250", bf="0", sc_threshold="1000000000")
    film = film_of(tmp_path / "a.mp4", "mpeg4", options=options, keys=(30, 55))
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as file: packets = [packet for packet in file.demux(video=0) if packet.size]
    for packet in packets[40:43]: data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    film.write_bytes(data)
    clips = split(film, tmp_path / "clips")
    assert clips.method.tolist() == ["copied"] * 3
    with pytest.raises(PrimenbError, match="frame 10 at 0.40 s cannot be decoded"):
        read_frames(tmp_path / "clips" / clips.file[1])


def test_tables_of_other_films(tmp_path):
    film = film_of(tmp_path / "a.mp4")
    for shots, cause in ((table(0, 91), "the film has 90"), (table(5, 5), "shot 0 is frames 5 to 5"),
                         (table(0, 9).drop(columns="shot"), "has no shot"),
                         (table(0, 9, 20).assign(shot=1), "two shots have one number")):
        with pytest.raises(PrimenbError, match=cause): split_film(film, shots, tmp_path / "clips")
    assert not (tmp_path / "clips").exists()
    assert len(split_film(film, table(0), tmp_path / "clips")) == 0
