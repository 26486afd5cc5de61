"""Oracles that gReLU trained: sequence-to-function models in Lightning checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sepo_env.arguments import Count, PathArgument, WholeNumber, checked
from sepo_env.errors import ArtefactsError, CheckpointError, InvalidArgumentError, MissingExtraError
from sepo_env.loading.foreign import read_foreign
from sepo_env.loading.inert import outline, shown
from sepo_env.loading.tensorfile import bare_name, check_finite, check_tensors
from sepo_env.precision import float32_default
from sepo_env.rewards.oracles import OracleEnsemble, Role

_CHUNK = 64
"""Sequences that an Enformer trunk reads at a time; it holds about 1,500 channels a position."""

_PREFIX = "model."

# An EnformerPretrainedModel is this EnformerModel with another head; it fetches the trunk's published weights when it
# is made, which those of the checkpoint would replace at once.
_ENFORMER = {
    "n_conv": 7,
    "channels": 1536,
    "n_transformers": 11,
    "n_heads": 8,
    "key_len": 64,
    "attn_dropout": 0.05,
    "pos_dropout": 0.01,
    "ff_dropout": 0.4,
}
_NOT_THE_FILES = frozenset({"model_type", "device", "dtype"})
"""Entries of ``model_params`` that are no options here: the caller says where the network lives, and in what dtype."""
_WITHOUT_DOWNLOAD: dict[str, tuple[str, dict[str, Any]]] = {"EnformerPretrainedModel": ("EnformerModel", _ENFORMER)}

_ACTIVATIONS: dict[tuple[str, str | None], Callable[[Tensor], Tensor]] = {
    ("regression", "mse"): nn.Identity(),
    ("regression", "poisson"): torch.exp,
    ("binary", None): torch.sigmoid,
    ("multiclass", None): partial(torch.softmax, dim=1),
}
"""What gReLU's ``LightningModel`` applies to the logits, by task and loss; None: whatever the loss."""


class GReLUModel(nn.Module):
    """One output of a gReLU model.

    Shapes:
        nucleotide weights ``(B, L, 4)``, A C G T -> ``(B, 1)``, after the model's activation.

    Attributes:
        model: gReLU's network, ``(B, 4, L)`` -> ``(B, T, 1)``.
        column: which of the T outputs.
    """

    def __init__(self, model: nn.Module, activation: Callable[[Tensor], Tensor], column: int) -> None:
        super().__init__()
        self.model = model
        self.activation = activation
        self.column = column

    def forward(self, weights: Tensor) -> Tensor:
        """Return the predictions ``(B, 1)``, differentiably."""
        chunks = [self.activation(self.model(chunk.mT)) for chunk in weights.split(_CHUNK)]
        return torch.cat(chunks)[:, self.column]


@checked
def load_grelu(
    path: PathArgument,
    *,
    task: str,
    column: WholeNumber,
    num_outputs: Count,
    role: Role,
    quantity: str,
    units: str,
) -> OracleEnsemble:
    """Read a gReLU checkpoint as an oracle, on the CPU, in evaluation mode and frozen.

    The architecture is built by gReLU from the checkpoint's ``model_params``, and the checkpoint's tensors are put in;
    nothing is downloaded. No code in the checkpoint is run (`sepo_env.loading.foreign`): trust is needed in the
    installed ``grelu`` and its dependencies, not in the file. The file still decides the architecture and the weights,
    so that a forged one can predict nonsense or ask for a lot of memory.

    Args:
        path: a ``.ckpt`` of ``grelu.lightning.LightningModel``.
        task: what it must have been trained for: ``"regression"``, ``"binary"`` or ``"multiclass"``.
        column: the output that is predicted.
        num_outputs: T, how many there must be.
        role: ``"training"`` or ``"held_out"``.
        quantity: what is predicted, in words.
        units: of the prediction.

    Returns:
        An ensemble of one member, ``tokens (B, L) -> (1, B)``.

    Raises:
        MissingExtraError: gReLU is not installed.
        CheckpointError: not such a checkpoint, one for another task, or another architecture than its tensors'.
        InvalidArgumentError: a column that the outputs do not have, or an argument of another type.
    """
    if column >= num_outputs:
        raise InvalidArgumentError(f"column is {column}, but the {num_outputs} outputs are 0 to {num_outputs - 1}.")
    checkpoint = read_foreign(path)
    settings = checkpoint.get("hyper_parameters")
    tensors = checkpoint.get("state_dict")
    if not isinstance(settings, Mapping) or not isinstance(tensors, Mapping) or "model_params" not in settings:
        raise CheckpointError(
            path,
            "expected a gReLU checkpoint (state_dict, hyper_parameters with model_params), found "
            f"{outline(checkpoint)}",
            "give a checkpoint that grelu.lightning.LightningModel wrote",
        )
    model_params, train_params = settings["model_params"], settings.get("train_params")
    if not isinstance(model_params, Mapping) or not isinstance(train_params, Mapping):
        raise CheckpointError(path, "its model_params or train_params are no dictionaries", "give the published file")
    if model_params.get("n_tasks") != num_outputs:
        raise CheckpointError(
            path,
            f"expected {num_outputs} outputs, found {shown(model_params.get('n_tasks'))}",
            "give the published file",
        )
    activation = _activation(path, train_params, task, quantity)
    model = _build(path, model_params)
    _fill(path, model, tensors)
    member = GReLUModel(model, activation, column)
    oracle = OracleEnsemble(
        [member], None, role=role, quantity=quantity, units=units, both_strands=False
    )  # one strand, as the published figures
    return oracle.eval().requires_grad_(False)


