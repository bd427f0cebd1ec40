"Public data: every format read from small files made here and from the real ones, and every kind of damage named."
import csv, io, itertools, json, subprocess, sys, tarfile, warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image

from primenb.core import PrimenbError
from primenb.data.public import (
    co_watch, feature_films, folder_clips, hmdb51_clips, kinetics_clips, lvu_clips, movielens_films, movienet_films,
    posed_frames, shard_list, shard_pairs, table_pairs, to_rigid, ucf101_clips, wikipedia_films,
)
from primenb.data.records import (
    Clip, Damages, Pair, PosedFrame, Reader, ShotFeatures, decode_image, frames_table, json_file, read_depth,
    table_rows, text_lines,
)
from primenb.media.shots import columns, shot_table
from primenb.media.video import encode

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def skipping(reader):
    "What a reader that skips gives, and the causes of what it left out."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        records = list(reader)
    ours = [w for w in said if "damaged and skipped" in str(w.message)]
    assert len(ours) == bool(reader.damaged) and reader.read == len(records)
    return records, [d.cause for d in reader.damaged]


def png(image) -> bytes:
    Image.fromarray(image).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def noise_image(seed, shape=(24, 32, 3)): return np.random.default_rng(seed).integers(0, 255, shape, dtype=np.uint8)


def refused(make, *words):
    "Whatever the policy would forgive, this is refused, and says why."
    with pytest.raises(PrimenbError) as error: list(make())
    assert all(word in str(error.value) for word in words), str(error.value)
    return error.value


# --- records and the rule


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_every_record_is_given_or_named(whole):
    def records(damages):
        for n, good in enumerate(whole):
            with damages:
                if not good: raise PrimenbError(f"record {n}", "bad", "mend it")
                yield n
    good = [n for n, g in enumerate(whole) if g]
    bad = [f"record {n}" for n, g in enumerate(whole) if not g]
    strict, lenient = Reader(records, "set"), Reader(records, "set", "skip")
    if bad: refused(lambda: strict, bad[0], "mend it")
    else: assert list(strict) == good and strict.damaged == []
    if not good: refused(lambda: lenient, f"not one of {len(bad)} records", "record 0")
    else:
        for _ in range(2):  # a second pass counts anew
            assert skipping(lenient) == (good, ["bad"] * len(bad))
            assert [d.name for d in lenient.damaged] == bad


def test_mistakes_in_the_program_are_not_damage():
    def records(damages):
        with damages: yield 1 / 0
    with pytest.raises(ZeroDivisionError): list(Reader(records, "set", "skip"))


def test_an_unknown_policy_is_refused_everywhere(tmp_path):
    with pytest.raises(ValueError, match='"raise" or "skip"'): Reader(None, "set", "ignore")
    with pytest.raises(ValueError, match='"raise" or "skip"'): table_pairs(tmp_path / "x", damaged=True)


def test_nothing_at_all_is_an_error(tmp_path):
    (tmp_path / "a.csv").write_text("filepath\ttitle\n")
    refused(lambda: table_pairs(tmp_path / "a.csv", damaged="skip"), "a.csv", "no record")
    (tmp_path / "b.csv").write_bytes(b"")
    refused(lambda: table_pairs(tmp_path / "b.csv", damaged="skip"), "nothing at all")


def test_leaving_early_is_quiet():
    def records(damages):
        with damages: raise PrimenbError("a", "b", "c")
        yield 1
        yield 2
    reader = Reader(records, "set", "skip")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert next(iter(reader)) == 1
    assert repr(reader) == "set: 1 read, 1 damaged"


cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)


@quick
@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=8), st.sampled_from(",\t;"))
def test_tables_as_written_by_csv_come_back(tmp_path, rows, separator):
    with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f, delimiter=separator).writerows([("a", "b", "ö"), *rows])
    assert [tuple(row.values()) for _, row in table_rows(tmp_path / "t.csv", ("a", "ö"), separator)] == rows


def test_broken_rows_are_named_by_their_line(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfa,b\n1,2\n\n3\n4,"5\n6"\ncaf\xe9,7\n8,9,10\n11,12\n"13,14\n15,16\n')
    damages = Damages("skip")
    assert [row for _, row in table_rows(tmp_path / "t.csv", "ab", damages=damages)] == [
        dict(a="1", b="2"), dict(a="4", b="5\n6"), dict(a="11", b="12")
    ]
    assert [d.name.split("line ")[1] for d in damages] == ["4", "7", "8", "10"]
    assert "not UTF-8" in damages[1].cause and "takes 2 lines with it" in damages[3].cause
    refused(lambda: table_rows(tmp_path / "t.csv", "ab"), "line 4", "1 fields and the header 2")
    refused(lambda: table_rows(tmp_path / "t.csv", ["c"]), "no column 'c'", "'a', 'b'")
    (tmp_path / "t.csv").write_text("a,a\n1,2\n")
    refused(lambda: table_rows(tmp_path / "t.csv"), "same name")
    refused(lambda: table_rows(tmp_path / "none.csv"), "no such file")
    refused(lambda: text_lines(tmp_path), "it is a folder")


def test_lines_keep_their_numbers(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n  two \nthr\xffee\nfo\0ur\nfive")
    damages = Damages("skip")
    assert [
        (w.rsplit(" ", 1)[1], text)
        for w, text in text_lines(tmp_path / "l.txt", damages)
    ] == [("1", "one"), ("3", "two"), ("6", "five")]
    assert [d.name.rsplit(" ", 1)[1] for d in damages] == ["4", "5"]


def test_json_says_where_it_breaks(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1,\n "b": }')
    refused(lambda: json_file(tmp_path / "a.json"), "a.json, line 2", "column 7")
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    refused(lambda: json_file(tmp_path / "a.json"), "not UTF-8")


whole_png = png(noise_image(0))


@quick
@given(st.integers(0, len(whole_png)))
def test_a_truncated_image_is_whole_or_refused(cut):
    try: image = decode_image(whole_png[:cut], "cut.png")
    except PrimenbError as e: assert e.what == "cut.png" and "cannot be decoded" in e.cause
    else: assert (image == noise_image(0)).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "LA"])
def test_images_of_every_mode_are_rgb(mode):
    Image.fromarray(noise_image(1)).convert(mode).save(buffer := io.BytesIO(), "TIFF" if mode == "CMYK" else "PNG")
    image = decode_image(buffer.getvalue())
    assert image.shape == (24, 32, 3) and image.dtype == np.uint8


def test_a_pair_decodes_once_and_only_when_used(tmp_path):
    pair = Pair("a", whole_png, ("noise",))
    assert "image" not in vars(pair) and pair.image is pair.image and (pair.image == noise_image(0)).all()
    (tmp_path / "a.png").write_bytes(whole_png[:200])
    with pytest.raises(PrimenbError, match="a.png"): Pair("a", tmp_path / "a.png").image
    with pytest.raises(PrimenbError, match="only its labels"): Clip("c", None, {}).frames()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_tables_of_frames_agree_with_the_table_of_cuts(lengths):
    ends = np.cumsum(lengths)
    ours = frames_table("f", np.stack([ends - lengths, ends], 1), 24)
    theirs = shot_table("f", ends[:-1].tolist(), np.arange(ends[-1]) / 24, ends[-1] / 24)
    assert list(ours) == columns and np.allclose(ours[columns[1:]], theirs[columns[1:]], atol=2e-6)


def test_shots_that_cannot_be_are_refused():
    with pytest.raises(PrimenbError, match="f.npz: shot 1 ends before"):
        frames_table("f", [(0, 5), (5, 5)], 24, where="f.npz")
    with pytest.raises(PrimenbError, match="shot 9 begins before"):
        frames_table("f", [(0, 5), (4, 8)], 24, numbers=[3, 9])
    with pytest.raises(PrimenbError, match="3 rows of vgg"):
        ShotFeatures("f", frames_table("f", [(0, 5)], 24), features=dict(vgg=np.zeros((3, 2))))
    with pytest.raises(PrimenbError, match="not marked"): ShotFeatures("f", frames_table("f", [(0, 5)], 24)).boundaries


