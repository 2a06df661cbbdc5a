"""What the CUDA kernels would do on a GPU, counted without one: ``python -m benchmarks.gpu_model``.

Every different convolution of a network is launched as on a GPU and emulated by ptxemu, whole
grids, float16, batch 1. Printed per layer: DRAM bytes over those that have to move, useful over
issued tensor-core operations, the part of shared-memory wavefronts that are bank conflicts, 32-byte
sectors per global request (16 is a warp's 16-byte accesses with nothing wasted; less is padding and
per-channel vectors), resident warps on an A100, and the roofline time on an A100 and an H100. Then
the same of each bottleneck that one kernel can run, and where the launcher chooses it.
Training's bytes are counted per tensor that an operator reads or writes, see gpu_training.py.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from . import gpu_training
from .gpu_training import cuda_emulation
from .shapes import (
    DEFAULT_MODELS,
    BottleneckShape,
    ConvShape,
    bottleneck_shapes,
    conv_calls,
)

ptxemu = cuda_emulation.ptxemu


@dataclass(frozen=True)
class Gpu:
    """Peaks of a GPU, from NVIDIA's data sheets: dense float16 tensor cores, and memory."""

    name: str
    arch: str
    flops: float
    bytes_per_s: float

    def seconds(self, flops: float, data: float) -> float:
        """The roofline's time."""
        return max(flops / self.flops, data / self.bytes_per_s)


GPUS = (
    Gpu("A100 80GB SXM", "sm_80", 312e12, 2039e9),
    Gpu("H100 SXM", "sm_90", 989e12, 3350e9),
)


@dataclass(frozen=True)
class Count:
    """What one layer's launch does."""

    kernel: str
    bytes: int
    compulsory: int
    issued: int
    useful: int
    excess_wavefronts: float
    load_sectors: float
    store_sectors: float
    occupancy: float

    def row(self, shape: ConvShape | BottleneckShape) -> list[str]:
        """The layer's line of the table."""
        times = [gpu.seconds(self.issued, self.bytes) * 1e6 for gpu in GPUS]
        return [
            str(shape),
            self.kernel.removeprefix("fastres_").removesuffix("_f16"),
            f"{self.bytes / self.compulsory:.2f}",
            f"{self.useful / self.issued:.2f}",
            f"{self.excess_wavefronts:.1%}",
            f"{self.load_sectors:.1f}, {self.store_sectors:.1f}",
            f"{self.occupancy:.0%}",
            *(f"{time:.1f}" for time in times),
        ]


HEADER = ["layer", "kernel", "DRAM", "useful", "conflicts"]
HEADER += ["sectors: load, store", "occupancy"]
HEADER += [f"{gpu.name}, us" for gpu in GPUS]


