"""How long does a mask take, and what does it cost to know what moves: by motion vectors, or by optical flow?

    python bench/masks.py

Everything on one core with one thread. Contenders take turns over all clips, several rounds, and a ratio is that of the
medians. A clip is 16 frames of 224x224 and has 8x14x14 tokens. Clips come from the footage in PRIMENB_REAL, or else from
the starter film. Writes runs/bench/masks.json.
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

from primenb.media import video
from primenb.core import root, save_metrics
from primenb.mgm.masks import MASKS, Guide, Masks, flow_of, guide
from primenb.media.motion import cached_motion, read_motion
from primenb.media.video import encode, iter_frames, read_frames

GRID, SIDE, FRAMES, RATIO = (8, 14, 14), 224, 16, 0.75
FILMS = ["film_clips/bikes.mp4", "film_clips/bigbuckbunny.mp4", "static_camera/car-detection.mp4", "motion_vectors/vid_h264.mp4"]
ROUNDS = 5


def milliseconds(do, rounds=30):
    "Median time of one call."
    do()
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        do()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def kinds(batch):
    "Milliseconds a clip of each kind of mask, for a batch of clips with guides."
    rng = np.random.default_rng(0)
    guides = Guide(rng.normal(0, 0.5, (batch, *GRID, 2)).astype(np.float32), rng.random((batch, *GRID), np.float32), ("measured",) * batch)
    return {kind: milliseconds(lambda: Masks(kind, GRID, RATIO)(guides, rng)) / batch for kind in MASKS}


def make_clips(folder):
    "Clips as a model sees them, one of each film."
    real = Path(os.environ.get("PRIMENB_REAL", root() / "../shared/real"))
    films = [real / name for name in FILMS] if real.is_dir() else [root() / "data/starter/starter.mp4"]
    pictures = [[frame.image for frame in islice(iter_frames(film, size=(SIDE, SIDE)), 60, 60 + FRAMES)] for film in films]
    clips = [encode(folder / f"{film.stem}.mp4", some, 12, crf=23, preset="veryfast", options={"bf": "0", "refs": "1"}) for film, some in zip(films, pictures)]
    return clips, [film.name for film in films]


def contenders(folder):
    "What each does to come from a clip and its pictures, which are needed anyway, to a guide."

    def vectors(path, frames):  # decodes the clip a second time, for the vectors alone
        video._scan_file.cache_clear()
        return read_motion(path, remove_camera=True)

    def flow(method):
        return lambda path, frames: flow_of(frames, method)

    presets = {"dis_ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST, "dis_fast": cv2.DISOPTICAL_FLOW_PRESET_FAST, "dis_medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM}
    return {
        "vectors": vectors,
        "sidecar": lambda path, frames: cached_motion(path, folder, remove_camera=True),  # as in training from the second epoch on
        **{name: flow(cv2.DISOpticalFlow.create(preset)) for name, preset in presets.items()},
        "farneback": flow(cv2.FarnebackOpticalFlow.create()),
    }


def guidance(clips, folder):
    "Milliseconds a clip from pictures to the guide, and to read the pictures."
    pictures = {path: read_frames(path) for path in clips}
    work = {name: lambda path, of=of: guide(of(path, pictures[path]), frames=pictures[path]) for name, of in contenders(folder).items()}
    work["pictures"] = read_frames
    taken = {name: {path: [] for path in clips} for name in work}
    for turn in range(ROUNDS + 1):
        for path in clips:
            for name, do in work.items():
                start = time.perf_counter()
                do(path)
                if turn:
                    taken[name][path].append(1000 * (time.perf_counter() - start))
    return {name: statistics.mean(statistics.median(times) for times in by_clip.values()) for name, by_clip in taken.items()}


def main():
    started = time.perf_counter()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    cv2.setNumThreads(1)
    with threadpool_limits(1), tempfile.TemporaryDirectory() as temporary:
        clips, films = make_clips(Path(temporary))
        times = guidance(clips, Path(temporary))
        flows = [name for name in times if name not in ("vectors", "sidecar", "pictures")]
        metrics = {
            "mask_milliseconds": {"one_clip": kinds(1), "batch_of_32": kinds(32)},
            "guide_milliseconds": times,
            "flow_over_vectors": {name: times[name] / times["vectors"] for name in flows},
            "flow_over_sidecar": {name: times[name] / times["sidecar"] for name in flows},
        }
    sizes = {"grid": list(GRID), "side": SIDE, "frames": FRAMES, "clips": len(clips), "rounds": ROUNDS}
    out = root() / "runs/bench/masks.json"
    save_metrics(out, metrics, seconds=time.perf_counter() - started, seeds=[0], sizes=sizes, date=datetime.date.today().isoformat(), footage=films)
    print(json.dumps({name: value for name, value in json.loads(out.read_text()).items() if name != "run"}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
