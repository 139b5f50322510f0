"""One adapter layer of a method and shape at several numbers of tokens: lorafam beside the others.

GPU time is of a graph's replay, so that launching costs nothing in it: over copies of the layer that together are more
than twice the L2 (a model's next layer isn't in it), and over one layer alone ("warm"). Host time is what the caller's
thread takes to launch. lorafam and other projects are timed once their result has passed the tests' rule.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lorafam.backends.told import told

from ..cases import PASSED, Case, Context, LeftOutError
from ..device import device, median_seconds

CONTENDERS = ("lorafam", "eager", "peft", "dense")
DIRECTIONS = ("forward", "train")
DTYPE, RANK = "bfloat16", 16
# calls in a graph, at least: what a replay costs is spread over them
IN_A_GRAPH = 8
# seconds for each figure
BUDGET = 0.3
HOST_CALLS = 20
Call = Callable[[], Any]


def cases(
    context: Context,
    method: str,
    shape: Sequence[int],
    tokens: Sequence[int],
    table: str,
    contenders: Sequence[str] = CONTENDERS,
) -> Iterator[Case]:
    largest = device().largest
    sizes = tuple(min(size, largest or size) for size in shape)
    for count in tokens:
        made = functools.lru_cache(maxsize=1)(
            functools.partial(_made, method, sizes, min(count, largest or count))  # type: ignore[arg-type]
        )
        for contender in contenders:
            gate = f"{count} gate {contender}"
            if _is_gated(contender):
                yield Case(gate, functools.partial(_gated, made, contender), expects=15, limit=180)
            for direction in DIRECTIONS:
                about = {
                    "method": method, "shape": list(shape), "tokens": count, "direction": direction,
                    "contender": contender, "table": table, "dtype": DTYPE, "rank": RANK,
                }  # fmt: skip
                run = functools.partial(_timed, context, made, contender, direction, gate, about)
                slow = contender == "compiled"
                yield Case(f"{count} {direction} {contender}", run, expects=60 if slow else 12, limit=240)


def _made(method: str, shape: tuple[int, int], tokens: int) -> Any:
    import torch

    from ...case import make_case

    return make_case(method, shape, tokens, getattr(torch, DTYPE), RANK, str(device().where))


def _is_gated(contender: str) -> bool:
    from ...contenders import PEERS

    return contender == "lorafam" or contender in PEERS


def _gated(made: Callable[[], Any], contender: str) -> dict[str, Any]:
    from ...gate import check

    check(made(), contender)
    return {}


def _timed(
    context: Context, made: Callable[[], Any], contender: str, direction: str, gate: str, about: dict[str, Any]
) -> dict[str, Any]:
    if missing := lacking(contender, about["method"]):
        raise LeftOutError(f"not installed: {', '.join(missing)}")
    if _is_gated(contender) and context.record.cases.get(gate, {}).get("outcome") != PASSED:
        raise RuntimeError("its result didn't pass the tests' rule")
    case = made()
    weight = stored_bytes(case)
    count = max(2, math.ceil(2 * device().card()["l2_bytes"] / weight) + 1)
    calls = [call_of(contender, one, direction) for one in (case, *(copy.deepcopy(case) for _ in range(count - 1)))]
    return {**about, **measure(calls), **work(case, weight, direction)}


def lacking(contender: str, method: str) -> list[str]:
    """Packages that a contender needs and that aren't installed."""
    from ...case import CASES
    from ...contenders import PEERS

    quantised = ["bitsandbytes"] if CASES[method][1] else []
    wanted = {"eager": quantised, "peft": ["peft", *quantised], "compiled": ["peft", *quantised]}
    if contender in PEERS:
        return PEERS[contender].missing()
    return [name for name in wanted.get(contender, []) if importlib.util.find_spec(name) is None]


def call_of(contender: str, case: Any, direction: str) -> Call:
    """The contender's forward, or forward and backward, on one case."""
    from ...contenders import case_for, forward_of, train_of

    if contender == "compiled":
        return _compiled_call(case, direction)
    case = case_for(contender, case)
    return forward_of(contender, case)[0] if direction == "forward" else train_of(contender, case)


def _compiled_call(case: Any, direction: str) -> Call:
    """PEFT's layer under torch.compile."""
    import torch

    from ...peers.peft_layer import peft_layer

    layer, leaves = peft_layer(case)
    compiled = torch.compile(layer, dynamic=False)
    if direction == "forward":
        return lambda: compiled(case.x)
    return lambda: torch.autograd.grad(compiled(case.x), [case.x, *leaves], case.grad_y)


def measure(calls: Sequence[Call]) -> dict[str, Any]:
    """Seconds of one call: `gpu` over all of them in turn, `gpu_warm` over the first alone, `host` to launch it, `wall`
    with waiting for the GPU.
    """
    gpu = device()
    for call in calls:
        for _ in range(2):
            call()
    gpu.synchronize()
    measured: dict[str, Any] = {"copies": len(calls)}
    for name, several in (("gpu", calls), ("gpu_warm", calls[:1])):
        turns = math.ceil(IN_A_GRAPH / len(several))

        def all_of(several: Sequence[Call] = several, turns: int = turns) -> None:
            for _ in range(turns):
                for call in several:
                    call()

        try:
            replay = gpu.graph(all_of)
        except RuntimeError as error:
            # launched one by one, so that launching counts where it takes longer than the GPU
            measured["no_graph"] = told(error)
            gpu.synchronize()
            replay = all_of
        seconds, measured["rounds"] = median_seconds(replay, BUDGET)
        measured[name] = seconds / (turns * len(several))
        if name == "gpu":
            measured["clocks"] = _clocks_under_load(replay, seconds)
        del replay
    gpu.synchronize()
    start = time.perf_counter()
    for turn in range(HOST_CALLS):
        calls[turn % len(calls)]()
    measured["host"] = (time.perf_counter() - start) / HOST_CALLS
    gpu.synchronize()
    measured["wall"] = (time.perf_counter() - start) / HOST_CALLS
    return measured


def _clocks_under_load(replay: Call, seconds: float) -> dict[str, Any]:
    """Asked while the GPU is at work."""
    for _ in range(min(500, int(BUDGET / max(seconds, 1e-6)) + 1)):
        replay()
    found = device().clocks()
    device().synchronize()
    return found


def stored_bytes(case: Any) -> int:
    """Of W as the case's layer stores it."""
    weight = case.layer.base_layer.weight
    tensors = weight.tensors().values() if hasattr(weight, "tensors") else [weight]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def work(case: Any, weight: int, direction: str) -> dict[str, float]:
    """The bytes that must be moved and the operations of the products with W; the adapter's are left out."""
    elements = case.tokens * (case.in_features + case.out_features)
    product = 2 * case.tokens * case.in_features * case.out_features
    times = 1 if direction == "forward" else 2
    return {"bytes": times * (weight + 2 * elements) + (2 * elements if times == 2 else 0), "flops": times * product}
