"Noisy captions: exchanged at an exact rate with the ground truth kept, and human mistakes read from shards."
import io, itertools, json, tarfile, warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from primenb.clip.noise import (
    CIFAR10, TEMPLATES, class_captions, exchange, exchange_captions, exchanged_gt, labelled_pairs, load_source,
    permute_captions, save_source
)
from primenb.core import PrimenbError
from primenb.data.corpus import pairs as corpus_pairs
from primenb.data.records import Pair
from primenb.data.claims import Claims, holds

quick = settings(max_examples=60, deadline=None)


def refused(make, *words):
    "It is refused, with all these words."
    with pytest.raises(PrimenbError) as error: make()
    assert all(word in str(error.value) for word in words), str(error.value)


def made(n):
    return [
        Pair(f"p{i}", b"", (f"caption {i}", f"other {i}"), {"claims": (i,), "shown": i, "place": i}) for i in range(n)
    ]


# --- the exchange


@quick
@given(st.integers(0, 60), st.floats(0, 1), st.integers(0, 2**40))
def test_exactly_so_many_are_exchanged_and_none_keeps_its_own(n, rate, seed):
    if (k := round(rate * n)) == 1: return refused(lambda: exchange(n, rate, seed), "nobody to exchange with")
    source = exchange(n, rate, seed)
    assert (source != np.arange(n)).sum() == k and np.array_equal(np.sort(source), np.arange(n))
    assert np.array_equal(source, exchange(n, rate, seed)) and source.dtype == np.int64


@quick
@given(st.integers(2, 40), st.sampled_from([0, 0.25, 0.5, 1]), st.integers(0, 1000))
def test_captions_are_kept_and_find_their_way_back(n, rate, seed):
    before = made(n)
    if round(rate * n) == 1: return
    after, source = permute_captions(iter(before), rate, seed)
    assert Counter(c for p in after for c in p.captions) == Counter(c for p in before for c in p.captions)
    for i, (old, new) in enumerate(zip(before, after)):
        giver = before[source[i]]
        assert (new.key, new.source, new.captions) == (old.key, old.source, giver.captions)
        assert new.attributes == {**old.attributes, "claims": giver.attributes["claims"], "exchanged": source[i] != i}
        assert (new.captions == old.captions) == (source[i] == i)
    back = exchange_captions(after, np.argsort(source))
    assert [p.captions for p in back] == [p.captions for p in before]
    assert [p.attributes["claims"] for p in back] == [p.attributes["claims"] for p in before]
    assert before == made(n)


def test_every_exchange_is_as_likely_as_any_other():
    "Four elements have nine derangements, and each element is chosen as often as any other."
    seen = Counter(tuple(exchange(4, 1.0, seed).tolist()) for seed in range(2700))
    everywhere = [p for p in itertools.permutations(range(4)) if all(i != j for i, j in enumerate(p))]
    assert set(seen) == set(everywhere) and max(abs(n - 300) for n in seen.values()) < 5 * 300**0.5
    moved = sum(exchange(10, 0.4, seed) != np.arange(10) for seed in range(1000))
    assert abs(moved - 400).max() < 5 * 240**0.5


def test_seeds_differ(): assert len({exchange(50, 0.4, seed).tobytes() for seed in range(20)}) == 20


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), "0.4", None, True])
def test_rates_that_are_no_share(rate): refused(lambda: exchange(10, rate), "no share")


@pytest.mark.parametrize("source", [[0, 1], [0, 0, 1], [1, 2, 3], [[0, 1, 2]], [0.5, 1, 2]])
def test_sources_that_are_no_permutation(source):
    refused(lambda: exchange_captions(made(3), source), "no permutation of 3 pairs")


# --- still true


def claiming(key, place, *claims):
    return Pair(
        key, b"", tuple(f"{key} says {n}" for n in range(len(claims))),
        dict(shown=Claims(place=place, count=1), claims=tuple(Claims(**c) for c in claims))
    )


