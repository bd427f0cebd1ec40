"Cameras leave for other tools and come back unchanged."
import json, os, re, subprocess, sys, types, warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pycolmap
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image
from pxr import Usd, UsdGeom
from scipy.spatial.transform import Rotation

from primenb.core import PrimenbError
from primenb.sfm.export import track_from_cameras, srgb_to_linear, load_camera_track, upright_rotation
from primenb.sfm.geometry import CameraTrack, Tracks, project


def made(seed=0, T=6, P=40, size=(480, 270), lens=True, missing=(2,), zoom=True):
    "A track with points before all cameras; a shifted lens, oblong pixels, a zoom and missing frames if asked for."
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(P, 3)) * [1.5, 1, 1] + [0, 0, 6]
    A = np.tile(np.eye(4), (T, 1, 1))
    A[:, :3, :3] = Rotation.from_rotvec(rng.normal(0, 0.05, (T, 3))).as_matrix()
    A[:, :3, 3] = rng.normal(0, 0.2, (T, 3))
    world = np.eye(4)
    world[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    world[:3, 3] = rng.normal(size=3)
    A, points = A @ world, (points - world[:3, 3]) @ world[:3, :3]
    K = np.tile(np.array([[420., 0, size[0] / 2], [0, 420, size[1] / 2], [0, 0, 1]]), (T, 1, 1))
    if zoom: K[:, [0, 1], [0, 1]] *= np.linspace(1, 1.3, T)[:, None]
    if lens:
        K[:, 1, 1] *= 0.97
        K[:, 0, 2] += 11
        K[:, 1, 2] -= 6
    xy = project(points, A[:, None], K[:, None])[0]
    track, frame = np.repeat(np.arange(P), T), np.tile(np.arange(T), P)
    A[list(missing)] = np.nan
    status = np.full(T, "solved", "U13")
    status[list(missing)] = "missing"
    return CameraTrack(
        size,
        K,
        A,
        status,
        points,
        Tracks(frame, track, xy[frame, track], T, size),
        rng.integers(0, 256, (P, 3), dtype=np.uint8),
        rng.random((T, 2)),
        np.ones(T),
        23.976,
        start=76,
    )


def usd_pixels(path, code, size):
    stage = Usd.Stage.Open(str(path))
    frustum = UsdGeom.Camera.Get(stage, "/track/camera").GetCamera(code).frustum
    X = np.array(UsdGeom.Points.Get(stage, "/track/points").GetPointsAttr().Get(), float)
    seen = np.c_[X, np.ones(len(X))] @ np.array(frustum.ComputeViewMatrix()) @ np.array(
        frustum.ComputeProjectionMatrix()
    )
    return (seen[:, :2] / seen[:, 3:] * [1, -1] + 1) / 2 * size


def chan_pixels(path, code, X, size, aspect=1.):
    "Through 4x4 matrices multiplied one by one, as Nuke's rotation order ZXY has it: Z first."
    row = next(
        r for r in map(lambda line: np.array(line.split(), float), Path(path).read_text().splitlines()) if r[0] == code
    )
    world = np.eye(4)
    world[:3, 3] = row[1:4]
    for axis, angle in (("y", row[5]), ("x", row[4]), ("z", row[6])):
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler(axis, angle, degrees=True).as_matrix()
        world = world @ turn
    seen = (np.linalg.inv(world) @ np.c_[X, np.ones(len(X))].T)[:3]
    half = np.tan(np.radians(row[7] / 2))
    return np.stack(
        [
            size[0] / 2 * (1 + seen[0] / -seen[2] / (half * size[0] / size[1] * aspect)),
            size[1] / 2 * (1 - seen[1] / -seen[2] / half),
        ],
        -1,
    )


def nk_node(path, kind):
    "The knobs of a node of a script, as text."
    node = re.search(rf"^{kind} {{\n(.*?)^}}", Path(path).read_text(), re.S | re.M)[1]
    return dict(line.strip().split(" ", 1) for line in node.splitlines())


def nk_pixels(path, code, X):
    """Through Nuke's own chain of matrices: camera, projection by focal length and horizontal aperture alone, window.

    The window is moved in units of its half width, before it is stretched to the format.
    """
    def numbers(text):
        found = re.findall(r"\{curve L ([^}]*)\}|(-?[\d.e+-]+)", text)
        return [float(dict(zip(*[iter(curve.split())] * 2))[f"x{code}"] if curve else one) for curve, one in found]
    camera = nk_node(path, "Camera2")
    assert camera["rot_order"] == "ZXY"
    world = np.eye(4)
    world[:3, 3] = numbers(camera["translate"])
    angles = dict(zip("xyz", numbers(camera["rotate"])))
    for axis in "yxz":
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler(axis, angles[axis], degrees=True).as_matrix()
        world = world @ turn
    X, Y, Z, _ = np.linalg.inv(world) @ np.c_[X, np.ones(len(X))].T
    zoom = 2 * numbers(camera["focal"])[0] / float(camera["haperture"])
    u, v = numbers(camera["win_translate"])
    w, h, *_, aspect, _ = nk_node(path, "Root")["format"].strip('"').split()
    w, h, aspect = float(w), float(h), float(aspect)
    up = h / 2 + (zoom * Y / -Z - v) * w / 2 * aspect
    return np.stack([w / 2 + (zoom * X / -Z - u) * w / 2, h - up], -1)


class Blender(types.SimpleNamespace):
    "As much of bpy as the script may use; anything else is an AttributeError."
    def __init__(self):
        new = types.SimpleNamespace
        self.camera = new()
        self.lens = new(background_images=new(new=lambda: self.footage))
        self.mesh = new()
        self.linked = []
        self.keys = {}
        self.footage, self.clip = new(), new()
        for thing in (self.camera, self.lens):
            thing.keyframe_insert = lambda name, frame, thing=thing: self.keys.__setitem__(
                (name, frame), np.array(getattr(thing, name))
            )
        def from_pydata(vertices, edges, faces):
            self.vertices, self.paint = np.array(vertices), [new() for _ in vertices]
        self.mesh.from_pydata = from_pydata
        self.mesh.color_attributes = new(new=lambda name, kind, domain: new(data=self.paint))
        def load(path):
            self.video = path
            return self.clip
        self.data = new(cameras=new(new=lambda name: self.lens), meshes=new(
            new=lambda name: self.mesh
        ), movieclips=new(load=load),
                        objects=new(new=lambda name, data: self.camera if data is self.lens else new(data=data)))
        scene = new(render=new(), collection=new(objects=new(link=self.linked.append)), frame_set=lambda frame: None)
        self.context = new(scene=scene)

    def run(self, path):
        sys.modules["bpy"] = self
        try: exec(compile(Path(path).read_text(), str(path), "exec"), {})
        finally: del sys.modules["bpy"]
        return self

    def pixels(self, frame):
        "Blender's viewplane: the sensor is as wide as the image, shifts are in widths, pixels `aspect` times as high."
        render, lens = self.context.scene.render, self.lens
        assert lens.sensor_fit == "HORIZONTAL" and min(render.pixel_aspect_x, render.pixel_aspect_y) == 1
        W = render.resolution_x
        H = render.resolution_y
        aspect = render.pixel_aspect_y / render.pixel_aspect_x
        w, x, y, z = self.keys["rotation_quaternion", frame]
        seen = (self.vertices - self.keys["location", frame]) @ Rotation.from_quat([x, y, z, w]).as_matrix()
        step = lens.sensor_width / self.keys["lens", frame] / W
        u = seen[:, 0] / -seen[:, 2] / step + W / 2 - self.keys["shift_x", frame] * W
        return np.stack([u, H / 2 + (self.keys["shift_y", frame] * W - seen[:, 1] / -seen[:, 2] / step) / aspect], -1)


def ours(track, t): return project(track.points, track.cam_from_world[t], track.K[t])[0]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.booleans(), st.booleans(), st.sampled_from([(480, 270), (270, 480), (333, 332)]))
def test_every_tool_sees_the_same_pixels(tmp_path_factory, seed, lens, zoom, size):
    track, folder = made(seed, lens=lens, zoom=zoom, size=size), tmp_path_factory.mktemp("tools")
    usd = track.to_usd(folder / "a.usdc", first=1001)
    blender = Blender().run(track.to_blender(folder / "a.py", first=1001))
    nk = track.to_nuke(folder / "a.nk", first=1001)
    y_up = (track.points @ upright_rotation(track).T)[:, [0, 2, 1]] * [1, 1, -1]
    if lens:
        with pytest.raises(PrimenbError, match="to_usd"): track.to_nuke(folder / "a.chan")
    else:
        chan = track.to_nuke(folder / "a.chan", first=1001)
        assert len(chan.read_text().splitlines()) == 5
    for t in (0, 1, 3, 5):
        assert np.abs(usd_pixels(usd, 1001 + t, size) - ours(track, t)).max() < 1e-3
        assert np.abs(blender.pixels(1001 + t) - ours(track, t)).max() < 1e-3
        assert np.abs(nk_pixels(nk, 1001 + t, y_up) - ours(track, t)).max() < 1e-3
        if not lens: assert np.abs(chan_pixels(chan, 1001 + t, y_up, size) - ours(track, t)).max() < 1e-3
    assert ("location", 1003) not in blender.keys


