"""Builds the native libraries; pyproject.toml holds everything else.

fastres/libfastres.so        the CPU operators: LibTorch's stable ABI, no Python in it
fastres/libfastres_cuda.so   the CUDA operators: apart, so that the first loads under a CPU torch
fastres/_diagnostics.*.so    pybind11: what was built, and what processor this is

Environment:
    FASTRES_NATIVE=0       builds the pure-Python package
    FASTRES_CUDA=auto|0|1  builds csrc/cuda if there is a toolkit (auto), never, or fails without
    TORCH_CUDA_ARCH_LIST   the GPU architectures to compile for, as in any PyTorch extension;
                           8.0 at least (default: 8.0;9.0+PTX)
    MAX_JOBS               parallel compile jobs (default: from cores and free memory)
    CXX, CXXFLAGS, LDFLAGS the compiler and further flags
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
LINUX = sys.platform == "linux"
X86_64 = platform.machine().lower() in ("x86_64", "amd64")
ISAS = ("portable", "avx2", "avx512") if X86_64 else ("portable",)
# Those and what needs no build of its own: AMX's few instructions are assembly beside AVX-512's.
BUILT_ISAS = (*ISAS, "amx") if X86_64 else ISAS
GIB = 1 << 30
USUAL_CUDA_HOME = Path("/usr/local/cuda")


def sources(pattern: str) -> list[str]:
    """Returns the files under csrc/ that match, relative to the root as setuptools wants them."""
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob(pattern))


def read_flags() -> dict[str, list[str]]:
    """Reads csrc/flags.txt, which CMakeLists.txt reads too."""
    lines = (ROOT / "csrc" / "flags.txt").read_text().splitlines()
    named = (line.split(":", 1) for line in lines if line and not line.startswith("#"))
    return {name: shlex.split(flags) for name, flags in named}


FLAGS = read_flags()
KERNEL_SOURCES = sources("cpu/microkernels/*.cpp")
OP_SOURCES = sorted(
    set(sources("*.cpp") + sources("cpu/**/*.cpp")) - {"csrc/python.cpp", *KERNEL_SOURCES}
)
DIAGNOSTICS_SOURCES = ["csrc/python.cpp"]
CUDA_SOURCES = sources("cuda/**/*.cu") + sources("cuda/*.cpp")
# Ampere and Hopper, and the latter's PTX for what comes after: asking the machine's GPUs, as torch
# does, would fail where there is none and forget the others where there are some.
CUDA_ARCHS = "8.0;9.0+PTX"


def choice(variable: str, choices: tuple[str, ...]) -> str:
    """Returns the environment variable's value, the first choice where it is unset."""
    value = os.environ.get(variable, "") or choices[0]
    if value not in choices:
        sys.exit(f"fastres: {variable}={value}: expected one of {', '.join(choices)}.")
    return value


def cuda_choice() -> str:
    """What FASTRES_CUDA says."""
    return choice("FASTRES_CUDA", ("auto", "0", "1"))


# ------------------------------------------------------------------ what the machine has


def find_compiler() -> tuple[str, str]:
    """Returns (compiler, "") or ("", why there is none), having compiled a small C++20 program."""
    tried = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    problems = []
    for compiler in tried:
        command = shlex.split(compiler)
        if shutil.which(command[0]) is None:
            problems.append(f"{compiler}: not found")
            continue
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.cpp"
            source.write_text("#include <concepts>\n#include <vector>\nstd::vector<int> probe;\n")
            target = str(Path(folder) / "probe.so")
            command += ["-std=c++20", "-fPIC", "-shared", str(source), "-o", target]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return compiler, ""
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[0]
        problems.append(f"{compiler}: cannot build a C++20 library: {reason}")
    return "", "no C++ compiler (" + "; ".join(problems) + ")"


