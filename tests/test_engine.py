"The training loop: equal to one by hand, resumed to the last bit, the same on two processes, clear in what it refuses."

import math, os, random, signal, socket, subprocess, sys, textwrap, threading
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.tracking import GeneralTracker
from hypothesis import given, settings, strategies as st
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from primenb.core import PrimenbError
from primenb.learn.engine import Trainer, set_seed, warmup_cosine

pytestmark = pytest.mark.usefixtures("one_thread")


class Noisy(Dataset):
    "Samples that are changed by chance from all three generators, as augmentation does."

    def __init__(self, n=22):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.full((3,), i / self.n) + 0.1 * torch.rand(3) + 0.1 * random.random() + 0.1 * float(
            np.random.rand()
        ), i


def net(seed=0, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 1))


def loss(trainer, batch):
    "A regression whose target is the sample's number, with dropout and noise of its own."
    x, i = batch
    y = trainer.model(x)[:, 0]
    numbers = dict(square_loss=((y - i / 22 + 0.01 * torch.randn(len(y))) ** 2).mean(), number=i.float().mean())
    if trainer.teacher is not None:
        with torch.no_grad():
            numbers["teacher_loss"] = 0 * trainer.teacher(x).mean() + ((y - trainer.teacher(x)[:, 0]) ** 2).mean()
    return numbers


def make(folder, objective=loss, *, model=None, lr=0.05, optimizer=torch.optim.AdamW, **settings):
    model = model or net()
    return Trainer(
        model,
        objective,
        optimizer(model.parameters(), lr),
        folder,
        **dict(device="cpu", schedule=partial(warmup_cosine, warmup=3)) | settings,
    )


def data(size=4, workers=0, **more):
    return DataLoader(Noisy(), size, shuffle=True, num_workers=workers, **more)


def same(one, other):
    "Whether two trainers hold the same weights, bit by bit, and the same history but for the time."
    for a, b in ((one.model, other.model), (one.teacher, other.teacher)):
        if a is None:
            assert b is None
            continue
        a, b = a.state_dict(), b.state_dict()
        assert list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a), [
            k for k in a if not torch.equal(a[k], b[k])
        ]
    time = ["seconds", "samples_per_second"]
    pd.testing.assert_frame_equal(one.history.drop(columns=time), other.history.drop(columns=time), check_exact=True)


def refused(make, *words):
    with pytest.raises(PrimenbError) as caught:
        make()
    for word in words:
        assert word in str(caught.value), str(caught.value)


class Cut(Exception):
    "The plug is pulled: nothing is saved."


def cut_at(batch, objective=loss, how=None):
    "An objective that ends everything when it sees a batch for the n-th time."
    seen = [0]

    def cut(trainer, b):
        seen[0] += 1
        if seen[0] > batch:
            if how:
                how()
            else:
                raise Cut
        return objective(trainer, b)

    return cut


# ---- the loop itself


