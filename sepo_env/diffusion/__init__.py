"""The CTMC: schedules, token graphs, reverse-step kernels, samplers, likelihoods and exact enumeration."""

from sepo_env.diffusion.graph import Absorbing, Graph, Uniform, make_graph
from sepo_env.diffusion.kernel import StepLaw
from sepo_env.diffusion.process import DiffusionProcess, Kernel, Parameterisation
from sepo_env.diffusion.schedule import Cosine, Geometric, Linear, LogLinear, Schedule, make_schedule

__all__ = [
    "Absorbing",
    "Cosine",
    "DiffusionProcess",
    "Geometric",
    "Graph",
    "Kernel",
    "Linear",
    "LogLinear",
    "Parameterisation",
    "Schedule",
    "StepLaw",
    "Uniform",
    "make_graph",
    "make_schedule",
]
