# %% parameters
folder = "data"  # a corpus; or a folder of films with features, as in `primenb.data.public.feature_films`
features = ""  # the name of features there; empty for key-frames of the corpus
width = 48  # of key-frames, pixels
height = 27
raw = "raw standardised"  # the baseline: one of `primenb.scenes.protocol.RAW_FEATURES`
colours = ""  # the name of features that are colours, to evaluate what `find_scenes` does by itself; empty for none
positives = ["augmentation", "nearest", "random", "adjacent", "soft", "decayed", "self_segmented", "oracle"]
under_test = "decayed"  # compared with `nearest`, which is ShotCoL's
strict = []  # kinds of positives that are also tried with encoders that never saw the evaluated films
window = 8  # shots on either side, as in ShotCoL
swept = ["nearest", "random", "self_segmented"]  # kinds that are also tried with other windows
windows = [16, 32]  # those windows
seeds = [0, 1, 2, 3]  # one after the other: encoders of all of them are also put side by side
beside = 0.5  # weight of the baseline's features beside those encoders, which have 1 together
epochs = 20
batch_size = 64
queue = 64  # keys; as many as a step has: no other negatives
embed_dim = 64
min_crop = 0.5  # side of the smallest crop, share of the image's
color_jitter = 0.4  # how far brightness, contrast and each colour may be scaled
lr = 0.001
scene_positives = [
    "similar_nearest", "all_nearest", "random_films_nearest", "similar_random", "same_film", "augmentation"]
similarity = ["genre", "synopsis", "cast", "co_watch"]  # sources of film similarity: all together, and each alone
scene_seeds = [0, 1, 2]  # seed 0 evaluates the first third of the films, 1 the second, and so on
similar = 3  # films in which positives are searched
scene_steps = 300
catalogue = ""  # folder with Wikipedia's films, to evaluate film similarity; empty for none
most = 3000  # films of the catalogue
workers = 2  # processes
models = ""  # folder that keeps the trained models; empty to keep them only until all is done
date = ""  # the day, for results that are kept outside the pipeline
headlines = []  # names of the numbers that are compared after a rerun
out = "runs/scenes"  # where results go

# %%
import os, shutil, time
from dataclasses import replace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has one core

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from scipy import stats

from primenb.core import root, seed_all
from primenb.data.public import feature_films, wikipedia_films
from primenb.learn.jobs import run_jobs
from primenb.learn.stats import paired_gain
from primenb.results import save_results
from primenb.scenes.boundaries import Evidence, FusedHead, Head, score_held_out
from primenb.scenes.evaluate import evaluate_boundaries, paired_bootstrap, pooled_ap, prior, random_scores
from primenb.scenes.find import ZeroShot
from primenb.scenes.movies import SceneRun
from primenb.scenes.protocol import (
    RAW_FEATURES, SHOT_HEADS, FilmSource, evaluate_members, evaluate_scene_run, evaluate_shot_run, film_set,
    raw_features, scored_films, with_embeddings)
from primenb.scenes.similarity import evaluate_genres, film_similarity, genre_names, without_words
from primenb.scenes.train import ShotRun
from primenb.viz import style

# %%
started = time.perf_counter()
seed_all(0)
style()
place = lambda path: root() / os.path.expandvars(path)
out = place(out)
kept = place(models) if models else out / ".models"
kept.mkdir(parents=True, exist_ok=True)
source = FilmSource(os.path.expandvars(folder), features, width, height)
film_data = film_set(source)
records, shots = film_data.records, film_data.shots
parts = film_data.parts
scenes, boundaries = sum(r.scene_of_shot.max() + 1 for r in records), sum(r.boundaries.sum() for r in records)
pd.Series(dict(films=len(records), shots=len(shots), scenes=scenes, boundaries=boundaries))

