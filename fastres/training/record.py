"""What a run leaves to look at: a table, TensorBoard's log, curves, a confusion matrix."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import _plots
from .._table import format_table
from ..cli.errors import CliError
from .checkpoint import write_atomically

__all__ = ["Record", "say"]

#: Up to so many classes a matrix is readable with its counts in it.
_READABLE_CLASSES = 20


def say(text: str) -> None:
    """Prints a line on stderr, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


class Record:
    """The epochs of a run; files are written by the first process only.

    ``log.csv`` has a row for each epoch, ``curves.png`` shows them, ``confusion.png`` and
    ``confusion.csv`` tell which class (row) is taken for which (column). ``broken`` are the files
    that could not be read, to be counted.

    Args:
        folder: where the files go; None where another process writes them.
        classes: their names.
        tensorboard: whether to write TensorBoard's log, too.
    """

    def __init__(self, folder: Path | None, classes: Sequence[str], tensorboard: bool) -> None:
        self.folder = folder
        self.classes = list(classes)
        self.rows: list[dict[str, float]] = []
        self.confusion = torch.zeros(len(classes), len(classes), dtype=torch.long)
        self.broken: set[str] = set()
        self._with_tensorboard = tensorboard and folder is not None
        self._writer: Any = None
        if self._with_tensorboard:
            self._check_tensorboard()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"rows": self.rows, "confusion": self.confusion, "broken": sorted(self.broken)}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Takes up a record where a checkpoint left it."""
        self.rows, self.confusion = state["rows"], state["confusion"].cpu()
        self.broken = set(state.get("broken", ()))  # older checkpoints have none

    def add(self, row: dict[str, float], confusion: Tensor) -> None:
        """Notes an epoch: figures by name, of which ``epoch`` is the first."""
        self.rows.append(row)
        self.confusion = confusion.cpu()
        print("  ".join(f"{name} {value:.6g}" for name, value in row.items()), flush=True)
        for name, value in row.items():
            if self._with_tensorboard and name != "epoch":
                self._tensorboard().add_scalar(name, value, int(row["epoch"]))

    def write(self) -> None:
        """Writes the table and the curves."""
        if self.folder is None or not self.rows:
            return
        _write_csv(
            self.folder / "log.csv", list(self.rows[0]), [list(r.values()) for r in self.rows]
        )
        self._draw_curves(self.folder / "curves.png")

    def finish(self) -> None:
        """Writes everything, and prints the confusion matrix or its largest entries."""
        if self.folder is None:
            return
        self.write()
        counts = self.confusion.tolist()
        rows = [[name, *row] for name, row in zip(self.classes, counts, strict=True)]
        _write_csv(self.folder / "confusion.csv", ["class", *self.classes], rows)
        self._draw_confusion(self.folder / "confusion.png")
        print(f"\n{self._describe_confusion()}")
        if self._writer is not None:
            self._writer.close()

    def _check_tensorboard(self) -> None:
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise CliError(
                "--tensorboard: needs tensorboard: pip install tensorboard, or fastres[train]"
            ) from error

    def _tensorboard(self) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # Drops what a killed process wrote of epochs that are run again.
            self._writer = SummaryWriter(str(self.folder), purge_step=int(self.rows[-1]["epoch"]))
        return self._writer

    def _draw_curves(self, path: Path) -> None:
        figure, axes = _plots.new_figure(7, 6, rows=2, sharex=True)
        epochs = [row["epoch"] for row in self.rows]
        marker = "o" if len(epochs) < 30 else ""
        for name, title, color in (
            ("train_loss", "training, augmented", _plots.PALETTE[2]),
            ("loss", "held out", _plots.ACCENT),
        ):
            losses = [row[name] for row in self.rows]
            axes[0].plot(epochs, losses, marker, ls="-", c=color, label=title)
        axes[0].legend(frameon=False)
        axes[0].set_ylabel("cross-entropy")
        accuracy = [100 * row["accuracy"] for row in self.rows]
        axes[1].plot(epochs, accuracy, marker, ls="-", c=_plots.ACCENT)
        axes[1].set_ylabel("accuracy on held-out images, %")
        axes[1].set_xlabel("epoch")
        axes[1].xaxis.get_major_locator().set_params(integer=True)
        _plots.save(figure, path)

    def _draw_confusion(self, path: Path) -> None:
        count = len(self.classes)
        side = min(3 + 0.4 * count, 14)
        figure, axis = _plots.new_figure(side, side)
        axis.grid(False)
        share = self.confusion / self.confusion.sum(1, keepdim=True).clamp(min=1)
        axis.imshow(share.numpy(), cmap="Greys", vmin=0, vmax=1)
        axis.set_xlabel("taken for")
        axis.set_ylabel("is")
        if count <= _READABLE_CLASSES:
            axis.set_xticks(range(count), self.classes, rotation=90)
            axis.set_yticks(range(count), self.classes)
            for row in range(count):
                for column in range(count):
                    if number := int(self.confusion[row, column]):
                        color = "white" if share[row, column] > 0.5 else "black"
                        axis.text(column, row, number, ha="center", va="center", color=color)
        _plots.save(figure, path)

    def _describe_confusion(self) -> str:
        if len(self.classes) <= _READABLE_CLASSES:
            rows = [
                [name, *map(str, row)]
                for name, row in zip(self.classes, self.confusion.tolist(), strict=True)
            ]
            return format_table(["is, taken for", *self.classes], rows)
        wrong = self.confusion.clone().fill_diagonal_(0).flatten()
        largest = [index for index in wrong.argsort(descending=True).tolist() if wrong[index]]
        pairs = [(self.classes[i // len(self.classes)], i) for i in largest[:_READABLE_CLASSES]]
        rows = [
            [name, self.classes[i % len(self.classes)], str(int(wrong[i]))] for name, i in pairs
        ]
        return format_table(["is", "taken for", "images"], rows, left=2)


def _write_csv(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    with write_atomically(path) as file:
        file.write(text.getvalue().encode())
