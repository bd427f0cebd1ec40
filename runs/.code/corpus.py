# %% parameters
data = "data"  # folder of the corpus; relative to the project
films_checked = 12  # how many films are searched for cuts; test films first
clips_checked = 264  # how many clips have their motion vectors compared, test clips first
frames_checked = 8  # frames of a tracking shot that optical flow is computed for
seed = 0
date = ""  # the day, for results that are kept outside the pipeline; in the pipeline it would make every run differ
headlines = []  # names of the numbers that are compared after a rerun
out = "runs/corpus"  # where results go

# %%
import time

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from primenb.core import progress, root, seed_all
from primenb.data.corpus import gt_captions, clips, films, pairs, shots, tracking_shots
from primenb.data.depth import Pinhole, reprojection
from primenb.media.motion import read_motion, to_tokens
from primenb.media.shots import detect_shots, match_cuts
from primenb.media.video import frames_at
from primenb.results import save_results
from primenb.viz import sheet, show, style

# %%
started = time.perf_counter()
rng = seed_all(seed)
style()
folder, out = root() / data, root() / out
table = shots(folder=folder)
all_films, tracks = list(films(folder=folder)), list(tracking_shots(folder=folder))
stills = {split: list(pairs(split, folder=folder)) for split in ("train", "validation", "test", "renditions")}
all_clips = {split: list(clips(split, folder=folder)) for split in ("train", "validation", "test")}
counts = dict(
    films=len(all_films),
    film_seconds=round(sum(f.timeline["frames"] / f.timeline["rate"] for f in all_films)),
    shots=len(table),
    scenes=int(table.groupby("film").scene.nunique().sum()),
    tracking_shots=len(tracks),
    stills=sum(len(stills[s]) for s in stills if s != "renditions"),
    renditions=len(stills["renditions"]),
    clips=sum(map(len, all_clips.values())),
)
counts

# %%
def stills_of(film, numbers): return [f.image for f in frames_at(film.path, np.array(numbers) / film.timeline["rate"])]

first = all_films[0]
middles = [(r.start_frame + r.end_frame) // 2 for r in first.shots.head(18).itertuples()]
show(sheet(stills_of(first, middles), [f"scene {s}" for s in first.shots.head(18).scene], columns=6), quality=60)

# %%
images = [cv2.resize(t.frames(frames=(0, 1))[0], (240, 135)) for t in tracks[::2]]
labels = [f"{t.facts['move']} {t.facts['path_over_depth']:.3f}" for t in tracks[::2]]
show(sheet(images, labels, columns=5), quality=60)

# %%
examples = stills["test"][::37][:9] + stills["renditions"][::61][:9]
show(sheet([p.image for p in examples], columns=9), quality=60)

# %%
show(sheet([c.frames()[8] for c in all_clips["test"][::11][:18]], columns=9), quality=60)

# %%
def compare(film):
    "Counts of hard and soft shot boundaries, of those that were found, and of found ones that are false."
    gt, found = film.shots[1:], detect_shots(film.path)[1:]
    hard, soft = (gt.start_frame[(gt.opening == "cut") == is_cut].tolist() for is_cut in (True, False))
    pairs = match_cuts(found.start_frame.tolist(), hard, 0)
    left = found[~found.start_frame.isin([f for f, _ in pairs])]
    soft_pairs = match_cuts(left.start_frame.tolist(), soft, 6)
    false = left[~left.start_frame.isin([f for f, _ in soft_pairs])]
    return dict(
        film=film.key,
        true=len(hard),
        right=len(pairs),
        false=int((false.transition == "cut").sum()),
        soft=len(soft),
        soft_right=len(soft_pairs),
        soft_false=int((false.transition != "cut").sum()),
    )

# %%
chosen = sorted(all_films, key=lambda f: f.split != "test")[:films_checked]
cuts = pd.DataFrame([compare(f) for f in progress(chosen, "cuts")])
cuts.to_csv(out / "cuts.csv", index=False)
total = cuts.drop(columns="film").sum()
cut_scores = dict(recall=float(total.right / max(total.true, 1)), false=int(total.false))
soft_scores = dict(recall=float(total.soft_right / max(total.soft, 1)), false=int(total.soft_false))
pd.DataFrame(dict(cuts=cut_scores, soft=soft_scores)).T

# %%
def smooth_depth(depth, people):
    "The depth where it is smooth and shows no people, inf elsewhere."
    flat = cv2.dilate(depth, np.ones((5, 5))) / cv2.erode(depth, np.ones((5, 5))) < 1.05
    return np.where(flat & ~people, depth, np.inf)

def reprojected(track, a, b):
    "Pixels of frame a in frame b, at the size of the depth maps, and the relative difference of the depths there."
    depth, people = track.depth(), track.masks
    cameras = track.cameras
    h, w = depth.shape[1:]
    K = cameras.K * [[w / track.facts["width"]], [h / track.facts["height"]], [1]]
    now, later = (Pinhole(K[i], cameras.cam_from_world[i]) for i in (a, b))
    return reprojection(smooth_depth(depth[a], people[a]), now, smooth_depth(depth[b], people[b]), later)

# %%
def agreement(track):
    "Differences of depth after reprojection, and of displacement from optical flow."
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(i, cv2.COLOR_RGB2GRAY) for i in track.frames()]
    errors, flow_errors = [], []
    for a in np.linspace(0, len(track.cameras) - 5, frames_checked).astype(int):
        pixels, difference = reprojected(track, a, a + 4)
        ok = np.isfinite(difference)
        errors.append(np.abs(difference[ok]))
        h, w = ok.shape
        flow = cv2.resize(dis.calc(grey[a], grey[a + 4], None), (w, h), interpolation=cv2.INTER_AREA)
        start = np.stack(np.mgrid[:h, :w][::-1], -1) + 0.5
        flow_errors.append(np.linalg.norm((pixels - start) * track.facts["width"] / w - flow, axis=-1)[ok])
    errors = np.concatenate(errors)
    return dict(
        track=track.key,
        move=track.facts["move"],
        path_over_depth=track.facts["path_over_depth"],
        depth_error=float(np.median(errors)),
        depth_within_1_percent=float((errors < 0.01).mean()),
        flow_difference=float(np.median(np.concatenate(flow_errors))),
    )

