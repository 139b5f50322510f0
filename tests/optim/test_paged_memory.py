"""Mapped files and unified memory; the latter with a stand-in for bitsandbytes."""

from __future__ import annotations

import errno
import gc
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from lorafam import PagedAdamW
from lorafam.optim import paged_memory, paged_state
from lorafam.optim.paged_memory import PagedFile, UnifiedMemory, is_in_memory, page_folder

Tensor = torch.Tensor


def test_a_file_without_a_name(tmp_path: Path) -> None:
    memory = PagedFile(4096, tmp_path)
    assert os.listdir(tmp_path) == []
    floats, codes = memory.tensor(0, torch.Size([2, 8]), torch.float32), memory.tensor(64, torch.Size([5]), torch.uint8)
    assert not floats.any()
    floats.fill_(1)
    assert not codes.any()
    assert memory.tensor(4, torch.Size([]), torch.float32) == 1
    assert memory.tensor(0, torch.Size([0, 3]), torch.float32).shape == (0, 3)
    # a storage of its own
    assert floats.untyped_storage().nbytes() == 64
    del memory
    gc.collect()
    # lives as long as a tensor in it
    assert floats.sum() == 16


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="the system doesn't tell what is mapped")
def test_gone_with_the_optimiser(tmp_path: Path) -> None:
    def mapped() -> int:
        return sum(str(tmp_path) in line for line in Path("/proc/self/maps").read_text().splitlines())

    parameter = nn.Parameter(torch.ones(1000))
    parameter.grad = torch.ones(1000)
    optimizer = PagedAdamW([parameter], page_file=tmp_path)
    assert mapped() == 0
    optimizer.step()
    optimizer.step()
    assert mapped() == 1
    assert os.listdir(tmp_path) == []
    del optimizer
    gc.collect()
    assert mapped() == 0


def test_one_piece_for_all_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(PagedFile):
        def __init__(self, size: int, folder: Path) -> None:
            made.append(size)
            super().__init__(size, folder)

    monkeypatch.setattr(paged_state, "PagedFile", Counted)
    found = [nn.Parameter(torch.ones(size)) for size in (10, 0, 1000)]
    for parameter in found:
        parameter.grad = torch.ones_like(parameter)
    optimizer = PagedAdamW(found)
    for _ in range(3):
        optimizer.step()
    assert made == [512 + 8192]
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(5))]})
    optimizer.step()
    assert made == [512 + 8192, 512]


def test_no_room_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match=rf"page_file: .* 4,096 bytes in {tmp_path}: No space left"):
        PagedFile(4096, tmp_path)


def test_where_room_can_not_be_reserved_it_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unable(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable, raising=False)
    assert not PagedFile(4096, tmp_path).tensor(4000, torch.Size([96]), torch.uint8).any()


@pytest.mark.skipif(not is_in_memory(Path("/dev/shm")) if Path("/dev/shm").is_dir() else True, reason="has no tmpfs")
def test_a_tmpfs_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/dev/shm")
    assert page_folder(None) != Path("/dev/shm")
    assert page_folder("/dev/shm") == Path("/dev/shm")
    monkeypatch.setattr(paged_memory, "is_in_memory", lambda folder: True)
    with pytest.raises(ValueError, match=r"^page_file: expected a folder on a disk, none of /dev/shm, /var/tmp, "):
        page_folder(None)


def test_the_folder_of_temporary_files_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(paged_memory, "is_in_memory", lambda folder: False)
    assert page_folder(None) == tmp_path


