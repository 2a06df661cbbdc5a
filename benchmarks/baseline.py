"""The stored baseline, and how times of another machine are compared with this one's.

``python -m benchmarks.baseline RUN.json ...`` joins files of ``--benchmark-json`` into
``benchmarks/baseline.json``. When a run is compared with it, every time in it is first turned into
what it would be here: in proportion to eager's on the same layer in either run, or, where eager is
not among the benchmarks, to the FMA peaks. So what is compared are ratios to a yardstick.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["is_eager", "join", "rescale"]

BASELINE = Path(__file__).parent / "baseline.json"

#: The statistics that are times.
_TIMES = ("min", "max", "mean", "median", "stddev", "iqr", "q1", "q3", "ld15iqr", "hd15iqr")
_TIMES += ("total",)
#: What the table of pytest-benchmark and the report read.
_STATISTICS = (*_TIMES, "ops", "rounds", "iterations", "outliers")
_RECORD = ("group", "name", "fullname", "params", "extra_info")

#: A record of pytest-benchmark's JSON.
Record = dict[str, Any]


def is_eager(record: Mapping[str, Any]) -> bool:
    """Whether the record is of eager PyTorch, in either memory format."""
    params = record["params"] or {}
    name = params.get("implementation") or params.get("training_implementation") or ""
    return name.startswith("eager")


def rescale(baseline: Iterable[Record], run: Iterable[Mapping[str, Any]]) -> list[str]:
    """Turns the times of ``baseline``, in place, into those of the machine of ``run``.

    Args:
        baseline: records of the stored run.
        run: records of this run.

    Returns:
        The full names of records for which this run has no yardstick; they stay as they are.
    """
    baseline, run = list(baseline), list(run)
    eager_then, eager_now = _eager_times(baseline), _eager_times(run)
    peaks = {record["group"]: _peak(record) for record in run}
    unknown = []
    for record in baseline:
        group = record["group"]
        if group in eager_then and group in eager_now:
            factor = eager_now[group] / eager_then[group]
        elif _peak(record) and peaks.get(group):
            factor = _peak(record) / peaks[group]
        else:
            unknown.append(record["fullname"])
            continue
        statistics = record["stats"]
        statistics.update({name: statistics[name] * factor for name in _TIMES})
        statistics["ops"] /= factor
    return unknown


def _eager_times(records: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Group -> the best time of eager's faster memory format; a busy machine spoils medians."""
    times: dict[str, float] = {}
    for record in filter(is_eager, records):
        best = record["stats"]["min"]
        times[record["group"]] = min(best, times.get(record["group"], best))
    return times


def _peak(record: Mapping[str, Any]) -> float:
    return record["extra_info"].get("fma_peak_gflops", 0.0)


def join(files: Iterable[Path]) -> dict[str, Any]:
    """One run out of several, with what is needed for comparing."""
    joined: dict[str, Any] = {}
    records: dict[str, Record] = {}
    for file in files:
        run = json.loads(file.read_text())
        cpu = run["machine_info"].get("cpu", {})
        joined = {
            "machine_info": {"cpu": {"brand_raw": cpu.get("brand_raw", "unknown")}},
            "commit_info": {"id": run["commit_info"]["id"]},
            "datetime": run["datetime"],
            "version": run["version"],
        }
        for record in run["benchmarks"]:
            slim = {name: record[name] for name in _RECORD}
            slim["params"] = {name: str(value) for name, value in (record["params"] or {}).items()}
            slim["stats"] = {name: _short(record["stats"][name]) for name in _STATISTICS}
            records[record["fullname"]] = slim
    return {**joined, "benchmarks": list(records.values())}


def _short(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def main(argv: list[str] | None = None) -> int:
    """Writes the baseline."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.baseline", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="RUN.json")
    parser.add_argument("--out", type=Path, default=BASELINE, help="(%(default)s)")
    args = parser.parse_args(argv)
    joined = join(args.files)
    lines = ",\n".join(json.dumps(record) for record in joined.pop("benchmarks"))
    head = json.dumps(joined, indent=1)[:-2]
    args.out.write_text(f'{head},\n "benchmarks": [\n{lines}\n]}}\n')
    return 0


if __name__ == "__main__":
    sys.exit(main())
