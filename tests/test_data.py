"The corpus that is shipped is as large, as varied and as well split as it says."
import json
from collections import Counter
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from conftest import project
from primenb.data.corpus import clips, films, pairs, shots, tracking_shots
from primenb.studio.camera import TRAVELLING
from primenb.studio.make import CORPUS_SIZES, RATIOS, CorpusSizes, data_card, track_list
from primenb.studio.stills import RENDITIONS
from primenb.media.video import probe

data = project / "data"
splits = "train", "validation", "test"


def test_it_was_made_as_the_library_makes_it_by_default():
    starter = CORPUS_SIZES["starter"]
    assert CorpusSizes(**json.loads((data / "corpus.json").read_text())) == starter
    assert (data / "README.md").read_text() == data_card(data, starter), "the card has the wrong numbers"


def test_it_is_small(): assert sum(f.stat().st_size for f in data.rglob("*") if f.is_file()) <= 50e6


def test_films():
    read = list(films())
    assert len(read) >= 12 and len({f.key for f in read}) == len(read)
    for film in read:
        info = probe(film.path)
        assert (info.codec, info.rate, info.width, info.height) == ("h264", 12, 256, 144) and 85 <= float(
            info.duration
        ) <= 95
        assert len(film.cameras) == info.frames and film.synopsis and 3 <= len(film.cast) <= 5 and film.related
        assert set(film.related) <= {f.key for f in read} - {film.key}
    by_split = {s: [f for f in read if f.split == s] for s in splits}
    assert all(
        len(set(f.genres[0] for f in group)) == 6 for group in by_split.values()
    ), "every genre is in every split"


def test_co_watching_follows_more_than_genre():
    genre = {f.key: f.genres[0] for f in films()}
    same = np.mean([genre[k] == genre[f.key] for f in films() for k in f.related])
    assert 2 * 5 / 35 < same < 0.9


def test_scenes_and_setups():
    table = shots()
    lengths = table.groupby(["film", "scene"]).size()
    assert lengths.between(3, 20).all() and (table.end - table.start).between(0.6, 20).all()
    assert (
        table.groupby(["film", "scene"]).setup.apply(lambda s: s.duplicated().any()).mean() > 0.5
    ), "set-ups come back"
    assert not any(
        (rows.setup.values[1:] == rows.setup.values[:-1]).any() for _, rows in table.groupby(["film", "scene"])
    ), "a set-up never follows itself"
    assert (
        {"cut", "fade", "dissolve"} == set(table.opening)
        and table.place.nunique() >= 10
        and {"wide", "full", "medium", "close"} == set(table["size"])
    )
    assert {"static", "hand_held", "pan", "tilt", "dolly", "truck", "push_in", "orbit", "zoom"} <= set(table.move)


def test_tracking_shots_cover_what_is_hard():
    tracks = list(tracking_shots())
    assert len(tracks) >= 24 and all(
        t.facts["frames"] >= 32 and t.facts["width"] >= 480 and t.facts["height"] >= 270 for t in tracks
    )
    for ratio in RATIOS: assert sum(t.facts["path_over_depth"] == pytest.approx(ratio, rel=1e-3) for t in tracks) >= 4
    assert {t.facts["move"] for t in tracks} == {*TRAVELLING, "nodal_pan", "zoom", "pan", "tilt"}
    walking = [t for t in tracks if t.masks.any()]
    assert len(walking) >= len(tracks) / 3 and [(t.facts["move"], t.facts["wanted"]) for t in tracks] == track_list()


def test_stills_are_true_and_renditions_are_of_unseen_stills():
    read = {s: list(pairs(s, check=False)) for s in (*splits, "renditions")}
    plain = [p for s in splits for p in read[s]]
    assert len(plain) >= 8000 and len({p.key for p in plain}) == len(plain) and all(len(p.captions) >= 2 for p in plain)
    groups = {s: {p.key[:5] for p in read[s]} for s in read}  # a group shares place and people
    assert all(not groups[a] & groups[b] for a, b in combinations(groups, 2))
    styles = Counter(p.attributes["style"] for p in read["renditions"])
    assert (
        set(styles) == set(RENDITIONS)
        and min(styles.values()) >= 100
        and {p.attributes["style"] for p in plain} == {"photo"}
    )


def test_clips_are_balanced_and_split_by_place():
    read = list(clips(check=False))
    table = pd.DataFrame([c.labels | dict(split=c.split, batch=int(c.key[-5:]) // 24) for c in read])
    assert len(table) >= 1500 and not any(
        set(a.batch) & set(b.batch) for (_, a), (_, b) in combinations(table.groupby("split"), 2)
    )
    for label, classes in (("action", 12), ("direction", 8), ("speed", 3), ("shape", 8)):
        share = table[label].dropna().value_counts(normalize=True)
        assert len(share) == classes and share.max() < 1.5 / classes and share.min() > 0.5 / classes
    followed = table.family.isin(["walk", "run", "carry"])  # or the side of the picture would tell which way they go
    assert (table.camera[followed] == "moving").all() and 0.3 < (table.camera[~followed] == "moving").mean() < 0.5
    info = probe(read[0].path)
    assert (info.codec, info.frames, info.width, info.height) == ("h264", 16, 64, 64)


@pytest.mark.slow
def test_films_play_in_a_browser(browser):
    page = browser.new_page()
    page.goto(next(iter(films("test"))).path.as_uri())
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    page.evaluate("v = document.querySelector('video'); v.muted = true; v.currentTime = 30; v.play()")
    page.wait_for_function("document.querySelector('video').currentTime > 30.3")
    width, height, seconds = page.evaluate(
        "v = document.querySelector('video'); [v.videoWidth, v.videoHeight, v.duration]"
    )
    page.close()
    assert (width, height) == (256, 144) and seconds == pytest.approx(90, abs=0.5)
