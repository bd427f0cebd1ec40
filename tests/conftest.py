"What the tests share: the project's folder, its tools, a browser, and the folder with real footage."

import os, shutil, subprocess, sys
from dataclasses import fields
from pathlib import Path

import pytest

from primenb.core import root

project = root(__file__)


def tool(*command, cwd=project) -> str:
    "Runs a program of this environment in a folder; returns what it printed, or fails with it."
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": path}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
    return done.stdout


SHOT_NAMES = ("train_shots", "ShotObjective")


def train_until_killed(run, folder: Path, call: int = 5, given: str = "", names: tuple = ("train", "Objective")):
    """Trains a run in another process, which is killed when the objective is called for the n-th time.

    `names` are those of the function that trains and of the objective, in the module of the run; `given` is code for
    what the function takes between run and folder.
    """
    import torch

    threads = torch.get_num_threads()  # sums are added up in the same order as here
    module, settings = type(run).__module__, {f.name: getattr(run, f.name) for f in fields(run)}
    program = f"""
import os, signal, sys, torch
sys.path.insert(0, {str(Path(__file__).parent)!r})
torch.set_num_threads({threads})
from {module} import *
count = 0
def killed(self, trainer, batch, old={names[1]}.__call__):
    global count
    count += 1
    if count == {call}: os.kill(os.getpid(), signal.SIGKILL)
    return old(self, trainer, batch)
{names[1]}.__call__ = killed
{names[0]}({type(run).__name__}(**{settings!r}), {given}{str(folder)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert (folder / "checkpoint.pt").exists() and not (folder / "run.json").exists()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    "A test that would have to draw on a machine that cannot is skipped, and says which packages are missing."
    report = yield
    cause = str(call.excinfo.value) if call.excinfo else ""
    where = cause.find("drawing: this machine has no")
    if where >= 0:
        report.outcome, report.longrepr = "skipped", (str(item.path), 0, f"Skipped: {cause[where:].splitlines()[0]}")
    return report


@pytest.fixture(scope="session")
def browser():
    "Debian's Chromium without a window."
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium on this machine: on Debian or Ubuntu, apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def real() -> Path:
    "The folder with real footage that PRIMENB_REAL names."
    folder = (project / os.environ.get("PRIMENB_REAL", "data/real")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no real footage in {folder}: set PRIMENB_REAL")
    return folder


@pytest.fixture(scope="module")
def one_thread():
    "PyTorch with one thread, so that sums are added up in one order."
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
