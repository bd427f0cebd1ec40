"Uses of scene embeddings: search and votes against slow references, and inserted sequences that are found again."
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
from primenb.scenes.uses import (
    SceneIndex, align_repeats, classify_by_text, find_repeats, predict_labels, recurring_segments, scene_embeddings,
    shot_gains)
from primenb.media.shots import detect_shots, shot_table
from primenb.media.video import encode, frames_at, iter_frames

seeds = st.integers(0, 10_000)
calm = settings(deadline=None, max_examples=40)


def scene_list(films, rng):
    rows = [(f"film{f}", s) for f in range(films) for s in range(rng.integers(1, 6))]
    return pd.DataFrame(rows, columns=["film", "scene"])


def film(name, lengths, rng=None):
    "A shot table with shots of these lengths, in seconds, at 24 frames a second."
    ends = np.rint(np.cumsum(lengths) * 24).astype(int)
    return shot_table(name, ends[:-1].tolist(), np.arange(ends[-1]) / 24, ends[-1] / 24)


@calm
@given(seeds)
def test_scene_embeddings_are_the_means_of_their_shots(seed):
    rng = np.random.default_rng(seed)
    scene_of_shot = np.sort(rng.integers(0, 5, 20))
    scene_of_shot = np.unique(scene_of_shot, return_inverse=True)[1]
    vectors = rng.normal(size=(20, 3))
    lost = (rng.random(20) < 0.3) & (np.diff(scene_of_shot, prepend=-1) == 0)
    vectors[lost, rng.integers(0, 3)] = np.nan
    def mean(scene): return np.mean([v for v, n, l in zip(vectors, scene_of_shot, lost) if n == scene and not l], 0)
    slow = [mean(scene) for scene in range(scene_of_shot[-1] + 1)]
    np.testing.assert_allclose(scene_embeddings(vectors, scene_of_shot), slow)


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
    reference = NearestNeighbors(n_neighbors=min(k, left.sum()), metric="cosine").fit(centred[left])
    distance, number = reference.kneighbors(centred[[n]])
    assert found.index.tolist() == np.flatnonzero(left)[number[0]].tolist()
    np.testing.assert_allclose(found.similarity, 1 - distance[0], atol=1e-6)  # embeddings are float32


def test_an_index_of_one_scene_finds_nothing_and_fails_at_nothing():
    index = SceneIndex(pd.DataFrame(dict(film=["a"], scene=[0])), np.ones((1, 4)))
    assert len(index.search(("a", 0))) == 0
    assert predict_labels(index, [{"day"}], np.zeros((1, 4))).loc[0, "day"] == 1


@pytest.mark.parametrize("change, says", [
    (lambda s, v: (s, v[:-1]), "there are 5 embeddings for 6 scenes"),
    (lambda s, v: (s, np.where(np.arange(6)[:, None] == 4, np.nan, v)), "b, scene 1"),
    (lambda s, v: (s.assign(scene=[0, 1, 2, 0, 1, 1]), v), "b, scene 1")])
def test_a_bad_index_names_the_scene(change, says):
    scenes = pd.DataFrame(dict(film=list("aaabbb"), scene=[0, 1, 2] * 2))
    vectors = np.random.default_rng(0).normal(size=(6, 3))
    with pytest.raises(PrimenbError, match=says): SceneIndex(*change(scenes, vectors))
    index = SceneIndex(scenes, vectors)
    with pytest.raises(PrimenbError, match="c, scene 0: it is not in the index"): index.search(("c", 0))


@calm
@given(seeds, st.integers(1, 20), st.booleans())
def test_votes_are_counted_as_the_formula_says(seed, k, own_films):
    rng = np.random.default_rng(seed)
    scenes = scene_list(4, rng)
    index = SceneIndex(scenes, rng.normal(size=(len(scenes), 4)))
    labels = [set(np.array(["day", "night", "cafe"])[rng.random(3) < 0.5]) for _ in range(len(scenes))]
    if not any(labels): labels[0] = {"day"}
    query, films = rng.normal(size=(3, 4)), ["film0", "film1", "other"]
    predicted = predict_labels(index, labels, query, k, films if own_films else None)
    for q, name in itertools.product(range(3), predicted):
        similarity = index.similarity(query[q])
        voters = [n for n in np.argsort(-similarity) if not (own_films and scenes.film[n] == films[q])][:k]
        votes = [(max(similarity[n], 0), name in labels[n]) for n in voters]
        p = np.mean([name in given for given in labels])
        confidence = (sum(s for s, has in votes if has) + p) / (sum(s for s, _ in votes) + 1)
        assert predicted.loc[q, name] == pytest.approx(confidence)
    assert predicted.to_numpy().min() >= 0 and predicted.to_numpy().max() < 1 + 1e-9


