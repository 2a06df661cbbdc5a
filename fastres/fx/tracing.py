"""Symbolic tracing that gives up on parts rather than on the whole, and never guesses.

``torch.fx`` replays a ``forward`` once and records what it did with its inputs. What it cannot see,
it would get wrong without a word: random numbers drawn in Python, attributes that ``forward``
assigns, tensors made on the way. Here every module traced through is watched for those, and one
that does such a thing (or branches on data, or has hooks) is left as a call in the graph: an
*opaque* module, that runs as the user wrote it.
"""

from __future__ import annotations

import gc
import inspect
import math
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from .classes import ORIGINAL_FORWARD
from .forwards import check_types_unread, forwards_seen
from .metadata import MetadataReads
from .proxies import PROXIES, TensorProxy, ValueProxy
from .structure import Structure, has_hooks, original_class
from .watching import DREW, TraceFailed, take_back, undisturbed, watch


class _Tensor:
    """Stands for a tensor argument in a ``Pattern``."""

    def __repr__(self) -> str:
        return "TENSOR"


TENSOR = _Tensor()

_CONSTANTS = (type(None), bool, int, float, str)

# One trace at a time: torch.fx patches nn.Module while it traces. Calls that other threads make
# meanwhile pass through (see _Tracer.call_module).
_lock = threading.RLock()


@dataclass(frozen=True)
class Pattern:
    """How a module is called: which arguments are tensors, and the values of the others."""

    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: dict[str, Any]) -> Pattern | None:
        """The pattern of a call; None if an argument is neither a tensor nor a plain constant."""
        kinds = [_kind(value) for value in (*args, *kwargs.values())]
        if None in kinds:
            return None
        return cls(tuple(kinds[: len(args)]), tuple(zip(kwargs, kinds[len(args) :], strict=True)))


def _kind(value: Any) -> Any:
    if type(value) in (Tensor, nn.Parameter):
        return TENSOR
    if type(value) not in _CONSTANTS:
        return None
    # With its type and sign, because 1 == True == 1.0, and 0.0 == -0.0.
    return type(value), value, type(value) is float and math.copysign(1.0, value) < 0


@dataclass
class Trace:
    """A traced module.

    ``graph`` has one placeholder per tensor argument, in the order of the pattern, and returns a
    list of values, ``out_spec`` being the structure that they are leaves of.
    """

    graph: fx.Graph
    out_spec: pytree.TreeSpec
    structure: Structure
    leaves: dict[str, nn.Module] = field(default_factory=dict)
    """PyTorch's own layers that the graph calls, by path."""
    opaque: dict[str, str] = field(default_factory=dict)
    """Paths of the modules that the graph calls and knows nothing about, and why."""


def default_pattern(module: nn.Module) -> Pattern:
    """The call in which the arguments without default, or else the first, are tensors.

    Raises:
        TraceFailed: there are no arguments.
    """
    parameters = list(inspect.signature(_forward_of(module)).parameters.values())[1:]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    takes_one = positional or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if not takes_one:
        raise TraceFailed("its forward takes no positional argument")
    return Pattern((TENSOR,) * max(len(required), 1))


def trace(module: nn.Module, pattern: Pattern, grad: bool = False) -> Trace:
    """Records what ``module.forward`` does when called with ``pattern``.

    Args:
        module: the module.
        pattern: how it is called.
        grad: whether gradients are enabled when it is called.

    Raises:
        TraceFailed: it cannot be recorded; says why.
    """
    with _lock, torch.set_grad_enabled(grad), undisturbed():
        tracer, graph = _record(module, pattern)
    structure = Structure(
        module,
        tracer.traced,
        tracer.leaves.values(),
        tracer.opaque_modules(),
        tracer.metadata.read,
    )
    assert tracer.out_spec is not None
    return Trace(graph, tracer.out_spec, structure, tracer.leaves, tracer.opaque)


# How often to try where other threads may have drawn the random numbers that a trace met with.
_TRIES = 4


def _record(module: nn.Module, pattern: Pattern) -> tuple[_Tracer, fx.Graph]:
    for _ in range(_TRIES - 1):
        if threading.active_count() == 1:
            break
        try:
            tracer, graph = _record_once(module, pattern, finds_drawer=False)
        except TraceFailed as error:
            if str(error) != DREW:
                raise
        else:
            if not any(reason.endswith(DREW) for reason in tracer.opaque.values()):
                return tracer, graph
    return _record_once(module, pattern, finds_drawer=True)


def _record_once(
    module: nn.Module, pattern: Pattern, finds_drawer: bool
) -> tuple[_Tracer, fx.Graph]:
    tracer = _Tracer(module, pattern, finds_drawer)
    try:
        seen = forwards_seen(module, tracer.call_forward)
        check_types_unread(module)
        with watch(module), _no_autograd_functions(), tracer.metadata, seen:
            graph = tracer.trace(module)
        tracer.check()
        tracer.check_nothing_kept()
        return tracer, graph
    except TraceFailed:
        raise
    except Exception as error:  # a forward may raise anything when it meets a proxy
        raise TraceFailed(_reason(error)) from error


