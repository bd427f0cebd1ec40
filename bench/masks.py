"""How long does a mask take, and what does it cost to know what moves: by motion vectors, or by optical flow?

    python bench/masks.py

Everything on one core with one thread. Contenders take turns over all clips, several rounds, and a ratio is that of the
medians. A clip is 16 frames of 224x224 and has 8x14x14 tokens. The footage is that in PRIMENB_REAL
(or data/real), or else the starter film. Writes runs/bench/masks.json.
"""

import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from threadpoolctl import threadpool_limits

from primenb.media import index
from primenb.core import root, save_metrics
from primenb.mgm.masks import MASKS, Guide, Masks, guide, optical_flow
from primenb.media.motion import cached_motion, read_motion
from primenb.media.video import encode, iter_frames, read_frames

GRID = (8, 14, 14)
SIDE, FRAMES = 224, 16
RATIO = 0.75
FILMS = [
    "film_clips/bikes.mp4", "film_clips/bigbuckbunny.mp4", "static_camera/car-detection.mp4",
    "motion_vectors/vid_h264.mp4"]
ROUNDS = 5


def milliseconds(call, rounds=30):
    "Median time of one call."
    call()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def kinds(batch_size):
    "Milliseconds per clip of each kind of mask, for a batch of clips with guides."
    rng = np.random.default_rng(0)
    guides = Guide(
        rng.normal(0, 0.5, (batch_size, *GRID, 2)).astype(np.float32), rng.random((batch_size, *GRID), np.float32),
        ("measured",) * batch_size)
    return {kind: milliseconds(lambda: Masks(kind, GRID, RATIO)(guides, rng)) / batch_size for kind in MASKS}


def make_clips(folder):
    "Clips as a model sees them, one of each film."
    real = Path(os.environ.get("PRIMENB_REAL", root() / "data/real"))
    films = [real / name for name in FILMS] if real.is_dir() else [root() / "data/starter/starter.mp4"]
    settings = dict(crf=23, preset="veryfast", options={"bf": "0", "refs": "1"})
    clips = []
    for film in films:
        frames = islice(iter_frames(film, size=(SIDE, SIDE)), 60, 60 + FRAMES)
        clips.append(encode(folder / f"{film.stem}.mp4", [frame.image for frame in frames], 12, **settings))
    return clips, [film.name for film in films]


def contenders(folder):
    "What each method computes from a clip and its images, which are decoded in any case, to get its motion."

    def vectors(path, frames):  # decodes the clip a second time, for the vectors alone
        index._index_file.cache_clear()
        return read_motion(path, remove_camera=True)

    def flow(method):
        return lambda path, frames: optical_flow(frames, method)

    presets = {
        "dis_ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, "dis_fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
        "dis_medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM}
    return {
        "vectors": vectors,
        # as in training from the second epoch on
        "sidecar": lambda path, frames: cached_motion(path, folder, remove_camera=True),
        **{name: flow(cv2.DISOpticalFlow.create(preset)) for name, preset in presets.items()},
        "farneback": flow(cv2.FarnebackOpticalFlow.create()),
    }


def guidance(clips, folder):
    "Milliseconds per clip from images to the guide, and to read the images."
    images = {path: read_frames(path) for path in clips}
    methods = contenders(folder)
    def make_guide(method): return lambda path: guide(method(path, images[path]), frames=images[path])

    work = {name: make_guide(method) for name, method in methods.items()} | {"images": read_frames}
    taken = {name: {path: [] for path in clips} for name in work}
    for turn in range(ROUNDS + 1):
        for path in clips:
            for name, do in work.items():
                start = time.perf_counter()
                do(path)
                if turn:
                    taken[name][path].append(1000 * (time.perf_counter() - start))
    def mean_of_medians(by_clip): return statistics.mean(statistics.median(times) for times in by_clip.values())

    return {name: mean_of_medians(by_clip) for name, by_clip in taken.items()}


def main():
    started = time.perf_counter()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    with threadpool_limits(1), tempfile.TemporaryDirectory() as temporary:
        clips, films = make_clips(Path(temporary))
        times = guidance(clips, Path(temporary))
        flows = [name for name in times if name not in ("vectors", "sidecar", "images")]
        metrics = {
            "mask_milliseconds": {"one_clip": kinds(1), "batch_of_32": kinds(32)},
            "guide_milliseconds": times,
            "flow_over_vectors": {name: times[name] / times["vectors"] for name in flows},
            "flow_over_sidecar": {name: times[name] / times["sidecar"] for name in flows},
        }
    sizes = {"grid": list(GRID), "side": SIDE, "frames": FRAMES, "clips": len(clips), "rounds": ROUNDS}
    out = root() / "runs/bench/masks.json"
    save_metrics(
        out, metrics, seconds=time.perf_counter() - started, seeds=[0], sizes=sizes,
        date=datetime.date.today().isoformat(), footage=films)
    print(json.dumps({name: value for name, value in json.loads(out.read_text()).items() if name != "run"}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
