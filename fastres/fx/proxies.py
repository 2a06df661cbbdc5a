"""What stands for a value while a ``forward`` is traced, and refuses what no graph can repeat."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx


class _Watched(fx.Proxy):
    """Knows ``+=`` from ``+``, which ``torch.fx`` would record as the same, and makes no guesses.

    What it refuses it tells the tracer, too: the user's code may catch what is raised.
    """

    tracer: Any

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("node", "tracer", "root", "attr", "_node"):
            raise self.tracer.failure(f"it assigns the attribute {name!r} of a value")
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        return AttributeProxy(self, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.Proxy:
        raise self.tracer.failure("it deep-copies a value")


def _inplace_method(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


def _refused_method(what: str) -> Callable[..., Any]:
    def method(self: fx.Proxy, *_: Any) -> Any:
        raise self.tracer.failure(f"it asks for {what} of a value")  # type: ignore[attr-defined]

    return method


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor"):
    setattr(_Watched, f"__i{_name}__", _inplace_method(getattr(operator, f"i{_name}")))
for _name, _what in (
    ("len", "the length"),
    ("int", "the integer"),
    ("float", "the number"),
    ("complex", "the number"),
    ("contains", "the elements"),
):
    setattr(_Watched, f"__{_name}__", _refused_method(_what))


class ValueProxy(_Watched):
    """Stands for any value."""


class TensorProxy(_Watched):
    """Passes for a tensor, so that ``isinstance(x, Tensor)`` is what it will be."""

    __class__ = property(lambda self: Tensor)

    def __getattr__(self, name: str) -> fx.proxy.Attribute:
        if not hasattr(Tensor, name):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        return super().__getattr__(name)


class AttributeProxy(_Watched, fx.proxy.Attribute):
    """Stands for an attribute of a value, or for the method that it is when it is called."""


#: The types that ``isinstance`` does not tell.
PROXIES = (ValueProxy, TensorProxy, AttributeProxy)
