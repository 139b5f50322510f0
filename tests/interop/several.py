"""Jobs of several processes over gloo: a language model of two blocks trained by DDP or FSDP2, each process on its part
of the batch. Modules are imported once, by the server that the processes are forked from.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import bitsandbytes
import torch
import torch.distributed as dist
from peft import AdaLoraConfig, get_peft_model
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing import start_processes
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import lorafam
from lorafam.interop.callbacks import AdaLoraCallback
from lorafam.interop.fast_layers import FastLayer
from lorafam.interop.peft_allocator import PeftAllocator
from lorafam.weights.bitsandbytes import _kept
from tests.interop.tiny_lm import (
    HIDDEN,
    RANK,
    TARGETS,
    VOCABULARY,
    Block,
    config_of,
    disturb,
    four_bit,
    losses,
    tokens,
    trainable,
)

STEPS, ROWS, LENGTH = 5, 8, 32
LIMIT = 120.0


class TwoBlocks(nn.Module):
    """Tokens to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.blocks = nn.Embedding(VOCABULARY, HIDDEN), nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.checkpointing = False

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        return self.head(x)


class Case(NamedTuple):
    """`storage` None: a dense base; else what 4-bit codes are stored as."""

    method: str
    storage: torch.dtype | None = None
    checkpointing: bool = False

    def __str__(self) -> str:
        base = "dense" if self.storage is None else f"nf4 as {str(self.storage).removeprefix('torch.')}"
        return f"{self.method}, {base}{', checkpointing' if self.checkpointing else ''}"


class Trained(NamedTuple):
    """The losses of every token [steps, tokens], the first step's gradients and the parameters at the end, whole, and
    the paths that layers took with how often.
    """

    losses: torch.Tensor
    gradients: dict[str, torch.Tensor]
    parameters: dict[str, torch.Tensor]
    paths: dict[tuple[str, str], int]


def build(case: Case) -> Any:
    """The same model in every process."""
    torch.manual_seed(0)
    model: Any = TwoBlocks()
    model.checkpointing = case.checkpointing
    if case.storage is not None:
        for block in model.blocks:
            for name in TARGETS:
                setattr(block, name, four_bit(getattr(block, name), case.storage))
        model.is_loaded_in_4bit = True
    if case.method == "adalora":
        schedule = {"init_r": RANK, "target_r": 2, "total_step": STEPS + 2, "tfinal": 2}
        config: Any = AdaLoraConfig(target_modules=TARGETS, lora_alpha=6, **schedule)
    else:
        config = config_of(case.method)
    model = get_peft_model(model, config)
    disturb(model)
    return model


