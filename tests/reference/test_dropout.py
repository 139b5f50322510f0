"""Philox4x32-10 against Random123's known answers, and the mask's layout and statistics."""

from __future__ import annotations

import pytest
import torch

from lorafam.reference import dropout_mask, philox4x32, philox_words

# Random123, tests/kat_vectors: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[torch.Tensor]:
    return [torch.tensor(int(word, 16)) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, output: str) -> None:
    assert list(philox4x32(tuple(words(counter)), tuple(words(key)))) == words(output)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822])
def test_counter_and_key_layout(seed: int) -> None:
    """Key: the seed's two halves; counter: row low, column group, row high, 0."""
    row, group = 0x1234567_89ABCDEF, 77
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    counter = tuple(torch.tensor([value]) for value in (0x89ABCDEF, group, 0x1234567, 0))
    expected = torch.cat(philox4x32(counter, key))
    assert torch.equal(philox_words(seed, torch.tensor(row), torch.tensor(group)), expected)
    assert torch.equal(philox_words(torch.tensor(seed), torch.tensor(row), torch.tensor(group)), expected)


def test_mask_element_is_its_word_against_the_threshold() -> None:
    p = 0.3
    mask = dropout_mask(5, 9, 11, p, torch.float64)
    for row in range(9):
        for column in range(11):
            word = philox_words(5, torch.tensor(row), torch.tensor(column // 4))[column % 4]
            assert mask[row, column] == (1 / (1 - p) if word >= int(p * 2**32) else 0)


def test_a_word_equal_to_the_threshold_is_kept() -> None:
    word = int(philox_words(5, torch.tensor(0), torch.tensor(0))[0])
    assert dropout_mask(5, 1, 1, word / 2**32) > 0
    assert dropout_mask(5, 1, 1, (word + 1) / 2**32) == 0


@pytest.mark.parametrize("columns", [0, 1, 4, 5, 64])
def test_mask_depends_on_row_and_column_only(columns: int) -> None:
    whole = dropout_mask(3, 20, 64, 0.5)
    assert torch.equal(dropout_mask(3, 13, columns, 0.5), whole[:13, :columns])
    assert not torch.equal(dropout_mask(4, 20, 64, 0.5), whole)


@pytest.mark.parametrize("p", [0.0, 0.05, 0.1, 0.5, 0.9])
def test_statistics(p: float) -> None:
    """Share kept, mean of the mask, and independence of neighbours, each within 4 standard deviations."""
    mask = dropout_mask(2024, 512, 1000, p, torch.float64)
    kept = (mask > 0).double()
    deviation = (p * (1 - p)) ** 0.5
    assert abs(kept.mean() - (1 - p)) <= 4 * deviation / kept.numel() ** 0.5
    torch.testing.assert_close(mask, kept / (1 - p), rtol=1e-15, atol=0)
    centered = kept - (1 - p)
    for rows, columns in [(1, 0), (0, 1), (0, 2), (0, 4), (1, 4)]:
        products = centered[rows:, columns:] * centered[: 512 - rows, : 1000 - columns]
        assert abs(products.mean()) <= 4 * deviation**2 / products.numel() ** 0.5


def test_words_are_uniform() -> None:
    """Chi-square over 256 bins of each word's high and low byte: mean 255, standard deviation 22.6."""
    found = philox_words(7, torch.arange(400).unsqueeze(1), torch.arange(256)).flatten(0, 1)
    for word in found.T:
        for byte in (word >> 24, word & 0xFF):
            counts = torch.bincount(byte, minlength=256).double()
            assert 160 < ((counts - 400) ** 2 / 400).sum() < 350


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype(dtype: torch.dtype) -> None:
    mask = dropout_mask(1, 8, 8, 0.1, dtype)
    assert mask.dtype == dtype
    assert set(mask.unique().tolist()) == {0.0, torch.tensor(1 / 0.9).to(dtype).item()}


def test_the_seed_is_never_read_back() -> None:
    """A meta tensor has no value to read."""
    mask = dropout_mask(torch.zeros((), dtype=torch.int64, device="meta"), 3, 5, 0.5)
    assert mask.shape == (3, 5)
    assert mask.device.type == "meta"


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
def test_a_probability_outside_0_to_1_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="p: expected a probability in"):
        dropout_mask(0, 2, 2, p)
