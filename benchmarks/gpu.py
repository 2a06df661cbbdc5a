"""All tests and benchmarks on a GPU, in one report: ``python -m benchmarks.gpu``.

Runs the whole test suite, then times layers and networks in float16 and training steps under
bfloat16 autocast: eager channels_last, ``torch.compile(mode="max-autotune")``, a CUDA graph of
eager, and fastres (on cuDNN, and with its kernels in CUDA C++ and in Triton where those are there),
all in one process, in turn. What is done is printed and written as it comes. Where there is no GPU
it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

import fastres
from fastres import _measure, ops

from .shapes import DEFAULT_MODELS, IMAGE_SIZE, ConvShape, conv_shapes

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("tests", "layers", "networks", "training")
BACKENDS = ("cudnn", "cuda", "triton")
WITHOUT = "none"
Call = Callable[[], object]


def milliseconds(call: Call) -> float:
    """Time of one call on the GPU, by events on the current stream."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def in_turn(
    calls: Mapping[str, Call], rounds: int, timer: Callable[[Call], float] = milliseconds
) -> dict[str, float]:
    """Median time of each call; they run alternately, after two untimed rounds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 2):
        for name, call in calls.items():
            time = timer(call)
            if round_ >= 2:
                times[name].append(time)
    return {name: statistics.median(each) for name, each in times.items()}


def backends() -> list[str]:
    """The kernels that a GPU can run here."""
    return [name for name in BACKENDS if name in fastres.available_backends()]


def on_backend(name: str, call: Call) -> Call:
    """The call with that backend set."""

    def run() -> object:
        fastres.set_backend(name)
        return call()

    return run


def layer_calls(shape: ConvShape, batch: int, device: str, names: list[str]) -> dict[str, Call]:
    """One layer in eager PyTorch and in fastres, checked against float64."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    square = {"stride": shape.stride, "padding": shape.padding, "groups": shape.groups}
    k, per_group = shape.out_channels, shape.in_channels // shape.groups
    x = torch.randn(batch, shape.in_channels, shape.height, shape.width, device=device).to(dtype)
    x = x.to(memory_format=torch.channels_last)
    weight = torch.randn(k, per_group, shape.kernel, shape.kernel, device=device)
    weight = (weight / (per_group * shape.kernel**2) ** 0.5).to(dtype)
    weight = weight.to(memory_format=torch.channels_last)
    shift = torch.zeros(k, device=device)
    bias = shift.to(dtype)

    def eager(x: Tensor = x, weight: Tensor = weight, bias: Tensor = bias) -> Tensor:
        return nn.functional.relu_(nn.functional.conv2d(x, weight, bias, **square))

    calls: dict[str, Call] = {"eager": eager}
    exact = eager(x.double(), weight.double(), bias.double())
    limit = _measure.error_limit(_measure.relative_error(eager(), exact), "direct")
    for name in names:
        fastres.set_backend(name)
        packed = ops.pack_conv_weight(weight, None, shape.groups)

        def fused(packed: Tensor = packed) -> Tensor:
            return ops.conv_bn_act(x, packed, shift, kernel_size=shape.kernel, act="relu", **square)

        error = _measure.relative_error(fused(), exact)
        if error > limit:
            raise AssertionError(f"{shape} on {name}: error {error:.1e}, allowed {limit:.1e}")
        calls[name] = on_backend(name, fused)
    return calls


def inference_calls(
    model: nn.Module, x: Tensor, names: list[str], compile_mode: str = WITHOUT
) -> dict[str, Call]:
    """A network in eval mode, in every way that it can run."""
    model = model.eval().to(memory_format=torch.channels_last)
    calls: dict[str, Call] = {"eager": lambda: model(x)}
    if x.is_cuda:
        calls["eager, CUDA graph"] = graphed(calls["eager"])
    if compile_mode != WITHOUT:
        compiled = torch.compile(copy.deepcopy(model), mode=compile_mode)
        calls["torch.compile"] = lambda: compiled(x)
    for name in names:
        fastres.set_backend(name)
        try:
            frozen = fastres.freeze(model, x)
        except ValueError as error:  # what cannot be frozen here is left out, and says why
            print(f"{name}: {error}", file=sys.stderr)
            continue
        calls[name] = on_backend(name, lambda frozen=frozen: frozen(x))
        live = fastres.accelerate(copy.deepcopy(model))
        calls[f"{name}, accelerate"] = on_backend(name, lambda live=live: live(x))
        if x.is_cuda:
            calls[f"{name}, CUDA graph"] = graphed(calls[name])
    return calls


