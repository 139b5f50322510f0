"""The loops of a program, from its assembly: SASS as nvdisasm prints it, or PTX.

A loop is what the compiler calls a natural loop: a header that every way into the loop passes, and all that lies on a
way from it back to it, code that was moved behind the program's end (waits) included. Code that nothing leads to is
filler and left out.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

_SASS_LABEL = re.compile(r"^(\.L_x_\d+):")
_SASS_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z0-9_.]+)\s*([^;]*);")
_NEVER = ("@!PT", "@!UPT")
_SASS_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
# "BRA P0, `(target)", "BRA.U !UP1, `(target)": a condition among the operands
_SASS_CONDITION = re.compile(r"^!?U?P\d")
_PTX_LABEL = re.compile(r"^\$(\w+):")
_PTX_INSTRUCTION = re.compile(r"^(@!?%\w+\s+)?([a-z][\w.:]*)\s*(.*)$")
_PTX_TARGET = re.compile(r"\$(\w+)")

# the instructions of a loop by opcode
Loop = Counter[str]


class Instruction(NamedTuple):
    """`target`: the label it may go on at; `falls`: whether what stands below may come next.

    An opcode under a predicate that is never true begins with it ("@!PT LDS"): it is issued and does nothing.
    """

    opcode: str
    target: str | None = None
    falls: bool = True


class Program(NamedTuple):
    """Instructions in the order of memory, and at which of them each label stands."""

    code: list[Instruction]
    labels: dict[str, int]


def read_sass(listing: str) -> Program:
    """Raises ValueError where a branch has no target that can be read."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := _SASS_LABEL.match(line):
            labels[label[1]] = len(code)
        elif found := _SASS_INSTRUCTION.search(line):
            guard, opcode, operands = found.groups()
            name = opcode.partition(".")[0]
            if name == "BRX":
                raise ValueError(f"a branch to a computed address: {line.strip()}")
            target = _SASS_TARGET.search(operands) if name in ("BRA", "CALL") else None
            leaves = name in ("EXIT", "RET") or (name == "BRA" and not _SASS_CONDITION.match(operands))
            if guard is not None and guard.strip() in _NEVER:
                opcode = guard + opcode
            code.append(Instruction(opcode, target[1] if target else None, guard is not None or not leaves))
    return Program(code, labels)


def read_ptx(text: str) -> Program:
    """Statements of the first entry and what follows; inline assembly is split into its instructions."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text[text.index(".entry") :].splitlines():
        line = line.partition("//")[0].strip()
        if label := _PTX_LABEL.match(line):
            labels[label[1]] = len(code)
            continue
        for statement in line.strip("{} ").split(";"):
            if found := _PTX_INSTRUCTION.match(statement.strip("{} ")):
                guard, opcode, operands = found.groups()
                branch, name = opcode.startswith("bra"), opcode.partition(".")[0]
                target = _PTX_TARGET.search(operands) if branch else None
                leaves = branch or name in ("ret", "exit")
                code.append(Instruction(opcode, target[1] if target else None, guard is not None or not leaves))
    return Program(code, labels)


def reachable(program: Program) -> Loop:
    """The instructions that the program's start leads to, by opcode."""
    starts, after = _blocks(program)
    return _counted(program, starts, set(_dominators(after)))


def loops(program: Program, holding: str | None = None) -> list[Loop]:
    """Every loop, the longest first; or those with an instruction whose opcode starts with `holding`, the innermost of
    nested ones that have one.
    """
    return [nest.loop for nest in nests(program, holding)]


class Nest(NamedTuple):
    """A loop, and what the next loop around it has beside it; empty where there is none."""

    loop: Loop
    around: Loop


def nests(program: Program, holding: str | None = None) -> list[Nest]:
    """`loops`, with what is around each."""
    starts, after = _blocks(program)
    bodies = _bodies(after)
    counted = {header: _counted(program, starts, body) for header, body in bodies.items()}
    chosen = set(bodies)
    if holding is not None:
        chosen = {h for h in bodies if any(opcode.startswith(holding) for opcode in counted[h])}
        chosen = {h for h in chosen if not any(bodies[other] < bodies[h] for other in chosen)}
    found = []
    for header in chosen:
        outer = min((body for body in bodies.values() if bodies[header] < body), key=len, default=bodies[header])
        found.append(Nest(counted[header], _counted(program, starts, outer - bodies[header])))
    return sorted(found, key=lambda nest: -nest.loop.total())


def _bodies(after: list[list[int]]) -> dict[int, set[int]]:
    """The blocks of each natural loop by its header."""
    dominators = _dominators(after)
    before: dict[int, set[int]] = {block: set() for block in dominators}
    for block in dominators:
        for follower in after[block]:
            before[follower].add(block)
    bodies: dict[int, set[int]] = {}
    for block, above in dominators.items():
        for header in after[block]:
            if header in above:
                body = bodies.setdefault(header, {header})
                open_ = [block]
                while open_:
                    if (at := open_.pop()) not in body:
                        body.add(at)
                        open_ += before[at]
    return bodies


def _blocks(program: Program) -> tuple[list[int], list[list[int]]]:
    """Where the basic blocks start, with the end of the code as the last, and which may follow each."""
    code, labels = program
    leaders = {0, len(code), *labels.values()}
    leaders |= {at + 1 for at, instruction in enumerate(code) if instruction.target or not instruction.falls}
    starts = sorted(leaders)
    number = {start: block for block, start in enumerate(starts)}
    after: list[list[int]] = []
    for block, end in enumerate(starts[1:]):
        last = code[end - 1]
        after.append([block + 1] if last.falls and end < len(code) else [])
        if last.target in labels and labels[last.target] < len(code):
            after[-1].append(number[labels[last.target]])
    return starts, after


def _dominators(after: list[list[int]]) -> dict[int, set[int]]:
    """Block → the blocks on every way from the start to it, itself included; of those that a way leads to."""
    order: list[int] = []
    open_ = [0]
    while open_:
        if (block := open_.pop()) not in order:
            order.append(block)
            open_ += after[block]
    dominators = {block: set(order) for block in order}
    dominators[0] = {0}
    changed = True
    while changed:
        changed = False
        for block in order[1:]:
            ways = [dominators[other] for other in order if block in after[other]]
            above = set.intersection(*ways) | {block}
            changed |= above != dominators[block]
            dominators[block] = above
    return dominators


def _counted(program: Program, starts: list[int], blocks: set[int]) -> Loop:
    return Counter(
        instruction.opcode for block in blocks for instruction in program.code[starts[block] : starts[block + 1]]
    )
