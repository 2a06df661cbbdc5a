"""What `python -m benchmarks.peers` compares: one builder for each way to run a network.

A builder gets a module in eval mode, an example batch (float32, contiguous) and the number of
threads, and returns a call that gives the logits of that batch. It imports what it needs itself: an
ImportError is how a missing peer says so.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import fastres

Call = Callable[[], Tensor]
Builder = Callable[[nn.Module, Tensor, int], Call]


def _eager(model: nn.Module, x: Tensor, threads: int) -> Call:
    return lambda: model(x)


def _eager_channels_last(model: nn.Module, x: Tensor, threads: int) -> Call:
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    return lambda: model(x)


def _compile_with_freezing(model: nn.Module, x: Tensor, threads: int) -> Call:
    import torch._inductor.config as inductor

    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(model))
    with inductor.patch(freezing=True):
        compiled(x)  # compiles now, while the setting holds
    return lambda: compiled(x)


def _onnx_runtime(model: nn.Module, x: Tensor, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(
            _export_onnx(model, x, Path(folder)), options, providers=["CPUExecutionProvider"]
        )
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _export_onnx(model: nn.Module, x: Tensor, folder: Path) -> str:
    import onnxscript  # noqa: F401  # the exporter needs it and says so less clearly

    path = str(folder / "model.onnx")
    # Outside of inference mode, whose tensors the exporter cannot trace.
    with torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(model, (x.clone(),), path, dynamo=True, verbose=False)
    return path


def _openvino(model: nn.Module, x: Tensor, threads: int) -> Call:
    import openvino

    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # OpenVINO traces, which PyTorch deprecates
        converted = openvino.convert_model(
            copy.deepcopy(model), example_input=x.clone(), input=list(x.shape)
        )
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    request, feed = compiled.create_infer_request(), x.numpy()
    return lambda: torch.from_numpy(request.infer([feed], share_inputs=True)[0])


def _fastres_accelerate(model: nn.Module, x: Tensor, threads: int) -> Call:
    accelerated = fastres.accelerate(copy.deepcopy(model))
    return lambda: accelerated(x)


def _fastres_freeze(model: nn.Module, x: Tensor, threads: int) -> Call:
    with torch.inference_mode(False):
        frozen = fastres.freeze(copy.deepcopy(model), x.clone())
    return lambda: frozen(x)


EAGER = "eager"
EAGER_CHANNELS_LAST = "eager channels_last"
FASTRES = "fastres"
FREEZE = "fastres.freeze"

BUILDERS: dict[str, Builder] = {
    EAGER: _eager,
    EAGER_CHANNELS_LAST: _eager_channels_last,
    "torch.compile": _compile_with_freezing,
    "ONNX Runtime": _onnx_runtime,
    "OpenVINO": _openvino,
    FASTRES: _fastres_accelerate,
    FREEZE: _fastres_freeze,
}
