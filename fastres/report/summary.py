"""What a network is made of, layer by layer: shapes, parameters, operations, bytes, fusion."""

import copy
import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .._activation_memory import ActivationMemory, activation_memory
from .._table import format_table
from ..accelerate import restore
from ..rewrite.fuse import Fused
from .explain import explain
from .structure import ResidualBlock, Structure, structure_of

__all__ = ["Layer", "Summary", "summarize"]


@dataclass(frozen=True)
class Layer:
    """One call of one module.

    Attributes:
        name: the module's name in the model; a module called twice has two layers.
        kind: its class, and for a convolution its kernel, stride, groups and dilation.
        output_shape: of the first tensor that it returns.
        parameters: of the module without its submodules' layers; 0 from its second call on.
        macs: multiply-accumulates of convolutions and matrix products, without its submodules'.
        bytes: read and written if the layer runs on its own: inputs, parameters, outputs.
        fused_into: the operator, with its number in the model, that stands for it after
            ``fastres.accelerate``; None where it runs as it is.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    bytes: int
    fused_into: str | None = None


@dataclass(frozen=True)
class Summary:
    """The layers of a model in the order in which they run, and the model's totals."""

    model: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    parameters: int
    parameter_bytes: int
    memory: ActivationMemory | None = None
    """Of activations, of the model that fuses nothing; None where it has to compute to run."""
    structure: Structure | None = None
    """Resolutions and residual blocks; None where the model cannot be traced as a whole."""

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes read and written by one forward pass that fuses nothing."""
        return sum(layer.bytes for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {**asdict(self), "macs": self.macs, "bytes": self.bytes}

    def layers_of(self, block: ResidualBlock) -> list[Layer]:
        """The layers of a residual block, its shortcut's among them."""
        return [layer for layer in self.layers if layer.name.startswith(f"{block.name}.")]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws operations and bytes layer by layer into the file ``path`` (.png, .svg, .pdf)."""
        from .summary_plot import draw

        draw(self, Path(path))

    def __str__(self) -> str:
        table = format_table(
            ["layer", "kind", "fused into", "output", "parameters", "MMACs", "MiB moved"],
            [
                [
                    layer.name,
                    layer.kind,
                    layer.fused_into or "-",
                    "x".join(map(str, layer.output_shape)),
                    f"{layer.parameters:,}",
                    f"{layer.macs / 1e6:,.1f}",
                    f"{layer.bytes / 2**20:,.2f}",
                ]
                for layer in self.layers
            ],
            left=3,
        )
        operators = {layer.fused_into for layer in self.layers if layer.fused_into is not None}
        counts = Counter(operator.split()[0] for operator in operators)
        fused = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        return (
            f"{self.model}, input {'x'.join(map(str, self.input_shape))}\n"
            f"{self._describe_structure()}\n{table}\n\n"
            f"{self.parameters / 1e6:,.2f} M parameters ({self.parameter_bytes / 2**20:,.1f} MiB), "
            f"{self.macs / 1e9:,.3f} GMACs, {self.bytes / 2**20:,.1f} MiB moved if nothing is fused"
            f"\nfastres.accelerate makes {fused or 'no fused operators'}"
        )

    def _describe_structure(self) -> str:
        """The chain of resolutions, the blocks, and what the activations take."""
        parts = []
        if self.structure is not None and len(self.structure.chain) > 1:
            parts.append(f"{self.structure}\n")
        if self.structure is not None and self.structure.blocks:
            parts.append(f"\n{self._block_table(self.structure)}\n")
        if self.memory is not None:
            parts.append(
                f"\nactivations: {self.memory.inference / 2**20:,.1f} MiB at most at one moment of "
                f"inference, {self.memory.training / 2**20:,.1f} MiB kept for the backward pass in "
                "training (fusing nothing)\n"
            )
        return "".join(parts)

    def _block_table(self, structure: Structure) -> str:
        rows = []
        for block in structure.blocks:
            layers = self.layers_of(block)
            rows.append(
                [
                    block.name,
                    f"{block.kind} {block.version or structure.version}".strip(),
                    block.shortcut,
                    "x".join(map(str, block.output_shape)),
                    f"{sum(layer.parameters for layer in layers):,}",
                    f"{sum(layer.macs for layer in layers) / 1e6:,.1f}",
                ]
            )
        header = ["block", "kind", "shortcut", "output", "parameters", "MMACs"]
        return format_table(header, rows, left=3)


def summarize(
    model: nn.Module, input_shape: Sequence[int] = (1, 3, 224, 224), name: str | None = None
) -> Summary:
    """Runs ``model`` once, without computing where it can be done on shapes alone.

    Args:
        model: in eval mode or not; it is copied and left as it is.
        input_shape: of its one input, batch first; the dtype is the parameters'.
        name: what the summary calls it; None is the name of its class.

    Raises:
        RuntimeError, ValueError, TypeError: whatever the model says to an input of that shape.
    """
    layers = _record(model, input_shape)
    on_meta = restore(copy.deepcopy(model)).to("meta")
    on_meta.eval()  # which some models' own forget to return
    return Summary(
        model=name or type(model).__name__,
        input_shape=tuple(input_shape),
        layers=tuple(_with_fusions(layers, explain(model).fused)),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        parameter_bytes=sum(_bytes(parameter) for parameter in model.parameters()),
        memory=activation_memory(on_meta, input_shape),
        structure=structure_of(on_meta, input_shape),
    )


def _with_fusions(layers: list[Layer], fused: Sequence[Fused]) -> Iterator[Layer]:
    """The layers with ``fused_into`` filled in: the operator's name and number in the model."""
    operators: defaultdict[str, deque[str]] = defaultdict(deque)
    for number, operation in enumerate(fused, start=1):
        for path in operation.modules:
            # A function such as "norm1:batch_norm" is the layer of the module that calls it.
            operators[path.partition(":")[0]].append(f"{operation.op} #{number}")
    for layer in layers:
        # A module that is called several times is listed as often, in the same order; or once, in a
        # part of the model that is itself called several times.
        candidates = operators[layer.name]
        yield replace(layer, fused_into=candidates[0] if candidates else None)
        candidates.rotate(-1)


