"The corpus as it is read: every part, every way of being damaged, the datasets in and out of workers."
import gzip, json, pickle, shutil, subprocess, sys, warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import primenb.studio.clips as studio_clips
from primenb.core import PrimenbError
from primenb.data.corpus import (
    STYLED, Cameras, ClipDataset, PairDataset, ShotDataset, gt_captions, clips, films, pair_stream, pairs, shots,
    tracking_shots,
)
from primenb.media.motion import read_motion, to_tokens
from primenb.data.records import Clip, Film, Pair
from primenb.media.shots import columns, load_shots, save_shots
from primenb.studio.script import plan_films
from primenb.studio.world import PLACES
from primenb.studio.make import CorpusSizes, make_clips, make_films, make_shards, make_tracks
from primenb.studio.stills import read_tar, write_tar
from primenb.data.claims import holds
from primenb.media.video import encode, read_frames

torch = pytest.importorskip("torch")
from torch.utils.data import DataLoader

FEW = 4  # clips in a batch


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    "A tiny corpus as the studio writes it; one of its two films is put into the training set."
    seed = next(s for s in range(9) if plan_films(2, list(PLACES), 4, seed=s)[0].split == "test")
    data, sizes = tmp_path_factory.mktemp("corpus") / "data", CorpusSizes(
        films=2, seconds=4, tracks=3, still_groups=4, rendition_groups=1, clip_batches=3, seed=seed
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studio_clips, "BATCH", FEW)
        patch.setattr("primenb.studio.make.SHARD", 12)
        for part in (make_films, make_tracks, make_shards, make_clips): part(data, sizes, 0)
    entries = read_json(data / "films/films.json")
    entries[1]["split"] = "train"
    write_json(data / "films/films.json", entries)
    return data


@pytest.fixture
def copy(corpus, tmp_path):
    "A copy to break."
    return Path(shutil.copytree(corpus, tmp_path / "data"))


def read_json(path): return json.loads(path.read_text())
def write_json(path, content): path.write_text(json.dumps(content))


def change(path, **arrays):
    "Puts other arrays into an .npz file; None takes one out."
    with np.load(path) as old: new = {**old, **arrays}
    np.savez_compressed(path, **{k: v for k, v in new.items() if v is not None})


def refused(make, *texts):
    "The error, which must say all of this."
    with pytest.raises(PrimenbError) as e:
        found = make()
        if not isinstance(found, (np.ndarray, list)): list(found)
    assert all(text in str(e.value) for text in texts), str(e.value)
    return e.value


def skipped(reader, *causes):
    "The records that are left, after the damage has been found to be this."
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        records = list(reader)
    assert [cause in d.cause or cause in d.name for d, cause in zip(reader.damaged, causes, strict=True)] == [
        True
    ] * len(causes), reader.damaged
    assert len(records) == reader.read and any("damaged and skipped" in str(w.message) for w in told)
    return records


# --- films


def test_films_are_catalogue_entries_with_everything(corpus):
    first, second = films(folder=corpus)
    assert isinstance(first, Film) and (first.key, first.split, second.split) == ("film_00", "test", "train")
    entry = read_json(corpus / "films/films.json")[0]
    assert (first.title, first.genres, first.related) == (entry["title"], (entry["genre"],), tuple(entry["similar"]))
    assert first.cast == tuple(c["name"] for c in entry["cast"]) and first.attributes["director"] == entry["director"]
    assert [f.key for f in films("train", folder=corpus)] == ["film_01"]
    n = first.attributes["frames"]
    assert len(first.cameras) == n == len(first.frames()) == len(first.motion) == len(first.movers)
    assert first.scenes.end_frame.iloc[-1] == n and first.scenes.first_shot.iloc[0] == 0
    assert len(first.captions) == len(first.shots) == len(first.pairs())


