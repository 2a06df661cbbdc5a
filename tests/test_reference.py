"""The oracle itself: packed layouts, headers, float64, strides."""

from __future__ import annotations

import pytest
import torch

from fastres import reference
from fastres.schema import packed_weight
from fastres.schema.operators import SCHEMAS

LAYOUTS = (packed_weight.PLAIN, packed_weight.IGEMM, packed_weight.LANES)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("groups", "channels"), [(17, 1), (5, 2), (3, 4), (33, 4), (2, 8)])
def test_every_layout_unpacks(layout, groups, channels):
    weight, scale = torch.randn(groups * channels, channels, 3, 2), torch.randn(groups * channels)
    packed = reference.pack_conv_weight(weight, scale, groups, layout=layout)
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_weight.read_header(packed).total_bytes(),)


def test_apply_act_names_the_choices():
    with pytest.raises(ValueError, match="none, relu, relu6, silu, leaky_relu, got 'gelu'"):
        reference.apply_act(torch.zeros(1), "gelu")


@pytest.mark.parametrize("shape", [(2, 1, 3, 5), (0, 3, 2, 2), (1, 3, 1, 1), (2, 3, 1, 5)], ids=str)
def test_channels_last_strides_are_dense(shape):
    _, c, h, w = shape
    x = torch.randn(shape)
    for given in (x, x.contiguous(memory_format=torch.channels_last), x[:, :, :1].expand(shape)):
        out = reference.channels_last(given)
        assert torch.equal(out, given)
        assert out.stride() == (h * w * c, 1, w * c, c)


def test_schemas_are_those_that_are_registered():
    for name, schema in SCHEMAS.items():
        registered = str(getattr(torch.ops.fastres, name).default._schema)
        parsed = str(torch._C.parse_schema(f"fastres::{schema}"))
        assert registered == parsed
