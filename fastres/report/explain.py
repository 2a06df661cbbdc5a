"""``explain(model)``: what is fused, what is left alone, and why."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from .. import _library
from ..accelerate import State, is_accelerated, restore
from ..fx.structure import STATE, eval_view, training_view
from ..rewrite.fuse import Fused, Left
from ..rewrite.plan import Fusion, walk, walk_with
from ..rewrite.rebuilt import Rebuilt, Saving, measure
from ..rewrite.training_fuse import Memory
from ..rewrite.training_plan import TrainingFusion
from ..weights.recipes import DEVICES, DTYPES, NormRecipe, Recipe, Unusable, check_device
from .kernel_choice import kernel_choices

_Fusion = TypeVar("_Fusion", Fusion, TrainingFusion)
_LAYERS = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)


@dataclass
class Report:
    """What ``explain`` found; ``print`` it."""

    model: str
    """Name of the model's class."""
    fused: list[Fused] = field(default_factory=list)
    """Each operator, and the modules and functions that it stands for."""
    left: list[Left] = field(default_factory=list)
    """Convolutions, BatchNorms and modules that hold some, that run as they were, and why."""
    notes: list[str] = field(default_factory=list)
    """What concerns the model as a whole."""
    kernels: dict[str, str] = field(default_factory=dict)
    """What computes each fused convolution, by its path, if ``explain`` was told the shape."""
    training_fused: list[Fused] = field(default_factory=list)
    """As ``fused``, where gradients are needed or the model is in training mode."""
    training_left: list[Left] = field(default_factory=list)
    """As ``left``, likewise."""
    rebuilt: list[Rebuilt] = field(default_factory=list)
    """Convolutions whose outputs ``memory="save"`` computes again in backward."""
    saving: Saving | None = None
    """What that comes to, if ``explain`` was told the input's shape."""
    shows_training: bool = False
    """Whether ``str`` lists the operators of training, too."""

    def __str__(self) -> str:
        lines = [f"{self.model}: {_counted(self.fused, self.left)}"]
        lines += [f"  note: {note}" for note in self.notes]
        lines += _listed(self.fused, self.left)
        lines += [f"in training: {_counted(self.training_fused, self.training_left)}"]
        if self.rebuilt:
            lines += [
                f"  memory='save': keeps no output of {len(self.rebuilt)} convolutions for "
                f"backward, which computes them again: {_summed(self.saving)}"
            ]
        shown = self.training_fused if self.shows_training else []
        lines += _listed(shown, self.training_left)
        return "\n".join(lines)


