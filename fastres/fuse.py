"""FX graph to FX graph: finds conv, BatchNorm, add and activation, and puts the operators there.

It knows operators and no model. Convolutions are grown into units, ``conv [+ BN] [+ shortcut]
[+ act]``, and runs of three units into whole bottlenecks. A unit takes the place of its last node, so
what it reads must not change between its first node and its last; and nobody but the unit may see
its inner values. What does not qualify stays as it is, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from .fx.cleaning import clean
from .fx.effects import Effects
from .fx.patterns import Act, Add, Conv, Norm, Reader, Unfit
from .fx.shapes import Image, Shapes
from .packing import Recipe, constant_names

#: Key in ``node.meta`` of the nodes that call fastres operators; their outputs are channels_last.
FUSED = "fastres"

_NO_ACT = ("none", 0.01)


@dataclass(frozen=True)
class Fused:
    """One operator in the place of several."""

    op: str
    """``conv_bn_act`` or ``grouped_bottleneck``."""
    modules: tuple[str, ...]
    """What it stands for: paths of modules, and functions as ``path:function``."""
    detail: str
    """Kernel, stride, groups, activation, for people."""


@dataclass(frozen=True)
class Left:
    """A layer, or a module with layers in it, that runs as it was."""

    module: str
    reason: str


@dataclass
class FusedGraph:
    """What became of a graph."""

    graph: fx.Graph
    recipes: list[Recipe] = field(default_factory=list)
    """Of the constants ``_packed_i`` and ``_shift_i``, which the graph reads as attributes."""
    fused: list[Fused] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    images: list[tuple[fx.Node, list[int]]] = field(default_factory=list)
    """Placeholders that must have 4 dimensions, and the recipes whose dtype must be theirs."""


@dataclass
class _Unit:
    """A convolution and what follows it; grows at its end."""

    conv: Conv
    nodes: list[fx.Node]
    norm: Norm | None = None
    residual: fx.Node | None = None
    added_at: fx.Node | None = None
    act: tuple[str, float] = _NO_ACT

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


@dataclass
class _Block:
    """conv1, conv2, conv3 and perhaps the shortcut's convolution, as one bottleneck."""

    units: list[_Unit]

    @property
    def last(self) -> fx.Node:
        return self.units[2].last


def fuse(
    graph: fx.Graph,
    reader: Reader,
    inputs: Callable[[fx.Node], Image | None],
    autocast: bool = False,
    blocks: bool = True,
) -> FusedGraph:
    """Rewrites a graph in place.

    Args:
        graph: the graph.
        reader: reads its nodes.
        inputs: for a placeholder, what is known of its shape; None if it is no image.
        autocast: whether the graph will run under autocast.
        blocks: whether to make whole bottlenecks.

    Returns:
        The same graph, with what it needs and what was done.
    """
    assumed = clean(graph, reader, inputs)
    return _Fuser(graph, reader, inputs, autocast, assumed).run(blocks)


