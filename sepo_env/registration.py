"""The Gymnasium ids; importing `sepo_env` registers them."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

ENVIRONMENTS: dict[str, str] = {
    "DNAEnhancer-v0": "dna_enhancer",
    "TextRLHF-v0": "text_rlhf",
    "TextSentiment-v0": "text_sentiment",
    "ToyCTMC-v0": "toy",
}
"""Id -> name of the task; all ids share the same two classes."""


def register_environments() -> None:
    """Register every id of `ENVIRONMENTS` that is not registered yet."""
    for env_id, task in ENVIRONMENTS.items():
        if env_id not in registry:
            register(
                env_id,
                entry_point="sepo_env.envs.gym_env:DiffusionEnv",
                vector_entry_point="sepo_env.envs.vector_env:DiffusionVectorEnv",
                kwargs={"task": task},
            )
