"""Runs the CUDA operators on the CPU: their launchers are recorded, and their kernels emulated.

The launchers (csrc/cuda/operators.h) are plain host code. tests/cuda/record.cpp runs them with
tokens for device pointers and writes down what they would launch; here the tokens become buffers
and ptxemu executes the very kernels, from the PTX that nvcc makes of csrc/cuda/kernels.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "csrc" / "cuda" / "kernels"
sys.path.append(str(ROOT / "tests" / "ptxemu"))

import ptxemu  # noqa: E402

from fastres import composed  # noqa: E402

HAS_NVCC = shutil.which("nvcc") is not None or bool(os.environ.get("CUDA_HOME"))
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
OPERATORS = (
    "pack_conv_weight",
    "conv_bn_act",
    "live_conv_bn_act",
    "grouped_bottleneck",
    "live_bottleneck",
    "conv_stats",
    "conv_stats_backward",
    "affine_add_act",
    "affine_add_act_backward",
)
ACTIVATIONS = ("none", "relu", "relu6", "silu", "leaky_relu")
NEVER, ALWAYS, WHERE_IT_PAYS = range(3)  # csrc/cuda/operators.h: OneKernel
_TOKEN = 0x7F5A
_INT64, _FLOAT, _POINTER = ctypes.c_int64, ctypes.c_float, ctypes.c_uint64


def _struct(name: str, *fields: tuple[str, Any]) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": list(fields)})


_Geometry = _struct("Geometry", *((f"v{i}", _INT64) for i in range(18)))
_Source = _struct(
    "Source",
    *((name, _POINTER) for name in ("x", "addend", "mean", "scale", "bias", "addend_scale")),
    *((name, _FLOAT) for name in ("scale_factor", "bias_factor")),
    ("act", ctypes.c_int32),
    ("act_slope", _FLOAT),
)
_Weight = _struct(
    "WeightTensor",
    ("data", _POINTER),
    ("type", ctypes.c_int32),
    *((f"stride_{axis}", _INT64) for axis in "kcrs"),
)
_ConvBnAct = _struct(
    "ConvBnActArguments",
    *((name, _POINTER) for name in ("x", "packed")),
    ("weight", _Weight),
    *((name, _POINTER) for name in ("scale", "shift", "residual", "out")),
    ("act", ctypes.c_int32),
    ("act_slope", _FLOAT),
)
_ConvStats = _struct(
    "ConvStatsArguments",
    ("x", _Source),
    ("weight", _Weight),
    *((name, _POINTER) for name in ("y", "mean", "m2")),
)
_ConvStatsBackward = _struct(
    "ConvStatsBackwardArguments",
    ("gradient", _Source),
    ("x", _Source),
    ("weight", _Weight),
    *((name, _POINTER) for name in ("grad_in", "in_residual", "activated")),
    *((name, _POINTER) for name in ("grad_x", "grad_in_mean", "grad_in_scale", "grad_in_bias")),
    ("grad_weight", _Weight),
)
_AffineAddAct = _struct(
    "AffineAddActParams",
    *((name, _POINTER) for name in ("grad", "y", "mean", "scale", "bias")),
    *((name, _POINTER) for name in ("residual", "res_mean", "res_scale", "res_bias")),
    ("act", ctypes.c_int32),
    ("act_slope", _FLOAT),
    ("unscaled", ctypes.c_int32),
    *((name, _POINTER) for name in ("out", "grad_residual", "partial")),
    ("pixels", _INT64),
    ("pixels_per_block", _INT64),
    *((name, ctypes.c_int32) for name in ("channels", "columns", "rows", "column_blocks")),
)
_Gradients = _struct("AffineAddActGradients", *((f"v{i}", _POINTER) for i in range(6)))


@functools.cache
def _recorder() -> ctypes.CDLL:
    """The launchers with tests/cuda/record.cpp around them, compiled once a version."""
    sources = [ROOT / "tests" / "cuda" / "record.cpp", *sorted((ROOT / "csrc").glob("cuda/*.h"))]
    sources += [ROOT / "csrc" / "geometry.h", ROOT / "csrc" / "packed_weight.h"]
    key = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()[:24]
    library = Path(tempfile.gettempdir()) / f"fastres-record-{os.getuid()}-{key}.so"
    if not library.exists():
        partial = library.with_suffix(f".{os.getpid()}")
        compiler = os.environ.get("CXX") or "g++"
        command = [compiler, "-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        subprocess.run([*command, str(sources[0]), "-o", str(partial)], check=True)
        partial.replace(library)
    loaded = ctypes.CDLL(str(library))
    for name in OPERATORS:
        if not name.startswith("live_"):  # those are recorded as what they are with packed weights
            getattr(loaded, f"record_{name}").restype = ctypes.c_void_p
    return loaded


@functools.cache
def kernels(file: str, arch: str = "sm_80") -> ptxemu.Module:
    """The kernels of csrc/cuda/kernels/<file>, compiled once a version."""
    return ptxemu.compile(KERNELS / file, arch=arch)


def kernel_file(kernel: str) -> str:
    """Where a kernel is defined."""
    name = kernel.removeprefix("fastres_")
    if name.startswith(("conv_gemm", "grouped_")):
        return "_".join(name.split("_")[:2]) + "_" + name.rpartition("_")[2] + ".cu"
    for prefix, file in (
        ("conv_wgrad", "conv_wgrad"),
        ("affine_add_act", "affine_add_act"),
        ("pack_weight", "pack_weight"),
        ("reduce_splits", "pack_weight"),
    ):
        if name.startswith(prefix):
            return f"{file}.cu"
    return "reduce.cu"


def nhwc(x: Tensor) -> Tensor:
    """The values of a [N, C, H, W] tensor as the kernels have them, dense [N, H, W, C]."""
    return x.permute(0, 2, 3, 1).contiguous()


def nchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


class _Layer(NamedTuple):
    """A convolution's constants: a packed weight, or one to pack on the way and its scale."""

    shift: Tensor
    packed: Tensor | None
    weight: Tensor | None = None
    scale: Tensor | None = None


