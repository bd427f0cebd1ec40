# %% parameters
data = "stills"  # the corpus' stills, or a folder of labelled shards, such as $PRIMENB_REAL/cifar10
folder = "data"  # of the corpus
noises = "0.0 0.4"  # shares of captions that are exchanged; for labelled shards also labels, such as human_worse
worst = "0.4"  # the noise that all methods are compared at
methods = "clip label_smoothing albef psd_self psd_ema psd_outdone oracle"  # compared at the worst noise
few = "clip psd_outdone"  # the methods that are compared at every noise and size
ours = "psd_outdone"  # methods held against clip; the first is drawn
sizes = ""  # smaller numbers of training pictures, at the worst noise
lengths = ""  # other numbers of epochs, at the worst noise
seeds = "0 1 2"
pictures = 2000  # training pictures; 0 for all
image_size = 32  # side, pixels
epochs = 24
batch = 128  # pairs of a step
rate = 0.002  # highest learning rate
crop = 0.9  # smallest part of a picture that training sees
workers = 2  # processes
models = ""  # folder that keeps the trained models; empty to keep them only until all is done, so that an interrupted experiment goes on
date = ""  # the day, for results that are kept outside the pipeline; in the pipeline it would make every run differ
metrics = "runs/clip/metrics.json"  # where the metrics go
out = "runs/clip"  # where all else goes

# %%
import os, shutil, time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has one core

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from primenb.clip.evaluate import class_probabilities, class_vectors, compare_families, draw_prediction, draw_robustness, paired_gain
from primenb.clip.model import to_rgb
from primenb.clip.train import Run, load_task, load_trained, train
from primenb.cluster import run_jobs
from primenb.core import root, save_metrics, seed_all
from primenb.viz import style

# %%
started = time.perf_counter()
seed_all(0)
style()
place = lambda path: root() / os.path.expandvars(path)
out = place(out)
kept = place(models) if models else out / ".models"
seed_list = [int(s) for s in seeds.split()]
claimed = ours.split()
ours = claimed[0]

# %%
base = Run(data=data, folder=folder, pictures=pictures, image_size=image_size, epochs=epochs, batch=batch, rate=rate, crop=crop, device="cpu")
total = len(load_task(data, "class", folder).splits["train"])
steps = (pictures or total) // batch

def planned():
    "Every run of this experiment."
    for noise in noises.split():
        for method in methods.split() if noise == worst else few.split():
            yield from (replace(base, noise=noise, method=method, seed=s) for s in seed_list)
    for size in map(int, sizes.split()):
        for method in few.split(): yield from (replace(base, noise=worst, method=method, seed=s, pictures=size, steps=steps) for s in seed_list)
    for length in map(int, lengths.split()):
        for method in few.split(): yield from (replace(base, noise=worst, method=method, seed=s, epochs=length) for s in seed_list)

runs = list(planned())
folder_of = lambda run: kept / f"{run.name}-{run.epochs}"
run_jobs([(folder_of(run) / "result.json", train, (run, folder_of(run))) for run in runs], workers, "trainings")
results = {run: train(run, folder_of(run)) for run in runs}
same = [run for run in runs if (run.pictures, run.epochs) == (pictures, epochs)]  # of the full number of pictures and epochs

# %%
MEASURES = ["test_accuracy", "renditions_accuracy", "image_to_text_r1", "text_to_image_r1", "image_to_text_map", "text_to_image_map", "linear_probe"]
rows = pd.DataFrame([dict(noise=run.noise, method=run.method, pictures=run.pictures or total, epochs=run.epochs, seed=run.seed, which=which, epoch=1 + (int(np.argmax(r["curve"]["validation_accuracy"])) if which == "best" else run.epochs - 1),
                          **{m: r[which][m] for m in MEASURES if m in r[which]}) for run, r in results.items() for which in ("best", "last")])
MEASURES = [m for m in MEASURES if m in rows]
whole = rows[(rows.pictures == (pictures or total)) & (rows.epochs == epochs)]
table = whole.groupby(["noise", "which", "method"], sort=False)[MEASURES + ["epoch"]].agg(["mean", "sem"])
table.xs("mean", axis=1, level=1).round(3)

# %%
def gain(noise, which, measure, method=ours, size=pictures or total, length=epochs):
    "What a method has over clip, seed by seed."
    pick = lambda m: rows[(rows.noise == noise) & (rows.which == which) & (rows.method == m) & (rows.pictures == size) & (rows.epochs == length)].sort_values("seed")[measure].to_numpy()
    return paired_gain(pick(method), pick("clip"))

gains = {noise: {method: {which: {m: gain(noise, which, m, method) for m in MEASURES} for which in ("best", "last")} for method in claimed} for noise in noises.split()}
flat = [dict(noise=n, method=method, which=w, measure=m, **g) for n, a in gains.items() for method, b in a.items() for w, c in b.items() for m, g in c.items()]
pd.DataFrame(flat)[["noise", "method", "which", "measure", "gain", "standard_error", "standard_errors", "low", "high"]].round(3)

# %%
fig, axes = plt.subplots(1, len(noises.split()), figsize=(4.2 * len(noises.split()), 3), sharey=True, squeeze=False)
for ax, noise in zip(axes[0], noises.split()):
    for method in methods.split():
        curves = np.array([results[run]["curve"]["test_accuracy"] for run in same if (run.noise, run.method) == (noise, method)])
        if len(curves): ax.plot(range(1, epochs + 1), curves.mean(0), label=method, lw=2 if method == ours else 1)
    ax.set(title=f"noise {noise}", xlabel="epoch", ylabel="zero-shot accuracy")
