"Training CLIP: what is read, what is random, what is equal for all methods, what is refused, and what resumes."
import io, json

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import project, tool
from primenb.clip.model import word_tokenizer
from primenb.clip.protocol import clip_task, load_clip_data, run_clip, training_pairs
from primenb.clip.train import CLIP_METHODS, ClipObjective, ClipRun, ImageTextTensors, augment_images, train_clip
from primenb.core import PrimenbError
from primenb.learn.runs import expand_grid, load
from primenb.studio.stills import write_tar

pytestmark = pytest.mark.usefixtures("one_thread")
small = dict(
    num_images=96, noise="0.4", epochs=2, batch_size=32, image_size=16, warmup=0.2, mixed_precision="no", device="cpu"
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    "A folder of labelled shards in the manner of CIFAR-10N: red images are birds, blue ones frogs."
    folder, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for split, n in (("train", 60), ("test", 40)):
        files = {}
        for i in range(n):
            name, other = ("bird", "frog") if i % 2 == 0 else ("frog", "bird")
            colour = np.array([200, 30, 30] if name == "bird" else [30, 30, 200])
            pixels = np.uint8(np.clip(colour + rng.normal(0, 20, (16, 16, 3)), 0, 255))
            Image.fromarray(pixels).save(png := io.BytesIO(), "PNG")
            about = {"class": name, "human_worse": other if i % 5 == 0 else name}
            files[f"{i:03d}.png"] = png.getvalue()
            files[f"{i:03d}.cls"] = str(2 if name == "bird" else 6).encode()
            files[f"{i:03d}.json"] = json.dumps(about).encode()
        write_tar(folder / f"{split}-00.tar", files)
    return folder


def weights(folder, which="last"): return load(folder, which).model.state_dict()


def same_weights(a, b): return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", CLIP_METHODS)
def test_every_method_trains(method, tmp_path):
    run = ClipRun(method=method, **small)
    result = run_clip(run, tmp_path)
    assert set(result) == {"run", "seconds", "curve", "format", "last", "best"}
    assert training_pairs(run)[2].mean() == pytest.approx(0.4, abs=0.01)
    for which in ("last", "best"):
        shares = [v for name, v in result[which].items() if "spearman" not in name and "biserial" not in name]
        assert all(0 <= value <= 1 for value in shares)
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert curve.step.tolist() == [3, 6], "all methods take the same number of steps, the oracle with fewer images too"
    assert run_clip(run, tmp_path) == result


def test_the_same_run_gives_the_same_weights(tmp_path):
    for name in "ab": run_clip(ClipRun(method="psd_likelihood", **small), tmp_path / name)
    assert same_weights(weights(tmp_path / "a"), weights(tmp_path / "b"))


def test_an_interrupted_run_resumes(tmp_path):
    "It is killed in the middle of the second epoch, and then goes on to the same weights."
    settings = dict(method="psd_ema", **{**small, "epochs": 3})
    run_clip(ClipRun(**settings), tmp_path / "whole")
    program = f"""
import os, signal, torch
torch.set_num_threads(1)
from primenb.clip.protocol import run_clip
from primenb.clip.train import ClipObjective, ClipRun
count, old = 0, ClipObjective.__call__
def killed(self, trainer, batch):
    global count
    count += 1
    if count == 5: os.kill(os.getpid(), signal.SIGKILL)
    return old(self, trainer, batch)
ClipObjective.__call__ = killed
run_clip(ClipRun(**{settings!r}), {str(tmp_path / "killed")!r})
"""
    with pytest.raises(AssertionError): tool("python", "-c", program)
    assert (tmp_path / "killed/checkpoint.pt").exists() and not (tmp_path / "killed/run.json").exists()
    run_clip(ClipRun(**settings), tmp_path / "killed")
    assert same_weights(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_other_settings_do_not_resume_a_run(tmp_path):
    run_clip(ClipRun(**small), tmp_path)
    other = ClipRun(lr=0.1, **small)
    with pytest.raises(PrimenbError, match="other settings: .*lr was 0.002 and is 0.1"): run_clip(other, tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(PrimenbError, match="lr was 0.002 and is 0.1"): run_clip(other, tmp_path)


def test_a_finished_run_loads_without_its_data(shards, tmp_path):
    "Its folder is a model of open_clip's, and the data may be gone; a run finished elsewhere is not trained again."
    data = tmp_path / "data"
    data.mkdir()
    for file in shards.iterdir(): (data / file.name).write_bytes(file.read_bytes())
    settings = dict(data=str(data), epochs=1, batch_size=30, image_size=16, mixed_precision="no")
    result = run_clip(ClipRun(device="cpu", **settings), tmp_path / "run")
    images = torch.randn(3, 3, 16, 16)
    for file in data.iterdir(): file.unlink()
    load_clip_data.cache_clear()
    assert run_clip(ClipRun(device="auto", **settings), tmp_path / "run") == result
    (tmp_path / "run").rename(tmp_path / "moved")
    for which in ("best", "last"):
        clip = load(tmp_path / "moved", which)
        assert torch.allclose(clip.encode_texts(["a photo of a bird"]).norm(dim=1), torch.ones(1))
        model = open_clip.create_model(f"local-dir:{tmp_path / 'moved' / which}").eval()
        with torch.no_grad(): expected = model.encode_image(images, normalize=True)
        torch.testing.assert_close(clip.encode_images(images), expected)


def test_images_need_not_fill_batches(tmp_path):
    assert "wrong_pair_auroc" in run_clip(ClipRun(**{**small, "num_images": 50}), tmp_path)["last"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=9), st.integers(0, 1000))
def test_captions_are_those_of_the_image(counts, seed):
    captions = [tuple(f"w{i} c{k}" for k in range(n)) for i, n in enumerate(counts)]
    tokenizer = word_tokenizer([c for some in captions for c in some])
    images = torch.arange(len(counts))[:, None, None, None].float().expand(-1, 3, 4, 4)
    data = ImageTextTensors(images, captions, tokenizer)
    torch.manual_seed(seed)
    numbers = np.random.default_rng(seed).integers(0, len(counts), 30).tolist()
    batch = data.__getitems__(numbers)
    own = [{tuple(t.tolist()) for t in tokenizer(list(some))} for some in captions]
    assert all(tuple(t.tolist()) in own[i] for t, i in zip(batch["text"], numbers))
    assert batch["image"][:, 0, 0, 0].tolist() == numbers == batch["key"].tolist()


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 1.0), st.integers(0, 1000))
def test_a_crop_shows_nothing_new(min_crop, seed):
    torch.manual_seed(seed)
    images = torch.rand(5, 3, 8, 8)
    crop = augment_images(images, min_crop)
    assert crop.shape == images.shape
    assert (crop.amin((2, 3)) >= images.amin((2, 3)) - 1e-5).all()
    assert (crop.amax((2, 3)) <= images.amax((2, 3)) + 1e-5).all()


