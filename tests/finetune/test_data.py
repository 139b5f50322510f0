import errno
import hashlib
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from lorafam.finetune import InputError
from lorafam.finetune.data import TrainingSamples, load_chunks, read_text
from tests.finetune.tiny_run import write_model


def test_chunks_are_the_text(model_folder: Path, text_file: Path) -> None:
    """Every chunk is <bos> and 16 tokens; put back in order, they are the text without its end."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    chunks = load_chunks(str(text_file), tokenizer, 16, 64)
    assert chunks.held_out.shape == (4, 17)
    assert chunks.predicted_tokens == 64
    everything = torch.cat([chunks.train, chunks.held_out])
    assert everything[:, 0].unique().tolist() == [tokenizer.bos_token_id]
    text = text_file.read_text()
    count = len(text) // 16
    expected = [text[16 * i : 16 * (i + 1)] for i in range(count)]
    held_out = [int((i + 0.5) * count / 4) for i in range(4)]
    decoded = [[bytes_of(tokenizer, row) for row in part] for part in (chunks.train, chunks.held_out)]
    assert decoded[1] == [expected[i] for i in held_out]
    assert decoded[0] == [expected[i] for i in range(count) if i not in held_out]
    assert chunks.text_sha256 == hashlib.sha256(text.encode()).hexdigest()


def bytes_of(tokenizer: object, row: torch.Tensor) -> str:
    tokens = tokenizer.convert_ids_to_tokens(row[1:].tolist())  # type: ignore[attr-defined]
    return "".join(tokens).replace("Ġ", " ")


def test_no_bos_where_the_tokenizer_has_none(text_file: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(write_model(tmp_path / "model", bos=False))
    chunks = load_chunks(str(text_file), tokenizer, 16, 64)
    assert chunks.held_out.shape == (4, 16)
    assert chunks.predicted_tokens == 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"good, then \xff bad", r"is not UTF-8 \(byte 11"),
        (b" \n\t ", "is empty"),
        (b"a short text of nothing", r"is too short: 23 tokens make 1 chunks of 16, 4 are held out"),
    ],
)
def test_unusable_text(content: bytes | None, message: str, model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^text: .*{message}") as error:
        load_chunks(str(path), AutoTokenizer.from_pretrained(model_folder), 16, 64)
    assert str(path) in str(error.value)


def test_folder_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^text: expected a file"):
        read_text(str(tmp_path))


def test_unreadable_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.txt"
    path.write_text("secret")

    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"^text: .*can't be read \(Permission denied\)$"):
        read_text(str(path))


def test_order_depends_on_seed_and_number_alone() -> None:
    chunks = torch.arange(10)[:, None].expand(10, 3)
    samples = TrainingSamples(chunks, 25, seed=3)
    order = [int(samples[i]["input_ids"][0]) for i in range(25)]
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    backwards = TrainingSamples(chunks, 25, seed=3)
    assert [int(backwards[i]["input_ids"][0]) for i in reversed(range(25))] == order[::-1]
    other = TrainingSamples(chunks, 25, seed=4)
    assert [int(other[i]["input_ids"][0]) for i in range(10)] not in (order[:10], order[10:20])
    assert len(samples) == 25
    with pytest.raises(IndexError):
        samples[25]
