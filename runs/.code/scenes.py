# %% parameters
folder = "data"  # a corpus; or a folder of films with features, as in `primenb.public.feature_films`
features = ""  # the name of features there; empty for key-frames of the corpus
width = 48  # of key-frames, pixels
height = 27
raw = "raw standardised"  # the raw vectors that are the yardstick: see `primenb.scenes.compare.RAW`
colours = ""  # the name of features that are colours, to judge what `find_scenes` does by itself
ways = "augmentation nearest random adjacent soft decayed self_segmented oracle"  # of choosing positives
ours = "self_segmented"  # that is held against `nearest`, which is ShotCoL's
strict = ""  # ways that are also tried with encoders that never saw the films they are judged on
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
scene_seeds = "0 1 2"  # seed 0 asks about the first third of the films, 1 about the second, and so on
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
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has one core

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats

from primenb.clip.evaluate import paired_gain
from primenb.cluster import run_jobs
from primenb.core import root, save_metrics, seed_all
from primenb.public import feature_films, wikipedia_films
from primenb.scenes.boundaries import Evidence, Fused, Head
from primenb.scenes.compare import FRACTIONS, HEADS, RAW, Source, examine_scenes, examine_shots, film_set, judge_shots, raw_vectors, scored, with_vectors
from primenb.scenes.contrast import ShotRun
from primenb.scenes.find import ZeroShot
from primenb.scenes.metrics import evaluate, guesses, paired_bootstrap, pooled_ap, prior
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
names = [(way, window) for way in [*RAW, "untrained", *ways.split()]] + [(way, int(m)) for m in windows.split() for way in swept.split()]
unseen, bare = replace(source, unlabelled="train"), [*RAW, "untrained"]
def run_of(way, m, seed):
    if way in RAW: return way
    if way == "untrained": return ShotRun(epochs=0, vector=vector, seed=seed, device="cpu")
    return ShotRun(way, window=m, epochs=epochs, batch=batch, queue=queue, vector=vector, smallest=smallest, light=light, rate=rate, seed=seed, device="cpu")
plan = [(source, way, m, seed) for seed in seed_list for way, m in names] + [(unseen, way, window, seed) for seed in seed_list for way in ([*bare, *strict.split()] if strict else [])]
def folder_of(seen, way, m, seed): return kept / f"{seen.unlabelled}-{way.replace(' ', '_')}-{m}-{seed}"
jobs = [(run_of(way, m, seed), seen, folder_of(seen, way, m, seed), seed) for seen, way, m, seed in plan]
run_jobs([(job[2] / "marks.json", examine_shots, job) for job in jobs], workers, "encoders")
found = {key: examine_shots(*job) for key, job in zip(plan, jobs)}
results = {key[1:]: result for key, result in found.items() if key[0] == source}

# %%
def films_of(way, m=window, head="similarity"): return [scored(results[way, m, seed], source, head) for seed in seed_list]
rows = [dict(unlabelled=seen.unlabelled, way=way, window=m, head=head, seed=seed, **evaluate(scored(result, seen, head), HEADS[head].threshold)) for (seen, way, m, seed), result in found.items() for head in HEADS]
marks = pd.DataFrame(rows)
table = marks[marks.window == window].groupby(["unlabelled", "head", "way"], sort=False).ap.agg(["mean", "sem"])
table["mean"].unstack([0, 1]).round(3)

# %%
plain = {"durations": judge_shots(with_vectors(records, [np.zeros((len(r), 1)) for r in records]), parts, Head(Evidence("durations")))}
plain["chance"] = guesses(plain["durations"])
plain["vectors and durations"] = judge_shots(with_vectors(records, raw_vectors(shots, raw)), parts, Fused((HEADS["similarity"], Head(Evidence("durations")))))
if colours: plain["colours alone"] = judge_shots([r for r in feature_films(source.folder) if colours in r.features], [([], range(len(records)))], ZeroShot(colours))
baselines = {name: evaluate(films, 1e-9 if name == "colours alone" else 0.5) for name, films in plain.items()}
pd.DataFrame(baselines).T[["prior", "ap", "ap_macro", "f1", "miou"]].round(3)