@pytest.mark.parametrize("binary", [True, False])
def test_colmap_reads_what_we_wrote(tmp_path, binary):
    track = made(3)
    track.to_colmap(tmp_path / "a/model", not binary)
    model = pycolmap.Reconstruction(track.to_colmap(tmp_path / "a/model", binary) / "sparse/0")
    assert {
        f.suffix for f in (tmp_path / "a/model/sparse/0").iterdir()
    } == {".bin" if binary else ".txt"}, "the other format is gone"
    assert sorted(i.name for i in model.images.values()) == [f"frame_{76 + t:06d}.png" for t in (0, 1, 3, 4, 5)]
    for t in (0, 1, 3, 4, 5):
        image = model.image(t + 1)
        np.testing.assert_allclose(image.cam_from_world().matrix(), track.cam_from_world[t, :3], atol=1e-9)
        np.testing.assert_allclose(image.camera.calibration_matrix(), track.K[t], atol=1e-9)
        assert (image.camera.width, image.camera.height) == track.size and image.has_pose
    rows = track.tracks
    for p, point in enumerate(model.points3D[i] for i in sorted(model.points3D)):
        np.testing.assert_allclose(point.xyz, track.points[p], atol=1e-9)
        assert tuple(point.color) == tuple(track.colours[p]) and point.error < 1e-6
        seen = {e.image_id - 1: model.image(e.image_id).point2D(e.point2D_idx).xy for e in point.track.elements}
        expected = {t: rows.xy[(rows.track == p) & (rows.frame == t)][0] for t in (0, 1, 3, 4, 5)}
        assert seen.keys() == expected.keys() and all(np.allclose(seen[t], expected[t], atol=1e-9) for t in seen)
    assert model.compute_num_observations() == 5 * 40 and len(model.rigs) == len(model.cameras) == 5


