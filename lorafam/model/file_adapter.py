"""An adapter folder beside a model's files: which of its tensors each part of the adapter changes, and the layer around
one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from ..config import AdapterConfig, starts_from_weight
from ..methods import METHODS, AdapterLayer, LoraParameter
from ..methods.registry import EMBEDDINGS
from .adapter_file import AdapterFile, path_of, read_adapter, tensor_file
from .fit import check_fit, meta_layers, put_tensors
from .older_names import joined_now
from .parameter_targets import find_parameters, meta_parameters, pattern_path
from .peft_format import PREFIX, TENSOR_FILE
from .peft_settings import CONFIG_FILE
from .saved_module import is_saved
from .stored_model import StoredModel
from .targets import tell_unmatched
from .tensor_keys import bare_key
from .token_row_files import file_rows
from .weight_files import FLOATS

Tensor = torch.Tensor


class AdapterPlace(NamedTuple):
    """Where a layer's weight is: `weight` [N, K] by name in the loaded model, [K, N] where `transposed`; `bias` None
    unless it changes.
    """

    weight: str
    bias: str | None
    transposed: bool


class FileAdapter:
    """An adapter as PEFT saves it, its layers by path, and the `places` of what they change in a model's files.

    By name in the loaded model: `shared` are tensors of the base that it has whole (tables, trained biases): what is
    tied to them has them too, and layers are merged into them; `rows` are tokens and their rows of a table; `own` are
    tensors of modules trained whole (modules_to_save). `untied`: what was tied to a tensor that one of them changes.

    Raises FileNotFoundError, ValueError: what `load_adapter` refuses; a layer that has no weight in the files, one of
    another shape or not of floats; values that aren't finite.
    """

    def __init__(self, folder: Path, model: StoredModel) -> None:
        for name in ("", CONFIG_FILE, tensor_file(folder).name):
            if not (folder / name).exists():
                raise FileNotFoundError(f"adapter: no such {'file' if name else 'folder'}: {folder / name}")
        file = read_adapter(folder)
        self._file = file
        self.config: AdapterConfig = file.config
        if starts_from_weight(self.config.init):
            raise ValueError(
                f"{CONFIG_FILE}: init_lora_weights = {self.config.init!r}: for a base that lost a part to them, "
                "expected a file converted by path_initial_model_for_weight_conversion, or lorafam.load_adapter"
            )
        embeddings = {path_of(name) for name in file.tensors if ".lora_embedding_" in name}
        if embeddings and self.config.method not in EMBEDDINGS:
            raise ValueError(f"{CONFIG_FILE}: use_dora = True is not supported with an embedding, expected False")
        file.tensors = _as_linear(file.tensors)
        parameters = _parameters(file, model)
        by_path = _by_path(file.tensors, self.config.method)
        experts = {path: by_path.pop(path) for path in parameters if path in by_path}
        of_tokens = file_rows(file)
        _check_tied_rows([f"{path}.weight" for path in of_tokens], model)
        self.rows = {_stored(f"{path}.weight", model): found for path, found in of_tokens.items()}
        self.shared: dict[str, Tensor] = {}
        self.own: dict[str, Tensor] = {}
        for path, found in file.whole.items():
            for ending, tensor in found.items():
                name = _whole_name(f"{path}.{ending}", tensor, model)
                if is_saved(path, file.names_saved):
                    self.own[name] = tensor
                    continue
                there = self.shared.setdefault(_stored(name, model), tensor)
                if not torch.equal(there, tensor):
                    raise ValueError(f"{TENSOR_FILE}: {PREFIX + path!r} is another than what it is tied to")
        if file.names_saved and not self.own:
            raise ValueError(
                f"{CONFIG_FILE}: modules_to_save = {list(file.names_saved)}, {TENSOR_FILE} has none of them"
            )
        for name, (tokens, rows) in self.rows.items():
            if name not in model.formed or model.shape(name) < (max(tokens) + 1, rows.shape[1]):
                raise ValueError(f"{TENSOR_FILE}: has rows of {name!r}, which the model has no place for")
        self.places, sizes = _places(by_path, embeddings, file, model)
        # every shape and name is checked before anything is computed
        with torch.device("meta"):
            bases: dict[str, nn.Module] = {path: nn.Linear(K, N, bias=False) for path, (N, K) in sizes.items()}
        self._layers = {**meta_layers(bases, self.config), **parameters}
        self.places |= {path: AdapterPlace(pattern_path(path, parameters[path]), None, False) for path in experts}
        tell_unmatched(self.config, [pattern_path(path, layer) for path, layer in self._layers.items()])
        check_fit(self._layers, file)
        changed = [*self.own, *(place.weight for place in self.places.values())]
        self.untied = _untied(changed, model)

    def layer(self, path: str, weight: Tensor) -> AdapterLayer:
        """The adapter's layer around an nn.Linear of `weight` [N, K], without a bias; or around a module that has
        experts' weights as they are.
        """
        made = self._layers[path]
        if isinstance(made, LoraParameter):
            around = made.around(weight)
            put_tensors(around.active, made, path, self._file)
            return around.eval()
        # it stays as it is, for the next time
        layer = copy.deepcopy(self._layers[path]).to_empty(device="cpu")
        put_tensors(layer.active, self._layers[path], path, self._file)
        layer.base_layer.weight = nn.Parameter(weight, requires_grad=False)
        return layer.eval()


def _parameters(file: AdapterFile, model: StoredModel) -> dict[str, AdapterLayer]:
    """Path → layer, without memory, of the parameters that the file adapts (target_parameters)."""
    names = file.config.target_parameters
    if names is None:
        return {}
    if model.skeleton is None:
        raise ValueError(
            f"{CONFIG_FILE}: target_parameters = {list(names)} needs transformers, which isn't there or doesn't know "
            "the model's class"
        )
    return meta_parameters(model.skeleton, find_parameters(model.skeleton, names), file.config)


def _stored(name: str, model: StoredModel) -> str:
    """The name of the tensor that the files have of a parameter, which may be tied."""
    found = model.find(name) or name
    return model.tied_to(found) or found


def _check_tied_rows(names: Sequence[str], model: StoredModel) -> None:
    """Rows of the input table are those of what is tied to it; rows of another that is tied are that one's alone."""
    for name in names:
        found = model.find(name) or name
        with_it = model.tied_with(model.tied_to(found) or found)
        if with_it and found != model.input_table():
            raise ValueError(
                f"{TENSOR_FILE}: has rows of {found!r} alone, which is tied to {model.tied_to(found) or with_it[0]!r}"
            )


