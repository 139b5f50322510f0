import subprocess
import sys

from typer.testing import CliRunner

import lorafam
from lorafam.cli.main import app


def test_help_and_version() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert "finetune" in shown.output
    assert "doctor" in shown.output
    bare = CliRunner().invoke(app, [])
    assert (bare.exit_code, bare.stderr) == (2, "")
    assert "finetune" in bare.stdout
    assert CliRunner().invoke(app, ["--version"]).output == f"lorafam {lorafam.__version__}\n"


def test_nothing_heavy_is_imported_before_a_command_runs() -> None:
    heavy = ["transformers", "accelerate", "matplotlib", "numba", "bitsandbytes", "peft", "yaml"]
    code = f"import sys, lorafam.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