def test_captions_that_stay_true():
    some = [
        claiming("a", "park", dict(place="park"), dict(count=1)), claiming("b", "park", dict(place="park")),
        claiming("c", "street", dict(place="street"))
    ]
    table = exchanged_gt(some, np.array([2, 0, 1]))
    assert table.values.tolist() == [
        ["a", "c says 0", False], ["b", "a says 0", True], ["b", "a says 1", True], ["c", "b says 0", False]
    ]
    assert len(exchanged_gt(some, np.arange(3))) == 0
    refused(
        lambda: exchanged_gt([Pair(str(n), b"", ("x",)) for n in range(2)], np.array([1, 0])),
        "not known what its captions claim"
    )


def test_truth_on_the_corpus_is_that_of_one_at_a_time():
    some = list(corpus_pairs("validation", check=False))
    after, source = permute_captions(some, 0.5, seed=2)
    table = exchanged_gt(some, source, sample=10**9)
    moved = [p for p in after if p.attributes["exchanged"]]
    assert table.image.tolist() == [p.key for p in moved for _ in p.captions]
    assert table.caption.tolist() == [c for p in moved for c in p.captions]
    assert table.true.tolist() == [
        holds(claims, p.attributes["shown"]) for p in moved for claims in p.attributes["claims"]
    ]
    assert 0.01 < table.true.mean() < 0.2
    part = exchanged_gt(some, source, sample=20, seed=1)
    assert part.image.nunique() == 20
    assert set(part.image) <= set(table.image)
    assert part.equals(exchanged_gt(some, source, sample=20, seed=1))


# --- files


@quick
@given(st.integers(2, 40), st.integers(0, 100))
def test_an_exchange_is_read_as_it_was_written(tmp_path_factory, n, seed):
    path, some = tmp_path_factory.mktemp("source") / "deep/source.npz", made(n)
    source = exchange(n, 1.0, seed)
    save_source(path, some, source)
    again = load_source(path, some)
    assert np.array_equal(again, source)
    assert again.dtype == source.dtype
    assert [f.name for f in path.parent.iterdir()] == ["source.npz"]
    content = path.read_bytes()
    save_source(path, some, source)
    assert path.read_bytes() == content
    refused(lambda: load_source(path, some[:-1]), "other pairs")
    refused(lambda: load_source(path, some[::-1]), "other pairs")


