"""A row's model in the four ways that are looked at, with the same factors in all; beside it PEFT's alone, and fp64."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import lorafam
from lorafam.interop.report import FROZEN, PATHS
from lorafam.methods import AdapterLayer, NF4Linear
from lorafam.model.saved_module import SavedModule

from .architecture import Architecture

Tensor = torch.Tensor
RANK, ALPHA = 4, 8


class Way(NamedTuple):
    """Whose layers, on which weights."""

    name: str
    own: bool
    four_bit: bool


WAYS = (
    Way("adapt", own=True, four_bit=False),
    Way("adapt NF4", own=True, four_bit=True),
    Way("accelerate", own=False, four_bit=False),
    Way("accelerate 4-bit", own=False, four_bit=True),
)


def bare(row: Architecture, seed: int = 0) -> Any:
    """The model without adapters, without dropout; the same weights for the same seed."""
    import transformers

    kind = getattr(transformers, row.model)
    config = kind.config_class(**copy.deepcopy(dict(row.config)))
    _stop_dropout(config)
    torch.manual_seed(seed)
    return kind(config).float().eval()


def _stop_dropout(config: Any) -> None:
    """Every probability of dropping or masking something, those of inner configurations too."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            _stop_dropout(value)
        elif type(value) is float and ("drop" in name or name in ("mask_time_prob", "mask_feature_prob")):
            setattr(config, name, 0.0)


class Made:
    """One row in one way. Models are made once, but where a column changes them: `new_…` makes another."""

    def __init__(self, row: Architecture, way: Way, folder: Path) -> None:
        self.row, self.way, self.folder = row, way, folder

    def inputs(self, seed: int = 1, **changes: Any) -> dict[str, Any]:
        """A batch; `changes` None leaves an entry out."""
        batch = self.row.inputs(self.ours.config, seed) | changes
        return {name: value for name, value in batch.items() if value is not None}

    def prompt(self) -> dict[str, Any]:
        """A batch to go on from."""
        return self.inputs(labels=None)

    @cached_property
    def ours(self) -> Any:
        return self.new_ours()

    @cached_property
    def plain(self) -> Any:
        return self.new_plain()

    @cached_property
    def exact(self) -> Any:
        """PEFT's model on the same weights, dense, in fp64."""
        base = self.dense_base()
        if base._can_set_experts_implementation():
            # grouped products have no fp64
            base.set_experts_implementation("eager")
        return self._peft(base).double()

    def new_ours(self, dropout: float = 0.0) -> Any:
        """lorafam's model, or PEFT's accelerated."""
        if self.way.own:
            config = lorafam.AdapterConfig(
                r=RANK,
                alpha=ALPHA,
                dropout=dropout,
                target_modules=self.row.modules or None,
                quantize="nf4" if self.way.four_bit else None,
            )
            model = lorafam.adapt(bare(self.row), config)
            fill(model)
            return model
        model = self._peft(self.base(), dropout)
        self.report = lorafam.accelerate(model)
        return model

    def new_plain(self) -> Any:
        """PEFT's alone: on the same weights decoded, or on bitsandbytes' layers."""
        return self._peft(self.dense_base() if self.way.own else self.base())

    def base(self) -> Any:
        """What PEFT adapts: dense, or loaded by transformers in 4 bits."""
        if not self.way.four_bit:
            return bare(self.row)
        import transformers

        quantised = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            llm_int8_skip_modules=["lm_head", *self.row.dense] if self.row.dense else None,
        )
        kind: Any = getattr(transformers, self.row.model)
        model = kind.from_pretrained(self.saved_base, quantization_config=quantised, dtype=torch.float32)
        _stop_dropout(model.config)
        for path, layer in model.named_modules():
            if hasattr(layer, "support_avx512bf16_for_cpu"):
                if layer.in_features % 64:
                    raise ValueError(f"{path}: bitsandbytes decodes {layer.in_features} inputs wrongly on a CPU")
                # as lorafam sets it: bitsandbytes' own bf16 kernel is out of the comparison
                layer.support_avx512bf16_for_cpu = False
        return model.eval()

    @cached_property
    def saved_base(self) -> Path:
        """A folder with the model as transformers writes it."""
        folder = self.folder / "base"
        if not folder.is_dir():
            bare(self.row).save_pretrained(folder)
        return folder

    def dense_base(self) -> Any:
        """The bare model, 4-bit weights decoded in it."""
        model = bare(self.row)
        with torch.no_grad():
            for path, weight in self._decoded.items():
                module = model.get_submodule(path)
                # what is tied to it keeps its values
                module.weight = nn.Parameter((weight if isinstance(module, nn.Linear) else weight.T).contiguous())
        return model

    @cached_property
    def _decoded(self) -> dict[str, Tensor]:
        if not self.way.four_bit:
            return {}
        if self.way.own:
            layers = {
                clean(path): module for path, module in self.ours.named_modules() if isinstance(module, NF4Linear)
            }
            return {path: layer.weight.dequantize(torch.float32) for path, layer in layers.items()}
        import bitsandbytes

        found = {}
        for path, layer in self.base().named_modules():
            if isinstance(layer, bitsandbytes.nn.Linear4bit):
                weight = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                found[path] = weight.float()
        return found

    @cached_property
    def targets(self) -> dict[str, Any]:
        """What PEFT is told to adapt: what lorafam chose, in its own ways."""
        if not self.way.own:
            names = list(self.row.modules) or "all-linear"
            return {"target_modules": names, "target_parameters": list(self.row.parameters) or None}
        modules = list(self.ours.named_modules())
        saved = [path for path, module in modules if isinstance(module, SavedModule)]
        adapted = [path for path, module in modules if isinstance(module, AdapterLayer)]
        return {"target_modules": adapted, "modules_to_save": saved or None}

    def _peft(self, base: Any, dropout: float = 0.0) -> Any:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=dropout, **self.targets)
        model = get_peft_model(base, config)
        fill(model)
        return model.eval()