def test_shot_table_is_the_join_key(corpus, tmp_path):
    table = shots(folder=corpus)
    assert list(table)[: len(columns)] == columns and not table.duplicated(["film", "shot"]).any()
    assert set(table.split) == {"train", "test"} and table.attrs["damaged"] == []
    save_shots(table, tmp_path / "shots.csv")
    assert load_shots(tmp_path / "shots.csv")[columns].equals(table[columns])
    film = next(iter(films(folder=corpus)))
    mine = table[table.film == film.key]
    assert mine[columns].reset_index(drop=True).equals(film.shots[columns])
    for row, said in zip(mine.itertuples(), film.timeline["shots"]):
        assert (row.start_frame, row.end_frame, row.place, row.count, row.setup) == (
            said["start_frame"], said["end_frame"], said["shown"]["place"], said["shown"]["count"], said["setup"],
        )
        assert row.start == pytest.approx(said["start"], abs=1e-6) and row.end == pytest.approx(said["end"], abs=1e-6)
        assert np.array_equal(film.frames(row.shot), film.frames()[row.start_frame : row.end_frame])
    refused(lambda: film.frames(99), "there is no shot 99")


def test_pairs_of_a_film_show_the_middle_of_each_shot(corpus):
    film = next(iter(films(folder=corpus)))
    every = film.frames()
    for pair, row in zip(film.pairs(), film.shots.itertuples()):
        assert np.array_equal(pair.image, every[(row.start_frame + row.end_frame) // 2])
        assert (pair.key, pair.attributes["film"], pair.attributes["shot"]) == (
            f"film_00/{row.shot}", row.film, row.shot,
        )
        assert pair.captions == film.captions[row.shot] and all(
            holds(c, pair.attributes["shown"]) for c in pair.attributes["claims"]
        )


def test_true_motion_is_that_of_the_file(corpus):
    test, train = films(folder=corpus)
    with np.load(corpus / "films/film_00.motion.npz") as stored:
        assert np.array_equal(test.motion.field * 8, stored["field"]) and np.allclose(
            test.movers * 255, stored["mover"]
        )
    assert (
        np.array_equal(np.flatnonzero(~test.motion.measured), test.shots.start_frame)
        and not test.motion.field[~test.motion.measured].any()
    )
    read = read_motion(test.path)
    assert (test.motion.x[-1], test.motion.y[-1]) == (read.x[-1], read.y[-1]) and np.allclose(
        test.motion.times, read.times, atol=1e-6
    )
    assert to_tokens(test.motion, 16, 2).shape == to_tokens(read, 16, 2).shape
    refused(lambda: train.motion.field, "no true motion", 'films("test")')


def test_cameras_know_where_they_stand():
    T = np.tile(np.eye(4), (3, 1, 1))
    T[:, :3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    T[:, 0, 3] = [1, 2, 3]
    cameras = Cameras(np.tile(np.eye(3), (3, 1, 1)), T)
    assert np.allclose(cameras.centres, [[0, 1, 0], [0, 2, 0], [0, 3, 0]])
    assert len(cameras[1:]) == 2 and np.allclose(cameras[2:].centres, cameras.centres[2:])


def broken_films():
    def cut(top):
        p = top / "film_00.mp4"
        p.write_bytes(p.read_bytes()[:-2000])
    def gone(name): return lambda top: (top / name).unlink()
    def half(name): return lambda top: (top / name).write_bytes((top / name).read_bytes()[:-60])
    def longer(top):
        encode(top / "film_00.mp4", [*read_frames(top / "film_00.mp4"), np.zeros((144, 256, 3), np.uint8)], 12)
    def entry(**more):
        return lambda top: write_json(
            top / "films.json",
            [
                {k: v for k, v in ({**e, **more} if i == 0 else e).items() if v != "gone"}
                for i, e in enumerate(read_json(top / "films.json"))
            ],
        )
    def camera(**how):
        return lambda top: change(
            top / "film_00.npz", **{k: f(np.load(top / "film_00.npz")[k]) for k, f in how.items()}
        )
    def nan(a):
        a = a.copy()
        a[5, 0, 2] = np.nan
        return a
    def bent(a):
        a = a.copy()
        a[7, :3, :3] *= 1.01
        return a
    def mirrored(a):
        a = a.copy()
        a[7, 0, :3] *= -1
        return a
    def timeline(f):
        def apply(top):
            t = read_json(top / "film_00.json")
            f(t)
            write_json(top / "film_00.json", t)
        return apply
    def shift(t): t["shots"][-1]["start_frame"] += 1
    def scene(t): t["shots"][-1]["scene"] += 1
    def again(t): t["shots"][-1]["shot"] = 7
    return {
        "truncated": (cut, "film_00.mp4"),
        "no video": (gone("film_00.mp4"), "no video film_00.mp4"),
        "one frame more": (longer, "and should have 48"),
        "no timeline": (gone("film_00.json"), "no such file"),
        "half a timeline": (half("film_00.json"), "it is no JSON"),
        "no cameras": (gone("film_00.npz"), "no such file"),
        "half the cameras": (half("film_00.npz"), "cannot be read as .npz"),
        "NaN": (camera(cam_from_world=nan), "the camera of frame 5"),
        "NaN in K": (camera(K=nan), "the camera of frame 5"),
        "not rigid": (camera(cam_from_world=bent), "the camera of frame 7"),
        "mirrored": (camera(cam_from_world=mirrored), "the camera of frame 7"),
        "a camera less": (camera(K=lambda a: a[:-1]), "for 48 frames"),
        "K missing": (lambda top: change(top / "film_00.npz", K=None), "no array 'K'"),
        "motion of another film": (
            lambda top: change(top / "film_00.motion.npz", field=np.zeros((9, 9, 16, 2), np.int16)),
            "9 frames of field",
        ),
        "frames": (entry(frames=47), "48 frames and should have 47"),
        "split": (entry(split="tset"), "its split is 'tset'"),
        "no title": (entry(title="gone"), "there is no 'title'"),
        "cast of numbers": (entry(cast=[1]), "wrong kind"),
        "twice": (entry(key="film_01"), "film_01 has come before"),
        "gap": (timeline(shift), "do not follow one another"),
        "scene": (timeline(scene), "its scenes do not fit"),
        "numbers": (timeline(again), "not numbered"),
        "length": (timeline(lambda t: t.update(frames=49)), "49 here and 48"),
        "no shots": (timeline(lambda t: t.update(shots=[])), "do not follow one another"),
        "no claims": (timeline(lambda t: t["shots"][0].pop("setup")), "there is no 'setup'"),
        "a number for claims": (timeline(lambda t: t["shots"][0].update(shown=5)), "wrong kind"),
    }


@pytest.mark.parametrize("kind", broken_films())
def test_damaged_films_are_named(copy, kind):
    damage, cause = broken_films()[kind]
    damage(copy / "films")
    error = refused(lambda: films(folder=copy), cause)
    assert "film_0" in error.what or "films.json, film " in error.what
    left = skipped(films(folder=copy, damaged="skip"), cause)
    assert [f.key for f in left] == (["film_01"])


def test_shots_go_on_without_a_damaged_timeline(copy):
    (copy / "films/film_00.json").unlink()
    refused(lambda: shots(folder=copy), "film_00.json")
    with pytest.warns(UserWarning, match="1 damaged and skipped"): table = shots(folder=copy, damaged="skip")
    assert set(table.film) == {"film_01"} and "no such file" in table.attrs["damaged"][0].cause


# --- what is not there


def test_missing_data_says_how_to_get_it(tmp_path, corpus):
    for read in (films, clips, pairs, tracking_shots): refused(lambda: read(folder=tmp_path), "dvc pull", "make data")
    refused(lambda: pair_stream(folder=tmp_path), "dvc pull")
    for read in (films, clips, pairs, shots):
        refused(lambda: read("tset", folder=corpus), "no such split", "train, validation, test")
    refused(lambda: clips("renditions", folder=corpus), "no such split")
    with pytest.raises(ValueError, match="skip"): films(folder=corpus, damaged="ignore")
    (tmp_path / "films").mkdir()
    write_json(tmp_path / "films/films.json", [])
    refused(lambda: films(folder=tmp_path), "there is no record")


# --- tracking shots


def test_tracking_shots_hold_cameras_depth_and_masks(corpus):
    tracked = list(tracking_shots(folder=corpus))
    assert [s.key for s in tracked] == ["track_00", "track_01", "track_02"]
    for shot in tracked:
        n = shot.facts["frames"]
        assert shot.frames().shape == (n, 270, 480, 3) and len(shot.cameras) == n and shot.masks.shape == (n, 135, 240)
        assert shot.masks.any() == (shot.facts["people"] > 0)
        assert np.linalg.norm(np.diff(shot.cameras.centres, axis=0), axis=1).sum() == pytest.approx(
            shot.facts["path"], rel=1e-3
        )
        truth, scaled, shifted = shot.depth(), shot.depth("scaled", 0.25), shot.depth("shifted")
        assert truth.shape == shot.masks.shape and truth.dtype == np.float32 and len(scaled) == len(shifted) == n
        assert (truth > 0).all() and np.isfinite(scaled).all()
        assert np.median(truth[0][np.isfinite(truth[0])]) == pytest.approx(shot.facts["median_depth"], rel=0.02)
        assert not np.array_equal(scaled, shot.depth("scaled", 0.1))
    for wrong, cause in ((("magic",), "choose truth"), (("scaled", None), "0.25"), (("scaled", -1), "0.25")):
        refused(lambda: tracked[0].depth(*wrong), cause)


@pytest.mark.parametrize("kind", ["video", "npz", "maps", "mask", "nan", "facts", "cut"])
def test_damaged_tracking_shots_are_named(copy, kind):
    top = copy / "tracking"
    def nan():
        T = np.load(top / "track_01.npz")["cam_from_world"]
        T[3] = np.nan
        change(top / "track_01.npz", cam_from_world=T)
    damage, cause = {
        "video": (lambda: (top / "track_01.mp4").unlink(), "no video track_01.mp4"),
        "npz": (lambda: (top / "track_01.npz").unlink(), "no such file"),
        "maps": (lambda: change(top / "track_01.npz", scaled_10_step=None), "no array 'scaled_10_step'"),
        "mask": (lambda: change(top / "track_01.npz", mask_shape=None), "no array 'mask_shape'"),
        "nan": (nan, "the camera of frame 3"),
        "cut": (lambda: (top / "track_01.mp4").write_bytes((top / "track_01.mp4").read_bytes()[:9000]), "track_01.mp4"),
        "facts": (
            lambda: write_json(
                top / "shots.json",
                [
                    {k: v for k, v in e.items() if i != 1 or k != "frames"}
                    for i, e in enumerate(read_json(top / "shots.json"))
                ],
            ),
            "no 'frames'",
        ),
    }[kind]
    damage()
    refused(lambda: tracking_shots(folder=copy), cause)
    assert [s.key for s in skipped(tracking_shots(folder=copy, damaged="skip"), cause)] == ["track_00", "track_02"]


# --- pairs


def test_pairs_have_all_captions_and_what_is_true(corpus):
    every = {split: list(pairs(split, folder=corpus)) for split in STYLED}
    assert sum(map(len, every.values())) == len(list(pairs(folder=corpus))) == 12 * 4 + 60
    assert len({p.key for part in every.values() for p in part}) == 12 * 4 + 60
    for split, part in every.items():
        for p in part:
            assert (
                p.image.shape == (96, 96, 3)
                and 1 <= len(p.captions) <= 5
                and len(p.attributes["claims"]) == len(p.captions)
            )
            assert (
                all(holds(c, p.attributes["shown"]) for c in p.attributes["claims"]) and p.attributes["split"] == split
            )
    assert {p.attributes["style"] for p in every["renditions"]} == {"drawing", "mosaic", "poster", "grey", "negative"}
    assert {p.attributes["style"] for p in every["train"]} == {"photo"} and all(
        p.attributes["of"] for p in every["renditions"]
    )


def test_caption_truth_is_the_definition(corpus):
    some, others = list(pairs("train", folder=corpus))[:15], list(pairs("test", folder=corpus))
    M = gt_captions(some)
    assert M.shape == (15, sum(len(p.captions) for p in some))
    slow = [[holds(c, p.attributes["shown"]) for q in some for c in q.attributes["claims"]] for p in some]
    assert (
        np.array_equal(M, slow)
        and M[np.repeat(np.arange(15), [len(p.captions) for p in some]), np.arange(M.shape[1])].all()
    )
    assert gt_captions(some, others).shape == (len(others), M.shape[1])
    refused(lambda: gt_captions([Pair("x", b"", ("a",))]), "x: it is not known")


def repack(path, change):
    files = read_tar(path)
    write_tar(path, change(files))


@pytest.mark.parametrize(
    "kind", ["webp", "txt", "json", "broken json", "no claims", "odd claim", "other txt", "no picture"]
)
def test_damaged_stills_are_named(copy, kind):
    path = next((copy / "stills").glob("test-*"))
    key = next(iter(read_tar(path))).split(".")[0]
    def edit(name, f): return lambda files: {k: f(v) if k == f"{key}.{name}" else v for k, v in files.items()}
    def told(f):
        def apply(v):
            d = json.loads(v)
            f(d)
            return json.dumps(d).encode()
        return edit("json", apply)
    def without(name): return lambda files: {k: v for k, v in files.items() if k != f"{key}.{name}"}
    make, cause = {
        "webp": (edit("webp", lambda v: v[: len(v) // 3]), "cannot be decoded"),
        "txt": (without("txt"), "no 'txt'"),
        "json": (without("json"), "no 'json'"),
        "no picture": (without("webp"), "no 'webp'"),
        "broken json": (edit("json", lambda v: v[:-5]), "wrong kind"),
        "no claims": (told(lambda d: d["captions"][0].pop("claims")), "no 'claims'"),
        "odd claim": (told(lambda d: d["captions"][0]["claims"].update(weather="wet")), "weather"),
        "other txt": (edit("txt", lambda v: b"a lie"), "not among those in .json"),
    }[kind]
    whole = list(pairs("test", folder=copy))
    repack(path, make)
    error = refused(lambda: pairs("test", folder=copy), cause)
    assert error.what.endswith(f"{path.name}, {key}")
    assert [p.key for p in skipped(pairs("test", folder=copy, damaged="skip"), cause)] == [p.key for p in whole[1:]]


def test_damaged_shards_are_named(copy):
    first, second = sorted((copy / "stills").glob("train-*"))
    whole, last = list(pairs("train", folder=copy)), second.read_bytes()
    second.unlink()
    refused(lambda: pairs("train", folder=copy), "no such shard")
    second.write_bytes(last)
    tar = gzip.decompress(first.read_bytes())
    first.write_bytes(gzip.compress(tar[: len(tar) // 2]))
    left = skipped(pairs("train", folder=copy, damaged="skip"), "cut off or broken")
    assert [p.key for p in left] == [p.key for p in whole if p.key in {q.key for q in left}] and 12 < len(left) < 24
    first.write_bytes(first.read_bytes()[:1000])
    assert "cut off or broken" in refused(lambda: pairs("train", folder=copy)).cause
    first.unlink()
    assert len(skipped(pairs("train", folder=copy, damaged="skip"), "no such shard")) == 12
    second.unlink()
    refused(lambda: pairs("train", folder=copy), "there are no shards")


# --- clips


def test_clips_have_labels_and_true_motion(corpus):
    every = list(clips(folder=corpus))
    assert len(every) == 3 * FEW and {c.split for c in every} == {"train", "validation", "test"}
    for clip in every:
        assert isinstance(clip, Clip) and clip.frames().shape == (16, 64, 64, 3)
        assert ("action" in clip.labels) == (clip.labels["kind"] == "people") and ("direction" in clip.labels) == (
            clip.labels["kind"] == "objects"
        )
        assert all(clip.labels.values()) and (clip.motion is None) == (clip.split == "train")
    with np.load(corpus / "clips/truth.npz") as stored:
        for key, field, mover in zip(*(stored[name] for name in ("keys", "field", "mover"))):
            clip = next(c for c in every if c.key == key)
            assert (
                np.array_equal(clip.motion.field * 8, field)
                and np.allclose(clip.movers * 255, mover)
                and not clip.motion.measured[0]
            )
    one = next(c for c in every if c.motion)
    assert to_tokens(one.motion, 16, 2).shape == to_tokens(read_motion(one.path), 16, 2).shape == (8, 4, 4)
    assert [c.key for c in clips("test", folder=corpus)] == [c.key for c in every if c.split == "test"]


@pytest.mark.parametrize("kind", ["file", "cut", "short", "split", "twice", "truth", "row"])
def test_damaged_clips_are_named(copy, kind):
    top = copy / "clips"
    table = top / "clips.csv"
    lines, first = table.read_text().splitlines(), top / "train/clip_00000.mp4"
    def rows(new): table.write_text("\n".join(new) + "\n")
    damage, cause, left = {
        "file": (first.unlink, "no video clip_00000.mp4", 11),
        "cut": (lambda: first.write_bytes(first.read_bytes()[:900]), "clip_00000.mp4", 11),
        "short": (lambda: encode(first, read_frames(first)[:15], 12), "has 15 frames and should have 16", 11),
        "split": (lambda: rows([lines[0], lines[1].replace("train", "trian"), *lines[2:]]), "'trian'", 11),
        "twice": (lambda: rows([*lines, lines[1]]), "clip_00000 has come before", 12),
        "truth": (lambda: (top / "truth.npz").unlink(), "no such file", 12),
        "row": (lambda: rows([*lines, "clip_99999,test"]), "2 fields", 12),
    }[kind]
    damage()
    error = refused(lambda: clips(folder=copy), cause)
    assert "clips.csv, line" in error.what or "truth.npz" in error.what
    assert len(skipped(clips(folder=copy, damaged="skip"), cause)) == left
    if kind == "truth":
        assert (
            all(c.motion is None for c in clips("train", folder=copy)) and len(list(clips("train", folder=copy))) == FEW
        )


def test_truth_of_another_size_is_refused(copy):
    change(copy / "clips/truth.npz", field=np.zeros((2, 16, 8, 8, 2), np.int16))
    refused(lambda: clips("test", folder=copy), "do not fit fields of shape (2, 16, 8, 8, 2)")


# --- tensors


class Crop:
    "A random transform, which a worker can be sent."
    def __call__(self, image):
        x, y = torch.randint(0, 16, (2,)).tolist()
        return (
            torch.from_numpy(np.array(image))[y : y + 48, x : x + 48]
            if not torch.is_tensor(image)
            else image[..., y : y + 48, x : x + 48]
        )


def tokens(texts):
    "A tokenizer like open_clip's: (n,77) of whole numbers."
    return torch.tensor([[len(t), *t.encode()[:76], *[0] * (76 - min(76, len(t)))] for t in texts])


def same(a, b):
    "Whether two lists of batches are equal."
    return len(a) == len(b) and all(
        torch.equal(x, y) if torch.is_tensor(x) else x == y for p, q in zip(a, b) for x, y in zip(p, q)
    )


@pytest.fixture(scope="session")
def datasets(corpus):
    "Makes one of each kind, as it was asked for."
    objects = [c for c in clips(folder=corpus) if "direction" in c.labels]
    return dict(
        pairs=lambda: PairDataset(pairs("train", folder=corpus), Crop(), tokens, index=True),
        clips=lambda: ClipDataset(objects, "speed", Crop()),
        shots=lambda: ShotDataset(shots(folder=corpus), "place", Crop(), folder=corpus / "films"),
    )


def test_items_are_small_tensors(corpus):
    p = PairDataset(pairs("test", folder=corpus))
    image, text = p[0]
    assert (image.dtype, tuple(image.shape)) == (torch.uint8, (3, 96, 96)) and text in p.records[0].captions
    assert np.array_equal(image.permute(1, 2, 0), p.records[0].image)
    c = ClipDataset(clips("test", folder=corpus))
    assert tuple(c[1][0].shape) == (16, 3, 64, 64) and c[1][1] == 1 and c.classes is None
    table = shots(folder=corpus)
    s = ShotDataset(table, "place", folder=corpus / "films")
    row, film = table.iloc[1], read_frames(corpus / f"films/{table.film[1]}.mp4")
    keys = [round(row[k] * 12) for k in ("key1", "key2", "key3")]
    assert np.array_equal(s[1][0].permute(0, 2, 3, 1), film[keys]) and s.classes[s[1][1]] == row.place
    assert (len(p), len(c), len(s)) == (12, FEW, len(table)) and p[-1][1] in p.records[-1].captions
    for d in (p, c, s):
        with pytest.raises(IndexError): d[len(d)]


def test_captions_change_with_epoch_and_seed_only(corpus):
    records = list(pairs("train", folder=corpus))
    d = PairDataset(records)
    first = [t for _, t in d]
    assert first == [t for _, t in PairDataset(records)] == [d[i][1] for i in range(len(d))]
    assert first[::-1] == [t for _, t in PairDataset(records[::-1])]
    d.set_epoch(3)
    later = [t for _, t in d]
    d.set_epoch(0)
    assert later != first == [t for _, t in d] != [t for _, t in PairDataset(records, seed=1)]
    seen = set()
    for epoch in range(40):
        d.set_epoch(epoch)
        seen.add(d[0][1])
    assert seen == set(records[0].captions)


def test_reading_leaves_the_random_numbers_alone(corpus):
    d = PairDataset(pairs("test", folder=corpus), Crop())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    crops = [d[0][0] for _ in range(3)]
    assert torch.equal(torch.rand(3), expected) and torch.equal(crops[0], crops[1])
    d.set_epoch(1)
    assert not torch.equal(crops[0], d[0][0])


@pytest.mark.parametrize("kind", ["pairs", "clips", "shots"])
def test_workers_change_nothing(datasets, kind):
    d = datasets[kind]()
    here = list(DataLoader(d, 5))
    assert same(here, list(DataLoader(d, 5, num_workers=2, multiprocessing_context="fork")))
    assert same(here, list(DataLoader(pickle.loads(pickle.dumps(d)), 5)))


def test_running_workers_see_the_epoch(datasets):
    d = datasets["pairs"]()
    loader = DataLoader(d, 5, num_workers=2, persistent_workers=True, multiprocessing_context="fork")
    for epoch in range(3):
        d.set_epoch(epoch)
        batches = list(loader)
        assert same(batches, list(DataLoader(d, 5)))


@pytest.mark.slow
def test_spawned_workers_change_nothing(datasets, corpus):
    for make in datasets.values():
        d = make()
        assert same(list(DataLoader(d, 5)), list(DataLoader(d, 5, num_workers=1, multiprocessing_context="spawn")))
    stream = pair_stream("train", folder=corpus, tokenizer=tokens, shuffle=4)
    assert same(
        list(DataLoader(stream, 5)), list(DataLoader(stream, 5, num_workers=1, multiprocessing_context="spawn"))
    )


def test_targets_are_numbers_of_classes(corpus):
    records = [c for c in clips(folder=corpus) if "speed" in c.labels]
    d = ClipDataset(records, "speed")
    assert d.classes == sorted({c.labels["speed"] for c in records}) and [d.classes[t] for t in d.targets] == [
        c.labels["speed"] for c in records
    ]
    assert ClipDataset(records, "speed", classes=["slow", "medium", "fast"]).targets == [
        ["slow", "medium", "fast"].index(c.labels["speed"]) for c in records
    ]
    refused(lambda: ClipDataset(records, "action"), "no label 'action'")
    refused(lambda: ClipDataset(records, "speed", classes=["none"]), "its speed is")
    refused(lambda: ShotDataset(shots(folder=corpus), "weather", folder=corpus), "no column 'weather'")
    refused(lambda: PairDataset([Pair("silent", b"")]), "silent: it has no caption")


def test_damage_in_a_worker_is_named(corpus):
    whole, broken = list(pairs("test", folder=corpus))[0], Pair("torn", b"RIFF....", ("a",))
    with pytest.raises(Exception, match="torn: it cannot be decoded"):
        list(DataLoader(PairDataset([whole, broken]), 1, num_workers=1))


# --- streams


def test_stream_gives_what_the_dataset_gives(corpus):
    pytest.importorskip("webdataset")
    d = PairDataset(pairs("train", folder=corpus), Crop(), tokens, seed=2)
    stream = pair_stream("train", folder=corpus, transform=Crop(), tokenizer=tokens, seed=2, shuffle=8)
    orders = []
    for epoch in (0, 1):
        d.set_epoch(epoch)
        stream.set_epoch(epoch)
        here, there = list(d), list(stream)
        assert sorted((t.tolist(), i.sum().item()) for i, t in here) == sorted(
            (t.tolist(), i.sum().item()) for i, t in there
        )
        assert same(there, list(stream)) and not same(there, here)
        orders.append(there)
    assert not same(*orders)
    plain = pair_stream("train", folder=corpus, transform=Crop(), tokenizer=tokens, seed=2, shuffle=0)
    d.set_epoch(0)
    assert same(list(plain), list(d))


def test_stream_is_dealt_out_to_workers(corpus):
    pytest.importorskip("webdataset")
    stream = pair_stream("train", folder=corpus, tokenizer=tokens)
    for workers in (1, 2):
        batches = list(DataLoader(stream, 6, num_workers=workers, multiprocessing_context="fork"))
        assert [tuple(i.shape) for i, _ in batches] == [(6, 3, 96, 96)] * 4
        assert sorted(t.tolist() for _, text in batches for t in text) == sorted(t.tolist() for _, t in stream)


def test_stream_takes_further_stages(corpus):
    wds = pytest.importorskip("webdataset")
    stream = pair_stream("test", folder=corpus).compose(wds.batched(4))
    images, texts = next(iter(stream))
    assert len(images) == len(texts) == 4
    assert len(list(islice(pair_stream("test", folder=corpus).repeat(), 30))) == 30


def test_open_clip_reads_the_shards_as_they_are(corpus):
    "The pipeline of open_clip's own loader for shards."
    wds = pytest.importorskip("webdataset")
    urls = [str(p) for p in sorted((corpus / "stills").glob("train-*"))]
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(urls), wds.tarfile_to_samples(),
        wds.select(lambda s: "txt" in s and any(e in s for e in ("png", "jpg", "jpeg", "webp"))),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"), wds.to_tuple("image", "text"),
    )
    theirs, ours = list(pipeline), list(pairs("train", folder=corpus))
    assert len(theirs) == len(ours)
    for (image, text), pair in zip(theirs, ours):
        assert text in pair.captions and np.array_equal(np.asarray(image), pair.image)


def test_damaged_streams_refuse_or_tell(copy):
    pytest.importorskip("webdataset")
    first, second = sorted((copy / "stills").glob("train-*"))
    files = read_tar(second)
    key = next(k for k in files if k.endswith("webp"))
    write_tar(second, {**files, key: files[key][:50]})
    first.write_bytes(first.read_bytes()[:-3000])
    refused(lambda: pair_stream("train", folder=copy, shuffle=0), "cut off or broken")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        left = list(pair_stream("train", folder=copy, damaged="skip"))
    assert 11 <= len(left) < 23 and sorted(
        w for m in told for w in ("cannot be decoded", "cut off or broken") if w in str(m.message)
    ) == ["cannot be decoded", "cut off or broken"]
    second.write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        list(
            DataLoader(
                pair_stream("train", folder=copy, damaged="skip"), 2, num_workers=2, multiprocessing_context="fork"
            )
        )


def test_reading_needs_neither_torch_nor_webdataset():
    code = "import sys, primenb.data.corpus; sys.exit('torch' in sys.modules or 'webdataset' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
