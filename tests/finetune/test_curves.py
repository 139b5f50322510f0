from pathlib import Path

import pytest
from matplotlib.image import imread

from lorafam.finetune.curves import plot_curves, smooth


def test_smooth() -> None:
    assert smooth([]) == []
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    # weights 0.9 and 1 on the first and the second
    assert smooth([1.0, 2.0])[1] == pytest.approx((0.9 * 1 + 2) / 1.9)


def test_picture_has_both_curves(tmp_path: Path) -> None:
    records = [{"step": 0, "held_out_loss": 3.0, "held_out_standard_error": 0.1}]
    records += [{"step": step, "loss": 3.0 / step} for step in range(1, 20)]
    records += [{"step": 20, "loss": 1.0, "held_out_loss": 1.2, "held_out_standard_error": 0.1}]
    plot_curves(records, tmp_path / "loss.png", "a run")
    pixels = imread(tmp_path / "loss.png")
    assert pixels.shape[:2] == (540, 900)
    for color in ((31, 119, 180), (255, 127, 14)):
        close = abs(pixels[..., :3] * 255 - color).max(axis=-1) < 3
        assert close.sum() > 500
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]
