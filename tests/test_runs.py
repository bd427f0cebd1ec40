"The life of a run: its key, its folder, loading from the folder alone, lengthening, grids, the command that trains."
import itertools
import json
import subprocess
import sys
from dataclasses import asdict, dataclass, fields, replace

import pytest
import torch
import yaml
from conftest import project
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from primenb.cli import TRAININGS, main
from primenb.core import PrimenbError
from primenb.learn.runs import MODULE, Made, Run, conduct, expand_grid, finished
from primenb.learn.runs import import_named, load, lr_schedule, name_of

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True, kw_only=True)
class LineRun(Run):
    "Fits a line."
    slope: float = 2.0
    workers: int = 0
    not_in_key = (*Run.not_in_key, "workers")


TINY = LineRun(epochs=3, batch_size=8, lr=0.05, device="cpu")


def fit(run, out, calls=None, finish=None, monitor="error"):
    "One small training; `calls` counts how often it was begun."
    def make():
        if calls is not None: calls.append(run)
        torch.manual_seed(run.seed)
        x = torch.linspace(-1, 1, 40)[:, None]
        model = nn.Linear(1, 1)
        model.settings = dict(in_features=1, out_features=1)
        return Made(model, DataLoader(TensorDataset(x, run.slope * x), run.batch_size, shuffle=True))

    def objective(trainer, batch): return dict(square_loss=(trainer.model(batch[0]) - batch[1]).square().mean())

    def evaluate(trainer): return dict(error=-abs(trainer.model.weight.item() - run.slope))

    return conduct(run, out, make, objective, evaluate, monitor=monitor, finish=finish)


def refused(make, *words):
    with pytest.raises(PrimenbError) as caught: make()
    for word in words: assert word in str(caught.value)


def test_a_finished_run_is_accepted_whatever_does_not_change_the_result(tmp_path):
    calls = []
    first = fit(TINY, tmp_path, calls)
    assert fit(replace(TINY, device="auto", workers=4, trackers=("tensorboard",)), tmp_path, calls) == first
    assert len(calls) == 1
    assert json.loads((tmp_path / "run.json").read_text()) == first
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.*")}
    stored = {f"{which}/{name}" for which in ("best", "last") for name in ("config.json", "model.safetensors")}
    assert stored | {"run.json", "curve.csv", "checkpoint.pt"} <= files


@pytest.mark.parametrize("change, words", [
    (dict(lr=0.1), "lr was 0.05 and is 0.1"), (dict(seed=1), "seed was 0 and is 1"), (dict(slope=3.0), "slope was 2.0"),
    (dict(epochs=2), "epochs was 3 and is 2"), (dict(epochs=4), "another course of the learning rate")])
def test_another_run_is_refused(tmp_path, change, words):
    fit(TINY, tmp_path)
    refused(lambda: fit(replace(TINY, **change), tmp_path), words)


def test_a_longer_run_is_the_run_that_was_longer_from_the_beginning(tmp_path):
    flat = replace(TINY, schedule="constant", warmup=0.0)
    fit(flat, tmp_path / "two parts")
    two_parts = fit(replace(flat, epochs=6), tmp_path / "two parts")
    at_once = fit(replace(flat, epochs=6), tmp_path / "at once")
    assert two_parts["curve"] == at_once["curve"]
    weights = [(tmp_path / part / "last/model.safetensors").read_bytes() for part in ("two parts", "at once")]
    assert weights[0] == weights[1]


def test_the_best_epoch_and_what_is_found_at_the_end_are_kept(tmp_path):
    result = fit(TINY, tmp_path, finish=lambda trainer, which: dict(weight=trainer.model.weight.item()))
    best = max(range(3), key=lambda epoch: result["curve"]["error"][epoch])
    assert abs(-abs(result["best"]["weight"] - 2) - result["curve"]["error"][best]) < 1e-3
    assert set(result) >= {"run", "seconds", "curve", "format", "last", "best"}


def test_without_a_monitor_the_last_epoch_is_the_best(tmp_path):
    fit(TINY, tmp_path, monitor=None)
    assert not (tmp_path / "best").exists() and (tmp_path / "last/model.safetensors").exists()


def test_a_folder_is_enough_to_load_a_model_in_another_process(tmp_path):
    from primenb.scenes.model import ShotNet
    net = ShotNet((4,), width=8, embed_dim=3)
    folder = tmp_path / "last"
    folder.mkdir()
    from safetensors.torch import save_model
    save_model(net, str(folder / "model.safetensors"))
    MODULE.describe(net, folder)
    (tmp_path / "run.json").write_text(json.dumps(dict(run={}, format=name_of(MODULE.read))))
    code = "import sys; from primenb.learn.runs import load; print(type(load(sys.argv[1])).__name__)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=project, capture_output=True, text=True)
    assert done.stdout.strip() == "ShotNet", done.stderr


