"The page of a tracked shot as an artist uses it: frame by frame, in a browser, with keys, on a phone, without scripts."
import re, threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from primenb.core import PrimenbError
from primenb.film.page import render_section
from primenb.film.view import camera_rows, error_curves, frame_ticks, outcome_words, place_object
from primenb.film.view import plate_size, render_view, reprojection_errors, save_view, step_path, view_facts
from primenb.media.timelines import FilmClock
from primenb.media.video import iter_frames
from primenb.sfm.geometry import CameraTrack, Tracks, project

BITS, T = 8, 30
SILENT = "GPU stall due to ReadPixels"  # a screenshot is slow; not the page's doing


def numbered(n, size=(320, 180)):
    "An image that says which frame it is: a row of black and white squares above grey."
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    for bit in range(BITS):
        left, right = size[0] * bit // BITS, size[0] * (bit + 1) // BITS
        image[: size[1] // 3, left:right] = 255 * (n >> bit & 1)
    return image


def made(size=(640, 360), status="solved", frames=T, count=60, noise=0.3):
    "A camera that goes sideways before random points, seen with some noise."
    rng = np.random.default_rng(0)
    K = np.array([[size[0], 0, size[0] / 2], [0, size[0], size[1] / 2], [0, 0, 1.0]])
    cameras = np.tile(np.eye(4), (frames, 1, 1))
    cameras[:, 0, 3] = -np.linspace(0, 0.5, frames)
    points = np.c_[rng.uniform(-1, 1.5, count), rng.uniform(-0.8, 0.8, count), rng.uniform(3, 6, count)]
    xy = project(points, cameras[:, None], K)[0]
    track, frame = np.nonzero(((xy >= 0) & (xy < size)).all(-1).T)
    seen = np.clip(xy[frame, track] + rng.normal(0, noise, (len(track), 2)), 0, size)
    tracks = Tracks(frame, np.unique(track, return_inverse=True)[1], seen, frames, size)
    colours, sigma = rng.integers(0, 255, (count, 3)).astype(np.uint8), rng.uniform(0.001, 0.002, (frames, 2))
    kept = np.unique(track)
    status = np.full(frames, status, "U13") if isinstance(status, str) else np.array(status)
    return CameraTrack(size, np.tile(K, (frames, 1, 1)), cameras, status, points[kept], tracks, colours[kept], sigma,
                       np.full(frames, np.nan), 24.0, dict(focal_sigma=0.02), 30)


def partly():
    "A track with interpolated frames, and two without a camera."
    track = made(status=["solved"] * 10 + ["filled"] * 8 + ["missing"] * 2 + ["solved"] * (T - 20))
    track.cam_from_world[18:20] = np.nan
    return track


tracks = dict(solved=made, partly=partly, rotation_only=partial(made, status="rotation_only"),
              static=partial(made, status="static"), missing=partial(made, status="missing"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    "The folder of a report, with a page for each kind of track: name -> folder."
    out = tmp_path_factory.mktemp("report") / "cameras"
    folders = {}
    for name, make in tracks.items():
        track = make()
        if name == "missing": track.cam_from_world[:] = np.nan
        (out / name).mkdir(parents=True)
        track.save(out / name / "track.npz")
        folders[name] = save_view(track, out / name, map(numbered, range(T)), title="Shot 3", film="film.mp4").parent
    return folders


NO_WEBGL = """const get = HTMLCanvasElement.prototype.getContext;
HTMLCanvasElement.prototype.getContext = function(kind, ...how) {
  return kind.startsWith("webgl") ? null : get.call(this, kind, ...how); }"""


@pytest.fixture
def opened(browser):
    "Opens a page, without 3-D unless asked for as it is slow; afterwards it looks for complaints of the browser."
    contexts = []
    def opened(folder, width=1360, address="", complaints=True, webgl=False, **how):
        context = browser.new_context(viewport=dict(width=width, height=800), **how)
        page, found = context.new_page(), []
        if not webgl: page.add_init_script(NO_WEBGL)
        page.on("pageerror", lambda error: found.append(str(error)))
        if complaints: page.on("console", lambda message: found.append(message.text))
        page.goto(address or (folder / "view.html").as_uri())
        contexts.append((context, found))
        return page
    yield opened
    for context, found in contexts:
        context.close()
        assert [text for text in found if SILENT not in text] == []


def ready(page):
    page.wait_for_function("video.readyState >= 2 && !video.seeking && wanted === null")
    page.wait_for_timeout(150)  # until the image has been drawn


def said(page): return int(page.locator(".times span").nth(1).inner_text().split()[1])


def picture(page): return np.asarray(Image.open(BytesIO(page.locator(".plate").screenshot())).convert("RGB"), float)


def seen(page):
    "The frame that is to be seen on the plate."
    image = picture(page).mean(2)
    row, columns = image.shape[0] // 6, [int((bit + 0.5) * image.shape[1] / BITS) for bit in range(BITS)]
    return sum(1 << bit for bit, column in enumerate(columns) if image[row, column] > 128)


def bare(page):
    for box in ("points", "trails", "object"): page.locator(f"#{box}").uncheck()


def test_the_frame_that_is_seen_is_the_frame_that_is_drawn_over(pages, opened):
    page = opened(pages["solved"])
    ready(page)
    bare(page)
    keys = (("Home", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("Shift+ArrowRight", 12), ("ArrowLeft", 11),
            ("End", T - 1), ("ArrowLeft", T - 2), ("Home", 0), ("ArrowLeft", 0))
    for key, frame in keys:
        page.keyboard.press(key)
        ready(page)
        drawn = int(page.locator(".plate").get_attribute("data-frame"))
        assert (said(page) - 30, seen(page), drawn) == (frame,) * 3, key
    for _ in range(7): page.keyboard.press("ArrowRight")  # faster than the player seeks
    ready(page)
    assert (said(page) - 30, seen(page)) == (7, 7)


def test_image_and_overlay_are_of_one_frame_while_it_plays(pages, opened):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words): pass
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=pages["solved"].parent))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        page = opened(None, address=f"http://127.0.0.1:{server.server_port}/solved/view.html", complaints=False)
        ready(page)
        bare(page)
        page.evaluate(f"""() => {{
          window.drawn = [];
          const before = draw;
          window.draw = n => {{
            before(n);
            const row = pen.getImageData(0, canvas.height / 6, canvas.width, 1).data;
            const lit = bit => row[4 * Math.floor((bit + 0.5) * canvas.width / {BITS})] > 128;
            const bits = [...Array({BITS}).keys()].map(bit => lit(bit) ? 1 << bit : 0);
            window.drawn.push([n, bits.reduce((a, b) => a + b)]);
          }};
        }}""")
        page.keyboard.press("k")
        page.wait_for_function("window.drawn.length > 20")
        page.keyboard.press("k")
        drawn = page.evaluate("window.drawn")
    finally: server.shutdown()
    assert len({n for n, _ in drawn}) > 5 and [pair for pair in drawn if pair[0] != pair[1]] == []


@pytest.mark.parametrize("size", [(853, 479), (1920, 1080), (240, 426), (63, 35)])
@pytest.mark.parametrize("width", [1360, 390])
def test_a_point_is_drawn_where_it_was_seen(tmp_path, opened, size, width):
    xy = np.array([[0.3, 0.6]]) * size
    track = made(size, frames=3, count=60, noise=0)
    X = (np.append(xy[0], 1) @ np.linalg.inv(track.K[0]).T * 4)[None]
    tracks = Tracks(np.array([0]), np.array([0]), xy, 3, size)
    track = replace(track, points=X, tracks=tracks, colours=np.zeros((1, 3), np.uint8))
    save_view(track, tmp_path / "0000", np.zeros((3, 50, 80, 3), np.uint8))
    page = opened(tmp_path / "0000", width)
    ready(page)
    page.locator("#object").uncheck()
    image = picture(page)
    dot = np.abs(image - [86, 180, 233]).sum(-1) < 60  # the colour of no error
    assert dot.sum() >= 4
    at = np.argwhere(dot).mean(0)[::-1] + 0.5
    np.testing.assert_allclose(at, xy[0] / size * image.shape[1::-1], atol=1)
    shape = page.evaluate("plate.clientWidth / plate.clientHeight")
    assert shape == pytest.approx(size[0] / size[1], rel=0.01)


@pytest.mark.parametrize("name", ["solved", "partly", "rotation_only"])
def test_the_test_object_is_projected_as_numpy_does(pages, opened, name):
    track = tracks[name]()
    lines, _ = place_object(track)
    page = opened(pages[name])
    frames = np.flatnonzero(track.posed)[::7]
    drawn = np.array(page.evaluate("frames => frames.map(n => shot.status.length && "
                                   "[...Array(lines.length / 6).keys()].map(k => edge(n, k)))", frames.tolist()))
    expected, depth = project(lines, track.cam_from_world[frames, None, None], track.K[frames, None, None])
    assert (depth > 0).all()
    order = np.argsort(-depth, axis=-1, kind="stable")[..., None]  # the farther end comes first
    np.testing.assert_allclose(drawn, np.take_along_axis(expected, order, 2), atol=0.01)


def test_lines_are_cut_off_at_the_camera(pages, opened):
    page = opened(pages["solved"])
    ends = page.evaluate("lines.set([0, 0, 2, 0.5, 0, -2]), edge(0, 0)")
    x, z = 0.25 - 0.25 * 1e-4 / 2, 1e-4
    np.testing.assert_allclose(ends[0], [320, 180], atol=1e-3)
    np.testing.assert_allclose(ends[1], [640 * x / z + 320, 180], rtol=1e-3)
    assert page.evaluate("lines.set([0, 0, -1, 1, 0, -2]), edge(0, 0)") is None


def test_errors_of_the_page_are_those_of_the_library(pages, opened):
    page = opened(pages["solved"])
    found = page.evaluate("Array.from(frameOf, (_, i) => errorOf(i))")
    np.testing.assert_allclose(found, reprojection_errors(made()), atol=0.01)
    median, most = error_curves(made()).T
    ready(page)
    page.keyboard.press("ArrowRight")
    ready(page)
    shown = [float(value.inner_text()) for value in page.locator("[data-of]").all()]
    sigma = made().sigma[1]
    np.testing.assert_allclose(shown, [median[1], most[1], sigma[0], np.degrees(sigma[1])], rtol=5e-3)


WORDS = dict(solved=["path is solved", "All 30 frames"], partly=["solved in part", "20 of 30", "8 inter", "2 without"],
             rotation_only=["turns on the spot"], static=["does not move"], missing=["0 of 30", "30 without a camera"])


@pytest.mark.parametrize("name", tracks)
def test_every_outcome_says_what_it_is(pages, opened, name):
    page = opened(pages[name], webgl=True)
    ready(page)
    page.keyboard.press("End")
    ready(page)
    assert said(page) == 59
    text = page.locator(".outcome").inner_text()
    assert [word for word in WORDS[name] if word not in text] == []
    assert page.locator(".world > canvas").count() == (name in ("solved", "partly", "rotation_only"))
    if name == "static": assert "There is none: the camera does not move" in page.locator(".space").inner_text()
    if name == "rotation_only": assert "The path is one place" in page.locator(".space").inner_text()
    if name == "missing": assert "No frame has a camera" in page.locator(".world").inner_text()
    legend = page.locator(".legend").inner_text() if page.locator(".legend").count() else ""
    assert ("interpolated" in legend, "no camera" in legend) == (name == "partly", name in ("partly", "missing"))
    assert page.locator(".rest a").get_attribute("href") == "track.npz"


def test_frames_without_a_camera_say_so(pages, opened):
    page = opened(pages["partly"])
    ready(page)
    for frame, words in ((45, "interpolated"), (49, "no camera"), (35, "")):
        page.locator("#goto").fill(str(frame))
        page.keyboard.press("Enter")
        ready(page)
        message = page.locator(".plate .message")
        assert said(page) == frame and message.is_visible() == bool(words)
        if words: assert message.inner_text() == words


def test_an_artist_with_a_keyboard_alone(pages, opened):
    page = opened(pages["solved"], webgl=True)
    ready(page)
    reached = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.dataset.do || document.activeElement.id || "
                                  "document.activeElement.className || document.activeElement.tagName"))
    assert {"begin", "back", "play", "forward", "end", "full", "help", "speed", "loop", "goto", "points", "trails",
            "object", "world", "all", "path", "above", "camera", "SUMMARY"} <= reached
    page.evaluate("document.activeElement.blur()")
    for key, box in (("p", "points"), ("t", "trails"), ("o", "object"), ("l", "loop")):
        page.keyboard.press(key)
        assert not page.locator(f"#{box}").is_checked()
    assert not page.evaluate("video.loop")
    page.keyboard.press(" ")
    page.wait_for_function("video.ended")
    ready(page)
    assert said(page) == 30 + T - 1
    page.keyboard.press("g")
    page.keyboard.type("41")
    page.keyboard.press("Enter")
    ready(page)
    assert said(page) == 41
    for wrong in ("29", "60", "soon"):
        page.locator("#goto").fill(wrong)
        page.keyboard.press("Enter")
        assert page.locator("#goto").get_attribute("aria-invalid") == "true" and said(page) == 41
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.locator("dialog").is_visible()
    page.keyboard.press("Escape")
    assert not page.locator("dialog").is_visible()