def _as_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An embedding's adapter as that of a linear layer: e_i + s B a_i is W + s B A for W = Eᵀ [D, V]."""
    return {
        name.replace(".lora_embedding_A", ".lora_A.weight").replace(".lora_embedding_B", ".lora_B.weight"): tensor
        for name, tensor in tensors.items()
    }


def _by_path(tensors: Mapping[str, Tensor], method: str) -> dict[str, dict[str, Tensor]]:
    """Path → tensors by their whole names."""
    endings = tuple(f".{ending}" for ending in METHODS[method].tensor_names.values())
    by_path: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        ending = next((ending for ending in endings if name.endswith(ending)), None)
        if ending is None or not name.startswith(PREFIX):
            raise ValueError(f"{TENSOR_FILE}: has {name!r}, which is no tensor of a {method} adapter")
        by_path.setdefault(name[len(PREFIX) : -len(ending)], {})[name] = tensor
    return by_path


def _whole_name(given: str, tensor: Tensor, model: StoredModel) -> str:
    """The name of a tensor that the adapter's file has whole: a head, a table, a bias."""
    name = model.find(bare_key(given))
    if name is None:
        raise ValueError(f"{TENSOR_FILE}: has {PREFIX + given!r}, which the model's files have no tensor for")
    if model.shape(name) != tuple(tensor.shape):
        shapes = f"{list(tensor.shape)}, the model's {name!r} is {list(model.shape(name))}"
        raise ValueError(f"{TENSOR_FILE}: {PREFIX + given!r} has shape {shapes}")
    return name


