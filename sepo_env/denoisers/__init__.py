"""Denoisers: tokens and time in, the log x0-posterior or the log concrete score out."""

from sepo_env.denoisers.base import (
    ClassConditionalDenoiser,
    Denoiser,
    DenoiserArgument,
    Parameterisation,
    as_denoiser,
)
from sepo_env.denoisers.checkpoint import ARCHITECTURES, load_denoiser, save_denoiser
from sepo_env.denoisers.cnn import ConvDenoiser, ConvDenoiserConfig
from sepo_env.denoisers.dna_cnn import ClassDNAConvConfig, ClassDNAConvDenoiser, DNAConvConfig, DNAConvDenoiser
from sepo_env.denoisers.guidance import ClassifierFreeGuidance
from sepo_env.denoisers.masked_lm import MaskedLMDenoiser, load_masked_lm
from sepo_env.denoisers.mdlm import MDLMConfig, MDLMDenoiser
from sepo_env.denoisers.published import load_drakes, load_mdlm, load_sedd
from sepo_env.denoisers.sedd import SEDDConfig, SEDDDenoiser
from sepo_env.denoisers.tabular import TabularDenoiser
from sepo_env.denoisers.transformer import TransformerDenoiser, TransformerDenoiserConfig

__all__ = [
    "ARCHITECTURES",
    "ClassConditionalDenoiser",
    "ClassDNAConvConfig",
    "ClassDNAConvDenoiser",
    "ClassifierFreeGuidance",
    "ConvDenoiser",
    "ConvDenoiserConfig",
    "DNAConvConfig",
    "DNAConvDenoiser",
    "Denoiser",
    "DenoiserArgument",
    "MDLMConfig",
    "MDLMDenoiser",
    "MaskedLMDenoiser",
    "Parameterisation",
    "SEDDConfig",
    "SEDDDenoiser",
    "TabularDenoiser",
    "TransformerDenoiser",
    "TransformerDenoiserConfig",
    "as_denoiser",
    "load_denoiser",
    "load_drakes",
    "load_masked_lm",
    "load_mdlm",
    "load_sedd",
    "save_denoiser",
]
