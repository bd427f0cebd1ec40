"An object in the image stands where it should, is hidden by what is nearer, and does not move."
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
import pyvista as pv
from hypothesis import given, settings, strategies as st
from scipy.spatial.transform import Rotation

from primenb.core import PrimenbError
from primenb.data.corpus import tracking_shots
from primenb.sfm.export import track_from_cameras, srgb_to_linear
from primenb.sfm.geometry import CameraTrack, Lens, Tracks, project, rays
from primenb.sfm.insert import (
    Lighting, Prop, Spot, box_corners, estimate_lighting, find_ground, find_spot, insert, insertion_drift,
    linear_to_srgb, traffic_cone, write_insert,
)
from primenb.studio.camera import look_at
from primenb.render import Item
from primenb.media.video import encode, probe, read_frames

plain = Lighting(np.full(3, 0.4), np.full(3, 0.8), np.array([0.6, 0, 0.8]), 0.0, 0.0)
pv.vtk_verbosity("off")


def set_up(T=4, size=(160, 90), K=None):
    "A floor at z = 0 and a wall behind it, seen by a camera that moves sideways; points on both."
    rng = np.random.default_rng(0)
    floor = np.c_[rng.uniform(-3, 3, 150), rng.uniform(1, 7, 150), np.zeros(150)]
    wall = np.c_[rng.uniform(-3, 3, 100), np.full(100, 7.0), rng.uniform(0, 3, 100)]
    points = np.concatenate([floor, wall])
    A = np.array([look_at(np.array([x, -2, 1.6]), np.array([x / 2, 4, 0.4])) for x in np.linspace(-0.5, 0.5, T)])
    K = np.tile(np.array([[150, 0, size[0] / 2], [0, 150, size[1] / 2], [0, 0, 1.0]]) if K is None else K, (T, 1, 1))
    xy, z = project(points, A[:, None], K[:, None])
    track, frame = np.nonzero(((xy > 0) & (xy < size)).all(-1).T)
    kept, track = np.unique(track, return_inverse=True)
    tracks = Tracks(frame, track, xy[frame, kept[track]], T, size)
    return CameraTrack(
        size, K, A, np.full(T, "solved", "U13"), points[kept], tracks, np.full((len(kept), 3), 128, np.uint8),
        np.zeros((T, 2)), np.ones(T), 10.0,
    )


def grey(track, value=128): return np.full((len(track.K), track.size[1], track.size[0], 3), value, np.uint8)


here = Spot(np.array([0.0, 3, 0]), np.array([0, 0, 1.0]), np.array([0, -1.0, 0]), 1.0, 2)


@cache
def shot(key): return next(s for s in tracking_shots(check=False) if s.key == key)


@cache
def known(key):
    s = shot(key)
    return track_from_cameras(
        s.cameras.K, s.cameras.cam_from_world, np.where(s.masks, np.nan, s.depth()), s.frames(), s.facts["rate"], 600
    )


# ---- the ground and the spot
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_ground_is_the_floor_not_the_table(seed):
    rng = np.random.default_rng(seed)
    track = set_up()
    table = np.c_[rng.uniform(-1, 1, 400), rng.uniform(2, 4, 400), np.full(400, 0.7)]  # more points than the floor has
    points = np.concatenate([track.points, table]) + rng.normal(0, 0.005, (len(track.points) + 400, 3))
    R = Rotation.random(random_state=seed).as_matrix()
    s = rng.uniform(0.1, 10)
    t = rng.normal(size=3)
    moved = track.cam_from_world @ np.linalg.inv(np.block([[R, t[:, None]], [np.zeros(3), 1]]))
    moved[:, :3, 3] *= s
    found = find_ground(replace(track, cam_from_world=moved, points=s * (points @ R.T + t)))
    assert np.degrees(np.arccos(np.clip(found.up @ R[:, 2], -1, 1))) < 1.5
    assert abs(found.level - s * (R[:, 2] @ t)) < 0.03 * s


