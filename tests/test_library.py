"""Loading the native library, choosing the backend, and what show_config tells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastres
from fastres import _library, ops, reference
from fastres.schema.operators import SCHEMAS

PACKAGE = Path(fastres.__file__).parent
NATIVE_IS_OFF = os.environ.get("FASTRES_NATIVE") == "0"
needs_native = pytest.mark.skipif(NATIVE_IS_OFF, reason="FASTRES_NATIVE=0: no native library here")

# Runs a convolution whose result is known: 2 * 3 + 0, on whatever kernels there are.
CONVOLVE = """
import torch, fastres
from fastres import _library, ops
packed = ops.pack_conv_weight(torch.full((1, 1, 1, 1), 3.0))
out = ops.conv_bn_act(torch.full((1, 1, 2, 2), 2.0), packed, kernel_size=1)
assert out.eq(6).all(), out
"""


def run_python(
    code: str, package: Path = PACKAGE, **environment: str
) -> subprocess.CompletedProcess:
    """Runs code in a new process that imports fastres from the given folder."""
    cleared = {name: value for name, value in os.environ.items() if not name.startswith("FASTRES_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**cleared, "PYTHONPATH": str(package.parent), **environment},
        cwd=package.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def restore_backend():
    """Undoes what a test sets."""
    before = fastres.get_backend()
    yield
    fastres.set_backend(before)


@needs_native
def test_the_installed_package_has_its_native_library():
    assert fastres.available_backends()[:2] == ["auto", "cpu"]
    assert _library.diagnostics() is not None


@pytest.mark.parametrize("name", SCHEMAS)
def test_schemas_of_python_and_of_the_native_library_agree(name):
    loaded = getattr(torch.ops.fastres, name).default._schema
    assert str(loaded) == str(torch._C.parse_schema(f"fastres::{SCHEMAS[name]}"))


@needs_native
@pytest.mark.usefixtures("restore_backend")
def test_reference_replaces_the_kernels_and_gives_them_back():
    weight = torch.randn(16, 16, 3, 3)
    layouts = []
    for backend in ("cpu", "reference", "reference", "auto", "reference", "cpu"):
        fastres.set_backend(backend)
        assert fastres.get_backend() == backend
        assert _library.has_kernels("cpu") == (backend != "reference")
        plain = torch.equal(
            ops.pack_conv_weight(weight), reference.pack_conv_weight(weight, None, 1)
        )
        layouts.append("plain" if plain else "kernel's")
    assert layouts == ["kernel's", "plain", "plain", "kernel's", "plain", "kernel's"]


@pytest.mark.parametrize("name", ["gpu", "", "CPU"])
def test_an_unknown_backend_is_an_error_that_lists_the_choices(name):
    before = fastres.get_backend()
    with pytest.raises(ValueError, match=f"unknown backend '{name}'.*auto, .*reference"):
        fastres.set_backend(name)
    assert fastres.get_backend() == before


def test_a_backend_that_cannot_be_used_is_an_error_that_says_why():
    missing = {"cpu", "cudnn", "cuda", "triton"} - set(fastres.available_backends())
    assert bool(missing & {"cudnn", "cuda", "triton"}) == (not torch.cuda.is_available())
    for name in missing:
        with pytest.raises(ValueError, match=rf"'{name}' is not available \(.+\), expected .*auto"):
            fastres.set_backend(name)


def test_the_backend_can_be_set_from_outside():
    ran = run_python(CONVOLVE + "print(fastres.get_backend())", FASTRES_BACKEND="reference")
    assert ran.stdout.strip() == "reference", ran.stderr
    ran = run_python("import fastres", FASTRES_BACKEND="tpu")
    assert "ValueError: FASTRES_BACKEND: unknown backend 'tpu', expected one of auto" in ran.stderr


@pytest.mark.parametrize(
    ("loaded", "name", "kernels"),
    [
        (("cpu",), "auto", {"cpu": "cpu"}),
        (("cpu", "triton"), "auto", {"cpu": "cpu", "cuda": "triton"}),
        (("cpu", "cudnn", "cuda", "triton"), "auto", {"cpu": "cpu", "cuda": "cudnn"}),
        (("cpu", "cudnn", "cuda", "triton"), "cudnn", {"cpu": "cpu", "cuda": "cudnn"}),
        (("cpu", "cudnn", "cuda", "triton"), "cuda", {"cpu": "cpu", "cuda": "cuda"}),
        (("cpu", "cudnn", "cuda", "triton"), "triton", {"cpu": "cpu", "cuda": "triton"}),
        (("cpu", "cuda"), "reference", {"cpu": "reference", "cuda": "reference"}),
        ((), "auto", {}),
    ],
    ids=str,
)
def test_the_best_kernels_for_a_device_are_chosen(monkeypatch, loaded, name, kernels):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_library._state, "loaded", dict.fromkeys(loaded, ""))
    assert _library._kernels_of(name) == kernels


def test_triton_can_be_forced_from_outside_and_is_imported_when_it_runs():
    pytest.importorskip("triton")
    code = (
        "import sys, fastres; before = 'triton' in sys.modules" + CONVOLVE + "print(before, "
        "'triton' in sys.modules, fastres.get_backend(), fastres.available_backends())"
    )
    environment = {"FASTRES_BACKEND": "triton", "TRITON_INTERPRET": "1"}
    ran = run_python(code, **environment)
    assert ran.stdout.startswith("False True triton ['auto', "), ran.stderr
    assert "'triton'" in ran.stdout
    ran = run_python("import fastres; print(fastres.show_config())", **environment)
    assert "cpu: triton, cuda: triton" in ran.stdout, ran.stderr


def test_without_triton_its_backend_says_so():
    code = (
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'triton' else find(name, *a)\n" + CONVOLVE
    )
    ran = run_python(code + "print(fastres.show_config())")
    assert "triton is not installed" in ran.stdout, ran.stderr
    ran = run_python(code, FASTRES_BACKEND="triton")
    assert "backend 'triton' is not available (the package triton is not" in ran.stderr
    assert "expected one of auto, " in ran.stderr


@needs_native
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "amx"])
def test_an_instruction_set_can_be_forced_from_outside(isa):
    code = CONVOLVE + "print(_library.diagnostics().cpu_info()['selected_isa'])"
    ran = run_python(code, FASTRES_ISA=isa)
    if isa in _library.diagnostics().supported_isas():
        assert ran.stdout.strip() == isa, ran.stderr
    else:
        assert (
            f"ValueError: FASTRES_ISA is '{isa}': expected one that this machine runs" in ran.stderr
        )


@needs_native
def test_an_unknown_instruction_set_is_an_error_that_lists_the_choices():
    ran = run_python(CONVOLVE, FASTRES_ISA="sse9")
    assert ran.returncode != 0
    assert "ValueError: FASTRES_ISA is 'sse9': expected one that this machine runs" in ran.stderr
    ran = run_python("import fastres; print(fastres.show_config())", FASTRES_ISA="sse9")
    assert "FASTRES_ISA is 'sse9'" in ran.stdout, ran.stderr


@needs_native
def test_an_instruction_set_can_be_forced_in_a_running_process():
    diagnostics = _library.diagnostics()
    before = diagnostics.cpu_info()["selected_isa"]
    diagnostics.force_isa("portable")
    assert diagnostics.cpu_info()["selected_isa"] == "portable"
    assert diagnostics.fma_burn(10) > 0
    assert diagnostics.fma_peak_gflops(1) > 1
    assert diagnostics.copy_bandwidth_gbs(1) > 0.1
    with pytest.raises(ValueError, match="threads must be positive, got 0"):
        diagnostics.fma_peak_gflops(0)
    with pytest.raises(ValueError, match=r"'neon': expected one that this machine runs \(portable"):
        diagnostics.force_isa("neon")
    diagnostics.force_isa("auto")
    assert diagnostics.cpu_info()["selected_isa"] == before


def test_without_a_native_library_the_reference_runs_after_one_warning(tmp_path):
    copy = tmp_path / "fastres"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "*.json", "__pycache__"))
    ran = run_python(CONVOLVE + "print(fastres.available_backends())", package=copy)
    assert ran.stdout.strip() == "['auto', 'reference']", ran.stderr
    assert ran.stderr.count("Warning") == 1
    assert f"fastres runs without its native library: {copy}/libfastres.so does not" in ran.stderr


def test_a_library_that_does_not_load_is_named_and_the_reference_runs(tmp_path):
    copy = tmp_path / "fastres"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (copy / "libfastres.so").write_text("not a library")
    ran = run_python(CONVOLVE, package=copy)
    assert ran.returncode == 0, ran.stderr
    assert f"{copy}/libfastres.so does not load" in ran.stderr


def test_native_code_can_be_turned_off_without_a_warning():
    code = CONVOLVE + "print(fastres.available_backends(), _library.diagnostics())"
    ran = run_python(code, FASTRES_NATIVE="0")
    assert ran.stdout.strip() == "['auto', 'reference'] None", ran.stderr
    assert "Warning" not in ran.stderr


def test_show_config_has_what_a_bug_report_needs():
    text = fastres.show_config()
    rows = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert fastres.__version__ in rows["fastres"]
    assert torch.__version__ in rows["torch"]
    assert f"threads {torch.get_num_threads()}" in rows["torch"]
    for name in (
        *("python", "numpy", "torchvision", "processor", "backend"),
        *("cpu", "cudnn", "cuda", "triton"),
    ):
        assert rows[name]
    if not NATIVE_IS_OFF:
        assert "libfastres.so" in rows["cpu"]
        assert "portable" in text
