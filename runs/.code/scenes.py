# %% parameters
folder = "data"  # the corpus; or a folder of films with features, as in `primenb.public.feature_films`
features = ""  # the name of features there; empty for key-frames of the corpus
width = 48  # of key-frames, pixels
height = 27
ways = "augmentation nearest random adjacent soft decayed self_segmented oracle"  # of choosing positives
ours = "self_segmented"  # that is held against `nearest`, which is ShotCoL's
window = 8  # shots on either side, as ShotCoL has it
swept = "nearest random self_segmented"  # ways that are also tried with other windows
windows = "16 32"
seeds = "0 1 2"
epochs = 20
batch = 64
queue = 512
vector = 64
smallest = 0.5  # side of the smallest window that is seen of a picture, share
light = 0.4  # how far its light may be changed
rate = 0.001
scene_ways = "similar_nearest all_nearest random_films_nearest similar_random same_film augmentation"  # empty to leave scenes out
similarity = "genre synopsis cast co_watch"  # all together, and each alone
similar = 3  # films in which positives are looked for
scene_steps = 300
catalogue = ""  # folder with Wikipedia's films, to test film similarity on
most = 3000  # films of the catalogue
workers = 2  # processes
models = ""  # folder that keeps the trained models; empty to keep them only until all is done, so that an interrupted experiment goes on
date = ""  # the day, for results that are kept outside the pipeline
metrics = "runs/scenes/metrics.json"
out = "runs/scenes"

# %%
import os, shutil, time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has one core

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from primenb.clip.evaluate import paired_gain
from primenb.cluster import run_jobs
from primenb.core import root, save_metrics, seed_all
from primenb.public import wikipedia_films
from primenb.records import ShotFeatures
from primenb.scenes.boundaries import Evidence, Head, judged
from primenb.scenes.compare import FRACTIONS, HEADS, Source, examine_scenes, examine_shots, film_set, gain_over_films, judge_shots, scored, with_vectors
from primenb.scenes.contrast import ShotRun
from primenb.scenes.metrics import evaluate, guesses, pooled_ap, prior
from primenb.scenes.movies import SceneRun
from primenb.scenes.similarity import film_similarity, genre_names, judge_genres, without_words
from primenb.viz import style

# %%
started = time.perf_counter()
seed_all(0)
style()
place = lambda path: root() / os.path.expandvars(path)
out = place(out)
kept = place(models) if models else out / ".models"
kept.mkdir(parents=True, exist_ok=True)
seed_list = [int(s) for s in seeds.split()]
source = Source(os.path.expandvars(folder), features, width, height)
records, shots, parts = film_set(source)
pd.Series(dict(films=len(records), shots=len(shots), scenes=sum(r.scene_of_shot.max() + 1 for r in records), boundaries=sum(r.boundaries.sum() for r in records)))

# %%
names = [(way, window) for way in ways.split()] + [(way, int(m)) for m in windows.split() for way in swept.split()]
def run_of(way, m, seed): return ShotRun(way, window=m, epochs=epochs, batch=batch, queue=queue, vector=vector, smallest=smallest, light=light, rate=rate, seed=seed, device="cpu")
plan = [("raw", window, seed, None) for seed in seed_list] + [(way, m, seed, run_of(way, m, seed)) for seed in seed_list for way, m in names]
def folder_of(way, m, seed): return kept / f"{way}-{m}-{seed}"
jobs = [(run, source, folder_of(way, m, seed), seed) for way, m, seed, run in plan]
run_jobs([(job[2] / "marks.json", examine_shots, job) for job in jobs], workers, "encoders")
results = {(way, m, seed): examine_shots(*job) for (way, m, seed, _), job in zip(plan, jobs)}

# %%
def films_of(way, m=window, head="similarity"): return [scored(results[way, m, seed], source, head) for seed in seed_list]
everything = [("raw", window), *names]
rows = [dict(way=way, window=m, head=head, seed=seed, **evaluate(scored(results[way, m, seed], source, head), 0.5 if head == "similarity" else 1e-9)) for way, m in everything for head in HEADS for seed in seed_list]
marks = pd.DataFrame(rows)
table = marks[marks.window == window].groupby(["head", "way"], sort=False).ap.agg(["mean", "sem"])
table["mean"].unstack(0).round(3)

