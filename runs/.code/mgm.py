# %% parameters
data = "clips"  # what encoders are trained on, as in `primenb.mgm.pretrain.stretches`
folder = "data"  # of the corpus
arms = "untrained tube:0.75 smm:0.75 mgm:0.75 soft_mgm:0.75"  # as in `primenb.mgm.compare.arm`
equal = ""  # arms that are also trained for as many encoder tokens as the reference sees
reference = "tube:0.75"  # one of the arms, whose final accuracy and whose number of tokens are a goal
ours = "mgm:0.75 soft_mgm:0.75"  # that are held against all others
rivals = ""  # arms over which gains are among the metrics; empty for all. All of them are in gains.csv
seeds = "0 1 2"
target = "motion"  # what hidden tokens are asked for, where an arm does not say
clips = 0  # training clips; 0 for all
epochs = 12
labelled = 0  # clips for the readers; 0 for all
linear = "direction speed action shape place"  # questions for the linear probe
attentive = "direction action"  # and for the attentive one
watched = "tube:0.75 mgm:0.75"  # arms that are judged after each epoch
controlled = "untrained tube:0.75 mgm:0.75"  # arms that are also asked about changed clips
ratio = 0.3  # share hidden where masks are judged without training
image_size = 32  # pixels
frames = 8
width = 128  # of the encoder
depth = 4
batch = 64
rate = 0.001
real = ""  # folder with clips of a camera that stands, for a picture
workers = 2  # processes
models = ""  # folder that keeps the trained models; empty to keep them only until all is done, so that an interrupted experiment goes on
date = ""  # the day, for results that are kept outside the pipeline
metrics = "runs/mgm/metrics.json"
masks = "runs/mgm/masks.json"
out = "runs/mgm"

# %%
import os, shutil, time
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each worker has one core

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from primenb.clip.evaluate import paired_gain
from primenb.cluster import run_jobs
from primenb.core import root, save_metrics, seed_all
from primenb.corpus import clips as corpus_clips
from primenb.corpus import films
from primenb.mgm.compare import Asked, arm, exams, examine, foreground, marks_of, soon
from primenb.mgm.masks import Masks, diagnose, flow_of, guide, object_recall, stack, to_grid
from primenb.mgm.pretrain import Run
from primenb.mgm.probes import flow
from primenb.motion import cached_motion, read_motion
from primenb.video import read_frames
from primenb.viz import overlay, sheet, show, style

# %%
started = time.perf_counter()
seed_all(0)
style()
place = lambda path: root() / os.path.expandvars(path)
out = place(out)
kept = place(models) if models else out / ".models"
seed_list = [int(s) for s in seeds.split()]
claimed = ours.split()

# %%
tests = list(corpus_clips("test", folder=place(folder), check=False))
of = pd.DataFrame([clip.labels for clip in tests])[["kind", "camera"]]

pictures = [clip.frames(threads=1) for clip in tests]
vectors = [read_motion(clip.path, remove_camera=True) for clip in tests]
guides = {"vectors": stack([guide(v, 8, 2, frames=p) for v, p in zip(vectors, pictures)]), "flow": stack([guide(flow_of(p), 8, 2, frames=p) for p in pictures]),
          "vectors, no texture": stack([guide(v, 8, 2) for v in vectors])}
movers = np.stack([to_grid(clip.movers, guides["vectors"].grid) for clip in tests])
kinds = diagnose(guides["vectors"], movers, ratio)
kinds.round(3)

# %%
def recall(found): return pd.Series(object_recall(Masks("mgm", found.grid, ratio)(found, np.random.default_rng(0)), movers))
speed = replace(guides["vectors"], energy=np.linalg.norm(guides["vectors"].flow, axis=-1))
recalls = pd.DataFrame({**{name: recall(found) for name, found in guides.items()}, "speed, with the camera's": recall(speed)})
by_camera = recalls.groupby(of.camera).mean()
by_camera.join(recalls.groupby([of.kind, of.camera]).mean().unstack(0).vectors.add_prefix("vectors, ")).T.round(3)

# %%
def study(film):
    "Motion of people and of all else in a film: true, as vectors have it, and without the camera."
    found = dict(true=film.motion, vectors=read_motion(film.path), freed=read_motion(film.path, remove_camera=True))
    return pd.DataFrame({name: foreground(motion, film.movers) for name, motion in found.items()}).T.rename_axis("motion").reset_index().assign(film=film.key)

studied = pd.concat([study(film) for film in films("test", folder=root() / "data", check=False)], ignore_index=True)
studied["quotient"] = studied.front / studied.behind
fig, ax = plt.subplots(figsize=(4, 3))
for name, group in studied.groupby("motion", sort=False): ax.loglog(group.behind, group.front, "o", ms=4, label=name)
ax.axline((1, 1), (2, 2), c="k", lw=0.5); ax.set(xlabel="behind, pixels per frame", ylabel="in front, pixels per frame"); ax.legend()
front = studied.groupby("motion", sort=False)[["front", "behind", "quotient"]].median()
front.round(2)

# %%
SIZE = (320, 192)

