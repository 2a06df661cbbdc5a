"""FX graph to FX graph, for training: carries BatchNorm and activation to where they are read.

In training BatchNorm is an affine that is known once the convolution before it has run. So a
convolution with its BatchNorm gives a value that is *carried*: the raw output and the affine, not
applied. So does a BatchNorm that stands before convolutions, as with pre-activation. The
convolutions that read it apply affine and activation while they load it; at the end of a block one
pass applies them together with the shortcut; for anybody else one pass computes the value. Where a
graph is not understood, it stays as it is, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from torch import fx

from ..fx.cleaning import clean
from ..fx.effects import Effects
from ..fx.expressions import is_pure
from ..fx.names import FUSED
from ..fx.norms import BatchNorm, read_batch_norm
from ..fx.patterns import Reader
from ..fx.pools import MaxPoolWindow, read_max_pool
from ..fx.readings import Act, Add, Conv, Unfit
from ..fx.shapes import AUTOCAST, Image, Shapes
from .fuse import Fused, Left
from .rebuilt import Rebuilt
from .training_layers import ConvLayer, EndLayer, ForkLayer, Layer, NormLayer, PoolLayer
from .units import NO_ACT, describe, label, occurrences, sole_user

Memory = Literal["keep", "save"]

# Multiply-adds for a value, up to which it is computed again with memory="save". In ResNeXt-50 that
# is every grouped 3x3 and the 1x1s that widen the first two stages, where activations are largest;
# in ResNet-50, those 1x1s and the next stage's.
_CHEAP = 256

#: What a rewritten graph calls the module that its attributes belong to.
ROOT = "_root"


def layer_name(index: int) -> str:
    """What a rewritten graph calls its layer ``index``."""
    return f"_layer_{index}"


@dataclass
class TrainingGraph:
    """What became of a graph."""

    graph: fx.Graph
    layers: list[Layer] = field(default_factory=list)
    """Which the graph reads as attributes, by ``layer_name``."""
    fused: list[Fused] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    images: list[tuple[fx.Node, list[int]]] = field(default_factory=list)
    """Placeholders that must have 4 dimensions, and the layers whose dtype must be theirs."""
    rebuilt: list[Rebuilt] = field(default_factory=list)
    """Convolutions whose outputs are computed again in backward."""


@dataclass(eq=False)
class _Unit:
    """A convolution, its BatchNorm, and the activation of that."""

    conv: Conv
    nodes: list[fx.Node]
    norm: BatchNorm | None = None
    act: tuple[str, float] = NO_ACT

    @property
    def value(self) -> fx.Node:
        """The node whose value the unit's is."""
        return self.nodes[-1]


@dataclass(eq=False)
class _Lone:
    """A BatchNorm that follows no convolution, and its activation, read by convolutions alone."""

    norm: BatchNorm
    nodes: list[fx.Node]
    act: tuple[str, float] = NO_ACT


@dataclass(eq=False)
class _End:
    """A unit's value, computed: with a shortcut, if it is an addition."""

    main: _Unit
    nodes: list[fx.Node]
    act: tuple[str, float]
    shortcut: fx.Node | None = None


def fuse_training(
    graph: fx.Graph,
    reader: Reader,
    inputs: Callable[[fx.Node], Image | None],
    autocast: bool = False,
    memory: Memory = "keep",
) -> TrainingGraph:
    """Rewrites a graph in place.

    Args:
        graph: the graph.
        reader: reads its nodes.
        inputs: for a placeholder, what is known of its shape; None if it is no image.
        autocast: whether the graph will run under autocast.
        memory: "save" to compute again in backward what is cheap, instead of keeping it.

    Returns:
        The same graph, with what it needs and what was done.
    """
    assumed = clean(graph, reader, inputs)
    return _Fuser(graph, reader, inputs, autocast, assumed, memory == "save").run()


