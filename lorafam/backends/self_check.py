"""Before a kind of GPU is trusted: every op compares itself there with eager PyTorch, once, and the result is kept.

An op that fails, or can't be compiled, is switched off: `selection` gives it to eager, says so, and `explain` and
`doctor` show why. The file is kept by GPU model and by versions of lorafam, torch and triton.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..ops.by_storage import NESTED_BLOCK_SIZE
from .user_files import user_file, write_whole

Tensor = torch.Tensor
Arguments = tuple[Any, ...]

# the RMS error against fp64 may be this many times eager's, plus this part of the result's RMS times the roundoff
RATIO, FLOOR = 2.0, 1.0
TOKENS = (3, 40, 120)
# the largest tile of the decode path
DECODE_TOKENS = 12
# more than any architecture decodes inside the product
STAGED_TOKENS = 270
N, K, K_TAIL, RANK = 72, 256, 200, 20


def failures(device: torch.device) -> dict[str, str]:
    """Name of each op that is switched off on `device` → why."""
    return _failures(torch.cuda.get_device_name(device), device.index or 0)


@functools.cache
def _failures(model: str, index: int) -> dict[str, str]:
    path = _file(model)
    kept = _kept(path)
    if kept is not None:
        return kept
    from . import eager, triton_gpu

    warnings.warn(f"lorafam checks its kernels on {model}, once (under a minute)", stacklevel=2)
    found = run_checks(triton_gpu, eager, torch.device("cuda", index))
    # calls of an op that failed must not be repeated
    triton_gpu.forget()
    try:
        write_whole(path, found)
    except OSError as error:
        warnings.warn(f"the result can't be kept, so the next process checks again: {error}", stacklevel=2)
    return found


def _kept(path: Path) -> dict[str, str] | None:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        warnings.warn(f"{path} is damaged, so lorafam checks again: {error}", stacklevel=2)
        return None


def _file(model: str) -> Path:
    return user_file("checked", model, ("lorafam", "torch", "triton"))


def run_checks(kernels: ModuleType, eager: ModuleType, device: torch.device) -> dict[str, str]:
    """Name of each op whose implementation in `kernels` fails → why; ops agree with `eager` on the same arguments."""
    found: dict[str, str] = {}
    for op, what, arguments in _cases(eager, device):
        if op in found:
            continue
        try:
            compare(op, results_of(op, getattr(kernels, op), arguments), expected(op, getattr(eager, op), arguments))
        except Exception as error:  # whatever a compiler or a launch raises switches the op off
            found[op] = f"{what}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
    return found


class Expected(NamedTuple):
    """What an op shall give: eager's results, and the same in fp64."""

    eager: list[Tensor]
    exact: list[Tensor]


def expected(op: str, eager: Callable[..., Any], arguments: Arguments) -> Expected:
    """Runs eager PyTorch on copies of the arguments, as they are and in fp64."""
    results = results_of(op, eager, arguments)
    return Expected(results, results if op in _SAME_BITS else results_of(op, eager, arguments, wide=True))


def results_of(op: str, run: Callable[..., Any], arguments: Arguments, *, wide: bool = False) -> list[Tensor]:
    """Every tensor that an op gives or changes; it gets copies, with `wide` in fp64."""
    copies = _copied(arguments, wide=wide)
    given = _tensors(run(*copies))
    return _tensors(copies[2:4]) if op == "adalora_importance" else given


