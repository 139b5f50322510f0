import dataclasses
from typing import Any

import pytest

from lorafam.finetune import FinetuneConfig, InputError

NEEDED = {"model": "m", "text": "t", "output": "o"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ""),
        ("rank", 0),
        ("rank", -1),
        ("alpha", -1.0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("method", "lola"),
        ("quantize", "int4"),
        ("block_size", 65),
        ("dora_dropout", "both"),
        ("target_modules", ()),
        ("sequence_length", 1),
        ("held_out_tokens", 0),
        ("steps", 0),
        ("batch_size", 0),
        ("gradient_accumulation", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("schedule", "step"),
        ("warmup_steps", 101),
        ("dtype", "float16"),
        ("optimizer", "sgd"),
        ("seed", -1),
        ("save_every", -1),
        ("evaluate_every", -1),
        ("target_rank", 2),
        ("orthogonality", 0.1),
    ],
)
def test_wrong_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: ") as error:
        FinetuneConfig(**{**NEEDED, name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_rank": 9}, r"target_rank: expected at most 8 \(rank\), got 9"),
        ({"target_rank": 0}, "target_rank: expected at least 1"),
        (
            {"adalora_warmup": 50, "adalora_final": 50},
            "adalora_warmup, adalora_final: expected together fewer than 100",
        ),
        ({"adalora_interval": 0}, "adalora_interval: expected at least 1"),
        ({"orthogonality": -1.0}, "orthogonality: expected a finite number"),
        ({"rslora": True}, "rslora: "),
    ],
)
def test_wrong_adalora_schedule_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        FinetuneConfig(**NEEDED, method="adalora", **changes)


def test_rank_schedule_is_filled_in() -> None:
    assert FinetuneConfig(**NEEDED, method="adalora", rank=6, steps=120).rank_schedule() == {
        "init_rank": 6,
        "target_rank": 3,
        "total_steps": 120,
        "warmup_steps": 20,
        "final_steps": 40,
        "interval": 2,
        "orthogonality": 0.5,
    }
    given = FinetuneConfig(**NEEDED, method="adalora", adalora_warmup=0, orthogonality=0.0).rank_schedule()
    assert (given["warmup_steps"], given["orthogonality"]) == (0, 0.0)


def test_adapter_config_takes_every_adapter_setting() -> None:
    """Each setting of the adapter reaches `lorafam.adapt`."""
    config = FinetuneConfig(
        **NEEDED,
        method="dora",
        rank=3,
        alpha=5.0,
        dropout=0.25,
        target_modules=("q_proj",),
        quantize="fp4",
        double_quant=False,
        block_size=128,
        rslora=True,
        dora_dropout="input",
    )
    adapter = config.adapter_config()
    assert adapter.r == 3
    for name in ("method", "alpha", "dropout", "target_modules", "quantize", "double_quant", "block_size", "rslora"):
        assert getattr(adapter, name) == getattr(config, name)
    assert adapter.dora_dropout == "input"


@pytest.mark.parametrize("field", dataclasses.fields(FinetuneConfig), ids=lambda field: field.name)
def test_every_setting_is_described(field: "dataclasses.Field[Any]") -> None:
    assert field.metadata["help"].rstrip("]").strip()
    assert field.metadata["group"]