def test_colmap_text_by_hand(tmp_path):
    "The text says the same to a reader that knows nothing of pycolmap."
    track = made(5, zoom=False)
    track.tracks.xy[:] += np.random.default_rng(0).normal(0, 0.5, track.tracks.xy.shape)
    folder = track.to_colmap(tmp_path, binary=False) / "sparse/0"
    def lines(name):
        return [line.split() for line in (folder / name).read_text().splitlines() if not line.startswith("#")]
    cameras = {c[0]: np.array(c[4:], float) for c in lines("cameras.txt")}
    assert len(cameras) == 1, "one for each distinct K"
    points = {p[0]: (np.array(p[1:4], float), float(p[7]), p[8:]) for p in lines("points3D.txt")}
    errors = {}
    images = lines("images.txt")
    for head, keypoints in zip(images[::2], images[1::2]):
        q = np.array(head[1:5], float)
        t = np.array(head[5:8], float)
        (fx, fy, cx, cy) = cameras[head[8]]
        for u, v, p in zip(*[iter(keypoints)] * 3):
            X = Rotation.from_quat(q, scalar_first=True).apply(points[p][0]) + t
            errors.setdefault(p, []).append(
                np.hypot(fx * X[0] / X[2] + cx - float(u), fy * X[1] / X[2] + cy - float(v))
            )
    assert len(errors) == 40
    for p, found in errors.items():
        assert np.isclose(np.mean(found), points[p][1], atol=1e-6) and len(found) == len(points[p][2]) // 2 == 5
    assert len(lines("frames.txt")) == 5 and len(lines("rigs.txt")) == 1