# %%
geometry = pd.DataFrame([agreement(t) for t in progress(tracks, "tracking")]).round(6)
geometry.to_csv(out / "geometry.csv", index=False)
geometry.groupby("move")[["depth_error", "depth_within_1_percent", "flow_difference"]].mean().round(4)

# %%
def fitted_error(track, estimator, noise):
    "Median relative error of a prediction after the best scale (and shift) of each frame."
    gt, predicted = track.depth(), track.depth(estimator, noise)
    small = np.stack([cv2.resize(d, predicted.shape[:0:-1], interpolation=cv2.INTER_NEAREST) for d in gt])
    errors = []
    for z, p in zip(small[::8], predicted[::8]):
        ok = np.isfinite(z)
        x = z[ok] if estimator == "scaled" else 1 / z[ok]
        A = np.stack([x, np.ones_like(x)], 1)[:, : 1 if estimator == "scaled" else 2]
        errors.append(np.abs(A @ np.linalg.lstsq(A, p[ok], rcond=None)[0] / p[ok] - 1))
    return float(np.median(np.concatenate(errors)))

estimators = {}
for name in ("scaled", "shifted"):
    for noise in (0.1, 0.25):
        estimators[f"{name}_{round(noise * 100)}"] = float(np.median([fitted_error(t, name, noise) for t in tracks]))
estimators

# %%
known = (all_clips["test"] + all_clips["validation"])[:clips_checked]
speeds = []
for clip in progress(known, "vectors"):
    gt_speed = np.hypot(*np.moveaxis(clip.motion.field[1:], -1, 0))
    speeds.append((gt_speed, to_tokens(read_motion(clip.path), 8, 1)[1:], clip.labels["camera"]))

def rank(camera):
    "Rank correlation of the speeds where something moves."
    gt, found = (np.concatenate([s[i].ravel() for s in speeds if camera in ("all", s[2])]) for i in (0, 1))
    return float(spearmanr(gt[gt > 0.5], found[gt > 0.5])[0])

vectors = dict(rank_correlation=rank("all"), static_camera=rank("static"), moving_camera=rank("moving"))
vectors

# %%
def probe(X, y, X_test, y_test):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10 / X.shape[1], max_iter=400))
    return float(model.fit(X, y).score(X_test, y_test))

def pixels(clip, frame): return cv2.resize(clip.frames()[frame], (32, 32), interpolation=cv2.INTER_AREA).ravel() / 255

