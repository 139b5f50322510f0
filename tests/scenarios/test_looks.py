"""A model looks at its layers: their `weight`, `bias`, sizes; or computes with a weight itself."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration, WavLMConfig, WavLMModel

import lorafam
from lorafam.methods import AdapterLayer
from lorafam.methods.nf4_linear import NF4Linear
from lorafam.weights import nf4_weight
from tests.scenarios.models import Model, each_own, each_way, tokens

CONFIG = {"r": 4}


@each_way
def test_a_layer_has_what_nn_linear_has(way: str) -> None:
    model = Model(way)
    layer = model.layer
    assert layer.weight is model.base.weight
    assert layer.bias is model.base.bias
    assert (layer.in_features, layer.out_features) == (64, 48)
    assert (tuple(layer.weight.shape), layer.weight.dtype) == ((48, 64), torch.float32)
    assert layer.weight.device == torch.device("cpu")
    assert not layer.weight.requires_grad
    # no further name in the state dict
    assert not [name for name in model.net.state_dict() if name in ("0.weight", "0.bias")]


def test_an_embedding_has_its_table() -> None:
    net = lorafam.adapt(nn.Sequential(nn.Embedding(20, 8)), lorafam.AdapterConfig(r=2, target_modules=["0"]))
    assert net[0].weight is net[0].base_layer.weight


def test_a_4bit_weight_decodes_in_arithmetic_and_says_so_once() -> None:
    nf4_weight._tell_of_decoding.cache_clear()
    layer, x = NF4Linear.from_linear(nn.Linear(64, 48)), tokens(3)
    dense = layer.weight.dequantize()
    with pytest.warns(lorafam.backends.selection.SlowPathWarning, match="decoded as a whole for linear"):
        y = nn.functional.linear(x, layer.weight)
    torch.testing.assert_close(y, x @ dense.T)
    torch.testing.assert_close(nn.functional.linear(x, layer.weight), y)


COMPUTED: dict[str, Callable[[Any], Any]] = {
    "added to": lambda w: w + 1,
    "taken from": lambda w: 1 - w,
    "multiplied": lambda w: 2 * w,
    "divided": lambda w: w / 2,
    "negated": lambda w: -w,
    "times a matrix": lambda w: w @ torch.eye(64),
    "under a matrix": lambda w: torch.eye(48) @ w,
    "rows": lambda w: w[3:5],
    "row by row": lambda w: torch.stack(list(w)),
    "transposed": lambda w: w.t(),
    "norms": lambda w: w.norm(dim=1),
    "in fp64": lambda w: w.double(),
    "in another dtype": lambda w: w.to(torch.bfloat16),
    "einsum": lambda w: torch.einsum("nk,nk->n", w, w),
    "detached": lambda w: w.detach().clone(),
}


@pytest.mark.filterwarnings("ignore:a 4-bit weight is decoded")
@pytest.mark.parametrize("name", COMPUTED)
def test_whatever_is_computed_with_a_4bit_weight(name: str) -> None:
    torch.manual_seed(0)
    weight = lorafam.quantize_nf4(torch.randn(48, 64))
    torch.testing.assert_close(COMPUTED[name](weight), COMPUTED[name](weight.dequantize()))
    assert len(weight) == 48


@pytest.mark.parametrize("name", ["mul_", "copy_", "data", "data_ptr", "untyped_storage", "stride", "requires_grad_"])
def test_a_4bit_weight_has_no_memory_of_its_values(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'NF4Weight' object has no attribute '{name}'"):
        getattr(lorafam.quantize_nf4(torch.randn(4, 64)), name)


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_t5_looks_at_a_dtype(quantize: str | None) -> None:
    torch.manual_seed(0)
    settings = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(**settings, decoder_start_token_id=0))
    lorafam.adapt(model, lorafam.AdapterConfig(**CONFIG, quantize=quantize))
    ids = torch.randint(2, 60, (1, 5))
    model(input_ids=ids, labels=ids).loss.backward()
    for layer in model.modules():
        if isinstance(layer, AdapterLayer):
            assert layer.B.grad is not None


class InWeightsDtype(nn.Module):
    """As Switch Transformers' feed-forward, whose `wo` isn't kept in fp32 when it is loaded in 4 bits."""

    def __init__(self, wo: nn.Module) -> None:
        super().__init__()
        self.wo = wo

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.wo.weight, torch.Tensor) and x.dtype != self.wo.weight.dtype:
            x = x.to(self.wo.weight.dtype)
        return self.wo(x)


def test_a_layer_over_bitsandbytes_codes_has_no_dtype_of_bytes() -> None:
    """The input became bytes: refused as such by own layers, and nonsense without an adapter."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    wo = bitsandbytes.nn.Linear4bit(64, 48, quant_type="nf4", compute_dtype=torch.float32).to("cpu")
    weight = bitsandbytes.functional.dequantize_4bit(wo.weight.data, wo.weight.quant_state)
    net = lorafam.adapt(InWeightsDtype(wo), lorafam.AdapterConfig(**CONFIG, target_modules=["wo"]))
    x = tokens(3)
    torch.testing.assert_close(net(x), nn.functional.linear(x, weight.float(), wo.bias), rtol=1e-4, atol=1e-5)
    assert (net.wo.weight.dtype, tuple(net.wo.weight.shape)) == (torch.float32, (48, 64))


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("names", [None, ["linear1", "linear2"]])
def test_a_transformer_encoder_in_evaluation_uses_its_adapters(quantize: str | None, names: list[str] | None) -> None:
    """PEFT's are skipped there: the fused forward multiplies by the base's weights."""
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False)
    config = lorafam.AdapterConfig(**CONFIG, quantize=quantize, target_modules=names)
    if names is None:
        with pytest.warns(UserWarning, match="no adapter on 2 linear layers.*MultiheadAttention"):
            lorafam.adapt(net, config)
    else:
        lorafam.adapt(net, config)
    net.eval()
    x = torch.randn(2, 5, 32)
    for module in net.modules():
        if isinstance(module, AdapterLayer):
            nn.init.normal_(module.B)
    wanted = net(x)
    with torch.no_grad():
        torch.testing.assert_close(net(x), wanted)
        with lorafam.disabled(net):
            assert not torch.allclose(net(x), wanted, atol=1e-2)


def test_a_transformer_encoder_whose_adapters_come_from_a_file_uses_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False)
    bare = copy.deepcopy(net)
    lorafam.adapt(net, lorafam.AdapterConfig(**CONFIG, target_modules=["linear1", "linear2"]))
    for module in net.modules():
        if isinstance(module, AdapterLayer):
            nn.init.normal_(module.B)
    lorafam.save_adapter(net, tmp_path)
    x = torch.randn(2, 5, 32)
    wanted = net.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(lorafam.load_adapter(bare, tmp_path).eval()(x), wanted)


@each_own
def test_what_would_be_skipped_is_refused(way: str) -> None:
    """PEFT trains WavLM's without a gradient."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    convolutions = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    wavlm = WavLMModel(WavLMConfig(vocab_size=32, **sizes, **convolutions, **positions, mask_time_prob=0))
    quantize = "nf4" if way == "nf4" else None
    for net, name in ((nn.ModuleList([nn.MultiheadAttention(32, 4)]), "out_proj"), (wavlm, "q_proj")):
        before = {key: id(module) for key, module in net.named_modules()}
        with pytest.raises(ValueError, match=f"{name}' can't be adapted.*computes with its weight itself"):
            lorafam.adapt(net, lorafam.AdapterConfig(**CONFIG, target_modules=[name], quantize=quantize))
        assert {key: id(module) for key, module in net.named_modules()} == before