def test_points_that_cannot_go_are_left_out(tmp_path):
    track = made(7)
    track.points[4] = np.nan
    only = track.tracks.keep((track.tracks.track != 9) | (track.tracks.frame == 2))[0]  # frame 2 has no camera
    model = pycolmap.Reconstruction(replace(track, tracks=only).to_colmap(tmp_path / "model") / "sparse/0")
    assert len(model.points3D) == 38
    assert len(
        UsdGeom.Points.Get(
            Usd.Stage.Open(str(track.to_usd(tmp_path / "a.usda"))), "/track/points"
        ).GetPointsAttr().Get()
    ) == 39
    none = replace(
        track,
        points=np.zeros((0, 3)),
        colours=np.zeros((0, 3), np.uint8),
        tracks=Tracks(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)), 6, track.size),
    )
    assert len(pycolmap.Reconstruction(none.to_colmap(tmp_path / "none") / "sparse/0").images) == 5
    none.to_usd(tmp_path / "none.usda")
    Blender().run(none.to_blender(tmp_path / "none.py"))
    assert len(load_camera_track(none.save(tmp_path / "none.npz")).points) == 0


def test_nothing_left_is_refused(tmp_path):
    lost = made(missing=range(6))
    for write, name in (
        (lost.to_colmap, "a"), (lost.to_transforms, "a.json"), (lost.to_usd, "a.usda"), (lost.to_nuke, "a.chan"),
        (lost.to_nuke, "a.nk"), (lost.to_blender, "a.py"),
    ):
        with pytest.raises(PrimenbError, match="no frame of the track has a camera"): write(tmp_path / name)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    track, taken = made(lens=False), tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(PrimenbError, match="name a folder"): track.to_colmap(taken)
    for write in (track.to_usd, track.to_nuke):
        with pytest.raises(PrimenbError, match="ending"): write(tmp_path / "a.abc")
    for write, name in (
        (track.to_usd, "a.usda"), (track.to_nuke, "a.chan"), (track.to_nuke, "a.nk"), (track.to_blender, "a.py"),
        (track.save, "a.npz"),
    ):
        path = write(tmp_path / "deep/er" / name)
        before = path.read_bytes()
        with monkeypatch.context() as m, pytest.raises(OSError):
            m.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            write(path)
        assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1
        path.unlink()
    assert taken.read_text() == "mine"


def test_stage_says_what_its_numbers_mean(tmp_path):
    stage = Usd.Stage.Open(str(made().to_usd(tmp_path / "a.usda", metres=2., first=1001)))
    assert (
        UsdGeom.GetStageUpAxis(stage), UsdGeom.GetStageMetersPerUnit(stage), stage.GetTimeCodesPerSecond()
    ) == ("Z", 0.01, 23.976)
    assert (
        stage.GetStartTimeCode(), stage.GetEndTimeCode(), stage.GetDefaultPrim().GetPath()
    ) == (1001, 1006, "/track")
    points = np.array(UsdGeom.Points.Get(stage, "/track/points").GetPointsAttr().Get())
    sizes = [np.ptp(made().points @ upright_rotation(made()).T, axis=0) * 2, np.ptp(points, axis=0) * 0.01]
    np.testing.assert_allclose(*sizes, rtol=1e-5)
    camera = UsdGeom.Camera.Get(stage, "/track/camera")
    assert camera.GetFocalLengthAttr().GetTimeSamples() == [
        1001, 1002, 1004, 1005, 1006
    ], "a zoom is sampled where there is a camera"
    stage = Usd.Stage.Open(str(made(zoom=False).to_usd(tmp_path / "b.usda")))
    fixed = UsdGeom.Camera.Get(stage, "/track/camera")
    assert fixed.GetFocalLengthAttr().GetTimeSamples() == [] and np.isclose(
        fixed.GetFocalLengthAttr().Get(), 420 / 480 * 36
    )


