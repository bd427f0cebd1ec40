"Film similarity: each source against a slow reference, combinations, the nearest films, and genres of real metadata."
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
from primenb.scenes.similarity import (
    SIMILARITY_SOURCES, Similarity, cast_similarity, co_watch_similarity, combine_similarities, evaluate_genres,
    film_similarity, genre_names, genre_similarity, jaccard, nearest_films, predict_genres, synopsis_similarity,
    without_words)


def film(key, genres=(), cast=(), synopsis="", related=()):
    return Film(str(key), str(key), 2000, tuple(genres), tuple(cast), synopsis, tuple(related))


def same(a, b): np.testing.assert_allclose(a, b, atol=2e-5)  # NaN in the same places


def table_of(value, n): return np.array([[value(i, j) for j in range(n)] for i in range(n)], float)


def cosine(a, b):
    "The cosine of two sparse vectors, given as dictionaries."
    return sum(a[w] * b.get(w, 0) for w in a) / np.sqrt(sum(v**2 for v in a.values()) * sum(v**2 for v in b.values()))


def symmetric(n, seed, unknown=0.0):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, n))
    values += values.T
    gap = rng.random((n, n)) < unknown
    values[gap | gap.T] = np.nan
    return values


# --- sources

@given(st.lists(st.lists(st.sampled_from(["War", "war", "Spy", "Noir", "Short"]), max_size=4), min_size=1, max_size=6))
def test_jaccard_is_the_share_in_common(sets):
    plain = [{name.lower() for name in s} for s in sets]
    def slow(i, j):
        a, b = plain[i], plain[j]
        return np.nan if i == j or not a or not b else len(a & b) / len(a | b)
    same(jaccard(sets), table_of(slow, len(sets)))
    same(genre_similarity([film(n, genres=s) for n, s in enumerate(sets)]), jaccard(sets))
    same(cast_similarity([film(n, cast=s) for n, s in enumerate(sets)]), jaccard(sets))


texts = ["A dog finds a bone, and a bone again.", "The dog flies to the moon!", "", "  ", "the and of",
         "Moon, moon and a bone", "A war"]


def test_synopses_are_compared_by_their_rare_words():
    "Against TF-IDF with counted words: (1 + ln tf)(1 + ln (1 + n) / (1 + df))."
    vocabulary = ("dog", "finds", "bone", "flies", "moon", "war")
    def letters(text): return "".join(c if c.isalnum() else " " for c in text.lower())
    words = [Counter(w for w in letters(t).split() if w in vocabulary) for t in texts]
    n, df = len(texts), Counter(w for c in words for w in c)
    def weight(w, tf): return (1 + np.log(tf)) * (1 + np.log((1 + n) / (1 + df[w])))
    vectors = [{w: weight(w, tf) for w, tf in c.items()} for c in words]
    def slow(i, j):
        a, b = vectors[i], vectors[j]
        return np.nan if i == j or not a or not b else cosine(a, b)
    same(synopsis_similarity([film(n, synopsis=t) for n, t in enumerate(texts)]), table_of(slow, n))
    assert np.isnan(synopsis_similarity([film("a", synopsis="of the"), film("b")])).all()


def test_a_sentence_model_may_stand_in():
    stories = [film(n, synopsis=t) for n, t in enumerate(texts[:4])]
    received = []
    def embed(given):
        received.extend(given)
        return np.array([[1, 0], [1, 1], [1, 1], [1, 1]])
    s = synopsis_similarity(stories, embed)
    assert received == texts[:4]
    same(s, [[np.nan, 2**-0.5, np.nan, np.nan], [2**-0.5, np.nan, np.nan, np.nan], [np.nan] * 4, [np.nan] * 4])
    for bad in (np.ones((3, 2)), np.full((4, 2), np.nan)):
        with pytest.raises(PrimenbError, match="4 texts gave embeddings of shape"):
            synopsis_similarity(stories, lambda given: bad)


def test_words_that_name_the_genre_are_removed():
    story = "A Romantic comedy, non-fiction; ROMANCES of scientists."
    films = [film("a", ["Romance", "Science Fiction"], synopsis=story),
             film("b", ["War"], synopsis="Warriors at war go toward it.")]
    a, b = without_words(films, genre_names(films))
    assert a.synopsis == "A  comedy, non-;  of ." and b.synopsis == "Warriors at  go toward it."
    assert films[0].synopsis.startswith("A Romantic") and (a.key, a.genres) == ("a", ("Romance", "Science Fiction"))
    assert without_words(films, []) == films


