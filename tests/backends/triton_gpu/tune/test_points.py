from lorafam.backends.triton_gpu.tune.points import OPS, Point, points


def test_each_combination_once() -> None:
    found = points(OPS, [(64, 128), (128, 64)], [1, 4], 8, "float16", ["nf4", "dense"])
    assert len(found) == len(set(found))
    assert {point.op for point in found} == set(OPS)
    assert sum(point.op == "lora_linear" for point in found) == 8
    # over one side of W at a time, whichever it is
    assert [point for point in found if point.op == "lora_project"] == [
        Point("lora_project", 0, K, tokens, 8, "float16", "none") for tokens in (1, 4) for K in (128, 64)
    ]
    assert {point.storage for point in found if point.op == "nf4_dequantize"} == {"nf4"}
    assert {point.tokens for point in found if point.op in ("nf4_dequantize", "row_norm")} == {0}
    # a whole shape before the next
    assert {(point.N, point.K) for point in found[:9] if point.N} == {(64, 128)}


def test_a_point_tells_itself() -> None:
    assert str(Point("lora_linear", 64, 128, 4, 8, "float16", "nf4")) == "lora_linear, 64 x 128, 4 tokens, float16, nf4"
    assert str(Point("lora_project", 0, 128, 1, 8, "float16", "none")) == "lora_project, K 128, 1 tokens, float16"
