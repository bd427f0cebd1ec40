"""How long does it take to jump in a transport stream, to read motion beside plain decoding, and to analyse two hours?

    python bench/media.py [two_hours]

`ts_over_mp4`: 60 random images of a film with B-frames and few key-frames, from a transport stream over the same
packets in MP4, for a short and a long film. `motion_over_plain_decode` is measured as in bench/motion.py, on one core.
`two_hours`: `primenb analyse` of a film of 1,500 shots, its memory, and the page it makes: `page_mb` is report.html
with all images that it loads when it is read to its end, `scroll_ms` the time between two frames while it is scrolled.
Named alone, only this is measured again. Writes runs/bench/media.json.
"""

import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import cv2
import numpy as np
from motion import CLIPS, race, ratios

ROUNDS, IMAGES, RATE = 3, 60, 25
FILMS = ("film_01", "film_05", "film_11", "film_23")  # drawn films of 18 to 21 shots in 90 seconds
WIDTH, HEIGHT = 456, 256


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


def jumps_and_motion(clips):
    "What is measured on one core."
    times = race(["decode", "motion"], clips)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    with tempfile.TemporaryDirectory() as folder:
        jumped = {f"{minutes}_minutes": transport_streams(Path(folder), minutes) for minutes in (5, 20)}
    os.sched_setaffinity(0, cores)
    return {
        "ts_over_mp4": {name: found["ratio"] for name, found in jumped.items()},
        "seconds_of_60_images": {name: found["seconds"] for name, found in jumped.items()},
        "motion_over_plain_decode": ratios(times, "motion", "decode", clips),
    }


def drifting(films):
    "The frames of some films, each twice, in a window that drifts, so that they are at 24 a second and all differ."
    from primenb.media.video import iter_frames

    n = 0
    for path in films:
        for frame in iter_frames(path, size=HEIGHT + 20):
            for _ in range(2):
                x, y = 10 + 8 * np.sin(n / 40), 10 + 8 * np.cos(n / 31)
                yield cv2.warpAffine(frame.image, np.array([[1, 0, -x], [0, 1, -y]]), (WIDTH, HEIGHT))
                n += 1


def looped(source, target, times):
    "The same packets again and again."
    with av.open(str(source)) as held, av.open(str(target), "w") as out:
        stream = held.streams.video[0]
        written = out.add_stream_from_template(stream)
        packets = [packet for packet in held.demux(stream) if packet.dts is not None]
        places = [(packet.pts, packet.dts) for packet in packets]
        length = sum(packet.duration for packet in packets)
        for k in range(times):
            for packet, (pts, dts) in zip(packets, places):
                again = av.Packet(bytes(packet))
                again.pts, again.dts = pts + k * length, dts + k * length
                again.duration, again.time_base = packet.duration, stream.time_base
                again.is_keyframe, again.stream = packet.is_keyframe, written
                out.mux(again)
    return target


# VmHWM is the peak of this program alone
ANALYSE = """
import sys
from primenb.cli import main
code = main(["analyse", sys.argv[1], "-o", sys.argv[2], "--quiet"])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def two_hours(folder):
    "Seconds, memory and page of a film of two hours."
    from primenb.core import root
    from primenb.media.video import encode

    films = [root() / f"data/films/{name}.mp4" for name in FILMS]
    base = encode(folder / "base.mp4", drifting(films), 24, crf=26, preset="veryfast", options={"g": "240"})
    film, out = looped(base, folder / "two_hours.mp4", 20), folder / "report"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", ANALYSE, film, out], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    facts = json.loads((out / "film.json").read_text())
    page = [out / "report.html", out / "strip.jpg", *(out / "thumbs").iterdir()]
    return dict(
        seconds=seconds, peak_mb=int(done.stdout.split()[-1]) / 1024,
        page_mb=sum(file.stat().st_size for file in page) / 1e6, report_html_mb=page[0].stat().st_size / 1e6,
        shots=facts["parts"]["shots"]["shots"], minutes=facts["info"]["duration"] / 60,
        seconds_of={name: part["seconds"] for name, part in facts["parts"].items()}, **scrolling(out / "report.html"))


SCROLL = """async () => {
  const frame = () => new Promise(done => requestAnimationFrame(done)), taken = [];
  let last = await frame();
  for (let i = 0; i < 200; i++) {
    scrollBy(0, 300);
    const now = await frame();
    taken.push(now - last);
    last = now;
  }
  return taken;
}"""


def scrolling(page):
    "Time until the page can be used, and between its frames while it is scrolled, in a browser without a GPU."
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        window = browser.new_page(viewport=dict(width=1360, height=800))
        started = time.perf_counter()
        window.goto(page.as_uri())
        loaded = time.perf_counter() - started
        taken = window.evaluate(SCROLL)
        browser.close()
    return dict(page_loaded_seconds=loaded, scroll_ms=dict(median=statistics.median(taken),
                                                           p95=float(np.percentile(taken, 95))))


def main():
    from primenb.core import root, save_metrics

    out = root() / "runs/bench/media.json"
    alone = sys.argv[1:] == ["two_hours"]

    started = time.perf_counter()
    real = Path(os.environ.get("PRIMENB_REAL", root() / "data/real"))
    clips = [str(real / f) for f in CLIPS] if real.is_dir() else [str(root() / "data/starter/starter.mp4")]
    metrics = json.loads(out.read_text()) if alone else jumps_and_motion(clips)
    metrics.pop("run", None)
    with tempfile.TemporaryDirectory() as folder: metrics["two_hours"] = two_hours(Path(folder))
    save_metrics(
        out, metrics, seconds=time.perf_counter() - started, seeds=[0], sizes={"rounds": ROUNDS, "images": IMAGES},
        date=datetime.date.today().isoformat(), footage=[Path(f).name for f in clips])
    print(json.dumps({name: value for name, value in json.loads(out.read_text()).items() if name != "run"}, indent=1))


if __name__ == "__main__":
    main()
