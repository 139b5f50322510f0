"""The gain with which levels are rounded to bf16 and fp16: round(gain · level) / gain, the division made in the scale.

NF4's levels rounded as they are err the same way everywhere, so a product with inputs that aren't zero-mean (after a
ReLU) is several times worse than eager's, whose rounded weights err either way. With these gains the mean error over
normally distributed weights in blocks of 64 vanishes, and its RMS is below that of rounded weights. FP4's levels are
multiples of 1/192, so 0.75 makes all of them exact.
"""

from __future__ import annotations

import torch

NF4, FP4 = 0, 1
GAINS: dict[int, dict[torch.dtype, float]] = {
    NF4: {torch.bfloat16: 1.188755, torch.float16: 1.388595},
    FP4: {torch.bfloat16: 0.75, torch.float16: 0.75},
}
