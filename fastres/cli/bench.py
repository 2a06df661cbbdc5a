"""``fastres bench MODEL``: a photo through a model, and through the same model accelerated."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import _measure, _plots
from .._library import get_backend
from .._progress import Progress
from .._table import format_table
from .._version import __version__
from .arguments import output_file, picture_file, positive_int
from .contenders import Contenders
from .images import load_photos, photo_batch
from .models import MODEL_HELP, Target, load_model, make_ready

__all__ = ["BatchResult", "add_parser", "run"]

_EAGER = "eager"
_EAGER_CHANNELS_LAST = "eager channels_last"
_FASTRES = "fastres"
_CONTESTANTS = (_EAGER, _EAGER_CHANNELS_LAST, _FASTRES)
_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
#: Timed calls per layout with which `--layout best` chooses.
_TRIALS = 3
#: Photos in the batch that gives a random network its BatchNorm statistics.
_CALIBRATION_BATCH = 4


@dataclass
class BatchResult:
    """What one batch size gave. Times are medians in milliseconds."""

    batch: int
    layout: str
    milliseconds: dict[str, float]
    max_abs_difference: float
    top5_agree: bool | None
    error: float
    eager_error: float
    algorithm: str

    @property
    def ratio(self) -> float:
        """How many times as fast as eager channels_last."""
        return self.milliseconds[_EAGER_CHANNELS_LAST] / self.milliseconds[_FASTRES]

    @property
    def ratio_to_best(self) -> float:
        """How many times as fast as the faster eager."""
        eager = min(self.milliseconds[_EAGER], self.milliseconds[_EAGER_CHANNELS_LAST])
        return eager / self.milliseconds[_FASTRES]

    @property
    def images_per_second(self) -> dict[str, float]:
        """The throughput of each contestant."""
        return {name: self.batch * 1e3 / value for name, value in self.milliseconds.items()}

    @property
    def within_contract(self) -> bool:
        """Whether the error against float64 is what the contract allows."""
        return self.error <= _measure.error_limit(self.eager_error, self.algorithm)

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        derived = ("ratio", "ratio_to_best", "images_per_second", "within_contract")
        return {**asdict(self), **{name: getattr(self, name) for name in derived}}


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command to the parser of ``fastres``."""
    parser = commands.add_parser(
        "bench",
        help="time a model before and after fastres.accelerate, on a photo",
        description="Runs a photo through a model in both memory formats, and through the same "
        "model after fastres.accelerate, in turn in one process, and prints medians. Exits 1 if "
        "the results are less exact than the numerics contract allows.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--batch", type=positive_int, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument(
        "--image", metavar="FILE", help="a photo of your own (default: scikit-learn's two)"
    )
    parser.add_argument(
        "--size", type=positive_int, default=224, help="height and width of the crop (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=positive_int, default=10, help="timed calls of each (%(default)s)"
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, default="float32", help="of parameters and photos (%(default)s)"
    )
    parser.add_argument("--threads", type=positive_int, help="(default: torch's own choice)")
    parser.add_argument(
        "--layout",
        choices=[*_LAYOUTS, "best"],
        default="best",
        help="memory format of the accelerated model's input; best tries both (%(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=["auto", "random"],
        default="auto",
        help="auto downloads the pretrained ones if it can (%(default)s)",
    )
    parser.add_argument("--json", type=output_file, metavar="FILE")
    parser.add_argument("--plot", type=picture_file, metavar="FILE.png")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; the exit code."""
    photos = load_photos(args.image)
    target = load_model(args.model, args.weights)
    images = photo_batch(photos, max(*args.batch, _CALIBRATION_BATCH), args.size)
    make_ready(target, images[:_CALIBRATION_BATCH])
    dtype = _DTYPES[args.dtype]
    contenders, images = Contenders.of(target.model.to(dtype)), images.to(dtype)
    print(_headline(target, args), flush=True)
    with Progress(len(args.batch) * args.rounds * len(_CONTESTANTS)) as progress:
        results = [
            _bench_batch(contenders, images[:batch], args.layout, args.rounds, progress)
            for batch in args.batch
        ]
    print(_format_results(results))
    if args.json is not None:
        args.json.write_text(json.dumps(_report(target, args, results), indent=2) + "\n")
    if args.plot is not None:
        _plot(args.plot, target.name, args.dtype, results)
    return 0 if all(result.within_contract for result in results) else 1


@torch.inference_mode()
def _bench_batch(
    contenders: Contenders, images: Tensor, layout: str, rounds: int, progress: Progress
) -> BatchResult:
    inputs = {name: images.to(memory_format=form) for name, form in _LAYOUTS.items()}
    if layout == "best":
        trials = {name: partial(contenders.accelerated, x) for name, x in inputs.items()}
        times = _measure.medians(_measure.time_in_turn(trials, _TRIALS))
        layout = min(times, key=lambda name: times[name])
    contestants = {
        _EAGER: partial(contenders.eager, inputs["contiguous"]),
        _EAGER_CHANNELS_LAST: partial(contenders.channels_last, inputs["channels_last"]),
        _FASTRES: partial(contenders.accelerated, inputs[layout]),
    }
    outputs = {name: call() for name, call in contestants.items()}
    exact = contenders.float64(images.double())
    timings = progress.follow(_measure.time_in_turn(contestants, rounds))
    times = _measure.medians(timings)
    return BatchResult(
        batch=len(images),
        layout=layout,
        milliseconds={name: seconds * 1e3 for name, seconds in times.items()},
        max_abs_difference=_measure.max_abs_difference(outputs[_FASTRES], outputs[_EAGER]),
        top5_agree=_top5_agree(outputs[_FASTRES], outputs[_EAGER]),
        error=_measure.relative_error(outputs[_FASTRES], exact),
        algorithm=contenders.algorithm,
        # What eager differs from itself in the other memory format is eager's error, too.
        eager_error=max(
            _measure.relative_error(outputs[name], exact) for name in (_EAGER, _EAGER_CHANNELS_LAST)
        ),
    )


def _top5_agree(output: Any, reference: Any) -> bool | None:
    """Whether the five best classes are the same, in order; None where the output is no logits."""
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 5:
        return None
    return torch.equal(output.topk(5).indices, reference.topk(5).indices)


def _environment() -> dict[str, Any]:
    return {
        "torch": torch.__version__,
        "fastres": __version__,
        "backend": get_backend(),
        "threads": torch.get_num_threads(),
    }


def _headline(target: Target, args: argparse.Namespace) -> str:
    photos = args.image or "scikit-learn's sample photos"
    versions = ", ".join(f"{name} {value}" for name, value in _environment().items())
    return (
        f"{target.name} (weights: {target.weights})\n"
        f"{photos} at {args.size}x{args.size}, {args.dtype}; {versions}\n"
        f"medians of {args.rounds} rounds, in turn\n"
    )


def _format_results(results: Sequence[BatchResult]) -> str:
    header = [f"{name}, ms" for name in _CONTESTANTS]
    timings = format_table(
        ["batch", *header, "speed-up", "vs best eager", "images/s", "input"],
        [
            [
                str(result.batch),
                *(f"{result.milliseconds[name]:.1f}" for name in _CONTESTANTS),
                f"{result.ratio:.2f}x",
                f"{result.ratio_to_best:.2f}x",
                f"{result.images_per_second[_FASTRES]:.1f}",
                result.layout,
            ]
            for result in results
        ],
    )
    exactness = format_table(
        ["batch", "max |difference|", "top-5 agree", "error vs float64", "eager's", "contract"],
        [
            [
                str(result.batch),
                f"{result.max_abs_difference:.2e}",
                {True: "yes", False: "NO", None: "-"}[result.top5_agree],
                f"{result.error:.2e}",
                f"{result.eager_error:.2e}",
                "kept" if result.within_contract else "BROKEN",
            ]
            for result in results
        ],
    )
    return f"{timings}\n\n{exactness}\n\nspeed-up: against eager channels_last"


def _report(
    target: Target, args: argparse.Namespace, results: Sequence[BatchResult]
) -> dict[str, Any]:
    return {
        "model": target.name,
        "weights": target.weights,
        "image": args.image,
        "size": args.size,
        "dtype": args.dtype,
        "rounds": args.rounds,
        **_environment(),
        "batches": [result.to_dict() for result in results],
    }


def _plot(path: Path, name: str, dtype: str, results: Sequence[BatchResult]) -> None:
    series = {
        contestant: [result.images_per_second[contestant] for result in results]
        for contestant in _CONTESTANTS
    }
    labels = {contestant: [f"{x:.1f}" for x in values] for contestant, values in series.items()}
    labels[_FASTRES] = [
        f"{text} ({result.ratio:.2f}x)"
        for text, result in zip(labels[_FASTRES], results, strict=True)
    ]
    _plots.grouped_bars(
        path,
        title=f"{name}: images per second ({torch.get_num_threads()} threads, {dtype})",
        groups=[f"batch {result.batch}" for result in results],
        series=series,
        labels=labels,
        note="x: against eager channels_last; median latencies, in turn in one process",
    )