def test_up_is_kept_found_or_refused():
    track = made(11)
    np.testing.assert_allclose(upright_rotation(track, (0, 0, 3)), np.eye(3), atol=1e-12)
    np.testing.assert_allclose(
        upright_rotation(track) @ -np.nanmean(track.cam_from_world[:, 1, :3], 0),
        [0, 0, np.linalg.norm(np.nanmean(track.cam_from_world[:, 1, :3], 0))],
        atol=1e-9,
    )
    for up in ((0, 0, -1), (1, 0, 0), (1e-2, 2, -5)):
        R = upright_rotation(track, up)
        np.testing.assert_allclose(R @ up / np.linalg.norm(up), [0, 0, 1], atol=1e-9)
        assert np.isclose(np.linalg.det(R), 1)
    for up in ((0, 0, 0), (np.nan, 0, 1)):
        with pytest.raises(PrimenbError, match="which way is up"): upright_rotation(track, up)


def test_nuke_straight_down(tmp_path):
    "Where two of the angles mean the same, the pixels are still right, and the angles do not jump by whole turns."
    track = made(2, lens=False, missing=())
    track.cam_from_world[:, :3, :3] = Rotation.from_euler(
        "xz", np.c_[np.full(6, 180.), np.linspace(160, 200, 6)], degrees=True
    ).as_matrix()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = track.to_nuke(tmp_path / "down.chan", up=(0, 0, 1))
    y_up = track.points[:, [0, 2, 1]] * [1, 1, -1]
    for t in range(6): assert np.abs(chan_pixels(path, t + 1, y_up, track.size) - ours(track, t)).max() < 1e-3
    assert np.abs(np.diff(np.loadtxt(path)[:, 4:7], axis=0)).max() < 45


def test_blender_script_shows_the_footage(tmp_path):
    odd = tmp_path / 'it\'s a "film" ä.mp4'
    blender = Blender().run(made().to_blender(tmp_path / "a.py", video=odd, first=5))
    assert blender.video == str(odd) and blender.lens.show_background_images
    assert (blender.clip.frame_start, blender.clip.frame_offset) == (5, 76)
    assert np.isclose(blender.context.scene.render.fps / blender.context.scene.render.fps_base, 23.976)
    assert (blender.context.scene.frame_start, blender.context.scene.frame_end, len(blender.linked)) == (5, 10, 2)
    np.testing.assert_allclose([p.color[:3] for p in blender.paint], srgb_to_linear(made().colours), atol=1e-4)


def test_table(tmp_path):
    track = made(4)
    track.table().to_csv(tmp_path / "a.csv", index=False)
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(table.columns) == [
        "frame", "film_frame", "time", "status", "x", "y", "z", "qx", "qy", "qz", "qw", "focal",
        "sigma_centre", "sigma_rotation",
    ]
    assert table.film_frame.tolist() == list(range(76, 82))
    assert table.x.isna().tolist() == [t == 2 for t in range(6)] and np.isclose(table.time[5], 5 / 23.976)
    row = table.iloc[4]
    R = Rotation.from_quat(row[["qx", "qy", "qz", "qw"]].to_numpy(float)).as_matrix()
    np.testing.assert_allclose(R.T, track.cam_from_world[4, :3, :3], atol=1e-9)
    np.testing.assert_allclose(-R.T @ row[["x", "y", "z"]].to_numpy(float), track.cam_from_world[4, :3, 3], atol=1e-9)


def same(a, b):
    for name in ("K", "cam_from_world", "status", "points", "colours", "sigma", "depth_scale"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("frame", "track", "xy"):
        np.testing.assert_array_equal(getattr(a.tracks, name), getattr(b.tracks, name))
    assert (a.size, a.rate, a.facts, a.tracks.frames, a.tracks.size) == (
        b.size, b.rate, b.facts, b.tracks.frames, b.tracks.size
    )


def test_a_saved_track_is_the_same_or_refused(tmp_path):
    track, path = made(6), tmp_path / "a.npz"
    track.facts = dict(seconds=1.25, choices=["a", None], ok=True)
    same(track, load_camera_track(track.save(path)))
    whole = path.read_bytes()
    for cut in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(PrimenbError, match="a.npz"): load_camera_track(path)
    for at in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try: same(track, load_camera_track(path))  # a bit that means nothing, such as a date
        except PrimenbError as e: assert "a.npz" in str(e)
    for other in (tmp_path / "none.npz", tmp_path):
        with pytest.raises(PrimenbError): load_camera_track(other)


@pytest.mark.parametrize("change, cause", [
    (dict(version=np.int64(9)), "format"), (dict(K=np.zeros((5, 3, 3))), "shape"), (
        dict(colours=np.zeros((3, 3), np.uint8)), "shape"
    ), (dict(track=np.full(240, 77)), "not there"),
    (dict(facts=np.array("{")), "facts"), (dict(points=None), "no array 'points'"), (
        dict(frame=np.zeros(3, int)), "shape"
    )])
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, cause):
    path = made().save(tmp_path / "a.npz")
    arrays = {**np.load(path), **change}
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})
    with pytest.raises(PrimenbError, match=cause): load_camera_track(path)


