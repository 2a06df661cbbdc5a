"""Compiles what an operator would launch on a GPU that is not there, and reads what came out.

The operators run as they are, on CPU tensors: a driver that only names its target stands for the
GPU's, and launching a kernel compiles it, and at most emulates it.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import triton
from torch import Tensor
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
def on_gpu(arch: int, *, emulate: bool = False) -> Iterator[list[Compiled]]:
    """Operators inside are compiled for a GPU; yields the list of what was.

    Args:
        arch: 80, 90 or 100.
        emulate: whether ptxemu runs what was compiled, on the CPU's tensors, and finds
            out-of-bounds accesses, races and missing waits. Otherwise outputs are left as they are.
    """
    kernels: list[Compiled] = []
    run, active = JITFunction.run, driver._active

    def compile_or_run(
        self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any
    ) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        kernels.append(_describe(kernel))
        if emulate:
            bound = {**dict(zip(self.arg_names, args, strict=False)), **kwargs}
            _emulate(kernel, grid(bound) if callable(grid) else grid, bound)

    def widest(self: Autotuner, *args: Any, **kwargs: Any) -> None:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        config = self.prune_configs(kwargs)[-1]
        self.fn.run(*args, **kwargs, **config.all_kwargs())

    driver.set_active(_Target(arch))
    try:
        with (
            mock.patch.object(JITFunction, "run", compile_or_run),
            mock.patch.object(Autotuner, "run", widest),
        ):
            yield kernels
    finally:
        driver._active = active


def _emulate(kernel: Any, grid: tuple[int, ...], bound: dict[str, Any]) -> None:
    import ptxemu

    kinds = {"i32": np.int32, "i64": np.int64, "fp32": np.float32}
    arguments = []
    for name, kind in kernel.src.signature.items():
        if kind != "constexpr":
            value = bound[name]
            arguments.append(_storage(value) if kind.startswith("*") else kinds[kind](value))
    # Triton's kernels take two more pointers, which these do not use.
    stats = ptxemu.load(kernel.asm["ptx"]).launch(
        kernel.metadata.name, grid, 32 * kernel.metadata.num_warps, [*arguments, None, None],
        dynamic_smem=kernel.metadata.shared, check_races="report", check_uninit=True,
    )  # fmt: skip
    # Where several warps hold the same values of a vector, Triton has all of them write those.
    races = [race for race in stats["races"] if "write then write" not in str(race)]
    assert not races, races


def _storage(tensor: Tensor) -> Tensor:
    """The memory of a dense tensor, as one row."""
    size = tensor.untyped_storage().nbytes() // tensor.element_size() - tensor.storage_offset()
    return tensor.as_strided((size,), (1,))


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
