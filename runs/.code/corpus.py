# %% parameters
data = "data"  # folder of the corpus; relative to the project
films_checked = 12  # how many films are searched for cuts; test films first
clips_checked = 264  # how many clips have their motion vectors compared, test clips first
frames_checked = 8  # frames of a tracking shot that optical flow is computed for
seed = 0
date = ""  # the day, for results that are kept outside the pipeline; in the pipeline it would make every run differ
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

from primenb.core import progress, root, save_metrics, seed_all
from primenb.corpus import caption_truth, clips, films, pairs, shots, tracking_shots
from primenb.motion import read_motion, to_tokens
from primenb.shots import detect_shots, match_cuts, score_cuts
from primenb.studio.camera import Camera
from primenb.studio.stage import reprojection
from primenb.video import frames_at
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
counts = dict(films=len(all_films), film_seconds=round(sum(f.timeline["frames"] / f.timeline["rate"] for f in all_films)), shots=len(table), scenes=int(table.groupby("film").scene.nunique().sum()),
              tracking_shots=len(tracks), stills=sum(len(stills[s]) for s in stills if s != "renditions"), renditions=len(stills["renditions"]), clips=sum(map(len, all_clips.values())))
counts

# %%
first = all_films[0]
middles = [(r.start_frame + r.end_frame) // 2 for r in first.shots.head(18).itertuples()]
def stills_of(film, numbers): return [f.image for f in frames_at(film.path, np.array(numbers) / film.timeline["rate"])]
show(sheet(stills_of(first, middles), [f"scene {s}" for s in first.shots.head(18).scene], columns=6), quality=60)

# %%
show(sheet([cv2.resize(t.frames(frames=(0, 1))[0], (240, 135)) for t in tracks[::2]], [f"{t.facts['move']} {t.facts['path_over_depth']:.3f}" for t in tracks[::2]], columns=5), quality=60)

# %%
show(sheet([p.image for p in stills["test"][::37][:9]] + [p.image for p in stills["renditions"][::61][:9]], columns=9), quality=60)

# %%
show(sheet([c.frames()[8] for c in all_clips["test"][::11][:18]], columns=9), quality=60)

# %%
def compare(film):
    begins = film.shots.start_frame.values[1:]
    hard, soft = (begins[(film.shots.opening.values[1:] == "cut") == kind].tolist() for kind in (True, False))
    found = detect_shots(film.path).start_frame[1:].tolist()
    right = {f for _, f in match_cuts(found, hard, 0)}
    near = {f for f in found if any(abs(f - s) <= 6 for s in soft)}
    return dict(film=film.key, right=len(right), found=len(set(found) - (near - right)), true=len(hard), soft=len(soft), soft_found=sum(any(abs(f - s) <= 6 for f in found) for s in soft))

chosen = sorted(all_films, key=lambda f: f.split != "test")[:films_checked]
cuts = pd.DataFrame([compare(f) for f in progress(chosen, "cuts")])
cuts.to_csv(out / "cuts.csv", index=False)
total = cuts.drop(columns="film").sum()
cut_scores = {**score_cuts(*(int(total[k]) for k in ("right", "found", "true"))), "soft_recall": float(total.soft_found / max(total.soft, 1))}
cut_scores

# %%
def carried(track, a, b):
    "Where the pixels of frame a lie in frame b, at the size of the depth maps, and how far expected and found depth are apart there."
    depth, people, cameras = track.depth(), track.masks, track.cameras
    h, w = depth.shape[1:]
    def part(i):
        flat = cv2.dilate(depth[i], np.ones((5, 5))) / cv2.erode(depth[i], np.ones((5, 5))) < 1.05
        return np.where(flat & ~people[i], depth[i], np.inf), Camera(cameras.K[i] * [[w / track.facts["width"]], [h / track.facts["height"]], [1]], cameras.cam_from_world[i], (w, h))
    return reprojection(*part(a), *part(b))

# %%
def agreement(track):
    n, dis = len(track.cameras), cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    grey = [cv2.cvtColor(i, cv2.COLOR_RGB2GRAY) for i in track.frames()]
    errors, apart = [], []
    for a in np.linspace(0, n - 5, frames_checked).astype(int):
        there, difference = carried(track, a, a + 4)
        ok = np.isfinite(difference)
        errors.append(np.abs(difference[ok]))
        h, w = ok.shape
        seen = cv2.resize(dis.calc(grey[a], grey[a + 4], None), (w, h), interpolation=cv2.INTER_AREA)
        yx = np.stack(np.mgrid[:h, :w][::-1], -1) + 0.5
        apart.append(np.linalg.norm((there - yx) * track.facts["width"] / w - seen, axis=-1)[ok])
    return dict(track=track.key, move=track.facts["move"], path_over_depth=track.facts["path_over_depth"], depth_error=float(np.median(np.concatenate(errors))),
                depth_within_1_percent=float((np.concatenate(errors) < 0.01).mean()), flow_apart=float(np.median(np.concatenate(apart))))

geometry = pd.DataFrame([agreement(t) for t in progress(tracks, "tracking")]).round(6)
geometry.to_csv(out / "geometry.csv", index=False)
geometry.groupby("move")[["depth_error", "depth_within_1_percent", "flow_apart"]].mean().round(4)

# %%
def undone(track, estimator, noise):
    "Median relative error of a guess after the best scale (and shift) of each frame."
    truth, guess = track.depth(), track.depth(estimator, noise)
    near = np.stack([cv2.resize(d, guess.shape[:0:-1], interpolation=cv2.INTER_NEAREST) for d in truth])
    errors = []
    for z, g in zip(near[::8], guess[::8]):
        ok = np.isfinite(z)
        x = z[ok] if estimator == "scaled" else 1 / z[ok]
        A = np.stack([x, np.ones_like(x)], 1)[:, : 1 if estimator == "scaled" else 2]
        errors.append(np.abs(A @ np.linalg.lstsq(A, g[ok], rcond=None)[0] / g[ok] - 1))
    return float(np.median(np.concatenate(errors)))
estimators = {f"{name}_{round(noise * 100)}": float(np.median([undone(t, name, noise) for t in tracks])) for name in ("scaled", "shifted") for noise in (0.1, 0.25)}
estimators

# %%
known = (all_clips["test"] + all_clips["validation"])[:clips_checked]
pairs_of_speed = [(np.hypot(*np.moveaxis(c.motion.field[1:], -1, 0)), to_tokens(read_motion(c.path), 8, 1)[1:], c.labels["camera"]) for c in progress(known, "vectors")]
def rank(kind):
    true, found = (np.concatenate([p[i].ravel() for p in pairs_of_speed if kind in ("all", p[2])]) for i in (0, 1))
    return float(spearmanr(true[true > 0.5], found[true > 0.5])[0])
vectors = dict(rank_correlation=rank("all"), static_camera=rank("static"), moving_camera=rank("moving"))
vectors

# %%
def probe(X, y, X_test, y_test):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=10 / X.shape[1], max_iter=400))
    return float(model.fit(X, y).score(X_test, y_test))

