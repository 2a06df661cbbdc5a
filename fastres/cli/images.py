"""The photos that the command line runs on, prepared as torchvision prepares them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import CliError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["load_photos", "photo_batch", "prepare"]

#: Mean and standard deviation of ImageNet's red, green and blue, which every pretrained network of
#: torchvision was trained with.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
#: A strip longer than this would be resized to more pixels than anybody means to have.
_MAX_ASPECT = 50


def load_photos(path: str | None) -> "list[Image]":
    """The photo at ``path``, or scikit-learn's two sample photos.

    Raises:
        CliError: the file is missing or is no image, or the package that is needed is missing.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise CliError(
            "reading a photo needs Pillow: pip install pillow, or fastres[bench]"
        ) from error
    if path is None:
        return [PIL.Image.fromarray(array) for array in _sample_arrays()]
    try:
        with PIL.Image.open(path) as file:
            photo = file.convert("RGB")
    # Pillow reports a broken PNG as SyntaxError and some broken headers as ValueError.
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        reason = "there is no such file" if not Path(path).exists() else str(error)
        raise CliError(f"--image: cannot read {path!r}: {reason}") from error
    if max(photo.size) > _MAX_ASPECT * min(photo.size):
        raise CliError(
            f"--image: {path!r} is {photo.width}x{photo.height}, expected at most "
            f"{_MAX_ASPECT} times as long as it is wide"
        )
    return [photo]


def _sample_arrays() -> list[Any]:
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise CliError(
            "the sample photos come with scikit-learn: pip install scikit-learn, or "
            "fastres[bench]; or give a photo of your own with --image FILE"
        ) from error
    return load_sample_images().images


def prepare(photo: "Image", size: int = 224) -> Tensor:
    """Resizes the short side to 8/7 of ``size``, crops the centre, normalises.

    Returns:
        float32 ``[3, size, size]``; at 224 what torchvision's ``ImageClassification`` gives.
    """
    import numpy
    from PIL.Image import Resampling

    short = round(size * 256 / 224)
    width, height = photo.size
    if width <= height:
        width, height = short, int(short * height / width)
    else:
        width, height = int(short * width / height), short
    left, top = round((width - size) / 2), round((height - size) / 2)
    photo = photo.resize((width, height), Resampling.BILINEAR)
    pixels = numpy.array(photo.crop((left, top, left + size, top + size)))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor(_MEAN).view(3, 1, 1), torch.tensor(_STD).view(3, 1, 1)
    return ((image - mean) / std).contiguous()


def photo_batch(photos: "list[Image]", batch: int, size: int = 224) -> Tensor:
    """Prepares ``batch`` views, ``[batch, 3, size, size]``: the photos, then mirrored, in turn."""
    images = [prepare(photo, size) for photo in photos]
    views = images + [image.flip(-1) for image in images]
    return torch.stack([views[index % len(views)] for index in range(batch)])