def test_labels_must_be_one_set_a_scene():
    index = SceneIndex(pd.DataFrame(dict(film=["a", "b"], scene=0)), np.eye(2))
    with pytest.raises(PrimenbError, match="there are 1 for 2 scenes"): predict_labels(index, [{"day"}], np.eye(2))


def test_the_nearest_text_is_the_answer():
    rng = np.random.default_rng(0)
    space = dict(cafe=rng.normal(size=8), street=rng.normal(size=8), stage=rng.normal(size=8))
    def embed(texts): return [space[t] for t in texts]
    confidence = classify_by_text(3 * np.stack(list(space.values())), list(space), embed, temperature=0.1)
    assert confidence.idxmax(axis=1).tolist() == list(space)
    unit = np.stack([v / np.linalg.norm(v) for v in space.values()])
    np.testing.assert_allclose(confidence, softmax(unit @ unit.T / 0.1, axis=1), atol=1e-6)  # embeddings are float32


def slow_align(gains, skip):
    "The best sum over all growing sequences of pairs, by trying them all."
    def best(i, j):  # of sequences that end with the pair (i, j)
        before = [best(k, l) - skip * (i - k + j - l - 2) for k in range(i) for l in range(j)]
        return gains[i][j] + max([0, *before])
    return max([0, *(best(i, j) for i in range(len(gains)) for j in range(len(gains[0])))])


@calm
@given(seeds, st.integers(1, 5), st.integers(1, 5), st.sampled_from([0.1, 0.5, 2.0]))
def test_alignment_is_the_best_there_is(seed, n, m, skip):
    gains = np.random.default_rng(seed).normal(0, 1, (n, m))
    total, pairs = align_repeats(gains, skip)
    assert total == pytest.approx(slow_align(gains, skip))
    assert (np.diff(pairs, axis=0) > 0).all()
    skipped = (np.diff(pairs, axis=0) - 1).sum()
    if len(pairs): assert total == pytest.approx(gains[tuple(pairs.T)].sum() - skip * skipped)
    assert align_repeats(gains.T, skip)[0] == pytest.approx(total)


def test_gains_count_looks_and_lengths():
    a, b = np.array([[1.0, 0], [0, 1], [np.nan, 0]]), np.array([[1.0, 0], [0.9, np.sqrt(1 - 0.81)]])
    gains = shot_gains(a, b, np.array([4.0, 4, 4]), np.array([4.25, 4]))
    np.testing.assert_allclose(gains, [[0, 0], [-1, -1], [-1, -1]], atol=1e-9)
    looser = shot_gains(a, b, np.array([4.0, 4, 4]), np.array([4.0, 4]), threshold=0.8)
    assert looser[0] == pytest.approx([1, 0.5])


def episode(name, rng, before, inserted, after, dim=16):
    "Random shots with a sequence of (embeddings, lengths) inserted between them."
    own = rng.normal(size=(before + after, dim)), rng.uniform(1, 6, before + after)
    vectors, lengths = (np.concatenate([o[:before], i, o[before:]]) for o, i in zip(own, inserted))
    return vectors, film(name, lengths)


@calm
@given(seeds)
def test_an_inserted_sequence_is_found_wherever_it_is(seed):
    rng = np.random.default_rng(seed)
    intro = rng.normal(size=(6, 16)), rng.uniform(1.5, 5, 6)
    at = rng.integers(0, 25, 3)
    def noisy(n): return episode(f"e{n}", rng, at[n], (intro[0] + rng.normal(0, 0.02, (6, 16)), intro[1]), 30 - at[n])
    made = {f"e{n}": noisy(n) for n in range(3)}
    made["e3"] = episode("e3", rng, 10, (np.zeros((0, 16)), np.zeros(0)), 20)
    vectors, tables = {k: v for k, (v, _) in made.items()}, {k: t for k, (_, t) in made.items()}
    repeats = find_repeats(vectors, tables)
    assert repeats[["film", "other_film"]].values.tolist() == [["e0", "e1"], ["e0", "e2"], ["e1", "e2"]]
    assert repeats.score.between(4.5, 6).all()  # a frame of difference in a length costs a sixth
    runs = recurring_segments(repeats, tables, films=2)
    expected = [[f"e{n}", at[n], at[n] + 5, 2] for n in range(3)]
    assert runs[["film", "first_shot", "last_shot", "films"]].values.tolist() == expected
    assert runs.start.tolist() == [tables[f"e{n}"].start[at[n]] for n in range(3)]