def test_ground_from_depth_maps_where_nothing_is_tracked():
    s = shot("track_01")
    track = known("track_01")
    bare = replace(
        track,
        points=track.points[:0],
        colours=track.colours[:0],
        tracks=track.tracks.keep(track.tracks.track < 0)[0],
        depth_scale=np.full(32, 2.0),
    )
    with pytest.raises(PrimenbError, match="depth maps"): find_ground(bare)
    found = find_ground(bare, depth=s.depth() / 2)
    assert found.up[2] > 0.999 and abs(found.level) < 0.05
    spot = find_spot(bare, depth=s.depth() / 2, mask=s.masks)
    assert abs(spot.position[2]) < 0.05 and spot.height > 0


@pytest.mark.parametrize("key", ["track_02", "track_14", "track_23"])
def test_a_spot_is_on_the_floor_free_and_in_the_picture(key):
    s, track = shot(key), known(key)
    spot = find_spot(track, depth=s.depth(), mask=s.masks)
    assert abs(spot.position[2]) < 0.03 and spot.up[2] > 0.995, "the studio's floors are at zero"
    box = box_corners(spot)
    xy, z = project(box, track.cam_from_world[:, None], track.K[:, None])
    assert (z > 0).all() and ((xy > -5) & (xy < np.array(track.size) + 5)).all(-1).mean() > 0.98
    height = np.ptp(xy[spot.frame, 1:, 1])
    assert 0.2 < height / track.size[1] < 0.5, "about the share of the image that was asked for"
    M = spot.world_from_item
    np.testing.assert_allclose(M[:3, :3].T @ M[:3, :3], spot.height**2 * np.eye(3), atol=1e-9)
    assert np.linalg.det(M[:3, :3]) > 0 and np.allclose(M[:3, 2], spot.height * spot.up)


def test_no_ground_no_spot():
    sky = replace(set_up(), cam_from_world=np.array([look_at(np.array([0, -2, 1.6]), np.array([0, 4, 30.0]))] * 4))
    with pytest.raises(PrimenbError): find_spot(sky, up=(0, 0, 1))
    lost = replace(set_up(), status=np.full(4, "missing"))
    with pytest.raises(PrimenbError, match="no frame of it has a camera"): find_spot(lost)


# ---- drawing
@settings(max_examples=8, deadline=None)
@given(st.floats(120, 400), st.floats(0.9, 1.1), st.floats(-30, 30), st.floats(-20, 20), st.floats(0, 6))
def test_the_object_is_where_the_camera_says(f, oblong, right, down, turn):
    "The silhouette of a box is the hull of its projected corners, to a fraction of a pixel, and its depth theirs."
    track = set_up(K=np.array([[f, 0, 80 + right], [0, f * oblong, 45 + down], [0, 0, 1]]))
    spot = replace(here, front=np.array([np.sin(turn), -np.cos(turn), 0]))
    prop = Prop(track, spot, plain, pv.Cube(bounds=(0, 2, 0, 3, -1, 1)))
    for t in (0, 3):
        (w, h), (xy, z) = prop.crop, project(prop.corners, prop.cam_from_item[t], track.K[t])
        expected = cv2.fillConvexPoly(
            np.zeros((h * 16, w * 16), np.float32),
            np.rint(cv2.convexHull(np.float32((xy - prop.corner[t]) * 16)) - 0.5).astype(int),
            1,
        )
        colour, cover, depth = prop.shade(t)
        assert np.abs(cv2.resize(expected, (int(w), int(h)), interpolation=cv2.INTER_AREA) - cover).max() < 0.6
        assert np.abs(cv2.resize(expected, (int(w), int(h)), interpolation=cv2.INTER_AREA) - cover).mean() < 0.012
        full = cover > 0.99
        assert depth[full].min() > z.min() - 1e-3 and depth[full].max() < z.max() + 1e-3
        assert (colour[cover == 0] == 0).all() and np.isfinite(colour).all()
    prop.close()


def test_a_shadow_falls_away_from_the_lamp():
    track = set_up()
    prop = Prop(track, here, plain, pv.Cube(bounds=(-0.2, 0.2, -0.2, 0.2, 0, 1)))
    t, l = 1, plain.towards
    tip = here.position + [-0.95 * l[0] / l[2], 0, 0]  # the lamp is at x > 0
    other = here.position - [-0.95 * l[0] / l[2], 0, 0]
    kept = prop.shadow(t)
    at = lambda X: kept[tuple(project(X, track.cam_from_world[t], track.K[t])[0].astype(int)[::-1])]
    np.testing.assert_allclose(
        at((tip + here.position) / 2), plain.ambient / (plain.ambient + plain.key * l[2]), atol=0.25
    )
    assert at((tip + here.position) / 2).max() < 0.6 < 0.9 < at(other).min()
    assert at(here.position + [0, 3, 0]).min() > 0.95
    assert 0 <= kept.min() and kept.max() <= 1
    prop.close()


