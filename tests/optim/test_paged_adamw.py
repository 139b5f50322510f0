"""PagedAdamW beside torch.optim.AdamW and bitsandbytes."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lorafam
from lorafam import PagedAdamW
from lorafam.optim import adamw_update, paged_memory
from lorafam.weights.dynamic_levels import dynamic_levels

ROOT = Path(__file__).parent.parent.parent
Tensor = torch.Tensor
SHAPES = [(16, 33), (7,), (), (0, 4), (64, 128)]


def parameters(dtype: torch.dtype = torch.float32, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def groups(found: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [
        {"params": found[:2]},
        {"params": found[2:4], "lr": 3e-3, "betas": (0.8, 0.95)},
        {"params": found[4:], "weight_decay": 0.3, "eps": 1e-6},
    ]


def set_gradients(found: list[nn.Parameter], step: int) -> None:
    """The first parameter has one from step 40 on, the second every third step."""
    generator = torch.Generator().manual_seed(1000 + step)
    for number, parameter in enumerate(found):
        gradient = torch.randn(parameter.shape, generator=generator) * 2.0 ** (step % 5 - 2)
        missing = (number == 0 and step < 40) or (number == 1 and step % 3)
        parameter.grad = None if missing else gradient.to(parameter.dtype)


def train(optimizer: torch.optim.Optimizer, found: list[nn.Parameter], first: int, last: int) -> list[nn.Parameter]:
    for step in range(first, last):
        set_gradients(found, step)
        optimizer.step()
    return found


@torch.no_grad()
def difference(one: list[Any], other: list[Any]) -> float:
    """‖a − b‖ / ‖b‖, the largest of all tensors."""
    return max(
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(one, other, strict=True)
        if b.numel()
    )


def equal(one: list[Any], other: list[Any]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_trajectory_of_torch() -> None:
    mine, theirs, exact = parameters(), parameters(), [nn.Parameter(p.double()) for p in parameters()]
    train(PagedAdamW(groups(mine)), mine, 0, 120)
    train(torch.optim.AdamW(groups(theirs)), theirs, 0, 120)
    train(torch.optim.AdamW(groups(exact), foreach=False), exact, 0, 120)
    assert difference(mine, theirs) < 1e-6
    # what 120 roundings of fp32 parameters come to
    assert difference(mine, exact) < 1.5 * difference(theirs, exact) < 1e-5
    fused = parameters()
    train(torch.optim.AdamW(groups(fused), fused=True), fused, 0, 120)
    assert equal(mine, fused)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_parameters_in_fp32_arithmetic(dtype: torch.dtype) -> None:
    """Each step is torch's in fp32 on the widened parameter, rounded once."""
    mine, narrow = parameters(dtype), parameters(dtype)
    wide = [nn.Parameter(p.detach().float()) for p in narrow]
    optimizer, reference = PagedAdamW(groups(mine), bits=32), torch.optim.AdamW(groups(wide), fused=True)
    for step in range(60):
        set_gradients(mine, step)
        set_gradients(narrow, step)
        optimizer.step()
        for narrow_one, wide_one in zip(narrow, wide, strict=True):
            wide_one.data.copy_(narrow_one.data)
            wide_one.grad = None if narrow_one.grad is None else narrow_one.grad.float()
        reference.step()
        for narrow_one, wide_one in zip(narrow, wide, strict=True):
            narrow_one.data.copy_(wide_one.data)
    assert equal(mine, narrow)
    assert all(state["exp_avg"].dtype == torch.float32 for state in optimizer.state.values())


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_and_strides_change_no_bit(bits: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut into pieces, transposed parameters, transposed gradients: the result of the whole."""

    def run(change: Callable[[Tensor], Tensor], change_gradient: Callable[[Tensor], Tensor]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        parameter = nn.Parameter(change(torch.randn(96, 75, generator=generator).to(dtype)))
        optimizer = PagedAdamW([parameter], bits=bits)
        for _ in range(5):
            parameter.grad = change_gradient(torch.randn(96, 75, generator=generator).to(dtype))
            optimizer.step()
        return parameter.detach().contiguous()

    def transposed(tensor: Tensor) -> Tensor:
        return tensor.t().contiguous().t()

    whole = run(torch.clone, torch.clone)
    assert torch.equal(run(transposed, torch.clone), whole)
    assert torch.equal(run(torch.clone, transposed), whole)
    monkeypatch.setitem(adamw_update.CHUNK, "cpu", 1024)
    assert torch.equal(run(torch.clone, torch.clone), whole)


def quadratic(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int) -> tuple[Tensor, float]:
    """Least squares by minibatches: the displacement and the last loss."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(64, 100, generator=generator) * 0.1)
    start, truth = weight.detach().clone(), torch.randn(64, 100, generator=generator)
    optimizer = make([weight])
    loss = torch.zeros(())
    for _ in range(steps):
        x = torch.randn(32, 100, generator=generator)
        optimizer.zero_grad()
        loss = ((x @ weight.T - x @ truth.T) ** 2).mean()
        loss.backward()
        optimizer.step()
    return (weight - start).detach(), float(loss.detach())


def test_eight_bits_near_bitsandbytes_and_32() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    kinds: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
        "mine": lambda found: PagedAdamW(found, lr=1e-2, bits=8),
        "theirs": lambda found: bitsandbytes.optim.AdamW8bit(found, lr=1e-2, weight_decay=0.01),
        "exact": lambda found: torch.optim.AdamW(found, lr=1e-2),
    }
    moved, losses = {}, {}
    for name, make in kinds.items():
        moved[name], losses[name] = quadratic(make, 150)
    assert difference([moved["mine"]], [moved["theirs"]]) < 0.01
    # what 8 bits come to
    assert difference([moved["mine"]], [moved["exact"]]) < 1.2 * difference([moved["theirs"]], [moved["exact"]]) < 0.03
    assert losses["mine"] < 1.05 * losses["exact"]


