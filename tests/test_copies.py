"A copy with chapters is the film: the same images and streams, chapters where a player shows the cut, or an error."
import struct, warnings
from fractions import Fraction

import av
import numpy as np
import pandas as pd
import pytest
from av.stream import Disposition

from conftest import project
from primenb.core import PrimenbError
from primenb.media.copies import ENDINGS, copy_with_chapters, read_chapters
from primenb.media.video import encode, frame_times, probe, read_frames

chapters = pd.DataFrame(dict(title=["Ü = 1", "two; #2"], start=[0, 1.2], end=[1.2, 3.0]))
trimmed = project / "tests/media/edit_both.mp4"
each_ending = pytest.mark.parametrize("ending", ENDINGS)


def film_of(path, codec="libx264", sounds=("aac",), late=0.0, options=None, cover=False, timecode="", tags=None,
            subtitles="", rate=25, seconds=3):
    "A film whose image is brighter from 1.2 s on, with sounds in several languages, whose images begin `late`."
    with av.open(str(path), "w", options=options or {}) as file:
        file.metadata.update(tags or {})
        video = file.add_stream(codec, rate=rate, width=64, height=48, options=dict(bf="2", g="20"))
        if timecode: video.metadata["timecode"] = timecode
        voices = [file.add_stream(name, rate=48000, layout="stereo") for name in sounds]
        for voice, language in zip(voices, ("eng", "deu", "fra")): voice.metadata["language"] = language
        picture = file.add_stream("mjpeg", rate=1, width=32, height=32, pix_fmt="yuvj420p") if cover else None
        if cover: picture.disposition = Disposition.attached_pic
        text = file.add_mux_stream(subtitles, time_base=Fraction(1, 1000)) if subtitles else None
        if subtitles: text.metadata.update(language="ita", title="Sottotitoli")
        file.start_encoding()
        if cover:
            image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 90, np.uint8), "rgb24").reformat(format="yuvj420p")
            file.mux(picture.encode(image))
        if subtitles: mux_subtitle(file, text, subtitles)
        for n in range(int(seconds * rate)):
            shade = (40 if n / rate < 1.2 else 200) + n % 30
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), shade, np.uint8), "rgb24")
            frame.pts, frame.time_base = n + round(late * rate), 1 / Fraction(rate)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        for voice in voices: mux_silence(file, voice, seconds + late)
    return path


def mux_subtitle(file, text, codec):
    data = b"Hello" if codec == "subrip" else struct.pack(">H", 5) + b"Hello"
    packet = av.Packet(data)
    packet.stream, packet.time_base = text, Fraction(1, 1000)
    packet.pts = packet.dts = 500
    packet.duration = 900
    file.mux(packet)


def mux_silence(file, voice, seconds):
    size = voice.codec_context.frame_size or 1024
    for n in range(int(seconds * 48000 / size)):
        sound = av.AudioFrame(voice.codec_context.format.name, "stereo", size)
        for plane in sound.planes: plane.update(bytes(plane.buffer_size))
        sound.sample_rate, sound.pts = 48000, size * n
        file.mux(voice.encode(sound))
    file.mux(voice.encode())


def facts(path):
    "What a copy must keep of each stream that has packets."
    with av.open(str(path)) as file:
        kept = [s for s in file.streams if s.type in ("video", "audio", "subtitle")]
        return sorted((s.type, s.codec_context.codec.canonical_name, s.language if s.language != "und" else None,
                       bool(s.disposition & Disposition.attached_pic)) for s in kept)


def shown_at(path):
    "When a player shows the second chapter: FFmpeg's times, counted from the beginning of the file."
    with av.open(str(path)) as file:
        chapter = file.chapters()[1]
        return float(chapter["start"] * chapter["time_base"]) - (file.start_time or 0) / av.time_base


def check(film, copy):
    "The copy is the film, with chapters where its image changes."
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert copy_with_chapters(film, copy, chapters) == copy
    assert (read_frames(copy, size=48) == read_frames(film, size=48)).all()
    assert np.abs(frame_times(copy) - frame_times(film)).max() < 0.0016
    assert facts(copy) == facts(film)
    back, info = read_chapters(copy), probe(copy)
    assert back.title.tolist() == chapters.title.tolist()
    assert back.start.tolist() == pytest.approx([0, 1.2], abs=1.1e-3)
    assert shown_at(copy) == pytest.approx(info.offset + 1.2, abs=1.1e-3)
    return info