def _places(
    by_path: Mapping[str, Mapping[str, Tensor]], embeddings: Set[str], file: AdapterFile, model: StoredModel
) -> tuple[dict[str, AdapterPlace], dict[str, tuple[int, int]]]:
    """Path → place, and the layer's (N, K)."""
    names, sizes = {}, {}
    sideways: dict[str, bool | None] = {}
    for path, tensors in by_path.items():
        names[path] = name = _weight_name(path, model)
        entry = model.entry(name)
        if entry.dtype not in FLOATS:
            raise ValueError(f"model: {entry.name!r} has dtype {entry.dtype}, expected one of {', '.join(FLOATS)}")
        sizes[path] = _sizes(path, tensors, file.config.method, model.shape(name))
        known = True if path in embeddings else model.lies_sideways(name)
        sideways[path] = _sideways(path, name, model.shape(name), sizes[path], tensors, known)
    # PEFT says so for GPT-2's Conv1D, whose weight is [K, N]
    others = {path: turned for path, turned in sideways.items() if path not in embeddings}
    square = _of_square(others, file.fan_in_fan_out)
    places = {}
    for path, name in names.items():
        bias = None
        if f"{PREFIX}{path}.lora_B.bias" in by_path[path]:
            bias = f"{name.removesuffix('weight')}bias"
            if bias not in model.formed:
                raise ValueError(f"{TENSOR_FILE}: {path!r} has a bias (lora_bias), the model's layer has none")
        turned = sideways[path]
        places[path] = AdapterPlace(name, bias, square if turned is None else turned)
    return places, sizes


def _weight_name(path: str, model: StoredModel) -> str:
    name = model.find(f"{path}.weight")
    if name is None:
        near = model.nearest(f"{path}.weight")
        hint = f" (the nearest is {near!r})" if near else ""
        hint = "; is its weight tied to another?" if path.endswith("lm_head") else hint
        raise ValueError(f"adapter: the model's files have no {path + '.weight'!r}, which it adapts{hint}")
    if not name.endswith(".weight"):
        raise joined_now(path, name)
    return name


def _untied(changed: Sequence[str], model: StoredModel) -> dict[str, str]:
    """Name → the name whose tensor it had, of what a change unties: all or none, as the configuration has one word."""
    parted = False
    for name in changed:
        if model.may_be_tied(name):
            raise ValueError(
                f"adapter: {name!r} is tied to the embeddings (tie_word_embeddings in config.json), and transformers, "
                "which knows how, isn't there or doesn't know the model's class"
            )
        others = model.tied_with(model.tied_to(name) or name)
        if len(others) > 1:
            raise ValueError(f"adapter: {name!r} is tied to several tensors, which changing it would change")
        parted = parted or bool(others)
    return model.all_tied() if parted else {}


def _sizes(path: str, tensors: Mapping[str, Tensor], method: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """(N, K): from the tensors, or where they don't tell K from the weight's shape."""
    kind, sizes = METHODS[method], {}
    for side, (attribute, axis) in kind.size_axes.items():
        name = f"{PREFIX}{path}.{kind.tensor_names[attribute]}"
        tensor = tensors.get(name)
        if tensor is None:
            raise ValueError(f"{TENSOR_FILE}: lacks {name!r}")
        if tensor.ndim != (2 if "K" in kind.size_axes else 1):
            raise ValueError(f"{TENSOR_FILE}: {name!r} has shape {list(tensor.shape)}, expected a matrix")
        sizes[side] = tensor.shape[axis]
    out_features = sizes["N"]
    return out_features, sizes.get("K", shape[0] if shape[0] != out_features else shape[-1])


def _sideways(
    path: str,
    name: str,
    shape: tuple[int, ...],
    sizes: tuple[int, int],
    tensors: Mapping[str, Tensor],
    known: bool | None,
) -> bool | None:
    """Whether a weight is [K, N], where it isn't `known`; None where it is square."""
    out_features, in_features = sizes
    if known is not None:
        if shape == ((in_features, out_features) if known else (out_features, in_features)):
            return known
    elif shape == (out_features, in_features):
        return None if out_features == in_features else False
    elif shape == (in_features, out_features):
        return True
    shapes = " and ".join(f"{list(tensor.shape)}" for tensor in tensors.values() if tensor.ndim == 2)
    raise ValueError(f"adapter: {path!r} has factors {shapes}, the model's {name!r} is {list(shape)}")


def _of_square(sideways: Mapping[str, bool | None], fan_in_fan_out: bool) -> bool:
    """Whether square weights are [K, N]: as the other layers are, or as the configuration says where there are none.

    Raises ValueError where some are and some aren't.
    """
    seen = {turned for turned in sideways.values() if turned is not None}
    if len(seen) < 2:
        return seen.pop() if seen else fan_in_fan_out
    square = next((path for path, turned in sideways.items() if turned is None), None)
    if square is None:
        return False
    raise ValueError(
        f"adapter: the weight of {square!r} is square, and of the others some are [K, N] (Conv1D) and some [N, K]: "
        "which way it lies can't be told"
    )