def output_of(*command: str | Path) -> tuple[str, str]:
    """Returns (stdout, stderr) of a command that may not exist."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "", ""
    return done.stdout, done.stderr


@dataclass(frozen=True)
class CudaToolkit:
    """A toolkit's own folder, which need not be the one whose bin/ holds the nvcc on PATH."""

    home: Path
    release: str

    @classmethod
    def of(cls, nvcc: Path) -> CudaToolkit | None:
        """Asks nvcc where its toolkit is, because `nvcc` may be a wrapper or a link."""
        version, _ = output_of(nvcc, "--version")
        _, dryrun = output_of(nvcc, "--dryrun", "probe.cu")
        top = re.search(r"^#\$ TOP=(.+)$", dryrun, re.MULTILINE)
        home = Path(top.group(1).strip()).resolve() if top else nvcc.resolve().parent.parent
        release = re.search(r"release ([0-9.]+)", version)
        if release is None or not (home / "include" / "cuda_runtime.h").is_file():
            return None
        return cls(home, release.group(1))

    def library_folders(self) -> list[str]:
        """Where libcudart_static.a is."""
        folders = [self.home / "lib64", self.home / "lib", *self.home.glob("targets/*-linux/lib")]
        return [str(folder) for folder in folders if (folder / "libcudart_static.a").is_file()]


def nvcc_wheels() -> list[Path]:
    """Compilers from pip's nvidia-cuda-nvcc, of an isolated build and of the environment itself."""
    folders = dict.fromkeys(map(Path, [*sys.path, sysconfig.get_path("purelib")]))
    return [nvcc for folder in folders for nvcc in sorted(folder.glob("nvidia/cu*/bin/nvcc"))]


