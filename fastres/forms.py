"""The three forms of a ResNeXt block, and the way from each to each.

One block, written three ways (https://arxiv.org/abs/1611.05431, figure 3):

* ``"a"``, :class:`SummedBranches`: 32 branches 1x1, 3x3, 1x1 whose outputs are added;
* ``"b"``, :class:`ConcatenatedBranches`: branches 1x1, 3x3 whose outputs are concatenated before
  one 1x1;
* ``"c"``, :class:`fastres.nn.Bottleneck`: 1x1, 3x3 in 32 groups, 1x1.

Every channel has a BatchNorm and a ReLU after each convolution but the last, whose BatchNorm stands
after the sum (section 4 of the paper): so BatchNorm, too, is cut and joined along channels, and the
forms agree in training as in inference.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from .accelerate import accelerate
from .nn import Bottleneck

__all__ = ["ConcatenatedBranches", "Form", "SummedBranches", "form_of", "to_form"]

Form = Literal["a", "b", "c"]

_PARTS = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")


class _Branched(nn.Module):
    """What forms a and b share: branches, then a BatchNorm, the shortcut and a ReLU."""

    def __init__(
        self, branches: Sequence[nn.Module], bn3: nn.Module, downsample: nn.Module | None
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.bn3 = bn3
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def _end(self, x: Tensor, y: Tensor) -> Tensor:
        shortcut = x
        if self.downsample is not None:
            shortcut = self.downsample(x)
        y = self.bn3(y)
        y += shortcut
        return self.relu(y)


class SummedBranches(_Branched):
    """Form a: ``relu(bn3(sum of branch(x)) + shortcut of x)``.

    Keys: ``branches.{g}.{0,1,3,4,6}``, ``bn3`` and the shortcut's. Made by :func:`to_form`.

    Args:
        branches: of one group each: 1x1, BatchNorm, ReLU, 3x3, BatchNorm, ReLU, 1x1.
        bn3: the BatchNorm of the sum.
        downsample: the shortcut's module; None passes the input through.

    Shapes:
        ``[N, C, H, W] -> [N, K, ceil(H/stride), ceil(W/stride)]``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        outputs = [branch(x) for branch in self.branches]
        y = outputs[0]
        for output in outputs[1:]:
            y = y + output
        return self._end(x, y)


class ConcatenatedBranches(_Branched):
    """Form b: ``relu(bn3(conv3(concatenation of branch(x))) + shortcut of x)``.

    Keys: ``branches.{g}.{0,1,3,4}``, ``conv3``, ``bn3`` and the shortcut's. Made by
    :func:`to_form`.

    Args:
        branches: of one group each: 1x1, BatchNorm, ReLU, 3x3, BatchNorm, ReLU.
        conv3: the 1x1 convolution of all branches' channels.
        bn3: its BatchNorm.
        downsample: the shortcut's module; None passes the input through.

    Shapes:
        ``[N, C, H, W] -> [N, K, ceil(H/stride), ceil(W/stride)]``.
    """

    def __init__(
        self,
        branches: Sequence[nn.Module],
        conv3: nn.Module,
        bn3: nn.Module,
        downsample: nn.Module | None,
    ) -> None:
        super().__init__(branches, bn3, downsample)
        self.conv3 = conv3

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        y = torch.cat([branch(x) for branch in self.branches], 1)
        return self._end(x, self.conv3(y))


def form_of(block: nn.Module) -> Form | None:
    """The form that a block has; None for a module that is no ResNeXt block.

    Form c is :class:`fastres.nn.Bottleneck`, and any class with its attributes, as torchvision's:
    ``conv1, bn1, conv2, bn2, conv3, bn3, downsample``.
    """
    if isinstance(block, SummedBranches):
        return "a"
    if isinstance(block, ConcatenatedBranches):
        return "b"
    looks_right = all(hasattr(block, part) for part in (*_PARTS, "downsample"))
    return "c" if looks_right else None


