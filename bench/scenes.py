"""What does it cost to know where the scenes of a film are, once its shots have vectors; and what did the earlier method's features cost?

    python bench/scenes.py

On one core with one thread. The film is made up: shots as long as those of real films (lognormal, median 2.75 s), vectors of
512 numbers that change at scenes. Boundary models are fitted to other made-up films. The features that LGSS-style methods
need are stood in for by two untrained ResNet-50 (one for places, one for people) on three key-frames of 224x224 of each shot;
an untrained network costs what a trained one does. `vectors` are those of one ResNet-50 that sees the three key-frames at once. Contenders take turns, and a ratio is that of the medians. Films of two
and four hours say how time and memory grow: `grows` is what four hours take, in parts of what one takes; 4 is in step with
the film, 16 with its square. Writes runs/bench/scenes.json.
"""

import datetime
import statistics
import time
import tracemalloc

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torchvision.models import resnet50

from primenb.core import root, save_metrics
from primenb.data.records import ShotFeatures, frames_table
from primenb.scenes.boundaries import Evidence, Head, Novelty
from primenb.scenes.train import ShotNet
from primenb.scenes.find import zero_shot_boundaries
from primenb.scenes.grouping import LONGEST

RATE, SIZE, ROUNDS = 24, 512, 5


def film(hours, seed=0):
    "A film of so many hours with vectors and scenes."
    rng = np.random.default_rng(seed)
    lengths = np.maximum(rng.lognormal(np.log(2.75), 0.9, int(3000 * hours)), 0.4)
    lengths = lengths[: np.searchsorted(lengths.cumsum(), 3600 * hours) + 1]
    borders = np.rint(np.append(0, lengths.cumsum()) * RATE).astype(int)
    scene = np.append(0, (rng.random(len(lengths) - 1) < 0.08).cumsum())
    vectors = rng.normal(size=(scene.max() + 1, SIZE))[scene] + rng.normal(size=(len(lengths), SIZE))
    return ShotFeatures(f"film {seed}", frames_table(f"film {seed}", np.stack([borders[:-1], borders[1:]], 1), RATE), scene, dict(v=vectors.astype(np.float32)))


def seconds(do):
    "Of one call."
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def peak(do):
    "Megabytes that were held at most."
    tracemalloc.start()
    do()
    most = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return most


def parameters(head):
    "How many numbers a fitted head has learnt."
    model = head.model[-1]
    return int(sum(c.size for c in (*model.coefs_, *model.intercepts_)) if hasattr(model, "coefs_") else model.coef_.size + model.intercept_.size)


def main():
    torch.set_num_threads(1)
    began = time.perf_counter()
    learn = [film(0.5, seed) for seed in range(1, 5)]
    heads = dict(similarity=Head(Evidence("similarity", "v")).fit(learn), window_mlp=Head(Evidence("window", "v"), "mlp", (256, 64)).fit(learn), novelty=Novelty("v"))
    models = {**{name: head.scores for name, head in heads.items()}, "grouping": lambda record: zero_shot_boundaries(record.features["v"])}
    encoder, shots = ShotNet((224, 224, 9), "resnet50").eval(), torch.rand(8, 9, 224, 224)
    networks, pictures = [resnet50().eval() for _ in range(2)], torch.rand(8, 3, 224, 224)
    films = {f"{hours} h": film(hours) for hours in (1, 2, 4)}
    hour = films["1 h"]

    @torch.inference_mode()
    def features():
        for network in networks: network(pictures)

    @torch.inference_mode()
    def vectors(): encoder(shots)

    taken = {name: [] for name in [*models, "features", "vectors"]}
    for _ in range(ROUNDS):
        for name, model in models.items(): taken[name].append(seconds(lambda: model(hour)))
        taken["vectors"].append(seconds(vectors) / len(shots) * len(films["1 h"]))
        taken["features"].append(seconds(features) / len(pictures) * 3 * len(hour))
    middle = {name: statistics.median(values) for name, values in taken.items()}
    found = dict(
        features_seconds_per_film_hour=middle["features"],
        vectors_seconds_per_film_hour=middle["vectors"],
        times_faster_with_vectors={name: middle["features"] / (middle["vectors"] + middle[name]) for name in models},
        times_faster_than_features={name: middle["features"] / middle[name] for name in models},
        parameters={name: parameters(head) for name, head in heads.items() if name != "novelty"} | dict(features=sum(p.numel() for n in networks for p in n.parameters())),
        seconds={"1 h": {name: middle[name] for name in models}} | {
            long: {name: statistics.median(seconds(lambda: model(films[long])) for _ in range(ROUNDS)) for name, model in models.items()} for long in ("2 h", "4 h")},
        peak_mb={long: {name: peak(lambda: model(film_)) for name, model in models.items()} for long, film_ in films.items()})
    found["grows"] = {what: {name: found[what]["4 h"][name] / found[what]["1 h"][name] for name in models} for what in ("seconds", "peak_mb")}
    sizes = dict(shots={long: len(film_) for long, film_ in films.items()}, longest_scene=LONGEST, vector=SIZE, rounds=ROUNDS)
    save_metrics(root() / "runs/bench/scenes.json", found, sizes=sizes, seeds=[0], seconds=time.perf_counter() - began, date=str(datetime.date.today()))


if __name__ == "__main__":
    with threadpool_limits(1): main()
