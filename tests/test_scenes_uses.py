"Uses of scene vectors: search and votes against slow references, and repeated sequences that were put there."
import itertools

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy.special import softmax
from sklearn.neighbors import NearestNeighbors

from conftest import project
from primenb.core import PrimenbError
from primenb.scenes.uses import SceneIndex, align, ask, describe, find_repeats, recurring, scene_vectors, shot_gains
from primenb.media.shots import detect_shots, shot_table
from primenb.media.video import encode, frames_at, iter_frames

seeds = st.integers(0, 10_000)
calm = settings(deadline=None, max_examples=40)


def scene_list(films, rng): return pd.DataFrame([(f"film{f}", s) for f in range(films) for s in range(rng.integers(1, 6))], columns=["film", "scene"])


def film(name, lengths, rng=None):
    "A shot table with shots of these lengths, in seconds, at 24 frames a second."
    ends = np.rint(np.cumsum(lengths) * 24).astype(int)
    return shot_table(name, ends[:-1].tolist(), np.arange(ends[-1]) / 24, ends[-1] / 24)


@calm
@given(seeds)
def test_scene_vectors_are_the_means_of_their_shots(seed):
    rng = np.random.default_rng(seed)
    scene_of_shot = np.sort(rng.integers(0, 5, 20))
    scene_of_shot = np.unique(scene_of_shot, return_inverse=True)[1]
    vectors = rng.normal(size=(20, 3))
    lost = (rng.random(20) < 0.3) & (np.diff(scene_of_shot, prepend=-1) == 0)
    vectors[lost, rng.integers(0, 3)] = np.nan
    slow = [np.mean([v for v, n, l in zip(vectors, scene_of_shot, lost) if n == scene and not l], 0) for scene in range(scene_of_shot[-1] + 1)]
    np.testing.assert_allclose(scene_vectors(vectors, scene_of_shot), slow)


@calm
@given(seeds, st.integers(1, 8), st.booleans())
def test_search_is_what_scikit_learn_finds(seed, k, other_films):
    rng = np.random.default_rng(seed)
    scenes = scene_list(5, rng)
    vectors = rng.normal(size=(len(scenes), 6)) + 3
    n = int(rng.integers(len(scenes)))
    key = tuple(scenes.iloc[n])
    left = scenes.film.to_numpy() != key[0] if other_films else np.arange(len(scenes)) != n
    found = SceneIndex(scenes, vectors).search(key, k, other_films)
    centred = vectors - vectors.mean(0)
    distance, number = NearestNeighbors(n_neighbors=min(k, left.sum()), metric="cosine").fit(centred[left]).kneighbors(centred[[n]])
    assert found.index.tolist() == np.flatnonzero(left)[number[0]].tolist()
    np.testing.assert_allclose(found.similarity, 1 - distance[0], atol=1e-6)  # vectors are float32


def test_an_index_of_one_scene_finds_nothing_and_fails_at_nothing():
    index = SceneIndex(pd.DataFrame(dict(film=["a"], scene=[0])), np.ones((1, 4)))
    assert len(index.search(("a", 0))) == 0
    assert describe(index, [{"day"}], np.zeros((1, 4))).loc[0, "day"] == 1


@pytest.mark.parametrize("change, says", [
    (lambda s, v: (s, v[:-1]), "there are 5 vectors for 6 scenes"),
    (lambda s, v: (s, np.where(np.arange(6)[:, None] == 4, np.nan, v)), "b, scene 1"),
    (lambda s, v: (s.assign(scene=[0, 1, 2, 0, 1, 1]), v), "b, scene 1")])
def test_a_bad_index_names_the_scene(change, says):
    scenes, vectors = pd.DataFrame(dict(film=list("aaabbb"), scene=[0, 1, 2] * 2)), np.random.default_rng(0).normal(size=(6, 3))
    with pytest.raises(PrimenbError, match=says): SceneIndex(*change(scenes, vectors))
    with pytest.raises(PrimenbError, match="c, scene 0: it is not in the index"): SceneIndex(scenes, vectors).search(("c", 0))


@calm
@given(seeds, st.integers(1, 20), st.booleans())
def test_votes_are_counted_as_the_formula_says(seed, k, own_films):
    rng = np.random.default_rng(seed)
    scenes = scene_list(4, rng)
    index = SceneIndex(scenes, rng.normal(size=(len(scenes), 4)))
    labels = [set(np.array(["day", "night", "cafe"])[rng.random(3) < 0.5]) for _ in range(len(scenes))]
    if not any(labels): labels[0] = {"day"}
    asked, films = rng.normal(size=(3, 4)), ["film0", "film1", "other"]
    said = describe(index, labels, asked, k, films if own_films else None)
    for q, name in itertools.product(range(3), said):
        similarity = index.similarity(asked[q])
        voters = [n for n in np.argsort(-similarity) if not (own_films and scenes.film[n] == films[q])][:k]
        votes = [(max(similarity[n], 0), name in labels[n]) for n in voters]
        p = np.mean([name in given for given in labels])
        assert said.loc[q, name] == pytest.approx((sum(s for s, has in votes if has) + p) / (sum(s for s, _ in votes) + 1))
    assert said.to_numpy().min() >= 0 and said.to_numpy().max() < 1 + 1e-9


