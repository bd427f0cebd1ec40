# %% parameters
data = "data"  # folder of the corpus; relative to the project
num_shots = 30  # how many of its tracking shots, the first ones
max_tracks = 200  # tracks at a time in a tracking shot
high_noise = 0.25  # a second, larger noise of the simulated depth, for shots with path/depth up to 0.05
lens_shots = []  # shots that are shown again through other lenses; none of those that the solver was tuned on
unknown_every = 3  # baselines with unknown focal length run on every n-th shot
max_timing_frames = 256  # frames of the longest shot in the measurement of growth; 0 leaves it out
sequences = []  # folders of real sequences in place of the corpus; may name variables such as $PRIMENB_REAL
lengths = [8, 12, 20, 40]  # frames of the windows cut from them
windows = 3  # windows of each length and sequence
max_features = 400  # SIFT features of a frame of them
workers = 2  # processes
seed = 0
date = ""  # the day, for results that are kept outside the pipeline; in the pipeline it would make every run differ
headlines = []  # names of the numbers that are compared after a rerun
out = "runs/sfm"  # where results go

# %%
import os, shutil, time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has one core

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from primenb.core import root, seed_all
from primenb.data.corpus import move_shots, tracking_shots
from primenb.learn.jobs import run_jobs
from primenb.results import save_results
from primenb.sfm.baselines import SFM_BASELINES
from primenb.sfm.evaluate import AUCS, METRICS, count_failures, draw_paths, improvement
from primenb.sfm.insert import insert
from primenb.sfm.lenses import LENS_LOOKS, run_look
from primenb.sfm.mapper import MAX_FOCAL_SIGMA, solve_tracks
from primenb.sfm.protocol import (
    VARIANTS, MethodRun, jobs_folder, read_rows, read_sequence, run_method, run_move, run_starter, run_window,
    starter_case,
)
from primenb.sfm.tracks import klt_tracks
from primenb.viz import label, sheet, show, style

# %%
started = time.perf_counter()
seed_all(seed)
style()
def place(path): return root() / os.path.expandvars(path)
out, folder = place(out), place(data)
real = bool(sequences)

# %%
high_prior = f"scaled_{round(100 * high_noise)}"

def runs_of(n, low):
    "The methods that run on the n-th tracking shot."
    runs = [MethodRun(m) for m in SFM_BASELINES] + [MethodRun(m, "scaled_10") for m in VARIANTS]
    runs.append(MethodRun("depth_guided", "shifted_10"))
    if low: runs.append(MethodRun("depth_guided", high_prior))
    runs.append(MethodRun("depth_guided", "scaled_10", known_K=False))
    if n % unknown_every == 0: runs += [MethodRun(m, known_K=False) for m in SFM_BASELINES]
    return runs

def starter_jobs(place):
    for n, shot in enumerate(list(tracking_shots(folder=folder, check=False))[:num_shots]):
        low = 1e-6 < shot.facts["path_over_depth"] < 0.051
        file = place / f"{shot.key}.json"
        yield file, run_starter, (shot.key, str(folder), max_tracks, (0.1, high_noise), runs_of(n, low), str(file))

def move_jobs(place):
    "The shots of known status, with and without their lens."
    entries = [MethodRun("no_depth", known_K=known) for known in (True, False)]
    for shot in move_shots(folder=folder, check=False):
        file = place / f"{shot.key}.json"
        yield file, run_move, (shot.key, str(folder), max_tracks, entries, str(file))

def look_jobs(place):
    "Shots through other lenses, which nobody tells the solver of."
    for key in lens_shots:
        for group, looks in LENS_LOOKS.items():
            for n in range(len(looks)):
                file = place / f"{key}-{group}-{n}.json"
                yield file, run_look, (key, group, n, str(folder), max_tracks, MAX_FOCAL_SIGMA, str(file))

# %%
def window_jobs(wholes, place):
    "Windows spread over each sequence."
    runs = [MethodRun(m, known_K=known) for m in SFM_BASELINES for known in (True, False)]
    runs += [MethodRun(m, "sensor") for m in VARIANTS] + [MethodRun("depth_guided", "sensor", known_K=False)]
    for whole in wholes:
        for length in lengths:
            for first in np.unique(np.linspace(0, len(whole.images) - length, windows).round().astype(int)):
                file = place / f"{whole.name}-{first}-{length}.json"
                yield file, run_window, (whole, int(first), length, max_features, runs, str(file))