def explain(
    model: nn.Module, *, fuse_blocks: bool = True, input_shape: Sequence[int] | None = None
) -> Report:
    """Tells what ``accelerate`` does to a model, accelerated already or not.

    It tells of inference, in eval mode and without gradients, and of training: what happens in
    training mode, with the parts in eval mode that the model has now, or where gradients are
    needed. Nothing is run.

    Args:
        model: any module.
        fuse_blocks: as for ``accelerate``; an accelerated model's own choice goes first.
        input_shape: of the model's one input, batch first, to tell which kernel computes each
            convolution on this processor, and how many bytes an image ``memory="save"`` does not
            keep; for that copies are run on the meta device.

    Returns:
        A report to print, or to read: ``fused``, ``left``, ``kernels`` and ``notes``, and for
        training ``training_fused``, ``training_left``, ``rebuilt`` and ``saving``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: the model does not run with such an input, or not on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"explain: model must be an nn.Module, got {type(model).__name__}")
    states = [m.__dict__[STATE] for m in model.modules() if STATE in m.__dict__]
    memory: Memory = "keep"
    if states:
        fuse_blocks, memory = states[0].options.blocks, states[0].options.memory
    report = Report(type(model).__name__, notes=list(_notes(model, states)))
    report.shows_training = model.training
    view = eval_view(model) if model.training else model
    recipes: list[Recipe | NormRecipe] = []
    for _, part in _walked(view, walk(view, fuse_blocks), report.fused, report.left):
        recipes += part.result.recipes
    if input_shape is not None:
        algorithms = _algorithms(view, recipes, input_shape[0])
        report.kernels = kernel_choices(restore(copy.deepcopy(model)), input_shape, algorithms)
        report.fused = _with_kernels(report.fused, report.kernels)
    view = training_view(model)
    parts = walk_with(
        view, lambda module, pattern: TrainingFusion(module, pattern, False, True, memory)
    )
    walked = _walked(view, parts, report.training_fused, report.training_left)
    for path, fusion in walked:
        report.rebuilt += [
            replace(one, module=_join(path, one.module)) for one in fusion.result.rebuilt
        ]
    if report.rebuilt and input_shape is not None:
        plain = restore(copy.deepcopy(model))
        report.rebuilt, report.saving = measure(plain, input_shape, report.rebuilt)
        report.training_fused = _with_bytes(report.training_fused, report.rebuilt)
    return report


def _algorithms(
    view: nn.Module, recipes: Sequence[Recipe | NormRecipe], images: int
) -> dict[str, str]:
    """Of each convolution with a recipe, by the path of its module."""
    by_weight = {
        id(recipe.weight.read(view, ())): recipe.algorithm(images)
        for recipe in recipes
        if isinstance(recipe, Recipe)
    }
    convs = [(path, m) for path, m in view.named_modules() if isinstance(m, nn.Conv2d)]
    return {path: by_weight[id(m.weight)] for path, m in convs if id(m.weight) in by_weight}


def _with_kernels(fused: list[Fused], kernels: dict[str, str]) -> list[Fused]:
    def detail(f: Fused) -> str:
        names = [kernels[module] for module in f.modules if module in kernels]
        return f"{f.detail}; {', '.join(names)}" if names else f.detail

    return [replace(f, detail=detail(f)) for f in fused]


def _with_bytes(fused: list[Fused], rebuilt: list[Rebuilt]) -> list[Fused]:
    sizes = {one.module: one.bytes for one in rebuilt if one.bytes is not None}
    return [
        replace(f, detail=f"{f.detail}, {_mib(sizes[f.modules[0]])} an image not kept")
        if f.op == "conv_stats" and f.modules[0] in sizes
        else f
        for f in fused
    ]


def _summed(saving: Saving | None) -> str:
    if saving is None:
        return "explain(model, input_shape=...) tells how many bytes that saves"
    share = ""
    if saving.eager_bytes is not None:
        share = f" of the {_mib(saving.eager_bytes)} that eager keeps"
    return (
        f"{_mib(saving.bytes)} an image{share}, for multiply-adds that are "
        f"{saving.extra_work:.1%} of a forward pass's"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.2f} MiB"


def _walked(
    view: nn.Module,
    parts: Iterator[tuple[str, _Fusion | str]],
    fused: list[Fused],
    left: list[Left],
) -> Iterator[tuple[str, _Fusion]]:
    """Adds what happens to the parts of a model to two lists, and yields what could be traced."""
    for path, fusion in parts:
        if isinstance(fusion, str):
            if _holds_layers(view.get_submodule(path)):
                left.append(Left(path, fusion))
            continue
        fused.extend(
            Fused(f.op, tuple(_join(path, m) for m in f.modules), f.detail)
            for f in fusion.result.fused
        )
        left.extend(Left(_join(path, m.module), m.reason) for m in fusion.result.left)
        left.extend(_opaque(view, path, fusion))
        yield path, fusion


def _counted(fused: list[Fused], left: list[Left]) -> str:
    ops = Counter(f.op for f in fused)
    counts = ", ".join(f"{count} {op}" for op, count in sorted(ops.items())) or "nothing"
    return f"fuses {counts}; leaves {len(left)} as they were"


def _listed(fused: list[Fused], left: list[Left]) -> list[str]:
    width = max((len(f.op) for f in fused), default=0)
    lines = [f"  {f.op:<{width}}  {_short(f.modules)}  ({f.detail})" for f in fused]
    return lines + [f"  left alone: {x.module or '(the model)'}: {x.reason}" for x in left]


def _opaque(view: nn.Module, path: str, fusion: Fusion | TrainingFusion) -> Iterator[Left]:
    """Modules that are called as they are; their insides are reported on their own."""
    for inner, reason in fusion.trace.opaque.items():
        full = _join(path, inner)
        if _holds_layers(view.get_submodule(full)) and not reason.startswith("tracing failed"):
            yield Left(full, reason)


def _holds_layers(module: nn.Module) -> bool:
    return any(isinstance(inner, _LAYERS) for inner in module.modules())


def _join(path: str, name: str) -> str:
    separator = "." if path and name and not name.startswith(":") else ""
    return f"{path}{separator}{name}"


def _short(modules: Sequence[str]) -> str:
    """``layer1.0: conv1, bn1, relu`` for modules that share a prefix."""
    parts = [module.replace(":", ".:").split(".") for module in modules]
    common = 0
    while all(len(p) > common + 1 and p[: common + 1] == parts[0][: common + 1] for p in parts):
        common += 1
    names = ", ".join(".".join(p[common:]).replace(".:", ":").lstrip(":") for p in parts)
    prefix = ".".join(parts[0][:common])
    return f"{prefix}: {names}" if prefix else names


def _notes(model: nn.Module, states: list[State]) -> Iterator[str]:
    if not any(is_accelerated(module) for module in model.modules()):
        yield "not accelerated; this is what fastres.accelerate would do"
    if model.training:
        yield "in training mode; what is above the training's lines happens in eval mode"
    if any(state.gave_up for state in states):
        yield "changes at every call, so that it runs as it was"
    for kind in sorted({state.container for state in states if state.container is not None}):
        yield f"was called with a {kind}: in such calls its parts are fused, each alone"
    yield from _parameter_notes(model)
    if not _library.has_kernels(DEVICES[0]) and _library.get_backend() != "reference":
        yield "there are no native kernels in this installation, so that it runs as it was"


def _parameter_notes(model: nn.Module) -> Iterator[str]:
    weights: list[Any] = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    for dtype in sorted({w.dtype for w in weights if w is not None}, key=str):
        if dtype not in DTYPES:
            yield f"there is no kernel for {dtype} weights, so that they run as they were"
    devices = {w.device.type for w in weights if w is not None}
    if any(_library.leaves_alone(device, training=False) for device in devices):
        yield "on a GPU it runs as it was; fastres.freeze is what is faster there"
    elif any(_library.leaves_alone(device, training=True) for device in devices):
        yield "on a GPU it trains as it was"
    for weight in weights:
        try:
            check_device(torch.empty(0) if weight is None else weight)
        except Unusable as error:
            yield f"{error}, so that it runs as it was"
            return