class Device:
    """An emulated GPU; ``stats`` collects what ptxemu counts, a launch each.

    Args:
        check: whether races and reads of what was not written are errors.
        counters: whether to count.
        emulate: False only records launches; results are not written.
        one_kernel: whether a bottleneck is one kernel, where it can be.
    """

    def __init__(
        self,
        *,
        check: bool = True,
        counters: bool = False,
        emulate: bool = True,
        one_kernel: int = WHERE_IT_PAYS,
    ) -> None:
        self.check, self.counters = check, counters
        self.emulate = emulate
        self.one_kernel = one_kernel
        self.stats: list[Any] = []
        self.launches: list[tuple[str, int, int, int]] = []  # kernel, grid, block, shared bytes
        self.scratch_bytes = 0
        self._buffers: dict[int, np.ndarray] = {}

    # ---- buffers

    def token(self, tensor: Tensor | None) -> int:
        """A pointer to a dense tensor, 0 for None."""
        if tensor is None or tensor.numel() == 0:
            return 0
        assert tensor.is_contiguous()
        identity = len(self._buffers) + 1
        self._buffers[identity] = tensor.detach().reshape(-1).view(torch.uint8).numpy()
        return _TOKEN << 48 | identity << 32

    def _resolve(self, value: int) -> Any:
        offset = value & 0xFFFFFFFF
        return self._buffers[value >> 32 & 0xFFFF][offset:]

    def _params(self, raw: bytes) -> ptxemu.Struct:
        layout, values = "<", []
        for at in range(0, len(raw) - 7, 8):
            (value,) = struct.unpack_from("<Q", raw, at)
            pointer = value >> 48 == _TOKEN
            layout += "Q"
            values.append(self._resolve(value) if pointer else value)
        rest = raw[len(raw) // 8 * 8 :]
        return ptxemu.Struct(f"{layout}{len(rest)}s", *values, rest)

    # ---- launches

    def run(self, operator: str, *arguments: Any) -> None:
        """Records an operator's launches and emulates them."""
        address = getattr(_recorder(), f"record_{operator}")(*arguments)
        text = ctypes.string_at(address).decode()
        ctypes.CDLL(None).free(ctypes.c_void_p(address))
        if text.startswith("error "):
            raise ValueError(text.removeprefix("error "))
        for line in text.splitlines():
            kind, *fields = line.split(" ")
            if kind == "scratch":
                self.scratch_bytes += int(fields[1])
                # NaN where a kernel reads what none has written.
                size = int(fields[1]) if self.emulate else 0
                self._buffers[int(fields[0])] = np.full(size, 0xFF, np.uint8)
            else:
                kernel, grid, block, shared, params = fields
                self._launch(kernel, int(grid), int(block), int(shared), bytes.fromhex(params))

    def _launch(self, kernel: str, grid: int, block: int, shared: int, params: bytes) -> None:
        self.launches.append((kernel, grid, block, shared))
        if not self.emulate:
            return
        stats = kernels(kernel_file(kernel)).launch(
            kernel, grid, block, [self._params(params)], dynamic_smem=shared,
            check_races=self.check, check_uninit=self.check, counters=self.counters,
            first_block=self._first_block(kernel, grid),
        )  # fmt: skip
        self.stats.append(stats)

    def _first_block(self, kernel: str, grid: int) -> int:
        return 0

    # ---- operators

    def pack_conv_weight(
        self, weight: Tensor, scale: Tensor | None, groups: int, algorithm: str = "direct"
    ) -> Tensor:
        k, cg, r, s = weight.shape
        geometry = _Geometry(1, cg * groups, 1, 1, k, 1, 1, r, s, 1, 1, 1, 1, 0, 0, 0, 0, groups)
        values = k * -(-r * s * cg // 8) * 8
        packed = torch.full((64 + 8 * values + 16,), 0xFF, dtype=torch.uint8)
        tensor = self._weight(weight)
        self.run(
            "pack_conv_weight", ctypes.byref(geometry), ctypes.byref(tensor),
            _POINTER(self.token(scale)), _POINTER(self.token(packed)),
        )  # fmt: skip
        return packed

    def conv_bn_act(
        self,
        x: Tensor,
        packed: Tensor,
        shift: Tensor,
        residual: Tensor | None,
        kernel_size: Sequence[int],
        *geometry: Any,
    ) -> Tensor:
        return self._conv(x, _Layer(shift, packed), residual, kernel_size, *geometry)

    def live_conv_bn_act(
        self,
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None,
        shift: Tensor,
        residual: Tensor | None,
        *options: Any,
    ) -> Tensor:
        *geometry, _, act, slope = options  # without the algorithm
        layer = _Layer(shift, None, weight, scale)
        return self._conv(x, layer, residual, weight.shape[2:], *geometry, act, slope)

    def _conv(
        self,
        x: Tensor,
        layer: _Layer,
        residual: Tensor | None,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        act: str,
        act_slope: float,
    ) -> Tensor:
        k = layer.shift.shape[0]
        geometry, shape = _geometry(x, k, kernel_size, stride, padding, dilation, groups)
        out = _unwritten(shape, x.dtype)
        arguments = self._layer(layer, act, act_slope)
        arguments.x, arguments.out = self.token(nhwc(x)), self.token(out)
        arguments.residual = 0 if residual is None else self.token(nhwc(residual))
        self.run("conv_bn_act", TYPES[x.dtype], ctypes.byref(geometry), ctypes.byref(arguments))
        return nchw(out)

    def grouped_bottleneck(self, x: Tensor, *arguments: Any) -> Tensor:
        *layers, stride, dilation, groups, act = arguments
        pairs = [
            None if packed is None else _Layer(shift, packed)
            for packed, shift in zip(layers[::2], layers[1::2], strict=True)
        ]
        return self._bottleneck(x, pairs, stride, dilation, groups, act)

    def live_bottleneck(self, x: Tensor, *arguments: Any) -> Tensor:
        *layers, stride, dilation, groups, _, act = arguments
        triples = [
            None if weight is None else _Layer(shift, None, weight, scale)
            for weight, scale, shift in zip(layers[::3], layers[1::3], layers[2::3], strict=True)
        ]
        return self._bottleneck(x, triples, stride, dilation, groups, act)

    def _bottleneck(
        self,
        x: Tensor,
        layers: Sequence[_Layer | None],
        stride: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        act: str,
    ) -> Tensor:
        one, none, (dh, dw) = (1, 1), (0, 0, 0, 0), dilation
        present = [layer for layer in layers if layer is not None]
        image, geometries = x, []
        for layer, *geometry in zip(
            present,
            (one, (3, 3), one, one),
            (one, stride, one, stride),
            (none, (dh, dh, dw, dw), none, none),
            (one, dilation, one, one),
            (1, groups, 1, 1),
            strict=False,
        ):
            start = x if len(geometries) == 3 else image  # the shortcut's is the block's
            geometries.append(_geometry(start, layer.shift.shape[0], *geometry))
            n, h, w, c = geometries[-1][1]
            image = torch.empty(n, c, h, w, device="meta")
        out = _unwritten(geometries[2][1], x.dtype)
        arguments = [
            self._layer(layer, "none" if i == 3 else act, 0.01) for i, layer in enumerate(present)
        ]
        arguments[2].out = self.token(out)
        self.run(
            "grouped_bottleneck", TYPES[x.dtype], _POINTER(self.token(nhwc(x))),
            (_Geometry * len(present))(*(geometry for geometry, _ in geometries)),
            (_ConvBnAct * len(present))(*arguments), len(present), self.one_kernel,
        )  # fmt: skip
        return nchw(out)

    def _layer(self, layer: _Layer, act: str, act_slope: float) -> Any:
        """A convolution's constants and activation; x, residual and out are left open."""
        weight = _Weight() if layer.weight is None else self._weight(layer.weight)
        return _ConvBnAct(
            0, self.token(layer.packed), weight, self.token(layer.scale), self.token(layer.shift),
            0, 0, ACTIVATIONS.index(act), act_slope,
        )  # fmt: skip

    def conv_stats(
        self,
        x: Tensor,
        in_mean: Tensor | None,
        in_scale: Tensor | None,
        in_bias: Tensor | None,
        in_act: str,
        in_act_slope: float,
        weight: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        algorithm: str = "direct",
    ) -> tuple[Tensor, Tensor, Tensor]:
        k = weight.shape[0]
        kernel_size = weight.shape[2:]
        geometry, shape = _geometry(x, k, kernel_size, stride, padding, dilation, groups)
        y = _unwritten(shape, x.dtype)
        mean, m2 = (_unwritten((k,), torch.float32) for _ in range(2))
        source = self._source(x, None, in_mean, in_scale, in_bias, 1, 1, in_act, in_act_slope)
        arguments = _ConvStats(
            source, self._weight(weight), self.token(y), self.token(mean), self.token(m2)
        )
        self.run("conv_stats", TYPES[x.dtype], ctypes.byref(geometry), ctypes.byref(arguments))
        return nchw(y), mean, m2

    def conv_stats_backward(
        self,
        grad_y: Tensor,
        grad_mean: Tensor | None,
        grad_m2: Tensor | None,
        x: Tensor,
        in_mean: Tensor | None,
        in_scale: Tensor | None,
        in_bias: Tensor | None,
        in_act: str,
        in_act_slope: float,
        weight: Tensor,
        y: Tensor,
        mean: Tensor,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        need_x: bool = True,
        need_affine: bool = True,
        need_weight: bool = True,
        grad_scale: Tensor | None = None,
        grad_in: Tensor | None = None,
        algorithm: str = "direct",
        in_residual: Tensor | None = None,
        activated: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        k = weight.shape[0]
        kernel_size = weight.shape[2:]
        geometry, _ = _geometry(x, k, kernel_size, stride, padding, dilation, groups)
        count = y.numel() // k
        if grad_mean is None and grad_m2 is None and grad_scale is None:
            gradient = self._source(grad_y, None, None, None, None, 1, 1, "none", 0)
        else:
            gradient = self._source(
                y, grad_y, mean, grad_m2, grad_mean, 2, 1 / max(1, count), "none", 0, grad_scale
            )
        n, c, h, w = x.shape
        grad_x = _unwritten((n, h, w, c), x.dtype) if need_x else torch.empty(0)
        wanted = need_affine and in_mean is not None
        affine = [_unwritten((c if wanted else 0,), torch.float32) for _ in range(3)]
        grad_weight = torch.full_like(weight, float("nan")) if need_weight else torch.empty(0)
        arguments = _ConvStatsBackward(
            gradient,
            self._source(x, None, in_mean, in_scale, in_bias, 1, 1, in_act, in_act_slope),
            self._weight(weight),
            *(
                0 if image is None else self.token(nhwc(image))
                for image in (grad_in, in_residual, activated)
            ),
            self.token(grad_x),
            *map(self.token, affine),
            self._weight(grad_weight) if need_weight else _Weight(),
        )
        self.run(
            "conv_stats_backward", TYPES[x.dtype], ctypes.byref(geometry), ctypes.byref(arguments)
        )
        return nchw(grad_x) if need_x else grad_x, *affine, grad_weight

    def affine_add_act(self, y: Tensor, *arguments: Any) -> Tensor:
        params, _ = self._block_end(None, y, *arguments)
        out = _unwritten(nhwc(y).shape, y.dtype)
        params.out = self.token(out)
        self.run("affine_add_act", TYPES[y.dtype], ctypes.byref(params))
        return nchw(out)

    def affine_add_act_backward(
        self, grad: Tensor, y: Tensor, *arguments: Any
    ) -> tuple[Tensor, ...]:
        unscaled = len(arguments) > 9 and arguments[9]
        params, residual = self._block_end(grad, y, *arguments[:9])
        residual, params.unscaled = residual and not unscaled, unscaled
        shape, c = nhwc(y).shape, y.shape[1]
        grad_y = _unwritten(shape, y.dtype)
        grad_residual = _unwritten(shape if residual else (0,), y.dtype)
        params.out, params.grad_residual = self.token(grad_y), self.token(grad_residual)
        vectors = [_unwritten((c,), torch.float32) for _ in range(3)]
        vectors += [_unwritten((c if params.res_mean else 0,), torch.float32) for _ in range(3)]
        gradients = _Gradients(*map(self.token, vectors))
        self.run(
            "affine_add_act_backward", TYPES[y.dtype], ctypes.byref(params), ctypes.byref(gradients)
        )
        last = nchw(grad_residual) if residual else grad_residual
        return nchw(grad_y), *vectors[:3], last, *vectors[3:]

    # ---- arguments

    def _source(
        self,
        x: Tensor,
        addend: Tensor | None,
        mean: Tensor | None,
        scale: Tensor | None,
        bias: Tensor | None,
        scale_factor: float,
        bias_factor: float,
        act: str,
        act_slope: float,
        addend_scale: Tensor | None = None,
    ) -> Any:
        return _Source(
            self.token(nhwc(x)), 0 if addend is None else self.token(nhwc(addend)),
            self.token(mean), self.token(scale), self.token(bias), self.token(addend_scale),
            scale_factor, bias_factor, ACTIVATIONS.index(act), act_slope,
        )  # fmt: skip

    def _weight(self, weight: Tensor) -> Any:
        identity = len(self._buffers) + 1
        steps = zip(weight.shape, weight.stride(), strict=True)
        extent = 1 + sum((size - 1) * stride for size, stride in steps)
        flat = weight.detach().as_strided((extent,), (1,))  # in whatever order
        self._buffers[identity] = flat.view(torch.uint8).numpy()
        return _Weight(_TOKEN << 48 | identity << 32, TYPES[weight.dtype], *weight.stride())

    def _block_end(
        self,
        grad: Tensor | None,
        y: Tensor,
        mean: Tensor,
        scale: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        res_mean: Tensor | None,
        res_scale: Tensor | None,
        res_bias: Tensor | None,
        act: str,
        act_slope: float,
    ) -> tuple[Any, bool]:
        n, c, h, w = y.shape
        params = _AffineAddAct(
            0 if grad is None else self.token(nhwc(grad)), self.token(nhwc(y)),
            self.token(mean), self.token(scale), self.token(bias),
            0 if residual is None else self.token(nhwc(residual)),
            self.token(res_mean), self.token(res_scale), self.token(res_bias),
            ACTIVATIONS.index(act), act_slope,
        )  # fmt: skip
        params.pixels, params.channels = n * h * w, c
        return params, residual is not None


@contextlib.contextmanager
def emulated_operators() -> Iterator[None]:
    """The operators on CPU tensors run the CUDA kernels, emulated."""

    def operator(name: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            return getattr(Device(), name)(*arguments)

        return run

    library = torch.library.Library("fastres", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that kernels are overridden
        for name in OPERATORS:
            library.impl(name, operator(name), "CPU", allow_override=True)
        for name, kernel in composed.OPERATORS.items():  # as on a GPU
            library.impl(name, kernel, "CPU", allow_override=True)
    yield
    library._destroy()


def _unwritten(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.full(tuple(shape), float("nan"), dtype=dtype)


def _geometry(
    x: Tensor,
    k: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> tuple[Any, tuple[int, int, int, int]]:
    """The convolution's sizes, and the shape [N, OH, OW, K] of its output."""
    n, c, *size = x.shape
    out = []
    for axis in range(2):
        padded = size[axis] + padding[2 * axis] + padding[2 * axis + 1]
        covered = dilation[axis] * (kernel_size[axis] - 1) + 1
        out.append((padded - covered) // stride[axis] + 1)
    values = (n, c, *size, k, *out, *kernel_size, *stride, *dilation, *padding, groups)
    return _Geometry(*values), (n, *out, k)