def compare(op: str, got: list[Tensor], wanted: Expected) -> None:
    """Raises AssertionError unless `got` is as good as eager's."""
    for index, (a, b, c) in enumerate(zip(got, wanted.eager, wanted.exact, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            raise AssertionError(f"result {index}: {a.dtype} {list(a.shape)}, not {b.dtype} {list(b.shape)}")
        if op in _SAME_BITS:
            if not torch.equal(a, b):
                raise AssertionError(f"result {index}: other bits than eager's")
            continue
        wide = c.double()
        mine, theirs = _rms(a.double() - wide), _rms(b.double() - wide)
        if not mine <= RATIO * theirs + FLOOR * torch.finfo(a.dtype).eps * _rms(wide):
            raise AssertionError(f"result {index}: RMS error {mine:.2e}, eager's {theirs:.2e}")


_SAME_BITS = ("dequantize_4bit", "quantize_4bit", "quantize_absmax")


def _cases(eager: ModuleType, device: torch.device) -> Iterator[tuple[str, str, Arguments]]:
    """(op, what it is, arguments)."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    seed = torch.tensor(7, device=device)
    A, B_hat, c, bias = random(RANK, K), random(N, RANK), random(N).abs() + 0.5, random(N)
    dense = random(N, K)
    levels = torch.linspace(-1, 1, 256, device=device)
    yield "quantize_4bit", "NF4", (dense, 64, "nf4")
    codes, absmax = eager.quantize_4bit(dense, 64, "nf4")
    yield "quantize_absmax", "block scales", (absmax, levels)
    absmax_codes, nested_absmax, offset = eager.quantize_absmax(absmax, levels)
    whole_blocks = (codes, [absmax_codes, nested_absmax, levels, offset], [N, K, 64, 0, NESTED_BLOCK_SIZE])
    tail_codes, tail_absmax = eager.quantize_4bit(dense[:, :K_TAIL].contiguous(), 64, "nf4")
    tail = (tail_codes, [tail_absmax], [N, K_TAIL, 64, 0, 0])
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        yield "dequantize_4bit", name, (*whole_blocks, dtype)
        for tokens in TOKENS[:2]:
            x, P = random(tokens, K_TAIL, dtype=dtype) + 1, random(tokens, RANK)
            yield (
                "lora_linear",
                f"NF4, no whole blocks, {name}, {tokens} tokens",
                (x, *tail, P, B_hat, c, bias),
            )
        for kind, weight in (("dense", (dense.to(dtype), [], [])), ("NF4", whole_blocks)):
            for tokens in TOKENS:
                what = f"{kind}, {name}, {tokens} tokens"
                x, grad_y, P = random(tokens, K, dtype=dtype) + 1, random(tokens, N, dtype=dtype), random(tokens, RANK)
                yield "lora_linear", what, (x, *weight, P, B_hat, c, bias)
                data, scales, layout = weight
                group = ([data] * 2, [*scales] * 2, [*layout] * 2, [P, P + 1], [B_hat, B_hat - 1])
                # alike, and not
                yield "lora_linear_group", what, (x, *group, [bias, bias])
                yield "lora_linear_group", what, (x, *group, [bias, None])
                yield "lora_linear_group", f"{what}, no bias", (x, *group, [None, None])
                yield "lora_linear_grad", what, (grad_y, *weight, c, P, A, seed, 0.1)
                yield "lora_project", what, (x, A, seed, 0.1)
                more = (x, P, B_hat, c, grad_y + 1, bias, c, seed, 0.1, True)
                yield "lora_factors_grad", what, (grad_y, *more)
                if kind == "NF4":
                    few = (P[:, :8].contiguous(), B_hat[:, :8].contiguous())
                    yield "lora_factors_grad", f"{what}, rank 8", (grad_y, x, *few, *more[3:])
                yield "dropout", what, (x, seed, 0.1)
            x, P = random(DECODE_TOKENS, K, dtype=dtype) + 1, random(DECODE_TOKENS, RANK)
            yield "lora_linear", f"{kind}, {name}, {DECODE_TOKENS} tokens", (x, *weight, P, B_hat, c, bias)
            if kind == "NF4" and dtype != torch.float32:
                what = f"NF4, {name}, {STAGED_TOKENS} tokens"
                x, P = random(STAGED_TOKENS, K, dtype=dtype) + 1, random(STAGED_TOKENS, RANK)
                yield "lora_linear", what, (x, *weight, P, B_hat, c, bias)
                grad_y = random(STAGED_TOKENS, N, dtype=dtype)
                yield "lora_linear_grad", what, (grad_y, *weight, c, P, A, seed, 0.1)
                few = (P[:, :8].contiguous(), B_hat[:, :8].contiguous())
                yield "lora_factors_grad", f"{what}, rank 8", (grad_y, x, *few, c, grad_y + 1, bias, c, seed, 0.1, True)
            yield "row_norm", kind, (*weight, A, B_hat, None)
            yield "squared_row_norm", kind, weight
    factors = [A, B_hat]
    yield (
        "adalora_importance",
        "two tensors",
        (factors, factors, [A.abs(), B_hat.abs()], [A.abs(), B_hat.abs()], 0.8, 0.9),
    )
    yield "adalora_scores", "two tensors", (factors, factors, [0, 1])
    yield "adalora_penalty", "two tensors", (factors, [0, 1])
    distances, deviations = eager.adalora_penalty(factors, [0, 1])
    yield "adalora_penalty_grad", "two tensors", (factors, [0, 1], distances, deviations, random(2))


def _copied(arguments: Arguments, *, wide: bool) -> Arguments:
    """Copies, since an op may write into them; `wide`: operands in fp64, 4-bit scales as they are."""

    def copy(value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            four_bit = value[0].dtype == torch.uint8
            return [part.clone() if four_bit else copy(part) for part in value]
        if not isinstance(value, Tensor):
            return value
        return value.double() if wide and value.is_floating_point() else value.clone()

    return tuple(copy(value) for value in arguments)


def _tensors(result: Any) -> list[Tensor]:
    if result is None:
        return []
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in _tensors(part)]


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt()) if values.numel() else 0.0