def test_the_view_is_turned_by_keys_and_by_mouse_and_the_film_stays(pages, opened):
    page = opened(pages["solved"], webgl=True)
    ready(page)
    def view():
        page.wait_for_timeout(200)
        return np.asarray(Image.open(BytesIO(page.locator(".world").screenshot())).convert("L"), float)[3:-3, 3:-3]
    page.locator(".world").focus()
    looks = [view()]
    for key in ("ArrowLeft", "ArrowUp", "+"):
        page.keyboard.press(key)
        looks.append(view())
    box = page.locator(".world").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 130, steps=4)
    page.mouse.up()
    looks.append(view())
    for action in ("path", "above", "camera", "all"):
        page.locator(f"[data-do={action}]").click()
        looks.append(view())
    assert [n for n, (a, b) in enumerate(zip(looks, looks[1:])) if (np.abs(a - b) > 20).sum() < 30] == []
    assert said(page) == 30


def test_a_click_on_a_curve_is_a_frame(pages, opened):
    page = opened(pages["solved"])
    ready(page)
    bare(page)
    for frame in (20, 3):
        page.locator(".box").nth(1).scroll_into_view_if_needed()
        box = page.locator(".box").nth(1).bounding_box()
        page.mouse.click(box["x"] + (frame + 0.5) / T * box["width"], box["y"] + 20)
        ready(page)
        head = page.locator(".head").first.bounding_box()
        assert said(page) == 30 + frame and seen(page) == frame
        assert head["x"] + head["width"] / 2 == pytest.approx(box["x"] + (frame + 0.5) / T * box["width"], abs=1.5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1360, 390])
