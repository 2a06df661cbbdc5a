"""The training operators with a say in what they keep for backward.

The raw output of a convolution is needed three times in backward: by whoever reads it, for its
own statistics' gradients, and at the end of a block. Where it is cheap to compute, it is *rebuilt*
instead of kept: the first node that needs it asks the node that made it, which computes it from
what it keeps itself (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, but by
layer, and without BatchNorm's statistics, which are kept). The same kernels give the same bits.

They also hand gradients to each other where that saves a pass over one, see _handed.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import reference
from ..fx.pools import MaxPoolWindow
from ..ops.affine_add_act import affine_add_act_gradients
from ..ops.conv_stats import conv_stats_gradients
from ..reference.inference import compute_dtype
from ..schema.checks import MOST_PLACES
from ..weights.algorithm import for_output
from .handed import Fork, Handed, backward_pass

_OPS = torch.ops.fastres
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def _once_a_pass(node: Any, name: str, compute: Callable[[], Any]) -> Any:
    """A value that a node computes once in each backward pass, and keeps until another one's."""
    kept = getattr(node, name)
    if kept is None or kept[0] != backward_pass():
        kept = backward_pass(), compute()
        setattr(node, name, kept)
    return kept[1]


def _saved(node: Any) -> tuple[Any, ...]:
    """A node's saved tensors, which a checkpoint lets be read once."""

    def read() -> tuple[Any, ...]:
        tensors: tuple[Any, ...] = node.saved_tensors
        if not rebuilds(node):
            return tensors
        # What it has made leads to the node: a cycle, where its own backward does not run.
        return tuple(None if tensor is None else tensor.detach() for tensor in tensors)

    saved: tuple[Any, ...] = _once_a_pass(node, "saved", read)
    return saved


def _rebuilt(node: Any) -> Tensor:
    """The output of a convolution's node, which keeps it until its own backward is done."""

    def compute() -> Tensor:
        y: Tensor = _call(node.act, node.geometry, _inputs_of(node)[0])[0]
        return y

    rebuilt: Tensor = _once_a_pass(node, "value", compute)
    return rebuilt


def _call(act: Sequence[Any], geometry: Sequence[Any], inputs: Sequence[Any]) -> Any:
    *before, weight = inputs
    *sizes, algorithm = geometry
    algorithm = for_output(algorithm, weight.shape[1])
    # x has its dtype; backward may be called under another autocast than forward was.
    with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
        return _OPS.conv_stats(*before, *act, weight, *sizes, algorithm)


def _inputs_of(node: Any) -> tuple[list[Tensor | None], tuple[Tensor, ...]]:
    """x, in_mean, in_scale, in_bias and weight of a convolution's node, and what else it keeps."""
    x, *vectors, weight, y, mean = _saved(node)
    if rebuilds(node.source):
        x = _rebuilt(node.source)
    return [x, *vectors, weight], (y, mean)


def _is_contiguous(x: Tensor) -> bool:
    """Whether eager gives a gradient of the usual strides: x has them, and not channels_last's."""
    return x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last)


def _laid_out(grad: Tensor | None, contiguous: bool) -> Tensor | None:
    """A gradient with the strides of the value that it is of; kernels give channels_last ones."""
    return grad.contiguous() if grad is not None and contiguous else grad


def rebuilds(node: Any) -> bool:
    """Whether a node is a convolution's that computes its output again in backward."""
    return _is_convolution(node) and bool(node.rebuild)


def _is_convolution(node: Any) -> bool:
    return isinstance(node, Convolution._backward_cls)


def _refuse_second_order(*nodes: Any) -> None:
    if torch.is_grad_enabled() and any(map(rebuilds, nodes)):
        raise RuntimeError(
            "accelerate: a model with memory='save' can be differentiated once, got "
            "create_graph=True; accelerate it with memory='keep'"
        )


