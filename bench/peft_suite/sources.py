"""PEFT's tests, from the source distribution of the version that is installed."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

# no wheel has the tests; what pip builds of it is its metadata, with what is installed
DOWNLOAD = ("-m", "pip", "download", "--quiet", "--no-binary", ":all:", "--no-deps", "--no-build-isolation")


def unpacked(build: Path) -> Path:
    """A folder with PEFT's `tests/` and nothing else of it, fetched once a version."""
    name = f"peft-{version('peft')}"
    folder = build / name
    if not (folder / "pytest.ini").exists():
        build.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, *DOWNLOAD, name.replace("-", "=="), "--dest", str(build)], check=True)
        with tarfile.open(build / f"{name}.tar.gz") as archive:
            tests = [member for member in archive.getmembers() if member.name.startswith(f"{name}/tests/")]
            archive.extractall(build, tests, filter="data")
        # the distribution leaves out what makes the folder a package; pytest takes no settings from further up
        (folder / "tests" / "__init__.py").touch()
        (folder / "pytest.ini").touch()
    return folder
