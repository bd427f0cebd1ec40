"`primenb analyse` as a person meets it: whole, interrupted, misused, on odd films, and the page in a browser."
import filecmp, html.parser, json, shutil, signal, subprocess, sys
from pathlib import Path
from urllib.parse import unquote

import cv2
import jinja2
import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import project, tool
from primenb.core import PrimenbError
from primenb.data.corpus import tracking_shots
from primenb.film import analyse as analyse_module, cameras
from primenb.film.analyse import PAGE_PARTS, Part, analyse
from primenb.film.page import axis_ticks, chart_path, clock_time, render_section
from primenb.media.timelines import TIMELINES
from primenb.media.video import Frame, encode, iter_frames
from primenb.scenes.files import FORMATS, load_scenes
from primenb.sfm.evaluate import evaluate_track
from primenb.sfm.geometry import CameraTrack

starter = project / "data/starter/starter.mp4"


def command(*words): return [Path(sys.executable).parent / "primenb", *map(str, words)]


def primenb(*words, **how): return subprocess.run(command(*words), capture_output=True, text=True, timeout=300, **how)


def tables(out): return {f.name: f.read_bytes() for f in [*out.glob("*.csv"), *out.glob("*/*.jpg"), out / "strip.jpg"]}


@pytest.fixture(scope="module")
def report(tmp_path_factory): return analyse(starter, tmp_path_factory.mktemp("report") / "starter")


class Links(html.parser.HTMLParser):
    "Every src and href of a page, and every id."
    def __init__(self, page):
        super().__init__()
        self.links, self.ids = [], set()
        self.feed(page.read_text())
    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href"): self.links.append(value)
            if name == "id": self.ids.add(value)


def linked_files(report):
    "What the page links to, apart from places on the page itself."
    return [unquote(link) for link in Links(report.out / "report.html").links if not link.startswith("#")]


def broken_links(report): return [file for file in linked_files(report) if not (report.out / file).exists()]


def test_the_folder_holds_what_the_page_shows(report):
    page, files = Links(report.out / "report.html"), linked_files(report)
    assert broken_links(report) == []
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    assert len([f for f in files if f.startswith("keyframes/")]) == len(report.shots)
    keys = {f"{shot:04d}-{key}.jpg" for shot in report.shots.shot for key in (1, 2, 3)}
    assert {f.name for f in (report.out / "keyframes").iterdir()} == keys and not (report.out / "partial").exists()


def test_tables_and_facts_agree_with_the_film(report):
    gt = pd.read_csv(project / "data/starter/starter.csv")
    state = json.loads((report.out / "film.json").read_text())
    assert state["parts"]["shots"]["shots"] == len(report.shots) == gt.shot.nunique()
    motion = report.motion
    assert len(motion) == len(gt) and motion.shot.tolist() == gt.shot.tolist()
    pan, still = (motion[motion.shot == n] for n in (0, 2))
    assert pan.camera_x.mean() < -0.1 and abs(pan.camera_y.mean()) < 0.01  # the camera goes right, the picture left
    assert still.camera_x.abs().max() < 0.01


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stopped_after_a_part_it_continues_with_that_part_kept(report, tmp_path, stop):
    out = tmp_path / "report"
    # a shell in the background starts its children with SIGINT ignored
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command("analyse", starter, "-o", out), stderr=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, preexec_fn=listen)
    assert process.stderr.readline().startswith("shots:")
    process.send_signal(stop)
    messages = process.communicate(timeout=60)[1]
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[stop]
    if stop != signal.SIGKILL: assert messages.splitlines()[-1] == "primenb: stopped; the same command continues"
    assert not (out / "report.html").exists()
    again = primenb("analyse", starter, "-o", out)
    assert again.returncode == 0 and again.stderr.splitlines()[0] == "shots: done before"
    assert tables(out) == tables(report.out)


def test_a_part_that_fails_leaves_the_finished_ones_and_is_made_again(tmp_path):
    broken = [True]
    def make(report):
        if broken: raise PrimenbError("sound", "it is silent", "turn it up")
        return {"loud": 1}
    parts = [PAGE_PARTS[0], Part("sound", make, lambda report: "<h2>Sound</h2>", needs=("shots",))]
    with pytest.raises(PrimenbError, match="turn it up"): analyse(starter, tmp_path / "r", available=parts)
    broken.clear()
    lines = []
    analyse(starter, tmp_path / "r", available=parts, log=lines.append)
    assert lines[0] == "shots: done before" and lines[1].startswith("sound:")
    assert "<h2>Sound</h2>" in (tmp_path / "r/report.html").read_text()