def test_known_cameras_of_real_footage(real, tmp_path):
    from primenb.data.public import posed_frames
    frames = list(posed_frames(real / "hololens", check=False))[:8]
    track = track_from_cameras(
        np.array([f.K for f in frames]),
        np.array([f.cam_from_world for f in frames]),
        np.array([f.depth for f in frames]),
        np.array([f.image for f in frames]),
        10,
        200,
    )
    assert track.tracks.lengths.mean() > 4 and (track.tracks.lengths > 0).all()
    path = track.to_usd(tmp_path / "a.usdc")
    for t in (0, 7): assert np.abs(usd_pixels(path, t + 1, track.size) - ours(track, t)).max() < 1e-3
    model = pycolmap.Reconstruction(track.to_colmap(tmp_path / "model") / "sparse/0")
    assert len(model.images) == 8 and len(model.cameras) == 1 and model.compute_mean_reprojection_error() < 1e-6


# ---- frame numbers, plates and pixels

def scaled(track, size):
    "The track as if it was made at another size and its K scaled to the film's."
    K = track.K * (np.array([size[0] / track.size[0], size[1] / track.size[1], 1])[:, None])
    return replace(track, size=size, K=K)


@settings(max_examples=60, deadline=None)
@given(st.integers(200, 4096), st.integers(200, 4096), st.sampled_from([240, 320, 480]))
def test_a_camera_from_a_working_size_is_never_refused(tmp_path_factory, W, H, most):
    "Sides are rounded to even numbers at the working size; the focal length is the same in both directions there."
    working = [max(200, 2 * round(side * most / max(W, H) / 2)) for side in (W, H)]
    track = scaled(made(lens=False, zoom=False, size=tuple(working)), (W, H))
    track.to_nuke(tmp_path_factory.mktemp("chan") / "a.chan")
    middle = track.K.copy()  # one factor for both sides, and the middle of the even ones
    middle[:, :2, 2] = np.array(working) / 2 * W / working[0]
    if abs(W / working[0] * working[1] - H) <= W / working[0]:
        replace(track, K=middle).to_nuke(tmp_path_factory.mktemp("chan") / "a.chan")


def test_oblong_pixels_with_a_centred_axis_fit_a_chan(tmp_path):
    "PAL wide: 720x576 with pixels of 64:45."
    track = made(lens=False, size=(720, 576))
    track.K[:, 1, 1] = track.K[:, 0, 0] * 64 / 45
    y_up = (track.points @ upright_rotation(track).T)[:, [0, 2, 1]] * [1, 1, -1]
    chan, nk = track.to_nuke(tmp_path / "a.chan"), track.to_nuke(tmp_path / "a.nk")
    assert float(nk_node(nk, "Root")["format"].split()[6]) == pytest.approx(64 / 45)
    for t in (0, 5):
        assert np.abs(chan_pixels(chan, 1 + t, y_up, track.size, 64 / 45) - ours(track, t)).max() < 1e-3
        assert np.abs(nk_pixels(nk, 1 + t, y_up) - ours(track, t)).max() < 1e-3
    blender = Blender().run(track.to_blender(tmp_path / "a.py"))
    assert np.abs(blender.pixels(6) - ours(track, 5)).max() < 1e-3


def test_pixels_that_change_their_shape_are_refused_by_name(tmp_path):
    track = made(lens=False)
    track.K[:, 1, 1] *= np.linspace(1, 1.1, 6)
    for write, name in ((track.to_nuke, "a.chan"), (track.to_nuke, "a.nk"), (track.to_blender, "a.py")):
        with pytest.raises(PrimenbError, match="shape of its pixels changes"): write(tmp_path / name)
    usd = track.to_usd(tmp_path / "a.usda")
    for t in (0, 5): assert np.abs(usd_pixels(usd, 1 + t, track.size) - ours(track, t)).max() < 1e-3