# --- frames with poses


def rotation(rng):
    Q, R = np.linalg.qr(rng.normal(size=(3, 3)))
    Q = Q * np.sign(np.diag(R))
    return Q * np.sign(np.linalg.det(Q))


@given(st.integers(0, 10**6), st.floats(0, 1e-3))
def test_rounded_poses_become_exactly_rigid(seed, noise):
    rng, pose = np.random.default_rng(seed), np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation(rng), rng.normal(size=3) * 5
    given_pose = pose + np.pad(noise * rng.uniform(-1, 1, (3, 3)), (0, 1))
    cam_from_world = to_rigid(given_pose)
    assert np.allclose(cam_from_world[:3, :3] @ cam_from_world[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.allclose(cam_from_world @ pose, np.eye(4), atol=30 * noise + 1e-9)
    assert np.allclose(PosedFrame(0, None, cam_from_world, None).centre, pose[:3, 3])


@pytest.mark.parametrize(
    "pose, words",
    [
        (np.diag([1.0, 1, -1, 1]), "determinant -1"),
        (np.diag([2.0, 2, 2, 1]), "stretches by 2"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.eye(4) + np.eye(4, k=-3) * 5, "last row"),
        (np.zeros((4, 4)), "no rigid motion"),
    ],
)
def test_what_is_no_pose_is_refused(pose, words):
    with pytest.raises(PrimenbError, match=words): to_rigid(pose)


@pytest.fixture
def walk(tmp_path):
    "The same five frames in both layouts; returns the two folders and the poses."
    rng = np.random.default_rng(3)
    K = np.array([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]])
    poses = []
    holo, seven = tmp_path / "holo", tmp_path / "seven"
    for folder in (holo / "images", holo / "depth", seven): folder.mkdir(parents=True)
    for n in range(5):
        pose, depth = np.eye(4), rng.integers(0, 4000, (24, 32)).astype(np.uint16)
        pose[:3, :3] = rotation(rng)
        pose[:3, 3] = rng.normal(size=3)
        depth[0, 0] = 65535
        poses.append(pose)
        for path in (holo / f"images/{n + 8}.png", seven / f"frame-{n + 8:06d}.color.png"):
            path.write_bytes(png(noise_image(n)))
        for path in (holo / f"depth/{n + 8}.png", seven / f"frame-{n + 8:06d}.depth.png"):
            Image.fromarray(depth).save(path)
        np.savetxt(seven / f"frame-{n + 8:06d}.pose.txt", pose)
    np.savetxt(holo / "K.txt", K)
    np.savetxt(seven / "camera-intrinsics.txt", K)
    np.savetxt(holo / "poses.txt", np.reshape(poses, (5, 16)))
    return holo, seven, np.array(poses)


def test_both_layouts_give_the_same_frames(walk):
    (holo, seven), poses = walk[:2], walk[2]
    for a, b, pose in zip(posed_frames(holo), posed_frames(seven), poses, strict=True):
        assert a.index == b.index
        assert np.allclose(a.cam_from_world, np.linalg.inv(pose))
        assert np.allclose(a.cam_from_world, b.cam_from_world)
        assert (a.image == noise_image(a.index - 8)).all()
        assert (a.image == b.image).all()
        assert np.array_equal(a.depth, b.depth, equal_nan=True)
        stored = np.asarray(Image.open(b.depth_path))
        assert np.array_equal(np.isnan(b.depth), np.isin(stored, (0, 65535))) and a.depth.dtype == np.float32
        assert np.nanmax(np.abs(a.depth - stored / 1000)[~np.isnan(a.depth)]) < 1e-6
    # by number, where names sort otherwise
    assert [f.index for f in posed_frames(holo, check=False)] == [8, 9, 10, 11, 12]


def poses_line(folder, n, text):
    lines = (folder / "poses.txt").read_text().splitlines()
    lines[n] = text
    (folder / "poses.txt").write_text("\n".join(lines))


cut_in_half = lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
damage_of_a_frame = {
    "cut image": (lambda h: cut_in_half(h / "images/9.png"), "9.png", "cannot be decoded"),
    "no image at all": (lambda h: (h / "images/9.png").write_text("<html>"), "9.png", "cannot be"),
    "another size": (
        lambda h: (h / "images/9.png").write_bytes(png(noise_image(0, (12, 16, 3)))),
        "9.png",
        "16x12 and those before it 32x24",
    ),
    "cut depth": (lambda h: cut_in_half(h / "depth/9.png"), "9.png", "depth map"),
    "colour as depth": (lambda h: (h / "depth/9.png").write_bytes(png(noise_image(0))), "9.png", "kind RGB"),
    "depth of 8 bits": (lambda h: (h / "depth/9.png").write_bytes(png(noise_image(0, (24, 32)))), "9.png", "8 bits"),
    "depth of another size": (
        lambda h: Image.fromarray(np.zeros((12, 16), np.uint16)).save(h / "depth/9.png"),
        "9.png",
        "16x12 and the image 32x24",
    ),
    "no depth": (lambda h: (h / "depth/9.png").unlink(), "depth", "no depth map for frame 9"),
    "fifteen numbers": (lambda h: poses_line(h, 1, "1 " * 15), "poses.txt, line 2", "15 numbers"),
    "a word": (lambda h: poses_line(h, 1, "lost " * 16), "poses.txt, line 2", "no number"),
    "lost": (lambda h: poses_line(h, 1, "-inf " * 16), "poses.txt, line 2", "not finite"),
    "mirrored": (
        lambda h: poses_line(h, 1, " ".join(map(str, np.diag([1, -1, 1, 1]).ravel()))),
        "poses.txt, line 2",
        "no rigid motion",
    ),
}


@pytest.mark.parametrize("name", damage_of_a_frame)
def test_a_damaged_frame_is_named_or_refused(walk, name):
    holo, (damage, what, cause) = walk[0], damage_of_a_frame[name]
    damage(holo)
    refused(lambda: posed_frames(holo), what, cause)
    reader = posed_frames(holo, damaged="skip")
    frames, causes = skipping(reader)
    assert [f.index for f in frames] == [8, 10, 11, 12]
    assert len(causes) == 1
    assert cause in causes[0]
    assert reader.damaged[0].name.endswith(what)


def test_a_seven_scenes_frame_without_its_parts_is_named(walk):
    seven = walk[1]
    (seven / "frame-000008.pose.txt").unlink()
    (seven / "frame-000010.color.png").unlink()
    (seven / "frame-000011.depth.png").unlink()
    frames, causes = skipping(posed_frames(seven, damaged="skip"))
    assert [f.index for f in frames] == [9, 12] and causes == ["there is no such file"] * 3


def test_a_sequence_without_depth_has_none(walk):
    holo, seven = walk[:2]
    for path in [*holo.glob("depth/*"), *seven.glob("*.depth.png")]: path.unlink()
    (holo / "depth").rmdir()
    assert all(f.depth is None for f in (*posed_frames(holo), *posed_frames(seven)))


@pytest.mark.parametrize(
    "K, words",
    [
        ("60 0 32 0 60 24 0 0 1", "far from the middle of an image of 32x24"),
        ("15 0 8 0 15 6 0 0 1", "far from the middle"),
        ("-30 0 16 0 30 12 0 0 1", "no matrix of intrinsics"),
        ("30 0 0 0 30 0 16 12 1", "no matrix of intrinsics"),
        ("30 16 12", "3 numbers"),
        ("30 0 nan 0 30 12 0 0 1", "far from"),
        ("inf 0 16 0 30 12 0 0 inf", "no matrix"),
    ],
)
def test_intrinsics_that_do_not_fit_are_refused_in_any_case(walk, K, words):
    (walk[0] / "K.txt").write_text(K)
    for damaged in ("raise", "skip"): refused(lambda: posed_frames(walk[0], damaged=damaged), "K.txt", words)
    assert len(list(posed_frames(walk[0], K=np.array([[30, 0, 16], [0, 30, 12], [0, 0, 1]])))) == 5


def test_a_folder_that_is_no_sequence_is_refused(walk):
    holo, seven = walk[:2]
    (holo / "images/8.png").unlink()
    refused(lambda: posed_frames(holo, damaged="skip"), "poses.txt", "5 poses for 4 images")
    refused(lambda: posed_frames(holo / "images", damaged="skip"), "no poses")
    refused(lambda: posed_frames(holo / "nowhere"), "no such folder")
    (seven / "camera-intrinsics.txt").unlink()
    refused(lambda: posed_frames(seven, damaged="skip"), "camera-intrinsics.txt", "no such file")


def depth_again(a, b):
    "The median relative difference between the depth that `b` measured and the one that `a` predicts."
    y, x = np.mgrid[: a.depth.shape[0] : 5, : a.depth.shape[1] : 5].reshape(2, -1)
    rays = np.linalg.inv(a.K) @ np.stack([x + 0.5, y + 0.5, np.ones(len(x))]) * a.depth[y, x]
    moved = b.cam_from_world @ np.linalg.inv(a.cam_from_world) @ np.vstack([rays, np.ones(len(x))])
    moved = moved[:3, moved[2] > 0.1]
    u, v = np.floor((b.K @ moved)[:2] / moved[2]).astype(int)
    inside = (u >= 0) & (v >= 0) & (u < b.depth.shape[1]) & (v < b.depth.shape[0])
    error = b.depth[v[inside], u[inside]] / moved[2, inside] - 1
    assert np.isfinite(error).sum() > 1000
    return float(np.nanmedian(np.abs(error)))


@pytest.mark.parametrize(
    "name, first, count, step, shape",
    [("hololens", 3, 60, 5, (360, 540, 3)), ("sevenscenes", 400, 100, 20, (480, 640, 3))],
)
def test_real_sequences_are_whole_and_their_depths_agree(real, name, first, count, step, shape):
    frames = list(posed_frames(real / name))
    assert [f.index for f in frames] == list(range(first, first + count)) and frames[0].image.shape == shape
    for i in (0, 30): assert depth_again(frames[i], frames[i + step]) < 0.01
    wrong = PosedFrame(0, None, np.linalg.inv(frames[step].cam_from_world), frames[step].K, frames[step].depth_path)
    backwards = PosedFrame(0, None, np.linalg.inv(frames[0].cam_from_world), frames[0].K, frames[0].depth_path)
    # the inverse would be the wrong way round
    assert depth_again(backwards, wrong) > 2 * depth_again(frames[0], frames[step])


# --- images and texts


@pytest.fixture
def photos(tmp_path):
    for n in range(4): (tmp_path / f"{n}.png").write_bytes(png(noise_image(n)))
    (tmp_path / "cut.png").write_bytes(whole_png[: len(whole_png) // 2])
    return tmp_path


def test_tables_of_any_columns_and_separator(photos):
    (photos / "a.csv").write_text(
        'image,caption,licence\n0.png,"red, round",cc0\n0.png,a ball,cc0\n1.png,"a ""cube""",by\n'
    )
    a, b = table_pairs(photos / "a.csv", image="image", caption="caption", separator=",")
    assert a.key == "0.png"
    assert a.captions == ("red, round", "a ball")
    assert a.attributes == dict(licence="cc0")
    assert (a.image == noise_image(0)).all()
    assert b.captions == ('a "cube"',) and b.attributes == dict(licence="by")
    refused(lambda: table_pairs(photos / "a.csv", damaged="skip"), "no column 'filepath'", "separator", r"'\t'")
    (photos / "lists").mkdir()
    (photos / "a.csv").rename(photos / "lists/a.csv")
    assert len(
        list(table_pairs(photos / "lists/a.csv", image="image", caption="caption", separator=",", folder=photos))
    ) == 2
    refused(
        lambda: table_pairs(photos / "lists/a.csv", image="image", caption="caption", separator=","),
        "a.csv, line 2",
        "0.png: there is no such file",
    )


def test_every_damaged_row_is_named_with_its_line(photos):
    rows = [
        "0.png\tzero",
        "1.png\t ",
        "cut.png\tcut",
        "none.png\tnone",
        "0.png\tagain",
        "2.png\ttwo",
        "2.png\ttwo",
        "2.png\tdeux",
        "\tnobody",
        "3.png",
        "n" * 400 + ".png\tlong",
    ]
    (photos / "a.tsv").write_text("filepath\ttitle\n" + "\n".join(rows) + "\n")
    reader = table_pairs(photos / "a.tsv", damaged="skip")
    pairs, causes = skipping(reader)
    assert [p.captions for p in pairs] == [("zero",), ("two", "deux")]
    named = {int(d.name.rsplit(" ", 1)[1]): d.cause for d in reader.damaged}
    words = {
        3: "empty",
        4: "cut.png: it cannot be decoded",
        5: "no such file",
        6: "0.png has come before",
        8: "same caption",
        10: "names no image",
        11: "1 fields",
        12: "no such file",
    }
    assert set(named) == set(words) and all(word in named[line] for line, word in words.items()), named
    unchecked, causes = skipping(table_pairs(photos / "a.tsv", damaged="skip", check=False))
    assert len(unchecked) == 3 and any("no such file" in c for c in causes)
    refused(lambda: table_pairs(photos / "a.tsv"), "line 3", "empty", "remove the row")


def pack(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def three(n=3):
    return [
        (f"{i:03d}.{e}", c)
        for i in range(n)
        for e, c in (
            ("png", png(noise_image(i))), ("txt", f"noise {i}".encode()), ("json", json.dumps(dict(seed=i)).encode())
        )
    ]


def test_a_shard_says_what_it_holds(tmp_path):
    pack(
        tmp_path / "a.tar",
        [
            *three(1),
            ("b/1.JPG", whole_png),
            ("b/1.json", b'{"captions": ["one", "uno"], "caption": "one", "text": "ein"}'),
            ("b/1.cls", b"7"),
            ("README", b"hi"),
            ("c.webp", whole_png),
            ("c.txt", b"c"),
            ("c.seg.png", b"mask"),
        ],
    )
    a, *others = shard_pairs(tmp_path / "a.tar")
    b, c = others
    assert a.key == "a/000"
    assert a.captions == ("noise 0",)
    assert a.attributes == dict(seed=0)
    assert (a.image == noise_image(0)).all()
    assert b.key == "a/b/1" and b.captions == ("one", "ein", "uno") and b.attributes == dict(cls=7)
    assert c.attributes == {"seg.png": b"mask"}


def test_words_make_captions_of_labels(tmp_path):
    pack(
        tmp_path / "a.tar",
        [("0.png", whole_png), ("0.cls", b"3"), ("1.png", whole_png), ("1.txt", b"own"), ("1.cls", b"4")],
    )
    pairs = list(shard_pairs(tmp_path / "a.tar", words=lambda a: [f"class {a['cls']}", "an image"]))
    assert [p.captions for p in pairs] == [("class 3", "an image"), ("own", "class 4", "an image")]
    refused(lambda: shard_pairs(tmp_path / "a.tar"), "a.tar, 0", "no caption", "words=")


damaged_records = {
    "cut image": ([("x.png", whole_png[:300]), ("x.txt", b"x")], "cannot be decoded"),
    "no image": ([("x.txt", b"x")], "no image, only txt"),
    "no caption": ([("x.png", whole_png)], "no caption"),
    "empty caption": ([("x.png", whole_png), ("x.txt", b" \n")], "empty"),
    "one empty caption": ([("x.png", whole_png), ("x.json", b'{"captions": ["a", ""]}')], "empty"),
    "a number as caption": ([("x.png", whole_png), ("x.json", b'{"caption": 3}')], "no text"),
    "no JSON": ([("x.png", whole_png), ("x.txt", b"x"), ("x.json", b'{"a": ')], "cannot be read"),
    "a list as JSON": ([("x.png", whole_png), ("x.txt", b"x"), ("x.json", b"[1]")], "no dictionary"),
    "not UTF-8": ([("x.png", whole_png), ("x.txt", b"caf\xe9")], "cannot be read"),
    "no class": ([("x.png", whole_png), ("x.txt", b"x"), ("x.cls", b"cat")], "cannot be read"),
    "a file twice": ([("x.png", whole_png), ("x.png", whole_png), ("x.txt", b"x")], "come before with .png"),
    "a key again": ([("000.png", whole_png), ("000.txt", b"x")], "come before")}


@pytest.mark.parametrize("name", damaged_records)
def test_a_damaged_record_is_named_or_refused(tmp_path, name):
    files, cause = damaged_records[name]
    shard = pack(tmp_path / "a.tar", [*three(2), *files, *[(f"z{n}", c) for n, c in three(1)]])
    key = files[0][0].split(".")[0]
    refused(lambda: shard_pairs(shard), f"a.tar, {key}", cause)
    reader = shard_pairs(shard, damaged="skip")
    pairs, causes = skipping(reader)
    assert [p.key for p in pairs] == ["a/000", "a/001", "a/z000"]
    assert len(causes) == 1
    assert cause in causes[0]
    assert reader.damaged[0].name.endswith(key)


def test_a_shard_cut_anywhere_gives_whole_records_and_says_that_it_is_cut(tmp_path):
    whole = pack(tmp_path / "whole.tar", three()).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # where the zeros begin
    for size in sorted({*range(0, end + 1, 512), *range(100, end, 997)}):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        reader = shard_pairs([tmp_path / "cut.tar", tmp_path / "whole.tar"], damaged="skip")
        pairs, causes = skipping(reader)
        assert (
            len(causes) == 1
            and "cut off or broken" in causes[0]
            and reader.damaged[0].name.endswith("cut.tar")
        ), size
        keys = [p.key for p in pairs if p.key.startswith("cut")]
        assert keys == [f"cut/{i:03d}" for i in range(len(keys))] and len(pairs) == len(keys) + 3
        assert all(p.captions == (f"noise {int(p.key[-3:])}",) and p.attributes for p in pairs)
        refused(lambda: shard_pairs(tmp_path / "cut.tar"), "cut.tar", "cut off")


def test_a_shard_broken_inside_is_named(tmp_path):
    data = bytearray(pack(tmp_path / "a.tar", three()).read_bytes())
    header = data.index(b"002.png")
    data[header + 100 : header + 108] = b"\xff" * 8
    (tmp_path / "a.tar").write_bytes(data)
    pairs, causes = skipping(shard_pairs(tmp_path / "a.tar", damaged="skip"))
    # more of 001 might have followed
    assert [p.key for p in pairs] == ["a/000"] and len(causes) == 1 and "after 001.json" in causes[0]


def test_compressed_shards(tmp_path):
    whole = pack(tmp_path / "a.tar.gz", three(30), "w:gz").read_bytes()
    assert len(list(shard_pairs(tmp_path / "a.tar.gz"))) == 30
    (tmp_path / "a.tar.gz").write_bytes(whole[: len(whole) * 2 // 3])
    pairs, causes = skipping(shard_pairs(tmp_path / "a.tar.gz", damaged="skip"))
    assert 0 < len(pairs) < 30 and len(causes) == 1 and "cut off" in causes[0]


def test_names_of_shards(tmp_path):
    for n in (0, 1, 2, 10): pack(tmp_path / f"s-{n:02d}.tar", three(1))
    names = lambda shards: [p.name for p in shard_list(shards)]
    assert names(tmp_path) == names(tmp_path / "s-*.tar") == names(str(tmp_path / "s-??.tar")) == [
        "s-00.tar", "s-01.tar", "s-02.tar", "s-10.tar"
    ]
    assert names(tmp_path / "s-{00..02}.tar") == ["s-00.tar", "s-01.tar", "s-02.tar"]
    assert names([tmp_path / "s-10.tar", tmp_path / "s-00.tar"]) == ["s-10.tar", "s-00.tar"]
    refused(lambda: shard_list(tmp_path / "t-*.tar"), "no shards")
    # the same key in another shard is another record
    assert [p.key for p in shard_pairs(tmp_path)] == ["s-00/000", "s-01/000", "s-02/000", "s-10/000"]
    pairs, causes = skipping(shard_pairs(tmp_path / "s-{09..10}.tar", damaged="skip"))
    assert len(pairs) == 1 and "no such shard" in causes[0]


def webdataset_records(path):
    wds = pytest.importorskip("webdataset")
    return wds.WebDataset(str(path), shardshuffle=False, empty_check=False)


def test_webdataset_finds_the_same_records_and_misses_what_we_name(tmp_path):
    shard = pack(tmp_path / "a.tar", three())
    assert [(p.key, p.captions[0], p.source) for p in shard_pairs(shard)] == [
        (f"a/{r['__key__']}", r["txt"].decode(), r["png"])
        for r in webdataset_records(shard)
    ]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: whole.index(b"002.txt")])
    held = [{"png", "txt", "json"} & set(r) for r in webdataset_records(shard)]
    assert [len(endings) for endings in held] == [3, 3, 1]  # in silence, with a third of a record
    refused(lambda: shard_pairs(shard), "after 002.png")


def test_webdataset_reads_the_same_real_shard(real):
    ours = shard_pairs(real / "cifar10/test-00.tar", words=lambda a: a["class"])
    theirs = webdataset_records(real / "cifar10/test-00.tar")
    for pair, record in itertools.islice(zip(ours, theirs), 200):
        assert (pair.key, pair.source, pair.attributes["cls"]) == (
            f"test-00/{record['__key__']}", record["jpg"], int(record["cls"])
        )


def test_real_labels_and_their_noise(real):
    reader = shard_pairs(
        real / "cifar10/train-{00..01}.tar", words=lambda a: f"a photo of a {a['human_worse']}", check=False
    )
    wrong = Counter()
    names = {}
    count = 0
    for pair in reader:
        count += 1
        for kind in ("human_aggregate", "human_random1", "human_worse"):
            wrong[kind] += pair.attributes[kind] != pair.attributes["class"]
        assert names.setdefault(pair.attributes["cls"], pair.attributes["class"]) == pair.attributes["class"]
        assert pair.captions == (f"a photo of a {pair.attributes['human_worse']}",)
    assert count == 8000 and not reader.damaged and len(names) == 10
    assert wrong["human_aggregate"] / count == pytest.approx(0.09, abs=0.01)
    assert wrong["human_random1"] / count == pytest.approx(0.17, abs=0.01)
    assert wrong["human_worse"] / count == pytest.approx(0.40, abs=0.01)
    assert all(
        p.image.shape == (32, 32, 3)
        for p in itertools.islice(shard_pairs(real / "cifar10/test-00.tar", words=lambda a: a["class"]), 50)
    )


# --- clips


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    images = [noise_image(n, (32, 48, 3)) for n in range(6)]
    return encode(tmp_path_factory.mktemp("film") / "f.mp4", images, 6, preset="ultrafast").read_bytes()


@pytest.fixture
def videos(tmp_path, film):
    "Two classes of three clips, and room for lists."
    for action in ("brush_hair", "wave"):
        (tmp_path / "videos" / action).mkdir(parents=True)
        for n in range(3): (tmp_path / f"videos/{action}/v_{action}_g{n}.avi").write_bytes(film)
    (tmp_path / "lists").mkdir()
    return tmp_path / "videos", tmp_path / "lists"


def test_ucf101(videos, film):
    folder, lists = videos
    (lists / "classInd.txt").write_text("1 brush_hair\r\n2 wave\r\n")
    (lists / "trainlist01.txt").write_text(
        "brush_hair/v_brush_hair_g0.avi 1\r\nbrush_hair/v_brush_hair_g1.avi 1\r\nwave/v_wave_g0.avi 2\r\n"
    )
    (lists / "testlist01.txt").write_text("brush_hair/v_brush_hair_g2.avi\r\nwave/v_wave_g2.avi\r\n")
    clips = list(ucf101_clips(folder, lists))
    assert [(c.split, c.labels["action"]) for c in clips] == [
        ("train", "brush_hair"), ("train", "brush_hair"), ("train", "wave"), ("test", "brush_hair"), ("test", "wave")
    ]
    assert [c.key for c in ucf101_clips(folder, lists, "test")] == [
        "brush_hair/v_brush_hair_g2.avi", "wave/v_wave_g2.avi"
    ]
    assert clips[0].frames(size=16).shape == (6, 16, 24, 3)
    refused(lambda: ucf101_clips(folder, lists, fold=2), "trainlist02.txt", "no such file")
    refused(lambda: ucf101_clips(folder, lists, "val"), "no record")
    (lists / "trainlist01.txt").write_text(
        "wave/v_wave_g0.avi 1\nclap/v_clap.avi 3\nwave/v_wave_g1.avi 2\nwave/v_wave_g1.avi 2\nwave/gone.avi 2\n"
    )
    (folder / "wave/v_wave_g2.avi").write_bytes(film[: len(film) // 2])
    reader = ucf101_clips(folder, lists, damaged="skip")
    clips, causes = skipping(reader)
    assert [c.key for c in clips] == ["wave/v_wave_g1.avi", "brush_hair/v_brush_hair_g2.avi"]
    for cause, word in zip(
        causes,
        (
            "class 1 is 'brush_hair' and the folder 'wave'",
            "'clap' is no class",
            "come before",
            "no video gone.avi",
            "v_wave_g2.avi: ",
        ),
        strict=True,
    ):
        assert word in cause
    assert reader.damaged[-1].name.endswith("testlist01.txt, line 2")
    assert len(skipping(ucf101_clips(folder, lists, damaged="skip", check=False))[0]) == 3


def test_hmdb51(videos):
    folder, lists = videos
    for action in ("brush_hair", "wave"):
        (lists / f"{action}_test_split1.txt").write_text(
            "".join(f"v_{action}_g{n}.avi {code} \n" for n, code in enumerate((1, 2, 0)))
        )
    clips = list(hmdb51_clips(folder, lists))
    assert Counter((c.labels["action"], c.split) for c in clips) == {
        (a, s): 1
        for a in ("brush_hair", "wave")
        for s in ("train", "test", "unused")
    }
    assert [c.path.name for c in hmdb51_clips(folder, lists, "train")] == ["v_brush_hair_g0.avi", "v_wave_g0.avi"]
    (lists / "wave_test_split1.txt").write_text("v_wave_g0.avi 3\nv_wave_g1.avi\nmy clip.avi 1\nv_wave_g2.avi 2\n")
    clips, causes = skipping(hmdb51_clips(folder, lists, damaged="skip"))
    assert len(clips) == 4
    assert "ends in '3'" in causes[0]
    assert "ends in 'v_wave_g1.avi'" in causes[1]
    assert "no video my clip.avi" in causes[2]
    refused(lambda: hmdb51_clips(folder, lists, fold=3), "no file *_test_split3.txt")


def test_kinetics(tmp_path, film):
    for path in (
        "air drumming/_dbcJuKJQNs_000040_000050", "shaking_hands/-3B32lodo2M_000059_000069", "flat0000000_000000_000010"
    ):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / f"{path}.mp4").write_bytes(film)
    rows = [
        '"air drumming",_dbcJuKJQNs,40,50,val,0',
        "shaking hands,-3B32lodo2M,59.0,69.0,train,0",
        "abseiling,flat0000000,0,10,train,1",
    ]
    table = tmp_path / "k.csv"
    table.write_text("label,youtube_id,time_start,time_end,split,is_cc\n" + "\n".join(rows))
    clips = list(kinetics_clips(tmp_path, table))
    assert [(c.labels["action"], c.split, c.path.parent.name) for c in clips[:2]] == [
        ("air drumming", "val", "air drumming"), ("shaking hands", "train", "shaking_hands")
    ]
    assert [c.key for c in kinetics_clips(tmp_path, table, "train")] == [
        "-3B32lodo2M_000059_000069", "flat0000000_000000_000010"
    ]
    table.write_text(
        "label,youtube_id,time_start,time_end,split,is_cc\n" + "\n".join(
            [*rows, "x,gone,1,2,val,0", "x,y,one,2,val,0", "x,y,9,2,val,0", "x,y,0,1e999,val,0", rows[0], "x,y"]
        )
    )
    clips, causes = skipping(kinetics_clips(tmp_path, table, damaged="skip"))
    assert len(clips) == 3
    for cause, word in zip(
        causes,
        (
            "no video gone_000001_000002.mp4",
            "are no seconds",
            "ends at 2 s",
            "are no seconds",
            "come before",
            "2 fields",
        ),
        strict=True,
    ):
        assert word in cause
    table.write_text("youtube_id,time_start,time_end,split\nflat0000000,0,10,test\n")
    assert [c.labels for c in kinetics_clips(tmp_path, table)] == [{}]


def test_folders_of_clips(videos, film):
    folder, _ = videos
    assert Counter(c.labels["action"] for c in folder_clips(folder)) == dict(brush_hair=3, wave=3)
    (folder / "wave/notes.txt").write_text("x")
    (folder / "wave/.DS_Store").write_text("x")
    (folder / "loose.mp4").write_bytes(film)
    (folder / "wave/empty.mp4").write_bytes(b"")
    clips, causes = skipping(folder_clips(folder, damaged="skip"))
    assert len(clips) == 6
    assert len(causes) == 3
    assert any("no video" in c for c in causes)
    assert any("class's folder" in c for c in causes)
    assert any("empty" in c for c in causes)
    top = folder.parent / "sets"
    for split in ("train", "test"): (top / split).mkdir(parents=True)
    (folder / "brush_hair").rename(top / "train/brush_hair")
    (folder / "wave/v_wave_g0.avi").rename(top / "test/v_wave_g0.avi")
    clips, causes = skipping(folder_clips(top, damaged="skip"))
    assert {(c.split, c.labels["action"], c.key.split("/")[0]) for c in clips} == {("train", "brush_hair", "train")}
    assert "class's folder" in causes[0]
    refused(lambda: folder_clips(folder / "nowhere"), "no such folder")


# --- MovieNet


def movienet(folder, labels: dict, shots=6, split=None):
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    for sub in ("label318", "shot_movie318"): (folder / sub).mkdir(exist_ok=True)
    (folder / "meta/split318.json").write_text(
        json.dumps(split or dict(train=list(labels), val=[], test=[], all=list(labels)))
    )
    for film, rows in labels.items():
        (folder / f"label318/{film}.txt").write_text("".join(f"{n:04d} {value}\n" for n, value in rows))
        (folder / f"shot_movie318/{film}.txt").write_text(
            "".join(f"{30 * n} {30 * n + 29} {30 * n + 7} {30 * n + 14} {30 * n + 21}\n" for n in range(shots))
        )
    return folder


@quick
@given(st.data())
def test_labels_are_joined_by_number_whatever_their_order_and_count(tmp_path, data):
    n = data.draw(st.integers(1, 12))
    values = data.draw(st.lists(st.sampled_from([0, 1, -1]), min_size=n, max_size=n))
    kept = data.draw(st.permutations(data.draw(st.lists(st.integers(0, n - 1), unique=True, min_size=1))))
    (film,) = movienet_films(movienet(tmp_path, dict(tt1=[(k, values[k]) for k in kept]), n))
    expected = [values[k] if k in kept else np.nan for k in range(n)]
    assert np.array_equal(film.labels, expected, equal_nan=True) and len(film.shots) == n
    assert film.boundaries.tolist() == [k in kept and values[k] != 0 for k in range(n - 1)]
    assert film.frames.tolist() == [[30 * k, 30 * k + 30] for k in range(n)] and list(film.shots) == columns
    assert film.shots.end.iloc[-1] == pytest.approx(n * 30 / 24)
    assert film.shots.key2[0] == pytest.approx(14 / 24, abs=1e-5)


def test_rows_as_they_are_published(tmp_path):
    "The first rows of tt0120755, one of the two films with a label too many or few."
    folder = movienet(tmp_path, dict(tt0120755=[(0, 0), (1, 0), (2, -1)]))
    (folder / "shot_movie318/tt0120755.txt").write_text(
        "0 1039 259 518 777\n1040 1120 1060 1080 1100\n1121 1158 1130 1139 1148\n"
    )
    (film,) = movienet_films(folder)
    assert film.labels.tolist() == [0, 0, -1]
    assert film.scene_of_shot.tolist() == [0, 0, 0]
    assert film.frames.tolist() == [[0, 1040], [1040, 1121], [1121, 1159]]


def test_movienet_splits(tmp_path):
    labels = {film: [(n, 0) for n in range(5)] for film in ("tt1", "tt2", "tt3")}
    folder = movienet(tmp_path, labels, split=dict(train=["tt1"], val=["tt2"], test=["tt3"], all=["tt1", "tt2", "tt3"]))
    assert [(f.film, f.split) for f in movienet_films(folder)] == [("tt1", "train"), ("tt2", "val"), ("tt3", "test")]
    assert [f.film for f in movienet_films(folder, "val")] == ["tt2"]
    refused(lambda: movienet_films(folder, "dev"), "no record")
    (folder / "meta/split318.json").write_text('{"train": ["tt1", "tt2"], "test": ["tt1"]}')
    refused(lambda: movienet_films(folder, damaged="skip"), "tt1 is in train and in test")
    (folder / "meta/split318.json").write_text('{"train": ["tt1", "tt2"]}')
    refused(lambda: movienet_films(folder), "tt3.txt", "no split names")
    (folder / "label318/tt2.txt").unlink()
    films, causes = skipping(movienet_films(folder, damaged="skip"))
    assert [f.film for f in films] == ["tt1"] and causes == ["no split names this film", "there is no such file"]


def test_broken_lines_are_left_out_and_named(tmp_path):
    folder = movienet(tmp_path, dict(tt1=[(0, 1), (1, 2), (9, 0), (0, 0), (2, 1), (4, 0)]))
    with open(folder / "label318/tt1.txt", "a") as f: f.write("0003\n0003 x\n")
    lines = (folder / "shot_movie318/tt1.txt").read_text().splitlines()
    lines[4] = "120 x 1 2 3"
    (folder / "shot_movie318/tt1.txt").write_text("\n".join(lines))
    reader = movienet_films(folder, damaged="skip")
    (film,), causes = skipping(reader)
    assert film.shots.shot.tolist() == [0, 1, 2, 3, 5]
    assert np.array_equal(film.labels, [1, np.nan, 1, np.nan, np.nan], equal_nan=True)
    words = (
        "'120 x 1 2 3' is not 5 whole numbers",
        "the label is 2",
        "no shot 9",
        "has a label already",
        "no shot 4",
        "not 2 whole numbers",
        "not 2 whole numbers",
    )
    for cause, word in zip(causes, words, strict=True): assert word in cause
    assert reader.damaged[0].name.endswith("tt1.txt, line 5")
    lines[4] = f"120 {10**30} 1 2 3"
    (folder / "shot_movie318/tt1.txt").write_text("\n".join(lines))
    refused(lambda: movienet_films(folder), "line 5", "not 5 whole numbers")
    lines[4] = "130 119 1 2 3"
    (folder / "shot_movie318/tt1.txt").write_text("\n".join(lines))
    refused(lambda: movienet_films(folder), "line 5", "ends at frame 119")
    lines[4] = "100 149 1 2 3"
    (folder / "shot_movie318/tt1.txt").write_text("\n".join(lines))
    (folder / "label318/tt1.txt").write_text("0000 1\n")
    refused(lambda: movienet_films(folder), "shot_movie318", "shot 4 begins before")


# --- LVU


def lvu(folder, task, text, split="test"):
    (folder / task).mkdir(parents=True, exist_ok=True)
    (folder / task / f"{split}.csv").write_text(text)
    return folder


def test_lvu_lists(tmp_path, film):
    classes = "class_id class_name youtube_id imdb_id\n"
    for split, row in dict(
        train="0 \\N -yx9JK_HeQc tt0343121", val="1 nm0001220 0quEnseH0zo tt0381061", test="0 \\N 1tZ2EZXxU6w tt0343121"
    ).items():
        lvu(tmp_path, "writer", classes + row + "\n", split)
    clips = list(lvu_clips(tmp_path, "writer"))
    assert [(c.key, c.film, c.split, c.labels) for c in clips][1:] == [
        ("0quEnseH0zo", "tt0381061", "val", dict(writer="nm0001220", class_id=1)),
        ("1tZ2EZXxU6w", "tt0343121", "test", dict(writer="\\N", class_id=0)),
    ]
    lvu(tmp_path, "like_ratio", "like_count dislike_count youtube_id imdb_id\n100410 3572 87IqS4kQqgE tt7616798\n")
    lvu(tmp_path, "view_count", "view_count\tyoutube_id\timdb_id\n1021209\tTLZClsaDEw0\ttt0249462\n")
    (like,) = lvu_clips(tmp_path, "like_ratio", "test")
    (view,) = lvu_clips(tmp_path, "view_count", "test")
    assert like.labels["like_ratio"] == pytest.approx(1004100 / 103982)
    assert view.labels == dict(view_count=pytest.approx(np.log(1021209)), views=1021209)
    assert view.film == "tt0249462"
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/87IqS4kQqgE.mp4").write_bytes(film)
    (like,) = lvu_clips(tmp_path, "like_ratio", "test", videos=tmp_path / "videos")
    assert like.frames().shape[0] == 6
    refused(
        lambda: lvu_clips(tmp_path, "view_count", "test", videos=tmp_path / "videos"),
        "test.csv, line 2",
        "no video TLZClsaDEw0.mp4",
    )


def test_damaged_lvu_lists(tmp_path):
    lvu(
        tmp_path,
        "scene",
        "class_id class_name youtube_id imdb_id\n0 office a tt1\n0 hotel b tt2\nx prison c tt3\n"
        "1 movie theatre d tt4\n0 office a tt1\n1 airport e tt5\n",
    )
    clips, causes = skipping(lvu_clips(tmp_path, "scene", "test", damaged="skip"))
    assert [c.key for c in clips] == ["a", "e"]
    for cause, word in zip(
        causes, ("'hotel' here and 'office' above", "class_id is 'x'", "5 fields", "come before"), strict=True
    ):
        assert word in cause
    lvu(
        tmp_path,
        "like_ratio",
        "like_count dislike_count youtube_id imdb_id\n0 0 a tt1\n-1 5 b tt2\n3 4 c tt3\n"
        "\u00b2 4 d tt4\n1 %s e tt5\n" % (
            "9" * 400
        ),
    )
    assert [len(x) for x in skipping(lvu_clips(tmp_path, "like_ratio", "test", damaged="skip"))] == [1, 4]
    lvu(tmp_path, "odd", "youtube_id imdb_id\na tt1\n")
    refused(lambda: lvu_clips(tmp_path, "odd", "test"), "like_count is 'no column'")
    refused(lambda: lvu_clips(tmp_path, "mood"), "no such task", "like_ratio, odd, scene")
    refused(lambda: lvu_clips(tmp_path, "scene", "train", damaged="skip"), "train.csv", "no such file")


# --- features


def npz(path, **arrays):
    begin = np.arange(0, 60, 10, dtype=np.int32)
    np.savez(
        path,
        **{
            **dict(
                shots=np.stack([begin, begin + 9], 1),
                scene_of_shot=np.array([0, 0, 1, 1, 1, 2]),
                vgg=np.arange(24).reshape(6, 4).astype(np.float16),
            ),
            **arrays,
        },
    )
    return path


def test_feature_files(tmp_path):
    npz(tmp_path / "b.npz", hsv=np.ones((6, 2, 3), np.float32), scene_frames=np.zeros((3, 2), np.int32))
    np.savez(tmp_path / "a.npz", shots=np.array([[0, 9], [12, 20]]))
    a, b = feature_films(tmp_path, rate=10)
    assert (a.film, b.film) == ("a", "b")
    assert a.scene_of_shot is None
    assert a.features == {}
    assert a.frames.tolist() == [[0, 10], [12, 21]]
    assert b.features["vgg"].dtype == np.float32
    assert (b.features["vgg"] == np.arange(24).reshape(6, 4)).all()
    assert b.features["hsv"].shape == (6, 6)
    assert b.boundaries.tolist() == [False, True, False, False, True] and b.shots.end.tolist() == [1, 2, 3, 4, 5, 6]
    assert len(list(feature_films([tmp_path / "a.npz"]))) == 1


def test_rows_that_are_not_finite_stay_as_gaps(tmp_path):
    values = np.ones((6, 4), np.float32)
    values[2, 1], values[4] = np.inf, np.nan
    npz(tmp_path / "f.npz", vgg=values)
    refused(lambda: feature_films(tmp_path / "f.npz"), "f.npz, shot 2", "not finite")
    reader = feature_films(tmp_path / "f.npz", damaged="skip")
    (film,), causes = skipping(reader)
    assert np.isnan(film.features["vgg"]).all(1).tolist() == [False, False, True, False, True, False]
    assert not np.isinf(film.features["vgg"]).any()
    assert [d.name.rsplit(" ", 1)[1] for d in reader.damaged] == ["2", "4"]


@pytest.mark.parametrize(
    "arrays, words",
    [
        (dict(vgg=np.zeros((5, 4))), "5 rows of vgg"),
        (dict(scene_of_shot=np.zeros(7, int)), "7 rows of scene_of_shot"),
        (dict(scene_of_shot=np.array([0, 0, 1, 0, 1, 2])), "goes back after shot 2"),
        (dict(shots=np.zeros((6, 3), int)), "no (n,2) array shots"),
        (dict(shots=np.zeros((6, 2))), "no (n,2) array shots"),
        (dict(scene_of_shot=np.array(list("aabbcc"))), "no row of whole numbers"),
        (dict(shots=np.tile([[0, 9]], (6, 1))), "shot 1 begins before"),
        (dict(vgg=np.array([{}, []], dtype=object)), "cannot be read as .npz"),
    ],
)
def test_damaged_feature_files_are_named(tmp_path, arrays, words):
    npz(tmp_path / "f.npz", **arrays)
    npz(tmp_path / "g.npz")
    refused(lambda: feature_films(tmp_path), "f.npz", words)
    films, causes = skipping(feature_films(tmp_path, damaged="skip"))
    assert [f.film for f in films] == ["g"] and words in causes[0]


def test_a_cut_feature_file_is_named(tmp_path):
    data = npz(tmp_path / "g.npz").read_bytes()
    for size in range(0, len(data) - 1, 97):
        (tmp_path / "f.npz").write_bytes(data[:size])
        refused(lambda: feature_films(tmp_path / "f.npz", damaged="skip"), "f.npz", "cannot be read as .npz")


def test_real_features(real):
    reader = feature_films(real / "ovsd")
    films = {f.film: f for f in reader}
    assert len(films) == 19 and not reader.damaged
    deep = [f for f in films.values() if "vgg19" in f.features]
    assert len(deep) == 15
    assert sum(map(len, deep)) == 3092
    assert np.concatenate([f.boundaries for f in deep]).mean() == pytest.approx(0.089, abs=0.001)
    assert all(f.features["vgg19"].shape == (len(f), 512) for f in deep) and len(films["18_route_66"]) == 1022
    jumps = {f.film: int((np.diff(f.scene_of_shot) > 1).sum()) for f in films.values()}
    assert {k: v for k, v in jumps.items() if v} == {"06_valkaama": 1}  # a scene that no shot lies in


# --- catalogues


def test_wikipedia_films(tmp_path):
    entries = [
        dict(
            title="A",
            year=1990,
            cast=["X", "and", "X", " Y ", "(voices)", "RZA", "[2]", ")"],
            genres=["Drama"],
            extract="text",
            href="A",
            thumbnail=None,
        ),
        dict(title="A", year=1990),
        dict(title="", year=1990),
        dict(title="B", year="1990"),
        dict(title="B", year=3),
        dict(title="C", year=1990, cast="X"),
        "D",
        dict(title="E", year=1990, extract=["x"]),
        dict(title="A", year=1991),
    ]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    (tmp_path / "b.json").write_text(json.dumps([dict(title="A", year=1991), dict(title="F", year=1991)]))
    (tmp_path / "c.json").write_text("[{")
    (tmp_path / "d.json").write_text("{}")
    reader = wikipedia_films(tmp_path, damaged="skip")
    films, causes = skipping(reader)
    assert [f.key for f in films] == ["A (1990)", "A (1991)", "F (1991)"]
    assert films[0].cast == ("X", "Y", "RZA")
    assert films[0].attributes == dict(href="A")
    assert films[0].synopsis == "text"
    words = (
        "A (1990) has come before",
        "no title",
        "'1990'",
        "is 3",
        "no list of names",
        "no dictionary",
        "no text",
        "A (1991) has come before",
        "no JSON",
        "no list of films",
    )
    for cause, word in zip(causes, words, strict=True): assert word in cause
    assert reader.damaged[0].name.endswith("a.json, entry 1") and reader.damaged[7].name.endswith("b.json, entry 0")
    refused(lambda: wikipedia_films(tmp_path / "a.json"), "entry 1", "come before", "remove one")


def test_real_films(real):
    reader = wikipedia_films(real / "wikipedia_movies", damaged="skip")
    films, causes = skipping(reader)
    entries = [e for f in sorted((real / "wikipedia_movies").glob("*.json")) for e in json.loads(f.read_text())]
    assert len(films) + len(causes) == len(entries) == 8944
    assert len(causes) == 6
    assert all("come before" in c for c in causes)
    assert {f.year for f in films} == set(range(1990, 2024))
    assert sum(not f.synopsis for f in films) == sum(not e.get("extract") for e in entries)
    cast = Counter(name for f in films for name in f.cast)
    assert not {"and", "the", ")", ".", "(voices)", "(narrator)"} & set(cast)
    assert cast["RZA"] == 17
    assert cast.most_common(1)[0][0] == "Bruce Willis"
    assert not any("mw-parser" in f.title or "{" in f.title for f in films)
    assert any(f.title.startswith("Naked Gun 33") for f in films)
    dropped = sum(len(set(e["cast"])) for e in entries) - sum(len(f.cast) for f in films)
    assert dropped < 200


titles = {
    "Toy Story (1995)": ("Toy Story", 1995),
    "American President, The (1995)": ("The American President", 1995),
    "Babylon 5": ("Babylon 5", None),
    "City of Lost Children, The (Cité des enfants perdus, La) (1995)": (
        "The City of Lost Children (Cité des enfants perdus, La)", 1995
    ),
    "2001 (1968)": ("2001", 1968),
    "Big Bang Theory, The (2007-)": ("The Big Bang Theory", 2007),
    "Fawlty Towers (1975–1979)": ("Fawlty Towers", 1975),
    "Lives of Others, A (2006) ": ("A Lives of Others", 2006),
    "(500) Days of Summer (2009)": ("(500) Days of Summer", 2009),
}


def movielens(folder, names, watched=()):
    with open(folder / "movies.csv", "w", newline="") as f:
        csv.writer(f).writerows(
            [("movieId", "title", "genres"), *((n, name, "Drama|Sci-Fi") for n, name in enumerate(names, 1))]
        )
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n" + "".join(f"{u},{m},3.5,964982703\n" for u, m in watched)
    )
    return folder


def test_movielens_titles_and_links(tmp_path):
    movielens(tmp_path, titles)
    (tmp_path / "links.csv").write_text("movieId,imdbId,tmdbId\n1,0114709,862\n2,112346,9087\n3,,1\n")
    films = list(movielens_films(tmp_path))
    assert [(f.title, f.year) for f in films] == list(titles.values())
    assert films[0].genres == ("Drama", "Sci-Fi")
    assert films[0].key == "1"
    assert [f.attributes.get("imdb") for f in films[:3]] == ["tt0114709", "tt0112346", None] and films[0].related == ()
    with open(tmp_path / "movies.csv", "a") as f:
        f.write("1,Again (1999),Drama\n77,,Drama\n78,Fine (1999),(no genres listed)\n79,Short\n")
    films, causes = skipping(movielens_films(tmp_path, damaged="skip"))
    assert films[-1].genres == ()
    assert [w in c for w, c in zip(("come before", "no title", "2 fields"), causes, strict=True)] == [True] * 3
    (tmp_path / "ratings.csv").unlink()
    refused(lambda: movielens_films(tmp_path, damaged="skip", related=3), "ratings.csv", "no such file")


@quick
@given(st.sets(st.tuples(st.integers(1, 7), st.integers(1, 6)), min_size=1, max_size=30))
def test_co_watch_against_the_definition(tmp_path, watched):
    keys = [str(n) for n in range(1, 7)]
    movielens(tmp_path, [f"F{k} (2000)" for k in keys], [*watched, *list(watched)[:3]])  # who rates twice counts once
    similar = co_watch(tmp_path / "ratings.csv", keys)
    weight = {u: np.log(6 / sum(v == u for v, _ in watched)) for u, _ in watched}
    audience = {m: {u for u, n in watched if n == m} for m in range(1, 7)}
    length = {m: sum(weight[u] ** 2 for u in audience[m]) ** 0.5 for m in audience}
    for a, b in itertools.combinations(range(1, 7), 2):
        expected = (
            sum(weight[u] ** 2 for u in audience[a] & audience[b]) / (length[a] * length[b])
            if length[a] and length[b]
            else 0
        )
        assert similar[a - 1, b - 1] == pytest.approx(expected, abs=1e-5)
        assert similar[b - 1, a - 1] == similar[a - 1, b - 1]
    assert (np.diag(similar) == 0).all()
    for film in movielens_films(tmp_path, related=3):
        row = similar[int(film.key) - 1]
        assert [row[int(k) - 1] for k in film.related] == pytest.approx(
            sorted(row[row > 0], reverse=True)[:3], abs=1e-6
        )
        assert film.key not in film.related


def test_damaged_ratings_are_named(tmp_path):
    movielens(tmp_path, ["A (2000)", "B (2000)", "C (2000)"], [(1, 1), (1, 2)])
    with open(tmp_path / "ratings.csv", "a") as f: f.write(",1,3,0\n2,1\n5,999,3,0\n")
    refused(lambda: movielens_films(tmp_path, related=1), "ratings.csv, line 4")
    films, causes = skipping(movielens_films(tmp_path, related=5, damaged="skip"))
    # a rating of a film outside the list is no damage
    assert [f.related for f in films] == [("2",), ("1",), ()] and len(causes) == 2
    refused(lambda: [co_watch(tmp_path / "ratings.csv", ["77"], Damages("skip"))], "nobody rated any")


# --- all of them


@quick
@given(st.binary(max_size=300) | st.text("filepathtitle,\t\n\"0123456789 -.{}[]:", max_size=200).map(str.encode))
def test_nonsense_is_refused_in_our_words(tmp_path, nonsense):
    "Whatever the bytes, a reader gives records or a PrimenbError."
    folder = movienet(tmp_path / "m", dict(tt1=[(0, 1)]), 2)
    for sub in ("walk/images", "lvu/genre", "lists", "ml"): (tmp_path / sub).mkdir(parents=True, exist_ok=True)
    for name in (
        "t.csv",
        "s.tar",
        "f.npz",
        "w.json",
        "k.csv",
        "walk/poses.txt",
        "walk/K.txt",
        "walk/images/0.png",
        "m/label318/tt1.txt",
        "m/shot_movie318/tt1.txt",
        "m/meta/split318.json",
        "lvu/genre/test.csv",
        "lists/classInd.txt",
        "lists/trainlist01.txt",
        "lists/testlist01.txt",
        "lists/a_test_split1.txt",
        "ml/movies.csv",
        "ml/ratings.csv",
        "ml/links.csv",
    ):
        (tmp_path / name).write_bytes(nonsense)
    for damaged in ("raise", "skip"):
        for make in (
            lambda: table_pairs(tmp_path / "t.csv", damaged=damaged),
            lambda: shard_pairs(tmp_path / "s.tar", damaged=damaged),
            lambda: feature_films(tmp_path / "f.npz", damaged=damaged),
            lambda: wikipedia_films(tmp_path / "w.json", damaged=damaged),
            lambda: kinetics_clips(tmp_path, tmp_path / "k.csv", damaged=damaged),
            lambda: posed_frames(tmp_path / "walk", damaged=damaged),
            lambda: movienet_films(folder, damaged=damaged),
            lambda: lvu_clips(tmp_path / "lvu", "genre", "test", damaged=damaged),
            lambda: ucf101_clips(tmp_path, tmp_path / "lists", damaged=damaged),
            lambda: hmdb51_clips(tmp_path, tmp_path / "lists", damaged=damaged),
            lambda: movielens_films(tmp_path / "ml", related=2, damaged=damaged),
        ):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try: list(make())
                except PrimenbError as e: assert e.what and e.cause and e.remedy


def test_readers_do_not_need_pytorch():
    code = "import sys, primenb.data.public; sys.exit('torch' in sys.modules or 'webdataset' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_depth_maps_refuse_what_they_are_not(tmp_path):
    Image.fromarray(np.array([[0, 1], [65535, 2000]], np.uint16)).save(tmp_path / "d.png")
    assert np.array_equal(
        read_depth(tmp_path / "d.png", 0.5, (1,)), np.array([[0, np.nan], [32767.5, 1000]], np.float32), equal_nan=True
    )
    for make in (
        lambda: (tmp_path / "d.png").write_bytes(b"\x89PNG"),
        lambda: (tmp_path / "d.png").write_bytes(png(noise_image(0))),
    ):
        make()
        with pytest.raises(PrimenbError, match="d.png"): read_depth(tmp_path / "d.png")
    with pytest.raises(PrimenbError, match="no such file"): read_depth(tmp_path / "none.png")


@given(st.lists(st.integers(15, 60), min_size=2, max_size=8), st.data())
@quick
def test_small_overlaps_of_shots_are_repaired_and_counted(tmp_path, lengths, data):
    ends = np.cumsum(lengths)
    over = np.array([data.draw(st.integers(0, 12)) for _ in lengths[1:]] + [0])
    np.savez(tmp_path / "f.npz", shots=np.stack([ends - lengths, ends - 1 + over], 1))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        (film,) = feature_films(tmp_path / "f.npz", rate=24)
    assert (film.frames == np.stack([ends - lengths, ends], 1)).all()
    words = [str(w.message) for w in said]
    counted = f"{(over > 0).sum()} of {len(lengths)} shots overlap the next one by up to {over.max()} frames"
    assert [counted in w for w in words] == [True] * bool(over.any())


def test_a_large_overlap_of_shots_is_refused(tmp_path):
    np.savez(tmp_path / "f.npz", shots=np.array([[0, 49], [30, 79]]))
    refused(lambda: feature_films(tmp_path / "f.npz"), "f.npz", "begins before the one before it has ended")


def test_films_with_features_outside_a_checkout(tmp_path, monkeypatch):
    from primenb.scenes.protocol import FilmSource, film_set
    shots = np.array([[0, 9], [10, 19]])
    for n in range(5): np.savez(tmp_path / f"film {n}.npz", shots=shots, scene_of_shot=np.arange(2), v=np.eye(2))
    (tmp_path / "film 5.npz").write_bytes(b"no archive")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrimenbError, match="film 5.npz"): film_set(FilmSource(".", "v"))
    with pytest.warns(UserWarning, match="1 damaged and skipped"):
        assert len(film_set(FilmSource(".", "v", damaged="skip")).records) == 5
