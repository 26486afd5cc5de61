"""The mathematics of the objectives, as pure functions of tensors: no TorchRL, no state."""

from agents.functional.advantages import (
    ADVANTAGES,
    batch_mean_advantage,
    group_normalised_advantage,
    leave_one_out_advantage,
)
from agents.functional.divergences import k3_kl, mean_where, path_entropy, path_kl, sum_where
from agents.functional.importance import (
    effective_sample_share,
    log_effective_sample_size,
    snis_log_estimate,
    snis_log_weights,
)
from agents.functional.ratios import (
    clip_gate,
    clip_log_ratio,
    clipped_surrogate,
    gated_surrogate,
    log_importance_ratio,
    step_log_ratio,
)
from agents.functional.subsampling import subsample_steps, subsample_steps_with_last

__all__ = [
    "ADVANTAGES",
    "batch_mean_advantage",
    "clip_gate",
    "clip_log_ratio",
    "clipped_surrogate",
    "effective_sample_share",
    "gated_surrogate",
    "group_normalised_advantage",
    "k3_kl",
    "leave_one_out_advantage",
    "log_effective_sample_size",
    "log_importance_ratio",
    "mean_where",
    "path_entropy",
    "path_kl",
    "snis_log_estimate",
    "snis_log_weights",
    "step_log_ratio",
    "subsample_steps",
    "subsample_steps_with_last",
    "sum_where",
]
