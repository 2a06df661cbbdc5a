"""FX graph to FX graph: finds conv, BatchNorm, add and activation, and puts the operators there.

It knows operators and no model. Convolutions are grown into units, ``conv [+ BN] [+ shortcut]
[+ act]``, and runs of three units into whole bottlenecks. A unit takes the place of its last node,
so what it reads must not change between its first node and its last; and nobody but the unit may
see its inner values. A BatchNorm that follows no convolution makes one pass with its activation.
What does not qualify stays as it is, with a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import fx

from ..fx.cleaning import clean
from ..fx.effects import Effects
from ..fx.expressions import is_pure
from ..fx.heads import read_head
from ..fx.names import FUSED
from ..fx.patterns import Reader
from ..fx.pools import read_max_pool
from ..fx.readings import Act, Add, Affine, Conv, Norm, Pad, Reading, Unfit
from ..fx.shapes import Image, Shapes
from ..weights.packing import constant_names, first_number
from ..weights.recipes import NormRecipe, Recipe
from .units import Block, Lone, Unit, describe, find_blocks, label, sole_user


@dataclass(frozen=True)
class Fused:
    """One operator in the place of several."""

    op: str
    """``conv_bn_act``, ``conv_max_pool``, ``grouped_bottleneck`` or ``affine_add_act``."""
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
    recipes: list[Recipe | NormRecipe] = field(default_factory=list)
    """Of the constants, ``_packed_i`` and so on, which the graph reads as attributes."""
    first: int = 0
    """The number of the first recipe's constants."""
    fused: list[Fused] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    images: list[tuple[fx.Node, list[int]]] = field(default_factory=list)
    """Placeholders that must have 4 dimensions, and the recipes whose dtype must be theirs."""


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


