"""200-bp human regulatory DNA in HepG2 cells: real data, shipped weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sepo_env.arguments import PathArgument, Seed, Size, WholeNumber, checked
from sepo_env.assets import asset_path
from sepo_env.denoisers import Denoiser, DenoiserArgument, load_denoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, Schedule, make_schedule
from sepo_env.errors import InvalidArgumentError
from sepo_env.rewards import OracleReward, Reward, gc_content, load_oracle
from sepo_env.tasks import metrics
from sepo_env.tasks.alphabet import AlphabetTask
from sepo_env.tasks.artefacts import Artefacts
from sepo_env.tasks.motif_metrics import motif_correlation
from sepo_env.tasks.motifs import shipped_motifs
from sepo_env.tasks.prompts import Motifs, prompt_template

_LENGTH = 200
_KMER = 3
LIKELIHOOD_STEPS = 128
"""Steps of the likelihood bound: those of the protocol, and of the shipped table of real sequences."""
REAL_SEQUENCES = 640
"""Real sequences whose likelihoods say what is natural, where that is computed on demand."""
_PESSIMISM = 1.0
"""Standard deviations over the ensemble that ``"activity_lcb"`` takes off the mean."""


def _oracle_reward(asset: str, name: str, pessimism: float = 0.0) -> Reward:
    return OracleReward(load_oracle(asset_path(asset)), name=name, pessimism=pessimism)


class DNAEnhancerTask(AlphabetTask):
    r"""Design 200-bp enhancers: fine-tune a denoiser of open human chromatin towards activity in HepG2 cells.

    The denoiser was trained on DNase-accessible sites (Meuleman et al. 2020), the oracles on lentiMPRA measurements
    (Agarwal et al. 2025); each asset has a model card beside it in ``sepo_env/assets``. Published protocol: 640
    sequences, 128 ancestral steps.

    Rewards, in log2(RNA/DNA) unless said otherwise:

    - ``"activity"`` (training): mean of the ensemble trained on one half of the lentiMPRA elements;
    - ``"activity_lcb"`` (training): that mean less one standard deviation over the ensemble;
    - ``"held_out_activity"`` (judging only): an ensemble of another architecture, trained on the other half;
    - ``"accessibility"``: probability of an open site in HepG2, against other cell lines and shuffled DNA;
    - ``"gc"``: share of G and C.

    On the published artefacts (the DRAKES data folder, arXiv 2410.13643) the denoiser, the oracles and the measured
    sequences are theirs: ``"activity"`` and ``"held_out_activity"`` are HepG2 outputs of Enformers trained on different
    chromosomes, ``"accessibility"`` is the published classifier's, and there is no ``"activity_lcb"``, which needs an
    ensemble. The roles are the same.

    Args:
        schedule: name of a noise schedule, or one.
        num_steps: K.
        denoiser: another pretrained denoiser than the shipped one.
        trust_remote_code: run Python code that the folder of a masked language model as ``denoiser`` brings along; it
            can do whatever you can.
        artefacts: folder of the published artefacts to run on; None runs on the shipped assets. As a string, which
            ``gym.make`` keeps in the environment's spec, it leaves the spec writable as JSON; a Path does not.
        prompt: given bases, 200 letters with "?" where free; or several such prompts, one of which is drawn for each
            episode.
        flanks: what every sequence begins and ends with, such as the arms of a construct; instead of ``prompt``.
        motifs: binding sites at given positions, ``{96: "TGACTCA"}``, or as pairs; instead of ``prompt``, and together
            with ``flanks``. Rewards and metrics read the whole sequence.

    Raises:
        ArtefactsError: the folder lacks files; the message lists them.
        HeldOutRewardError: one of its files is both the training and the held-out oracle.
        InvalidPromptError: a prompt, flank or motif that does not fit, or sites that overlap.
        InvalidArgumentError: ``prompt`` together with ``flanks`` or ``motifs``.

    >>> task = DNAEnhancerTask(flanks=("ACG", ""), motifs={96: "TGACTCA"})
    >>> task.conditional, task.decode(task.prompt(torch.zeros(1, dtype=torch.int64)))[0][95:105]
    (True, '?TGACTCA??')
    """

    training_reward = "activity"
    held_out_reward = "held_out_activity"

    @checked
    def __init__(
        self,
        *,
        schedule: str | Schedule = "log-linear",
        num_steps: Size = 128,
        denoiser: DenoiserArgument | None = None,
        trust_remote_code: bool = False,
        artefacts: PathArgument | None = None,
        prompt: str | Sequence[str] | None = None,
        flanks: Sequence[str] | None = None,
        motifs: Motifs | None = None,
    ) -> None:
        self.artefacts = None if artefacts is None else Artefacts(artefacts, _LENGTH)
        self._likelihood_bands: dict[int, tuple[float, float]] = {}
        super().__init__(
            name="dna_enhancer",
            alphabet="ACGT",
            length=_LENGTH,
            process=DiffusionProcess(Absorbing(4), make_schedule(schedule)),
            num_steps=num_steps,
            denoiser=denoiser,
            trust_remote_code=trust_remote_code,
        )
        if self.artefacts is not None:
            _ = self.denoiser  # a file that is no denoiser is said where the folder was given
        if flanks is not None or motifs is not None:
            if prompt is not None:
                raise InvalidArgumentError(
                    "prompt gives all that is fixed; write flanks and motifs into it, or leave it out."
                )
            prompt = prompt_template(self.length, self.alphabet, flanks=flanks, motifs=motifs)
        if prompt is not None:
            self.start_from(prompt)

    def _load_default_denoiser(self) -> Denoiser:
        if self.artefacts is not None:
            return self.artefacts.load_denoiser()
        return load_denoiser(asset_path("dna_denoiser.safetensors"))

    def rewards(self) -> Mapping[str, Callable[[], Reward]]:
        if self.artefacts is not None:
            return {**self.artefacts.rewards(), "gc": gc_content}
        training = "dna_activity_training.safetensors"
        return {
            "activity": partial(_oracle_reward, training, "activity"),
            "activity_lcb": partial(_oracle_reward, training, "activity_lcb", _PESSIMISM),
            "held_out_activity": partial(_oracle_reward, "dna_activity_held_out.safetensors", "held_out_activity"),
            "accessibility": partial(_oracle_reward, "dna_accessibility.safetensors", "accessibility"),
            "gc": gc_content,
        }

    @property
    def fingerprints(self) -> dict[str, str]:
        """Those of the published artefacts; none on the shipped assets."""
        return {} if self.artefacts is None else dict(self.artefacts.fingerprints)

    @property
    def reference(self) -> dict[str, np.ndarray[Any, Any]]:
        """Tables of real sequences by name: 3-mer and motif counts, percentiles.

        ``assets/dna_enhancer_tables.md`` and ``assets/dna_motifs.md`` (``motifs_...``) list the shipped ones,
        `Artefacts.tables` those of published artefacts.
        """
        if self.artefacts is not None:
            return {name: table.copy() for name, table in self.artefacts.tables.items()}
        with np.load(asset_path("dna_enhancer_tables.npz")) as tables, np.load(asset_path("dna_motifs.npz")) as motifs:
            return {**tables, **{name: motifs[name] for name in motifs if name.startswith("motifs_")}}

    @checked
    def metrics(
        self,
        tokens: Tensor,
        *,
        prompt_mask: Tensor | None = None,
        num_likelihood_steps: Size = LIKELIHOOD_STEPS,
        likelihood_samples: WholeNumber | None = None,
        seed: Seed = 0,
    ) -> dict[str, float]:
        """The published metrics that the assets allow, and how far the two activity oracles have drifted apart.

        Args:
            tokens: finished sequences, int64 ``(B, 200)``.
            prompt_mask: which positions were given, bool ``(B, 200)``; None: none. The likelihood is that of the
                others; all else is of whole sequences, flanks and sites included.
            num_likelihood_steps: steps of the likelihood bound; each costs a forward pass a sequence.
            likelihood_samples: how many of the sequences, from the first, the likelihood is estimated on; None is all,
                0 leaves the likelihood out.
            seed: of the likelihood's noise.

        Returns:
            By name: ``held_out_median`` and its quantiles ``held_out_q05`` .. ``held_out_q95``, ``training_median``,
            ``oracle_gap`` (median of training less median of held-out), in log2(RNA/DNA); ``accessibility_rate``
            (share with probability above 0.5); ``kmer_correlation`` (Pearson's r of 3-mer counts with the most active
            0.1 % of real sequences); ``motif_correlation`` (Spearman's rho of the counts of `shipped_motifs`, binding
            sites at p = 0.001 on either strand, with the same sequences); ``log_likelihood_median`` (nats a sequence);
            ``likely_as_real`` (share within the central 90 % of the bounds of real sequences: far above them is
            collapse; left out where the bounds of real sequences are not at hand: with given positions and, on the
            shipped assets, with another denoiser or another number of steps); and what `Task.diversity` gives.
        """
        self.check_finished(tokens, prompt_mask)
        held_out, training = self.judge()(tokens), self.make_reward()(tokens)
        spread = metrics.quantiles(held_out).tolist()
        names = ("held_out_q05", "held_out_q25", "held_out_median", "held_out_q75", "held_out_q95")
        figures = dict(zip(names, spread, strict=True))
        figures["training_median"] = float(metrics.quantiles(training, (0.5,)))
        figures["oracle_gap"] = float(metrics.reward_gap(training, held_out))
        figures["accessibility_rate"] = float(metrics.accessibility_rate(self.judge("accessibility")(tokens)))
        reference = self.reference
        words, sites = (torch.from_numpy(reference[f"{kind}_top_0_1_percent"]) for kind in ("three_mers", "motifs"))
        figures["kmer_correlation"] = float(metrics.kmer_correlation(tokens, words, _KMER, self.num_tokens))
        figures["motif_correlation"] = float(motif_correlation(tokens, sites, shipped_motifs()))
        if likelihood_samples != 0:
            given = None if prompt_mask is None or not prompt_mask.any() else prompt_mask[:likelihood_samples]
            chosen = tokens[:likelihood_samples]
            bound = self.log_likelihood(chosen, num_steps=num_likelihood_steps, prompt_mask=given, seed=seed)
            figures["log_likelihood_median"] = float(metrics.quantiles(bound, (0.5,)))
            if given is None and (band := self._likelihood_band(num_likelihood_steps)) is not None:
                figures["likely_as_real"] = float(metrics.share_within(bound, *band))
        return {**figures, **self.diversity(tokens)}

    def _likelihood_band(self, num_steps: int) -> tuple[float, float] | None:
        """The central 90 % of the bounds of real sequences, or None where no table has it.

        On artefacts it is computed on first use, and remembered.
        """
        if self.artefacts is None:
            if self._given_denoiser is not None or num_steps != LIKELIHOOD_STEPS:
                return None
            low, high = self.reference["log_likelihood_percentiles_dhs_test"][[5, 95]].tolist()
            return low, high
        if num_steps not in self._likelihood_bands:
            real = self.artefacts.sequences(REAL_SEQUENCES).to(next(self.denoiser.parameters()).device)
            low, high = metrics.quantiles(self.log_likelihood(real, num_steps=num_steps), (0.05, 0.95)).tolist()
            self._likelihood_bands[num_steps] = low, high
        return self._likelihood_bands[num_steps]
