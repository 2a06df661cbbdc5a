"""Which tile sizes are tried: never none, for any shape of convolution."""

from __future__ import annotations

from itertools import product

import pytest
import torch

WIDTHS = (1, 3, 16, 24, 64, 100, 256, 2048)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_convolution_has_tiles(dtype, monkeypatch):
    from fastres.triton import tuning

    monkeypatch.setattr(tuning.INTERPRETED, "value", False)
    x = torch.empty(0, dtype=dtype)
    for in_width, out_width, taps, diagonal in product(WIDTHS, WIDTHS, (1, 3, 7), (False, True)):
        if diagonal and (in_width, out_width) != (16, 16):
            continue
        problem = {
            "x": x, "IN_WIDTH": in_width, "OUT_WIDTH": out_width, "R": taps, "S": taps,
            "DIAGONAL": diagonal,
        }  # fmt: skip
        for configs, prune in (
            (tuning.FPROP_CONFIGS, tuning.keep_fitting_fprop),
            (tuning.DGRAD_CONFIGS, tuning.keep_fitting_dgrad),
            (tuning.WGRAD_CONFIGS, tuning.keep_fitting_wgrad),
        ):
            kept = prune(configs, problem)
            assert kept, problem
            assert len(kept) <= 8, "autotuning would take too long"
