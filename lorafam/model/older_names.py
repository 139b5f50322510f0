"""An adapter's file whose modules had other names when it was written: transformers renames parts of models."""

from __future__ import annotations

from torch import nn

from ..compat.loading import renaming
from ..compat.transformers import is_pretrained
from .adapter_file import AdapterFile
from .base_tensors import base_parameters
from .peft_format import PREFIX, TENSOR_FILE
from .tensor_keys import clean_path


def joined_now(path: str, name: str) -> ValueError:
    """For experts that were layers of their own before transformers 5: their factors would be parts of others."""
    return ValueError(
        f"{TENSOR_FILE}: is for {path!r}, a layer that is a part of {name!r} in this version of transformers; where "
        "all of an expert's layers are adapted, PEFT's from_pretrained converts the file and save_pretrained writes "
        "one that is read"
    )


def under_present_names(model: nn.Module, file: AdapterFile) -> None:
    """Gives a file's tensors the names that their modules have in `model`, as loading the model's files would; those of
    modules that stay unknown are left. Raises ValueError for a layer that is a part of a parameter now.
    """
    known = {clean_path(path) for path, _ in model.named_modules()}
    unknown = [path for path in (*file.paths, *file.whole) if path not in known]
    if not unknown or not is_pretrained(model):
        return
    parameters = base_parameters(model)
    _, rename = renaming(model, parameters.keys())
    present = {}
    for path in unknown:
        name, joined = rename(f"{path}.weight")
        if joined is not None and name in parameters:
            raise joined_now(path, name)
        if joined is None and name.removesuffix(".weight") in known:
            present[path] = name.removesuffix(".weight")
    for path, now in present.items():
        before = f"{PREFIX}{path}."
        file.tensors = {
            f"{PREFIX}{now}.{name[len(before) :]}" if name.startswith(before) else name: tensor
            for name, tensor in file.tensors.items()
        }
    file.whole = {present.get(path, path): tensors for path, tensors in file.whole.items()}
    file.kept_ranks = {present.get(path, path): ranks for path, ranks in file.kept_ranks.items()}
