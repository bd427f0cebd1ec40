"Cameras leave for other tools and come back unchanged."
import json, os, re, subprocess, sys, types, warnings
from dataclasses import replace
from pathlib import Path

import cv2
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
from primenb.sfm.export import load_colmap, load_transforms, undistort_images
from primenb.sfm.geometry import CameraTrack, Lens, Tracks, project


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



# ---- a lens that bends lines

BENDS = dict(
    k1=Lens(k=(-0.15,)), k2=Lens(k=(0.1, -0.03)), k3=Lens(k=(-0.2, 0.05, 0.01)),
    p=Lens(k=(-0.1, 0.02), p=(0.004, -0.003)), all=Lens(k=(-0.1, 0.02, 0.003), p=(0.004, -0.003)),
    fisheye=Lens("fisheye", k=(0.02, -0.01, 0.003, -0.001)),
)


def through(track, lens):
    "The track as a lens shows it."
    t = track.tracks
    return replace(track, lens=lens, tracks=replace(t, xy=lens.distort(t.xy, track.K[t.frame])))


def smooth(track, T=6):
    "Images in which a tenth of a pixel shows, and which interpolation hardly changes."
    noise = np.random.default_rng(2).normal(128, 900, (T, *track.size[::-1], 3))
    return np.stack([np.clip(cv2.GaussianBlur(image, (0, 0), 3), 0, 255) for image in noise]).astype(np.uint8)


@pytest.mark.parametrize("bends", BENDS)
def test_a_straightened_image_is_what_a_pinhole_shows(bends):
    "Against OpenCV's own maps, where the film shows anything."
    lens, track = BENDS[bends], made(lens=False, zoom=False, size=(240, 136))
    K = track.K[0]
    images = smooth(track)
    found = np.stack([*undistort_images(replace(track, lens=lens), images)])
    half = K.copy()
    half[:2, 2] -= 0.5  # OpenCV counts from the middle of the first pixel
    if lens.model == "fisheye":
        maps = cv2.fisheye.initUndistortRectifyMap(half, np.array(lens.numbers), None, half, track.size, cv2.CV_32FC1)
    else: maps = cv2.initUndistortRectifyMap(half, np.array(lens.numbers), None, half, track.size, cv2.CV_32FC1)
    expected = np.stack([cv2.remap(image, *maps, cv2.INTER_CUBIC) for image in images])
    assert np.abs(found.astype(int) - expected).max() <= 4 and np.abs(found.astype(int) - images).max() > 20


def test_images_to_straighten():
    track = through(made(zoom=True), BENDS["k2"])
    images = smooth(track)
    found = [*undistort_images(track, iter(images))]
    alone = [*undistort_images(replace(track, K=track.K[[3] * 6]), images[[3] * 6])]
    assert (alone[0] == found[3]).all() and (alone[0] != [*undistort_images(track, images[[3] * 6])][0]).any()
    half = [cv2.resize(image, (240, 135), interpolation=cv2.INTER_AREA) for image in images]
    small, large = [*undistort_images(track, half)][2], cv2.resize(found[2], (240, 135), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - large)[4:-4, 4:-4].mean() < 2
    plain = replace(track, lens=Lens())
    assert all(a is b for a, b in zip(undistort_images(plain, half), half))
    more, whole = [*images, images[0]], [images[0].astype(int)]
    for wrong, cause in ((more, "more than 6"), (whole, "int64"), ([images[0, 0, 0]], "3,")):
        with pytest.raises(PrimenbError, match=cause): [*undistort_images(track, wrong)]
    barrel = replace(track, lens=Lens(k=(-0.9,)))  # beyond its turning point it shows nothing, not the middle once more
    corner = [*undistort_images(barrel, np.full_like(images, 200))][0]
    assert (corner[0, 0] == 0).all() and (corner[135, 240] == 200).all()


def read_exr(path):
    import OpenEXR
    channels = OpenEXR.File(str(path), separate_channels=True).channels()
    assert channels["R"].pixels.dtype == np.float32
    return channels["R"].pixels, channels["G"].pixels


