"""A lower layer never imports a higher one: docs/architecture.md, "The layers"."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastres

PACKAGE = Path(fastres.__file__).parent

#: From the bottom up. What is in one row knows nothing of its neighbours.
LAYERS = (
    ("_version", "_table", "_progress", "_measure", "_plots", "_numerics"),
    ("_saved", "_meta", "_activation_memory"),
    ("schema",),
    ("reference",),
    ("composed",),
    ("cudnn", "triton"),
    ("_library",),
    ("ops",),
    ("sync_batch_norm",),
    ("batch_norm",),
    ("fx",),
    ("weights",),
    ("rewrite",),
    ("accelerate",),
    ("frozen", "standard", "dynamo"),
    ("nn",),
    ("models",),
    ("forms", "_keras_layers"),
    ("convert",),
    ("report",),
    ("cli",),
    ("training",),
    ("cli.train",),  # starts a training script, as main starts every command
    ("cli.main",),
    ("__init__", "__main__"),
)
HEIGHT = {name: height for height, row in enumerate(LAYERS) for name in row}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(module: tuple[str, ...]) -> str:
    """The layer of a module, by its name within the package."""
    whole = ".".join(module)
    return whole if whole in HEIGHT else module[0]


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """The modules of the package that a file imports, wherever in it."""
    folders = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        base = (*folders[: len(folders) - node.level + 1], *(node.module or "").split("."))
        base = tuple(part for part in base if part)
        for alias in node.names:
            target = PACKAGE.joinpath(*base, alias.name)
            is_module = target.is_dir() or target.with_suffix(".py").exists()
            yield (*base, alias.name) if is_module else base


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_layer_imports_a_higher_one(path):
    own = layer(path.relative_to(PACKAGE).with_suffix("").parts)
    for module in imported(path):
        other = layer(module)
        assert other == own or HEIGHT[other] < HEIGHT[own], f"{own} imports {'.'.join(module)}"


def test_every_module_has_a_layer():
    missing = {layer(path.relative_to(PACKAGE).with_suffix("").parts) for path in FILES} - {*HEIGHT}
    assert not missing
