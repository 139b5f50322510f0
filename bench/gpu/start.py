"""`python bench/gpu/start.py [arguments]`: `python -m lorafam.bench.gpu` with the Python that runs this, as it is.

Nothing is installed. A tree of links makes lorafam, lorafam.kernels and lorafam.bench importable from the checkout
(setup.py puts them together in an installation), and WHEELS names a folder of wheels that are unpacked beside it. Run
by path, so it imports the standard library alone until the wheels are there.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# folder of the checkout → where it lies in the tree
LINKED = {"lorafam": "lorafam", "kernels": "lorafam/kernels", "bench": "lorafam/bench", "tests": "tests"}
FILES = ("pyproject.toml", "README.md")
# what a wheel never replaces: they fit the machine's driver and each other
MACHINES_OWN = ("torch", "triton")
RESULTS = "LORAFAM_GPU_RESULTS"
# arguments that are paths
PATHS = ("--results", "--packed")


def main(arguments: list[str]) -> None:
    if importlib.util.find_spec("torch") is None:
        raise SystemExit(f"gpu: {sys.executable} has no torch: name one that has with PYTHON=")
    tree = linked_tree(ROOT / "build" / "gpu-tree")
    places = [tree, *unpacked(os.environ.get("WHEELS", ""), ROOT / "build" / "gpu-wheels")]
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*map(str, places), *([before] if before else [])])
    os.environ.setdefault(RESULTS, str(ROOT / "bench" / "results"))
    arguments = absolute(arguments)
    # `python -m` looks in the folder it is called from first
    os.chdir(tree)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "lorafam.bench.gpu", *arguments])


def absolute(arguments: list[str]) -> list[str]:
    """With paths as they are meant where this was called from."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in PATHS:
        parser.add_argument(name)
    known, rest = parser.parse_known_args(arguments)
    paths = [(name, getattr(known, name.strip("-"))) for name in PATHS]
    return [*rest, *(f"{name}={Path(path).absolute()}" for name, path in paths if path)]


def linked_tree(tree: Path) -> Path:
    """Folders of links to every file, so that nothing is written into the checkout; what is gone there goes here."""
    wanted = {tree / name: ROOT / name for name in FILES}
    for folder, place in LINKED.items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            if path.is_file() and not {"__pycache__", "results"} & set(inside.parts):
                wanted[tree / place / inside] = path
    for link in [path for path in tree.rglob("*") if path.is_symlink()]:
        if wanted.get(link) != link.readlink():
            link.unlink()
    for link, path in wanted.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path)
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.findall(r'^version = "(.+)"$', text, re.MULTILINE)[0]
    # lorafam asks for its own version, as of any package
    described = tree / f"lorafam-{version}.dist-info"
    for other in tree.glob("lorafam-*.dist-info"):
        if other != described:
            shutil.rmtree(other)
    described.mkdir(exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: lorafam\nVersion: {version}\n"
    (described / "METADATA").write_text(metadata, encoding="utf-8")
    return tree


def unpacked(folder: str, into: Path) -> list[Path]:
    """The folder that the wheels of `folder` were unpacked into, none where `folder` is empty.

    A wheel is a zip file: pip isn't needed, nor that the wheel is whole (libraries for other versions of CUDA may have
    been taken out). SystemExit where there are no wheels, or one isn't for this Python.
    """
    if not folder:
        return []
    wheels = sorted(Path(folder).resolve().glob("*.whl"))
    if not wheels:
        raise SystemExit(f"gpu: WHEELS={folder}: no wheels are there")
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for wheel in wheels:
        name = wheel.name.split("-")[0].lower()
        if name in MACHINES_OWN:
            print(f"{wheel.name}: left aside, the machine's own {name} is used")
            continue
        if not fits(wheel.name):
            raise SystemExit(f"gpu: WHEELS={folder}: {wheel.name} is not for this Python and machine")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
        print(f"{wheel.name}: unpacked")
    return [into]


def fits(wheel: str) -> bool:
    """Whether a wheel of this name is for the running Python."""
    pythons, abis, platforms = (part.split(".") for part in wheel.removesuffix(".whl").split("-")[-3:])
    minor = sys.version_info.minor
    own = {f"cp3{minor}", f"py3{minor}", "py3"}
    older = {f"cp3{number}" for number in range(minor + 1)}
    python = own & set(pythons) or ("abi3" in abis and older & set(pythons))
    machine = os.uname().machine
    return bool(python) and any(
        name == "any" or ((name.startswith(sys.platform) or "linux" in name) and name.endswith(machine))
        for name in platforms
    )


if __name__ == "__main__":
    main(sys.argv[1:])
