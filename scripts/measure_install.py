"""What an installation costs: `python scripts/measure_install.py results/install.json`.

Builds the wheel, installs it with each extra into an environment of its own, and measures its size on disk and the time
of `import primenb`. Takes some minutes and, for a moment, the size of the largest one (PyTorch for GPUs).
"""

import json, subprocess, sys, tempfile, time
from pathlib import Path

project = Path(__file__).resolve().parents[1]
EXTRAS = {
    "": "shots, scenes, motion, key-frames, masks, readers of data sets",
    "cameras": "a camera for every frame, exports",
    "studio": "objects in footage, drawn films",
    "all": "training: captions, masked video, shots and scenes",
}


def megabytes(folder: Path) -> int:
    "The size of a folder on disk."
    return round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.is_symlink()) / 1e6)


def measure(wheel: Path, extra: str, folder: Path) -> dict:
    "Size and import time of one installation, less an empty environment."
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    empty, python = megabytes(folder), folder / "bin/python"
    what = f"{wheel}[{extra}]" if extra else str(wheel)
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", project / "constraints.txt", what], check=True)

    def seconds(text):
        start = time.perf_counter()
        subprocess.run([python, "-c", text], check=True)
        return time.perf_counter() - start

    extra_time = min(seconds("import primenb") for _ in range(5)) - min(seconds("pass") for _ in range(5))
    size = dict(megabytes=megabytes(folder) - empty)
    return dict(adds=EXTRAS[extra], **size, import_milliseconds=round(1000 * max(extra_time, 0)))


def main(out: str):
    "Measures all and writes the file."
    found = {}
    with tempfile.TemporaryDirectory() as work:
        build = ["wheel", "-q", "--no-deps", "-w", work, project]
        subprocess.run([sys.executable, "-m", "pip", *build], check=True)
        (wheel,) = Path(work).glob("*.whl")
        kilobytes = round(wheel.stat().st_size / 1000)
        for extra in EXTRAS:
            name = f"pip install .[{extra}]" if extra else "pip install ."
            with tempfile.TemporaryDirectory() as folder:
                found[name] = measure(wheel, extra, Path(folder) / "environment")
            print(name, found[name])
    facts = dict(python=sys.version.split()[0], platform=sys.platform, wheel_kilobytes=kilobytes)
    Path(out).write_text(json.dumps(dict(installs=found, run=facts), indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
