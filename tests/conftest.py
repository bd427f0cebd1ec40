"What the tests share: the project's folder, its tools, and the folder with real footage."
import os, subprocess, sys
from pathlib import Path

import pytest

from primenb.core import root

project = root(__file__)


def tool(*command, cwd=project) -> str:
    "Runs a program of this environment in a folder; returns what it printed, or fails with it."
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, cwd=cwd, env={**os.environ, "PATH": path}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="session")
def real() -> Path:
    "The folder with real footage that PRIMENB_REAL names."
    folder = (project / os.environ.get("PRIMENB_REAL", "../shared/real")).resolve()
    if not folder.is_dir(): pytest.skip(f"no real footage in {folder}: set PRIMENB_REAL")
    return folder
