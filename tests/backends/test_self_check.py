"""The check of a GPU never seen before: right kernels pass, a wrong path is switched off and told, the others run."""

from __future__ import annotations

import itertools
import json
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lorafam import explain, quantize_nf4
from lorafam.backends import comparison, eager, selection, self_check, user_files
from lorafam.backends.self_check_cases import Draw, cases
from lorafam.backends.triton_gpu import compile_ahead
from lorafam.backends.triton_gpu.call_paths import paths_of
from lorafam.ops.by_storage import dense_storage, joined

CPU = torch.device("cpu")
MODEL = "Some GPU/1"
CASES = list(cases())
Tensor = torch.Tensor


def altered(**changes: Any) -> types.SimpleNamespace:
    return types.SimpleNamespace(**{op: getattr(eager, op) for op in selection.OPS} | changes)


def disturbed(op: str, when: Callable[..., bool] = lambda *_: True) -> Callable[..., Any]:
    def wrong(*arguments: Any) -> Any:
        result = getattr(eager, op)(*arguments)
        if when(*arguments):
            if op == "adalora_importance":
                arguments[2][0].mul_(1.01)
            for tensor in comparison._tensors(result):
                if tensor.numel():
                    tensor.view(-1)[0] += 100
        return result

    return wrong


def test_right_kernels_pass() -> None:
    assert self_check.run_checks(altered(), eager, CPU, least=1) == {}


def test_the_user_s_defaults_don_t_matter() -> None:
    which = [case for case in CASES if case.op in ("quantize_absmax", "lora_project")]
    saved = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("meta"):
            assert self_check.run_checks(altered(), eager, CPU, which=which, least=1) == {}
    finally:
        torch.set_default_dtype(saved)


def test_few_elements_are_pooled() -> None:
    pooled = []

    def counted(*arguments: Any) -> Any:
        pooled.append(arguments)
        return eager.row_norm(*arguments)

    case = next(case for case in CASES if case.op == "row_norm")
    assert self_check.run_checks(altered(row_norm=counted), eager, CPU, which=[case]) == {}
    assert len(pooled) == -(-1024 // 72)
    assert not torch.equal(pooled[0][3], pooled[1][3])


def test_every_op_is_checked() -> None:
    assert {case.op for case in CASES} == set(selection.OPS)


def test_every_path_of_a_call_is_checked() -> None:
    draw = Draw(0, eager, CPU)
    checked = {paths_of(case.op, case.make(draw))[0] for case in CASES}
    weights = [quantize_nf4(torch.randn(128, columns)).storage() for columns in (192, 200)]
    called = set()
    for dtype, tokens, rank in itertools.product((torch.bfloat16, torch.float16, torch.float32), (1, 17, 300), (4, 90)):
        for weight in (*weights, dense_storage(torch.randn(128, 192, dtype=dtype))):
            columns = weight.layout[1] if weight.layout else 192
            x, P, B_hat = torch.ones(tokens, columns, dtype=dtype), torch.ones(tokens, rank), torch.ones(128, rank)
            G = torch.ones(tokens, 128, dtype=dtype)
            called |= {
                *paths_of("lora_linear", (x, *weight, P, B_hat, None, None)),
                *paths_of("lora_linear_grad", (G, *weight, None, P, torch.ones(rank, columns), None, 0.0)),
                *paths_of("lora_linear_group", (x, *joined([weight] * 2), [P] * 2, [B_hat] * 2, [None] * 2)),
                *paths_of("lora_factors_grad", (G, x, P, B_hat)),
                *paths_of("row_norm", (*weight, torch.ones(rank, columns), B_hat, None)),
                *paths_of("squared_row_norm", (*weight,)),
            }
    assert called <= checked


def test_a_group_in_one_launch_is_checked_with_biases_and_without() -> None:
    draw = Draw(0, eager, CPU)
    calls = [case.make(draw) for case in CASES if case.op == "lora_linear_group"]
    one = [call for call in calls if paths_of("lora_linear_group", call)[0].endswith("one launch")]
    assert {tuple(bias is not None for bias in call[-1]) for call in one} == {(True, True), (False, False)}


@pytest.mark.parametrize("op", sorted(selection.OPS))
def test_a_wrong_kernel_is_found(op: str) -> None:
    which = [case for case in CASES if case.op == op]
    found = self_check.run_checks(altered(**{op: disturbed(op)}), eager, CPU, which=which, least=1)
    assert set(found) == {path for case in which for path in paths_of(op, case.make(Draw(0, eager, CPU)))[:1]}


def test_only_the_path_that_fails_is_switched_off() -> None:
    wrong = disturbed("lora_project", lambda x, *_: x.dtype == torch.float16)
    found = self_check.run_checks(altered(lora_project=wrong), eager, CPU, least=1)
    assert set(found) == {"lora_project, float16"}


def test_a_group_isn_t_blamed_for_its_members() -> None:
    def is_dense(*arguments: Any) -> bool:
        return not arguments[3]

    kernels = altered(
        lora_linear=disturbed("lora_linear", is_dense), lora_linear_group=disturbed("lora_linear_group", is_dense)
    )
    found = self_check.run_checks(kernels, eager, CPU, least=1)
    assert found
    assert all(path.startswith("lora_linear, dense") for path in found)


def broken(error: Exception) -> types.SimpleNamespace:
    def raises(x: Tensor, *_: Any) -> Tensor:
        if x.dtype == torch.float16:
            raise error
        return eager.dropout(x, *_)

    return altered(dropout=raises)


def test_a_kernel_that_raises_is_found() -> None:
    found = self_check.run_checks(broken(RuntimeError("out of resource: shared memory")), eager, CPU, least=1)
    assert list(found) == ["dropout, float16"]
    assert found["dropout, float16"].endswith("RuntimeError: out of resource: shared memory")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
        OSError(28, "No space left on device"),
    ],
    ids=str,
)
def test_what_passes_by_itself_is_no_failure(error: Exception) -> None:
    with pytest.raises(self_check.InterruptedCheckError) as caught:
        self_check.run_checks(broken(error), eager, CPU, least=1)
    assert (caught.value.found, caught.value.lost) == ({}, False)