# %%
unseen = replace(source, unlabelled="train")
def run_of(variant, m, seed):
    "The run of a kind of positives, or the name of raw features."
    if variant in RAW_FEATURES: return variant
    if variant == "untrained": return ShotRun(epochs=0, embed_dim=embed_dim, seed=seed, device="cpu")
    return ShotRun(
        variant, window=m, epochs=epochs, batch_size=batch_size, queue=queue, embed_dim=embed_dim,
        min_crop=min_crop, color_jitter=color_jitter, lr=lr, seed=seed, device="cpu")

baselines = [*RAW_FEATURES, "untrained"]
plan = []  # (source, variant, window, seed)
for seed in seeds:
    plan += [(source, variant, window, seed) for variant in baselines + positives]
    plan += [(source, variant, m, seed) for m in windows for variant in swept]
if strict: plan += [(unseen, variant, window, seed) for seed in seeds for variant in baselines + strict]

# %%
def series_of(seen, variant, m): return kept / f"{seen.unlabelled}-{variant.replace(' ', '_')}-{m}"
def folder_of(seen, variant, m, seed): return series_of(seen, variant, m) / str(seed - seeds[0])

jobs = [(run_of(*key[1:]), key[0], folder_of(*key), key[3]) for key in plan]
run_jobs([(job[2] / "evaluation.json", evaluate_shot_run, job) for job in jobs], workers, "encoders")
found = {key: evaluate_shot_run(*job) for key, job in zip(plan, jobs)}
sources = [source, unseen] if strict else [source]
groups = [(seen, kind) for seen in sources for kind in (strict if seen == unseen else positives)]
def members_of(seen, kind):
    return run_of(kind, window, seeds[0]), seen, series_of(seen, kind, window), len(seeds), (0.0, beside), raw

group_jobs = [members_of(*group) for group in groups]
run_jobs([(job[2] / "evaluation.json", evaluate_members, job) for job in group_jobs], workers, "encoders side by side")
together = {group: evaluate_members(*job)["scores"] for group, job in zip(groups, group_jobs)}
results = {key[1:]: result for key, result in found.items() if key[0] == source}

# %%
def films_of(variant, m=window, head="similarity"):
    return [scored_films(results[variant, m, seed], source, head) for seed in seeds]

rows = []
for (seen, variant, m, seed), result in found.items():
    for head, model in SHOT_HEADS.items():
        scores = evaluate_boundaries(scored_films(result, seen, head), model.threshold)
        rows.append(dict(unlabelled=seen.unlabelled, variant=variant, window=m, head=head, seed=seed, **scores))
scores = pd.DataFrame(rows)
table = scores[scores.window == window].groupby(["unlabelled", "head", "variant"], sort=False).ap.agg(["mean", "sem"])
table["mean"].unstack([0, 1]).round(3)

# %%
blank = with_embeddings(records, [np.zeros((len(r), 1)) for r in records])
durations = Head(Evidence("durations"))
others = {"durations": score_held_out(durations, blank, parts)}
others["chance"] = random_scores(others["durations"])
fused = FusedHead((SHOT_HEADS["similarity"], durations))
others["features and durations"] = score_held_out(fused, with_embeddings(records, raw_features(shots, raw)), parts)
if colours:
    coloured = [r for r in feature_films(source.folder) if colours in r.features]
    others["colours alone"] = score_held_out(ZeroShot(colours), coloured, [([], range(len(coloured)))])
thresholds = {"colours alone": 1e-9}
other_scores = {name: evaluate_boundaries(films, thresholds.get(name, 0.5)) for name, films in others.items()}
pd.DataFrame(other_scores).T[["prior", "ap", "ap_macro", "f1", "miou"]].round(3)

# %%
pairs = [
    ("nearest", "augmentation"), (under_test, "nearest"), (under_test, "augmentation"), (under_test, "adjacent"),
    ("adjacent", "nearest"), ("nearest", raw), (under_test, raw), (under_test, "untrained")]

