"""A checkpoint that is whole at any moment: the old one, until the new one is on the disk."""

import contextlib
import os
import pickle
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from ..cli.errors import CliError

__all__ = ["Checkpoint", "Position", "write_atomically"]


#: Settings that older checkpoints lack, which says nothing about the run.
_NOTED_LATER = {"classes"}


class Stateful(Protocol):
    """A model, an optimizer, a schedule, a record."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> Any: ...


@dataclass
class Position:
    """How far a run is: the next step, and the epoch's sums so far."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    images: int = 0
    seconds: float = 0.0


class Checkpoint:
    """The file of a run, and everything whose state it holds.

    Args:
        path: of the file.
        settings: what has to be the same when the run continues; of plain Python types.
        parts: name -> what to save and to load.
    """

    def __init__(self, path: Path, settings: dict[str, Any], parts: dict[str, Stateful]) -> None:
        self.path = path
        self.settings = {name: _plain(value) for name, value in settings.items()}
        self.parts = parts

    def save(self, position: Position) -> None:
        """Replaces the file; a process that is killed meanwhile leaves the old one."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        whole = {"position": asdict(position), "settings": self.settings, **state}
        with write_atomically(self.path) as file:
            torch.save(whole, file)

    def load(self, device: torch.device) -> Position:
        """Loads every part and returns how far the run was.

        Raises:
            CliError: the file is no checkpoint, or of a run with other settings.
        """
        try:
            whole = torch.load(self.path, map_location=device, weights_only=True)
            position = Position(**whole["position"])
            settings = whole["settings"]
        except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError, EOFError) as e:
            raise CliError(f"--resume: {self.path} is not a checkpoint: {e}") from e
        for name, value in self.settings.items():
            is_known = name in settings or name not in _NOTED_LATER
            if is_known and settings.get(name) != value:
                raise CliError(
                    f"--resume: the run in {self.path.parent} has {name} = {settings.get(name)}, "
                    f"got {value}"
                )
        for name, part in self.parts.items():
            part.load_state_dict(whole[name])
        return position


def _plain(value: object) -> object:
    return value if isinstance(value, (int, float, str, type(None))) else str(value)


@contextlib.contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes the place of ``path`` when it is complete."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or the new name could reach the disk before the content
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
