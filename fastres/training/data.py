"""Labelled images from a folder, or scikit-learn's digits, in batches that a seed determines.

Every random choice about an image is drawn from a seed of its own, made of the run's seed, the
epoch and the image's index: a run that was interrupted goes on with the very images that it would
have seen.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..cli.errors import CliError
from .processes import Processes

__all__ = ["Batch", "Data", "open_data"]

#: Mean and standard deviation of ImageNet's red, green and blue.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
#: One image in so many is held out where the folder does not say which.
_HELD_OUT = 5
_DIGITS_SIZE, _FOLDER_SIZE = 32, 224
#: Threads that look into files before the first step: it is the disk that takes the time.
_READERS = 16

Transform = Callable[[Any], Tensor]
#: An image, or where it is, and its class.
Sample = tuple[Any, int]


@dataclass
class Batch:
    """``images`` [N, 3, H, W] and ``labels`` [N]; without the files that could not be read."""

    images: Tensor
    labels: Tensor
    broken: list[str]
    """The files that could not be read, each with the reason."""
    size: int
    """How many images it was to have."""


#: So many images are tried in the place of one that is broken: enough where one of fifty is whole.
_SPARES = 1000

#: What an image comes to: None where neither it nor a spare can be read, its class, and the files
#: that could not be.
_Item = tuple[Tensor | None, int, list[str]]


class _Images(Dataset[_Item]):
    """Images by (index, seed).

    Args:
        samples: all of them.
        transform: what becomes of an image.
        has_spares: whether another one takes the place of a broken one, so that batches are whole:
            every process has to make every step, and BatchNorm needs more than one value.
    """

    def __init__(self, samples: Sequence[Sample], transform: Transform, has_spares: bool) -> None:
        self.samples = samples
        self.transform = transform
        self.has_spares = has_spares

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> _Item:
        index, seed = index_and_seed
        broken: list[str] = []
        for candidate in self._candidates(index, seed):
            source, label = self.samples[candidate]
            try:
                image = _read(source)
            except _BrokenImage as error:
                broken.append(str(error))
            else:
                torch.manual_seed(seed)
                return self.transform(image), label, broken
        return None, -1, broken

    def _candidates(self, index: int, seed: int) -> Iterator[int]:
        """The image and its spares: of any class, as it may be a whole class that is broken."""
        yield index
        if self.has_spares:
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(self.samples), generator=generator)
            yield from order[:_SPARES].tolist()


class _BrokenImage(Exception):
    """Says which file cannot be read, and what Pillow raised."""


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    """The file as Pillow opens it; whatever goes wrong, there or within, is a broken image."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as file:
            yield file
    except Exception as error:  # decoders raise whatever they meet, SyntaxError for a broken PNG
        raise _BrokenImage(f"{path}: {error!r}") from error


def _read(source: Any) -> Any:
    """The image, decoded.

    Raises:
        _BrokenImage: it cannot be.
    """
    if not isinstance(source, str):
        return source
    import PIL.Image

    with _opened(source) as file:
        # Pillow cuts off what is above 255 of sixteen bits.
        image = PIL.Image.fromarray(_eight_bits(file)) if file.mode[0] == "I" else file
        return image.convert("RGB")


def _eight_bits(file: Any) -> Any:
    """Pixels of sixteen bits or more, which may hold no more than eight, in eight."""
    pixels = numpy.asarray(file)
    high = pixels >> 8 if pixels.max() > 255 else pixels
    return high.clip(0, 255).astype(numpy.uint8)


def _why_no_image(source: Any) -> str | None:
    """What is wrong with a file's header; what is broken further in shows when it is read."""
    if not isinstance(source, str):
        return None
    try:
        with _opened(source):
            return None
    except _BrokenImage as error:
        return str(error)


def _collate(items: Sequence[_Item]) -> Batch:
    images = [image for image, _, _ in items if image is not None]
    labels = [label for image, label, _ in items if image is not None]
    broken = [file for _, _, files in items for file in files]
    stacked = torch.stack(images) if images else torch.empty(0)
    return Batch(stacked, torch.tensor(labels), broken, len(items))


@dataclass
class Data:
    """Two sets of images, and how this process goes through them."""

    classes: list[str]
    train: _Images
    validation: _Images
    batch: int
    seed: int
    workers: int
    processes: Processes
    unreadable: list[str]
    """Files in the folder that are no images, each with the reason; they are in neither set."""

    @property
    def steps(self) -> int:
        """Steps in an epoch; images that do not fill a last batch wait for another epoch."""
        return len(self.train) // (self.batch * self.processes.count)

    def training_batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's batches of an epoch, from step ``start`` on.

        Each is whole, or empty where too few images can be read to fill it.
        """
        count, base = len(self.train), self.seed + epoch * len(self.train)
        generator = torch.Generator().manual_seed(base)
        order = torch.randperm(count, generator=generator).tolist()
        mine = [
            (index, base + index) for index in order[self.processes.rank :: self.processes.count]
        ]
        batches = [
            mine[step * self.batch : (step + 1) * self.batch] for step in range(start, self.steps)
        ]
        for batch in self._load(self.train, batches):
            is_whole = len(batch.labels) == batch.size
            empty = replace(batch, images=batch.images[:0], labels=batch.labels[:0])
            yield batch if is_whole else empty

    def validation_batches(self) -> Iterator[Batch]:
        """This process's part of the held-out images, each of them once."""
        mine = [(index, 0) for index in range(len(self.validation))]
        mine = mine[self.processes.rank :: self.processes.count]
        batches = [mine[i : i + self.batch] for i in range(0, len(mine), self.batch)]
        yield from self._load(self.validation, batches)

    def _load(self, images: _Images, batches: list[list[tuple[int, int]]]) -> Iterator[Batch]:
        loader: DataLoader[Any] = DataLoader(
            images,
            batch_sampler=batches,
            num_workers=self.workers,
            collate_fn=_collate,
        )
        yield from loader