def test_labels_must_be_one_set_a_scene():
    index = SceneIndex(pd.DataFrame(dict(film=["a", "b"], scene=0)), np.eye(2))
    with pytest.raises(PrimenbError, match="there are 1 for 2 scenes"): describe(index, [{"day"}], np.eye(2))


def test_the_nearest_text_is_the_answer():
    rng = np.random.default_rng(0)
    space = dict(cafe=rng.normal(size=8), street=rng.normal(size=8), stage=rng.normal(size=8))
    said = ask(3 * np.stack(list(space.values())), list(space), lambda texts: [space[t] for t in texts], temperature=0.1)
    assert said.idxmax(axis=1).tolist() == list(space)
    unit = np.stack([v / np.linalg.norm(v) for v in space.values()])
    np.testing.assert_allclose(said, softmax(unit @ unit.T / 0.1, axis=1), atol=1e-6)  # vectors are float32


def slow_align(gains, skip):
    "The best sum over all growing sequences of pairs, by trying them all."
    def best(i, j):  # of sequences that end with the pair (i, j)
        return gains[i][j] + max([0, *(best(k, l) - skip * (i - k + j - l - 2) for k in range(i) for l in range(j))])
    return max([0, *(best(i, j) for i in range(len(gains)) for j in range(len(gains[0])))])


@calm
@given(seeds, st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.1, 0.5, 2.0]))
def test_alignment_is_the_best_there_is(seed, n, m, skip):
    gains = np.random.default_rng(seed).normal(0, 1, (n, m))
    total, pairs = align(gains, skip)
    assert total == pytest.approx(slow_align(gains, skip))
    assert (np.diff(pairs, axis=0) > 0).all()
    if len(pairs): assert total == pytest.approx(gains[tuple(pairs.T)].sum() - skip * (np.diff(pairs, axis=0) - 1).sum())
    assert align(gains.T, skip)[0] == pytest.approx(total)


def test_gains_count_looks_and_lengths():
    a, b = np.array([[1.0, 0], [0, 1], [np.nan, 0]]), np.array([[1.0, 0], [0.9, np.sqrt(1 - 0.81)]])
    gains = shot_gains(a, b, np.array([4.0, 4, 4]), np.array([4.25, 4]))
    np.testing.assert_allclose(gains, [[0, 0], [-1, -1], [-1, -1]], atol=1e-9)
    assert shot_gains(a, b, np.array([4.0, 4, 4]), np.array([4.0, 4]), threshold=0.8)[0] == pytest.approx([1, 0.5])


def episode(name, rng, before, inserted, after, dim=16):
    "Random shots with a sequence of (vectors, lengths) put between them."
    own = rng.normal(size=(before + after, dim)), rng.uniform(1, 6, before + after)
    vectors, lengths = (np.concatenate([o[:before], i, o[before:]]) for o, i in zip(own, inserted))
    return vectors, film(name, lengths)


@calm
@given(seeds)
def test_an_inserted_sequence_is_found_wherever_it_is(seed):
    rng = np.random.default_rng(seed)
    intro = rng.normal(size=(6, 16)), rng.uniform(1.5, 5, 6)
    at = rng.integers(0, 25, 3)
    made = {f"e{n}": episode(f"e{n}", rng, at[n], (intro[0] + rng.normal(0, 0.02, (6, 16)), intro[1]), 30 - at[n]) for n in range(3)}
    made["e3"] = episode("e3", rng, 10, (np.zeros((0, 16)), np.zeros(0)), 20)
    vectors, tables = {k: v for k, (v, _) in made.items()}, {k: t for k, (_, t) in made.items()}
    repeats = find_repeats(vectors, tables)
    assert repeats[["film", "other_film"]].values.tolist() == [["e0", "e1"], ["e0", "e2"], ["e1", "e2"]]
    assert repeats.score.between(4.5, 6).all()  # a frame of difference in a length costs a sixth
    runs = recurring(repeats, tables, films=2)
    assert runs[["film", "first_shot", "last_shot", "films"]].values.tolist() == [[f"e{n}", at[n], at[n] + 5, 2] for n in range(3)]
    assert runs.start.tolist() == [tables[f"e{n}"].start[at[n]] for n in range(3)]


