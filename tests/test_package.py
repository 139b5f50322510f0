"""What importing costs and needs, run as a user would: in fresh processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def python(code: str, cwd: Path = ROOT, **environment: str) -> str:
    command = [sys.executable, "-c", code]
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_needs_no_extra() -> None:
    """Importing lorafam works where triton, numba and the extras can't be imported, and loads none of them where they
    can. torch comes first: since 2.14 it looks for triton itself.
    """
    blocked = ["triton", "numba", "bitsandbytes", "peft", "transformers", "accelerate", "typer", "rich", "matplotlib"]
    code = f"""
import sys, json, torch
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not there")
sys.meta_path.insert(0, Blocked())
import lorafam
print(json.dumps([name for name in {blocked!r} if name in sys.modules]))
"""
    assert json.loads(python(code)) == []


def test_import_loads_no_application_and_no_instrument() -> None:
    code = """
import sys, lorafam
parts = {"inspect", "tune", "finetune", "cli", "bench"}
print([name for name in sys.modules if name.startswith("lorafam.") and name.split(".")[1] in parts])
"""
    assert python(code).strip() == "[]"


def test_import_time(tmp_path: Path) -> None:
    """At most 0.3 s beyond `import torch`, of the processor: the least of five processes, since what else runs beside
    the tests isn't the import's. Timed inside, after torch: that takes ten seconds from a cold CUDA build, and the
    difference of two such would be noise. From bytecode, as pip leaves it: compiling the sources anew takes five times
    as long, and an environment may forbid to keep what was compiled.
    """
    code = "import time, torch; start = time.process_time(); import lorafam; print(time.process_time() - start)"
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    python("import lorafam", **bytecode)
    seconds = [float(python(code, **bytecode)) for _ in range(5)]
    assert min(seconds) <= 0.3, seconds


@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_our_kernels_folder_shadows_nothing(library: str) -> None:
    """Run from the repository's root, other libraries find the folder `kernels/` when they probe for a package of that
    name.
    """
    python(f"import {library}; from transformers import Trainer, LlamaForCausalLM")


def test_installed_names() -> None:
    """kernels/ and bench/ are importable inside lorafam, from anywhere."""
    python("import lorafam.kernels.formats, lorafam.bench", cwd=Path("/"))
