"Timelines of shots: every frame comes back at every rate, labels are the standard's, and other programs read them."
import csv, re
from fractions import Fraction
from xml.etree import ElementTree

import av
import numpy as np
import opentimelineio as otio
import pytest
from hypothesis import given, settings, strategies as st

from conftest import project
from primenb.core import PrimenbError
from primenb.media.shots import shot_table
from primenb.media.timelines import FilmClock, film_clock, frame_of_timecode, load_timeline, save_timeline, table_rate
from primenb.media.timelines import TIMELINES, timecode
from primenb.media.video import probe

ntsc = Fraction(30000, 1001)
rates = [Fraction(24000, 1001), 24, 25, ntsc, 30, Fraction(48000, 1001), 48, 50, 2 * ntsc, 60, 100, 4 * ntsc, 120, 240]
rates = [Fraction(rate) for rate in rates]
starter = project / "data/starter/starter.mp4"
each_format = pytest.mark.parametrize("ending", TIMELINES)


def shots_at(rate, seconds=7200, gap=11, film="f"):
    "Shots of two hours, with cuts at odd frames."
    times = np.arange(int(seconds * rate)) / float(rate)
    cuts = sorted({1, 2, len(times) - 1, *range(101, len(times), round(gap * rate) + 1)})
    return shot_table(film, cuts, times, len(times) / float(rate))


def film_of(path, rate=25, frames=50, timecode="", codec="mpeg4", size=(64, 48), pixel=None, sound=False):
    "A film that PyAV writes."
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, width=size[0], height=size[1])
        if timecode: stream.metadata["timecode"] = timecode
        if pixel: stream.codec_context.sample_aspect_ratio = pixel
        voice = file.add_stream("aac", rate=48000) if sound else None
        for n in range(frames):
            image = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 40 * n % 250, np.uint8), "rgb24")
            file.mux(stream.encode(image))
        if sound:
            for n in range(int(frames / rate * 48)):
                tone = av.AudioFrame.from_ndarray(np.zeros((2, 1000), np.float32), "fltp", "stereo")
                tone.sample_rate, tone.pts = 48000, 1000 * n
                file.mux(voice.encode(tone))
            file.mux(voice.encode())
        file.mux(stream.encode())
    return path


# ---- labels

def slow_labels(base, skip, minutes):
    "Labels as the standard has them, one after the other."
    for minute in range(minutes):
        for n in range(60 * base):
            if n < skip and minute % 10: continue
            yield f"{minute // 60:02}:{minute % 60:02}:{n // base:02}{';' if skip else ':'}{n % base:02}"


@pytest.mark.parametrize("rate, drop", [(ntsc, True), (ntsc, False), (2 * ntsc, True), (Fraction(25), False)], ids=str)
def test_labels_are_counted_as_the_standard_says(rate, drop):
    expected = list(slow_labels(round(rate), round(rate) // 15 if drop else 0, 63))
    assert [timecode(n, rate, drop) for n in range(len(expected))] == expected
    assert [frame_of_timecode(label, rate) for label in expected] == list(range(len(expected)))


@given(st.integers(0, 10**9), st.sampled_from(rates))
def test_labels_come_back_and_begin_again_at_midnight(frame, rate):
    for drop in {False, rate in (ntsc, 2 * ntsc)}:
        day = 86400 * round(rate) - (144 * 9 * round(rate) // 15 if drop else 0)
        assert frame_of_timecode(timecode(frame, rate, drop), rate) == frame % day


def test_texts_that_are_no_timecode_are_refused():
    for label in ("", "1:2:3", "00:00:00:25", "00:60:00:00", "a:b:c:d"):
        with pytest.raises(PrimenbError, match="timecode"): frame_of_timecode(label, 25)


# ---- rates

@each_format
@pytest.mark.parametrize("rate", [*rates, Fraction(12), Fraction(15), Fraction(10, 3)], ids=str)
def test_every_frame_of_two_hours_comes_back(tmp_path, ending, rate):
    shots = shots_at(rate)
    back = load_timeline(save_timeline(shots, tmp_path / f"s{ending}"))
    assert [round(t) for t in back.start * float(rate)] == shots.start_frame.tolist()
    assert [round(t) for t in back.end * float(rate)] == shots.end_frame.tolist()
    assert back.title.tolist() == [f"shot {n}" for n in shots.shot]
    assert np.abs(back.start - shots.start).max() < 1e-4  # no drift
    assert table_rate(shots) == rate


def test_high_rates_have_labels_of_their_own(tmp_path):
    text = save_timeline(shots_at(Fraction(240), 10), tmp_path / "s.edl").read_text()
    assert "FCM: NON-DROP FRAME" in text and re.search(r"00:00:00:101 ", text)
    assert "00:00:01:01 " in save_timeline(shots_at(Fraction(100), 2, 1.22), tmp_path / "s.edl").read_text()


def rate_of(shots): return float(film_clock(shots).rate)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.1, 9), min_size=2, max_size=30), st.sampled_from(list(TIMELINES)))
def test_uneven_frames_are_next_to_the_average(tmp_path_factory, lengths, ending):
    times = np.cumsum([0, *np.repeat(lengths, 20) / 20])
    shots = shot_table("f", range(20, len(times) - 1, 20), times[:-1], times[-1])
    path = tmp_path_factory.mktemp("t") / f"s{ending}"
    try: back = load_timeline(save_timeline(shots, path))
    except PrimenbError as e: assert "shorter than a frame" in str(e) and not path.exists()
    else:  # labels of an EDL may be those of the nearest customary rate
        assert np.abs(back.start - shots.start).max() < (0.7 if ending in (".edl", ".csv") else 0.51) / rate_of(shots)


