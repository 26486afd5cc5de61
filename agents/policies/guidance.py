"""Guidance of an agent's policy: made from its config, written down with the agent, and found again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agents.config import SamplerConfig
from sepo_env.denoisers import ClassifierFreeGuidance, Denoiser
from sepo_env.errors import CheckpointError, InvalidArgumentError

_FIELDS = {"scale": "guidance_scale", "label": "guidance_label"}


def guided(denoiser: Denoiser, config: SamplerConfig) -> Denoiser:
    """The denoiser with the guidance of a config around it; the denoiser itself where the config asks for none.

    Raises:
        InvalidArgumentError: the denoiser is guided already, or does not know the class.
    """
    if config.guidance_scale == 0 and config.guidance_label is None:
        return denoiser
    if denoiser.core is not denoiser:
        raise InvalidArgumentError(
            "the task's denoiser is guided already; leave guidance_scale and guidance_label out, or give its core."
        )
    return ClassifierFreeGuidance(denoiser, config.guidance_scale, config.guidance_label).train(denoiser.training)


def describe_guidance(denoiser: Denoiser) -> dict[str, Any] | None:
    """Scale and label of a guided denoiser, for JSON, whoever has guided it; None where nobody has."""
    if not isinstance(denoiser, ClassifierFreeGuidance):
        return None
    return {"scale": denoiser.scale, "label": denoiser.label}


def with_guidance(fields: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a saved config with the guidance that the agent had, if by its task's denoiser."""
    found = description.get("guidance") or {}
    return {**fields, **{field: found[name] for name, field in _FIELDS.items() if name in found}}


def check_guidance(
    denoiser: Denoiser, path: Path, description: Mapping[str, Any], overrides: Mapping[str, Any]
) -> None:
    """Raise a CheckpointError if a saved agent was guided otherwise than it is now, unless that was asked for."""
    found, wanted = description.get("guidance"), describe_guidance(denoiser)
    if found != wanted and not overrides.keys() & set(_FIELDS.values()):
        raise CheckpointError(
            path,
            f"it was saved with the guidance {found}, the task's denoiser has {wanted}",
            "give the task with that guidance, or guidance_scale= to change it",
        )
