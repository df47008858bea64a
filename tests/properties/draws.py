"""Hypothesis strategies of the property tests; every run has the same examples."""

from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

properties = settings(derandomize=True, max_examples=50, deadline=None)
LARGEST = {dtype: torch.finfo(dtype).max for dtype in (torch.float32, torch.bfloat16)}
DTYPES = st.sampled_from(list(LARGEST))
STRIDES = (4, 8, 16)
# Halves of pixels are exact in every precision, so that a corner never falls on two sides of a cell's border.
_CORNER = st.integers(-80, 600).map(lambda value: value / 2)
_SIDE = st.integers(1, 600).map(lambda value: value / 2)
BOX = st.tuples(_CORNER, _CORNER, _SIDE, _SIDE).map(lambda one: (one[0], one[1], one[0] + one[2], one[1] + one[3]))
BATCH = st.lists(st.lists(BOX, max_size=5), min_size=1, max_size=3)


def boxes(rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def shapes(height: int = 256, width: int = 320) -> dict[int, tuple[int, int]]:
    """The levels of a batch of images of that size."""
    return {stride: (-(-height // stride), -(-width // stride)) for stride in STRIDES}


def numbers(shape: tuple[int, ...], limit: float, dtype: torch.dtype = torch.float32) -> st.SearchStrategy[Tensor]:
    """Tensors with any finite values from -limit to limit, many of them small."""
    limit = float(np.float32(limit))
    small = min(limit, 2.0)
    elements = st.floats(-limit, limit, width=32, allow_subnormal=False)
    elements |= st.floats(-small, small, width=32, allow_subnormal=False)
    most = LARGEST[dtype]  # rounding to bfloat16 must not reach infinity
    return arrays(np.float32, shape, elements=elements).map(
        lambda values: torch.from_numpy(values).clamp(-most, most).to(dtype)
    )


@st.composite
def map_pairs(draw: st.DrawFn, limit: float = 1e3, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W) of one shape and type."""
    shape = draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)))
    dtype = dtype or draw(DTYPES)
    return draw(numbers(shape, limit, dtype)), draw(numbers(shape, limit, dtype))


@st.composite
def logit_pairs(draw: st.DrawFn, limit: float = 50.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Two tables of logits (R, K) of one shape."""
    shape = draw(st.tuples(st.integers(1, 4), st.integers(2, 5)))
    return draw(numbers(shape, limit, dtype)), draw(numbers(shape, limit, dtype))


def shuffled(draw: st.DrawFn, count: int) -> list[int]:
    return draw(st.permutations(range(count)))
