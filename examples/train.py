"""Trains an image classifier, faster: `python examples/train.py --data FOLDER`, or `fastres train`.

    torchrun --nproc-per-node 2 examples/train.py --data FOLDER --model resnext50_32x4d

This is a PyTorch training script with one line of fastres in it. A run that is killed goes on with
`--resume` from its last checkpoint and ends with the very weights that it would have had.
"""

import argparse
import sys
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torchvision.transforms import v2
from tqdm import tqdm

import fastres

from ..cli.errors import CliError
from .arguments import add_arguments, settings_of
from .checkpoint import Checkpoint, Position
from .data import Batch, Data, open_data
from .networks import build_network
from .processes import Processes, start_processes
from .recipe import moving_average, parameter_groups, warm_up_then_cosine
from .record import Record, say


def train(args: argparse.Namespace) -> None:
    """Trains, from the start or from the last checkpoint."""
    with start_processes(args.device) as processes:
        data = open_data(args, processes)
        for path in data.unreadable if processes.is_first else ():
            say(f"skipped a file that is no image: {path}")
        torch.manual_seed(args.seed)
        model = build_network(args.model, len(data.classes)).to(processes.device)
        model = model.to(memory_format=torch.channels_last)
        if not args.reference:
            model = fastres.accelerate(model)
        Run(args, processes, data, model).go()


