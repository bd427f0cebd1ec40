"The cameras of a film: in film pixels, for every frame, in step with the plate; one bad shot is a row like the others."

import json, os, re, signal, subprocess, sys, time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from conftest import project
from primenb.cli import main
from primenb.core import PrimenbError
from primenb.data.corpus import tracking_shots
from primenb.film import cameras
from primenb.film.analyse import analyse
from primenb.film.cameras import CAMERA_COLUMNS, CameraSettings, check_cameras, lens_from, lens_of, open_footage
from primenb.film.cameras import camera_row, describe_track
from primenb.film.cameras import read_masks, read_start, save_shot_cameras, scale_tracks, track_shot
from primenb.film.cameras import track_shots, working_size
from primenb.media.shots import detect_shots
from primenb.media.video import encode, iter_frames, probe, read_frames
from primenb.sfm.export import load_camera_track, load_colmap, undistort_images
from primenb.sfm.geometry import CameraTrack, Lens, Tracks, inverse, umeyama
from primenb.sfm.lenses import Look, seen_through
from primenb.sfm.mapper import track_camera

GREY = np.full((180, 320, 3), 90, np.uint8)


@pytest.fixture(scope="module")
def drawn():
    "A hand-held shot of the corpus, (32,180,320,3)."
    return next(s for s in tracking_shots() if s.key == "track_12").frames(size=(320, 180))


def fitted(images, width, height):
    "The middle of images, enlarged to a size so that pixels stay square."
    (h, w), by = images.shape[1:3], max(width / images.shape[2], height / images.shape[1])
    move = np.array([[by, 0, (width - by * w) / 2], [0, by, (height - by * h) / 2]])
    return [cv2.warpAffine(image, move, (width, height), flags=cv2.INTER_CUBIC) for image in images]


def there_and_back(images, frames): return [images[31 - abs(n % 62 - 31)] for n in range(frames)]


@pytest.fixture(scope="module")
def film(tmp_path_factory, drawn):
    "A grey shot, a shot with a camera, and another grey one."
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return encode(path, [*[GREY] * 24, *drawn[:24], *[255 - GREY] * 24], 24, crf=12)


def table(report): return pd.read_csv(report.out / "cameras.csv")


# ---- row 1: one geometry


@pytest.mark.parametrize("size", [(854, 480), (1366, 768), (1080, 1920), (998, 420)])
def test_pixels_of_all_sizes_are_square(tmp_path, drawn, size):
    path = encode(tmp_path / "film.mp4", fitted(drawn[:8], *size), 24, preset="ultrafast")
    out = tmp_path / "shot"
    track = track_shot(path)
    assert save_shot_cameras(track, out, open_footage(path), plate="none") == {}
    assert track.size == size and (track.K[:, 0, 0] == track.K[:, 1, 1]).all()
    assert (track.K[:, :2, 2] == np.array(size) / 2).all()
    assert {f.name for f in out.iterdir()} >= {"track.npz", "scene.usda", "camera.chan", "camera.py", "colmap"}
    assert load_camera_track(out / "track.npz").size == size


@given(st.integers(1, 9000), st.integers(1, 9000))
@settings(deadline=None)
def test_a_working_size_is_small_and_of_nearly_the_same_shape(width, height):
    w, h = working_size((width, height))
    assert 2 <= w <= 640 and h >= 2
    if width >= 2 and height >= 2: assert abs(h - height * w / width) <= 1.51 * max(1, height / width)


@given(st.integers(2, 4000), st.integers(2, 4000), st.integers(2, 640), st.integers(2, 640))
def test_tracks_keep_their_place_in_the_image(width, height, w, h):
    corners = np.array([[0, 0], [w, h], [w / 2, h / 2]], float)
    tracks = Tracks(np.zeros(3, int), np.arange(3), corners, 1, (w, h))
    large = scale_tracks(tracks, (width, height))
    assert np.allclose(large.xy, [[0, 0], [width, height], [width / 2, height / 2]]) and large.size == (width, height)
    assert np.allclose(scale_tracks(large, (w, h)).xy, corners)


def test_a_film_small_enough_is_tracked_as_the_library_does_it(drawn, tmp_path):
    path = encode(tmp_path / "film.mp4", drawn, 24, crf=12)
    ours, theirs = track_shot(path), track_camera(path)
    assert np.allclose(ours.cam_from_world, theirs.cam_from_world) and np.allclose(ours.K, theirs.K)
    assert (ours.colours == theirs.colours).all() and ours.rate == theirs.rate == 24


# ---- row 9: pixels that are not square in the file


