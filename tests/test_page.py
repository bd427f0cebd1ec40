"The report's page as a person uses it: in a real browser, with keys, on a phone, without scripts, with 3,000 shots."
import json, shutil
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import project
from primenb.film.analyse import analyse
from primenb.film.page import render_desk, render_page, save_sheets, shot_rows, thumb_size
from primenb.media.timelines import FilmClock, timecode
from primenb.media.video import iter_frames, probe

starter = project / "data/starter/starter.mp4"
BITS = 10


def numbered(n, shot=0):
    "An image that says which frame it is: a row of black and white squares above a colour of the shot."
    image = np.full((96, 16 * BITS, 3), np.random.default_rng(shot).integers(40, 215, 3), np.uint8)
    for bit in range(BITS): image[:32, 16 * bit : 16 * bit + 16] = 255 * (n >> bit & 1)
    return image


def written(path, times, rate=25, codec="libx264", begin=0.0, timecode="", shot=30):
    "A film of numbered images at these times in seconds; with sound from 0 on if its images begin later."
    with av.open(str(path), "w") as out:
        if timecode: out.metadata["timecode"] = timecode
        video = out.add_stream(codec, rate=rate)
        video.width, video.height, video.pix_fmt = 16 * BITS, 96, "yuv420p"
        video.codec_context.time_base = Fraction(1, 90000)
        video.gop_size = 40
        if begin:
            sound = out.add_stream("aac", rate=48000)
            for at in range(0, round(begin * 48000) + 48000, 1024):
                noise = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                noise.sample_rate, noise.pts = 48000, at
                out.mux(sound.encode(noise))
            out.mux(sound.encode())
        for n, t in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered(n, n // shot), "rgb24")
            frame.pts, frame.time_base = round((begin + t) * 90000), Fraction(1, 90000)
            out.mux(video.encode(frame))
        out.mux(video.encode())
    return path


uneven = np.cumsum(np.random.default_rng(1).choice([1 / 30, 1 / 30, 1 / 15, 1 / 10], 150))
films = {
    "24.mp4": dict(times=np.arange(150) / 24, rate=24),
    "drop.mov": dict(times=np.arange(150) * 1001 / 30000, rate=Fraction(30000, 1001), timecode="00:00:59;20"),
    "uneven.mp4": dict(times=uneven - uneven[0], rate=30),
    "vp9.webm": dict(times=np.arange(150) / 25, codec="libvpx-vp9"),
    "late.mp4": dict(times=np.arange(150) / 25, begin=0.6),
}


@pytest.fixture(scope="module", params=films)
def coded(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coded")
    film = written(folder / request.param, **films[request.param])
    return analyse(film, folder / "r", parts=["keyframes", "player"])


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return analyse(starter, tmp_path_factory.mktemp("report") / "starter", scenes_per_hour=600)


@pytest.fixture
def opened(browser):
    "Opens a report's page; afterwards it looks for complaints of the browser."
    contexts = []
    def opened(folder, width=1360, place="", complaints=True, **how):
        context = browser.new_context(viewport=dict(width=width, height=800), **how)
        page = context.new_page()
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        if complaints: page.on("console", lambda message: page.complaints.append(message.text))
        page.goto((folder / "report.html").as_uri() + place)
        contexts.append((context, page))
        return page
    yield opened
    for context, page in contexts:
        found = page.complaints
        context.close()
        assert found == []


def ready(page):
    page.wait_for_function("video.readyState >= 2 && !video.seeking")


def said(page):
    "The frame that the page says it shows."
    return int(page.locator(".times span").nth(1).inner_text().split()[1])


def seen(page):
    "The frame that is to be seen in the player."
    page.wait_for_timeout(150)  # until the image has been drawn
    shown = page.locator("video").screenshot()
    image = np.asarray(Image.open(BytesIO(shown)).convert("L"), float)
    scale = min(image.shape[1] / (16 * BITS), image.shape[0] / 96)
    left, top = (image.shape[1] - 16 * BITS * scale) / 2, (image.shape[0] - 96 * scale) / 2
    bits = [image[int(top + 12 * scale), int(left + (16 * bit + 8) * scale)] > 128 for bit in range(BITS)]
    return sum(1 << bit for bit, lit in enumerate(bits) if lit)


def test_the_frame_that_is_seen_is_the_frame_that_is_said(coded, opened):
    page = opened(coded.out)
    ready(page)
    assert said(page) == 0 and seen(page) == 0
    for frame in (7, 149, 60, 59, 101):
        page.locator("#goto").fill(f"{frame}f")
        page.keyboard.press("Enter")
        ready(page)
        assert said(page) == frame and seen(page) == frame
    for key, frame in (("ArrowRight", 102), ("ArrowRight", 103), ("ArrowLeft", 102), ("Shift+ArrowLeft", 92)):
        page.keyboard.press(key)
        ready(page)
        assert said(page) == frame and seen(page) == frame


def test_the_film_plays_and_everything_follows(coded, opened):
    page = opened(coded.out)
    ready(page)
    page.keyboard.press(" ")
    page.wait_for_function("parseFloat(document.querySelector('.playhead').style.left) > 25")
    page.keyboard.press(" ")
    page.wait_for_function("document.querySelector('video').paused")
    page.wait_for_timeout(200)
    assert said(page) > 30 and seen(page) == said(page)
    shot = page.locator("tr[aria-current]")
    first, stop = json.loads(shot.get_attribute("data-shot"))[2:4]
    assert first <= said(page) < stop


def test_times_are_those_of_the_film(tmp_path, opened):
    film = written(tmp_path / "drop.mov", **films["drop.mov"])
    page = opened(analyse(film, tmp_path / "r", parts=["shots"]).out)
    ready(page)
    typed = [("00:01:00;02", 10, "00:01:00;02"), ("1.001", 30, "00:01:00;22"), ("0f", 0, "00:00:59;20")]
    for text, frame, code in typed:
        page.locator("#goto").fill(text)
        page.keyboard.press("Enter")
        assert said(page) == frame and page.locator(".times b").inner_text() == code
    for wrong in ("soon", "99:00:00:00", "1e3", "-4"):
        page.locator("#goto").fill(wrong)
        page.keyboard.press("Enter")
        assert page.locator("#goto").get_attribute("aria-invalid") == "true" and said(page) == 0


@pytest.mark.parametrize("rate, drop", [(Fraction(30000, 1001), True), (Fraction(60000, 1001), True), (25, False),
                                        (Fraction(24000, 1001), False), (120, False)])
def test_timecodes_of_the_page_and_of_the_library_agree(report, opened, rate, drop):
    frames = np.random.default_rng(0).integers(0, 90 * 3600 * 24, 500).tolist() + [0, 1799, 1800, 17981, 17982, 2589408]
    page = opened(report.out)
    count = f"film.rate = {float(rate)}; film.drop = {str(drop).lower()}; return frames.map(timecode)"
    found = page.evaluate(f"frames => {{ {count} }}", frames)
    assert found == [timecode(frame, rate, drop) for frame in frames]


def test_shots_scenes_and_strip_are_clicked(report, opened):
    page = opened(report.out)
    ready(page)
    shots, scenes = report.shots, report.scenes
    page.locator("#shot3 .thumb").click()
    assert said(page) == shots.start_frame[3] and page.url.endswith("#shot3")
    box = page.locator(".strip").bounding_box()
    at = (shots.start[1] + shots.end[1]) / 2 / shots.end.iloc[-1]
    page.mouse.click(box["x"] + at * box["width"], box["y"] + 5)
    assert page.locator("tr[aria-current]").get_attribute("id") == "shot1"
    assert said(page) == pytest.approx(at * 600, abs=2)
    last = scenes.iloc[-1]
    page.locator(".scenes a").last.click()
    assert said(page) == shots.start_frame[last.first_shot]
    assert page.locator(".now h2").inner_text() == f"Shot {last.first_shot} of scene {last.scene}"
    images = page.locator(".keys img")
    assert images.count() == 4  # three key-frames, and arrows
    page.wait_for_function("[...document.querySelectorAll('.keys img')].every(image => image.naturalWidth > 300)")


def test_the_place_is_in_the_address(report, opened):
    page = opened(report.out, place="#shot4")
    ready(page)
    assert said(page) == report.shots.start_frame[4]
    page = opened(report.out, place="#scene1")
    assert said(page) == report.shots.start_frame[report.scenes.first_shot[1]]
    page = opened(report.out, place="#%3Cb%3E")
    assert said(page) == 0


def test_one_shot_is_marked_and_the_address_follows(report, opened):
    page = opened(report.out, place="#shot4")
    ready(page)
    page.locator("#goto").fill("0,1")
    page.keyboard.press("Enter")
    assert page.url.endswith("#shot0")
    marked = """[...document.querySelectorAll("tr.shot")].filter(row => getComputedStyle(row).boxShadow != "none")"""
    assert page.evaluate(f"{marked}.map(row => row.id)") == ["shot0"]
    page.locator("[data-do=next]").click()
    assert page.url.endswith("#shot1")
    page.reload()
    ready(page)
    assert said(page) == report.shots.start_frame[1]


def test_times_are_rounded_before_they_are_written(report, opened):
    page = opened(report.out)
    found = page.evaluate("[59.9999, 119.996, 3599.999, 0.1 + 59.9 - 1e-12, 59.99].map(clock)")
    assert found == ["1:00", "2:00", "1:00:00", "1:00", "0:59.99"]


def test_only_a_place_at_rest_is_spoken(report, opened):
    page = opened(report.out)
    ready(page)
    spoken = "document.querySelector('.times').ariaLive"
    page.keyboard.press(" ")
    page.wait_for_function(f"{spoken} == 'off'")
    page.keyboard.press(" ")
    page.wait_for_function(f"{spoken} == 'polite'")
    assert page.locator(".film output").count() == 0  # outputs are spoken as they change


def test_a_person_with_a_keyboard_alone(report, opened):
    page = opened(report.out)
    ready(page)
    shots = report.shots
    for key, shot in (("ArrowDown", 1), ("ArrowDown", 2), ("ArrowUp", 1), ("End", len(shots) - 1), ("Home", 0)):
        page.keyboard.press(key)
        assert page.locator("tr[aria-current]").get_attribute("id") == f"shot{shot}", key
    page.keyboard.press("Shift+ArrowDown")
    assert said(page) == shots.start_frame[report.scenes.first_shot[1]]
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.do || document.activeElement.id || "
                                  "document.activeElement.name || document.activeElement.className"))
    assert {"previous", "play", "next", "sound", "full", "help", "speed", "loop", "goto", "in", "out", "text", "longer",
            "sort", "down", "save", "thumb"} <= reached
    page.locator("#shot2 .thumb").focus()
    page.keyboard.press("Enter")
    assert said(page) == shots.start_frame[2]
    page.keyboard.press("/")
    page.keyboard.type("5")
    assert page.locator("tr.shot:visible").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def listed(page): return [int(row.get_attribute("id")[4:]) for row in page.locator("tr.shot:visible").all()]