@settings(max_examples=50)
@given(st.lists(st.lists(st.sampled_from("abcdxy"), unique=True, max_size=3), min_size=2, max_size=4))
def test_lists_of_audiences_against_the_formula(related):
    films = [film(key, related=[r for r in names if r != key]) for key, names in zip("abcd", related)]
    def ranks(f): return {key: 1 - r / (len(f.related) + 1) for r, key in enumerate(f.related, 1)}
    vectors = [{f.key: 1.0, **ranks(f)} for f in films]
    known = [bool(f.related) or any(f.key in g.related for g in films) for f in films]
    def slow(i, j): return cosine(vectors[i], vectors[j]) if i != j and known[i] and known[j] else np.nan
    same(co_watch_similarity(films), table_of(slow, len(films)))


# --- combinations

@settings(max_examples=50)
@given(st.integers(3, 6), st.integers(0, 99), st.lists(st.floats(0.1, 3), min_size=1, max_size=3))
def test_a_combination_is_the_weighted_sum_of_z_scores(n, seed, weights):
    parts = [symmetric(n, seed + i, 0.2) for i in range(len(weights))]
    off_diagonal = ~np.eye(n, dtype=bool)
    pairs = [p[off_diagonal & np.isfinite(p)] for p in parts]
    if not all(len(set(p)) > 1 for p in pairs): return
    def slow(i, j):
        known = [(p[i, j], v, w) for p, v, w in zip(parts, pairs, weights) if i != j and np.isfinite(p[i, j])]
        return sum(w * (value - np.mean(v)) / np.std(v) for value, v, w in known) if known else np.nan
    same(combine_similarities(parts, weights), table_of(slow, n))


def test_a_combination_does_not_depend_on_units_and_leaves_its_parts_alone():
    part = symmetric(5, 0, 0.2)
    before = part.copy()
    same(combine_similarities([part]), combine_similarities([1000 * part + 7]))
    same(part, before)
    assert np.isnan(np.diagonal(combine_similarities([np.ones((4, 4))]))).all()
    constant = combine_similarities([np.full((4, 4), 0.1)])
    assert np.nanmax(abs(constant)) < 1e-3, "a source for which all are alike says nothing"
    with pytest.raises(ValueError): combine_similarities([part, part], [1])


def test_sources_by_name_and_matrices_from_elsewhere(tmp_path):
    films = [film(1, ["War"], ["Ada"], "A soldier"), film(2, ["War", "Spy"], ["Ada", "Bo"], "A soldier and a spy"),
             film(3, ["Spy"], ["Bo"], "A spy")]
    for name in ("genre", "synopsis", "cast"):
        same(film_similarity(films, **{name: 2}).values, combine_similarities([SIMILARITY_SOURCES[name](films)], [2]))
    both = combine_similarities([genre_similarity(films), cast_similarity(films)], [1, 0.5])
    same(film_similarity(films, genre=1, cast=0.5).values, both)
    ratings = [f"{u},{m},4,0" for u, m in ((1, 1), (1, 2), (2, 2), (2, 3), (3, 1), (3, 2))]
    (tmp_path / "ratings.csv").write_text("\n".join(["userId,movieId,rating,timestamp", *ratings]) + "\n")
    watched = combine_similarities([co_watch(tmp_path / "ratings.csv", ["1", "2", "3"])])
    assert nearest_films(Similarity(("1", "2", "3"), watched), 1) == {"1": ("2",), "2": ("1",), "3": ("2",)}


@pytest.mark.parametrize("what, says", [
    (lambda f: film_similarity(f, taste=1), "by taste.*no such source.*choose among genre, synopsis, cast, co_watch"),
    (lambda f: film_similarity(f), "by nothing"),
    (lambda f: film_similarity(f, cast=1), "knows nothing of any two films"),
    (lambda f: film_similarity([*f, f[0]], genre=1), "film a comes twice"),
    (lambda f: Similarity(("a", "b"), np.zeros((2, 3))), "2 films, and values of shape"),
    (lambda f: film_similarity(f, genre=1).only(["a", "nobody's"]), "film nobody's: there are no metadata"),
    (lambda f: nearest_films(film_similarity(f, genre=1), 0), "choose 1 to 2"),
    (lambda f: nearest_films(film_similarity(f, genre=1), 3), "choose 1 to 2"),
    (lambda f: nearest_films(film_similarity(f, genre=1), 1), "film c: the metadata compare it with 0 films"),
    (lambda f: predict_genres(film_similarity(f, genre=1), [film("d", ["War"])]), "film d: there are no metadata"),
    (lambda f: predict_genres(film_similarity(f, genre=1), f, known=np.zeros(3, bool)), "no film that may vote"),
    (lambda f: evaluate_genres(film_similarity(f, genre=1), f, known=np.arange(3) != 1), "none occurs both")])