def _record(model: nn.Module, input_shape: Sequence[int]) -> list[Layer]:
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    try:
        return _Recorder(restore(copy.deepcopy(model)).to("meta")).run(
            torch.empty(*input_shape, dtype=dtype, device="meta")
        )
    except (NotImplementedError, RuntimeError):
        # A tensor that is no buffer, or a branch on a value: such a model has to compute.
        return _Recorder(restore(copy.deepcopy(model))).run(torch.zeros(*input_shape, dtype=dtype))


class _Recorder:
    """Hooks on every module that note what went in, what came out, and the operations between."""

    def __init__(self, model: nn.Module) -> None:
        model.eval()
        self._model = model
        self._flops = FlopCounterMode(display=False)
        self._layers: list[Layer] = []
        self._counted: set[Tensor] = set()
        #: Of every module that is running: operations before it, and those of its submodules.
        self._running: list[tuple[int, list[int]]] = []

    def run(self, x: Tensor) -> list[Layer]:
        with ExitStack() as hooks, torch.no_grad(), self._flops:
            for name, module in self._model.named_modules():
                hooks.callback(module.register_forward_pre_hook(self._enter).remove)
                hooks.callback(module.register_forward_hook(self._leave_as(name)).remove)
            self._model(x)
        return self._layers

    def _enter(self, module: nn.Module, inputs: Any) -> None:
        self._running.append((self._flops.get_total_flops(), []))

    def _leave_as(self, name: str) -> Any:
        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            before, submodules = self._running.pop()
            flops = self._flops.get_total_flops() - before
            if self._running:
                self._running[-1][1].append(flops)
            # Also of submodules that it does not call: attention calls no projection of its own.
            new_parameters = [p for p in module.parameters() if p not in self._counted]
            own_flops = flops - sum(submodules)
            is_leaf = next(module.children(), None) is None
            if not is_leaf and not own_flops and not new_parameters:
                return
            outputs = _tensors(output)
            moved = {*_tensors(inputs), *outputs, *new_parameters}
            moved |= {*module.parameters(recurse=False), *module.buffers(recurse=False)}
            self._layers.append(
                Layer(
                    name=name or "(the model itself)",
                    kind=_describe(module),
                    output_shape=tuple(outputs[0].shape) if outputs else (),
                    parameters=sum(parameter.numel() for parameter in new_parameters),
                    macs=own_flops // 2,
                    bytes=sum(map(_bytes, moved)),
                )
            )
            self._counted.update(new_parameters)

        return leave


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _describe(module: nn.Module) -> str:
    kind = type(module).__name__
    if not isinstance(module, nn.Conv2d):
        return kind
    text = f"{kind} {_join(module.kernel_size)}"
    if module.stride != (1, 1):
        text += f" /{_join(module.stride)}"
    if module.groups != 1:
        text += f" g{module.groups}"
    if module.dilation != (1, 1):
        text += f" d{_join(module.dilation)}"
    return text


def _join(pair: tuple[int, ...]) -> str:
    return str(pair[0]) if len(set(pair)) == 1 and len(pair) > 1 else "x".join(map(str, pair))
