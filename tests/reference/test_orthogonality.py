"""The penalty: its value and gradient, and PEFT's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model

from lorafam.reference import orthogonality_penalty


class TwoLayers(torch.nn.Module):
    """A model whose loss is 0, so that all that AdaLoraModel.forward adds is its penalty."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(9, 7)
        self.second = torch.nn.Linear(7, 8)

    def forward(self, x: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(loss=0 * self.second(self.first(x)).sum())


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_equals_peft() -> None:
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=["first", "second"], orth_reg_weight=0.5)
    model = get_peft_model(TwoLayers(), config).double()
    layers = [model.base_model.model.first, model.base_model.model.second]
    As, Bs = [layer.lora_A["default"] for layer in layers], [layer.lora_B["default"] for layer in layers]
    theirs = model.base_model(random(3, 9)).loss / 0.5
    ours = orthogonality_penalty(As, Bs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    for got, want in zip(torch.autograd.grad(ours, [*As, *Bs]), torch.autograd.grad(theirs, [*As, *Bs]), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)


def test_orthonormal_factors_cost_nothing() -> None:
    Q, _ = torch.linalg.qr(random(12, 3))
    A, B = Q.T.clone().requires_grad_(), Q.clone()
    penalty = orthogonality_penalty([A], [B])
    assert penalty < 1e-14
    assert torch.autograd.grad(penalty, A)[0].isfinite().all()
    torch.testing.assert_close(orthogonality_penalty([2 * Q.T], [Q]), torch.tensor(3 * 3**0.5 / 2).double())


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(
        lambda A, B: orthogonality_penalty([A], [B]), (random(3, 8).requires_grad_(), random(7, 3).requires_grad_())
    )


def test_no_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="As, Bs: expected the factors of at least one layer"):
        orthogonality_penalty([], [])
