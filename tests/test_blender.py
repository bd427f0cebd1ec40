"""Blender itself opens what was exported: footage in step with the camera, points on our pixels, 28 mm on 36 mm.

It is found as the package `bpy` of this Python or of the one that PRIMENB_BLENDER names, else the tests are skipped:
`bpy` wants an older NumPy than this project, so it is installed beside it.
"""
import functools, json, os, subprocess, sys
from dataclasses import replace
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image

from primenb.data.corpus import tracking_shots
from primenb.sfm.export import track_from_cameras, undistort_images, upright_rotation
from primenb.sfm.geometry import Lens, project

RATE = Fraction(30000, 1001)
KEYS = "track_22", "track_27", "track_12"  # three drawn shots, one after the other
W, H = 480, 270


@functools.cache
def blender_python():
    "A Python that has Blender, or None."
    for python in (sys.executable, os.environ.get("PRIMENB_BLENDER")):
        if python and subprocess.run([python, "-c", "import bpy"], capture_output=True).returncode == 0: return python


def in_blender(folder, program, **given):
    "Runs a program in Blender, which puts what it found into `found`."
    python = blender_python()
    if not python: pytest.skip("no Blender: name a Python that has bpy in PRIMENB_BLENDER")
    text = f"import bpy, json\ngiven = json.loads({json.dumps(json.dumps(given))!s})\nfound = {{}}\n{program}\n"
    (folder / "program.py").write_text(text + f"open({str(folder / 'found.json')!r}, 'w').write(json.dumps(found))\n")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, folder / "program.py"], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "found.json").read_text())