def open_data(args: argparse.Namespace, processes: Processes) -> Data:
    """Finds the images that the arguments name.

    Raises:
        CliError: there are none, the two sets have other classes, or a batch takes more images than
            there are.
    """
    is_digits = args.data is None
    classes, train, validation = _digits() if is_digits else _folder(args.data)
    train, broken = _drop_unreadable(train)
    validation, also_broken = _drop_unreadable(validation)
    size = args.size or (_DIGITS_SIZE if is_digits else _FOLDER_SIZE)
    flip = not is_digits if args.flip is None else args.flip
    scale = args.crop_scale or (0.7 if is_digits else 0.25)
    workers = args.workers
    if workers is None:
        workers = 0 if is_digits else max(1, (os.cpu_count() or 1) // (2 * processes.count))
    data = Data(
        classes,
        _Images(train, _training_transform(size, scale, flip, args.random_erasing), True),
        _Images(validation, _validation_transform(size), False),
        args.batch,
        args.seed,
        workers,
        processes,
        broken + also_broken,
    )
    if data.steps == 0:
        raise CliError(
            f"--batch: got {args.batch} in {processes.count} processes, but there are only "
            f"{len(train)} images to train on"
        )
    if not validation:
        raise CliError("--data: there are no images to hold out")
    return data


def _training_transform(size: int, scale: float, flip: bool, erasing: float) -> Transform:
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(scale, 1.0), antialias=True),
            v2.RandomHorizontalFlip(0.5 if flip else 0.0),
            *_to_tensor(),
            v2.RandomErasing(erasing),
        ]
    )


def _validation_transform(size: int) -> Transform:
    from torchvision.transforms import v2

    # A digit fills its image; of a photo the usual 7/8.
    short = size if size <= _DIGITS_SIZE else round(size * 8 / 7)
    return v2.Compose([v2.Resize(short, antialias=True), v2.CenterCrop(size), *_to_tensor()])


def _to_tensor() -> list[Any]:
    from torchvision.transforms import v2

    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]


# ---- what there is to see ------------------------------------------------------------------------


def _digits() -> tuple[list[str], list[Sample], list[Sample]]:
    """1797 handwritten digits of 8x8 pixels."""
    try:
        from PIL.Image import fromarray
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise CliError(
            f"the digits come with scikit-learn and need Pillow ({error}): pip install "
            "scikit-learn pillow, or fastres[bench]; or give images of your own with --data FOLDER"
        ) from error
    digits = load_digits()
    pixels = (digits.images * (255 / 16)).astype("uint8")
    samples = [
        (fromarray(image).convert("RGB"), int(label))
        for image, label in zip(pixels, digits.target, strict=True)
    ]
    return [str(digit) for digit in range(10)], *_hold_out(samples)


def _folder(root: Path) -> tuple[list[str], list[Sample], list[Sample]]:
    folders = {path.name for path in root.iterdir() if path.is_dir()}
    held_out = next(
        (name for name in ("val", "valid", "validation", "test") if name in folders), ""
    )
    if "train" not in folders:
        classes, samples = _image_folder(root)
        return classes, *_hold_out(samples)
    if not held_out:
        raise CliError(f"--data: {str(root)!r} has a folder train, expected val beside it")
    classes, train = _image_folder(root / "train")
    others, validation = _image_folder(root / held_out)
    if classes != others:
        only = sorted(set(classes) ^ set(others))
        raise CliError(f"--data: train and {held_out} differ in the classes {', '.join(only)}")
    return classes, train, validation


def _image_folder(root: Path) -> tuple[list[str], list[Sample]]:
    try:
        from torchvision.datasets import ImageFolder
    except ImportError as error:
        raise CliError("images in folders need torchvision: pip install torchvision") from error
    try:
        found = ImageFolder(str(root))
    except FileNotFoundError as error:
        raise CliError(f"--data: expected {root}/CLASS/*.jpg: {error}") from error
    return found.classes, found.samples


def _hold_out(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """Holds out a part of every class, drawn once and for all."""
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)).tolist()
    seen: dict[int, int] = {}
    train: list[Sample] = []
    held_out: list[Sample] = []
    for index in order:
        label = samples[index][1]
        seen[label] = seen.get(label, 0) + 1
        (train if seen[label] % _HELD_OUT else held_out).append(samples[index])
    return train, held_out


def _drop_unreadable(samples: list[Sample]) -> tuple[list[Sample], list[str]]:
    """The samples whose file is an image's, and the other files, each with the reason."""
    with ThreadPoolExecutor(_READERS) as pool:
        reasons = list(pool.map(lambda sample: _why_no_image(sample[0]), samples))
    kept = [sample for sample, reason in zip(samples, reasons, strict=True) if reason is None]
    return kept, [reason for reason in reasons if reason is not None]
