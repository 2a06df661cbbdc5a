"""``accelerate(model)``: the same model, which runs fused, in inference and in training.

The object stays the object: only its class is exchanged, for a subclass of the old one whose
``forward`` decides at each call. It runs a plan (``fastres.rewrite.plan``, ``training_plan``) where
it can, and otherwise the old ``forward``, which is also what TorchScript, ``torch.export``, Dynamo
and anybody else who traces the model gets to see. Plans and packed weights are derived state, kept
out of ``state_dict``, pickles and copies.
"""

from __future__ import annotations

import functools
import threading
import weakref
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.utils import _pytree as pytree
from torch.utils._device import DeviceContext

from . import _library
from .fx.classes import ORIGINAL_CLASS, ORIGINAL_FORWARD
from .fx.structure import (
    STATE,
    Structure,
    eval_view,
    original_class,
    plain_view,
)
from .fx.tracing import Pattern
from .fx.watching import TraceFailed
from .rewrite.plan import Fusion, Plan, walk
from .rewrite.training_fuse import Memory
from .rewrite.training_plan import TrainingPlan
from .weights.packing import Staleness
from .weights.recipes import DEVICES, Restructured, Unusable

# How many plans a module keeps (training flags, call patterns, autocast), and how often it may miss
# them in a row, or at all, before it is taken for one that changes at every call.
_MAX_PLANS = 8
_MAX_MISSES_IN_A_ROW = 8
_MAX_MISSES = 256

_NOT_RUN = object()


def accelerate(
    model: nn.Module,
    *,
    staleness: Staleness = "content",
    fuse_blocks: bool = True,
    memory: Memory = "keep",
) -> nn.Module:
    """Makes a model faster, in place.

    In eval mode, where no gradient is needed (under ``torch.no_grad``, or no parameter and no input
    requires one), convolutions run fused with their BatchNorm, shortcut and activation, and whole
    bottlenecks as one operator. In training mode, and wherever gradients are needed, convolutions
    return BatchNorm's statistics, and BatchNorm, activation and shortcut are applied where their
    value is read, in backward too. Everything else runs as it was: hooks on submodules, parts that
    cannot be traced, dtypes and devices without kernels, and on a GPU the whole model unless
    ``set_backend`` asks for kernels there: PyTorch's own were faster, where ``freeze`` is faster
    still. ``fastres.explain`` tells what happens to what. Parameters, ``state_dict`` keys and
    ``isinstance`` stay; parameters may change in any way at any time, and so may the structure of
    the model.

    Copies and pickles of the model are accelerated too; to load a pickle where there is no fastres,
    ``restore`` the model before pickling. TorchScript, ``torch.export`` and ``torch.compile`` see
    the original; scripting a parent of the model leaves the parent with the original inside.

    Args:
        model: any module. Where it cannot be traced as a whole, its parts are accelerated.
        staleness: how changed weights are noticed. "content" (the default) packs them anew at each
            call, where they are used. "version" keeps the packed ones until version counters or
            addresses change: faster, but blind to writes through ``weight.data``. BatchNorm's
            values are never stale: on the CPU they are hashed, on a GPU "content" folds them anew
            and "version" hashes them, which waits for it once a call.
        fuse_blocks: whether to run whole bottlenecks as one operator.
        memory: "keep" (the default) keeps the output of every convolution for backward. "save"
            computes cheap ones again there, grouped convolutions and those of few input channels;
            gradients are the same bits, but cannot be differentiated again.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: unknown ``staleness`` or ``memory``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be an nn.Module, got {type(model).__name__}")
    for name, value, choices in (
        ("staleness", staleness, get_args(Staleness)),
        ("memory", memory, get_args(Memory)),
    ):
        if value not in choices:
            raise ValueError(
                f"accelerate: {name} must be one of {', '.join(choices)}, got {value!r}"
            )
    options = _Options(staleness, fuse_blocks, memory)
    for module in _pieces(model, fuse_blocks):
        _exchange_class(module, options)
    return model


def _pieces(model: nn.Module, blocks: bool) -> list[nn.Module]:
    """The modules to accelerate: the model, or the largest parts of it that can be traced."""
    return [
        model.get_submodule(path)
        for path, fusion in walk(eval_view(model), blocks)
        if isinstance(fusion, Fusion) and fusion.result.recipes
    ]


def restore(model: nn.Module) -> nn.Module:
    """Undoes ``accelerate``, in place, for the model and everything inside it.

    Args:
        model: any module, accelerated or not.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"restore: model must be an nn.Module, got {type(model).__name__}")
    for module in model.modules():
        if is_accelerated(module):
            module.__class__ = original_class(module)
            module.__dict__.pop(STATE, None)
    return model