def test_pal_is_what_it_is_shown_as(tmp_path, drawn):
    "720x576 with pixels of 64:45 is shown, tracked and exported as 1024x576."
    path, images = tmp_path / "pal.mp4", fitted(drawn[:12], 1024, 576)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 720, 576, "yuv420p"
        stream.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio = Fraction(64, 45)
        for image in images:
            small = cv2.resize(image, (720, 576), interpolation=cv2.INTER_AREA)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(small, "rgb24")))
        out.mux(stream.encode())
    assert (probe(path).width, probe(path).height) == (1024, 576)
    track = track_shot(path, settings=CameraSettings(focal=35))
    save_shot_cameras(track, tmp_path / "shot", open_footage(path))
    assert track.size == (1024, 576) and np.allclose(track.K[:, [0, 1], [0, 1]], 35 / 36 * 1024)
    plates = sorted((tmp_path / "shot/colmap/images").iterdir())
    assert [cv2.imread(str(p)).shape for p in plates] == [(576, 1024, 3)] * 12


# ---- row 2: one bad shot


def test_shots_that_fail_in_any_way_are_rows(film, tmp_path, monkeypatch):
    "The first is refused, the second cannot be solved by a mistake of ours, the third is refused again."
    def fails(*arguments, **how): raise IndexError("out of <bounds>")
    monkeypatch.setattr(cameras, "coloured", fails)
    with pytest.warns(UserWarning, match="shot 1 failed: IndexError: out of <bounds>"):
        report = analyse(film, tmp_path / "r", parts=["cameras"])
    found = table(report)
    assert list(found.columns) == CAMERA_COLUMNS and found.status.tolist() == ["refused", "failed", "refused"]
    assert found.reason[1] == "IndexError: out of <bounds>" and "please report" in found.remedy[1]
    assert "texture" in found.reason[0] and "choose a shot with more texture" in found.remedy[0]
    assert found.first_frame.tolist() == [0, 24, 48] and found.time.tolist() == [0, 1, 2]
    page = (report.out / "report.html").read_text()
    assert "out of &lt;bounds&gt;" in page and "choose a shot with more texture" in page
    assert report.done["cameras"]["failed"] == 1 and not (report.out / "cameras/0001").exists()


def test_the_others_are_solved(film, tmp_path):
    report = analyse(film, tmp_path / "r", parts=["cameras"])
    found = table(report)
    assert found.status.tolist() == ["refused", "solved", "refused"] and report.problems == []
    row, track = found.iloc[1], report.camera_track(1)
    assert (row.frames, row.solved, row.filled, row.missing) == (24, 24, 0, 0) and track.start == 24
    assert row.focal == pytest.approx(track.K[0, 0, 0], abs=1e-4) and row.lens in ("found", "guessed")
    assert row.focal_mm == pytest.approx(row.focal / 320 * 36, abs=1e-4) and row.focal_found == (row.lens == "found")
    page = (report.out / "report.html").read_text()
    assert "No camera for shots 0, 2: " in page and "1 solved, 2 refused" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bikes.mp4", "bbb_60s.mp4"])
def test_every_shot_of_a_real_clip_has_a_row(real, tmp_path, name):
    report = analyse(real / "film_clips" / name, tmp_path / "r", parts=["cameras"], plate="none", jobs=2)
    found = table(report)
    assert found.shot.tolist() == report.shots.shot.tolist() and not (found.status == "failed").any()
    assert found.status.isin(["solved", "rotation_only", "static"]).any() and (report.out / "report.html").exists()
    assert not (found.reason.isna() | found.remedy.isna())[found.status == "refused"].any()


# ---- row 3: numbers of frames


def numbers_in(folder):
    "File -> the number that it gives the first frame."
    from pxr import Usd
    stage = Usd.Stage.Open(str(folder / "scene.usda"))
    script = (folder / "camera.py").read_text()
    return dict(
        usd=int(stage.GetStartTimeCode()),
        chan=int((folder / "camera.chan").read_text().split()[0]),
        blender=json.loads(re.search(r"^frames = (.*)$", script, re.M)[1])[0],
    )


@pytest.mark.parametrize("first, number", [(None, 1), ("film", 24), ("1001", 1001)])
def test_the_second_shot_is_counted_as_it_was_asked_for(film, tmp_path, first, number):
    report = analyse(film, tmp_path / "r", parts=["cameras"], first_frame=first)
    folder = report.out / "cameras/0001"
    assert set(numbers_in(folder).values()) == {number}
    plates = sorted(p.name for p in (folder / "colmap/images").iterdir())
    assert plates == [f"frame_{n:06d}.jpg" for n in range(24, 48)]
    with pytest.raises(PrimenbError, match="other settings"):
        analyse(film, report.out, parts=["cameras"], first_frame="7")


def test_the_plate_is_the_film(film, tmp_path):
    report = analyse(film, tmp_path / "r", parts=["cameras"], plate="png")
    images = read_frames(film, frames=(24, 48))
    plates = sorted((report.out / "cameras/0001/colmap/images").iterdir())
    assert all((cv2.imread(str(p))[..., ::-1] == image).all() for p, image in zip(plates, images, strict=True))
    assert report.done["cameras"]["plate_bytes"] == sum(p.stat().st_size for p in plates)


# ---- row 4: every frame has a camera


