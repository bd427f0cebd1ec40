# %% parameters
data = "data"  # folder of the corpus; relative to the project
shots = 30  # how many of its tracking shots, the first ones
corners = 200  # tracks at a time in a tracking shot
noise = 0.25  # a second, worse noise of the simulated depth, for shots with path/depth up to 0.05
unknown_every = 3  # baselines without known focal length run on every so many shots
longest = 256  # frames of the longest shot in the measurement of growth; 0 leaves it out
sequences = ""  # folders of real sequences, separated by spaces, in place of the corpus; may name variables such as $PRIMENB_REAL
lengths = "8 12 20 40"  # frames of the windows cut from them
windows = 3  # windows of each length and sequence
features = 400  # SIFT features of a frame of them
workers = 2  # processes
seed = 0
date = ""  # the day, for results that are kept outside the pipeline; in the pipeline it would make every run differ
metrics = "runs/sfm/metrics.json"  # where the metrics go
out = "runs/sfm"  # where all else goes

# %%
import os, tempfile, time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has one core

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from primenb.cluster import run_jobs
from primenb.core import root, save_metrics, seed_all
from primenb.corpus import tracking_shots
from primenb.sfm.baselines import METHODS
from primenb.sfm.evaluate import AREAS, ERRORS, MEASURES, count_failures, draw_paths, improvement
from primenb.sfm.insert import insert
from primenb.sfm.mapper import solve_tracks
from primenb.sfm.priors import depth_of
from primenb.sfm.protocol import Entry, answer, read_rows, read_sequence, run_starter, run_window, starter_case, window
from primenb.sfm.tracks import klt_tracks
from primenb.viz import label, sheet, show, style

# %%
started = time.perf_counter()
seed_all(seed)
style()
place = lambda path: root() / os.path.expandvars(path)
out, folder, real = place(out), place(data), sequences.split()

# %%
OURS = ["depth_guided", "depth_init", "depth_ba", "not_evened", "no_depth"]

def entries_of(n, low):
    "What runs on the n-th tracking shot."
    known = [Entry(m) for m in METHODS] + [Entry(m, "scaled_10") for m in OURS] + [Entry("depth_guided", "shifted_10")]
    worse = [Entry("depth_guided", f"scaled_{round(100 * noise)}")] if low else []
    return known + worse + [Entry("depth_guided", "scaled_10", known=False)] + ([Entry(m, known=False) for m in METHODS] if n % unknown_every == 0 else [])

def starter_jobs(place):
    for n, shot in enumerate(list(tracking_shots(folder=folder, check=False))[:shots]):
        low = 1e-6 < shot.facts["path_over_depth"] < 0.051
        file = place / f"{shot.key}.json"
        yield file, run_starter, (shot.key, str(folder), corners, (0.1, noise), entries_of(n, low), str(file))

# %%
def window_jobs(wholes, place):
    "Windows spread over each sequence."
    entries = [Entry(m, known=k) for m in METHODS for k in (True, False)] + [Entry(m, "sensor") for m in OURS] + [Entry("depth_guided", "sensor", known=False)]
    for whole in wholes:
        for length in map(int, lengths.split()):
            for first in np.unique(np.linspace(0, len(whole.images) - length, windows).round().astype(int)):
                file = place / f"{whole.name}-{first}-{length}.json"
                yield file, run_window, (whole, int(first), length, features, entries, str(file))

# %%
wholes = [read_sequence(place(s)) for s in real]
with tempfile.TemporaryDirectory() as work:
    jobs = list(window_jobs(wholes, Path(work)) if real else starter_jobs(Path(work)))
    run_jobs(jobs, workers, "shots")
    table = read_rows([file for file, *_ in jobs])
table.drop(columns=["seconds", "reason"]).to_csv(out / "cameras.csv", index=False)
len(table)

# %%
name = lambda r: r.method + ("" if r.prior in (None, "scaled_10", "sensor") or r.method not in OURS else f" {r.prior}") + ("" if r.known else ", unknown lens")
table["name"] = [name(r) for r in table.where(table.notna(), None).itertuples()]
known, whole_table = table[table.known], table
columns = [*MEASURES, "registered", "seconds", "points"]
def summary(rows):
    "Means over shots, failures counted, and how many failed."
    counted = count_failures(rows)
    return counted.groupby("name")[columns].mean().assign(failures=rows.groupby("name").failed.sum())