def is_accelerated(module: nn.Module) -> bool:
    """Whether ``accelerate`` exchanged the class of this very module."""
    return original_class(module) is not type(module)


class _Options(NamedTuple):
    """How a module was accelerated."""

    staleness: Staleness = "content"
    blocks: bool = True
    memory: Memory = "keep"


class _Call(NamedTuple):
    """A way of calling a module, for which there is one plan."""

    pattern: Pattern
    autocast: bool
    training: bool
    """Whether the operators of training run: for gradients, or the batch's statistics."""
    grad: bool

    def plan(self, module: nn.Module, options: _Options) -> Plan | TrainingPlan:
        """Makes a plan for it.

        Raises:
            TraceFailed: the module cannot be traced.
        """
        if self.training:
            return TrainingPlan(module, self.pattern, self.autocast, self.grad, options.memory)
        fusion = Fusion(module, self.pattern, self.autocast, options.blocks, self.grad)
        return Plan(module, fusion, options.staleness)


class State:
    """Plans of one accelerated module. A copy, by whatever means, starts without any."""

    def __init__(self, options: _Options) -> None:
        self.options = options
        self.lock = threading.RLock()
        self.plans: list[tuple[_Call, _AnyPlan]] = []
        self.misses_in_a_row = 0
        self.misses = 0
        self.container: str | None = None
        """What an argument was, for which only its parts can be fused: "dict"."""

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return State(self.options)

    def __reduce__(self) -> tuple[Any, ...]:
        return State, (self.options,)

    def forget(self, plan: Plan | TrainingPlan) -> None:
        """Makes the next call look for another plan."""
        with self.lock:
            self.plans = [(call, other) for call, other in self.plans if other is not plan]

    @property
    def gave_up(self) -> bool:
        """Whether the module looked different at too many calls."""
        return self.misses_in_a_row >= _MAX_MISSES_IN_A_ROW or self.misses >= _MAX_MISSES


class _NoPlan:
    """Remembers that a way of calling a module cannot be fused."""

    is_useful = False

    def __init__(self, module: nn.Module) -> None:
        self.structure = Structure(module, [module], [], list(module.modules())[1:])


_AnyPlan = Plan | TrainingPlan | _NoPlan


# ---- the class -----------------------------------------------------------------------------------

# Original class -> its accelerated subclass, for as long as an instance of that lives.
_classes: weakref.WeakKeyDictionary[type, weakref.ref[type]] = weakref.WeakKeyDictionary()
_classes_lock = threading.Lock()


def _exchange_class(module: nn.Module, options: _Options) -> None:
    module.__dict__[STATE] = State(options)
    if not is_accelerated(module):
        module.__class__ = _accelerated_class(type(module))


def _accelerated_class(cls: type[nn.Module]) -> type[nn.Module]:
    with _classes_lock:
        reference = _classes.get(cls)
        accelerated = None if reference is None else reference()
        if accelerated is None:
            accelerated = _make_class(cls)
            _classes[cls] = weakref.ref(accelerated)
        return accelerated


class _ForwardOf:
    """As an attribute of a class: the ``forward`` that another has at that time."""

    def __init__(self, cls: type[nn.Module]) -> None:
        self._cls = cls

    def __get__(self, instance: object, owner: type) -> Any:
        return self._cls.forward


