"""Pruned ranks removed for good: outputs, training, optimisers, files and processes go on as if nothing had been."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import lorafam
from lorafam import AdapterConfig, RankAllocator
from lorafam.methods import AdaLoraLinear
from lorafam.model import adapter_layers
from tests.interop.several import run
from tests.model.tiny import disturb, tiny_model, tokens

TARGETS = ["q_proj", "up_proj", "down_proj"]
SCHEDULE = {"total_steps": 20, "warmup_steps": 1, "final_steps": 10, "interval": 2}
RANK, TARGET = 6, 2


def model_of(quantize: str | None = None) -> Any:
    config = AdapterConfig(method="adalora", r=RANK, alpha=8, target_modules=TARGETS, quantize=quantize)
    model = lorafam.adapt(tiny_model(), config)
    disturb(model)
    return model


def allocator_of(model: nn.Module, orthogonality: float = 0.0, target: int = TARGET) -> RankAllocator:
    return RankAllocator(model, init_rank=RANK, target_rank=target, orthogonality=orthogonality, **SCHEDULE)


def layers_of(model: nn.Module) -> dict[str, Any]:
    return adapter_layers(model)


def parameters_of(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def step(model: Any, optimizer: Any, allocator: RankAllocator, number: int) -> float:
    batch = tokens(rows=2, length=8 + number % 3)
    loss = model(batch, labels=batch).loss + allocator.penalty()
    loss.backward()
    optimizer.step()
    allocator.step(number)
    optimizer.zero_grad()
    return loss.item()


def _in_groups(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW([{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 0.1}])


OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, amsgrad=True),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
    "groups": _in_groups,
    "paged": lambda parameters: lorafam.PagedAdamW(parameters, lr=0.01),
    "paged, 8 bits": lambda parameters: lorafam.PagedAdamW(parameters, lr=0.01, bits=8),
}


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on_as_without(optimizer: str, quantize: str | None) -> None:
    models = [model_of(quantize) for _ in range(2)]
    allocators = [allocator_of(model) for model in models]
    optimizers = [OPTIMIZERS[optimizer](parameters_of(model)) for model in models]
    for number in range(1, 11):
        for each in zip(models, optimizers, allocators, strict=True):
            step(*each, number)
    before = models[0](tokens()).logits
    assert allocators[0].compact(optimizers[0]) == (RANK - TARGET) * len(layers_of(models[0]))
    torch.testing.assert_close(models[0](tokens()).logits, before, rtol=1e-6, atol=1e-6)
    assert sum(layer.A.shape[0] for layer in layers_of(models[0]).values()) == TARGET * len(layers_of(models[0]))
    for number in range(11, 21):
        losses = [step(*each, number) for each in zip(models, optimizers, allocators, strict=True)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for path, layer in layers_of(models[0]).items():
        whole = layers_of(models[1])[path]
        kept = torch.tensor(whole.active.kept_ranks)
        torch.testing.assert_close(layer.A, whole.A[kept], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(layer.B, whole.B[:, kept], rtol=1e-4, atol=1e-6)
    assert allocators[0].ranks() == allocators[1].ranks()
    assert allocators[0].compact(optimizers[0]) == 0


def test_optimisers_keep_nothing_of_what_went() -> None:
    model = model_of()
    allocator, optimizer = allocator_of(model), torch.optim.AdamW(parameters_of(model))
    for number in range(1, 11):
        step(model, optimizer, allocator, number)
    allocator.compact(optimizer)
    mine = parameters_of(model)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in mine]
    assert set(optimizer.state) == set(mine)
    for parameter in mine:
        assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape
        assert optimizer.state[parameter]["step"] == 10


def test_in_the_middle_of_accumulation() -> None:
    """Gradients of one forward before, of another after."""
    pairs = [trained(model_of()) for _ in range(2)]
    for index, (model, allocator) in enumerate(pairs):
        model(tokens(), labels=tokens()).loss.backward()
        if index == 0:
            allocator.compact()
        model(tokens(length=7), labels=tokens(length=7)).loss.backward()
    (model, _), (other, _) = pairs
    for layer, whole in zip(layers_of(model).values(), layers_of(other).values(), strict=True):
        kept = torch.tensor(whole.active.kept_ranks)
        torch.testing.assert_close(layer.A.grad, whole.A.grad[kept], rtol=1e-4, atol=1e-6)


def trained(model: Any) -> tuple[Any, RankAllocator]:
    """Up to where ranks are chosen for good."""
    allocator = allocator_of(model, orthogonality=0.1)
    optimizer = torch.optim.SGD(parameters_of(model), lr=0.05)
    for number in range(1, 11):
        step(model, optimizer, allocator, number)
    return model, allocator


@pytest.mark.filterwarnings("ignore")
def test_files_are_pefts_before_and_after(tmp_path: Path) -> None:
    model, allocator = trained(model_of())
    lorafam.save_adapter(model, tmp_path / "before")
    allocator.compact()
    lorafam.save_adapter(model, tmp_path / "after")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes()
    expected = model.eval()(tokens()).logits
    peft_model = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "after")).eval()
    torch.testing.assert_close(peft_model(tokens()).logits, expected, rtol=1e-4, atol=1e-5)
    loaded = lorafam.load_adapter(tiny_model(), tmp_path / "after").eval()
    torch.testing.assert_close(loaded(tokens()).logits, expected, rtol=1e-6, atol=1e-6)


def test_a_layer_without_a_rank_and_all_but_one() -> None:
    """Everything pruned away from some layers, then from all but one: forward, backward, penalty and files go on."""
    model, allocator = trained(model_of())
    layers = list(layers_of(model).values())
    with torch.no_grad():
        for layer in layers[1:]:
            layer.E.zero_()
            layer.active.kept_ranks = [False] * RANK
    before = model(tokens()).logits
    allocator.compact()
    assert [layer.A.shape[0] for layer in layers[1:]] == [0] * (len(layers) - 1)
    loss = model(tokens(), labels=tokens()).loss + allocator.penalty()
    torch.testing.assert_close(model(tokens()).logits, before, rtol=1e-6, atol=1e-6)
    loss.backward()
    for layer in layers:
        assert layer.A.grad is not None
        assert layer.A.grad.isfinite().all()
    assert allocator.ranks()[next(iter(layers_of(model)))] == layers[0].A.shape[0]
    assert layers[1].delta_weight().eq(0).all()


@pytest.mark.filterwarnings("ignore")
def test_peft_reads_layers_without_a_rank(tmp_path: Path) -> None:
    model, allocator = trained(model_of())
    layer = next(iter(layers_of(model).values()))
    with torch.no_grad():
        layer.E.zero_()
        layer.active.kept_ranks = [False] * RANK
    allocator.compact()
    expected = model.eval()(tokens()).logits
    lorafam.save_adapter(model, tmp_path)
    peft_model = PeftModel.from_pretrained(tiny_model(), str(tmp_path)).eval()
    torch.testing.assert_close(peft_model(tokens()).logits, expected, rtol=1e-4, atol=1e-5)
    loaded = lorafam.load_adapter(tiny_model(), tmp_path).eval()
    torch.testing.assert_close(loaded(tokens()).logits, expected, rtol=1e-6, atol=1e-6)


def test_resuming_after_compaction() -> None:
    """State of a compacted run into new objects, in the order that is documented."""
    model, allocator = trained(model_of())
    optimizer = torch.optim.AdamW(parameters_of(model), lr=0.01)
    step(model, optimizer, allocator, 11)
    allocator.compact(optimizer)
    saved = copy.deepcopy((allocator.state_dict(), model.state_dict(), optimizer.state_dict()))
    expected = [step(model, optimizer, allocator, number) for number in range(12, 15)]
    again = model_of()
    other = allocator_of(again, orthogonality=0.1)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    optimizer = torch.optim.AdamW(parameters_of(again), lr=0.01)
    optimizer.load_state_dict(saved[2])
    assert [step(again, optimizer, other, number) for number in range(12, 15)] == expected


def test_refusals_change_nothing() -> None:
    model = model_of()
    allocator = allocator_of(model)
    with pytest.raises(RuntimeError, match="chosen for good at step 10"):
        allocator.compact()
    model, allocator = trained(model)
    optimizer = torch.optim.SGD(parameters_of(model), lr=0.1)
    layer = list(layers_of(model).values())[-1]
    optimizer.state[layer.A] = {"absmax": torch.zeros(3)}
    with pytest.raises(NotImplementedError, match=r"SGD keeps absmax \[3\] for a factor \[6, 48\]"):
        allocator.compact(optimizer)
    assert {each.A.shape[0] for each in layers_of(model).values()} == {RANK}


def test_penalty_is_of_the_ranks_that_are_left() -> None:
    model, allocator = trained(model_of())
    allocator.compact()
    layers = layers_of(model).values()
    terms = [term for layer in layers for term in (_distance(layer.A @ layer.A.T), _distance(layer.B.T @ layer.B))]
    assert allocator.penalty().item() == pytest.approx(0.1 * torch.stack(terms).mean().item(), rel=1e-5)


def _distance(product: torch.Tensor) -> torch.Tensor:
    return torch.linalg.matrix_norm(product - torch.eye(len(product)))


def in_processes(rank: int, world: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """A run with compaction, each process with its own rows."""
    model = model_of()
    wrapped: Any = DistributedDataParallel(model, bucket_cap_mb=1) if world > 1 else model
    allocator, optimizer = allocator_of(model, orthogonality=0.1), torch.optim.AdamW(parameters_of(model), lr=0.01)
    losses = []
    for number in range(1, 16):
        batch = tokens(rows=4, length=8)
        own = batch.chunk(world)[rank]
        loss = wrapped(own, labels=own).loss + allocator.penalty()
        loss.backward()
        optimizer.step()
        allocator.step(number)
        if number == 10:
            if world > 1:
                with pytest.raises(RuntimeError, match="ddp: expected"):
                    allocator.compact(optimizer)
                allocator.compact(optimizer, wrapped)
            else:
                allocator.compact(optimizer)
        optimizer.zero_grad()
        mean = loss.detach().clone()
        if world > 1:
            dist.all_reduce(mean)
        losses.append(mean.item() / world)
    return losses, {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_two_processes_as_one(tmp_path: Path) -> None:
    (one,) = run(1, tmp_path / "one", in_processes)
    first, second = run(2, tmp_path / "two", in_processes)
    assert first[0] == pytest.approx(one[0], rel=1e-4)
    for name, parameter in first[1].items():
        assert torch.equal(parameter, second[1][name]), name
        assert parameter.shape == one[1][name].shape
        torch.testing.assert_close(parameter, one[1][name], rtol=1e-2, atol=1e-3)


def test_keep_ranks_returns_what_it_replaced() -> None:
    layer = AdaLoraLinear(nn.Linear(8, 12), r=4)
    old = layer.A
    replaced = layer.keep_ranks(torch.tensor([1, 3]))
    assert replaced[0][0] is old
    assert replaced[0][1] is layer.A
    assert torch.equal(layer.A, old[[1, 3]])
    assert layer.rank_num == 4