@pytest.mark.parametrize("frames", [320, pytest.param(700, marks=pytest.mark.slow)])
def test_a_long_shot_has_a_camera_for_every_frame(tmp_path, drawn, frames):
    small = [cv2.resize(image, (160, 90), interpolation=cv2.INTER_AREA) for image in drawn]
    path = encode(tmp_path / "long.mp4", there_and_back(small, frames), 25, crf=12)
    track = track_shot(path)
    assert len(track.K) == len(track.cam_from_world) == frames and track.rate == 25 and track.posed.all()
    save_shot_cameras(track, tmp_path / "shot", open_footage(path), plate="none")
    lines = (tmp_path / "shot/camera.chan").read_text().splitlines()
    assert [int(line.split()[0]) for line in lines] == list(range(1, frames + 1))


def test_frames_that_cannot_be_decoded_lie_between_their_neighbours(film, monkeypatch):
    whole = iter_frames
    lost = {30, 31}
    monkeypatch.setattr(cameras, "iter_frames", lambda *a, **k: (f for f in whole(*a, **k) if f.number not in lost))
    track = track_shot(open_footage(film, damaged="skip"), (24, 48))
    assert len(track.K) == 24 and track.posed.all()
    assert set(np.flatnonzero(track.status == "filled")) == {6, 7}
    assert not np.isin(track.tracks.frame, [6, 7]).any() and track.colours.std() > 5


# ---- what is known of a shot


def test_a_lens_that_is_given_is_kept(film, tmp_path):
    report = analyse(film, tmp_path / "r", parts=["cameras"], focal=50, sensor=23.5)
    row, track = table(report).iloc[1], report.camera_track(1)
    assert np.allclose(track.K[:, [0, 1], [0, 1]], 50 / 23.5 * 320) and (track.K[:, :2, 2] == (160, 90)).all()
    assert row.lens == "given" and row.focal_mm == pytest.approx(50) and not row.focal_found
    for wrong in (dict(focal=0), dict(focal=float("nan")), dict(focal=50, sensor=-1)):
        with pytest.raises(PrimenbError, match="no length in millimetres"):
            analyse(film, tmp_path / "never", parts=["cameras"], **wrong)
    assert not (tmp_path / "never").exists()


@given(st.floats(1, 300), st.floats(1, 100), st.tuples(st.integers(16, 8000), st.integers(16, 8000)))
def test_a_lens_sees_as_far_as_its_sensor(focal, sensor, size):
    K = lens_of(focal, size, sensor)
    left = np.linalg.solve(K, [0, size[1] / 2, 1])
    assert left[0] == pytest.approx(-sensor / 2 / focal) and K[0, 0] == K[1, 1]


def masks_for(folder, numbers, shape=(180, 320), **white):
    folder.mkdir()
    for n in numbers:
        mask = np.zeros(shape, np.uint8)
        mask[:, : white.get("columns", 100)] = 255
        cv2.imwrite(str(folder / f"mask.{n:04d}.png"), mask)
    return folder


def test_what_is_white_is_left_out(film, tmp_path):
    masks = masks_for(tmp_path / "masks", range(72))
    track = track_shot(film, (24, 48), CameraSettings(mask=str(masks)))
    assert len(track.points) and track.tracks.xy[:, 0].min() >= 99
    (masks / "mask.0030.png").unlink()
    report = analyse(film, tmp_path / "r", parts=["cameras"], mask=masks)
    assert "there is no mask for frame 30" in table(report).reason[1]
    with pytest.raises(PrimenbError, match="mask.0000.png: it is 180x320, which is another shape"):
        read_masks(masks_for(tmp_path / "tall", [0], (320, 180)), [0], (320, 180))


def test_a_mask_belongs_to_the_frame_of_its_number(tmp_path):
    masks = masks_for(tmp_path / "masks", range(72), columns=0)
    white = np.full((180, 320), 255, np.uint8)
    for n in range(36, 72): cv2.imwrite(str(masks / f"mask.{n:04d}.png"), white)
    assert read_masks(masks, range(24, 48), (160, 90)).all((1, 2)).tolist() == [False] * 12 + [True] * 12


@pytest.mark.parametrize("what", ["mask", pytest.param("depth", marks=pytest.mark.slow)])  # loads PyTorch
def test_what_no_shot_could_use_ends_before_the_first(film, tmp_path, capsys, what):
    "Row 12: a folder or a network that is not there; nothing is recorded as done, and the next try begins anew."
    out = tmp_path / "r"
    words = ["analyse", str(film), "-o", str(out), "--parts", "cameras", f"--{what}", str(tmp_path / "missing/model")]
    assert main([*words, "--quiet"]) == 1
    printed, said = capsys.readouterr()
    assert printed == "" and len(said.splitlines()) == 1 and "missing/model" in said and not out.exists()


def test_a_network_that_was_used_is_not_needed_for_what_is_done(film, tmp_path, monkeypatch):
    report = analyse(film, tmp_path / "r", parts=["cameras"])
    monkeypatch.setattr(cameras, "check_cameras", lambda settings: pytest.fail("it is done"))
    analyse(film, report.out, parts=["cameras"])


# ---- row 13: stopped, and several at a time


