# %% parameters
data = ["clips"]  # what encoders are trained on, as in `primenb.mgm.train.find_segments`
folder = "data"  # of the corpus
variants = [  # as in `primenb.mgm.protocol.variant_run`
    {"name": "untrained", "method": "untrained"},
    {"name": "tube:0.75", "mask": "tube", "ratio": 0.75},
    {"name": "smm:0.75", "mask": "smm", "ratio": 0.75},
    {"name": "mgm:0.75", "mask": "mgm", "ratio": 0.75},
    {"name": "soft_mgm:0.75", "mask": "soft_mgm", "ratio": 0.75},
]
equal_tokens = []  # names of variants that are also trained for as many encoder tokens as the reference sees
reference = "tube:0.75"  # the variant whose final accuracy and whose number of tokens are targets
under_test = ["mgm:0.75", "soft_mgm:0.75"]  # variants that are compared with all others
baselines = []  # variants over which gains are among the metrics; empty for all. All of them are in gains.csv
seeds = [0, 1, 2]
target = "motion"  # what is predicted of hidden tokens, where a variant does not say
num_clips = 0  # training clips; 0 for all
epochs = 12
num_labelled = 0  # clips for the probes; 0 for all
linear_tasks = ["direction", "speed", "action", "shape", "place"]  # for the linear probe
attentive_tasks = ["direction", "action"]  # for the attentive probe
monitored = ["tube:0.75", "mgm:0.75"]  # variants that are evaluated after each epoch
controlled = ["untrained", "tube:0.75", "mgm:0.75"]  # variants that are also evaluated on changed clips
ratio = 0.3  # mask ratio where masks are evaluated without training
image_size = 32  # pixels
num_frames = 8
width = 128  # of the encoder
depth = 4
batch_size = 64
lr = 0.001
real_footage = ""  # folder with clips of a static camera
workers = 2  # processes
models = ""  # folder for the trained models; empty to delete them when all is done
date = ""  # the day, for results that are kept outside the pipeline
headlines = []  # names of the numbers that are compared after a rerun
out = "runs/mgm"  # where results go

# %%
import os, shutil, time
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has one core

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from primenb.core import root, seed_all
from primenb.data.corpus import clips as corpus_clips
from primenb.data.corpus import films
from primenb.learn.jobs import run_jobs
from primenb.learn.stats import paired_gain
from primenb.media.motion import cached_motion, read_motion
from primenb.media.video import read_frames
from primenb.mgm.evaluate import flow_features
from primenb.mgm.masks import Masks, diagnose, guide, object_recall, optical_flow, stack_guides, to_grid
from primenb.mgm.protocol import (
    EvalPlan, control_pairs, eval_sets, foreground_motion, mean_epochs_to_target, score_encoder, train_and_evaluate,
    variant_runs)
from primenb.mgm.train import MaskedRun
from primenb.results import save_results
from primenb.viz import overlay, sheet, show, style

# %%
started = time.perf_counter()
seed_all(0)
style()

def place(path): return root() / os.path.expandvars(path)

out = place(out)
model_folder = place(models) if models else out / ".models"

# %%
tests = list(corpus_clips("test", folder=place(folder), check=False))
labels = pd.DataFrame([clip.labels for clip in tests])[["kind", "camera"]]
frames = [clip.frames(threads=1) for clip in tests]
vectors = [read_motion(clip.path, remove_camera=True) for clip in tests]
guides = {
    "vectors": stack_guides([guide(v, 8, 2, frames=f) for v, f in zip(vectors, frames)]),
    "flow": stack_guides([guide(optical_flow(f), 8, 2, frames=f) for f in frames]),
    "vectors, no texture": stack_guides([guide(v, 8, 2) for v in vectors])}
movers = np.stack([to_grid(clip.movers, guides["vectors"].grid) for clip in tests])
kinds = diagnose(guides["vectors"], movers, ratio)
kinds.round(3)

# %%
def recall(found):
    "Recall of mgm in each clip."
    return pd.Series(object_recall(Masks("mgm", found.grid, ratio)(found, np.random.default_rng(0)), movers))

speed = replace(guides["vectors"], energy=np.linalg.norm(guides["vectors"].flow, axis=-1))
recalls = pd.DataFrame({name: recall(found) for name, found in guides.items()} | {"speed with camera": recall(speed)})
by_camera = recalls.groupby(labels.camera).mean()
by_kind = recalls.groupby([labels.kind, labels.camera]).mean().unstack(0).vectors.add_prefix("vectors, ")
by_camera.join(by_kind).T.round(3)

