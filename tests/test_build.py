"""setup.py: what it finds, what it says, and the pure-Python package that it falls back to."""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def setup_py(monkeypatch) -> ModuleType:
    """setup.py as a module, in an environment without any of the variables that it reads."""
    for name in ("FASTRES_NATIVE", "FASTRES_CUDA", "CUDA_HOME", "CUDA_PATH", "CXX", "MAX_JOBS"):
        monkeypatch.delenv(name, raising=False)
    spec = importlib.util.spec_from_file_location("fastres_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_toolkit(setup_py, monkeypatch, tmp_path) -> None:
    """A machine without CUDA."""
    monkeypatch.setattr(setup_py, "USUAL_CUDA_HOME", tmp_path / "nowhere")
    monkeypatch.setattr(setup_py, "nvcc_wheels", list)
    monkeypatch.setattr(setup_py.shutil, "which", lambda name: None if name == "nvcc" else name)


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def toolkit(tmp_path) -> Path:
    """A CUDA toolkit's folder, as far as setup.py looks into it."""
    home = tmp_path / "cuda-13.0"
    write_script(
        home / "bin" / "nvcc",
        f'case "$1" in --version) echo "Cuda compilation tools, release 13.0, V13.0.88";;'
        f' --dryrun) echo "#\\$ TOP={home}/bin/.." >&2;; esac',
    )
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    return home


def test_the_real_toolkit_behind_a_wrapper_is_found(setup_py, toolkit, tmp_path):
    wrapper = write_script(tmp_path / "bin" / "nvcc", f'exec {toolkit}/bin/nvcc "$@"')
    assert setup_py.CudaToolkit.of(wrapper) == setup_py.CudaToolkit(toolkit, "13.0")


def test_cuda_home_comes_before_the_path(setup_py, toolkit, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert setup_py.find_cuda() == (setup_py.CudaToolkit(toolkit, "13.0"), "")


def test_the_toolkit_in_pips_wheels_is_found(setup_py, toolkit, monkeypatch, tmp_path):
    folder = tmp_path / "site-packages" / "nvidia" / "cu13"
    folder.parent.mkdir(parents=True)
    toolkit.rename(folder)
    write_script(
        folder / "bin" / "nvcc",
        f'case "$1" in --version) echo "release 13.0, V13.0.88";;'
        f' --dryrun) echo "#\\$ TOP={folder}/bin/.." >&2;; esac',
    )
    (folder / "lib").mkdir()
    (folder / "lib" / "libcudart_static.a").touch()
    monkeypatch.setattr(setup_py, "USUAL_CUDA_HOME", tmp_path / "nowhere")
    monkeypatch.setattr(setup_py.shutil, "which", lambda name: None)
    monkeypatch.setattr(setup_py.sys, "path", [str(tmp_path / "site-packages")])
    found, problem = setup_py.find_cuda()
    assert found == setup_py.CudaToolkit(folder, "13.0"), problem
    assert found.library_folders() == [str(folder / "lib")]


def test_an_nvcc_without_headers_is_no_toolkit(setup_py, toolkit):
    (toolkit / "include" / "cuda_runtime.h").unlink()
    assert setup_py.CudaToolkit.of(toolkit / "bin" / "nvcc") is None


@pytest.mark.usefixtures("no_toolkit")
def test_cuda_that_is_asked_for_and_missing_is_an_error(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTRES_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", "/opt/no-such-cuda")
    with pytest.raises(SystemExit) as error:
        setup_py.Plan.make()
    message = str(error.value)
    assert "FASTRES_CUDA=1" in message
    for place in ("/opt/no-such-cuda/bin/nvcc", "on PATH", f"{tmp_path}/nowhere/bin/nvcc"):
        assert place in message


@pytest.mark.usefixtures("no_toolkit")
def test_cuda_that_is_missing_is_no_error_by_default(setup_py):
    plan = setup_py.Plan.make()
    assert plan.cuda is None
    assert "libfastres_cuda" in plan.skipped


@pytest.mark.parametrize("name", ["FASTRES_CUDA", "FASTRES_NATIVE"])
def test_an_unknown_choice_is_named_with_the_known_ones(setup_py, monkeypatch, name):
    monkeypatch.setenv(name, "yes")
    with pytest.raises(SystemExit, match=rf"{name}=yes: expected one of .*0"):
        setup_py.Plan.make()


def test_a_compiler_that_is_missing_or_broken_says_which(setup_py, monkeypatch, tmp_path):
    broken = write_script(tmp_path / "c++", "echo 'unrecognized option -std=c++20' >&2; exit 1")
    for command, reason in (("no-such-c++", "not found"), (str(broken), "unrecognized option")):
        monkeypatch.setenv("CXX", command)
        plan = setup_py.Plan.make()
        assert plan.extensions() == []
        assert command in plan.skipped["native libraries"]
        assert reason in plan.skipped["native libraries"]


def test_without_python_headers_the_operators_are_still_built(setup_py, monkeypatch):
    monkeypatch.setenv("FASTRES_CUDA", "0")
    monkeypatch.setattr(setup_py.sysconfig, "get_path", lambda name: "/no/headers")
    plan = setup_py.Plan.make()
    assert [ext.name for ext in plan.extensions()] == ["fastres.libfastres"]
    assert "python3-dev" in plan.skipped["_diagnostics"]


def test_the_description_says_what_was_found_and_chosen(setup_py, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", "3")
    monkeypatch.setenv("CXXFLAGS", "-fno-plt")
    text = setup_py.Plan.make().describe("9.9.9")
    for part in ("9.9.9", "-O3", "-fno-plt", "portable", "parallel jobs", "3", "libfastres"):
        assert part in text


def test_jobs_follow_cores_and_free_memory(setup_py, monkeypatch):
    monkeypatch.setattr(setup_py.os, "sched_getaffinity", lambda _: range(64))
    meminfo = "MemTotal: 999 kB\nMemAvailable:    5242880 kB\n"
    monkeypatch.setattr(setup_py.Path, "read_text", lambda _: meminfo)
    assert setup_py.default_jobs() == 5


def test_every_instruction_set_has_flags_and_no_source_is_lost(setup_py):
    assert {f"isa_{isa}" for isa in setup_py.ISAS} <= setup_py.FLAGS.keys()
    every = {str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.cpp")}
    groups = (
        setup_py.OP_SOURCES,
        setup_py.KERNEL_SOURCES,
        setup_py.DIAGNOSTICS_SOURCES,
        setup_py.CUDA_SOURCES,
    )
    names = [name for group in groups for name in group if name.endswith(".cpp")]
    assert sorted(every) == sorted(names)


def test_without_native_code_a_pure_package_is_built_that_works(tmp_path):
    build = [sys.executable, "setup.py", "build", f"--build-base={tmp_path}"]
    built = run(build, ROOT, FASTRES_NATIVE="0")
    assert "pure-Python package" in built.stdout, built.stderr
    package = tmp_path / "lib" / "fastres"
    assert not list(package.rglob("*.so"))
    note = json.loads((package / "_build_info.json").read_text())
    assert "FASTRES_NATIVE=0" in note["skipped"]["native libraries"]

    code = "import fastres; print(fastres.__file__); print(fastres.show_config())"
    ran = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(package.parent))
    assert str(package) in ran.stdout, ran.stderr
    assert "not available: built with FASTRES_NATIVE=0" in ran.stdout
    assert ran.stderr.count("UserWarning: fastres runs without its native library") == 1


def test_suffix_of_the_library_has_no_python_in_it(setup_py):
    from fastres import _library

    folder = Path(_library.__file__).parent
    names = {path.name for path in folder.glob("*.so")}
    assert "libfastres.so" in names
    assert f"_diagnostics{sysconfig.get_config_var('EXT_SUFFIX')}" in names
