"""A Python with a row's packages, and what it really has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .matrix import PACKAGES, Row

_PROBE = """
import importlib.metadata, json, platform, sys
found = {"Python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found[name] = None
print(json.dumps(found))
"""


class Environment:
    """`python` and the variables with which it finds a row's packages, in `folder`."""

    def __init__(self, row: Row, folder: Path) -> None:
        self.row, self.folder = row, folder
        self.python = Path(sys.executable) if row.beside else folder / "bin" / "python"
        path = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])] if row.beside else []
        self.variables = {**os.environ, **({"PYTHONPATH": os.pathsep.join(path)} if path else {})}

    def make(self, root: Path) -> None:
        """Installs what isn't there. Raises RuntimeError with pip's last line where it can't."""
        done = self.folder / "installed"
        wanted = [f"{name}=={version}" for name, version in self.row.packages.items()]
        if done.is_file() and done.read_text(encoding="utf-8").split() == wanted:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.row.beside:
            self._pip(Path(sys.executable), "--upgrade", "--no-deps", "--target", str(self.folder), *wanted)
        else:
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(self.folder)], check=True)
            constraints = self.folder / "constraints.txt"
            constraints.write_text("\n".join(wanted) + "\n", encoding="utf-8")
            kept = ("--constraint", str(constraints))
            # torch first: nothing that follows pulls another build of it
            self._pip(self.python, *kept, *(line for line in wanted if line.startswith("torch==")))
            self._pip(self.python, *kept, "--editable", f"{root}[dev]")
        done.write_text("\n".join(wanted) + "\n", encoding="utf-8")

    def versions(self) -> dict[str, str | None]:
        """What its Python finds, which the page tells. Raises RuntimeError where it isn't what the row says."""
        command = [str(self.python), "-c", _PROBE, *PACKAGES]
        done = subprocess.run(command, env=self.variables, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, str | None] = json.loads(done.stdout)
        for name, version in self.row.packages.items():
            if (found[name] or "").split("+")[0] != version:
                raise RuntimeError(f"{name}: expected {version}, got {found[name]}")
        return found

    def _pip(self, python: Path, *arguments: str) -> None:
        command = [str(python), "-m", "pip", "install", "--quiet", *arguments]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise RuntimeError(f"pip: {said[-1]}")
