"""``python -m benchmarks.report FILE.json ... --out report.html``: one page with plots.

Takes what ``pytest benchmarks --benchmark-json``, ``python -m benchmarks.peers --json`` and
``python -m benchmarks.memory --json`` write, in any number and order, and shows what they hold: the
speed-up of each network, the percentage of the FMA peak of each layer, the roofline, the memory.
The page needs no other file and no network.
"""

import argparse
import html
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastres._table import format_table
from fastres.cli.arguments import output_file

from .baseline import is_eager
from .report_plots import network_bars, peak_bars, roofline

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #2b2f36; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #e6e8eb; }
svg { max-width: 100%; height: auto; }
pre { overflow-x: auto; background: #f6f7f8; padding: 1rem; font-size: 13px; }
p { color: #6b7280; }
"""

#: What a layer may have in its ``extra_info``, and the column of the table.
_FIGURES = {
    "gflops": "GFLOP/s",
    "percent_of_peak": "% of peak",
    "gbytes_per_s": "GB/s",
    "percent_of_copy": "% of copy",
}


@dataclass
class Layer:
    """One timed call of a layer or of a network."""

    group: str
    implementation: str
    is_eager: bool
    milliseconds: float
    info: dict[str, Any]


@dataclass
class Results:
    """Everything that the files hold."""

    layers: list[Layer] = field(default_factory=list)
    networks: list[Layer] = field(default_factory=list)
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    memory: list[dict[str, Any]] = field(default_factory=list)
    machines: set[str] = field(default_factory=set)

    def read(self, file: Path) -> None:
        """Adds a file's results.

        Raises:
            ValueError: it holds none.
        """
        try:
            content = json.loads(file.read_text())
            if "comparisons" in content:
                self.comparisons += content["comparisons"]
                self.machines.add(content["versions"])
            elif "memory" in content:
                self.memory += content["memory"]
            else:
                self._read_benchmarks(content)
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file}: expected what pytest benchmarks, benchmarks.peers or benchmarks.memory "
                f"write as JSON ({type(error).__name__}: {error})"
            ) from error

    def _read_benchmarks(self, content: dict[str, Any]) -> None:
        processor = content["machine_info"].get("cpu", {}).get("brand_raw", "unknown processor")
        for record in content["benchmarks"]:
            params, info = record["params"], record["extra_info"]
            name = params.get("implementation") or params["training_implementation"]
            milliseconds = record["stats"]["median"] * 1e3
            layer = Layer(record["group"], name, is_eager(record), milliseconds, info)
            (self.networks if "model" in params else self.layers).append(layer)
            self.machines.add(f"{processor}, {info['threads']} threads")


def main(argv: list[str] | None = None) -> int:
    """Writes the page; the exit code is 2 where a file is not one of ours."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--out", type=output_file, default=Path("report.html"), metavar="FILE.html")
    args = parser.parse_args(argv)
    results = Results()
    try:
        for file in args.files:
            results.read(file)
    except ValueError as error:
        print(f"benchmarks.report: error: {error}", file=sys.stderr)
        return 2
    args.out.write_text(render(results))
    print(f"wrote {args.out}")
    return 0


def render(results: Results) -> str:
    """The page."""
    sections = [
        _section("Speed-up of each network", "over eager channels_last", _networks(results)),
        _section(
            "Percent of the FMA peak",
            "of the direct convolution's operations: Winograd needs fewer, and may pass 100 %",
            [peak_bars(name, layers) for name, layers in _by_operator(results.layers)],
        ),
        _section(
            "Roofline",
            "what a layer reaches, by operations per byte that must move; the line is the "
            "machine's copy bandwidth and FMA peak, measured in the same run",
            _rooflines(results),
        ),
        _section("Memory", "peak of the resident memory during calls", _memory(results)),
        _section("Layers", "medians, and the speed-up over the faster eager", _table(results)),
    ]
    title = "fastres: benchmarks"
    machines = html.escape("; ".join(sorted(results.machines)))
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{title}</h1>\n<p>{machines}</p>\n"
        f"{''.join(sections)}</html>\n"
    )


def _section(title: str, note: str, parts: list[str]) -> str:
    if not parts:
        return ""
    return f"<h2>{title}</h2>\n<p>{html.escape(note)}</p>\n" + "\n".join(parts) + "\n"


def _networks(results: Results) -> list[str]:
    bars: dict[str, dict[str, float]] = {}
    for network in results.networks:
        bars.setdefault(network.group, {})[network.implementation] = network.milliseconds
    parts = [_speed_ups(bars, "eager")] if bars else []
    peers = {f"{c['model']} batch {c['batch']}": c["milliseconds"] for c in results.comparisons}
    return [*parts, _speed_ups(peers, "eager channels_last")] if peers else parts


def _speed_ups(milliseconds: dict[str, dict[str, float]], base: str) -> str:
    ratios = {
        group: {name: times[base] / time for name, time in times.items()}
        for group, times in milliseconds.items()
        if base in times
    }
    return network_bars(ratios, "{:.2f}", "times as fast as eager channels_last") if ratios else ""


def _memory(results: Results) -> list[str]:
    if not results.memory:
        return []
    mebibytes = {
        f"{record['model']} batch {record['batch']}": {
            name: peak / 2**20 for name, peak in record["peak_bytes"].items() if peak is not None
        }
        for record in results.memory
    }
    return [network_bars(mebibytes, "{:.0f}", "MiB; less is better")]


def _by_operator(layers: Iterable[Layer]) -> list[tuple[str, list[Layer]]]:
    operators: dict[str, list[Layer]] = {}
    for layer in layers:
        if "percent_of_peak" in layer.info:
            operators.setdefault(_operator(layer), []).append(layer)
    return list(operators.items())


def _operator(layer: Layer) -> str:
    """What stands before the shape: ``conv_bn_act``, ``conv_stats backward``."""
    return layer.group.rpartition(" batch ")[0].rpartition(" ")[0]


def _rooflines(results: Results) -> list[str]:
    known = [layer for layer in results.layers if "copy_bandwidth_gbs" in layer.info]
    return [roofline(name, layers) for name, layers in _by_operator(known)]


def _table(results: Results) -> list[str]:
    timed = [*results.networks, *results.layers]
    if not timed:
        return []
    eager: dict[str, float] = {}
    for layer in timed:
        if layer.is_eager:
            best = eager.get(layer.group, layer.milliseconds)
            eager[layer.group] = min(best, layer.milliseconds)
    rows = [
        [
            layer.group,
            layer.implementation,
            f"{layer.milliseconds:.3f}",
            f"{eager[layer.group] / layer.milliseconds:.2f}x" if layer.group in eager else "-",
            *(f"{layer.info[name]:.1f}" if name in layer.info else "-" for name in _FIGURES),
        ]
        for layer in timed
    ]
    header = ["", "implementation", "ms", "speed-up", *_FIGURES.values()]
    return [f"<pre>{html.escape(format_table(header, rows, left=2))}</pre>"]


if __name__ == "__main__":
    sys.exit(main())
