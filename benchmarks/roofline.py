"""``python -m benchmarks.roofline``: how close each convolution of the networks is to the machine.

The limit of a layer is the larger of its direct FLOPs over the peak of fused multiply-adds and of
the bytes that have to move over the bandwidth of a copy, both measured in the same run; its share
is that time over the layer's (Williams, Waterman, Patterson: Roofline, 2009). More than 100 % are
possible: Winograd's algorithm does fewer multiplications, matrix tiles do more at a time, and
activations stay in caches. Timed is ``conv_bn_act`` of packed weights, by the algorithm that
``freeze`` takes.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from types import ModuleType

import torch

from fastres import _library, _measure
from fastres._progress import Progress
from fastres._table import format_markdown, format_table
from fastres.cli.arguments import output_file
from fastres.weights import algorithm

from .arguments import network_parser
from .layers import conv_layer
from .shapes import ConvShape, conv_shapes


@dataclass(frozen=True)
class Rates:
    """What the machine can do: GFLOP/s and GB/s."""

    fma_peak: float
    copy_bandwidth: float

    def limit(self, shape: ConvShape, batch: int) -> float:
        """Seconds that a layer takes at least by direct convolution from memory."""
        flops, moved = shape.flops(batch), shape.bytes(batch)
        return max(flops / self.fma_peak, moved / self.copy_bandwidth) / 1e9


@dataclass(frozen=True)
class Share:
    """A layer's median seconds, and its limit over them."""

    layer: str
    kind: str
    batch: int
    algorithm: str
    seconds: float
    share: float


def main(argv: list[str] | None = None) -> int:
    """Prints the tables; the exit code is 2 where the native kernels are missing."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    diagnostics = _library.diagnostics()
    if diagnostics is None:
        print("benchmarks.roofline: error: fastres has no native kernels here", file=sys.stderr)
        return 2
    shapes = conv_shapes(*args.models)
    cases = [(shape, batch) for batch in args.batch for shape in shapes]
    before = _rates(diagnostics, args.threads)
    with torch.inference_mode(), Progress(len(cases)) as progress:
        seconds = dict(progress.follow(_timed(cases, args.rounds)))
    after = _rates(diagnostics, args.threads)
    rates = Rates(
        max(before.fma_peak, after.fma_peak), max(before.copy_bandwidth, after.copy_bandwidth)
    )
    shares = [
        Share(
            str(shape),
            _kind(shape),
            batch,
            _algorithm_of(shape),
            seconds[f"{shape} {batch}"],
            rates.limit(shape, batch) / seconds[f"{shape} {batch}"],
        )
        for shape, batch in cases
    ]
    _write(shares, rates, args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = network_parser("roofline", __doc__, rounds=True)
    parser.add_argument("--markdown", type=output_file, metavar="FILE.md")
    return parser


def _rates(diagnostics: ModuleType, threads: int) -> Rates:
    return Rates(diagnostics.fma_peak_gflops(threads), diagnostics.copy_bandwidth_gbs(threads))


def _timed(cases: list[tuple[ConvShape, int]], rounds: int) -> Iterable[tuple[str, float]]:
    """Validates each layer, and yields its name and median."""
    for shape, batch in cases:
        layer = conv_layer(shape, batch)
        layer.validate()
        name = f"{shape} {batch}"
        timings = _measure.time_in_turn({name: layer.fastres[_algorithm_of(shape)]}, rounds)
        yield name, _measure.medians(iter(timings))[name]


def _algorithm_of(shape: ConvShape) -> str:
    *_, best = shape.algorithms
    return algorithm.for_output(best, shape.in_channels // shape.groups)


def _kind(shape: ConvShape) -> str:
    size = f"{shape.kernel}x{shape.kernel}"
    stride = "" if shape.stride == 1 else f", stride {shape.stride}"
    if shape.groups == 1:
        return f"{size}{stride}"
    return f"{size}, {shape.in_channels // shape.groups} channels a group{stride}"


def _write(shares: list[Share], rates: Rates, args: argparse.Namespace) -> None:
    note = (
        f"Limits by {rates.fma_peak:.0f} GFLOP/s of fused multiply-adds and "
        f"{rates.copy_bandwidth:.0f} GB/s of copies; {args.threads} threads, float32, medians of "
        f"{args.rounds} rounds."
    )
    tables = [_kinds_table(shares, args.batch), _layers_table(shares, args.batch)]
    print("\n\n".join(format_table(header, rows) for header, rows in tables) + f"\n\n{note}")
    if args.markdown is not None:
        text = "\n\n".join(format_markdown(header, rows) for header, rows in tables)
        args.markdown.write_text(f"{text}\n\n{note}\n")
    if args.json is not None:
        record = {"rates": asdict(rates), "layers": [asdict(share) for share in shares]}
        args.json.write_text(json.dumps(record, indent=2) + "\n")


def _kinds_table(shares: list[Share], batches: list[int]) -> tuple[list[str], list[list[str]]]:
    """Of each kind of layer the lowest share and the one of all its layers together."""
    kinds: dict[str, dict[int, list[Share]]] = defaultdict(lambda: defaultdict(list))
    for share in shares:
        kinds[share.kind][share.batch].append(share)
    rows = []
    for kind, by_batch in kinds.items():
        cells = []
        for batch in batches:
            layers = by_batch[batch]
            limit = sum(s.share * s.seconds for s in layers)
            lowest = min(s.share for s in layers)
            cells += [f"{limit / sum(s.seconds for s in layers):.0%}", f"{lowest:.0%}"]
        rows.append([kind, str(len(by_batch[batches[0]])), *cells])
    columns = [f"batch {b}, {what}" for b in batches for what in ("together", "lowest")]
    return ["kind", "layers", *columns], rows


def _layers_table(shares: list[Share], batches: list[int]) -> tuple[list[str], list[list[str]]]:
    layers: dict[str, list[Share]] = defaultdict(list)
    for share in shares:
        layers[share.layer].append(share)
    rows = []
    for layer, all_batches in layers.items():
        cells = [cell for s in all_batches for cell in (f"{s.seconds * 1e3:.2f}", f"{s.share:.0%}")]
        rows.append([layer, all_batches[0].algorithm, *cells])
    columns = [f"batch {b}, {what}" for b in batches for what in ("ms", "share")]
    return ["layer", "algorithm", *columns], rows


if __name__ == "__main__":
    sys.exit(main())