def shard(model: Any, policy: MixedPrecisionPolicy = MixedPrecisionPolicy()) -> Any:  # noqa: B008
    """FSDP2, block by block, gathered again in the backward, then the rest."""
    for block in model.base_model.model.blocks:
        fully_shard(block, mp_policy=policy, reshard_after_forward=True)
    return fully_shard(model, mp_policy=policy)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def train(model: Any, rank: int = 0, world: int = 1) -> Trained:
    """Trains on rows rank, rank + world, …; what comes back is of all of them."""
    parameters = trainable(model)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.5)
    curve: list[torch.Tensor] = []
    gradients: dict[str, torch.Tensor] = {}
    with watched() as paths:
        for step in range(STEPS):
            batch = tokens(ROWS, LENGTH, seed=step % 3)
            loss = losses(model, batch[rank::world])
            loss.mean().backward()
            curve.append(loss.detach())
            if step == 0:
                gradients = {name: whole(parameter.grad) for name, parameter in parameters.items()}
            optimizer.step()
            tuner = getattr(model, "module", model).base_model
            if hasattr(tuner, "update_and_allocate"):
                tuner.update_and_allocate(step + 1)
            optimizer.zero_grad()
    mine = torch.stack(curve).unflatten(1, (ROWS // world, -1))
    if world > 1:
        shares = [torch.empty_like(mine) for _ in range(world)]
        dist.all_gather(shares, mine)
        mine = torch.stack(shares, 2).flatten(1, 2)
    final = {name: whole(parameter.data) for name, parameter in parameters.items()}
    return Trained(mine.flatten(1), gradients, final, dict(paths))


@contextmanager
def watched() -> Iterator[dict[tuple[str, str], int]]:
    """How often accelerated layers take which path, and why."""
    counts: dict[tuple[str, str], int] = {}
    original = FastLayer.forward

    def forward(layer: Any, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        plan = layer.lorafam_plan(x)
        counts[plan[:2]] = counts.get(plan[:2], 0) + 1
        return original(layer, x, *args, **kwargs)

    FastLayer.forward = forward  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        FastLayer.forward = original  # type: ignore[method-assign]


def run(world: int, folder: Path, job: Callable[..., Any], *args: Any) -> list[Any]:
    """What `job(rank, world, *args)` returns in each of `world` processes; raises with the first one's traceback."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder.mkdir(parents=True, exist_ok=True)
    processes = start_processes(
        _process, (world, folder, job, args), nprocs=world, join=False, start_method="forkserver"
    )
    try:
        end = time.monotonic() + LIMIT
        while not processes.join(1.0):
            if time.monotonic() > end:
                raise TimeoutError(f"{job.__name__}: {world} processes haven't ended after {LIMIT:.0f} s")
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _process(rank: int, world: int, folder: Path, job: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    try:
        torch.save(job(rank, world, *args), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def ddp(rank: int, world: int, cases: list[Case]) -> list[Trained]:
    found = []
    for case in cases:
        model = build(case)
        lorafam.accelerate(model)
        found.append(train(DistributedDataParallel(model), rank, world))
    return found


class Sharded(NamedTuple):
    """`between`: paths and reasons in the report after training. `held`: bytes of gathered codes still kept then."""

    trained: Trained
    between: set[tuple[str, str]]
    held: int


def fsdp(rank: int, world: int, cases: list[Case], folder: Path) -> list[Sharded]:
    """Each model's adapter is also saved, as docs/several_processes.md has it."""
    found = []
    for number, case in enumerate(cases):
        model = build(case)
        lorafam.accelerate(model)
        model = shard(model)
        trained = train(model, rank, world)
        rows = lorafam.accelerate(model).rows
        held = 0
        for layer in model.modules():
            if isinstance(layer, bitsandbytes.nn.Linear4bit):
                held += _kept[layer.quant_state].weight.codes.untyped_storage().nbytes()
        found.append(Sharded(trained, {row[1:] for row in rows}, held))
        save(model, folder / str(number))
    return found


def save(model: Any, folder: Path) -> None:
    state = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    )
    model.save_pretrained(folder, state_dict=state, is_main_process=dist.get_rank() == 0)


def evaluate_twice(model: Any) -> list[torch.Tensor]:
    """Logits, before and after every parameter is overwritten, as loading does it."""
    batch, found = tokens(4, 8), []
    with torch.no_grad():
        found.append(model(batch))
        for parameter in model.parameters():
            local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
            # codes of other levels, or other numbers
            coded = local.ndim == 2 and local.shape[1] == 1
            local.view(torch.uint8).bitwise_xor_(0x11) if coded else local.mul_(1.1)
        found.append(model(batch))
    return found


def overwritten(rank: int, world: int, cases: list[Case]) -> list[list[torch.Tensor]]:
    """Of frozen models in evaluation, where most is kept."""
    return [evaluate_twice(shard(frozen(case))) for case in cases]


def frozen(case: Case) -> Any:
    model = build(case).eval().requires_grad_(False)
    lorafam.accelerate(model)
    return model


def in_bf16(rank: int, world: int, case: Case) -> list[Trained]:
    """Factors and activations in bf16 by FSDP2's policy, accelerated and not."""
    found = []
    for accelerates in (True, False):
        model = build(case)
        if accelerates:
            lorafam.accelerate(model)
        found.append(train(shard(model, MixedPrecisionPolicy(param_dtype=torch.bfloat16)), rank, world))
    return found


def refused(rank: int, world: int) -> list[str]:
    """What is said to AdaLoRA's allocation over shards, and to decelerating a layer that is a unit."""
    said = []
    model = shard(build(Case("adalora")))
    layers = build(Case("lora"))
    lorafam.accelerate(layers)
    fully_shard(layers.base_model.model.blocks[0].q)
    for call in (lambda: PeftAllocator(model, STEPS + 2), lambda: lorafam.decelerate(layers)):
        try:
            call()
        except (NotImplementedError, RuntimeError) as error:
            said.append(str(error))
    return said


def by_leaves(rank: int, world: int, case: Case) -> Trained:
    """Every module with parameters of its own is a unit, as PEFT's wrap policy has it."""
    model = build(case)
    lorafam.accelerate(model)
    for module in list(model.modules()):
        if module._parameters and not list(module.children()):
            fully_shard(module)
    return train(fully_shard(model), rank, world)


def small_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=64, num_key_value_heads=2, **sizes))


def by_trainer(rank: int, world: int, folder: Path, pefts: bool) -> dict[str, torch.Tensor]:
    """AdaLoRA, PEFT's or lorafam's own, by transformers' Trainer with four rows a step in all; every parameter trained,
    and what was logged.
    """
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    schedule = {"total_step": 8, "tinit": 1, "tfinal": 3}
    callback = AdaLoraCallback()
    if pefts:
        kind = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "orth_reg_weight": 0.5}
        config = AdaLoraConfig(init_r=RANK, target_r=2, **kind, **schedule)
        model: Any = get_peft_model(small_llama(), config)
        lorafam.accelerate(model)
    else:
        model = lorafam.adapt(small_llama(), lorafam.AdapterConfig(method="adalora", r=RANK, alpha=RANK))
        steps = {"total_steps": 8, "warmup_steps": 1, "final_steps": 3, "interval": 1}
        callback = AdaLoraCallback(lorafam.RankAllocator(model, init_rank=RANK, target_rank=2, **steps))
    rows = tokens(32, 24)
    arguments = TrainingArguments(
        str(folder / "trainer"),
        per_device_train_batch_size=4 // world,
        max_steps=8,
        learning_rate=0.2,
        optim="sgd",
        max_grad_norm=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo",
        dataloader_pin_memory=False,
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[callback])
    trainer.train()
    logged = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return {**{name: whole(parameter) for name, parameter in trainable(model).items()}, "loss": torch.tensor(logged)}