def test_first_step_is_that_of_32_bits() -> None:
    """Nothing has been rounded yet."""
    moved, _ = quadratic(lambda found: PagedAdamW(found, bits=8), 1)
    expected, _ = quadratic(lambda found: torch.optim.AdamW(found), 1)
    torch.testing.assert_close(moved, expected)


def test_small_parameters_keep_32_bits() -> None:
    found = parameters()
    optimizer = train_one(PagedAdamW(found, bits=8, min_8bit_size=500), found)
    kept = {tuple(p.shape): optimizer.state[p]["exp_avg"].dtype for p in found}
    assert kept[64, 128] == kept[16, 33] == torch.uint8
    assert kept[7,] == kept[0, 4] == torch.float32
    states = optimizer.state[found[-1]]
    assert sum(states[name].nbytes for name in states if name != "step") == 2 * 8192 + 2 * 4 * 32


def train_one(optimizer: PagedAdamW, found: list[nn.Parameter]) -> PagedAdamW:
    train(optimizer, found, 41, 43)
    return optimizer


@pytest.mark.parametrize("bits", [32, 8])
def test_state_dict_round_trip(bits: int) -> None:
    straight, first, second = parameters(), parameters(), parameters()
    train(PagedAdamW(groups(straight), bits=bits, min_8bit_size=64), straight, 0, 90)
    optimizer = PagedAdamW(groups(first), bits=bits, min_8bit_size=64)
    train(optimizer, first, 0, 45)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    for mine, theirs in zip(second, first, strict=True):
        mine.data.copy_(theirs.data)
    other = PagedAdamW([{**group, "lr": 1.0} for group in groups(second)], bits=bits, min_8bit_size=64)
    other.load_state_dict(torch.load(file, weights_only=True))
    train(other, second, 45, 90)
    assert equal(second, straight)


def test_what_is_saved_is_as_large_as_the_state() -> None:
    found = [nn.Parameter(torch.zeros(10_000)), nn.Parameter(torch.zeros(10_000))]
    optimizer = PagedAdamW(found)
    found[0].grad = torch.ones(10_000)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    assert 80_000 <= file.tell() < 90_000


@pytest.mark.parametrize("fused", [False, True])
def test_torch_s_checkpoints_both_ways(fused: bool) -> None:
    straight = train_from_to(lambda g: torch.optim.AdamW(g, fused=fused), lambda g: torch.optim.AdamW(g, fused=fused))
    for kinds in (
        (PagedAdamW, lambda g: torch.optim.AdamW(g, fused=fused)),
        (lambda g: torch.optim.AdamW(g, fused=fused), PagedAdamW),
    ):
        assert difference(train_from_to(*kinds), straight) < 1e-6