def test_after_an_illegal_address_nothing_more_is_tried() -> None:
    error = RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
    with pytest.raises(self_check.InterruptedCheckError, match="start the process again") as caught:
        self_check.run_checks(broken(error), eager, CPU, least=1)
    assert (list(caught.value.found), caught.value.lost) == (["dropout, float16"], True)
    # what is known isn't tried again
    known = caught.value.found
    assert self_check.run_checks(broken(error), eager, CPU, known=known, least=1) == known


class Gpu:
    """A GPU that exists in name only, whose kernels' check is the test's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checks, self.capturing, self.now = folder, [], False, 0.0
        self.result: dict[str, str] | Exception = {}

    def run_checks(self, *_: Any, known: dict[str, str]) -> dict[str, str]:
        self.checks.append(known)
        assert not torch.is_autocast_enabled("cuda")
        assert not torch.is_grad_enabled()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def next_process(self) -> None:
        self_check.forget()

    def kept(self) -> Any:
        """What the file says, None where there is none."""
        paths = list(self.folder.glob("checked*"))
        return json.loads(paths[0].read_text()) if paths else None


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gpu]:
    found = Gpu(tmp_path)
    monkeypatch.setenv(user_files.CACHE_DIR, str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: MODEL)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: found.capturing)
    monkeypatch.setattr(selection, "_triton_failure", lambda _: None)
    monkeypatch.setattr(compile_ahead, "compile_ahead", lambda *_: None)
    monkeypatch.setattr(self_check, "run_checks", found.run_checks)
    monkeypatch.setattr(self_check.time, "monotonic", lambda: found.now)
    monkeypatch.delenv(selection.VARIABLE, raising=False)
    self_check.forget()
    selection._choose.cache_clear()
    yield found
    # a real GPU, or none, is chosen for anew
    self_check.forget()
    selection._choose.cache_clear()


def backend(path: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return selection.choose("cuda", (path,)).backend


def test_what_failed_goes_to_eager_and_is_kept(gpu: Gpu) -> None:
    gpu.result = {"dropout, float16": "wrong"}
    torch.set_autocast_enabled("cuda", True)
    try:
        with pytest.warns(UserWarning, match=r"lorafam checks its kernels on Some GPU/1, once: about \d+ s"):
            assert selection.choose("cuda", ("dropout, float32",)).backend == "triton"
    finally:
        torch.set_autocast_enabled("cuda", False)
    choice = selection.choose("cuda", ("lora_project, float16", "dropout, float16"))
    assert (choice.backend, choice.asked_for) == ("eager", False)
    assert choice.reason == "dropout, float16: failed its check on this GPU: wrong"
    assert gpu.kept() == {"failures": {"dropout, float16": "wrong"}, "complete": True}
    gpu.next_process()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert selection.choose("cuda", ("dropout, float16",)).backend == "eager"
    assert len(gpu.checks) == 1


@pytest.mark.parametrize(
    "text",
    ["{", "[]", '"right"', "{}", '{"failures": [], "complete": true}', '{"failures": {"a": 1}, "complete": true}'],
)
def test_a_file_that_is_no_result_is_told_and_checked_again(text: str, gpu: Gpu) -> None:
    self_check.result_file(MODEL).write_text(text)
    with pytest.warns(UserWarning, match="is damaged"):
        assert selection.choose("cuda", ("dropout, float16",)).backend == "triton"
    assert gpu.kept() == {"failures": {}, "complete": True}


def test_a_passing_trouble_is_not_written_down_and_tried_again(gpu: Gpu) -> None:
    gpu.result = self_check.InterruptedCheckError("no memory", {"dropout, float16": "wrong"}, lost=False)
    assert backend("dropout, float32") == "eager"
    assert selection.choose("cuda", ("dropout, float32",)).reason.endswith("aren't checked on this GPU yet: no memory")
    assert gpu.kept() is None
    assert len(gpu.checks) == 1
    gpu.now, gpu.result = self_check.AGAIN_SECONDS, {}
    assert backend("dropout, float32") == "triton"
    assert (len(gpu.checks), gpu.kept()["complete"]) == (2, True)


def test_nothing_is_checked_inside_a_capture(gpu: Gpu) -> None:
    gpu.capturing = True
    choice = selection.choose("cuda", ("dropout, float16",))
    assert choice.backend == "eager"
    assert "a CUDA graph is being captured" in choice.reason
    assert gpu.checks == []
    assert gpu.kept() is None
    gpu.capturing = False
    assert backend("dropout, float16") == "triton"


def test_what_is_kept_is_known_inside_a_capture(gpu: Gpu) -> None:
    assert backend("dropout, float16") == "triton"
    gpu.next_process()
    gpu.capturing = True
    assert backend("dropout, float16") == "triton"


def test_after_a_lost_gpu_the_next_process_checks_the_rest(gpu: Gpu) -> None:
    gpu.result = self_check.InterruptedCheckError("gone", {"dropout, float16": "illegal"}, lost=True)
    assert backend("dropout, float32") == "eager"
    assert gpu.kept() == {"failures": {"dropout, float16": "illegal"}, "complete": False}
    gpu.next_process()
    gpu.result = {"dropout, float16": "illegal"}
    assert backend("dropout, float32") == "triton"
    assert backend("dropout, float16") == "eager"
    assert gpu.checks == [{}, {"dropout, float16": "illegal"}]


def test_of_several_processes_one_checks(gpu: Gpu) -> None:
    found: list[str] = []
    other = threading.Thread(target=lambda: found.append(backend("dropout, float16")))
    # the lock is that of another opening of the file, as another process's
    with user_files.alone(self_check.result_file(MODEL)):
        other.start()
        other.join(0.5)
        assert other.is_alive()
        user_files.keep(self_check.result_file(MODEL), {"failures": {"dropout, float16": "wrong"}, "complete": True})
    other.join()
    assert (found, gpu.checks) == (["eager"], [])


def test_the_report_has_a_row_for_what_is_switched_off(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu.result = {"dropout, float16": "wrong", "adalora_scores": "wrong too"}
    with pytest.warns(UserWarning, match="checks its kernels"):
        rows = {(row.op, row.device): row for row in selection.report()}
    assert rows["dropout", "cuda"].backend == "triton"
    assert rows["dropout, float16", "cuda"].backend == "eager"
    assert rows["dropout, float16", "cuda"].reason.endswith("on this GPU: wrong")
    assert rows["adalora_scores", "cuda"].backend == "eager"
    assert len(rows) == 2 * len(selection.OPS) + 1


def test_only_calls_on_the_path_are_slow_and_none_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Triton backend over CPU tensors, as if the self-check had switched one path off."""
    from lorafam.backends import triton_gpu
    from tests.conftest import need_ptxsim

    need_ptxsim()
    path = "lora_linear, packed, bfloat16, decode"
    monkeypatch.setenv(selection.VARIABLE, "simulate")
    monkeypatch.setattr(selection, "_choose", lambda *_: selection.Choice("triton", "as on a GPU", False))
    monkeypatch.setattr(selection, "_verdict", lambda: self_check.Verdict({path: "wrong"}))
    took: list[str] = []
    for name, module in (("eager", eager), ("triton", triton_gpu)):

        def watched(*arguments: Any, name: str = name, run: Any = module.lora_linear) -> Tensor:
            took.append(name)
            return run(*arguments)

        monkeypatch.setattr(module, "lora_linear", watched)
    weight = quantize_nf4(torch.randn(32, 64)).storage()

    def call(tokens: int, dtype: torch.dtype = torch.bfloat16) -> None:
        torch.ops.lorafam.lora_linear(torch.ones(tokens, 64, dtype=dtype), *weight, None, None, None, None)

    selection._announce.cache_clear()
    with pytest.warns(selection.SlowPathWarning, match=f"slowly: {path}: failed its check on this GPU: wrong"):
        call(2)
    for tokens, dtype in ((2, torch.bfloat16), (20, torch.bfloat16), (2, torch.float16), (2, torch.float16)):
        call(tokens, dtype)
    # the last is a repetition, which asks nobody
    assert took == ["eager", "eager", "triton", "triton"]


def test_explain_tells_what_is_switched_off(gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = quantize_nf4(torch.randn(32, 64, dtype=torch.bfloat16))
    choose = selection.choose
    # the weight is on the CPU
    monkeypatch.setattr(selection, "choose", lambda _, paths=(): choose("cuda", paths))
    gpu.result = {"lora_linear, packed, bfloat16, decode": "wrong"}
    with pytest.warns(UserWarning, match="checks its kernels"):
        assert explain(weight, 2).backend == "eager"
    assert explain(weight, 2).reason.endswith("failed its check on this GPU: wrong")
    assert explain(weight, 40).backend == "triton"