@pytest.mark.parametrize("clip", [None, 0.1])
def test_it_is_the_loop_by_hand(tmp_path, clip):
    g = torch.Generator().manual_seed(0)
    batches = [(torch.randn(5, 3, generator=g), torch.randn(5, 1, generator=g)) for _ in range(7)]

    def plain(seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))

    model = plain()
    optimizer = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: warmup_cosine(t, 6, 2))
    for epoch in range(2):
        for start in (0, 3, 6):
            group = batches[start : start + 3]
            for x, y in group:
                (((model(x) - y) ** 2).mean() / len(group)).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    ours = plain()
    trainer = Trainer(
        ours,
        lambda t, b: dict(mse_loss=((t.model(b[0]) - b[1]) ** 2).mean()),
        torch.optim.SGD(ours.parameters(), 0.3, momentum=0.9),
        tmp_path,
        schedule=partial(warmup_cosine, warmup=2),
        accumulation=3,
        clip_norm=clip,
        device="cpu",
    )
    trainer.fit(batches, 2)
    assert trainer.step == trainer.total == 6 and trainer.progress == 1
    for a, b in zip(model.parameters(), ours.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_history_is_the_mean_over_samples(tmp_path):
    batches = [(torch.full((n, 1), float(n)),) for n in (1, 2, 5)]
    seen = []

    def objective(trainer, batch):
        seen.append(trainer.progress)
        return dict(
            a_loss=(trainer.model(batch[0]) * 0 + batch[0]).mean(), size=len(batch[0]), b_loss=torch.tensor(0.5)
        )

    model = nn.Linear(1, 1)
    history = Trainer(model, objective, torch.optim.SGD(model.parameters(), 0.1), tmp_path, device="cpu").fit(
        batches, 2, lambda t: dict(accuracy=np.float32(0.25))
    )
    assert history.columns.tolist() == [
        "epoch",
        "step",
        "a_loss",
        "size",
        "b_loss",
        "lr",
        "seconds",
        "samples_per_second",
        "accuracy",
    ]
    assert (
        history.epoch.tolist() == [0, 1] and history.step.tolist() == [3, 6] and history.b_loss.tolist() == [0.5, 0.5]
    )
    np.testing.assert_allclose(history.a_loss, (1 + 4 + 25) / 8)
    np.testing.assert_allclose(history["size"], 30 / 8)
    assert seen == [i / 6 for i in range(6)]
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "curve.csv"), history)
    assert not list(tmp_path.glob(".*"))


def test_all_losses_are_minimised_and_nothing_else(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    w = lambda t: t.model.weight.sum()
    trainer = Trainer(
        model,
        lambda t, b: dict(up_loss=w(t), down_loss=-3 * w(t), other=100 * w(t)),
        torch.optim.SGD(model.parameters(), 1.0),
        tmp_path,
        device="cpu",
    )
    trainer.fit([torch.ones(2, 1)], 1)
    assert model.weight.item() == 2.0


class Tower(nn.Module):
    "A model with a mask of -inf outside its state, as text towers have."

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))
        self.register_buffer("mask", torch.full((3,), -math.inf), persistent=False)
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x):
        return (x * self.w).sum(-1)


def test_teacher_is_the_average_and_the_mask_stays(tmp_path):
    model, path = Tower(), []

    def objective(trainer, x):
        path.append((model.w.detach().clone(), trainer.teacher.w.clone(), trainer.teacher.training))
        return dict(a_loss=((trainer.model(x) - 1) ** 2).mean())

    trainer = Trainer(model, objective, torch.optim.SGD(model.parameters(), 0.1), tmp_path, ema=0.8, device="cpu")
    trainer.fit([torch.eye(3)] * 12, 1)
    average = torch.zeros(3)
    for t, (w, teacher, training) in enumerate(path):
        torch.testing.assert_close(teacher, average)
        assert not training
        after = path[t + 1][0] if t + 1 < len(path) else model.w.detach()
        decay = min(0.8, 1 - (1 + t) ** (-2 / 3))
        average = decay * average + (1 - decay) * after
    torch.testing.assert_close(trainer.teacher.w, average)
    assert trainer.teacher.mask.isinf().all() and not trainer.teacher.w.requires_grad


@given(st.integers(1, 400), st.integers(0, 100))
def test_schedule_rises_and_falls(total, warmup):
    warmup = min(warmup, total)
    f = np.array([warmup_cosine(t, total, warmup) for t in range(total + 5)])
    assert (
        (f >= 0).all() and (f <= 1).all() and (np.diff(f[:warmup]) > 0).all() and (np.diff(f[warmup:]) <= 1e-12).all()
    )
    assert not warmup or f[warmup - 1] == 1
    assert warmup == total or np.allclose(f[total:], 0)


# ---- order and chance


def order(folder, loader, epochs=2, seed=0, objective=None):
    "The samples of each epoch as they came, and what augmentation made of them."
    seen = [[] for _ in range(epochs)]

    def watch(trainer, batch):
        seen[trainer.epoch] += [(int(i), tuple(x.tolist())) for x, i in zip(*batch)]
        return loss(trainer, batch)

    make(folder, watch, seed=seed).fit(loader, epochs)
    return seen


