# %% parameters
films = "data/starter"  # folder with the films, relative to the project; may name variables such as $PRIMENB_REAL
truth = "data/starter/truth.json"  # film -> ground-truth cuts, soft transitions, and the camera windows if known
drawn = "data"  # folder of the drawn films with their records; "" for none
detector = "transitions"  # the detector that is judged
rivals = []  # other detectors
rival_films = 6  # over so many drawn films of each split
network_films = 0  # of how many drawn films the network reads the frames, test films first; it is slow
tolerance = 0  # frames by which a detected cut may be off
soft_tolerance = 4  # frames by which the middle of a soft transition may be off
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

from primenb.core import progress, root, seed_all
from primenb.data.corpus import films as drawn_films
from primenb.media.motion import read_motion, to_tokens, window_motion
from primenb.media.shots import detect_shots, match_cuts
from primenb.media.video import canonicalise, encode, frame_times, iter_frames
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
soft_kinds = ("dissolve", "fade", "wipe")

def of_clip(film, facts):
    "(frame, kind) of a film that is described in `truth`."
    nearest = lambda s: int(np.abs(times[film] - s).argmin())
    cuts = facts["cuts"] if "cuts" in facts else [nearest(s) for s in facts["cut_seconds"]]
    soft = [(nearest((start + end) / 2), kind) for kind, start, end in facts.get("soft", [])]
    return [(frame, "cut") for frame in cuts] + soft

def of_drawn(film):
    "(frame, kind) of a drawn film."
    shots = film.shots[1:]
    return list(zip(shots.start_frame.tolist(), shots.opening))

gt = {(film, "clips", folder / film): of_clip(film, facts) for film, facts in known.items()}
records = sorted(drawn_films(folder=place(drawn)), key=lambda f: f.split != "test") if drawn else []
gt |= {(f.key, f.split, f.path): of_drawn(f) for f in records}
pd.DataFrame([(split, kind) for (_, split, _), rows in gt.items() for _, kind in rows]).value_counts().unstack()

# %%
def compare(found, true):
    "Rows (true frame, true kind, found frame, found kind) of one film and one detector."
    hard, soft = ({frame: kind for frame, kind in true if (kind == "cut") == is_cut} for is_cut in (True, False))
    pairs = match_cuts(list(found), list(hard), tolerance)
    left = [frame for frame in found if frame not in {f for f, _ in pairs}]
    pairs += match_cuts(left, list(soft), soft_tolerance)
    rows = [(t, hard.get(t) or soft[t], f, found[f]) for f, t in pairs]
    rows += [(t, kind, None, None) for t, kind in true if t not in {t for _, t in pairs}]
    return rows + [(None, None, f, found[f]) for f in found if f not in {f for f, _ in pairs}]

# %%
def chosen(film, split):
    "The detectors that read a film."
    same = [f.key for f in records if f.split == split]
    others = rivals if film not in same or same.index(film) < rival_films else []
    network = ["transnetv2"] if film in [f.key for f in records[:network_films]] else []
    return [detector, *others, *network]

rows = []
for (film, split, path), true in progress(gt.items(), "films"):
    names = chosen(film, split)
    for name, table in detect_shots(path, names).items():
        found = dict(zip(table.start_frame[1:].tolist(), table.transition[1:]))
        rows += [(name, split, film, *row) for row in compare(found, true)]
columns = ["detector", "split", "film", "true", "kind", "found", "found_kind"]
everything = pd.DataFrame(rows, columns=columns).astype({"true": "Int64", "found": "Int64"})
everything = everything.sort_values(columns[:4] + ["found"])
cuts = everything[everything.detector == detector].drop(columns="detector")
cuts.to_csv(out / "cuts.csv", index=False)
cuts[cuts.true.isna() | cuts.found.isna()]

# %%
def score(rows):
    "What share of the true boundaries was found, by kind, and how many found ones are false."
    was_found, is_soft = rows.found.notna(), rows.kind.isin(soft_kinds)
    share = lambda some: float(was_found[some].mean())
    false = rows.true.isna()
    cut = dict(recall=share(rows.kind == "cut"), false=int((false & (rows.found_kind == "cut")).sum()))
    soft = dict(false=int((false & (rows.found_kind != "cut")).sum()))
    if is_soft.any(): soft |= dict(recall=share(is_soft), named=float((rows.kind == rows.found_kind)[is_soft].mean()))
    soft |= {kind: share(rows.kind == kind) for kind in soft_kinds if (rows.kind == kind).any()}
    return dict(cuts=cut, soft=soft)