def test_files_that_hold_no_exchange(tmp_path):
    refused(lambda: load_source(tmp_path / "none.npz", made(3)), "there is no such file")
    save_source(tmp_path / "a.npz", made(3), np.array([0, 0, 1]))
    refused(lambda: load_source(tmp_path / "a.npz", made(3)), "no permutation")
    (tmp_path / "a.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:100])
    refused(lambda: load_source(tmp_path / "a.npz", made(3)), "a.npz")
    np.savez(tmp_path / "b.npz", other=np.arange(3))
    refused(lambda: load_source(tmp_path / "b.npz", made(3)), "source")


# --- labels


def shard(path, records):
    "A shard of records: dictionaries that become .json, with an image."
    with tarfile.open(path, "w") as tar:
        for n, about in enumerate(records):
            Image.fromarray(np.full((8, 8, 3), 10 * n, np.uint8)).save(jpg := io.BytesIO(), "JPEG")
            for ending, content in dict(jpg=jpg.getvalue(), json=json.dumps(about).encode()).items():
                info = tarfile.TarInfo(f"{n:06d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def labelled(tmp_path):
    names = list(CIFAR10)
    return shard(
        tmp_path / "train-00.tar",
        [{"class": names[n % 10], "human_worse": names[(n + n // 10) % 10], "index": n} for n in range(20)]
    )


def test_sentences_of_a_class():
    assert all(t.count("{}") == 1 for t in TEMPLATES) and len(CIFAR10) == 10
    said = [c for words in CIFAR10.values() for c in class_captions(words)]
    assert len(set(said)) == len(said)
    assert not any(bad in f" {c} " for c in said for bad in (" a a", " a e", " a i", " a o", " an b", " an c", "{"))


def test_captions_are_of_the_label_and_the_ground_truth_is_kept(labelled):
    some = list(labelled_pairs(labelled, "human_worse"))
    assert len(some) == 20 and sum(p.attributes["wrong"] for p in some) == 10
    for p in some:
        assert p.attributes["label"] == p.attributes["human_worse"]
        assert p.attributes["wrong"] == (p.attributes["label"] != p.attributes["class"])
        assert len(p.captions) == len(set(p.captions)) == 3
        assert set(p.captions) <= set(class_captions(CIFAR10[p.attributes["label"]]))
        assert p.image.shape == (8, 8, 3)
    assert not any(p.attributes["wrong"] for p in labelled_pairs(labelled))
    assert {len(p.captions) for p in labelled_pairs(labelled, captions=99)} == {8, 16, 24}


def test_captions_depend_on_the_seed_and_on_the_key_only(labelled, tmp_path):
    def said(**how): return {p.key: p.captions for p in labelled_pairs(labelled, "human_worse", **how)}
    assert said() == said(check=False) and said() != said(seed=1) and len(said(captions=1)["train-00/000003"]) == 1
    other = shard(tmp_path / "train-01.tar", [{"class": "cat"}])
    assert {
        p.key: p.captions for p in labelled_pairs([other, labelled])
    }.items() >= {p.key: p.captions for p in labelled_pairs(labelled)}.items()


def test_labels_take_part_in_an_exchange(labelled):
    some, right = list(labelled_pairs(labelled)), 0
    for seed in range(10):
        after, _ = permute_captions(some, 1.0, seed)
        assert all(p.attributes["exchanged"] for p in after)
        for p in after:
            assert set(p.captions) <= set(class_captions(CIFAR10[p.attributes["label"]]))
            assert p.attributes["wrong"] == (p.attributes["label"] != p.attributes["class"])
        right += sum(not p.attributes["wrong"] for p in after)
    assert right > 0  # captions of another image of the same class


def test_unknown_labels(labelled, tmp_path):
    refused(
        lambda: list(labelled_pairs(labelled, "human_best")), "no label 'human_best'",
        "choose one of class, human_worse"
    )
    refused(lambda: list(labelled_pairs(labelled, "index")), "its index is")
    zoo = shard(
        tmp_path / "zoo.tar",
        [{"class": "cat", "human_worse": "zebra"}, {"class": "cat", "human_worse": "dog"}, {"human_worse": "dog"}]
    )
    refused(lambda: list(labelled_pairs(zoo, "human_worse")), "zoo/000000", "'zebra'", "airplane", "names=")
    with warnings.catch_warnings(record=True):
        reader = labelled_pairs(zoo, "human_worse", damaged="skip")
        assert [p.key for p in reader] == ["zoo/000001"]
        assert ["zebra" in d.cause for d in reader.damaged] == [True, False]
        assert [p.captions for p in labelled_pairs(
            zoo, "human_worse", names={"cat": ["cat"], "zebra": ["zebra"], "dog": ["dog"]}, templates=["one {}"],
            damaged="skip"
        )][0] == ("one zebra",)
    refused(lambda: list(labelled_pairs(tmp_path / "none.tar")), "no such shard")


def test_a_shard_cut_in_half(labelled):
    content = labelled.read_bytes()
    labelled.write_bytes(content[: len(content) // 2])
    refused(lambda: list(labelled_pairs(labelled)), "train-00.tar", "cut off or broken")
    with warnings.catch_warnings(record=True):
        reader = labelled_pairs(labelled, damaged="skip")
        assert 5 < len(list(reader)) < 15 and len(reader.damaged) == 1


# --- real mistakes


@pytest.mark.parametrize(
    "label, wrong", [("class", 0), ("human_aggregate", 0.09), ("human_random1", 0.17), ("human_worse", 0.40)]
)
def test_real_mistakes(real, label, wrong):
    some = list(labelled_pairs(real / "cifar10/train-00.tar", label, check=False))
    assert len(some) == 4000 and abs(np.mean([p.attributes["wrong"] for p in some]) - wrong) < 0.02
    assert Counter(p.attributes["class"] for p in some).keys() == CIFAR10.keys()
    assert all(list(CIFAR10)[p.attributes["cls"]] == p.attributes["class"] for p in some)
    if label == "human_worse":
        said = Counter(p.attributes["label"] for p in some if p.attributes["class"] == "cat" and p.attributes["wrong"])
        assert said.most_common(1)[0][0] == "dog" and said["dog"] > 3 * said["ship"]


def test_real_test_images_have_true_labels_only(real):
    assert not any(p.attributes["wrong"] for p in itertools.islice(labelled_pairs(real / "cifar10/test-00.tar"), 100))
    refused(lambda: next(iter(labelled_pairs(real / "cifar10/test-00.tar", "human_worse"))), "choose one of class")
