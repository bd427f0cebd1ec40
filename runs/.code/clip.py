# %% parameters
data = "stills"  # the corpus' stills, or a folder of labelled shards, such as $PRIMENB_REAL/cifar10
folder = "data"  # of the corpus
noises = ["0.0", "0.4"]  # shares of exchanged captions; for labelled shards also labels, such as human_worse
main_noise = "0.4"  # the noise at which all methods are compared
methods = ["clip", "label_smoothing", "albef", "psd_self", "psd_ema", "psd_mismatch", "oracle"]  # at the main noise
core_methods = ["clip", "psd_mismatch"]  # the methods that are compared at every noise, size and length
under_test = ["psd_mismatch"]  # methods compared with clip; the first is drawn
train_sizes = []  # smaller numbers of training images, at the main noise
epoch_counts = []  # other numbers of epochs, at the main noise
seeds = [0, 1, 2]
num_images = 2000  # training images; 0 for all
image_size = 32  # side, pixels
epochs = 24
batch_size = 128  # pairs of a step
lr = 0.002  # highest learning rate
mixed_precision = "no"  # or "bf16", where the processor has it: without, it is many times slower
warmup = 0.055  # share of all steps over which the learning rate rises
min_crop = 0.9  # smallest random crop in training, share of the area
workers = 2  # processes
models = ""  # folder that keeps the trained models; empty to keep them only until all is done
date = ""  # the day, for results that are kept outside the pipeline; in the pipeline it would make every run differ
headlines = []  # names of the numbers that are compared after a rerun
out = "runs/clip"  # where results go

# %%
import os, shutil, time
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has one core

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown

from primenb.clip.evaluate import class_embeddings, class_probabilities, compare_robustness
from primenb.clip.evaluate import draw_prediction, draw_robustness
from primenb.clip.model import to_rgb
from primenb.clip.protocol import load_clip_data, run_clip
from primenb.clip.train import ClipRun
from primenb.core import root, seed_all
from primenb.learn.jobs import run_jobs
from primenb.learn.runs import load
from primenb.learn.stats import paired_gain
from primenb.results import save_results
from primenb.viz import style

# %%
started = time.perf_counter()
seed_all(0)
style()
def place(path): return root() / os.path.expandvars(path)
out = place(out)
kept = place(models) if models else out / ".models"
drawn = under_test[0]

# %%
every = load_clip_data(data, "class", folder)
total = len(every.splits["train"])
full_size = num_images or total
shared = dict(data=data, folder=folder, image_size=image_size, min_crop=min_crop, device="cpu")
base = ClipRun(**shared, num_images=num_images, epochs=epochs, batch_size=batch_size, lr=lr, warmup=warmup,
               mixed_precision=mixed_precision)
steps = full_size // batch_size

def with_seeds(methods, **changes):
    "A run for each method and seed."
    return [replace(base, method=method, seed=seed, **changes) for method in methods for seed in seeds]

runs = []
for noise in noises: runs += with_seeds(methods if noise == main_noise else core_methods, noise=noise)
for size in train_sizes: runs += with_seeds(core_methods, noise=main_noise, num_images=size, steps_per_epoch=steps)
for count in epoch_counts: runs += with_seeds(core_methods, noise=main_noise, epochs=count)

# %%
def folder_of(run): return kept / f"{run.name}-{run.epochs}"
run_jobs([(folder_of(run) / "run.json", run_clip, (run, folder_of(run))) for run in runs], workers, "trainings")
results = {run: run_clip(run, folder_of(run)) for run in runs}
same = [run for run in runs if (run.num_images, run.epochs) == (num_images, epochs)]  # of the full size and length

def result_of(noise, method):
    "Run and curve of each seed at the full size and length."
    return [(run, results[run]["curve"]) for run in same if (run.noise, run.method) == (noise, method)]

# %%
SIDES = ("image_to_text", "text_to_image")
MEASURES = [
    "test_accuracy", "renditions_accuracy", *(f"{s}_r1" for s in SIDES), *(f"{s}_map" for s in SIDES), "linear_probe"
]

def settings_of(run):
    "What tells the runs apart."
    size = run.num_images or total
    return dict(noise=run.noise, method=run.method, num_images=size, epochs=run.epochs, seed=run.seed)

records = []
for run, result in results.items():
    best = int(np.argmax(result["curve"]["validation_accuracy"]))
    for which, epoch in (("best", best), ("last", run.epochs - 1)):
        values = {m: result[which][m] for m in MEASURES if m in result[which]}
        records.append(settings_of(run) | dict(which=which, epoch=1 + epoch) | values)
