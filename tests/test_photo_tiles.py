"""examples/photo_tiles.py: a folder to train on, from photos that packages bring along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("skimage")

SCRIPT = Path(__file__).parents[1] / "examples" / "photo_tiles.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiles")
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], check=True, timeout=300)
    return folder


def _positions(folder: Path) -> set[tuple[int, ...]]:
    return {tuple(map(int, path.stem.split("_"))) for path in folder.glob("*.png")}


def test_every_photo_is_in_both_parts_and_held_out_tiles_do_not_touch(folder):
    train, held_out = (
        {path.name: _positions(path) for path in (folder / part).iterdir()}
        for part in ("train", "val")
    )
    assert len(train) == 18
    assert train.keys() == held_out.keys()
    for name, positions in held_out.items():
        assert not positions & train[name]
        assert 0.15 < len(positions) / len(positions | train[name]) < 0.3
        for row, column in positions:
            assert not {(row + 1, column), (row, column + 1)} & positions


def test_tiles_are_the_photo(folder):
    from sklearn.datasets import load_sample_image

    photo = load_sample_image("china.jpg")
    top, left = (photo.shape[0] - 6 * 64) // 2, (photo.shape[1] - 8 * 64) // 2
    tiles = {path.stem: path for path in folder.glob("*/china/*.png")}
    assert len(tiles) == 6 * 8
    for stem, path in tiles.items():
        row, column = map(int, stem.split("_"))
        y, x = top + 64 * row, left + 64 * column
        assert np.array_equal(Image.open(path), photo[y : y + 64, x : x + 64])