class Convolution(torch.autograd.Function):
    """``conv_stats``, whose output may be rebuilt in backward.

    ``has_norm`` tells whether anybody reads its statistics, and ``source`` is the node that made x.
    Of ``adds`` it adds the gradient to x's, and to ``gives`` it hands x's.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        x: Tensor,
        in_mean: Tensor | None,
        in_scale: Tensor | None,
        in_bias: Tensor | None,
        weight: Tensor,
        act: Sequence[Any],
        geometry: Sequence[Any],
        has_norm: bool,
        rebuild: bool,
        source: Any,
        adds: Fork | None,
        gives: Fork | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs = (x, in_mean, in_scale, in_bias, weight)
        y, mean, m2 = _call(act, geometry, inputs)
        ctx.act, ctx.geometry, ctx.rebuild, ctx.source = act, geometry, rebuild, source
        ctx.adds, ctx.gives, ctx.grad_scale = adds, gives, Handed()
        ctx.before = None if adds is None else x.grad_fn
        ctx.value = ctx.saved = None
        ctx.contiguous = _is_contiguous(x)
        if not has_norm:
            ctx.mark_non_differentiable(mean, m2)
        kept_x = None if rebuilds(source) else x
        # Without a BatchNorm only others read it, who may also write to it.
        kept_y = y if has_norm and not rebuild else None
        ctx.save_for_backward(kept_x, *inputs[1:], kept_y, mean)
        ctx.set_materialize_grads(False)
        return y, mean, m2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        _refuse_second_order(ctx.source, ctx)
        inputs, (y, mean) = _inputs_of(ctx)
        if ctx.rebuild:
            y = _rebuilt(ctx)
        ctx.value = ctx.saved = None
        if y is None:  # which only its statistics' gradients would need
            y = grads[0]
        needs = ctx.needs_input_grad[:5]
        grad_in = None if ctx.adds is None else ctx.adds.take()
        rest = (y, mean), ctx.geometry
        end = _end_before(ctx) if grad_in is not None and needs[0] else None
        if end is None:
            found = conv_stats_gradients(
                grads, inputs, ctx.act, *rest, needs, ctx.grad_scale.take(), grad_in
            )
        else:
            y_before, *affine, residual, _, _, _ = _end_inputs(end)
            x, weight = inputs[0], inputs[4]
            found = conv_stats_gradients(
                grads, [y_before, *affine, weight], end.act, *rest, (*[True] * 4, needs[4]),
                ctx.grad_scale.take(), grad_in, (residual, x),
            )  # fmt: skip
            end.passed.give(found[1:4])
            found[1:4] = [None] * 3
        if ctx.gives is not None:
            found[0] = ctx.gives.give(found[0])
        found[0] = _laid_out(found[0], ctx.contiguous)
        return (*found, *[None] * 7)


class Statistics(torch.autograd.Function):
    """Mean and sum of squared deviations per channel, of what no convolution computed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        ctx.count = x.numel() // max(1, x.shape[1])
        # Eager's own pass: var_mean takes ten times as long. With a momentum of 0 it updates
        # nothing, and the dtype of what it does not update is that of its results.
        unused = [x.new_zeros(x.shape[1], dtype=compute_dtype(x)) for _ in range(2)]
        mean, variance = unused  # of an empty batch
        if ctx.count:
            mean, variance = torch.ops.aten.batch_norm_update_stats(x, *unused, 0.0)
        ctx.contiguous = _is_contiguous(x)
        ctx.save_for_backward(x, mean)
        ctx.set_materialize_grads(False)
        return mean, variance * ctx.count

    @staticmethod
    def backward(ctx: Any, mean_grad: Tensor | None, m2_grad: Tensor | None) -> Tensor | None:  # noqa: D102
        x, mean = ctx.saved_tensors
        if mean_grad is None and m2_grad is None:
            return None
        none = torch.zeros_like(mean)
        slope = none if m2_grad is None else 2 * m2_grad
        offset = none if mean_grad is None else mean_grad / max(1, ctx.count)
        grad: Tensor = _OPS.affine_add_act(x, mean, slope, offset, *[None] * 4, "none", 0.0)
        return _laid_out(grad, ctx.contiguous)


