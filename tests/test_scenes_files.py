"Scene lists in files: every format gives back what was saved, other programs read it, and misfits are refused."
import csv, json, re
from fractions import Fraction

import av
import numpy as np
import opentimelineio as otio
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from conftest import project
from primenb.core import PrimenbError
from primenb.scenes.files import FORMATS, load_scenes, save_scenes, scene_numbers
from primenb.scenes.grouping import scene_table
from primenb.media.shots import detect_shots, shot_table
from primenb.media.video import Frame, encode, frame_times, probe, read_frames

texts = [ending for ending in FORMATS if ending not in (".mp4", ".mov", ".mkv")]
odd = ['a=b; #1 \\ "ü"', "007", "日本 --> <b>&amp;", "* FROM CLIP NAME: NA, 'x'", "CHAPTER01=00:00", "NaN", "Scene 9",
       "…", "a" * 300]
starter = project / "data/starter/starter.mp4"


def listed(frames, cuts, rate=24, film="f", scenes=None, titles=None):
    "Shots at these frames, and scenes of about three shots each."
    shots = shot_table(film, cuts, np.arange(frames) / float(rate), frames / float(rate))
    scenes = scene_table(shots, np.arange(len(shots)) // 3 if scenes is None else scenes)
    return shots, scenes.assign(title=[(titles or odd)[n % len(titles or odd)] for n in range(len(scenes))])


@pytest.fixture
def long():
    return listed(190_000, range(700, 190_000, 1778))


@pytest.mark.parametrize("ending", texts)
@pytest.mark.parametrize("rate", [
    Fraction(24000, 1001), 24, 25, Fraction(30000, 1001), 30, Fraction(48000, 1001), 50, Fraction(60000, 1001), 60, 12,
    15, 100, Fraction(120000, 1001), 120, 240, Fraction(10, 3)], ids=str)
def test_every_format_gives_back_every_frame_past_the_first_hour(tmp_path, ending, rate):
    frames = int(3700 * rate)
    minute, hour = int(60 * rate), int(3600 * rate)
    cuts = sorted({1, 2, minute, minute + 1, int(600 * rate), hour - 1, hour + 1, frames - 1})
    shots, scenes = listed(frames, cuts, rate, film='a film: "1917"; x=y', scenes=np.arange(len(cuts) + 1))
    pd.testing.assert_frame_equal(load_scenes(save_scenes(scenes, shots, tmp_path / f"s{ending}"), shots), scenes)


lengths = st.lists(st.floats(0.05, 300), min_size=1, max_size=40)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths, st.integers(0, 1000), st.lists(st.text(max_size=20), min_size=1, max_size=5), st.sampled_from(texts))
def test_whatever_is_saved_comes_back_or_is_refused(tmp_path, lengths, seed, titles, ending):
    times = np.append(0, np.cumsum(lengths))
    frames = np.arange(len(times) - 1)  # one frame a shot, at uneven times: the hardest there is
    shots = shot_table("f", frames[1:].tolist(), times[:-1], times[-1])
    numbers = np.cumsum(np.append(0, np.random.default_rng(seed).random(len(shots) - 1) < 0.4))
    scenes = scene_table(shots, numbers).assign(title=[titles[n % len(titles)] for n in range(numbers[-1] + 1)])
    path = tmp_path / f"s{ending}"
    path.unlink(missing_ok=True)
    try: save_scenes(scenes, shots, path)
    except PrimenbError as e:
        assert not path.exists() and f"{ending} cannot hold these scenes" in str(e)
        return
    back = load_scenes(path, shots)
    assert scene_numbers(back, shots).tolist() == numbers.tolist()
    assert back.title.tolist() == [t or f"Scene {n + 1}" for n, t in enumerate(scenes.title)]


