"""From what the user typed for MODEL to a module with sensible BatchNorm statistics."""

import contextlib
import difflib
import importlib.util
import inspect
import os
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..accelerate import restore
from ..models import CONSTRUCTORS
from .errors import CliError

__all__ = ["MODEL_HELP", "Target", "calibrate_batch_norm", "load_model", "make_ready"]

MODEL_HELP = (
    "a name that torchvision, fastres.models or timm knows (resnext50_32x4d; timm/resnet50 for "
    "timm's where several have it), or file.py:function, a function of yours that returns a module"
)
_HUB = "https://huggingface.co"
_TIMEOUT_S = 5


@dataclass
class Target:
    """A model to work on, in eval mode, and where its weights come from."""

    name: str
    model: nn.Module
    weights: str


def load_model(name: str, weights: str = "auto", num_classes: int | None = None) -> Target:
    """The model called ``name``.

    Args:
        name: see ``MODEL_HELP``.
        weights: "auto" tries the pretrained ones and falls back to random ones; "random" does not
            try. For a file's function it has no meaning: the function decides.
        num_classes: width of the classifier, if it is not to be the network's own; a file's
            function gets it as its argument. Pretrained weights would not fit it.

    Raises:
        CliError: no such model, no such file or function, or building it failed.
    """
    arguments: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if ".py" in name:
        target = Target(name, _call_function(name, *arguments.values()), "the function's own")
    else:
        target = _load_named(name, weights == "auto", arguments)
    target.model.eval()
    return target


def _call_function(name: str, *arguments: int) -> nn.Module:
    path, _, function = name.rpartition(":")
    if not path.endswith(".py") or not function.isidentifier():
        raise CliError(f"MODEL: got {name!r}, expected file.py:function")
    if not Path(path).is_file():
        raise CliError(f"MODEL: there is no file {path!r}")
    module = _import_file(Path(path))
    if not callable(getattr(module, function, None)):
        public = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise CliError(
            f"MODEL: {path} has no function {function!r}; it has {', '.join(public) or 'none'}"
        )
    try:
        model = getattr(module, function)(*arguments)
    except Exception as error:
        raise CliError(f"MODEL: {name} raised {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise CliError(f"MODEL: {name} returned {type(model).__name__}, expected an nn.Module")
    return model


def _import_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Before running it: the file's own imports of its neighbours, and pickling of its classes.
    sys.path.insert(0, str(path.resolve().parent))
    sys.modules.setdefault(path.stem, module)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise CliError(f"MODEL: importing {path} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    return module


def _load_named(name: str, pretrained: bool, arguments: dict[str, Any]) -> Target:
    library, _, bare = name.rpartition("/")
    if library not in ("", "torchvision", "fastres", "timm"):
        raise CliError(f"MODEL: got {name!r}, expected torchvision/NAME, fastres/NAME or timm/NAME")
    known: list[str] = []
    for wanted, list_names, load in (
        ("torchvision", _torchvision_names, _load_torchvision),
        ("fastres", _own_names, _load_own),
        ("timm", _timm_names, _load_timm),
    ):
        if library in ("", wanted):
            names = list_names()
            if bare in names:
                return load(bare, pretrained, arguments)
            known += names
    if not known:
        raise CliError(
            f"MODEL: {library} cannot be imported to look {bare!r} up: pip install {library}"
        )
    close = difflib.get_close_matches(bare, sorted(set(known)), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "is it file.py:function?"
    where = library or "torchvision, fastres.models or timm"
    raise CliError(f"MODEL: there is no {bare!r} in {where}; {hint}")


def _torchvision_names() -> list[str]:
    try:
        from torchvision import models
    except ImportError:
        return []
    return models.list_models()


def _load_torchvision(name: str, pretrained: bool, arguments: dict[str, Any]) -> Target:
    from torchvision import models

    if pretrained:
        # OSError: no network. RuntimeError: a truncated download.
        with contextlib.suppress(OSError, RuntimeError), _socket_timeout():
            model = models.get_model(name, weights="DEFAULT", progress=sys.stderr.isatty())
            return Target(name, model, f"{models.get_model_weights(name).DEFAULT}")
    # Detection and segmentation models would download weights for their backbone.
    takes = inspect.signature(models.get_model_builder(name)).parameters
    extra = {"weights_backbone": None} if "weights_backbone" in takes else {}
    return Target(name, models.get_model(name, weights=None, **extra, **arguments), "random")


def _own_names() -> list[str]:
    return list(CONSTRUCTORS)


def _load_own(name: str, pretrained: bool, arguments: dict[str, Any]) -> Target:
    """As it is before it is accelerated, so that it can be compared with what becomes of it."""
    return Target(f"fastres/{name}", restore(CONSTRUCTORS[name](**arguments)), "random")


def _timm_names() -> list[str]:
    # The hub's client reads this on import, and then answers from its cache or not at all, where
    # it would otherwise retry for a minute.
    if "huggingface_hub" not in sys.modules and not _is_reachable(_HUB):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import timm
    except ImportError:
        return []
    return timm.list_models()


def _load_timm(name: str, pretrained: bool, arguments: dict[str, Any]) -> Target:
    import timm

    if pretrained:
        # ValueError, FileNotFoundError: the hub is out of reach. RuntimeError: none are published.
        with contextlib.suppress(OSError, RuntimeError, ValueError), _socket_timeout():
            return Target(
                f"timm/{name}", timm.create_model(name, pretrained=True, **arguments), "pretrained"
            )
    return Target(f"timm/{name}", timm.create_model(name, pretrained=False, **arguments), "random")


def _is_reachable(url: str) -> bool:
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _socket_timeout() -> Iterator[None]:
    """A network that swallows packets must not hang a benchmark."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def make_ready(target: Target, images: Tensor) -> None:
    """Makes sure that the model takes the images, and that its logits mean something.

    A network whose BatchNorms still have the statistics that they were made with gets those of the
    images: its activations would grow from block to block.

    Raises:
        CliError: the model does not run on the images.
    """
    try:
        if _is_uncalibrated(target.model):
            calibrate_batch_norm(target.model, images)
            target.weights += ", BatchNorm statistics from the input"
        with torch.inference_mode():
            target.model(images[:1])
    except Exception as error:
        raise CliError(
            f"MODEL: {target.name} does not run on an input of {list(images.shape)}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _tracked_batch_norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _is_uncalibrated(model: nn.Module) -> bool:
    norms = _tracked_batch_norms(model)
    return bool(norms) and all(
        torch.equal(mean, torch.zeros_like(mean)) and torch.equal(var, torch.ones_like(var))
        for mean, var in ((norm.running_mean, norm.running_var) for norm in norms)
        if mean is not None and var is not None
    )


@torch.no_grad()
def calibrate_batch_norm(model: nn.Module, images: Tensor, passes: int = 2) -> None:
    """Sets the running statistics to what ``images`` give, without changing anything else.

    Args:
        model: runs on ``images``; is left in the modes (training or not) in which it came.
        images: ``[N, 3, H, W]``; a single one is joined by its mirror image, because a layer of
            one value per channel has no variance.
        passes: forward passes, over which the statistics are averaged.
    """
    if len(images) == 1:
        images = torch.cat([images, images.flip(-1)])
    norms = _tracked_batch_norms(model)
    before = [(norm, norm.momentum, norm.training) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # None: the plain average over the passes.
        norm.momentum = None
        norm.train()
    try:
        for _ in range(passes):
            model(images)
    finally:
        for norm, momentum, training in before:
            norm.momentum = momentum
            norm.train(training)