def files_of(out):
    names = ("cameras.csv", "cameras/*/track.npz", "cameras/*/camera.chan", "cameras/*/scene.usda")
    found = sorted(path for name in names for path in out.glob(name))
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def several(tmp_path_factory, drawn):
    "Four shots, three of them with a camera, and its report."
    path = tmp_path_factory.mktemp("several") / "film.mp4"
    images = [*drawn[:16], *[GREY] * 16, *(255 - drawn[:16]), *drawn[16:, :, ::-1]]
    encode(path, images, 24, crf=12)
    return path, analyse(path, path.parent / "report", parts=["cameras"], plate="none")


def arrays(out):
    "What the tracks hold, apart from how long they took."
    tracks = [load_camera_track(path) for path in sorted(out.glob("cameras/*/track.npz"))]
    return [(t.start, t.K.tolist(), t.cam_from_world.tolist(), t.points.tolist()) for t in tracks]


@pytest.mark.parametrize("jobs, stop", [(1, signal.SIGINT), (2, signal.SIGINT), (1, signal.SIGTERM)])
def test_stopped_after_a_shot_it_goes_on_with_the_next(several, tmp_path, jobs, stop):
    path, whole = several
    out = tmp_path / "r"
    words = ["analyse", path, "-o", out, "--parts", "cameras", "--plate", "none", "--jobs", jobs]
    command = [sys.executable, "-m", "primenb.cli", *map(str, words)]
    listen = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(project)}, **how)
    until = time.monotonic() + 600
    while not (kept := list(out.glob("partial/cameras/*.json"))) and time.monotonic() < until: time.sleep(0.02)
    process.send_signal(stop)
    said = process.communicate(timeout=300)[1]
    assert kept and process.returncode == 128 + stop
    assert said.splitlines()[-1] == "primenb: stopped; the same command continues"
    if jobs == 1: assert "***" not in said  # the trace of a library that takes SIGTERM for itself
    assert not (out / "cameras.csv").exists() and not list(out.rglob(".*.npz"))
    before = {f: f.stat().st_mtime_ns for f in out.glob("partial/cameras/*.json")}
    finished = [out / "cameras" / row.stem / "track.npz" for row in before]
    tracks = {f: f.stat().st_mtime_ns for f in finished if f.exists()}
    report = analyse(path, out, parts=["cameras"], plate="none")
    assert 1 <= len(before) < 4 and {f: f.stat().st_mtime_ns for f in tracks} == tracks
    assert (out / "cameras.csv").read_bytes() == (whole.out / "cameras.csv").read_bytes()
    assert arrays(out) == arrays(whole.out) and not (out / "partial").exists() and report.problems == []


def test_two_at_a_time_are_as_one(several, tmp_path):
    path, whole = several
    report = analyse(path, tmp_path / "r", parts=["cameras"], plate="none", jobs=2)
    assert (report.out / "cameras.csv").read_bytes() == (whole.out / "cameras.csv").read_bytes()
    assert arrays(report.out) == arrays(whole.out)
    assert table(report).status.tolist() == ["solved", "refused", "solved", "solved"]


def test_a_process_that_is_killed_fails_its_shot_alone(several, tmp_path, monkeypatch):
    path, whole = several
    (tmp_path / "killed_shot.py").write_text(
        "import os, signal\nfrom primenb.film import cameras\nreal = cameras._job\n"
        "def job(footage, shot, *rest):\n"
        "    if shot['shot'] == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(footage, shot, *rest)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import killed_shot
    monkeypatch.setattr(cameras, "_job", killed_shot.job)
    shots = detect_shots(path)
    rows = track_shots(open_footage(path), shots, tmp_path / "c", tmp_path / "k", CameraSettings(plate="none"), 2)
    assert [row["status"] for row in rows] == ["solved", "refused", "failed", "solved"]
    assert "killed" in rows[2]["reason"] and rows[2]["first_frame"] == shots.start_frame[2]


# ---- a lens that bends lines


def through(lens, zoom=1.0, T=4, size=(96, 54)):
    "A small track through a lens, and the images of its film."
    rng = np.random.default_rng(0)
    K = np.tile(lens_of(30, size), (T, 1, 1))
    K[:, [0, 1], [0, 1]] *= np.linspace(1, zoom, T)[:, None]
    A = np.tile(np.eye(4), (T, 1, 1))
    A[:, 0, 3] = np.linspace(0, 0.5, T)
    points = rng.uniform((-2, -1, 4), (2, 1, 8), (40, 3))
    facts = dict(lens="found", sigma_px=0.3, focal_sigma=0.01, depth="", sensor=36.0)
    none = Tracks(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)), T, size)
    grey = np.full((40, 3), 99, np.uint8)
    track = CameraTrack(size, K, A, np.full(T, "solved", "U13"), points, none, grey, np.zeros((T, 2)), np.ones(T),
                        facts=facts, lens=lens)
    frame, point = np.tile(np.arange(T), 40), np.repeat(np.arange(40), T)
    xy = track.pixels(points[point], frame)[0]
    images = rng.integers(0, 255, (T, size[1], size[0], 3)).astype(np.uint8)
    return replace(track, tracks=replace(none, frame=frame, track=point, xy=xy)), images


