"""A tensor descriptor of Triton 3.6 gets the flag that ptxsim passes beside its own."""

from __future__ import annotations

from lorafam.backends.triton_gpu.descriptor_flags import with_both

HEAD = ".visible .entry kernel(\n"
BASE = "\t.param .u64 .ptr .global .align 1 kernel_param_0"
BODY = "\n)\n.reqntid 128\n{\n\tld.param.u8 \t%rs1, [kernel_param_1];\n}\n"


def entry(*parameters: str) -> str:
    return HEAD + ",\n".join(parameters) + BODY


def test_a_flag_that_is_alone_gets_a_second() -> None:
    flags = ["\t.param .u8 kernel_param_1", "\t.param .u32 kernel_param_2", "\t.param .u8 kernel_param_3"]
    doubled = [flags[0], f"{flags[0]}_second", flags[1], flags[2], f"{flags[2]}_second"]
    assert with_both(entry(BASE, *flags)) == entry(BASE, *doubled)


def test_two_stay_two() -> None:
    ptx = entry(BASE, "\t.param .u8 kernel_param_1", "\t.param .u8 kernel_param_2", "\t.param .u32 kernel_param_3")
    assert with_both(ptx) == ptx
