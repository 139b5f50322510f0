"""How a kernel is launched: its block shape, warps and pipeline stages, and the kind of machine its code is for."""

from __future__ import annotations

from dataclasses import dataclass

NVIDIA, AMD, INTERPRETER = "nvidia", "amd", "interpreter"


@dataclass(frozen=True)
class LaunchConfig:
    """One entry of the launch table.

    `blocks` are the kernel's constexpr sizes by name (BLOCK_M, SPLIT_K, ...). `target` chooses between code that only
    one kind of machine runs (inline PTX) and code that all do.
    """

    blocks: tuple[tuple[str, int], ...]
    num_warps: int = 4
    num_stages: int = 1
    target: str = NVIDIA

    def __getitem__(self, name: str) -> int:
        return dict(self.blocks)[name]

    def options(self, *, contract: bool = True) -> dict[str, int]:
        """Warps, stages, and whether products and sums may be contracted, as Triton's launch takes them.

        Not contracted: what must round as another library does, and sums of products over lanes, which would round
        differently in each.
        """
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": contract}

    def constexprs(self) -> dict[str, int | str]:
        """Block sizes and target, as keyword arguments of a kernel."""
        return {**dict(self.blocks), "TARGET": self.target}
