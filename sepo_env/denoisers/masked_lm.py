"""Masked language models of Hugging Face Transformers as absorbing-diffusion denoisers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sepo_env.arguments import PathArgument, WholeNumber, checked
from sepo_env.denoisers.base import Denoiser
from sepo_env.denoisers.masked_lm_codec import MaskedLMCodec
from sepo_env.errors import InvalidArgumentError, InvalidTokensError
from sepo_env.loading.hugging_face import is_masked_lm_type, load_folder, read_config, save_folder


class MaskedLMDenoiser(Denoiser):
    r"""A masked language model: its prediction at a mask is the x0-posterior of an absorbing process.

    .. math:: \log p_\theta(x_0^i = v | x_t) = \log \mathrm{softmax}_{v \in C}(\ell_i)_v, \quad
              -\infty \text{ for } v \notin C

    with the model's logits :math:`\ell` and the content tokens C, all but special ones (`MaskedLMCodec`). That a mask
    stays a mask is the schedule's decision, so MASK has no probability either. The posterior of an absorbing process
    does not depend on time given the tokens (arXiv 2406.03736), which is why a model that knows none will do.

    A reverse path starts from masks only; a model that was trained with a fixed share of masks (15 % for BERT) has seen
    few of its states.

    The frame that the tokenizer puts around a text (CLS and SEP, BOS and EOS) is added inside, and its positions are
    not returned: L counts content only. PAD in a prompt is not attended to. Dropout is off at all times: old and new
    policies are compared without noise. A token of probability 0 has the log-probability ``-inf``, which the kernels of
    `sepo_env.diffusion` and the losses read as "never"; SEPO's form ``snis``, drawing from all V tokens, refuses.

    Args:
        model: token ids ``(B, n)`` -> an output with ``logits`` ``(B, n, ids)``.
        tokenizer: its own.
        mask_token_id: the model's id of MASK; None is the tokenizer's.
        allow: special tokens that are content all the same.
        forbid: further tokens that are none.
        framed: whether the frame is added.
        shifted: whether the logits at a position predict the token at the next one, as in a model that began as an
            autoregressive one; None: where the model is a Dream (arXiv 2508.15487). What stands in front is read at its
            own position, as the published samplers do; that model expects a given token there, its BOS.

    Shapes:
        tokens ``(B, L)`` int64 in 0 .. V, time ``(B,)`` -> ``(B, L, V)`` float32.

    Attributes:
        codec: text to tokens and back; its ids are those of this denoiser.
        max_length: the largest L that the model's table of positions allows; None where it has none.

    Raises:
        InvalidArgumentError: a tokenizer that does not fit, or a model whose output is not finite on masks alone.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        mask_token_id: WholeNumber | None = None,
        allow: Sequence[str] = (),
        forbid: Sequence[str] = (),
        framed: bool = True,
        shifted: bool | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self._is_dream = str(getattr(getattr(model, "config", None), "model_type", "")).lower() == "dream"
        self.shifted = self._is_dream if shifted is None else shifted
        if mask_token_id is None and tokenizer.mask_token_id is None:
            mask_token_id = getattr(getattr(model, "config", None), "mask_token_id", None)
        num_ids = self._count_ids()
        self.codec = MaskedLMCodec(tokenizer, num_ids, mask_id=mask_token_id, allow=allow, forbid=forbid)
        self.num_tokens = self.codec.num_tokens
        self.length = None
        self.parameterisation = "posterior"
        self.time_conditioned = False
        prefix, suffix = (self.codec.prefix, self.codec.suffix) if framed else ([], [])
        self._frame = len(prefix), len(suffix)
        positions = _max_positions(model)
        self.max_length = None if positions is None else positions - sum(self._frame)
        self.register_buffer("_ids", self.codec.model_ids(), persistent=False)
        self.register_buffer("_prefix", torch.tensor(prefix, dtype=torch.int64), persistent=False)
        self.register_buffer("_suffix", torch.tensor(suffix, dtype=torch.int64), persistent=False)
        self.register_buffer("_forbidden", ~self.codec.content, persistent=False)
        self._ids: Tensor
        self._prefix: Tensor
        self._suffix: Tensor
        self._forbidden: Tensor
        pad = tokenizer.pad_token_id
        self._pad_id = pad if pad in self.codec.closed and pad != self.codec.mask_id else None
        self._check_masks()

    def _check_masks(self) -> None:
        device = next(self.model.parameters()).device
        tokens = torch.full((1, min(2, self.max_length or 2)), self.num_tokens, device=device)
        with torch.no_grad():
            logits = self._logits(tokens)
        if not bool(torch.isfinite(logits).all()):
            raise InvalidArgumentError(
                f"{type(self.model).__name__} has no finite output for a sequence of masks alone, where every reverse "
                "path starts; ESM divides by the share of visible tokens: keep framed=True."
            )

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module; the model itself stays in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    def _count_ids(self) -> int:
        """The ids that a model scores: one forward pass on one id tells what configurations spell in many ways."""
        # Not that of padding, which alone makes no text.
        one = int(getattr(getattr(self.model, "config", None), "pad_token_id", None) == 0)
        ids = torch.full((1, 1), one, device=next(self.model.parameters()).device)
        try:
            with torch.no_grad():
                return int(self._run(ids, torch.ones_like(ids)).shape[-1])
        except Exception as error:  # whatever a model lacks, it says so in its own way
            raise InvalidArgumentError(
                f"{type(self.model).__name__} gives no logits for token ids and an attention mask alone "
                f"({type(error).__name__}: {error}); give a masked language model that does."
            ) from error

    def _run(self, ids: Tensor, attended: Tensor) -> Tensor:
        """The model's logits, ``(B, n, ids)``, each at the position that it is about."""
        # A Dream hands its mask to the attention as it is.
        attention = attended.bool()[:, None, None] if self._is_dream else attended
        logits: Tensor = self.model(input_ids=ids, attention_mask=attention).logits
        return torch.cat([logits[:, :1], logits[:, :-1]], dim=1) if self.shifted else logits

    def _logits(self, tokens: Tensor) -> Tensor:
        batch = len(tokens)
        ids = torch.cat([self._prefix.expand(batch, -1), self._ids[tokens], self._suffix.expand(batch, -1)], dim=1)
        attended = torch.ones_like(ids) if self._pad_id is None else (ids != self._pad_id).long()
        try:
            return self._run(ids, attended)[:, self._frame[0] : ids.shape[1] - self._frame[1]]
        except IndexError as error:  # a table of positions that `_max_positions` does not know
            raise InvalidTokensError(
                f"{type(self.model).__name__} does not read {ids.shape[1]} tokens, frame included ({error}); give "
                "shorter sequences."
            ) from error

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Return ``(B, L, V)`` log-posteriors of ``tokens`` ``(B, L)``; ``time`` is not read.

        Raises:
            InvalidTokensError: more positions than the model has.
        """
        if tokens.ndim != 2 or (self.max_length is not None and tokens.shape[1] > self.max_length):
            raise InvalidTokensError(
                f"the model reads tokens (B, L) with L up to {self.max_length}, but got {tuple(tokens.shape)}; give "
                "shorter sequences."
            )
        logits = self.codec.without_mask(self._logits(tokens)).float()
        return logits.masked_fill(self._forbidden, -torch.inf).log_softmax(dim=-1)

    @checked
    def save_pretrained(self, folder: PathArgument) -> None:
        """Write model and tokenizer into a new folder, whole or not at all; `load_masked_lm` reads it.

        Raises:
            CheckpointError: the folder holds something already.
        """
        save_folder(folder, self.model, self.codec.tokenizer)


@checked
def is_masked_lm_folder(path: PathArgument) -> bool:
    """Whether a folder's config.json says that it holds a masked language model of Transformers.

    MDLM's folders say so as well and have a loader of their own. BERT's pretraining, BART and XLM say it by the type of
    the model alone, which Transformers knows if it is installed.
    """
    config = read_config(path)
    if config is None or config.get("model_type") == "mdlm":
        return False
    remote = config.get("auto_map")
    architectures = config.get("architectures")
    names = [*(architectures if isinstance(architectures, list) else ()), *(remote if isinstance(remote, dict) else ())]
    # LLaDA's kind has another class name, but says what it masks with and brings its own code.
    masks = isinstance(remote, dict) and isinstance(config.get("mask_token_id"), int)
    return masks or any(str(name).endswith("ForMaskedLM") for name in names) or is_masked_lm_type(config)


@checked
def load_masked_lm(
    path: PathArgument,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    mask_token_id: WholeNumber | None = None,
    allow: Sequence[str] = (),
    forbid: Sequence[str] = (),
    framed: bool = True,
    shifted: bool | None = None,
) -> MaskedLMDenoiser:
    """Read a masked language model (BERT, ModernBERT, RoBERTa, ESM-2, nucleotide models ...) with its tokenizer.

    Args:
        path: a folder that ``save_pretrained`` wrote, or that was downloaded from the hub; or a hub id
            ``"hub:owner/name"``.
        trust_remote_code: run Python code that the folder brings along (LLaDA's kind); it can do whatever you can.
        dtype: of the weights; log-probabilities are float32 in any case.
        mask_token_id: as for `MaskedLMDenoiser`, like the arguments that follow.
        allow: special tokens that are content all the same.
        forbid: further tokens that are none.
        framed: whether the tokenizer's frame is added inside.
        shifted: whether the logits at a position predict the next one; None: where the model is a Dream.

    Raises:
        CheckpointError: no such folder, one that needs code of its own, or one that holds another kind of model.
        InvalidArgumentError: a tokenizer that does not fit the model, or an argument of another type.
        MissingExtraError: transformers is not installed.
    """
    model, tokenizer = load_folder(path, "AutoModelForMaskedLM", trust_remote_code=trust_remote_code, dtype=dtype)
    return MaskedLMDenoiser(
        model, tokenizer, mask_token_id=mask_token_id, allow=allow, forbid=forbid, framed=framed, shifted=shifted
    ).eval()


_TABLES = ("position_embeddings", "embed_positions", "wpe")


def _max_positions(model: nn.Module) -> int | None:
    """Rows of the model's table of positions that a sequence can use; None where positions are computed."""
    for name, module in model.named_modules():
        table = getattr(module, "weight", None)
        if name.rpartition(".")[2] not in _TABLES or not isinstance(table, Tensor) or table.ndim != 2:
            continue
        # RoBERTa's kind counts positions from the one after that of padding.
        padding = getattr(module, "padding_idx", None)
        rows = len(table) - (0 if padding is None else padding + 1)
        # Others leave rows of the table alone, and have fewer positions than rows.
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        return min(rows, limit) if isinstance(limit, int) and limit > 0 else rows
    return None
