"""Answers to prompts, as a reward model likes them: any published denoiser, any sequence classifier."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sepo_env.arguments import PathArgument, Seed, Size, WholeNumber, checked
from sepo_env.assets import asset_path
from sepo_env.denoisers import Denoiser, DenoiserArgument, MaskedLMDenoiser, SEDDDenoiser, as_denoiser, load_denoiser
from sepo_env.diffusion import DiffusionProcess, LogLinear, Schedule, make_graph, make_schedule
from sepo_env.errors import HeldOutRewardError, InvalidArgumentError, InvalidPromptError
from sepo_env.rewards import Reward, SentimentReward, SequenceClassifierReward, VaderReward, load_sentiment
from sepo_env.rewards.sequence_classifier import check_classifier
from sepo_env.tasks import metrics
from sepo_env.tasks.codec import Codec, WordPieceCodec
from sepo_env.tasks.hf_codec import load_codec
from sepo_env.tasks.prompt_file import load_prompt_set
from sepo_env.tasks.text_sentiment import LENGTH as SHIPPED_LENGTH
from sepo_env.tasks.tokenizer import TokenizerTask

DEFAULT_LENGTH = 128
_MOST_STEPS = 128
_MASK = "<mask>"


class TextRLHFTask(TokenizerTask):
    r"""Fine-tune a language model on prompts towards a reward model (the setting of arXiv:2502.01384, section 5).

    A prompt is a prefix that stays, the denoiser writes the rest of the L tokens, and the reward reads the decoded
    whole: prompt and response, as reward models of dialogues were trained to. Special tokens are left out of the text.
    Where the denoiser writes its tokenizer's end of text (GPT-2's, for MDLM and SEDD), a finished text ends at the
    first one: what follows belongs to another document, and neither rewards nor readers see it.

    With nothing given: the denoiser, the codec and the sentiment classifier of `TextSentimentTask`, eight beginnings
    of clauses as prompts, and VADER as the judge. With a denoiser of your own the tokenizer is the masked language
    model's, or that of ``tokenizer``.

    Rewards:

    - ``"reward_model"`` (training, where ``reward_model`` is given): the logit of a classifier with one label, the
      log-odds of ``label`` where there are several;
    - ``"held_out_model"`` (judging only, where it is given): the same of another classifier;
    - ``"vader"`` (judging only): VADER's compound score in [-1, 1]; needs the extra ``text``. It judges unless
      ``held_out_model`` is given: independent of the reward model, but a judge of cheerfulness only;
    - ``"sentiment"`` (training, with the shipped denoiser): see `TextSentimentTask`.

    Args:
        denoiser: a path or hub id that `sepo_env.denoisers.load_denoiser` reads (MDLM, SEDD, a masked language model,
            our own files), or a live denoiser; None is the shipped one.
        trust_remote_code: run Python code that the folder of the denoiser brings along (LLaDA's and Dream's kind); it
            can do whatever you can. The folders below are read without.
        tokenizer: folder or hub id of a Hugging Face tokenizer with the denoiser's ids (GPT-2's for MDLM and SEDD);
            not for the shipped denoiser, nor for masked language models, which bring their own.
        prompts: JSONL file, ``{"prompt": "..."}`` a line; see `sepo_env.tasks.prompt_file`. None: the shipped ones for
            the shipped denoiser, otherwise no prompts.
        prompt: one or several prompts themselves, instead of a file.
        reward_model: folder or hub id of any ``AutoModelForSequenceClassification`` with its tokenizer, such as what
            ``python -m agents.reward_model`` writes; needed with a denoiser of your own, unless the agent gets its
            reward elsewhere.
        label: the label of the reward model, where it has several.
        held_out_model: folder or hub id of another one that judges and never trains.
        held_out_label: its label.
        length: L; None is the denoiser's own, 24 for the shipped one, or else 128 or what the model has room for.
        num_steps: K; None is L, at most 128.
        end_of_text: whether a finished text ends at the first end of text; False: these tokens are left out like other
            special ones, and what follows is read on.
        schedule: name of a noise schedule, or one; None is the denoiser's own, log-linear if it has none. A denoiser
            that reads the noise is told that of the schedule chosen, whichever it was trained on.

    Raises:
        InvalidArgumentError: arguments that exclude each other, a tokenizer that does not fit, or a length that the
            model has no room for.
        InvalidPromptError: a prompt that does not fit, with the number of its line.
        HeldOutRewardError: one folder is to train and to judge.
        CheckpointError: a folder that holds something else.
        MissingExtraError: transformers (extra ``hf``) is needed and not installed.
    """

    @checked
    def __init__(
        self,
        *,
        denoiser: DenoiserArgument | None = None,
        trust_remote_code: bool = False,
        tokenizer: PathArgument | None = None,
        prompts: PathArgument | None = None,
        prompt: str | Sequence[str] | None = None,
        reward_model: PathArgument | None = None,
        label: str | int | None = None,
        held_out_model: PathArgument | None = None,
        held_out_label: str | int | None = None,
        length: Size | None = None,
        num_steps: Size | None = None,
        end_of_text: bool = True,
        schedule: str | Schedule | None = None,
    ) -> None:
        if prompts is not None and prompt is not None:
            raise InvalidArgumentError("both prompts (a file) and prompt (texts) are given; give one of them.")
        if reward_model is not None and held_out_model is not None and _same(reward_model, held_out_model):
            raise HeldOutRewardError(
                f"{reward_model} is to train and to judge; give another folder as held_out_model, or leave it out."
            )
        for path, name in ((reward_model, label), (held_out_model, held_out_label)):
            if path is not None:
                check_classifier(path, name)
        self._reward_model, self._label = reward_model, label
        self._held_out_model, self._held_out_label = held_out_model, held_out_label
        self._ships = denoiser is None
        model = _load(denoiser, trust_remote_code)
        core: Any = model.core
        codec = _find_codec(core, tokenizer, shipped=self._ships)
        length = _find_length(core, length, shipped=self._ships)
        self._denoiser = model  # so that it is not read twice
        super().__init__(
            name="text_rlhf",
            codec=codec,
            length=length,
            process=_process(core, schedule),
            num_steps=min(length, _MOST_STEPS) if num_steps is None else num_steps,
            denoiser=denoiser,
            trust_remote_code=trust_remote_code,
        )
        self._denoiser = self._check_denoiser(model).eval()
        if not isinstance(codec, WordPieceCodec):
            # Prompts are anybody's texts: an underscore in them is an underscore.
            self.mask_letter = core.codec.tokenizer.mask_token or _MASK if _is_masked_lm(core) else _MASK
        if held_out_model is not None:
            self.held_out_reward = "held_out_model"
        if reward_model is not None:
            self.training_reward = "reward_model"
        self._end_token = codec.end_token if end_of_text else None
        if prompt is not None:
            self.start_from(prompt)
        elif prompts is not None or self._ships:
            self.prompt_set = load_prompt_set(self, prompts or asset_path("text_rlhf_prompts.jsonl"))
            self.conditional = True
        if self.prompt_set is not None and bool(self._ended(self.prompt_set.tokens).any()):
            raise InvalidPromptError(
                "a prompt holds the end of text, so that every response would be cut off; take it out, or "
                "give end_of_text=False."
            )

    training_reward = "sentiment"
    _end_token: int | None = None
    held_out_reward = "vader"

    def _load_default_denoiser(self) -> Denoiser:
        return _load(None, False)

    def decode(self, tokens: Tensor) -> list[str]:
        """Tokens int64 ``(B, L)`` -> texts; a finished one ends at its first end of text, if that ends texts here."""
        self._check_tokens(tokens)
        if self._end_token is not None:
            finished = (tokens < self.num_tokens).all(-1, keepdim=True)
            tokens = tokens.masked_fill(self._ended(tokens) & finished, self._end_token)  # left out as a special token
        return super().decode(tokens)

    def _ended(self, tokens: Tensor) -> Tensor:
        """Where a text has ended, bool ``(B, L)``; one that begins with the end of the text before it has not yet."""
        if self._end_token is None:
            return torch.zeros_like(tokens, dtype=torch.bool)
        is_end = tokens == self._end_token
        begun = (~is_end).cumsum(-1) > 0
        return (is_end & begun).cumsum(-1) > 0

    def rewards(self) -> Mapping[str, Callable[[], Reward]]:
        found: dict[str, Callable[[], Reward]] = {"vader": lambda: VaderReward(self.decode)}
        if self._ships:
            found["sentiment"] = lambda: SentimentReward(load_sentiment(asset_path("text_sentiment.safetensors")))
        if (path := self._reward_model) is not None:
            found["reward_model"] = lambda: SequenceClassifierReward(
                path, decode=self.decode, label=self._label, name="reward_model", role="training"
            )
        if (judge := self._held_out_model) is not None:
            found["held_out_model"] = lambda: SequenceClassifierReward(
                judge, decode=self.decode, label=self._held_out_label, name="held_out_model", role="held_out"
            )
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """Whether a text ends at its end of text, which decides over what rewards read."""
        return {"end_token": self._end_token}

    def make_reward(self, spec: Any = None, **options: Any) -> Reward:
        if spec is None and self.training_reward not in self.rewards():
            raise InvalidArgumentError(
                "a denoiser of your own needs a reward of your own; give reward_model=, the folder of a sequence "
                "classifier (python -m agents.reward_model writes one), or a reward to the agent or environment."
            )
        return super().make_reward(spec, **options)

    @checked
    def metrics(
        self,
        tokens: Tensor,
        *,
        prompt_mask: Tensor | None = None,
        likelihood_samples: WholeNumber = 0,
        num_likelihood_steps: Size = 32,
        seed: Seed = 0,
    ) -> dict[str, float]:
        """What judge and reward say of the texts, how different they are, and how natural to the pretrained denoiser.

        Args:
            tokens: finished texts, int64 ``(B, L)``.
            prompt_mask: which positions were given, bool ``(B, L)``; None: none. They are no part of the likelihood and
                of distinct-n: with a handful of prompts, these would say how often each was asked.
            likelihood_samples: how many of the texts, from the first, the likelihood is estimated on; 0: none.
            num_likelihood_steps: steps of the likelihood bound; each costs a forward pass a text.
            seed: of the likelihood's noise.

        Returns:
            By name: ``held_out_mean``, ``held_out_median`` and its quantiles ``held_out_q05`` .. ``held_out_q95``;
            ``training_median``, where the task has a training reward; ``log_likelihood_median`` (nats a
            response, given its prompt); ``distinct_1`` .. ``distinct_3`` (of the responses); and what `Task.diversity`
            gives, of whole texts. Rewards are in units of their own.
        """
        self.check_finished(tokens, prompt_mask)
        held_out = self.judge()(tokens)
        figures = {"held_out_mean": float(held_out.mean())}
        names = ("held_out_q05", "held_out_q25", "held_out_median", "held_out_q75", "held_out_q95")
        figures |= dict(zip(names, metrics.quantiles(held_out).tolist(), strict=True))
        if self.training_reward in self.rewards():
            figures["training_median"] = float(metrics.quantiles(self.make_reward()(tokens), (0.5,)))
        if likelihood_samples > 0:
            bound = self.log_likelihood(
                tokens[:likelihood_samples],
                num_steps=num_likelihood_steps,
                prompt_mask=None if prompt_mask is None else prompt_mask[:likelihood_samples],
                seed=seed,
            )
            figures["log_likelihood_median"] = float(metrics.quantiles(bound, (0.5,)))
        return {**figures, **self.distinct(tokens, prompt_mask), **self.diversity(tokens)}


def _same(one: PathArgument, other: PathArgument) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _is_masked_lm(denoiser: Denoiser) -> bool:
    return isinstance(denoiser, MaskedLMDenoiser)


def _load(denoiser: DenoiserArgument | None, trust_remote_code: bool) -> Any:
    if isinstance(denoiser, nn.Module):
        return as_denoiser(denoiser)
    path = asset_path("text_denoiser.safetensors") if denoiser is None else denoiser
    return load_denoiser(path, trust_remote_code=trust_remote_code)


def _find_codec(denoiser: Any, tokenizer: PathArgument | None, *, shipped: bool) -> Codec:
    """The codec of a denoiser: the shipped one's, a masked language model's own, or that of a tokenizer's folder."""
    if shipped or _is_masked_lm(denoiser):
        if tokenizer is not None:
            raise InvalidArgumentError(
                "the denoiser brings its own tokenizer; leave tokenizer out, or give the denoiser it belongs to."
            )
        return WordPieceCodec.load(asset_path("text_codec.json")) if shipped else denoiser.codec
    if tokenizer is None:
        raise InvalidArgumentError(
            f"a {type(denoiser).__name__} brings no tokenizer; give tokenizer=, the folder of a Hugging Face tokenizer "
            f"with its {denoiser.num_tokens} ids (GPT-2's for the published MDLM and SEDD)."
        )
    return load_codec(tokenizer, denoiser.num_tokens)


def _find_length(denoiser: Any, length: int | None, *, shipped: bool) -> int:
    room = denoiser.max_length if _is_masked_lm(denoiser) else None
    if length is None:
        fallback = SHIPPED_LENGTH if shipped else min(DEFAULT_LENGTH, room or DEFAULT_LENGTH)
        return denoiser.length or fallback
    if room is not None and length > room:
        raise InvalidArgumentError(f"length is {length}, but must be from 1 to {room}: the model has room for no more.")
    return length


def _process(denoiser: Any, schedule: str | Schedule | None) -> DiffusionProcess:
    """The process that the denoiser was trained for: its graph, and its schedule unless another one is given."""
    graph = denoiser.config.graph if isinstance(denoiser, SEDDDenoiser) else "absorbing"
    own = getattr(getattr(denoiser, "config", None), "schedule", None) or LogLinear()
    return DiffusionProcess(
        make_graph(graph, denoiser.num_tokens), own if schedule is None else make_schedule(schedule)
    )