@pytest.mark.parametrize("ending", texts)
def test_uneven_frames_and_gaps_between_shots(tmp_path, ending):
    times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.06, 3000))
    shots = shot_table("f", range(40, 3000, 61), times - times[0], times[-1] + 0.03)
    scenes = scene_table(shots, np.arange(len(shots)) // 4).assign(title="x")
    assert load_scenes(save_scenes(scenes, shots, tmp_path / f"a{ending}"), shots).equals(scenes)
    apart = shots.iloc[3::2].reset_index(drop=True)  # begins late, and every second shot is missing
    scenes = scene_table(apart, np.arange(len(apart)) // 4).assign(title="x")
    assert load_scenes(save_scenes(scenes, apart, tmp_path / f"b{ending}"), apart).equals(scenes)


def test_scenes_without_titles_get_one(tmp_path, long):
    shots, scenes = long
    expected = [f"Scene {n + 1}" for n in range(len(scenes))]
    for given in (scenes.drop(columns="title"), scenes.assign(title=None), scenes.assign(title="")):
        assert load_scenes(save_scenes(given, shots, tmp_path / "s.vtt"), shots).title.tolist() == expected


# ---- what others read

def timecode(frame, rate):
    "Labels as the standard has them: at 29.97 and 59.94, two or four are left out each minute but the tenth."
    whole = round(rate)
    if whole in (30, 60) and rate != whole:
        drop = whole // 15
        ten, minute = round(rate * 600), round(rate * 60)
        tens, rest = divmod(frame, ten)
        frame += 9 * drop * tens + (drop * ((rest - drop) // minute) if rest > drop else 0)
        mark = ";"
    else: mark = ":"
    seconds = frame // whole
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}{mark}{frame % whole:02}"


television = [Fraction(24000, 1001), 25, Fraction(30000, 1001), 30, Fraction(60000, 1001), 60]


@pytest.mark.parametrize("rate", television, ids=str)
def test_timecodes_of_the_edit_list(tmp_path, rate):
    shots, scenes = listed(int(4000 * rate), range(333, int(4000 * rate), 1797), rate)
    text = save_scenes(scenes, shots, tmp_path / "s.edl").read_text()
    events = [line.split() for line in text.splitlines() if re.match(r"\d{3}  ", line)]
    expected = [[timecode(f, rate) for f in pair] for pair in scenes[["start_frame", "end_frame"]].to_numpy()]
    assert [event[4:6] for event in events] == [event[6:8] for event in events] == expected
    assert expected[-1][1] > "01:06:3"


def test_timeline_cuts_the_film_at_its_scenes(tmp_path, long):
    shots, scenes = long
    timeline = otio.adapters.read_from_file(str(save_scenes(scenes, shots, tmp_path / "s.otio", media=starter)))
    clips = list(timeline.find_clips())
    assert [c.range_in_parent() for c in clips] == [c.source_range for c in clips]  # as in the film
    assert [int(c.source_range.start_time.value) for c in clips] == scenes.start_frame.tolist()
    assert [int(c.source_range.end_time_exclusive().value) for c in clips] == scenes.end_frame.tolist()
    assert {c.media_reference.target_url for c in clips} == {starter.as_uri()}
    assert {c.media_reference.available_range.start_time.value for c in clips} == {0}
    assert [int(m.marked_range.start_time.value) for c in clips for m in c.markers] == shots.start_frame.tolist()


def test_shots_that_are_missing_leave_gaps_in_the_timeline(tmp_path, long):
    shots = long[0].iloc[1::2].reset_index(drop=True)
    scenes = scene_table(shots, np.arange(len(shots)))
    timeline = otio.adapters.read_from_file(str(save_scenes(scenes, shots, tmp_path / "s.otio")))
    clips = list(timeline.find_clips())
    assert [c.range_in_parent() for c in clips] == [c.source_range for c in clips]
    assert len(clips) == len(shots)


def test_ffmpeg_reads_the_cues(tmp_path, long):
    shots, scenes = long
    with av.open(str(save_scenes(scenes, shots, tmp_path / "s.vtt"))) as file:
        packets = [p for p in file.demux(file.streams[0]) if p.pts is not None]
        cues = [(p.pts * p.time_base, (p.pts + p.duration) * p.time_base) for p in packets]
    np.testing.assert_allclose(np.array(cues, float), scenes[["start", "end"]], atol=1e-3)


def test_plain_readers_get_the_table(tmp_path, long):
    shots, scenes = long
    read = json.loads(save_scenes(scenes, shots, tmp_path / "s.json").read_text())
    assert read["film"] == "f" and pd.DataFrame(read["scenes"]).equals(scenes.drop(columns="film"))
    with open(save_scenes(scenes, shots, tmp_path / "s.csv"), newline="") as f: rows = list(csv.DictReader(f))
    assert [r["title"] for r in rows] == scenes.title.tolist()
    assert [float(r["start"]) for r in rows] == scenes.start.tolist()


@pytest.mark.parametrize("ending", [".txt", ".vtt", ".ffmeta"])
def test_no_chapter_begins_before_its_scene(tmp_path, long, ending):
    shots, scenes = long
    read = FORMATS[ending][1](save_scenes(scenes, shots, tmp_path / f"s{ending}"), shots)
    late = (read.start - scenes.start).to_numpy()
    assert late.min() > -1e-6 and 0.0005 < late.max() < 0.00099  # 1/24 s is no whole number of milliseconds


# ---- the film's own clock

def late_film(path, late=3.0, rate=25, timecode="", name="mpeg4"):
    "A film whose images begin after its sound, and change at 1.2 and 2 s; with its shots and scenes."
    with av.open(str(path), "w") as file:
        video = file.add_stream(name, rate=rate, width=64, height=48)
        if timecode: video.metadata["timecode"] = timecode
        voice = file.add_stream("aac", rate=48000, layout="stereo")
        for n in range(75):
            shade = np.full((48, 64, 3), (30, 120, 220)[(n >= 30) + (n >= 50)], np.uint8)
            frame = av.VideoFrame.from_ndarray(shade, "rgb24")
            frame.pts, frame.time_base = n + round(late * rate), 1 / Fraction(rate)
            file.mux(video.encode(frame))
        file.mux(video.encode())
        for n in range(int((75 / rate + late) * 48000 / 1024)):
            sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            sound.sample_rate, sound.pts = 48000, 1024 * n
            file.mux(voice.encode(sound))
        file.mux(voice.encode())
    shots = shot_table(path.stem, [30, 50], frame_times(path), probe(path).duration)
    return path, shots, scene_table(shots, np.arange(3)).assign(title=["one", "two", "three"])


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.ts", "a.flv"])
def test_files_for_players_have_their_time(tmp_path, name):
    film, shots, scenes = late_film(tmp_path / name, name="libx264")
    late = probe(film).offset
    assert late == pytest.approx(3, abs=0.1)  # the sound of some begins a little before 0
    expected = np.array([0, 1.2, 2.0]) + late
    vtt = save_scenes(scenes, shots, tmp_path / "s.vtt", media=film)
    with av.open(str(vtt)) as file: cues = [p.pts * p.time_base for p in file.demux(file.streams[0]) if p.size]
    with av.open(str(save_scenes(scenes, shots, tmp_path / "s.ffmeta", media=film))) as file:
        chapters = [float(c["start"] * c["time_base"]) for c in file.chapters()]
    ogm = save_scenes(scenes, shots, tmp_path / "s.txt", media=film).read_text()
    clocks = [re.split("[:.]", text) for text in re.findall(r"CHAPTER\d+=(\S+)", ogm)]
    marks = [3600 * int(h) + 60 * int(m) + int(s) + int(ms) / 1000 for h, m, s, ms in clocks]
    for found in (np.array(cues, float), chapters, marks): np.testing.assert_allclose(found, expected, atol=1.1e-3)
    for ending in FORMATS:
        if ending == film.suffix: continue
        path = save_scenes(scenes, shots, tmp_path / f"s{ending}", media=film)
        for media in (film, None): assert load_scenes(path, shots, media).equals(scenes)


def test_chapters_of_a_film_do_not_fit_another_clock(tmp_path):
    film, shots, scenes = late_film(tmp_path / "a.mp4")
    other = late_film(tmp_path / "b.mp4", late=1.6)[0]
    path = save_scenes(scenes, shots, tmp_path / "s.vtt", media=film)
    with pytest.raises(PrimenbError, match="the start of scene 0 is at 1.400 s"): load_scenes(path, shots, other)


@pytest.mark.parametrize("label, rate", [("01:00:00:00", 25), ("01:00:00;00", Fraction(30000, 1001)),
                                         ("00:59:59:28", Fraction(30000, 1001))], ids=str)
def test_timelines_have_the_timecode_of_the_film(tmp_path, label, rate):
    film, shots, scenes = late_film(tmp_path / "a.mov", 0, rate, label)
    path = save_scenes(scenes, shots, tmp_path / "s.edl", media=film)
    text = path.read_text()
    assert f"C        {label} " in text and ("FCM: DROP" in text) == (";" in label)
    timeline = otio.adapters.read_from_file(str(save_scenes(scenes, shots, tmp_path / "s.otio", media=film)))
    first = otio.opentime.from_timecode(label, float(rate)).value
    clips = [list(track.find_clips()) for track in timeline.tracks]
    assert [track.kind for track in timeline.tracks] == ["Video", "Audio"]
    for track in clips: assert [c.source_range.start_time.value - first for c in track] == [0, 30, 50]
    assert clips[0][0].media_reference.available_range.start_time.value == first
    zero = save_scenes(scenes, shots, tmp_path / "z.edl", media=film, begin="00:00:00:00")
    assert "C        00:00:00:00 00:00:0" in zero.read_text()
    for path in (path, zero): assert load_scenes(path, shots, film).equals(load_scenes(path, shots))


@pytest.mark.parametrize("name", [
    "NA", "null", "None", "nan", "a ", " a", "x" * 200, 'a "b", c; \'d\'', "a\nb", "日本 – ü", "100%", "-rf", "a&b<c>"])
def test_odd_names_of_films(tmp_path, name):
    film, shots, scenes = late_film(tmp_path / f"{name}.mp4", 0)
    assert shots.film[0] == name
    for ending in FORMATS:
        path = save_scenes(scenes, shots, tmp_path / f"s{ending}", media=film)
        assert load_scenes(path, shots, film).equals(scenes)
        assert load_scenes(path, shots).equals(scenes)


# ---- films

def copy_with_chapters(film, out):
    shots = detect_shots(film)
    titles = [f"Nr. {n} = ü" for n in range((len(shots) + 1) // 2)]
    scenes = scene_table(shots, np.arange(len(shots)) // 2).assign(title=titles)
    save_scenes(scenes, shots, out, media=film)
    assert load_scenes(out, shots).equals(scenes)
    of_copy = load_scenes(out, detect_shots(out).assign(film=shots.film[0]))
    assert of_copy[["first_shot", "title"]].equals(scenes[["first_shot", "title"]])
    return scenes


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
def test_a_copy_with_chapters_is_the_film(tmp_path, ending):
    copy_with_chapters(starter, tmp_path / f"copy{ending}")
    assert (read_frames(tmp_path / f"copy{ending}", size=32) == read_frames(starter, size=32)).all()


def test_a_real_film_keeps_its_sound(real, tmp_path):
    film = real / "film_clips/bbb_60s.mp4"
    copy_with_chapters(film, tmp_path / "copy.mp4")
    before, after = probe(film), probe(tmp_path / "copy.mp4")
    assert after.audio == before.audio and after.frames == before.frames
    assert np.abs(frame_times(tmp_path / "copy.mp4") - frame_times(film)).max() < 1e-3


def test_a_film_whose_clock_begins_late(tmp_path):
    images = [np.full((64, 64, 3), v, np.uint8) for v in (20, 120, 220) for _ in range(25)]
    film = encode(tmp_path / "late.mkv", [Frame(image, 7 + n / 25, n, 0) for n, image in enumerate(images)])
    assert probe(film).start > 6
    assert len(copy_with_chapters(film, tmp_path / "copy.mkv")) == 2
    with av.open(str(tmp_path / "copy.mkv")) as file: first = file.chapters()[0]
    assert float(first["start"] * first["time_base"]) == pytest.approx(probe(film).start, abs=1e-3)


def test_chapters_need_the_film_and_do_not_replace_it(tmp_path, long):
    shots, scenes = long
    with pytest.raises(PrimenbError, match="name it: media="): save_scenes(scenes, shots, tmp_path / "s.mkv")
    own = tmp_path / "own.mp4"
    own.write_bytes(starter.read_bytes())
    with pytest.raises(PrimenbError, match="it is the film itself"): save_scenes(scenes, shots, own, media=own)
    assert own.read_bytes() == starter.read_bytes()
    shots = detect_shots(starter)
    with pytest.raises(PrimenbError, match="there are no scenes in it"): load_scenes(own, shots)


# ---- what is refused

def test_only_whole_tables_are_scenes(long):
    shots, scenes = long
    assert (scene_numbers(scenes, shots) == np.arange(len(shots)) // 3).all()
    def change(n, **values):
        return scenes.assign(**{c: scenes[c].where(scenes.scene != n, v) for c, v in values.items()})
    wrong = {
        "scene 4: it overlaps": change(4, first_shot=11), "scene 4: it leaves out": change(4, first_shot=13),
        "scene 5: it overlaps": change(4, last_shot=15), "scene 35: it leaves the film": change(35, last_shot=999),
        "scene 34: it ends before the film does": scenes[:-1], "there are none": scenes[:0],
        "scene 1: it is not numbered": scenes.assign(scene=scenes.scene * 2),
        "scene 3: it ends before": change(3, first_shot=9, last_shot=8), "scene 2: its start": change(2, start=0.5),
        "scene 2: its end_frame": change(2, end_frame=5), "its film is g": scenes.assign(film="g"),
        "no column 'last_shot'": scenes.drop(columns="last_shot")}
    for says, table in wrong.items():
        with pytest.raises(PrimenbError, match=says): scene_numbers(table, shots)


def test_a_film_of_one_shot(tmp_path):
    shots, scenes = listed(10, [])
    for ending in texts: assert load_scenes(save_scenes(scenes, shots, tmp_path / f"s{ending}"), shots).equals(scenes)


@pytest.mark.parametrize("ending", texts)
def test_broken_files_are_refused_by_name(tmp_path, long, ending):
    shots, scenes = long
    path = save_scenes(scenes, shots, tmp_path / f"s{ending}")
    whole = path.read_bytes()
    for damage in (b"", whole[: len(whole) // 2 + 3], b"\xff\xfe\x00\x81" * 50, b"hello\n", whole.replace(b"1", b"x")):
        path.write_bytes(damage)
        with pytest.raises(PrimenbError, match=f"s{ending}"): load_scenes(path, shots)


@pytest.mark.parametrize("ending", texts)
def test_scenes_of_other_shots_are_refused(tmp_path, long, ending):
    shots, scenes = long
    path = save_scenes(scenes, shots, tmp_path / f"s{ending}")
    moved = shot_table("f", (shots.start_frame[1:] + 5).tolist(), np.arange(190_000) / 24, 190_000 / 24)
    with pytest.raises(PrimenbError, match="where no shot has its start"): load_scenes(path, moved)
    with pytest.raises(PrimenbError): load_scenes(path, shots[:-30])


def test_a_beginning_between_two_shots_overlapping_cues_and_another_film(tmp_path, long):
    shots, scenes = long
    text = save_scenes(scenes, shots, tmp_path / "s.vtt").read_text()
    first, second = re.findall(r"--> (\S+)", text)[:2]
    (tmp_path / "s.vtt").write_text(text.replace(f"--> {first}", f"--> {second}", 1))
    with pytest.raises(PrimenbError, match="scene 1: it overlaps the one before"):
        load_scenes(tmp_path / "s.vtt", shots)
    for ending in (".json", ".csv", ".otio", ".edl"):
        path = save_scenes(scenes, shots, tmp_path / f"s{ending}")
        with pytest.raises(PrimenbError, match="its film is f and should be g"):
            load_scenes(path, shots.assign(film="g"))
    read = json.loads((tmp_path / "s.json").read_text())
    read["scenes"][2]["last_shot"] = 3
    (tmp_path / "s.json").write_text(json.dumps(read))
    with pytest.raises(PrimenbError, match="scene 2: its last_shot is 3"): load_scenes(tmp_path / "s.json", shots)


def test_unknown_formats_missing_files_and_odd_titles_leave_nothing_behind(tmp_path, long):
    shots, scenes = long
    for name in ("s.docx", "s"):
        with pytest.raises(PrimenbError, match="choose one of .json, .csv"): save_scenes(scenes, shots, tmp_path / name)
        with pytest.raises(PrimenbError, match="choose one of .json, .csv"): load_scenes(tmp_path / name, shots)
    with pytest.raises(PrimenbError, match="there is no such file"): load_scenes(tmp_path / "s.csv", shots)
    for ending in (".txt", ".vtt", ".edl"):
        with pytest.raises(PrimenbError, match="titles"):
            save_scenes(scenes.assign(title="two\nlines"), shots, tmp_path / f"s{ending}")
    assert list(tmp_path.iterdir()) == []