# %%
def film_motion(film):
    "Motion of people and of all else in a film: by ground truth, by vectors, and with the camera's motion removed."
    motions = dict(ground_truth=film.motion, vectors=read_motion(film.path),
                   camera_removed=read_motion(film.path, remove_camera=True))
    rows = pd.DataFrame({name: foreground_motion(motion, film.movers) for name, motion in motions.items()}).T
    return rows.rename_axis("motion").reset_index().assign(film=film.key)

test_films = films("test", folder=root() / "data", check=False)
film_motions = pd.concat([film_motion(film) for film in test_films], ignore_index=True)
film_motions["ratio"] = film_motions.foreground / film_motions.background
fig, ax = plt.subplots(figsize=(4, 3))
for name, group in film_motions.groupby("motion", sort=False):
    ax.loglog(group.background, group.foreground, "o", ms=4, label=name)
ax.axline((1, 1), (2, 2), c="k", lw=0.5)
ax.set(xlabel="background, pixels per frame", ylabel="foreground, pixels per frame")
ax.legend()
median_motion = film_motions.groupby("motion", sort=False)[["foreground", "background", "ratio"]].median()
median_motion.round(2)

# %%
SIZE = (320, 192)

def real_segment(path):
    "The 16 frames in which most pixels change, their number, and what changes in them."
    grey = read_frames(path, size=SIZE, threads=1).mean(3, dtype=np.float32)
    changed = np.abs(np.diff(grey, axis=0, append=grey[-1:])) > 25
    first = int(np.convolve(changed.mean((1, 2)), np.ones(16), "valid").argmax())
    images = read_frames(path, frames=(first, first + 16), size=SIZE, threads=1)
    return images, (first, changed[first : first + 16])

def real_clip(path):
    "Recall of three kinds of mask in a real clip, and images of its energy and mask."
    images, (first, changed) = real_segment(path)
    motion = cached_motion(path, model_folder, canonical=True, remove_camera=True)[first : first + 16]
    found = guide(motion, 16, 2, size=SIZE, frames=images)
    cells = changed.astype(np.float32).reshape(8, 2, 12, 16, 20, 16).mean((1, 3, 5))[None]
    kinds = ("mgm", "smm", "tube")
    hidden = {kind: Masks(kind, found.grid, ratio)(found, np.random.default_rng(0)) for kind in kinds}
    mask, shown = hidden["mgm"].reshape(found.grid).astype(float), []
    for t in (1, 4): shown += [images[2 * t], *(overlay(images[2 * t], v[t], 0.6) for v in (found.energy[0], mask))]
    return {kind: float(object_recall(h, cells)[0]) for kind, h in hidden.items()}, shown

# %%
model_folder.mkdir(parents=True, exist_ok=True)
real_files = sorted(place(real_footage).glob("*.mp4")) if real_footage else []
real_clips = {path.stem: real_clip(path) for path in real_files}
real_images = [image for _, images in real_clips.values() for image in images]
captions = ["frame", "energy", "hidden"] * 2 * len(real_clips)
show(sheet(real_images, captions, columns=6)) if real_clips else "no folder was given"

# %%
real_recall = {name: recalls for name, (recalls, _) in real_clips.items()}
pd.DataFrame(real_recall).T.round(3) if real_recall else ""

# %%
base = MaskedRun(
    data=tuple(data), folder=folder, num_clips=num_clips, epochs=epochs, image_size=image_size, num_frames=num_frames,
    width=width, depth=depth, batch_size=batch_size, lr=lr, target=target, device="cpu")
runs = {seed: variant_runs(variants, replace(base, seed=seed)) for seed in seeds}

def eval_plan(name, budget):
    "What a variant is evaluated on."
    return EvalPlan(
        tuple(linear_tasks), tuple(attentive_tasks), controls=name in controlled and budget == "epochs",
        monitored="direction" if name in monitored and budget == "epochs" else "", num_labelled=num_labelled)

def train_all(names, budget, **changes):
    "Trains and evaluates variants with all seeds: rows of name, budget, seed and result."
    rows = [(name, budget, seed) for seed in seeds for name in names]
    jobs = []
    for name, _, seed in rows:
        out = model_folder / f"{name.replace(':', '-')}-{budget}-{seed}"
        jobs.append((replace(runs[seed][name], **changes), out, eval_plan(name, budget)))
    run_jobs([(job[1] / "scores.json", train_and_evaluate, job) for job in jobs], workers, "variants")
    return [(*row, train_and_evaluate(*job)) for row, job in zip(rows, jobs)]

# %%
results = train_all([variant["name"] for variant in variants], "epochs")
tokens = next(result["encoder_tokens"] for name, *_, result in results if name == reference)
results += train_all(equal_tokens, "tokens", token_budget=tokens / 1e6)

