import gc
from pathlib import Path

import pytest

from tests.finetune.tiny_run import write_model, write_text


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("models") / "tiny")
    # each run collects garbage twice; without the libraries' objects that takes no time
    gc.freeze()
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("texts") / "text.txt")