def test_light_has_side_and_amount():
    track = set_up()
    frames = grey(track, 60)
    frames[:, :, 80:] = 140
    seen = estimate_lighting(frames, track, here)
    assert seen.towards @ track.cam_from_world[2, 0, :3] > 0.3, "the right side is brighter"
    assert seen.towards @ here.up > 0.5
    assert estimate_lighting(frames[:, :, ::-1], track, here).towards @ track.cam_from_world[2, 0, :3] < -0.3
    assert estimate_lighting(grey(track, 100), track, here).key.mean() > 2 * estimate_lighting(
        grey(track, 60), track, here
    ).key.mean()
    red = grey(track, 60)
    red[..., 0] = 140
    assert estimate_lighting(red, track, here).key[0] > estimate_lighting(red, track, here).key[1]
    assert np.isfinite(
        np.concatenate(estimate_lighting(grey(track, 0), track, here)[:3])
    ).all(), "darkness is dark, not undefined"


def test_a_lit_ball_is_brighter_towards_the_lamp():
    track = set_up()
    prop = Prop(track, here, plain, pv.Sphere(theta_resolution=40, phi_resolution=40))
    colour, cover, _ = prop.shade(1)
    light, x = colour.mean(-1), np.arange(cover.shape[1])
    assert (light * x).sum() / light.sum() > (cover * x).sum() / cover.sum() + 1, "the lamp is on the right"
    prop.close()


def test_srgb_and_linear_undo_each_other():
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(np.arange(256))), np.arange(256), atol=1e-4)
    np.testing.assert_allclose(linear_to_srgb(np.array([-1.0, 2.0])), [0, 255])


# ---- in front and behind
def test_what_is_nearer_hides():
    track = set_up()
    frames, size = grey(track), (90, 160)
    free = insert(track, frames, spot=here)
    changed = (free != frames).any(-1)
    assert changed.any((1, 2)).all() and changed.mean() < 0.35
    near = np.full((4, *size), 0.5)
    far = np.full((4, *size), 50.0)
    half = np.full((4, *size), 50.0)
    half[:, :, :80] = 0.5
    assert (
        insert(track, frames, spot=here, depth=near) == frames
    ).all(), "behind a wall nothing is seen, not even the shadow"
    assert (insert(track, frames, spot=here, depth=far) == free).all()
    cut = insert(track, frames, spot=here, depth=half)
    assert (cut[:, :, :78] == frames[:, :, :78]).all() and (
        np.abs(cut[:, :, 84:].astype(int) - free[:, :, 84:]).max() <= 2
    )
    assert (
        insert(track, frames, spot=here, depth=np.full((4, *size), np.nan)) == free
    ).all(), "what is not measured hides nothing"
    assert (insert(replace(track, depth_scale=np.full(4, np.nan)), frames, spot=here, depth=near) == free).all()
    scaled = insert(replace(track, depth_scale=np.full(4, 0.01)), frames, spot=here, depth=far)
    assert (scaled == frames).all(), "maps are in units after their scale"


def test_a_floor_map_with_errors_does_not_eat_the_foot():
    track = set_up()
    frames = grey(track)
    z = np.array([Prop._floor(type("P", (), dict(track=track, spot=here))(), t, (0, 0), track.size) for t in range(4)])
    z = np.where(z > 0, z, 50)
    free = insert(track, frames, spot=here)
    wavy = z * np.exp(0.05 * np.sin(np.arange(160) / 25) + 0.1)
    assert (np.abs(insert(track, frames, spot=here, depth=wavy).astype(int) - free).max(-1) > 12).mean() < 0.002


