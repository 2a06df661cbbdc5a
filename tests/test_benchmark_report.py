"""The benchmarks' baseline, its yardstick, and the report."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import child_process
import pytest

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from benchmarks import baseline, report  # noqa: E402

NETWORK = "resnet50 batch 1"
LAYER = "conv_bn_act 8-8_3x3_9x9 batch 1"
POOL = "max_pool 8_3x3_s2_9x9 batch 1"


def _record(group, implementation, median, peak=100.0, **params):
    stats = dict.fromkeys(baseline._TIMES, median) | {"ops": 1 / median, "rounds": 5}
    stats |= {"iterations": 1, "outliers": "0;0"}
    info = {"threads": 2, "gflops": 0.5 / median, "gbytes_per_s": 0.1 / median}
    info |= {"fma_peak_gflops": peak, "copy_bandwidth_gbs": 20.0, "percent_of_peak": 50.0}
    params |= {"implementation": implementation}
    name = f"test[{group}-{implementation}]"
    record = {"name": name, "fullname": f"benchmarks/{name}", "group": group, "params": params}
    return {**record, "stats": stats, "extra_info": info}


def _run(*records):
    machine = {"cpu": {"brand_raw": "a processor"}}
    run = {"machine_info": machine, "commit_info": {"id": "0"}, "datetime": "", "version": "5"}
    return {**run, "benchmarks": list(records)}


# ---- the yardstick -------------------------------------------------------------------------------


def test_times_are_turned_in_proportion_to_eager():
    then = [_record(LAYER, "eager", 4.0), _record(LAYER, "fastres-direct", 2.0)]
    now = [_record(LAYER, "eager", 6.0, peak=1.0), _record(LAYER, "fastres-direct", 9.0)]
    assert baseline.rescale(then, now) == []
    assert [record["stats"]["median"] for record in then] == pytest.approx([6.0, 3.0])
    assert then[1]["stats"]["ops"] == pytest.approx(1 / 3.0)


def test_the_faster_eager_is_the_yardstick():
    then = [_record(LAYER, name, t) for name, t in (("eager-nchw", 8.0), ("eager-nhwc", 4.0))]
    now = [_record(LAYER, name, t) for name, t in (("eager-nchw", 5.0), ("eager-nhwc", 6.0))]
    baseline.rescale(then, now)
    assert then[1]["stats"]["median"] == pytest.approx(5.0)


def test_without_eager_the_peaks_are_the_yardstick():
    then = [_record(LAYER, "fastres-direct", 2.0, peak=300.0)]
    assert baseline.rescale(then, [_record(LAYER, "fastres-direct", 9.0, peak=100.0)]) == []
    assert then[0]["stats"]["median"] == pytest.approx(6.0)
    other = [_record(LAYER, "fastres-direct", 2.0)]
    assert baseline.rescale(other, []) == [other[0]["fullname"]]
    assert other[0]["stats"]["median"] == 2.0


def test_files_are_joined_and_the_later_one_counts(tmp_path):
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    files[0].write_text(json.dumps(_run(_record(LAYER, "eager", 1.0), _record("g", "eager", 1.0))))
    files[1].write_text(json.dumps(_run(_record(LAYER, "eager", 2.0))))
    out = tmp_path / "joined.json"
    assert baseline.main([*map(str, files), "--out", str(out)]) == 0
    joined = json.loads(out.read_text())["benchmarks"]
    assert [(r["group"], r["stats"]["median"]) for r in joined] == [(LAYER, 2.0), ("g", 1.0)]


def _benchmark(tmp_path, *arguments):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["benchmarks/test_conv_bn_act.py", "--models", "resnext50_32x4d", "--threads", "1"]
    command += ["-k", "1024-1024_3x3_g32_7x7 or 512-512_3x3_g32_14x14"]
    command += ["--benchmark-max-time=0.05", f"--benchmark-storage={tmp_path}", *arguments]
    return subprocess.run(
        command,
        cwd=ROOT,
        env=child_process.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_regression_fails_and_another_machine_does_not(tmp_path):
    file = tmp_path / "run.json"
    assert _benchmark(tmp_path, f"--benchmark-json={file}").returncode == 0
    run = json.loads(file.read_text())
    run["machine_info"]["cpu"]["brand_raw"] = "another"
    # As if the one layer came from a machine ten times as fast, and in the other fastres had been.
    for record in run["benchmarks"]:
        if "14x14" in record["group"] or not baseline.is_eager(record):
            for name in baseline._TIMES:
                record["stats"][name] /= 10
    file.write_text(json.dumps(run))
    # Far more than noise.
    limit = "--benchmark-compare-fail=min:400%"
    result = _benchmark(tmp_path, f"--benchmark-compare={file}", limit)
    output = result.stdout + result.stderr
    assert result.returncode == 1, output
    (regression,) = [line for line in output.splitlines() if "Regression" in line and "[" in line]
    assert "1024-1024_3x3_g32_7x7-fastres-direct" in regression
    assert "machine_info is different" not in output


def test_the_stored_baseline_is_of_benchmarks_that_exist():
    stored = json.loads(baseline.BASELINE.read_text())["benchmarks"]
    names = {record["fullname"] for record in stored}
    assert len(names) == len(stored) > 100
    assert any(baseline.is_eager(record) for record in stored)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "benchmarks"]
    collected = subprocess.run(
        command,
        cwd=ROOT,
        env=child_process.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert names <= set(collected.stdout.splitlines())


# ---- the report ----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """A run of the benchmarks, of the peers and of the memory."""
    networks = [
        _record(NETWORK, n, t, model="resnet50") for n, t in (("eager", 3.0), ("fastres", 2))
    ]
    layers = [_record(LAYER, n, t) for n, t in (("eager", 4.0), ("fastres-winograd", 1.6))]
    layers.append(_record(POOL, "fastres-direct", 1.6))
    for name in ("gflops", "percent_of_peak"):
        del layers[-1]["extra_info"][name]  # nothing is multiplied
    comparison = {"model": "resnet18", "batch": 8, "skipped": {}, "differences": {}}
    comparison["milliseconds"] = {"eager": 12.0, "eager channels_last": 10.0, "fastres": 8.0}
    peaks = {"eager": 300 * 2**20, "fastres": 200 * 2**20, "absent": None}
    contents = {
        "run": _run(*networks, *layers),
        "peers": {"versions": "torch 9", "comparisons": [comparison]},
        "memory": {"memory": [{"model": "resnet50", "batch": 1, "peak_bytes": peaks}]},
    }
    paths = []
    for name, content in contents.items():
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(content))
    return paths


def _svg_texts(page):
    """The texts in each plot; fails unless each is well-formed."""
    plots = [part.partition("</svg>")[0] + "</svg>" for part in page.split("<svg")[1:]]
    return [" ".join(ElementTree.fromstring("<svg" + plot).itertext()) for plot in plots]


def test_the_page_has_every_plot_and_the_table(files, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert report.main([*map(str, files), "--out", str(out)]) == 0
    page = out.read_text()
    for title in ("Speed-up", "Percent of the FMA peak", "Roofline", "Memory", "Layers"):
        assert f"<h2>{title}" in page
    assert len(_svg_texts(page)) == 5  # networks, peers, peaks, roofline, memory
    assert "a processor, 2 threads; torch 9" in page
    row = next(line for line in page.splitlines() if "fastres-winograd" in line and LAYER in line)
    assert row.split()[-6:] == ["1600.000", "2.50x", "0.3", "50.0", "0.1", "-"]
    (row,) = (line for line in page.splitlines() if POOL in line)
    assert row.split()[-6:] == ["1600.000", "-", "-", "-", "0.1", "-</pre>"]
    assert not any(loads in page for loads in ("<script", "<link", "src=", "@import", "url(http"))


def test_what_is_not_there_has_no_section(files, tmp_path):
    out = tmp_path / "report.html"
    assert report.main([str(files[2]), "--out", str(out)]) == 0
    page = out.read_text()
    assert page.count("<h2>") == 1
    assert "<h2>Memory" in page


@pytest.mark.parametrize("content", ["no JSON", '{"other": 1}', "[]", None])
def test_other_files_are_refused_by_name(content, tmp_path, capsys):
    file = tmp_path / "file.json"
    if content is not None:
        file.write_text(content)
    assert report.main([str(file), "--out", str(tmp_path / "report.html")]) == 2
    assert f"{file}: expected what pytest benchmarks" in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