def real_clip(path):
    "Frames of a real clip, what changes in them, and what is hidden."
    grey = read_frames(path, size=SIZE, threads=1).mean(3, dtype=np.float32)
    changed = np.abs(np.diff(grey, axis=0, append=grey[-1:])) > 25
    first = int(np.convolve(changed.mean((1, 2)), np.ones(16), "valid").argmax())
    pictures = read_frames(path, frames=(first, first + 16), size=SIZE, threads=1)
    found = guide(cached_motion(path, kept, canonical=True, remove_camera=True)[first : first + 16], 16, 2, size=SIZE, frames=pictures)
    cells = changed[first : first + 16].astype(np.float32).reshape(8, 2, 12, 16, 20, 16).mean((1, 3, 5))[None]
    hidden = {kind: Masks(kind, found.grid, ratio)(found, np.random.default_rng(0)) for kind in ("mgm", "smm", "tube")}
    seen = [overlay(pictures[2 * t], values, 0.6) for t in (1, 4) for values in (found.energy[0, t], hidden["mgm"].reshape(found.grid)[t].astype(float))]
    return {kind: float(object_recall(h, cells)[0]) for kind, h in hidden.items()}, [pictures[2], *seen[:2], pictures[8], *seen[2:]]

kept.mkdir(parents=True, exist_ok=True)
films_of = sorted(place(real).glob("*.mp4")) if real else []
clips_of = {path.stem: real_clip(path) for path in films_of}
show(sheet([picture for _, pictures in clips_of.values() for picture in pictures], ["frame", "energy", "hidden"] * 2 * len(clips_of), columns=6)) if clips_of else "no folder was given"

# %%
on_real = {name: recall for name, (recall, _) in clips_of.items()}
pd.DataFrame(on_real).T.round(3) if on_real else ""

# %%
base = Run(data=data, folder=folder, clips=clips, epochs=epochs, image_size=image_size, frames=frames, width=width, depth=depth, batch=batch, rate=rate, target=target, device="cpu")
plan = [(words, "epochs", seed, arm(words, replace(base, seed=seed))) for seed in seed_list for words in arms.split()]
def asked(words, how): return Asked(tuple(linear.split()), tuple(attentive.split()), controls=words in controlled.split() and how == "epochs", watched="direction" if words in watched.split() and how == "epochs" else "", labelled=labelled)
def folder_of(words, how, seed): return kept / f"{words.replace(':', '-')}-{how}-{seed}"
def go(plan):
    jobs = [(run, folder_of(words, how, seed), asked(words, how)) for words, how, seed, run in plan]
    run_jobs([(job[1] / "marks.json", examine, job) for job in jobs], workers, "arms")
    return [(words, how, seed, examine(*job)) for (words, how, seed, _), job in zip(plan, jobs)]

results = go(plan)
tokens = next(r["encoder_tokens"] for words, _, _, r in results if words == reference)
results += go([(words, "tokens", seed, replace(arm(words, replace(base, seed=seed)), tokens=tokens / 1e6)) for seed in seed_list for words in equal.split()])

# %%
marks = pd.concat([pd.DataFrame(r["marks"]).assign(arm=words, equal=how, seed=seed) for words, how, seed, r in results], ignore_index=True)
marks["control"] = marks.control.fillna("")
plain = marks[marks.control == ""]
table = plain.groupby(["equal", "arm", "probe", "question"], sort=False).accuracy.agg(["mean", "sem"])
table["mean"].unstack(["probe", "question"]).round(3)

# %%
ABOUT = plain.drop_duplicates("question").set_index("question").about.to_dict()
pick = lambda words, how, probe, question: plain[(plain.arm == words) & (plain.equal == how) & (plain.probe == probe) & (plain.question == question)].sort_values("seed").accuracy.to_numpy()
everyone = list(plain[["arm", "equal"]].drop_duplicates().itertuples(index=False, name=None))
key = lambda words, how: f"{words}, equal {how}" if how != "epochs" else words
gains = {mine: {probe: {question: {key(*other): paired_gain(pick(mine, "epochs", probe, question), pick(*other, probe, question)) for other in everyone if other[0] != mine} for question in asked_of.split()}
                for probe, asked_of in (("linear", linear), ("attentive", attentive)) if asked_of} for mine in claimed}
flat = pd.DataFrame([dict(arm=m, probe=p, question=q, over=w, **g) for m, c in gains.items() for p, a in c.items() for q, b in a.items() for w, g in b.items()])
flat[["arm", "probe", "question", "over", "gain", "standard_error", "standard_errors"]].round(3)

# %%
first = linear.split()[:4]
fig, axes = plt.subplots(1, len(first), figsize=(2.6 * len(first), 3.4), sharey=True)
names = [f"{w}{' (tokens)' if how == 'tokens' else ''}" for w, how in everyone]
for ax, question in zip(axes, first):
    for n, (words, how) in enumerate(everyone):
        values = pick(words, how, "linear", question)
        ax.plot(values, [n] * len(values), "o", ms=3, c="C1" if words in claimed else "C0"); ax.plot(values.mean(), n, "|", ms=14, c="k")
    chance = plain[plain.question == question].chance.iloc[0]
    ax.axvline(chance, c="k", ls=":", lw=1); ax.set(title=f"{question} ({ABOUT[question]})", xlabel="accuracy")
