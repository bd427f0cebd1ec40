"Places: what everyone who puts people and cameras into them may rely on."
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from primenb.core import PrimenbError
from primenb.render import box, lathe, loft, panel, put, slab, thing
from primenb.studio.world import PLACES, SURFACES, blob, build_place, photographs, ridge, surface

which = st.tuples(st.sampled_from(list(PLACES)), st.integers(0, 10_000), st.sampled_from(["day", "dusk", "night"]))
few = settings(max_examples=15, deadline=None, derandomize=True)


def corners(item):
    "(m,3,3) corners of an item's triangles in the world."
    p = item.mesh.points @ item.pose[:3, :3].T + item.pose[:3, 3]
    return p[item.mesh.faces.reshape(-1, 4)[:, 1:]]


def content(place):
    "Everything a place consists of, to be compared."
    meshes = [
        (
            i.name, i.mesh.points.tobytes(),
            i.mesh.active_texture_coordinates.tobytes(), i.texture.tobytes(), i.pose.tobytes(), i.glow,
        )
        for i in place.items
    ]
    return meshes, place.lamps, place.ambient, place.sky, place.floor, place.room, place.marks.tobytes(), place.light


@few
@given(which)
def test_floor_is_free_and_marks_are_apart(which):
    place = build_place(*which)
    x0, x1, y0, y1 = place.floor
    assert x1 - x0 >= 6 and y1 - y0 >= 4 and x0 < 0 < x1 and y0 < 0 < y1
    for item in place.items:
        triangles = corners(item)
        (ax, ay, az), (bx, by, bz) = triangles.min(1).T, triangles.max(1).T
        inside = (ax < x1) & (bx > x0) & (ay < y1) & (by > y0) & (az < 2) & (bz > 0.05)
        assert not inside.any(), item.name
    x, y, facing = place.marks.T
    assert len(x) >= 4 and np.isfinite(facing).all()
    assert ((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)).all()
    assert (np.hypot(x - x[:, None], y - y[:, None]) + 9 * np.eye(len(x)) >= 1).all()


@few
@given(which)
def test_items_can_be_drawn(which):
    place = build_place(*which)
    assert len(place.items) <= 60 and sum(i.mesh.n_cells for i in place.items) <= 15_000
    for item in place.items:
        normals, uv = item.mesh.point_data.active_normals, item.mesh.active_texture_coordinates
        assert item.mesh.is_all_triangles and np.abs(np.linalg.norm(normals, axis=1) - 1).max() < 1e-4, item.name
        assert uv.shape == (item.mesh.n_points, 2) and np.isfinite(uv).all() and item.texture.dtype == np.uint8
        assert item.texture.std((0, 1)).max() > 2, f"{item.name} is flat"
        a, b, c = item.mesh.points[item.mesh.faces.reshape(-1, 4)[:, 1:]].transpose(1, 0, 2)
        front = (np.cross(b - a, c - a) * normals[item.mesh.faces.reshape(-1, 4)[:, 1:]].sum(1)).sum(1) > 0
        assert front.all() if item.one_sided else front.mean() > 0.9, item.name
        assert np.allclose(item.pose[:3, :3] @ item.pose[:3, :3].T, np.eye(3))


@few
@given(which)
def test_light_is_sane(which):
    place = build_place(*which)
    assert 1 <= len(place.lamps) <= 3 and place.light
    for colour in (place.ambient, *place.sky, *(lamp.colour for lamp in place.lamps)):
        assert len(colour) == 3 and all(0 <= c <= 1 for c in colour) and all(isinstance(c, float) for c in colour)
    assert (max(place.ambient) < 0.45) >= (place.time == "night")


@few
@given(which)
def test_rooms_are_closed_and_land_is_wide(which):
    place = build_place(*which)
    points = np.concatenate([corners(i).reshape(-1, 3) for i in place.items])
    if place.room is None:
        assert np.abs(points[:, :2]).max() >= 60
        return
    x0, x1, y0, y1, height = place.room
    assert x1 - x0 >= 8 and y1 - y0 >= 6 and place.floor[0] > x0 and place.floor[3] < y1
    assert (points >= np.array([x0, y0, 0]) - 0.01).all() and (points <= np.array([x1, y1, height]) + 0.01).all()
    walls = [corners(i).reshape(-1, 3) for i in place.items if i.name == "wall"]
    assert all(i.one_sided for i in place.items if i.name in ("wall", "ceiling"))
    assert len(walls) == 4 and all(np.isclose(np.ptp(w[:, 2]), height) for w in walls)
    for i in (i for i in place.items if i.name == "wall"):
        outwards = corners(i).reshape(-1, 3).mean(0) * (1, 1, 0)
        assert (i.mesh.point_data.active_normals @ i.pose[:3, :3].T @ outwards < 0).all()


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.sampled_from(list(PLACES)), st.integers(0, 10_000))
def test_same_numbers_same_place(kind, seed):
    first = content(build_place(kind, seed))
    build_place("park", seed + 1)
    assert content(build_place(kind, seed)) == first != content(build_place(kind, seed + 1))


@pytest.mark.parametrize("kind", PLACES)
def test_the_hour_moves_nothing(kind):
    day, night = (build_place(kind, 3, time) for time in ("day", "night"))
    there = [
        [(i.name, i.mesh.points.tobytes(), i.pose.tobytes()) for i in p.items if i.name != "lit window"]
        for p in (day, night)
    ]
    assert there[0] == there[1] and day.light != night.light and (day.marks == night.marks).all()


def test_unknown_names_are_refused():
    with pytest.raises(PrimenbError, match="living room"): build_place("moon", 0)
    with pytest.raises(PrimenbError, match="dusk"): build_place("park", 0, "noon")
    with pytest.raises(PrimenbError, match="brick"): surface("cheese", np.random.default_rng(0))


@pytest.mark.parametrize("name", SURFACES)
def test_surfaces_have_fine_and_coarse_detail(name):
    image = surface(name, np.random.default_rng(1)).image.astype(float)
    assert image.shape == (256, 256, 3) and np.abs(np.diff(image, axis=0)).mean() > 0.5
    assert image.reshape(16, 16, 16, 16, 3).mean((1, 3)).std((0, 1)).max() > 0.5


def test_shapes_have_their_size():
    rng = np.random.default_rng(0)
    for shape, size in (
        (box(1.0, 2.0, 3.0), (1, 2, 3)), (panel(2.0, 1.0), (2, 0, 1)), (slab(-1, 1, 0, 3), (2, 3, 0)),
        (lathe(((0, 0), (1, 0), (0, 2)), 8), (2, 2, 2)),
    ):
        assert np.allclose(np.ptp(shape.points, axis=0), size)
    assert np.ptp(ridge(rng, 50, 2, 9).points[:, 2]) == pytest.approx(10) and blob(rng, 1, 1).points[:, 2].min() == 0
    square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    roof = loft(square, square * (1, 0), 1)
    assert (roof.normals[:, 2] > 0.5).sum() >= 4 and np.isfinite(roof.normals).all()


def test_put_moves_in_front_of_what_was_there():
    cup = put(put(thing("cup", box(1.0, 1.0, 1.0), photographs()[1]), 1, 0), 0, 2, 0.5, np.pi / 2)[0]
    assert np.allclose(cup.pose[:3, 3], (0, 3, 0.5)) and np.allclose(cup.pose[:3, 0], (0, 1, 0))
