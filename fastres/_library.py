"""Finds and loads the native libraries, chooses the backend, and tells what was found.

The native library brings the schemas (csrc/ops.cpp) and the kernels of the CPU. Without it the
schemas are defined from Python. A second library has the kernels in CUDA C++, the package triton/
those in Triton, and cudnn/ the operators of inference on cuDNN. The reference serves every device
that has no kernels of its own, so an operator always runs and is always right.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import threading
import warnings
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import composed, cudnn, reference, triton
from ._version import __version__
from .schema.operators import SCHEMAS
from .schema.packed_weight import KRSC, PLAIN, native_layout

_FOLDER = Path(__file__).resolve().parent

# Backend -> the device type that its kernels run on.
_DEVICE_OF = {"cpu": "cpu", "cudnn": "cuda", "cuda": "cuda", "triton": "cuda"}
_BACKENDS = ("auto", *_DEVICE_OF, "reference")


class _State:
    """What was loaded and chosen; one per process, like the dispatcher that it mirrors."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.backend = "auto"
        self.loaded: dict[str, str] = {}  # backend -> where its kernels are
        self.missing: dict[str, str] = {}  # backend -> why it cannot be used
        self.registrations: list[torch.library.Library] = []  # kept alive for the process
        self.kernels: dict[str, str] = {}  # device type -> backend whose kernels serve it
        self.override: torch.library.Library | None = None  # what puts those over the loaded ones


_state = _State()


def set_backend(name: str) -> None:
    """Chooses the kernels that the operators run on, for the whole process.

    Args:
        name: "auto" (the fastest kernels for the device of the tensors: on a GPU cuDNN's, for
            frozen models; the reference where there are none), "cpu" (as "auto", but those
            kernels have to be there), "cudnn" (as "auto", and accelerated models infer on cuDNN
            too), "cuda" or "triton" (on a GPU the kernels in CUDA C++ or in Triton, for training
            too; Triton's under ``TRITON_INTERPRET=1`` on the CPU as well), or "reference" (plain
            PyTorch on every device). FASTRES_BACKEND sets it from outside.

    Raises:
        ValueError: no such backend, or one that cannot be used here; lists those that can.
    """
    if name not in _BACKENDS:
        raise ValueError(f"set_backend: unknown backend {name!r}, expected one of {_choices()}")
    if name in _state.missing:
        raise ValueError(
            f"set_backend: backend {name!r} is not available ({_state.missing[name]}), "
            f"expected one of {_choices()}"
        )
    with _state.lock:
        kernels = _kernels_of(name)
        if kernels != _state.kernels or _state.override is None:
            if _state.override is not None:
                _state.override._destroy()
            _state.override = _put_over(kernels)
            _state.kernels = kernels
        _state.backend = name


def get_backend() -> str:
    """Returns the backend that was set: one of those that ``set_backend`` takes."""
    return _state.backend


def available_backends() -> list[str]:
    """Returns the names that ``set_backend`` accepts on this machine."""
    return [name for name in _BACKENDS if name not in _state.missing]


def has_kernels(device_type: str) -> bool:
    """Whether tensors on this type of device ("cpu", "cuda") run on kernels, not the reference."""
    return _state.kernels.get(device_type, "reference") != "reference"


def leaves_alone(device_type: str, training: bool) -> bool:
    """Whether ``accelerate`` is to leave models there as they are, for that is faster.

    On cuDNN that is training, and inference unless "cudnn" was asked for: to fold BatchNorms anew
    at every call takes the time that fewer kernels save.
    """
    on_cudnn = _state.kernels.get(device_type) == "cudnn"
    return on_cudnn and (training or _state.backend != "cudnn")


def packed_layout(
    device_type: str, shape: tuple[int, int, int, int], groups: int, algorithm: str
) -> int:
    """The layout in which ``pack_conv_weight`` packs a weight [K, C/groups, R, S]."""
    backend = _state.kernels.get(device_type, "reference")
    if backend == "reference":
        return PLAIN
    if backend in ("cuda", "cudnn"):
        return KRSC
    return native_layout(shape, groups, "direct" if backend == "triton" else algorithm)


def show_config() -> str:
    """Returns versions, processor, libraries and backends: what one pastes into a bug report."""
    rows = {**_version_rows(), **_processor_rows(), **_backend_rows()}
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}".rstrip() for name, value in rows.items())


def diagnostics() -> ModuleType | None:
    """Returns the pybind11 module ``fastres._diagnostics``, None where there is none.

    It links the native library: loaded without it, it would define the operators a second time.
    """
    if "cpu" not in _state.loaded:
        return None
    try:
        return importlib.import_module("fastres._diagnostics")
    except ImportError:
        return None