def test_people_stand_by_their_feet_or_their_depth():
    track = set_up()
    frames = grey(track)
    free = insert(track, frames, spot=here)
    foot = project(here.position, track.cam_from_world[2], track.K[2])[0][1]
    before, behind = np.zeros((4, 90, 160), bool), np.zeros((4, 90, 160), bool)
    before[:, : int(foot) + 12, 60:100], behind[:, : int(foot) - 8, 60:100] = True, True
    hidden = insert(track, frames, spot=here, mask=before)
    assert (hidden[:, : int(foot) + 10, 62:98] == frames[:, : int(foot) + 10, 62:98]).all()
    unhidden = insert(track, frames, spot=here, mask=behind)
    assert (np.abs(unhidden.astype(int) - free).max(-1) > 3).mean() < 0.02
    depth = np.full((4, 90, 160), 50.0)
    depth[behind] = 2.0  # the map knows better than the feet
    assert (
        insert(
            track, frames, spot=here, mask=behind, depth=depth
        )[:, : int(foot) - 10, 62:98] == frames[:, : int(foot) - 10, 62:98]
    ).all()


def test_frames_without_camera_or_object_stay_as_they_are():
    track = set_up()
    track.cam_from_world[1], track.status[1] = np.nan, "missing"
    frames = np.random.default_rng(0).integers(0, 255, grey(track).shape, dtype=np.uint8)
    made = insert(track, frames, spot=here)
    assert (made[1] == frames[1]).all() and (made[0] != frames[0]).any()
    assert (made == insert(track, frames, spot=here)).all(), "the same again"
    behind = replace(here, position=np.array([0, -9.0, 0]))
    assert (insert(track, frames, spot=behind) == frames).all()
    aside = replace(here, position=np.array([40.0, 3, 0]))
    assert (insert(track, frames, spot=aside) == frames).all()


def test_a_camera_inside_the_object_does_no_harm():
    track = set_up()
    inside = replace(here, position=np.array([0, -2.0, 0]), height=4.0)
    assert insert(track, grey(track), spot=inside).shape == grey(track).shape


@pytest.mark.parametrize(
    "item",
    [
        pv.Sphere(),
        pv.Cube().cast_to_unstructured_grid(),
        pv.ParametricTorus(u_res=20, v_res=20, w_res=20),
        Item("ball", pv.Sphere(), (1, 0, 0)),
        traffic_cone()[:1] + [Item("ball", pv.Sphere())],
    ],
)
def test_items_of_many_kinds(item):
    track = set_up(T=2)
    assert (insert(track, grey(track), item, spot=replace(here, frame=1)) != grey(track)).any((1, 2, 3)).all()


@pytest.mark.parametrize(
    "item, why",
    [
        ("a dog", "cannot be put"),
        ([], "cannot be put"),
        (pv.Plane(), "no height"),
        (pv.PolyData(), "no surface"),
        (pv.PolyData(np.eye(3)), "no surface"),
        ([traffic_cone()[0], 3], "cannot be put"),
    ],
)
def test_items_that_are_none(item, why):
    with pytest.raises(PrimenbError, match=why): insert(set_up(), grey(set_up()), item, spot=here)


# ---- films
def test_films(tmp_path):
    track = set_up()
    rng = np.random.default_rng(1)
    frames = np.clip(
        cv2.resize(rng.integers(90, 160, (6, 10, 3), dtype=np.uint8), (160, 90)) + np.zeros((9, 90, 160, 3), int),
        0,
        255,
    ).astype(np.uint8)
    film = encode(tmp_path / "film.mp4", frames, 10, crf=5)
    out = write_insert(track, film, tmp_path / "deep/er/out.mp4", frames=(3, 7), spot=here, crf=5)
    expected = insert(track, read_frames(film, frames=(3, 7)), spot=here)
    assert probe(out).frames == 4 and np.abs(read_frames(out).astype(int) - expected).mean() < 2
    with pytest.raises(PrimenbError, match="9 frames were selected"):
        write_insert(track, film, tmp_path / "no.mp4", spot=here)
    with pytest.raises(PrimenbError, match="own size"):
        write_insert(replace(track, size=(320, 180)), film, tmp_path / "no.mp4", frames=(3, 7), spot=here)
    with pytest.raises(PrimenbError, match="cannot be put"):
        write_insert(track, film, tmp_path / "no.mp4", "a dog", frames=(3, 7), spot=here)
    with pytest.raises(PrimenbError): write_insert(track, tmp_path / "none.mp4", tmp_path / "no.mp4", spot=here)
    assert not (tmp_path / "no.mp4").exists() and not list(tmp_path.glob(".no*"))


