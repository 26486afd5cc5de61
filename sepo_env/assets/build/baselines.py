"""The linear models to beat: 6-mer ridge for activity, 6-mer logistic regression for accessibility."""

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.sparse.linalg import lsqr
from scipy.stats import rankdata

from sepo_env.assets.build.data import ActivityData, DHSData

_K = 6
RIDGE_PENALTY = 300.0
LOGISTIC_PENALTY = 1e-4
LOGISTIC_STEPS = 100


def sixmer_counts(tokens: npt.NDArray[np.int64]) -> sparse.csr_matrix:
    """Return the 6-mer counts ``(N, 4096)`` of ``tokens`` ``(N, L)``, both strands together."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, _K, axis=1)
    powers = 4 ** np.arange(_K - 1, -1, -1)
    forward, backward = windows @ powers, (3 - windows[..., ::-1]) @ powers
    columns = np.concatenate([forward, backward], axis=1)
    rows = np.repeat(np.arange(len(tokens)), columns.shape[1])
    ones = np.ones(columns.size, dtype=np.float64)
    return sparse.csr_matrix((ones, (rows, columns.ravel())), shape=(len(tokens), 4**_K))


def ridge(train: ActivityData, test: ActivityData) -> npt.NDArray[np.float64]:
    """Return the 6-mer ridge predictions ``(N,)`` on ``test``, fitted on ``train``."""
    features = np.sqrt(sixmer_counts(train.tokens))
    mean = train.activity.mean()
    weights = lsqr(features, train.activity - mean, damp=RIDGE_PENALTY**0.5)[0]
    return np.asarray(np.sqrt(sixmer_counts(test.tokens)) @ weights + mean)


def logistic(train: DHSData, test: DHSData, cell: int) -> npt.NDArray[np.float64]:
    """Return the log-odds ``(N,)`` on ``test`` that a site is accessible in ``cell`` rather than another line."""
    features = _torch_sparse(np.sqrt(sixmer_counts(train.tokens)))
    labels = torch.from_numpy(train.cell == cell).float()
    weights = torch.zeros(4**_K, 1, requires_grad=True)
    bias = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights, bias], max_iter=LOGISTIC_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        logits = (features @ weights).squeeze(-1) + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        value = value + LOGISTIC_PENALTY * weights.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    test_features = _torch_sparse(np.sqrt(sixmer_counts(test.tokens)))
    return ((test_features @ weights).squeeze(-1) + bias).detach().double().numpy()


def auroc(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float:
    """Return the probability that a positive scores above a negative, ties counting half (Mann-Whitney)."""
    ranks = rankdata(scores)
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def _torch_sparse(matrix: sparse.csr_matrix) -> torch.Tensor:
    return torch.sparse_csr_tensor(
        torch.from_numpy(matrix.indptr.astype(np.int64)),
        torch.from_numpy(matrix.indices.astype(np.int64)),
        torch.from_numpy(matrix.data.astype(np.float32)),
        size=matrix.shape,
        check_invariants=False,
    )