def test_a_foreign_class_is_not_run(tmp_path):
    (tmp_path / "last").mkdir()
    (tmp_path / "run.json").write_text(json.dumps(dict(run={}, format="os:system")))
    refused(lambda: load(tmp_path), "os:system", "not of this library")
    refused(lambda: import_named("primenb.core:nothing"), "there is no such thing")


def test_damaged_and_missing_results_are_named(tmp_path):
    refused(lambda: load(tmp_path), "there is no finished run")
    (tmp_path / "run.json").write_text("{")
    refused(lambda: finished(tmp_path / "run.json", {}), "run.json", "not JSON")


@given(st.dictionaries(st.sampled_from(["seed", "epochs", "batch_size"]),
                       st.one_of(st.integers(0, 9), st.lists(st.integers(0, 9), min_size=1, max_size=3))))
def test_a_grid_is_every_combination(settings):
    runs = expand_grid(LineRun, settings)
    lists = [v if isinstance(v, list) else [v] for v in settings.values()]
    expected = [replace(LineRun(), **dict(zip(settings, values))) for values in itertools.product(*lists)]
    assert runs == expected


@given(st.floats(0, 1), st.integers(1, 300), st.sampled_from(["cosine", "constant"]))
def test_the_warm_up_is_a_share_of_the_steps(warmup, total, schedule):
    factor = lr_schedule(Run(warmup=warmup, schedule=schedule))
    steps = round(warmup * total)
    rising = [factor(t, total) for t in range(steps)]
    assert all(abs(f - (t + 1) / steps) < 1e-12 for t, f in enumerate(rising))
    assert all(0 <= factor(t, total) <= 1 for t in range(total + 1))


@pytest.mark.parametrize("name", TRAININGS)
def test_every_training_has_the_shared_settings(name):
    kind, train = map(import_named, TRAININGS[name])
    assert issubclass(kind, Run) and callable(train)
    assert {f.name for f in fields(Run)} <= {f.name for f in fields(kind)}
    assert "device" not in kind().key() and "trackers" not in kind().key()


SMALL = dict(
    shots=dict(epochs=1, frame_width=16, frame_height=9, width=8),
    mgm=dict(epochs=1, num_clips=8, width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1, image_size=16),
    motion_contrast=dict(epochs=1, num_clips=8, width=16, depth=1, heads=2, image_size=16, batch_size=4),
    clip=dict(epochs=1, num_images=64, batch_size=16, image_size=16, mixed_precision="no"),
    scenes=dict(num_steps=2, steps_per_epoch=2, batch_size=8, width=16, heads=2),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_command_trains_any_of_the_five(tmp_path, capsys, name):
    given = dict(SMALL[name], device="cpu")
    if name in ("mgm", "motion_contrast"): given["sidecars"] = str(tmp_path / "sidecars")
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(given))
    words = ["train", name, str(tmp_path / "p.yaml"), "--out", str(tmp_path / "run")]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "run")
    before = (tmp_path / "run/run.json").stat().st_mtime_ns
    assert main(words) == 0
    assert (tmp_path / "run/run.json").stat().st_mtime_ns == before, "a finished run is not repeated"
    assert load(tmp_path / "run") is not None


@pytest.mark.parametrize("text, words", [
    ("rate: 0.1", "there is no parameter 'rate'"), ("- 1", "it holds no settings"), ("a: [", "it is not YAML")])
def test_mistakes_in_a_file_of_settings_are_named(tmp_path, capsys, text, words):
    (tmp_path / "p.yaml").write_text(text)
    assert main(["train", "shots", str(tmp_path / "p.yaml"), "--out", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert words in said and "p.yaml" in said and not (tmp_path / "run").exists()


def test_lists_give_a_folder_each():
    from primenb.cli import _folders
    runs = expand_grid(LineRun, dict(seed=[0, 1], lr=0.1))
    from pathlib import Path
    assert [f.name for f in _folders(runs, Path("out"))] == ["seed=0", "seed=1"]
    assert _folders(runs[:1], Path("out")) == [Path("out")]
    assert asdict(runs[1])["seed"] == 1


@pytest.mark.parametrize(
    "given, said",
    [
        (dict(lr=[]), "lr is an empty list, so there is nothing to run"),
        (dict(rate=[]), "there is no parameter 'rate'"),
        (dict(trackers="tensorboard"), "give a list like"),
        (dict(lr=[], rate=1), "there is no parameter 'rate'"),
    ],
)
def test_settings_that_would_run_nothing_are_refused(given, said):
    "An empty list would make the grid empty, and a command that does nothing looks like one that is done."
    with pytest.raises(PrimenbError, match=said):
        expand_grid(Run, given, "params.yaml")
