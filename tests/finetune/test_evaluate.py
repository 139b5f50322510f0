import statistics

import pytest
import torch

from lorafam.finetune.evaluate import HeldOut, evaluate
from tests.model.tiny import tiny_model, tokens


def test_losses_are_the_chunks_cross_entropies() -> None:
    model, chunks = tiny_model().train(), tokens(rows=3)
    result = evaluate(model, chunks)
    model.eval()
    with torch.no_grad():
        for chunk, loss in zip(chunks, result.losses, strict=True):
            logits = model(chunk[None]).logits[0, :-1]
            assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, chunk[1:]).item(), rel=1e-6)


def test_leaves_mode_and_random_state() -> None:
    model = tiny_model().train()
    drawn = []
    model.register_forward_pre_hook(lambda *_: drawn.append(torch.rand(1)))
    state = torch.get_rng_state()
    evaluate(model, tokens())
    assert model.training
    assert len(drawn) == 2
    assert torch.equal(torch.get_rng_state(), state)
    model.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(model, tokens())
    assert model.training


def test_mean_and_standard_errors() -> None:
    before, after = HeldOut((3.0, 2.0, 4.0, 2.5)), HeldOut((2.5, 1.8, 3.0, 2.4))
    assert before.mean == pytest.approx(2.875)
    assert before.standard_error == pytest.approx(statistics.stdev(before.losses) / 2)
    fall, error = before.fall_to(after)
    assert fall == pytest.approx(0.45)
    assert error == pytest.approx(statistics.stdev([0.5, 0.2, 1.0, 0.1]) / 2)
    with pytest.raises(ValueError, match="expected 4 chunks, got 1"):
        before.fall_to(HeldOut((1.0,)))