def written(tmp_path, track, images, plate="png"):
    footage = open_footage(images_in(tmp_path / "frames", images))
    track = replace(track, start=1001)
    return track, tmp_path / "shot", save_shot_cameras(track, tmp_path / "shot", footage, plate=plate)


def test_files_of_a_bent_film_are_for_the_straight_plate(tmp_path):
    track, folder, lost = written(tmp_path, *through(Lens(k=(-0.1, 0.02))))
    assert lost == {} and load_camera_track(folder / "track.npz").lens == track.lens
    straight = [*undistort_images(track, through(track.lens)[1])]
    for n, image in enumerate(straight):
        stored = cv2.imread(str(folder / f"colmap/images/frame_{1001 + n:06d}.png"))[..., ::-1]
        assert (stored == image).all()
    model = load_colmap(folder / "colmap")
    assert model.lens == Lens() and np.allclose(model.tracks.xy, track.undistorted().tracks.xy)
    assert json.loads((folder / "colmap/transforms.json").read_text())["camera_model"] == "PINHOLE"
    assert sorted(p.name for p in (folder / "stmap").iterdir()) == ["redistort.exr", "undistort.exr"]
    assert f'"{folder}/stmap/undistort.exr"' in (folder / "camera.nk").read_text()
    script = (folder / "camera.py").read_text()
    assert "use_render_undistorted = True" in script and "plate.1001.png" in script
    played = [frame.image for frame in iter_frames(folder / "plate.mp4")]
    soft = lambda image: cv2.GaussianBlur(np.float32(image), (0, 0), 4)
    near, film = (np.abs(soft(played[0]) - soft(one)).mean() for one in (straight[0], through(Lens())[1][0]))
    assert near < film
    assert "undone in the plate" in (folder / "view.html").read_text()


@pytest.mark.parametrize("kind, plate", [("fisheye", "png"), ("zoom", "png"), ("fisheye", "none")])
def test_a_lens_that_blender_cannot_hold(tmp_path, kind, plate):
    track, images = through(Lens("fisheye", k=(0.02,))) if kind == "fisheye" else through(Lens(k=(-0.1,)), 1.2)
    track, folder, lost = written(tmp_path, track, images, plate)
    if plate == "none":
        assert list(lost) == ["camera.py"] and "fisheye" in lost["camera.py"] and not (folder / "camera.py").exists()
        return
    script, nuke = (folder / "camera.py").read_text(), (folder / "camera.nk").read_text()
    assert lost == {} and "the undistorted one" in script and "frame_001001.png" in script
    assert ("STMap {" in nuke) == (folder / "stmap").exists() == (kind == "fisheye")
    if kind == "zoom": assert "frame_%06d.png" in nuke and "first 1001" in nuke


def test_a_row_says_how_lines_are_bent(tmp_path):
    bent, plain = through(Lens(k=(-0.1,)))[0], through(Lens())[0]
    row = camera_row(bent)
    assert (row["k1"], row["k2"]) == (-0.1, 0) and {"k1", "k2"} < set(CAMERA_COLUMNS)
    pd.DataFrame([camera_row(plain), row]).to_csv(tmp_path / "a.csv")
    found = pd.read_csv(tmp_path / "a.csv")
    assert found.k1.isna().tolist() == [True, False]
    assert "k1 -0.100" in describe_track(bent) and "bends" not in describe_track(plain)


def test_a_pinhole_has_no_files_of_a_lens(tmp_path):
    _, folder, lost = written(tmp_path, *through(Lens()))
    assert lost == {} and not (folder / "stmap").exists() and "STMap" not in (folder / "camera.nk").read_text()
    for file in ("camera.py", "view.html"): assert not re.search("undistort|straight", (folder / file).read_text())


# ---- a lens that is known, and cameras to begin with


small = st.floats(-1, 1)


@given(st.one_of(*[st.lists(small, min_size=n, max_size=n) for n in (2, 4, 5)]))
def test_the_numbers_of_a_lens_are_read(numbers):
    lens = lens_from(", ".join(map(repr, numbers)))
    assert lens.model == "opencv" and lens.numbers[: len(numbers)] == tuple(numbers)


@given(st.lists(small, min_size=4, max_size=4))
def test_the_numbers_of_a_fisheye_are_read(numbers):
    assert lens_from("fisheye:" + ",".join(map(repr, numbers))) == Lens("fisheye", tuple(numbers))


@pytest.mark.parametrize("text", ["", "0.1", "0.1,0,0", "1,2,3,4,5,6", "zeiss", "k1,k2", "inf,0", "fisheye:0.1,0",
                                  "opencv:0.1,0", ":0.1,0", "Pinhole"])
def test_what_is_no_lens_is_refused(text):
    with pytest.raises(PrimenbError, match="it is no lens"): check_cameras(CameraSettings(lens=text, focal=35))


