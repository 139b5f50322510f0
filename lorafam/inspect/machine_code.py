"""What the compiler made of a kernel: registers, spills, shared memory, tensor-core instructions, its inner loops.

NVIDIA: read from the binary with cuobjdump and nvdisasm, which Triton's wheel carries. AMD: from the assembly, where
registers are VGPRs and loops are not told.
"""

from __future__ import annotations

import functools
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton

from .control_flow import loops, read_sass

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_AMD_INSTRUCTION = re.compile(r"^\s+([a-z]\w+)\b")

Loop = dict[str, Any]


class MachineCode(NamedTuple):
    """`loops`: the longest first, each {"total": instructions of a turn, "ops": {opcode: count}}."""

    registers: int
    spill_instructions: int
    shared_bytes: int
    tensor_core_instructions: int
    loops: list[Loop] | None


def machine_code(kernel: Any) -> MachineCode:
    """Of what `triton.compile` returned."""
    return _of_nvidia(kernel) if "cubin" in kernel.asm else _of_amd(kernel)


def _of_nvidia(kernel: Any) -> MachineCode:
    usage = _of_binary(kernel.asm["cubin"], "cuobjdump", "-res-usage")
    registers, static = (re.search(rf"\b{name}:(\d+)", usage) for name in ("REG", "SHARED"))
    if registers is None or static is None:
        raise RuntimeError(f"cuobjdump told no registers: {usage.strip()[:200]}")
    program = read_sass(disassembly(kernel))
    opcodes = [instruction.opcode for instruction in program.code]
    return MachineCode(
        registers=int(registers[1]),
        spill_instructions=_spills(opcodes),
        # what Triton allocates, and the decoder's table
        shared_bytes=kernel.metadata.shared + int(static[1]),
        tensor_core_instructions=sum("MMA" in opcode for opcode in opcodes),
        loops=[{"total": loop.total(), "ops": dict(loop.most_common())} for loop in loops(program)],
    )


def _spills(opcodes: list[str]) -> int:
    """Loads and stores of local memory. Stores alone aren't spills, which are loaded again: a zero before a call, by
    which the ptxas of Triton 3.6 reports a bulk copy to another program's shared memory (sm_120).
    """
    loads, stores = (sum(opcode.startswith(name) for opcode in opcodes) for name in ("LDL", "STL"))
    return loads + stores if loads else 0


def disassembly(kernel: Any) -> str:
    """The SASS of what `triton.compile` returned for an NVIDIA target, as nvdisasm prints it."""
    return _disassembled(kernel.asm["cubin"])


# a kernel's listing is asked for by who counts and by who looks at loops, one after the other
@functools.lru_cache(maxsize=2)
def _disassembled(binary: bytes) -> str:
    # without the dataflow analysis, which changes nothing in the listing and takes a fifth of the time
    return _of_binary(binary, "nvdisasm", "-c", "-ndf")


def _of_binary(binary: bytes, tool: str, *options: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(_TOOLS / tool), *options, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


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