def _forward_of(module: nn.Module) -> Any:
    forward = original_class(module).forward
    if forward is nn.Module.forward:
        raise TraceFailed("it has no forward")
    if not hasattr(forward, "__code__"):
        raise TraceFailed(f"{original_class(module).__name__}.forward is not a Python function")
    if "forward" in module.__dict__:
        raise TraceFailed("its forward was replaced on the instance")
    return forward


def _reason(error: Exception) -> str:
    first = re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def is_builtin(module: nn.Module) -> bool:
    """Whether it is one of PyTorch's own modules, or a subclass that computes the same."""
    if isinstance(module, nn.Sequential):
        return False
    forward = original_class(module).forward
    name: str = getattr(forward, "__module__", "") or ""
    return name.startswith(("torch.nn.", "torch.ao.nn."))


def untouchable_reason(module: nn.Module) -> str | None:
    """Why neither a module nor what it contains may be looked at; None if they may."""
    if isinstance(module, torch.jit.ScriptModule):
        return "TorchScript"
    compiled = original_class(module).__module__.startswith("torch._dynamo")
    if compiled or module.__dict__.get("_compiled_call_impl") is not None:
        return "compiled with torch.compile"
    return "parametrized" if "parametrizations" in module._modules else None


def opaque_reason(module: nn.Module) -> str | None:
    """Why a module has to be called as it is, or None if its forward may be looked at."""
    untouchable = untouchable_reason(module)
    if untouchable is not None:
        return untouchable
    if has_hooks(module):
        return "has hooks"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    if original_class(module).__call__ is not nn.Module.__call__:
        return "its __call__ is its own"
    return None