def test_order_and_augmentation_depend_on_seed_and_epoch_only(tmp_path):
    torch.manual_seed(1)
    first = order(tmp_path / "a", loader := data())
    torch.manual_seed(2)
    np.random.seed(2)
    assert order(tmp_path / "b", loader) == first
    assert order(tmp_path / "c", data(workers=2, persistent_workers=True)) == first
    assert order(tmp_path / "d", data(generator=torch.Generator().manual_seed(5))) == first
    other = order(tmp_path / "e", data(), seed=1)
    assert sorted(i for i, _ in first[0]) == list(range(22))
    assert len({tuple(i for i, _ in epoch) for epoch in first + other}) == 4
    assert len({x for epoch in first + other for _, x in epoch}) == 88
    assert (
        type(loader.sampler).__name__ == "RandomSampler"
        and type(loader.dataset) is Noisy
        and type(loader.batch_sampler.sampler).__name__ == "RandomSampler"
    )


def test_weighted_sampling_depends_on_the_seed(tmp_path):
    weighted = lambda: DataLoader(Noisy(), 4, sampler=WeightedRandomSampler([1.0] * 22, 22))
    assert (
        order(tmp_path / "a", weighted())
        == order(tmp_path / "b", weighted())
        != order(tmp_path / "c", weighted(), seed=1)
    )


class Told(Noisy):
    "A data set whose samples say which epoch it was told."

    epoch = -1

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, i):
        return torch.full((3,), float(self.epoch)), i


class ToldSampler(BatchSampler):
    "Batches that begin elsewhere in each epoch."

    def __init__(self):
        self.epoch = -1

    def __len__(self):
        return 3

    def __iter__(self):
        return iter([[self.epoch * 5, 1 + b] for b in range(3)])

    def set_epoch(self, epoch):
        self.epoch = epoch


class Stream(IterableDataset):
    "A data set that is read in order, its chance its own."

    def __init__(self):
        self.epoch = -1

    def __len__(self):
        return 22

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        g = torch.Generator().manual_seed(self.epoch)
        for i in range(22):
            yield torch.full((3,), float(self.epoch)) + 1e-3 * torch.rand(3, generator=g), i


class Batches:
    "Neither a DataLoader nor a data set."

    def __len__(self):
        return 3

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for b in range(3):
            yield torch.full((2, 3), float(self.epoch)), torch.tensor([b, b + 1])


@pytest.mark.parametrize(
    "loader",
    [
        lambda: DataLoader(Told(), 4),
        lambda: DataLoader(Told(), 4, num_workers=1, persistent_workers=True),
        lambda: DataLoader(Stream(), 4),
        Batches,
    ],
)
def test_whoever_can_hear_is_told_the_epoch(tmp_path, loader):
    assert [{round(x[0]) for _, x in epoch} for epoch in order(tmp_path, loader(), 3)] == [{0}, {1}, {2}]


def test_batch_samplers_are_told_the_epoch(tmp_path):
    assert [
        [i for i, _ in epoch] for epoch in order(tmp_path, DataLoader(Noisy(), batch_sampler=ToldSampler()), 3)
    ] == [[e * 5, 1, e * 5, 2, e * 5, 3] for e in range(3)]


def test_chance_is_set_in_all_generators():
    def draw(*place):
        set_seed(*place)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert draw(0, 1) == draw(0, 1) and not set(draw(0, 1)) & set(draw(0, 2))


