"""Rewards: finished sequences in, one number each out.

`as_reward` makes one of whatever scores sequences: a function, a module, a name, a weighted sum.
"""

from sepo_env.rewards.activity import OracleReward
from sepo_env.rewards.adapters import FunctionReward, OnError, ScoringOptions
from sepo_env.rewards.base import Reward, RewardRole
from sepo_env.rewards.factory import FOR_JUDGING, FOR_TRAINING, as_reward
from sepo_env.rewards.functions import RewardFunction, string_reward, token_reward
from sepo_env.rewards.oracles import OracleEnsemble, load_oracle
from sepo_env.rewards.sentiment import SentimentClassifier, SentimentReward, VaderReward, load_sentiment
from sepo_env.rewards.sequence import LetterContent, MotifDensity, MotifScore, gc_content
from sepo_env.rewards.sequence_classifier import SequenceClassifierReward
from sepo_env.rewards.weighted import WeightedSum, WeightedTerm

__all__ = [
    "FOR_JUDGING",
    "FOR_TRAINING",
    "FunctionReward",
    "LetterContent",
    "MotifDensity",
    "MotifScore",
    "OnError",
    "OracleEnsemble",
    "OracleReward",
    "Reward",
    "RewardFunction",
    "RewardRole",
    "ScoringOptions",
    "SentimentClassifier",
    "SentimentReward",
    "SequenceClassifierReward",
    "VaderReward",
    "WeightedSum",
    "WeightedTerm",
    "as_reward",
    "gc_content",
    "load_oracle",
    "load_sentiment",
    "string_reward",
    "token_reward",
]