class _Fuser:
    def __init__(
        self,
        graph: fx.Graph,
        reader: Reader,
        inputs: Callable[[fx.Node], Image | None],
        autocast: bool,
        assumed: Iterable[fx.Node],
        saves: bool,
    ) -> None:
        self._graph = graph
        self._autocast = autocast
        self._saves = saves
        self._reader = reader
        self._effects = Effects(graph, reader)
        self._shapes = Shapes(graph, reader, inputs, autocast)
        self._result = TrainingGraph(graph)
        self._units: dict[fx.Node, _Unit] = {}  # by value
        self._convs: dict[fx.Node, _Unit] = {}  # by the convolution's node
        self._ends: dict[fx.Node, _End] = {}  # by where it is computed
        self._lone: dict[fx.Node, _Lone] = {}  # by the BatchNorm's node
        self._pools: dict[fx.Node, MaxPoolWindow] = {}
        self._forks: dict[fx.Node, fx.Node] = {}  # a block's first convolution -> its shortcut
        self._gives: dict[fx.Node, fx.Node] = {}  # a shortcut -> what it hands its gradient to
        self._order = {node: i for i, node in enumerate(graph.nodes)}
        self._needs: dict[fx.Node, list[int]] = {node: [] for node in assumed}
        self._carried: dict[fx.Node, fx.Node] = {}  # a value -> the node that carries it
        self._acts: dict[fx.Node, tuple[str, float]] = {}  # a carried value's, to be applied
        self._replaced: dict[fx.Node, fx.Node] = {}

    def run(self) -> TrainingGraph:
        for node in self._graph.nodes:
            self._find(node)
        for unit in list(self._units.values()):
            self._attach_act(unit)
        for node in self._graph.nodes:
            reading = self._reader.read(node)
            if isinstance(reading, Add):
                self._find_end(node, reading)
        for unit in self._units.values():
            if unit.norm is not None and not self._is_absorbed(unit):
                self._ends[unit.value] = _End(unit, [unit.value], unit.act)
        self._find_pools()
        self._find_forks()
        self._emit()
        self._result.images = list(self._needs.items())
        self._graph.lint()
        return self._result

    # -- finding --

    def _find(self, node: fx.Node) -> None:
        reading = self._reader.read(node)
        norm = read_batch_norm(node, self._reader)
        if isinstance(reading, Conv):
            self._start(node, reading)
        elif isinstance(norm, str):
            self._leave(node, norm)
        elif norm is not None:
            if node not in self._units and not self._find_lone(node, norm):
                self._leave(node, "its BatchNorm follows no convolution")
        elif isinstance(reading, Unfit):
            self._leave(node, reading.reason)

    def _start(self, node: fx.Node, conv: Conv) -> None:
        if self._shapes.image(conv.x) is None:
            self._leave(node, "its input may not have 4 dimensions")
            return
        unit = _Unit(conv, [node])
        follower = sole_user(node)
        norm = None if follower is None else read_batch_norm(follower, self._reader)
        if (
            follower is not None
            and not isinstance(norm, str | None)
            and norm.x is node
            and self._effects.can_read_later(conv.x, node, follower)
        ):
            unit.norm = norm
            unit.nodes.append(follower)
        self._units[unit.value] = self._convs[node] = unit

    def _find_lone(self, node: fx.Node, norm: BatchNorm) -> bool:
        """Notes a BatchNorm that no convolution precedes, if convolutions alone read its value."""
        image = self._shapes.image(norm.x)
        if image is None or (self._autocast and image.dtype != AUTOCAST):
            return False
        lone = _Lone(norm, [node])
        follower = sole_user(node)
        act = None if follower is None else self._reader.read(follower)
        if follower is not None and isinstance(act, Act):
            lone.act = (act.name, act.slope)
            lone.nodes.append(follower)
        value = lone.nodes[-1]
        if self._shapes.image(value) is None:
            return False
        for user in value.users:
            conv = self._reader.read(user)
            if (
                not isinstance(conv, Conv)
                or conv.x is not value
                or occurrences(user, value) != 1
                or not self._effects.can_read_later(norm.x, node, user)
            ):
                return False
        self._lone[node] = lone
        return bool(value.users)

    def _attach_act(self, unit: _Unit) -> None:
        follower = sole_user(unit.value)
        act = None if follower is None else self._reader.read(follower)
        if unit.norm is not None and follower is not None and isinstance(act, Act):
            del self._units[unit.value]
            unit.act = (act.name, act.slope)
            unit.nodes.append(follower)
            self._units[follower] = unit

    def _find_end(self, node: fx.Node, add: Add) -> None:
        candidates = []
        for side, other in ((add.left, add.right), (add.right, add.left)):
            unit = self._open_unit(side, node)
            if unit is None or not self._shapes.equal(side, other):
                continue
            if (
                not add.inplace
                or side is add.left
                or self._effects.write_is_private(add.left, node)
            ):
                candidates.append((unit, other))
        if not candidates:
            return
        # Of two sides with a BatchNorm, the main one: its convolution is all that reads its input.
        unit, shortcut = min(candidates, key=lambda pair: len(pair[0].conv.x.users) > 1)
        end = self._ends[node] = _End(unit, [node], NO_ACT, shortcut)
        follower = sole_user(node)
        act = None if follower is None else self._reader.read(follower)
        if follower is not None and isinstance(act, Act):
            end.act = (act.name, act.slope)
            end.nodes.append(follower)

    def _open_unit(self, value: fx.Node, user: fx.Node) -> _Unit | None:
        """The unit that makes ``value``, if that is its BatchNorm's and ``user`` alone reads it."""
        unit = self._units.get(value)
        if unit is None or unit.norm is None or unit.act != NO_ACT or sole_user(value) is not user:
            return None
        return unit

    def _is_absorbed(self, unit: _Unit) -> bool:
        """Whether everybody who reads a unit's value can take it as carried."""
        value = unit.value
        return all(self._takes_carried(user, value) for user in value.users)

    def _takes_carried(self, user: fx.Node, value: fx.Node) -> bool:
        if occurrences(user, value) != 1:
            return False
        if user in self._convs:
            return self._convs[user].conv.x is value
        end = self._ends.get(user)
        return end is not None and (
            value is end.main.value or self._open_unit(value, user) is not None
        )

    def _find_pools(self) -> None:
        computed = {end.nodes[-1] for end in self._ends.values()}
        for node in self._graph.nodes:
            x, window = read_max_pool(node, self._reader) or (None, None)
            if window is not None and x in computed:
                self._pools[node] = window

    def _find_forks(self) -> None:
        for node, end in self._ends.items():
            if end.shortcut is None:
                continue
            side = self._open_unit(end.shortcut, node)
            start, shortcut = end.shortcut, node
            if side is not None:
                start, shortcut = side.conv.x, side.nodes[0]
            first = end.main
            while first.conv.x is not start and first.conv.x in self._units:
                first = self._units[first.conv.x]
            conv = first.nodes[0]
            if first.conv.x is start and conv is not shortcut and set(start.users) == {
                conv, shortcut
            }:  # fmt: skip
                self._forks[conv] = shortcut

    def _leave(self, node: fx.Node, reason: str) -> None:
        self._result.left.append(Left(label(node), reason))

    # -- rewriting --

    def _emit(self) -> None:
        positions = {unit.nodes[1 if unit.norm else 0]: unit for unit in self._units.values()}
        done: set[fx.Node] = set()
        for node in list(self._graph.nodes):
            unit, end = positions.get(node), self._ends.get(node)
            if node in self._lone:
                self._emit_lone(self._lone[node], node)
                done.update(self._lone[node].nodes)
            if unit is not None:
                self._emit_unit(unit, node)
                done.update(unit.nodes)
            if end is not None:
                self._emit_end(end, node)
                done.update(end.nodes)
            if node in self._pools:
                pool = self._call(PoolLayer(self._pools[node]), node, node.all_input_nodes[0])
                self._replace(node, pool)
                done.add(node)
        for node in sorted(done, key=self._order.__getitem__, reverse=True):
            self._graph.erase_node(node)
        for node in reversed(list(self._graph.nodes)):
            if not node.users and (node.op == "get_attr" or is_pure(node)):
                self._graph.erase_node(node)  # a parameter that a layer reads itself

    def _call(self, layer: Layer, before: fx.Node, *args: fx.Node | None) -> fx.Node:
        index = len(self._result.layers)
        self._result.layers.append(layer)
        with self._graph.inserting_before(before):
            # create_node: get_attr warns of names that the owning module lacks.
            instance = self._graph.create_node("get_attr", layer_name(index))
            if isinstance(layer, ConvLayer | NormLayer):
                args = (self._graph.create_node("get_attr", ROOT), *args)
            node = self._graph.call_method("run", (instance, *args))
        node.meta[FUSED] = type(layer).__name__
        return node

    def _replace(self, old: fx.Node, new: fx.Node) -> None:
        self._replaced[old] = new
        old.replace_all_uses_with(new)

    def _emit_unit(self, unit: _Unit, position: fx.Node) -> None:
        conv, x = unit.conv, unit.conv.x
        adds = None
        if unit.nodes[0] in self._forks and x not in self._carried:
            adds = self._call(ForkLayer(), position)
            self._gives[self._forks[unit.nodes[0]]] = adds
        forks = (adds, self._gives.get(unit.nodes[0]))
        in_act = self._acts[x] if x in self._carried else NO_ACT
        for placeholder, needs_dtype in self._needed(x):
            indices = self._needs.setdefault(placeholder, [])
            if needs_dtype:
                indices.append(len(self._result.layers))
        work = _multiply_adds(conv)
        rebuild = self._saves and unit.norm is not None and work <= _CHEAP
        layer = ConvLayer(conv, unit.norm, in_act, rebuild)
        node = self._call(layer, position, self._value(x), *(forks if any(forks) else ()))
        names = tuple(label(n) for n in unit.nodes)
        detail = describe(conv, unit.act[0])
        if rebuild:
            self._result.rebuilt.append(Rebuilt(names[0], work))
            detail += f", rebuilt in backward: {work} multiply-adds a value"
        self._result.fused.append(Fused("conv_stats", names, detail))
        if unit.norm is None:
            self._replace(unit.value, node)
        else:
            self._carry(unit.value, node, unit.act)

    def _emit_lone(self, lone: _Lone, position: fx.Node) -> None:
        for placeholder, _ in self._needed(lone.norm.x):
            self._needs.setdefault(placeholder, [])
        node = self._call(NormLayer(lone.norm), position, self._value(lone.norm.x))
        names = tuple(label(n) for n in lone.nodes)
        act = "" if lone.act == NO_ACT else f", {lone.act[0]}"
        detail = f"BatchNorm alone{act}, applied where convolutions load it"
        self._result.fused.append(Fused("statistics", names, detail))
        self._carry(lone.nodes[-1], node, lone.act)

    def _carry(self, value: fx.Node, node: fx.Node, act: tuple[str, float]) -> None:
        self._carried[value] = node
        self._acts[value] = act

    def _needed(self, x: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
        """Placeholders that must have 4 dimensions for ``x`` to, and whether it has their dtype."""
        image = self._shapes.image(x)
        if image is not None:
            for placeholder in image.needs:
                yield placeholder, image.dtype is placeholder

    def _value(self, node: fx.Node) -> fx.Node:
        """The node that has the value of ``node`` now, computed or carried."""
        return self._carried.get(node) or self._replaced.get(node, node)

    def _emit_end(self, end: _End, position: fx.Node) -> None:
        shortcut = None if end.shortcut is None else self._value(end.shortcut)
        main = self._carried.pop(end.main.value)
        gives = self._gives.get(position)
        forks = () if gives is None else (gives,)
        node = self._call(EndLayer(end.act), position, main, shortcut, *forks)
        names = tuple(label(n) for n in end.nodes)
        self._result.fused.append(Fused("affine_add_act", names, end.act[0]))
        self._replace(end.nodes[-1], node)


def _multiply_adds(conv: Conv) -> int:
    """For one value of a convolution's output."""
    _, channels, height, width = conv.weight_shape
    return channels * height * width
