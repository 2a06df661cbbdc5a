"""``fastres verify MODEL``: an accelerated model against its original, on this machine."""

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import _measure
from .._table import format_table
from ..accelerate import restore
from .arguments import input_shape, output_file, positive_int
from .contenders import Contenders, channels_last
from .errors import CliError
from .images import load_photos, photo_batch
from .models import MODEL_HELP, load_model, make_ready

__all__ = ["Check", "add_parser", "run"]

#: Running statistics after a training step, relative to eager's.
_STATISTICS_LIMIT = 1e-5
#: Where eager's own gradient is further off than this, the exact one is zero but for rounding.
_NOISE = 0.5
#: Inputs, besides the one given, on which the gradients are compared.
_NEIGHBOURS = 2


@dataclass(frozen=True)
class Check:
    """The error of something against float64, and eager's own; ``limit`` is what is allowed."""

    name: str
    error: float
    eager_error: float
    limit: float

    @classmethod
    def of(cls, name: str, error: float, eager_error: float, algorithm: str = "direct") -> "Check":
        """A check whose limit is the numerics contract's."""
        return cls(name, error, eager_error, _measure.error_limit(eager_error, algorithm))

    @property
    def kept(self) -> bool:
        """Whether the error is within the contract."""
        return self.error <= self.limit

    @property
    def ratio(self) -> float:
        """The error in units of eager's."""
        return self.error / max(self.eager_error, torch.finfo(torch.float32).eps)


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the parser of ``fastres``."""
    parser = commands.add_parser(
        "verify",
        help="check an accelerated model against its original",
        description="Compares outputs, layers and training gradients of a model and of the same "
        "model after fastres.accelerate with float64. Exits 1 if an error is more than the "
        "numerics contract allows: twice eager's own, or four times with Winograd's algorithm.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--input",
        type=input_shape,
        default=(2, 3, 224, 224),
        metavar="SHAPE",
        help="such as 2x3x224x224; photos where it is square with three channels, else noise",
    )
    parser.add_argument("--image", metavar="FILE", help="a photo of your own")
    parser.add_argument(
        "--top", type=positive_int, default=10, help="how many layers to show (%(default)s)"
    )
    parser.add_argument("--threads", type=positive_int, help="(default: torch's own choice)")
    parser.add_argument("--weights", choices=["auto", "random"], default="auto")
    parser.add_argument("--json", type=output_file, metavar="FILE")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; the exit code."""
    x = _example(args.input, args.image)
    target = load_model(args.model, args.weights)
    make_ready(target, x)
    print(f"{target.name} (weights: {target.weights}), input {'x'.join(map(str, x.shape))}\n")
    checks = [_check_forward("outputs", target.model, [x])]
    layers = _check_layers(target.model, x)
    gradients: list[Check] = []
    try:
        training, gradients = _check_training(target.model, x)
        checks += training
    except Exception as error:  # a model that does not train on images alone
        print(f"training: not checked ({type(error).__name__}: {error})\n")
    _print_checks(checks)
    _print_worst("layers, each on the input that it gets in eager", layers, args.top)
    _print_worst("gradients", gradients, args.top)
    if args.json is not None:
        report = {"model": target.name, "weights": target.weights, "input": list(x.shape)}
        groups = {"checks": checks, "layers": layers, "gradients": gradients}
        for name, group in groups.items():
            report[name] = [{**asdict(check), "kept": check.kept} for check in group]
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(check.kept for check in checks) else 1


def _example(shape: tuple[int, ...], image: str | None) -> Tensor:
    if len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3]:
        return photo_batch(load_photos(image), shape[0], shape[2])
    if image is not None:
        raise CliError(f"--image: a photo does not fill an input of {'x'.join(map(str, shape))}")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _print_checks(checks: list[Check]) -> None:
    header = ["", "error", "eager's", "allowed", "contract"]
    rows = [
        [
            check.name,
            f"{check.error:.2e}",
            f"{check.eager_error:.2e}",
            f"{check.limit:.2e}",
            "kept" if check.kept else "BROKEN",
        ]
        for check in checks
    ]
    print(format_table(header, rows))


def _print_worst(title: str, checks: list[Check], count: int) -> None:
    if not checks:
        return
    worst = sorted(checks, key=lambda check: check.ratio, reverse=True)[:count]
    rows = [
        [check.name, f"{check.error:.2e}", f"{check.eager_error:.2e}", f"{check.ratio:.2f}x"]
        for check in worst
    ]
    print(f"\nlargest errors of {len(checks)} {title}:")
    print(format_table(["", "error", "eager's", "ratio"], rows))


# ---- outputs, and where they come from -----------------------------------------------------------


def _as_it_is(x: Tensor) -> Tensor:
    return x


