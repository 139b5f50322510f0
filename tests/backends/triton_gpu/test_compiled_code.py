"""Every method on compiled sm_80 and sm_90 code, from autograd to launch: outputs and all gradients against fp64.

Tails in every size, K not a multiple of the block, odd N, ranks from 1 to 128, none to 300 tokens, inputs that aren't
zero-mean; ptxsim checks bounds, races, uninitialised reads, and that outputs are written whole.
"""

from __future__ import annotations

import pytest
import torch

from lorafam import functional as F
from tests.test_functional import METHODS, Shape, compare, make, run, weight_of

pytestmark = [pytest.mark.simulated, pytest.mark.usefixtures("kernels")]

SHAPES = {
    "one token": Shape(1, 1088, 1031, 64, 1),
    "five, K not of blocks": Shape(5, 220, 1031, 5, 1),
    "many, rank 1": Shape(300, 576, 517, 1, 2),
    "K not of blocks": Shape(17, 180, 1031, 8, 1),
    "odd K": Shape(21, 277, 1031, 24, 1),
    "blocks of 32": Shape(20, 96, 1031, 16, 1, 32),
    "many, rank 128": Shape(300, 128, 517, 128, 2),
}
BF16, FP16 = torch.bfloat16, torch.float16
# DoRA's products are LoRA's with a scale, and its norm depends on the weight's dtype only where that is dense
CASES = [
    *((method, storage, BF16) for method in ("lora_linear", "dora_linear") for storage in ("dense", "nf4")),
    ("lora_linear", "dense", FP16),
    ("lora_linear", "nf4", FP16),
    ("dora_linear", "dense", FP16),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("method", "storage", "dtype"), CASES, ids=str)
def test_products(method: str, storage: str, dtype: torch.dtype, shape: str) -> None:
    compare(method, storage, dtype, mean=1.0, dropout_p=0.0, shape=SHAPES[shape])


@pytest.mark.parametrize("dtype", [BF16, FP16], ids=str)
@pytest.mark.parametrize("shape", ["five, K not of blocks", "blocks of 32"])
def test_fp4(shape: str, dtype: torch.dtype) -> None:
    compare("lora_linear", "fp4", dtype, mean=1.0, dropout_p=0.0, shape=SHAPES[shape])


@pytest.mark.parametrize(("block_size", "K"), [(128, 384), (512, 512), (4096, 200)])
def test_block_sizes(block_size: int, K: int) -> None:
    """Blocks of several tiles of K, and blocks longer than a row."""
    compare("lora_linear", "nf4", FP16, mean=1.0, dropout_p=0.0, shape=Shape(18, K, 1031, 8, 1, block_size))


@pytest.mark.parametrize("storage", ["dense", "nf4"])
@pytest.mark.parametrize("method", METHODS[1:])
def test_dropout_in_bf16(method: str, storage: str) -> None:
    compare(method, storage, torch.bfloat16, mean=0.5, dropout_p=0.3, shape=Shape(37, 128, 517, 8, 2))


@pytest.mark.parametrize("storage", ["dense", "nf4"])
@pytest.mark.parametrize("method", METHODS)
def test_no_tokens(method: str, storage: str) -> None:
    shape = Shape(0, 128, 70, 4, 1)
    weight, _ = weight_of(storage, 0, torch.bfloat16, shape)
    given = {**make(method, 0, torch.bfloat16, 0.0, shape), "weight": weight}
    results = run(getattr(F, method), given, torch.ones(0, 70, dtype=torch.bfloat16))
    assert results.pop("y").shape == (0, 70)
    assert results.pop("dx").shape == (0, 128)
    assert all(gradient.eq(0).all() for gradient in results.values())