# %%
plain = {"durations": judge_shots(with_vectors(records, [np.zeros((len(r), 1)) for r in records]), parts, "durations")}
plain["chance"] = guesses(plain["durations"])
baselines = {name: evaluate(films) for name, films in plain.items()}
pd.DataFrame(baselines).T[["prior", "ap", "ap_macro", "f1", "miou"]].round(3)

# %%
of = {name: films_of(*name) for name in everything}
pairs = {"nearest over augmentation": (("nearest", window), ("augmentation", window)), f"{ours} over nearest": ((ours, window), ("nearest", window)), f"{ours} over raw": ((ours, window), ("raw", window)), "nearest over raw": (("nearest", window), ("raw", window))}
gains = {name: gain_over_films(of[a], of[b]) for name, (a, b) in pairs.items() if a in of and b in of}
pd.DataFrame(gains).T.round(3)

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3))
by = marks[marks["head"] == "similarity"]
for n, way in enumerate(["raw", *ways.split()]):
    values = by[(by.way == way) & (by.window == window)].ap
    axes[0].plot(values, [n] * len(values), "o", ms=3, c="C1" if way == ours else "C0"); axes[0].plot(values.mean(), n, "|", ms=14, c="k")
axes[0].axvline(prior(of["raw", window][0]), c="k", ls=":", lw=1)
axes[0].set(yticks=range(len(ways.split()) + 1), yticklabels=["raw", *ways.split()], xlabel="average precision"); axes[0].invert_yaxis()
for way in swept.split():
    curve = by[by.way == way].groupby("window").ap.agg(["mean", "sem"])
    axes[1].errorbar(curve.index, curve["mean"], curve["sem"], capsize=2, marker="o", ms=3, label=way)
axes[1].set(xlabel="window", ylabel="average precision"); axes[1].legend();

# %%
purity = pd.DataFrame([dict(way=way, window=m, seed=seed, **{when: r["curve"]["purity"][e] for when, e in (("first epoch", 0), ("last epoch", -1))}) for (way, m, seed), r in results.items() if r["curve"]])
purity.groupby(["way", "window"], sort=False)[["first epoch", "last epoch"]].mean().unstack().round(2)

# %%
few = pd.DataFrame([dict(way=way, seed=seed, fraction=float(f), ap=ap) for (way, m, seed), r in results.items() if m == window for f, ap in [*r["fractions"].items(), ("1", pooled_ap(scored(r, source)))]])
curves = few.groupby(["way", "fraction"], sort=False).ap.agg(["mean", "sem"]).unstack(0)
fig, ax = plt.subplots(figsize=(4.6, 3))
for way in dict.fromkeys(["raw", "augmentation", "nearest", ours, "oracle"]):
    if way in curves["mean"]: ax.errorbar(curves.index, curves["mean"][way], curves["sem"][way], capsize=2, marker="o", ms=3, label=way)
ax.set(xscale="log", xlabel="share of the films with labels", ylabel="average precision"); ax.legend()
curves["mean"].round(3)

# %%
sources = tuple(similarity.split())
scene_plan = [("raw", sources, 0, None)] if scene_ways else []
for seed in seed_list:
    scene_plan += [(way, sources, seed, SceneRun(way, k=similar, steps=scene_steps, seed=seed, device="cpu")) for way in scene_ways.split()]
    if scene_ways: scene_plan += [(f"similar_nearest by {by}", (by,), seed, SceneRun("similar_nearest", k=similar, steps=scene_steps, seed=seed, device="cpu")) for by in sources]
scene_jobs = [(run, source.folder, by, kept / f"scenes-{name.replace(' ', '_')}-{seed}") for name, by, seed, run in scene_plan]
run_jobs([(job[3] / "marks.json", examine_scenes, job) for job in scene_jobs], workers, "encoders of scenes")
scene_results = [(name, seed, examine_scenes(*job)) for (name, _, seed, _), job in zip(scene_plan, scene_jobs)]