class _Stem(NamedTuple):
    """A convolution that a max-pooling may follow in one operator."""

    x: fx.Node
    """What it reads, of the original graph."""
    last: fx.Node
    """What it took the place of."""
    fused: int
    """Where it is in ``FusedGraph.fused``."""


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
        self._autocast = autocast
        self._effects = Effects(graph, reader)
        self._shapes = Shapes(graph, reader, inputs, autocast)
        self._result = FusedGraph(graph, first=first_number(graph))
        self._recipes: dict[Recipe | NormRecipe, int] = {}
        self._lone: list[Lone] = []
        self._replaced: dict[fx.Node, fx.Node] = {}
        self._stems: dict[fx.Node, _Stem] = {}
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._needs: dict[fx.Node, list[int]] = {node: [] for node in assumed}

    def run(self, blocks: bool) -> FusedGraph:
        units = self._find_units()
        found = find_blocks(units, self._effects) if blocks else []
        inside = {id(unit) for block in found for unit in block.units}
        alone = [unit for unit in units if id(unit) not in inside]
        pieces: list[Unit | Block | Lone] = [*found, *alone, *self._lone]
        for piece in sorted(pieces, key=lambda piece: self._order[piece.last]):
            if isinstance(piece, Block):
                self._emit_block(piece)
            elif isinstance(piece, Unit):
                self._emit_unit(piece)
            else:
                self._emit_lone(piece)
        self._replace_pools()
        self._replace_heads()
        for node in reversed(list(self._graph.nodes)):
            if not node.users and (node.op == "get_attr" or is_pure(node)):
                self._graph.erase_node(node)  # made a weight or a scale that is folded now
        self._result.recipes = list(self._recipes)
        self._result.images = list(self._needs.items())
        self._graph.lint()
        return self._result

    def _replace_pools(self) -> None:
        """Max-poolings of what fused operators return: PyTorch's take several times as long."""
        for node in list(self._graph.nodes):
            x, window = read_max_pool(node, self._reader) or (None, None)
            if x is None or window is None or FUSED not in x.meta:
                continue
            if not window.is_plain:
                continue
            sizes = [list(size) for size in (window.kernel, window.stride, window.padding)]
            stem = self._stems.get(x)
            if stem is not None and len(x.users) == 1 and self._can_move(stem, node):
                self._pool_stem(stem, x, node, sizes)
            else:
                self._replace_pool(node, "max_pool", (x, *sizes))

    def _can_move(self, stem: _Stem, pool: fx.Node) -> bool:
        """Whether the convolution may read its input where the pooling is."""
        return self._effects.can_read_later(stem.x, stem.last, pool)

    def _pool_stem(
        self, stem: _Stem, conv: fx.Node, node: fx.Node, sizes: Sequence[list[int]]
    ) -> None:
        x, packed, shift, _, *rest = conv.args
        self._replace_pool(node, "conv_max_pool", (x, packed, shift, *rest, *sizes))
        self._graph.erase_node(conv)
        fused = self._result.fused[stem.fused]
        self._result.fused[stem.fused] = Fused(
            "conv_max_pool", (*fused.modules, label(node)), f"{fused.detail}, max-pool"
        )

    def _replace_pool(self, node: fx.Node, op: str, arguments: tuple[Any, ...]) -> None:
        with self._graph.inserting_before(node):
            pool = self._graph.call_function(getattr(torch.ops.fastres, op).default, arguments)
        pool.meta[FUSED] = op
        node.replace_all_uses_with(pool)
        self._graph.erase_node(node)

    def _replace_heads(self) -> None:
        """Average pooling and linear layer after fused operators: a call instead of three."""
        originals = {new: old for old, new in self._replaced.items()}
        calls = Counter(node.target for node in self._graph.nodes if node.op == "call_module")
        for node in list(self._graph.nodes):
            head = read_head(node, self._reader)
            if head is None or head.x not in originals or calls[node.target] > 1:
                continue
            if not self._effects.can_read_later(originals[head.x], head.nodes[0], node):
                continue
            with self._graph.inserting_before(node):
                weight, bias = (
                    self._graph.create_node("get_attr", f"{node.target}.{name}")
                    for name in ("weight", "bias")
                )
                fused = self._graph.call_function(
                    torch.ops.fastres.avg_pool_linear.default, (head.x, weight, bias)
                )
            fused.meta[FUSED] = "avg_pool_linear"
            node.replace_all_uses_with(fused)
            for old in reversed(head.nodes):
                self._graph.erase_node(old)

    # -- finding --

    def _find_units(self) -> list[Unit]:
        units: dict[fx.Node, Unit] = {}  # by last node
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
            elif isinstance(reading, Unfit) and node not in claimed:
                self._leave(node, reading.reason)
            elif isinstance(reading, Norm) and node not in claimed:
                self._lone.append(Lone(reading, [node]))
        for unit in list(units.values()):
            self._attach_act(unit)
        self._settle_lone(bool(units))
        return list(units.values())

    def _settle_lone(self, among_units: bool) -> None:
        """Which BatchNorms without convolution are worth an operator: those among convolutions.

        The operator returns channels_last, which elsewhere somebody may have to undo.
        """
        lone, self._lone = self._lone, []
        for piece in lone:
            (node,) = piece.nodes
            if not among_units:
                self._leave(node, "its BatchNorm follows no convolution")
            elif self._shapes.image(piece.norm.x) is None:
                self._leave(node, "its input may not have 4 dimensions")
            else:
                self._lone.append(piece)
                self._attach_act_to_lone(piece)

    def _attach_act_to_lone(self, piece: Lone) -> None:
        (node,) = piece.nodes
        follower = sole_user(node)
        act = None if follower is None else self._reader.read(follower)
        if (
            follower is not None
            and isinstance(act, Act)
            and self._effects.can_read_later(piece.norm.x, node, follower)
        ):
            piece.act = (act.name, act.slope)
            piece.nodes.append(follower)

    def _start(self, node: fx.Node, conv: Conv) -> Unit | None:
        if self._shapes.image(conv.x) is None:
            self._leave(node, "its input may not have 4 dimensions")
            return None
        unit = self._with_padding(node, conv)
        while (follower := sole_user(unit.last)) is not None:
            step = self._reader.read(follower)
            if isinstance(step, Unfit) and step.is_norm:
                self._leave(node, step.reason)
                return None
            if not self._folds(unit, step) or not self._can_grow(unit, follower):
                break
            assert isinstance(step, (Norm, Affine))
            unit.steps.append(step)
            unit.nodes.append(follower)
        return unit

    def _with_padding(self, node: fx.Node, conv: Conv) -> Unit:
        """The convolution, with the zeros that a node of their own puts around its input."""
        pad = self._reader.read(conv.x)
        if (
            not isinstance(pad, Pad)
            or sole_user(conv.x) is not node
            or self._shapes.image(pad.x) is None
            or not self._effects.can_read_later(pad.x, conv.x, node)
        ):
            return Unit(conv, [node])
        top, bottom, left, right = (a + b for a, b in zip(conv.padding, pad.padding, strict=True))
        return Unit(replace(conv, x=pad.x, padding=(top, bottom, left, right)), [conv.x, node])

    def _folds(self, unit: Unit, step: Reading | None) -> bool:
        """Whether a step is an affine of each channel of the unit's value, and keeps its dtype."""
        if isinstance(step, Norm):
            return step.x is unit.last
        if not isinstance(step, Affine) or step.x is not unit.last:
            return False
        # Under autocast the convolution's output has another dtype than the parameters.
        factors = (step.scale, step.shift)
        plain = all(isinstance(factor, float) for factor in factors)
        return step.channels in (1, unit.conv.weight_shape[0]) and (plain or not self._autocast)

    def _can_grow(self, unit: Unit, node: fx.Node) -> bool:
        """Whether the unit may be computed at ``node`` instead of where it stands."""
        if not self._effects.can_read_later(unit.conv.x, unit.nodes[0], node):
            return False
        if unit.residual is None or unit.added_at is None:
            return True
        return self._effects.can_read_later(unit.residual, unit.added_at, node)

    def _attach_shortcut(self, node: fx.Node, add: Add, units: dict[fx.Node, Unit]) -> None:
        candidates = []
        for end, other in ((add.left, add.right), (add.right, add.left)):
            unit = units.get(end)
            if unit is None or unit.residual is not None or sole_user(end) is not node:
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

    def _attach_act(self, unit: Unit) -> None:
        follower = sole_user(unit.last)
        act = None if follower is None else self._reader.read(follower)
        if follower is not None and isinstance(act, Act) and self._can_grow(unit, follower):
            unit.act = (act.name, act.slope)
            unit.nodes.append(follower)

    def _leave(self, node: fx.Node, reason: str) -> None:
        self._result.left.append(Left(label(node), reason))

    # -- rewriting --

    def _constants(self, unit: Unit) -> tuple[fx.Node, fx.Node]:
        """Reads of the packed weight and shift of a unit, at the insertion point."""
        recipe = Recipe.of(unit.conv, unit.steps)
        index = self._recipes.setdefault(recipe, len(self._recipes))
        image = self._shapes.image(unit.conv.x)
        for placeholder in () if image is None else image.needs:
            indices = self._needs.setdefault(placeholder, [])
            if image is not None and image.dtype is placeholder:
                indices.append(index)
        packed, shift = self._read_constants(recipe, index)
        return packed, shift

    def _read_constants(self, recipe: Recipe | NormRecipe, index: int) -> list[fx.Node]:
        # create_node: get_attr warns of names that the owning module lacks.
        names = constant_names(recipe, self._result.first + index)
        return [self._graph.create_node("get_attr", name) for name in names]

    def _value(self, node: fx.Node) -> fx.Node:
        return self._replaced.get(node, node)

    def _emit_unit(self, unit: Unit) -> None:
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
        detail = describe(conv, unit.act[0])
        self._finish(node, "conv_bn_act", [unit], detail)
        if residual is None and not Recipe.of(unit.conv, unit.steps).suits_winograd:
            self._stems[node] = _Stem(conv.x, unit.last, len(self._result.fused) - 1)

    def _emit_block(self, block: Block) -> None:
        first, middle, third, *down = block.units
        with self._graph.inserting_before(block.last):
            constants: list[fx.Node | None] = []
            for unit in block.units:
                constants.extend(self._constants(unit))
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
        detail = f"1x1, {describe(middle.conv, '')}, 1x1, {third.act[0]}"
        if down:
            detail += ", shortcut 1x1"
        self._finish(node, "grouped_bottleneck", block.units, detail)

    def _emit_lone(self, piece: Lone) -> None:
        recipe = NormRecipe.of(piece.norm)
        index = self._recipes.setdefault(recipe, len(self._recipes))
        image = self._shapes.image(piece.norm.x)
        for placeholder in () if image is None else image.needs:
            self._needs.setdefault(placeholder, [])  # of 4 dimensions, and any dtype
        with self._graph.inserting_before(piece.last):
            constants = self._read_constants(recipe, index)
            node = self._graph.call_function(
                torch.ops.fastres.affine_add_act.default,
                (self._value(piece.norm.x), *constants, None, None, None, None, *piece.act),
            )
        act = "" if piece.act[0] == "none" else f", {piece.act[0]}"
        self._finish(node, "affine_add_act", [piece], f"BatchNorm alone{act}")

    def _finish(self, node: fx.Node, op: str, units: Sequence[Unit | Lone], detail: str) -> None:
        nodes = sorted((n for unit in units for n in unit.nodes), key=self._order.__getitem__)
        last = nodes[-1]
        node.meta[FUSED] = op
        self._replaced[last] = node
        last.replace_all_uses_with(node)
        self._result.fused.append(Fused(op, tuple(label(n) for n in nodes), detail))
        for old in reversed(nodes):
            self._graph.erase_node(old)
