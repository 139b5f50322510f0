"""DDP and FSDP2 on two and four processes beside one process with the whole batch: as near to fp64 as PEFT's own code
in one process, by the ratio rule.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from tests.interop import several
from tests.interop.several import Case, Trained, build, evaluate_twice, frozen, run, train
from tests.interop.tiny_lm import in_double, tokens
from tests.tolerances import assert_as_good_as_eager

FORWARDS = several.STEPS * 2 * 6
DDP = [
    Case("lora"),
    Case("dora"),
    Case("adalora"),
    Case("lora", torch.uint8),
    Case("dora", torch.uint8, checkpointing=True),
    Case("adalora", torch.uint8),
]
FSDP = [
    Case("lora"),
    Case("dora", checkpointing=True),
    Case("lora", torch.bfloat16),
    Case("dora", torch.bfloat16),
    Case("dora", torch.float32, checkpointing=True),
]


@cache
def alone(case: Case) -> tuple[Trained, Trained]:
    """PEFT's own code in one process, and the same in fp64."""
    # the storage of the codes changes nothing of their values
    case = case._replace(storage=case.storage and torch.uint8)
    model = build(case)
    exact = in_double(model)
    return train(model), train(exact)


def check(case: Case, found: Trained, eager: Trained | None = None) -> None:
    eager, exact = eager or alone(case)[0], alone(case)[1]
    name = str(case)
    base = "dense weight" if case.storage is None else "bitsandbytes 4-bit weight, shared"
    # a checkpointed block's forward runs twice
    assert found.paths == {("fused", base): FORWARDS * (2 if case.checkpointing else 1)}, name
    assert_as_good_as_eager(found.losses, eager.losses, exact.losses, name=f"{name}: losses")
    for what in ("gradients", "parameters"):
        ours, theirs, right = (getattr(trained, what) for trained in (found, eager, exact))
        assert ours.keys() == right.keys()
        parts = [_scaled(part, right) for part in (ours, theirs, right)]
        assert_as_good_as_eager(parts[0].float(), parts[1].float(), parts[2], name=f"{name}: {what}")


def _scaled(found: dict[str, torch.Tensor], exact: dict[str, torch.Tensor]) -> torch.Tensor:
    """All in one, each divided by the RMS of the exact one: none outweighs another."""
    # a layer may have lost all of its ranks
    scales = {name: tensor.square().mean().sqrt().clamp_min(1e-30) for name, tensor in exact.items()}
    return torch.cat([(found[name].double() / scales[name]).flatten() for name in exact])


def same(a: Trained, b: Trained) -> bool:
    return all(torch.equal(a.parameters[name], b.parameters[name]) for name in a.parameters)


@pytest.mark.parametrize("world", [2, 4])
def test_ddp(world: int, tmp_path: Path) -> None:
    found = run(world, tmp_path, several.ddp, DDP)
    for number, case in enumerate(DDP):
        check(case, found[0][number])
        assert all(same(found[0][number], other[number]) for other in found[1:]), str(case)
        if case.method == "adalora":
            masks, right = (
                {name: value != 0 for name, value in trained.parameters.items() if "lora_E" in name}
                for trained in (found[0][number], alone(case)[0])
            )
            assert all(torch.equal(masks[name], right[name]) for name in right)
            assert sum(int(mask.sum()) for mask in masks.values()) == 2 * 12


@pytest.mark.parametrize("world", [2, 4])
def test_fsdp2_and_its_adapter_saved_in_pefts_format(world: int, tmp_path: Path) -> None:
    found = run(world, tmp_path, several.fsdp, FSDP, tmp_path)
    for number, case in enumerate(FSDP):
        first = found[0][number]
        check(case, first.trained)
        assert all(same(first.trained, other[number].trained) for other in found[1:]), str(case)
        assert first.between == {("PEFT", "the factors of default are sharded now: asked again in each forward")}
        assert first.held == 0
        trained = build(case)
        trained.load_state_dict(first.trained.parameters, strict=False)
        loaded = PeftModel.from_pretrained(build(case).unload(), tmp_path / str(number))
        with torch.no_grad():
            assert torch.equal(loaded.eval()(tokens()), trained.eval()(tokens())), str(case)


def test_what_is_kept_follows_the_shards(tmp_path: Path) -> None:
    cases = [Case("dora"), Case("dora", torch.bfloat16)]
    found = run(2, tmp_path, several.overwritten, cases)
    for number, case in enumerate(cases):
        for ours, alone in zip(found[0][number], evaluate_twice(frozen(case)), strict=True):
            torch.testing.assert_close(ours, alone)


def test_fsdp2_in_bf16(tmp_path: Path) -> None:
    case = Case("dora", torch.bfloat16)
    ours, theirs = run(2, tmp_path, several.in_bf16, case)[0]
    assert theirs.paths == {}
    check(case, ours, theirs)


def test_what_sharding_rules_out_is_said(tmp_path: Path) -> None:
    allocation, decelerating = run(2, tmp_path, several.refused)[0]
    assert allocation.startswith("model: AdaLoRA's allocation needs whole parameters")
    assert decelerating == "decelerate: a FSDPLinear is sharded by itself, its class is FSDP2's; decelerate before"


def test_units_within_a_layer_run_pefts_code(tmp_path: Path) -> None:
    case = Case("lora")
    trained = run(2, tmp_path, several.by_leaves, case)[0]
    assert set(trained.paths) == {("PEFT", "hooks on the adapter's modules: they run")}
    alone = train(build(case))
    torch.testing.assert_close(trained.losses, alone.losses)
    torch.testing.assert_close(trained.parameters, alone.parameters)


@pytest.mark.parametrize("pefts", [True, False], ids=["PEFT's", "lorafam's"])
def test_adalora_in_trainer(pefts: bool, tmp_path: Path) -> None:
    """The same ranks on both processes and in one, the same parameters, the penalty counted once."""
    alone = run(1, tmp_path / "one", several.by_trainer, tmp_path, pefts)[0]
    found = run(2, tmp_path / "two", several.by_trainer, tmp_path, pefts)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0] if name != "loss")
    masks = {name: value != 0 for name, value in found[0].items() if name.endswith((".E", "lora_E.default"))}
    assert sum(int(mask.sum()) for mask in masks.values()) == 2 * len(masks) > 0
    assert all(torch.equal(mask, alone[name] != 0) for name, mask in masks.items())
    torch.testing.assert_close(found[0], alone, rtol=1e-4, atol=1e-5)