class MaxPool(torch.autograd.Function):
    """``F.max_pool2d`` that keeps where in its window a value was, and not its input.

    In a byte, on the CPU and of the usual windows; otherwise as PyTorch's indices, on a GPU as they
    come, because shortening them moves more than the pooling does.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, window: MaxPoolWindow) -> Tensor:  # noqa: D102
        ctx.window, ctx.size, ctx.contiguous = window, x.shape, _is_contiguous(x)
        places = window.kernel[0] * window.kernel[1]
        ctx.in_bytes = not x.is_cuda and window.is_plain and places <= MOST_PLACES
        if ctx.in_bytes:
            op = (reference if x.dtype == torch.float64 else _OPS).max_pool_places
            out, where = op(x, *window[:3])
        else:
            out, where = torch.ops.aten.max_pool2d_with_indices(x, *window)
            if not x.is_cuda and x.shape[2] * x.shape[3] < 2**31:
                where = where.to(torch.int32)
        ctx.save_for_backward(where)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        (where,) = ctx.saved_tensors
        if ctx.in_bytes:
            # Differentiated again, in plain PyTorch.
            plain = torch.is_grad_enabled() or grad.dtype == torch.float64
            op = (reference if plain else _OPS).max_pool_places_backward
            found = op(grad, where, ctx.size[2:], *ctx.window[:3])
            return _laid_out(found, ctx.contiguous), None
        # Its shape and strides are read alone.
        x = torch.empty(
            ctx.size, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last
        )
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        return _laid_out(backward(grad, x, *ctx.window, where.long()), ctx.contiguous), None


class BlockEnd(torch.autograd.Function):
    """``affine_add_act`` of outputs that may be rebuilt in backward.

    ``sources`` are the nodes that made y and the residual, if those are convolutions' that nothing
    else reads. To ``gives`` goes the residual's gradient.
    """

    @staticmethod
    def forward(  # noqa: D102
        ctx: Any,
        act: Sequence[Any],
        sources: tuple[Any, Any],
        gives: Fork | None,
        *inputs: Tensor | None,
    ) -> Tensor:
        ctx.act, ctx.sources, ctx.gives = act, sources, gives
        ctx.inputs_given = [tensor is not None for tensor in inputs]
        ctx.contiguous = inputs[4] is not None and _is_contiguous(inputs[4])
        ctx.again = False  # whether what its backward computed may be differentiated
        # Where the gradient has passed the end: the affine's.
        ctx.passed = Handed()
        ctx.saved = None
        kept = list(inputs)
        for position, source in zip((0, 4), sources, strict=True):
            if rebuilds(source):
                kept[position] = None
        ctx.save_for_backward(*kept)
        out: Tensor = _OPS.affine_add_act(*inputs, *act)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        _refuse_second_order(*ctx.sources)
        ctx.again |= torch.is_grad_enabled()
        needs, passed = ctx.needs_input_grad[3:], ctx.passed.take()
        inputs = _end_inputs(ctx)
        ctx.saved = None
        shared = _shares(ctx)
        if shared:
            _hand_scales(ctx, inputs)
        if passed is None:
            found = affine_add_act_gradients(grad, inputs, ctx.act, needs, shared)
        else:
            both = [grad, *passed, grad, None, None, None]
            found = [g if needed else None for g, needed in zip(both, needs, strict=True)]
        if ctx.gives is not None:
            found[4] = ctx.gives.give(found[4])
        found[4] = _laid_out(found[4], ctx.contiguous)
        return (None, None, None, *found)


def _end_inputs(end: Any) -> list[Tensor | None]:
    """What ``affine_add_act`` was given."""
    inputs = list(_saved(end))
    for position, source in zip((0, 4), end.sources, strict=True):
        if rebuilds(source):
            inputs[position] = _rebuilt(source)
    return inputs


def _shares(end: Any) -> bool:
    """Whether one gradient can serve both sides of a block's end.

    Those that get it multiply it by their scale, if they have one. What is differentiated again
    reads y a second time, with a gradient of its own that is not to be multiplied.
    """
    needs = end.needs_input_grad[3:]
    has_residual, has_affine = end.inputs_given[4], end.inputs_given[5]
    scaled = [end.sources[0]] * needs[0] + [end.sources[1]] * (needs[4] and has_affine)
    return has_residual and not end.again and all(map(_is_convolution, scaled))


def _hand_scales(end: Any, inputs: Sequence[Tensor | None]) -> None:
    """Tells the convolutions of a block's end to multiply the gradient that they get."""
    for source, scale in zip(end.sources, (inputs[2], inputs[6]), strict=True):
        if scale is not None and _is_convolution(source):
            source.grad_scale.give(scale)


def _is_block_end(node: Any) -> bool:
    return isinstance(node, BlockEnd._backward_cls)


def _end_before(conv: Any) -> Any:
    """The block's end that made a convolution's input, if the gradient can pass it at once.

    The convolution and the shortcut whose gradient it adds are all that reads the input, so that
    this is its whole gradient.
    """
    end = conv.before
    if not _is_block_end(end) or conv.adds.again:
        return None
    is_identity = end.inputs_given[4] and not end.inputs_given[5]
    return end if is_identity and end.needs_input_grad[3] and _shares(end) else None