axes[0, 0].legend(fontsize=7);

# %%
def family(method, noise=worst):
    "Accuracies on ordinary pictures and on renditions of all epochs, and the seed of each."
    of = [(run.seed, results[run]["curve"]) for run in same if (run.noise, run.method) == (noise, method)]
    x, y = (np.concatenate([c[name] for _, c in of]) for name in ("test_accuracy", "renditions_accuracy"))
    good = x > 2 / len(load_task(data, "class", folder).prompts)  # untrained models tell nothing
    return x[good], y[good], np.repeat([s for s, _ in of], epochs)[good]

robustness = {}
if "renditions_accuracy" in rows and all(len(family(method, noise)[0]) > 2 for noise in noises.split() for method in ("clip", ours)):
    line = family("clip")
    robustness = {noise: compare_families(*family("clip", noise), *family(ours, noise)) for noise in noises.split()}
    draw_robustness(*line[:2], {ours: family(ours)[:2]}, runs=line[2], name="clip")

# %%
def gains_over(values, **name):
    "The gain in accuracy at the worst noise for each size or length."
    return {n: {w: gain(worst, w, "test_accuracy", **{name["of"]: n}) for w in ("best", "last")} for n in values}

by_size = gains_over([int(s) for s in sizes.split()] + [pictures or total], of="size")
by_length = gains_over(sorted([int(s) for s in lengths.split()] + [epochs]), of="length")
if sizes or lengths:
    fig, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True)
    for ax, by, label in zip(axes, (by_size, by_length), ("training pictures", "epochs")):
        for w in ("best", "last"): ax.errorbar(list(by), [100 * g[w]["gain"] for g in by.values()], [100 * g[w]["standard_error"] for g in by.values()], label=f"{w} epoch", capsize=3, marker="o")
        ax.axhline(0, color="grey", lw=0.5)
        ax.set(xlabel=label, ylabel="gain over clip, points")
    axes[0].set(xscale="log"); axes[0].legend();

# %%
over_lengths = rows[(rows.noise == worst) & (rows.pictures == (pictures or total)) & rows.method.isin(few.split())].groupby(["which", "epochs", "method"]).test_accuracy.mean().unstack()
over_lengths.round(3)

# %%
AGREEMENT = ["soft_biserial_rows", "hard_biserial_rows", "soft_spearman_rows", "hard_spearman_rows", "wrong_pair_auroc"]
targets = pd.DataFrame([dict(method=run.method, which=which, **{a: r[which].get(a, np.nan) for a in AGREEMENT}) for run in same if run.noise == worst for r in [results[run]] for which in ("best", "last")])
agreement = targets.groupby(["method", "which"], sort=False).mean()
agreement.round(3)

# %%
task = load_task(data, "class", folder)
split = "renditions" if "renditions" in task.splits else "test"
names = [p[0] for p in task.prompts]
n = int(np.random.default_rng(1).integers(len(task.splits[split])))
chosen = task.splits[split][n]
def chances(method):
    run = next(run for run in same if (run.noise, run.method, run.seed) == (worst, method, seed_list[0]))
    clip = load_trained(run, folder_of(run))
    return class_probabilities(clip.encode_images([chosen.source]), class_vectors(clip, task.prompts), float(clip.model.logit_scale.detach().exp()))[0]
draw_prediction(np.asarray(to_rgb(chosen.source)), {m: chances(m) for m in few.split()}, names, true=names[task.labels[split][n]]);

# %%
accuracy = {noise: {m: {w: whole[(whole.noise == noise) & (whole.method == m) & (whole.which == w)].test_accuracy.mean() for w in ("best", "last")} for m in dict.fromkeys(whole[whole.noise == noise].method)} for noise in noises.split()}
short = lambda g: {name: g[name] for name in ("gain", "standard_errors", "low", "high")}
found = dict(accuracy=accuracy,
             gain={n: {method: {w: {m: short(g) for m, g in of.items()} for w, of in by.items()} for method, by in of_noise.items()} for n, of_noise in gains.items()},
             robustness={n: {k: r[k] for k in ("effective", "low", "high", "outside")} for n, r in robustness.items()},
             pictures={n: {w: short(g) for w, g in by.items()} for n, by in by_size.items()},
             epochs={n: {w: {**short(by[w]), **over_lengths.loc[(w, n)].to_dict()} for w in by} for n, by in by_length.items()},
             targets={m: {w: agreement.loc[(m, w)].dropna().to_dict() for w in ("best", "last")} for m in dict.fromkeys(agreement.index.get_level_values(0))})

# %%
out.mkdir(parents=True, exist_ok=True)
table.round(4).to_csv(out / "summary.csv")
rows.round(4).to_csv(out / "runs.csv", index=False)
epochs_of = lambda run, r: ({**dict(noise=run.noise, method=run.method, pictures=run.pictures or total, epochs=run.epochs, seed=run.seed, epoch=e + 1), **{k: v[e] for k, v in r["curve"].items()}} for e in range(run.epochs))
pd.DataFrame([row for run, r in results.items() for row in epochs_of(run, r)]).round(4).to_csv(out / "curves.csv", index=False)
save_metrics(place(metrics), found, seconds=max(time.perf_counter() - started, sum(r["seconds"] for r in results.values()) / workers), seeds=seed_list, sizes=dict(pictures=pictures or total, trainings=len(runs), epochs=epochs), **(dict(date=date) if date else {}))
if not models: shutil.rmtree(kept)
