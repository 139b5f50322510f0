"""RankAllocator against PEFT's on the same gradients, over a whole schedule."""

from __future__ import annotations

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model

import lorafam
from lorafam import AdapterConfig, RankAllocator
from lorafam.model import adapter_layers
from tests.conftest import device
from tests.model.tiny import disturb, tiny_model, tokens

SCHEDULE = {"total_steps": 20, "warmup_steps": 3, "final_steps": 6, "interval": 2}
# every phase, for simulated code, of which a step takes 3 s
SHORT = {"total_steps": 12, "warmup_steps": 2, "final_steps": 4, "interval": 2}


def ours(schedule: dict[str, int] = SCHEDULE) -> tuple[torch.nn.Module, RankAllocator]:
    model = lorafam.adapt(
        tiny_model(), AdapterConfig(method="adalora", r=6, alpha=8, target_modules=["q_proj", "up_proj"])
    )
    disturb(model)
    model.to(device())
    return model, RankAllocator(model, init_rank=6, target_rank=2, **schedule)


def theirs(schedule: dict[str, int] = SCHEDULE) -> torch.nn.Module:
    config = AdaLoraConfig(
        init_r=6,
        target_r=2,
        lora_alpha=8,
        tinit=schedule["warmup_steps"],
        tfinal=schedule["final_steps"],
        deltaT=schedule["interval"],
        total_step=schedule["total_steps"],
        target_modules=["q_proj", "up_proj"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(tiny_model(), config)


def test_same_masks_penalty_and_weights_as_peft(backend: str) -> None:
    """Both train on the same batches from the same values; ranks, loss and factors stay together at every step. PEFT's
    stays on the CPU.
    """
    schedule = SHORT if backend == "simulate" else SCHEDULE
    model, allocator = ours(schedule)
    peft_model = theirs(schedule)
    layers = adapter_layers(model)
    modules = dict(peft_model.base_model.model.named_modules())
    with torch.no_grad():
        for path, layer in layers.items():
            for name in ("A", "E", "B"):
                getattr(modules[path], f"lora_{name}")["default"].copy_(getattr(layer, name))
    trainable = [[p for p in m.parameters() if p.requires_grad] for m in (model, peft_model)]
    optimizers = [torch.optim.SGD(parameters, lr=0.05) for parameters in trainable]
    for step in range(1, schedule["total_steps"] + 1):
        batch = tokens(rows=2, length=10 + step % 3)
        moved = batch.to(device())
        losses = [
            model(moved, labels=moved).loss + allocator.penalty(),
            peft_model(input_ids=batch, labels=batch).loss,
        ]
        torch.testing.assert_close(losses[0].cpu(), losses[1], rtol=1e-4, atol=1e-5)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            loss.backward()
            optimizer.step()
        allocator.step(step)
        peft_model.base_model.update_and_allocate(step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        for path, layer in layers.items():
            expected = modules[path].lora_E["default"] != 0
            assert torch.equal(layer.E.cpu() != 0, expected), (step, path)
    assert sum(allocator.ranks().values()) == 2 * len(layers)


@pytest.mark.parametrize("seed", range(4))
def test_same_masks_on_random_gradients(seed: int) -> None:
    """A whole schedule without training: every step's masks, but where scores at the threshold are equal to 1e-5."""
    model, allocator = ours()
    peft_model = theirs()
    modules = dict(peft_model.base_model.model.named_modules())
    layers = adapter_layers(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, layer in layers.items():
            for name in ("A", "E", "B"):
                factor = getattr(layer, name)
                factor.copy_(torch.randn(factor.shape, generator=generator))
                getattr(modules[path], f"lora_{name}")["default"].copy_(factor)
    pruned = 0
    for step in range(1, SCHEDULE["total_steps"] + 1):
        for path, layer in layers.items():
            for name in ("A", "E", "B"):
                grad = torch.randn(getattr(layer, name).shape, generator=generator)
                getattr(layer, name).grad = grad.clone()
                getattr(modules[path], f"lora_{name}")["default"].grad = grad
        allocator.step(step)
        peft_model.base_model.update_and_allocate(step)
        for path, layer in layers.items():
            expected = modules[path].lora_E["default"]
            assert torch.equal(layer.E != 0, expected != 0), (step, path)
            pruned += int((expected == 0).sum())
            with torch.no_grad():
                # what was pruned may come back, as it may when it is trained
                value = torch.randn(layer.E.shape, generator=generator)
                if step < SCHEDULE["total_steps"] - SCHEDULE["final_steps"]:
                    layer.E.copy_(value)
                    expected.copy_(value)
    assert pruned > 0
    assert allocator.ranks() == {path: int((modules[path].lora_E["default"] != 0).sum()) for path in layers}


def test_state_round_trip() -> None:
    model, allocator = ours()
    for step in range(1, 16):
        model(tokens(), labels=tokens()).loss.backward()
        allocator.step(step)
        model.zero_grad()
    state = allocator.state_dict()
    _, other = ours()
    other.load_state_dict(state)
    for name in ("sensitivity", "uncertainty"):
        for mine, saved in zip(other.state_dict()[name], state[name], strict=True):
            assert torch.equal(mine, saved)
    assert other.state_dict()["kept_ranks"] == state["kept_ranks"]
    assert any(kept is not None for kept in state["kept_ranks"].values())


def test_budget_of_all_ranks_prunes_nothing() -> None:
    """Where nothing is to go, PEFT asks for the 0-th smallest score and fails (peft#2337)."""
    model = lorafam.adapt(tiny_model(), AdapterConfig(method="adalora", r=4, target_modules=["q_proj"]))
    disturb(model)
    allocator = RankAllocator(model, init_rank=4, target_rank=4, **SCHEDULE)
    for step in range(1, 21):
        model(tokens(), labels=tokens()).loss.backward()
        allocator.step(step)
        model.zero_grad()
    assert set(allocator.ranks().values()) == {4}


def test_refusals() -> None:
    with pytest.raises(ValueError, match="expected AdaLoRA layers"):
        RankAllocator(lorafam.adapt(tiny_model(), AdapterConfig()), init_rank=8, target_rank=4, **SCHEDULE)
    model, allocator = ours()
    with pytest.raises(ValueError, match="init_rank: expected 6"):
        RankAllocator(model, init_rank=8, target_rank=4, **SCHEDULE)
    with pytest.raises(ValueError, match="warmup_steps, final_steps"):
        RankAllocator(model, init_rank=6, target_rank=4, **{**SCHEDULE, "warmup_steps": 18})
    with pytest.raises(RuntimeError, match="has no gradient"):
        allocator.step(1)
