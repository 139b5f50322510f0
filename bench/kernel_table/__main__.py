"""`make kernel-table`: writes the generated parts of docs/kernels.md.

    python -m lorafam.bench.kernel_table [--kernels kernels.json | --formulas]

`kernels.json` is what `make compiled` and `lorafam doctor --dump-kernels DIR` write; without it everything is compiled,
which takes minutes. Bytes and bank conflicts need ptxsim (LORAFAM_PTXSIM). `--formulas` writes only what needs neither.
Exits with 1 where a kernel didn't compile: the page is of all of them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorafam.kernels.launch_table import PACKED, launch_config

from lorafam.backends.triton_gpu.launch import simulator
from lorafam.inspect.every_kernel import dump_kernels, failures
from lorafam.inspect.traffic import Counted

from . import code, formulas, measured, moved, times, wavefronts
from .cards import CARDS, Card
from .measured import Call, Models
from .page import PAGE, filled
from .variants import Variant

SHAPES = ((4096, 4096), (14336, 4096))
TOKENS = (1, 16, 64, 128)
Rows = Sequence[Mapping[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m lorafam.bench.kernel_table")
    parser.add_argument("--kernels", type=Path, help="kernels.json of all NVIDIA architectures")
    parser.add_argument("--formulas", action="store_true", help="only what kernels compute, read and write")
    options = parser.parse_args()
    new = {"formulas": formulas.table()} if options.formulas else generated(_rows(options.kernels))
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), new), encoding="utf-8")
    print(f"written to {PAGE}")
    return 0


def _rows(kernels: Path | None) -> Rows:
    simulator()  # says at once where it isn't
    if kernels is not None:
        rows = json.loads(kernels.read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = dump_kernels(Path(folder), code.TARGETS)
    if failed := failures(rows):
        raise SystemExit("\n".join(["not written, since these didn't compile:", *failed]))
    return rows


def generated(rows: Rows) -> dict[str, list[str]]:
    """The page's sections."""
    launches = {target: moved.launches(target) for target in moved.TARGETS}
    dequantize = {target: _wavefronts_of_dequantize(own) for target, own in launches.items()}
    modelled = models(rows, dequantize)
    return {
        "formulas": formulas.table(),
        "resources": code.resources(rows),
        "instructions": code.instructions(rows),
        "bytes": moved.table(launches),
        "times": _times(modelled),
        "measured": measured.table(Path(__file__).parents[1] / "results", modelled),
    }


def _wavefronts_of_dequantize(found: Mapping[Variant, Sequence[Counted]]) -> float:
    return max(
        counted.traffic.wavefronts / counted.launch.arguments["decoded_ptr"].numel()
        for counted in found[Variant("nf4_dequantize", "", 0)]
    )


def simulated_target(card: Card) -> str | None:
    """Whose code ptxsim runs in place of a card's: the same source for the same tensor cores."""
    return {"sm_90": "sm_90", "sm_100": None}.get(card.architecture, "sm_80")


def models(rows: Rows, dequantize: Mapping[str, float]) -> Models:
    """The rows of the page's table of times, each with its cards."""
    variants = code.by_variant(rows)
    shared = {(target, tokens): wavefronts.of_product(target, tokens) for target in moved.TARGETS for tokens in TOKENS}
    by_call: Models = {}
    for N, K in SHAPES:
        for tokens in TOKENS:
            cards = by_call[Call("lora_linear", N, K, tokens)] = {}
            for card in CARDS:
                config = launch_config("lora_linear", card.architecture, "bfloat16", tokens, PACKED, N=N, K=K)
                variant = Variant("lora_linear", PACKED, config["BLOCK_M"])
                work = times.of_product(card, dict(config.blocks), tokens, N, K)
                target = simulated_target(card)
                turns = shared.get((target, tokens)) if target else None
                cards[card] = _modelled(card, work, variants[variant], turns)
    for N, K in SHAPES:
        cards = by_call[Call("nf4_dequantize", N, K, 0)] = {}
        for card in CARDS:
            own = variants[Variant("nf4_dequantize", "", 0)]
            work = times.of_dequantize(own[card.architecture][0]["config"], N, K)
            # no tensor cores in it: the same code everywhere
            cards[card] = _modelled(card, work, own, dequantize[simulated_target(card) or "sm_90"])
    return by_call


def _modelled(card: Card, work: times.Work, rows: Mapping[str, Rows], wavefronts_: float | None) -> times.Modelled:
    per_weight = code.worst(rows[card.architecture])
    if per_weight is None:
        raise ValueError(f"nothing is decoded by look-ups on {card.architecture}")
    return times.modelled(card, work, per_weight, wavefronts_)


def _times(found: Models) -> list[str]:
    lines = [f"| µs | {' | '.join(f'{card.name}, modelled' for card in CARDS)} |", "|" + "---|" * (len(CARDS) + 1)]
    return lines + [f"| {call} | {' | '.join(_cell(cards[card]) for card in CARDS)} |" for call, cards in found.items()]


def _cell(found: times.Modelled) -> str:
    parts = f" to {1e6 * found.with_parts:.1f}" if found.with_parts > 1.05 * found.seconds else ""
    return f"{1e6 * found.seconds:.1f}{parts} {found.bound_by}"


if __name__ == "__main__":
    raise SystemExit(main())
