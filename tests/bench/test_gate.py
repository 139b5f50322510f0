"""The gate lets right results through and stops wrong ones."""

import pytest
import torch
from lorafam.bench.case import CASES, make_case
from lorafam.bench.gate import check


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lorafam_passes(name: str, dtype: torch.dtype) -> None:
    check(make_case(name, 128, 16, dtype, rank=8))


@pytest.mark.parametrize("contender", ["eager", "peft"])
@pytest.mark.parametrize("name", CASES)
def test_the_others_compute_the_same(name: str, contender: str) -> None:
    """What is compared is one and the same computation (in bf16 PEFT's AdaLoRA rounds once more than its LoRA does)."""
    check(make_case(name, 128, 16, torch.float32, rank=8), contender)


@pytest.mark.parametrize("wrong", ["y", "dx", "dB"])
def test_a_wrong_result_is_refused(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case("qlora", 128, 16, rank=8)
    from lorafam.bench import gate

    train_of = gate.train_of

    def disturbed(contender: str, case: object) -> object:
        train = train_of(contender, case)
        if contender != "lorafam":
            return train
        index = {"y": 0, "dx": 1, "dB": 3}[wrong]
        return lambda: tuple(t * (1 + 1e-3 * (i == index)) for i, t in enumerate(train()))

    monkeypatch.setattr(gate, "train_of", disturbed)
    with pytest.raises(AssertionError, match=wrong):
        check(case)