@pytest.mark.parametrize("bends", ["p", "fisheye"])
def test_stmaps_are_read_as_nuke_reads_them(tmp_path, bends):
    "Red from the left, green from below, 0 to 1 over the image, pixels at their middles."
    track = replace(made(zoom=False, size=(96, 54)), lens=BENDS[bends])
    there, back = track.to_stmap(tmp_path / "maps")
    image = smooth(track, 1)[0]
    u, v = read_exr(there)
    seen = cv2.remap(image, u * 96 - 0.5, (1 - v) * 54 - 0.5, cv2.INTER_CUBIC)
    assert np.abs(seen.astype(int) - next(undistort_images(track, [image]))).max() <= 3
    for path, way in ((there, track.lens.distort), (back, track.lens.undistort)):
        u, v = read_exr(path)
        for x, y in ((0, 0), (70, 10), (95, 53)):
            expected = way(np.array([x + 0.5, y + 0.5]), track.K[0]) / (96, 54)
            np.testing.assert_allclose([u[y, x], 1 - v[y, x]], expected, atol=1e-6)


def test_a_zoom_has_a_map_for_each_frame(tmp_path):
    track = replace(made(size=(96, 54)), lens=BENDS["k1"])
    there, back = track.to_stmap(tmp_path / "maps", first=1001)
    assert there.name == "undistort.%04d.exr" and len(list((tmp_path / "maps").iterdir())) == 12
    u, _ = read_exr(tmp_path / "maps/redistort.1004.exr")
    assert u[9, 5] == pytest.approx(track.lens.undistort(np.array([5.5, 9.5]), track.K[3])[0] / 96, abs=1e-6)


def test_where_there_is_nothing_a_map_says_so(tmp_path):
    track = replace(made(zoom=False, size=(96, 54)), lens=Lens(k=(-0.9,)))
    track.K[:, [0, 1], [0, 1]] = 60
    u, v = read_exr(track.to_stmap(tmp_path)[0])
    assert (u[0, 0], v[0, 0]) == (-1, -1) and 0 < u[27, 48] < 1


COLMAPS = dict(k1="SIMPLE_RADIAL", k2="RADIAL", k3="FULL_OPENCV", p="OPENCV", all="FULL_OPENCV",
               fisheye="OPENCV_FISHEYE")


@pytest.mark.parametrize("bends", BENDS)
@pytest.mark.parametrize("oblong", [False, True])
def test_colmap_has_the_lens(tmp_path, bends, oblong):
    track = through(made(3, lens=oblong, zoom=False), BENDS[bends])
    track.tracks.xy[:] += np.random.default_rng(0).normal(0, 0.5, track.tracks.xy.shape)
    film = pycolmap.Reconstruction(track.to_colmap(tmp_path / "film", distorted=True) / "sparse/0")
    straight = pycolmap.Reconstruction(track.to_colmap(tmp_path / "straight") / "sparse/0")
    name = "OPENCV" if oblong and bends in ("k1", "k2") else COLMAPS[bends]
    assert film.cameras[1].model.name == name and straight.cameras[1].model.name == "PINHOLE"
    t = track.tracks
    ours = np.linalg.norm(track.pixels(track.points[t.track], t.frame)[0] - t.xy, axis=1)
    for p, point in enumerate(film.points3D[i] for i in sorted(film.points3D)):
        assert point.error == pytest.approx(np.nanmean(ours[(t.track == p) & (t.frame != 2)]), abs=1e-6)
    pinhole = track.undistorted()
    for p, point in enumerate(straight.points3D[i] for i in sorted(straight.points3D)):
        seen = ours_straight(pinhole, p)
        assert point.error == pytest.approx(seen, abs=1e-6)


def ours_straight(track, p):
    rows = (track.tracks.track == p) & (track.tracks.frame != 2)
    t = track.tracks.frame[rows]
    xy = project(track.points[p], track.cam_from_world[t], track.K[t])[0]
    return np.linalg.norm(xy - track.tracks.xy[rows], axis=1).mean()


@pytest.mark.parametrize("bends", ["k2", "fisheye"])
def test_colmap_straightens_as_we_do(tmp_path, bends):
    "From the film's images, but for its own size and focal length, which leave no black corner."
    track = through(made(lens=False, zoom=False, size=(240, 136)), BENDS[bends])
    images = smooth(track)
    film = track.to_colmap(tmp_path / "film", images=images, distorted=True)
    ours = track.to_colmap(tmp_path / "ours", images=images)
    pycolmap.undistort_images(tmp_path / "theirs", film / "sparse/0", film / "images")
    lens = pycolmap.Reconstruction(tmp_path / "theirs/sparse").cameras[1]
    x, y = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    at = np.stack([x, y, np.ones_like(x)], -1) @ (track.K[0] @ np.linalg.inv(lens.calibration_matrix())).T
    for name in ("frame_000077.png", "frame_000081.png"):
        np.testing.assert_array_equal(Image.open(film / "images" / name), images[int(name[6:12]) - 76])
        theirs, own = (np.asarray(Image.open(tmp_path / who / "images" / name)) for who in ("theirs", "ours"))
        same = cv2.remap(own, (at[..., :2] - 0.5).astype(np.float32), None, cv2.INTER_CUBIC)
        off = np.abs(same.astype(int) - theirs)[8:-8, 8:-8]  # it interpolates linearly
        assert off.mean() < 2 and np.quantile(off, 0.999) < 12


