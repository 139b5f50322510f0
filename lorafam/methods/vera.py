"""VeRA (arXiv 2310.11454): B̂ = diag(b) B diag(d), c = 1, with A [r, K] and B [N, r] frozen, drawn once from a key and
shared by all layers (their first columns and rows); d [r] and b [N] are trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from typing import Any, ClassVar

import torch
from torch import nn

from .. import functional as F
from ..compat.torch import has_no_values
from ..config import AdapterConfig, check_count, check_flag, check_weight
from .adapter import Adapter, AdapterSettings
from .adapter_layer import AdapterLayer
from .base_weight import base_device, base_sizes, base_weight
from .lora_in_peft import flag
from .registry import register

Tensor = torch.Tensor

_NONE = "VeRA has none"


class Projections:
    """A [r, K] and B [N, r] in fp32 for the widest layer, on the CPU until one asks for them elsewhere.

    Drawn as PEFT does: uniform in ±√(6/K) and ±√(6/r), from torch's CPU generator at `key`. They are no part of a
    model's state: `fingerprint` is.
    """

    def __init__(self, rank: int, in_features: int, out_features: int, key: int) -> None:
        self.rank, self.in_features, self.out_features, self.key = rank, in_features, out_features, key
        # whether they are those of the key
        self.drawn = True
        self._pair: tuple[Tensor, Tensor] | None = None
        self._parts: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def whole(self) -> tuple[Tensor, Tensor]:
        if self._pair is None:
            generator = torch.Generator("cpu").manual_seed(self.key)
            shapes = (self.rank, self.in_features), (self.out_features, self.rank)
            with torch.device("cpu"):
                A, B = (_uniform(shape, generator) for shape in shapes)
            self._pair = A, B
        return self._pair

    def check(self, A: Tensor, B: Tensor) -> None:
        """Raises ValueError for other sizes."""
        expected = [self.rank, self.in_features], [self.out_features, self.rank]
        if ([*A.shape], [*B.shape]) != expected:
            raise ValueError(f"projections: expected {expected[0]} and {expected[1]}, got {[*A.shape]}, {[*B.shape]}")

    def put(self, A: Tensor, B: Tensor) -> None:
        """Others than those of the key. Raises ValueError for other sizes."""
        self.check(A, B)
        if not all(map(torch.equal, (A, B), self.whole())):
            self.drawn, self._pair = False, (A.detach().float().cpu(), B.detach().float().cpu())
            self._parts.clear()

    def part(self, in_features: int, out_features: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The first K columns of A and N rows of B, on the device and in the dtype of `like`; kept."""
        key = (in_features, out_features, like.device, like.dtype)
        if key not in self._parts:
            if has_no_values(like):
                return like.new_empty(self.rank, in_features), like.new_empty(out_features, self.rank)
            A, B = self.whole()
            self._parts[key] = A[:, :in_features].to(like).contiguous(), B[:out_features].to(like).contiguous()
        return self._parts[key]

    def fingerprint(self) -> Tensor:
        """What tells these from others: sums [2, 2] in fp64 of the values and of their products with their places."""
        return torch.stack([_sums(one) for one in self.whole()])


class VeraAdapter(Adapter):
    """d [r], b [N], and its part of the shared projections."""

    _formed = ("scale", "A", "B")
    d: nn.Parameter
    b: nn.Parameter

    def __init__(
        self, settings: AdapterSettings, device: torch.device, projections: Projections, in_features: int
    ) -> None:
        super().__init__(settings, 1.0, device)
        self.projections, self.in_features = projections, in_features

    def _form_scale(self) -> None:
        super()._form_scale()
        for name, part in zip("AB", self.projections.part(self.in_features, len(self.b), self.b), strict=True):
            self.register_buffer(name, part, persistent=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}projections"] = self.projections.fingerprint()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, metadata: Any, *args: Any) -> None:
        found = state_dict.pop(f"{prefix}projections", None)
        if found is not None and not torch.allclose(found.cpu(), self.projections.fingerprint(), rtol=1e-6):
            raise ValueError(f"{prefix}projections: the state is for other projections A and B than the model has")
        super()._load_from_state_dict(state_dict, prefix, metadata, *args)