@pytest.mark.parametrize("change", [dict(frames=np.zeros((3, 90, 160, 3), np.uint8)), dict(
    frames=np.zeros((4, 80, 160, 3), np.uint8)
), dict(frames=np.zeros((4, 90, 160, 3))),
                                    dict(depth=np.ones((3, 9, 16))), dict(depth=np.ones((9, 16))), dict(
                                        mask=np.ones((5, 9, 16), bool)
                                    ), dict(mask=True)])
def test_what_does_not_fit_is_refused(change):
    given = dict(frames=grey(set_up()), spot=here) | change
    with pytest.raises(PrimenbError): insert(set_up(), given.pop("frames"), **given)


# ---- drift
@pytest.mark.parametrize("key", ["track_02", "track_13", "track_23", "track_26"])
def test_true_cameras_do_not_drift(key):
    s, track = shot(key), known(key)
    spot = find_spot(track, depth=s.depth(), mask=s.masks)
    found = insertion_drift(track, spot, s.cameras.K, s.cameras.cam_from_world, s.depth())
    assert found.shape == (32, 9) and np.nanmedian(found) < 0.25 and found[spot.frame].max() < 1e-6


def flat_truth(track):
    "K, cameras and depth of a world that is only the floor."
    z = np.array(
        [Prop._floor(type("P", (), dict(track=track, spot=here))(), t, (0, 0), track.size) for t in range(len(track.K))]
    )
    return track.K.copy(), track.cam_from_world.copy(), np.where(z > 0, z, np.inf)


def test_drift_has_known_answers():
    track = set_up()
    gt = flat_truth(track)
    assert insertion_drift(track, here, *gt).max() < 1e-6
    panned = replace(track, K=track.K + 0.0)
    panned.K[[0, 1, 3], 0, 2] += 3  # all but the frame of the spot see everything three pixels to the right
    np.testing.assert_allclose(
        insertion_drift(panned, here, *gt), np.where(np.arange(4)[:, None] == 2, 0, 3) * np.ones(9), atol=1e-6
    )
    M, s = np.eye(4), 0.2
    M[:3, :3], M[:3, 3] = Rotation.random(random_state=3).as_matrix(), [5, -3, 2]
    moved = panned.cam_from_world @ np.linalg.inv(M)
    moved[:, :3, 3] *= s
    R, t = M[:3, :3], M[:3, 3]
    spot = Spot(s * (R @ here.position + t), R @ here.up, R @ here.front, s * here.height, 2)
    np.testing.assert_allclose(
        insertion_drift(replace(panned, cam_from_world=moved), spot, *gt), insertion_drift(panned, here, *gt), atol=1e-6
    )
    sunk = [
        np.nanmedian(insertion_drift(track, replace(here, position=here.position - [0, 0, d]), *gt))
        for d in (0.01, 0.1, 0.3)
    ]
    assert 0 < sunk[0] < sunk[1] < sunk[2], "an object that does not stand on the floor slides over it"
    shaken = track.cam_from_world.copy()
    shaken[:, 0, 3] += [0.05, 0, 0, 0]
    np.testing.assert_allclose(
        insertion_drift(replace(track, cam_from_world=shaken), here, *gt)[0, 0],
        150 * 0.05 / project(here.position, track.cam_from_world[0], track.K[0])[1],
        rtol=1e-3,
    )


def test_drift_where_nothing_is_known():
    track = set_up()
    K, A, depth = flat_truth(track)
    with pytest.raises(PrimenbError, match="not known"): insertion_drift(track, here, K, A, np.full_like(depth, np.nan))
    with pytest.raises(PrimenbError, match="not known"):
        insertion_drift(track, replace(here, position=np.array([30.0, 3, 0])), K, A, depth)
    track.cam_from_world[0] = np.nan
    found = insertion_drift(track, here, K, A, depth)
    assert np.isnan(found[0]).all() and np.isfinite(found[1:]).all()