@pytest.mark.parametrize("name", ["partly", "static"])
def test_it_fits_its_window_and_its_scheme(pages, opened, name, width, scheme):
    page = opened(pages[name], width, color_scheme=scheme)
    ready(page)
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor").startswith("rgb(21,")
    assert dark == (scheme == "dark")


def test_without_scripts_plate_curves_and_table_remain(pages, opened):
    page = opened(pages["partly"], java_script_enabled=False)
    assert "need JavaScript" in page.locator("body").inner_text()
    assert page.locator("video").is_visible() and page.locator("video").get_attribute("controls") is not None
    assert page.locator(".curve svg").count() == 3 and page.locator(".curve svg").first.is_visible()
    for useless in (".transport", ".layers", ".plate canvas", ".world", ".views", ".head"):
        assert not page.locator(useless).first.is_visible()
    page.locator("summary").click()
    assert page.locator("table.frames tbody tr:visible").count() == 20


def test_where_nothing_can_be_drawn_in_3d_the_still_image_is_shown(tmp_path, opened):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (90, 60), "red").save(tmp_path / "a/scene.jpg")
    save_view(made(), tmp_path / "a", map(numbered, range(T)))
    page = opened(tmp_path / "a")
    ready(page)
    assert "WebGL" in page.locator(".world").inner_text() and page.locator(".still img").is_visible()
    (tmp_path / "three.min.js").unlink()
    page = opened(tmp_path / "a", complaints=False, webgl=True)
    ready(page)
    assert "three.min.js is not" in page.locator(".world").inner_text() and page.locator(".still img").is_visible()
    page.keyboard.press("ArrowRight")
    ready(page)
    assert said(page) == 31
    (tmp_path / "a/plate.mp4").unlink()
    page = opened(tmp_path / "a", complaints=False)
    page.locator(".stage .notes").wait_for()
    page.keyboard.press("ArrowRight")
    assert said(page) == 31  # points and object are still drawn


