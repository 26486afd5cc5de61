"""Denoisers: tokens and time in, the log x0-posterior or the log concrete score out."""

from sepo_env.denoisers.base import Denoiser, Parameterisation
from sepo_env.denoisers.checkpoint import ARCHITECTURES, load_denoiser, save_denoiser
from sepo_env.denoisers.cnn import ConvDenoiser, ConvDenoiserConfig
from sepo_env.denoisers.tabular import TabularDenoiser

__all__ = [
    "ARCHITECTURES",
    "ConvDenoiser",
    "ConvDenoiserConfig",
    "Denoiser",
    "Parameterisation",
    "TabularDenoiser",
    "load_denoiser",
    "save_denoiser",
]