groups = {} if real else dict(low=table[table.path_over_depth.between(1e-6, 0.051)], high=table[table.path_over_depth > 0.099], turning=table[table.move == "nodal_pan"])
for title, rows in groups.items(): display(title, summary(rows).round(4))

# %%
def against(rows, ours):
    "What ours removes of the error of the best of the three baselines, per measure."
    if rows.empty: return {}
    found = improvement(rows[rows.name == ours], rows[rows.method.isin(METHODS) & rows.known], seed=seed)
    return {m: v for m, v in found.items() if v}

starter, gains = {}, []
def gain(group, ours):
    "The improvement by measure, and a row for each in `summary.csv`: with its 95 % interval over shots, and whom it is against."
    found = against(groups[group], ours)
    gains.extend(dict(group=group, method=ours, measure=m, **v) for m, v in found.items())
    return {m: v["value"] for m, v in found.items()}

if not real:
    worse, other = f"depth_guided scaled_{round(100 * noise)}", "depth_guided shifted_10"
    for group in ("low", "high"):
        rows = groups[group]
        starter[group] = dict(improvement=gain(group, "depth_guided"), registered=float(rows[rows.name == "depth_guided"].registered.mean()), failures={m: int(rows[rows.name == m].failed.sum()) for m in (*METHODS, "depth_guided")}, shots=int(rows.shot.nunique()))
    turning = groups["turning"][groups["turning"].known]
    starter["turning"] = dict(rotation_only=float((turning[turning.name == "depth_guided"].status == "rotation_only").mean()), rpe_rotation={m: float(turning[turning.name == m].rpe_rotation.mean()) for m in (*METHODS, "depth_guided")})
pd.json_normalize(starter).T.rename(columns={0: "value"})

# %%
if not real:
    for m in OURS[1:]:
        for group in ("low", "high"): gain(group, m)
    groups["tiny"] = low = groups["low"][groups["low"].path_over_depth < 0.0101]
    mean = {n: count_failures(groups["low"][groups["low"].name == n])[list(MEASURES)].mean() for n in ("depth_guided", other)}
    apart = (mean["depth_guided"] - mean[other]).abs() / pd.concat(mean.values(), axis=1).max(axis=1)
    starter["estimators"] = dict(apart=apart.to_dict(), worse_noise=gain("tiny", worse))
summary_table = pd.DataFrame(gains)
summary_table.round(4).to_csv(out / "summary.csv", index=False)
summary_table.pivot(index=["group", "method"], columns="measure", values="value").round(3) if gains else None

# %%
if not real:
    fig, axes = plt.subplots(1, 3, figsize=(10, 3))
    moving = table[(table.path_over_depth > 1e-6) & table.known & table.name.isin([*METHODS, "depth_guided", "not_evened"])]
    for ax, measure in zip(axes, ("ate_over_path", "rpe_rotation", "auc_translation")):
        for m, rows in count_failures(moving).groupby("name"):
            mean = rows.assign(bin=rows.path_over_depth.round(3)).groupby("bin")[measure].mean()
            ax.plot(mean.index, mean.values, "o-", lw=2.5 if m == "depth_guided" else 1, ms=3, label=m.replace("_", " "))
        ax.set(xscale="log", yscale="linear" if measure in AREAS else "log", xlabel="path / depth", title=measure.replace("_", " "))
    axes[0].legend(frameon=False, fontsize=8)

# %%
if not real:
    case = starter_case("track_00", folder, corners)
    found = {m: answer(case, Entry(m, p))[0] for m, p in (("colmap_relaxed", None), ("not_evened", "scaled_10"), ("depth_guided", "scaled_10"))}
    draw_paths(case.truths["truth"], found)

# %%
unknown = whole_table[~whole_table.known & (whole_table.truth == whole_table.truth.iloc[0])]
TURNS = ("hand_held", "orbit", "pan", "tilt", "nodal_pan")
focal = {m: float(rows.focal_error.median()) for m, rows in unknown.groupby("method")}
lens = dict(median_error=focal["depth_guided"], baselines={m: focal[m] for m in METHODS})
if not real:
    ours_unknown = unknown[unknown.method == "depth_guided"]
    lens |= dict(median_error_turning=float(ours_unknown[ours_unknown.move.isin(TURNS)].focal_error.median()), turning=int(ours_unknown.move.isin(TURNS).sum()), shots=len(ours_unknown),
                 ate_over_path_low=float(count_failures(ours_unknown[ours_unknown.path_over_depth.between(1e-6, 0.051)]).ate_over_path.mean()))
