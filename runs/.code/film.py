# %% parameters
films = "data/starter"  # folder with the films, relative to the project; may name variables such as $PRIMENB_REAL
truth = "data/starter/truth.json"  # film -> ground-truth cuts, and the camera windows if known
detector = "adaptive"  # how shots are detected
tolerance = 0  # frames by which a detected cut may be off
token = 16  # pixels; motion is compared on squares of this size
flow_step = 4  # optical flow, where it stands in for ground truth, is computed for every such frame
seed = 0
date = ""  # the day, for results that are stored outside the pipeline; in the pipeline it would make every run differ
headlines = []  # names of the numbers that are compared after a rerun
out = "runs/film"  # where results go

# %%
import json, os, tempfile, time
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from primenb.core import root, seed_all
from primenb.media.motion import read_motion, to_tokens, window_motion
from primenb.media.shots import detect_shots, match_cuts, score_cuts
from primenb.media.video import canonicalise, frame_times, iter_frames
from primenb.results import save_results
from primenb.viz import style

# %%
started = time.perf_counter()
seed_all(seed)
style()
place = lambda path: root() / os.path.expandvars(path)
out, folder = place(out), place(films)
known = json.loads(place(truth).read_text())
times = {film: frame_times(folder / film) for film in known}

# %%
rows = []
for film, facts in known.items():
    gt = facts["cuts"] if "cuts" in facts else [int(np.abs(times[film] - s).argmin()) for s in facts["cut_seconds"]]
    found = detect_shots(folder / film, detector).start_frame[1:].tolist()
    pairs = match_cuts(found, gt, tolerance)
    rows += [(film, t, f) for f, t in pairs]
    rows += [(film, t, None) for t in gt if t not in {t for _, t in pairs}]
    rows += [(film, None, f) for f in found if f not in {f for f, _ in pairs}]
cuts = pd.DataFrame(rows, columns=["film", "true", "found"]).astype({"true": "Int64", "found": "Int64"})
cuts = cuts.sort_values(["film", "true", "found"])
cuts.to_csv(out / "cuts.csv", index=False)
cuts

# %%
is_true, is_found = cuts.true.notna(), cuts.found.notna()
counts = dict(right=int((is_true & is_found).sum()), found=int(is_found.sum()), true=int(is_true.sum()))
shots = {**score_cuts(**counts), **{f"cuts_{k}": v for k, v in counts.items()}}
shots

# %%
def gt_speed(views, shape, size):
    "Frames, and the ground-truth speed of each square on them."
    table = pd.read_csv(folder / views)
    window, shot = table[["x", "y", "scale"]].values, table["shot"].values
    frames = [t for t in range(1, len(table)) if shot[t] == shot[t - 1]]
    x, y = (((np.arange(n) + 0.5) * token - side / 2) for n, side in zip(shape[::-1], size))
    fields = np.stack([window_motion(window[t - 1], window[t], x, y) for t in frames])
    return frames, np.hypot(fields[..., 0], fields[..., 1])

# %%
def flow_speed(film, shape):
    "Every `flow_step`-th frame, and the speed of optical flow on it, averaged over squares."
    starts = {0, *cuts[cuts.film == film].true.dropna()}
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    frames, fields = [], []
    before = None
    for f in iter_frames(folder / film, threads=1):
        if f.number % flow_step in (0, flow_step - 1): grey = cv2.cvtColor(f.image, cv2.COLOR_RGB2GRAY)
        if f.number % flow_step == 0 and f.number not in starts:
            speed = np.hypot(*np.moveaxis(dis.calc(grey, before, None), -1, 0))[: shape[0] * token, : shape[1] * token]
            frames.append(f.number)
            fields.append(cv2.resize(speed, shape[::-1], interpolation=cv2.INTER_AREA))
        before = grey
    return frames, np.stack(fields)

# %%
def vector_speeds(film, size):
    "The speed of motion vectors on each square: of the film as found, and of its canonical copy."
    with tempfile.TemporaryDirectory() as temporary:
        copy = canonicalise(folder / film, Path(temporary) / "copy.mp4")
        as_found, canonical = read_motion(folder / film), read_motion(copy)
    return dict(as_found=to_tokens(as_found, token, 1), canonical=to_tokens(canonical, token, 1, size=size))

def within_frames(field, reference):
    "Mean rank correlation over single frames whose squares differ."
    some = [(a.ravel(), b.ravel()) for a, b in zip(field, reference) if np.ptp(a) and np.ptp(b) > 0.01]
    return np.mean([spearmanr(a, b)[0] for a, b in some])

# %%
rows, speeds = [], {}
for film, facts in known.items():
    size = next(iter_frames(folder / film)).image.shape[1::-1]
    fields = vector_speeds(film, size)
    shape = fields["as_found"].shape[1:]
    frames, reference = gt_speed(facts["views"], shape, size) if "views" in facts else flow_speed(film, shape)
    for form, field in fields.items():
        correlation = spearmanr(field[frames].ravel(), reference.ravel())[0]
        kind = "truth" if "views" in facts else "flow"
        rows.append((film, kind, form, correlation, within_frames(field[frames], reference), len(frames)))
    speeds[film] = frames, reference, fields
columns = ["film", "reference", "form", "rank_correlation", "within_frames", "frames"]
motion = pd.DataFrame(rows, columns=columns).round(4)
motion.to_csv(out / "motion.csv", index=False)
motion

# %%
fig, axes = plt.subplots(len(speeds), 1, figsize=(7, 1.8 * len(speeds)), squeeze=False)
for ax, (film, (frames, reference, fields)) in zip(axes[:, 0], speeds.items()):
    ax.plot(frames, reference.mean((1, 2)), "k", lw=0.8, label="reference")
    for form, field in fields.items():
        ax.plot(frames, field[frames].mean((1, 2)), lw=1, alpha=0.8, label=form.replace("_", " "))
    ax.set(title=film, ylabel="pixels per frame")
axes[0, 0].legend(frameon=False)
axes[-1, 0].set_xlabel("frame");

# %%
mean = motion.groupby(["reference", "form"])[["rank_correlation", "within_frames"]].mean()
groups = dict(truth="motion", flow="agreement_with_flow")
scores = {}
for (reference, form), row in mean.iterrows():
    suffix = "" if form == "as_found" else f"_{form}"
    scores.setdefault(groups[reference], {}).update({name + suffix: value for name, value in row.items()})
sizes = dict(films=len(known), frames=sum(map(len, times.values())))
metrics = dict(shots=shots, **scores, counts=sizes)
record = dict(seeds=[seed], sizes=sizes, **(dict(date=date) if date else {}))
save_results(out, metrics, headlines, seconds=time.perf_counter() - started, **record);

# %%
table = mean.round(3).reset_index()
table["reference"] = table.reference.map(dict(truth="ground truth", flow="optical flow"))
false_cuts = counts["found"] - counts["right"]
print(f"{counts['right']} of {counts['true']} cuts detected, {false_cuts} false; F1 {shots['f1']:.3f}")
table
