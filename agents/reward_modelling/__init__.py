"""Reward models from pairs of texts of which people prefer one."""

from agents.reward_modelling.config import RewardModelConfig
from agents.reward_modelling.pairs import Pair, read_pairs
from agents.reward_modelling.splitting import split_pairs
from agents.reward_modelling.training import Outcome, train_reward_model

__all__ = ["Outcome", "Pair", "RewardModelConfig", "read_pairs", "split_pairs", "train_reward_model"]