def test_files_that_are_gone_are_made_again(report, tmp_path):
    out = shutil.copytree(report.out, tmp_path / "r")
    (out / "keyframes/0003-2.jpg").unlink()
    shutil.rmtree(out / "thumbs")
    lines = []
    again = analyse(starter, out, log=lines.append)
    made = [line.split(":")[0] for line in lines if not line.endswith("done before")]
    assert made == ["keyframes"] and tables(out) == tables(report.out) and broken_links(again) == []


def stopping(function, after):
    "The same generator function, stopped by a person after so many values; and what it has yielded."
    yielded = []
    def stopped(*arguments, **how):
        for value in function(*arguments, **how):
            if len(yielded) == after: raise KeyboardInterrupt
            yielded.append(value)
            yield value
    return stopped, yielded


@pytest.mark.parametrize("part, name, after", [("keyframes", "frames_at", 20), ("motion", "iter_motion", 5)])
def test_stopped_within_a_part_it_goes_on_there(report, tmp_path, monkeypatch, part, name, after):
    original, total = getattr(analyse_module, name), {"keyframes": 36, "motion": 12}[part]
    function, first = stopping(original, after)
    with monkeypatch.context() as patch:
        patch.setattr(analyse_module, name, function)
        with pytest.raises(KeyboardInterrupt): analyse(starter, tmp_path / "r", parts=[part])
    function, second = stopping(original, total)
    with monkeypatch.context() as patch:
        patch.setattr(analyse_module, name, function)
        again = analyse(starter, tmp_path / "r", parts=[part])
    assert len(first) == after and len(second) == total - after
    files = [f.relative_to(again.out) for f in [*again.out.glob("*.csv"), *again.out.glob("*/*.jpg")]]
    assert [f for f in files if (again.out / f).read_bytes() != (report.out / f).read_bytes()] == []
    assert len(files) >= 38 and not (again.out / "partial").exists()


def test_stopped_on_a_copy_it_goes_on_with_the_same_copy(tmp_path, monkeypatch):
    images = [f.image for f in iter_frames(starter, size=96)]
    film = encode(tmp_path / "intra.mp4", images, 24, options={"g": "1"})  # no vectors in it
    monkeypatch.setattr(analyse_module, "_groups", lambda bounds: [(n, n + 1) for n in range(len(bounds) - 1)])
    whole = analyse(film, tmp_path / "whole", parts=["motion"])
    original, copies = analyse_module.canonicalise, []
    def stops(path, out, **how):
        copies.append(how["frames"])
        if len(copies) == 4: raise KeyboardInterrupt
        return original(path, out, **how)
    monkeypatch.setattr(analyse_module, "canonicalise", stops)
    with pytest.raises(KeyboardInterrupt): analyse(film, tmp_path / "r", parts=["motion"])
    report = analyse(film, tmp_path / "r", parts=["motion"])
    assert len(copies) == 1 + len(report.shots) and len(set(copies)) == len(report.shots)
    assert (report.out / "motion.csv").read_bytes() == (whole.out / "motion.csv").read_bytes()