def to_form(module: nn.Module, form: Form) -> nn.Module:
    """A copy of a block, or of a network with all its ResNeXt blocks, in another form.

    Weights are cut and joined, not computed with: there and back again gives the same bits.
    Parameters of the result are new ones: make the optimizer after the conversion.

    Args:
        module: a block in any form, or a module that holds some; it is left as it is.
        form: "a", "b" or "c".

    Returns:
        The block, accelerated, or the network, with the training mode of the original; a BatchNorm
        keeps its own, as where it is frozen.

    Raises:
        ValueError: unknown form, no ResNeXt block in the module, or a block that has no such form
            (its last convolution has a bias; its branches' convolutions or BatchNorms, which become
            one, differ in more than their channels, such as in ``training`` or
            ``requires_grad``).
        TypeError: a convolution or normalisation is none of PyTorch's Conv2d and BatchNorm2d.
    """
    if form not in get_args(Form):
        raise ValueError(f"form: got {form!r}, expected 'a', 'b' or 'c'")
    if form_of(module) is not None:
        return _convert(module, form)
    network = copy.deepcopy(module)
    blocks = [(name, part) for name, part in network.named_modules() if form_of(part) is not None]
    if not blocks:
        raise ValueError(f"module: {type(module).__name__} has no ResNeXt block")
    for name, block in blocks:
        network.set_submodule(name, _convert(block, form))
    return network


def _convert(block: Any, form: Form) -> nn.Module:
    if form_of(block) == form:
        return copy.deepcopy(block)
    parts = _parts(block)
    if parts["conv3"].bias is not None:
        raise ValueError("conv3: has a bias, expected none, as a BatchNorm follows it")
    downsample = copy.deepcopy(block.downsample)
    if form == "c":
        result: nn.Module = _bottleneck(parts, downsample)
    else:
        bn3 = copy.deepcopy(parts["bn3"])
        branches = _split(parts, with_last=form == "a")
        if form == "a":
            result = SummedBranches(branches, bn3, downsample)
        else:
            conv3 = copy.deepcopy(parts["conv3"])
            result = ConcatenatedBranches(branches, conv3, bn3, downsample)
    _set_mode(result, block.training)
    return accelerate(result)


def _set_mode(block: Any, training: bool) -> None:
    """Sets the mode of what is new in a block; what was copied, frozen norms say, keeps its own."""
    copied = {m for m in block.modules() if isinstance(m, nn.BatchNorm2d)}
    if block.downsample is not None:
        copied.update(block.downsample.modules())
    for module in set(block.modules()) - copied:
        module.training = training


def _parts(block: Any) -> dict[str, Any]:
    """The layers of the block's form c."""
    if form_of(block) == "c":
        parts = {name: getattr(block, name) for name in _PARTS}
    else:
        columns = list(zip(*block.branches, strict=True))
        parts = {
            "conv1": joined_convs(columns[0], dim=0),
            "bn1": _joined_norms(columns[1]),
            "conv2": joined_convs(columns[3], dim=0, groups=len(block.branches)),
            "bn2": _joined_norms(columns[4]),
            "bn3": block.bn3,
        }
        one = form_of(block) == "b"
        parts["conv3"] = block.conv3 if one else joined_convs(columns[6], dim=1)
    for name, part in parts.items():
        expected = nn.Conv2d if name.startswith("conv") else nn.BatchNorm2d
        if not isinstance(part, expected):
            raise TypeError(
                f"{name}: got {type(part).__name__}, expected {expected.__name__}, which can be "
                "cut along its channels"
            )
    return parts


def _bottleneck(parts: dict[str, Any], downsample: nn.Module | None) -> Bottleneck:
    conv1, conv2, conv3 = (parts[name] for name in ("conv1", "conv2", "conv3"))
    if conv3.out_channels % Bottleneck.expansion:
        raise ValueError(
            f"conv3: has {conv3.out_channels} output channels, expected a multiple of "
            f"{Bottleneck.expansion} for a Bottleneck"
        )
    planes = conv3.out_channels // Bottleneck.expansion
    block = Bottleneck(conv1.in_channels, planes, max(conv2.stride), downsample)
    for name, part in parts.items():
        setattr(block, name, copy.deepcopy(part))
    return block


# ---- cutting and joining -------------------------------------------------------------------------


