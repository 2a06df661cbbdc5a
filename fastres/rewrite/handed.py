"""What one node of autograd's graph hands to another in backward, beside what autograd carries.

Where a shortcut starts, autograd would add two gradients in a pass of its own, and where it ends,
two of its gradients differ by a factor per channel. The kernels that read them can do both on the
way, if they are told. And the kernel that adds can pass the sum through the end of the block before
it, which would otherwise be the next pass.
"""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def backward_pass() -> int:
    """A number of the running backward pass that no other has."""
    return torch._C._current_graph_task_id()


# Of so many backward passes a value may be on its way at once. (Passes do not say that they end.)
_MOST_PASSES = 64


class Handed(Generic[T]):
    """A value on its way from one node to another; it reaches no other backward pass.

    Of a graph that is kept several may run at once, in threads or within each other's hooks.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By the pass; None where the other node has run.
        self._values: dict[int, T | None] = {}

    def give(self, value: T) -> bool:
        """Leaves a value; False if it is too late, as the other node has run."""
        running = backward_pass()
        with self._lock:
            has_run = running in self._values and self._values[running] is None
            if not has_run:
                self._note(running, value)
        return not has_run

    def take(self) -> T | None:
        """What was given in this backward pass, once."""
        running = backward_pass()
        with self._lock:
            value = self._values.get(running)
            self._note(running, None)
        return value

    def _note(self, running: int, value: T | None) -> None:
        self._values[running] = value
        if len(self._values) > _MOST_PASSES:
            del self._values[next(iter(self._values))]


class Fork:
    """A value that two nodes read, the first convolution of a block and what becomes its shortcut.

    The convolution adds the shortcut's gradient to its own. Whenever that reaches the value so does
    the convolution's, which is computed later.
    """

    def __init__(self) -> None:
        self.is_open = False
        """Whether there is a convolution that adds up."""
        self.again = False
        """Whether a gradient that was computed from the value may be differentiated."""
        self._gradient: Handed[Tensor] = Handed()

    def give(self, gradient: Tensor | None) -> Tensor | None:
        """Hands the shortcut's gradient on; returns what is left for autograd to carry."""
        # What is to be differentiated again has to go through autograd.
        self.again |= torch.is_grad_enabled()
        if gradient is None or not self.is_open or torch.is_grad_enabled():
            return gradient
        return None if self._gradient.give(gradient) else gradient

    def take(self) -> Tensor | None:
        """The shortcut's gradient, for the convolution to add to its own."""
        self.again |= torch.is_grad_enabled()
        return self._gradient.take()