def test_numbers_of_a_lens_need_a_focal_length():
    check_cameras(CameraSettings(lens="-0.2,0", focal=35))
    check_cameras(CameraSettings(lens="opencv"))
    with pytest.raises(PrimenbError, match="--focal"): check_cameras(CameraSettings(lens="-0.2,0"))


@pytest.fixture(scope="module")
def bent(tmp_path_factory):
    "A shot through a lens that bends lines, its focal length in millimetres, and the centres of its cameras."
    shot = next(s for s in tracking_shots() if s.key == "track_20")
    K, cameras = shot.cameras.K[:20], shot.cameras.cam_from_world[:20]
    images, K = seen_through(Look(Lens(k=(-0.2,))), shot.frames()[:20], K, cameras, shot.depth()[:20])
    path = encode(tmp_path_factory.mktemp("bent") / "bent.mp4", images, 24, crf=12)
    return path, float(K[0, 0, 0] * 36 / images.shape[2]), inverse(cameras)[:, :3, 3]


def test_a_lens_that_is_known_is_used(bent, tmp_path, capsys):
    film, focal, centres = bent
    words = ["track", str(film), "-o", str(tmp_path / "shot"), "--plate", "none", "--focal", f"{focal:.3f}", "--json"]
    off, rows = {}, {}
    for lens in ("-0.2,0", "pinhole"):
        assert main([*words, "--lens", lens, "--overwrite"]) == 0
        rows[lens], track = json.loads(capsys.readouterr().out), load_camera_track(tmp_path / "shot/track.npz")
        s, R, t = umeyama(track.centres, centres)
        off[lens] = np.linalg.norm(s * track.centres @ R.T + t - centres)
    known, plain = rows.values()
    assert (known["k1"], known["k2"], known["lens"]) == (-0.2, 0, "given")
    assert plain["k1"] is None and plain["lens_found"] == ""
    assert known["error"] < plain["error"] and off["-0.2,0"] < 0.5 * off["pinhole"]


def test_a_row_says_what_was_noticed_of_a_lens():
    track = through(Lens(k=(-0.1,), readout=0.6), 1.2)[0]
    track.facts["lens_found"] = "distortion, shutter, zoom"
    assert camera_row(track)["lens_found"] == "distortion, shutter, zoom" and "lens_found" in CAMERA_COLUMNS
    said = describe_track(track)
    assert "30.0 to 36.0 mm" in said and "rolling shutter, 0.60 of a frame" in said and "k1 -0.100" in said
    off = replace(track, lens=Lens(), K=track.K + np.array([[0, 0, 5], [0, 0, -3], [0, 0, 0]]))
    assert "its axis is +5, -3 px from the middle" in describe_track(off) and "shutter" not in describe_track(off)


@pytest.fixture
def model(tmp_path):
    "A track of frames 1001 to 1008, in files of all kinds."
    track = replace(through(Lens(k=(-0.1,)), T=8)[0], start=1001)
    track.save(tmp_path / "track.npz")
    track.to_colmap(tmp_path / "colmap", distorted=True)
    track.to_transforms(tmp_path / "transforms.json")
    return track, tmp_path


@pytest.mark.parametrize("name", ["track.npz", "colmap", "transforms.json"])
def test_cameras_to_begin_with_are_matched_and_scaled(model, name):
    track, folder = model
    start = read_start(folder / name, (1003, 1007), (192, 108))
    assert (start.size, start.start, len(start.K)) == ((192, 108), 1003, 4)
    assert np.allclose(start.cam_from_world, track.cam_from_world[2:6], atol=1e-6)
    assert np.allclose(start.K, track.K[2:6] * [[2], [2], [1]])
    beyond = read_start(folder / name, (1005, 1017), track.size)
    assert beyond.posed.tolist() == [True] * 4 + [False] * 8 and beyond.status[4] == "missing"
    in_order = read_start(folder / name, (0, 8), track.size)
    assert np.allclose(in_order.cam_from_world, track.cam_from_world, atol=1e-6) and in_order.start == 0


@pytest.mark.parametrize("name, span, size, cause", [
    ("nowhere", (1001, 1009), (96, 54), "there is no such file"), ("", (1001, 1009), (96, 54), "no model of COLMAP"),
    ("colmap/points.txt", (1001, 1009), (96, 54), "no cameras that are read here"),
    ("track.npz", (0, 9), (96, 54), "8 cameras, of images 1001 to 1008; the shot has frames 0 to 8"),
    ("track.npz", (1001, 1009), (96, 72), "96x54, another shape than the film's, 96x72")])
def test_cameras_of_something_else_are_refused(model, name, span, size, cause):
    (model[1] / "colmap/points.txt").write_text("")
    with pytest.raises(PrimenbError, match=re.escape(cause)): read_start(model[1] / name, span, size)


