"""What does it cost to find the scenes of a film once its shots have embeddings?

    python bench/scenes.py

On one core with one thread. The film is synthetic: shots as long as those of real films (lognormal, median 2.75 s),
embeddings of 512 numbers that change at scene ends. Heads are fitted to other synthetic films. Two untrained ResNet-50
(one for places, one for people) on three key-frames of 224x224 of each shot stand for the features that LGSS-style
methods need; an untrained network costs what a trained one does. `vectors` are the embeddings of one ResNet-50
that takes the three key-frames at once. Methods take turns, and a ratio is that of the medians. Films of two and four
hours say how time and memory grow: `grows` is what four hours take, in multiples of one; 4 is linear in the film's
length, 16 quadratic.
Writes runs/bench/scenes.json.
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
from primenb.scenes.boundaries import Evidence, Head, NoveltyHead
from primenb.scenes.find import zero_shot_boundaries
from primenb.scenes.grouping import LONGEST_SCENE
from primenb.scenes.model import ShotNet

FPS = 24
SIZE = 512  # numbers of an embedding
ROUNDS = 5


def film(hours, seed=0):
    "A film of so many hours with embeddings and scenes."
    rng = np.random.default_rng(seed)
    lengths = np.maximum(rng.lognormal(np.log(2.75), 0.9, int(3000 * hours)), 0.4)
    lengths = lengths[: np.searchsorted(lengths.cumsum(), 3600 * hours) + 1]
    borders = np.rint(np.append(0, lengths.cumsum()) * FPS).astype(int)
    scene = np.append(0, (rng.random(len(lengths) - 1) < 0.08).cumsum())
    vectors = rng.normal(size=(scene.max() + 1, SIZE))[scene] + rng.normal(size=(len(lengths), SIZE))
    table = frames_table(f"film {seed}", np.stack([borders[:-1], borders[1:]], 1), FPS)
    return ShotFeatures(f"film {seed}", table, scene, dict(v=vectors.astype(np.float32)))


def seconds(do):
    "Of one call."
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def peak(do):
    "Peak memory, megabytes."
    tracemalloc.start()
    do()
    most = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return most


def parameters(head):
    "How many parameters a fitted head has."
    model = head.model[-1]
    layers = (*model.coefs_, *model.intercepts_) if hasattr(model, "coefs_") else (model.coef_, model.intercept_)
    return int(sum(layer.size for layer in layers))


def fitted_heads():
    "The heads of the comparison, fitted to synthetic films."
    train = [film(0.5, seed) for seed in range(1, 5)]
    return dict(
        similarity=Head(Evidence("similarity", "v")).fit(train),
        window_mlp=Head(Evidence("window", "v"), "mlp", (256, 64)).fit(train),
        novelty=NoveltyHead("v"))


def cost_of_networks():
    "Two functions that time the networks, in seconds per shot: for features, and for embeddings; and their parameters."
    encoder, shots = ShotNet((224, 224, 9), "resnet50").eval(), torch.rand(8, 9, 224, 224)
    networks, images = [resnet50().eval() for _ in range(2)], torch.rand(8, 3, 224, 224)

    @torch.inference_mode()
    def features():
        for network in networks: network(images)

    @torch.inference_mode()
    def vectors(): encoder(shots)

    count = sum(p.numel() for network in networks for p in network.parameters())
    return (lambda: seconds(features) / len(images) * 3), (lambda: seconds(vectors) / len(shots)), count


def main():
    torch.set_num_threads(1)
    began = time.perf_counter()
    heads = fitted_heads()
    models = {name: head.scores for name, head in heads.items()}
    models["grouping"] = lambda record: zero_shot_boundaries(record.features["v"])
    features, vectors, count = cost_of_networks()
    films = {f"{hours} h": film(hours) for hours in (1, 2, 4)}
    hour = films["1 h"]
    taken = {name: [] for name in [*models, "features", "vectors"]}
    for _ in range(ROUNDS):
        for name, model in models.items(): taken[name].append(seconds(lambda: model(hour)))
        taken["vectors"].append(vectors() * len(hour))
        taken["features"].append(features() * len(hour))
    middle = {name: statistics.median(values) for name, values in taken.items()}

    time_of, memory = {"1 h": {name: middle[name] for name in models}}, {}
    for long in ("2 h", "4 h"):
        time_of[long] = {}
        for name, model in models.items():
            time_of[long][name] = statistics.median(seconds(lambda: model(films[long])) for _ in range(ROUNDS))
    for long, film_ in films.items():
        memory[long] = {name: peak(lambda: model(film_)) for name, model in models.items()}
    found = dict(
        features_seconds_per_film_hour=middle["features"],
        vectors_seconds_per_film_hour=middle["vectors"],
        times_faster_with_vectors={n: middle["features"] / (middle["vectors"] + middle[n]) for n in models},
        times_faster_than_features={n: middle["features"] / middle[n] for n in models},
        parameters={n: parameters(head) for n, head in heads.items() if n != "novelty"} | dict(features=count),
        seconds=time_of,
        peak_mb=memory)
    found["grows"] = {}
    for what in ("seconds", "peak_mb"):
        found["grows"][what] = {name: found[what]["4 h"][name] / found[what]["1 h"][name] for name in models}
    shots = {long: len(film_) for long, film_ in films.items()}
    sizes = dict(shots=shots, longest_scene=LONGEST_SCENE, vector=SIZE, rounds=ROUNDS)
    save_metrics(root() / "runs/bench/scenes.json", found, sizes=sizes, seeds=[0], seconds=time.perf_counter() - began,
                 date=str(datetime.date.today()))


if __name__ == "__main__":
    with threadpool_limits(1): main()
