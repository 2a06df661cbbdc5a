"""content_hash: sees every change, sees none where there is none."""

from __future__ import annotations

import pytest
import torch

from fastres import ops

pytestmark = pytest.mark.usefixtures("kernels")

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def one_hash(tensor: torch.Tensor) -> int:
    (result,) = ops.content_hash([tensor])
    assert isinstance(result, int)
    assert -(2**63) <= result < 2**63
    return result


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (64, 3, 7, 7), (1000, 129)], ids=str)
def test_equal_tensors_have_equal_hashes(dtype, shape):
    tensor = (torch.randn(shape) * 100).to(dtype)
    assert one_hash(tensor) == one_hash(tensor.clone())


@pytest.mark.parametrize("size", [1, 2, 3, 8, 31, 32, 33, 100, 4097])
def test_sees_every_bit(size):
    data = torch.randint(0, 256, (size,), dtype=torch.uint8)
    seen = {one_hash(data)}
    positions = range(size) if size <= 100 else (0, 1, 2047, 2048, size - 1)
    for position in positions:
        for bit in range(8):
            data[position] ^= 1 << bit
            seen.add(one_hash(data))
            data[position] ^= 1 << bit
    assert len(seen) == 1 + 8 * len(positions)


def test_sees_writes_through_data():
    parameter = torch.nn.Parameter(torch.randn(64, 64))
    before, version = one_hash(parameter), parameter._version
    parameter.data.mul_(1 + 1e-6)
    after = one_hash(parameter)
    assert parameter._version == version
    assert after != before
    parameter.data = parameter.data.clone()
    assert one_hash(parameter) == after
    parameter.data[63, 63] = -parameter.data[63, 63]
    assert one_hash(parameter) != after


def test_sees_the_order_of_elements():
    tensor = torch.randn(100_000)
    hashes = {one_hash(tensor), one_hash(tensor.flip(0)), one_hash(tensor.roll(1))}
    swapped = tensor.clone()
    swapped[0], swapped[-1] = tensor[-1], tensor[0]
    hashes.add(one_hash(swapped))
    swapped = torch.cat([tensor[50_000:], tensor[:50_000]])
    hashes.add(one_hash(swapped))
    assert len(hashes) == 5


def test_sees_shape_strides_and_dtype():
    tensor = torch.randn(8, 8)
    views = [tensor, tensor.view(64), tensor.view(4, 16), tensor.t(), tensor.view(torch.int32)]
    assert len({one_hash(view) for view in views}) == len(views)


def test_zeros_of_any_size_differ():
    assert len({one_hash(torch.zeros(size)) for size in range(200)}) == 200


def test_views_hash_what_they_show():
    base = torch.randn(10, 10)
    for index in ((slice(None), slice(0, None, 2)), (slice(2, 5),), (slice(None), 3)):
        view = base[index]
        before = one_hash(view)
        view.mul_(2)
        assert one_hash(view) != before
    expanded = torch.ones(3, 1).expand(3, 4)
    assert one_hash(expanded) == one_hash(torch.ones(3, 1).expand(3, 4))


def test_one_hash_for_each_tensor_in_order(set_threads):
    tensors = [torch.randn(size) for size in (5, 0, 70_001, 1, 1_000_003)]
    expected = [one_hash(tensor) for tensor in tensors]
    for threads in (1, 2, 3):
        set_threads(threads)
        assert ops.content_hash(tensors) == expected
        assert ops.content_hash(tensors[::-1]) == expected[::-1]


def test_nothing_to_hash():
    assert ops.content_hash([]) == []


def test_not_a_tensor():
    with pytest.raises(TypeError, match=r"tensors\[1\] must be a tensor, got int"):
        ops.content_hash([torch.ones(1), 3])
