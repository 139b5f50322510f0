"""What is checked of a model in one way; each raises where values aren't what they should be."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lorafam
from lorafam.methods import AdapterLayer

from . import training
from .compared import (
    as_good,
    as_good_gradients,
    different,
    exact_gradients,
    exact_outputs,
    gradients,
    outputs,
    same,
    same_factors,
)
from .models import Made

Tensor = torch.Tensor
TOKENS, BATCHES = 5, 6


def forward(made: Made) -> None:
    """As PEFT's in evaluation, with adapters and without, by the ratio rule."""
    inputs, names = made.inputs(), made.row.outputs
    adapted = outputs(made.ours.eval(), inputs, names)
    plain = outputs(made.plain.eval(), inputs, names)
    as_good(adapted, plain, exact_outputs(made.exact.eval(), inputs, names), "outputs")
    with lorafam.disabled(made.ours) if made.way.own else made.ours.disable_adapter():
        disabled = outputs(made.ours, inputs, names)
    with made.plain.disable_adapter(), made.exact.disable_adapter():
        bare = outputs(made.plain, inputs, names)
        as_good(disabled, bare, exact_outputs(made.exact, inputs, names), "outputs without adapters")
    different(adapted, bare, "outputs")


def backward(made: Made) -> None:
    """Every factor's gradient as PEFT's, by the ratio rule."""
    batches = [made.inputs(seed) for seed in range(BATCHES)]
    ours, plain = ([gradients(model.train(), batch) for batch in batches] for model in (made.ours, made.plain))
    as_good_gradients(ours, plain, [exact_gradients(made.exact.train(), batch) for batch in batches])


def generate(made: Made) -> None:
    """PEFT's tokens: the likeliest, and of three beams."""
    prompt = made.prompt()
    for beams in (1, 3) if made.row.beams else (1,):
        ours, plain = (
            model.eval().generate(
                **prompt, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, num_beams=beams
            )
            for model in (made.ours, made.plain)
        )
        assert torch.equal(ours, plain), f"{beams} beams: expected {plain.tolist()}, got {ours.tolist()}"


def trainer(made: Made) -> None:
    """Resumed from a checkpoint of transformers' Trainer: the bits of a run without a break."""
    with tempfile.TemporaryDirectory(dir=made.folder) as folder:
        training.resumed_as_whole(made, Path(folder))


def files(made: Made) -> None:
    """A saved adapter is read by plain PEFT, by lorafam and, accelerated, by PEFT, with the same outputs."""
    from peft import PeftModel

    inputs, names = made.inputs(), made.row.outputs
    plain = outputs(made.plain.eval(), inputs, names)
    exact = exact_outputs(made.exact.eval(), inputs, names)
    with tempfile.TemporaryDirectory(dir=made.folder) as folder:
        if made.way.own:
            lorafam.save_adapter(made.ours, folder)
        else:
            made.ours.save_pretrained(folder)
        read: Any = PeftModel.from_pretrained(made.dense_base() if made.way.own else made.base(), folder)
        same_factors(read, made.plain, "read by PEFT")
        as_good(outputs(read.eval(), inputs, names), plain, exact, "read by PEFT")
        if not made.way.own:
            lorafam.accelerate(read)
            as_good(outputs(read, inputs, names), plain, exact, "read by PEFT, accelerated")
        if made.row.parameters and not made.way.own:
            return
        if made.way.own and made.way.four_bit:
            loaded = made.new_ours()
            _spoil(loaded)
        else:
            loaded = made.base()
        lorafam.load_adapter(loaded, folder)
        same_factors(loaded, made.plain, "read by lorafam")
        as_good(outputs(loaded.eval(), inputs, names), plain, exact, "read by lorafam")


def merge(made: Made) -> None:
    """Merged: the unmerged outputs by the ratio rule, and what transformers saves and loads; in 4 bits PEFT's bits."""
    inputs, names = made.inputs(), made.row.outputs
    model, plain = made.new_ours(), made.new_plain().merge_and_unload()
    if made.way.own:
        lorafam.merge_and_unload(model, into="fp32")
        left = [path for path, module in model.named_modules() if isinstance(module, AdapterLayer)]
        assert not left, f"merged: {left[:3]} are still there"
    else:
        model = model.merge_and_unload()
    merged, expected = (outputs(one.eval(), inputs, names) for one in (model, plain))
    if made.way.four_bit and not made.way.own:
        # the update is rounded away, as PEFT does it
        same(merged, expected, "merged in 4 bits")
        return
    exact = exact_outputs(made.exact.eval(), inputs, names)
    as_good(merged, expected, exact, "merged")
    with tempfile.TemporaryDirectory(dir=made.folder) as folder:
        model.save_pretrained(folder)
        same(outputs(_loaded(made, folder), inputs, names), merged, "merged, saved and loaded")
        if made.way.own and not made.way.four_bit:
            lorafam.save_adapter(made.ours, f"{folder}/adapter")
            lorafam.merge_files(made.saved_base, f"{folder}/adapter", f"{folder}/merged")
            as_good(outputs(_loaded(made, f"{folder}/merged"), inputs, names), expected, exact, "merged as files")


def _loaded(made: Made, folder: str) -> Any:
    import transformers

    return getattr(transformers, made.row.model).from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def _spoil(model: nn.Module) -> None:
    """Other factors, so that loading has something to do."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.zero_()


COLUMNS: dict[str, Callable[[Made], None]] = {
    "forward": forward,
    "backward": backward,
    "generate": generate,
    "Trainer": trainer,
    "save, load": files,
    "merge": merge,
}
