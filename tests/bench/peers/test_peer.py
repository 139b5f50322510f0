"""Whether a peer is there, and which version, without importing it."""

import sys
from pathlib import Path

import pytest
from lorafam.bench.case import CASES
from lorafam.bench.contenders import PEERS, TITLES

from tests.bench.peers.fakes import install_fake


@pytest.mark.parametrize("peer", PEERS.values(), ids=list(PEERS))
def test_missing_and_version(peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if peer.missing():
        assert peer.missing() == [peer.name]
    install_fake(peer.name, tmp_path, monkeypatch)
    assert peer.missing() == []
    assert peer.version() == "1.2"
    assert peer.name not in sys.modules


def test_a_package_without_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_fake("lorafusion", tmp_path, monkeypatch)
    (tmp_path / "lorafusion-1.2.dist-info" / "METADATA").unlink()
    (tmp_path / "lorafusion-1.2.dist-info").rmdir()
    assert PEERS["lorafusion"].version() == "unknown"


def test_names() -> None:
    """A name is part of a test's id, whose parts are told apart by dashes; what is covered is one of our cases."""
    for name, peer in PEERS.items():
        assert peer.name == name
        assert set(peer.cases) <= CASES.keys()
    assert all("-" not in name for name in [*TITLES, *CASES])
