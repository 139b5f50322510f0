"""The self-check's kernels compiled many at a time into Triton's cache on disk, where its launches then find them.

    python -m lorafam.backends.triton_gpu.compile_ahead '{"architecture": "sm_90", …}'

In a process of its own, which forks as many as there are cores: torch and Triton are imported once, a script without
`if __name__ == "__main__"` isn't run again, and no child inherits a CUDA context. The calls are made on CPU tensors, as
the launches on this GPU would be: its architecture, tuned rows and number of multiprocessors decide what is compiled.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import warnings
from typing import Any

import torch

from . import split, user_table
from .ahead_of_time import Source, noted
from .launch import architecture, compiled_only

# more than compiling takes on one core
_LIMIT_SECONDS = 900


def compile_ahead(device: torch.device, workers: int) -> None:
    """Compiles what the self-check on `device` will launch; warns, with the reason, where that can't be done: the
    launches then compile one kernel after another.
    """
    what = {
        "architecture": architecture(device),
        "model": torch.cuda.get_device_name(device),
        "multiprocessors": split.multiprocessors(device),
        "workers": workers,
    }
    error = run_apart(what)
    if error is not None:
        warnings.warn(
            f"kernels are compiled one after another, for some minutes: compiling them ahead failed: {error}",
            stacklevel=2,
        )


def run_apart(what: dict[str, Any]) -> str | None:
    """Runs this module for `what` in a process of its own; why it failed, or None."""
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    environment.pop("LORAFAM_BACKEND", None)
    command = [sys.executable, "-m", __name__, json.dumps(what)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_LIMIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"exit code {done.returncode}"
    return None


def sources(arch: str) -> list[Source]:
    """What the self-check's launches on `arch` compile, each once."""
    from .. import eager, triton_gpu
    from ..self_check_cases import Draw, cases

    draw = Draw(0, eager, torch.device("cpu"))
    with compiled_only(arch), noted() as found:
        for case in cases():
            getattr(triton_gpu, case.op)(*case.make(draw))
    # no call of these is to be made again
    triton_gpu.forget()
    return list(found.values())


# what the forked processes find
_sources: list[Source] = []


def _compile(index: int) -> str | None:
    import triton

    source, target, options = _sources[index]
    try:
        triton.compile(source, target=target, options=options)
    except Exception as error:  # the launch will meet it too, and the check then tells it
        return f"{type(error).__name__}: {error}"
    return None


def main(what: dict[str, Any]) -> int:
    """Compiles; the number of kernels."""
    split.stand_in_for(what["multiprocessors"])
    user_table.use(what["model"], what["architecture"])
    _sources[:] = sources(what["architecture"])
    with multiprocessing.get_context("fork").Pool(what["workers"]) as pool:
        for index, error in enumerate(pool.imap(_compile, range(len(_sources)))):
            if error is not None:
                print(f"{_sources[index].source.fn.__name__}: {error}", file=sys.stderr)
    return len(_sources)


if __name__ == "__main__":
    print(main(json.loads(sys.argv[1])))