def plate_frame(path, code):
    "The number that a script's Read node reads at a frame of the scene, and its file."
    read = nk_node(path, "Read")
    assert read["frame_mode"] == "expression"
    number = code + int(re.fullmatch(r'"frame([+-]\d+)"', read["frame"])[1])
    assert int(read["first"]) <= number <= int(read["last"]) and int(read["last"]) - int(read["first"]) == 5
    return number, re.sub(r"\\(.)", r"\1", read["file"].strip('"'))


@pytest.mark.parametrize("first", [1, 76, 1001])
def test_the_plate_of_a_script_is_in_step(tmp_path, first):
    odd = tmp_path / 'a [film] $x "q".mov'
    number, file = plate_frame(made().to_nuke(tmp_path / "a.nk", odd, first=first), first + 3)
    assert (number, file) == (76 + 3 + 1, str(odd))
    (tmp_path / "plates").mkdir()
    for n in (1000, 1001, 1002): (tmp_path / f"plates/v2_shot.{n}_l.exr").touch()
    (tmp_path / "plates/notes.txt").touch()
    for video in (tmp_path / "plates", tmp_path / "plates/v2_shot.1000_l.exr"):
        number, file = plate_frame(made().to_nuke(tmp_path / "a.nk", video, first=first), first + 3)
        assert (number, Path(file).name) == (1000 + 76 + 3, "v2_shot.%04d_l.exr")
        blender = Blender().run(made().to_blender(tmp_path / "a.py", video, first=first))
        assert Path(blender.video).name == "v2_shot.1000_l.exr"
    (tmp_path / "none").mkdir()
    for write, name in ((made().to_nuke, "b.nk"), (made().to_blender, "b.py")):
        with pytest.raises(PrimenbError, match="no numbered image"): write(tmp_path / name, tmp_path / "none")
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("rate, fps, base", [
    (24, 24, 1), (30000 / 1001, 30, 1.001), (24000 / 1001, 24, 1.001), (12.5, 12, 0.96), (0.5, 1, 2), (120, 120, 1)])
def test_blender_has_the_rate(tmp_path, rate, fps, base):
    render = Blender().run(replace(made(), rate=rate).to_blender(tmp_path / "a.py")).context.scene.render
    assert (render.fps, render.fps_base) == (fps, pytest.approx(base, rel=1e-12))


# ---- images