# %%
wholes = [read_sequence(place(s)) for s in sequences]
work = jobs_folder(out, max_tracks, high_noise, unknown_every, max_features)
jobs = list(window_jobs(wholes, work) if real else starter_jobs(work))
run_jobs(jobs, workers, "shots")
table = read_rows([file for file, *_ in jobs])
moved = [] if real else list(move_jobs(work))
run_jobs(moved, workers, "moves")
moves = read_rows([file for file, *_ in moved])
looked = [] if real else list(look_jobs(work))
run_jobs(looked, workers, "lenses")
looks = read_rows([file for file, *_ in looked])
ratios = ["centre_ratios", "rotation_ratios"]
table.drop(columns=["seconds", "reason", *ratios]).to_csv(out / "cameras.csv", index=False)
if len(moves): moves.drop(columns=["seconds", *ratios]).to_csv(out / "moves.csv", index=False)
if len(looks): looks.to_csv(out / "lenses.csv", index=False)
len(table), len(moves)

# %%
def name(row):
    "The method, with its prior and its lens where these are not the usual ones."
    usual = row.prior in (None, "scaled_10", "sensor") or row.method not in VARIANTS
    return row.method + ("" if usual else f" {row.prior}") + ("" if row.known_K else ", unknown lens")

table["name"] = [name(row) for row in table.where(table.notna(), None).itertuples()]
known = table[table.known_K]
columns = [*METRICS, "registered", "seconds", "points"]
def summary(rows):
    "Means over shots, failures counted, and how many failed."
    means = count_failures(rows).groupby("name")[columns].mean()
    return means.assign(failures=rows.groupby("name").failed.sum())

# %%
groups = {}
if not real:
    groups["low"] = table[table.path_over_depth.between(1e-6, 0.051)]
    groups["high"] = table[table.path_over_depth > 0.099]
    groups["nodal_pan"] = table[table.move == "nodal_pan"]
for title, rows in groups.items(): display(title, summary(rows).round(4))

# %%
gains = []
def gain(group, under_test):
    "The share of the best baseline's error that a method removes, by metric; adds a row for each to `summary.csv`."
    rows = groups[group]
    if rows.empty: return {}
    baselines = rows[rows.method.isin(SFM_BASELINES) & rows.known_K]
    found = improvement(rows[rows.name == under_test], baselines, seed=seed)
    found = {metric: values for metric, values in found.items() if values}
    for metric, values in found.items(): gains.append(dict(group=group, method=under_test, metric=metric, **values))
    return {metric: values["value"] for metric, values in found.items()}

compared = (*SFM_BASELINES, "depth_guided")
def mean_of(rows, column):
    "The mean of a column for each compared method."
    return {m: float(rows[rows.name == m][column].mean()) for m in compared}

# %%
starter = {}
if not real:
    for group in ("low", "high"):
        rows = groups[group]
        starter[group] = dict(
            improvement=gain(group, "depth_guided"), registered=mean_of(rows, "registered")["depth_guided"]
        )
        starter[group]["failures"] = {m: int(rows[rows.name == m].failed.sum()) for m in compared}
        starter[group]["shots"] = int(rows.shot.nunique())
    pans = groups["nodal_pan"][groups["nodal_pan"].known_K]
    detected = pans[pans.name == "depth_guided"].status == "rotation_only"
    starter["nodal_pan"] = dict(rotation_only=float(detected.mean()), rpe_rotation=mean_of(pans, "rpe_rotation"))
pd.json_normalize(starter).T.rename(columns={0: "value"})

