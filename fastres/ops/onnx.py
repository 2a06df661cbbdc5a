"""ONNX has no form for the operators; says where standard ones come from."""

from __future__ import annotations

import sys


def refuse_onnx_export(op: str) -> None:
    """Called by fake kernels, which is where ``torch.onnx.export`` meets an operator first.

    Raises:
        NotImplementedError: a module is being exported to ONNX.
    """
    onnx = sys.modules.get("torch.onnx")  # not imported before somebody asks for an export
    if onnx is not None and onnx.is_in_onnx_export():
        raise NotImplementedError(
            f"{op}: ONNX has no form for fastres's operators; to torch.onnx.export give "
            "fastres.unpack(frozen), or the model that was frozen, accelerated or not"
        )