@pytest.mark.parametrize("bends", BENDS)
def test_tools_that_know_pinholes_get_that_of_the_straight_plate(tmp_path, bends):
    "Camera files are those of the same track without its lens."
    track = made(lens=False, zoom=False)
    film = replace(track, lens=BENDS[bends])
    for name, write in (("a.usda", "to_usd"), ("a.chan", "to_nuke"), ("a.nk", "to_nuke"), ("a.py", "to_blender")):
        a, b = (getattr(one, write)(tmp_path / kind / name) for kind, one in (("film", film), ("straight", track)))
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("bends", ["all", "fisheye", "k1"])
def test_transforms_have_the_lens(tmp_path, bends):
    track = through(made(9, size=(96, 54), zoom=False), BENDS[bends])
    images = plates(track)
    straight = json.loads(track.to_transforms(tmp_path / "a/transforms.json", images).read_text())
    film = json.loads(track.to_transforms(tmp_path / "b/transforms.json", images, distorted=True).read_text())
    assert straight["camera_model"] == "PINHOLE" and "k1" not in straight
    k = dict(zip(("k1", "k2", "k3", "k4"), (*track.lens.k, 0, 0, 0)))
    if bends == "fisheye": assert (film["camera_model"], "p1" in film) == ("OPENCV_FISHEYE", False)
    else: assert film["camera_model"] == "OPENCV" and (film["p1"], film["p2"]) == (track.lens.p or (0, 0))
    assert {name: film[name] for name in k if name in film} == {name: k[name] for name in k if name in film}
    name = film["frames"][0]["file_path"]
    np.testing.assert_array_equal(Image.open(tmp_path / "b" / name), images[0])
    np.testing.assert_array_equal(Image.open(tmp_path / "a" / name), next(undistort_images(track, images)))


@pytest.mark.parametrize("zoom", [False, True])
def test_nuke_straightens_the_plate(tmp_path, zoom):
    "An STMap node takes the node before it as its source, and the one before that as its map."
    track = through(made(zoom=zoom, size=(96, 54)), BENDS["fisheye"])
    script = track.to_nuke(tmp_path / "a.nk", tmp_path / "film.mov", first=1001)
    nodes = re.findall(r"^(\w+) {\n(.*?)^}", script.read_text(), re.S | re.M)
    kinds = [kind for kind, _ in nodes]
    assert kinds == ["Root", "Read", "Read", "Read", "STMap", "Camera2"]
    knobs = [dict(line.strip().split(" ", 1) for line in text.splitlines()) for _, text in nodes]
    assert [k["name"] for k in knobs[1:]] == ["RedistortMap", "UndistortMap", "Plate", "Undistort", "Camera"]
    assert (knobs[4]["inputs"], knobs[4]["uv"], knobs[2]["raw"]) == ("2", "rgb", "true")
    file = Path(knobs[2]["file"].strip('"'))
    assert (knobs[2]["first"], knobs[2]["last"]) == ("1001", "1006" if zoom else "1001")
    there = file.with_name(file.name % 1004) if zoom else file
    assert there.parent == tmp_path / "stmap" and there.exists()
    expected = track.lens.distort(np.array([5.5, 9.5]), track.K[3] if zoom else track.K[0])
    assert read_exr(there)[0][9, 5] == pytest.approx(expected[0] / 96, abs=1e-6)
    track.to_nuke(tmp_path / "b.nk", tmp_path / "film.mov", maps=tmp_path / "other")
    assert (tmp_path / "other").is_dir()
    lost = through(made(missing=range(6)), BENDS["k1"])
    with pytest.raises(PrimenbError): lost.to_nuke(tmp_path / "c/c.nk", tmp_path / "film.mov")
    assert not (tmp_path / "c").exists()


