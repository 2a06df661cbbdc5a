"""``python -m benchmarks.forms``: what the three forms of one ResNeXt block cost.

A block of ResNeXt-50 32x4d as 32 summed branches (a), with concatenated branches (b) and with one
grouped convolution (c), in eager PyTorch and accelerated. The forms are compared with each other
before they are timed.
"""

import argparse
import copy
import sys
from collections.abc import Callable

import torch
from torch import nn

import fastres
from fastres._measure import medians, relative_error, time_in_turn
from fastres._table import format_markdown, format_table
from fastres.cli.arguments import positive_int
from fastres.forms import Form, to_form

#: Stage -> (input channels, planes, height and width at 224 pixels).
_STAGES = {1: (256, 64, 56), 2: (512, 128, 28), 3: (1024, 256, 14), 4: (2048, 512, 7)}
_FORMS: dict[Form, str] = {
    "a": "32 branches, summed",
    "b": "32 branches, concatenated",
    "c": "grouped",
}
_LIMIT = 1e-4


def main(argv: list[str] | None = None) -> int:
    """Prints the table; the exit code is 1 where the forms disagree."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    channels, planes, size = _STAGES[args.stage]
    block = fastres.nn.Bottleneck(channels, planes, groups=32, base_width=4).eval()
    blocks = {
        (form, name): fastres.restore(to_form(block, form))
        if name == "eager"
        else to_form(block, form)
        for form in _FORMS
        for name in ("eager", "fastres")
    }
    x = torch.randn(args.batch, channels, size, size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = copy.deepcopy(blocks["c", "eager"]).double()(x.double())
        errors = [relative_error(model(x), expected) for model in blocks.values()]
        if max(errors) > _LIMIT:
            print(f"the forms differ by {max(errors):.1e}, expected at most {_LIMIT}")
            return 1
        inference = _times(blocks, lambda model: lambda: model(x), args.rounds)
    training = _times(
        {key: model.train() for key, model in blocks.items()},
        lambda model: lambda: model(x).sum().backward(),
        args.rounds,
    )
    rows = []
    for form, text in _FORMS.items():
        layers = sum(1 for m in blocks[form, "eager"].modules() if next(m.children(), None) is None)
        cells = [
            _cell(times[form, name], times["c", name])
            for times in (inference, training)
            for name in ("eager", "fastres")
        ]
        rows.append([f"({form}) {text}", str(layers), *cells])
    header = ["form", "layers", "inference, eager", "fastres", "training step, eager", "fastres"]
    print(f"{channels} channels, {size}x{size}, batch {args.batch}, {args.threads} threads; "
          "medians, and times form c's")  # fmt: skip
    print((format_markdown if args.markdown else format_table)(header, rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.forms", description=__doc__)
    parser.add_argument("--stage", type=int, choices=_STAGES, default=2, help="(%(default)s)")
    parser.add_argument("--batch", type=positive_int, default=1, help="(%(default)s)")
    parser.add_argument("--threads", type=positive_int, default=2, help="(%(default)s)")
    parser.add_argument("--rounds", type=positive_int, default=15, help="(%(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print a markdown table")
    return parser


_Key = tuple[Form, str]


def _times(
    blocks: dict[_Key, nn.Module], call: Callable[[nn.Module], Callable[[], object]], rounds: int
) -> dict[_Key, float]:
    return medians(time_in_turn({key: call(model) for key, model in blocks.items()}, rounds))


def _cell(seconds: float, reference: float) -> str:
    return f"{seconds * 1e3:.2f} ms ({seconds / reference:.1f}x)"


if __name__ == "__main__":
    sys.exit(main())