# %%
pairs = [("nearest", "augmentation"), (ours, "nearest"), (ours, "augmentation"), (ours, "adjacent"), ("adjacent", "nearest"), ("nearest", raw), (ours, raw), (ours, "untrained")]
def gain(a, b): return dict(paired_bootstrap(a, b), seed_error=stats.sem([pooled_ap(x) - pooled_ap(y) for x, y in zip(a, b)]))
def gains_of(seen):
    of = {way: [scored(found[seen, way, window, seed], seen) for seed in seed_list] for way in dict.fromkeys(key[1] for key in found if key[0] == seen and key[2] == window)}
    return {f"{a} over {b}": gain(of[a], of[b]) for a, b in pairs if a in of and b in of}
gains = {seen.unlabelled: gains_of(seen) for seen in ([source, unseen] if strict else [source])}
pd.concat({name: pd.DataFrame(g).T for name, g in gains.items()}).round(3)

# %%
fig, axes = plt.subplots(1, 2 if swept else 1, figsize=(9 if swept else 4.6, 3), squeeze=False)
axes = axes[0]
by = marks[(marks["head"] == "similarity") & (marks.unlabelled == source.unlabelled)]
shown = [raw, "untrained", *ways.split()]
for n, way in enumerate(shown):
    values = by[(by.way == way) & (by.window == window)].ap
    axes[0].plot(values, [n] * len(values), "o", ms=3, c="C1" if way == ours else "C0"); axes[0].plot(values.mean(), n, "|", ms=14, c="k")
axes[0].axvline(prior(films_of(raw)[0]), c="k", ls=":", lw=1)
axes[0].set(yticks=range(len(shown)), yticklabels=shown, xlabel="average precision"); axes[0].invert_yaxis()
for way in swept.split():
    curve = by[by.way == way].groupby("window").ap.agg(["mean", "sem"])
    axes[1].errorbar(curve.index, curve["mean"], curve["sem"], capsize=2, marker="o", ms=3, label=way)
if swept: axes[1].set(xlabel="window", ylabel="average precision"); axes[1].legend()

# %%
purity = pd.DataFrame([dict(way=way, window=m, seed=seed, **{when: r["curve"]["purity"][e] for when, e in (("first epoch", 0), ("last epoch", -1))}) for (way, m, seed), r in results.items() if r["curve"]])
purity.groupby(["way", "window"], sort=False)[["first epoch", "last epoch"]].mean().unstack().round(2)

# %%
few = pd.DataFrame([dict(way=way, seed=seed, fraction=float(f), ap=ap) for (way, m, seed), r in results.items() if m == window for f, ap in [*r["fractions"].items(), ("1", pooled_ap(scored(r, source)))]])
few["films"] = (few.fraction * len(parts[0][0])).round().clip(lower=1).astype(int)
few = few.drop_duplicates(["way", "seed", "films"])
curves = few.groupby(["way", "films"], sort=False).ap.agg(["mean", "sem"]).unstack(0)
nothing = pooled_ap(films_of(raw, head="grouping")[0])
fig, ax = plt.subplots(figsize=(4.6, 3))
ax.axhline(nothing, c="k", ls=":", lw=1, label=f"{raw}, no label")
for way in dict.fromkeys([raw, "augmentation", "nearest", ours, "oracle"]):
    if way in curves["mean"]: ax.errorbar(curves.index, curves["mean"][way], curves["sem"][way], capsize=2, marker="o", ms=3, label=way)
ax.set(xscale="log", xlabel="films with labels", ylabel="average precision"); ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
curves["mean"].round(3)