class _Fuser:
    def __init__(
        self,
        graph: fx.Graph,
        reader: Reader,
        inputs: Callable[[fx.Node], Image | None],
        autocast: bool,
        assumed: Iterable[fx.Node],
    ) -> None:
        self._graph = graph
        self._reader = reader
        self._effects = Effects(graph, reader)
        self._shapes = Shapes(graph, reader, inputs, autocast)
        self._result = FusedGraph(graph)
        self._recipes: dict[Recipe, int] = {}
        self._replaced: dict[fx.Node, fx.Node] = {}
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._needs: dict[fx.Node, list[int]] = {node: [] for node in assumed}

    def run(self, blocks: bool) -> FusedGraph:
        units = self._find_units()
        found = _find_blocks(units, self._effects) if blocks else []
        inside = {id(unit) for block in found for unit in block.units}
        pieces = [*found, *(unit for unit in units if id(unit) not in inside)]
        for piece in sorted(pieces, key=lambda piece: self._order[piece.last]):
            if isinstance(piece, _Block):
                self._emit_block(piece)
            else:
                self._emit_unit(piece)
        self._result.recipes = list(self._recipes)
        self._result.images = list(self._needs.items())
        self._graph.lint()
        return self._result

    # -- finding --

    def _find_units(self) -> list[_Unit]:
        units: dict[fx.Node, _Unit] = {}  # by last node
        claimed: set[fx.Node] = set()
        for node in self._graph.nodes:
            reading = self._reader.read(node)
            if isinstance(reading, Conv):
                unit = self._start(node, reading)
                if unit is not None:
                    units[unit.last] = unit
                    claimed.update(unit.nodes)
            elif isinstance(reading, Add):
                self._attach_shortcut(node, reading, units)
            elif isinstance(reading, (Unfit, Norm)) and node not in claimed:
                self._leave(node, _why(reading))
        for unit in list(units.values()):
            self._attach_act(unit)
        return list(units.values())

    def _start(self, node: fx.Node, conv: Conv) -> _Unit | None:
        if self._shapes.image(conv.x) is None:
            self._leave(node, "its input may not have 4 dimensions")
            return None
        unit = _Unit(conv, [node])
        follower = _sole_user(node)
        norm = None if follower is None else self._reader.read(follower)
        if follower is None:
            return unit
        if isinstance(norm, Norm) and norm.x is node:
            if self._can_grow(unit, follower):
                unit.norm = norm
                unit.nodes.append(follower)
        elif isinstance(norm, Unfit) and norm.is_norm:
            self._leave(node, norm.reason)
            return None
        return unit

    def _can_grow(self, unit: _Unit, node: fx.Node) -> bool:
        """Whether the unit may be computed at ``node`` instead of where it stands."""
        if not self._effects.can_read_later(unit.conv.x, unit.nodes[0], node):
            return False
        if unit.residual is None or unit.added_at is None:
            return True
        return self._effects.can_read_later(unit.residual, unit.added_at, node)

    def _attach_shortcut(self, node: fx.Node, add: Add, units: dict[fx.Node, _Unit]) -> None:
        candidates = []
        for end, other in ((add.left, add.right), (add.right, add.left)):
            unit = units.get(end)
            if unit is None or unit.residual is not None or _sole_user(end) is not node:
                continue
            if not self._shapes.equal(end, other):
                continue
            private = end is add.left or self._effects.write_is_private(add.left, node)
            if (private or not add.inplace) and self._can_grow(unit, node):
                candidates.append((unit, other))
        if not candidates:
            return
        # Of a block's two sides, the main one: its convolution is all that reads its input.
        unit, residual = min(candidates, key=lambda pair: len(pair[0].conv.x.users) > 1)
        del units[unit.last]
        unit.residual, unit.added_at = residual, node
        unit.nodes.append(node)
        units[node] = unit

    def _attach_act(self, unit: _Unit) -> None:
        follower = _sole_user(unit.last)
        act = None if follower is None else self._reader.read(follower)
        if follower is not None and isinstance(act, Act) and self._can_grow(unit, follower):
            unit.act = (act.name, act.slope)
            unit.nodes.append(follower)

    def _leave(self, node: fx.Node, reason: str) -> None:
        self._result.left.append(Left(label(node), reason))

    # -- rewriting --

    def _constants(self, unit: _Unit) -> tuple[fx.Node, fx.Node]:
        """Reads of the packed weight and shift of a unit, at the insertion point."""
        index = self._recipes.setdefault(Recipe.of(unit.conv, unit.norm), len(self._recipes))
        image = self._shapes.image(unit.conv.x)
        for placeholder in () if image is None else image.needs:
            indices = self._needs.setdefault(placeholder, [])
            if image is not None and image.dtype is placeholder:
                indices.append(index)
        packed, shift = constant_names(index)
        # create_node: get_attr warns of names that the owning module lacks.
        return (
            self._graph.create_node("get_attr", packed),
            self._graph.create_node("get_attr", shift),
        )

    def _value(self, node: fx.Node) -> fx.Node:
        return self._replaced.get(node, node)

    def _emit_unit(self, unit: _Unit) -> None:
        conv, residual = unit.conv, unit.residual
        with self._graph.inserting_before(unit.last):
            packed, shift = self._constants(unit)
            node = self._graph.call_function(
                torch.ops.fastres.conv_bn_act.default,
                (
                    *(self._value(conv.x), packed, shift),
                    None if residual is None else self._value(residual),
                    *(list(conv.weight_shape[2:]), list(conv.stride), list(conv.padding)),
                    *(list(conv.dilation), conv.groups, *unit.act),
                ),
            )
        detail = _describe(conv, unit.act[0])
        self._finish(node, "conv_bn_act", [unit], detail)

    def _emit_block(self, block: _Block) -> None:
        first, middle, third, *down = block.units
        with self._graph.inserting_before(block.last):
            constants = [constant for unit in block.units for constant in self._constants(unit)]
            if not down:
                constants.extend([None, None])
            node = self._graph.call_function(
                torch.ops.fastres.grouped_bottleneck.default,
                (
                    *(self._value(first.conv.x), *constants),
                    *(list(middle.conv.stride), list(middle.conv.dilation)),
                    *(middle.conv.groups, third.act[0]),
                ),
            )
        detail = f"1x1, {_describe(middle.conv, '')}, 1x1, {third.act[0]}"
        if down:
            detail += ", shortcut 1x1"
        self._finish(node, "grouped_bottleneck", block.units, detail)

    def _finish(self, node: fx.Node, op: str, units: list[_Unit], detail: str) -> None:
        nodes = sorted((n for unit in units for n in unit.nodes), key=self._order.__getitem__)
        last = nodes[-1]
        node.meta[FUSED] = op
        self._replaced[last] = node
        last.replace_all_uses_with(node)
        self._result.fused.append(Fused(op, tuple(label(n) for n in nodes), detail))
        for old in reversed(nodes):
            self._graph.erase_node(old)


def _why(reading: Unfit | Norm) -> str:
    return reading.reason if isinstance(reading, Unfit) else "its BatchNorm follows no convolution"


def _sole_user(node: fx.Node) -> fx.Node | None:
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


def _describe(conv: Conv, act: str) -> str:
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


# ---- bottlenecks ---------------------------------------------------------------------------------


def _find_blocks(units: list[_Unit], effects: Effects) -> list[_Block]:
    by_last = {unit.last: unit for unit in units}
    blocks: list[_Block] = []
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


def _block_ending_at(third: _Unit, by_last: dict[fx.Node, _Unit]) -> _Block | None:
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
        return _Block(units) if channels_kept and middle.conv.stride == (1, 1) else None
    down = _only_feeds(third.residual, by_last)
    if (
        down is None
        or down.conv.x is not first.conv.x
        or down.act != _NO_ACT
        or down.residual is not None
        or not _is_pointwise(down.conv, middle.conv.stride)
    ):
        return None
    return _Block([*units, down])


def _only_feeds(node: fx.Node, by_last: dict[fx.Node, _Unit]) -> _Unit | None:
    """The unit that makes ``node``, if nothing but one node reads it."""
    return by_last.get(node) if _sole_user(node) is not None else None


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

