"""Pieces of a graph that become one operator: convolutions with company, and bottlenecks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from ..fx.effects import Effects
from ..fx.readings import Affine, Conv, Norm

NO_ACT = ("none", 0.01)


@dataclass
class Unit:
    """A convolution and what follows it; grows at its end."""

    conv: Conv
    nodes: list[fx.Node]
    steps: list[Norm | Affine] = field(default_factory=list)
    residual: fx.Node | None = None
    added_at: fx.Node | None = None
    act: tuple[str, float] = NO_ACT

    @property
    def last(self) -> fx.Node:
        """The node whose value the unit's is."""
        return self.nodes[-1]


@dataclass
class Lone:
    """A BatchNorm that follows no convolution, and the activation after it."""

    norm: Norm
    nodes: list[fx.Node]
    act: tuple[str, float] = NO_ACT

    @property
    def last(self) -> fx.Node:
        """The node whose value it makes."""
        return self.nodes[-1]


@dataclass
class Block:
    """conv1, conv2, conv3 and perhaps the shortcut's convolution, as one bottleneck."""

    units: list[Unit]

    @property
    def last(self) -> fx.Node:
        """The node whose value the block's is."""
        return self.units[2].last


def sole_user(node: fx.Node) -> fx.Node | None:
    """The node that reads ``node``, if there is one, it reads it once, and it returns nothing."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    if user.op == "output" or occurrences(user, node) != 1:
        return None
    return user


def occurrences(user: fx.Node, node: fx.Node) -> int:
    """How many times ``node`` is among the arguments of ``user``."""
    count = 0

    def visit(argument: Any) -> Any:
        nonlocal count
        count += argument is node
        return argument

    fx.map_arg((user.args, user.kwargs), visit)
    return count


def label(node: fx.Node) -> str:
    """A node's name for people: a module's path, or the path of the caller and the function."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack else ""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return f"{path}:{name}"


def describe(conv: Conv, act: str) -> str:
    """Kernel size, stride, dilation, groups and activation, for people."""
    kernel = "x".join(map(str, conv.weight_shape[2:]))
    parts = [kernel]
    for name, value, default in (
        ("stride", conv.stride, (1, 1)),
        ("dilation", conv.dilation, (1, 1)),
    ):
        if value != default:
            parts.append(f"{name} {value[0] if value[0] == value[1] else value}")
    if conv.groups > 1:
        parts.append(f"{conv.groups} groups")
    if act not in ("", "none"):
        parts.append(act)
    return ", ".join(parts)


def find_blocks(units: list[Unit], effects: Effects) -> list[Block]:
    """The bottlenecks among the units; a unit is in one at most."""
    by_last = {unit.last: unit for unit in units}
    blocks: list[Block] = []
    used: set[int] = set()
    for unit in units:
        block = _block_ending_at(unit, by_last)
        if block is None or any(id(member) in used for member in block.units):
            continue
        first, last = block.units[0], block.last
        reads = [block.units[0].nodes[0], *(u.nodes[0] for u in block.units[3:])]
        if all(effects.can_read_later(first.conv.x, read, last) for read in reads):
            blocks.append(block)
            used.update(id(member) for member in block.units)
    return blocks


def _block_ending_at(third: Unit, by_last: dict[fx.Node, Unit]) -> Block | None:
    if third.residual is None or not _is_pointwise(third.conv, (1, 1)):
        return None
    middle = _only_feeds(third.conv.x, by_last)
    if middle is None or not _is_middle(middle.conv):
        return None
    first = _only_feeds(middle.conv.x, by_last)
    if first is None or not _is_pointwise(first.conv, (1, 1)):
        return None
    act, slope = third.act
    if first.act != third.act or middle.act != third.act or (act == "leaky_relu" and slope != 0.01):
        return None
    if first.residual is not None or middle.residual is not None:
        return None
    units = [first, middle, third]
    if third.residual is first.conv.x:
        channels_kept = third.conv.weight_shape[0] == first.conv.weight_shape[1]
        return Block(units) if channels_kept and middle.conv.stride == (1, 1) else None
    down = _only_feeds(third.residual, by_last)
    if (
        down is None
        or down.conv.x is not first.conv.x
        or down.act != NO_ACT
        or down.residual is not None
        or not _is_pointwise(down.conv, middle.conv.stride)
    ):
        return None
    return Block([*units, down])


def _only_feeds(node: fx.Node, by_last: dict[fx.Node, Unit]) -> Unit | None:
    """The unit that makes ``node``, if nothing but one node reads it."""
    return by_last.get(node) if sole_user(node) is not None else None


def _is_pointwise(conv: Conv, stride: tuple[int, int]) -> bool:
    return (
        conv.weight_shape[2:] == (1, 1)
        and conv.stride == stride
        and conv.padding == (0, 0, 0, 0)
        and conv.groups == 1
    )


def _is_middle(conv: Conv) -> bool:
    (vertical, horizontal) = conv.dilation
    return conv.weight_shape[2:] == (3, 3) and conv.padding == (
        *(vertical, vertical),
        *(horizontal, horizontal),
    )
