"""What is handed to axolotl's interface gives the case's result, by the gate."""

from pathlib import Path

import pytest
import torch
from lorafam.bench.case import make_case
from lorafam.bench.gate import check
from lorafam.bench.peers.axolotl import PEER

from tests.bench.peers.fakes import install_fake


@pytest.mark.parametrize("tokens", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", PEER.cases)
def test_the_same_is_computed(
    name: str, dtype: torch.dtype, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_fake(PEER.name, tmp_path, monkeypatch)
    check(make_case(name, 128, tokens, dtype, rank=8), PEER.name)


def test_the_norm_is_formed_on_each_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Although it is kept where A and B don't change."""
    install_fake("axolotl", tmp_path, monkeypatch)
    forward, _ = PEER.make(make_case("qdora", 64, 2, rank=4))
    from axolotl.kernels import lora

    for count in (1, 2, 3):
        forward()
        assert len(lora.NORMS) == count
