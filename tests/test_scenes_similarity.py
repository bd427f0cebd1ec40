"Contracts of film similarity: each source against a slow reference, mixes, the nearest films, and genres guessed from real metadata."
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from primenb.core import PrimenbError
from primenb.data.public import co_watch, wikipedia_films
from primenb.data.records import Film
from primenb.scenes.similarity import (SOURCES, Similarity, cast_similarity, co_watch_similarity, film_similarity, genre_names, genre_similarity,
                                       jaccard, judge_genres, mixed, nearest_films, predict_genres, synopsis_similarity, without_words)


def film(key, genres=(), cast=(), synopsis="", related=()): return Film(str(key), str(key), 2000, tuple(genres), tuple(cast), synopsis, tuple(related))


def same(a, b): np.testing.assert_allclose(a, b, atol=2e-5)  # NaN in the same places


def symmetric(n, seed, unknown=0.0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, n)); values += values.T
    gap = rng.random((n, n)) < unknown
    values[gap | gap.T] = np.nan
    return values


# --- sources

@given(st.lists(st.lists(st.sampled_from(["War", "war", "Spy", "Noir", "Short"]), max_size=4), min_size=1, max_size=6))
def test_jaccard_is_the_share_in_common(sets):
    plain = [{name.lower() for name in s} for s in sets]
    wanted = [[np.nan if i == j or not a or not b else len(a & b) / len(a | b) for j, b in enumerate(plain)] for i, a in enumerate(plain)]
    same(jaccard(sets), np.array(wanted, float))
    same(genre_similarity([film(n, genres=s) for n, s in enumerate(sets)]), jaccard(sets))
    same(cast_similarity([film(n, cast=s) for n, s in enumerate(sets)]), jaccard(sets))


texts = ["A dog finds a bone, and a bone again.", "The dog flies to the moon!", "", "  ", "the and of", "Moon, moon and a bone", "A war"]


def test_synopses_are_compared_by_their_rare_words():
    "Against TF-IDF with counted words: (1 + ln tf)(1 + ln (1 + n) / (1 + df))."
    words = [Counter(w for w in ("".join(c if c.isalnum() else " " for c in t.lower())).split() if w in ("dog", "finds", "bone", "flies", "moon", "war")) for t in texts]
    n, df = len(texts), Counter(w for c in words for w in c)
    vectors = [{w: (1 + np.log(tf)) * (1 + np.log((1 + n) / (1 + df[w]))) for w, tf in c.items()} for c in words]
    def cosine(a, b): return sum(a[w] * b.get(w, 0) for w in a) / np.sqrt(sum(v**2 for v in a.values()) * sum(v**2 for v in b.values()))
    wanted = np.array([[np.nan if i == j or not a or not b else cosine(a, b) for j, b in enumerate(vectors)] for i, a in enumerate(vectors)])
    same(synopsis_similarity([film(n, synopsis=t) for n, t in enumerate(texts)]), wanted)
    assert np.isnan(synopsis_similarity([film("a", synopsis="of the"), film("b")])).all()


def test_a_sentence_model_may_stand_in():
    stories = [film(n, synopsis=t) for n, t in enumerate(texts[:4])]
    heard = []
    s = synopsis_similarity(stories, lambda given: heard.extend(given) or np.array([[1, 0], [1, 1], [1, 1], [1, 1]]))
    assert heard == texts[:4]
    same(s, [[np.nan, 2**-0.5, np.nan, np.nan], [2**-0.5, np.nan, np.nan, np.nan], [np.nan] * 4, [np.nan] * 4])
    for bad in (np.ones((3, 2)), np.full((4, 2), np.nan)):
        with pytest.raises(PrimenbError, match="4 texts gave vectors of shape"): synopsis_similarity(stories, lambda given: bad)


def test_words_that_give_the_genre_away_are_hidden():
    films = [film("a", ["Romance", "Science Fiction"], synopsis="A Romantic comedy, non-fiction; ROMANCES of scientists."), film("b", ["War"], synopsis="Warriors at war go toward it.")]
    a, b = without_words(films, genre_names(films))
    assert a.synopsis == "A  comedy, non-;  of ." and b.synopsis == "Warriors at  go toward it."
    assert films[0].synopsis.startswith("A Romantic") and (a.key, a.genres) == ("a", ("Romance", "Science Fiction"))
    assert without_words(films, []) == films