@contextmanager
def _no_autograd_functions() -> Iterator[None]:
    """Keeps proxies from ``autograd.Function.apply``, which takes them for tensors and crashes."""
    function = torch.autograd.Function
    original = function.__dict__["apply"]

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        if any(type(value) in PROXIES for value in args):
            raise TraceFailed(f"it calls {cls.__name__}, an autograd.Function")
        return original.__get__(None, cls)(*args, **kwargs)

    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = original


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module, pattern: Pattern, finds_drawer: bool) -> None:
        super().__init__()
        self._finds_drawer = finds_drawer  # whether to tell which module draws random numbers
        if original_class(root) is not type(root):
            self.traced_func_name = ORIGINAL_FORWARD
        self._thread = threading.get_ident()
        self._pattern = pattern
        self._autocast = _autocast_state()
        self._grad = torch.is_grad_enabled()
        self._saving = _saved_tensors_hooks()
        self._forward = _forward_of(root)
        self._paths: dict[int, str] = {id(m): path for path, m in root.named_modules()}
        self._tensors: dict[int, str] = dict(_named_tensors(root))
        self._attributes: dict[str, fx.Proxy] = {}
        self.traced: list[nn.Module] = [root]
        self._running = [root]  # whose forwards are being traced through, the innermost last
        self.leaves: dict[str, nn.Module] = {}
        self.opaque: dict[str, str] = {}
        self.out_spec: pytree.TreeSpec | None = None
        self._failures: list[str] = []  # messages
        self.metadata = MetadataReads(self._tensors, self._failures)
        self._proxies: list[weakref.ref[fx.Proxy]] = []

    def opaque_modules(self) -> list[nn.Module]:
        return [self.root.get_submodule(path) for path in self.opaque]

    # -- inputs and outputs --

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        names = list(inspect.signature(self._forward).parameters)[1:]
        proxies: list[Any] = []

        def argument(kind: Any, name: str) -> Any:
            if kind is not TENSOR:
                return kind[1]
            proxies.append(self.create_proxy("placeholder", name, (), {}))
            return proxies[-1]

        args = [
            argument(kind, names[i] if i < len(names) else f"arg{i}")
            for i, kind in enumerate(self._pattern.args)
        ]
        kwargs = {name: argument(kind, name) for name, kind in self._pattern.kwargs}

        def flat_forward(*_: Any) -> list[Any]:
            out = self._forward(self.root, *args, **kwargs)
            leaves, self.out_spec = pytree.tree_flatten(out)
            return leaves

        return flat_forward, proxies

    # -- failures --

    def failure(self, reason: str) -> TraceFailed:
        """An error to raise, which counts even where the user's code catches it."""
        self._failures.append(reason)
        return TraceFailed(reason)

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise self.failure("it branches on a value that is not known before the call")

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        raise self.failure("it loops over a value that is not known before the call")

    def check(self, failures: int = 0) -> None:
        """Raises TraceFailed if there were failures, beyond the given number."""
        if len(self._failures) > failures:
            raise TraceFailed(self._failures[failures])

    def check_nothing_kept(self) -> None:
        """Raises TraceFailed if anything holds a proxy still: ``forward`` put it somewhere."""
        self._attributes.clear()
        if any(proxy() is not None for proxy in self._proxies):
            gc.collect()
        # A tuple: lists are what values are taken from.
        kept = tuple(proxy for known in self._proxies if (proxy := known()) is not None)
        for proxy in kept:
            take_back(proxy)
        if kept:
            raise TraceFailed("it keeps a value outside of the module")

    # -- values --

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        # Contexts are entered while tracing, and no graph remembers that they were.
        if torch.is_grad_enabled() != self._grad:
            raise self.failure(f"it {'disables' if self._grad else 'enables'} gradients")
        if _saved_tensors_hooks() != self._saving:
            raise self.failure("it hooks what is saved for backward, as checkpoints do")
        if _autocast_state() != self._autocast:
            raise self.failure("it switches autocast")
        return super().create_node(*args, **kwargs)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        node.meta["tensor"] = _is_tensor(node)
        proxy = (TensorProxy if node.meta["tensor"] else ValueProxy)(node, self)
        self._proxies.append(weakref.ref(proxy))
        return proxy

    def create_arg(self, a: Any) -> Any:
        if type(a) in PROXIES:
            return a.node
        if isinstance(a, Tensor):
            if id(a) not in self._tensors:
                raise self.failure("it makes a tensor out of nothing")
            return self._attribute(self._tensors[id(a)]).node
        return super().create_arg(a)

    def _attribute(self, path: str) -> fx.Proxy:
        if path not in self._attributes:
            self._attributes[path] = self.create_proxy("get_attr", path, (), {})
        return self._attributes[path]

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() == self._thread and isinstance(attr_val, Tensor):
            path = self._tensors.get(id(attr_val))
            if path is not None:
                return self._attribute(path)
        return attr_val

    # -- modules --

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves or module_qualified_name in self.opaque

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        path = self._paths.get(id(m))
        if path is None:  # made in forward, as in nn.ReLU(inplace=True)(x)
            return m.forward(*args, **kwargs)
        if path not in self.opaque:
            reason = opaque_reason(m)
            if reason is not None:
                self.opaque[path] = reason
            elif is_builtin(m):
                self.leaves[path] = m
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        return self._trace_through(path, m, forward, args, kwargs)

    def call_forward(
        self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        """A call of ``m.forward``: the same as one of ``m``, unless ``m`` does more when called."""
        if id(m) not in self._paths or any(m is running for running in self._running):
            return forward(*args, **kwargs)
        if opaque_reason(m) is None:
            return self.call_module(m, forward, args, kwargs)
        self.traced.append(m)
        with watch(m, self._finds_drawer), self._runs(m):
            return forward(*args, **kwargs)

    @contextmanager
    def _runs(self, m: nn.Module) -> Iterator[None]:
        self._running.append(m)
        try:
            yield
        finally:
            self._running.pop()

    def _trace_through(
        self,
        path: str,
        m: nn.Module,
        forward: Callable[..., Any],
        args: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        """Traces a module's inside; if that fails, calls the module instead."""
        last = next(iter(reversed(self.graph.nodes)))
        stack = dict(self.module_stack)
        traced, failures = len(self.traced), len(self._failures)
        self.traced.append(m)
        try:
            check_types_unread(m)
            with watch(m, self._finds_drawer), self._runs(m):
                out = super().call_module(m, forward, args, kwargs)
            self.check(failures)
            return out
        except Exception as error:
            del self._failures[failures:]
            self._undo(last)
            del self.traced[traced:]
            self.module_stack.clear()
            self.module_stack.update(stack)
            reason = str(error) if isinstance(error, TraceFailed) else _reason(error)
            self.opaque[path] = f"tracing failed: {reason}"
            return super().call_module(m, forward, args, kwargs)

    def _undo(self, last: fx.Node) -> None:
        for node in list(reversed(self.graph.nodes)):
            if node is last:
                break
            self.graph.erase_node(node)
        kept = set(self.graph.nodes)
        self._attributes = {k: p for k, p in self._attributes.items() if p.node in kept}


def _autocast_state() -> list[tuple[bool, torch.dtype]]:
    devices = ("cpu", "cuda")
    return [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]


def _saved_tensors_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(False)


def _named_tensors(root: nn.Module) -> Iterator[tuple[int, str]]:
    for prefix, module in root.named_modules():
        own = {**module.__dict__, **module._parameters, **module._buffers}
        for name, value in own.items():
            if isinstance(value, Tensor):
                yield id(value), f"{prefix}.{name}" if prefix else name


_METADATA_METHODS = {"size", "dim", "ndimension", "numel", "item", "tolist", "stride", "__len__"}


def _is_tensor(node: fx.Node) -> bool:
    """Whether a node's value surely is a tensor; what is not sure does not pass for one."""
    if node.op in ("placeholder", "get_attr", "call_module"):
        return True
    of_tensors = any(operand.meta.get("tensor") for operand in node.all_input_nodes)
    if node.op == "call_method":
        return of_tensors and node.target not in _METADATA_METHODS
    module = getattr(node.target, "__module__", "") or ""
    name = getattr(node.target, "__name__", "")
    if module == "_operator" or module.startswith("torch.nn.functional"):
        return of_tensors
    return getattr(torch, name, None) is node.target and not name.startswith("_")