def gain(a, b):
    differences = [pooled_ap(x) - pooled_ap(y) for x, y in zip(a, b)]
    return dict(paired_bootstrap(a, b), seed_error=stats.sem(differences))

def gains_of(seen):
    variants = dict.fromkeys(key[1] for key in found if key[0] == seen and key[2] == window)
    films = {v: [scored_films(found[seen, v, window, seed], seen) for seed in seeds] for v in variants}
    return {f"{a} over {b}": gain(films[a], films[b]) for a, b in pairs if a in films and b in films}

gains = {seen.unlabelled: gains_of(seen) for seen in sources}
pd.concat({name: pd.DataFrame(g).T for name, g in gains.items()}).round(3)

# %%
def films_together(seen, kind, weight=beside, head="similarity"):
    return [scored_films(dict(scores=together[seen, kind][str(weight)]), seen, head)]

def films_alone(seen, name): return [scored_films(found[seen, name, window, seeds[0]], seen)]

rows = []
for seen, kind in groups:
    aps = {name: pooled_ap(films_together(seen, kind, w)[0]) for name, w in (("alone", 0.0), ("beside", beside))}
    rows.append(dict(unlabelled=seen.unlabelled, variant=kind, **aps))
ensembles = pd.DataFrame(rows).set_index(["unlabelled", "variant"])
gains_together = {}
for seen in sources:
    ours = films_together(seen, under_test) if (seen, under_test) in together else None
    if ours is None: continue
    rivals = {f"{kind} beside": films_together(seen, kind) for s, kind in groups if s == seen and kind != under_test}
    rivals[raw] = films_alone(seen, raw)
    gains_together[seen.unlabelled] = {f"over {name}": paired_bootstrap(ours, films) for name, films in rivals.items()}
ensembles.round(3)

# %%
fig, axes = plt.subplots(1, 2 if swept else 1, figsize=(9 if swept else 4.6, 3), squeeze=False)
axes = axes[0]
by_similarity = scores[(scores["head"] == "similarity") & (scores.unlabelled == source.unlabelled)]
shown = [raw, "untrained", *positives]
for n, variant in enumerate(shown):
    values = by_similarity[(by_similarity.variant == variant) & (by_similarity.window == window)].ap
    axes[0].plot(values, [n] * len(values), "o", ms=3, c="C1" if variant == under_test else "C0")
    axes[0].plot(values.mean(), n, "|", ms=14, c="k")
axes[0].axvline(prior(films_of(raw)[0]), c="k", ls=":", lw=1)
axes[0].set(yticks=range(len(shown)), yticklabels=shown, xlabel="average precision")
axes[0].invert_yaxis()
for variant in swept:
    curve = by_similarity[by_similarity.variant == variant].groupby("window").ap.agg(["mean", "sem"])
    axes[1].errorbar(curve.index, curve["mean"], curve["sem"], capsize=2, marker="o", ms=3, label=variant)
if swept:
    axes[1].set(xlabel="window", ylabel="average precision")
    axes[1].legend()

# %%
rows = []
for (variant, m, seed), result in results.items():
    if not result["curve"]: continue
    pure = result["curve"]["purity"]
    rows.append({"variant": variant, "window": m, "seed": seed, "first epoch": pure[0], "last epoch": pure[-1]})
purity = pd.DataFrame(rows).groupby(["variant", "window"], sort=False)[["first epoch", "last epoch"]].mean()
purity.unstack().round(2)

# %%
rows = []
for (variant, m, seed), result in results.items():
    if m != window: continue
    for fraction, ap in [*result["fractions"].items(), ("1", pooled_ap(scored_films(result, source)))]:
        rows.append(dict(variant=variant, seed=seed, fraction=float(fraction), ap=ap))
few = pd.DataFrame(rows)
few["films"] = (few.fraction * len(parts[0][0])).round().clip(lower=1).astype(int)
few = few.drop_duplicates(["variant", "seed", "films"])
curves = few.groupby(["variant", "films"], sort=False).ap.agg(["mean", "sem"]).unstack(0)
no_labels = pooled_ap(films_of(raw, head="grouping")[0])
curves["mean"].round(3)