def pixels(clip, frame): return cv2.resize(clip.frames()[frame], (32, 32), interpolation=cv2.INTER_AREA).ravel() / 255
def vectors_of(clip):
    "How often the stream's vectors point where and how far, without the camera's share, and how their mean speed changes."
    field = read_motion(clip.path, remove_camera=True).field[1:]
    speed, angle = np.hypot(*np.moveaxis(field, -1, 0)), np.arctan2(field[..., 1], field[..., 0])
    moves = speed > 0.4
    often = np.histogram2d((angle[moves] + np.pi / 16) % (2 * np.pi), np.clip(speed[moves], 0, 7.9), bins=[np.linspace(0, 2 * np.pi, 17), [0.4, 1, 1.8, 3, 5, 8]])[0]
    pace = speed.mean((1, 2))
    return np.r_[np.sqrt(often).ravel(), often.sum(1) / max(often.sum(), 1), pace.mean(), pace.std(), np.abs(np.fft.rfft(pace - pace.mean())), field.mean((0, 1, 2)), field.std((0, 1, 2))]
X = {split: dict(one_frame=np.stack([pixels(c, 8) for c in progress(all_clips[split], "frames")]), vectors=np.stack([vectors_of(c) for c in progress(all_clips[split], "vectors")])) for split in ("train", "test")}

# %%
controls = {}
for label in ("action", "family", "direction", "speed", "shape"):
    has = {split: np.array([bool(c.labels.get(label)) for c in all_clips[split]]) for split in X}
    y = {split: np.array([c.labels.get(label) for c in all_clips[split]])[has[split]] for split in X}
    chance = pd.Series(y["test"]).value_counts(normalize=True).iloc[0]
    controls[label] = {"chance": float(chance), **{name: probe(X["train"][name][has["train"]], y["train"], X["test"][name][has["test"]], y["test"]) for name in ("one_frame", "vectors")}}
pd.DataFrame(controls).T.round(3)

# %%
def start(clip):
    share = clip.movers[0].astype(float); yx = np.mgrid[:8, :8]
    return [*(share * np.exp(2j * np.pi * yx / 8)).sum((1, 2)).view(float), share.sum()]
objects = [c for c in all_clips["validation"] + all_clips["test"] if c.labels.get("direction")]
S, d, batch = np.array([start(c) for c in objects]), np.array([c.labels["direction"] for c in objects]), np.arange(len(objects)) // 12
folds = [RandomForestClassifier(200, random_state=seed).fit(S[a], d[a]).score(S[b], d[b]) for a, b in GroupKFold(4).split(S, d, batch)]
controls["direction"]["start_position"] = float(np.mean(folds))
controls["direction"]["start_position"]

