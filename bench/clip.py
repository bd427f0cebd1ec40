"""What do the losses of progressive self-distillation cost beside CLIP's own, and the training loop beside open_clip's?

    python bench/clip.py

Everything on one thread of the processor. Contender and reference take turns step by step, or epoch by epoch, and a ratio is the
median over such pairs; beside the time on the clock stands the time the processor was at work for us, which says more while
others use the machine. Peaks of memory are those of processes that do nothing else. Writes runs/bench/clip.json.
"""

import ctypes
import datetime
import json
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
import types
from copy import deepcopy

import torch
from open_clip import CLIP
from open_clip_train.data import DataInfo
from open_clip_train.train import train_one_epoch
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader, TensorDataset

from primenb.clip.model import small_clip
from primenb.clip.train import METHODS
from primenb.core import root, save_metrics
from primenb.learn.engine import Trainer

CONTENDERS = [name for name in METHODS if name.startswith("psd_")] + ["albef"]
SECONDS = {"small": 35, "vit": 30}  # how long the steps of a model are compared
EPOCHS, BATCHES = 5, 4
CAPTIONS = ["a close-up of a dog in front of a red house by night", "two people in the snow, from far away"]


def build(name):
    "A model, and a batch for it."
    torch.manual_seed(0)
    if name == "small":
        clip = small_clip(CAPTIONS)
        return clip.model, pictures(256, 48), clip.tokenizer([CAPTIONS[n % 2] for n in range(256)])
    vision, text = {"image_size": 64, "patch_size": 16, "width": 192, "head_width": 32, "layers": 6}, {"context_length": 16, "vocab_size": 1000, "width": 192, "heads": 6, "layers": 4}
    return CLIP(192, vision, text, output_dict=True), pictures(128, 64), torch.randint(1000, (128, 16))


def pictures(n, size):
    return torch.randn(n, 3, size, size)


class Step:
    "A training step of one model with one loss, at the end of the training, when the share taught is the greatest."

    def __init__(self, model, images, texts, method):
        make, settings, decay = METHODS[method]
        self.model, self.batch = model, (images, texts)
        self.loss = make(**settings) if method == "clip" else make(total_steps=100, **settings)
        if method != "clip":
            self.loss.set_step(99)
        self.teacher = ModelEmaV3(model, decay=decay) if decay else None
        self.optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def __call__(self):
        out = dict(self.model(*self.batch))
        if self.teacher is not None:
            with torch.no_grad():
                out |= {f"dist_{name}": value for name, value in self.teacher.module(*self.batch).items()}
        sum(self.loss(**out, output_dict=True).values()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.teacher is not None:
            self.teacher.update(self.model)


def timed(do):
    "Seconds on the clock, and of the processor."
    clock, processor = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - clock, time.process_time() - processor


def ratios(pairs):
    "Medians of how many times the first of a pair takes the time of the second."
    each = [[a[kind] / b[kind] for a, b in pairs] for kind in (0, 1)]
    spread = statistics.quantiles(each[0], n=4)
    return {"clock": statistics.median(each[0]), "processor": statistics.median(each[1]), "clock_quartiles": [spread[0], spread[2]], "pairs": len(pairs)}


def steps(name):
    "Time of a step with each loss over that with CLIP's."
    model, *batch = build(name)
    clip = Step(model, *batch, "clip")
    contenders = {method: Step(model, *batch, method) for method in CONTENDERS}
    pairs, seconds = {method: [] for method in CONTENDERS}, []
    for step in (clip, *contenders.values()):
        step()
    end, turn = time.perf_counter() + SECONDS[name], 0
    while time.perf_counter() < end or turn < 4:
        turn += 1
        for method, step in contenders.items():
            if step.teacher is not None and turn > 2 and turn % 4:
                continue  # a second model costs what it costs: a few pairs tell
            order = (clip, step) if turn % 2 else (step, clip)
            took = {do: timed(do) for do in order}
            pairs[method].append((took[step], took[clip]))
            seconds.append(took[clip])
    middle = [statistics.median(kind) for kind in zip(*seconds)]
    return {"clip_milliseconds": {"clock": 1000 * middle[0], "processor": 1000 * middle[1]}, "over_clip": {method: ratios(one) for method, one in pairs.items()}}


def losses(name):
    "Milliseconds of the processor for forward and backward of each loss alone, given the vectors."
    n, found = {"small": 256, "vit": 128}[name], {}
    for method, (make, settings, decay) in METHODS.items():
        if method not in ("clip", *CONTENDERS):
            continue
        loss = make(**settings) if method == "clip" else make(total_steps=100, **settings)
        if method != "clip":
            loss.set_step(99)
        v, t = (torch.nn.functional.normalize(torch.randn(n, 64), dim=1).requires_grad_() for _ in range(2))
        scale = torch.tensor(20.0, requires_grad=True)
        more = {"dist_image_features": v.detach(), "dist_text_features": t.detach(), "dist_logit_scale": scale.detach()} if decay else {}
        found[method] = statistics.median(timed(lambda: loss(v, t, scale, **more).backward())[1] for _ in range(20)) * 1000
    return found


def status(name):
    "A line of what the kernel knows of this process, MB."
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(name)) / 1000


