"""`python bench/gpu_environment.py VENV TORCH`: what `make gpu` needs, beside the torch that the machine has.

The venv sees the packages of the Python that makes it. A torch and a triton found there are used and never replaced;
where there is no torch, the requirement TORCH is installed from PyPI, which on Linux has the CUDA build. Run by path
before anything is installed, so it imports the standard library alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NO_GPU = "gpu: expected a CUDA GPU, torch {torch} finds none"
# what runs in another interpreter: null without torch
PROBE = """
import json
from importlib.metadata import PackageNotFoundError, version
def found(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None
try:
    import torch
except (ImportError, OSError):
    print("null")
else:
    cuda = torch.cuda.is_available() and torch.version.cuda is not None
    print(json.dumps({"torch": found("torch"), "triton": found("triton"), "cuda": cuda}))
"""
SITE = "import sysconfig; print(sysconfig.get_path('purelib'))"


def main(arguments: list[str]) -> None:
    venv, torch_requirement = Path(arguments[0]), arguments[1]
    refuse_without_gpu(probe(sys.executable))
    python = make_venv(venv)
    found = probe(python)
    if found is None:
        print(f"installing {torch_requirement} and triton: several GB")
        pip(python, torch_requirement, "triton")
        found = probe(python)
        if found is None:
            raise SystemExit(f"gpu: {torch_requirement} was installed and can't be imported")
    refuse_without_gpu(found)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "constraints.txt"
        kept.write_text(constraints(found), encoding="utf-8")
        print(f"installing lorafam beside {', '.join(constraints(found).split())}", flush=True)
        pip(python, "--constraint", str(kept), "--editable", ".[dev]")


def probe(python: str | Path) -> dict[str, Any] | None:
    """{"torch": version, "triton": version or None, "cuda": whether it finds a GPU}; None where torch isn't there."""
    done = subprocess.run([str(python), "-c", PROBE], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def refuse_without_gpu(found: dict[str, Any] | None) -> None:
    """SystemExit where there is a torch and it finds no GPU."""
    if found is not None and not found["cuda"]:
        raise SystemExit(NO_GPU.format(**found))


def constraints(found: dict[str, Any]) -> str:
    """pip's constraint file that keeps torch and triton as they are."""
    return "".join(f"{name}=={found[name]}\n" for name in ("torch", "triton") if found[name])


def make_venv(venv: Path) -> Path:
    """Its Python. Made from within a venv, it sees that one's packages too, which --system-site-packages leaves out."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(venv)], check=True)
    if sys.prefix != sys.base_prefix:
        site = subprocess.run([str(python), "-c", SITE], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
        outer = [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
        (Path(site) / "outer_venv.pth").write_text("\n".join(outer) + "\n", encoding="utf-8")
    return python


def pip(python: Path, *arguments: str) -> None:
    """SystemExit where pip fails; it has then said why."""
    done = subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=False)
    if done.returncode:
        raise SystemExit(f"gpu: pip could not install {' '.join(arguments)}")


if __name__ == "__main__":
    main(sys.argv[1:])