sources = {  # name -> how it is made, and the containers that hold it
    "b.mp4": (dict(), ENDINGS),
    "two.mp4": (dict(sounds=("aac", "aac"), tags=dict(title="A = b", comment="c")), ENDINGS),
    "late.mp4": (dict(late=3), ENDINGS),
    "fragments.mp4": (dict(options=dict(movflags="frag_keyframe+empty_moov")), ENDINGS),
    "cover.mp4": (dict(cover=True), (".mp4", ".mkv")),
    "text.mp4": (dict(subtitles="mov_text"), (".mp4", ".mov")),
    "a.ts": (dict(sounds=("aac", "ac3")), ENDINGS),
    "mpeg2.ts": (dict(codec="mpeg2video", sounds=("mp2",)), (".mov", ".mkv")),
    "a.mpg": (dict(codec="mpeg2video", sounds=("ac3",)), ENDINGS),
    "a.vob": (dict(codec="mpeg2video", sounds=("ac3",), late=0.4), ENDINGS),
    "a.flv": (dict(), ENDINGS),
    "a.mkv": (dict(sounds=("flac",)), (".mkv",)),
    "text.mkv": (dict(subtitles="subrip", sounds=("aac", "aac")), (".mkv",)),
    "tc.mov": (dict(timecode="01:00:00:00", sounds=("pcm_s16le",)), (".mov", ".mkv")),
    "a.avi": (dict(codec="mpeg4", sounds=("libmp3lame",)), ENDINGS),
    "a.webm": (dict(codec="libvpx-vp9", sounds=("libopus",)), (".mp4", ".mkv"))}


@pytest.mark.parametrize("ending, name", [(e, name) for name, (_, held) in sources.items() for e in held])
def test_copies_are_the_film(tmp_path, ending, name):
    film = film_of(tmp_path / name, **sources[name][0])
    info = check(film, tmp_path / f"copy{ending}")
    if "late" in sources[name][0]: assert info.offset == pytest.approx(probe(film).offset, abs=1.1e-3)


@pytest.mark.parametrize("name, ending, stream, remedy", [
    ("cover.mp4", ".mov", "cover, mjpeg", "save it as .mp4 or .mkv"),
    ("text.mp4", ".mkv", "subtitles, mov_text, ita", "save it as .mp4 or .mov"),
    ("text.mkv", ".mp4", r"subtitles, (subrip|srt), ita", "save it as .mkv"),
    ("a.webm", ".mov", "sound, (lib)?opus", "save it as .mp4 or .mkv")])
def test_what_a_container_cannot_hold_is_named(tmp_path, name, ending, stream, remedy):
    film = film_of(tmp_path / name, **sources[name][0])
    with pytest.raises(PrimenbError, match=rf"{ending} cannot hold its .*\({stream}.*\).*; {remedy}"):
        copy_with_chapters(film, tmp_path / f"copy{ending}", chapters)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("ending", [".mp4", ".mov"])
def test_trimmed_parts_stay_hidden(tmp_path, ending):
    info = check(trimmed, tmp_path / f"copy{ending}")
    assert (info.frames, info.duration, info.damage) == (100, 4.0, None)
    again = tmp_path / f"again{ending}"
    copy_with_chapters(tmp_path / f"copy{ending}", again, chapters[:1])
    assert (probe(again).frames, len(read_chapters(again))) == (100, 1)  # old chapters are replaced


def test_matroska_would_show_trimmed_parts(tmp_path):
    with pytest.raises(PrimenbError, match="it hides trimmed images of stream 0.*save it as .mp4 or .mov"):
        copy_with_chapters(trimmed, tmp_path / "copy.mkv", chapters)
    assert list(tmp_path.iterdir()) == []


@each_ending
def test_labels_are_kept(tmp_path, ending):
    film = film_of(tmp_path / "f.mp4", sounds=("aac", "aac", "aac"), tags=dict(title='A "film"', comment="x = 1"))
    copy = tmp_path / f"copy{ending}"
    check(film, copy)
    with av.open(str(copy)) as file:
        assert [s.language for s in file.streams.audio] == ["eng", "deu", "fra"]
        tags = {name.lower(): value for name, value in file.metadata.items()}
        assert (tags["title"], tags["comment"]) == ('A "film"', "x = 1")