def vectors_of(clip):
    "A histogram of the motion vectors by direction and speed, without camera motion, and how their mean speed changes."
    field = read_motion(clip.path, remove_camera=True).field[1:]
    speed = np.hypot(*np.moveaxis(field, -1, 0))
    angle = np.arctan2(field[..., 1], field[..., 0])
    moves = speed > 0.4
    directions, lengths = (angle[moves] + np.pi / 16) % (2 * np.pi), np.clip(speed[moves], 0, 7.9)
    bins = [np.linspace(0, 2 * np.pi, 17), [0.4, 1, 1.8, 3, 5, 8]]
    counts = np.histogram2d(directions, lengths, bins=bins)[0]
    pace = speed.mean((1, 2))
    spectrum = np.abs(np.fft.rfft(pace - pace.mean()))
    moments = field.mean((0, 1, 2)), field.std((0, 1, 2))
    share = counts.sum(1) / max(counts.sum(), 1)
    return np.r_[np.sqrt(counts).ravel(), share, pace.mean(), pace.std(), spectrum, *moments]

# %%
X = {}
for split in ("train", "test"):
    frames = np.stack([pixels(c, 8) for c in progress(all_clips[split], "frames")])
    X[split] = dict(one_frame=frames, vectors=np.stack([vectors_of(c) for c in progress(all_clips[split], "vectors")]))

# %%
controls = {}
for label in ("action", "family", "direction", "speed", "shape"):
    has = {split: np.array([bool(c.labels.get(label)) for c in all_clips[split]]) for split in X}
    y = {split: np.array([c.labels.get(label) for c in all_clips[split]])[has[split]] for split in X}
    controls[label] = dict(chance=float(pd.Series(y["test"]).value_counts(normalize=True).iloc[0]))
    for name in ("one_frame", "vectors"):
        train, test = X["train"][name][has["train"]], X["test"][name][has["test"]]
        controls[label][name] = probe(train, y["train"], test, y["test"])
pd.DataFrame(controls).T.round(3)

# %%
def start_position(clip):
    "Where the object is in the first frame."
    share = clip.movers[0].astype(float)
    yx = np.mgrid[:8, :8]
    return [*(share * np.exp(2j * np.pi * yx / 8)).sum((1, 2)).view(float), share.sum()]

objects = [c for c in all_clips["validation"] + all_clips["test"] if c.labels.get("direction")]
positions = np.array([start_position(c) for c in objects])
directions = np.array([c.labels["direction"] for c in objects])
scores = []
for fit, held_out in GroupKFold(4).split(positions, directions, np.arange(len(objects)) // 12):
    forest = RandomForestClassifier(200, random_state=seed).fit(positions[fit], directions[fit])
    scores.append(forest.score(positions[held_out], directions[held_out]))
controls["direction"]["start_position"] = float(np.mean(scores))
controls["direction"]["start_position"]

# %%
def content(record):
    "Words for what a shot shows."
    shown = record["shown"]
    return [shown["place"], shown["time"], *(p["action"] for p in shown.get("people", []))]

def colours(image):
    "Mean colour, saturation and brightness, contrast, and a histogram of hues."
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hues = np.histogram(hsv[..., 0], 8, (0, 180), weights=hsv[..., 1])[0] / max(hsv[..., 1].sum(), 1)
    return np.r_[image.mean((0, 1)) / 255, hsv[..., 1:].mean((0, 1)) / 255, image.std() / 255, hues]

rows = []
for k, film in enumerate(progress(all_films, "films")):
    middles = ((film.shots.start_frame + film.shots.end_frame) // 2).tolist()
    for record, image in zip(film.timeline["shots"], stills_of(film, middles)):
        thumb = cv2.resize(image, (16, 9), interpolation=cv2.INTER_AREA).ravel() / 255
        rows.append((thumb, colours(image), content(record), k))
thumbs, tints = (np.array([row[i] for row in rows]) for i in (0, 1))
contents = [row[2] for row in rows]
owner = np.array([row[3] for row in rows])

# %%
known_words = sorted(set().union(*contents))
content_counts = np.array([[words.count(w) for w in known_words] for words in contents])
genre = np.array([f.genres[0] for f in all_films])
lengths = [np.log((f.shots.end - f.shots.start).values) for f in all_films]

# %%
def cross_validated(X, y, fold, C):
    "Mean accuracy over folds that share no film."
    scores = []
    for k in np.unique(fold):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=500))
        scores.append(model.fit(X[fold != k], y[fold != k]).score(X[fold == k], y[fold == k]))
    return float(np.mean(scores))

def per_film(x): return np.stack([np.r_[x[owner == k].mean(0), x[owner == k].std(0)] for k in range(len(genre))])

