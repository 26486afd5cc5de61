"""The linear models to beat: 6-mer ridge for activity, 6-mer logistic regression for accessibility."""

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import solve
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata

from benchmarks.build_assets.data import ActivityData, DHSData

_K = 6
RIDGE_PENALTIES = (300.0, 1000.0, 3000.0, 10000.0)
LOGISTIC_PENALTY = 1e-3
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
    """Return the 6-mer ridge predictions ``(N,)`` on ``test``, fitted on ``train``.

    A fifth of the elements of ``train``, kept aside, chooses the penalty, so that the baseline is no straw man.
    """
    features = np.sqrt(sixmer_counts(train.tokens))
    aside = np.random.default_rng(0).permutation(train.element.max() + 1)[train.element] % 5 == 0
    scores = []
    for weights, intercept in _ridge_path(features[~aside], train.activity[~aside], RIDGE_PENALTIES):
        scores.append(np.corrcoef(features[aside] @ weights + intercept, train.activity[aside])[0, 1])
    best = RIDGE_PENALTIES[int(np.argmax(scores))]
    ((weights, intercept),) = _ridge_path(features, train.activity, (best,))
    return np.asarray(np.sqrt(sixmer_counts(test.tokens)) @ weights + intercept)


def _ridge_path(
    features: sparse.csr_matrix, target: npt.NDArray[np.float32], penalties: tuple[float, ...]
) -> list[tuple[npt.NDArray[np.float64], float]]:
    """Return weights and intercept for each penalty, by the normal equations of the centred features."""
    mean, level = np.asarray(features.mean(axis=0)).ravel(), float(target.mean())
    gram = (features.T @ features).toarray() - len(target) * np.outer(mean, mean)
    moment = features.T @ (target - level)
    fits = []
    for penalty in penalties:
        weights = solve(gram + penalty * np.eye(len(mean)), moment, assume_a="pos")
        fits.append((weights, level - float(mean @ weights)))
    return fits


def logistic(train: DHSData, test: DHSData, cell: int) -> npt.NDArray[np.float64]:
    """Return the log-odds ``(N,)`` on ``test`` that a site is accessible in ``cell`` rather than another line."""
    features = np.sqrt(sixmer_counts(train.tokens))
    transposed = features.T.tocsr()
    labels = (train.cell == cell).astype(np.float64)

    def objective(parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        weights, bias = parameters[:-1], parameters[-1]
        logits = features @ weights + bias
        residual = (expit(logits) - labels) / len(labels)
        value = float(np.mean(np.logaddexp(0.0, logits) - labels * logits)) + LOGISTIC_PENALTY * weights @ weights
        gradient = np.append(transposed @ residual + 2 * LOGISTIC_PENALTY * weights, residual.sum())
        return float(value), gradient

    start = np.zeros(4**_K + 1)
    fitted = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": LOGISTIC_STEPS}).x
    return np.asarray(np.sqrt(sixmer_counts(test.tokens)) @ fitted[:-1] + fitted[-1])


def auroc(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float:
    """Return the probability that a positive scores above a negative, ties counting half (Mann-Whitney)."""
    ranks = rankdata(scores)
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))