@settings(max_examples=50)
@given(st.lists(st.lists(st.sampled_from("abcdxy"), unique=True, max_size=3), min_size=2, max_size=4))
def test_lists_of_audiences_against_the_formula(related):
    films = [film(key, related=[r for r in names if r != key]) for key, names in zip("abcd", related)]
    vectors = [{f.key: 1.0, **{key: 1 - r / (len(f.related) + 1) for r, key in enumerate(f.related, 1)}} for f in films]
    known = [bool(f.related) or any(f.key in g.related for g in films) for f in films]
    def cosine(a, b): return sum(a[k] * b.get(k, 0) for k in a) / np.sqrt(sum(v**2 for v in a.values()) * sum(v**2 for v in b.values()))
    wanted = np.array([[np.nan if i == j or not (known[i] and known[j]) else cosine(a, b) for j, b in enumerate(vectors)] for i, a in enumerate(vectors)])
    same(co_watch_similarity(films), wanted)


# --- mixes

@settings(max_examples=50)
@given(st.integers(3, 6), st.integers(0, 99), st.lists(st.floats(0.1, 3), min_size=1, max_size=3))
def test_a_mix_is_the_weighted_sum_of_z_scores(n, seed, weights):
    parts = [symmetric(n, seed + i, 0.2) for i in range(len(weights))]
    pairs = [[p[i, j] for i in range(n) for j in range(n) if i != j and np.isfinite(p[i, j])] for p in parts]
    if not all(len(set(p)) > 1 for p in pairs): return
    wanted = np.full((n, n), np.nan)
    for i in range(n):
        for j in range(n):
            z = [w * (p[i, j] - np.mean(v)) / np.std(v) for p, v, w in zip(parts, pairs, weights) if i != j and np.isfinite(p[i, j])]
            if z: wanted[i, j] = sum(z)
    same(mixed(parts, weights), wanted)


def test_a_mix_has_no_favourite_unit_and_leaves_its_parts_alone():
    part = symmetric(5, 0, 0.2)
    before = part.copy()
    same(mixed([part]), mixed([1000 * part + 7])); same(part, before)
    assert np.isnan(np.diagonal(mixed([np.ones((4, 4))]))).all() and np.nanmax(abs(mixed([np.full((4, 4), 0.1)]))) < 1e-3, "a source for which all are alike says nothing"
    with pytest.raises(ValueError): mixed([part, part], [1])


def test_sources_by_name_and_tables_from_elsewhere(tmp_path):
    films = [film(1, ["War"], ["Ada"], "A soldier"), film(2, ["War", "Spy"], ["Ada", "Bo"], "A soldier and a spy"), film(3, ["Spy"], ["Bo"], "A spy")]
    for name in ("genre", "synopsis", "cast"): same(film_similarity(films, **{name: 2}).values, mixed([SOURCES[name](films)], [2]))
    same(film_similarity(films, genre=1, cast=0.5).values, mixed([genre_similarity(films), cast_similarity(films)], [1, 0.5]))
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(f"{u},{m},4,0\n" for u, m in ((1, 1), (1, 2), (2, 2), (2, 3), (3, 1), (3, 2))))
    watched = co_watch(tmp_path / "ratings.csv", ["1", "2", "3"])
    assert nearest_films(Similarity(("1", "2", "3"), mixed([watched])), 1) == {"1": ("2",), "2": ("1",), "3": ("2",)}


@pytest.mark.parametrize("what, says", [
    (lambda f: film_similarity(f, taste=1), "by taste.*no such source.*choose among genre, synopsis, cast, co_watch"),
    (lambda f: film_similarity(f), "by nothing"),
    (lambda f: film_similarity(f, cast=1), "knows nothing of any two films"),
    (lambda f: film_similarity([*f, f[0]], genre=1), "film a comes twice"),
    (lambda f: Similarity(("a", "b"), np.zeros((2, 3))), "2 films, and values of shape"),
    (lambda f: film_similarity(f, genre=1).only(["a", "nobody's"]), "film nobody's: the metadata know no such film"),
    (lambda f: nearest_films(film_similarity(f, genre=1), 0), "ask for 1 to 2"),
    (lambda f: nearest_films(film_similarity(f, genre=1), 3), "ask for 1 to 2"),
    (lambda f: nearest_films(film_similarity(f, genre=1), 1), "film c: the metadata compare it with 0 films"),
    (lambda f: predict_genres(film_similarity(f, genre=1), [film("d", ["War"])]), "film d: the metadata know no such film"),
    (lambda f: predict_genres(film_similarity(f, genre=1), f, known=np.zeros(3, bool)), "no film that may vote"),
    (lambda f: judge_genres(film_similarity(f, genre=1), f, known=np.array([True, False, True])), "none occurs among")])
