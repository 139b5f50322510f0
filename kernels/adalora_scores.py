"""Mean of Ī · U over everything but the rank, for all ranks of all tensors in one launch.

    Ī, U fp32, the tensors one after the other          scores fp32 [S]
    segments int64 [S, 3]: first element, stride, count

Grid: a segment (one rank of one tensor) a program. Reads Ī and U once.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig


@triton.jit
def adalora_scores_kernel(
    sensitivity_ptr, uncertainty_ptr, segments_ptr, scores_ptr, TARGET: tl.constexpr, BLOCK: tl.constexpr
):
    segment = segments_ptr + tl.program_id(0) * 3
    first, stride, count = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
    acc = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        index = start + tl.arange(0, BLOCK)
        at = first + index * stride
        mask = index < count
        sensitivity = tl.load(sensitivity_ptr + at, mask=mask, other=0.0)
        acc += sensitivity * tl.load(uncertainty_ptr + at, mask=mask, other=0.0)
    tl.store(scores_ptr + tl.program_id(0), tl.sum(acc, axis=0) / count.to(tl.float32))


def adalora_scores(sensitivity, uncertainty, segments, scores, S: int, config: LaunchConfig) -> KernelCall:
    """The launch over all segments."""
    return kernel_call(
        adalora_scores_kernel,
        (S,),
        sensitivity_ptr=sensitivity,
        uncertainty_ptr=uncertainty,
        segments_ptr=segments,
        scores_ptr=scores,
        **config.constexprs(),
        **config.options(contract=False),
    )
