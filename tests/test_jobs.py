"Workers of `run_jobs` and the process that started them."

import os, signal, subprocess, sys, time
from pathlib import Path

import pytest

from conftest import project

jobs = """
import os, sys, time
from pathlib import Path

def sleep(folder, n):
    (Path(folder) / f"{n}.new").write_text(str(os.getpid()))
    os.replace(Path(folder) / f"{n}.new", Path(folder) / f"{n}.pid")
    if n < 2: time.sleep(600)

if __name__ == "__main__":
    from primenb.learn.jobs import run_jobs
    folder, numbers = Path(sys.argv[1]), range(int(sys.argv[2]), 4)
    run_jobs([(folder / f"{n}.done", sleep, (sys.argv[1], n)) for n in numbers], 2, "sleepers")
"""


def alive(pid):
    "Whether a process is there and no zombie, which nobody may collect in a container."
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    try:
        return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for(true, seconds):
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.05)
    return true()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_parent_that_is_killed_at_work(tmp_path, stop):
    (tmp_path / "jobs.py").write_text(jobs)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "jobs.py", tmp_path, "0"], cwd=project, stderr=subprocess.DEVNULL
    )
    pids = lambda: [int(f.read_text()) for f in tmp_path.glob("*.pid")]
    try:
        assert wait_for(lambda: len(pids()) == 2, 60)
        assert all(alive(pid) for pid in pids()) and parent.pid not in pids()
        parent.send_signal(stop)
        parent.wait(10)
        assert wait_for(lambda: not any(alive(pid) for pid in pids()), 5)
    finally:
        for pid in [parent.pid, *pids()]:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def test_workers_whose_parent_lives_finish_their_jobs(tmp_path):
    (tmp_path / "jobs.py").write_text(jobs)
    done = subprocess.run(
        [sys.executable, tmp_path / "jobs.py", tmp_path, "2"], cwd=project, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert sorted(f.name for f in tmp_path.glob("*.pid")) == ["2.pid", "3.pid"]
