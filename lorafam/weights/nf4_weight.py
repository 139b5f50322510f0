"""A frozen weight W [N, K] in 4 bits (QLoRA, arXiv 2305.14314): its codes, the scales of its blocks, how to read them.

    w = level[code] · absmax of its block
    absmax = nested_level[absmax_code] · nested_absmax + offset        under double quantisation

Blocks run along the flattened row-major weight; the even element of a pair is a byte's high nibble. `ops.by_storage`
has the shapes; codes and scales are bit-identical to those of bitsandbytes 0.50 on the CPU.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .. import backends as backends
from ..backends.selection import SlowPathWarning
from ..config import check_choice, check_flag
from ..kernels.formats import BLOCK_SIZES, QUANT_TYPES
from ..ops.by_storage import FLOAT_DTYPES, NESTED_BLOCK_SIZE, Layout, Storage, check_storage, scale_names
from ..ops.library import OPS
from .dynamic_levels import dynamic_levels

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False, repr=False)
class NF4Weight:
    """Plain data, immutable: `codes` uint8 [ceil(NK/2), 1], `scales` and `layout` as `ops.by_storage` describes them,
    and the `dtype` of the weight that was quantised. NF4 or FP4.

    Made by `quantize_nf4` or `from_bitsandbytes`. Raises ValueError where the parts don't fit each other.
    """

    codes: Tensor
    scales: tuple[Tensor, ...]
    layout: Layout
    dtype: torch.dtype
    _squared_row_norm: tuple[tuple[int, ...], Tensor] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        check_storage(self.codes, self.scales, self.layout)
        if self.dtype not in FLOAT_DTYPES:
            raise TypeError(f"dtype: expected one of {FLOAT_DTYPES}, got {self.dtype}")

    @classmethod
    def quantize(
        cls, weight: Tensor, block_size: int = 64, double_quant: bool = True, quant_type: str = "nf4"
    ) -> NF4Weight:
        """See `quantize_nf4`."""
        OPS["quantize_4bit"].check(weight, block_size, quant_type)
        weight = weight.detach()
        _check_values(weight)
        codes, absmax = torch.ops.lorafam.quantize_4bit(weight, block_size, quant_type)
        out_features, in_features = weight.shape
        layout = Layout(out_features, in_features, block_size, QUANT_TYPES.index(quant_type), 0)
        if not double_quant:
            return cls(codes, (absmax,), layout, weight.dtype)
        levels = dynamic_levels(weight.device)
        absmax_codes, nested_absmax, offset = torch.ops.lorafam.quantize_absmax(absmax, levels)
        if not torch.isfinite(offset):
            raise ValueError("weight: the sum of its block scales overflows float32; use double_quant=False")
        layout = layout._replace(nested_block_size=NESTED_BLOCK_SIZE)
        return cls(codes, (absmax_codes, nested_absmax, levels, offset), layout, weight.dtype)

    @classmethod
    def from_bitsandbytes(cls, source: Any) -> NF4Weight:
        """The weight of a bitsandbytes `Linear4bit`, or a `Params4bit`, sharing its storage: nothing is copied.

        The result is kept as long as bitsandbytes' own state, so asking again is cheap. Raises TypeError for another
        object; ValueError for a weight that isn't quantised yet, that isn't a matrix, that has other than the standard
        levels, or that bitsandbytes repacked for AVX512_BF16 in an evaluation forward.
        """
        from .bitsandbytes import from_bitsandbytes

        return from_bitsandbytes(source)

    def to_bitsandbytes(self) -> Any:
        """A bitsandbytes `Params4bit` on the same storage, for a `Linear4bit`'s weight.

        On CPUs with AVX512_BF16, set `support_avx512bf16_for_cpu = False` on that layer: bitsandbytes repacks it in
        evaluation otherwise. Raises ImportError without bitsandbytes.
        """
        from .bitsandbytes import to_bitsandbytes

        return to_bitsandbytes(self)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """W [N, K] in `dtype`, by default that of the quantised weight: formed in fp32, rounded once."""
        return torch.ops.lorafam.dequantize_4bit(*self.storage(), dtype or self.dtype)

    def storage(self) -> Storage:
        """The weight as op arguments."""
        return Storage(self.codes, list(self.scales), list(self.layout))

    def squared_row_norm(self) -> Tensor:
        """‖w_j‖² per output feature, fp32 [N]; computed once and kept with the weight, until codes are written to."""
        kept = self._squared_row_norm
        versions = () if torch.compiler.is_compiling() else self.versions()
        if kept is None or (versions and kept[0] != versions):
            with torch.no_grad():
                squared = torch.ops.lorafam.squared_row_norm(*self.storage())
            kept = versions, squared
            object.__setattr__(self, "_squared_row_norm", kept)
        return kept[1]

    def versions(self) -> tuple[int, ...]:
        """How often each tensor was written to, where torch counts that."""
        return tuple(0 if one.is_inference() else one._version for one in (self.codes, *self.scales))

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """A weight that is used in arithmetic is decoded, which is said once."""
        _tell_of_decoding(getattr(function, "__name__", str(function)))

        def plain(value: Any) -> Any:
            if isinstance(value, NF4Weight):
                return value.dequantize()
            return type(value)(map(plain, value)) if type(value) in (list, tuple) else value

        return function(*map(plain, args), **{name: plain(value) for name, value in (kwargs or {}).items()})

    def _decoded(self, name: str, *args: Any, **kwargs: Any) -> Any:
        _tell_of_decoding(name)
        return getattr(self.dequantize(), name)(*args, **kwargs)

    def __len__(self) -> int:
        return self.layout.out_features

    @property
    def T(self) -> Tensor:
        """Wᵀ [K, N], decoded."""
        _tell_of_decoding("T")
        return self.dequantize().T

    def tensors(self) -> dict[str, Tensor]:
        """By name: `codes`, then `absmax`, or `absmax_codes`, `nested_absmax`, `nested_levels` and `offset`."""
        return {"codes": self.codes, **dict(zip(scale_names(self.layout), self.scales, strict=True))}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> NF4Weight:
        """The same layout over other tensors, named as by `tensors()`. Raises ValueError for other names or sizes."""
        names = ("codes", *scale_names(self.layout))
        if set(tensors) != set(names):
            raise ValueError(f"tensors: expected {list(names)}, got {list(tensors)}")
        return replace(self, codes=tensors["codes"], scales=tuple(tensors[name] for name in names[1:]))

    def to(self, device: torch.device | str | int | torch.dtype) -> Any:
        """The weight on `device`; itself where it is there already. In another dtype it is decoded."""
        if isinstance(device, torch.dtype):
            _tell_of_decoding("to")
            return self.dequantize(device)
        codes = self.codes.to(device)
        if codes is self.codes:
            return self
        shared = dynamic_levels(self.device)
        scales = (dynamic_levels(codes.device) if scale is shared else scale.to(device) for scale in self.scales)
        return replace(self, codes=codes, scales=tuple(scales))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((self.layout.out_features, self.layout.in_features))

    requires_grad = False

    @property
    def ndim(self) -> int:
        return 2

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def block_size(self) -> int:
        return self.layout.block_size

    @property
    def quant_type(self) -> str:
        return self.layout.format.name

    @property
    def double_quant(self) -> bool:
        return self.layout.nested_block_size != 0

    @property
    def nested_block_size(self) -> int:
        """Block scales to a nested scale; 0 without double quantisation."""
        return self.layout.nested_block_size

    @property
    def nbytes(self) -> int:
        """Bytes of the codes and scales, without the 1 KiB table of 8-bit levels that all weights on a device share."""
        return sum(tensor.nbytes for name, tensor in self.tensors().items() if name != "nested_levels")

    @property
    def bits_per_parameter(self) -> float:
        """`nbytes` in bits over N · K: 4.127 at 4096 x 4096 with blocks of 64 and double quantisation."""
        return 8 * self.nbytes / self.shape.numel()

    def __repr__(self) -> str:
        return (
            f"NF4Weight(shape={list(self.shape)}, dtype={self.dtype}, device={self.device}, "
            f"quant_type={self.quant_type!r}, block_size={self.block_size}, double_quant={self.double_quant}, "
            f"bits_per_parameter={self.bits_per_parameter:.3f})"
        )


def quantize_nf4(weight: Tensor, block_size: int = 64, double_quant: bool = True, quant_type: str = "nf4") -> NF4Weight:
    """Quantises W [N, K] (fp32, bf16 or fp16) to 4 bits in blocks of 32 … 4096 (QLoRA, arXiv 2305.14314).

    `double_quant` also quantises the fp32 block scales, to 8 bits. `quant_type` is "nf4" or "fp4". Codes and scales
    equal those of bitsandbytes 0.50 on the CPU bit for bit, for any N and K. Raises TypeError for another dtype;
    ValueError for anything but a matrix, an empty one, NaN or inf in it, another block size or type.
    """
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor, got {type(weight).__name__}")
    check_choice("block_size", block_size, BLOCK_SIZES)
    check_flag("double_quant", double_quant)
    return NF4Weight.quantize(weight, block_size, double_quant, quant_type)


def _method(name: str) -> Any:
    def decoded(self: NF4Weight, *args: Any, **kwargs: Any) -> Any:
        return self._decoded(name, *args, **kwargs)

    return decoded


# methods of a tensor that tell where its bytes are, or are autograd's
_OF_MEMORY = frozenset(
    ("data_ptr", "storage", "storage_offset", "untyped_storage", "stride", "element_size", "is_contiguous", "backward",
     "register_hook", "register_post_accumulate_grad_hook", "retain_grad", "numpy", "cuda", "cpu", "xpu", "is_shared")
)  # fmt: skip
_OPERATORS = [
    f"__{name}__"
    for name in [
        "add",
        "radd",
        "sub",
        "rsub",
        "mul",
        "rmul",
        "truediv",
        "rtruediv",
        "matmul",
        "rmatmul",
        "neg",
        "getitem",
    ]
]
# what a tensor computes, of the decoded weight; what changes it or tells of its memory it hasn't. No __getattr__, which
# would make all attributes slower
for _name in dir(Tensor):
    _public = not _name.startswith("_") and not _name.endswith("_") and _name not in _OF_MEMORY
    _new = _public and not hasattr(NF4Weight, _name) and callable(getattr(Tensor, _name))
    if _new or _name in _OPERATORS:
        setattr(NF4Weight, _name, _method(_name))


@functools.cache
def _tell_of_decoding(function: str) -> None:
    warnings.warn(
        f"a 4-bit weight is decoded as a whole for {function}, without an adapter; call its layer instead",
        SlowPathWarning,
        stacklevel=4,
    )


def _check_values(weight: Tensor) -> None:
    if weight.numel() == 0:
        raise ValueError(f"weight: expected at least one element, got shape {list(weight.shape)}")
    smallest, largest = torch.aminmax(weight)
    if not (torch.isfinite(smallest) and torch.isfinite(largest)):
        raise ValueError("weight: expected finite values, got NaN or inf")