def test_shots_are_filtered_and_sorted(report, opened, tmp_path):
    page = opened(report.out)
    shots = report.shots.assign(length=lambda s: s.end - s.start)
    motion = report.motion.assign(camera=lambda m: np.hypot(m.camera_x, m.camera_y)).groupby("shot").camera.mean()
    page.locator("[name=sort]").select_option("length")
    assert listed(page) == shots.sort_values(["length", "shot"], ascending=[False, True]).shot.tolist()
    page.locator("[name=down]").uncheck()
    assert listed(page) == shots.sort_values(["length", "shot"]).shot.tolist()
    page.locator("[name=sort]").select_option("camera")
    page.locator("[name=down]").check()
    assert listed(page) == motion.round(4).sort_values(ascending=False, kind="stable").index.tolist()
    page.locator("[name=longer]").fill(f"{shots.length.median():.3f}")
    long = shots[shots.length >= round(shots.length.median(), 3)].shot.tolist()
    assert sorted(listed(page)) == long
    assert f"({len(long)} of {len(shots)})" in page.locator(".find summary").inner_text()
    page.locator("[name=sort]").select_option("")
    assert listed(page) == long
    page.locator("body").click(position=dict(x=5, y=5))
    for shot in [long[0], long[1]] if long[0] else [long[1], long[2]]:  # keys step through the list
        page.keyboard.press("ArrowDown")
        assert page.locator("tr[aria-current]").get_attribute("id") == f"shot{shot}"
    with page.expect_download() as download: page.locator("[data-do=save]").click()
    table = pd.read_csv(download.value.path())
    assert table.shot.tolist() == long and table.start_frame.tolist() == shots.start_frame[long].tolist()
    page.locator("[type=reset]").click()
    page.wait_for_function(f"document.querySelectorAll('tr.shot:not([hidden])').length == {len(shots)}")
    assert listed(page) == shots.shot.tolist()


