"""What is handed to lorafusion's interface gives the case's result, by the gate."""

from pathlib import Path

import pytest
import torch
from lorafam.bench.case import make_case
from lorafam.bench.gate import check
from lorafam.bench.peers.lorafusion import PEER

from tests.bench.peers.fakes import install_fake


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PEER.cases)
def test_the_same_is_computed(
    name: str, dtype: torch.dtype, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake(PEER.name, tmp_path, monkeypatch)
    check(make_case(name, 128, tokens, dtype, rank=8), PEER.name)


def test_one_dtype_is_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels refuse an fp32 adapter beside a bf16 x, which the layer has."""
    install_fake("lorafusion", tmp_path, monkeypatch)
    case = make_case("lora", 64, 2, torch.bfloat16, rank=4)
    with pytest.raises(ValueError, match="Incompatible dtypes"):
        PEER.make(case)[0]()
    PEER.make(case.narrowed())[0]()