# %%
def seen(record):
    "Words for what a shot shows."
    shown = record["shown"]
    return [shown["place"], shown["time"], *(p["action"] for p in shown.get("people", []))]
def colours(image):
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    return np.r_[image.mean((0, 1)) / 255, hsv[..., 1:].mean((0, 1)) / 255, image.std() / 255, np.histogram(hsv[..., 0], 8, (0, 180), weights=hsv[..., 1])[0] / max(hsv[..., 1].sum(), 1)]
thumbs, tints, said, owner = [], [], [], []
for k, f in enumerate(progress(all_films, "films")):
    for record, image in zip(f.timeline["shots"], stills_of(f, ((f.shots.start_frame + f.shots.end_frame) // 2).tolist())):
        thumbs.append(cv2.resize(image, (16, 9), interpolation=cv2.INTER_AREA).ravel() / 255); tints.append(colours(image)); said.append(seen(record)); owner.append(k)
thumbs, tints, owner, known_words = np.array(thumbs), np.array(tints), np.array(owner), sorted({w for words in said for w in words})
said = np.array([[words.count(w) for w in known_words] for words in said])
genre = np.array([f.genres[0] for f in all_films])
lengths = [np.log((f.shots.end - f.shots.start).values) for f in all_films]

# %%
def cross(X, y, fold, C):
    "Share of right answers over folds that share no film."
    return float(np.mean([make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=500)).fit(X[fold != k], y[fold != k]).score(X[fold == k], y[fold == k]) for k in np.unique(fold)]))
def per_film(x): return np.stack([np.r_[x[owner == k].mean(0), x[owner == k].std(0)] for k in range(len(genre))])
number = np.array([int((genre[:k] == g).sum()) for k, g in enumerate(genre)])  # each film's place among those of its genre
looks = np.c_[per_film(tints), [(d.mean(), d.std()) for d in lengths]]
genres = dict(chance=1 / len(set(genre)), one_frame=cross(thumbs, genre[owner], number[owner], 0.01), film_colours_and_lengths=cross(looks, genre, number, 0.3),
              one_shot_shows=cross(said, genre[owner], number[owner], 0.1), film_shows=cross(per_film(said), genre, number, 0.3))
genres

# %%
def boundaries(rows, reach=6):
    n, log = len(rows), np.log((rows.end_frame - rows.start_frame).values)
    padded = np.pad(log, reach, mode="edge")
    X = np.stack([padded[i + 1 : i + 1 + 2 * reach] for i in range(n - 1)])
    return np.c_[X, np.abs(np.diff(X))], (np.diff(rows.scene.values) != 0).astype(int)
parts = {split: [boundaries(rows) for _, rows in table[table.split == split].groupby("film")] for split in ("train", "test")}
(Xa, ya), (Xb, yb) = ((np.concatenate([p[i] for p in parts[s]]) for i in (0, 1)) for s in ("train", "test"))
scored = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced")).fit(Xa, ya).predict_proba(Xb)[:, 1]
durations = dict(boundary_average_precision=float(average_precision_score(yb, scored)), prior=float(yb.mean()))
durations

# %%
some = stills["test"][:400]
M = caption_truth(some)
words = dict(true_share=float(M.mean()))
seconds = (table.end - table.start)
per_scene = table.groupby(["film", "scene"]).size()
editing = dict(shot_seconds_median=float(seconds.median()), shot_seconds_mean=float(seconds.mean()), scene_shots_median=float(per_scene.median()), scene_shots_mean=float(per_scene.mean()),
               setup_returns=float(table.groupby(["film", "scene"]).setup.apply(lambda s: s.duplicated().any()).mean()))
fig, (a, b) = plt.subplots(1, 2, figsize=(8, 2.2))
a.hist(seconds, 30); a.set(xlabel="seconds of a shot", ylabel="shots"); b.hist(per_scene, range(3, 22)); b.set(xlabel="shots of a scene", ylabel="scenes")
words | editing

# %%
sizes = dict(hard_cuts=int(total.true), soft_boundaries=int(total.soft), clips_with_truth=len(known), clips_tested=len(all_clips["test"]), scene_boundaries_tested=int(yb.sum()))
metrics = dict(counts=counts, cuts=cut_scores,
               geometry=dict(depth_error_median=float(geometry.depth_error.median()), depth_within_1_percent=float(geometry.depth_within_1_percent.mean()), depth_within_1_percent_worst=float(geometry.depth_within_1_percent.min()), flow_apart_median=float(geometry.flow_apart.median())),
               estimators=estimators, vectors=vectors, control=controls, genre=genres, durations=durations, words=words, editing=editing)
_ = save_metrics(out / "metrics.json", metrics, seconds=time.perf_counter() - started, seeds=[seed], sizes=sizes, **(dict(date=date) if date else {}))
pd.json_normalize(metrics).T.rename(columns={0: "value"})
