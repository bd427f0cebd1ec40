"People: what their motion promises, whoever it is and whatever they do."
import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from primenb.core import PrimenbError
from primenb.studio.people import ACTIONS, BONES, SPEED, Identity, Performance

people = st.integers(0, 10**6).map(lambda seed: Identity.draw(np.random.default_rng([seed]), "Ada"))
actions = st.sampled_from(list(ACTIONS))
manners = st.fixed_dictionaries(
    dict(
        phase=st.floats(0, 1), tempo=st.floats(0.6, 1.6), duration=st.floats(1.5, 6), mirror=st.booleans(),
        backwards=st.booleans(),
    )
)
few = settings(max_examples=15, deadline=None)


def lowest(act, t, bones=range(15)):
    poses = act.poses(t)
    return min((act.parts[i].mesh.points @ poses[i, 2, :3] + poses[i, 2, 3]).min() for i in bones)


@few
@given(people, actions, manners, st.floats(0, 1))
def test_parts_are_rigid_finite_and_above_the_floor(who, action, manner, share):
    act = Performance(who, action, at=(3, -2), facing=0.7, **manner)
    t = share * act.duration
    poses = act.poses(t)
    R = poses[:, :3, :3]
    assert poses.shape == (len(act.parts), 4, 4) and 14 <= len(act.parts) <= 22
    assert np.allclose(R.swapaxes(1, 2) @ R, np.eye(3), atol=1e-9) and (np.linalg.det(R) > 0).all()
    assert (poses[:, 3] == (0, 0, 0, 1)).all()
    assert lowest(act, t) > -0.02
    assert np.linalg.norm(act.head(t) - act.centre(t)) < 0.6 * who.height


@few
@given(people, actions, manners)
def test_bones_keep_their_lengths_and_move_smoothly(who, action, manner):
    act, dt = Performance(who, action, **manner), 1 / 120
    joints = np.array([act.poses(t)[:15, :3, 3] for t in np.arange(0, 1.5, dt)])
    for a, b in ((0, 1), (1, 2), (3, 4), (4, 5), (6, 7), (9, 10), (10, 11), (13, 14)):
        assert np.ptp(np.linalg.norm(joints[:, a] - joints[:, b], axis=1)) < 1e-9
    assert np.linalg.norm(np.diff(joints, 2, axis=0), axis=-1).max() / dt**2 < 160 * max(act.tempo, 1) ** 2


@few
@given(people, actions, manners, st.floats(0, 1))
def test_mirror_backwards_and_place_are_what_they_say(who, action, manner, share):
    act = Performance(who, action, **manner)
    t = share * act.duration
    other = Performance(who, action, **manner | dict(mirror=not act.mirror))
    left, right = BONES.index("left hand"), BONES.index("right hand")
    assert np.allclose(act.poses(t)[left, :3, 3] * (1, -1, 1), other.poses(t)[right, :3, 3])
    back = Performance(who, action, **manner | dict(backwards=not act.backwards))
    assert np.allclose(act.poses(t), back.poses(act.duration - t))
    moved = Performance(who, action, at=(1, 2), facing=np.pi / 2, **manner)
    x, y, z = act.centre(t)
    assert np.allclose(moved.centre(t), (1 - y, 2 + x, z))


@pytest.mark.parametrize("action", ACTIONS)
def test_speed_table_says_how_far_it_goes(action):
    who = Identity.draw(np.random.default_rng([1]), "Ada")
    act = Performance(who, action, tempo=1.2, duration=9)
    gone = act.centre(8.5)[:2] - act.centre(0.5)[:2]
    if action in SPEED: assert np.allclose(gone, (8 * 1.2 * SPEED[action], 0), atol=0.05)
    else: assert np.linalg.norm(gone) < 1.2


@few
@given(people, st.sampled_from(["walk", "carry"]), st.floats(0, 1))
def test_walkers_always_have_a_foot_on_the_floor_and_runners_do_not(who, action, phase):
    walk, run = Performance(who, action, phase=phase), Performance(who, "run", phase=phase)
    times = np.arange(0, 1, 1 / 30)
    assert max(lowest(walk, t, (11, 14)) for t in times) < 0.005
    assert max(lowest(run, t, (11, 14)) for t in times) > 0.02


@few
@given(people, st.floats(0.7, 1.5))
def test_jumpers_fall_with_gravity(who, tempo):
    act, dt = Performance(who, "jump", tempo=tempo, duration=1.7 / tempo), 1e-3
    z = np.array([act.centre(t)[2] for t in np.arange(0, act.duration, dt)])
    top = z.argmax()
    assert np.allclose(np.diff(z, 2)[top - 30 : top + 30] / dt**2, -9.81, atol=1e-3)
    assert 0.08 < z[top] - z[0] < 0.4


@few
@given(people)
def test_what_happens_once_has_happened(who):
    sit, fall, turn = (Performance(who, a, duration=3) for a in ("sit", "fall", "turn"))
    assert sit.parts[-1].name == "stool" and sit.centre(3)[2] < 0.7 * sit.centre(0)[2]
    assert fall.head(3)[2] < 0.3 * who.height and fall.centre(3)[2] < 0.2 * who.height
    assert np.allclose(turn.poses(3)[0, 0, 0], -1, atol=0.01)
    assert np.allclose(fall.poses(2.95), fall.poses(3), atol=0.01)


@few
@given(people)
def test_an_identity_survives_json_and_makes_the_same_bytes(who):
    again = Identity(**json.loads(json.dumps(asdict(who))))
    assert again == who and 1.45 <= who.height <= 1.95
    a, b = Performance(who, "point"), Performance(again, "point")
    assert all(
        p.mesh.points.tobytes() == q.mesh.points.tobytes() and (p.texture == q.texture).all()
        for p, q in zip(a.parts, b.parts)
    )
    assert sum(p.mesh.n_cells for p in a.parts) <= 3500
    for part in a.parts:
        uv = part.mesh.active_texture_coordinates
        assert (
            uv.min() >= 0
            and uv.max() <= 1
            and np.allclose(np.linalg.norm(part.mesh.point_data.active_normals, axis=1), 1, atol=1e-5)
        )


def test_a_cast_can_be_told_apart():
    rng = np.random.default_rng(7)
    cast = [Identity.draw(rng, str(i)) for i in range(30)]
    assert len({who.words(2) for who in cast}) == 30
    assert all(who.words(0) in ("a person",) or who.words(0).endswith(" person") for who in cast)


def test_what_is_unknown_is_named_with_what_is_known():
    who = Identity.draw(np.random.default_rng(0), "Ada")
    with pytest.raises(PrimenbError, match="walk, run, wave"): Performance(who, "fly")
    with pytest.raises(PrimenbError, match="straw hat"): replace(who, hat="fez")