# ---- loading -------------------------------------------------------------------------------------


def _load() -> None:
    """Loads what is there and registers the reference for the rest; called once, at import."""
    problem = _load_library("cpu", "libfastres.so")
    if problem:
        _define_from_python()
        if not _native_is_off():
            warnings.warn(
                f"fastres runs without its native library: {problem}. Results are right but slow, "
                "every operator is its plain-PyTorch reference. See `fastres env`.",
                stacklevel=3,
            )
    if torch.version.cuda is None:
        _state.missing["cuda"] = "this torch is a CPU build"
    elif not torch.cuda.is_available():
        _state.missing["cuda"] = "torch sees no GPU"
    else:
        _load_library("cuda", "libfastres_cuda.so")
    _find_cudnn()
    _find_triton()
    _register_reference()
    try:
        set_backend(os.environ.get("FASTRES_BACKEND") or "auto")
    except ValueError as error:
        reason = str(error).removeprefix("set_backend: ")
        raise ValueError(f"FASTRES_BACKEND: {reason}") from None


def _native_is_off() -> bool:
    return os.environ.get("FASTRES_NATIVE") == "0"


def _load_library(backend: str, file_name: str) -> str:
    """Loads a library; returns, and notes, why it could not be."""
    path = _FOLDER / file_name
    problem = ""
    if _native_is_off():
        problem = "FASTRES_NATIVE=0 is set"
    elif not path.is_file():
        problem = _why_not_built(path)
    else:
        try:
            torch.ops.load_library(path)
        except OSError as error:
            problem = f"{path} does not load: {error}"
    if problem:
        _state.missing[backend] = problem
    else:
        _state.loaded[backend] = str(path)
    return problem


def _find_cudnn() -> None:
    if torch.version.cuda is None:
        _state.missing["cudnn"] = "this torch is a CPU build"
    elif not torch.cuda.is_available():
        _state.missing["cudnn"] = "torch sees no GPU"
    elif not torch.backends.cudnn.is_available():
        _state.missing["cudnn"] = "this torch has no cuDNN"
    else:
        try:
            version = torch.backends.cudnn.version()
        except RuntimeError as error:  # another cuDNN than torch was built with
            _state.missing["cudnn"] = str(error)
            return
        _state.loaded["cudnn"] = f"{_FOLDER / 'cudnn'}, cuDNN {version}"


def _find_triton() -> None:
    """Notes whether Triton can be used, without importing it."""
    for notes in (_state.loaded, _state.missing):
        notes.pop("triton", None)
    spec = importlib.util.find_spec("triton")
    if spec is None:
        _state.missing["triton"] = "the package triton is not installed"
    elif _is_interpreted():
        _state.loaded["triton"] = f"{_FOLDER / 'triton'}, interpreted (TRITON_INTERPRET is set)"
    elif not torch.cuda.is_available():
        _state.missing["triton"] = "torch sees no GPU, and TRITON_INTERPRET=1 is not set"
    else:
        _state.loaded["triton"] = str(_FOLDER / "triton")


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def _why_not_built(path: Path) -> str:
    skipped = _skipped_by_build()
    for name in (path.stem, "native libraries"):
        if name in skipped:
            return skipped[name]
    if (_FOLDER.parent / "csrc").is_dir():
        return (
            f"{_FOLDER} is a source folder that was not built in place; to use an installed "
            "fastres, run Python from another folder"
        )
    return f"{path} does not exist"


def _skipped_by_build() -> Mapping[str, str]:
    """What the build left out and why, as setup.py noted it."""
    note = _FOLDER / "_build_info.json"
    if not note.is_file():
        return {}
    skipped: dict[str, str] = json.loads(note.read_text())["skipped"]
    return skipped


def _define_from_python() -> None:
    library = torch.library.Library("fastres", "DEF")
    for schema in SCHEMAS.values():
        library.define(schema)
    _state.registrations.append(library)


