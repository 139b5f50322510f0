"""Packages with the interfaces of the projects we are compared with, none of which can be installed without a GPU.

The names, signatures and what is read from the arguments are those of the files named beside each; the formulae are
written out in plain PyTorch.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# https://github.com/unslothai/unsloth, unsloth/kernels/fast_lora.py (LoRA_W, apply_lora_o) and utils.py
# (get_lora_parameters) at 0050c73e05ca9bb74e42d0649be410f177160c08
UNSLOTH = """
import bitsandbytes

def apply_lora_o(self, X):
    projection = self.o_proj
    batch, tokens, K = X.shape
    W = projection.base_layer.weight
    state = getattr(W, "quant_state", None)
    if getattr(projection, "disable_adapters", True) or projection.merged:
        raise AssertionError("expected an adapter in use")
    adapter = projection.active_adapters[0]
    A, B = projection.lora_A[adapter].weight, projection.lora_B[adapter].weight
    s = projection.scaling[adapter]
    wide = W if state is None else bitsandbytes.functional.dequantize_4bit(W.data, state)
    return X @ wide.T + s * (X @ A.to(X.dtype).T @ B.to(X.dtype).T)
"""

# https://github.com/axolotl-ai-cloud/axolotl, src/axolotl/kernels/lora.py (get_lora_parameters, _compute_dora_scale,
# LoRA_O, apply_lora_o) at 00564c8f9909b0a895823b620145c0618991cb55
AXOLOTL = """
import bitsandbytes
import torch

NORMS = []

def apply_lora_o(self, X):
    projection = self.o_proj
    batch, tokens, K = X.shape
    W = projection.base_layer.weight
    assert projection.base_layer.bias is None
    state = getattr(W, "quant_state", None)
    if not hasattr(projection, "disable_adapters") or projection.disable_adapters or projection.merged:
        raise AssertionError("expected an adapter in use")
    adapter = projection.active_adapters[0]
    A, B = projection.lora_A[adapter].weight, projection.lora_B[adapter].weight
    assert projection.lora_B[adapter].bias is None
    s = projection.scaling[adapter]
    assert isinstance(projection.lora_dropout[adapter], torch.nn.Identity) or not self.training
    wide = W if state is None else bitsandbytes.functional.dequantize_4bit(W.data, state)
    y = X @ wide.T + s * (X @ A.to(X.dtype).T @ B.to(X.dtype).T)
    magnitudes = projection.lora_magnitude_vector
    if not (magnitudes and adapter in magnitudes):
        return y
    magnitude = magnitudes[adapter].weight
    kept = getattr(magnitude, "_dora_cache", None)
    if kept is None or kept[:2] != (A._version, B._version):
        norm = torch.linalg.norm((wide + s * B.to(X.dtype) @ A.to(X.dtype)).detach(), dim=1)
        NORMS.append(norm)
        kept = magnitude._dora_cache = (A._version, B._version, norm)
    return magnitude.to(X.dtype) / kept[2] * y
"""

# https://github.com/CentML/lorafusion, lorafusion/ops/lora_v1.py (fused_linear_lora) and
# triton_ops/fused_lora_xw_sb_tma.py (which refuses mixed dtypes) at 8ce211989d052db882ff15938cbca49860014d14
LORAFUSION = """
def fused_linear_lora(x, linear_w, lora_a, lora_b, alpha, seed=None, dropout_p=0.0, linear_bias=None):
    batch, tokens, K = x.shape
    assert type(alpha) is float and dropout_p == 0 and linear_bias is None
    if not x.dtype == linear_w.dtype == lora_a.dtype == lora_b.dtype:
        raise ValueError("Incompatible dtypes")
    return x @ linear_w.T + (x @ lora_a.T @ lora_b.T) * alpha
"""

MODULES = {
    "unsloth": ("unsloth.kernels.fast_lora", UNSLOTH),
    "axolotl": ("axolotl.kernels.lora", AXOLOTL),
    "lorafusion": ("lorafusion.ops.lora_v1", LORAFUSION),
}


def write_fake(folder: Path, name: str, before: str = "") -> None:
    """The package `name`, version 1.2, to be found in `folder`; `before` is put in front of its one module's code."""
    module, code = MODULES[name]
    path = folder.joinpath(*module.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True)
    (folder / name / "__init__.py").touch()
    path.write_text(before + code)
    metadata = folder / f"{name}-1.2.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")


def install_fake(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be imported until the test ends."""
    write_fake(folder, name)
    monkeypatch.syspath_prepend(str(folder))
    parts = MODULES[name][0].split(".")
    for end in range(1, len(parts) + 1):
        module = ".".join(parts[:end])
        # so that what is imported in the test is forgotten after it
        monkeypatch.setitem(sys.modules, module, None)
        del sys.modules[module]