def test_real_footage(real):
    from primenb.data.public import posed_frames
    part = list(posed_frames(real / "hololens", check=False))[26:38]
    frames, depth = np.array([f.image for f in part]), np.array([f.depth for f in part])
    track = track_from_cameras(
        np.array([f.K for f in part]), np.array([f.cam_from_world for f in part]), depth, frames, 10, 1200
    )
    spot = find_spot(track, depth=depth)
    assert np.degrees(np.arccos(spot.up @ [0, 1, 0])) < 2, "this device's world has y up"
    (x, y), z = project(spot.position, track.cam_from_world[spot.frame], track.K[spot.frame])
    around = depth[spot.frame][int(y) - 4 : int(y) + 5, int(x) - 4 : int(x) + 5]
    assert abs(np.nanmedian(around) / z - 1) < 0.08, "the floor is where the sensor says"
    made = insert(track, frames, depth=depth, spot=spot)
    assert 0.01 < (made != frames).any(-1)[spot.frame].mean() < 0.4


# ---- a lens that bends lines

LENSES = dict(barrel=Lens(k=(-0.15, 0.02)), pincushion=Lens(k=(0.12,)), fisheye=Lens("fisheye", k=(0.02,)),
              tangential=Lens(k=(-0.1,), p=(0.01, -0.008)))


def through(track, lens):
    "The track as a lens shows it; points outside of the film are not seen."
    t = track.tracks
    xy = lens.distort(t.xy, track.K[t.frame])
    tracks, kept = replace(t, xy=xy).keep(((xy > 0) & (xy < track.size)).all(1))
    return replace(track, lens=lens, tracks=tracks, points=track.points[kept], colours=track.colours[kept])


def bent(image, track, lens, how=cv2.INTER_LINEAR):
    "A pinhole's image of any size as a lens shows it, by OpenCV's map."
    h, w = image.shape[:2]
    by = np.divide((w, h), track.size)
    x, y = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    at = lens.undistort(np.stack([x, y], -1) / by, track.K[0]) * by - 0.5
    return cv2.remap(image, at.astype(np.float32), None, how)