def test_refusals(what, says):
    with pytest.raises(PrimenbError, match=says): what([film("a", ["War"]), film("b", ["Spy"]), film("c")])


# --- the nearest, and votes

@settings(max_examples=50)
@given(st.integers(2, 8), st.integers(0, 99), st.integers(1, 7))
def test_the_nearest_films_against_sorting(n, seed, k):
    k, keys = min(k, n - 1), tuple("abcdefgh"[:n])
    values = np.round(symmetric(n, seed)); np.fill_diagonal(values, np.nan)
    near = nearest_films(Similarity(keys, values), k)
    for i, key in enumerate(keys):
        assert near[key] == tuple(keys[j] for j in sorted((j for j in range(n) if j != i), key=lambda j: (-values[i, j], j))[:k])
    some = keys[::-2]
    assert len(some) < 2 or nearest_films(Similarity(keys, values).only(some), 1)[some[0]][0] in some[1:]


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 9), st.integers(0, 99), st.integers(1, 4), st.booleans())
def test_votes_against_counting_them(n, seed, k, split):
    rng = np.random.default_rng(seed)
    films = [film(i, rng.choice(["War", "Spy", "Noir"], rng.integers(0, 3), replace=False)) for i in range(n)]
    known = np.arange(n) % 2 == 0 if split else None
    voters = [i for i in range(n) if films[i].genres and (known is None or known[i])]
    if not voters: return
    s = Similarity(tuple(f.key for f in films), np.where(np.eye(n) > 0, np.nan, symmetric(n, seed)))
    guess = predict_genres(s, films, k, known)
    for i in range(n):
        votes = sorted(((max(s.values[i, j], 0), j) for j in voters if j != i), reverse=True)[:k]
        for genre in guess: assert guess.loc[str(i), genre] == pytest.approx(sum(w for w, j in votes if genre in films[j].genres) / max(sum(w for w, _ in votes), 1e-9), abs=1e-6)
    assert guess.to_numpy().max() <= 1 + 1e-6
    order = rng.permutation(n)
    same(predict_genres(s, [films[i] for i in order], k, None if known is None else known[order]).loc[guess.index], guess)


def test_a_judgement_is_of_films_that_may_not_vote():
    films = [film(n, [("War", "Spy")[n % 2]]) for n in range(8)] + [film("bare")]
    keys = tuple(f.key for f in films)
    alike = np.where(np.arange(9)[:, None] % 2 == np.arange(9) % 2, 1.0, -1)
    known = np.arange(9) < 4
    judged = judge_genres(Similarity(keys, alike), films, 3, known)
    assert judged[["mAP", "prior", "films", "genres"]].tolist() == [1, 0.5, 4, 2], "the film without genres does not count"
    assert judge_genres(Similarity(keys, -alike), films, 3, known)["mAP"] < 0.6
    peeked = alike.copy(); peeked[:4, :4] = 0
    assert judge_genres(Similarity(keys, peeked), films, 3, known)["mAP"] == 1, "films that vote are not asked"
    truth = np.array([[f.genres[0] == g for g in ("Spy", "War")] for f in films[4:8]])
    rough = Similarity(keys, symmetric(9, 1))
    assert judge_genres(rough, films, 3, known)["mAP"] == pytest.approx(average_precision_score(truth, predict_genres(rough, films, 3, known).iloc[4:8]))
    assert judge_genres(rough, films, 3, known, seed=1).equals(judge_genres(rough, films, 3, known, seed=1))


def test_real_synopses_and_casts_predict_genres(real):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        films = [f for f in wikipedia_films(real / "wikipedia_movies", damaged="skip") if f.genres and f.synopsis and f.cast][::6]
    known = np.arange(len(films)) % 3 > 0
    hidden = without_words(films, genre_names(films))
    told, story, cast = (judge_genres(film_similarity(f, **{source: 1}), f, 20, known) for f, source in ((films, "synopsis"), (hidden, "synopsis"), (hidden, "cast")))
    assert told["mAP"] > story["mAP"] + 0.1, "catalogue texts name the genre"
    assert story["mAP"] > 3 * story.shuffled and cast["mAP"] > 1.2 * cast.shuffled
    assert all(j.shuffled < 1.6 * j.prior for j in (told, story, cast))
    assert len(nearest_films(film_similarity(hidden, synopsis=1, cast=0.1), 10)) == len(films)
