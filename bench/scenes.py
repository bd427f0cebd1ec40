"""What does it cost to know where the scenes of a film are, once its shots have vectors; and what did the earlier method's features cost?

    python bench/scenes.py

On one core with one thread. The film is made up: shots as long as those of real films (lognormal, median 2.75 s), vectors of
512 numbers that change at scenes. Boundary models are fitted to other made-up films. The features that LGSS-style methods
need are stood in for by two untrained ResNet-50 (one for places, one for people) on three key-frames of 224x224 of each shot;
an untrained network costs what a trained one does. Contenders take turns, and a ratio is that of the medians. Writes
runs/bench/scenes.json.
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
from primenb.records import ShotFeatures, frames_table
from primenb.scenes.boundaries import Evidence, Head, ZeroShot
from primenb.scenes.find import zero_shot

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
    heads = dict(similarity=Head(Evidence("similarity", "v")).fit(learn), window_mlp=Head(Evidence("window", "v"), "mlp", (256, 64)).fit(learn), novelty=ZeroShot("v"))
    models = {**{name: head.scores for name, head in heads.items()}, "grouping": lambda record: zero_shot(record.features["v"])}
    networks, pictures = [resnet50().eval() for _ in range(2)], torch.rand(8, 3, 224, 224)
    hour, two = film(1), film(2)

    @torch.inference_mode()
    def features():
        for network in networks: network(pictures)

    taken = {name: [] for name in [*models, "features"]}
    for _ in range(ROUNDS):
        for name, model in models.items(): taken[name].append(seconds(lambda: model(hour)))
        taken["features"].append(seconds(features) / len(pictures) * 3 * len(hour))
    middle = {name: statistics.median(values) for name, values in taken.items()}
    found = dict(
        seconds_per_film_hour={name: middle[name] for name in models}, features_seconds_per_film_hour=middle["features"],
        times_faster_than_features={name: middle["features"] / middle[name] for name in models},
        parameters={name: parameters(head) for name, head in heads.items() if name != "novelty"} | dict(features=sum(p.numel() for n in networks for p in n.parameters())),
        two_hours_seconds={name: statistics.median(seconds(lambda: model(two)) for _ in range(ROUNDS)) for name, model in models.items()},
        peak_mb={f"{hours} h": {name: peak(lambda: model(film_)) for name, model in models.items()} for hours, film_ in ((1, hour), (2, two), (4, film(4)))})
    save_metrics(root() / "runs/bench/scenes.json", found, sizes=dict(shots_of_an_hour=len(hour), shots_of_two_hours=len(two), vector=SIZE, rounds=ROUNDS), seeds=[0], seconds=time.perf_counter() - began, date=str(datetime.date.today()))


if __name__ == "__main__":
    with threadpool_limits(1): main()