class StandIn(SimpleNamespace):
    """bitsandbytes.functional's paging, in memory of the CPU, which says what it was asked for."""

    def __init__(self) -> None:
        super().__init__(prefetched=[])

    def get_paged(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        assert device == torch.device("cuda", 1)
        self.pages: Any = torch.full((size,), 255, dtype=dtype)
        self.pages.is_paged, self.pages.page_deviceid = True, device.index
        return self.pages

    def prefetch_tensor(self, part: Any) -> None:
        assert part.is_paged
        assert part.page_deviceid == 1
        self.prefetched.append((part.data_ptr() - self.pages.data_ptr(), part.nbytes))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """`_on_gpu` sees the interface that torch would; its memory is the CPU's."""
    found = StandIn()

    def on_gpu(address: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        described = paged_memory._Address(address, shape, dtype).__cuda_array_interface__
        assert described["typestr"] == {torch.float32: "<f4", torch.uint8: "|u1"}[dtype]
        start = described["data"][0] - found.pages.data_ptr()
        return found.pages[start : start + shape.numel() * dtype.itemsize].view(dtype).view(described["shape"])

    monkeypatch.setattr(paged_memory, "bitsandbytes_functional", lambda: found)
    monkeypatch.setattr(paged_memory, "_on_gpu", on_gpu)
    monkeypatch.setattr(torch.cuda, "device", lambda device: tempfile.TemporaryDirectory())
    return found


def test_unified_memory_fetches_neighbours_at_once(stand_in: StandIn) -> None:
    memory = UnifiedMemory(100_000, torch.device("cuda", 1))
    tensors = [memory.tensor(offset, torch.Size([4]), torch.float32) for offset in (90_000, 0, 512, 1024)]
    memory.prefetch(tensors)
    assert stand_in.prefetched == [(0, 1024 + 16), (90_000, 16)]


def test_states_in_unified_memory(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lay there before doesn't matter, and all states are in one piece; the same results as on the CPU."""
    monkeypatch.setattr(paged_state, "PagedFile", lambda size, folder: UnifiedMemory(size, torch.device("cuda", 1)))
    results = []
    for make in (PagedAdamW, lambda found: torch.optim.AdamW(found, fused=True)):
        torch.manual_seed(0)
        found = [nn.Parameter(torch.randn(size)) for size in (1000, 3)]
        optimizer = make(found)
        for _ in range(3):
            for parameter in found:
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        results.append(found)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))
    assert stand_in.prefetched == [(0, 8192 + 24)] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_unified_memory_is_the_gpu_s() -> None:
    pytest.importorskip("bitsandbytes")
    device = torch.device("cuda", torch.cuda.current_device())
    memory = UnifiedMemory(1 << 20, device)
    tensor = memory.tensor(512, torch.Size([3, 5]), torch.float32)
    assert tensor.device == device
    memory.prefetch([tensor])
    tensor.fill_(2)
    torch.cuda.synchronize()
    assert memory.tensor(512, torch.Size([15]), torch.float32).sum().item() == 30
    assert memory.tensor(0, torch.Size([0]), torch.uint8).device == device


PAGE_OUT = 21  # MADV_PAGEOUT of Linux


def mapped_and_resident(folder: Path) -> int:
    """Bytes of files of `folder` that are in memory as this process has them mapped."""
    resident, here = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            here = str(folder) in line
        elif here and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="the system doesn't tell what is mapped")
@pytest.mark.parametrize("bits", [32, 8])
def test_states_leave_memory_and_come_back(bits: int, tmp_path: Path) -> None:
    """The system is asked to take the pages, as it does where memory is short; training goes on as if nothing was."""
    if is_in_memory(tmp_path):
        pytest.skip("the folder of temporary files is memory")
    results = []
    for pressed in (False, True):
        torch.manual_seed(0)
        found = [nn.Parameter(torch.randn(size)) for size in (1 << 20, 100)]
        optimizer = PagedAdamW(found, bits=bits, page_file=tmp_path)
        for step in range(4):
            for parameter in found:
                parameter.grad = torch.randn_like(parameter)
            if pressed and step == 2:
                before = mapped_and_resident(tmp_path)
                pages: Any = optimizer._places[found[0]].memory._bytes.base  # type: ignore[union-attr]
                pages.obj.flush()
                pages.obj.madvise(PAGE_OUT)
                assert mapped_and_resident(tmp_path) < before / 10
            optimizer.step()
        results.append(found)
        del optimizer
        gc.collect()
    assert before > (8e6 if bits == 32 else 2e6)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*results, strict=True))