def _make_class(cls: type[nn.Module]) -> type[nn.Module]:
    @functools.wraps(cls.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return cls.forward(self, *args, **kwargs)
        result = _run_plan(self, args, kwargs)
        return cls.forward(self, *args, **kwargs) if result is _NOT_RUN else result

    names = {
        "forward": forward,
        "__reduce_ex__": _reduce,
        "__prepare_scriptable__": plain_view,  # what TorchScript compiles
        ORIGINAL_CLASS: cls,
        ORIGINAL_FORWARD: _ForwardOf(cls),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    return type(cls.__name__, (cls,), names)


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Pickles as the original class, and is accelerated again when loaded."""
    plain: nn.Module = object.__new__(original_class(self))
    plain.__dict__.update(self.__dict__)
    plain.__dict__.pop(STATE, None)
    reduced: Any = plain.__reduce_ex__(protocol)
    rebuild, arguments, *rest = reduced
    state = self.__dict__.get(STATE)
    options = _Options() if state is None else state.options
    return _rebuild, (rebuild, arguments, *options), *rest


def _rebuild(rebuild: Any, arguments: Any, *options: Any) -> nn.Module:
    module: nn.Module = rebuild(*arguments)
    _exchange_class(module, _Options(*options))
    return module


# ---- a call --------------------------------------------------------------------------------------


def _run_plan(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Runs a call fused; _NOT_RUN if the original forward has to do it."""
    pattern = Pattern.of(args, kwargs)
    if pattern is None:
        _accelerate_parts(module, (*args, *kwargs.values()))
        return _NOT_RUN
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
    if not _inputs_fit(tensors) or _somebody_watches():
        return _NOT_RUN
    state = _state_of(module)
    device = tensors[0].device.type
    training = module.training or _needs_grad(module, tensors)
    if _library.leaves_alone(device, training):
        return _NOT_RUN
    call = _Call(pattern, torch.is_autocast_enabled(device), training, torch.is_grad_enabled())
    for _ in range(2):
        plan = _find_plan(module, state, call)
        if isinstance(plan, Plan) and call.grad and plan.may_need_grad(module):
            plan = _find_plan(module, state, call._replace(training=True))
        if plan is None:
            return _NOT_RUN
        try:
            return plan.run(module, tensors)
        except Restructured:
            state.forget(plan)
        except Unusable:
            return _NOT_RUN
    return _NOT_RUN


def _inputs_fit(tensors: list[Tensor]) -> bool:
    if not tensors:
        return False
    device = tensors[0].device
    for tensor in tensors:
        if tensor.device != device or tensor.layout is not torch.strided:
            return False
    kernels = _library.has_kernels(device.type) or _library.get_backend() == "reference"
    return device.type in DEVICES and kernels


def _somebody_watches() -> bool:
    """Whether the original operators have to run because somebody traces or transforms them."""
    if torch._C._len_torch_function_stack() and not all(
        isinstance(torch._C._get_function_stack_at(i), DeviceContext)
        for i in range(torch._C._len_torch_function_stack())
    ):
        return True
    return (
        torch._C._is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.maybe_current_level() is not None
        or forward_ad._current_level >= 0
        or _has_any_global_hook()
    )


def _state_of(module: nn.Module) -> State:
    state: State | None = module.__dict__.get(STATE)
    if state is None:  # a copy made by the class's own means
        state = module.__dict__.setdefault(STATE, State(_Options()))
    return state


def _needs_grad(module: nn.Module, tensors: list[Tensor]) -> bool:
    if not torch.is_grad_enabled():
        return False
    return any(t.requires_grad for t in tensors) or any(
        parameter.requires_grad for parameter in module.parameters()
    )


def _find_plan(module: nn.Module, state: State, call: _Call) -> Plan | TrainingPlan | None:
    plan = _known_plan(module, state, call)
    if plan is None and not state.gave_up:
        with state.lock:
            plan = _known_plan(module, state, call)  # another thread's, meanwhile
            if plan is None:
                plan = _make_plan(module, state, call)
    return None if isinstance(plan, _NoPlan) or plan is None or not plan.is_useful else plan


def _known_plan(module: nn.Module, state: State, call: _Call) -> _AnyPlan | None:
    for known, plan in tuple(state.plans):
        if known == call and plan.structure.holds(module):
            state.misses_in_a_row = 0
            return plan
    return None


def _make_plan(module: nn.Module, state: State, call: _Call) -> _AnyPlan:
    options = state.options
    plan: _AnyPlan
    try:
        plan = call.plan(module, options)
        inside = plan.opaque
    except TraceFailed:
        plan = _NoPlan(module)
        # It has become so since accelerate, or is so for this way of calling it.
        inside = _children(module)
    changed = [_accelerate_inside(module.get_submodule(path), options) for path in inside]
    if any(changed):
        # The exchanged classes are not those that the plan remembers.
        plan = _NoPlan(module) if isinstance(plan, _NoPlan) else call.plan(module, options)
    state.plans = [(call, plan), *state.plans][:_MAX_PLANS]
    state.misses += 1
    state.misses_in_a_row += 1
    return plan


def _accelerate_parts(module: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Accelerates what is inside a module that is called with lists or dicts of tensors; once."""
    state = _state_of(module)
    if state.container is not None or _somebody_watches():
        return
    held = {type(leaf) for leaf in pytree.tree_leaves(arguments)}
    containers = [v for v in arguments if isinstance(v, (list, tuple, dict))]
    if Tensor not in held or not containers:  # but proxies of a tracer
        return
    with state.lock:
        state.container = type(containers[0]).__name__
        for path in _children(module):
            _accelerate_inside(module.get_submodule(path), state.options)


def _children(module: nn.Module) -> list[str]:
    return [name for name, child in module._modules.items() if child is not None]


def _accelerate_inside(module: nn.Module, options: _Options) -> bool:
    """Accelerates a module that a plan calls as it is; whether there was anything to accelerate."""
    if any(is_accelerated(inner) for inner in module.modules()):
        return False
    inside = _pieces(module, options.blocks)
    for piece in inside:
        _exchange_class(piece, options)
    return bool(inside)