def train_from_to(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> list[nn.Parameter]:
    found = parameters()
    optimizer = first(groups(found))
    train(optimizer, found, 0, 50)
    other = second(groups(found))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, theirs in zip(other.param_groups, optimizer.param_groups, strict=True):
        assert all(mine[name] == theirs[name] for name in ("lr", "betas", "eps", "weight_decay"))
    return train(other, found, 50, 100)


def test_loading_its_own_state_changes_nothing() -> None:
    """accelerate does this when it wraps an optimiser; the tensors are the states themselves."""
    one, other = parameters(), parameters()
    optimizer = PagedAdamW(groups(one))
    train(optimizer, one, 0, 50)
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, one, 50, 60)
    train(PagedAdamW(groups(other)), other, 0, 60)
    assert equal(one, other)


def test_loading_an_empty_state_forgets() -> None:
    one, other = parameters(), parameters()
    optimizer = PagedAdamW(one)
    empty = copy.deepcopy(optimizer.state_dict())
    train(optimizer, one, 40, 45)
    optimizer.load_state_dict(empty)
    for mine, theirs in zip(one, other, strict=True):
        mine.data.copy_(theirs.data)
    train(optimizer, one, 40, 45)
    train(PagedAdamW(other), other, 40, 45)
    assert equal(one, other)


def test_groups_added_later() -> None:
    mine, theirs = parameters(), parameters()
    optimizers = [PagedAdamW(mine[:3]), torch.optim.AdamW(theirs[:3], fused=True)]
    for optimizer, found in zip(optimizers, (mine, theirs), strict=True):
        train(optimizer, found, 30, 50)
        optimizer.add_param_group({"params": found[3:], "lr": 1e-2})
        train(optimizer, found, 50, 60)
    assert equal(mine, theirs)


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_goes_on_by_itself(bits: int, how: Callable[[Any], Any]) -> None:
    found = parameters()
    optimizer = PagedAdamW(groups(found), bits=bits, min_8bit_size=64)
    train(optimizer, found, 0, 50)
    copied_parameters, copied = how((found, optimizer))
    assert copied.bits == bits
    mine, theirs = optimizer.state[found[4]], copied.state[copied_parameters[4]]
    assert mine["exp_avg"].data_ptr() != theirs["exp_avg"].data_ptr()
    train(optimizer, found, 50, 60)
    assert not equal(found, copied_parameters)
    for parameter in copied_parameters:
        parameter.grad = None
    train(copied, copied_parameters, 50, 60)
    assert equal(found, copied_parameters)


def test_closure_clipping_and_schedule() -> None:
    results = []
    for make in (PagedAdamW, lambda found, lr: torch.optim.AdamW(found, lr=lr, fused=True)):
        torch.manual_seed(0)
        model = nn.Linear(8, 4)
        optimizer = make(model.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=10)
        losses = []
        x = torch.randn(16, 8)

        def closure(model: nn.Module = model, optimizer: Any = optimizer, x: Tensor = x) -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            return loss

        for _ in range(10):
            losses.append(float(optimizer.step(closure).detach()))
            schedule.step()
        results.append((losses, list(model.parameters())))
    assert results[0][0] == results[1][0]
    assert results[0][0][-1] < results[0][0][0]
    assert equal(results[0][1], results[1][1])


@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=6),
    bits=st.sampled_from([8, 32]),
    lr=st.floats(0, 0.1),
    betas=st.tuples(st.floats(0, 0.999), st.floats(0, 0.9999)),
    weight_decay=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=30, deadline=None)
def test_any_sizes_and_settings(
    sizes: list[int], bits: int, lr: float, betas: tuple[float, float], weight_decay: float, seed: int
) -> None:
    """32 bits: torch's bits. 8: nobody writes into a neighbour's states, so each alone gives the same bits."""
    settings_ = {"lr": lr, "betas": betas, "weight_decay": weight_decay}

    def run(make: Callable[[Any], Any], numbers: list[int]) -> list[nn.Parameter]:
        found = [nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(seed))) for size in sizes]
        chosen = [found[number] for number in numbers]
        optimizer = make(chosen)
        for step in range(3):
            for number in numbers:
                generator = torch.Generator().manual_seed(seed + step + number)
                found[number].grad = torch.randn(sizes[number], generator=generator)
            optimizer.step()
        return chosen

    every = list(range(len(sizes)))
    together = run(lambda found: PagedAdamW(found, bits=bits, min_8bit_size=0, **settings_), every)
    if bits == 32:
        assert equal(together, run(lambda found: torch.optim.AdamW(found, fused=True, **settings_), every))
    for number in every:
        alone = run(lambda found: PagedAdamW(found, bits=bits, min_8bit_size=0, **settings_), [number])
        assert equal(alone, [together[number]])


