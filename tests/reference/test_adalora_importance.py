"""Importance and allocation: the same numbers and the same pruned ranks as PEFT over a whole schedule."""

from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from torch import Tensor

from lorafam.reference import Importance, budget, importance_update, keep_mask, triplet_scores

LAYERS = ("first", "second", "third")
INITIAL_RANK, TARGET_RANK = 6, 2
TOTAL_STEPS, WARMUP_STEPS, FINAL_STEPS, INTERVAL = 24, 4, 6, 2
FINAL_STEP = TOTAL_STEPS - FINAL_STEPS


class ThreeLayers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(10, 8)
        self.second = torch.nn.Linear(8, 12)
        self.third = torch.nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


class Ours:
    """What an allocator does with the pieces under test, on copies of the parameters {"first.lora_A": ...}."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.parameters = {name: parameter.clone() for name, parameter in parameters.items()}
        zero = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        self.importance = {name: Importance(value, value, value) for name, value in zero.items()}
        self.kept: dict[str, Tensor] = {}

    def step(self, step: int, grads: dict[str, Tensor]) -> None:
        if step < FINAL_STEP:
            for name, parameter in self.parameters.items():
                before = self.importance[name]
                self.importance[name] = importance_update(
                    parameter, grads[name], before.sensitivity, before.uncertainty, 0.85, 0.9
                )
        now = budget(
            step,
            initial_ranks=INITIAL_RANK * len(LAYERS),
            target_ranks=TARGET_RANK * len(LAYERS),
            total_steps=TOTAL_STEPS,
            warmup_steps=WARMUP_STEPS,
            final_steps=FINAL_STEPS,
            interval=INTERVAL,
        )
        if step == FINAL_STEP or (step < FINAL_STEP and now.prune):
            scores = [triplet_scores(*(self.importance[f"{layer}.lora_{f}"].score for f in "AEB")) for layer in LAYERS]
            kept = keep_mask(torch.cat(scores), now.ranks).split(INITIAL_RANK)
            self.kept = dict(zip(LAYERS, kept, strict=True))
        if step >= FINAL_STEP or now.prune:
            for layer in LAYERS:
                self.parameters[f"{layer}.lora_E"][~self.kept[layer]] = 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_whole_schedule_equals_peft(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    config = AdaLoraConfig(
        init_r=INITIAL_RANK,
        target_r=TARGET_RANK,
        total_step=TOTAL_STEPS,
        tinit=WARMUP_STEPS,
        tfinal=FINAL_STEPS,
        deltaT=INTERVAL,
        beta1=0.85,
        beta2=0.9,
        target_modules=list(LAYERS),
    )
    model = get_peft_model(ThreeLayers(), config).to(dtype)
    theirs = {
        f"{layer}.lora_{factor}": getattr(getattr(model.base_model.model, layer), f"lora_{factor}")["default"]
        for layer in LAYERS
        for factor in "AEB"
    }
    long_names = {id(parameter): name for name, parameter in model.base_model.model.named_parameters()}
    ours = Ours({name: parameter.detach() for name, parameter in theirs.items()})

    pruned = []
    for step in range(1, TOTAL_STEPS + 1):
        grads = {}
        for name, parameter in theirs.items():
            change, grads[name] = torch.randn(2, *parameter.shape, generator=generator, dtype=torch.float64).to(dtype)
            parameter.data += change
            ours.parameters[name] += change
            parameter.grad = grads[name].clone()
        model.base_model.update_and_allocate(step)
        ours.step(step, grads)
        for name, parameter in theirs.items():
            assert torch.equal(ours.parameters[name], parameter.detach()), (step, name)
            if step < FINAL_STEP:
                allocator = model.base_model.rankallocator
                assert torch.equal(ours.importance[name].sensitivity, allocator.exp_avg_ipt[long_names[id(parameter)]])
                assert torch.equal(ours.importance[name].uncertainty, allocator.exp_avg_unc[long_names[id(parameter)]])
        pruned.append(sum(int((theirs[f"{layer}.lora_E"] == 0).sum()) for layer in LAYERS))
    assert pruned[WARMUP_STEPS - 1] == 0
    assert 0 < pruned[WARMUP_STEPS + INTERVAL - 1] < pruned[FINAL_STEP - 1]
    assert pruned[FINAL_STEP - 1 :] == [(INITIAL_RANK - TARGET_RANK) * len(LAYERS)] * (FINAL_STEPS + 1)


def test_one_element_by_hand() -> None:
    """w = 2, gradient -3: I = 6; from Ī = 4, U = 1 with β₁ = 0.5, β₂ = 0.75: Ī = 5, U = 0.75 + 0.25·|6 - 5| = 1."""
    values = [torch.tensor([value]) for value in (2.0, -3.0, 4.0, 1.0)]
    assert importance_update(*values, 0.5, 0.75) == (torch.tensor([5.0]), torch.tensor([1.0]), torch.tensor([5.0]))


def test_triplet_scores_average_over_all_but_the_rank() -> None:
    A, E, B = torch.tensor([[1.0, 3.0], [0.0, 4.0]]), torch.tensor([[10.0], [20.0]]), torch.tensor([[3.0, 6.0]])
    assert triplet_scores(A, E, B).tolist() == [10 + 2 + 3, 20 + 2 + 6]


def test_wrong_arguments_are_refused() -> None:
    w, other = torch.zeros(2, 3), torch.zeros(3, 2)
    for position, name in enumerate(("grad", "sensitivity", "uncertainty"), start=1):
        tensors = [w, w, w, w]
        tensors[position] = other
        with pytest.raises(ValueError, match=rf"{name}: expected shape \[2, 3\], got \[3, 2\]"):
            importance_update(*tensors, 0.5, 0.5)
    for betas, name in (((0.0, 0.5), "beta1"), ((0.5, 1.0), "beta2")):
        with pytest.raises(ValueError, match=f"{name}: expected a factor in"):
            importance_update(w, w, w, w, *betas)
    for scores, name in (
        ((w, torch.zeros(2), w.T), "score_E"),
        ((w, torch.zeros(3, 1), w), "score_A"),
        ((w, torch.zeros(2, 1), w), "score_B"),
    ):
        with pytest.raises(ValueError, match=f"{name}: expected shape"):
            triplet_scores(*scores)