# each film's place among those of its genre
fold = np.array([int((genre[:k] == g).sum()) for k, g in enumerate(genre)])
looks = np.c_[per_film(tints), [(d.mean(), d.std()) for d in lengths]]
genres = dict(
    chance=1 / len(set(genre)),
    one_frame=cross_validated(thumbs, genre[owner], fold[owner], 0.01),
    film_colours_and_lengths=cross_validated(looks, genre, fold, 0.3),
    one_shot_shows=cross_validated(content_counts, genre[owner], fold[owner], 0.1),
    film_shows=cross_validated(per_film(content_counts), genre, fold, 0.3),
)
genres

# %%
def boundaries(rows, reach=6):
    "Durations around each shot boundary, and whether a scene ends there."
    log = np.log((rows.end_frame - rows.start_frame).values)
    padded = np.pad(log, reach, mode="edge")
    X = np.stack([padded[i + 1 : i + 1 + 2 * reach] for i in range(len(rows) - 1)])
    return np.c_[X, np.abs(np.diff(X))], (np.diff(rows.scene.values) != 0).astype(int)

def boundaries_of(split):
    films = [boundaries(rows) for _, rows in table[table.split == split].groupby("film")]
    return np.concatenate([X for X, _ in films]), np.concatenate([y for _, y in films])

X_train, y_train = boundaries_of("train")
X_test, y_test = boundaries_of("test")
model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced")).fit(X_train, y_train)
precision = average_precision_score(y_test, model.predict_proba(X_test)[:, 1])
durations = dict(boundary_average_precision=float(precision), prior=float(y_test.mean()))
durations

# %%
words = dict(true_share=float(gt_captions(stills["test"][:400]).mean()))
seconds = (table.end - table.start)
scenes = table.groupby(["film", "scene"])
per_scene = scenes.size()
editing = dict(
    shot_seconds_median=float(seconds.median()),
    shot_seconds_mean=float(seconds.mean()),
    scene_shots_median=float(per_scene.median()),
    scene_shots_mean=float(per_scene.mean()),
    setup_returns=float(scenes.setup.apply(lambda s: s.duplicated().any()).mean()),
)
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.2))
left.hist(seconds, 30)
left.set(xlabel="seconds of a shot", ylabel="shots")
right.hist(per_scene, range(3, 22))
right.set(xlabel="shots of a scene", ylabel="scenes")
words | editing

# %%
sizes = dict(
    hard_cuts=int(total.true),
    soft_boundaries=int(total.soft),
    clips_with_truth=len(known),
    clips_tested=len(all_clips["test"]),
    scene_boundaries_tested=int(y_test.sum()),
)
agreement_of_geometry = dict(
    depth_error_median=float(geometry.depth_error.median()),
    depth_within_1_percent=float(geometry.depth_within_1_percent.mean()),
    depth_within_1_percent_worst=float(geometry.depth_within_1_percent.min()),
    flow_difference_median=float(geometry.flow_difference.median()),
)

# %%
parts = dict(counts=counts, cuts=cut_scores, soft=soft_scores, geometry=agreement_of_geometry)
parts |= dict(estimators=estimators, vectors=vectors)
metrics = dict(**parts, control=controls, genre=genres, durations=durations, words=words, editing=editing)
record = dict(seeds=[seed], sizes=sizes, **(dict(date=date) if date else {}))
save_results(out, metrics, headlines, seconds=time.perf_counter() - started, **record)
pd.json_normalize(metrics).T.rename(columns={0: "value"})

# %%
direction = controls["direction"]
rows = [
    ("cuts found at the exact frame", cut_scores["recall"], None),
    ("fades and dissolves found", soft_scores["recall"], None),
    ("reprojected depths that agree to 1 %", agreement_of_geometry["depth_within_1_percent"], None),
    ("the same in the worst shot", agreement_of_geometry["depth_within_1_percent_worst"], None),
    ("rank correlation of motion vectors with ground-truth speed", vectors["rank_correlation"], None),
    ("direction of an object from one frame", direction["one_frame"], direction["chance"]),
    ("direction from the object's first position", direction["start_position"], direction["chance"]),
    ("direction from motion vectors", direction["vectors"], direction["chance"]),
    ("genre from one frame", genres["one_frame"], genres["chance"]),
    ("genre from all shots", genres["film_shows"], genres["chance"]),
    ("scene boundaries from shot lengths", durations["boundary_average_precision"], durations["prior"]),
]
pd.DataFrame(rows, columns=["question", "result", "chance"]).set_index("question").round(3)
