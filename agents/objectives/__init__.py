"""The objectives as TorchRL loss modules: each is a form (whose log-probability) and a surrogate (of its ratio)."""

from agents.objectives.actor_critic import ActorCriticLoss
from agents.objectives.ddpo import DDPOLoss
from agents.objectives.forms import Form, NeighboursForm, PathForm
from agents.objectives.policy_gradient import PolicyGradientLoss
from agents.objectives.ppo import PPOLoss
from agents.objectives.reinforce import ReinforceLoss
from agents.objectives.sepo import SEPOLoss
from agents.objectives.snis import SNISForm

__all__ = [
    "ActorCriticLoss",
    "DDPOLoss",
    "Form",
    "NeighboursForm",
    "PPOLoss",
    "PathForm",
    "PolicyGradientLoss",
    "ReinforceLoss",
    "SEPOLoss",
    "SNISForm",
]