def test_missed_cuts_lost_embeddings_and_foreign_shots_do_not_split_a_sequence():
    rng = np.random.default_rng(1)
    intro = rng.normal(size=(9, 16)), np.full(9, 3.0)
    both = [intro[0][2:4].mean(0)]  # a cut was missed
    merged = np.concatenate([intro[0][:2], both, intro[0][4:]]), np.array([3.0, 3, 6, 3, 3, 3, 3, 3])
    lost = intro[0].copy(), intro[1]
    lost[0][5] = np.nan
    foreign = np.insert(intro[0], 3, rng.normal(size=16), 0), np.insert(intro[1], 3, 1.0)  # one episode has a shot more
    columns = ["first_shot", "last_shot", "other_first_shot", "other_last_shot"]
    a, table_a = episode("a", rng, 3, intro, 10)
    for changed in (merged, lost, foreign):
        b, table_b = episode("b", rng, 8, changed, 4)
        repeats = find_repeats(dict(a=a, b=b), dict(a=table_a, b=table_b))
        assert repeats[columns].values.tolist() == [[3, 11, 8, 7 + len(changed[1])]]


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
    runs = recurring_segments(find_repeats({k: v for k, (v, _) in films.items()}, tables), tables)
    expected = [["a", 2, 5, 1], ["a", 9, 12, 1], ["b", 0, 3, 1], ["b", 9, 12, 1], ["b", 15, 18, 1]]
    assert runs[["film", "first_shot", "last_shot", "films"]].values.tolist() == expected


def test_films_without_repeats_and_films_of_one_shot():
    tables = dict(a=film("a", [3.0]), b=film("b", [3.0, 4.0]))
    repeats = find_repeats(dict(a=np.ones((1, 2)), b=np.array([[0.0, 1], [1, -1]])), tables)
    assert repeats.empty and "other_start" in repeats
    assert recurring_segments(repeats, tables).empty
    with pytest.raises(PrimenbError, match="b: there are 0 embeddings for 2 shots"):
        find_repeats(dict(a=np.ones((1, 2))), tables)


def colours(path, shots):
    "Small images of the middle key-frames."
    def small(image): return cv2.resize(image, (16, 9), interpolation=cv2.INTER_AREA).ravel() / 255.0
    return np.stack([small(f.image) for f in frames_at(path, shots.key2)])


def test_a_real_clip_is_found_inside_two_films(real, tmp_path):
    def read(path, **how): return [f.image for f in iter_frames(path, size=(192, 108), **how)]
    clip, bunny = read(real / "film_clips/bikes.mp4"), read(real / "film_clips/bbb_60s.mp4", seconds=(9, 24))
    starter, cut = read(project / "data/starter/starter.mp4", seconds=(0, 9)), 69  # frames before the cut of the bunny
    images, crf = dict(one=bunny[:cut] + clip + bunny[cut:], two=starter + clip), dict(one=18, two=34)
    def write(name): return encode(tmp_path / f"{name}.mp4", images[name], 24, crf=crf[name], preset="ultrafast")
    files = {name: write(name) for name in images}
    tables = {name: detect_shots(path) for name, path in files.items()}
    repeats = find_repeats({name: colours(files[name], table) for name, table in tables.items()}, tables)
    assert len(repeats) == 1
    assert repeats.start[0] == pytest.approx(cut / 24, abs=0.1)
    assert repeats.other_start[0] == pytest.approx(len(starter) / 24, abs=0.1)
    length = 242 / 24  # the last shot of the clip has 8 frames, too few for the detector
    assert repeats.end[0] - repeats.start[0] == pytest.approx(length, abs=0.1)