# %%
fig, ax = plt.subplots(figsize=(4.6, 3))
ax.axhline(no_labels, c="k", ls=":", lw=1, label=f"{raw}, no label")
for variant in dict.fromkeys([raw, "augmentation", "nearest", under_test, "oracle"]):
    if variant not in curves["mean"]: continue
    mean, sem = curves["mean"][variant], curves["sem"][variant]
    ax.errorbar(curves.index, mean, sem, capsize=2, marker="o", ms=3, label=variant)
ax.set(xscale="log", xlabel="films with labels", ylabel="average precision")
ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1));

# %%
def scene_run(kind, seed): return SceneRun(kind, k=similar, num_steps=scene_steps, seed=seed, device="cpu")

all_sources = tuple(similarity)
scene_plan = [("raw", all_sources, seed, None) for seed in scene_seeds] if scene_positives else []
for seed in scene_seeds:
    scene_plan += [(kind, all_sources, seed, scene_run(kind, seed)) for kind in scene_positives]
    if not scene_positives: continue
    scene_plan += [(f"similar_nearest by {by}", (by,), seed, scene_run("similar_nearest", seed)) for by in similarity]
scene_jobs = []
for name, by, seed, run in scene_plan:
    scene_jobs.append((run, source.folder, by, kept / f"scenes-{name.replace(' ', '_')}-{seed}", seed))
run_jobs([(job[3] / "evaluation.json", evaluate_scene_run, job) for job in scene_jobs], workers, "encoders of scenes")

# %%
rows = []
for (name, _, seed, _), job in zip(scene_plan, scene_jobs):
    result = evaluate_scene_run(*job)
    for task, value in result["scores"].items():
        rows.append(dict(variant=name, seed=seed, task=task, score=value, chance=result["chance"][task]))
read = pd.DataFrame(rows, columns=["variant", "seed", "task", "score", "chance"])
tasks = read.groupby(["variant", "task"], sort=False).score.agg(["mean", "sem"])
chance = read.groupby("task", sort=False).chance.mean()
scene_table = pd.concat([chance.to_frame("chance").T, tasks["mean"].unstack()]) if scene_positives else pd.DataFrame()
scene_table[list(dict.fromkeys(read.task))].round(3)

# %%
def score(variant, task):
    rows = read[(read.variant == variant) & (read.task == task)]
    return rows.sort_values("seed").score.to_numpy()

scene_gains = {}
if scene_positives:
    for variant in ["raw", *(kind for kind in scene_positives if kind != "similar_nearest")]:
        differences = {task: paired_gain(score("similar_nearest", task), score(variant, task)) for task in chance.index}
        scene_gains[variant] = differences
pd.DataFrame({variant: {task: g["gain"] for task, g in by.items()} for variant, by in scene_gains.items()}).T.round(3)

# %%
def genre_table(films):
    "Predicted genres of held-out films from synopsis and cast."
    mute = without_words(films, genre_names(films))
    by = {
        "synopsis, genre words kept": film_similarity(films, synopsis=1),
        "synopsis": film_similarity(mute, synopsis=1),
        "cast": film_similarity(mute, cast=1),
        "synopsis and a little cast": film_similarity(mute, synopsis=1, cast=0.1)}
    return pd.DataFrame({name: evaluate_genres(s, films) for name, s in by.items()}).T

genres = pd.DataFrame()
if catalogue:
    listed = [f for f in wikipedia_films(place(catalogue), damaged="skip") if f.genres and f.synopsis and f.cast]
    numbers = np.linspace(0, len(listed) - 1, min(most, len(listed))).astype(int)
    genres = genre_table([listed[i] for i in numbers])
genres.round(3)