def _split(parts: dict[str, Any], with_last: bool) -> list[nn.Sequential]:
    groups = parts["conv2"].groups
    width = parts["conv2"].out_channels // groups
    branches = []
    for group in range(groups):
        channels = slice(group * width, (group + 1) * width)
        layers = [
            _cut_conv(parts["conv1"], channels),
            _cut_norm(parts["bn1"], channels),
            nn.ReLU(inplace=True),
            _cut_conv(parts["conv2"], channels, groups=1),
            _cut_norm(parts["bn2"], channels),
            nn.ReLU(inplace=True),
        ]
        if with_last:
            weight = parts["conv3"].weight[:, channels]
            layers.append(_conv_like(parts["conv3"], weight, None, groups=1))
        branches.append(nn.Sequential(*layers))
    return branches


def _cut_conv(conv: nn.Conv2d, channels: slice, groups: int | None = None) -> nn.Conv2d:
    bias = None if conv.bias is None else conv.bias[channels]
    return _conv_like(conv, conv.weight[channels], bias, groups or conv.groups)


def joined_convs(convs: Sequence[Any], dim: int, groups: int = 1) -> nn.Conv2d:
    """One convolution for several: side by side along output (0) or input channels (1).

    Raises:
        ValueError: they differ in kernel size, stride, padding or dilation, in whether they have a
            bias, or in ``requires_grad``.
    """
    _agree("convolutions", convs, ("kernel_size", "stride", "padding", "dilation", "padding_mode"))
    biases = [conv.bias for conv in convs]
    if len({bias is None for bias in biases}) > 1:
        raise ValueError("branches: some of their convolutions have a bias, expected all or none")
    _agree_on_gradients("convolutions", convs)
    bias = None if biases[0] is None else torch.cat(biases)
    return _conv_like(convs[0], torch.cat([conv.weight for conv in convs], dim), bias, groups)


def _conv_like(like: nn.Conv2d, weight: Tensor, bias: Tensor | None, groups: int) -> nn.Conv2d:
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        like.kernel_size,  # type: ignore[arg-type]
        like.stride,  # type: ignore[arg-type]
        like.padding,  # type: ignore[arg-type]
        like.dilation,  # type: ignore[arg-type]
        groups,
        bias is not None,
        like.padding_mode,
        device="meta",
    )
    conv.weight = _parameter(weight, like.weight)
    if bias is not None and like.bias is not None:
        conv.bias = _parameter(bias, like.bias)
    return conv


def _cut_norm(norm: nn.BatchNorm2d, channels: slice) -> nn.BatchNorm2d:
    return _norm_like(norm, {name: t[channels] for name, t in _vectors(norm).items()})


def _joined_norms(norms: Sequence[Any]) -> nn.BatchNorm2d:
    _agree("BatchNorms", norms, ("eps", "momentum", "affine", "track_running_stats", "training"))
    _agree_on_gradients("BatchNorms", norms)
    counts = {int(norm.num_batches_tracked or 0) for norm in norms}
    if len(counts) > 1:
        raise ValueError(f"branches: their BatchNorms have seen {sorted(counts)} batches")
    vectors = [_vectors(norm) for norm in norms]
    return _norm_like(norms[0], {n: torch.cat([v[n] for v in vectors]) for n in vectors[0]})


def _vectors(norm: nn.BatchNorm2d) -> dict[str, Tensor]:
    """What a BatchNorm has one value per channel of."""
    return {n: t for n, t in norm.state_dict(keep_vars=True).items() if t.dim() == 1}


def _norm_like(like: nn.BatchNorm2d, vectors: dict[str, Tensor]) -> nn.BatchNorm2d:
    norm = copy.deepcopy(like)
    for name, value in vectors.items():
        old = getattr(like, name)
        is_parameter = isinstance(old, nn.Parameter)
        setattr(norm, name, _parameter(value, old) if is_parameter else value.detach().clone())
        norm.num_features = len(value)
    return norm


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach().clone(), requires_grad=like.requires_grad)


def _agree(what: str, modules: Sequence[Any], attributes: Sequence[str]) -> None:
    for name in attributes:
        values = {getattr(module, name) for module in modules}
        if len(values) > 1:
            raise ValueError(f"branches: their {what} differ in {name}: {sorted(map(str, values))}")


def _agree_on_gradients(what: str, modules: Sequence[Any]) -> None:
    needs = {tuple(p.requires_grad for p in module.parameters()) for module in modules}
    if len(needs) > 1:
        raise ValueError(
            f"branches: their {what} differ in requires_grad: {sorted(map(str, needs))}"
        )
