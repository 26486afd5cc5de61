"""The objectives as TorchRL loss modules: each is a form (whose log-probability) and a surrogate (of its ratio)."""

from agents.losses.actor_critic import ActorCriticLoss
from agents.losses.base import DiffusionLoss
from agents.losses.ddpo import DDPOLoss
from agents.losses.forms import Form, NeighboursForm, PathForm
from agents.losses.ppo import PPOLoss
from agents.losses.reinforce import ReinforceLoss
from agents.losses.sepo import SEPOLoss
from agents.losses.snis import SNISForm

__all__ = [
    "ActorCriticLoss",
    "DDPOLoss",
    "DiffusionLoss",
    "Form",
    "NeighboursForm",
    "PPOLoss",
    "PathForm",
    "ReinforceLoss",
    "SEPOLoss",
    "SNISForm",
]
