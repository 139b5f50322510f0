"""To and from bitsandbytes' storage of 4-bit weights (`Params4bit` and its `QuantState`), without copying.

bitsandbytes is imported only to make its objects; reading them needs their attributes alone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ..kernels.formats import QUANT_TYPES, format_of
from ..ops.by_storage import Layout
from .nf4_weight import NF4Weight

Tensor = torch.Tensor

_REPACKED = (
    "bitsandbytes repacked this weight for AVX512_BF16 in an evaluation forward, which rounded its block scales to "
    "bf16: the weight that was loaded can't be recovered. Load it again, and set layer.support_avx512bf16_for_cpu = "
    "False before the first evaluation"
)


class _Adopted(NamedTuple):
    """A conversion, and what it was made from."""

    storage: int
    offset: int
    version: int
    absmax: Tensor
    weight: NF4Weight


_kept: Any = WeakIdKeyDictionary()


def from_bitsandbytes(source: Any) -> NF4Weight:
    """See `NF4Weight.from_bitsandbytes`. Converted once for each `QuantState`, until its tensors are replaced."""
    params, state = _parts(source)
    if torch.compiler.is_compiling():
        return _convert(params, state)
    # Repacking and moving replace the tensors, loading writes into them. Not the address: FSDP2 frees the storage and
    # fills it anew elsewhere, and what shares it follows.
    now = (
        params.untyped_storage()._cdata,
        int(params.storage_offset()),
        0 if params.is_inference() else params._version,
    )
    kept = _kept.get(state)
    if kept is not None and kept[:3] == now and kept.absmax is state.absmax:
        return kept.weight
    _kept.pop(state, None)
    _check_levels(state)
    weight = _convert(params, state)
    _kept[state] = _Adopted(*now, state.absmax, weight)
    return weight


def to_bitsandbytes(weight: NF4Weight) -> Any:
    """See `NF4Weight.to_bitsandbytes`."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError(f"to_bitsandbytes: bitsandbytes can't be imported: {error}") from error
    functional = bitsandbytes.functional
    tensors = weight.tensors()
    nested = None
    if weight.double_quant:
        nested = functional.QuantState(
            absmax=tensors["nested_absmax"],
            code=tensors["nested_levels"],
            blocksize=weight.nested_block_size,
            dtype=torch.float32,
        )
    state = functional.QuantState(
        absmax=tensors["absmax_codes" if weight.double_quant else "absmax"],
        shape=weight.shape,
        code=functional.get_4bit_type(weight.quant_type, device=weight.device),
        blocksize=weight.block_size,
        quant_type=weight.quant_type,
        dtype=weight.dtype,
        offset=tensors["offset"].reshape(()) if weight.double_quant else None,
        state2=nested,
    )
    return bitsandbytes.nn.Params4bit(
        weight.codes,
        requires_grad=False,
        quant_state=state,
        blocksize=weight.block_size,
        compress_statistics=weight.double_quant,
        quant_type=weight.quant_type,
        quant_storage=weight.codes.dtype,
        bnb_quantized=True,
    )


def _parts(source: Any) -> tuple[Tensor, Any]:
    """The packed tensor and the QuantState of a Linear4bit or Params4bit."""
    params = getattr(source, "weight", source)
    state = getattr(params, "quant_state", None)
    if state is None:
        # FSDP turns the Params4bit into a plain parameter; the layer still has the state
        state = getattr(source, "quant_state", None)
    if state is not None:
        return params, state
    if hasattr(source, "quant_state") and not hasattr(params, "quant_state"):
        raise ValueError(
            f"{type(source).__name__}: the scales of its weight are lost, it was sharded or replaced; make it with "
            "Params4bit(..., module=layer), as transformers does, and the layer keeps them"
        )
    if hasattr(params, "bnb_quantized"):
        raise ValueError(
            f"{type(source).__name__}: its weight isn't quantised yet; bitsandbytes does that when the layer is moved: "
            "layer.to('cpu') or layer.to('cuda')"
        )
    raise TypeError(f"expected a bitsandbytes Linear4bit or Params4bit, got {type(source).__name__}")


def _convert(params: Tensor, state: Any) -> NF4Weight:
    # the second mark stays where bitsandbytes undid the repacking, with the rounded scales
    if getattr(state, "packing_format_for_cpu", False) or hasattr(state, "original_nested"):
        raise ValueError(_REPACKED)
    shape = tuple(state.shape)
    if len(shape) != 2:
        raise ValueError(f"shape: expected a matrix [N, K], got a weight of shape {list(shape)}")
    scales: tuple[Tensor, ...] = (state.absmax,)
    nested_block_size = 0
    if state.nested:
        scales = (state.absmax, state.state2.absmax, state.state2.code, state.offset)
        nested_block_size = state.state2.blocksize
    layout = Layout(*shape, state.blocksize, QUANT_TYPES.index(state.quant_type), nested_block_size)
    codes = params.detach().reshape(-1).view(torch.uint8).view(-1, 1)
    return NF4Weight(codes, scales, layout, state.dtype)


def _check_levels(state: Any) -> None:
    """Raises ValueError where the sixteen levels aren't the standard ones of the state's type."""
    expected = torch.tensor(format_of(state.quant_type).levels, dtype=torch.float32)
    if state.code is None or not torch.equal(state.code.cpu(), expected):
        raise ValueError(f"code: expected the standard {state.quant_type} levels, got {state.code}")