def test_a_clip_shorter_than_a_frame_is_refused_by_name(tmp_path):
    times = np.array([0, 1, 1.001, 2, 3, 4, 5.0])
    with pytest.raises(PrimenbError, match="shot 1: it is shorter than a frame"):
        save_timeline(shot_table("f", [1, 2], times, 5000.0), tmp_path / "s.otio")
    assert list(tmp_path.iterdir()) == []


# ---- the film's own clock

@pytest.mark.parametrize("rate, label", [(24, "01:00:00:00"), (ntsc, "01:00:00;00"), (ntsc, "00:59:59:29"),
                                         (25, "23:59:59:00"), (2 * ntsc, "10:09:59;58")], ids=str)
def test_the_timecode_of_the_film(tmp_path, rate, label):
    film = film_of(tmp_path / "f.mov", rate, 100, label)
    shots, info = shot_table("f", [30, 61], np.arange(100) / float(rate), 100 / float(rate)), probe(film)
    first = frame_of_timecode(label, rate)
    assert film_clock(shots, info) == FilmClock(Fraction(rate), first, ";" in label)
    edl = save_timeline(shots, tmp_path / "s.edl", info).read_text()
    assert ("FCM: DROP FRAME" in edl) == (";" in label) and ("FCM: NON-DROP FRAME" in edl) == (";" not in label)
    labels = [line.split()[4:] for line in edl.splitlines() if re.match(r"\d{3} ", line)]
    assert labels[1] == 2 * [timecode(first + n, rate, ";" in label) for n in (30, 61)] and labels[0][0] == label
    timeline = otio.adapters.read_from_file(str(save_timeline(shots, tmp_path / "s.otio", info)))
    assert timeline.global_start_time.value == first
    clips = list(timeline.find_clips())
    assert [c.source_range.start_time.value - first for c in clips] == [0, 30, 61]
    available = clips[0].media_reference.available_range
    assert (available.start_time.value, available.duration.value) == (first, 100)
    for ending in TIMELINES:
        path = save_timeline(shots, tmp_path / f"s{ending}", info)
        assert [round(t) for t in load_timeline(path).start * float(rate)] == [0, 30, 61]
    zero = save_timeline(shots, tmp_path / "s.edl", info, begin="00:00:00:00").read_text()
    assert "C        00:00:00:00 00:00:0" in zero


def test_opentimelineio_reads_the_edl(tmp_path):
    shots = shots_at(ntsc, 4000)
    path = save_timeline(shots, tmp_path / "s.edl", begin="01:00:00:00")
    clips = list(otio.adapters.read_from_file(str(path), rate=float(ntsc)).find_clips())
    assert [c.source_range.start_time.value - 108000 for c in clips] == shots.start_frame.tolist()
    assert [c.name for c in clips] == [f"shot {n}" for n in shots.shot]


def test_an_edl_of_another_program(tmp_path):
    path = tmp_path / "s.edl"
    path.write_text("TITLE: x\r\nFCM: NON-DROP FRAME\r\n\r\n"
                    "001  AX  V  C  10:00:00:00 10:00:01:12 00:00:00:00 00:00:01:12\r\n"
                    "002  AX  V  C  10:00:01:12 10:00:02:00 00:00:01:12 00:00:02:00\r\n")
    assert load_timeline(path, FilmClock(Fraction(24))).start.tolist() == [0, 1.5]


# ---- OpenTimelineIO and FCPXML

def test_sound_has_a_track_and_the_shown_size_is_named(tmp_path):
    film = film_of(tmp_path / "f.mp4", 25, 50, sound=True)
    shots = shot_table("f", [20], np.arange(50) / 25, 2.0)
    timeline = otio.adapters.read_from_file(str(save_timeline(shots, tmp_path / "s.otio", probe(film))))
    assert [track.kind for track in timeline.tracks] == ["Video", "Audio"]
    spans = [[clip.source_range for clip in track.find_clips()] for track in timeline.tracks]
    assert spans[0] == spans[1] and len(spans[0]) == 2
    bounds = next(iter(timeline.find_clips())).media_reference.available_image_bounds
    assert (bounds.max.x, bounds.max.y) == (64, 48)
    path = save_timeline(shots, tmp_path / "t.otio", probe(film_of(tmp_path / "g.mp4")))
    silent = otio.adapters.read_from_file(str(path))
    assert [track.kind for track in silent.tracks] == ["Video"]