# %%
RIGHT = dict(static="static", turning="rotation_only", long="solved")
for group, rows in moves.groupby("group") if len(moves) else ():
    right = (rows.status == RIGHT[group]) & ~(rows.ate_over_path > 0.02)
    unknown_lens = rows[~rows.known_K & (rows.focal_sigma < MAX_FOCAL_SIGMA)]
    found = dict(right=float(right.mean()), shots=len(rows), largest_path=float(rows.found_path.max()))
    least, most = rows.registered.min(), rows.ate_over_path.max()
    if group == "long": found |= dict(registered=float(least), ate_over_path=float(most))
    if group == "static": found["lens_found"] = len(unknown_lens)
    if group == "turning": found["focal_error"] = float(unknown_lens.focal_error.max())
    starter[group] = found
names = ["shot", "group", "move", "known_K", "status", "found_path", "ate_over_path", "focal_error", "seconds"]
moves[names].round(4) if len(moves) else None

# %%
def lens_group(rows):
    "What was found of one kind of lens."
    own, bare = (rows[rows.method == name] for name in ("found", "pinhole"))
    sure = own[own.focal_found]
    found = {name: float(own[name].astype(float).mean()) for name in ("noticed", "invented", "focal_found", "honest")}
    found |= dict(focal_error=float(own.focal_error.median()), pinhole_error=float(bare.focal_error.median()))
    found["found_error"] = float(sure.focal_error.median()) if len(sure) else None
    return found | dict(ate=float(own.ate_over_path.median()), pinhole_ate=float(bare.ate_over_path.median()),
                        refused=int((own.status == "refused").sum()), shots=len(own))

lenses = {group: lens_group(rows) for group, rows in looks.groupby("group")} if len(looks) else {}
pd.DataFrame(lenses).T.round(3)

# %%
tested = table[(table.name == "depth_guided") & (table.status == "solved")]
def within(rows, column): return float(np.quantile(np.concatenate(rows[column].tolist()), 0.68))
sigma = {}
for gt, rows in tested.groupby("gt"):
    sigma[gt] = dict(centre=within(rows, "centre_ratios"), rotation=within(rows, "rotation_ratios"))
guessed = pd.concat([rows for rows in (table, moves) if len(rows)])
guessed = guessed[~guessed.known_K & (guessed.focal_sigma < MAX_FOCAL_SIGMA) & guessed.method.isin(VARIANTS)]
inside = guessed.focal_error <= 2 * guessed.focal_sigma
sigma["focal"] = dict(found=len(guessed), inside=float(inside.mean()) if len(inside) else None)
pd.json_normalize(sigma).T.rename(columns={0: "value"})

# %%
if not real:
    for variant in list(VARIANTS)[1:]:
        for group in ("low", "high"): gain(group, variant)
    groups["tiny"] = groups["low"][groups["low"].path_over_depth < 0.0101]
    means = {}
    for method in ("depth_guided", "depth_guided shifted_10"):
        means[method] = count_failures(groups["low"][groups["low"].name == method])[list(METRICS)].mean()
    scaled, shifted = means.values()
    difference = (scaled - shifted).abs() / pd.concat(means.values(), axis=1).max(axis=1)
    high = gain("tiny", f"depth_guided {high_prior}")
    starter["estimators"] = dict(relative_difference=difference.to_dict(), high_noise=high)
summary_table = pd.DataFrame(gains)
summary_table.round(4).to_csv(out / "summary.csv", index=False)
summary_table.pivot(index=["group", "method"], columns="metric", values="value").round(3) if gains else None

# %%
if not real:
    fig, axes = plt.subplots(1, 3, figsize=(10, 3))
    moving = table[(table.path_over_depth > 1e-6) & table.known_K & table.name.isin([*compared, "no_smoothing"])]
    for ax, metric in zip(axes, ("ate_over_path", "rpe_rotation", "auc_translation")):
        for method, rows in count_failures(moving).groupby("name"):
            mean = rows.assign(bin=rows.path_over_depth.round(3)).groupby("bin")[metric].mean()
            width = 2.5 if method == "depth_guided" else 1
            ax.plot(mean.index, mean.values, "o-", lw=width, ms=3, label=method.replace("_", " "))
        scale = "linear" if metric in AUCS else "log"
        ax.set(xscale="log", yscale=scale, xlabel="path / depth", title=metric.replace("_", " "))
    axes[0].legend(frameon=False, fontsize=8)

