"""Groups of 4 on tensor cores and without them, counted: ``python -m benchmarks.gpu_grouped``.

The grouped 3x3 of ResNeXt-50's first stage under ptxemu, float16, batch 1: fastres's kernel, whose
instructions take two groups block-diagonally and are half zeros, and the same with multiply-adds of
half2 and of float32 (benchmarks/grouped_fma.cu). Cycles are those in which one of the four
schedulers of an A100's multiprocessor issues the kernel's instructions, or those that its pipe for
them takes where that is longer, per 1000 useful multiply-adds of a warp's worth of work; they know
nothing of waiting. From NVIDIA's table of throughputs for compute capability 8.0: a quarter of a
multiprocessor starts a warp's half2 multiply-add every cycle, a float32 one every second, and an
m16n8k16 every eighth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from fastres import _measure

from .gpu_model import cuda_emulation

ptxemu = cuda_emulation.ptxemu
SOURCE = Path(__file__).with_name("grouped_fma.cu")
#: Form -> its kernel in grouped_fma.cu; None for fastres's.
FORMS = {"tensor cores": None, "half2": "grouped_half2", "float32": "grouped_float"}
HEADER = ["form", "instructions", "mma", "multiply-adds", "cycles", "error against float64"]


class _Device(cuda_emulation.Device):
    """Runs another kernel in place of the convolution's."""

    def __init__(self, kernel: str | None) -> None:
        super().__init__(counters=True)
        self._kernel = kernel

    def _launch(self, kernel: str, grid: int, block: int, shared: int, params: bytes) -> None:
        if self._kernel is None or "grouped_conv" not in kernel:
            return super()._launch(kernel, grid, block, shared, params)
        stats = ptxemu.compile(SOURCE, arch="sm_80").launch(
            self._kernel, grid, block, [self._params(params)], dynamic_smem=shared,
            check_races=True, check_uninit=True, counters=True,
        )  # fmt: skip
        self.stats.append(stats)
        return None


def count(form: str, channels: int = 128, size: int = 56) -> dict[str, float]:
    """What a form takes per 1000 useful multiply-adds of each lane, and its error."""
    torch.manual_seed(0)
    groups = channels // 4
    x = torch.randn(1, channels, size, size).half()
    weight = (torch.randn(channels, 4, 3, 3) / 6).half()
    device = _Device(FORMS[form])
    packed = cuda_emulation.Device(check=False).pack_conv_weight(weight, None, groups)
    geometry: tuple[Any, ...] = ((3, 3), (1, 1), (1,) * 4, (1, 1), groups, "none", 0.0)
    out = device.conv_bn_act(x, packed, torch.zeros(channels), None, *geometry)
    exact = F.conv2d(x.double(), weight.double(), padding=1, groups=groups)
    (stats,) = device.stats
    useful = exact.numel() * 36 / 32 / 1000
    mma = stats["tensor_flops"] / (2 * 16 * 8 * 16)
    fma = stats["scalar_flops"] / 2 / 32
    if form == "half2":
        fma /= 2
    pipe = 8 * mma + {"half2": fma, "float32": 2 * fma}.get(form, 0)
    return {
        "instructions": stats["warp_instructions"] / useful,
        "mma": mma / useful,
        "multiply-adds": fma / useful,
        "cycles": max(stats["warp_instructions"], pipe) / useful,
        "error": _measure.relative_error(out, exact),
    }


def main() -> None:
    """Prints the table, in Markdown."""
    print("| " + " | ".join(HEADER) + " |\n" + "| --- " * len(HEADER) + "|")
    for form in FORMS:
        *counts, error = count(form).values()
        cells = [form, *(f"{value:.0f}" for value in counts), f"{error:.1e}"]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