def test_names_do_not_run(tmp_path, opened):
    name = "</title><script>document.title=1</script>\"><img src=x onerror=document.title=2>{{7*7}}"
    save_view(made(), tmp_path / "a", map(numbered, range(T)), title=name, film=name)
    page = opened(tmp_path / "a")
    ready(page)
    assert page.title() == f"{name} of {name}" and page.locator("h1").inner_text() == f"{name} of {name}"
    assert page.locator("h1 img").count() == 0


def test_frames_are_counted_as_the_film_counts_them(tmp_path, opened):
    track = replace(made(), start=1799, rate=30000 / 1001)
    clock = FilmClock(30000 / 1001, 0, True)
    save_view(track, tmp_path / "a", map(numbered, range(T)), clock=clock)
    page = opened(tmp_path / "a")
    ready(page)
    page.keyboard.press("ArrowRight")
    ready(page)
    words = page.locator(".times").inner_text().split()
    assert words == ["00:01:00;02", f"{1800 * 1001 / 30000:.3f}", "s", "frame", "1800"]


def test_images_that_do_not_fit_leave_no_page(tmp_path):
    for count in (T - 1, T + 1, 0):
        with pytest.raises(PrimenbError): save_view(made(), tmp_path / "a", map(numbered, range(count)))
    assert list((tmp_path / "a").iterdir()) == []