rows = pd.DataFrame(records)
MEASURES = [m for m in MEASURES if m in rows]
whole = rows[(rows.num_images == full_size) & (rows.epochs == epochs)]
table = whole.groupby(["noise", "which", "method"], sort=False)[MEASURES + ["epoch"]].agg(["mean", "sem"])
table.xs("mean", axis=1, level=1).round(3)

# %%
def gain(noise, which, measure, method=drawn, size=full_size, count=epochs):
    "The gain of a method over clip, paired by seed."
    part = rows[(rows.noise == noise) & (rows.which == which) & (rows.num_images == size) & (rows.epochs == count)]
    def values(method): return part[part.method == method].sort_values("seed")[measure].to_numpy()
    return paired_gain(values(method), values("clip"))

gains = []
for noise in noises:
    for method in under_test:
        for which in ("best", "last"):
            for m in MEASURES:
                gains.append(dict(noise=noise, method=method, which=which, measure=m, **gain(noise, which, m, method)))
gains = pd.DataFrame(gains)
gains.drop(columns=["p", "n"]).round(3)

# %%
fig, axes = plt.subplots(1, len(noises), figsize=(4.2 * len(noises), 3), sharey=True, squeeze=False)
for ax, noise in zip(axes[0], noises):
    for method in methods:
        curves = np.array([curve["test_accuracy"] for _, curve in result_of(noise, method)])
        if len(curves): ax.plot(range(1, epochs + 1), curves.mean(0), label=method, lw=2 if method == drawn else 1)
    ax.set(title=f"noise {noise}", xlabel="epoch", ylabel="zero-shot accuracy")
axes[0, 0].legend(fontsize=7);

# %%
def points(method, noise=main_noise):
    "Accuracies on ordinary images and on renditions of all epochs, and the seed of each."
    found = result_of(noise, method)
    x, y = (np.concatenate([curve[f"{name}_accuracy"] for _, curve in found]) for name in ("test", "renditions"))
    good = x > 2 / len(every.prompts)  # an untrained model shows nothing
    return x[good], y[good], np.repeat([run.seed for run, _ in found], epochs)[good]

def enough(noise): return all(len(points(method, noise)[0]) > 2 for method in ("clip", drawn))

robustness = {}
if "renditions_accuracy" in rows and all(enough(noise) for noise in noises):
    line = points("clip")
    robustness = {noise: compare_robustness(*points("clip", noise), *points(drawn, noise)) for noise in noises}
    draw_robustness(*line[:2], {drawn: points(drawn)[:2]}, runs=line[2], name="clip")

# %%
def gains_over(values, name):
    "The gain in accuracy at the main noise for each size or number of epochs."
    found = {}
    for n in values:
        found[n] = {which: gain(main_noise, which, "test_accuracy", **{name: n}) for which in ("best", "last")}
    return found

by_size = gains_over(train_sizes + [full_size], "size")
by_count = gains_over(sorted(epoch_counts + [epochs]), "count")

def draw_gains(ax, by, label):
    for which in ("best", "last"):
        found = [g[which] for g in by.values()]
        points, errors = ([100 * g[name] for g in found] for name in ("gain", "standard_error"))
        ax.errorbar(list(by), points, errors, label=f"{which} epoch", capsize=3, marker="o")
    ax.axhline(0, color="grey", lw=0.5)
    ax.set(xlabel=label, ylabel="gain over clip, points")

# %%
if train_sizes or epoch_counts:
    fig, axes = plt.subplots(1, 2, figsize=(8, 2.6), sharey=True)
    draw_gains(axes[0], by_size, "training images")
    draw_gains(axes[1], by_count, "epochs")
    axes[0].set(xscale="log")
    axes[0].legend();

# %%
part = rows[(rows.noise == main_noise) & (rows.num_images == full_size) & rows.method.isin(core_methods)]
over_counts = part.groupby(["which", "epochs", "method"]).test_accuracy.mean().unstack()
over_counts.round(3)

# %%
AGREEMENT = [
    f"{kind}_{measure}_rows" for measure in ("biserial", "spearman") for kind in ("soft", "hard")
] + ["wrong_pair_auroc"]
records = []
for run in same:
    if run.noise != main_noise: continue
    for which in ("best", "last"):
        values = {a: results[run][which].get(a, np.nan) for a in AGREEMENT}
        records.append(dict(method=run.method, which=which) | values)
