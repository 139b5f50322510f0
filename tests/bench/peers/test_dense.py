"""The dense product: no adapter in it, and the gradient of x alone."""

import pytest
import torch
from lorafam.bench.case import CASES, make_case
from lorafam.bench.contenders import train_of
from lorafam.bench.peers.eager import decoder


@pytest.mark.parametrize("name", CASES)
def test_product_and_gradient(name: str) -> None:
    case = make_case(name, 64, 4, torch.bfloat16, rank=4)
    weight = decoder(case)()
    assert weight.dtype == torch.bfloat16
    y, dx = train_of("dense", case)()
    torch.testing.assert_close(y, case.x.detach() @ weight.T)
    torch.testing.assert_close(dx, case.grad_y @ weight)