def test_the_timeline_is_enlarged(report, opened):
    page = opened(report.out)
    ready(page)
    page.keyboard.press("ArrowDown")
    for _ in range(4): page.keyboard.press("+")
    wide, window = page.evaluate("[track.clientWidth, view.clientWidth]")
    assert wide == pytest.approx(min(16 * window, window * report.info.duration / 2), rel=0.01)
    line, head = page.locator(".timeline").bounding_box(), page.locator(".playhead").bounding_box()
    assert line["x"] <= head["x"] <= line["x"] + line["width"]
    assert page.locator(".thumbs i").count() >= 1
    for _ in range(20): page.keyboard.press("+")
    page.keyboard.press("End")
    page.wait_for_timeout(200)
    strip = page.locator(".timeline").bounding_box()
    label, piece = page.locator(".scenes span").last.bounding_box(), page.locator(".thumbs b").last.bounding_box()
    for box in (label, piece): assert box["x"] < strip["x"] + strip["width"] and box["x"] + box["width"] > strip["x"]
    assert page.locator(".thumbs b").count() < 60
    page.keyboard.press("0")
    assert page.evaluate("track.clientWidth") == window


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1360, 390])
def test_it_fits_its_window_and_its_scheme(report, opened, width, scheme):
    page = opened(report.out, width, color_scheme=scheme)
    ready(page)
    page.keyboard.press("ArrowDown")
    for button in page.locator(".tabs button").all():
        button.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.locator(".tabs button").first.click()
    page.mouse.wheel(0, 400)
    page.wait_for_timeout(200)
    assert page.locator("video").bounding_box()["y"] < 100  # it stays in sight
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor").startswith("rgb(21,")
    assert dark == (scheme == "dark")
    assert page.evaluate("[...document.images].filter(i => i.complete && i.src && !i.naturalWidth).length") == 0


def test_without_scripts_tables_and_links_remain(report, opened):
    page = opened(report.out, java_script_enabled=False)
    assert page.locator("tr.shot:visible").count() == len(report.shots)
    assert page.locator("video").get_attribute("controls") is not None
    for useless in (".transport", ".filters", ".zoom", ".now", ".playhead", ".missing"):
        assert not page.locator(useless).is_visible()
    page.locator(".strip a").nth(5).click()
    assert page.url.endswith("#shot5") and page.locator("#shot5").is_visible()
    assert page.locator("h2", has_text="Files").is_visible() and page.locator("h2", has_text="Motion").is_visible()


def test_a_film_that_is_gone_leaves_key_frames_and_can_be_opened(tmp_path, opened):
    film = shutil.copy(starter, tmp_path / "film.mp4")
    report = analyse(film, tmp_path / "r", parts=["keyframes", "player"])
    elsewhere = shutil.move(film, tmp_path / "elsewhere.mp4")
    page = opened(report.out, complaints=False)  # of the file that is not there
    page.locator(".missing").wait_for()
    page.keyboard.press("ArrowDown")
    assert said(page) == report.shots.start_frame[1]
    assert page.locator(".missing img").get_attribute("src").startswith("keyframes/0001-")
    page.locator(".missing input").set_input_files(elsewhere)
    ready(page)
    assert not page.locator(".missing").is_visible() and said(page) == report.shots.start_frame[1]


def test_names_do_not_run(tmp_path, opened):
    film = tmp_path / "'\"><img src=x onerror=document.title=1>{{7*7}}.mp4"
    shutil.copy(starter, film)
    report = analyse(film, tmp_path / "r", parts=["keyframes", "player"])
    page = opened(report.out)
    ready(page)
    assert page.title() == film.name == page.locator("h1").inner_text() and page.locator("h1 img").count() == 0


def test_three_thousand_shots(tmp_path, opened):
    "Images of the starter film stand for those of 3,000 shots."
    info, count = probe(starter), 3000
    images = []
    for frame in iter_frames(starter, size=160):
        images.append(tmp_path / f"{frame.number}.jpg")
        Image.fromarray(frame.image).save(images[-1])
    starts = np.sort(np.random.default_rng(0).choice(np.arange(1, 172800), count - 1, replace=False))
    starts, stops = np.r_[0, starts], np.r_[starts, 172800]
    shots = pd.DataFrame(dict(
        film="long", shot=np.arange(count), start=starts / 24, end=stops / 24, start_frame=starts, end_frame=stops,
        transition=np.r_[["none"], ["cut"] * (count - 1)]))
    save_sheets([images[n % len(images)] for n in range(count)], tmp_path / "thumbs", thumb_size(info))
    shots = shots.assign(transition_start=shots.start, transition_end=shots.start)
    lengths = dict(shortest=0.1, median=1.0, longest=9.0, transitions=dict(cut=count - 1))
    desk = render_desk(info, shots, lengths=lengths, keys=True)
    (tmp_path / "report.html").write_text(render_page(info, desk), encoding="utf-8")
    Image.new("RGB", (1600, 120)).save(tmp_path / "strip.jpg")
    files = [tmp_path / "report.html", *(tmp_path / "thumbs").iterdir()]
    assert sum(file.stat().st_size for file in files) < 20e6
    page = opened(tmp_path, complaints=False)  # there is no film and no key-frame
    page.locator("[name=sort]").select_option("length")
    page.locator("[name=sort]").select_option("")
    page.keyboard.press("Escape")
    page.evaluate("goTo('shot2999')")
    page.wait_for_function("inView(document.getElementById('shot2999'))")
    assert page.locator("tr[aria-current]").get_attribute("id") == "shot2999"
    drawn = page.evaluate("shots.filter(s => inView(s.row)).length")
    assert 0 < drawn < 30


def test_rows_say_what_the_tables_say():
    shots = pd.DataFrame(dict(shot=[0, 1], start=[0, 2.0], end=[2.0, 3.0], start_frame=[0, 48], end_frame=[48, 72],
                              transition=["none", "fade"]))
    scenes = pd.DataFrame(dict(scene=[0], first_shot=[0], last_shot=[1], start=[0.0], end=[3.0]))
    motion = pd.DataFrame(dict(shot=[0, 0], camera_x=[3.0, 0.0], camera_y=[4.0, 0.0], own=[1.0, 2.0]))
    first, second = shot_rows(shots, FilmClock(24, first=24), scenes, motion)
    assert first["data"] == [0, 0, 0, 48, 0.0, 2.0, "none", 2.5, 1.5, 2] and first["code_out"] == "00:00:03:00"
    assert second["data"] == [1, 0, 48, 72, 2.0, 3.0, "fade", None, None, 2]  # nothing was measured in it