def test_the_3d_library_is_written_once_with_its_licence(pages):
    three = pages["solved"].parent / "three.min.js"
    text = three.read_text(encoding="utf-8")
    assert "The MIT License" in text[:100] and "THREE.OrbitControls" in text
    before = three.stat().st_mtime_ns
    save_view(made(), pages["solved"], map(numbered, range(T)))
    assert three.stat().st_mtime_ns == before


@given(st.integers(2, 5000), st.integers(2, 5000))
@settings(max_examples=40, deadline=None)
def test_a_plate_has_even_sides_and_the_shape_of_its_film(width, height):
    w, h = plate_size((width, height))
    by = min(1, 640 / width)
    assert w % 2 == h % 2 == 0 and w <= 640 and abs(w - by * width) <= 1 and abs(h - by * height) <= 2


def test_the_plate_is_every_frame_in_order(pages):
    images = [frame.image for frame in iter_frames(pages["solved"] / "plate.mp4")]
    bits = np.array([[image[40, 80 * bit + 40].mean() > 128 for bit in range(BITS)] for image in images])
    assert (bits @ (1 << np.arange(BITS))).tolist() == list(range(T))


@given(st.lists(st.one_of(st.none(), st.floats(0, 10)), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_a_curve_read_back_has_its_values_and_its_gaps(values):
    drawn = step_path(np.array([np.nan if v is None else v for v in values], float), 10)
    read, x, y = [None] * len(values), 0.0, 0.0
    for letter, numbers in re.findall(r"([MVH])([^MVH]*)", drawn):
        at = [float(n) for n in numbers.split()]
        if letter == "M": x, y = at
        if letter == "V": y = at[0]
        if letter == "H":
            read[round(x / 1000 * len(values))] = (100 - y) / 10
            assert at[0] - x == pytest.approx(1000 / len(values), abs=0.02)
            x = at[0]
    assert [v is None for v in read] == [v is None for v in values]
    np.testing.assert_allclose([v for v in read if v is not None], [v for v in values if v is not None], atol=0.006)


@given(st.integers(0, 10**6), st.integers(1, 1000))
@settings(max_examples=60, deadline=None)
def test_ticks_stand_below_their_frames(first, count):
    ticks = frame_ticks(first, count)
    assert len(ticks) <= 7
    for n, at in ticks:
        assert first <= n < first + count
        assert at * count == pytest.approx(n - first + 0.5)


def test_the_focal_length_says_where_it_comes_from():
    track = made()
    assert view_facts(track)["focal length"] == "36.0 mm on 36 mm" and view_facts(track)["lens"] == "found, ±2 %"
    assert "does not determine" in view_facts(replace(track, facts=dict(focal_sigma=0.4)))["lens"]
    assert view_facts(replace(track, facts={}))["lens"] == "given"
    zoom = track.K.copy()
    zoom[-1, 0, 0] *= 2
    assert view_facts(replace(track, K=zoom))["focal length"] == "36.0 to 72.0 mm on 36 mm"


def test_a_track_without_points_has_a_page():
    track = made()
    none = Tracks(*(np.zeros(0, int),) * 2, np.zeros((0, 2)), T, track.size)
    colours = np.zeros((0, 3), np.uint8)
    empty = replace(track, points=np.zeros((0, 3)), colours=colours, tracks=none, sigma=0 * track.sigma)
    text = render_view(empty)
    assert "neither a reprojection error" in text and "before the camera" in text and "All 30" in outcome_words(empty)


def test_refused_shots_say_why_and_what_would_help(tmp_path):
    table = pd.DataFrame([
        dict(shot=0, status="solved", frames=30, filled=3, points=60, error=0.3, focal=640.0, focal_found=True),
        dict(shot=1, status="refused", reason="most of it <moves>", remedy="mask what moves", time=62.5),
        dict(shot=2, status="failed", reason="MemoryError: ")])
    (tmp_path / "cameras/0000").mkdir(parents=True)
    for name in ("view.html", "track.npz"): (tmp_path / "cameras/0000" / name).touch()
    text = render_section("cameras", counts="", rows=camera_rows(table, tmp_path, 640))
    table.to_csv(tmp_path / "cameras.csv", index=False)
    as_text = pd.read_csv(tmp_path / "cameras.csv", keep_default_na=False)
    assert render_section("cameras", counts="", rows=camera_rows(as_text, tmp_path, 640)) == text
    for words in ("36.0 mm on 36 mm, 640 px", "10 % of them interpolated", 'href="cameras/0000/view.html"', "at 1:02.5",
                  "most of it &lt;moves&gt;", "What would help: mask what moves", "MemoryError",
                  'href="cameras/0000/track.npz"'):
        assert words in text, words
    assert [text.count(f'data-of-shot="{n}"') for n in range(3)] == [1, 1, 1] and text.count("What would help") == 1