# %%
tables = [pd.DataFrame(result["scores"]).assign(variant=name, budget=budget, seed=seed)
          for name, budget, seed, result in results]
scores = pd.concat(tables, ignore_index=True)
scores["control"] = scores.control.fillna("")
plain = scores[scores.control == ""]
table = plain.groupby(["budget", "variant", "probe", "task"], sort=False).accuracy.agg(["mean", "sem"])
table["mean"].unstack(["probe", "task"]).round(3)

# %%
by_seed = plain.sort_values("seed").groupby(["variant", "budget", "probe", "task"])
accuracy = {key: group.to_numpy() for key, group in by_seed.accuracy}
trained = list(plain[["variant", "budget"]].drop_duplicates().itertuples(index=False, name=None))

def label(name, budget): return f"{name}, equal {budget}" if budget != "epochs" else name

gains = []
for name in under_test:
    for probe, tasks in dict(linear=linear_tasks, attentive=attentive_tasks).items():
        for task in tasks:
            for other in trained:
                if other[0] == name: continue
                gain = paired_gain(accuracy[name, "epochs", probe, task], accuracy[*other, probe, task])
                gains.append(dict(variant=name, probe=probe, task=task, baseline=label(*other), **gain))
gains = pd.DataFrame(gains)
gains[["variant", "probe", "task", "baseline", "gain", "standard_error", "standard_errors"]].round(3)

# %%
groups, chance = (plain.drop_duplicates("task").set_index("task")[name] for name in ("group", "chance"))
shown_tasks = linear_tasks[:4]
fig, axes = plt.subplots(1, len(shown_tasks), figsize=(2.6 * len(shown_tasks), 3.4), sharey=True, squeeze=False)
for ax, task in zip(axes[0], shown_tasks):
    for n, (name, budget) in enumerate(trained):
        values = accuracy[name, budget, "linear", task]
        ax.plot(values, [n] * len(values), "o", ms=3, c="C1" if name in under_test else "C0")
        ax.plot(values.mean(), n, "|", ms=14, c="k")
    ax.axvline(chance[task], c="k", ls=":", lw=1)
    ax.set(title=f"{task} ({groups[task]})", xlabel="accuracy")
axes[0, 0].set(yticks=range(len(trained)), yticklabels=[label(*row) for row in trained])
axes[0, 0].invert_yaxis();

# %%
pairs = [pair for name in under_test for pair in control_pairs(variants, name, reference)]
matched = []
for name, control in pairs:
    for task in linear_tasks:
        gain = paired_gain(accuracy[name, "epochs", "linear", task], accuracy[control, "epochs", "linear", task])
        matched.append(dict(variant=name, task=task, **gain))
matched = pd.DataFrame(matched)
matched[["variant", "task", "gain", "standard_error", "standard_errors"]].round(3) if len(matched) else ""

# %%
train_set, test_set = eval_sets(folder, image_size, num_frames, 1, num_labelled)
flow_plan = EvalPlan(tuple(linear_tasks), tuple(attentive_tasks), controls=False)
flow_scores = score_encoder(partial(flow_features, cell=8), train_set, test_set, flow_plan)
flow_scores[["task", "probe", "accuracy"]].round(3)

# %%
curves = {name: [] for name in monitored}
for name, budget, _, result in results:
    if name in monitored and budget == "epochs": curves[name].append(result["curve"]["direction_linear"])
goal = float(np.mean(curves[reference], 0)[-1]) if reference in curves else None
reached = {name: mean_epochs_to_target(curve, goal) for name, curve in curves.items()} if goal else {}
if goal:
    fig, ax = plt.subplots(figsize=(4.5, 2.6))
    for name, curve in curves.items():
        error = np.std(curve, 0, ddof=1) / len(curve) ** 0.5 if len(curve) > 1 else None
        ax.errorbar(range(1, epochs + 1), np.mean(curve, 0), error, label=name, capsize=2)
    ax.axhline(goal, c="k", ls=":", lw=1)
    ax.set(xlabel="epoch", ylabel="direction, linear probe")
    ax.legend()
reached or f"{reference} was not monitored"

# %%
chosen = scores.variant.isin(controlled) & scores.task.isin([linear_tasks[0], "order"])
controls = scores[chosen & (scores.budget == "epochs") & (scores.probe == "linear")]
controls = controls.assign(control=controls.control.replace("", "unchanged"))
pivot = partial(controls.pivot_table, index="variant", columns="control", values="accuracy", sort=False)
control_mean, control_sem = pivot(), pivot(aggfunc="sem")
control_mean.round(3).astype(str) + " ± " + control_sem.round(3).astype(str)