@each_ending
def test_other_labels_of_the_file_are_kept(tmp_path, ending):
    film = film_of(tmp_path / "f.mkv", tags={"title": "t", "com.camera.make": "maker"})
    copy_with_chapters(film, tmp_path / f"copy{ending}", chapters)
    with av.open(str(tmp_path / f"copy{ending}")) as file:
        tags = {name.lower(): value for name, value in file.metadata.items()}
    assert (tags["title"], tags["com.camera.make"]) == ("t", "maker")


@pytest.mark.parametrize("ending", [".mp4", ".mov"])
@pytest.mark.parametrize("rate, label", [(24, "01:00:00:00"), (Fraction(30000, 1001), "00:59:59;28")], ids=str)
def test_the_timecode_is_kept_and_chapters_are_no_subtitles(tmp_path, rate, label, ending):
    film = film_of(tmp_path / "f.mov", rate=rate, timecode=label)
    info = check(film, tmp_path / f"copy{ending}")
    assert info.timecode == label


@each_ending
def test_a_default_sound_stays_the_default(tmp_path, ending):
    film = film_of(tmp_path / "f.mkv", sounds=("aac", "aac"))
    marked = tmp_path / "marked.mkv"
    with av.open(str(film)) as old, av.open(str(marked), "w") as new:
        streams = [new.add_stream_from_template(s, opaque=True) for s in old.streams]
        streams[1].disposition = Disposition(0)
        streams[2].disposition = Disposition.default
        for packet in old.demux():
            if packet.size:
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
    copy = copy_with_chapters(marked, tmp_path / f"copy{ending}", chapters)
    with av.open(str(copy)) as file:
        assert [bool(s.disposition & Disposition.default) for s in file.streams.audio] == [False, True]


@each_ending
def test_joined_recordings_get_one_clock(tmp_path, ending):
    one = film_of(tmp_path / "one.ts", seconds=2).read_bytes()
    (tmp_path / "joined.ts").write_bytes(one + one)
    film, copy = tmp_path / "joined.ts", tmp_path / f"copy{ending}"
    copy_with_chapters(film, copy, chapters)
    assert probe(copy).frames == probe(film).frames == 100
    assert np.abs(np.diff(frame_times(copy)) - 0.04).max() < 0.0016
    assert (read_frames(copy, size=48) == read_frames(film, size=48)).all()


def test_a_turned_film_stays_turned(tmp_path):
    film = tmp_path / "turned.mp4"
    with av.open(str(film), "w") as file:
        video = file.add_stream("libx264", rate=25, width=64, height=48)
        video.set_display_rotation(90)
        for n in range(75):
            file.mux(video.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), n, np.uint8), "rgb24")))
        file.mux(video.encode())
    assert probe(film).rotation == 90
    for ending in ENDINGS: assert check(film, tmp_path / f"copy{ending}").rotation == 90


@each_ending
def test_films_without_display_times_are_copied_rightly_or_refused(tmp_path, ending):
    film = film_of(tmp_path / "a.avi", sounds=())  # AVI knows the order of decoding only
    try: check(film, tmp_path / f"copy{ending}")
    except PrimenbError as e:
        assert "a.avi" in str(e) and "convert it first" in str(e) and len(list(tmp_path.iterdir())) == 1


def test_names_and_endings(tmp_path):
    film = encode(tmp_path / "f.mp4", np.zeros((80, 48, 64, 3), np.uint8))
    with pytest.raises(PrimenbError, match="it is the film itself"): copy_with_chapters(film, film, chapters)
    with pytest.raises(PrimenbError, match=".ogv is no ending of a copy"):
        copy_with_chapters(film, tmp_path / "f.ogv", chapters)
    assert len(read_chapters(film)) == 0 and len(list(tmp_path.iterdir())) == 1


def test_names_as_long_as_the_file_system_allows(tmp_path):
    film = encode(tmp_path / f"{'x' * 251}.mp4", np.zeros((80, 48, 64, 3), np.uint8))
    for name in (f"{'ü' * 125}.mkv", f"{'y' * 251}.mov"):
        assert len(read_chapters(copy_with_chapters(film, tmp_path / name, chapters))) == 2
