"""How long does it take to jump in a transport stream, and to read motion, beside plain decoding?

    python bench/media.py

`ts_over_mp4`: 60 random images of a film with B-frames and few key-frames, from a transport stream over the same
packets in MP4, for a short and a long film. `motion_over_plain_decode` is measured as in bench/motion.py, on one core.
Writes runs/bench/media.json.
"""

import datetime
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np
from motion import CLIPS, race, ratios

ROUNDS, IMAGES, RATE = 3, 60, 25


def film(path, minutes, width=320, height=180):
    "A pan over a soft picture, with B-frames and a key-frame every ten seconds."
    from primenb.media.video import encode

    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.normal(128, 400, (height, 4 * width, 3)), (0, 0), 4).clip(0, 255).astype(np.uint8)
    images = (picture[:, 2 * (t % width) : 2 * (t % width) + width] for t in range(round(60 * minutes * RATE)))
    return encode(path, images, RATE, crf=28, preset="ultrafast", options={"g": "250", "bf": "2", "b-adapt": "0"})


def remux(source, target):
    "The same packets in another container."
    with av.open(str(source)) as held, av.open(str(target), "w") as out:
        stream = held.streams.video[0]
        written = out.add_stream_from_template(stream)
        for packet in held.demux(stream):
            if packet.dts is not None:
                packet.stream = written
                out.mux(packet)
    return target


def jumps(path, seconds):
    "Time for images at random times, with the film's index, which is made anew."
    from primenb.media import index
    from primenb.media.video import iter_frames

    index._index_file.cache_clear()
    start = time.perf_counter()
    for t in seconds:
        next(iter_frames(path, seconds=(t, None), threads=1))
    return time.perf_counter() - start


def transport_streams(folder, minutes):
    "The ratio of medians; both containers take turns."
    mp4 = film(folder / f"{minutes}.mp4", minutes)
    paths = dict(mp4=mp4, ts=remux(mp4, folder / f"{minutes}.ts"))
    seconds = np.random.default_rng(0).uniform(0, 60 * minutes - 1, IMAGES)
    taken = {name: [] for name in paths}
    for _ in range(ROUNDS):
        for name, path in paths.items():
            taken[name].append(jumps(path, seconds))
    medians = {name: statistics.median(times) for name, times in taken.items()}
    return dict(ratio=medians["ts"] / medians["mp4"], seconds=medians)


def main():
    from primenb.core import root, save_metrics

    started = time.perf_counter()
    real = Path(os.environ.get("PRIMENB_REAL", root() / "data/real"))
    clips = [str(real / f) for f in CLIPS] if real.is_dir() else [str(root() / "data/starter/starter.mp4")]
    times = race(["decode", "motion"], clips)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        jumped = {f"{minutes}_minutes": transport_streams(Path(folder), minutes) for minutes in (5, 20)}
    metrics = {
        "ts_over_mp4": {name: found["ratio"] for name, found in jumped.items()},
        "seconds_of_60_images": {name: found["seconds"] for name, found in jumped.items()},
        "motion_over_plain_decode": ratios(times, "motion", "decode", clips),
    }
    out = root() / "runs/bench/media.json"
    save_metrics(
        out, metrics, seconds=time.perf_counter() - started, seeds=[0], sizes={"rounds": ROUNDS, "images": IMAGES},
        date=datetime.date.today().isoformat(), footage=[Path(f).name for f in clips])
    print(json.dumps({name: value for name, value in json.loads(out.read_text()).items() if name != "run"}, indent=1))


if __name__ == "__main__":
    main()
