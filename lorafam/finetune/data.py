"""A text file as chunks of tokens, some of them held out.

The text is tokenised whole and cut into chunks of L = `sequence_length` tokens; what is left at the end is dropped. A
tokenizer that has a <bos> gets it in front of each chunk (models trained with one do badly without), so a chunk has
L + 1 or L tokens.

Held out are k = ⌈held_out_tokens / L⌉ chunks (at least 2), spread evenly: with n chunks, the numbers ⌊(i + ½) n / k⌋,
i = 0 … k − 1. They do not depend on the seed, so runs with different seeds or methods are compared on the same text.

The i-th training sample of a run is a function of the seed and i alone: every pass over the chunks is a permutation
drawn from the seed and the number of the pass.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from .errors import InputError

Tensor = torch.Tensor


@dataclass(frozen=True)
class TextChunks:
    """`train` [n, length] and `held_out` [k, length], int64; `text_sha256` is that of the file."""

    train: Tensor
    held_out: Tensor
    text_sha256: str

    @property
    def predicted_tokens(self) -> int:
        """How many held-out tokens the model predicts: all but the first of each chunk."""
        return self.held_out.numel() - self.held_out.shape[0]


def read_text(path: str) -> str:
    """The text of a UTF-8 file. Raises InputError for one that is missing, unreadable, not UTF-8 or empty."""
    file = Path(path)
    if not file.exists():
        raise InputError(f"text: no such file: {path}")
    if file.is_dir():
        raise InputError(f"text: expected a file, {path} is a folder")
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"text: {path} is not UTF-8 (byte {error.start}: {error.reason})") from None
    except OSError as error:
        raise InputError(f"text: {path} can't be read ({error.strerror})") from None
    if not text.strip():
        raise InputError(f"text: {path} is empty")
    return text


def load_chunks(path: str, tokenizer: Any, sequence_length: int, held_out_tokens: int) -> TextChunks:
    """Reads, tokenises and splits a text file. Raises InputError for one that can't be read or is too short."""
    text = read_text(path)
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    count = len(ids) // sequence_length
    held_out = max(2, -(-held_out_tokens // sequence_length))
    if count <= held_out:
        raise InputError(
            f"text: {path} is too short: {len(ids)} tokens make {count} chunks of {sequence_length}, "
            f"{held_out} are held out and at least 1 is trained on"
        )
    chunks = torch.tensor(ids[: count * sequence_length], dtype=torch.int64).view(count, sequence_length)
    bos = tokenizer.bos_token_id
    if bos is not None:
        chunks = torch.cat([torch.full((count, 1), bos), chunks], dim=1)
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[(2 * torch.arange(held_out) + 1) * count // (2 * held_out)] = True
    digest = hashlib.sha256(text.encode("utf-8")).hexdigest()
    return TextChunks(chunks[~chosen], chunks[chosen], digest)


class TrainingSamples(Dataset[dict[str, Tensor]]):
    """All samples of a run in the order they are trained on: chunk permutation(seed, i // n)[i % n] for sample i."""

    def __init__(self, chunks: Tensor, samples: int, seed: int) -> None:
        self._chunks, self._samples, self._seed = chunks, samples, seed
        self._pass, self._order = -1, torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < self._samples:
            raise IndexError(f"sample {index} of {self._samples}")
        number, position = divmod(index, len(self._chunks))
        if number != self._pass:
            self._pass, self._order = number, _permutation(len(self._chunks), self._seed, number)
        chunk = self._chunks[self._order[position]]
        return {"input_ids": chunk, "labels": chunk}


def _permutation(length: int, seed: int, number: int) -> Tensor:
    # hashed, so that pass 1 of seed 0 isn't pass 0 of seed 1
    digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.randperm(length, generator=generator)