# %%
NUMBERS = ("gain", "low", "high", "seed_error", "standard_errors")
def clean(g): return {k: v for k, v in g.items() if k in NUMBERS and v is not None}
def means(rows): return {name: dict(mean=row["mean"], sem=row["sem"]) for name, row in rows.iterrows()}
def few_of(variant, share):
    rows = few[(few.variant == variant) & (few.fraction == share)]
    return rows.sort_values("seed").ap.to_numpy()

quarter, everything = few_of(under_test, 0.25), few_of(raw, 1)
labels = {
    f"{under_test} with a quarter of the films": quarter.mean(),
    f"{raw} with all": everything.mean(),
    f"{raw} without labels": no_labels,
    "gain": clean(paired_gain(quarter, everything))}
numbers = dict(prior=prior(films_of(raw)[0]), ap={}, baselines={}, gains={}, labels=labels)
for seen in gains:
    numbers["ap"][seen] = {head: means(table.loc[seen, head]) for head in SHOT_HEADS}
    numbers["gains"][seen] = {name: clean(g) for name, g in gains[seen].items()}
for name, s in other_scores.items(): numbers["baselines"][name] = dict(ap=s.ap, f1=s.f1, miou=s.miou)
if catalogue: numbers["genres"] = genres.T.to_dict()
numbers["together"] = {s.unlabelled: ensembles.loc[s.unlabelled].T.to_dict() for s in sources}
numbers["together_gains"] = {s: {name: clean(g) for name, g in by.items()} for s, by in gains_together.items()}

# %%
if scene_positives:
    by_genre = tasks.xs("genre", level="task")
    numbers["genre_of_scenes"] = {"chance": chance["genre"]} | means(by_genre)
    numbers["similar_nearest_over"] = over = {}
    for variant, by in scene_gains.items():
        signs = np.sign([g["gain"] for g in by.values()])
        above, below = int((signs > 0).sum()), int((signs < 0).sum())
        over[variant] = dict(genre=clean(by["genre"]), tasks_above=above, tasks_below=below)

# %%
scores.round(4).to_csv(out / "scores.csv", index=False)
few.round(4).to_csv(out / "labels.csv", index=False)
curves["mean"].round(4).to_csv(out / "learning.csv")  # for `dvc plots`
if scene_positives: read.round(4).to_csv(out / "scenes.csv", index=False)
sizes = dict(films=len(records), shots=len(shots), epochs=epochs, trainings=len(plan) + len(scene_plan))
record = dict(seeds=seeds, sizes=sizes) | (dict(date=date) if date else {})
save_results(out, numbers, headlines, seconds=time.perf_counter() - started, **record)
if not models: shutil.rmtree(kept)

# %%
def verdict(g):
    if g["low"] > 0: return "is a gain"
    return "is a loss" if g["high"] < 0 else "cannot be separated from zero"

lines = []
for seen, by in gains.items():
    for name, g in by.items():
        interval = f"{g['low']:+.3f} to {g['high']:+.3f} over films, ±{g['seed_error']:.3f} over seeds"
        lines.append(f"- `{seen}`, {name}: {g['gain']:+.3f} AP ({interval}): it {verdict(g)}.")
for seen, by in gains_together.items():
    for name, g in by.items():
        lines.append(f"- `{seen}`, all seeds of {under_test} beside {raw}, {name}: {g['gain']:+.3f} AP "
                     f"({g['low']:+.3f} to {g['high']:+.3f} over films): it {verdict(g)}.")
best = table.loc[source.unlabelled, "similarity"]["mean"].drop("oracle", errors="ignore")
lines.append(f"- The highest AP without scene labels in training has **{best.idxmax()}** ({best.max():.3f}).")
for variant, by in numbers.get("similar_nearest_over", {}).items():
    tasks_ = f"better in {by['tasks_above']} tasks, worse in {by['tasks_below']}"
    lines.append(f"- Scenes, similar_nearest over {variant}: {by['genre']['gain']:+.3f} for genre; {tasks_}.")
Markdown("\n".join(lines))