# ---- resuming


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 17), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.sampled_from(["no", "bf16"]))
def test_cut_anywhere_and_resumed_is_unbroken(tmp_path_factory, cut, save_every, accumulation, ema, precision):
    folder = tmp_path_factory.mktemp("run")
    kind = dict(
        save_every=save_every,
        accumulation=accumulation,
        ema=0.7 if ema else None,
        mixed_precision=precision,
        clip_norm=0.5,
        monitor="error",
    )
    judge = lambda t: dict(error=t.model[0].weight.detach().abs().sum() + torch.rand(()))
    whole, cut_off = make(folder / "a", **kind), make(folder / "b", cut_at(cut), **kind)
    whole.fit(data(), 3, judge)
    with pytest.raises(Cut):
        cut_off.fit(data(), 3, judge)
    resumed = make(folder / "b", model=net(9 if cut_off.checkpoint.exists() else 0), **kind)
    resumed.fit(data(), 3, judge)
    same(whole, resumed)
    for file in ("best/model", "last/model") + (("best/teacher", "last/teacher") if ema else ()):
        one, other = (load_file(folder / name / f"{file}.safetensors") for name in "ab")
        assert all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    "loader",
    [
        partial(data, workers=2),
        lambda: DataLoader(Stream(), 4),
        lambda: DataLoader(Stream(), 4, num_workers=1),
        Batches,
        lambda: DataLoader(Noisy(), batch_sampler=ToldSampler()),
    ],
)
def test_every_kind_of_loader_resumes(tmp_path, loader):
    whole, cut_off, resumed = make(tmp_path / "a"), make(tmp_path / "b", cut_at(5), save_every=2), make(tmp_path / "b")
    whole.fit(loader(), 3)
    with pytest.raises(Cut):
        cut_off.fit(loader(), 3)
    resumed.fit(loader(), 3)
    same(whole, resumed)


class Queue:
    "An objective with a state of its own."

    def __init__(self):
        self.queue = torch.zeros(4)

    def state_dict(self):
        return dict(queue=self.queue)

    def load_state_dict(self, state):
        self.queue = state["queue"]

    def __call__(self, trainer, batch):
        y = trainer.model(batch[0])[:, 0]
        self.queue = torch.cat([self.queue[1:], y.mean().detach()[None]])
        return dict(queue_loss=((y - self.queue.mean() - 1) ** 2).mean())


def test_state_of_the_objective_is_kept(tmp_path):
    class CutQueue(Queue):
        n = 0

        def __call__(self, trainer, batch):
            self.n += 1
            if self.n == 9:
                raise Cut
            return super().__call__(trainer, batch)

    whole, resumed = make(tmp_path / "a", Queue()), make(tmp_path / "b", Queue(), save_every=1)
    whole.fit(data(), 2)
    with pytest.raises(Cut):
        make(tmp_path / "b", CutQueue(), save_every=1).fit(data(), 2)
    resumed.fit(data(), 2)
    same(whole, resumed)


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from test_engine import Queue, data, make

    class Bomb:
        def __reduce__(self): os.kill(os.getpid(), signal.SIGKILL)

    class Dying(Queue):
        saved = 0
        def state_dict(self):
            self.saved += 1
            return dict(super().state_dict(), **(dict(bomb=Bomb()) if self.saved == 3 else dict()))
    make({folder!r}, Dying(), save_every=3, accumulation=2, ema=0.8, mixed_precision="bf16").fit(data(2), 4)
