"""AdaLoRA's smoothed importance of every parameter, all tensors of a model in one launch (arXiv 2303.10512, eq. 8-10):

    I = |w · ∇w|     Ī ← β₁ Ī + (1 − β₁) I     U ← β₂ U + (1 − β₂) |I − Ī|

    w, ∇w, Ī, U fp32, the tensors one after the other [count]; Ī and U in place

Grid: BLOCK elements a program. Reads 16, writes 8 bytes an element.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig


@triton.jit
def adalora_importance_kernel(
    w_ptr,
    grad_ptr,
    sensitivity_ptr,
    uncertainty_ptr,
    count,
    beta1,
    beta2,
    rest1,
    rest2,
    TARGET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < count
    importance = tl.abs(tl.load(w_ptr + offs, mask=mask, other=0.0) * tl.load(grad_ptr + offs, mask=mask, other=0.0))
    sensitivity = tl.load(sensitivity_ptr + offs, mask=mask, other=0.0)
    sensitivity = beta1 * sensitivity + rest1 * importance
    uncertainty = tl.load(uncertainty_ptr + offs, mask=mask, other=0.0)
    uncertainty = beta2 * uncertainty + rest2 * tl.abs(importance - sensitivity)
    tl.store(sensitivity_ptr + offs, sensitivity, mask=mask)
    tl.store(uncertainty_ptr + offs, uncertainty, mask=mask)


def adalora_importance(
    w, grad, sensitivity, uncertainty, count: int, beta1: float, beta2: float, config: LaunchConfig
) -> KernelCall:
    """The launch over all elements."""
    return kernel_call(
        adalora_importance_kernel,
        (triton.cdiv(count, config["BLOCK"]),),
        w_ptr=w,
        grad_ptr=grad,
        sensitivity_ptr=sensitivity,
        uncertainty_ptr=uncertainty,
        count=count,
        beta1=beta1,
        beta2=beta2,
        rest1=1 - beta1,
        rest2=1 - beta2,
        **config.constexprs(),
        **config.options(),
    )