WRONG: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("bits", {"bits": 4}, ValueError),
    ("lr", {"lr": -1.0}, ValueError),
    ("lr", {"lr": math.nan}, ValueError),
    ("lr", {"lr": "fast"}, TypeError),
    ("betas", {"betas": (0.9, 1.0)}, ValueError),
    ("betas", {"betas": 0.9}, TypeError),
    ("eps", {"eps": -1e-8}, ValueError),
    ("weight_decay", {"weight_decay": math.inf}, ValueError),
    ("page_file", {"page_file": "/does/not/exist"}, ValueError),
    ("min_8bit_size", {"min_8bit_size": -1}, ValueError),
    ("params", {"params": [nn.Parameter(torch.zeros(2, dtype=torch.float64))]}, ValueError),
    ("params", {"params": [torch.zeros(2, device="meta")]}, ValueError),
]


@pytest.mark.parametrize(("name", "change", "kind"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_arguments_are_named(name: str, change: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=f"^{name}: expected"):
        PagedAdamW(**{"params": parameters(), **change})


def test_wrong_groups_and_gradients() -> None:
    found = parameters()
    optimizer = PagedAdamW(found)
    with pytest.raises(ValueError, match=r"^lr: expected"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": -1})
    with pytest.raises(ValueError, match=r"^params: expected"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2, dtype=torch.float64))]})
    assert len(optimizer.param_groups) == 1
    found[4].grad = torch.ones(64, 128).to_sparse()
    with pytest.raises(RuntimeError, match="dense"):
        optimizer.step()
    assert not optimizer.state
    train(optimizer, found, 0, 1)
    found[4].data = torch.zeros(3, 3)
    found[4].grad = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match=r"\[64, 128\].*\[3, 3\]"):
        optimizer.step()


