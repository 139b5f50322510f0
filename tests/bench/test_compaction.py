"""The measurement of compaction, small: less of everything afterwards, and the same table as its figures."""

from lorafam.bench.compaction import measure, table


def test_less_of_everything() -> None:
    before, after = measure(hidden=64, layers=1, rank=8, target=2, tokens=8, steps=2)
    assert after.ranks == before.ranks // 4
    assert after.factors * 3 < before.factors
    assert after.optimizer * 3 < before.optimizer
    assert before.allocator > 0
    assert after.allocator == 0
    assert f"| ranks | {before.ranks} | {after.ranks} | 0.25 |" in table(before, after)
