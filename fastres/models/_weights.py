"""Finds and loads the state_dict that a constructor's ``weights`` argument means."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["Weights", "load_file", "load_weights"]

#: None, a member of torchvision's weights enum, its name, or the path of a file.
Weights = Any

_FILE_SUFFIXES = {".pth", ".pt", ".bin", ".ckpt", ".tar"}
#: Where training scripts put the state_dict inside a checkpoint.
_CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")


def load_weights(weights: Weights, enum_name: str, progress: bool = True) -> dict[str, Tensor]:
    """The state_dict that ``weights`` means for the model whose torchvision enum is ``enum_name``.

    Args:
        weights: a member of torchvision's enum, its name with or without the enum's
            ("IMAGENET1K_V2", "DEFAULT", "ResNet50_Weights.IMAGENET1K_V1"), or the path of a file
            that ``torch.save`` wrote: a state_dict, or a checkpoint that holds one.
        enum_name: such as "ResNet50_Weights".
        progress: whether a download shows its progress.

    Raises:
        TypeError: ``weights`` is none of these.
        ValueError: an unknown name, another model's weights, or a file that holds no state_dict.
        FileNotFoundError: a path at which there is no file.
        ImportError: a name was given and torchvision is not installed.
    """
    if isinstance(weights, os.PathLike) or (isinstance(weights, str) and _is_path(weights)):
        return load_file(weights)
    if isinstance(weights, str):
        weights = _find_member(weights, enum_name)
    if not hasattr(weights, "get_state_dict"):
        raise TypeError(
            f"weights: got {type(weights).__name__}, expected None, a member of torchvision's "
            f"{enum_name}, its name, or a path"
        )
    if type(weights).__name__ != enum_name:
        raise ValueError(f"weights: got {weights}, expected a member of {enum_name}")
    state: dict[str, Tensor] = weights.get_state_dict(progress=progress, check_hash=True)
    return state


def _is_path(weights: str) -> bool:
    path = Path(weights)
    return path.suffix in _FILE_SUFFIXES or len(path.parts) > 1 or path.is_file()


def _find_member(name: str, enum_name: str) -> Any:
    prefix, _, member = name.rpartition(".")
    if prefix not in ("", enum_name):
        raise ValueError(f"weights: got {name!r}, expected a member of {enum_name}")
    try:
        # Imported here because fastres itself does not need torchvision.
        from torchvision import models
    except ImportError as error:
        raise ImportError(
            f"weights={name!r} names weights that torchvision publishes, and torchvision cannot "
            f"be imported ({error}). Install torchvision, or pass the path of a state_dict"
        ) from error
    known = getattr(models, enum_name).__members__
    if member not in known:
        raise ValueError(
            f"weights: got {name!r}, expected one of {', '.join(known)} (of torchvision's "
            f"{enum_name}), or the path of an existing file"
        )
    return models.get_weight(f"{enum_name}.{member}")


def load_file(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The state_dict in a file that ``torch.save`` wrote: it, or a checkpoint that holds one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds no state_dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {str(path)!r}")
    try:
        # weights_only: a checkpoint from elsewhere must not run code.
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"weights: {str(path)!r} is not a state_dict that torch.save wrote ({reason})"
        ) from error
    state = _find_state_dict(content)
    if state is None:
        found = sorted(content) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(
            f"weights: {str(path)!r} holds {found}, expected a state_dict, or one under "
            f"{' or '.join(map(repr, _CHECKPOINT_KEYS))}"
        )
    return state


def _find_state_dict(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping):
        return None
    for key in _CHECKPOINT_KEYS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        return None
    # DistributedDataParallel and DataParallel put this before every key.
    return {key.removeprefix("module."): value for key, value in content.items()}