def test_states_that_are_not_its_own() -> None:
    found = parameters()
    optimizer = PagedAdamW(found)
    train(optimizer, found, 40, 42)
    before = copy.deepcopy(optimizer.state_dict())
    eight = parameters()
    other = PagedAdamW(eight, bits=8)
    train(other, eight, 40, 42)
    with pytest.raises(ValueError, match="32 bits"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="8 bits"):
        other.load_state_dict(optimizer.state_dict())
    amsgrad = torch.optim.AdamW(parameters(), amsgrad=True)
    with pytest.raises(ValueError, match=r"^amsgrad"):
        optimizer.load_state_dict(amsgrad.state_dict())
    fewer = PagedAdamW(parameters()[:2])
    with pytest.raises(ValueError, match=r"\[5\].*\[2\]"):
        optimizer.load_state_dict(fewer.state_dict())
    wrong = copy.deepcopy(before)
    wrong["state"][4]["exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match="exp_avg of parameter 4"):
        optimizer.load_state_dict(wrong)
    for number, state in optimizer.state_dict()["state"].items():
        assert equal(list(state.values()), list(before["state"][number].values()))


MEMORY = """
import json, sys, threading, time
import torch
torch.set_num_threads(1)
from lorafam import PagedAdamW

def anonymous():
    rows = open("/proc/self/status").read().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("RssAnon")) * 1024

kind, elements = sys.argv[1], 48_000_000
dtype = torch.bfloat16 if kind.endswith("bf16") else torch.float32
def trained(sizes):
    found = [torch.nn.Parameter(torch.ones(size, dtype=dtype)) for size in sizes]
    for parameter in found:
        parameter.grad = torch.ones_like(parameter)
    if kind == "torch":
        return found, torch.optim.AdamW(found, fused=True)
    return found, PagedAdamW(found, bits=8 if kind.startswith("8") else 32)

small, warm = trained([5000, 100])
warm.step()
found, optimizer = trained([elements // 2] + [8192] * (elements // 2 // 8192))
before, most, running = anonymous(), 0, True
def look():
    global most
    while running:
        most = max(most, anonymous())
        time.sleep(0.002)
thread = threading.Thread(target=look)
thread.start()
for _ in range(2):
    optimizer.step()
running = False
thread.join()
states = [t for s in optimizer.state.values() for n, t in s.items() if n != "step"]
print(json.dumps({"state": sum(t.nbytes for t in states), "grown": anonymous() - before, "peak": most - before}))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the system doesn't tell anonymous memory")
@pytest.mark.parametrize("kind", ["32", "32 bf16", "8 bf16", "torch"])
def test_the_state_is_not_the_process_own_memory(kind: str) -> None:
    # glibc gives large pieces back at once then
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, "-c", MEMORY, kind]
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT, timeout=120
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    if kind == "torch":
        # the check sees what it should
        assert found["grown"] > 0.9 * found["state"] > 340e6
        return
    assert found["state"] > (96e6 if kind.startswith("8") else 383e6)
    # Python's own objects for some 3,000 parameters; two pieces of 4 MB where they are widened, twice as the C library
    # may keep some
    limit = 16e6 if kind == "32" else 32e6
    assert found["grown"] < limit
    assert found["peak"] < limit


KILLED = """
import os, signal, sys
import torch
sys.path.insert(0, ".")
from lorafam.optim import adamw_update
from lorafam.optim.paged_adamw import PagedAdamW
from tests.optim.test_paged_adamw import groups, parameters, set_gradients

folder, kill_at = sys.argv[1], int(sys.argv[2])
path, found, step = os.path.join(folder, "checkpoint.pt"), parameters(), 0
optimizer = PagedAdamW(groups(found), bits=int(sys.argv[3]), min_8bit_size=64, page_file=folder)
if os.path.exists(path):
    saved = torch.load(path, weights_only=True)
    step = saved["step"]
    for parameter, value in zip(found, saved["parameters"]):
        parameter.data.copy_(value)
    optimizer.load_state_dict(saved["optimizer"])
original, calls = adamw_update._write_back, 0
def write_back(*arguments):
    global calls
    original(*arguments)
    calls += 1
    if step == kill_at and calls > 1:
        os.kill(os.getpid(), signal.SIGKILL)
adamw_update._write_back = write_back
while step < 30:
    calls = 0
    set_gradients(found, step + 20)
    optimizer.step()
    step += 1
    if step % 4 == 0:
        state = {"step": step, "parameters": [p.data for p in found], "optimizer": optimizer.state_dict()}
        torch.save(state, path + ".new")
        os.replace(path + ".new", path)
torch.save([p.data for p in found], os.path.join(folder, "result.pt"))
"""


@pytest.mark.skipif(os.name != "posix", reason="of systems with kill -9")
@pytest.mark.parametrize("bits", [32, 8])
def test_killed_within_a_step_and_resumed(bits: int, tmp_path: Path) -> None:
    straight = parameters()
    train(PagedAdamW(groups(straight), bits=bits, min_8bit_size=64), straight, 20, 50)

    def run(kill_at: int) -> int:
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(kill_at), str(bits)]
        return subprocess.run(command, cwd=ROOT, check=False, timeout=120).returncode

    assert run(22) == -signal.SIGKILL
    # the states' file went with the process
    assert os.listdir(tmp_path) == ["checkpoint.pt"]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 20
    assert run(-1) == 0
    assert equal(torch.load(tmp_path / "result.pt", weights_only=True), straight)


def test_bitsandbytes_8bit_kernel_takes_the_same_states() -> None:
    """What runs on CUDA, with bitsandbytes' CPU kernel: the same call, states and levels."""
    pytest.importorskip("bitsandbytes")
    levels = dynamic_levels(torch.device("cpu")), dynamic_levels(torch.device("cpu"), False)

    def by_theirs(piece: adamw_update.Piece, group: Any, scratch: adamw_update.Scratch) -> None:
        beta1, beta2 = group["betas"]
        adamw_update.update_by_bitsandbytes(
            piece, levels, group["lr"], beta1, beta2, group["eps"], group["weight_decay"]
        )

    mine, _ = quadratic(lambda found: PagedAdamW(found, lr=1e-2, bits=8), 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adamw_update, "_update_8bit", by_theirs)
        theirs, _ = quadratic(lambda found: PagedAdamW(found, lr=1e-2, bits=8), 20)
    assert not torch.equal(mine, theirs)
    assert difference([mine], [theirs]) < 0.02


def test_without_bitsandbytes_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"lorafam\[bitsandbytes\]"):
        paged_memory.bitsandbytes_functional()