@torch.no_grad()
def _check_forward(name: str, module: nn.Module, inputs: Sequence[Tensor]) -> Check:
    contenders = Contenders.of(module)
    exact = contenders.float64(*(x.double() for x in inputs))

    def error_of(contender: nn.Module, form: Callable[[Tensor], Tensor] = _as_it_is) -> float:
        # A copy each: a module may work in place.
        return _measure.relative_error(contender(*(form(x.clone()) for x in inputs)), exact)

    # What eager differs from itself in the other memory format is eager's error, too.
    eager_errors = error_of(contenders.eager), error_of(contenders.channels_last, channels_last)
    error = error_of(contenders.accelerated)
    return Check.of(name, error, max(eager_errors), contenders.algorithm)


def _check_layers(model: nn.Module, x: Tensor) -> list[Check]:
    """Every module that has submodules, on the input that it gets in the eager model.

    So an error is that of the module alone, and not of what came before it.
    """
    plain = restore(copy.deepcopy(model))
    return [
        _check_forward(name, plain.get_submodule(name), inputs)
        for name, inputs in _record_inputs(copy.deepcopy(plain), x).items()
    ]


@torch.no_grad()
def _record_inputs(model: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """Name -> first inputs, of modules with submodules whose inputs are tensors and nothing else.

    Leaves its hooks on ``model``.
    """
    recorded: dict[str, list[Tensor]] = {}

    def record_as(name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if name not in recorded and not kwargs and all(map(_is_float, inputs)):
                recorded[name] = [value.clone() for value in inputs]

        return record

    for name, module in model.named_modules():
        if name and next(module.children(), None) is not None:
            module.register_forward_pre_hook(record_as(name), with_kwargs=True)
    model(x)
    return recorded


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


# ---- training ------------------------------------------------------------------------------------


def _check_training(model: nn.Module, x: Tensor) -> tuple[list[Check], list[Check]]:
    """The checks of one step's gradients and statistics, and one for every parameter.

    A rounding error that flips the sign of a ReLU's input changes gradients by far more than
    itself, and whether one does is luck. So everybody computes the gradients several times, on
    inputs a rounding error apart: the median of the accelerated model's errors has to keep to what
    eager's reach.
    """
    contenders = Contenders.of(model)
    exact = _gradients(contenders.float64, x.double())
    eager = [_gradient_errors(contenders.eager, x, exact)]
    accelerated = [_gradient_errors(contenders.accelerated, x, exact)]
    checks = _check_statistics(contenders)
    eager.append(_gradient_errors(contenders.channels_last, channels_last(x), exact))
    for other in _neighbours(x):
        accelerated.append(_gradient_errors(contenders.accelerated, other, exact))
        eager.append(_gradient_errors(contenders.eager, other, exact))
        eager.append(_gradient_errors(contenders.channels_last, channels_last(other), exact))
    gradients = []
    for name in exact:
        eager_error = max(errors[name] for errors in eager)
        if eager_error < _NOISE:
            error = statistics.median(errors[name] for errors in accelerated)
            gradients.append(Check.of(name, error, eager_error))
    overall = Check.of(
        "gradients",
        _root_mean_square([check.error for check in gradients]),
        _root_mean_square([check.eager_error for check in gradients]),
    )
    return [overall, *checks], gradients


def _neighbours(x: Tensor) -> list[Tensor]:
    """Inputs that differ from ``x`` by about a rounding error."""
    generator = torch.Generator().manual_seed(0)
    eps = torch.finfo(x.dtype).eps
    return [x * (1 + eps * torch.randn(x.shape, generator=generator)) for _ in range(_NEIGHBOURS)]


def _check_statistics(contenders: Contenders) -> list[Check]:
    exact = list(contenders.float64.buffers())
    if not _measure.output_tensors(exact):
        return []
    error = _measure.relative_error(list(contenders.accelerated.buffers()), exact)
    eager_error = _measure.relative_error(list(contenders.eager.buffers()), exact)
    return [Check("running statistics", error, eager_error, _STATISTICS_LIMIT)]


def _gradient_errors(model: nn.Module, x: Tensor, exact: dict[str, Tensor]) -> dict[str, float]:
    gradients = _gradients(model, x)
    return {name: _measure.relative_error(gradients[name], exact[name]) for name in exact}


def _gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The parameters' gradients of a fixed projection of the outputs, in training mode."""
    model.zero_grad()
    model.train()
    for module in model.modules():
        # Dropout, DropPath and their like draw other numbers in float64.
        if "Drop" in type(module).__name__:
            module.eval()
    generator = torch.Generator().manual_seed(0)
    loss = sum(
        (output * torch.randn(output.shape, generator=generator).to(output)).mean()
        for output in _measure.output_tensors(model(x))
    )
    assert isinstance(loss, Tensor)
    loss.backward()
    named = model.named_parameters()
    return {name: tensor.grad for name, tensor in named if tensor.grad is not None}


def _root_mean_square(values: list[float]) -> float:
    return (sum(value**2 for value in values) / max(len(values), 1)) ** 0.5