# %%
read = pd.DataFrame([dict(way=name, seed=seed, task=task, score=score, chance=r["chance"][task]) for name, seed, r in scene_results for task, score in r["scores"].items()])
tasks = read.groupby(["way", "task"], sort=False).score.agg(["mean", "sem"]) if scene_ways else None
pd.concat([read.groupby("task", sort=False).chance.mean().to_frame("chance").T, tasks["mean"].unstack()])[list(dict.fromkeys(read.task))].round(3) if scene_ways else "no scenes"

# %%
def score(way, task): return read[(read.way == way) & (read.task == task)].sort_values("seed").score.to_numpy()
rivals = [way for way in scene_ways.split() if way != "similar_nearest"]
scene_gains = {way: {task: paired_gain(score("similar_nearest", task), score(way, task)) for task in dict.fromkeys(read.task)} for way in rivals} if scene_ways else {}
pd.DataFrame({way: {task: g["gain"] for task, g in by.items()} for way, by in scene_gains.items()}).T.round(3) if scene_ways else ""

# %%
def genre_table(films):
    "Held-out genres from synopsis and cast; `told` keeps words in the synopsis that name a genre."
    mute = without_words(films, genre_names(films))
    by = {"synopsis, told": film_similarity(films, synopsis=1), "synopsis": film_similarity(mute, synopsis=1), "cast": film_similarity(mute, cast=1), "synopsis and a little cast": film_similarity(mute, synopsis=1, cast=0.1)}
    return pd.DataFrame({name: judge_genres(s, films) for name, s in by.items()}).T

listed = [f for f in wikipedia_films(place(catalogue), damaged="skip") if f.genres and f.synopsis and f.cast] if catalogue else []
genres = genre_table([listed[i] for i in np.linspace(0, len(listed) - 1, min(most, len(listed))).astype(int)]) if catalogue else None
genres.round(3) if catalogue else "no catalogue was given"

# %%
of_table = lambda t: {head: {way: dict(mean=t.loc[(head, way), "mean"], sem=t.loc[(head, way), "sem"]) for way in t.loc[head].index} for head in HEADS}
clean = lambda g: {k: v for k, v in g.items() if k in ("gain", "low", "high", "seed_error", "standard_errors") and v is not None}
quarter = {"ours with a quarter of the films": few[(few.way == ours) & (few.fraction == 0.25)].ap.mean(), "raw with all": few[(few.way == "raw") & (few.fraction == 1)].ap.mean()}
found = dict(prior=prior(of["raw", window][0]), ap=of_table(table), durations=baselines["durations"].ap, chance=baselines["chance"].ap, gains={name: clean(g) for name, g in gains.items()}, labels=quarter,
             **(dict(scenes={way: {task: dict(mean=tasks.loc[(way, task), "mean"], **({} if way == "raw" else dict(sem=tasks.loc[(way, task), "sem"]))) for task in dict.fromkeys(read.task)} for way in dict.fromkeys(read.way)},
                     scene_chance=read.groupby("task").chance.mean().to_dict(), similar_nearest_over={way: {task: clean(g) for task, g in by.items()} for way, by in scene_gains.items()},
                     tasks_above_augmentation=sum(g["gain"] > 0 for g in scene_gains["augmentation"].values())) if scene_ways else {}),
             **(dict(genres=genres.T.to_dict()) if catalogue else {}))

# %%
marks.round(4).to_csv(out / "marks.csv", index=False)
few.round(4).to_csv(out / "labels.csv", index=False)
if scene_ways: read.round(4).to_csv(out / "scenes.csv", index=False)
save_metrics(place(metrics), found, seeds=seed_list, seconds=time.perf_counter() - started, sizes=dict(films=len(records), shots=len(shots), epochs=epochs, trainings=len(plan) + len(scene_plan)), **(dict(date=date) if date else {}))
if not models: shutil.rmtree(kept)