lens

# %%
insertion = {}
if not real:
    drifts = known[(known.name == "depth_guided") & known.drift.notna()]
    insertion = dict(median_drift=float(drifts.drift.median()), worst_shot=float(drifts.drift.max()), shots=len(drifts))
    guided, clip = found["depth_guided"], next(s for s in tracking_shots(folder=folder, check=False) if s.key == "track_00")
    pictures = insert(guided, clip.frames(), mask=clip.masks)
    display(show(sheet([label(pictures[t], f"frame {t}") for t in (0, 10, 20, 31)], columns=2)))
insertion

# %%
def growth(key, most):
    "Seconds for ever longer shots: the same shot played forth and back."
    shot = next(s for s in tracking_shots(folder=folder, check=False) if s.key == key)
    frames, K, times, n = shot.frames(), shot.cameras.K[0], {}, 16
    while n <= most:
        order = np.abs((np.arange(n) + 31) % 62 - 31)
        tracks = klt_tracks(frames[order], most=corners, apart=9)
        begun = time.perf_counter()
        solve_tracks(tracks, K)
        times[n], n = time.perf_counter() - begun, 2 * n
    return times

timing = {m: float(rows.seconds.median()) for m, rows in known.groupby("name")}
solved = known[~known.failed & known.method.isin(METHODS)].groupby("shot").seconds.min()
ours_seconds = known[known.name == "depth_guided"].groupby("shot").seconds.min()
speed = dict(median_seconds={m: timing[m] for m in (*METHODS, "depth_guided")}, share_of_fastest_solving_baseline=float((ours_seconds / solved).median()), faster_on=float((ours_seconds.reindex(solved.index) <= solved).mean()))
if longest and not real:
    times = growth("track_12", longest)
    speed |= dict(seconds_by_frames={str(n): s for n, s in times.items()}, exponent=float(np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0]))
speed

# %%
sequences_found = {}
for whole in wholes:
    own = known[known.sequence == whole.name]
    sequences_found[whole.name] = dict(floors=whole.floors, reference=whole.reference is not None, lengths={})
    for length, rows in own.groupby("frames"):
        entry = sequences_found[whole.name]["lengths"][str(length)] = {}
        for truth, some in rows.groupby("truth"):
            counted = count_failures(some).groupby("name")[["ate_over_path", "rpe_rotation", "registered", "seconds"]].mean()
            base = counted.loc[list(METHODS)]
            gain = {m: 1 - counted.loc["depth_guided", m] / base[m].min() for m in ("ate_over_path", "rpe_rotation")}
            entry[truth] = dict(gain=gain, ate_over_path=counted.ate_over_path.to_dict(), rpe_rotation=counted.rpe_rotation.to_dict(), failures={m: int(some[some.name == m].failed.sum()) for m in (*METHODS, *OURS)})
if real:
    display(pd.DataFrame([dict(sequence=s, frames=n, truth=t, **{f"gain_{k}": v for k, v in e["gain"].items()}, **{f"ate_{k}": v for k, v in e["ate_over_path"].items()}) for s, a in sequences_found.items() for n, b in a["lengths"].items() for t, e in b.items()]).round(4))

# %%
pooled = {}
for short, some in (("8_12", ["8", "12"]), ("20_40", ["20", "40"])):
    if not real: break
    rows = known[known.frames.astype(str).isin(some) & (known.truth == "reference")]
    counted = count_failures(rows).groupby("name")[["ate_over_path", "rpe_rotation"]].mean()
    pooled[short] = {m: float(1 - counted.loc["depth_guided", m] / counted.loc[list(METHODS), m].min()) for m in counted} | dict(refused=int(rows[rows.name == "depth_guided"].reason.notna().sum()), failures=int(rows[rows.name == "depth_guided"].failed.sum()), windows=int(rows.shot.nunique()))
pooled

# %%
sizes = dict(shots=int(table.shot.nunique()), rows=len(table), tracks=corners if not real else features)
results = (dict(sequences=sequences_found, pooled=pooled, focal=lens, speed=speed) if real else dict(starter=starter, focal=lens, insertion=insertion, speed=speed))
save_metrics(place(metrics), results, seconds=time.perf_counter() - started, seeds=[seed], sizes=sizes, **(dict(date=date) if date else {}))
pd.json_normalize(results).T.rename(columns={0: "value"})