def _models() -> Any:
    """The module of gReLU's architectures."""
    try:
        from grelu.model import models
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] == "grelu":
            raise MissingExtraError("grelu", "grelu") from error
        raise _broken(error) from error
    except ImportError as error:
        raise _broken(error) from error
    return models


def _broken(error: ImportError) -> ArtefactsError:
    return ArtefactsError(
        f"grelu is installed, but cannot be imported ({error}); it needs the transformers that its enformer-pytorch "
        "pins (4.x), which excludes the extra 'hf' (5.x): pip install -e '.[grelu]' in an environment of its own."
    )


@float32_default()
def _build(path: str | os.PathLike[str], model_params: Mapping[str, Any]) -> nn.Module:
    options = {name: value for name, value in model_params.items() if name not in _NOT_THE_FILES}
    model_type = model_params.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError(
            path, f"expected the name of a model_type, found {shown(model_type)}", "give another file"
        )
    if model_type in _WITHOUT_DOWNLOAD:
        model_type, fixed = _WITHOUT_DOWNLOAD[model_type]
        options = {**fixed, **options}
    elif "Pretrained" in model_type:
        raise CheckpointError(
            path,
            f"a {model_type} would download its trunk",
            f"give one of {sorted(_WITHOUT_DOWNLOAD)}, or an untrained type",
        )
    if options.get("final_pool_func", "avg") is None:
        raise CheckpointError(path, "it predicts a profile, not one number", "give a model with a final_pool_func")
    kind = getattr(_models(), model_type, None)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise CheckpointError(path, f"gReLU has no model {model_type!r}", "install the version of grelu that wrote it")
    try:
        model: nn.Module = kind(**options)
    except Exception as error:  # forged or foreign parameters may fail in any way
        raise CheckpointError(
            path,
            f"its model_params do not build a {model_type} ({type(error).__name__}: {error})",
            "install the version of grelu that wrote it",
        ) from error
    return model


def _fill(path: str | os.PathLike[str], model: nn.Module, tensors: Mapping[str, Any]) -> None:
    named = [(bare_name(name), value) for name, value in tensors.items() if isinstance(name, str)]
    ours = [(name.removeprefix(_PREFIX), value) for name, value in named if name.startswith(_PREFIX)]
    found = dict(ours)
    if len(found) != len(ours):
        raise CheckpointError(path, "two tensors for one place", "give the published file")
    if not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(path, f"expected tensors by name, found {outline(tensors)}", "give the published file")
    check_tensors(path, model.state_dict(), found, "install the version of grelu that wrote it, or give another file")
    check_finite(path, {name: value for name, value in found.items() if value.is_floating_point()})
    model.load_state_dict(found)


def _activation(
    path: str | os.PathLike[str], train_params: Mapping[str, Any], wanted: str, quantity: str
) -> Callable[[Tensor], Tensor]:
    task, loss = (str(train_params.get(name, "")).lower() for name in ("task", "loss"))
    if task != wanted:
        raise CheckpointError(
            path, f"expected a {wanted} model ({quantity}), found a {task or 'nameless'} one", "give the published file"
        )
    found = _ACTIVATIONS.get((task, loss)) or _ACTIVATIONS.get((task, None))
    if found is None:
        known = ", ".join(f"{name} ({of or 'any'})" for name, of in _ACTIVATIONS)
        raise CheckpointError(path, f"task {task!r} with loss {loss!r} is not known", f"known are {known}")
    return found
