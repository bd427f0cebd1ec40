"What the comparison of positives promises: encoders side by side, other films, sentences as scenes."
import json
from dataclasses import replace

import numpy as np
import pytest

from primenb.core import PrimenbError
from primenb.data.records import Film
from primenb.learn.runs import load
from primenb.scenes.boundaries import score_held_out
from primenb.scenes.evaluate import pooled_ap
from primenb.scenes.model import embed_shots
from primenb.scenes.movies import SceneRun
from primenb.scenes.protocol import (
    SHOT_HEADS, FilmSource, evaluate_members, evaluate_scene_run, film_set, scene_set, scored_films, synopsis_scenes,
    with_embeddings)
from primenb.scenes.train import ShotRun

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = ShotRun("decayed", epochs=2, batch_size=32, queue=32, width=16, embed_dim=8, device="cpu")


def written(folder, seed, films=5, scenes=6, length=6):
    "Films whose scenes are points in a space of 6 dimensions, with noise in 6 more."
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for n in range(films):
        points = rng.normal(size=(scenes, 6)).repeat(length, 0)
        v = np.hstack([points + 0.2 * rng.normal(size=points.shape), 2 * rng.normal(size=points.shape)])
        ends = np.arange(1, len(v) + 1) * 10
        np.savez(folder / f"film {n}.npz", shots=np.stack([ends - 10, ends - 1], 1), v=v.astype(np.float32),
                 scene_of_shot=np.arange(scenes).repeat(length))
    return FilmSource(str(folder), "v")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets")
    return written(folder / "a", 0), written(folder / "b", 1)


def cosines(rows): return rows @ rows.T


@pytest.mark.parametrize("elsewhere", [False, True])
def test_members_are_scored_by_the_mean_of_their_cosines(sources, tmp_path, elsewhere):
    source, other = sources
    on = other if elsewhere else None
    found = evaluate_members(TINY, source, tmp_path, members=2, raws=(0.0, 0.5), on=on)
    data = film_set(on or source)
    each = [embed_shots(load(tmp_path / str(n)), data.shots.inputs) for n in range(2)]
    raw = data.shots.inputs / np.linalg.norm(data.shots.inputs, axis=1, keepdims=True)
    for weight in (0.0, 0.5):
        mean = (cosines(each[0]) / 2 + cosines(each[1]) / 2 + weight * cosines(raw)) / (1 + weight)
        values, vectors = np.linalg.eigh(mean.astype(float))  # rows with these cosines, made in another way
        rows = (vectors * np.sqrt(values.clip(0))).astype(np.float32)
        films = with_embeddings(data.records, data.shots.split(rows))
        for head, model in SHOT_HEADS.items():
            scores = {s.film: s.scores for s in score_held_out(model, films, data.parts)}
            assert scores.keys() == found["scores"][str(weight)][head].keys()
            for film, theirs in found["scores"][str(weight)][head].items():
                assert np.allclose(theirs, scores[film], atol=2e-3)


def test_a_finished_comparison_is_returned_and_belongs_to_its_films(sources, tmp_path):
    source, other = sources
    found = evaluate_members(TINY, source, tmp_path, members=1)
    assert evaluate_members(TINY, source, tmp_path, members=1) == json.loads(json.dumps(found))
    with pytest.raises(PrimenbError): evaluate_members(TINY, source, tmp_path, members=1, on=other)
    with pytest.raises(PrimenbError): evaluate_members(TINY, source, tmp_path, members=2)


def test_a_finished_comparison_does_not_outlive_its_films(tmp_path):
    source = written(tmp_path / "c", 2)
    evaluate_members(TINY, source, tmp_path / "out", members=1)
    for n in range(5):  # the same shots, other scenes
        file = tmp_path / f"c/film {n}.npz"
        arrays = dict(np.load(file))
        np.savez(file, **arrays | dict(scene_of_shot=np.arange(12).repeat(3)))
    film_set.cache_clear()
    with pytest.raises(PrimenbError, match="other settings"):
        evaluate_members(TINY, source, tmp_path / "out", members=1)


@pytest.mark.parametrize("how, says", [
    (dict(members=0), "members 0"), (dict(raws=()), "raws"), (dict(raws=(0.5, -1.0)), "raws"),
    (dict(raws=(np.nan,)), "raws"), (dict(kind="boiled"), "raw features 'boiled'"),
])
def test_what_cannot_be_compared_is_refused_before_the_training(sources, tmp_path, how, says):
    with pytest.raises(PrimenbError, match=says): evaluate_members(TINY, sources[0], tmp_path, **how)
    assert not any(tmp_path.iterdir())