def test_begun_with_a_model_it_ends_in_its_world(film, tmp_path, capsys):
    words = ["track", str(film), "--shot", "1", "--plate", "none", "--quiet", "-o"]
    assert main([*words, str(tmp_path / "a")]) == 0
    assert main([*words, str(tmp_path / "b"), "--start", str(tmp_path / "a/colmap")]) == 0
    a, b = (load_camera_track(tmp_path / name / "track.npz") for name in "ab")
    span = np.ptp(a.centres, axis=0).max()
    assert np.abs(a.centres - b.centres).max() < 0.1 * span and a.outcome == b.outcome == "solved"
    assert f"begun with 24 cameras of {tmp_path}/a/colmap" in describe_track(b) and "begun" not in describe_track(a)
    assert main([*words, str(tmp_path / "c"), "--start", str(tmp_path / "a/nothing")]) == 1
    assert "there is no such file" in capsys.readouterr().err and not (tmp_path / "c").exists()


# ---- primenb track


def test_one_shot_of_a_film(film, tmp_path, capsys):
    out = tmp_path / "shot"
    words = ["track", str(film), "-o", str(out)]
    assert main([*words, "--shot", "1", "--first-frame", "1001"]) == 0
    printed, said = capsys.readouterr()
    files = printed.splitlines()
    assert str(out / "camera.chan") in files and all(Path(file).exists() for file in files)
    assert "24 cameras, frames 24 to 47: the camera moves" in said and "focal length" in said
    assert set(numbers_in(out).values()) == {1001} and load_camera_track(out / "track.npz").start == 24
    assert main([*words, "--from", "1", "--to", "2"]) == 1 and "it holds a track" in capsys.readouterr().err
    assert main([*words, "--from", "24f", "--to", "48f", "--overwrite", "--json", "--quiet"]) == 0
    printed, said = capsys.readouterr()
    facts = json.loads(printed)
    assert said == "" and facts["first_frame"] == 24 and facts["status"] == "solved" and facts["unwritten"] == {}
    assert numbers_in(out)["usd"] == 1


def test_a_cut_in_the_range_is_no_shot(film, tmp_path, capsys):
    assert main(["track", str(film), "-o", str(tmp_path / "shot")]) == 1
    said = capsys.readouterr().err
    assert "there are cuts in it; its shots are 0 (0:00.0 to 0:01.0), 1 (0:01.0 to 0:02.0), 2" in said
    assert "--shot" in said
    assert main(["track", str(film), "-o", str(tmp_path / "shot"), "--shot", "3"]) == 1
    assert "it has no shot 3" in capsys.readouterr().err and not (tmp_path / "shot").exists()


def test_a_shot_that_is_refused_ends_with_one_line(film, tmp_path, capsys):
    assert main(["track", str(film), "-o", str(tmp_path / "shot"), "--shot", "0", "--quiet"]) == 1
    printed, said = capsys.readouterr()
    assert printed == "" and len(said.splitlines()) == 1 and "texture" in said and ";" in said
    assert not (tmp_path / "shot").exists()


def images_in(folder, images, first=1001, ending="png"):
    folder.mkdir()
    for n, image in enumerate(images): cv2.imwrite(str(folder / f"plate.{first + n}.{ending}"), image[..., ::-1])
    return folder


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_folder_of_images_is_a_shot(drawn, tmp_path, capsys, ending):
    frames, out = images_in(tmp_path / "frames", drawn[:16], ending=ending), tmp_path / "shot"
    assert main(["track", str(frames), "-o", str(out), "--rate", "25", "--first-frame", "film", "--focal", "35"]) == 0
    track = load_camera_track(out / "track.npz")
    assert (track.start, len(track.K), track.rate, track.size) == (1001, 16, 25, (320, 180))
    assert set(numbers_in(out).values()) == {1001} and "35.0 mm" in capsys.readouterr().err
    assert sorted(p.name for p in (out / "colmap/images").iterdir())[0] == "frame_001001.jpg"
    nuke, blender = (out / "camera.nk").read_text(), (out / "camera.py").read_text()
    assert "first 1001" in nuke and "last 1016" in nuke and 'frame "frame+0"' in nuke
    assert re.search(r"^start = 0$", blender, re.M) and "plate.1001" in blender


def test_a_sensor_is_kept_in_all_files(film, tmp_path):
    report = analyse(film, tmp_path / "r", parts=["cameras"], focal=35, sensor=24, plate="none")
    folder, row = report.out / "cameras/0001", table(report).iloc[1]
    assert (row.lens, row.focal_mm, row.focal) == ("given", 35, pytest.approx(35 / 24 * 320))
    assert "haperture 24" in (folder / "camera.nk").read_text() and "wide = 24.0" in (folder / "camera.py").read_text()
    page, view = (report.out / "report.html").read_text(), (folder / "view.html").read_text()
    assert "35.0 mm on 24 mm" in page and "(given)" in page and "35.0 mm on 24 mm" in view


