"""What each kernel computes, reads and writes, and what limits it: the part of the page that no compiler changes."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

from lorafam.kernels import launch_table


class Formula(NamedTuple):
    """Bytes by the algorithm, and what a GPU is modelled to spend its time on."""

    reads: str
    writes: str
    bound_by: str


# by the file in kernels/, in the page's order
FORMULAS = {
    "lora_linear": Formula(
        "T_M·W + T_N·(b M K + 4 M r) + 4 S M N where split",
        "b M N + 4 S M N where split",
        "few tokens: reading codes; many: tensor cores and decode",
    ),
    "lora_linear_group": Formula(
        "Σ of lora_linear's over the weights", "Σ of lora_linear's over the weights", "reading codes"
    ),
    "lora_linear_grad": Formula(
        "T_M·W + T_K·(b M N + 4 M r) + 4 S M K where split", "b M K + 4 S M K where split", "tensor cores and decode"
    ),
    "dense_linear": Formula("T_N·b M K + T_M·b w + T_N·4 M r", "b M N", "tensor cores"),
    "lora_project": Formula("T_r·b M K + T_M·4 r K + 4 S M r where split", "4 M r + 4 S M r where split", "reading x"),
    "lora_factors_grad": Formula(
        "T_r·b M C + T_C·4 M r (+ b M C for dm) + 4 S C r where split", "4 C r + 4 S C r where split", "reading X"
    ),
    "lora_grad_pass": Formula(
        "b M N (twice for dm) + T_M·4 N r + S·4 M r", "4 M r + T_M·4 N r (+ T_M·4 N for dm, dbias)", "reading G"
    ),
    "row_norm": Formula("T_r·W + T_N·4 r K", "4 N", "decode"),
    "nf4_dequantize": Formula("W", "b w", "writing W"),
    "nf4_quantize": Formula("b w", "0.5 w + 4 w/64", "reading W"),
    "absmax_quantize": Formula("4 w/64", "w/64", "bytes"),
    "adalora_importance": Formula("16 bytes an element", "8 bytes an element", "bytes"),
    "adalora_scores": Formula("8 bytes an element", "4 a rank", "bytes"),
    "adalora_penalty": Formula("2 ⌈r/16⌉² · 4 r L a factor", "4 r² + 4 a factor", "tensor cores, reading P"),
    "adalora_penalty_grad": Formula("⌈r/16⌉ · 4 r L + T_L · 4 r² a factor", "4 r L a factor", "bytes"),
    "dropout": Formula("b M K", "b M K", "bytes"),
}


def kernel_files() -> dict[str, str]:
    """The files of kernels/ that define a kernel, by name, and what each computes: the first paragraph of its
    docstring, and the lines of the next where the first ends in a colon.
    """
    found = {}
    for path in sorted(Path(launch_table.__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == f"{path.stem}_kernel" for node in tree.body):
            found[path.stem] = _first_equation(ast.get_docstring(tree) or "")
    return found


def _first_equation(docstring: str) -> str:
    first, *rest = docstring.split("\n\n")
    text = " ".join(first.split())
    if not text.endswith(":"):
        return text
    return f"{text} " + "; ".join(re.split(r"\s{2,}|\n", rest[0].strip()))


def table() -> list[str]:
    """A line for each kernel. Raises ValueError where the formulas and kernels/ don't have the same."""
    files = kernel_files()
    if files.keys() != FORMULAS.keys():
        raise ValueError(f"without a kernel or without a formula: {sorted(files.keys() ^ FORMULAS.keys())}")
    lines = ["| kernel | computes | reads | writes | bound by |", "|---|---|---|---|---|"]
    for name, formula in FORMULAS.items():
        lines.append(f"| `{name}` | {files[name].replace('|', '&#124;')} | {' | '.join(formula)} |")
    return lines
