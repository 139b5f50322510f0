import importlib.metadata
import json

import pytest
import torch
from typer.testing import CliRunner

from lorafam.backends import selection
from lorafam.cli import doctor
from lorafam.cli.main import app


def test_json_says_what_is_installed_and_what_runs() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert found["packages"]["transformers"] == importlib.metadata.version("transformers")
    assert found["ops"] == [row._asdict() for row in selection.report()]
    assert len(found["ops"]) >= 5
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert found["cpu"]["cores"] >= 1


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit(width: int) -> None:
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": str(width)})
    assert result.exit_code == 0
    assert max(map(len, result.stdout.splitlines())) <= width
    for row in selection.report():
        assert row.op in result.stdout
        assert row.backend in result.stdout


def test_unknown_backend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(selection.VARIABLE, "fast")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 2
    assert "torch" in result.stdout
    assert result.stderr.startswith("lorafam doctor: LORAFAM_BACKEND: expected one of")
    assert result.stderr.count("\n") == 1


def test_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("torch", "no-such-package"))
    assert doctor.report()["packages"]["no-such-package"] is None
    assert "not installed" in CliRunner().invoke(app, ["doctor"]).stdout


@pytest.mark.parametrize(
    ("text", "model", "features"),
    [
        (
            "model name\t: A CPU\nflags\t\t: fpu avx2 fma avx512f avx512_bf16\n",
            "A CPU",
            ["avx2", "fma", "avx512f", "avx512_bf16"],
        ),
        ("model name : B\nFeatures : fp asimd sve bf16\n", "B", ["asimd", "bf16", "sve"]),
        ("model name : C\n", "C", None),
    ],
)
def test_cpu_features(text: str, model: str, features: list[str] | None, tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(doctor, "_CPUINFO", path)
    assert (doctor.cpu()["model"], doctor.cpu()["features"]) == (model, features)