def peak(name, method, pipe):
    "In a process of its own: its peak after a few steps, and how far that is above what it held before there was a model."
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what is freed goes back at once, or else a peak depends on how the heap happened to be split up
    before = status("VmRSS")
    step = Step(*build(name), method)
    for _ in range(2):
        step()
    pipe.send((status("VmHWM"), status("VmHWM") - before))


def peaks(name):
    "Peak memory of training with each loss over that with CLIP's."
    fork, found = multiprocessing.get_context("fork"), {}  # a process that was forked begins with a peak of its own
    for _ in range(2 if name == "small" else 1):
        for method in ["clip", *CONTENDERS]:
            ours, theirs = fork.Pipe()
            child = fork.Process(target=peak, args=(name, method, theirs))
            child.start()
            theirs.close()
            found.setdefault(method, []).append(ours.recv())
            child.join()
    middle = {method: [statistics.median(kind) for kind in zip(*values)] for method, values in found.items()}
    return {
        "clip_mb": {"process": middle["clip"][0], "training": middle["clip"][1]},
        "over_clip": {method: {"process": middle[method][0] / middle["clip"][0], "training": middle[method][1] / middle["clip"][1]} for method in CONTENDERS},
    }


class Objective:
    "What open_clip's loop does with a batch, for ours."

    def __init__(self):
        self.loss = METHODS["clip"][0]()

    def __call__(self, trainer, batch):
        losses = self.loss(**trainer.model(*batch), output_dict=True)
        with torch.no_grad():
            trainer.model.logit_scale.clamp_(0, math.log(100))
        return losses


class Told(TensorDataset):
    "Data that note when our loop says that an epoch begins. What it writes after one is not part of it, nor is it of open_clip's `train_one_epoch`."

    epoch = None

    def set_epoch(self, epoch):
        if epoch != self.epoch:
            self.epoch, self.begun = epoch, (time.perf_counter(), time.process_time())


def loops():
    "Pairs per second of our loop over those of open_clip's; each trains a model of its own, epoch by epoch in turns."
    model, _, texts = build("small")
    data = Told(pictures(256 * BATCHES, 48), texts.repeat(BATCHES, 1))
    loader = DataLoader(data, 256, shuffle=True)
    loader.num_batches, loader.num_samples = len(loader), len(data)
    args = types.SimpleNamespace(device="cpu", precision="fp32", distill=False, accum_freq=1, skip_scheduler=True, grad_clip_norm=None, horovod=False, log_every_n_steps=100, batch_size=256, world_size=1, rank=0, local_rank=0, wandb=False)
    theirs, loss = deepcopy(model), METHODS["clip"][0]()
    optimizers = [torch.optim.AdamW(one.parameters(), 1e-4) for one in (model, theirs)]
    took = []

    def other(trainer):
        ours = [now - then for now, then in zip((time.perf_counter(), time.process_time()), data.begun)]
        took.append((timed(lambda: train_one_epoch(theirs, {"train": DataInfo(loader)}, loss, trainer.epoch, optimizers[1], None, None, None, args)), ours))
        return {}

    with tempfile.TemporaryDirectory() as folder:
        history = Trainer(model, Objective(), optimizers[0], folder, device="cpu").fit(loader, EPOCHS + 1, other)
    rates = len(data) / statistics.median(a[0] for a, _ in took[1:]), history.samples_per_second[1:].median()
    return {**ratios(took[1:]), "pairs_per_second": {"open_clip": rates[0], "primenb": rates[1]}}


def main():
    started = time.perf_counter()
    torch.set_num_threads(1)
    memory = {name: peaks(name) for name in SECONDS}
    metrics = {"step": {name: steps(name) for name in SECONDS}, "loss_milliseconds": {name: losses(name) for name in SECONDS}, "memory": memory, "loop_over_open_clip": loops()}
    for name, step in metrics["step"].items():  # the same from its parts, which is less at the mercy of the machine: what a loss takes more than CLIP's, over the step
        alone = metrics["loss_milliseconds"][name]
        step["over_clip_by_parts"] = {method: 1 + (alone[method] - alone["clip"]) / step["clip_milliseconds"]["processor"] for method in CONTENDERS if METHODS[method][2] is None}
    sizes = {"seconds": SECONDS, "epochs": EPOCHS, "batches": BATCHES}
    out = root() / "runs/bench/clip.json"
    save_metrics(out, metrics, seconds=time.perf_counter() - started, seeds=[0], sizes=sizes, date=datetime.date.today().isoformat())
    print(json.dumps({name: value for name, value in json.loads(out.read_text()).items() if name != "run"}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
