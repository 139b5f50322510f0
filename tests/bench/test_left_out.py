"""Whose failure is whose."""

from lorafam.bench.left_out import case_of, shared_out, told

CASE = {"method": "qlora", "size": 4096, "tokens": 16, "direction": "forward", "contender": "unsloth"}
NAME = "lorafam.bench.cases.test_layers::test_layer[qlora-4096-16-forward-{}]"


def test_case_of() -> None:
    assert case_of(NAME.format("unsloth")) == CASE
    assert case_of("bench.cases.test_layers") == {}


def test_only_lorafam_fails() -> None:
    failed = {NAME.format("lorafam"): "worse", NAME.format("peft"): "raised"}
    assert shared_out(failed, ["lorafam", "peft"]) == {
        "failures": {NAME.format("lorafam"): "worse"},
        "left_out": [{**CASE, "contender": "peft", "reason": "raised"}],
    }


def test_a_run_that_did_not_end() -> None:
    failed = {"lora qlora": "ended with code -6"}
    assert shared_out(failed, ["lorafam", "peft"])["failures"] == failed
    assert shared_out(failed, ["unsloth"]) == {
        "failures": {},
        "left_out": [{"contender": "unsloth", "reason": "ended with code -6"}],
    }


def test_told() -> None:
    assert told({**CASE, "reason": "worse"}) == "Unsloth qlora 4096 x 16 forward: worse"
    assert told({"contender": "axolotl", "reason": "axolotl not installed"}) == "axolotl: axolotl not installed"