"""


def test_killed_in_the_middle_of_writing_a_checkpoint(tmp_path):
    "11 batches, so 6 steps an epoch: killed while the checkpoint of step 9, in the second epoch, is written."
    script = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), folder=str(tmp_path / "b"))
    died = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert (
        torch.load(tmp_path / "b/checkpoint.pt", weights_only=True)["place"]["step"] == 6
        and len(list((tmp_path / "b").glob(".checkpoint*"))) == 1
    )
    kind = dict(accumulation=2, ema=0.8, mixed_precision="bf16")
    whole, resumed = make(tmp_path / "a", Queue(), **kind), make(tmp_path / "b", Queue(), **kind)
    whole.fit(data(2), 4)
    resumed.fit(data(2), 4)
    same(whole, resumed)
    assert not list((tmp_path / "b").glob(".*"))


def test_failing_to_write_leaves_the_old_checkpoint(tmp_path):
    class Full(Queue):
        def state_dict(self):
            if self.queue.any() and os.path.exists(tmp_path / "checkpoint.pt"):
                return dict(queue=self.queue, bomb=open(os.devnull))
            return super().state_dict()

    with pytest.raises(TypeError):
        make(tmp_path, Full(), save_every=2).fit(data(), 2)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["place"]["step"] == 2 and not list(
        tmp_path.glob(".*")
    )


def test_a_finished_run_returns_at_once(tmp_path):
    first = make(tmp_path, ema=0.9)
    history = first.fit(data(), 2)
    again = make(tmp_path, cut_at(0), model=net(5), ema=0.9)
    pd.testing.assert_frame_equal(again.fit(data(), 2, lambda t: 1 / 0), history)
    same(first, again)


@pytest.mark.parametrize(
    "new, words",
    [
        (dict(lr=0.1), ["initial_lr of group 0 was 0.05 and is 0.1"]),
        (dict(accumulation=2), ["accumulation was 1 and is 2"]),
        (dict(clip_norm=1.0), ["clip_norm was None and is 1.0"]),
        (dict(ema=0.9), ["ema was None and is 0.9"]),
        (dict(mixed_precision="bf16"), ["mixed_precision was no and is bf16"]),
        (dict(seed=3), ["seed was 0 and is 3"]),
        (dict(optimizer=torch.optim.SGD), ["optimizer was AdamW and is SGD"]),
        (dict(schedule=None), ["schedule was [", "and is None"]),
        (dict(settings=dict(alpha=0.7)), ["alpha was 0.5 and is 0.7"]),
        (dict(objective=Queue()), ["parts was"]),
        (dict(model=net(width=9)), ["another model", "0.weight was (8, 3) and is (9, 3)"]),
        (dict(model=nn.Linear(3, 1)), ["another model", "0.weight was (8, 3) and is absent", "and 3 more"]),
    ],
)
def test_another_run_is_refused(tmp_path, new, words):
    make(tmp_path, settings=dict(alpha=0.5)).fit(data(11), 1)
    old = (tmp_path / "checkpoint.pt").read_bytes()
    refused(
        lambda: make(tmp_path, **dict(settings=dict(alpha=0.5)) | new).fit(data(11), 1),
        "checkpoint.pt",
        "another folder",
        *words,
    )
    assert (tmp_path / "checkpoint.pt").read_bytes() == old


def test_other_data_and_epochs_are_refused(tmp_path):
    make(tmp_path).fit(data(11), 3)
    refused(lambda: make(tmp_path).fit(data(11), 4), "4 epochs", "another course of the learning rate", "constant")
    refused(lambda: make(tmp_path).fit(data(11), 2), "epochs was 3 and is 2")
    refused(lambda: make(tmp_path).fit(data(4), 3), "batches was 2 and is 6")


def test_a_finished_run_is_lengthened_where_the_longer_one_would_have_been_the_same(tmp_path):
    flat = dict(schedule=lambda step, total: 0.5, ema=0.9)
    make(tmp_path / "two parts", **flat).fit(data(), 2)
    two_parts, at_once = make(tmp_path / "two parts", **flat), make(tmp_path / "at once", **flat)
    two_parts.fit(data(), 5)
    at_once.fit(data(), 5)
    same(two_parts, at_once)


def test_a_loss_that_depends_on_the_end_of_the_run_is_not_lengthened(tmp_path):
    class Ramp:
        depends_on_total = True

        def __call__(self, trainer, batch):
            return loss(trainer, batch)

    make(tmp_path, Ramp(), schedule=None).fit(data(), 1)
    refused(lambda: make(tmp_path, Ramp(), schedule=None).fit(data(), 2), "depends on its end, after 1 epochs")


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"nonsense" * 99])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    make(tmp_path).fit(data(11), 1)
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(damage(file.read_bytes()))
    refused(lambda: make(tmp_path).fit(data(11), 1), "checkpoint.pt", "cannot be read", "another folder")
    torch.save(dict(a=1), file)
    refused(lambda: make(tmp_path).fit(data(11), 1), "no checkpoint of a Trainer")


# ---- being stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves(tmp_path, number):
    before = signal.getsignal(number)
    whole, resumed = make(tmp_path / "a", accumulation=2), make(tmp_path / "b", accumulation=2)
    whole.fit(data(), 3)
    stopped = make(tmp_path / "b", cut_at(7, how=lambda: signal.raise_signal(number)), accumulation=2)
    with pytest.raises(KeyboardInterrupt, match="after step 4"):
        stopped.fit(data(), 3)
    assert signal.getsignal(number) is before
    assert torch.load(tmp_path / "b/checkpoint.pt", weights_only=True)["place"]["batch"] == 2
    resumed.fit(data(), 3)
    same(whole, resumed)


def test_a_signal_during_evaluation_ends_after_it(tmp_path):
    ring = lambda t: signal.raise_signal(signal.SIGTERM) or dict(a=1)
    trainer = make(tmp_path)
    for done in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(data(), 3, ring)
        assert len(trainer.history) == done
    assert len(trainer.fit(data(), 3, ring)) == 3


@pytest.fixture
def interruptible():
    "SIGINT as Python has it, also where the tests run in the background of a shell, which ignores it there."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_second_signal_stops_at_once(tmp_path, interruptible):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, cut_at(2, how=twice)).fit(data(), 3)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_it_runs_in_a_thread_too(tmp_path):
    before, rows = signal.getsignal(signal.SIGINT), []
    thread = threading.Thread(target=lambda: rows.append(len(make(tmp_path).fit(data(), 1))))
    thread.start()
    thread.join(60)
    assert rows == [1] and signal.getsignal(signal.SIGINT) is before


# ---- NaN


def poison(at, names):
    "Batches one of which spoils the loss, with names in one form or another."
    for b in range(6):
        x = torch.full((4, 3), torch.inf if b == at else 0.1 * b)
        i = torch.arange(4) + 10 * b
        yield (
            dict(key=[f"film_{k:02d}" for k in i.tolist()], x=x)
            if names == "key"
            else (x, i)
            if names == "index"
            else (x, torch.rand(4, 2))
        )


def bare_loss(trainer, batch):
    return dict(
        good_loss=torch.zeros(()),
        bad_loss=trainer.model(batch["x"] if isinstance(batch, dict) else batch[0]).square().mean(),
    )


@pytest.mark.parametrize(
    "names, words",
    [("key", ["samples film_40, film_41"]), ("index", ["samples 40, 41, 42, 43"]), (None, ["epoch 0, batch 4:"])],
)
def test_nan_names_the_batch_and_keeps_the_checkpoint(tmp_path, names, words):
    model = nn.Linear(3, 1)
    trainer = make(tmp_path, bare_loss, model=model, save_every=1)
    refused(
        lambda: trainer.fit(list(poison(4, names)), 2),
        "epoch 0, batch 4",
        "bad_loss is ",
        "still holds the last good step",
        *words,
    )
    assert all(p.isfinite().all() for p in model.parameters())
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert kept["place"]["step"] == 4 and all(v.isfinite().all() for v in kept["parts"]["model"].values())
    whole, resumed = (
        make(tmp_path / "a", bare_loss, model=nn.Linear(3, 1)),
        make(tmp_path, bare_loss, model=nn.Linear(3, 1)),
    )
    whole.model.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["parts"]["model"])
    resumed.fit(list(poison(-1, names)), 2)
    assert resumed.step == 12


def test_nan_before_the_first_checkpoint(tmp_path):
    refused(
        lambda: make(tmp_path, bare_loss, model=nn.Linear(3, 1)).fit(list(poison(0, None)), 2),
        "batch 0",
        "no checkpoint had been written yet",
    )


# ---- evaluation, best and last


def test_evaluation_mode_best_and_last(tmp_path):
    scores, modes, weights = iter([0.2, 0.9, 0.9, math.nan, 0.5]), [], []

    def judge(trainer):
        modes.append(any(m.training for m in trainer.model.modules()))
        weights.append(trainer.model[0].weight.detach().clone())
        return dict(accuracy=next(scores))

    trainer = make(tmp_path, monitor="accuracy", ema=0.5)
    trainer.fit(data(), 5, judge)
    assert (
        not any(modes)
        and all(m.training for m in trainer.model.modules())
        and not any(m.training for m in trainer.teacher.modules())
    )
    for which, epoch in (("best", 1), ("last", 4)):
        assert torch.equal(load_file(tmp_path / which / "model.safetensors")["0.weight"], weights[epoch])
        trainer.load(which)
        assert torch.equal(trainer.model[0].weight, weights[epoch])
    trainer.load()
    assert torch.equal(trainer.model[0].weight, weights[1]) and torch.equal(
        trainer.teacher[0].weight, load_file(tmp_path / "best/teacher.safetensors")["0.weight"]
    )


def test_of_a_loss_the_lowest_is_best(tmp_path):
    values, weights = iter([0.5, 0.1, 0.3]), []
    make(tmp_path, monitor="val_loss").fit(
        data(), 3, lambda t: weights.append(t.model[0].weight.detach().clone()) or dict(val_loss=next(values))
    )
    assert torch.equal(load_file(tmp_path / "best/model.safetensors")["0.weight"], weights[1])


def test_tied_weights_are_kept(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = self.b = nn.Linear(3, 3)

        def forward(self, x):
            return self.b(self.a(x))

    trainer = make(tmp_path, model=Tied(), monitor="square_loss")
    trainer.fit(data(), 2)
    before = trainer.model.a.weight.detach().clone()
    trainer.load("last")
    assert torch.equal(trainer.model.b.weight, before)


def test_what_cannot_be_understood_is_refused(tmp_path):
    refused(lambda: make(tmp_path, lambda t, b: dict(loss=torch.zeros(()))).fit(data(), 1), "objective", "_loss")
    refused(lambda: make(tmp_path, monitor="acuracy").fit(data(), 1, lambda t: dict(accuracy=1)), "acuracy", "accuracy")
    refused(lambda: make(tmp_path).fit(data(), 1, lambda t: dict(square_loss=1)), "square_loss", "another name")
    refused(lambda: make(tmp_path).fit((b for b in data()), 1), "its number of batches is not known")
    refused(lambda: make(tmp_path).fit([], 1), "epoch 0 has no batch")
    refused(lambda: make(tmp_path / "new").load(), "no such file", "monitor")
    refused(lambda: make(tmp_path, mixed_precision="fp16"), "fp16 needs a GPU")
    if not torch.cuda.is_available():
        refused(lambda: make(tmp_path, device="cuda"), "cuda", "not there")


def test_a_loader_that_is_used_up_is_named(tmp_path):
    class Once:
        def __init__(self):
            self.batches = iter(list(data()))

        def __len__(self):
            return 6

        def __iter__(self):
            return self.batches

    refused(lambda: make(tmp_path).fit(Once(), 2), "epoch 1 has no batch", "generator")


# ---- several trainers, precision, trackers, bars


def test_precisions_side_by_side(tmp_path):
    "Accelerate keeps its settings for the whole process; trainers made together must each keep their own."
    kinds, seen = ("bf16", "no", "bf16"), {}

    def kind(n):
        def objective(trainer, batch):
            hidden = []
            hook = trainer.model[0].register_forward_hook(lambda m, i, o: hidden.append(o.dtype))
            numbers = loss(trainer, batch)
            hook.remove()
            seen[n] = (hidden[0], trainer.model(batch[0]).dtype, trainer.accelerator.mixed_precision)
            return numbers

        return objective

    trainers = [make(tmp_path / str(n), kind(n), mixed_precision=k) for n, k in enumerate(kinds)]
    for trainer in trainers:
        trainer.fit(data(), 1)
    assert seen == {
        n: (torch.bfloat16 if k == "bf16" else torch.float32, torch.float32, k) for n, k in enumerate(kinds)
    }
    make(tmp_path / "again", kind("again"), model=trainers[0].model).fit(data(), 1)
    assert seen["again"][0] == torch.float32
    assert trainers[0].model[0].weight.dtype == torch.float32


class Notes(GeneralTracker):
    name, requires_logging_directory, tracker = "notes", False, None

    def __init__(self):
        super().__init__()
        self.rows, self.ended = [], False

    def store_init_configuration(self, values):
        pass

    def log(self, values, step, **more):
        self.rows.append((step, values))

    def finish(self):
        self.ended = True


def test_trackers_get_the_rows(tmp_path):
    notes = Notes()
    history = make(tmp_path, trackers=(notes,)).fit(data(), 2, lambda t: dict(score=t.epoch))
    assert (
        [s for s, _ in notes.rows] == [6, 12]
        and [v for _, v in notes.rows] == history.to_dict("records")
        and notes.ended
    )


def test_it_is_silent_where_nobody_looks(tmp_path, capfd):
    make(tmp_path, ema=0.9, mixed_precision="bf16").fit(data(), 2)
    assert capfd.readouterr() == ("", "")


# ---- two processes

PAIR = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    from test_engine import pair
    rank = int(os.environ["RANK"])
    def ring(trainer, batch):
        if rank == 1 and trainer.step == 3 and trainer.batch % 2: signal.raise_signal(signal.SIGTERM)
    pair({folder!r} + "/whole", 4)
    try: pair({folder!r} + "/broken", 4, ring)
    except KeyboardInterrupt as e: print("STOPPED " + str(e).split(";")[0] + "\\n", end="", flush=True)
    pair({folder!r} + "/broken", 4)
"""


