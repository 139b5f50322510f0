import dataclasses

import pytest
from typer.testing import CliRunner

from lorafam.cli.main import app
from lorafam.cli.settings import flag
from lorafam.train import FinetuneConfig


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
    assert "--no-resume" not in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_fits(width: int) -> None:
    text = CliRunner().invoke(app, ["finetune", "--help"], env={"COLUMNS": str(width)}).output
    assert max(map(len, text.splitlines())) <= width