def _register_reference() -> None:
    # CompositeExplicitAutograd: for every device without a kernel of its own, and below autograd.
    library = torch.library.Library("fastres", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that csrc/composed.cpp is overridden
        for name in SCHEMAS:
            kernel = composed.OPERATORS.get(name) or getattr(reference, name)
            library.impl(name, kernel, "CompositeExplicitAutograd", allow_override=True)
    _state.registrations.append(library)


def _kernels_of(name: str) -> dict[str, str]:
    """Device type -> the backend whose kernels serve it, when ``name`` is set."""
    there = {_DEVICE_OF[backend] for backend in _state.loaded}
    if name == "reference":
        return dict.fromkeys(there, name)
    kernels: dict[str, str] = {}
    for backend in ("triton", "cuda", "cudnn", "cpu"):  # the best last
        if backend in _state.loaded:
            kernels[_DEVICE_OF[backend]] = backend
    if name in ("cuda", "triton"):
        kernels["cuda"] = name
    if name == "triton" and _is_interpreted():
        kernels["cpu"] = name
    return kernels


def _put_over(kernels: Mapping[str, str]) -> torch.library.Library:
    """Registers these kernels until the returned library is destroyed; the native ones are."""
    library = torch.library.Library("fastres", "IMPL")
    with warnings.catch_warnings():
        # The dispatcher remarks on an overridden kernel, which is what was asked for.
        warnings.simplefilter("ignore", UserWarning)
        for device, backend in kernels.items():
            for name in SCHEMAS:
                kernel = _python_kernel(backend, name)
                if kernel is not None:
                    library.impl(name, kernel, device.upper(), allow_override=True)
    return library


def _python_kernel(backend: str, name: str) -> Callable[..., Any] | None:
    """A backend's operator, None where it has none or the native libraries have it."""
    if backend == "reference":
        kernel: Callable[..., Any] = getattr(reference, name)
        return kernel
    if backend == "cudnn" and name in cudnn.OPERATORS:
        return cudnn.OPERATORS[name]
    # What cuDNN has not is the next best's: of the native library, if that is there.
    next_best = backend == "cudnn" and "triton" in _state.loaded and "cuda" not in _state.loaded
    if (backend == "triton" or next_best) and name in triton.OPERATORS:
        return triton.operator(name)
    return composed.OPERATORS.get(name) if backend in ("cudnn", "triton") else None


def _choices() -> str:
    return ", ".join(available_backends())


# ---- show_config ---------------------------------------------------------------------------------


def _version_rows() -> dict[str, str]:
    rows = {
        "fastres": f"{__version__}, {_FOLDER}",
        "python": f"{platform.python_version()}, {platform.platform()}",
        "torch": f"{torch.__version__}, threads {torch.get_num_threads()}, "
        f"CUDA build {torch.version.cuda or 'no'}",
    }
    for package in ("numpy", "triton", "torchvision", "timm"):
        try:
            rows[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            rows[package] = "not installed"
    return rows


def _processor_rows() -> dict[str, str]:
    rows = {"processor": f"{_processor_name()}; {_caches()}"}
    module = diagnostics()
    if module is None:
        reason = "not built" if "cpu" in _state.loaded else "not without the native library"
        rows["diagnostics"] = _skipped_by_build().get("_diagnostics", reason)
        return rows
    build = module.build_info()
    rows["built with"] = f"{build['compiler']}, torch {build['torch']}"
    rows["build flags"] = build["flags"]
    rows["instruction sets"] = f"built {build['isas']}; {_selected_isa(module)}"
    return rows


def _selected_isa(module: ModuleType) -> str:
    forced = os.environ.get("FASTRES_ISA")
    try:
        info = module.cpu_info()
    except ValueError as error:
        return str(error)
    why = f"forced by FASTRES_ISA={forced}" if forced else "the best of this processor"
    return f"uses {info['selected_isa']} ({why}); {info['cores']} cores"


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _caches() -> str:
    """Sizes of one core's data caches, as Linux tells them."""
    sizes = []
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (cache / "type").read_text().strip() != "Instruction":
            level, size = ((cache / name).read_text().strip() for name in ("level", "size"))
            sizes.append(f"L{level} {size}")
    return ", ".join(sizes) or "cache sizes unknown"


def _backend_rows() -> dict[str, str]:
    rows = {"backend": f"{get_backend()} (available: {_choices()})"}
    for backend in _DEVICE_OF:
        where = _state.loaded.get(backend)
        rows[f"  {backend}"] = where or f"not available: {_state.missing[backend]}"
    rows["  reference"] = "plain PyTorch, always there"
    served = [f"{device}: {backend}" for device, backend in sorted(_state.kernels.items())]
    rows["kernels"] = ", ".join(served) or "none: everything runs on the reference"
    names = ("FASTRES_BACKEND", "FASTRES_ISA", "FASTRES_NATIVE", "TRITON_INTERPRET")
    found = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    rows["environment"] = ", ".join(found) or "no FASTRES_ variable is set"
    return rows


_load()