def test_refusals(what, says):
    with pytest.raises(PrimenbError, match=says): what([film("a", ["War"]), film("b", ["Spy"]), film("c")])


# --- the nearest, and votes

@settings(max_examples=50)
@given(st.integers(2, 8), st.integers(0, 99), st.integers(1, 7))
def test_the_nearest_films_against_sorting(n, seed, k):
    k, keys = min(k, n - 1), tuple("abcdefgh"[:n])
    values = np.round(symmetric(n, seed))
    np.fill_diagonal(values, np.nan)
    near = nearest_films(Similarity(keys, values), k)
    for i, key in enumerate(keys):
        order = sorted((j for j in range(n) if j != i), key=lambda j: (-values[i, j], j))
        assert near[key] == tuple(keys[j] for j in order[:k])
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
    predicted = predict_genres(s, films, k, known)
    for i in range(n):
        votes = sorted(((max(s.values[i, j], 0), j) for j in voters if j != i), reverse=True)[:k]
        total = max(sum(w for w, _ in votes), 1e-9)
        for genre in predicted:
            share = sum(w for w, j in votes if genre in films[j].genres) / total
            assert predicted.loc[str(i), genre] == pytest.approx(share, abs=1e-6)
    assert predicted.to_numpy().max() <= 1 + 1e-6
    order = rng.permutation(n)
    shuffled = predict_genres(s, [films[i] for i in order], k, None if known is None else known[order])
    same(shuffled.loc[predicted.index], predicted)


def test_only_films_that_do_not_vote_are_tested():
    films = [film(n, [("War", "Spy")[n % 2]]) for n in range(8)] + [film("bare")]
    keys = tuple(f.key for f in films)
    alike = np.where(np.arange(9)[:, None] % 2 == np.arange(9) % 2, 1.0, -1)
    known = np.arange(9) < 4
    def mean_precision(values): return evaluate_genres(Similarity(keys, values), films, 3, known)["mAP"]
    metrics = evaluate_genres(Similarity(keys, alike), films, 3, known)
    expected = [1, 0.5, 4, 2]
    assert metrics[["mAP", "prior", "films", "genres"]].tolist() == expected, "the film without genres does not count"
    assert mean_precision(-alike) < 0.6
    changed = alike.copy()
    changed[:4, :4] = 0
    assert mean_precision(changed) == 1, "films that vote are not tested"
    gt = np.array([[f.genres[0] == g for g in ("Spy", "War")] for f in films[4:8]])
    rough = Similarity(keys, symmetric(9, 1))
    predicted = predict_genres(rough, films, 3, known).iloc[4:8]
    assert mean_precision(rough.values) == pytest.approx(average_precision_score(gt, predicted))
    again = [evaluate_genres(rough, films, 3, known, seed=1) for _ in range(2)]
    assert again[0].equals(again[1])


def test_real_synopses_and_casts_predict_genres(real):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        listed = wikipedia_films(real / "wikipedia_movies", damaged="skip")
        films = [f for f in listed if f.genres and f.synopsis and f.cast][::6]
    known = np.arange(len(films)) % 3 > 0
    hidden = without_words(films, genre_names(films))
    def evaluate(films, source): return evaluate_genres(film_similarity(films, **{source: 1}), films, 20, known)
    named, story = (evaluate(f, "synopsis") for f in (films, hidden))
    cast = evaluate(hidden, "cast")
    assert named["mAP"] > story["mAP"] + 0.1, "catalogue texts name the genre"
    assert story["mAP"] > 3 * story.shuffled and cast["mAP"] > 1.2 * cast.shuffled
    assert all(metrics.shuffled < 1.6 * metrics.prior for metrics in (named, story, cast))
    assert len(nearest_films(film_similarity(hidden, synopsis=1, cast=0.1), 10)) == len(films)