@pytest.mark.parametrize("rate", [ntsc, Fraction(24000, 1001), Fraction(50), Fraction(240)], ids=str)
def test_fcpxml_counts_in_frames(tmp_path, rate):
    film = film_of(tmp_path / "a film.mov", rate, 200, "01:00:00:00", sound=True)
    shots = shot_table("a film", [33, 71], np.arange(200) / float(rate), 200 / float(rate))
    top = ElementTree.parse(save_timeline(shots, tmp_path / "s.fcpxml", probe(film))).getroot()
    assert (tmp_path / "s.fcpxml").read_text().startswith('<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE fcpxml>\n')
    shape, asset = top.find("resources/format"), top.find("resources/asset")
    seconds = lambda element, name: Fraction(element.get(name).removesuffix("s"))
    frame = seconds(shape, "frameDuration")
    assert frame == 1 / rate and (shape.get("width"), shape.get("height")) == ("64", "48")
    assert asset.get("src") == film.as_uri() and asset.get("format") == shape.get("id")
    assert asset.get("audioRate") == "48000" and asset.get("audioChannels") == "2"
    clips = top.findall("library/event/project/sequence/spine/asset-clip")
    assert {clip.get("ref") for clip in clips} == {asset.get("id")}
    first = 3600 * round(rate)
    assert [seconds(clip, "start") / frame - first for clip in clips] == [0, 33, 71]
    assert [seconds(clip, "offset") / frame - first for clip in clips] == [0, 33, 71]
    assert [seconds(clip, "duration") / frame for clip in clips] == [33, 38, 129]
    assert seconds(asset, "start") / frame == first and seconds(asset, "duration") / frame == 200
    sequence = top.find(".//sequence")
    assert seconds(sequence, "tcStart") / frame == first and sequence.get("tcFormat") == "NDF"


def test_missing_shots_leave_gaps(tmp_path):
    shots = shots_at(Fraction(25), 300).iloc[2::2].reset_index(drop=True)
    timeline = otio.adapters.read_from_file(str(save_timeline(shots, tmp_path / "s.otio")))
    clips = list(timeline.find_clips())
    assert [c.range_in_parent() for c in clips] == [c.source_range for c in clips] and len(clips) == len(shots)
    top = ElementTree.parse(save_timeline(shots, tmp_path / "s.fcpxml")).getroot()
    at = Fraction(0)
    for element in top.find(".//spine"):
        assert Fraction(element.get("offset").removesuffix("s")) == at
        at += Fraction(element.get("duration").removesuffix("s"))
    assert at == Fraction(300)


# ---- names, faults

@each_format
@pytest.mark.parametrize("name", [
    "NA", "null", "None", "nan", "", "a ", " a", "x" * 240, 'a "b", c;', "a\nb", "日本 – ü", "100%", "-rf", "a&b<c>",
    "* FROM CLIP NAME: x", "1  AX V C 1"])
def test_odd_names_of_films(tmp_path, ending, name):
    shots = shots_at(Fraction(25), 60, film=name)
    back = load_timeline(save_timeline(shots, tmp_path / f"s{ending}"))
    expected = " ".join(name.splitlines()) if ending == ".edl" else name
    assert set(back.film) == {expected} and len(back) == len(shots)
    titled = save_timeline(shots.assign(title=name.replace("\n", " ")), tmp_path / f"t{ending}")
    assert set(load_timeline(titled).title) == {name.replace("\n", " ")}


def test_a_csv_is_read_by_others(tmp_path):
    shots = shots_at(Fraction(25), 60)
    path = save_timeline(shots, tmp_path / "s.csv", begin="10:00:00:00")
    with open(path, newline="") as f: rows = list(csv.DictReader(f))
    assert [float(row["start"]) for row in rows] == shots.start.tolist()
    assert [row["timecode_start"] for row in rows] == [timecode(900_000 + n, 25) for n in shots.start_frame]


@each_format
def test_broken_files_are_refused_by_name(tmp_path, ending):
    path = save_timeline(shots_at(Fraction(25), 60), tmp_path / f"s{ending}")
    for damage in (b"", b"\xff\xfe\x00\x81" * 50, b"hello\n"):
        path.write_bytes(damage)
        with pytest.raises(PrimenbError, match=f"s{ending}"): load_timeline(path)
    with pytest.raises(PrimenbError, match="there is no such file"): load_timeline(tmp_path / f"no{ending}")
    for name in ("s.docx", "s"):
        with pytest.raises(PrimenbError, match="choose one of .otio"):
            save_timeline(shots_at(Fraction(25), 60), tmp_path / name)