def test_a_clip_that_cannot_hold_the_lens_is_the_straight_one(tmp_path):
    for track in (through(made(zoom=False), BENDS["fisheye"]), through(made(zoom=True), BENDS["k1"])):
        with pytest.raises(PrimenbError, match="neither a fisheye nor a zoom"):
            track.to_blender(tmp_path / "a.py", tmp_path / "film.mov")
        images = track.to_colmap(tmp_path / "colmap", images=smooth(track)) / "images"
        script = track.to_blender(tmp_path / "a.py", tmp_path / "film.mov", straight=images)
        blender = Blender().run(script)
        assert Path(blender.video).name == "frame_000076.png" and blender.clip.frame_offset == 0
        assert "the undistorted one" in script.read_text()
        (images / "frame_000076.png").unlink()  # a plate that begins later
        later = Blender().run(track.to_blender(tmp_path / "a.py", tmp_path / "film.mov", straight=images))
        assert Path(later.video).name == "frame_000077.png" and later.clip.frame_offset == -1


@pytest.mark.parametrize("bends", BENDS)
def test_a_saved_lens_comes_back(tmp_path, bends):
    track = through(made(6), replace(BENDS[bends], readout=0.4))
    again = load_camera_track(track.save(tmp_path / "a.npz"))
    assert again.lens == track.lens
    same(again, track)
    arrays = dict(np.load(tmp_path / "a.npz"))
    for wrong in ("{", "[1]", '{"model": "fishy"}', '{"k": ["a"]}', '{"colour": 1}'):
        np.savez(tmp_path / "b.npz", **arrays | dict(lens=np.array(wrong)))
        with pytest.raises(PrimenbError, match="b.npz.*lens"): load_camera_track(tmp_path / "b.npz")


def test_older_files_are_read(tmp_path):
    "A pinhole's file is as it was before there were lenses."
    track = made(6)
    arrays = dict(np.load(track.save(tmp_path / "a.npz")))
    assert arrays["version"] == 2 and "lens" not in arrays
    del arrays["start"]
    np.savez(tmp_path / "b.npz", **arrays | dict(version=1))
    assert load_camera_track(tmp_path / "b.npz").start == 0 and load_camera_track(tmp_path / "b.npz").lens == Lens()


# ---- models of others

def comes_back(again, track, points=1e-9):
    there = track.posed
    np.testing.assert_allclose(again.cam_from_world[there], track.cam_from_world[there], atol=1e-9)
    np.testing.assert_allclose(again.K[there], track.K[there], atol=1e-9)
    assert (again.status == track.status).all() and (again.posed == there).all() and np.isfinite(again.K).all()
    assert (again.size, again.start, again.rate) == (track.size, track.start, track.rate)
    assert again.lens.model == track.lens.model and np.allclose(again.lens.numbers, track.lens.numbers, atol=1e-12)
    np.testing.assert_allclose(again.points, track.points, atol=points)
    np.testing.assert_array_equal(again.colours, track.colours)


@pytest.mark.parametrize("bends", [None, *BENDS])
@pytest.mark.parametrize("binary", [True, False])
def test_colmap_there_and_back(tmp_path, bends, binary):
    track = made(4)
    if bends: track = through(track, BENDS[bends])
    folder = track.to_colmap(tmp_path, binary, distorted=True)
    again = load_colmap(folder, 23.976)
    comes_back(again, track)
    kept = track.tracks.keep(track.tracks.frame != 2)[0]
    for name in ("frame", "track"): np.testing.assert_array_equal(getattr(again.tracks, name), getattr(kept, name))
    np.testing.assert_allclose(again.tracks.xy, kept.xy, atol=1e-9)
    assert (again.tracks.frames, again.tracks.size) == (6, track.size)
    same(load_colmap(folder / "sparse/0"), load_colmap(folder))
    load_camera_track(again.save(tmp_path / "a.npz"))


@pytest.mark.parametrize("bends", [None, "all", "fisheye"])
@pytest.mark.parametrize("zoom", [True, False])
def test_transforms_there_and_back(tmp_path, bends, zoom):
    track = made(4, zoom=zoom)
    if bends: track = through(track, BENDS[bends])
    comes_back(load_transforms(track.to_transforms(tmp_path / "t.json", distorted=True), 23.976), track, 1e-5)