def clean(path: str) -> str:
    """A module's path in the bare model."""
    parts = path.removeprefix("base_model.model.").split(".")
    return ".".join(part for part in parts if part != "base_layer")


def factors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What is trained, by names that are the same whoever's layers hold it."""
    from peft.tuners.lora import LoraLayer
    from peft.utils import ModulesToSaveWrapper

    for path, module in model.named_modules():
        if isinstance(module, AdapterLayer):
            yield f"{clean(path)}.A", module.A
            yield f"{clean(path)}.B", module.B
        elif isinstance(module, LoraLayer):
            # two of an experts module's parameters are adapted around one module
            path = f"{path}.{module.parameter_name}" if hasattr(module, "parameter_name") else path
            parts: dict[str, Any] = {"A": module.lora_A, "B": module.lora_B}
            for name, modules in parts.items():
                for factor in modules.values():
                    yield f"{clean(path)}.{name}", factor.weight
        elif isinstance(module, SavedModule | ModulesToSaveWrapper):
            copies = module.copies if isinstance(module, SavedModule) else module.modules_to_save
            for name, parameter in copies["default"].named_parameters():
                yield f"{clean(path)}.{name}", parameter


@torch.no_grad()
def fill(model: nn.Module) -> None:
    """Values as training leaves them, by name."""
    for name, parameter in factors(model):
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(".A"):
            parameter.copy_(0.2 * noise)
        elif name.endswith(".B"):
            parameter.copy_(0.1 * noise)
        else:
            parameter.add_(0.05 * noise)


def layers_of(made: Made) -> str:
    """How many layers are adapted, and how an accelerated one computes."""
    model = made.ours
    if made.way.own:
        return str(sum(isinstance(module, AdapterLayer) for module in model.modules()))
    rows = [row for row in made.report.rows if row.path != FROZEN]
    counts = {path: sum(row.path == path for row in rows) for path in PATHS}
    return ", ".join(f"{count} {path}" for path, count in counts.items() if count)
