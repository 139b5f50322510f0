"""transformers beside its documented interface. Never imports it: it reads what a module of its carries."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

# what RWKV divides, in a model `rescales_every` tells of
RESCALED = re.compile(r"blocks\.(?P<block>\d+)\.(attention\.output|feed_forward\.value)")


def checkpointing_field(arguments: Any) -> str:
    """The field of TrainingArguments that asks for activation checkpointing: renamed between 5.1.0 and 5.17.0."""
    known = {item.name for item in dataclasses.fields(arguments)}
    return next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)


def rescales_every(module: Any) -> int:
    """After how many blocks a model halves what goes on, and in evaluation the weights for it, in place; 0 for none.
    RWKV's, seen in 5.24.0.
    """
    rescales = hasattr(module, "_rescale_layers") and hasattr(module, "layers_are_rescaled")
    return int(module.config.rescale_every) if rescales else 0


def forget_quantisation(model: Any, dense: list[str], *, rest: bool) -> None:
    """Makes a model that was loaded quantised say what it is: not quantised at all, or, where there is a `rest`, not in
    the modules `dense`. Both for `.to(dtype)` and for config.json.
    """
    config: Any = getattr(model, "config", None)
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return
    if rest:
        skipped = getattr(settings, "llm_int8_skip_modules", None) or []
        settings.llm_int8_skip_modules = [*skipped, *(path for path in dense if path not in skipped)]
        return
    del config.quantization_config
    # what each module's configuration says of it, and the model's own marks
    for module in model.modules():
        if getattr(getattr(module, "config", None), "_is_quantized", False):
            module.config._is_quantized = False
    for name in ("hf_quantizer", "quantization_method", "_weight_conversions"):
        model.__dict__.pop(name, None)
    for name in ("is_quantized", "is_loaded_in_4bit"):
        if getattr(model, name, False):
            setattr(model, name, False)


def forget_tying(model: Any) -> None:
    """Makes a model say that its head and its embeddings have weights of their own, and parts what else is tied, a
    head's bias: its configuration has one word for all. Seen in 5.24.0.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, other in dict(getattr(model, "all_tied_weights_keys", None) or {}).items():
        if name in named and named[name] is named.get(other):
            parent, _, own = name.rpartition(".")
            shared = named[name]
            copy = type(shared)(shared.detach().clone(), requires_grad=shared.requires_grad)
            setattr(model.get_submodule(parent), own, copy)
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
        if getattr(module, "all_tied_weights_keys", None):
            module.all_tied_weights_keys = {}


class Experts(NamedTuple):
    """What an experts module says of how it computes (`use_experts_implementation`)."""

    num_experts: int
    has_gate: bool
    has_bias: bool
    has_post_expert_norm: bool
    is_transposed: bool
    is_expert_parallel: bool

    @property
    def projections(self) -> tuple[str, str]:
        """The names of the weights, in the order in which they are used."""
        return ("gate_up_proj" if self.has_gate else "up_proj"), "down_proj"


# in every version seen: 5.0.0, 5.1.0, 5.2.0, 5.3.0, 5.4.0, 5.17.0, 5.24.0
_ALWAYS = ("num_experts", "has_bias", "is_transposed")


def experts_of(module: Any) -> Experts | None:
    """What the module says, with what held for all modules before a version let them say it; None where it says
    nothing.
    """
    if not all(hasattr(module, name) for name in (*_ALWAYS, "down_proj")):
        return None
    experts = Experts(
        num_experts=module.num_experts,
        # from 5.3.0
        has_gate=getattr(module, "has_gate", True),
        has_bias=module.has_bias,
        # in 5.24.0, not in 5.17.0
        has_post_expert_norm=getattr(module, "has_post_expert_norm", False),
        is_transposed=module.is_transposed,
        # in 5.24.0, not in 5.17.0: before, hooks on the experts or a forward of the module's own tell
        is_expert_parallel=getattr(module, "_is_expert_parallel", False),
    )
    # the decorator gives a gate to every class that has none, in all versions
    computes = "_apply_gate" if experts.has_gate else "act_fn"
    return experts if hasattr(module, experts.projections[0]) and hasattr(module, computes) else None


def use_one_gpu(arguments: Any) -> None:
    """Makes `TrainingArguments` forget all GPUs but one. Seen in 5.0.0, 5.17.0 and 5.24.0."""
    arguments._n_gpu = 1


def is_pretrained(model: Any) -> bool:
    """Whether a model is one of transformers', which can have adapters."""
    return hasattr(type(model), "_hf_peft_config_loaded")


def let_adapters_train(model: Any, present: bool) -> None:
    """Says whether a model has adapters: Trainer asks before it trains one that was loaded quantised, and where there
    are, checkpointing lets gradients into the first block. Seen in 5.0.0, 5.17.0 and 5.24.0.
    """
    model._hf_peft_config_loaded = present