agreement = pd.DataFrame(records).groupby(["method", "which"], sort=False).mean()
agreement.round(3)

# %%
split = "renditions" if "renditions" in every.splits else "test"
names = [prompts[0] for prompts in every.prompts]
n = int(np.random.default_rng(1).integers(len(every.splits[split])))
image = every.splits[split][n].source

def probabilities(method):
    "The prediction of the first seed's model."
    clip = load(folder_of(result_of(main_noise, method)[0][0]))
    scale = float(clip.model.logit_scale.detach().exp())
    return class_probabilities(clip.encode_images([image]), class_embeddings(clip, every.prompts), scale)[0]

predictions = {method: probabilities(method) for method in core_methods}
draw_prediction(np.asarray(to_rgb(image)), predictions, names, true=every.labels[split][n]);

# %%
def short(g):
    return {name: None if pd.isna(g[name]) else g[name] for name in ("gain", "standard_errors", "low", "high")}

def nested(table, keys, leaf):
    "A table as dictionaries, one level for each key."
    found = {}
    for row in table.to_dict("records"):
        inner = found
        for key in keys[:-1]: inner = inner.setdefault(row[key], {})
        inner[row[keys[-1]]] = leaf(row)
    return found

by = whole.groupby(["noise", "method", "which"], sort=False).test_accuracy
means = by.agg(["mean", "sem"]).fillna(0).reset_index()
def mean_and_error(row): return dict(mean=row["mean"], sem=row["sem"])
found = dict(accuracy=nested(means, ["noise", "method", "which"], mean_and_error))
found["gain"] = nested(gains, ["noise", "method", "which", "measure"], short)
found["robustness"] = {}
for noise, r in robustness.items():
    found["robustness"][noise] = {k: r[k] for k in ("effective", "low", "high", "outside")}
found["num_images"] = {n: {which: short(g) for which, g in by.items()} for n, by in by_size.items()}
found["epochs"] = {}
for n, by in by_count.items():
    found["epochs"][n] = {which: short(by[which]) | over_counts.loc[(which, n)].to_dict() for which in by}
found["targets"] = nested(
    agreement.reset_index(), ["method", "which"], lambda row: {a: row[a] for a in AGREEMENT if not np.isnan(row[a])}
)

# %%
out.mkdir(parents=True, exist_ok=True)
table.round(4).to_csv(out / "summary.csv")
rows.round(4).to_csv(out / "runs.csv", index=False)
records = []
for run, result in results.items():
    curve = {k: v for k, v in result["curve"].items() if k.endswith("_accuracy") or k == "distilled"}
    for e in range(run.epochs):
        records.append(settings_of(run) | dict(epoch=e + 1) | {k: v[e] for k, v in curve.items()})
curves = pd.DataFrame(records)
curves.round(4).to_csv(out / "curves.csv", index=False)
main = curves[(curves.noise == main_noise) & (curves.num_images == full_size)]
by_epoch = main.pivot_table(index="epoch", columns="method", values="test_accuracy", sort=False)
by_epoch.round(4).to_csv(out / "learning.csv")  # for `dvc plots`

# %%
trained = sum(result["seconds"] for result in results.values()) / workers
seconds = max(time.perf_counter() - started, trained)
sizes = dict(num_images=full_size, trainings=len(runs), epochs=epochs)
record = dict(seeds=seeds, sizes=sizes) | (dict(date=date) if date else {})
save_results(out, found, headlines, seconds=seconds, **record)
if not models: shutil.rmtree(kept)

# %%
def sentence(noise, method, which):
    "The result of a method at one noise, in words."
    accuracy_gains = gains[gains.measure == "test_accuracy"].set_index(["noise", "method", "which"])
    g = accuracy_gains.loc[(noise, method, which)]
    if pd.isna(g.low): verdict = "no interval"
    else: verdict = "better" if g.low > 0 else "worse" if g.high < 0 else "no clear difference"
    reached = found["accuracy"][noise]
    interval = "" if verdict == "no interval" else f" [{100 * g.low:+.1f}, {100 * g.high:+.1f}]"
    numbers = ", ".join(f"`{m}` {reached[m][which]['mean']:.3f}" for m in (method, "clip"))
    difference = f"{100 * g.gain:+.1f} points{interval} over {len(seeds)} seeds"
    return f"- noise {noise}, {which} epoch: {numbers}; {difference}: {verdict}"

Markdown("\n".join(sentence(n, m, w) for n in noises for m in under_test for w in ("best", "last")))
