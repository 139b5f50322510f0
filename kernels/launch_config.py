"""How a kernel is launched: its block shape, warps and pipeline stages, and the tensor cores its code is for."""

from __future__ import annotations

from dataclasses import dataclass, replace

# by the tensor cores' instructions: sm_80 to 89 and 120; sm_90; sm_100; AMD's
MMA, WGMMA, TCGEN05, MFMA, INTERPRETER = "mma", "wgmma", "tcgen05", "mfma", "interpreter"


@dataclass(frozen=True)
class LaunchConfig:
    """One entry of the launch table.

    `blocks` are the kernel's constexpr sizes by name (BLOCK_M, SPLIT_K, ...). `target` chooses between code that only
    NVIDIA's machines run (inline PTX) and code that all do, and the order in which operands are read.
    """

    blocks: tuple[tuple[str, int], ...]
    num_warps: int = 4
    num_stages: int = 1
    target: str = MMA

    def __getitem__(self, name: str) -> int:
        return dict(self.blocks)[name]

    def at_most(self, **sizes: int) -> LaunchConfig:
        """The same with these block sizes where it has larger ones."""
        blocks = tuple((name, min(size, sizes.get(name, size))) for name, size in self.blocks)
        return replace(self, blocks=blocks)

    def options(self, *, contract: bool = True) -> dict[str, int]:
        """Warps, stages, and whether products and sums may be contracted, as Triton's launch takes them.

        Not contracted: what must round as another library does, and sums of products over lanes, which would round
        differently in each.
        """
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "enable_fp_fusion": contract}

    def constexprs(self) -> dict[str, int | str]:
        """Block sizes and target, as keyword arguments of a kernel."""
        return {**dict(self.blocks), "TARGET": self.target}