class Run:
    """A model in training, and what belongs to it."""

    def __init__(
        self, args: argparse.Namespace, processes: Processes, data: Data, model: nn.Module
    ) -> None:
        self.args, self.processes, self.data, self.model = args, processes, data, model
        steps = args.epochs * data.steps
        self.optimizer = SGD(
            parameter_groups(model, args.weight_decay), args.lr, args.momentum, nesterov=True
        )
        self.schedule = warm_up_then_cosine(
            self.optimizer, round(args.warmup_epochs * data.steps), steps
        )
        self.average = moving_average(model, args.ema)
        self.record = Record(
            args.out if processes.is_first else None, data.classes, args.tensorboard
        )
        self.checkpoint = Checkpoint(
            args.out / "checkpoint.pt",
            settings_of(args, processes.count, len(data.train), data.classes),
            {
                "model": model,
                "average": self.average,
                "optimizer": self.optimizer,
                "schedule": self.schedule,
                "record": self.record,
            },
        )
        self.mixup = (
            v2.MixUp(alpha=args.mixup, num_classes=len(data.classes)) if args.mixup else None
        )
        self.broken = set(data.unreadable)

    def go(self) -> None:
        """Goes through the epochs that are left."""
        position = self.start()
        parallel = self.processes.parallel(self.model)
        while position.epoch < self.args.epochs:
            self.train_epoch(parallel, position)
            loss, confusion = self.evaluate()
            self.note(position, loss, confusion)
            position = Position(position.epoch + 1)
            self.save(position)
        self.record.finish()

    def start(self) -> Position:
        """The start, or where the last checkpoint is."""
        path = self.checkpoint.path
        self.args.out.mkdir(parents=True, exist_ok=True)
        found = path.is_file()
        self.processes.wait()
        if not found:
            return Position()
        if not self.args.resume:
            raise CliError(f"--out: there is a run in {path.parent}: --resume continues it")
        position = self.checkpoint.load(self.processes.device)
        if self.processes.is_first:
            say(f"resumes at epoch {position.epoch}, step {position.step} of {self.data.steps}")
        return position

    def train_epoch(self, parallel: nn.Module, position: Position) -> None:
        """Steps through the rest of an epoch; `position` tells how far it is."""
        parallel.train()
        saved = started = time.perf_counter()
        before = position.seconds
        batches = self.data.training_batches(position.epoch, position.step)
        images = self.data.steps * self.data.batch * self.processes.count
        for batch in self.follow(batches, f"epoch {position.epoch}", images, position.images):
            if not len(batch.labels):
                raise CliError(f"--data: {len(batch.broken)} images in a row cannot be read")
            loss = self.train_step(parallel, batch, position)
            position.step += 1
            position.images += len(batch.labels)
            position.loss_sum += loss * len(batch.labels)
            position.seconds = before + time.perf_counter() - started
            if time.perf_counter() - saved > self.args.save_every:
                self.save(position)
                saved = time.perf_counter()

    def train_step(self, parallel: nn.Module, batch: Batch, position: Position) -> float:
        """Forward, backward, update; returns the loss."""
        # Mixup and dropout depend on the step alone, too, so that a resumed run is the same run.
        step = position.epoch * self.data.steps + position.step
        torch.manual_seed(self.args.seed + step * self.processes.count + self.processes.rank)
        images, labels = self.to_device(batch)
        if self.mixup is not None:
            images, labels = self.mixup(images, labels)
        with self.autocast():
            logits = parallel(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.args.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.model)
        return loss.item()

    @torch.inference_mode()
    def evaluate(self) -> tuple[float, Tensor]:
        """Loss of the averaged weights on the held-out images, and the confusion matrix."""
        self.average.eval()
        classes = len(self.data.classes)
        counts = torch.zeros(classes**2, dtype=torch.long, device=self.processes.device)
        loss_sum = torch.zeros((), dtype=torch.double, device=self.processes.device)
        batches = self.data.validation_batches()
        for batch in self.follow(batches, "evaluation", len(self.data.validation)):
            if not len(batch.labels):
                continue
            images, labels = self.to_device(batch)
            with self.autocast():
                logits = self.average(images).float()
            loss_sum += F.cross_entropy(logits, labels, reduction="sum")
            counts += torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2)
        counts, loss_sum = self.processes.sum(counts), self.processes.sum(loss_sum)
        if not counts.any():
            raise CliError("--data: none of the held-out images can be read")
        return float(loss_sum / counts.sum()), counts.view(classes, classes).long()

    def follow(
        self, batches: Iterable[Batch], title: str, images: int, done: int = 0
    ) -> Iterable[Batch]:
        """The batches, with a progress bar; says once which images are broken."""
        count, interval = self.processes.count, 0.1 if sys.stderr.isatty() else 10
        with tqdm(
            total=images,
            initial=done * count,
            desc=title,
            unit=" images",
            disable=not self.processes.is_first,
            delay=interval,
            mininterval=interval,
            leave=False,
        ) as bar:
            for batch in batches:
                for path in set(batch.broken) - self.broken:
                    say(f"skipped a broken image: {path}")
                self.broken.update(batch.broken)
                yield batch
                bar.update(count * batch.size)

    def note(self, position: Position, loss: float, confusion: Tensor) -> None:
        """Records an epoch, in figures of all processes together."""
        local = torch.tensor([position.loss_sum, position.images], device=self.processes.device)
        loss_sum, images = self.processes.sum(local.double()).tolist()
        self.record.broken = self.processes.union(self.record.broken | self.broken)
        if self.processes.is_first:
            row = {
                "epoch": position.epoch,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "train_loss": loss_sum / images,
                "loss": loss,
                "accuracy": confusion.trace().item() / confusion.sum().item(),
                "seconds": position.seconds,
                "images_per_second": images / position.seconds,
                "broken_images": len(self.record.broken),
            }
            self.record.add(row, confusion)
            self.record.write()

    def save(self, position: Position) -> None:
        """Writes a checkpoint, in one process."""
        if self.processes.is_first:
            self.record.broken |= self.broken  # a resumed run does not see this epoch's again
            self.checkpoint.save(position)

    def to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Images, channels_last, and labels."""
        device = self.processes.device
        images = batch.images.to(device, memory_format=torch.channels_last, non_blocking=True)
        return images, batch.labels.to(device)

    def autocast(self) -> torch.autocast:
        """Computes in bfloat16 what is safe in it, if so asked."""
        kind = self.processes.device.type
        wanted = kind == "cuda" if self.args.amp is None else self.args.amp
        return torch.autocast(kind, torch.bfloat16, enabled=wanted)


def main() -> int:
    """Runs the script on its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        train(args)
    except CliError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
