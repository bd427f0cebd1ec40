# %% parameters
films = "data/starter"  # folder with the films; paths are relative to the project, and may name variables such as $PRIMENB_REAL
truth = "data/starter/truth.json"  # film -> true cuts (frames, or seconds), and the views of the camera if they are known
detector = "adaptive"  # how shots are found
tolerance = 0  # frames by which a found cut may be off
token = 16  # pixels; motion is compared on squares of this size
flow_step = 4  # optical flow, where it stands in for the truth, is computed for every so many frames
seed = 0
date = ""  # the day, for results that are kept outside the pipeline; in the pipeline it would make every run differ
out = "runs/film"  # where results go

# %%
import json, os, tempfile, time
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from primenb.core import root, save_metrics, seed_all
from primenb.motion import read_motion, to_tokens, window_motion
from primenb.shots import detect_shots, match_cuts, score_cuts
from primenb.video import canonicalise, frame_times, iter_frames
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
    true = facts["cuts"] if "cuts" in facts else [int(np.abs(times[film] - s).argmin()) for s in facts["cut_seconds"]]
    found = detect_shots(folder / film, detector).start_frame[1:].tolist()
    pairs = match_cuts(found, true, tolerance)
    rows += [(film, t, f) for f, t in pairs] + [(film, t, None) for t in true if t not in {t for _, t in pairs}]
    rows += [(film, None, f) for f in found if f not in {f for f, _ in pairs}]
cuts = pd.DataFrame(rows, columns=["film", "true", "found"]).astype({"true": "Int64", "found": "Int64"}).sort_values(["film", "true", "found"])
cuts.to_csv(out / "cuts.csv", index=False)
cuts

# %%
counts = dict(right=int((cuts.true.notna() & cuts.found.notna()).sum()), found=int(cuts.found.notna().sum()), true=int(cuts.true.notna().sum()))
shots = {**score_cuts(**counts), **{f"cuts_{k}": v for k, v in counts.items()}}
shots

# %%
def true_speed(views, shape, size):
    table = pd.read_csv(folder / views)
    window, shot = table[["x", "y", "scale"]].values, table["shot"].values
    frames = [t for t in range(1, len(table)) if shot[t] == shot[t - 1]]
    x, y = (((np.arange(n) + 0.5) * token - size / 2) for n, size in zip(shape[::-1], size))
    return frames, np.stack([np.hypot(*np.moveaxis(window_motion(window[t - 1], window[t], x, y), -1, 0)) for t in frames])

# %%
def flow_speed(film, shape):
    starts, dis = {0, *cuts[cuts.film == film].true.dropna()}, cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    frames, fields, before = [], [], None
    for f in iter_frames(folder / film, threads=1):
        if f.number % flow_step in (0, flow_step - 1): grey = cv2.cvtColor(f.image, cv2.COLOR_RGB2GRAY)
        if f.number % flow_step == 0 and f.number not in starts:
            speed = np.hypot(*np.moveaxis(dis.calc(grey, before, None), -1, 0))[: shape[0] * token, : shape[1] * token]
            frames.append(f.number); fields.append(cv2.resize(speed, shape[::-1], interpolation=cv2.INTER_AREA))
        before = grey
    return frames, np.stack(fields)

# %%
def speeds(source, size): return to_tokens(read_motion(source), token, 1, size=size)
def within(field, reference): return np.mean([spearmanr(a.ravel(), b.ravel())[0] for a, b in zip(field, reference) if np.ptp(a) and np.ptp(b) > 0.01])

rows, pictures = [], {}
for film, facts in known.items():
    first = next(iter_frames(folder / film)).image
    size = first.shape[1::-1]
    with tempfile.TemporaryDirectory() as temporary:
        fields = dict(as_found=speeds(folder / film, None), canonical=speeds(canonicalise(folder / film, Path(temporary) / "copy.mp4"), size))
    frames, reference = true_speed(facts["views"], fields["as_found"].shape[1:], size) if "views" in facts else flow_speed(film, fields["as_found"].shape[1:])
    rows += [(film, "truth" if "views" in facts else "flow", kind, spearmanr(field[frames].ravel(), reference.ravel())[0], within(field[frames], reference), len(frames)) for kind, field in fields.items()]
    pictures[film] = frames, reference, fields
motion = pd.DataFrame(rows, columns=["film", "reference", "form", "rank_correlation", "within_frames", "frames"]).round(4)
motion.to_csv(out / "motion.csv", index=False)
motion

# %%
fig, axes = plt.subplots(len(pictures), 1, figsize=(7, 1.8 * len(pictures)), squeeze=False)
for ax, (film, (frames, reference, fields)) in zip(axes[:, 0], pictures.items()):
    ax.plot(frames, reference.mean((1, 2)), "k", lw=0.8, label="reference")
    for kind, field in fields.items(): ax.plot(frames, field[frames].mean((1, 2)), lw=1, alpha=0.8, label=kind.replace("_", " "))
    ax.set(title=film, ylabel="pixels per frame")
axes[0, 0].legend(frameon=False); axes[-1, 0].set_xlabel("frame");

# %%
mean = motion.groupby(["reference", "form"])[["rank_correlation", "within_frames"]].mean()
against, ending = {"truth": "motion", "flow": "agreement_with_flow"}, {"as_found": "", "canonical": "_canonical"}
scores = {against[r]: {name + ending[form]: row[name] for name in mean for form, row in mean.loc[r].iterrows()} for r in mean.index.levels[0]}
sizes = dict(films=len(known), frames=sum(map(len, times.values())))
metrics = dict(shots=shots, **scores, counts=sizes)
_ = save_metrics(out / "metrics.json", metrics, seconds=time.perf_counter() - started, seeds=[seed], sizes=sizes, **(dict(date=date) if date else {}))
pd.Series({f"{group}.{name}": value for group, values in metrics.items() for name, value in values.items()}).round(4).to_frame("value")
