"""What the compiler made of a kernel: registers, spills, shared memory, tensor-core instructions, its inner loops.

NVIDIA: read from the binary with cuobjdump and nvdisasm, which Triton's wheel carries. AMD: from the assembly, where
registers are VGPRs and loops are not told.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import triton

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_.]+)\s*([^;]*);")
_LABEL = re.compile(r"^(\.L_x_\d+):")
_TARGET = re.compile(r"\.L_x_\d+")
_AMD_INSTRUCTION = re.compile(r"^\s+([a-z]\w+)\b")

Loop = dict[str, Any]


class MachineCode(NamedTuple):
    """`loops`: innermost loops, the longest first, each {"total": instructions of a turn, "ops": {opcode: count}}."""

    registers: int
    spill_instructions: int
    shared_bytes: int
    tensor_core_instructions: int
    loops: list[Loop] | None


def machine_code(kernel: Any) -> MachineCode:
    """Of what `triton.compile` returned."""
    return _of_nvidia(kernel) if "cubin" in kernel.asm else _of_amd(kernel)


def _of_nvidia(kernel: Any) -> MachineCode:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        listing = _output("nvdisasm", "-c", file.name)
        usage = _output("cuobjdump", "-res-usage", file.name)
    registers, static = (re.search(rf"\b{name}:(\d+)", usage) for name in ("REG", "SHARED"))
    if registers is None or static is None:
        raise RuntimeError(f"cuobjdump told no registers: {usage.strip()[:200]}")
    code, labels = _read(listing)
    return MachineCode(
        registers=int(registers[1]),
        spill_instructions=sum(opcode.startswith(("LDL", "STL")) for opcode, _ in code),
        # what Triton allocates, and the decoder's table
        shared_bytes=kernel.metadata.shared + int(static[1]),
        tensor_core_instructions=sum("MMA" in opcode for opcode, _ in code),
        loops=_inner_loops(code, labels),
    )


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run([str(_TOOLS / tool), *arguments], check=True, capture_output=True, text=True).stdout


def _read(listing: str) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """(opcode, operands) of every instruction, and at which of them each label stands."""
    code: list[tuple[str, str]] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(code)
        elif instruction := _INSTRUCTION.search(line):
            code.append((instruction[1], instruction[2]))
    return code, labels


def _inner_loops(code: list[tuple[str, str]], labels: dict[str, int]) -> list[Loop]:
    """A loop is what a branch back spans; a branch to itself only fills up the end."""
    spans = []
    for at, (opcode, operands) in enumerate(code):
        target = _TARGET.search(operands) if opcode.startswith("BRA") else None
        start = labels.get(target[0], at) if target else at
        if start < at:
            spans.append((start, at))
    inner = [a for a in spans if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in spans)]
    counts = [Counter(opcode for opcode, _ in code[start : end + 1]) for start, end in inner]
    counts.sort(key=Counter.total, reverse=True)
    return [{"total": count.total(), "ops": dict(count.most_common())} for count in counts]


def _of_amd(kernel: Any) -> MachineCode:
    text = kernel.asm["amdgcn"]
    found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count):\s+(\d+)", text))
    opcodes = [match[1] for line in text.splitlines() if (match := _AMD_INSTRUCTION.match(line))]
    return MachineCode(
        registers=int(found["vgpr_count"]),
        spill_instructions=int(found["vgpr_spill_count"]) + int(found["sgpr_spill_count"]),
        shared_bytes=kernel.metadata.shared,
        tensor_core_instructions=sum("mfma" in opcode for opcode in opcodes),
        loops=None,
    )
