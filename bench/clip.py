"""The cost of the self-distillation losses relative to CLIP's own, and of the training loop relative to open_clip's.

    python bench/clip.py

Everything on one CPU thread. Contender and reference alternate step by step, or epoch by epoch, and a ratio is the
median over such pairs. Beside the wall-clock time stands the CPU time, which says more while others use the machine.
Peaks of memory are those of processes that do nothing else. Writes runs/bench/clip.json.
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
from primenb.clip.train import CLIP_METHODS
from primenb.core import root, save_metrics
from primenb.learn.engine import Trainer

CONTENDERS = [name for name in CLIP_METHODS if name.startswith("psd_")] + ["albef"]
SECONDS = {"small": 35, "vit": 30}  # how long the steps of a model are compared
EPOCHS, BATCHES = 5, 4
CAPTIONS = ["a close-up of a dog in front of a red house by night", "two people in the snow, from far away"]


def build(name):
    "A model, and a batch for it."
    torch.manual_seed(0)
    if name == "small":
        clip = small_clip(CAPTIONS)
        return clip.model, images_of(256, 48), clip.tokenizer([CAPTIONS[n % 2] for n in range(256)])
    vision = {"image_size": 64, "patch_size": 16, "width": 192, "head_width": 32, "layers": 6}
    text = {"context_length": 16, "vocab_size": 1000, "width": 192, "heads": 6, "layers": 4}
    return CLIP(192, vision, text, output_dict=True), images_of(128, 64), torch.randint(1000, (128, 16))


def images_of(n, size):
    "(n,3,size,size) noise."
    return torch.randn(n, 3, size, size)


def late_loss(method):
    "The loss of a method near the end of the training."
    make, settings = CLIP_METHODS[method][:2]
    if method == "clip":
        return make(**settings)
    loss = make(total_steps=100, **settings)
    loss.set_step(99)
    return loss


class Step:
    "A training step of one model with one loss, at the end of the training, when the distilled share is largest."

    def __init__(self, model, images, texts, method):
        decay = CLIP_METHODS[method][2]
        self.model, self.batch = model, (images, texts)
        self.loss = late_loss(method)
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
    "Seconds of wall-clock and of CPU time."
    clock, processor = time.perf_counter(), time.process_time()
    do()
    return time.perf_counter() - clock, time.process_time() - processor


def ratios(pairs):
    "Medians of the time of the first of a pair over that of the second."
    clock, processor = ([a[kind] / b[kind] for a, b in pairs] for kind in (0, 1))
    quartiles = statistics.quantiles(clock, n=4)[::2]
    middle = {"clock": statistics.median(clock), "processor": statistics.median(processor)}
    return {**middle, "clock_quartiles": quartiles, "pairs": len(pairs)}


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
                continue  # the cost of a second model is large: a few pairs suffice
            order = (clip, step) if turn % 2 else (step, clip)
            took = {do: timed(do) for do in order}
            pairs[method].append((took[step], took[clip]))
            seconds.append(took[clip])
    middle = [statistics.median(kind) for kind in zip(*seconds)]
    milliseconds = {"clock": 1000 * middle[0], "processor": 1000 * middle[1]}
    return {"clip_milliseconds": milliseconds, "over_clip": {method: ratios(one) for method, one in pairs.items()}}


def losses(name):
    "CPU milliseconds for forward and backward of each loss alone, given the embeddings."
    n, found = {"small": 256, "vit": 128}[name], {}
    for method in ("clip", *CONTENDERS):
        loss, more = late_loss(method), {}
        v, t = (torch.nn.functional.normalize(torch.randn(n, 64), dim=1).requires_grad_() for _ in range(2))
        scale = torch.tensor(20.0, requires_grad=True)
        if CLIP_METHODS[method][2]:
            names = ("dist_image_features", "dist_text_features", "dist_logit_scale")
            more = {name: value.detach() for name, value in zip(names, (v, t, scale))}
        found[method] = statistics.median(
            timed(lambda: loss(v, t, scale, **more).backward())[1] for _ in range(20)
        ) * 1000
    return found


def status(name):
    "A line of this process's status in the kernel, MB."
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(name)) / 1000


def peak(name, method, pipe):
    "In a process of its own: its peak after a few steps, and how far that is above its memory before the model."
    # M_MMAP_THRESHOLD: freed memory is returned at once; otherwise a peak depends on the fragmentation of the heap
    ctypes.CDLL(None).mallopt(-3, 1 << 16)
    before = status("VmRSS")
    step = Step(*build(name), method)
    for _ in range(2):
        step()
    pipe.send((status("VmHWM"), status("VmHWM") - before))


def peaks(name):
    "Peak memory of training with each loss over that with CLIP's."
    fork, found = multiprocessing.get_context("fork"), {}  # a forked process starts with a peak of its own
    for _ in range(2 if name == "small" else 1):
        for method in ["clip", *CONTENDERS]:
            receiver, sender = fork.Pipe()
            child = fork.Process(target=peak, args=(name, method, sender))
            child.start()
            sender.close()
            found.setdefault(method, []).append(receiver.recv())
            child.join()
    middle = {method: [statistics.median(kind) for kind in zip(*values)] for method, values in found.items()}
    names, over = ("process", "training"), {}
    for method in CONTENDERS:
        over[method] = {name: a / b for name, a, b in zip(names, middle[method], middle["clip"])}
    return {"clip_mb": dict(zip(names, middle["clip"])), "over_clip": over}


class Objective:
    "The loss of a batch as in open_clip's loop, for our engine."

    def __init__(self):
        self.loss = CLIP_METHODS["clip"][0]()

    def __call__(self, trainer, batch):
        losses = self.loss(**trainer.model(*batch), output_dict=True)
        with torch.no_grad():
            trainer.model.logit_scale.clamp_(0, math.log(100))
        return losses


class TimedData(TensorDataset):
    "Data that record when our loop starts an epoch. Writing files after an epoch is not timed in either loop."

    epoch = None

    def set_epoch(self, epoch):
        if epoch != self.epoch:
            self.epoch, self.begun = epoch, (time.perf_counter(), time.process_time())


def loops():
    "Pairs per second of our loop over those of open_clip's; each trains a model of its own, epoch by epoch in turns."
    model, texts = build("small")[::2]
    data = TimedData(images_of(256 * BATCHES, 48), texts.repeat(BATCHES, 1))
    loader = DataLoader(data, 256, shuffle=True)
    loader.num_batches, loader.num_samples = len(loader), len(data)
    args = {"device": "cpu", "precision": "fp32", "accum_freq": 1, "grad_clip_norm": None, "log_every_n_steps": 100}
    args |= {"batch_size": 256, "world_size": 1, "rank": 0, "local_rank": 0}
    args |= {"distill": False, "skip_scheduler": True, "horovod": False, "wandb": False}
    args = types.SimpleNamespace(**args)
    reference, loss = deepcopy(model), CLIP_METHODS["clip"][0]()
    optimizers = [torch.optim.AdamW(one.parameters(), 1e-4) for one in (model, reference)]
    took = []

    def other(trainer):
        engine = [now - then for now, then in zip((time.perf_counter(), time.process_time()), data.begun)]
        info = {"train": DataInfo(loader)}

        def epoch():
            train_one_epoch(reference, info, loss, trainer.epoch, optimizers[1], None, None, None, args)

        took.append((timed(epoch), engine))
        return {}

    with tempfile.TemporaryDirectory() as folder:
        history = Trainer(model, Objective(), optimizers[0], folder, device="cpu").fit(loader, EPOCHS + 1, other)
    rates = len(data) / statistics.median(a[0] for a, _ in took[1:]), history.samples_per_second[1:].median()
    return {**ratios(took[1:]), "pairs_per_second": {"open_clip": rates[0], "primenb": rates[1]}}


def main():
    started = time.perf_counter()
    torch.set_num_threads(1)
    memory = {name: peaks(name) for name in SECONDS}
    metrics = {"step": {name: steps(name) for name in SECONDS}}
    metrics["loss_milliseconds"] = {name: losses(name) for name in SECONDS}
    metrics |= {"memory": memory, "loop_over_open_clip": loops()}
    for name, step in metrics["step"].items():  # less noisy: the difference of the losses alone, over the step
        alone, whole = metrics["loss_milliseconds"][name], step["clip_milliseconds"]["processor"]
        without_teacher = [method for method in CONTENDERS if CLIP_METHODS[method][2] is None]
        step["over_clip_by_parts"] = {m: 1 + (alone[m] - alone["clip"]) / whole for m in without_teacher}
    sizes = {"seconds": SECONDS, "epochs": EPOCHS, "batches": BATCHES}
    out = root() / "runs/bench/clip.json"
    save_metrics(
        out, metrics, seconds=time.perf_counter() - started, seeds=[0], sizes=sizes,
        date=datetime.date.today().isoformat()
    )
    print(json.dumps({name: value for name, value in json.loads(out.read_text()).items() if name != "run"}, indent=1))


if __name__ == "__main__":
    sys.exit(main())
