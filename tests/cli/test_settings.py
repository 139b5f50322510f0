from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lorafam.cli.settings import convert, merge, parse
from lorafam.finetune import FinetuneConfig, InputError
from lorafam.finetune.run_folder import RunFolder

NEEDED = {"model": "m", "text": "t", "output": "o"}


def test_flag_over_file_over_default(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model: a\ntext: t\nrank: 4\nlearning-rate: 2e-4\nsteps: 7\ndouble_quant: no\n")
    config = merge({"output": "o", "rank": 2, "steps": None}, path)
    assert config == FinetuneConfig(
        model="a", text="t", output="o", rank=2, learning_rate=2e-4, steps=7, double_quant=False
    )
    assert merge(NEEDED, None) == FinetuneConfig(**NEEDED)


def test_false_and_zero_are_given(tmp_path: Path) -> None:
    """A flag with a false value wins as well."""
    path = tmp_path / "run.yaml"
    path.write_text("dropout: 0.5\nrslora: true\nsave_every: 3\n")
    config = merge({**NEEDED, "dropout": 0.0, "rslora": False, "save_every": 0}, path)
    assert (config.dropout, config.rslora, config.save_every) == (0.0, False, 0)


@pytest.mark.parametrize("name", NEEDED)
def test_missing_setting_is_named(name: str) -> None:
    flags = {key: value for key, value in NEEDED.items() if key != name}
    with pytest.raises(InputError, match=f"^{name}: missing; give --{name} or the key {name} in --config"):
        merge(flags, None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("steps", "ten", "steps: expected an integer, got 'ten'"),
        ("steps", 1.5, "steps: expected an integer, got 1.5"),
        ("steps", True, "steps: expected an integer, got True"),
        ("steps", None, "steps: expected an integer, got None"),
        ("alpha", "much", "alpha: expected a number, got 'much'"),
        ("alpha", True, "alpha: expected a number, got True"),
        ("rslora", "yes", "rslora: expected true or false, got 'yes'"),
        ("rslora", 1, "rslora: expected true or false, got 1"),
        ("model", 5, "model: expected a text, got 5"),
        ("quantize", 4, "quantize: expected a text, got 4"),
        ("target_modules", [1], r"target_modules: expected names, got \[1\]"),
        ("target_modules", "", "target_modules: expected names, got"),
        ("target_rank", "half", "target_rank: expected an integer, got 'half'"),
        ("rnk", 4, r"rnk: no such setting; did you mean rank\?"),
        ("zzz", 4, "zzz: no such setting$"),
    ],
)
def test_wrong_key_or_type_is_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        parse({key: value})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("quantize", "none", None),
        ("quantize", None, None),
        ("quantize", "nf4", "nf4"),
        ("alpha", 3, 3.0),
        ("learning_rate", "2e-4", 2e-4),
        ("target_modules", "q_proj, v_proj", ("q_proj", "v_proj")),
        ("target_modules", ["q_proj"], ("q_proj",)),
        ("target_modules", "all-linear", None),
        ("target_modules", None, None),
        ("target_rank", 3, 3),
        ("target_rank", None, None),
        ("orthogonality", 1, 1.0),
    ],
)
def test_values_are_converted(name: str, value: Any, expected: Any) -> None:
    found = convert(name, value)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize("field", dataclasses.fields(FinetuneConfig), ids=lambda field: field.name)
def test_every_setting_can_be_read_back(field: dataclasses.Field[Any]) -> None:
    """Each field's type is one `convert` knows, and its own default passes."""
    if field.default is not dataclasses.MISSING:
        assert convert(field.name, field.default) == field.default


def test_resume_takes_the_folders_settings(tmp_path: Path) -> None:
    config = FinetuneConfig(model="m", text="t", output=str(tmp_path), rank=3, target_modules=("a", "b"))
    RunFolder(config).open()
    flags = {"output": str(tmp_path), "resume": True}
    assert merge(flags, None) == dataclasses.replace(config, resume=True)
    assert merge({**flags, "rank": 5}, None).rank == 5
    moved = tmp_path.rename(tmp_path.parent / "moved")
    assert merge({**flags, "output": str(moved)}, None).output == str(moved)
