"""Programs at the end of a large launch, run by ptxsim over tensors of which only what is touched takes memory.

A launch over 2³² elements has millions of programs. The last ones show whether an index has 64 bits: one of 32 wraps,
and leaves its tensor, or meets what nobody wrote.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from lorafam.backends.triton_gpu.launch import Launch, simulator

Tensor = torch.Tensor
# of Linux; Python 3.11's mmap has no name for it
_NO_RESERVE = 0x4000


def _pages(count: int) -> mmap.mmap:
    return mmap.mmap(-1, max(count, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)


def far(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor that takes no memory until it is written."""
    count = int(np.prod(shape, dtype=np.int64))
    return torch.frombuffer(_pages(count * dtype.itemsize), dtype=dtype, count=count).view(shape)


@contextlib.contextmanager
def untouched_allocations() -> Iterator[None]:
    """What is allocated meanwhile isn't filled."""
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


class FarMemory:
    """The memory of one launch; all of it is uninitialised until `put`."""

    def __init__(self, launch: Launch) -> None:
        simulator()
        from ptxsim import launch as launching
        from ptxsim.memory import GlobalMemory

        self._launch, self._launching = launch, launching
        # as `ptxsim.run` binds arguments, but nothing is copied
        bound = launching._bind(launch.kernel, (), launch.arguments)
        metadata = launch.kernel.metadata
        self._values = launching._expand_descriptors(bound, getattr(metadata, "tensordesc_meta", None))
        self._memory = GlobalMemory()
        self._addresses: dict[int, int] = {}
        self._places: dict[str, tuple[int, torch.dtype]] = {}
        for name, type_, value in self._values:
            tensor = value[0] if type_ == "tensormap" else value
            if isinstance(tensor, Tensor):
                self._register(name, tensor)
        self._maps = self._tensor_maps()
        self._memory.freeze(lambda count: np.frombuffer(_pages(count), np.uint8)[:count])
        for data, index in self._maps[1]:
            self._write(index, 0, data)

    def _register(self, name: str, tensor: Tensor) -> None:
        key = tensor.data_ptr()
        if key not in self._addresses:
            self._addresses[key] = self._grow(name, tensor.untyped_storage().nbytes())
        self._places[name] = (self._addresses[key] >> 36) - 1, tensor.dtype

    def _grow(self, name: str, count: int) -> int:
        memory = self._memory
        address = memory.register(name, np.empty(0, np.uint8), uninit=True)
        memory.sizes[-1] = count
        return address

    def _tensor_maps(self) -> tuple[dict[str, int], list[tuple[np.ndarray, int]]]:
        """Offset of each tensor map among the parameters, and the data of all."""
        from ptxsim.isa.tma import encode_map

        maps: dict[str, Any] = {}
        for name, type_, value in self._values:
            if type_ == "tensormap":
                base, shape, strides, of = value
                maps[name] = encode_map(
                    self._addresses[base.data_ptr()],
                    shape,
                    strides,
                    of["elem_size"],
                    of["elem_type"],
                    of["swizzle"],
                    of["block_size"],
                )
        self._encoded = maps
        if not maps:
            return {}, []
        self._base_of_maps = self._grow("tensor maps", 128 * len(maps))
        return {name: 128 * i for i, name in enumerate(maps)}, [
            (np.concatenate(list(maps.values())), (self._base_of_maps >> 36) - 1)
        ]

    def _write(self, index: int, first: int, data: np.ndarray) -> None:
        at = int(self._memory.aoff[index]) + first
        self._memory.raw[at : at + data.size] = data
        self._memory.init[at : at + data.size] = 1

    def put(self, name: str, first: int, values: Tensor) -> None:
        """Writes a parameter's elements from its `first` on."""
        index, dtype = self._places[name]
        assert values.dtype == dtype
        self._write(index, first * dtype.itemsize, values.contiguous().view(-1).view(torch.uint8).numpy())

    def get(self, name: str, first: int, count: int) -> Tensor:
        """A parameter's elements; all of them were written."""
        index, dtype = self._places[name]
        at = int(self._memory.aoff[index]) + first * dtype.itemsize
        where = slice(at, at + count * dtype.itemsize)
        assert self._memory.init[where].all(), f"{name}: not written"
        return torch.from_numpy(self._memory.raw[where].copy()).view(dtype)

    def run(self, programs: Sequence[tuple[int, int]]) -> None:
        """Runs the programs (x, y) of the launch, one after the other. Raises what ptxsim's checks find."""
        from ptxsim.machine import Machine

        assert self._launch.grid[0] < 1 << 31
        assert max(self._launch.grid[1:], default=1) < 1 << 16
        compiled, grid = self._launch.kernel, (*self._launch.grid, 1, 1)[:3]
        module = self._launching._parse(compiled.asm["ptx"])
        kernel = module.kernels[compiled.metadata.name]
        values = [self._bytes(*value) for value in self._values]
        values += [b"\0" * 8] * (len(kernel.params) - len(values))
        symbols: dict[str, int] = {}
        if self._maps[0]:
            symbols["%params"] = self._base_of_maps
            for parameter, (name, _, _) in zip(kernel.params, self._values, strict=False):
                if name in self._maps[0]:
                    symbols[parameter.name] = self._maps[0][name]
        machine = Machine(
            module,
            kernel,
            ntid=(compiled.metadata.num_warps * 32, 1, 1),
            nctaid=grid,
            ctas=1,
            smem_bytes=compiled.metadata.shared,
            gmem=self._memory,
            params={parameter.name: value for parameter, value in zip(kernel.params, values, strict=True)},
            symbols=symbols,
        )
        for x, y in programs:
            machine.run([x + grid[0] * y])

    def _bytes(self, name: str, type_: str, value: Any) -> bytes:
        if type_ == "tensormap":
            return self._encoded[name].tobytes()
        if isinstance(value, Tensor):
            return self._addresses[value.data_ptr()].to_bytes(8, "little")
        return (value or 0).to_bytes(8, "little") if type_.startswith("*") else self._launching._pack(type_, value)
