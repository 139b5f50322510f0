"""Tests that may differ though nothing is wrong, each with what was looked at."""

_FSDP = "tests/test_custom_models.py::TestPeftFsdpStateDict::test_save_load_roundtrip_fsdp_wrapped"
_VERA = {
    f"{_FSDP}{more}Vanilla MLP {number} VeRA-MLP-VeraConfig-config_kwargs{184 + number}]": (
        "a forward in PEFT's code (wrapped by FSDP) and one on lorafam's are compared to 1e-5 of sums that cancel: "
        "rounding, lorafam's nearer to fp64 (RMS over 20 seeds 5.9e-6, 8.8e-6; two layers 1.8e-5, 2.7e-5)"
    )
    for number in range(1, 6)
    for more in ("[", "_learnable_bias[bias_all-", "_learnable_bias[bias_peft_method_only-")
}
KNOWN = {
    **_VERA,
    "tests/test_initialization.py::TestLoraInitialization::test_lora_use_dora_linear": (
        "takes 1e-8 for the same: 2 of 10,000 sums that cancel differ by rounding, at the same distance from fp64"
    ),
    "tests/test_mixed.py::TestMixedAdapterTypes::test_target_last_layer_same_type_3_AdaLora_x2": (
        "compares sums that cancel, of values near 800, to 1e-5, which PEFT's rounding meets on both sides; "
        "one is 1.07 times as far, each output as close to fp64 as PEFT's or closer"
    ),
    "tests/test_helpers.py::TestScalingAdapters::test_scaling_set_to_zero": (
        "takes 1e-8 for the same: logits that cancel differ by rounding, nearer to fp64 than PEFT (RMS 4.8e-8, 6.2e-8)"
    ),
    "tests/test_lora_conversion.py::TestLoraConversion::test_convert_model_with_modules_to_save": (
        "asks for the same bits of a LoRA layer and another method's: 1.3e-7 RMS apart, the rounding of fp32"
    ),
    "tests/test_initialization.py::TestAdaLoraInitialization::test_adalora_default_init_identity": (
        "takes 1e-8 for the same: 156 of 10,000 cancelling sums differ by rounding, nearer to fp64 (RMS 5.6e-8, 8.5e-8)"
    ),
    "tests/test_custom_models.py::TestPeftFsdpStateDict::test_save_load_roundtrip_fsdp_wrapped["
    "Vanilla MLP 1 LoRA with lora_b bias-MLP-LoraConfig-config_kwargs41]": (
        "on AVX2: a forward in PEFT's code (wrapped by FSDP) and one on lorafam's are compared to 1e-5, a sum that "
        "cancels to 3e-6 among others of 12: rounding, lorafam's nearer to fp64 (RMS 4.3e-6, 8.3e-6)"
    ),
    "tests/test_target_parameters.py::TestTargetParameters::test_target_parameter_result_caching_works": (
        "counts calls of PEFT's proxy, which forms W + s B A: an accelerated layer forms none, there is nothing to keep"
    ),
}