axes[0].set(yticks=range(len(names)), yticklabels=names); axes[0].invert_yaxis();

# %%
twins = [(words, words.replace(mine, reference, 1)) for mine in claimed for words in arms.split() if words.startswith(f"{mine}:") and words.replace(mine, reference, 1) in arms.split()]
matched = {words: {question: paired_gain(pick(words, "epochs", "linear", question), pick(twin, "epochs", "linear", question)) for question in linear.split()} for words, twin in twins}
pd.DataFrame([dict(arm=words, question=q, **g) for words, by in matched.items() for q, g in by.items()])[["arm", "question", "gain", "standard_error", "standard_errors"]].round(3) if matched else ""

# %%
learn, test = exams(folder, image_size, frames, 1, labelled)
itself = marks_of(partial(flow, cell=8), learn, test, Asked(tuple(linear.split()), tuple(attentive.split()), controls=False))
itself[["question", "probe", "accuracy"]].round(3)

# %%
curves = {words: [r["curve"]["direction_linear"] for w, how, _, r in results if w == words and how == "epochs"] for words in watched.split()}
goal = float(np.mean(curves[reference], 0)[-1]) if reference in curves else None
reached = {words: soon(of_arm, goal) for words, of_arm in curves.items()} if goal else {}
if goal:
    fig, ax = plt.subplots(figsize=(4.5, 2.6))
    for words, of_arm in curves.items(): ax.errorbar(range(1, epochs + 1), np.mean(of_arm, 0), np.std(of_arm, 0, ddof=1) / len(of_arm) ** 0.5 if len(of_arm) > 1 else None, label=words, capsize=2)
    ax.axhline(goal, c="k", ls=":", lw=1); ax.set(xlabel="epoch", ylabel="direction, linear probe"); ax.legend()
reached or f"{reference} was not watched"

# %%
controls = marks[marks.arm.isin(controlled.split()) & (marks.equal == "epochs") & (marks.probe == "linear") & marks.question.isin([first[0], "order"])].assign(control=lambda m: m.control.replace("", "as it is"))
shown = controls.pivot_table(index="arm", columns="control", values="accuracy", sort=False)
spread = controls.pivot_table(index="arm", columns="control", values="accuracy", aggfunc="sem", sort=False)
shown.round(3).astype(str) + " ± " + spread.round(3).astype(str)

# %%
short = lambda g: {name: g[name] for name in ("gain", "standard_errors", "low", "high")}
found = dict(accuracy={key(w, how): {f"{p} {q}": dict(mean=group.accuracy.mean(), sem=group.accuracy.sem()) for (p, q), group in part.groupby(["probe", "question"], sort=False)} for (how, w), part in plain.groupby(["equal", "arm"], sort=False)},
             gain={m: {p: {q: {w: short(g) for w, g in b.items() if not rivals or w in rivals.split()} for q, b in a.items()} for p, a in c.items()} for m, c in gains.items()},
             matched={what: {q: short(g) for q, g in by.items()} for what, by in matched.items()},
             flow_itself={f"{m.probe} {m.question}": m.accuracy for m in itself.itertuples()},
             **(dict(epochs_to_target=dict(goal=goal, of=epochs, **reached)) if goal else {}), chance=plain.drop_duplicates("question").set_index("question").chance.to_dict(),
             controls={w: {c: dict(mean=m, sem=spread.loc[w, c]) for c, m in row.dropna().items()} for w, row in shown.iterrows()},
             tokens={key(w, how): float(np.mean([r["encoder_tokens"] for a, h, _, r in results if (a, h) == (w, how)])) for w, how in everyone})
about = dict(seeds=seed_list, **(dict(date=date) if date else {}))

# %%
out.mkdir(parents=True, exist_ok=True)
marks.drop(columns="about").round(4).to_csv(out / "marks.csv", index=False)
flat[["arm", "probe", "question", "over", "gain", "standard_error", "low", "high", "standard_errors"]].round(4).to_csv(out / "gains.csv", index=False)
studied.round(4).to_csv(out / "foreground.csv", index=False)
pd.DataFrame([{**dict(arm=w, seed=s), **{k: v[e] for k, v in r["curve"].items()}} for w, how, s, r in results if how == "epochs" for e in range(len(r["curve"].get("epoch", [])))]).round(5).to_csv(out / "curves.csv", index=False)
save_metrics(place(masks), dict(kinds=kinds.T.to_dict(), mgm_recall=by_camera.T.to_dict(), foreground=front.T.to_dict(), **(dict(real_recall=on_real) if on_real else {})), seconds=time.perf_counter() - started, sizes=dict(clips=len(tests), ratio=ratio), **about)
save_metrics(place(metrics), found, seconds=max(time.perf_counter() - started, sum(r["seconds"] for *_, r in results) / workers), sizes=dict(trainings=len(results), epochs=epochs, clips=clips or len(list(corpus_clips("train", folder=place(folder), check=False))), labelled=labelled), **about)
if not models: shutil.rmtree(kept)