def test_missed_cuts_lost_vectors_and_foreign_shots_do_not_tear_a_sequence():
    rng = np.random.default_rng(1)
    intro = rng.normal(size=(9, 16)), np.full(9, 3.0)
    merged = np.concatenate([intro[0][:2], [intro[0][2:4].mean(0)], intro[0][4:]]), np.array([3.0, 3, 6, 3, 3, 3, 3, 3])  # a cut was missed
    lost = intro[0].copy(), intro[1]
    lost[0][5] = np.nan
    foreign = np.insert(intro[0], 3, rng.normal(size=16), 0), np.insert(intro[1], 3, 1.0)  # one episode has a shot more
    a, table_a = episode("a", rng, 3, intro, 10)
    for changed in (merged, lost, foreign):
        b, table_b = episode("b", rng, 8, changed, 4)
        repeats = find_repeats(dict(a=a, b=b), dict(a=table_a, b=table_b))
        assert repeats[["first_shot", "last_shot", "other_first_shot", "other_last_shot"]].values.tolist() == [[3, 11, 8, 7 + len(changed[1])]]


def test_the_same_sets_with_shots_of_other_lengths_are_no_repeat():
    rng = np.random.default_rng(2)
    sets = rng.normal(size=(2, 16))
    vectors = sets[np.arange(40) % 2] + rng.normal(0, 0.02, (40, 16))
    a, b = film("a", rng.uniform(1, 8, 40)), film("b", rng.uniform(1, 8, 40))
    assert find_repeats(dict(a=vectors, b=vectors), dict(a=a, b=b)).empty
    assert find_repeats(dict(a=vectors, b=vectors), dict(a=a, b=a.assign(film="b"))).last_shot.tolist() == [39]


def test_two_sequences_one_of_them_twice_are_all_found():
    rng = np.random.default_rng(3)
    one, two = ((rng.normal(size=(4, 16)), np.full(4, 2.0)) for _ in range(2))
    join = lambda *parts: tuple(np.concatenate(p) for p in zip(*parts))
    filler = lambda n: (rng.normal(size=(n, 16)), rng.uniform(1, 3, n))
    films = dict(a=join(filler(2), one, filler(3), two), b=join(two, filler(5), one, filler(2), one))
    tables = {k: film(k, lengths) for k, (_, lengths) in films.items()}
    runs = recurring(find_repeats({k: v for k, (v, _) in films.items()}, tables), tables)
    assert runs[["film", "first_shot", "last_shot", "films"]].values.tolist() == [["a", 2, 5, 1], ["a", 9, 12, 1], ["b", 0, 3, 1], ["b", 9, 12, 1], ["b", 15, 18, 1]]


def test_films_without_repeats_and_films_of_one_shot():
    tables = dict(a=film("a", [3.0]), b=film("b", [3.0, 4.0]))
    repeats = find_repeats(dict(a=np.ones((1, 2)), b=np.array([[0.0, 1], [1, -1]])), tables)
    assert repeats.empty and "other_start" in repeats and recurring(repeats, tables).empty
    with pytest.raises(PrimenbError, match="b: there are 0 vectors for 2 shots"): find_repeats(dict(a=np.ones((1, 2))), tables)


def colours(path, shots):
    "Small pictures of the middle key-frames."
    return np.stack([cv2.resize(f.image, (16, 9), interpolation=cv2.INTER_AREA).ravel() / 255.0 for f in frames_at(path, shots.key2)])


def test_a_real_clip_is_found_inside_two_films(real, tmp_path):
    read = lambda path, **how: [f.image for f in iter_frames(path, size=(192, 108), **how)]
    clip, bunny = read(real / "film_clips/bikes.mp4"), read(real / "film_clips/bbb_60s.mp4", seconds=(9, 24))
    starter, cut = read(project / "data/starter/starter.mp4", seconds=(0, 9)), 69  # frames before the cut of the bunny's film
    made = dict(one=(bunny[:cut] + clip + bunny[cut:], 18, cut), two=(starter + clip, 34, len(starter)))
    files = {name: encode(tmp_path / f"{name}.mp4", images, 24, crf=crf, preset="ultrafast") for name, (images, crf, _) in made.items()}
    tables = {name: detect_shots(path) for name, path in files.items()}
    repeats = find_repeats({name: colours(files[name], table) for name, table in tables.items()}, tables)
    assert len(repeats) == 1
    for column, (_, _, frame) in zip(("start", "other_start"), made.values()): assert repeats[column][0] == pytest.approx(frame / 24, abs=0.1)
    assert repeats.end[0] - repeats.start[0] == pytest.approx(242 / 24, abs=0.1)  # its last shot has 8 frames, too few for the detector