def count(shape: ConvShape, batch: int = 1) -> Count:
    """Emulates conv_bn_act of one layer."""
    k, groups = shape.out_channels, shape.groups
    x = torch.randn(batch, shape.in_channels, shape.height, shape.width).half()
    weight = torch.randn(k, shape.in_channels // groups, shape.kernel, shape.kernel)
    residual = None
    if shape.residual:
        residual = torch.randn(batch, k, shape.out_height, shape.out_width).half()
    device = cuda_emulation.Device(check=False)
    packed = device.pack_conv_weight(weight, None, groups)
    device = cuda_emulation.Device(check=False, counters=True)
    square = (shape.kernel,) * 2, (shape.stride,) * 2, (shape.padding,) * 4, (1, 1)
    device.conv_bn_act(x, packed, torch.zeros(k), residual, *square, groups, shape.act, 0.0)

    compulsory = shape.bytes(batch) // 2 + 4 * k - _unread(shape, batch)
    return _count(device, compulsory, shape.flops(batch))


def _count(device: cuda_emulation.Device, compulsory: int, useful: int) -> Count:
    (stats,), ((kernel, _, block, shared),) = device.stats, device.launches
    return Count(
        kernel=kernel,
        bytes=stats["dram_read_bytes_min"] + stats["dram_write_bytes_min"],
        compulsory=compulsory,
        issued=stats["tensor_flops"],
        useful=useful,
        excess_wavefronts=stats["bank_conflicts"] / stats["shared_wavefronts"],
        load_sectors=stats["global_load_sectors_per_request"],
        store_sectors=stats["global_store_sectors_per_request"],
        occupancy=_occupancy(kernel, block, shared),
    )


def run_block(shape: BottleneckShape, batch: int, device: cuda_emulation.Device) -> None:
    """Launches grouped_bottleneck of a block."""
    x = torch.randn(batch, shape.in_channels, shape.height, shape.width).half()
    convs = [(shape.in_channels, shape.width_channels, 1, 1)]
    convs += [(shape.width_channels, shape.width_channels, 3, shape.groups)]
    convs += [(shape.width_channels, shape.out_channels, 1, 1)]
    convs += [(shape.in_channels, shape.out_channels, 1, 1)] * shape.has_projection
    layers: list[torch.Tensor | None] = []
    packing = cuda_emulation.Device(check=False, emulate=device.emulate)
    for c, k, kernel, groups in convs:
        weight = torch.randn(k, c // groups, kernel, kernel)
        layers += [packing.pack_conv_weight(weight, None, groups), torch.zeros(k)]
    layers += [None] * (8 - len(layers))
    stride = (shape.stride,) * 2
    device.grouped_bottleneck(x, *layers, stride, (1, 1), shape.groups, "relu")


def fits_one_kernel(shape: BottleneckShape) -> bool:
    """Whether one kernel can run a block."""
    device = cuda_emulation.Device(emulate=False, one_kernel=cuda_emulation.ALWAYS)
    run_block(shape, 1, device)
    return len(device.launches) == 1


def chosen_from(shape: BottleneckShape) -> int | None:
    """The least power of two of images for which the launcher has one kernel run a block."""
    for batch in (1, 2, 4, 8, 16, 32):
        device = cuda_emulation.Device(emulate=False)
        run_block(shape, batch, device)
        if len(device.launches) == 1:
            return batch
    return None


def count_block(shape: BottleneckShape, batch: int = 1) -> Count:
    """Emulates one kernel of a whole block."""
    device = cuda_emulation.Device(check=False, counters=True, one_kernel=cuda_emulation.ALWAYS)
    run_block(shape, batch, device)
    return _count(device, shape.bytes(batch) // 2, shape.flops(batch))


def block_report(model: str, counts: dict[ConvShape, Count]) -> list[str]:
    """The table of a network's bottlenecks that one kernel can run."""
    header = [*HEADER, *(f"apart: {gpu.name}, us" for gpu in GPUS), "chosen from batch"]
    lines = []
    for shape in filter(fits_one_kernel, bottleneck_shapes(model)):
        apart = [
            sum(gpu.seconds(counts[conv].issued, counts[conv].bytes) for conv in shape.convs())
            for gpu in GPUS
        ]
        cells = count_block(shape).row(shape)
        cells += [*(f"{time * 1e6:.1f}" for time in apart), str(chosen_from(shape) or "none")]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
    if not lines:
        return []
    title = "Whole blocks in one kernel, beside their convolutions apart:"
    return [title, "", "| " + " | ".join(header) + " |", "| --- " * len(header) + "|", *lines, ""]


def _unread(shape: ConvShape, batch: int) -> int:
    """Input bytes that no tap reaches: all but one of stride * stride pixels for a 1x1."""
    if shape.kernel >= shape.stride:
        return 0
    pixels = shape.height * shape.width - shape.out_height * shape.out_width
    return 2 * batch * shape.in_channels * pixels


def _occupancy(kernel: str, block: int, shared: int) -> float:
    file = cuda_emulation.KERNELS / cuda_emulation.kernel_file(kernel)
    registers = ptxemu.resources(file, arch="sm_80")[kernel]["registers"]
    return ptxemu.occupancy(registers, shared, block, "sm_80")["occupancy"]


def unfused_bytes(shape: ConvShape, batch: int) -> int:
    """Bytes of inference one operator after the other: convolution, BatchNorm, addition, ReLU."""
    y = 2 * batch * shape.out_channels * shape.out_height * shape.out_width
    fused = shape.bytes(batch) // 2
    return fused + 2 * y + (2 * y if shape.residual else 0) + (2 * y if shape.act != "none" else 0)


def report(model: str) -> list[str]:
    """The table of one network, in Markdown."""
    calls = Counter(conv_calls(model))
    header = [*HEADER, "calls"]
    lines = [f"### {model}", "", "| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    totals = [0.0] * (2 * len(GPUS))
    counts = {}
    for shape, times in calls.items():
        counted = counts[shape] = count(shape)
        lines.append("| " + " | ".join([*counted.row(shape), str(times)]) + " |")
        print(lines[-1], file=sys.stderr, flush=True)
        apart = unfused_bytes(shape, 1)
        for i, gpu in enumerate(GPUS):
            totals[2 * i] += times * gpu.seconds(counted.issued, counted.bytes)
            # The same convolution, and its epilogue in passes of their own.
            passes = (apart - shape.bytes(1) // 2) / gpu.bytes_per_s
            totals[2 * i + 1] += times * (gpu.seconds(counted.issued, counted.bytes) + passes)
    lines += ["", "Roofline of the convolutions and what follows them, batch 1, float16:"]
    for i, gpu in enumerate(GPUS):
        fused, apart = totals[2 * i : 2 * i + 2]
        lines.append(
            f"- {gpu.name}: {fused * 1e6:.0f} us fused, {apart * 1e6:.0f} us one after the other"
        )
    fused, apart = gpu_training.training_step(model, 32)
    lines += ["", *gpu_training.report(fused, apart, 32), ""]
    lines.append(f"A training step moves {fused.total / apart.total:.3f} of the bytes. Roofline:")
    for gpu in GPUS:
        times = [side.seconds(gpu.seconds, gpu.bytes_per_s) * 1e3 for side in (fused, apart)]
        lines.append(
            f"- {gpu.name}: {times[0]:.2f} ms fused, {times[1]:.2f} ms one after the other"
        )
    return [*lines, "", *block_report(model, counts)]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(DEFAULT_MODELS))
    parser.add_argument("--markdown", type=Path, help="file to write the tables to as well")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    lines = [line for model in arguments.models for line in report(model)]
    print("\n".join(lines))
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