def pair(folder, size, before=lambda trainer, batch: None):
    "Two epochs of 20 steps of a small regression, with whatever could go wrong between processes."
    torch.set_num_threads(1)
    torch.manual_seed(int(os.environ.get("RANK", 0)) if size == 4 else 0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    g = torch.Generator().manual_seed(0)
    samples = TensorDataset(torch.randn(320, 3, generator=g), torch.arange(320))

    def objective(trainer, batch):
        before(trainer, batch)
        return dict(
            square_loss=((trainer.model(batch[0])[:, 0] - batch[1] / 160) ** 2).mean(), mean=batch[1].float().mean()
        )

    trainer = Trainer(
        model,
        objective,
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        folder,
        accumulation=2,
        clip_norm=0.3,
        ema=0.8,
        save_every=100,
        schedule=warmup_cosine,
        monitor="rank",
        device="cpu",
    )
    trainer.fit(DataLoader(samples, size, shuffle=True), 2, lambda t: dict(rank=t.accelerator.process_index))
    return trainer


def test_two_processes_with_half_batches_are_one(tmp_path):
    "And they stop together when one of them is asked to, and go on to the same weights."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    script = tmp_path / "pair.py"
    script.write_text(textwrap.dedent(PAIR).format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "--master-addr",
            "127.0.0.1",
            "--master-port",
            str(port),
            str(script),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("STOPPED stopped after step 16") == 2
    one = pair(tmp_path / "one", 8)
    for name in ("last/model", "last/teacher"):
        whole, broken, alone = (
            load_file(tmp_path / folder / f"{name}.safetensors") for folder in ("whole", "broken", "one")
        )
        for key in alone:
            assert torch.equal(whole[key], broken[key])
            torch.testing.assert_close(whole[key], alone[key], rtol=1e-4, atol=1e-6)
    curves = [pd.read_csv(tmp_path / folder / "curve.csv") for folder in ("whole", "broken", "one")]
    assert (
        curves[0].step.tolist() == [20, 40]
        and curves[0]["mean"].round(6).eq(159.5).all()
        and curves[0]["rank"].eq(0).all()
    )
    np.testing.assert_allclose(curves[0].square_loss, curves[2].square_loss, rtol=1e-4)
    assert curves[0].square_loss.tolist() == curves[1].square_loss.tolist()
