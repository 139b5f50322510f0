from lorafam.kernels.launch_config import WGMMA, LaunchConfig
from lorafam.kernels.launch_table import Question, rows

from lorafam.tune.candidates import as_dict, neighbours, shipped_configs


def test_shipped_configs_are_those_of_the_dtype_and_the_way_of_reading_w() -> None:
    found = shipped_configs(Question("lora_linear", "sm_90", "bfloat16", 4, "packed", 64, 128, 16))
    assert len(found) == len(set(found)) > 3
    assert {config.target for config in found} == {WGMMA}
    shipped = [
        row
        for row in rows("nvidia")["lora_linear"]
        if "bfloat16" in row.get("dtypes", ["bfloat16"]) and "packed" in row.get("weights", ["packed"])
    ]
    assert as_dict(found[0])["blocks"] == shipped[0]["blocks"]
    assert len(found) <= len(shipped)


def test_neighbours_are_one_step_away() -> None:
    config = LaunchConfig((("BLOCK_K", 64), ("CHUNKS", 1)), 4, 1, WGMMA)
    found = list(neighbours(config))
    assert len(found) == len(set(found)) == 6
    assert config not in found
    steps = {(one["BLOCK_K"], one["CHUNKS"], one.num_warps, one.num_stages) for one in found}
    assert steps == {(32, 1, 4, 1), (128, 1, 4, 1), (64, 2, 4, 1), (64, 1, 2, 1), (64, 1, 8, 1), (64, 1, 4, 2)}
    assert {one.target for one in found} == {WGMMA}
