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
from typing import Any, NamedTuple

import torch

from ..processes import die_with_parent
from ..told import told
from . import split, user_table
from .ahead_of_time import Source, noted
from .launch import architecture, compiled_only

# more than compiling takes on one core
_LIMIT_SECONDS = 900


class Compiled(NamedTuple):
    """How many kernels there are, how many the cache had, and by kernel what the compiler said against others."""

    kernels: int
    found: int
    errors: dict[str, str]


def compile_ahead(device: torch.device, workers: int) -> None:
    """Compiles what the self-check on `device` will launch; warns, with the reason, where that can't be done: the
    launches then compile one kernel after another. What doesn't compile they will meet, and the check tells it.
    """
    try:
        run_apart(architecture(device), torch.cuda.get_device_name(device), split.multiprocessors(device), workers)
    except RuntimeError as error:
        warnings.warn(
            f"kernels are compiled one after another, for some minutes: compiling them ahead failed: {error}",
            stacklevel=2,
        )


def run_apart(architecture: str, model: str, multiprocessors: int, workers: int) -> Compiled:
    """Runs this module for a GPU in a process of its own. Raises RuntimeError where that fails."""
    what = {"architecture": architecture, "model": model, "multiprocessors": multiprocessors, "workers": workers}
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
        raise RuntimeError(str(error)) from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")
    return Compiled(**json.loads(done.stdout.splitlines()[-1]))


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


def _compile(index: int) -> tuple[bool, str | None]:
    """Whether the cache had it, and the compiler's error."""
    import triton

    hits: list[bool] = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
    source, target, options = _sources[index]
    try:
        triton.compile(source, target=target, options=options)
    except Exception as error:
        return False, told(error)
    return any(hits), None


def main(what: dict[str, Any]) -> Compiled:
    """Compiles for the GPU of `run_apart`'s arguments."""
    split.stand_in_for(what["multiprocessors"])
    user_table.use(what["model"], what["architecture"])
    _sources[:] = sources(what["architecture"])
    in_cache, errors = 0, {}
    with multiprocessing.get_context("fork").Pool(what["workers"], die_with_parent) as pool:
        for index, (hit, error) in enumerate(pool.imap(_compile, range(len(_sources)))):
            in_cache += hit
            if error is not None:
                errors[f"{_sources[index].source.fn.__name__} ({index})"] = error
    return Compiled(len(_sources), in_cache, errors)


if __name__ == "__main__":
    die_with_parent()
    print(json.dumps(main(json.loads(sys.argv[1]))._asdict()))