def plates(track): return np.random.default_rng(1).integers(0, 256, (6, *track.size[::-1], 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_colmap_with_images(tmp_path, kind):
    "Each image that the model names is there, is that film frame, and shows the points where the model says."
    track = made(8, size=(96, 54))
    images = plates(track)
    taken = []
    folder = track.to_colmap(tmp_path / "a", images=(taken.append(1) or i for i in images), image_kind=kind)
    model = pycolmap.Reconstruction(folder / "sparse/0")
    assert len(taken) == 6 and len(model.images) == 5
    assert {i.name for i in model.images.values()} == {p.name for p in (folder / "images").iterdir()}
    for image in model.images.values():
        t = image.image_id - 1
        assert image.name == f"frame_{76 + t:06d}.{kind}"
        stored = Image.open(folder / "images" / image.name)
        if kind == "png": np.testing.assert_array_equal(np.asarray(stored), images[t])
        else: assert [c[1:3] for c in stored.layer] == [(1, 1)] * 3, "no chroma subsampling"
        for p in image.points2D:
            seen = image.project_point(model.points3D[p.point3D_id].xyz)
            assert np.abs(seen - p.xy).max() < 0.1


def test_images_that_do_not_fit_change_nothing(tmp_path):
    track = made(size=(96, 54))
    images = plates(track)
    folder = track.to_colmap(tmp_path / "a", images=images)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    def failing():
        yield from images[:4]
        raise OSError("the film ends here")
    other = replace(track, start=500)
    for wrong, error, cause in (
        (images[:5], PrimenbError, "5 for 6"), ([*images, images[0]], PrimenbError, "7 for 6"),
        (images[:, :27], PrimenbError, "image 0"), (images.astype(float), PrimenbError, "float64"),
        (failing(), OSError, "ends here"),
    ):
        for write in (lambda i: other.to_colmap(folder, images=i), lambda i: other.to_transforms(folder / "t.json", i)):
            with pytest.raises(error, match=cause): write(wrong if isinstance(wrong, list) else iter(wrong))
            if wrong is not None and error is OSError: wrong = failing()
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in folder.iterdir()) == ["images", "sparse"]
    with pytest.raises(PrimenbError, match="png or jpg"): track.to_colmap(folder, images=images, image_kind="gif")
    (folder / "images/mine.png").write_bytes(b"")
    with pytest.raises(PrimenbError, match="mine.png"): track.to_colmap(folder, images=images)


def test_a_second_run_leaves_no_image_of_the_first(tmp_path):
    track = made(size=(96, 54))
    images = plates(track)
    folder = track.to_colmap(tmp_path / "a", images=images)
    fewer = replace(track, status=np.array(["solved"] * 2 + ["missing"] * 4), start=77)
    fewer.to_colmap(folder, images=images, image_kind="jpg")
    assert sorted(p.name for p in (folder / "images").iterdir()) == ["frame_000077.jpg", "frame_000078.jpg"]
    assert {i.name for i in pycolmap.Reconstruction(folder / "sparse/0").images.values()} == {
        "frame_000077.jpg", "frame_000078.jpg"
    }


@pytest.mark.parametrize("zoom", [True, False])
def test_transforms_are_nerfstudios(tmp_path, zoom):
    "Poses look along -z with y up; the lens is at the top only if it is fixed; points and world are turned alike."
    track = made(9, size=(96, 54), zoom=zoom)
    path = track.to_transforms(tmp_path / "a/transforms.json", plates(track))
    whole = json.loads(path.read_text())
    assert (whole["w"], whole["h"], "fl_x" in whole) == (96, 54, not zoom) and len(whole["frames"]) == 5
    head, data = (path.parent / whole["ply_file_path"]).read_bytes().split(b"end_header\n", 1)
    assert head.startswith(b"ply\nformat binary_little_endian 1.0\nelement vertex 40\n")
    ply = np.frombuffer(data, [("xyz", "<f4", 3), ("rgb", "u1", 3)])
    np.testing.assert_array_equal(ply["rgb"], track.colours)
    turn = np.array(whole["applied_transform"])
    np.testing.assert_allclose(ply["xyz"], track.points @ turn[:, :3].T + turn[:, 3], atol=1e-5)
    for frame, t in zip(whole["frames"], (0, 1, 3, 4, 5)):
        assert frame["file_path"] == f"images/frame_{76 + t:06d}.png" and (path.parent / frame["file_path"]).exists()
        lens = whole | frame
        X, Y, Z, _ = np.linalg.inv(frame["transform_matrix"]) @ np.c_[ply["xyz"], np.ones(40)].T
        seen = np.stack([lens["cx"] + lens["fl_x"] * X / -Z, lens["cy"] - lens["fl_y"] * Y / -Z], -1)
        assert np.abs(seen - ours(track, t)).max() < 0.01


# ---- wherever a track comes from

@pytest.mark.parametrize("program", [
    "from primenb import load_camera_track as load; load(NPZ)",
    "import primenb; primenb.load_camera_track(NPZ)",
    "from primenb.sfm.mapper import solve_tracks; from primenb import load_camera_track as load; load(NPZ)",
    "import pickle; pickle.load(open(PICKLE, 'rb'))",
    "import copy, pickle; copy.deepcopy(pickle.load(open(PICKLE, 'rb')))",
])
def test_a_track_can_be_written_in_a_fresh_process(tmp_path, program):
    import pickle
    made().save(tmp_path / "a.npz")
    (tmp_path / "a.pickle").write_bytes(pickle.dumps(made()))
    *rest, last = program.split("; ")
    lines = [f"NPZ, PICKLE, OUT = {[str(tmp_path / n) for n in ('a.npz', 'a.pickle', 'a.usdc')]}"]
    lines += [*rest, f"track = {last}", "track.to_usd(OUT)", "print(track.start, type(track).__name__)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.stdout == "76 CameraTrack\n", done.stderr
    assert np.abs(usd_pixels(tmp_path / "a.usdc", 1, made().size) - ours(made(), 0)).max() < 1e-3