def counted(image, n):
    "The image with a number in its upper edge: eight fields, white for a one."
    image = image.copy()
    for bit in range(8): image[:40, bit * W // 8 : (bit + 1) * W // 8] = 255 if n >> bit & 1 else 0
    return image


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    "A film of three drawn shots, a folder of its frames, and the known camera of the middle one."
    folder = tmp_path_factory.mktemp("film")
    drawn = {s.key: s for s in tracking_shots(check=False)}
    shots = [drawn[key] for key in KEYS]
    frames = [counted(f, n) for n, f in enumerate(np.concatenate([s.frames() for s in shots]))]
    (folder / "plates").mkdir()
    with av.open(str(folder / "film.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.options = W, H, "yuv420p", {"crf": "16"}
        for n, frame in enumerate(frames):
            Image.fromarray(frame).save(folder / f"plates/plate.{101 + n:04d}.png", compress_level=1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")): file.mux(packet)
        for packet in stream.encode(): file.mux(packet)
    middle = shots[1]
    start = len(shots[0].frames())
    known = middle.cameras.K, middle.cameras.cam_from_world, middle.depth(), np.array(middle.frames())
    return folder, replace(track_from_cameras(*known, float(RATE), 100), start=start)


def with_lens(track, oblong=1.0, right=0.0, down=0.0):
    "The track with pixels that much wider than high, and an axis off the middle."
    K = track.K.copy()
    K[:, 1, 1] *= oblong
    K[:, :2, 2] += right, down
    return replace(track, K=K)


LENSES = {
    "centred": dict(), "shifted": dict(right=31.5, down=-17.25), "oblong": dict(oblong=64 / 45),
    "both": dict(oblong=64 / 45, right=-20.5, down=12.0), "high": dict(oblong=8 / 9, right=9.0, down=6.0),
}

SEEN = """
from bpy_extras.object_utils import world_to_camera_view
from mathutils import Vector
def seen(frames, camera, points):
    rows = []
    for frame in frames:
        scene.frame_set(frame)
        rows.append([tuple(world_to_camera_view(scene, camera, Vector(p))) for p in points])
    return rows
"""

RUN = """
exec(compile(open(given["script"]).read(), given["script"], "exec"))
render, lens = scene.render, scene.camera.data
found["seen"] = seen(given["frames"], scene.camera, [v.co for v in bpy.data.objects["tracked points"].data.vertices])
found["rate"] = render.fps / render.fps_base
found["range"] = [scene.frame_start, scene.frame_end, scene.frame_current]
found["aspect"] = render.pixel_aspect_x / render.pixel_aspect_y
found["lens"] = [lens.lens, lens.sensor_width]
"""

# the clip of the camera's background, through the compositor: the number of each frame is read from its pixels
SHOWN = """
tree = bpy.data.node_groups.new("shown", "CompositorNodeTree")
scene.compositing_node_group = tree
tree.interface.new_socket(name="Image", in_out="OUTPUT", socket_type="NodeSocketColor")
node = tree.nodes.new("CompositorNodeMovieClip")
node.clip = lens.background_images[0].clip
tree.links.new(node.outputs["Image"], tree.nodes.new("NodeGroupOutput").inputs[0])
scene.camera.hide_render = True
render.engine, scene.cycles.samples, render.use_compositing = "CYCLES", 1, True
render.image_settings.file_format, render.filepath = "PNG", given["picture"]
found["shown"] = []
for frame in given["frames"]:
    scene.frame_set(frame)
    bpy.ops.render.render(write_still=True)
    image = bpy.data.images.load(given["picture"])
    w, h = image.size
    row = list(image.pixels)[4 * w * (h - 20):]
    found["shown"].append(sum((row[4 * int((bit + 0.5) * w / 8)] > 0.5) << bit for bit in range(8)))
    bpy.data.images.remove(image)
"""


def off(seen, track, n):
    "Greatest distance from our pixels, of points before the camera and in or near the image."
    ours, z = project(track.points, track.cam_from_world[n], track.K[n])
    x, y, _ = np.array(seen).T
    near = (z > 0) & (np.abs(ours - np.array(track.size) / 2) < track.size).all(1)
    assert near.sum() > 20
    return np.abs(np.stack([x * track.size[0], (1 - y) * track.size[1]], -1) - ours)[near].max()


@pytest.mark.parametrize("lens", LENSES)
def test_blenders_camera_sees_our_pixels(film, tmp_path, lens):
    track = with_lens(film[1], **LENSES[lens])
    ns = 0, 7, 19, len(track.K) - 1
    script = track.to_blender(tmp_path / "camera.py", first=1001)
    found = in_blender(tmp_path, SEEN + RUN, script=str(script), frames=[1001 + n for n in ns])
    for seen, n in zip(found["seen"], ns): assert off(seen, track, n) < 0.1
    assert found["rate"] == pytest.approx(float(RATE), rel=1e-7)
    assert found["range"] == [1001, 1000 + len(track.K), 1001 + ns[-1]]
    assert found["aspect"] == pytest.approx(LENSES[lens].get("oblong", 1), rel=1e-6)
    assert found["lens"] == pytest.approx([36 * track.K[ns[-1], 0, 0] / W, 36], rel=1e-6)


@pytest.mark.parametrize("video", ["film.mp4", "plates", "plates/plate.0101.png"])
@pytest.mark.parametrize("first", [1, 1001])
def test_blender_shows_the_frame_of_the_film(film, tmp_path, video, first):
    "Behind scene frame first + n is film frame start + n."
    folder, track = film
    ns = 0, 1, 13, len(track.K) - 1
    script = track.to_blender(tmp_path / "camera.py", folder / video, first=first)
    frames = [first + n for n in ns]
    given = dict(script=str(script), frames=frames, picture=str(tmp_path / "shown.png"))
    assert in_blender(tmp_path, SEEN + RUN + SHOWN, **given)["shown"] == [track.start + n for n in ns]


IMPORT = """
bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
bpy.ops.wm.usd_import(filepath=given["stage"])
scene.render.resolution_x, scene.render.resolution_y = given["size"]
scene.render.resolution_percentage = 100
scene.render.pixel_aspect_x, scene.render.pixel_aspect_y = given["aspect"]
camera = next(o for o in bpy.data.objects if o.type == "CAMERA")
points = next(o for o in bpy.data.objects if o.type in ("POINTCLOUD", "MESH"))
data = points.data.points if points.type == "POINTCLOUD" else points.data.vertices
scene.frame_set(given["frames"][0])
bpy.context.view_layer.update()
found["world"] = [tuple(points.matrix_world @ p.co) for p in data]
found["seen"], found["lens"] = [], []
for frame in given["frames"]:
    found["seen"] += seen([frame], camera, found["world"])
    found["lens"].append([camera.data.lens, camera.data.sensor_width])
"""


@pytest.mark.parametrize("lens", ["centred", "oblong", "shifted"])
def test_blender_imports_the_stage(film, tmp_path, lens):
    "By Blender's own importer: millimetres are millimetres, a unit of the track is two metres, points on our pixels."
    track = with_lens(film[1], **LENSES[lens])
    track.K[:, [0, 1], [0, 1]] *= 28 / (36 * track.K[0, 0, 0] / W)
    ns = 0, 7, len(track.K) - 1
    stage = track.to_usd(tmp_path / "scene.usdc", first=11, metres=2.0)
    oblong = 1 / LENSES[lens].get("oblong", 1)  # height of a pixel over its width
    given = dict(stage=str(stage), frames=[11 + n for n in ns], size=(W, H))
    found = in_blender(tmp_path, SEEN + IMPORT, aspect=(max(1, 1 / oblong), max(1, oblong)), **given)
    mm = 36 * track.K[list(ns), 0, 0] / W
    np.testing.assert_allclose(found["lens"], np.stack([mm, np.full(3, 36)], 1), rtol=1e-5)
    assert mm[0] == pytest.approx(28)
    world = 2 * track.points @ upright_rotation(track).T
    np.testing.assert_allclose(found["world"], world, atol=1e-3 * np.abs(world).max())
    for seen, n in zip(found["seen"], ns): assert off(seen, track, n) < 0.1


# a place in the film, straightened by the clip's lens, as the camera sees it: by a constraint that follows a marker
FOLLOWED = """
from bpy_extras.object_utils import world_to_camera_view
clip = lens.background_images[0].clip
scene.frame_set(scene.frame_start)
marks = []
for n, (x, y) in enumerate(given["marks"]):
    track = clip.tracking.tracks.new(name=f"mark{n}", frame=1)  # of the clip
    track.markers[0].co = x / given["size"][0], 1 - y / given["size"][1]
    mark = bpy.data.objects.new(f"mark{n}", None)
    scene.collection.objects.link(mark)
    follow = mark.constraints.new("FOLLOW_TRACK")
    follow.clip, follow.track, follow.camera = clip, track.name, scene.camera
    follow.use_active_clip, follow.use_undistorted_position, follow.frame_method = False, True, "STRETCH"
    marks.append(mark)
bpy.context.view_layer.update()
scenery = bpy.context.evaluated_depsgraph_get()
places = [mark.evaluated_get(scenery).matrix_world.translation for mark in marks]
found["marks"] = [tuple(world_to_camera_view(scene, scene.camera, place)) for place in places]
found["undistorted"] = lens.background_images[0].clip_user.use_render_undistorted
"""

def fixed(track, lens):
    "The track with a lens that does not zoom."
    return replace(track, K=track.K[[0] * len(track.K)], lens=lens)


BENDS = dict(radial=Lens(k=(-0.15, 0.03, 0.01)), tangential=Lens(k=(-0.1, 0.02), p=(0.008, -0.006)))


@pytest.mark.parametrize("bends", BENDS)
def test_blenders_clip_has_the_lens(film, tmp_path, bends):
    "A place in the film is straightened to the pixel where our pinhole has it; and the camera sees our points there."
    folder, track = film
    track = fixed(with_lens(track, right=12.5), BENDS[bends])  # the constraint takes a camera's vertical shift wrong
    script = track.to_blender(tmp_path / "camera.py", folder / "plates", first=1001)
    marks = np.stack(np.meshgrid(np.linspace(10, W - 10, 6), np.linspace(10, H - 10, 5)), -1).reshape(-1, 2)
    given = dict(script=str(script), frames=[1001], marks=marks.tolist(), size=(W, H))
    found = in_blender(tmp_path, SEEN + RUN + FOLLOWED, **given)
    x, y, _ = np.array(found["marks"]).T
    expected = track.lens.undistort(marks, track.K[0])
    assert np.abs(expected - marks).max() > 5 and found["undistorted"]
    np.testing.assert_allclose(np.stack([x * W, (1 - y) * H], -1), expected, atol=0.02)
    assert off(found["seen"][0], track, 0) < 0.1


# the clip as it is shown, straightened by Blender, in an image file
STRAIGHT = """
import glob, time
clip = lens.background_images[0].clip
clip.use_proxy = clip.use_proxy_custom_directory = True
proxy = clip.proxy
proxy.directory, proxy.build_25, proxy.build_undistorted_100, proxy.quality = given["proxies"], False, True, 100
window = bpy.context.window_manager.windows[0]
area = window.screen.areas[0]
area.type, area.spaces[0].clip = "CLIP_EDITOR", clip
region = next(r for r in area.regions if r.type == "WINDOW")
with bpy.context.temp_override(window=window, area=area, region=region, space_data=area.spaces[0]):
    bpy.ops.clip.rebuild_proxy("EXEC_DEFAULT")
def written(): return sorted(glob.glob(given["proxies"] + "**/*.jpg", recursive=True))
until = time.monotonic() + 120
while len(written()) < given["count"] and time.monotonic() < until: time.sleep(0.2)
time.sleep(0.5)
found["files"] = written()
"""


def apart_by(a, b, side=64):
    "How far tiles of two images are shifted, pixels."
    window = cv2.createHanningWindow((side, side), cv2.CV_32F)
    tiles = [np.s_[y : y + side, x : x + side] for y in range(8, H - side, side) for x in range(8, W - side, side)]
    pairs = [(np.float32(a[tile]), np.float32(b[tile])) for tile in tiles if np.std(a[tile]) > 15]
    assert len(pairs) > 8
    return np.abs([cv2.phaseCorrelate(*pair, window)[0] for pair in pairs])


@pytest.mark.parametrize("oblong", [1.0, 1.2])
def test_blender_straightens_the_plate_as_we_do(film, tmp_path, oblong):
    folder, track = film
    track = fixed(with_lens(track, oblong=oblong, right=12.5, down=-7.0), BENDS["tangential"])
    (tmp_path / "plates").mkdir()
    name = f"plate.{101 + track.start:04d}.png"
    image = np.array(Image.open(folder / "plates" / name))
    Image.fromarray(image).save(tmp_path / "plates" / name)
    script = replace(track, start=101 + track.start).to_blender(tmp_path / "camera.py", tmp_path / "plates")
    proxies = f"{tmp_path}/proxies/"
    given = dict(script=str(script), frames=[1], proxies=proxies, count=1)
    files = in_blender(tmp_path, SEEN + RUN + STRAIGHT, **given)["files"]
    theirs, ours = np.array(Image.open(files[0]).convert("L")), next(undistort_images(track, [image]))
    ours = cv2.cvtColor(ours, cv2.COLOR_RGB2GRAY)
    assert np.median(apart_by(theirs, ours)) < 0.1 and apart_by(theirs, ours).max() < 0.3
    assert apart_by(theirs, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)).max() > 1
