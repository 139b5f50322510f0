"""A frozen head's logits that wait: whatever a program does with them, the values, gradients and errors are those of
logits that were computed at once.
"""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as TF
from torch import nn

import lorafam
from lorafam.methods import frozen_linear
from lorafam.methods import logits as module
from lorafam.methods.frozen_linear import freeze_layer
from lorafam.methods.logits import Logits

Tensor = torch.Tensor
V, K = 1000, 48


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_linear, "LEAST_LOGITS", 0)


def _heads(dtype: torch.dtype = torch.float32, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(K, V, bias=bias).requires_grad_(False).to(dtype)
    fast = copy.deepcopy(plain)
    freeze_layer(fast)
    return plain, fast


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(0, V, (2, 30), generator=random)
    labels[0, :7] = -100
    return torch.randn(2, 30, K, generator=random).to(dtype), labels


def _causal(logits: Tensor, labels: Tensor, reduction: str = "mean") -> Tensor:
    """As transformers 5 has it."""
    logits = logits.float()
    labels = TF.pad(labels, (0, 1), value=-100)[..., 1:].contiguous().view(-1)
    return TF.cross_entropy(logits.view(-1, V), labels.to(logits.device), ignore_index=-100, reduction=reduction)


def _shifted(logits: Tensor, labels: Tensor) -> Tensor:
    """As transformers 4 had it."""
    shift = logits[..., :-1, :].contiguous()
    return nn.CrossEntropyLoss()(shift.view(-1, shift.size(-1)), labels[..., 1:].contiguous().view(-1))


def _masked(logits: Tensor, labels: Tensor) -> Tensor:
    return TF.cross_entropy(logits[labels != -100], labels[labels != -100])


def _each(logits: Tensor, labels: Tensor) -> Tensor:
    losses = TF.cross_entropy(logits.reshape(60, -1), labels.view(-1), reduction="none")
    return (losses * torch.arange(60)).sum()


def _places(logits: Tensor, labels: Tensor) -> Tensor:
    places = torch.tensor([3, 5, 3])
    return TF.cross_entropy(logits[1][places], labels[1, places])


def _last(logits: Tensor, labels: Tensor) -> Tensor:
    return TF.cross_entropy(logits[:, -1], labels[:, -1])


def _detached(logits: Tensor, labels: Tensor) -> Tensor:
    assert not logits.detach().requires_grad
    return _causal(logits, labels) + _causal(logits.detach(), labels)


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    return _causal(logits, labels, "sum") / 7


LOSSES = [_causal, _shifted, _masked, _each, _places, _last, _detached, _summed]


def _smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return TF.cross_entropy(logits.view(-1, V), labels.view(-1), label_smoothing=0.1)


def _weighted(logits: Tensor, labels: Tensor) -> Tensor:
    return TF.cross_entropy(logits.view(-1, V), labels.view(-1), weight=(torch.arange(V) / V).to(logits.dtype))


def _soft(logits: Tensor, labels: Tensor) -> Tensor:
    return TF.cross_entropy(logits.view(-1, V), torch.softmax(torch.arange(60 * V).view(60, V) / 1e4, 1))


def _by_hand(logits: Tensor, labels: Tensor) -> Tensor:
    return -TF.log_softmax(logits, -1).gather(-1, labels.clamp(min=0)[..., None]).mean()


def _capped(logits: Tensor, labels: Tensor) -> Tensor:
    return _causal(torch.tanh(logits / 3) * 3, labels)


def _classes_second(logits: Tensor, labels: Tensor) -> Tensor:
    return TF.cross_entropy(logits.transpose(1, 2), labels)


def _cooled(logits: Tensor, labels: Tensor) -> Tensor:
    logits.div_(2.0)
    return _causal(logits, labels)


def _cooled_under_a_view(logits: Tensor, labels: Tensor) -> Tensor:
    view = logits.view(-1, V)
    logits.mul_(0.5)
    return TF.cross_entropy(view, labels.view(-1))


def _changed_view(logits: Tensor, labels: Tensor) -> Tensor:
    view = logits[:, :-1]
    view *= 0.5
    return _causal(logits, labels)


def _copied_before_a_change(logits: Tensor, labels: Tensor) -> Tensor:
    wide = logits.float()
    rows = logits[torch.tensor([1, 0])]
    logits.mul_(0.5)
    return _causal(wide, labels) + _causal(rows, labels)


def _looked_at_after(logits: Tensor, labels: Tensor) -> Tensor:
    loss = _causal(logits, labels)
    with torch.no_grad():
        right = (logits.argmax(-1) == labels).float().mean()
    return loss + right + 0.01 * logits.pow(2).mean()


def _looked_at_before(logits: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        mean = logits.float().mean()
    return _causal(logits, labels) + mean + logits.std()


def _viewed_without_grad(logits: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        view = logits.view(-1, V)
    return _causal(logits, labels) + view.mean()


def _stacked(logits: Tensor, labels: Tensor) -> Tensor:
    return _causal(torch.cat([logits, logits * 2]), torch.cat([labels, labels]))


LOOKS = [
    _smoothed,
    _weighted,
    _soft,
    _by_hand,
    _capped,
    _classes_second,
    _cooled,
    _cooled_under_a_view,
    _changed_view,
    _copied_before_a_change,
    _looked_at_after,
    _looked_at_before,
    _viewed_without_grad,
    _stacked,
]


def _results(head: nn.Linear, loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    x, labels = _inputs(dtype)
    x.requires_grad_()
    found = loss(head(x * 1), labels)
    found.backward()
    assert x.grad is not None
    return found.detach(), x.grad


@pytest.mark.parametrize("loss", [*LOSSES, *LOOKS])
def test_any_use_gives_the_same(loss: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    values = module._Head.values
    monkeypatch.setattr(module._Head, "values", lambda self: looks.append(1) or values(self))
    plain, fast = _heads()
    wanted, gradient = _results(plain, loss, torch.float32)
    found, own = _results(fast, loss, torch.float32)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own, gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item())
    # what reads nothing but the loss looked at nothing
    assert bool(looks) == (loss in LOOKS)


@pytest.mark.parametrize("loss", [*LOSSES, *LOOKS])
def test_bf16(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    plain, fast = _heads(torch.bfloat16)
    wanted, gradient = _results(plain, loss, torch.bfloat16)
    found, own = _results(fast, loss, torch.bfloat16)
    assert (found.dtype, own.dtype) == (wanted.dtype, gradient.dtype)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-3)
    assert (own - gradient).float().norm() < 2e-2 * gradient.float().norm()


def test_what_is_told_without_a_look() -> None:
    plain, fast = _heads()
    x, _ = _inputs()
    x.requires_grad_()
    ours, theirs = fast(x), plain(x)
    assert type(ours) is Logits
    for logits in (ours, ours.view(-1, V), ours[..., :-1, :], ours.detach()):
        assert isinstance(logits, Tensor)
        assert logits.shape[-1] == V
    for ask in (
        lambda y: (y.shape, y.size(), y.size(-1), y.dim(), y.ndim, y.numel(), len(y), y.nbytes, y.element_size()),
        lambda y: (y.dtype, y.device, y.layout, y.requires_grad, y.is_leaf, y.is_cpu, y.is_cuda, y.is_meta),
        lambda y: (y.is_floating_point(), torch.is_complex(y), y.is_inference(), y.get_device(), y.grad_fn is None),
    ):
        assert ask(ours) == ask(theirs)
    assert ours in {ours}
    assert not ours._held.head.is_known


@pytest.mark.parametrize(
    "use",
    [
        lambda y: y.detach().numpy(),
        lambda y: np.asarray(y.detach()),
        lambda y: np.array(y.tolist()),
        lambda y: pickle.loads(pickle.dumps(y.detach())).numpy(),
        lambda y: copy.deepcopy(y.detach()).numpy(),
        lambda y: torch.stack(list(y)).detach().numpy(),
        lambda y: torch.from_dlpack(y.detach().clone()).numpy(),
        lambda y: y.new_zeros(y.shape).copy_(y.detach()).numpy(),
        lambda y: torch.zeros(y.shape).add_(y.detach()).numpy(),
        lambda y: y.data.numpy(),
        lambda y: y.double().detach().numpy(),
        lambda y: y.to("cpu", torch.float64).detach().numpy(),
        lambda y: y[:, -1].to(copy=True, dtype=torch.float32, device="cpu").detach().numpy(),
        lambda y: y.to(torch.float32, False, True).detach().numpy(),
        lambda y: y.to(torch.zeros(1, dtype=torch.float64)).detach().numpy(),
        lambda y: y.to(memory_format=torch.contiguous_format).detach().numpy(),
        lambda y: y.permute(1, 0, 2).detach().numpy(),
        lambda y: y[:, None].detach().numpy(),
        lambda y: y[:, :, 3:5].detach().numpy(),
        lambda y: y[0, 1, 2].detach().numpy(),
        lambda y: y.view(-1).detach().numpy(),
        lambda y: y.view(torch.int32).numpy(),
    ],
)
def test_values_by_any_way_out(use: Callable[[Tensor], Any]) -> None:
    plain, fast = _heads()
    x, _ = _inputs()
    ours, theirs = use(fast(x.requires_grad_())), use(plain(x))
    assert type(ours) is np.ndarray
    np.testing.assert_array_equal(ours, theirs)


def test_asked_by_keyword() -> None:
    _, fast = _heads()
    x, labels = _inputs()
    assert torch.equal(torch.reshape(input=fast(x), shape=(60, V)), fast(x).view(60, V))
    loss = TF.cross_entropy(input=fast(x).view(-1, V), target=labels.view(-1))
    assert torch.equal(loss, TF.cross_entropy(fast(x).view(-1, V), labels.view(-1)))


def test_a_compiled_loss_takes_them() -> None:
    for head in _heads():
        x, labels = _inputs()
        x.requires_grad_()
        loss = torch.compile(_causal, backend="eager")(head(x), labels)
        loss.backward()
        plain = _causal(head(x), labels)
        torch.testing.assert_close(loss, plain, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(x.grad, torch.autograd.grad(plain, x)[0], rtol=1e-5, atol=1e-8)


def test_saved_and_loaded() -> None:
    _, fast = _heads()
    x, _ = _inputs()
    file = io.BytesIO()
    torch.save(fast(x), file)
    file.seek(0)
    assert type(torch.load(file)) is Tensor


class _Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


class _Same(torch.autograd.Function):
    """What DDP does to outputs."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@pytest.mark.parametrize("function", [_Twice, _Same])
@pytest.mark.parametrize("view", [lambda y: y, lambda y: y.view(-1, V), lambda y: y[:, 3:]])
def test_a_function_takes_them(function: Any, view: Callable[[Tensor], Tensor]) -> None:
    found = []
    for head in _heads():
        x, _ = _inputs()
        y = function.apply(view(head(x.requires_grad_())))
        y.pow(2).sum().backward()
        found.append((y.detach().clone(), x.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_gradients_with_respect_to_the_logits() -> None:
    plain, fast = _heads()
    x, labels = _inputs()
    wanted = None
    for head in (plain, fast):
        y = head(x.clone().requires_grad_())
        y.retain_grad()
        _causal(y, labels).backward()
        assert y.grad is not None
        if wanted is not None:
            torch.testing.assert_close(y.grad, wanted, rtol=1e-5, atol=1e-7)
        wanted = y.grad
    y = fast(x.clone().requires_grad_())
    loss = _causal(y, labels)
    for ask in (lambda: y.register_hook(print), y.retain_grad):
        with pytest.raises(RuntimeError, match="LORAFAM_LOGITS=eager"):
            ask()
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(loss, y)


def test_gradients_of_gradients() -> None:
    found = []
    for head in _heads():
        x, labels = _inputs()
        x.requires_grad_()
        (first,) = torch.autograd.grad(_causal(head(x), labels), x, create_graph=True)
        found.append(torch.autograd.grad(first.pow(2).sum(), x)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-9)


def test_a_second_backward() -> None:
    _, fast = _heads()
    x, labels = _inputs()
    loss = _causal(fast(x.requires_grad_()), labels)
    first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_an_input_changed_since_is_refused() -> None:
    _, fast = _heads()
    for change in (lambda x: x.add_(1), lambda _: fast.weight.mul_(1)):
        x, _ = _inputs()
        y = fast(x)
        change(x)
        with pytest.raises(RuntimeError, match="changed in place before they were looked at"):
            y.sum()
        with pytest.raises(RuntimeError, match="changed in place before they were looked at"):
            _causal(y, _inputs()[1])


def test_wrong_targets_are_torchs_errors() -> None:
    plain, fast = _heads()
    x, _ = _inputs()
    for target in (torch.full((60,), V), torch.full((60,), -1)):
        for head in (plain, fast):
            with pytest.raises(IndexError):
                TF.cross_entropy(head(x).view(-1, V), target)
    for target in (torch.zeros(59, dtype=torch.int64), torch.zeros(60, dtype=torch.int16)):
        told = []
        for head in (plain, fast):
            with pytest.raises((ValueError, RuntimeError)) as error:
                TF.cross_entropy(head(x).view(-1, V), target)
            told.append(str(error.value))
        assert told[0] == told[1]


def test_all_ignored() -> None:
    plain, fast = _heads()
    x, _ = _inputs()
    target = torch.full((2, 30), -100)
    for reduction in ("sum", "mean"):
        ours, theirs = (_causal(head(x), target, reduction) for head in (fast, plain))
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())


@pytest.mark.parametrize(
    "case", ["autocast", "eager", "inference", "vmap", "compile", "device", "fp64", "trained bias"]
)
def test_where_logits_are_computed_at_once(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, fast = _heads()
    x, _ = _inputs()
    if case == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            found = fast(x)
    elif case == "eager":
        monkeypatch.setenv(module.VARIABLE, "eager")
        found = fast(x)
    elif case == "inference":
        with torch.inference_mode():
            found = fast(x)
    elif case == "vmap":
        found = torch.func.vmap(fast)(x)
    elif case == "compile":
        found = torch.compile(fast, backend="eager")(x)
    elif case == "device":
        with torch.device("cpu"):
            found = fast(x)
    elif case == "fp64":
        found = fast.double()(x.double())
    else:
        fast.bias.requires_grad_()
        found = fast(x)
    assert type(found) is Tensor


def test_a_wrong_choice_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(module.VARIABLE, "later")
    with pytest.raises(ValueError, match="LORAFAM_LOGITS: expected lazy or eager, got 'later'"):
        _heads()[1](_inputs()[0])


def test_small_ones_dont_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_linear, "LEAST_LOGITS", 60 * V * 4 + 1)
    assert type(_heads()[1](_inputs()[0])) is Tensor


def test_nothing_is_kept_alive() -> None:
    _, fast = _heads()
    x, labels = _inputs()
    x.requires_grad_()
    y = fast(x)
    loss = _causal(y, labels)
    y.sum()
    gone = [weakref.ref(y), weakref.ref(y._held.head._values)]
    del y
    assert [one() for one in gone] == [None, None]
    loss.backward()


def test_a_step_with_checkpointing_and_an_optimiser() -> None:
    """A whole model: the steps of a plain one."""
    losses = []
    for wait in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(V, K), nn.Linear(K, K), nn.ReLU(), nn.Linear(K, V, bias=False))
        model[3].weight = model[0].weight
        lorafam.adapt(model, lorafam.AdapterConfig(r=4, target_modules=["1"]))
        if wait:
            freeze_layer(model[3])
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        labels = _inputs()[1].clamp(min=0)
        for _ in range(4):
            hidden = torch.utils.checkpoint.checkpoint(model[:3], labels, use_reentrant=False)
            logits = model[3](hidden)
            assert (type(logits) is Logits) == wait
            loss = _causal(logits, labels)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
    assert losses[4:] == pytest.approx(losses[:4], rel=1e-5)
    assert losses[3] < losses[0]
