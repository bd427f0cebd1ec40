"""How long does motion take, compared with decoding, optical flow, and another reader of motion vectors?

    make bench

Each contender is a process of its own on one core with one thread; they take turns over all files, several rounds, and
a ratio is that of the medians. Writes runs/bench/motion.json. Uses the clips in PRIMENB_REAL, or else the starter film.
"""

import datetime
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 7
CLIPS = ["film_clips/bikes.mp4", "film_clips/bbb_60s.mp4", "film_clips/bigbuckbunny.mp4", "motion_vectors/vid_h264.mp4"]
LARGE = ["film_clips/bigbuckbunny.mp4", "motion_vectors/vid_h264.mp4", "motion_vectors/vid_mpeg4_part2.mp4"]


def decode(path):
    "Plain PyAV, one thread, no colour conversion: what anybody pays who reads the film at all."
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        for _ in container.decode(stream):
            pass


def motion(path):
    "Ours, from opening the file to tokens of 16 pixels and 2 frames; nothing is remembered from the round before."
    from primenb.media import index
    from primenb.media.motion import read_motion, to_tokens

    index._index_file.cache_clear()
    to_tokens(read_motion(path), patch=16, tubelet=2)


def vectors(path):
    "Ours, as far as mv_extractor goes: the table of vectors of each frame."
    from primenb.media import index, video

    index._index_file.cache_clear()
    for _ in video.iter_vectors(path):
        pass


def flow(path, method):
    "Decoding, grey frames, and flow between neighbours."
    import av
    import numpy as np

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        before = None
        for frame in container.decode(stream):
            grey = np.ascontiguousarray(frame.to_ndarray(format="gray"))
            if before is not None:
                method.calc(grey, before, None)
            before = grey


def farneback(path):
    import cv2

    flow(path, cv2.FarnebackOpticalFlow.create())


def dis_ultrafast(path):
    import cv2

    flow(path, cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST))


def mv_extractor(path):
    "The package motion-vector-extractor in its fastest mode, which leaves out the images."
    from mvextractor.videocap import VideoCap

    reader = VideoCap()
    if not reader.open(path):
        raise OSError(f"motion-vector-extractor cannot open {path}")
    if hasattr(reader, "set_decode_frames"):
        reader.set_decode_frames(False)
    while reader.read()[0]:
        pass
    reader.release()


def alone(contender, core, jobs, results):
    "A process with one core and one thread that times what it is sent."
    os.sched_setaffinity(0, {core})
    import cv2

    cv2.setNumThreads(1)
    while (path := jobs.get()) is not None:
        start = time.perf_counter()
        try:
            globals()[contender](path)
        except Exception as error:
            results.put(error)
            raise
        results.put(time.perf_counter() - start)


def race(contenders, files, rounds=ROUNDS):
    "Median seconds by (contender, file); the contenders take turns."
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    spawn = multiprocessing.get_context("spawn")
    core = max(os.sched_getaffinity(0))
    teams = {}
    seconds = {}
    for name in contenders:
        jobs, results = spawn.Queue(), spawn.Queue()
        process = spawn.Process(target=alone, args=(name, core, jobs, results), daemon=True)
        process.start()
        teams[name] = jobs, results
    warm_up = [(files[0], team) for team in teams.items()]
    for path, (name, (jobs, results)) in warm_up + list(itertools.product(files * rounds, teams.items())):
        jobs.put(path)
        if isinstance(taken := results.get(timeout=300), Exception):
            raise taken
        seconds.setdefault((name, path), []).append(taken)
    for name in teams:
        del seconds[name, files[0]][0]  # the warm-up
    for jobs, _ in teams.values():
        jobs.put(None)
    return {key: statistics.median(values) for key, values in seconds.items()}


def ratios(times, above, below, files):
    "The ratio for each file, and over all of them together."
    each = {Path(f).name: times[above, f] / times[below, f] for f in files}
    return {"all": sum(times[above, f] for f in files) / sum(times[below, f] for f in files), **each}


def ten_minutes(clip, folder):
    "Peak memory and seconds of `primenb analyse` on a clip that is looped to ten minutes."
    from primenb.media.video import encode, iter_frames, probe

    info = probe(clip)
    size = min(360, info.width, info.height)
    loops = itertools.chain.from_iterable(iter_frames(clip, size=size) for _ in itertools.count())
    images = (frame.image for frame in itertools.islice(loops, round(600 * info.rate)))
    film = encode(folder / "ten_minutes.mp4", images, info.rate, crf=23, preset="ultrafast")
    # VmHWM is the peak of the new program alone; ru_maxrss of a child starts at its parent's memory
    code = "\n".join([
        "import sys",
        "from primenb.cli import main",
        "failed = main()",
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))",
        "sys.exit(failed)",
    ])
    start = time.perf_counter()
    command = [sys.executable, "-c", code, "analyse", film, "-o", folder / "report"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {
        "minutes": probe(film).duration / 60,
        "seconds": time.perf_counter() - start,
        "peak_mb": int(done.stdout.split()[-1]) / 1000,
    }


def main():
    from primenb.core import root, save_metrics
    from primenb.media.video import encode, iter_frames, probe

    started = time.perf_counter()
    real = Path(os.environ.get("PRIMENB_REAL", root() / "data/real"))
    starter = root() / "data/starter/starter.mp4"
    clips, large = ([real / f for f in names] for names in (CLIPS, LARGE)) if real.is_dir() else ([starter], [starter])
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        memory = ten_minutes(max(clips, key=lambda f: probe(f).duration), folder)
        small = []
        for f in clips:
            images = (frame.image for frame in iter_frames(f, size=(340, 256)))
            small.append(str(encode(folder / f"{f.stem}_340x256.mp4", images, probe(f).rate, crf=23)))
        large = [str(f) for f in large]
        times = race(["decode", "motion", "vectors", "dis_ultrafast", "mv_extractor"], small)
        times |= race(["decode", "motion", "vectors", "mv_extractor"], large)
        times |= {("farneback", f): t for (_, f), t in race(["farneback"], small, rounds=1).items()}
        metrics = {
            "motion_over_plain_decode": {
                "340x256": ratios(times, "motion", "decode", small), "720p": ratios(times, "motion", "decode", large)
            },
            "farneback_over_motion": ratios(times, "farneback", "motion", small),
            "dis_ultrafast_over_motion": ratios(times, "dis_ultrafast", "motion", small),
            "mv_extractor_over_motion": ratios(times, "mv_extractor", "motion", small + large),
            "mv_extractor_over_vectors": ratios(times, "mv_extractor", "vectors", small + large),
            "milliseconds_per_frame": {
                name: {Path(f).name: 1000 * times[name, f] / probe(f).frames for n, f in times if n == name}
                for name in dict.fromkeys(n for n, _ in times)
            },
            "analyse_ten_minutes": memory,
        }
    sizes = {"rounds": ROUNDS, "frames_340x256": sum(probe(f).frames for f in clips)}
    out = root() / "runs/bench/motion.json"
    save_metrics(
        out,
        metrics,
        seconds=time.perf_counter() - started,
        seeds=[],
        sizes=sizes,
        date=datetime.date.today().isoformat(),
        footage=[f.name for f in clips],
    )
    results = json.loads(out.read_text())
    for name in ("run", "milliseconds_per_frame"): del results[name]
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
