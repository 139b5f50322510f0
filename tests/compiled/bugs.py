"""Bugs for the tests to find (`seeded_bugs`): what is replaced by what, and which tests should see it."""

from __future__ import annotations

from typing import NamedTuple

# in this order: the first runs every kernel once, so that most bugs are found in a minute
PRODUCTS = tuple(
    f"tests/{name}.py"
    for name in (
        "backends/triton_gpu/test_every_configuration",
        "backends/triton_gpu/test_compiled_code",
        "test_functional",
    )
)
FOUR_BIT = ("tests/backends/test_four_bit.py",)
ROW_NORM = ("tests/backends/test_row_norm.py",)
SCALES = ("tests/backends/triton_gpu/test_scale_table.py", "tests/backends/triton_gpu/test_compiled_code.py")
GROUP = ("tests/backends/triton_gpu/test_lora_linear_group.py",)
STAGED = ("tests/backends/triton_gpu/test_staged.py",)
REPLAY = ("tests/backends/triton_gpu/test_replay.py",)
ADALORA = ("tests/backends/triton_gpu/test_adalora.py",)
LARGE = ("tests/backends/triton_gpu/test_large_tensors.py",)


LIMITS = ("tests/backends/triton_gpu/test_launch_limits.py",)
# of compiled code: instructions taken out of the PTX of every kernel
AHEAD_OF_TIME = "../lorafam/backends/triton_gpu/ahead_of_time.py"
COMPILED = "kernel = _compiled[key] = triton.compile(source, target=target, options=options)\n"
WITHOUT = """        lines = kernel.asm["ptx"].splitlines()
        kernel.asm["ptx"] = "\\n".join(line for line in lines if not line.strip().startswith("{text}"))
"""


class Bug(NamedTuple):
    """`old` stands in kernels/`file`, its first place is replaced by `new`; `tests`, those `chosen`, should find it."""

    file: str
    operator: str
    old: str
    new: str
    tests: tuple[str, ...] = PRODUCTS
    chosen: str = "simulate or sm_80"