main = "clips" if not drawn else "drawn"
groups = {"drawn": ("test", "train", "validation"), **{s: (s,) for s in ("clips", "test", "train", "validation")}}
by_split = {}
for name in everything.detector.unique():
    mine = everything[everything.detector == name]
    parts = {group: mine[mine.split.isin(splits)] for group, splits in groups.items()}
    by_split[name] = {group: score(part) for group, part in parts.items() if len(part)}
pd.concat({name: pd.json_normalize(list(s.values())).set_index(pd.Index(s)) for name, s in by_split.items()}).round(3)

# %%
def frames_a_second(name, path, frames):
    begun = time.perf_counter()
    detect_shots(path, name)
    return frames / (time.perf_counter() - begun)

some = folder / next(iter(known))
count = len(frame_times(some))
names = [detector, *rivals] + (["transnetv2"] if network_films else [])
speed = pd.DataFrame(dict(detector=names, frames_a_second=[frames_a_second(name, some, count) for name in names]))
speed.round(1).to_csv(out / "speed.csv", index=False)
speed.round(0)

# %%
first = next(iter(known))
stop = min(of_clip(first, known[first]) or [(len(times[first]), "")])[0]
shot = [f.image.astype(float) for f in iter_frames(folder / first, frames=(0, stop), size=108)]
shot = np.stack([shot[abs(n % (2 * stop - 2) - (stop - 1))] for n in range(150)])  # there and back again

def lit(light): return [i + 255 * light(n) for n, i in enumerate(shot)]
def dimmed(share): return [i * share(n) for n, i in enumerate(shot)]
def moved(shift): return [np.roll(i, int(shift(n)), 1) for n, i in enumerate(shot)]

disturbed = {f"flash_{k}": lit(lambda n, k=k: n % 50 in range(20, 20 + k)) for k in (1, 2, 3)}
disturbed |= dict(
    strobe=lit(lambda n: 60 < n < 100 and n % 4 == 0),
    explosion=lit(lambda n: np.exp((70 - n) / 12) if n >= 70 else 0),
    shake=moved(lambda n: 12 * np.sin(n * 2.1) + 7 * np.sin(n * 3.7)),
    fast_pan=moved(lambda n: 10 * max(0, n - 60) if n < 90 else 300),
    exposure=dimmed(lambda n: 0.7 + 0.3 * np.sin(n / 12)),
    lights_out_and_on=dimmed(lambda n: np.clip(abs(n - 75) / 15 - 0.5, 0, 1)),
)

# %%
robustness = {}
with tempfile.TemporaryDirectory() as temporary:
    for name, images in disturbed.items():
        clip = encode(Path(temporary) / f"{name}.mp4", [np.uint8(np.clip(i, 0, 255)) for i in images], 25)
        kinds = detect_shots(clip, detector).transition[1:]
        robustness[name] = dict(cuts=int((kinds == "cut").sum()), soft=int((kinds != "cut").sum()))
pd.DataFrame(robustness).T

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
    starts = {0, *(frame for frame, _ in of_clip(film, known[film]))}
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
sizes |= dict(drawn_films=len(records), drawn_frames=sum(f.attributes["frames"] for f in records))
judged = by_split[detector][main]
detectors = {name: parts for name, parts in by_split.items()}
metrics = dict(**judged, detectors=detectors, robustness=robustness, **scores, counts=sizes)
record = dict(seeds=[seed], sizes=sizes, **(dict(date=date) if date else {}))
save_results(out, metrics, headlines, seconds=time.perf_counter() - started, **record);

# %%
table = mean.round(3).reset_index()
table["reference"] = table.reference.map(dict(truth="ground truth", flow="optical flow"))
for what, found in judged.items():
    print(f"{what}: recall {found.get('recall', float('nan')):.3f}, {found['false']} false")
table