# %%
if not real:
    case = starter_case("track_00", folder, max_tracks)
    priors = dict(colmap_relaxed=None, no_smoothing="scaled_10", depth_guided="scaled_10")
    found = {method: run_method(case, MethodRun(method, prior))[0] for method, prior in priors.items()}
    draw_paths(case.gt_poses["exact"], found)

# %%
unknown = table[~table.known_K & (table["gt"] == table["gt"].iloc[0])]
TURNS = ("hand_held", "orbit", "pan", "tilt", "nodal_pan")
focal = {m: float(rows.focal_error.median()) for m, rows in unknown.groupby("method")}
lens = dict(median_error=focal["depth_guided"], baselines={m: focal[m] for m in SFM_BASELINES})
if not real:
    guided = unknown[unknown.method == "depth_guided"]
    turning = guided[guided.move.isin(TURNS)]
    lens |= dict(median_error_turning=float(turning.focal_error.median()), turning=len(turning), shots=len(guided))
    low = count_failures(guided[guided.path_over_depth.between(1e-6, 0.051)])
    lens["ate_over_path_low"] = float(low.ate_over_path.mean())
lens

# %%
insertion = {}
if not real:
    drifts = known[(known.name == "depth_guided") & known.drift.notna()]
    worst = float(drifts.drift.max())
    insertion = dict(median_drift=float(drifts.drift.median()), worst_shot=worst, shots=len(drifts))
    clip = next(s for s in tracking_shots(folder=folder, check=False) if s.key == "track_00")
    images = insert(found["depth_guided"], clip.frames(), mask=clip.masks)
    display(show(sheet([label(images[t], f"frame {t}") for t in (0, 10, 20, 31)], columns=2)))
insertion

# %%
def growth(key, max_frames):
    "Seconds for ever longer shots: the same shot played forward and backward."
    shot = next(s for s in tracking_shots(folder=folder, check=False) if s.key == key)
    frames, K = shot.frames(), shot.cameras.K[0]
    times, n = {}, 16
    while n <= max_frames:
        order = np.abs((np.arange(n) + 31) % 62 - 31)
        tracks = klt_tracks(frames[order], max_tracks=max_tracks, min_distance=9)
        begun = time.perf_counter()
        solve_tracks(tracks, K)
        times[n] = time.perf_counter() - begun
        n = 2 * n
    return times

# %%
timing = {m: float(rows.seconds.median()) for m, rows in known.groupby("name")}
solved = known[~known.failed & known.method.isin(SFM_BASELINES)].groupby("shot").seconds.min()
seconds = known[known.name == "depth_guided"].groupby("shot").seconds.min()
speed = dict(median_seconds={m: timing[m] for m in compared})
speed["share_of_fastest_solving_baseline"] = float((seconds / solved).median())
speed["faster_on"] = float((seconds.reindex(solved.index) <= solved).mean())
if max_timing_frames and not real:
    times = growth("track_12", max_timing_frames)
    slope = np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0]
    speed |= dict(seconds_by_frames={str(n): s for n, s in times.items()}, exponent=float(slope))
speed

# %%
window_metrics = ["ate_over_path", "rpe_rotation", "registered", "seconds"]
def window_results(rows):
    "The means of all methods on windows of one length, and the share of the best baseline's error that is removed."
    counted = count_failures(rows).groupby("name")[window_metrics].mean()
    best = counted.loc[list(SFM_BASELINES)].min()
    gain = {m: 1 - counted.loc["depth_guided", m] / best[m] for m in window_metrics[:2]}
    failures = {m: int(rows[rows.name == m].failed.sum()) for m in (*SFM_BASELINES, *VARIANTS)}
    return dict(gain=gain, **{m: counted[m].to_dict() for m in window_metrics[:2]}, failures=failures)

sequences_found = {}
for whole in wholes:
    results = dict(floors=whole.floors, reference=whole.reference is not None, lengths={})
    for length, rows in known[known.sequence == whole.name].groupby("frames"):
        results["lengths"][str(length)] = {gt: window_results(some) for gt, some in rows.groupby("gt")}
    sequences_found[whole.name] = results

