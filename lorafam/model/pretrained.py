"""What transformers asks a model of its adapters, answered for lorafam's as for PEFT's: `save_pretrained` writes the
adapters alone, its methods switch them, and Trainer's checkpoints hold them and what resuming needs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..compat.trainer_steps import SAFE_WEIGHTS, around_steps, is_sharded_by_others
from ..compat.transformers import is_pretrained, let_adapters_train
from ..methods import NF4Linear
from .adapt import adapter_layers, expected_layers
from .adapters import modules_beside, set_adapter
from .checkpoint import load_adapter, save_adapter
from .peft_settings import CONFIG_FILE
from .tensor_keys import unwrapped
from .trainable import TRAINABLE, load_trainable, save_trainable, trainable_tensors, values_of
from .tying import resize_token_embeddings, tie_weights


class Answer:
    """Stands in a model's place for one of its methods; copied and pickled with it."""

    def __init__(self, model: nn.Module, method: str) -> None:
        self._model, self._method = model, method
        replace_trainers_steps()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        answer = _refuse_to_save if self._method == _REFUSAL else _ANSWERS[self._method]
        return answer(self._model, *args, **kwargs)

    def __reduce__(self) -> Any:
        return Answer, (self._model, self._method)


def answer_for(model: nn.Module) -> None:
    """For a model whose adapters are in: from here on transformers is answered. Other libraries' models stay."""
    replace_trainers_steps()
    if is_pretrained(model):
        let_adapters_train(model, True)
        for method in _ANSWERS:
            model.__dict__[method] = Answer(model, method)


def answer_no_more(model: nn.Module) -> None:
    """For a model without adapters: its own methods are back, but `save_pretrained` where transformers couldn't load
    what it writes.
    """
    answered = [method for method in _ANSWERS if isinstance(model.__dict__.get(method), Answer)]
    for method in answered:
        del model.__dict__[method]
    if answered:
        let_adapters_train(model, False)
        if any(isinstance(module, NF4Linear) for module in model.modules()):
            model.__dict__["save_pretrained"] = Answer(model, _REFUSAL)


def _save_pretrained(
    model: nn.Module,
    save_directory: str | os.PathLike[str],
    is_main_process: bool = True,
    state_dict: Any = None,
    push_to_hub: bool = False,
    **more: Any,
) -> None:
    """The active adapter, or, as PEFT does, "default" and a folder for each other one; with `state_dict` its values."""
    if not is_main_process:
        return
    names = list(dict.fromkeys(name for layer in expected_layers(model).values() for name in layer.adapters))
    folder = Path(save_directory)
    with values_of(model, state_dict):
        for name in names:
            save_adapter(model, folder if name == "default" or len(names) == 1 else folder / name, name)
    if push_to_hub:
        # transformers', which asks for the same files again
        given = {name: more[name] for name in _OF_THE_HUB if name in more}
        model.push_to_hub(more.get("repo_id") or folder.resolve().name, **given)  # type: ignore[operator]


def _refuse_to_save(model: nn.Module, *_: Any, **__: Any) -> None:
    path = next(path for path, module in model.named_modules() if isinstance(module, NF4Linear))
    raise ValueError(
        f"save_pretrained: {path!r} is a 4-bit layer of lorafam's, which transformers would load as a new one: merge "
        "into 'bf16', save the adapter, or save the state_dict"
    )


def _set_adapter(model: nn.Module, adapter_name: str | Sequence[str]) -> None:
    names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
    if len(names) != 1:
        raise ValueError(f"adapter_name: expected one adapter, got {names}; combine_adapters makes one of several")
    set_adapter(model, names[0])


def _active_adapters(model: nn.Module) -> list[str]:
    return [next(iter(expected_layers(model).values())).active_adapter]


def _enable(model: nn.Module, enabled: bool = True) -> None:
    layers: list[Any] = [*expected_layers(model).values(), *modules_beside(model).values()]
    for layer in layers:
        layer.enabled = enabled


_REFUSAL = "refuse to save"
_OF_THE_HUB = ("commit_message", "commit_description", "private", "token", "revision", "create_pr", "tags")
_ANSWERS: dict[str, Callable[..., Any]] = {
    "save_pretrained": _save_pretrained,
    "set_adapter": _set_adapter,
    "active_adapters": _active_adapters,
    "enable_adapters": _enable,
    "disable_adapters": functools.partial(_enable, enabled=False),
    "tie_weights": tie_weights,
    "resize_token_embeddings": resize_token_embeddings,
}


@functools.cache
def replace_trainers_steps() -> None:
    """Once: transformers' Trainer saves and loads a model with lorafam's adapters by what stands here."""
    steps: dict[str, Callable[..., Any]] = {
        "_save": _save,
        "_load_from_checkpoint": _load_from_checkpoint,
        "_load_best_model": _load_best_model,
    }
    around_steps(steps)


def _save(trainer: Any, original: Callable[..., Any], output_dir: Any = None, state_dict: Any = None) -> None:
    model = unwrapped(trainer.model)
    if not adapter_layers(model):
        return original(output_dir, state_dict)
    folder = Path(trainer.args.output_dir if output_dir is None else output_dir)
    if isinstance(model.__dict__.get("save_pretrained"), Answer):
        original(str(folder), state_dict)
        if trainer.args.should_save:
            save_trainable(model, folder)
        return None
    # of another library, or a model around the one that was adapted: it would be written whole
    original(str(folder), trainable_tensors(model))
    if trainer.args.should_save:
        save_trainable(model, folder)
        (folder / SAFE_WEIGHTS).unlink()
        adapted = [module for module in model.modules() if "lorafam_config" in module.__dict__]
        if len(adapted) == 1:
            save_adapter(adapted[0], folder)
    return None


def _load_from_checkpoint(
    trainer: Any, original: Callable[..., Any], resume_from_checkpoint: str, model: nn.Module | None = None
) -> None:
    given = trainer.model if model is None else model
    if not _load(trainer, given, Path(resume_from_checkpoint)):
        original(resume_from_checkpoint, model)


def _load_best_model(trainer: Any, original: Callable[..., Any]) -> None:
    if not _load(trainer, trainer.model, Path(trainer.state.best_model_checkpoint)):
        original()


def _load(trainer: Any, model: nn.Module, folder: Path) -> bool:
    """Loads a checkpoint into a model's adapters; False where there are none, or it isn't one of adapters alone."""
    for callback in trainer.callback_handler.callbacks:
        if hasattr(callback, "on_load_checkpoint"):
            callback.on_load_checkpoint(model, folder)
    model = unwrapped(model)
    if not adapter_layers(model) or is_sharded_by_others(trainer):
        return False
    if not (folder / TRAINABLE).is_file():
        if not (folder / CONFIG_FILE).is_file():
            return False
        load_adapter(model, folder)
        return True
    replaced = load_trainable(model, folder)
    if replaced and trainer.optimizer is not None:
        # of an earlier training, which may go on
        for group in trainer.optimizer.param_groups:
            group["params"] = [replaced.get(parameter, parameter) for parameter in group["params"]]
        for old in replaced:
            trainer.optimizer.state.pop(old, None)
    return True
