"""What the kernels share: program order, dtypes, loads with the prologue, weights, tl.dot."""

from __future__ import annotations

import triton
import triton.language as tl

from .activation import activate

#: Whether kernels run in NumPy, on CPU tensors. Read when this module is first imported, like
#: triton.jit does.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def tile_of_program(tiles_m, columns, BAND: tl.constexpr):
    """(row, column) of this program's tile, in bands of rows: neighbours share the L2 cache."""
    program = tl.program_id(0)
    band = program // (BAND * columns)
    rows = tl.minimum(tiles_m - band * BAND, BAND)
    within = program - band * BAND * columns
    return band * BAND + within % rows, within // rows


@triton.jit
def widen(value):
    """float32 of any float dtype."""
    return value.to(tl.float32)


@triton.jit
def narrow(value, DTYPE: tl.constexpr):
    """float32 rounded to nearest even in a dtype."""
    if INTERPRETED and tl.bfloat16 == DTYPE:  # Triton's interpreter truncates
        bits = value.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet = tl.where(value != value, 0x7FC0, rounded)
        value = quiet.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    return value.to(DTYPE)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """``acc + a @ b`` in float32; PRECISION ("ieee" or "tf32") matters to float32 operands."""
    if INTERPRETED:  # Triton's interpreter multiplies bfloat16 as if it were integers
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit
def taps_and_channels(k0, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Splits reduction indices k0 ... k0 + BLOCK - 1 into taps and channels.

    Returns the taps along columns and along rows, and the channels. Where blocks divide a tap's
    channels, all have one tap, which then is a scalar.
    """
    if WIDTH % BLOCK == 0:
        by_column = k0 // WIDTH
        by_row = by_column
        channels = tl.multiple_of(k0 % WIDTH, BLOCK) + tl.arange(0, BLOCK)
    else:
        index = k0 + tl.arange(0, BLOCK)
        by_column = (index // WIDTH)[None, :]
        by_row = (index // WIDTH)[:, None]
        channels = index % WIDTH
    return by_column, by_row, channels


@triton.jit
def load_channels(vector, channels, valid):
    """One value per channel of an optional vector, 0 beyond the last."""
    return tl.load(vector + channels, mask=valid, other=0)


@triton.jit
def affine(value, mean, scale, bias, channels, valid):
    """``(value - mean) * scale + bias`` of a tile [pixels, channels], or ``value`` without mean."""
    if mean is not None:
        centred = value - load_channels(mean, channels, valid)[None, :]
        value = centred * load_channels(scale, channels, valid)[None, :]
        value += load_channels(bias, channels, valid)[None, :]
    return value


@triton.jit
def load_activated(
    pointers, inside, mean, scale, bias, channels, valid, slope, ACT: tl.constexpr
):  # fmt: skip
    """The prologue: a tile of x with affine and activation where it is ``inside``, 0 elsewhere."""
    tile = tl.load(pointers, mask=inside, other=0)
    if mean is not None or ACT != "none":
        value = affine(widen(tile), mean, scale, bias, channels, valid)
        value = tl.where(inside, activate(value, slope, ACT), 0.0)
        tile = narrow(value, tile.dtype)
    return tile


@triton.jit
def load_weight(
    weight, tile, tap, c, n, valid,
    TAPS: tl.constexpr, GROUP_IN: tl.constexpr, OUT_WIDTH: tl.constexpr, DIAGONAL: tl.constexpr,
):  # fmt: skip
    """Operand B [reduction, output channels] of a channel tile, see operands.py.

    ``tap`` [reduction, 1] or scalar, ``c`` [reduction], ``n`` [output channels] within the tile.
    """
    blocks: tl.constexpr = (OUT_WIDTH + 15) // 16
    row = ((tile * blocks + n // 16)[None, :] * TAPS + tap) * GROUP_IN + (c % GROUP_IN)[:, None]
    inside = valid[:, None] & (n < blocks * 16)[None, :]
    if DIAGONAL:
        inside &= (c // GROUP_IN)[:, None] == (n // GROUP_IN)[None, :]
    return tl.load(weight + row * 16 + (n % 16)[None, :], mask=inside, other=0)


@triton.jit
def any_not_finite(value):
    """Whether a tile holds an infinity or NaN."""
    return tl.max(tl.max(tl.where(tl.abs(value) < float("inf"), 0, 1), axis=1), axis=0) > 0


@triton.jit
def sum_rows(value):
    """Sums a tile's columns."""
    if INTERPRETED:  # NumPy adds row after row where a GPU adds by threads, in a tree
        rows: tl.constexpr = value.shape[0]
        part: tl.constexpr = 16 if rows % 16 == 0 else 1
        value = tl.sum(tl.reshape(value, (rows // part, part, value.shape[1])), axis=1)
    return tl.sum(value, axis=0)
