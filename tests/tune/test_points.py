from lorafam.tune.points import OPS, PATHS, Point, points

STAGED = {"dense_linear", *PATHS}


def test_each_combination_once() -> None:
    found = points(OPS, [(64, 128), (128, 64)], [1, 4], 8, "float16", ["nf4", "dense"])
    assert len(found) == len(set(found))
    assert {point.op for point in found} == set(OPS) - STAGED
    assert sum(point.op == "lora_linear" for point in found) == 8
    # over one side of W at a time, whichever it is
    assert [point for point in found if point.op == "lora_project"] == [
        Point("lora_project", 0, K, tokens, 8, "float16", "none") for tokens in (1, 4) for K in (128, 64)
    ]
    assert {point.storage for point in found if point.op == "nf4_dequantize"} == {"nf4"}
    assert {point.tokens for point in found if point.op in ("nf4_dequantize", "row_norm")} == {0}
    # a whole shape before the next
    assert {(point.N, point.K) for point in found[:9] if point.N} == {(64, 128)}


def test_the_staged_path_is_tried_where_it_may_be_taken() -> None:
    def tried(shape: tuple[int, int], dtype: str) -> dict[str, set[int]]:
        found = points(sorted(STAGED), [shape], [1, 64, 512], 8, dtype, ["nf4", "dense"])
        return {op: {point.tokens for point in found if point.op == op and point.storage == "nf4"} for op in STAGED}

    assert tried((64, 128), "bfloat16") == {op: {64, 512} for op in STAGED}
    assert tried((64, 128), "float32") == tried((64, 100), "bfloat16") == {op: set() for op in STAGED}
    assert points(["lora_linear_path"], [(64, 128)], [512], storages=["dense"]) == []
    # a path is chosen with the kernels as they are then
    ops = [point.op for point in points(tokens=[512], shapes=[(64, 128)])]
    assert ops[-2:] == ["lora_linear_path", "lora_linear_grad_path"]


def test_a_point_tells_itself() -> None:
    assert str(Point("lora_linear", 64, 128, 4, 8, "float16", "nf4")) == "lora_linear, 64 x 128, 4 tokens, float16, nf4"
    assert str(Point("lora_project", 0, 128, 1, 8, "float16", "none")) == "lora_project, K 128, 1 tokens, float16"