def test_a_track_is_replaced_only_by_another(film, tmp_path, capsys):
    words = ["track", str(film), "-o", str(tmp_path / "shot"), "--plate", "none"]
    assert main([*words, "--shot", "1"]) == 0
    before = (tmp_path / "shot/track.npz").read_bytes()
    for more in (["--shot", "9"], ["--shot", "0"], []):
        assert main([*words, *more, "--overwrite"]) == 1
        assert (tmp_path / "shot/track.npz").read_bytes() == before
    (tmp_path / "file").write_text("")
    assert main(["track", str(film), "-o", str(tmp_path / "file/shot"), "--shot", "1"]) == 1
    assert "cannot be made" in capsys.readouterr().err


def test_images_with_more_bits_are_the_same_shot(drawn, tmp_path):
    images_in(tmp_path / "eight", drawn[:6])
    images_in(tmp_path / "sixteen", [image.astype(np.uint16) * 257 for image in drawn[:6]])
    eight, sixteen = (list(open_footage(tmp_path / name).images((1001, 1007))) for name in ("eight", "sixteen"))
    assert all((a == b).all() for (_, a), (_, b) in zip(eight, sixteen, strict=True))


def test_a_cut_between_images_is_found(drawn, tmp_path, capsys):
    frames = images_in(tmp_path / "frames", [*drawn[:16], *(255 - drawn[:20])])
    assert main(["track", str(frames), "-o", str(tmp_path / "shot")]) == 1
    assert "there are cuts in it; its shots are 0" in capsys.readouterr().err
    assert main(["track", str(frames), "-o", str(tmp_path / "shot"), "--shot", "1", "--quiet"]) == 0
    assert load_camera_track(tmp_path / "shot/track.npz").start == 1017


def spoilt(folder, how):
    "A folder of images with one thing wrong, and what must be said of it."
    image = cv2.imread(str(folder / "plate.1003.png"))
    if how == "gap": (folder / "plate.1003.png").unlink()
    if how == "twice": cv2.imwrite(str(folder / "other.1003.png"), image)
    if how == "number": cv2.imwrite(str(folder / "poster.png"), image)
    if how == "size": cv2.imwrite(str(folder / "plate.1003.png"), image[:90])
    if how == "broken": (folder / "plate.1003.png").write_bytes(b"no image")
    if how == "empty": [path.unlink() for path in folder.iterdir()]
    return dict(gap="there is no image for frame 1003", twice="has the same number", number="its name has no number",
                size="it is 320x90, and the first one 320x180", broken="it cannot be decoded",
                empty="there is no image")[how]


@pytest.mark.parametrize("how", ["gap", "twice", "number", "size", "broken", "empty"])
def test_what_is_wrong_with_a_folder_is_named(drawn, tmp_path, capsys, how):
    frames = images_in(tmp_path / "frames", drawn[:6])
    expected = spoilt(frames, how)
    assert main(["track", str(frames), "-o", str(tmp_path / "shot"), "--quiet"]) == 1
    said = capsys.readouterr().err
    assert expected in said and len(said.splitlines()) == 1 and not (tmp_path / "shot").exists()


@pytest.mark.parametrize("words, line", [
    (["--focal", "0"], "--focal 0.0: it is not a number above 0"), (["--sensor", "nan"], "--sensor nan"),
    (["--first-frame", "one"], "--first-frame 'one': it is no frame number"),
    (["--plate", "exr"], "'jpg', 'png', 'none'"),
    (["--lens", "zeiss"], "lens 'zeiss': it is no lens"), (["--lens", "-0.2,0"], "give the focal length"),
    (["--tracker", "kltt"], "did you mean klt?"), (["--rate", "-1"], "--rate -1.0"), (["--mask", ""], "--mask ''"),
    (["--from", "10", "--to", "5"], "it ends before it begins"), (["--shot", "-1"], "'--shot'")])
def test_an_option_of_track_that_means_nothing(film, tmp_path, capsys, words, line):
    assert main(["track", str(film), "-o", str(tmp_path / "shot"), *words]) == 2
    printed, said = capsys.readouterr()
    assert printed == "" and line in said and len(said.splitlines()) == 1 and list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_never_touched(film, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/scene.usda").write_text("mine")
    assert main(["track", str(film), "-o", str(tmp_path / "mine"), "--shot", "1", "--overwrite"]) == 1
    assert "holds other files" in capsys.readouterr().err and (tmp_path / "mine/scene.usda").read_text() == "mine"


def test_options_of_track_from_a_file(film, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = "[track]\nshot = 1\nfocal = 35\nlens = '-0.1,0'\nfirst-frame = 1001\nplate = 'none'\n"
    Path("primenb.toml").write_text(text)
    assert main(["track", str(film), "-o", "shot", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["focal_mm"] == pytest.approx(35) and (found["k1"], found["k2"]) == (-0.1, 0)
    assert numbers_in(Path("shot"))["chan"] == 1001 and not Path("shot/colmap/images").exists()


def test_stopped_it_says_so(film, tmp_path, monkeypatch, capsys):
    def stops(*arguments, **how): raise KeyboardInterrupt
    monkeypatch.setattr(cameras, "solve_tracks", stops)
    assert main(["track", str(film), "-o", str(tmp_path / "shot"), "--shot", "1"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "primenb: stopped"
    assert not (tmp_path / "shot").exists()
