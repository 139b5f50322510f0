"""A small language model in plain torch, with PEFT's adapters on all of its linear layers, in every storage of a base:
small enough that two hundred combinations are trained in minutes.
"""

from __future__ import annotations

import copy
from typing import Any

import bitsandbytes
import torch
from peft import AdaLoraConfig, LoraConfig, PeftConfig, VeraConfig, get_peft_model
from torch import nn
from torch.nn import functional as nnf
from torch.utils.checkpoint import checkpoint

import lorafam.reference as reference

VOCABULARY, HIDDEN, INNER, HEADS, RANK = 48, 64, 128, 4, 4
TARGETS = ["q", "k", "v", "o", "up", "down"]
METHODS = ("lora", "dora", "rslora", "adalora", "lora_bias", "vera")
BASES = ("fp32", "bf16", "nf4", "int8")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.q, self.k, self.v, self.o = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.up, self.down = nn.Linear(HIDDEN, INNER), nn.Linear(INNER, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.before(x)
        q, k, v = (part(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        x = x + self.o((weights @ v).transpose(1, 2).flatten(2)).to(x.dtype)
        return x + self.down(nnf.silu(self.up(self.between(x)))).to(x.dtype)


class TinyLM(nn.Module):
    """Tokens [rows, length] to logits; `checkpointing` None, or whether it is reentrant."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Embedding(VOCABULARY, HIDDEN), Block()
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.checkpointing: bool | None = None

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        if self.checkpointing is None:
            return self.head(self.block(x))
        # a reentrant one gives no gradient to parameters without one of its input
        x = x.requires_grad_() if self.checkpointing else x
        return self.head(checkpoint(self.block, x, use_reentrant=self.checkpointing))


class SeededDropout(nn.Module):
    """lorafam's mask for PEFT's code: the seed is drawn as lorafam draws it."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        seed = torch.randint(2**63 - 1, (), dtype=torch.int64)
        flat = x.reshape(-1, x.shape[-1])
        mask = reference.dropout_mask(int(seed), flat.shape[0], flat.shape[1], self.p, x.dtype)
        return x * mask.view(x.shape)


def config_of(method: str, dropout: float = 0.0, **settings: Any) -> PeftConfig:
    if method == "vera":
        # as is usual; and the ratio rule wants a thousand gradients
        return VeraConfig(r=256, **{"target_modules": TARGETS, "vera_dropout": dropout, **settings})
    settings = {"target_modules": TARGETS, "lora_dropout": dropout, "lora_alpha": 6, **settings}
    if method == "adalora":
        return AdaLoraConfig(init_r=RANK, target_r=2, total_step=100, **settings)
    more = {"dora": {"use_dora": True}, "rslora": {"use_rslora": True}, "lora_bias": {"lora_bias": True}}
    return LoraConfig(r=RANK, **more.get(method, {}), **settings)


def quantise(model: nn.Module, base: str) -> nn.Module:
    """The block's linear layers in bitsandbytes' 4 or 8 bits, marked as transformers marks a model."""
    for block in (child for child in model.modules() if isinstance(child, Block)):
        for name in TARGETS:
            dense = getattr(block, name)
            setattr(block, name, (four_bit if base == "nf4" else _eight_bit)(dense))
    setattr(model, "is_loaded_in_4bit" if base == "nf4" else "is_loaded_in_8bit", True)
    return model


def four_bit(dense: nn.Linear, storage: torch.dtype = torch.uint8) -> nn.Module:
    """As transformers makes it: the parameter knows its layer, which so keeps the scales when it is sharded."""
    layer = bitsandbytes.nn.Linear4bit(
        dense.in_features,
        dense.out_features,
        compute_dtype=torch.float32,
        quant_type="nf4",
        quant_storage=storage,
        device="cpu",
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        dense.weight.data, requires_grad=False, quant_type="nf4", quant_storage=storage, module=layer
    )
    layer.bias = dense.bias
    # what lorafam sets, so that bitsandbytes' own kernel is out of the comparison
    layer.support_avx512bf16_for_cpu = False
    return layer.to("cpu")


def _eight_bit(dense: nn.Linear) -> nn.Module:
    layer = bitsandbytes.nn.Linear8bitLt(dense.in_features, dense.out_features, has_fp16_weights=False, device="cpu")
    layer.weight = bitsandbytes.nn.Int8Params(dense.weight.data, requires_grad=False, has_fp16_weights=False)
    layer.bias = dense.bias
    return layer.to("cpu")


def peft_model(method: str, base: str, dropout: float = 0.0, seed: int = 0, **settings: Any) -> nn.Module:
    """The model with adapters as training leaves them; those of a bf16 model are fp32, as PEFT makes them."""
    torch.manual_seed(seed)
    model: nn.Module = TinyLM()
    if base == "bf16":
        model = model.to(torch.bfloat16)
    elif base != "fp32":
        model = quantise(model, base)
    model = get_peft_model(model, config_of(method, dropout, **settings))
    disturb(model)
    return model


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """By the names they have without DDP."""
    named = ((name.removeprefix("module."), parameter) for name, parameter in model.named_parameters())
    return {name: parameter for name, parameter in named if parameter.requires_grad}


@torch.no_grad()
def disturb(model: nn.Module) -> None:
    """Adapters as training leaves them."""
    for name, parameter in trainable(model).items():
        noise = torch.randn(parameter.shape) * 0.1
        parameter.mul_(1 + noise) if "magnitude" in name else parameter.add_(noise)


def with_masks(model: nn.Module) -> nn.Module:
    """The same model whose dropouts have lorafam's masks."""
    for child in model.modules():
        for kind in ("lora_dropout", "vera_dropout"):
            for name, dropout in getattr(child, kind, {}).items():
                if isinstance(dropout, nn.Dropout):
                    getattr(child, kind)[name] = SeededDropout(dropout.p)
    return model


def in_double(model: nn.Module) -> nn.Module:
    """The same model in fp64, its base's weights as they are decoded."""
    from peft.utils.integrations import dequantize_module_weight

    model = copy.deepcopy(model)
    for block in (child for child in model.modules() if isinstance(child, Block)):
        for name in TARGETS:
            layer = getattr(block, name)
            base = layer.base_layer
            if type(base) is not nn.Linear:
                dense = nn.Linear(base.in_features, base.out_features)
                dense.weight = nn.Parameter(dequantize_module_weight(base).detach().float(), requires_grad=False)
                dense.bias = base.bias
                setattr(block, name, _on_dense(layer, dense))
    return model.double()


def _on_dense(layer: Any, dense: nn.Linear) -> nn.Module:
    from peft.tuners import vera
    from peft.tuners.adalora.layer import SVDLinear
    from peft.tuners.lora.layer import Linear

    layer.base_layer = dense
    layer.fan_in_fan_out = False
    if not isinstance(layer, vera.layer.Linear):
        layer.__class__ = SVDLinear if hasattr(layer, "lora_E") else Linear
    return layer


def tokens(rows: int = 4, length: int = 16, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def losses(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """The loss of each token, [rows * (length - 1)], in fp32 or wider."""
    logits = model(batch[:, :-1])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return nnf.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