def find_cuda() -> tuple[CudaToolkit | None, str]:
    """Returns (toolkit, "") or (None, what was looked for)."""
    variables = [name for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    looked = [(f"${name}", Path(os.environ[name]) / "bin" / "nvcc") for name in variables]
    on_path = shutil.which("nvcc")
    looked.append(("on PATH", Path(on_path or "nvcc")))
    looked.append(("the usual place", USUAL_CUDA_HOME / "bin" / "nvcc"))
    looked += [("pip's nvidia-cuda-nvcc", nvcc) for nvcc in nvcc_wheels()]
    for _, nvcc in looked:
        toolkit = CudaToolkit.of(nvcc) if nvcc.is_file() else None
        if toolkit is not None:
            return toolkit, ""
    places = ", ".join(f"{nvcc} ({where})" for where, nvcc in looked)
    return None, f"no CUDA toolkit: looked for {places}, each with its include/cuda_runtime.h"


def default_jobs() -> int:
    """One job per usable core and per GiB of free memory: what the largest source file takes."""
    cores = len(os.sched_getaffinity(0)) if LINUX else os.cpu_count() or 1
    try:
        free = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    except OSError:
        free = None
    return max(1, min(cores, int(free.group(1)) * 1024 // GIB)) if free else cores


# ------------------------------------------------------------------ what is built from it


@dataclass
class Plan:
    """What is built, and why the rest is not: `fastres env` prints `skipped`."""

    compiler: str = ""
    cuda: CudaToolkit | None = None
    diagnostics: bool = False
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def make(cls) -> Plan:
        """Looks at the environment and the machine."""
        native = choice("FASTRES_NATIVE", ("1", "0")) == "1"
        compiler, no_compiler = find_compiler() if native else ("", "built with FASTRES_NATIVE=0")
        plan = cls(compiler)
        if not compiler:
            plan.skip_cuda(no_compiler)
            plan.skipped = {"native libraries": no_compiler}
            return plan

        if cuda_choice() == "0":
            plan.skip_cuda("built with FASTRES_CUDA=0")
        else:
            plan.cuda, no_cuda = find_cuda()
            if plan.cuda is None:
                plan.skip_cuda(no_cuda)
        python_h = Path(sysconfig.get_path("include")) / "Python.h"
        plan.diagnostics = python_h.is_file()
        if not plan.diagnostics:
            plan.skipped["_diagnostics"] = f"{python_h} is missing (Debian: python3-dev)"
        return plan

    def skip_cuda(self, reason: str) -> None:
        """Leaves CUDA out, unless it was asked for."""
        if cuda_choice() == "1":
            sys.exit(f"fastres: FASTRES_CUDA=1 cannot be met: {reason}.")
        self.cuda = None
        self.skipped["libfastres_cuda"] = reason

    def extensions(self) -> list[Extension]:
        """The libraries to build; BuildNative adds the flags."""
        wanted = {
            "fastres.libfastres": OP_SOURCES if self.compiler else [],
            "fastres._diagnostics": DIAGNOSTICS_SOURCES if self.diagnostics else [],
            "fastres.libfastres_cuda": CUDA_SOURCES if self.cuda else [],
        }
        return [Extension(name, files, language="c++") for name, files in wanted.items() if files]

    def describe(self, torch_version: str = "") -> str:
        """The block that the build prints: what was found and chosen."""
        rows = {"python": f"{platform.python_version()}, {sys.executable}"}
        if self.compiler:
            version, _ = output_of(*shlex.split(self.compiler), "--version")
            rows["torch"] = f"{torch_version}, for the stable ABI of 2.11 and later"
            rows["compiler"] = f"{self.compiler}: {version.splitlines()[0]}"
            rows["flags"] = shlex.join(FLAGS["common"] + environment_flags("CXXFLAGS"))
            rows["kernels for"] = ", ".join(BUILT_ISAS)
            rows["parallel jobs"] = os.environ["MAX_JOBS"]
        names = [extension.name for extension in self.extensions()]
        if self.cuda:
            rows["cuda toolkit"] = f"{self.cuda.release}, {self.cuda.home}"
        if "fastres.libfastres_cuda" in names:
            rows["cuda archs"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHS
        rows["builds"] = ", ".join(names) or "the pure-Python package"
        rows |= {f"no {what}": why for what, why in self.skipped.items()}
        width = max(map(len, rows))
        return "\n".join(["fastres build", *(f"  {k:<{width}}  {v}" for k, v in rows.items())])


def environment_flags(variable: str) -> list[str]:
    """Flags that the user asks for."""
    return shlex.split(os.environ.get(variable, ""))


# ------------------------------------------------------------------ setuptools commands


class BuildPython(build_py):
    """Also leaves a note in the package of what was skipped and why."""

    plan = Plan()

    def run(self) -> None:
        """Builds into a clean folder and writes the note."""
        folder = ROOT / "fastres" if self.editable_mode else Path(self.build_lib) / "fastres"
        if not self.editable_mode:  # or a module deleted since the last build would be installed
            shutil.rmtree(folder, ignore_errors=True)
        super().run()
        if not self.plan.compiler:
            print(self.plan.describe(), flush=True)
        note = folder / "_build_info.json"
        note.write_text(json.dumps({"skipped": self.plan.skipped}, indent=2) + "\n")


def build_native_command(plan: Plan) -> type:
    """Makes the build_ext command. Torch is needed from here on, and not before."""
    os.environ["CXX"] = plan.compiler  # torch's ninja build reads these
    os.environ.setdefault("MAX_JOBS", str(default_jobs()))
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")  # ninja of this environment
    if plan.cuda:
        os.environ["CUDA_HOME"] = str(plan.cuda.home)
        os.environ["TORCH_CUDA_ARCH_LIST"] = os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA_ARCHS
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        sys.exit(
            f"fastres: the native libraries are built against torch, which is missing ({error}). "
            "Install it, or leave out --no-build-isolation, or set FASTRES_NATIVE=0."
        )

    if plan.cuda and torch.version.cuda is None:
        plan.skip_cuda(f"torch {torch.__version__}, which is built against, is a CPU build")

    class BuildNative(cpp_extension.BuildExtension):
        """torch's ninja build, with the microkernels compiled once per instruction set."""

        def finalize_options(self) -> None:
            super().finalize_options()
            if self.editable_mode:  # setuptools would throw the objects away with a folder of /tmp
                platform_tag = f"{self.plat_name}-{sys.implementation.cache_tag}"
                build = Path(self.get_finalized_command("build").build_base)
                self.build_temp = str(build / f"temp.{platform_tag}")

        def run(self) -> None:
            print(plan.describe(torch.__version__), flush=True)
            super().run()

        def build_extensions(self) -> None:
            # The interpreter's own flags (-g, -fwrapv, perhaps an -march) are for its own modules.
            compiler = shlex.split(plan.compiler)
            compile_command = [*compiler, *environment_flags("CXXFLAGS")]
            self.compiler.set_executables(
                compiler_so=compile_command, compiler_so_cxx=compile_command
            )
            if LINUX:
                link = [*compiler, "-shared", *environment_flags("LDFLAGS")]
                self.compiler.set_executables(linker_so=link, linker_so_cxx=link)
            super().build_extensions()

        def build_extension(self, ext: Extension) -> None:
            prepare = {
                "fastres.libfastres": self.prepare_cpu,
                "fastres._diagnostics": self.prepare_diagnostics,
                "fastres.libfastres_cuda": self.prepare_cuda,
            }
            prepare[ext.name](ext)
            super().build_extension(ext)

        def prepare_cpu(self, ext: Extension) -> None:
            ext.extra_compile_args += FLAGS["common"] + self.torch_flags()
            # Linked after the baseline objects and narrowest first: where several define the same
            # inline function the linker keeps the first one, which runs on every machine.
            for isa in ISAS:
                ext.extra_objects += self.compiled_kernels(isa)
            ext.library_dirs += cpp_extension.library_paths()
            ext.libraries += ["torch_cpu"]
            if LINUX:  # z,defs: else a symbol that torch lacks would be found by a user's import
                ext.extra_link_args += ["-Wl,-soname,libfastres.so", "-Wl,-z,defs"]

        def prepare_diagnostics(self, ext: Extension) -> None:
            import pybind11

            flags = shlex.join(FLAGS["common"] + environment_flags("CXXFLAGS"))
            ext.extra_compile_args += FLAGS["common"] + ["-isystem", pybind11.get_include()]
            ext.define_macros += [
                ("FASTRES_BUILD_FLAGS", f'"{flags}"'),
                ("FASTRES_BUILD_TORCH", f'"{torch.__version__}"'),
                ("FASTRES_BUILD_ISAS", f'"{", ".join(BUILT_ISAS)}"'),
            ]
            ext.library_dirs += [str(Path(self.get_ext_fullpath("fastres.libfastres")).parent)]
            ext.libraries += ["fastres"]
            if LINUX:  # beside it, wherever the package is installed
                ext.extra_link_args += ["-Wl,-rpath,$ORIGIN"]

        def prepare_cuda(self, ext: Extension) -> None:
            # The static runtime, and of torch's CUDA libraries no more than the stable ABI's: one
            # build then serves torch builds for other CUDA versions.
            # Kernels know no torch; what calls them is compiled without nvcc.
            nvcc = ["-O3", "-std=c++20", "-Xcompiler", "-fvisibility=hidden"]
            if "-Werror" in environment_flags("CXXFLAGS"):  # as CI builds: no kernel may spill
                nvcc += ["-Xptxas", "-warn-spills,-warn-lmem-usage,-Werror"]
            cxx = [*FLAGS["common"], "-DUSE_CUDA", *self.torch_flags()]
            ext.extra_compile_args = {"cxx": cxx, "nvcc": nvcc}
            ext.include_dirs += [str(plan.cuda.home / "include")]
            ext.library_dirs += [*cpp_extension.library_paths(), *plan.cuda.library_folders()]
            ext.libraries += ["torch_cuda", "torch_cpu", "cudart_static", "rt", "dl", "pthread"]

        def torch_flags(self) -> list[str]:
            includes = cpp_extension.include_paths()
            return FLAGS["stable_abi"] + [f for path in includes for f in ("-isystem", path)]

        def compiled_kernels(self, isa: str) -> list[str]:
            objects: list[str] = self.compiler.compile(
                KERNEL_SOURCES,
                output_dir=str(Path(self.build_temp) / isa),
                extra_postargs=FLAGS["common"] + FLAGS[f"isa_{isa}"],
            )
            return objects

        def get_ext_filename(self, fullname: str) -> str:
            # The op libraries have no Python in them, so no Python version in their names.
            if fullname.rpartition(".")[2].startswith("libfastres"):
                return fullname.replace(".", os.sep) + ".so"
            return str(super().get_ext_filename(fullname))

    return BuildNative


def main() -> None:
    """Leaves the machine alone when only metadata or a source archive is wanted."""
    if {"egg_info", "dist_info", "sdist"} & set(sys.argv):
        setup()
        return
    BuildPython.plan = plan = Plan.make()
    commands: dict[str, type] = {"build_py": BuildPython}
    if plan.compiler:
        commands["build_ext"] = build_native_command(plan)
    setup(ext_modules=plan.extensions(), cmdclass=commands)


if __name__ == "__main__":
    main()
