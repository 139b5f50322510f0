"""`lorafam finetune`: a model, a text, an adapter."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..finetune.errors import DivergedError, InputError, one_line
from .errors import INTERRUPTED, fail
from .options import with_setting_flags
from .settings import merge

if TYPE_CHECKING:
    from ..finetune.result import FinetuneResult
    from ..finetune.settings import FinetuneConfig

COMMAND = "lorafam finetune"


@with_setting_flags
def finetune(config: Path | None = None, **settings: Any) -> None:
    """Fine-tune a language model on a text with LoRA, DoRA or AdaLoRA, on 4-bit weights with --quantize nf4.

    Leaves adapter/ (PEFT's format), log.jsonl, loss.png and checkpoints in the output folder.
    An interrupted run goes on with: lorafam finetune --resume --output FOLDER
    What a file given by --config switches on, --no-NAME switches off.
    """
    try:
        run(merge(settings, config))
    except InputError as error:
        fail(str(error), command=COMMAND)
    except (DivergedError, OSError) as error:
        fail(one_line(error), command=COMMAND, code=1)


def run(config: FinetuneConfig) -> None:
    """Trains and prints the result; an interruption is told with how to go on."""
    # PEFT imports bitsandbytes, which then misses a kernel of its own that isn't used here
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        # bars of the libraries' own, for decoding a GGUF file or downloading a model
        os.environ.setdefault("TQDM_DISABLE", "1")
    from rich.console import Console
    from transformers.utils import logging as transformers_logging

    from ..finetune.loop import finetune as train
    from ..finetune.progress import ConsoleReporter

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        result = train(config, reporter=ConsoleReporter(Console(stderr=True)))
    except KeyboardInterrupt:
        fail(f"interrupted; go on with: {_how_to_resume(config)}", command=COMMAND, code=INTERRUPTED)
    show(result)


def show(result: FinetuneResult) -> None:
    """The result as a table."""
    from rich.console import Console
    from rich.table import Table

    from ..finetune.progress import human_bytes

    fall, fall_error = result.fall
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows = {
        "held-out loss before": f"{result.before.mean:.4f} ± {result.before.standard_error:.4f}",
        "held-out loss after": f"{result.after.mean:.4f} ± {result.after.standard_error:.4f}",
        "fell by": f"{fall:.4f} ± {fall_error:.4f} (paired by chunk)",
        "trainable parameters": f"{result.trainable_parameters:,}",
        "seconds a step": "none made" if result.seconds_per_step is None else f"{result.seconds_per_step:.3f}",
        "peak memory": f"{human_bytes(result.peak_resident)}, {human_bytes(result.extra_memory)} over the loaded model",
        "adapter": _short(result.adapter),
        "log": _short(result.log),
        "curves": _short(result.curves),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console(highlight=False).print(table)


def _how_to_resume(config: FinetuneConfig) -> str:
    return f"{COMMAND} --resume --output {shlex.quote(config.output)}"


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