# %%
sources = tuple(similarity.split())
scene_seed_list = [int(s) for s in scene_seeds.split()]
scene_plan = [("raw", sources, seed, None) for seed in scene_seed_list] if scene_ways else []
for seed in scene_seed_list:
    scene_plan += [(way, sources, seed, SceneRun(way, k=similar, steps=scene_steps, seed=seed, device="cpu")) for way in scene_ways.split()]
    if scene_ways: scene_plan += [(f"similar_nearest by {by}", (by,), seed, SceneRun("similar_nearest", k=similar, steps=scene_steps, seed=seed, device="cpu")) for by in sources]
scene_jobs = [(run, source.folder, by, kept / f"scenes-{name.replace(' ', '_')}-{seed}", seed) for name, by, seed, run in scene_plan]
run_jobs([(job[3] / "marks.json", examine_scenes, job) for job in scene_jobs], workers, "encoders of scenes")
scene_results = [(name, seed, examine_scenes(*job)) for (name, _, seed, _), job in zip(scene_plan, scene_jobs)]

# %%
read = pd.DataFrame([dict(way=name, seed=seed, task=task, score=score, chance=r["chance"][task]) for name, seed, r in scene_results for task, score in r["scores"].items()])
tasks = read.groupby(["way", "task"], sort=False).score.agg(["mean", "sem"]) if scene_ways else None
pd.concat([read.groupby("task", sort=False).chance.mean().to_frame("chance").T, tasks["mean"].unstack()])[list(dict.fromkeys(read.task))].round(3) if scene_ways else "no scenes"

# %%
def score(way, task): return read[(read.way == way) & (read.task == task)].sort_values("seed").score.to_numpy()
rivals = ["raw", *(way for way in scene_ways.split() if way != "similar_nearest")]
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
of_table = lambda t: {head: {way: dict(mean=row["mean"], sem=row["sem"]) for way, row in t.loc[head].iterrows()} for head in HEADS}
clean = lambda g: {k: v for k, v in g.items() if k in ("gain", "low", "high", "seed_error", "standard_errors") and v is not None}
def few_of(way, share): return few[(few.way == way) & (few.fraction == share)].sort_values("seed").ap.to_numpy()
quarter = {f"{ours} with a quarter of the films": few_of(ours, 0.25).mean(), f"{raw} with all": few_of(raw, 1).mean(), f"{raw} without labels": nothing, "gain": clean(paired_gain(few_of(ours, 0.25), few_of(raw, 1)))}
kept_numbers = dict(prior=prior(films_of(raw)[0]), ap={seen: of_table(table.loc[seen]) for seen in gains}, plain={name: dict(ap=b.ap, f1=b.f1, miou=b.miou) for name, b in baselines.items()},
             gains={seen: {name: clean(g) for name, g in gs.items()} for seen, gs in gains.items()}, labels=quarter,
             **(dict(genre_of_scenes={"chance": read[read.task == "genre"].chance.mean()} | {way: dict(mean=tasks.loc[(way, "genre"), "mean"], sem=tasks.loc[(way, "genre"), "sem"]) for way in dict.fromkeys(read.way)},
                     similar_nearest_over={way: dict(genre=clean(by["genre"]), tasks_above=sum(g["gain"] > 0 for g in by.values()), tasks_below=sum(g["gain"] < 0 for g in by.values())) for way, by in scene_gains.items()}) if scene_ways else {}),
             **(dict(genres=genres.T.to_dict()) if catalogue else {}))

# %%
marks.round(4).to_csv(out / "marks.csv", index=False)
few.round(4).to_csv(out / "labels.csv", index=False)
if scene_ways: read.round(4).to_csv(out / "scenes.csv", index=False)
save_metrics(place(metrics), kept_numbers, seeds=seed_list, seconds=time.perf_counter() - started, sizes=dict(films=len(records), shots=len(shots), epochs=epochs, trainings=len(plan) + len(scene_plan)), **(dict(date=date) if date else {}))
if not models: shutil.rmtree(kept)