def test_labelled_shards(shards, tmp_path):
    settings = dict(epochs=30, batch_size=30, image_size=16, mixed_precision="no", device="cpu", warmup=1 / 30)
    run = ClipRun(data=str(shards), noise="human_worse", **settings)
    noisy, _, wrong = training_pairs(run)
    assert len(noisy) == 60 and wrong.sum() == 12
    result = run_clip(run, tmp_path)
    assert result["best"]["test_accuracy"] > 0.9, "red and blue are told apart, though a fifth of the labels is wrong"
    assert result["best"]["wrong_pair_auroc"] > 0.65


def test_a_shard_cut_in_half_is_named(shards, tmp_path):
    for file in shards.iterdir(): (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / "train-00.tar"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    with pytest.raises(PrimenbError, match="train-00.tar"): training_pairs(ClipRun(data=str(tmp_path), noise="class"))


def test_what_is_not_there(shards, tmp_path):
    with pytest.raises(PrimenbError, match="no folder"): training_pairs(ClipRun(data="nowhere"))
    with pytest.raises(PrimenbError, match="no such label"): training_pairs(ClipRun(noise="human_worse"))
    with pytest.raises(PrimenbError, match="human_best"): training_pairs(ClipRun(data=str(shards), noise="human_best"))
    with pytest.raises(PrimenbError, match="train it first"): load(tmp_path)
    with pytest.raises(PrimenbError, match="there is no such method"): ClipObjective("clap")
    with pytest.raises(PrimenbError, match="there is no such method"): run_clip(ClipRun(method="clap"), tmp_path)


def test_the_oracle_needs_to_know_the_wrong_pairs(tmp_path):
    run = ClipRun(method="oracle", **small)
    clip, task = clip_task(run)
    task.wrong = None
    with pytest.raises(PrimenbError, match="which pairs are wrong"): train_clip(run, tmp_path, lambda: (clip, task))


def test_runs_are_the_product_of_lists():
    grid = dict(method=["clip", "oracle"], noise=["0.0", "0.4"], seed=[0, 1, 2], epochs=3, lr=0.001)
    runs = expand_grid(ClipRun, grid)
    assert len(runs) == len(set(runs)) == 12 and {r.epochs for r in runs} == {3}
    for wrong in (dict(seed=["a"]), dict(epochs="many"), dict(colour="red")):
        with pytest.raises(PrimenbError): expand_grid(ClipRun, wrong)


@pytest.mark.parametrize("name", ["params/clip.yaml", "params/full/clip.yaml", "params/real/clip.yaml"])
def test_the_methods_of_the_experiments_exist(name):
    given = yaml.safe_load((project / name).read_text())
    for names in ("methods", "core_methods", "under_test"): assert set(given[names]) <= set(CLIP_METHODS)
    assert set(given["under_test"]) <= set(given["core_methods"]) <= set(given["methods"])
    assert given["main_noise"] in given["noises"] and "clip" in given["core_methods"]


@pytest.mark.parametrize(
    "name,images", [("params/clip.yaml", 2000), ("params/full/clip.yaml", 6828), ("params/real/clip.yaml", 2500)]
)
def test_the_warmup_of_the_experiments_is_20_steps(name, images):
    given = yaml.safe_load((project / name).read_text())
    assert round(given["warmup"] * given["epochs"] * (images // given["batch_size"])) == 20


def test_a_loss_that_is_no_number_stops(tmp_path):
    run = ClipRun(lr=float("inf"), **small)
    with pytest.raises(PrimenbError, match="epoch .*, batch .*with samples"): run_clip(run, tmp_path)
