"""Memory that leaves the processor it belongs to when others need the room: where `PagedAdamW` keeps its states.

On the CPU a file mapped into memory: the system writes pages to disk and takes them back as it needs room, and they
don't count as the process' own (anonymous) memory. On CUDA unified memory (arXiv 2305.14314, section 3), which the
driver moves between GPU and CPU, through bitsandbytes.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

Tensor = torch.Tensor

_NUMPY = {torch.float32: np.float32, torch.uint8: np.uint8}
_PAGE = 4096
_MOUNTS = Path("/proc/self/mountinfo")
_IN_MEMORY = ("tmpfs", "ramfs")
_NEEDS_BITSANDBYTES = (
    "PagedAdamW: parameters on CUDA need bitsandbytes, for unified memory: pip install 'lorafam[bitsandbytes]'"
)


class PagedFile:
    """`size` bytes, all 0, of a file in `folder` that has no name: it is gone with the last tensor in it, also after
    kill -9. Its room on disk is taken at once; raises OSError when there is too little.
    """

    def __init__(self, size: int, folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            _reserve(file.fileno(), size, folder)
            self._bytes = np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)

    def tensor(self, offset: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """fp32 or uint8 from a byte on, with a storage of its own, so that torch.save writes no other."""
        stop = offset + math.prod(shape) * dtype.itemsize
        return torch.from_numpy(self._bytes[offset:stop].view(_NUMPY[dtype])).view(shape)

    def prefetch(self, tensors: Iterable[Tensor]) -> None:
        """The system reads ahead by itself."""


class UnifiedMemory:
    """`size` bytes of unified memory on `device`, a CUDA device. bitsandbytes has no call that frees them: they are
    the process' until it ends, but not the GPU's. Raises ImportError without bitsandbytes.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._functional = bitsandbytes_functional()
        self._device = device
        with torch.cuda.device(device):
            self._pages = self._functional.get_paged(size, dtype=torch.uint8, device=device)

    def tensor(self, offset: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """fp32 or uint8 from a byte on, a tensor on the GPU; its values are whatever was there."""
        return _on_gpu(self._pages.data_ptr() + offset, shape, dtype, self._device)

    def prefetch(self, tensors: Iterable[Tensor]) -> None:
        """Asks for these tensors of it on the GPU, without waiting; neighbours in one call."""
        base = self._pages.data_ptr()
        ranges: list[list[int]] = []
        for start, size in sorted((tensor.data_ptr() - base, tensor.nbytes) for tensor in tensors):
            if ranges and start - ranges[-1][1] <= _PAGE:
                ranges[-1][1] = start + size
            else:
                ranges.append([start, start + size])
        for start, stop in ranges:
            part: Any = self._pages[start:stop]
            part.is_paged, part.page_deviceid = True, self._device.index
            self._functional.prefetch_tensor(part)


class _Address:
    """A piece of GPU memory as torch.as_tensor takes it."""

    def __init__(self, address: int, shape: torch.Size, dtype: torch.dtype) -> None:
        self.__cuda_array_interface__ = {
            "shape": tuple(shape),
            "typestr": np.dtype(_NUMPY[dtype]).str,
            "data": (address, False),
            "version": 2,
        }


def _on_gpu(address: int, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    if 0 in shape:
        return torch.empty(shape, dtype=dtype, device=device)
    return torch.as_tensor(_Address(address, shape, dtype), device=device)


def bitsandbytes_functional() -> Any:
    """`bitsandbytes.functional`; ImportError that says what to install."""
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise ImportError(_NEEDS_BITSANDBYTES) from error
    return bitsandbytes.functional


def page_folder(given: str | os.PathLike[str] | None) -> Path:
    """The folder asked for, or the first that is on a disk of: the system's for temporary files, /var/tmp, the working
    folder. Raises ValueError for one that isn't there or can't be written, or when none is on a disk.
    """
    if given is not None:
        folder = Path(given)
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ValueError(f"page_file: expected a folder that can be written, got {str(given)!r}")
        return folder
    candidates = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
    for folder in candidates:
        if folder.is_dir() and os.access(folder, os.W_OK) and not is_in_memory(folder):
            return folder
    names = ", ".join(str(folder) for folder in candidates)
    raise ValueError(f"page_file: expected a folder on a disk, none of {names} is one that can be written")


def is_in_memory(folder: Path) -> bool:
    """Whether its file system is a tmpfs or ramfs, whose files are memory; False where the system doesn't tell."""
    if not _MOUNTS.is_file():
        return False
    device = os.stat(folder).st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _MOUNTS.read_text(encoding="utf-8").splitlines():
        place, _, kind = line.partition(" - ")
        if place.split()[2] == number:
            return kind.split()[0] in _IN_MEMORY
    return False


def _reserve(descriptor: int, size: int, folder: Path) -> None:
    """Takes the room now: writing to a page that the disk has no room for would kill the process (SIGBUS)."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.truncate(descriptor, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise OSError(
                error.errno, f"page_file: the optimiser's states need {size:,} bytes in {folder}: {error.strerror}"
            ) from error
        os.truncate(descriptor, size)