@register("vera")
class VeraLinear(AdapterLayer):
    """Y = x Wᵀ + b ∘ (B (d ∘ (A drop(x)))) + bias.

    Its `method_settings`, PEFT's: `d_initial` (0.1) is where d starts, b starts at 0; `projection_prng_key` (0) is what
    A and B are drawn from; `save_projection` (True) writes them to an adapter's file. A rank of 256 and more is usual.
    """

    tensor_names: ClassVar[Mapping[str, str]] = {"b": "vera_lambda_b", "d": "vera_lambda_d"}
    marker = "vera_lambda_"
    rank_axes: ClassVar[Mapping[str, int]] = {"d": 0}
    size_axes: ClassVar[Mapping[str, tuple[str, int]]] = {"N": ("b", 0)}
    told_state: ClassVar[Set[str]] = {"projections"}
    shared_names: ClassVar[Mapping[str, str]] = {"A": "base_model.vera_A", "B": "base_model.vera_B"}
    peft_type = "VERA"
    peft_keys: ClassVar[Set[str]] = {
        "r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial", "init_weights",
    }  # fmt: skip
    unknown_keys: ClassVar[Set[str]] = {"target_parameters", "trainable_token_indices"}
    lacks: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("alpha", "rslora", "init", "bias", "rank_pattern", "alpha_pattern", "trainable_token_indices"), _NONE
    )
    own_settings: ClassVar[Mapping[str, Any]] = {"d_initial": 0.1, "projection_prng_key": 0, "save_projection": True}

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        rslora: bool = False,
        init: str = "default",
        bias: bool = False,
        adapter: str = "default",
        projections: Projections | None = None,
        **own: Any,
    ) -> None:
        self.check_own(own)
        super().__init__(base, r, alpha, dropout, rslora, init, bias, adapter, {**own, "projections": projections})

    def new_adapter(self, settings: AdapterSettings, own: Mapping[str, Any]) -> Adapter:
        own, device = {"projections": None, **self.own_settings, **own}, base_device(self.base_layer)
        shared: Projections = own["projections"] or Projections(
            settings.r, self.in_features, self.out_features, own["projection_prng_key"]
        )
        adapter = VeraAdapter(settings, device, shared, self.in_features)
        adapter.d = nn.Parameter(torch.full((settings.r,), float(own["d_initial"]), device=device))
        adapter.b = nn.Parameter(torch.zeros(self.out_features, device=device))
        adapter._form_scale()
        return adapter

    def b_hat(self, rows: slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        active: Any = self.active
        return active.b[rows, None].to(dtype) * active.B[rows].to(dtype) * active.d.to(dtype)

    def adapted(self, x: Tensor) -> Tensor:
        weight = base_weight(self.base_layer).weight
        if weight is None:
            return self.around_base(x, self.base_layer(x))
        A, B, d = self._factors()
        p = self.active.dropout
        return F.lora_linear(x, weight, A, B, d, self.base_bias(), dropout_p=p, training=self.training)

    def update(self, x: Tensor) -> Tensor:
        return F.low_rank(x, *self._factors(), dropout_p=self.active.dropout, training=self.training)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """A, diag(b) B, and d as a scale a rank."""
        active: Any = self.active
        return active.A, active.b[:, None] * active.B, active.d

    @classmethod
    def check_own(cls, given: Mapping[str, Any]) -> None:
        super().check_own(given)
        own = {**cls.own_settings, **given}
        check_weight("d_initial", own["d_initial"])
        check_count("projection_prng_key", own["projection_prng_key"], 0)
        check_flag("save_projection", own["save_projection"])

    @classmethod
    def layer_settings(cls, config: AdapterConfig, bases: Iterable[nn.Module]) -> dict[str, Any]:
        sizes = [base_sizes(base) for base in bases]
        own = cls.own_of(config)
        if not sizes:
            return own
        in_features, out_features = (max(sides) for sides in zip(*sizes, strict=True))
        key = own["projection_prng_key"]
        return {**own, "projections": Projections(config.r, in_features, out_features, key)}

    @classmethod
    def scaling_of(cls, rank: int, alpha: float, rslora: bool) -> float:
        return 1.0

    @classmethod
    def from_peft(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        flag(values, "init_weights")
        own = {name: values[name] for name in cls.own_settings if values.get(name) is not None}
        cls.check_own(own)
        bias = values.get("bias") or "none"
        return {
            "r": values.get("r", 256),
            "dropout": values.get("vera_dropout", 0.0),
            "base_bias": "lora_only" if bias == "vera_only" else bias,
            "method_settings": own,
        }

    @classmethod
    def to_peft(cls, config: AdapterConfig, adapters: Mapping[str, Adapter], model: nn.Module) -> dict[str, Any]:
        bias = "vera_only" if config.base_bias == "lora_only" else config.base_bias
        one = next(iter(adapters.values()))
        own = {**cls.own_of(config), "projection_prng_key": _projections(one).key}
        own["save_projection"] = cls._saves(config, one)
        return {"r": config.r, "vera_dropout": config.dropout, "bias": bias, "init_weights": True, **own}

    @classmethod
    def _saves(cls, config: AdapterConfig, adapter: Adapter) -> bool:
        """Whether a file has A and B: also where the key doesn't tell them."""
        return cls.own_of(config)["save_projection"] or not _projections(adapter).drawn

    @classmethod
    def shared_tensors(cls, config: AdapterConfig, adapter: Adapter) -> dict[str, Tensor]:
        return dict(zip("AB", _projections(adapter).whole(), strict=True)) if cls._saves(config, adapter) else {}

    @classmethod
    def put_shared(cls, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
        if tensors:
            _projections(adapter).put(tensors["A"], tensors["B"])
            adapter._form_scale()

    @classmethod
    def check_shared(cls, config: AdapterConfig, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
        wanted = "AB" if cls.own_of(config)["save_projection"] or tensors else ""
        lacking = next((one for one in wanted if one not in tensors), None)
        if lacking is not None:
            raise ValueError(f"lacks {cls.shared_names[lacking]!r} (save_projection is true)")
        if tensors:
            _projections(adapter).check(tensors["A"], tensors["B"])


def _projections(adapter: Any) -> Projections:
    return adapter.projections


def _uniform(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    # √(6/fan), to PEFT's last bit
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(shape[1]))
    return torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=generator)


def _sums(matrix: Tensor) -> Tensor:
    flat = matrix.double().flatten()
    places = torch.arange(1, len(flat) + 1, dtype=torch.float64)
    return torch.stack([flat.sum(), (flat * places).sum() / len(flat)])
