"Cameras leave for other tools and come back unchanged."
import os, sys, types, warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pycolmap
import pytest
from hypothesis import given, settings, strategies as st
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
    )


def usd_pixels(path, code, size):
    stage = Usd.Stage.Open(str(path))
    frustum = UsdGeom.Camera.Get(stage, "/track/camera").GetCamera(code).frustum
    X = np.array(UsdGeom.Points.Get(stage, "/track/points").GetPointsAttr().Get(), float)
    seen = np.c_[X, np.ones(len(X))] @ np.array(frustum.ComputeViewMatrix()) @ np.array(
        frustum.ComputeProjectionMatrix()
    )
    return (seen[:, :2] / seen[:, 3:] * [1, -1] + 1) / 2 * size


def chan_pixels(path, code, X, size):
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
            size[0] / 2 * (1 + seen[0] / -seen[2] / (half * size[0] / size[1])),
            size[1] / 2 * (1 - seen[1] / -seen[2] / half),
        ],
        -1,
    )


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
        self.context = new(scene=new(render=new(), collection=new(objects=new(link=self.linked.append))))

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
    if lens:
        with pytest.raises(PrimenbError, match="to_usd"): track.to_nuke(folder / "a.chan")
    else:
        chan = track.to_nuke(folder / "a.chan", first=1001)
        y_up = (track.points @ upright_rotation(track).T)[:, [0, 2, 1]] * [1, 1, -1]
        assert len(chan.read_text().splitlines()) == 5
    for t in (0, 1, 3, 5):
        assert np.abs(usd_pixels(usd, 1001 + t, size) - ours(track, t)).max() < 1e-3
        assert np.abs(blender.pixels(1001 + t) - ours(track, t)).max() < 1e-3
        if not lens: assert np.abs(chan_pixels(chan, 1001 + t, y_up, size) - ours(track, t)).max() < 1e-3
    assert ("location", 1003) not in blender.keys


@pytest.mark.parametrize("binary", [True, False])
def test_colmap_reads_what_we_wrote(tmp_path, binary):
    track = made(3)
    track.to_colmap(tmp_path / "a/model", not binary)
    model = pycolmap.Reconstruction(track.to_colmap(tmp_path / "a/model", binary))
    assert {
        f.suffix for f in (tmp_path / "a/model").iterdir()
    } == {".bin" if binary else ".txt"}, "the other format is gone"
    assert sorted(i.name for i in model.images.values()) == [f"frame_{t:04d}.png" for t in (0, 1, 3, 4, 5)]
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
    folder = track.to_colmap(tmp_path, binary=False)
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
    model = pycolmap.Reconstruction(replace(track, tracks=only).to_colmap(tmp_path / "model"))
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
    assert len(pycolmap.Reconstruction(none.to_colmap(tmp_path / "none")).images) == 5
    none.to_usd(tmp_path / "none.usda")
    Blender().run(none.to_blender(tmp_path / "none.py"))
    assert len(load_camera_track(none.save(tmp_path / "none.npz")).points) == 0


def test_nothing_left_is_refused(tmp_path):
    lost = made(missing=range(6))
    for write in (lost.to_colmap, lost.to_usd, lost.to_nuke, lost.to_blender):
        with pytest.raises(PrimenbError, match="no frame of the track has a camera"): write(tmp_path / "a.usda")
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    track, taken = made(lens=False), tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(PrimenbError, match="name a folder"): track.to_colmap(taken)
    with pytest.raises(PrimenbError, match="ending"): track.to_usd(tmp_path / "a.abc")
    for write, name in (
        (track.to_usd, "a.usda"), (track.to_nuke, "a.chan"), (track.to_blender, "a.py"), (track.save, "a.npz")
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
    stage = Usd.Stage.Open(str(made().to_usd(tmp_path / "a.usda", metres=0.01, first=1001)))
    assert (
        UsdGeom.GetStageUpAxis(stage), UsdGeom.GetStageMetersPerUnit(stage), stage.GetTimeCodesPerSecond()
    ) == ("Z", 0.01, 23.976)
    assert (
        stage.GetStartTimeCode(), stage.GetEndTimeCode(), stage.GetDefaultPrim().GetPath()
    ) == (1001, 1006, "/track")
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
    assert blender.video == str(odd) and blender.clip.frame_start == 5 and blender.lens.show_background_images
    assert np.isclose(blender.context.scene.render.fps / blender.context.scene.render.fps_base, 23.976)
    assert (blender.context.scene.frame_start, blender.context.scene.frame_end, len(blender.linked)) == (5, 10, 2)
    np.testing.assert_allclose([p.color[:3] for p in blender.paint], srgb_to_linear(made().colours), atol=1e-4)


def test_table(tmp_path):
    track = made(4)
    track.table().to_csv(tmp_path / "a.csv", index=False)
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(table.columns) == [
        "frame", "time", "status", "x", "y", "z", "qx", "qy", "qz", "qw", "focal", "sigma_centre", "sigma_rotation"
    ]
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
    model = pycolmap.Reconstruction(track.to_colmap(tmp_path / "model"))
    assert len(model.images) == 8 and len(model.cameras) == 1 and model.compute_mean_reprojection_error() < 1e-6
