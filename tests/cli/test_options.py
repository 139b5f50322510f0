import dataclasses
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from lorafam.cli.main import app
from lorafam.cli.options import with_setting_flags
from lorafam.cli.settings import flag
from lorafam.finetune import FinetuneConfig


def test_help_has_every_setting() -> None:
    text = CliRunner().invoke(app, ["finetune", "--help"], terminal_width=200, env={"COLUMNS": "200"}).output
    for field in dataclasses.fields(FinetuneConfig):
        assert flag(field.name) in text
        help_text = field.metadata["help"]
        assert help_text.split(". [")[0] in text, field.name
    assert "Rank; for AdaLoRA the initial rank. [8]" in text
    assert "[half the rank]" in text
    assert "Highest learning rate. [0.0002]" in text
    assert "4-bit base weights: nf4, fp4 or none. [none]" in text
    assert "[]" not in text
    assert "--no-double-quant" in text
    assert "--no-rslora" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_fits(width: int) -> None:
    text = CliRunner().invoke(app, ["finetune", "--help"], env={"COLUMNS": str(width)}).output
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--rslora", "--no-double-quant", "--rank", "3"], {"rslora": True, "double_quant": False, "rank": "3"}),
        (["--no-rslora", "--double-quant"], {"rslora": False, "double_quant": True}),
        (["--no-gradient-checkpointing", "--config", "a.yaml"], {"gradient_checkpointing": False, "config": "a.yaml"}),
    ],
)
def test_flags_arrive(arguments: list[str], expected: dict[str, Any]) -> None:
    """Every setting arrives, as None where its flag wasn't given."""
    arrived: dict[str, Any] = {}

    def command(**settings: Any) -> None:
        arrived.update(settings)

    app = typer.Typer()
    app.command()(with_setting_flags(command))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert arrived.keys() == {"config", *(field.name for field in dataclasses.fields(FinetuneConfig))}
    assert {
        key: str(value) if key == "config" else value for key, value in arrived.items() if value is not None
    } == expected