BUGS = (
    Bug(
        "../lorafam/backends/triton_gpu/launch_limits.py",
        "no more shared memory than unasked",
        "return most - static if static else None",
        "return None",
    ),
    Bug(
        "../lorafam/backends/triton_gpu/launch.py",
        "no more shared memory on a GPU",
        "    raise_limits()\n",
        "",
        LIMITS,
        "not simulated",
    ),
    Bug("tiles/nf4_decode.py", "swap nibbles", "tl.reshape(tl.join(even, odd)", "tl.reshape(tl.join(odd, even)"),
    Bug("tiles/nf4_decode.py", "another byte", "b, $4, 0x8000, $5", "b, $4, 0x80, $5"),
    Bug(
        "tiles/nf4_decode.py", "another nibble", "and.b32 low, $8, 0x0f0f0f0f", "and.b32 low, $8, 0x07070707", FOUR_BIT
    ),
    Bug("tiles/nf4_decode.py", "table half filled", "row[:, None] * 128", "row[:, None] % 8 * 128"),
    Bug("tiles/nf4_decode.py", "no barrier after the table", "    tl.debug_barrier()\n    return", "    return"),
    Bug("tiles/nf4_decode.py", "shift a scale index", "scales[1] + block // 256)", "scales[1] + block // 512)"),
    Bug(
        "tiles/nf4_decode.py",
        "shift a masked scale's index",
        "scales[1] + block // 256, m",
        "scales[1] + block // 512, m",
    ),
    Bug("tiles/nf4_decode.py", "lose the offset", "block // 256) + tl.load(scales[3])", "block // 256)"),
    Bug("tiles/nf4_decode.py", "drop a mask", "return tl.where(mask, absmax, 0.0)", "return absmax"),
    Bug("tiles/weight_tile.py", "swap nibbles", "tl.where(element % 2 == 0", "tl.where(element % 2 != 0"),
    Bug("tiles/weight_tile.py", "shift a scale index", "element // BLOCK_SIZE", "(element + 1) // BLOCK_SIZE"),
    Bug("tiles/weight_tile.py", "wrong stride", "rows.to(tl.int64) * stride_wn +", "rows.to(tl.int64) * stride_wk +"),
    Bug("tiles/weight_tile.py", "another block", "+ first_k // BLOCK_SIZE\n", "+ first_k // BLOCK_SIZE // 2\n"),
    Bug("tiles/weight_tile.py", "other columns", "(K // 2) + first_k // 2 +", "(K // 2) + first_k // 4 +"),
    Bug("tiles/packed_product.py", "wrong stride", ".to(tl.int64) * (K // 2)", ".to(tl.int64) * (K // 2 + 1)"),
    Bug("tiles/packed_product.py", "shift a scale index", "at // BLOCK_SIZE - span", "k // BLOCK_SIZE - span"),
    Bug("tiles/packed_product.py", "lost last span", "BLOCK_SIZE, last, SPAN)", "BLOCK_SIZE, last - 1, SPAN)", SCALES),
    Bug("tiles/scale_table.py", "lose the gain", "scale * INVERSE_GAIN", "scale"),
    Bug("tiles/scale_table.py", "lose the offset", "* nested + tl.load(scales[3])", "* nested"),
    Bug("tiles/scale_table.py", "table half filled", "block[:, None] * ROWS", "block[:, None] % 2 * ROWS", SCALES),
    Bug(
        "tiles/scale_table.py",
        "one nested block for all",
        "nested, tl.load(scales[1] + last)[None, :]",
        "nested, nested",
        SCALES,
    ),
    Bug("tiles/scale_table.py", "drop a mask", "first + block < end", "first + block >= 0", SCALES),
    Bug("tiles/scale_table.py", "alignment that isn't", "(own if whole else 1)", "own", SCALES),
    Bug("tiles/scale_table.py", "alignment of a row that isn't", "bits = span | per_row |", "bits = span |", SCALES),
    Bug(
        "tiles/scale_table.py",
        "swizzled operands off their place",
        "-(-words // 256) * 256",
        "words + 32",
        chosen="sm_90",
    ),
    Bug("tiles/packed_product.py", "x in another order", "place // 8 % 4 * 16 + place // 32 * 8", "place // 8 * 8"),
    Bug(
        "tiles/packed_product.py",
        "x in another order (wgmma)",
        "place // 2 % 4 * 16 + place // 8 * 2",
        "place // 2 * 2",
        chosen="sm_90",
    ),
    Bug("tiles/packed_product.py", "rows in another order", "row // 8 % WARPS * 16", "row // 8 % WARPS * 8"),
    Bug("tiles/packed_product.py", "a chunk twice", "rows = offs_m + c * CHUNK", "rows = offs_m"),
    Bug("tiles/packed_product.py", "rows past N", "tl.minimum(first_n + rows_of_w, N - 1)", "(first_n + rows_of_w)"),
    Bug("tiles/packed_product.py", "drop a mask", "mask=(rows < M)[:, None]", "mask=(rows < M + 1)[:, None]"),
    Bug("tiles/weight_product.py", "lost tail of K", "mask_k = offs_k < end\n", "mask_k = offs_k < end - 1\n"),
    Bug(
        "tiles/weight_product.py",
        "lost tail of R",
        "for r in range(0, rank, BLOCK_R)",
        "for r in range(0, rank - BLOCK_R + 1, BLOCK_R)",
    ),
    Bug(
        "tiles/weight_product.py",
        "drop a mask",
        "(offs_n < N)[:, None] & (offs_r < R)[None, :]",
        "(offs_n < N)[:, None] & (offs_r >= 0)[None, :]",
    ),
    Bug("tiles/split_sum.py", "lost part", "for _ in range(S)", "for _ in range(S - 1)"),
    Bug("tiles/split_sum.py", "the first adds up", "== S - 1", "== 0"),
    Bug(
        "tiles/split_sum.py",
        "count left behind",
        "tl.store(arrivals_ptr + tile, 0)",
        "tl.store(arrivals_ptr + tile, 1)",
        REPLAY,
    ),
    Bug("tiles/split_sum.py", "wrong stride", "part += SIZE", "part += SIZE - 1"),
    Bug("tiles/dropout.py", "wrong counter", "first_column // 4 + tl.arange", "first_column // 4 + 1 + tl.arange"),
    Bug(
        "tiles/dropout.py",
        "words in another order",
        "tl.join(word0, word2), tl.join(word1, word3)",
        "tl.join(word0, word1), tl.join(word2, word3)",
    ),
    Bug("tiles/dropout.py", "a word twice", "bits |= (word1 >= threshold)", "bits |= (word2 >= threshold)"),
    Bug("tiles/exact_dot.py", "lose a piece", "        part = tl.dot(a, b2, part)\n", ""),
    Bug("tiles/exact_dot.py", "lose a pair", "        part = tl.dot(a2, b1, part)\n", ""),
    Bug("tiles/tile_order.py", "wrong order", "height = tl.minimum(tiles_m - first_m, GROUP)", "height = GROUP"),
    Bug(
        "lora_linear.py",
        "wrong accumulator start",
        "acc = acc + (low_rank_start(",
        "acc = acc + (2.0 * low_rank_start(",
    ),
    Bug("lora_linear.py", "every share adds the low rank", "tl.where(split == 0, R, 0)", "R"),
    Bug(
        "lora_linear.py",
        "drop a mask",
        "mask_n[:, None] & (offs_m < M)[None, :]\n    tl.store",
        "mask_n[:, None] & (offs_m < M + 1)[None, :]\n    tl.store",
    ),
    Bug(
        "lora_linear.py",
        "scale after bias",
        "    if c_ptr is not None:\n        acc *=",
        "    if bias_ptr is None and c_ptr is not None:\n        acc *=",
    ),
    Bug("lora_linear.py", "lost share", "tl.minimum(first + share, K),", "tl.minimum(first + share, K - BLOCK_K),"),
    Bug("lora_linear.py", "another's part", "(slot * S + split).to(tl.int64) * SIZE", "(slot * S).to(tl.int64) * SIZE"),
    Bug("lora_linear_group.py", "another's rows", "tl.where(which == 1, other, third)", "other", GROUP),
    Bug("lora_linear_group.py", "another's parts", "  slot,\n        x_ptr", "  slot // 2,\n        x_ptr", GROUP),
    Bug("lora_linear_group.py", "a tile too early", "(slot >= third)", "(slot > third)", GROUP),
    Bug(
        "lora_linear_group.py",
        "rows of P apart",
        "        stride_p,\n        share",
        "        R_0,\n        share",
        GROUP,
    ),
    Bug(
        "tiles/columns_product.py",
        "swap nibbles",
        "tl.join(high, low)",
        "tl.join(low, high)",
    ),
    Bug("tiles/columns_product.py", "another row", "load % 4 * E +", "load % 4 * (E - 1) +"),
    Bug("tiles/columns_product.py", "other columns", ".to(tl.int64) + first_k // 2)", ".to(tl.int64) + first_k // 4)"),
    Bug("tiles/columns_product.py", "another block", "+ first_k // BLOCK_SIZE\n", "+ first_k // BLOCK_SIZE // 2\n"),
    Bug("tiles/columns_product.py", "lose the scale", "scale *= tl.load(", "scale += 0.0 * tl.load("),
    Bug("tiles/columns_product.py", "rows past N", "tl.minimum(row_of_load, N - 1 - n)", "row_of_load"),
    Bug(
        "tiles/columns_product.py", "columns in another order", "total.permute(2, 0, 1, 3)", "total.permute(2, 1, 0, 3)"
    ),
    Bug("tiles/columns_product.py", "lose the warps' sums", "tl.sum(acc, axis=0)", "tl.max(acc, axis=0)"),
    Bug(
        "tiles/columns_product.py",
        "lost tail of N",
        "for n in range(first, end, BLOCK_N)",
        "for n in range(first, end - BLOCK_N + 1, BLOCK_N)",
    ),
    Bug("lora_linear_grad.py", "stale seed", "kept(tl.load(seed_ptr),", "kept(tl.load(seed_ptr) + 1,"),
    Bug(
        "lora_linear_grad.py",
        "drop the mask",
        "acc = tl.where(keep, acc * keep_scale, 0.0)",
        "acc = acc * keep_scale",
    ),
    Bug(
        "lora_linear_grad.py",
        "lose the scale",
        "* tl.load(c_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[:, None]",
        "",
    ),
    Bug(
        "lora_linear_grad.py",
        "lost tail of N",
        "for n in range(first, end, BLOCK_N)",
        "for n in range(first, end - BLOCK_N + 1, BLOCK_N)",
    ),
    Bug("lora_project.py", "stale seed", "kept(tl.load(seed_ptr), offs_m, k,", "kept(tl.load(seed_ptr), offs_m, 0,"),
    Bug(
        "lora_project.py",
        "lost tail of K",
        "for k in range(first, end, BLOCK_K)",
        "for k in range(first, end - BLOCK_K + 1, BLOCK_K)",
    ),
    Bug(
        "lora_project.py",
        "lose the scale",
        "if c_ptr is not None:\n            a =",
        "if c_ptr is not None and K < 0:\n            a =",
    ),
    Bug(
        "lora_factors_grad.py",
        "lost tail of M",
        "for m in range(first, end, BLOCK_M)",
        "for m in range(first, end - BLOCK_M + 1, BLOCK_M)",
    ),
    Bug(
        "lora_factors_grad.py",
        "sums of the dropped",
        "dbias += tl.sum(x.to(tl.float32), axis=0)",
        "dbias += tl.sum(tl.abs(x.to(tl.float32)), axis=0)",
    ),
    Bug("lora_factors_grad.py", "lose the bias", "y -= tl.load(bias_ptr", "y -= 0.5 * tl.load(bias_ptr"),
    Bug("row_norm.py", "lose the cross term", "cross *= 2.0", "cross *= 1.0"),
    Bug(
        "row_norm.py",
        "cancelling rows not redone",
        "total = tl.where(near, direct, total)",
        "total = tl.where(near, total, total)",
        ROW_NORM,
    ),
    Bug(
        "row_norm.py", "lost tail of R", "for s in range(0, R, BLOCK_R)", "for s in range(0, R - BLOCK_R + 1, BLOCK_R)"
    ),
    Bug(
        "nf4_dequantize.py",
        "swap nibbles",
        "tl.join(even * scale[:, None], odd * scale[:, None])",
        "tl.join(odd * scale[:, None], even * scale[:, None])",
        FOUR_BIT,
    ),
    Bug("nf4_dequantize.py", "shift a scale index", "block = first + tl", "block = first // 2 + tl", FOUR_BIT),
    Bug("nf4_dequantize.py", "lost tail", "mask=element < elements", "mask=element < elements - 1", FOUR_BIT),
    Bug("nf4_dequantize.py", "another row's c", "row = block // (K", "row = (block + 1) // (K", STAGED),
    Bug("dense_linear.py", "lost tile", "range(tl.program_id(0), tiles,", "range(tl.program_id(0), tiles - 1,", STAGED),
    Bug("dense_linear.py", "lost turn", "for k in range(0, K, BLOCK_K)", "for k in range(BLOCK_K, K, BLOCK_K)", STAGED),
    Bug("dense_linear.py", "another mask", "offs_m, tile_n * BLOCK_N, threshold", "offs_m, 0, threshold", STAGED),
    Bug("dense_linear.py", "lost tail of R", "range(0, R, BLOCK_R)", "range(0, R - BLOCK_R + 1, BLOCK_R)", STAGED),
    Bug(
        "lora_grad_pass.py", "lost tail of N", "range(first, end, BLOCK_N)", "range(first, end - BLOCK_N + 1, BLOCK_N)"
    ),
    Bug("lora_grad_pass.py", "one tile's part", "row = tile.to(tl.int64) * N", "row = (tile * 0).to(tl.int64) * N"),
    Bug(
        "lora_grad_pass.py",
        "lose the scale",
        "        if c_ptr is not None:",
        "        if c_ptr is not None and M < 0:",
    ),
    Bug("lora_grad_pass.py", "lose the bias", "y -= tl.load(bias_ptr", "y -= 0.5 * tl.load(bias_ptr"),
    Bug("nf4_dequantize.py", "contraction", "contract=False", "contract=True", FOUR_BIT),
    Bug(
        "nf4_quantize.py",
        "tie goes up",
        "(scaled > tl.load(bounds_ptr + i))",
        "(scaled >= tl.load(bounds_ptr + i))",
        FOUR_BIT,
    ),
    Bug("nf4_quantize.py", "last block multiplied", "tl.where(whole[:, None], product, quotient)", "product", FOUR_BIT),
    Bug("nf4_quantize.py", "lost tail", "mask=byte * 2 < count", "mask=byte * 2 + 1 < count", FOUR_BIT),
    Bug(
        "absmax_quantize.py",
        "not over the grid",
        "value = tl.div_rn(step * 2.0, STEPS) - 1.0",
        "value = value",
        FOUR_BIT,
    ),
    Bug("absmax_quantize.py", "drop a mask", "mask = offs < B", "mask = offs <= B", FOUR_BIT),
    Bug("adalora_importance.py", "old smoothing", "tl.abs(importance - sensitivity)", "tl.abs(importance)", ADALORA),
    Bug(
        "adalora_scores.py",
        "lost tail",
        "for start in range(0, count, BLOCK)",
        "for start in range(0, count - BLOCK + 1, BLOCK)",
        ADALORA,
    ),
    Bug("adalora_scores.py", "wrong stride", "first + index * stride", "first + index", ADALORA),
    Bug("adalora_penalty.py", "lost tail", "range(0, L, BLOCK_L)", "range(0, L - BLOCK_L + 1, BLOCK_L)", ADALORA),
    Bug(
        "adalora_penalty.py",
        "wrong accumulator start",
        "s = tl.zeros((BLOCK_R, BLOCK_R)",
        "s = tl.full((BLOCK_R, BLOCK_R), 1.0",
        ADALORA,
    ),
    Bug(
        "adalora_penalty.py",
        "drop a mask",
        "mask & (offs_i[:, None] == offs_j[None, :])",
        "offs_i[:, None] == offs_j[None, :]",
        ADALORA,
    ),
    Bug(
        "adalora_penalty_grad.py",
        "lost tail of R",
        "for j in range(0, R, BLOCK_R)",
        "for j in range(0, R - BLOCK_R + 1, BLOCK_R)",
        ADALORA,
    ),
    Bug("adalora_penalty_grad.py", "not 0 at 0", "tl.where(distance > 0.0, ", "tl.where(distance >= 0.0, ", ADALORA),
    Bug("adalora_importance.py", "drop a mask", "mask = offs < count", "mask = offs < count + 1", ADALORA),
    Bug("dropout.py", "lose the scale", "x * keep_scale", "x"),
    Bug(AHEAD_OF_TIME, "drop the barriers", COMPILED, COMPILED + WITHOUT.format(text="bar.sync")),
    Bug(AHEAD_OF_TIME, "drop the waits for copies", COMPILED, COMPILED + WITHOUT.format(text="cp.async.wait_group")),
    Bug(
        "tiles/packed_product.py",
        "32 bits for a row of codes",
        "N - 1).to(tl.int64) * (K // 2)",
        "N - 1).to(tl.uint32) * (K // 2)",
        LARGE,
        "large_weight and packed",
    ),
    Bug(
        "tiles/columns_product.py",
        "32 bits for a turn's rows of codes",
        "n * (K // 2).to(tl.int64)",
        "n * (K // 2)",
        LARGE,
        "large_weight and packed",
    ),
    Bug(
        "lora_linear.py",
        "32 bits for a row of Y",
        "offs_m.to(tl.int64)[None, :] * N",
        "offs_m[None, :] * N",
        LARGE,
        "many_tokens",
    ),
    Bug(
        "nf4_dequantize.py",
        "32 bits for an element",
        "element = first.to(tl.int64) *",
        "element = first *",
        LARGE,
        "dequantize",
    ),
)