MODELS = dict(SIMPLE_PINHOLE=[300, 160, 90], PINHOLE=[300, 310, 160, 90], SIMPLE_RADIAL=[300, 160, 90, 0.1],
              RADIAL=[300, 160, 90, 0.1, -0.02], OPENCV=[300, 310, 161, 92, 0.1, -0.02, 0.003, 0.004],
              FULL_OPENCV=[300, 310, 161, 92, 0.1, -0.02, 0.003, 0.004, 0.01, 0, 0, 0],
              OPENCV_FISHEYE=[300, 310, 161, 92, 0.1, -0.02, 0.01, 0.001], SIMPLE_RADIAL_FISHEYE=[300, 160, 90, 0.1],
              RADIAL_FISHEYE=[300, 160, 90, 0.1, -0.02])


def model_of(folder, cameras, names, points=()):
    "A model by pycolmap, its images in turn by the cameras."
    model, rng = pycolmap.Reconstruction(), np.random.default_rng(0)
    for n, (name, numbers) in enumerate(cameras, 1):
        camera = pycolmap.Camera(camera_id=n, model=name, width=320, height=180, params=numbers)
        model.add_camera_with_trivial_rig(camera)
    for i, name in enumerate(names, 1):
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(Rotation.random(random_state=i).as_quat()), rng.normal(size=3))
        camera_id = (i - 1) % len(cameras) + 1
        image = pycolmap.Image(name=name, keypoints=rng.uniform(0, 90, (4, 2)), camera_id=camera_id, image_id=i)
        model.add_image_with_trivial_frame(image, pose)
    for elements in points:
        model.add_point3D(rng.normal(size=3), pycolmap.Track([pycolmap.TrackElement(*e) for e in elements]),
                          np.array([1, 2, 3], np.uint8))
    folder.mkdir(parents=True, exist_ok=True)
    model.write_text(folder)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_every_model_shows_what_colmap_shows(tmp_path, name):
    model = model_of(tmp_path, [(name, MODELS[name])], ["b/shot_0012.jpg", "b/shot_0010.jpg"])
    track = load_colmap(tmp_path)
    assert (track.start, track.status.tolist()) == (10, ["solved", "missing", "solved"])
    for i, t in ((1, 2), (2, 0)):
        image = model.images[i]
        X = image.cam_from_world().inverse() * np.array([[0.3, 0.1, 1], [-0.4, -0.2, 1.5]])
        seen = np.array([image.project_point(x) for x in X])
        np.testing.assert_allclose(track.pixels(X, np.array([t, t]))[0], seen, atol=1e-6)


def test_points_as_they_are_seen(tmp_path):
    "A point that an image shows twice counts once, and one that none shows is the last."
    elements = [[(1, 0), (2, 3), (2, 1)], [], [(2, 2)]]
    model = model_of(tmp_path, [("PINHOLE", MODELS["PINHOLE"])], ["f_2.png", "f_1.png"], elements)
    track = load_colmap(tmp_path)
    assert track.tracks.frame.tolist() == [0, 1, 0] and track.tracks.track.tolist() == [0, 0, 1]
    np.testing.assert_allclose(track.points, [model.points3D[n].xyz for n in (1, 3, 2)])
    np.testing.assert_allclose(track.tracks.xy[1], model.images[1].points2D[0].xy)
    np.testing.assert_allclose(track.tracks.xy[0], model.images[2].points2D[3].xy)


def test_models_that_are_none(tmp_path):
    plain = "PINHOLE", MODELS["PINHOLE"]
    def refused(cause, cameras=(plain,), names=("f_1.png",)):
        model_of(tmp_path / "m", cameras, names)
        with pytest.raises(PrimenbError, match=cause): load_colmap(tmp_path / "m")
    refused("'no.png' has no number", names=("f_1.png", "no.png"))
    refused("another image has the number of 'a/f_1.png'", names=("a/f_1.png", "b/f_1.png"))
    refused("none of frames", names=("1403636579763555584.png", "1403636579813555456.png"))
    refused("more than one lens", [("SIMPLE_RADIAL", [300, 160, 90, k]) for k in (0.1, 0.2)], ("f_1.png", "f_2.png"))
    refused("FOV, which is not read", [("FOV", [300, 300, 160, 90, 0.1])])
    refused("denominator", [("FULL_OPENCV", [*MODELS["FULL_OPENCV"][:-1], 0.1])])
    refused("no image of it has a camera", names=())
    with pytest.raises(PrimenbError, match="no model of COLMAP"): load_colmap(tmp_path)
    with pytest.raises(PrimenbError, match="no model of COLMAP"): load_colmap(tmp_path / "none")
    (tmp_path / "m/images.txt").write_text("1 2 three")
    with pytest.raises(PrimenbError, match="COLMAP cannot read it"): load_colmap(tmp_path / "m")


