"""How long does a camera for each frame of a long shot take, and how much memory?

    python bench/cameras.py

The longest drawn shot of the corpus, enlarged to 640x360, is tracked whole by `primenb.film.cameras.track_shot` on one
core, without its lens and without depth: `seconds`, and `peak_mb` of the process; `seconds_by_frames` for shares of it.
Writes runs/bench/cameras.json.
"""

import datetime
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

WIDTH, HEIGHT, FRAMES = 640, 360, (150, 300, 600)


def enlarge(target):
    "The longest shot at this size."
    from primenb.data.corpus import move_shots
    from primenb.media.video import encode, iter_frames

    shot = max(move_shots(check=False), key=lambda one: one.facts["frames"])
    images = (frame.image for frame in iter_frames(shot.path, size=(WIDTH, HEIGHT)))
    return encode(target, images, shot.facts["rate"], crf=16, preset="fast")


def track(film, frames, answers):
    "Seconds and memory of one shot, in a process of its own on one core."
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    from primenb.film.cameras import track_shot

    start = time.perf_counter()
    found = track_shot(film, (0, frames))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answers.put((time.perf_counter() - start, peak, found.outcome))


def measure(film, frames):
    "One shot, tracked by a new process."
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=track, args=(film, frames, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    out = Path(__file__).resolve().parents[1] / "runs/bench/cameras.json"
    with tempfile.TemporaryDirectory() as folder:
        film = enlarge(Path(folder) / "long.mp4")
        found = {frames: measure(film, frames) for frames in FRAMES}
    seconds, peak, outcome = found[max(FRAMES)]
    facts = dict(seconds=round(seconds, 1), peak_mb=round(peak), frames=max(FRAMES), size=[WIDTH, HEIGHT])
    facts |= dict(outcome=outcome, seconds_by_frames={str(n): round(one[0], 1) for n, one in found.items()})
    facts |= dict(date=datetime.date.today().isoformat(), system=platform.platform())
    out.write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))