# %%
rows = []
for sequence, results in sequences_found.items():
    for length, by_gt in results["lengths"].items():
        for gt, found in by_gt.items():
            gain_columns = {f"gain_{m}": v for m, v in found["gain"].items()}
            ate_columns = {f"ate_{m}": v for m, v in found["ate_over_path"].items()}
            rows.append(dict(sequence=sequence, frames=length, gt=gt, **gain_columns, **ate_columns))
pd.DataFrame(rows).round(4) if real else None

# %%
pooled = {}
for short, some in (("8_12", ["8", "12"]), ("20_40", ["20", "40"])):
    if not real: break
    rows = known[known.frames.astype(str).isin(some) & (known["gt"] == "reference")]
    counted = count_failures(rows).groupby("name")[["ate_over_path", "rpe_rotation"]].mean()
    best = counted.loc[list(SFM_BASELINES)].min()
    guided = rows[rows.name == "depth_guided"]
    pooled[short] = {m: float(1 - counted.loc["depth_guided", m] / best[m]) for m in counted}
    pooled[short] |= dict(refused=int(guided.reason.notna().sum()), failures=int(guided.failed.sum()))
    pooled[short]["windows"] = int(rows.shot.nunique())
pooled

# %%
sizes = dict(shots=int(table.shot.nunique()), rows=len(table), tracks=max_features if real else max_tracks)
results = dict(sequences=sequences_found, pooled=pooled) if real else dict(starter=starter)
results["focal"] = lens
if lenses: results["lenses"] = lenses
results["sigma"] = sigma
if not real: results["insertion"] = insertion
results["speed"] = speed
record = dict(seeds=[seed], sizes=sizes) | (dict(date=date) if date else {})
save_results(out, results, headlines, seconds=time.perf_counter() - started, **record)
shutil.rmtree(work.parent)
pd.json_normalize(results).T.rename(columns={0: "value"})

# %%
def sentence(group):
    "What the method removes of the best baseline's error on a group of shots."
    found = [row for row in gains if row["group"] == group and row["method"] == "depth_guided"]
    parts = [f"{r['value']:.0%} [{r['low']:.0%}, {r['high']:.0%}] in `{r['metric']}`" for r in found]
    start = f"- **{group} parallax** ({starter[group]['shots']} shots): share of the best baseline's error removed: "
    return start + ", ".join(parts) + "."

lines = []
if not real:
    lines += [sentence(group) for group in ("low", "high")]
    for group in RIGHT:
        if group not in starter: continue
        one = starter[group]
        lines.append(f"- **{group}** ({one['shots']} runs): right status in {one['right']:.0%}.")
    for group, one in lenses.items():
        errors = f"{one['focal_error']:.1%} (a pinhole: {one['pinhole_error']:.1%})"
        start = f"- **{group}** ({one['shots']} shots through such a lens): noticed in {one['noticed']:.0%}, "
        lines.append(f"{start}median focal error {errors}, honest about it in {one['honest']:.0%}.")
    drift = f"{insertion['median_drift']:.2f} pixels over {insertion['shots']} shots"
    lines.append(f"- Median drift of an inserted object: {drift}.")

# %%
for short, values in pooled.items():
    removed = f"{values['ate_over_path']:.0%} in `ate_over_path`, {values['rpe_rotation']:.0%} in `rpe_rotation`"
    windows_of = f"**Windows of {short.replace('_', ' and ')} frames** ({values['windows']})"
    lines.append(f"- {windows_of}: {removed}; {values['failures']} failures.")
for gt, found in sigma.items():
    if gt == "focal": continue
    parts = " and ".join(f"{value:.2f} for the {what}" for what, value in found.items())
    lines.append(f"- 68 % of errors over `sigma` ({gt} poses): {parts}.")
share = sigma["focal"]["inside"]
inside = "none" if share is None else f"{share:.0%} of {sigma['focal']['found']}"
lines.append(f"- Focal lengths called found that are within two of their standard deviations: {inside}.")
lines.append(f"- Median focal error without known intrinsics: {lens['median_error']:.1%}.")
share = speed["share_of_fastest_solving_baseline"]
lines.append(f"- Median time over that of the fastest baseline that solves the shot: {share:.2f}.")
Markdown("\n".join(lines))