@pytest.mark.parametrize("name", LENSES)
@pytest.mark.parametrize("aside", [0.0, 2.2])
def test_an_object_is_bent_as_the_film_is(name, aside):
    "A cube covers the hull of its bent outline, also beyond the straight image's edge, where a barrel still shows it."
    lens, track = LENSES[name], set_up(size=(240, 136))
    film, spot = replace(track, lens=lens), replace(here, position=here.position + [aside, 0, 0])
    bright = plain._replace(ambient=np.full(3, 2.0), key=np.full(3, 1e-6))
    prop = Prop(film, spot, bright, pv.Cube(bounds=(-1, 1, -1, 1, 0, 2)))
    prop.shadows = prop.shadows[0] * 0, prop.shadows[1] * 0
    made = prop.into(grey(film, 20)[0], 1)
    prop.close()
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 60), np.linspace(0, 1, 60))
    faces = [np.stack(p, -1).reshape(-1, 3) for p in (
        (x, 0 * x - 0.5, y), (x, 0 * x + 0.5, y), (0 * x - 0.5, x, y), (0 * x + 0.5, x, y), (x, y - 0.5, 0 * x + 1))]
    spots = np.concatenate(faces) @ spot.world_from_item[:3, :3].T + spot.position
    xy = film.pixels(spots, np.full(len(spots), 1))[0]
    inside = np.floor(xy[((xy > 2) & (xy < np.array(film.size) - 2)).all(1)]).astype(int)
    expected = np.zeros(film.size[::-1], np.uint8)
    expected[inside[:, 1], inside[:, 0]] = 1
    expected = cv2.morphologyEx(expected, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    changed = (made != 20).any(-1)
    assert expected.sum() > 300
    assert changed[cv2.erode(expected, np.ones((3, 3), np.uint8)) > 0].mean() > 0.99
    far = cv2.dilate(expected, np.ones((7, 7), np.uint8)) == 0
    far[:3] = far[-3:] = far[:, :3] = far[:, -3:] = False
    assert changed[far].mean() < 0.001


@pytest.mark.parametrize("name", ["barrel", "fisheye"])
def test_what_is_inserted_is_what_a_lens_makes_of_the_straight_insert(name):
    lens, track = LENSES[name], set_up(size=(240, 136))
    noise = cv2.GaussianBlur(np.random.default_rng(0).normal(128, 600, (136, 240, 3)), (0, 0), 3)
    image = np.uint8(np.clip(noise, 0, 255))
    filmed = bent(image, track, lens)
    straight, film = Prop(track, here, plain), Prop(replace(track, lens=lens), here, plain)
    expected, found = bent(straight.into(image, 1), track, lens), film.into(filmed, 1)
    straight.close()
    film.close()
    changed = (found != filmed).any(-1)
    assert 0.02 < changed.mean() < 0.5
    off = np.abs(expected.astype(int) - found).max(-1)
    assert off[changed].mean() < 4 and (off[changed] > 40).mean() < 0.01
    assert (found[~changed] == filmed[~changed]).all(), "the film is not interpolated"


def test_maps_and_masks_are_those_of_the_film():
    "People who stand before the object in the film hide it there."
    lens, track = LENSES["barrel"], set_up(size=(240, 136))
    film = replace(track, lens=lens)
    prop, image = Prop(film, here, plain), grey(film)[0]
    whole = prop.into(image, 1)
    foot = film.pixels(here.position, np.array(1))[0]
    mask = np.zeros((68, 120), bool)
    mask[int(foot[1] / 2) - 12 : int(foot[1] / 2) + 9, int(foot[0] / 2) - 3 : int(foot[0] / 2) + 4] = True
    hidden = prop.into(image, 1, mask=mask)
    near = np.full((136, 240), np.nan)
    near[:, : int(foot[0])] = 0.5
    left = prop.into(image, 1, depth=near)
    prop.close()
    covered = cv2.erode(cv2.resize(mask.astype(np.uint8), (240, 136), interpolation=cv2.INTER_NEAREST), np.ones((5, 5)))
    assert (whole[covered > 0] != 128).any() and (hidden[covered > 0] == 128).all()
    side = np.s_[:, : int(foot[0]) - 4]
    assert (whole[side] != 128).any() and (left[side] == 128).mean() > 0.99


@pytest.mark.parametrize("name", ["barrel", "tangential"])
def test_a_spot_is_found_through_a_lens(name):
    lens, s = LENSES[name], shot("track_20")
    track = through(known("track_20"), lens)
    deep = np.stack([bent(d.astype(np.float32), track, lens, cv2.INTER_NEAREST) for d in s.depth()])
    mask = np.stack([bent(m.astype(np.uint8), track, lens, cv2.INTER_NEAREST) for m in s.masks]) > 0
    spot = find_spot(track, depth=deep, mask=mask)
    assert abs(spot.position[2]) < 0.03 and spot.up[2] > 0.995
    xy, z = track.pixels(box_corners(spot), np.arange(32)[:, None])
    assert (z > 0).all() and ((xy > -5) & (xy < np.array(track.size) + 5)).all(-1).mean() > 0.98
    gt = s.cameras.K, s.cameras.cam_from_world
    assert np.nanmedian(insertion_drift(track, spot, *gt, deep, lens=lens)) < 0.3


def test_drift_is_that_of_the_film():
    "None with the true lens; a lens that is wrong slides."
    lens, track = LENSES["barrel"], set_up(size=(240, 136))
    x, y = np.meshgrid(np.arange(240) + 0.5, np.arange(136) + 0.5)
    eye, R = track.centres, track.cam_from_world[:, :3, :3]
    down = (rays(lens.undistort(np.stack([x, y], -1), track.K[0]), track.K[0])[None] @ R[:, None])[..., 2]
    depth = np.where(down < -1e-3, -eye[:, 2, None, None] / np.minimum(down, -1e-3), np.nan)
    spot, film = replace(here, position=np.array([0.9, 1.6, 0]), height=0.5), replace(track, lens=lens)
    gt = track.K, track.cam_from_world, depth
    assert np.nanmax(insertion_drift(film, spot, *gt, lens=lens)) < 0.05
    assert np.nanmax(insertion_drift(track, spot, *gt, lens=lens)) > 0.5


def test_a_whole_shot_through_a_lens():
    lens, track = LENSES["barrel"], set_up()
    film = through(track, lens)
    images = insert(film, grey(film), spot=here)
    alone = Prop(film, here, estimate_lighting(grey(film)[::1], film, here))
    np.testing.assert_array_equal(images[2], alone.into(grey(film)[2], 2))
    alone.close()
    assert (images != 128).any((1, 2, 3)).all()
