"""Cuts the photos that scikit-image and scikit-learn bring along into tiles to train on, offline.

    pip install "fastres[photos]"
    python examples/photo_tiles.py build/tiles
    fastres train --data build/tiles --model resnext50_32x4d --size 64

Each photo is a class: whose piece is this? Writes FOLDER/train/PHOTO/*.png and
FOLDER/val/PHOTO/*.png. No two tiles overlap, so that no pixel of a held-out one is trained on.
"""

import argparse
from pathlib import Path

import skimage
from PIL import Image
from sklearn.datasets import load_sample_image

TILE = 64  # height and width, pixels
LARGEST = 512  # what is used of a photo, height and width: its middle
HELD_OUT = 5  # one tile in so many

#: In scikit-image's wheel; others it would download.
SKIMAGE = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png",
    "coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png",
    "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
SKLEARN = ("china.jpg", "flower.jpg")


def main() -> None:
    """Writes the tiles of all photos."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to; made if it is not there")
    folder = parser.parse_args().folder
    counts = {"train": 0, "val": 0}
    photos = Path(skimage.__file__).parent / "data"
    for name in SKIMAGE:
        write_tiles(Image.open(photos / name), Path(name).stem, folder, counts)
    for name in SKLEARN:
        write_tiles(Image.fromarray(load_sample_image(name)), Path(name).stem, folder, counts)
    print(f"{counts['train']} tiles to train on, {counts['val']} held out, in {folder}")


def write_tiles(photo: Image.Image, name: str, folder: Path, counts: dict[str, int]) -> None:
    """Cuts one photo, from its middle outwards to whole tiles."""
    photo = photo.convert("RGB")
    columns, rows = (min(size, LARGEST) // TILE for size in photo.size)
    left, top = (photo.width - columns * TILE) // 2, (photo.height - rows * TILE) // 2
    for row in range(rows):
        for column in range(columns):
            # Every fifth tile of a row, two further in the next: held-out tiles never touch.
            part = "val" if (column + 2 * row) % HELD_OUT == 0 else "train"
            x, y = left + column * TILE, top + row * TILE
            path = folder / part / name / f"{row}_{column}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo.crop((x, y, x + TILE, y + TILE)).save(path)
            counts[part] += 1


if __name__ == "__main__":
    main()
