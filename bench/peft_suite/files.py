"""Which of PEFT's test files run: all but those named here, so that a file of a newer version does."""

from __future__ import annotations

from pathlib import Path

NEEDS_GPU = "needs a GPU"
OTHER_METHOD = "another method, no LoRA layer in it"
LEFT_OUT = {
    **dict.fromkeys(("common_gpu", "gptqmodel", "gpu_examples", "quantization"), NEEDS_GPU),
    "auto": "needs adapters from the hub",
    "lora_megatron": "needs Megatron",
    "stablediffusion": "needs a pipeline from the hub",
    "torch_compile": "needs a data set from the hub",
    "vision_models": "asks the hub for a picture when it is imported",
    "config": "configurations alone, no layer in it",
    **dict.fromkeys(
        (
            *("adamss_asa", "adaption_prompt", "boft", "bufferdict", "cartridge", "cpt", "deft", "frod"),
            *("incremental_pca", "multitask_prompt_tuning", "osf", "poly", "pvera", "randlora", "shadow", "shira"),
            *("supertuning", "unilora", "vblora"),
        ),
        OTHER_METHOD,
    ),
}
# a few minutes' worth
QUICK = ("bdlora", "custom_models", "lora_variants", "low_level_api", "mixed")


def chosen(folder: Path, quick: bool) -> list[str]:
    """The paths of the files to run, below `folder`."""
    names = sorted(path.stem.removeprefix("test_") for path in (folder / "tests").glob("test_*.py"))
    return [f"tests/test_{name}.py" for name in names if (name in QUICK if quick else name not in LEFT_OUT)]