def test_in_the_trainer_and_resumed(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM, Trainer, TrainingArguments

    from tests.finetune.tiny_run import write_model

    folder = write_model(tmp_path / "model")
    samples = [{"input_ids": row, "labels": row} for row in torch.randint(0, 200, (16, 8))]

    def run(make: Callable[[Any], Any], output: str, steps: int, resume: bool = False) -> list[Tensor]:
        model = LlamaForCausalLM.from_pretrained(folder)
        arguments = TrainingArguments(
            output_dir=str(tmp_path / output),
            per_device_train_batch_size=2,
            max_steps=steps,
            save_steps=4,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            lr_scheduler_type="constant",
        )
        trainer = Trainer(model, arguments, train_dataset=samples, optimizers=(make(model.parameters()), None))
        trainer.train(resume_from_checkpoint=resume)
        return [parameter.detach() for parameter in model.parameters()]

    straight = run(PagedAdamW, "straight", 8)
    assert equal(straight, run(lambda found: torch.optim.AdamW(found, fused=True), "torch", 8))
    run(PagedAdamW, "resumed", 4)
    assert equal(straight, run(PagedAdamW, "resumed", 8, resume=True))


def test_in_accelerate() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    found = parameters()
    optimizer = PagedAdamW(found)
    train(optimizer, found, 40, 42)
    wrapped = accelerator.prepare_optimizer(optimizer)
    train(wrapped, found, 42, 45)
    other = parameters()
    train(PagedAdamW(other), other, 40, 45)
    assert equal(found, other)
    assert wrapped.state_dict()["state"][4]["step"] == 5


ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")


@pytest.mark.gpu
@ON_GPU
@pytest.mark.parametrize("bits", [32, 8])
def test_leaves_the_gpu_under_pressure_and_comes_back(bits: int) -> None:
    """Others take all of the GPU's memory and half of the states' besides; then training goes on as if nothing was."""
    pytest.importorskip("bitsandbytes")
    make = {
        32: lambda found: torch.optim.AdamW(found, fused=True),
        8: lambda found: PagedAdamW(found, bits=8),
    }[bits]
    results = []
    for pressed in (False, True):
        torch.manual_seed(0)
        found = [nn.Parameter(torch.randn(size, device="cuda")) for size in (64 << 20, 1000, 300_000)]
        optimizer = PagedAdamW(found, bits=bits) if pressed else make(found)
        for step in range(4):
            for parameter in found:
                generator = torch.Generator("cuda").manual_seed(step)
                parameter.grad = torch.randn(parameter.shape, device="cuda", generator=generator)
            if pressed and step == 2:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
                state = sum(tensor.nbytes for one in optimizer.state.values() for tensor in one.values())
                block = torch.full((torch.cuda.mem_get_info()[0] + state // 2,), 7, dtype=torch.uint8, device="cuda")
                assert bool((block[:: 1 << 20] == 7).all())
                del block
                torch.cuda.empty_cache()
            optimizer.step()
        results.append([parameter.detach().cpu() for parameter in found])
        del optimizer, found
        torch.cuda.empty_cache()
    assert equal(*results)


@pytest.mark.gpu
@ON_GPU
def test_on_a_gpu_as_on_the_cpu() -> None:
    pytest.importorskip("bitsandbytes")
    for bits, tolerance in ((32, 1e-5), (8, 0.02)):
        on_cpu, on_gpu = parameters(), [nn.Parameter(p.detach().cuda()) for p in parameters()]
        optimizers = [PagedAdamW(groups(found), bits=bits, min_8bit_size=64) for found in (on_cpu, on_gpu)]
        for step in range(60):
            set_gradients(on_cpu, step)
            for mine, theirs in zip(on_gpu, on_cpu, strict=True):
                mine.grad = None if theirs.grad is None else theirs.grad.cuda()
            for optimizer in optimizers:
                optimizer.step()
        assert difference([p.cpu() for p in on_gpu], on_cpu) < tolerance
        file = io.BytesIO()
        torch.save(optimizers[1].state_dict(), file)
        file.seek(0)
        optimizers[0].load_state_dict(torch.load(file, map_location="cpu", weights_only=True))


def test_exported() -> None:
    assert {"PagedAdamW", "lora_plus_groups"} <= set(lorafam.__all__)
    assert textwrap.dedent(PagedAdamW.__doc__ or "").strip()
