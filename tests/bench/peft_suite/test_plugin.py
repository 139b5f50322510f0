"""The plugin on a file as PEFT's are: what is selected, accelerated, counted and written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from lorafam.bench.peft_suite import plugin

TESTS = """
import pytest, torch
from peft import AdaLoraConfig, IA3Config, LoraConfig, PeftMixedModel, get_peft_model, inject_adapter_in_model

@pytest.fixture
def model():
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Embedding(4, 8))

def call(model):
    return model[0](torch.ones(2, 8))

@pytest.mark.parametrize("config_class", [LoraConfig, AdaLoraConfig, IA3Config])
def test_methods(model, config_class):
    kwargs = {"total_step": 1} if config_class is AdaLoraConfig else {}
    call(get_peft_model(model, config_class(target_modules=["0"], **kwargs)).base_model.model)
    assert config_class is not IA3Config

@pytest.mark.parametrize("make", [PeftMixedModel, get_peft_model])
def test_two_adapters(model, make):
    config = LoraConfig(target_modules=["0"])
    made = make(model, config, "default")
    made.add_adapter("other", LoraConfig(target_modules=["0", "1"]))
    made.set_adapter("other")
    call(made.base_model.model)

def test_injected(model):
    call(inject_adapter_in_model(LoraConfig(target_modules=["0"], use_dora=True), model))

def test_without(model):
    pytest.skip("nothing to see")

@pytest.fixture
def broken_after():
    yield
    raise RuntimeError("teardown")

def test_bad_after(broken_after): pass
def test_bad(model, broken_after): assert torch.rand(()) == 2, "not\\n2"
"""
NAMES = {
    "test_methods[LoraConfig]": ["passed", 1, 1, ""],
    "test_methods[AdaLoraConfig]": ["passed", 1, 1, ""],
    "test_two_adapters[PeftMixedModel]": ["passed", 2, 1, ""],
    "test_two_adapters[get_peft_model]": ["passed", 2, 1, ""],
    "test_injected": ["passed", 1, 1, ""],
    "test_without": ["skipped", 0, 0],
    "test_bad_after": ["failed", 0, 0, "RuntimeError: teardown"],
    "test_bad": ["failed", 0, 0, "AssertionError: not"],
}


@pytest.mark.parametrize(("accelerate", "workers"), [(False, ()), (True, ("-n", "1"))], ids=("plain", "accelerated"))
def test_outcomes(tmp_path: Path, accelerate: bool, workers: tuple[str, ...]) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_lost.py").write_text("import no_such_module")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", plugin.__name__, *workers]
    command += ["--continue-on-collection-errors", "--outcomes=out.json", *["--accelerate"] * accelerate]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found.pop("test_lost.py")[::3] == [
        "not imported",
        "E   ModuleNotFoundError: No module named 'no_such_module'",
    ]
    assert found.keys() == {f"test_some.py::{name}" for name in NAMES}, done.stdout
    for name, (outcome, layers, forwards, *reason) in NAMES.items():
        got = found[f"test_some.py::{name}"]
        assert got[:3] == [outcome, layers * accelerate, forwards * accelerate], name
        assert not reason or got[3] == reason[0]


def test_only_those_that_are_named_run(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_some.py").write_text(TESTS)
    names = ["test_some.py::test_methods[AdaLoraConfig]", "test_some.py::test_bad"]
    (tmp_path / "only.json").write_text(json.dumps(names))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", plugin.__name__, "-n", "1"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    command += ["--outcomes=out.json", "--only=only.json"]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert json.loads((tmp_path / "out.json").read_text()).keys() == set(names)