def test_cameras_that_were_found_are_not_sought_again(tmp_path, monkeypatch):
    film = encode(tmp_path / "film.mp4", [np.full((96, 160, 3), 40 + 70 * (n // 24), np.uint8) for n in range(72)], 24)
    track, calls = cameras.track_shot, []
    def stops(footage, span, settings):
        calls.append(span)
        if len(calls) == 2: raise KeyboardInterrupt
        return track(footage, span, settings)
    monkeypatch.setattr(cameras, "track_shot", stops)
    with pytest.raises(KeyboardInterrupt): analyse(film, tmp_path / "r", parts=["cameras"])
    report = analyse(film, tmp_path / "r", parts=["cameras"])
    shots = len(report.shots)
    assert shots == 3 and len(calls) == 1 + shots and report.done["cameras"]["refused"] == shots
    assert report.problems == [] and "No camera for shots 0, 1, 2: " in (report.out / "report.html").read_text()


def test_a_part_of_a_film(report, tmp_path):
    some = analyse(starter, tmp_path / "r", span=(4.0, 12.0))
    inside = report.shots[(report.shots.start > 4) & (report.shots.start < 12)]
    assert some.shots.start_frame.tolist() == [96, *inside.start_frame] and some.shots.end.iloc[-1] == 12
    assert some.motion.time.between(4 - 1e-6, 12).all() and len(some.motion) == 8 * 24
    assert len(some.scenes) and some.problems == [] and broken_links(some) == []
    whole = report.motion[report.motion.time.between(inside.start.iloc[0], 11.99)]
    part = some.motion[some.motion.time >= inside.start.iloc[0]]
    assert part.camera_x.tolist() == whole.camera_x.tolist()
    page = (some.out / "report.html").read_text()
    assert "Only the film from 0:04.0 to 0:12.0 was looked at" in page
    assert ">0:04<" in page and ">0:12<" not in page and "00:00:04:00" in page
    with pytest.raises(PrimenbError, match="other settings"): analyse(starter, some.out, span=(4.0, 13.0))


def test_timelines_that_are_not_named_are_not_written(tmp_path):
    report = analyse(starter, tmp_path / "r", parts=["scenes"], timelines=("edl",))
    names = {f.name for f in report.out.iterdir() if f.suffix in (".otio", ".edl", ".fcpxml")}
    assert names == {"shots.edl", "scenes.edl"} and broken_links(report) == [] and report.problems == []


def test_a_film_that_browsers_do_not_play_has_a_small_copy(tmp_path):
    film = encode(tmp_path / "film.mkv", [f.image for f in iter_frames(starter, frames=(0, 60), size=96)], 24)
    report = analyse(film, tmp_path / "r", parts=["shots", "player"])
    assert "container" in report.done["player"]["cause"] and linked_files(report).count("proxy.mp4") == 2
    assert len(list(iter_frames(report.out / "proxy.mp4"))) == 60
    never = analyse(film, tmp_path / "never", parts=["shots", "player"], proxy="never")
    assert not (never.out / "proxy.mp4").exists() and "../film.mkv" in linked_files(never)
    assert "A small copy" in (report.out / "report.html").read_text()
    page = (never.out / "report.html").read_text()
    assert "A small copy" not in page and "Browsers may not play it: its container" in page
    later = analyse(film, never.out, parts=["shots", "player"])  # another wish does not begin anew
    assert (later.out / "proxy.mp4").exists() and later.done["shots"] == never.done["shots"]
    always = analyse(starter, tmp_path / "always", parts=["shots", "player"], proxy="always")
    assert [f for f in linked_files(always) if f.endswith(".mp4")][1] == "proxy.mp4"


def test_clips_are_made_when_named_and_linked(tmp_path):
    report = analyse(starter, tmp_path / "r", parts=["clips"])
    table = pd.read_csv(report.out / "clips.csv")
    assert len(table) == len(report.shots) and broken_links(report) == []
    assert (table.frames == report.shots.end_frame - report.shots.start_frame).all()
    again = []
    analyse(starter, tmp_path / "r", parts=["clips"], log=again.append)
    assert again == ["shots: done before", "clips: done before"]


def test_parts_bring_what_they_need_and_no_more(tmp_path):
    assert set(analyse(starter, tmp_path / "r", parts=["keyframes"]).done) == {"shots", "keyframes"}
    assert not (tmp_path / "r/motion.csv").exists()


def wrong(tmp_path):
    "Name -> (arguments of the command, exit code, what the one line must contain)."
    (tmp_path / "text.mp4").write_text("this is no film " * 100)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letters.txt").write_text("mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/film.json").write_text('{"film": ')
    out = tmp_path / "out"
    return {
        "missing": (["no.mp4", "-o", out], 1, "no.mp4: there is no such file"),
        "text": ([tmp_path / "text.mp4", "-o", out], 1, "text.mp4: "),
        "empty": ([tmp_path / "empty.mp4", "-o", out], 1, "it is empty"),
        "folder": ([tmp_path / "full", "-o", out], 1, "there are no film files in it"),
        "part": ([starter, "-o", out, "--parts", "shots,smell"], 2, "'smell' is not known; choose from all, shots"),
        "detector": ([starter, "-o", out, "--detector", "neural"], 2, "'neural' is not known; choose from adaptive"),
        "others": ([starter, "-o", tmp_path / "full"], 1, "holds other files"),
        "damaged": ([starter, "-o", tmp_path / "damaged"], 1, "film.json: it is damaged"),
        "file": ([starter, "-o", tmp_path / "text.mp4"], 1, "it is a file"),
        "below": ([starter, "-o", tmp_path / "text.mp4/r"], 1, "text.mp4"),
        "usage": ([starter], 2, "'-o' / '--out'"),
    }


@pytest.mark.parametrize("case", ["missing", "text", "empty", "folder", "part", "detector", "others", "damaged", "file",
                                  "below", "usage"])
def test_every_mistake_is_one_line_and_an_exit_code(tmp_path, case):
    arguments, *expected = wrong(tmp_path)[case]
    code, line = expected
    done = primenb("analyse", *arguments)
    assert done.returncode == code and done.stdout == "" and "Traceback" not in done.stderr
    assert line in done.stderr.splitlines()[-1]
    assert len(done.stderr.splitlines()) == 1 and done.stderr.count(";") >= 1 and not (tmp_path / "out").exists()
    assert (tmp_path / "full/letters.txt").read_text() == "mine"


def test_a_report_is_not_mixed_with_another_film_or_setting(report, tmp_path):
    out = shutil.copytree(report.out, tmp_path / "r")
    other = encode(tmp_path / "other.mp4", [f.image for f in iter_frames(starter, frames=(0, 40), size=64)])
    with pytest.raises(PrimenbError, match="another film, starter.mp4"): analyse(other, out)
    with pytest.raises(PrimenbError, match="other settings"): analyse(starter, out, detector="content")
    assert tables(out) == tables(report.out)
    (out / "notes.txt").write_text("mine")
    assert set(analyse(other, out, parts=["shots"], overwrite=True).done) == {"shots"}
    names = {f.name for f in out.iterdir()}
    assert names == {"film.json", "report.html", "notes.txt", *PAGE_PARTS[0].files}  # nothing of the other film is left
    assert len(analyse(other, out).shots) == 1 and len(list((out / "keyframes").iterdir())) == 3


def test_a_folder_that_is_not_a_report_is_never_touched(tmp_path):
    (tmp_path / "mine/motion").mkdir(parents=True)
    (tmp_path / "mine/motion/data.txt").write_text("mine")
    with pytest.raises(PrimenbError, match="other files"): analyse(starter, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine/motion/data.txt").read_text() == "mine"


def test_stopped_in_the_first_part_it_begins_again(tmp_path):
    broken = [True]
    def make(report):
        (report.out / "half.txt").write_text("half")
        if broken: raise KeyboardInterrupt
    parts = [Part("sound", make, lambda report: "", files=("half.txt",))]
    with pytest.raises(KeyboardInterrupt): analyse(starter, tmp_path / "r", available=parts)
    broken.clear()
    assert "sound" in analyse(starter, tmp_path / "r", available=parts).done


def test_a_resumed_page_equals_a_fresh_one(report, tmp_path):
    out = shutil.copytree(report.out, tmp_path / "starter")
    analyse(starter, out)
    assert (out / "report.html").read_text() == (report.out / "report.html").read_text()
    assert json.loads((out / "film.json").read_text())["info"]["duration"] == report.info.duration


def test_a_film_cut_off_in_the_middle_stops_or_is_shown_as_far_as_it_goes(tmp_path):
    film = tmp_path / "half.mp4"
    film.write_bytes(starter.read_bytes()[: starter.stat().st_size // 2])
    stopped = primenb("analyse", film, "-o", tmp_path / "a")
    assert stopped.returncode == 1 and "half.mp4" in stopped.stderr and "skip" in stopped.stderr
    shown = primenb("analyse", film, "-o", tmp_path / "b", "--skip-damaged")
    assert shown.returncode == 0 and "Damaged:" in (tmp_path / "b/report.html").read_text()


@pytest.mark.parametrize("total", [0.4, 7, 59.9, 61, 1000, 5400, 14400, 40000, 200000])
def test_an_axis_has_round_times_and_room_for_them(total):
    ticks = axis_ticks(total)
    assert ticks[0] == 0 and len(ticks) <= 8 and ticks[-1] < 0.97 * total
    assert [t for t in ticks if abs(2 * t - round(2 * t)) > 1e-9] == []


def test_times_are_rounded_before_they_are_split():
    written = [clock_time(s) for s in (0, 59.96, 3599.94, 3599.96, 36000)]
    assert written == ["0:00.0", "1:00.0", "59:59.9", "1:00:00.0", "10:00:00.0"]


def test_a_chart_keeps_the_area_below_the_curve():
    times, values = np.arange(2400) / 24, np.random.default_rng(0).uniform(0, 1, 2400)
    path = chart_path(times, values, 100, 1.0)
    columns = np.array([column.split("H") for column in path[7:-5].split("V")], float)
    area = np.diff(columns[:, 1], prepend=0) @ (100 - columns[:, 0])
    assert area / 1e5 == pytest.approx(values.mean(), abs=1e-3)
    assert columns[:, 1].max() == pytest.approx(1000) and 0 <= columns.min() and columns[:, 0].max() <= 100


def test_names_are_escaped(tmp_path):
    film = tmp_path / "<b>&\"'%20 ü.mp4"
    shutil.copy(starter, film)
    page = (analyse(film, tmp_path / "r", parts=["shots"]).out / "report.html").read_text()
    assert "<b>&\"" not in page and "&lt;b&gt;&amp;" in page


@pytest.mark.parametrize("name", [
    "codecs/testsrc2_vp9.webm", "codecs/h265_video.mp4", "codecs/av1_video.mkv", "codecs/nasa_13013_rotated.mp4",
    "codecs/animated.gif", "codecs/transparent.gif", "codecs/testsrc2_mpeg4.mp4", "codecs/test_non_zero_start.mp4",
    "codecs/testsrc2_odd_height_and_width_mpeg2.mp4", "codecs/nasa_13013_hdr.mp4", "motion_vectors/vid_h264.264"])
def test_odd_films_get_a_whole_report(real, tmp_path, name):
    report = analyse(real / name, tmp_path / "r")
    assert len(report.motion) == report.info.frames
    assert broken_links(report) == []
    own = report.info.codec in ("h264", "mpeg4", "mpeg2video") and report.info.frames > 1
    source = report.done["motion"]["source"]
    assert source == "the film's own motion vectors" if own else source.startswith("a canonical copy, as ")


def resized(path, sizes, frames=20):
    "A transport stream on one clock whose frames change their size."
    with av.open(str(path), "w") as out:
        written, at = None, 0
        for n, (width, height) in enumerate(sizes):
            images = [f.image for f in iter_frames(starter, frames=(0, frames), size=(width, height))]
            part = encode(path.with_name(f"{n}.ts"), images, 25, options={"bf": "0"})
            with av.open(str(part)) as held:
                stream = held.streams.video[0]
                written = written or out.add_stream_from_template(stream)
                packets = [packet for packet in held.demux(stream) if packet.dts is not None]
                first = packets[0].dts
                for packet in packets:
                    packet.pts += at - first
                    packet.dts += at - first
                    packet.stream = written
                    out.mux(packet)
                at += frames * 3600
    return path

@pytest.mark.parametrize("sizes", [[(160, 96), (192, 112)], [(160, 96), (96, 160), (160, 96)]])
def test_a_film_whose_size_changes_is_measured_on_a_copy(tmp_path, sizes):
    report = analyse(resized(tmp_path / "film.ts", sizes), tmp_path / "r")
    assert len(report.motion) == 20 * len(sizes) and broken_links(report) == []
    if len(report.shots) == 1: assert "the size of its frames changes" in report.done["motion"]["source"]

@pytest.mark.parametrize("size", [(1920, 90), (90, 1920), (64, 8), (16, 16)])
def test_pictures_of_odd_shapes_get_a_whole_report(tmp_path, size):
    wide = np.random.default_rng(0).integers(0, 255, (size[1], size[0] + 60, 3)).astype(np.uint8)
    film = encode(tmp_path / "film.mp4", [wide[:, 2 * t : 2 * t + size[0]] for t in range(30)], 25, crf=18)
    report = analyse(film, tmp_path / "r")
    assert len(report.motion) == 30 and broken_links(report) == []
    assert report.motion.camera_x.median() == pytest.approx(-2 * 25 / size[0], rel=0.3)

def test_a_film_of_key_frames_only_is_measured_on_a_copy(tmp_path):
    frames = [f.image for f in iter_frames(starter, frames=(0, 60), size=96)]
    report = analyse(encode(tmp_path / "intra.mp4", frames, 24, options={"g": "1"}), tmp_path / "r")
    assert report.done["motion"]["source"].startswith("a canonical copy, as ") and report.motion.camera_x.mean() < -0.1


# VmHWM is the peak of the new program alone; ru_maxrss of a child starts at what its parent held when it was started
peak_memory = """
import sys
from primenb.film.analyse import analyse
analyse(sys.argv[1], sys.argv[2])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_ten_minutes_stay_within_600_megabytes(tmp_path):
    frames = [f.image for f in iter_frames(starter, size=(320, 180))]
    repeated = (frames[i % len(frames)] for i in range(10 * 60 * 24))
    film = encode(tmp_path / "long.mp4", repeated, 24, crf=28, preset="ultrafast")
    del frames, repeated
    words = [sys.executable, "-c", peak_memory, film, tmp_path / "r"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 600 * 1024


@pytest.mark.slow
def test_cameras_of_a_film_come_with_their_files(tmp_path):
    shot = next(s for s in tracking_shots() if s.key == "track_12")
    film = encode(tmp_path / "film.mp4", [*shot.frames(), *[np.full((270, 480, 3), 90, np.uint8)] * 24], 24)
    depth = tmp_path / "depth"
    depth.mkdir()
    for n, z in enumerate(shot.depth("scaled")): np.save(depth / f"{n:04d}.npy", z)
    for n in range(32, 56): np.save(depth / f"{n:04d}.npy", np.ones((54, 96), np.float32))
    report = analyse(film, tmp_path / "r", parts=["cameras"], depth=depth)
    table = pd.read_csv(report.out / "cameras.csv")
    assert list(table.status) == ["solved", "refused"] and "texture" in table.reason[1]
    assert report.done["cameras"]["refused"] == 1
    track = report.camera_track(0)
    assert len(track.K) == 32 and track.size == (480, 270)
    errors = evaluate_track(track, shot.cameras.K, shot.cameras.cam_from_world, shot.facts["median_depth"])
    assert errors["ate_over_path"] < 0.02
    assert any("scene.usda" in file for file in linked_files(report)) and broken_links(report) == []
    assert "no camera" in (report.out / "report.html").read_text()
    assert analyse(film, tmp_path / "r", parts=["cameras"], depth=depth).done["cameras"] == report.done["cameras"]


def test_a_last_shot_too_short_for_a_column_of_the_strip(tmp_path):
    "Forty slow frames of 50 s each and a last shot of half a second: on the strip it begins behind the last column."
    one, two = (np.random.default_rng(n).integers(0, 255, (36, 64, 3), np.uint8) for n in range(2))
    frames = [Frame(one, 50.0 * n, n, n) for n in range(40)]
    frames += [Frame(two, 2000 + 0.05 * n, 40 + n, 40 + n) for n in range(10)]
    report = analyse(encode(tmp_path / "slow.mp4", frames, 20), tmp_path / "r", parts=["keyframes"])
    assert report.shots.start_frame.tolist() == [0, 40]
    assert 0 < report.shots.end[1] - report.shots.start[1] < report.info.duration / 3200
    assert (report.out / "report.html").exists() and (report.out / "strip.jpg").stat().st_size > 0


def shot_of_size(width, height, frames=32):
    "Images of a shot of the corpus, the middle of each enlarged to this size so that pixels stay square."
    images = next(s for s in tracking_shots() if s.key == "track_12").frames()[:frames]
    (h, w), by = images.shape[1:3], max(width / images.shape[2], height / images.shape[1])
    move = np.array([[by, 0, (width - by * w) / 2], [0, by, (height - by * h) / 2]])
    return [cv2.warpAffine(image, move, (width, height), flags=cv2.INTER_CUBIC) for image in images]


def test_an_export_that_fails_is_named_and_the_others_are_written(tmp_path, monkeypatch):
    def refuse(self, path, *more, **how): raise PrimenbError(path, "a .chan file cannot <hold> it", "use another")
    def crash(self, path, *more, **how):
        Path(path).write_text("half")
        raise ZeroDivisionError("by nothing")
    monkeypatch.setattr(CameraTrack, "to_nuke", refuse)
    monkeypatch.setattr(CameraTrack, "to_blender", crash)
    film = encode(tmp_path / "film.mp4", shot_of_size(320, 180, 12), 24)
    with pytest.warns(UserWarning, match="camera.chan: a .chan file cannot <hold> it, and 2 more"):
        report = analyse(film, tmp_path / "r", parts=["cameras"])
    row = pd.read_csv(report.out / "cameras.csv").iloc[0]
    lost = dict.fromkeys(("0000/camera.chan", "0000/camera.nk"), "a .chan file cannot <hold> it")
    lost["0000/camera.py"] = "ZeroDivisionError: by nothing"
    assert row.status in ("solved", "rotation_only") and all(why in row.reason for why in lost.values())
    assert json.loads((report.out / "film.json").read_text())["parts"]["cameras"]["unwritten"] == lost
    names = {f.name for f in (report.out / "cameras/0000").iterdir()}
    assert names == {"track.npz", "scene.usda", "colmap", "plate.mp4", "scene.jpg", "view.html"}
    assert broken_links(report) == []
    assert "cannot &lt;hold&gt; it" in (report.out / "report.html").read_text() and len(report.camera_track(0).K) == 12


def test_a_shot_that_fails_does_not_take_the_others_down(tmp_path, monkeypatch):
    grey = [np.full((180, 320, 3), 90, np.uint8)] * 24
    film = encode(tmp_path / "film.mp4", [*shot_of_size(320, 180, 24), *grey], 24)
    track, calls = cameras.track_shot, []
    def fails(footage, span, settings):
        calls.append(span)
        if len(calls) == 1: raise np.linalg.LinAlgError("Singular <matrix>")
        return track(footage, span, settings)
    monkeypatch.setattr(cameras, "track_shot", fails)
    with pytest.warns(UserWarning, match="shot 0 failed: LinAlgError"):
        report = analyse(film, tmp_path / "r", parts=["cameras"])
    table, state = pd.read_csv(report.out / "cameras.csv"), json.loads((report.out / "film.json").read_text())
    cause = "LinAlgError: Singular <matrix>"
    assert calls == [(0, 24), (24, 48)] and table.status.tolist() == ["failed", "refused"] and table.reason[0] == cause
    facts = state["parts"]["cameras"]
    assert facts["failed"] == 1 and facts["causes"] == {"0": cause}
    page = (report.out / "report.html").read_text()
    assert "1 refused, 1 failed" in page and "Singular &lt;matrix&gt;" in page
    with pytest.raises(PrimenbError): report.camera_track(0)
    def stopped(*arguments): raise KeyboardInterrupt
    monkeypatch.setattr(cameras, "track_shot", stopped)
    with pytest.raises(KeyboardInterrupt): analyse(film, tmp_path / "r", parts=["cameras"], overwrite=True)


def test_files_that_cannot_be_written_are_named_everywhere(tmp_path, monkeypatch):
    "A folder stands where a file should be: the report is complete, and says what it lacks; the command ends with 1."
    film = encode(tmp_path / "short.mp4", [f.image for f in iter_frames(starter, frames=(0, 12), size=96)], 24)
    def refuse(*arguments, **how): raise PrimenbError("s.edl", "it cannot <hold> it", "use another")
    monkeypatch.setitem(FORMATS, ".edl", (refuse, FORMATS[".edl"][1]))
    monkeypatch.setitem(TIMELINES, ".fcpxml", (refuse, TIMELINES[".fcpxml"][1]))
    lost = ["shots: no shots.fcpxml: it cannot <hold> it",
            "scenes: no scenes.edl: .edl cannot hold these scenes: it cannot",
            "scenes: no scenes.fcpxml: .fcpxml cannot hold these scenes: it cannot"]
    with pytest.warns(UserWarning, match="short.mp4: shots: no shots.fcpxml: it cannot <hold> it, and 2 more"):
        report = analyse(film, tmp_path / "r", parts=["scenes"])
    assert [line.startswith(start) for line, start in zip(report.problems, lost, strict=True)] == [True] * 3
    state = json.loads((report.out / "film.json").read_text())["parts"]
    assert list(state["scenes"]["unwritten"]) == ["scenes.edl", "scenes.fcpxml"]
    assert not (report.out / "scenes.edl").exists() and (report.out / "scenes.otio").exists()
    page = (report.out / "report.html").read_text()
    assert "no shots.fcpxml: it cannot &lt;hold&gt; it" in page and broken_links(report) == []
    done = primenb("analyse", film, "-o", report.out, "--parts", "scenes")  # it is not forgotten
    assert done.returncode == 1 and done.stdout == f"{report.out / 'report.html'}\n"
    assert "shots.fcpxml" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", [
    "NA", "null", "None", "nan", "a ", "x" * 236, 'a "b", c;', "a\nb", "ü – 日本", "100%", "-a"])
def test_films_of_all_names_have_all_files(tmp_path, name):
    film = encode(tmp_path / "f.mp4", [f.image for f in iter_frames(starter, frames=(0, 12), size=96)], 24)
    film = film.rename(tmp_path / f"{name}.mp4")
    report = analyse(film, tmp_path / "r", parts=["scenes"])
    assert report.problems == [] and set(report.shots.film) == set(report.scenes.film) == {name}
    for part in PAGE_PARTS[:2]: assert [file for file in part.files if not (report.out / file).exists()] == []
    for file in report.out.glob("scenes.*"):
        if file.suffix != ".csv": assert len(load_scenes(file, report.shots, film)) == len(report.scenes)


def test_the_templates_are_installed_with_the_library(tmp_path):
    tool("python", "setup.py", "--quiet", "build", "--build-base", tmp_path / "base", "--build-lib", tmp_path / "lib")
    templates = project / "primenb/film/templates"
    assert {f.name for f in templates.iterdir()} >= {"report.html.j2", "report.css"}
    assert filecmp.dircmp(templates, tmp_path / "lib/primenb/film/templates").left_only == []


def test_a_template_fails_without_a_value():
    with pytest.raises(jinja2.UndefinedError, match="rows"): render_section("cameras", counts="")


def test_values_are_escaped_in_all_sections():
    refused = dict(shot=0, status="refused", reason="<b>&", remedy="", image="", files={})
    section = render_section("cameras", counts="1 refused", rows=[refused])
    assert "&lt;b&gt;&amp;" in section and "<b>&" not in section


def test_cameras_are_made_only_when_named(tmp_path):
    film = encode(tmp_path / "short.mp4", [f.image for f in iter_frames(starter, frames=(0, 12), size=96)], 24)
    assert "cameras" not in analyse(film, tmp_path / "r").done


def test_scenes_are_on_the_page_and_in_files_that_agree(report, tmp_path):
    scenes, shots = report.scenes, report.shots
    assert scenes.end.iloc[-1] == pytest.approx(shots.end.iloc[-1]) and len(scenes) == report.done["scenes"]["scenes"]
    for name in ("scenes.json", "scenes.otio", "scenes.edl", "scenes.vtt", "scenes.ffmeta"):
        assert load_scenes(report.out / name, shots).end_frame.tolist() == scenes.end_frame.tolist(), name
        assert name in (report.out / "report.html").read_text()
    fine = analyse(starter, tmp_path / "fine", parts=["scenes"], scenes_per_hour=3600 * len(shots) / shots.end.iloc[-1])
    assert len(fine.scenes) == len(shots)
    with pytest.raises(PrimenbError, match="other settings"): analyse(starter, tmp_path / "fine", parts=["scenes"])


@pytest.mark.slow
def test_a_film_of_800_shots_has_a_strip_of_images(tmp_path):
    colours = np.random.default_rng(0).integers(20, 200, (800, 1, 1, 3), np.uint8)
    images = (np.broadcast_to(colours[n // 8], (36, 64, 3)) for n in range(6400))
    film = encode(tmp_path / "film.mp4", images, 8, preset="ultrafast")
    report = analyse(film, tmp_path / "report", parts=["keyframes"])
    assert len(report.shots) > 750
    strip = np.asarray(Image.open(report.out / "strip.jpg"))
    assert (strip.min(-1) > 240).mean() < 0.01 and strip.std(1).mean() > 10  # no white lines, and the shots differ


def test_what_a_player_shows_differently_is_said(tmp_path):
    once = tmp_path / "once.ts"
    with av.open(str(once), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for n in range(25):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((96, 128, 3), 5 * n, np.uint8), "rgb24")))
        out.mux(stream.encode())
    (tmp_path / "twice.ts").write_bytes(once.read_bytes() * 2)
    done = primenb("analyse", tmp_path / "twice.ts", "-o", tmp_path / "report", "--parts", "shots")
    assert done.returncode == 0 and "note: its clock starts anew at 1.00 s" in done.stderr
    assert "Its clock starts anew at 1.00 s" in (tmp_path / "report/report.html").read_text()