def training_calls(
    model: nn.Module, x: Tensor, names: list[str], compile_mode: str = WITHOUT
) -> dict[str, Call]:
    """A step of SGD with momentum under bfloat16 autocast, in every way that it can run.

    Raises:
        AssertionError: a first step's loss is not eager's.
    """
    model = model.train().to(memory_format=torch.channels_last)
    contestants = {"eager": step(copy.deepcopy(model), x)}
    if x.is_cuda:
        contestants["eager, CUDA graph"] = graphed(step(copy.deepcopy(model), x))
    if compile_mode != WITHOUT:
        # Without CUDA graphs of its own: a graph of the whole step is a contestant already.
        mode = {"max-autotune": "max-autotune-no-cudagraphs"}.get(compile_mode, "default")
        compiled = torch.compile(copy.deepcopy(model), mode=mode)
        contestants["torch.compile"] = step(compiled, x)
    expected = float(step(copy.deepcopy(model), x)())
    for name in names:
        call = on_backend(name, step(fastres.accelerate(copy.deepcopy(model)), x))
        loss = float(call())
        # Rounded to bfloat16's eight bits in other places, dozens of layers deep.
        if abs(loss - expected) > 0.03 * abs(expected):
            raise AssertionError(f"training on {name}: the loss is {loss}, eager's {expected}")
        contestants[name] = call
        if x.is_cuda:
            contestants[f"{name}, CUDA graph"] = graphed(call)
    return contestants


def step(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """Forward, backward and the optimizer's step; returns the loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.arange(len(x), device=x.device)

    def run() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        # No cache: a graph would capture casts that another call made.
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return run


def graphed(call: Call) -> Call:
    """The call's kernels, captured once and replayed; the call's own tensors stay alive."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()

    def replay(call: Call = call) -> None:
        graph.replay()

    return replay


def table(title: str, rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Times in ms and, in brackets, the speed-up over eager, in Markdown."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [f"## {title}", "", "| | " + " | ".join(columns) + " |"]
    lines.append("| --- " * (len(columns) + 1) + "|")
    for label, row in rows.items():
        cells = [
            f"{row[name]:.3f} ({row['eager'] / row[name]:.2f}x)" if name in row else ""
            for name in columns
        ]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def run_tests() -> list[str]:
    """The whole suite's last lines."""
    command = [sys.executable, "-m", "pytest", "-q", "--rootdir", str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    tail = done.stdout.splitlines()[-15:]
    return ["## Tests", "", f"exit status {done.returncode}", "", "```", *tail, "```", ""]


def time_layers(plan: argparse.Namespace, batch: int) -> list[str]:
    """Every convolution of the networks."""
    with torch.inference_mode():
        layers = {
            str(shape): in_turn(layer_calls(shape, batch, "cuda", plan.backends), plan.rounds)
            for shape in conv_shapes(*plan.models)
        }
    return table(f"Layers, float16, batch {batch}, ms", layers)


def time_networks(plan: argparse.Namespace, batch: int) -> list[str]:
    """The networks in eval mode."""
    networks = {}
    with torch.inference_mode():
        for name in plan.models:
            x = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, device="cuda").half()
            x = x.to(memory_format=torch.channels_last)
            model = models.get_model(name).cuda().half()
            calls = inference_calls(model, x, plan.backends, plan.compile)
            networks[name] = in_turn(calls, plan.rounds)
    return table(f"Networks, float16, batch {batch}, ms", networks)


def time_training(plan: argparse.Namespace, batch: int) -> list[str]:
    """Steps of the networks; cuDNN's operators have no training of their own."""
    steps, names = {}, [name for name in plan.backends if name != "cudnn"]
    for name in plan.models:
        x = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE, device="cuda")
        x = x.to(memory_format=torch.channels_last)
        calls = training_calls(models.get_model(name).cuda(), x, names, plan.compile)
        steps[name] = in_turn(calls, plan.rounds)
    return table(f"Training steps, bfloat16 autocast, batch {batch}, ms", steps)


def report(plan: argparse.Namespace) -> Iterator[list[str]]:
    """All of it in Markdown, a table at a time."""
    yield [f"# fastres on {torch.cuda.get_device_name()}", "", "```", fastres.show_config()]
    yield ["```", ""]
    if "tests" in plan.parts:
        yield run_tests()
    for batch in plan.batch:
        if "layers" in plan.parts:
            yield time_layers(plan, batch)
        if "networks" in plan.parts:
            yield time_networks(plan, batch)
    if "training" in plan.parts:
        yield time_training(plan, max(plan.batch))
    fastres.set_backend("auto")


def arguments() -> argparse.Namespace:
    """What to run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=backends())
    parser.add_argument("--models", nargs="+", default=list(DEFAULT_MODELS))
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument(
        "--compile",
        default="max-autotune",
        metavar="MODE",
        help=f"torch.compile's mode; {WITHOUT} leaves it out (default: max-autotune)",
    )
    parser.add_argument("--output", type=Path, default=Path("gpu_report.md"))
    return parser.parse_args()


def main() -> None:
    """Writes the report, or says that there is no GPU."""
    plan = arguments()
    if not torch.cuda.is_available():
        print("There is no GPU that torch can use: nothing to run.")
        return
    with plan.output.open("w") as file:
        for lines in report(plan):
            print(*lines, sep="\n", flush=True)
            print(*lines, sep="\n", file=file, flush=True)


if __name__ == "__main__":
    main()