# %%
def nest(rows, levels, names):
    "Rows of a table as dictionaries in dictionaries."
    found = {}
    for row in rows.to_dict("records"):
        inner = found
        for level in levels: inner = inner.setdefault(row[level], {})
        inner |= {name: None if pd.isna(row[name]) else row[name] for name in names}
    return found

summary = table.reset_index()
summary["key"] = [label(*row) for row in summary[["variant", "budget"]].itertuples(index=False)]
summary["measure"] = summary.probe + " " + summary.task
spent = {label(*row): [] for row in trained}
for name, budget, _, result in results: spent[label(name, budget)].append(result["encoder_tokens"])
control_rows = control_mean.stack().rename("mean").to_frame().join(control_sem.stack().rename("sem")).reset_index()
flow_measures = flow_scores.probe + " " + flow_scores.task

# %%
interval = ["gain", "standard_errors", "low", "high"]
kept_gains = gains[gains.baseline.isin(baselines)] if baselines else gains
found = dict(
    accuracy=nest(summary, ["key", "measure"], ["mean", "sem"]),
    gain=nest(kept_gains, ["variant", "probe", "task", "baseline"], interval),
    matched=nest(matched, ["variant", "task"], interval),
    optical_flow=dict(zip(flow_measures, flow_scores.accuracy)),
    chance=chance.to_dict(),
    controls=nest(control_rows, ["variant", "control"], ["mean", "sem"]),
    tokens={name: float(np.mean(counts)) for name, counts in spent.items()})
if goal: found["epochs_to_target"] = dict(target=goal, epochs=epochs) | reached
by_mask = dict(kinds=kinds.T.to_dict(), mgm_recall=by_camera.T.to_dict(), foreground=median_motion.T.to_dict())
if real_recall: by_mask["real_recall"] = real_recall
found["masks"] = by_mask

# %%
out.mkdir(parents=True, exist_ok=True)
scores.drop(columns="group").round(4).to_csv(out / "scores.csv", index=False)
columns = ["variant", "probe", "task", "baseline", "gain", "standard_error", "low", "high", "standard_errors"]
gains[columns].round(4).to_csv(out / "gains.csv", index=False)
film_motions.round(4).to_csv(out / "foreground.csv", index=False)
curve_rows = [pd.DataFrame(result["curve"]).assign(variant=name, seed=seed)
              for name, budget, seed, result in results if budget == "epochs" and result["curve"]]
all_curves = pd.concat(curve_rows, ignore_index=True)
first = ["variant", "seed"]
all_curves[first + [c for c in all_curves if c not in first]].round(5).to_csv(out / "curves.csv", index=False)
loss = next(name for name in all_curves if name.endswith("loss"))
by_epoch = all_curves.pivot_table(index="epoch", columns="variant", values=loss, sort=False)
by_epoch.round(5).to_csv(out / "learning.csv")  # for `dvc plots`

# %%
record = dict(seeds=seeds) | (dict(date=date) if date else {})
seconds = time.perf_counter() - started
train_clips = num_clips or len(list(corpus_clips("train", folder=place(folder), check=False)))
sizes = dict(trainings=len(results), epochs=epochs, num_clips=train_clips, num_labelled=num_labelled)
training = sum(result["seconds"] for *_, result in results) / workers
save_results(out, found, headlines, seconds=max(seconds, training), sizes=sizes, **record)
if not models: shutil.rmtree(model_folder)

# %%
task = linear_tasks[0]

def verdict(row):
    "What an interval says about the sign of a gain."
    if pd.isna(row.low): return "without spread"
    return "better" if row.low > 0 else "worse" if row.high < 0 else "not distinguishable"

main = gains[(gains.probe == "linear") & (gains.task == task)]
question = f"Linear probe for **{task}**: gain in accuracy, mean of {len(seeds)} seeds, with its 95 % interval."
lines = [question, "", "| variant | baseline | gain | interval | verdict |", "|---|---|---|---|---|"]
for row in main.itertuples():
    span = "" if pd.isna(row.low) else f"{row.low:+.3f} to {row.high:+.3f}"
    lines.append(f"| {row.variant} | {row.baseline} | {row.gain:+.3f} | {span} | {verdict(row)} |")
recalls = kinds.recall.loc[["mgm", "tube"]]
lines += ["", f"Without training, at a mask ratio of {ratio}, `mgm` hides {recalls['mgm']:.0%} of what moves, "
          f"and a tube {recalls['tube']:.0%}."]
Markdown("\n".join(lines))
