"Contracts of training CLIP: what is read, what is drawn, what is the same for all methods, what goes wrong clearly, and what is taken up again."
import io, json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import project, train_until_killed
from primenb.clip.model import small_clip
from primenb.clip.train import METHODS, Objective, PairTensors, Run, load_trained, main, plan, seen_part, train, training_pairs
from primenb.core import PrimenbError
from primenb.studio.stills import write_tar

pytestmark = pytest.mark.usefixtures("one_thread")
small = dict(pictures=96, noise="0.4", epochs=2, batch=32, image_size=16, precision="no", device="cpu")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    "A folder of labelled shards in the manner of CIFAR-10N: red pictures are birds, blue ones frogs."
    folder, rng = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for split, n in (("train", 60), ("test", 40)):
        files = {}
        for i in range(n):
            name = ("bird", "frog")[i % 2]
            colour = np.array([200, 30, 30] if name == "bird" else [30, 30, 200])
            Image.fromarray(np.uint8(np.clip(colour + rng.normal(0, 20, (16, 16, 3)), 0, 255))).save(png := io.BytesIO(), "PNG")
            about = {"class": name, "human_worse": ("frog", "bird")[i % 2] if i % 5 == 0 else name}
            files |= {f"{i:03d}.png": png.getvalue(), f"{i:03d}.cls": str(2 if name == "bird" else 6).encode(), f"{i:03d}.json": json.dumps(about).encode()}
        write_tar(folder / f"{split}-00.tar", files)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, tmp_path):
    result = train(Run(method=method, **small), tmp_path)
    assert set(result) == {"run", "wrong", "seconds", "curve", "last", "best"}
    assert result["wrong"] == pytest.approx(0.4, abs=0.01)
    assert all(0 <= value <= 1 for which in ("last", "best") for name, value in result[which].items() if "spearman" not in name and "biserial" not in name)
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert curve.step.tolist() == [3, 6], "all methods take the same number of steps, the oracle with its fewer pictures too"
    assert train(Run(method=method, **small), tmp_path) == result


def test_the_same_run_gives_the_same_weights(tmp_path):
    run = Run(method="psd_likelihood", **small)
    for name in "ab": train(run, tmp_path / name)
    a, b = (load_trained(run, tmp_path / name, "last").model.state_dict() for name in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_an_interrupted_run_goes_on(tmp_path):
    run = Run(method="psd_ema", **{**small, "epochs": 3})
    train(run, tmp_path / "whole")
    train_until_killed(run, tmp_path / "killed")
    train(run, tmp_path / "killed")
    a, b = (load_trained(run, tmp_path / name, "last").model.state_dict() for name in ("whole", "killed"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_other_settings_do_not_take_up_a_run(tmp_path):
    train(Run(**small), tmp_path)
    with pytest.raises(PrimenbError, match="other settings: rate was 0.002 and is 0.1"): train(Run(rate=0.1, **small), tmp_path)
    (tmp_path / "result.json").unlink()
    with pytest.raises(PrimenbError, match="rate was 0.002 and is 0.1"): train(Run(rate=0.1, **small), tmp_path)


def test_pictures_need_not_fill_batches(tmp_path):
    assert "wrong_pair_auroc" in train(Run(**{**small, "pictures": 50}), tmp_path)["last"]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=9), st.integers(0, 1000))
def test_captions_are_those_of_the_picture(counts, seed):
    captions = [tuple(f"w{i} c{k}" for k in range(n)) for i, n in enumerate(counts)]
    clip = words(captions)
    data = PairTensors(torch.arange(len(counts))[:, None, None, None].float().expand(-1, 3, 4, 4), captions, clip)
    torch.manual_seed(seed)
    numbers = np.random.default_rng(seed).integers(0, len(counts), 30).tolist()
    batch = data.__getitems__(numbers)
    own = [{tuple(t.tolist()) for t in clip(list(some))} for some in captions]
    assert all(tuple(t.tolist()) in own[i] for t, i in zip(batch["text"], numbers))
    assert batch["image"][:, 0, 0, 0].tolist() == numbers == batch["key"].tolist()


def words(captions):
    from primenb.clip.model import word_tokenizer
    return word_tokenizer([c for some in captions for c in some])


@settings(max_examples=20, deadline=None)
@given(st.floats(0.2, 1.0), st.integers(0, 1000))
def test_a_seen_part_shows_nothing_new(smallest, seed):
    torch.manual_seed(seed)
    images = torch.rand(5, 3, 8, 8)
    part = seen_part(images, smallest)
    assert part.shape == images.shape
    low, high = images.amin((2, 3)), images.amax((2, 3))
    assert (part.amin((2, 3)) >= low - 1e-5).all() and (part.amax((2, 3)) <= high + 1e-5).all()


def test_labelled_shards(shards, tmp_path):
    run = Run(data=str(shards), noise="human_worse", epochs=30, batch=30, image_size=16, precision="no", device="cpu", warmup=2)
    noisy, _, wrong = training_pairs(run)
    assert len(noisy) == 60 and wrong.sum() == 12
    result = train(run, tmp_path)
    assert result["best"]["test_accuracy"] > 0.9, "red and blue are told apart, though a fifth of the labels is wrong"
    assert result["best"]["wrong_pair_auroc"] > 0.65


def test_a_shard_cut_in_half_is_named(shards, tmp_path):
    for file in shards.iterdir(): (tmp_path / file.name).write_bytes(file.read_bytes())
    broken = tmp_path / "train-00.tar"
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    with pytest.raises(PrimenbError, match="train-00.tar"): training_pairs(Run(data=str(tmp_path), noise="class"))


def test_what_is_not_there(shards, tmp_path):
    with pytest.raises(PrimenbError, match="no folder"): training_pairs(Run(data="nowhere"))
    with pytest.raises(PrimenbError, match="no such label"): training_pairs(Run(noise="human_worse"))
    with pytest.raises(PrimenbError, match="human_best"): training_pairs(Run(data=str(shards), noise="human_best"))
    with pytest.raises(PrimenbError, match="train the run first"): load_trained(Run(**small), tmp_path)
    with pytest.raises(PrimenbError, match="there is no such method"): Objective("clap")


def test_a_plan_is_the_product_of_its_lists():
    runs = plan(dict(methods=["clip", "oracle"], noises="0.0 0.4", seeds="0 1 2", epochs=3, rate=0.001, workers=2))
    assert len(runs) == len(set(runs)) == 12 and {r.epochs for r in runs} == {3}
    committed = plan(yaml.safe_load((project / "params/clip.yaml").read_text()))
    assert len(committed) == len(set(committed)) and {r.method for r in committed} <= set(METHODS)
    for wrong in (dict(method="clap"), dict(seeds="a"), dict(epochs="many"), dict(colour="red")):
        with pytest.raises(PrimenbError): plan(wrong)


def test_the_command_line(shards, tmp_path, capsys):
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(dict(data=str(shards), noise="human_worse", methods="clip psd_self", epochs=1, batch=30, image_size=16, device="cpu")))
    main(["--params", str(params), "--out", str(tmp_path / "models")])
    assert capsys.readouterr().out.count("test accuracy") == 2
    assert len(list((tmp_path / "models").glob("*/result.json"))) == 2


def test_a_loss_that_is_no_number_stops(tmp_path):
    with pytest.raises(PrimenbError, match="epoch .*, batch .*with samples"): train(Run(rate=float("inf"), **small), tmp_path)
