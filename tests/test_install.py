"A bare installation in an environment of its own: what works, what says which extra is missing."

import json, os, subprocess, sys
from pathlib import Path

import pytest
from conftest import project

pytestmark = pytest.mark.slow

BARE = """
core reports results docstrings viz cli media.video media.motion media.shots learn.jobs data.records data.claims
data.depth data.corpus data.public mgm.masks clip.noise scenes.positives scenes.grouping scenes.files scenes.find
scenes.uses film.page film.analyse
""".split()
PROGRAM = """
import importlib, json, pkgutil, primenb
found = {}
for module in pkgutil.walk_packages(primenb.__path__, "primenb."):
    try: importlib.import_module(module.name)
    except Exception as e: found[module.name] = f"{type(e).__name__}: {e}"
    else: found[module.name] = "ok"
print(json.dumps(found))
"""


def clean():
    "The environment without what would let Python find the checkout."
    return {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    "Python in an environment with the wheel and what it requires, nothing else."
    folder = tmp_path_factory.mktemp("bare")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder]
    subprocess.run([*pip, project], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    python = folder / "environment/bin/python"
    install = [python, "-m", "pip", "install", "-q", "-c", project / "constraints.txt", wheel]
    done = subprocess.run(install, capture_output=True, text=True, cwd=folder, env=clean())
    assert done.returncode == 0, done.stderr
    return python


def run(python, *command):
    "A program of that environment, away from the checkout."
    where = Path(python).parents[2]
    return subprocess.run([python, *command], capture_output=True, text=True, cwd=where, env=clean())


def test_each_module_imports_or_names_its_extra(bare):
    found = json.loads(run(bare, "-c", PROGRAM).stdout)
    assert [m for m in BARE if found[f"primenb.{m}"] != "ok"] == []
    rest = [said for said in found.values() if said != "ok"]
    assert rest and [said for said in rest if not said.startswith("MissingExtra: primenb[")] == []


def test_a_film_is_analysed(bare, tmp_path):
    done = run(bare, "-m", "primenb.cli", "analyse", str(project / "data/starter/starter.mp4"), "-o", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "shots.csv").read_text().splitlines()) == 1 + 12
    assert {"report.html", "scenes.csv", "motion.csv"} <= {f.name for f in tmp_path.iterdir()}


def test_what_is_missing_is_said_in_one_line(bare, tmp_path):
    film = str(project / "data/starter/starter.mp4")
    done = run(bare, "-m", "primenb.cli", "analyse", film, "-o", str(tmp_path / "out"), "--parts", "cameras")
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1
    assert 'pip install "primenb[cameras]"' in done.stderr


def test_types_and_templates_are_in_the_wheel(bare):
    where = "import primenb, pathlib; print(*(p.name for p in pathlib.Path(primenb.__file__).parent.rglob('*.*')))"
    files = run(bare, "-c", where).stdout.split()
    assert "py.typed" in files and any(name.endswith(".j2") for name in files)
