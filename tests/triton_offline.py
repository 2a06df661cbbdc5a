"""Compiles what an operator would launch on a GPU that is not there, and reads what came out.

The operators run as they are, on CPU tensors: a driver that only names its target stands for the
GPU's, and launching a kernel compiles it instead.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.autotuner import Autotuner
from triton.runtime.jit import JITFunction

# Bytes of shared memory that one block can have: CUDA C++ Programming Guide, compute capabilities.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_CORE = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}


class Compiled(NamedTuple):
    """A kernel as the GPU would get it."""

    name: str
    ptx: str
    shared: int
    warps: int
    registers: int
    stack: int
    """Bytes a thread spills to, or indexes into, in local memory."""


class _Target:
    """The part of a driver that compiling needs."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # caches of kernels are kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiled(arch: int, configs: Callable[[list], list] = lambda all_: all_) -> Iterator[list]:
    """Operators inside compile for ``arch``; yields the list of what was compiled.

    Args:
        arch: 80, 90 or 100.
        configs: which of the tile sizes that autotuning would try.
    """
    kernels: list[Compiled] = []
    run, active = JITFunction.run, driver._active

    def compile_only(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        kernels.append(_describe(kernel))

    def tune(self: Autotuner, *args: Any, **kwargs: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        for config in configs(self.prune_configs(kwargs)):
            self.fn.run(*args, **kwargs, **config.all_kwargs())

    driver.set_active(_Target(arch))
    try:
        with (
            mock.patch.object(JITFunction, "run", compile_only),
            mock.patch.object(Autotuner, "run", tune),
        ):
            yield kernels
    finally:
        driver._active = active


def _describe(kernel: Any) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    meta = kernel.metadata
    return Compiled(
        meta.name, kernel.asm["ptx"], meta.shared, meta.num_warps, found["REG"],
        found["STACK"] + found["LOCAL"],
    )  # fmt: skip