def test_encoders_that_must_not_see_the_judged_films_do_not(sources, tmp_path):
    source = replace(sources[0], unlabelled="train")
    found = evaluate_members(TINY, source, tmp_path, members=1)
    films = scored_films(dict(scores=found["scores"]["0.0"]), source)
    assert sorted(f.film for f in films) == [f"film {n}" for n in range(5)] and 0 < pooled_ap(films) <= 1
    for n, (seen, _) in enumerate(film_set(source).parts):
        run = json.loads((tmp_path / "0" / f"part {n}" / "run.json").read_text())["run"]
        assert run["films"] == [f"film {i}" for i in seen]


WORDS = "captain storm ship harbour judge court trial verdict horse ranch sheriff saloon".split()


def listed(n, rng):
    "A film of a genre with its own words, and sentences of them."
    own = WORDS[4 * (n % 3) : 4 * (n % 3) + 4]
    sentences = [" ".join(["The", *rng.choice(own, 3), "and", rng.choice(WORDS)]) + "." for _ in range(4)]
    genre = ("Maritime", "Legal", "Western")[n % 3]
    cast = (f"Player {n % 3}", f"Player {3 + n}")
    return Film(str(n), f"Film {n}", 1990 + n % 7, (genre,), cast, " ".join(sentences))


def test_sentences_are_scenes_without_words_of_the_genre():
    rng = np.random.default_rng(0)
    films = [listed(n, rng) for n in range(12)]
    named = [replace(f, synopsis=f"A {f.genres[0].lower()} film. {f.synopsis}") for f in films]
    made = synopsis_scenes(films, 4)
    assert [len(m) for m in made] == [4] * 12 and made[0][0].features.shape == (1, 4)
    assert made[5][0].labels == dict(genre=("Western",), year=1995.0) and made[5][0].film == "5"
    again = synopsis_scenes(named, 4)  # "film" is in all; the genre must leave no trace
    firsts = np.array([m[0].features[0] for m in again if m[0].scene == 0])
    assert not len(firsts) or np.ptp(firsts, axis=0).max() < 1e-6


@pytest.mark.parametrize("films, says", [
    ([], "fewer than two words"),
    ([replace(listed(0, np.random.default_rng(0)), synopsis="A ship.")], "fewer than two"),
    ([replace(listed(0, np.random.default_rng(0)), year=None)], "0: its year"),
    ([replace(listed(0, np.random.default_rng(0)), synopsis="")], "its synopsis is not known"),
])
def test_synopses_that_say_too_little_are_refused(films, says):
    with pytest.raises(PrimenbError, match=says): synopsis_scenes(iter(films))


def test_a_list_of_two_films_is_refused(tmp_path):
    rows = [dict(title=f"F {n}", year=1990, cast=["A"], genres=["War"], href=f"F_{n}", extract="A ship.") for n in "ab"]
    (tmp_path / "movies.json").write_text(json.dumps(rows))
    with pytest.raises(PrimenbError, match="at least three"): scene_set(str(tmp_path), 30)


def test_film_lists_as_scenes(tmp_path):
    rng = np.random.default_rng(1)
    films = [listed(n, rng) for n in range(30)]
    rows = [dict(title=f.title, year=f.year, cast=list(f.cast), genres=list(f.genres), href=f.title.replace(" ", "_"),
                 extract=f.synopsis) for f in films]
    (tmp_path / "movies-1990s.json").write_text(json.dumps(rows))
    data = scene_set(str(tmp_path), 30)
    assert len(data.catalogue) == 30 and len(data.scenes) == len(data.third) == 120
    genre = {f.key: f.genres[0] for f in data.catalogue}
    for third in range(3):  # each third has its share of each genre
        own = [genre[s.film] for s, t in zip(data.scenes, data.third) if t == third]
        assert {own.count(g) for g in set(genre.values())} <= {12, 16}
    run = SceneRun("similar_nearest", k=3, num_steps=20, width=16, embed_dim=8, device="cpu")
    found = evaluate_scene_run(run, str(tmp_path), ("cast",), tmp_path / "run", 0, 30)
    assert found["scores"]["genre"] > 0.8 > found["chance"]["genre"]
