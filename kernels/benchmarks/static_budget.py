"""Compile the Triton kernels for GPUs that need not be here, and count what decides their speed.

    python kernels/benchmarks/static_budget.py                    # every kernel, every target: a table
    python kernels/benchmarks/static_budget.py --json             # the same for programs
    python kernels/benchmarks/static_budget.py --target sm_90 --kernel forward --loops     # opcodes of the loops

Columns: registers per thread, bytes of local memory (spills; scratch on AMD) and of shared memory, instructions in the
whole kernel; then per token and warp the instructions, exponentials, shuffles, accesses to shared memory and barriers
in the main loops. These are the longest of the innermost loops, as many as the case names steps for; what lies in an
outer loop is left out. A kernel without named loops shows the counts of the whole kernel there.

The interpreter takes the place of the compiler when TRITON_INTERPRET is set, so it must not be.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

import networkx as nx

MODULES = ("umamba_kernels.selective_scan.triton_scan", "umamba_kernels.causal_conv1d.triton_conv")
TARGETS = {"sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64)}

# What is counted: a name for the table and the opcodes of both vendors that it stands for, as prefixes.
COUNTED = {
    "exp": ("MUFU.EX2", "v_exp_"),
    "shuffle": ("SHFL", "ds_bpermute", "ds_permute", "ds_swizzle", "v_permlane"),
    "shared access": ("LDS", "STS", "ds_read", "ds_write"),
    "barrier": ("BAR", "s_barrier"),
    "local": ("LDL", "STL", "scratch_"),
}


@dataclass(frozen=True)
class Loop:
    """A natural loop of the machine code.

    Args:
        label: Where it begins.
        innermost: It holds no other loop.
        opcodes: How often each opcode stands in it, those of inner loops included.
    """

    label: str
    innermost: bool
    opcodes: Counter[str]


@dataclass(frozen=True)
class Report:
    """What became of one kernel for one target.

    Args:
        name: The case.
        target: A key of TARGETS.
        registers: Per thread.
        local: Bytes of local memory per thread: stack and spilled registers.
        shared: Bytes of shared memory per program.
        steps: Tokens per iteration of the main loops, the longest loop first.
        opcodes: How often each opcode stands in the kernel.
        loops: Its loops.
    """

    name: str
    target: str
    registers: int
    local: int
    shared: int
    steps: tuple[int, ...]
    opcodes: Counter[str]
    loops: list[Loop]

    def per_step(self, kind: str | None = None) -> float:
        """Instructions per token and warp in the main loops; of one kind (a key of COUNTED), or all."""
        if not self.steps:
            return count(self.opcodes, kind)
        inner = sorted((loop.opcodes for loop in self.loops if loop.innermost), key=count, reverse=True)
        assert len(inner) >= len(self.steps), f"{self.name}: {len(inner)} loops, wanted {len(self.steps)} or more"
        return sum(count(opcodes, kind) / steps for opcodes, steps in zip(inner, self.steps, strict=False))


def count(opcodes: Counter[str], kind: str | None = None) -> int:
    """Instructions of one kind (a key of COUNTED), or all."""
    return sum(n for opcode, n in opcodes.items() if kind is None or opcode.startswith(COUNTED[kind]))


def compile_case(case, target: str) -> Report:
    """Compile a :class:`umamba_kernels.triton_common.CompiledCase` for a key of TARGETS.

    Raises:
        RuntimeError: TRITON_INTERPRET is set.
    """
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise RuntimeError("TRITON_INTERPRET is set: kernels would be interpreted, not compiled")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    values = dict(case.constexprs)
    if "ASM" in values and TARGETS[target][0] == "hip":
        values["ASM"] = False  # the switch for NVIDIA's own instructions, see triton_common.py
    types = {name: case.signature.get(name, "constexpr") for name in names}
    missing = [name for name in names if name not in case.signature and name not in values]
    assert not missing, f"{case.name}: no type and no value for {missing}"
    source = ASTSource(
        case.kernel,
        {name: kind.removesuffix(":16") for name, kind in types.items()},
        constexprs={name: value for name, value in values.items() if name in names},
        attrs={(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.endswith(":16")},
    )
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"num_warps": case.num_warps})
    read = _read_nvidia if TARGETS[target][0] == "cuda" else _read_amd
    registers, local, code = read(compiled.asm)
    opcodes, loops = analyse(code)
    return Report(case.name, target, registers, local, compiled.metadata.shared, case.steps, opcodes, loops)


def _read_nvidia(asm) -> tuple[int, int, Iterator[tuple[str, str]]]:
    from triton import knobs

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()

        def run(tool: str, option: str) -> str:
            path = getattr(knobs.nvidia, tool).path
            return subprocess.run([path, option, file.name], check=True, capture_output=True, text=True).stdout

        usage, sass = run("cuobjdump", "-res-usage"), run("nvdisasm", "-c")
    resources = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return resources["REG"], resources["STACK"] + resources["LOCAL"], _sass(sass)


def _sass(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\w+):", line):
            yield "label", label[1]
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?) ;", line):
            yield "instruction", instruction[1].replace("`(", "").replace(")", "")


def _read_amd(asm) -> tuple[int, int, Iterator[tuple[str, str]]]:
    metadata = {name: int(value) for name, value in re.findall(r"^\s+\.(\w+):\s+(\d+)$", asm["amdgcn"], re.MULTILINE)}
    # LLVM may reserve scratch for scalar registers and then keep them in lanes of a vector register.
    local = metadata["private_segment_fixed_size"] if "\tscratch_" in asm["amdgcn"] else 0
    return metadata["vgpr_count"], local, _amdgcn(asm["amdgcn"])


def _amdgcn(text: str) -> Iterator[tuple[str, str]]:
    for line in text.split(".section", 1)[0].splitlines():
        if label := re.match(r"(\.LBB\w+):", line):
            yield "label", label[1]
        elif instruction := re.match(r"\t([a-z]\w+.*?)(;|$)", line):
            yield "instruction", instruction[1].strip()


def analyse(code: Iterator[tuple[str, str]]) -> tuple[Counter[str], list[Loop]]:
    """Opcodes and natural loops of a listing of labels and instructions.

    A loop is what lies between a jump back and a place that every way to the jump passes. Jumps back alone are not
    enough: compilers move rare code behind the end of the kernel, from where it jumps back as well.
    """
    flow, opcodes, block = nx.DiGraph(), {"entry": Counter()}, "entry"
    flow.add_node(block)
    falls_through = True
    for kind, text in code:
        if kind == "label" or not falls_through:
            previous, block = block, text if kind == "label" else f"unlabelled {len(opcodes)}"
            opcodes[block] = Counter()
            if falls_through:
                flow.add_edge(previous, block)
            falls_through = True
        if kind == "label":
            continue
        predicate, opcode, operands = re.match(r"(@\S+ )?(\S+)\s*(.*)", text).groups()
        if opcode in ("NOP", "s_nop"):
            continue
        opcodes[block][opcode] += 1
        # ptxas also writes a far jump as a call, from which nothing returns; functions have other labels.
        far = opcode.startswith("CALL") and operands.startswith(".L_x_")
        jump = far or opcode.startswith(("BRA", "BRX", "JMP", "s_branch", "s_cbranch"))
        *conditions, destination = operands.split() if jump else [""]
        if jump:
            flow.add_edge(block, destination)
        conditional = bool(predicate or conditions or opcode.startswith("s_cbranch"))
        falls_through = conditional or not (jump or opcode in ("EXIT", "s_endpgm") or opcode.startswith("RET"))
        if jump and falls_through:  # the code behind a conditional jump is a block of its own
            follower = f"unlabelled {len(opcodes)}"
            flow.add_edge(block, follower)
            block, opcodes[follower] = follower, Counter()
    return sum(opcodes.values(), Counter()), _loops(flow, opcodes)


def _loops(flow: nx.DiGraph, opcodes: dict[str, Counter[str]]) -> list[Loop]:
    reachable = flow.subgraph({"entry", *nx.descendants(flow, "entry")})
    above = nx.immediate_dominators(reachable, "entry")

    def dominates(a: str, b: str | None) -> bool:
        while b is not None and b != a:
            b = None if b == "entry" else above[b]
        return b == a

    bodies: dict[str, set[str]] = {}
    for tail, head in reachable.edges:
        if dominates(head, tail):
            within = reachable.subgraph(set(reachable) - {head}) if tail != head else None
            body = {head, tail} | (nx.ancestors(within, tail) if within is not None else set())
            bodies[head] = bodies.get(head, set()) | body
    # LLVM turns a loop into one with two entrances now and then: every jump between its blocks belongs to it.
    for body in nx.strongly_connected_components(reachable):
        if len(body) > 1 and bodies.keys().isdisjoint(body):
            bodies[min(body)] = body
    return [
        Loop(
            head,
            not any(other != head and other in body for other in bodies),
            sum((opcodes.get(block, Counter()) for block in body), Counter()),
        )
        for head, body in bodies.items()
    ]


def cases() -> list:
    """The cases of every Triton module."""
    return [case for module in MODULES if find_spec(module) for case in import_module(module).compiled_cases()]


def _report(index: int, target: str) -> Report:
    return compile_case(cases()[index], target)


def reports(targets: list[str], wanted: str = "") -> list[Report]:
    """Compile the cases whose name holds ``wanted``, on all cores."""
    jobs = [(i, target) for i, case in enumerate(cases()) if wanted in case.name for target in targets]
    workers = max(1, min(len(jobs), os.cpu_count() or 1))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_report, [i for i, _ in jobs], [target for _, target in jobs]))


def row(report: Report) -> dict[str, str | int | float]:
    """The numbers of a report by their names in the table."""
    return {
        "kernel": report.name,
        "target": report.target,
        "registers": report.registers,
        "local": report.local,
        "shared": report.shared,
        "instructions": count(report.opcodes),
        "per token": round(report.per_step(), 1),
        **{kind: round(report.per_step(kind), 1) for kind in COUNTED if kind != "local"},
    }


def main() -> None:
    from tabulate import tabulate

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=TARGETS, help="compile for this GPU only; repeatable")
    parser.add_argument("--kernel", default="", help="compile the kernels whose name holds this")
    parser.add_argument("--loops", action="store_true", help="print the opcodes of every loop as well")
    parser.add_argument("--json", action="store_true", help="print a list of objects, loops included")
    options = parser.parse_args()
    results = reports(options.target or list(TARGETS), options.kernel)
    if options.json:
        print(json.dumps([row(report) | {"loops": [vars(loop) for loop in report.loops]} for report in results]))
        return
    print(tabulate([row(report) for report in results], headers="keys"))
    for report in results if options.loops else []:
        for loop in report.loops:
            kind = "innermost" if loop.innermost else "outer"
            print(f"\n{report.name}, {report.target}: {kind} loop {loop.label}, {count(loop.opcodes)} instructions")
            print("  " + ", ".join(f"{n} {opcode}" for opcode, n in loop.opcodes.most_common()))


if __name__ == "__main__":
    main()
