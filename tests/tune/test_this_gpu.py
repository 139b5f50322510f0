import pytest
import torch

from lorafam.backends.triton_gpu import launch
from lorafam.tune.this_gpu import this_gpu


def test_what_torch_says_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(launch, "_gpu_architecture", lambda index: f"sm_9{index}")
    gpu = this_gpu()
    assert (gpu.model, gpu.architecture, gpu.device) == ("Some GPU", "sm_90", torch.device("cuda", 0))
    assert callable(gpu.ops.lora_linear)
    assert gpu.clock() <= gpu.clock()