def test_transforms_of_relatives(tmp_path):
    "A focal length as an angle, images without an ending, a world that was turned and scaled, sizes of the images."
    pose = made(0, missing=()).cam_from_world
    world = np.linalg.inv(pose) @ np.diag([1, -1, -1, 1])
    turn = np.array([[0, 1, 0, 1.0], [1, 0, 0, 2], [0, 0, -1, 3]])
    moved = np.concatenate([turn, [[0, 0, 0, 1]]]) @ world
    moved[:, :3, 3] *= 0.25
    frames = [dict(file_path=f"./train/r_{n}", transform_matrix=M.tolist()) for n, M in zip((8, 7, 9), moved)]
    whole = dict(camera_angle_x=1.0, w=320, h=180, applied_transform=turn.tolist(), applied_scale=0.25, frames=frames)
    path = tmp_path / "transforms_train.json"
    path.write_text(json.dumps(whole))
    track = load_transforms(path)
    np.testing.assert_allclose(track.cam_from_world, pose[[1, 0, 2]], atol=1e-9)
    np.testing.assert_allclose(track.K[0], [[160 / np.tan(0.5), 0, 160], [0, 160 / np.tan(0.5), 90], [0, 0, 1]])
    assert (track.start, len(track.points), track.lens) == (7, 0, Lens())
    (tmp_path / "train").mkdir()
    for frame in frames:
        frame["file_path"] += ".png"
        Image.new("RGB", (320, 180)).save(tmp_path / frame["file_path"])
    path.write_text(json.dumps({name: value for name, value in whole.items() if name not in "wh"}))
    assert load_transforms(path).size == (320, 180)


def spoilt_json(whole, how):
    "The file with one thing wrong, and what must be said of it."
    frame = whole["frames"][1]
    if how == "matrix": frame["transform_matrix"] = frame["transform_matrix"][:2]
    if how == "words": frame["transform_matrix"][0][0] = "one"
    if how == "mirror": frame["transform_matrix"][0] = [-v for v in frame["transform_matrix"][0]]
    if how == "path": del frame["file_path"]
    if how == "focal": whole["fl_x"] = "wide"
    if how == "size": del whole["w"]
    if how == "model": whole["camera_model"] = "EQUIRECTANGULAR"
    if how == "empty": whole["frames"] = []
    if how == "frames": del whole["frames"]
    if how == "number": frame["file_path"] = "images/poster.png"
    if how == "ply": whole["ply_file_path"] = "none.ply"
    return dict(matrix="no matrix of four columns", words="no matrix of four", mirror="no rotation and a shift",
                path="no file_path", focal="fl_x is 'wide'", size="w is None", model="EQUIRECTANGULAR",
                empty="no image of it", frames="no list of frames", number="has no number", ply="none.ply")[how]


@pytest.mark.parametrize("how", ["matrix", "words", "mirror", "path", "focal", "size", "model", "empty", "frames",
                                 "number", "ply"])
def test_what_is_wrong_with_transforms_is_named(tmp_path, how):
    path = made(zoom=False).to_transforms(tmp_path / "t.json")
    whole = json.loads(path.read_text())
    cause = spoilt_json(whole, how)
    path.write_text(json.dumps(whole))
    with pytest.raises(PrimenbError, match=cause): load_transforms(path)


def test_what_is_no_transforms(tmp_path):
    (tmp_path / "t.json").write_text("{")
    for name, cause in (("t.json", "no JSON"), ("none.json", "none.json")):
        with pytest.raises(PrimenbError, match=cause): load_transforms(tmp_path / name)
    path = made(zoom=False).to_transforms(tmp_path / "t.json")
    ply = tmp_path / "t.ply"
    whole = ply.read_bytes()
    for cut in (0, 30, len(whole) - 1):
        ply.write_bytes(whole[:cut])
        with pytest.raises(PrimenbError, match="t.ply: its points cannot be read"): load_transforms(path)
    ply.write_text("ply\nformat ascii 1.0\nelement vertex 2\nproperty float x\nproperty double y\nproperty float z\n"
                   "end_header\n1 2 3\n4 5 6.5\n")
    track = load_transforms(path)
    turned = track.points @ np.array(json.loads(path.read_text())["applied_transform"])[:, :3].T
    np.testing.assert_allclose(turned, [[1, 2, 3], [4, 5, 6.5]], atol=1e-9)
    assert (track.colours == 128).all()


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
