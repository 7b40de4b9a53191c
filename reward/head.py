"""Fits the reward head on the frozen model before fine-tuning.

A random head sends random gradients through the model until the head is learned, which takes more than a few hundred
pairs. So the Bradley-Terry model is first fitted on the frozen model's features alone: the last token's hidden state
of each dialogue. Only the difference within a pair matters, so this is a logistic regression without intercept.
Fine-tuning then starts from there (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution": linear probing, then fine-tuning).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit

from eval.errors import InputError
from reward.scoring import RewardModel

log = logging.getLogger(__name__)

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Candidate ridge penalties, on features of unit standard deviation, per squared weight, against the mean loss."""
FOLDS = 5


def fit_head(reader: RewardModel, dialogues: Sequence[tuple[list, list]], seed: int) -> dict[str, Any]:
    """Fits the head and writes its weights (1, H) into `reader`.

    Args:
        dialogues: (chosen, rejected) whole dialogues of the training pairs.
        seed: draws the folds of the pairs; the penalty with the least loss over them is used.

    Returns:
        The penalty, its cross-validated loss and accuracy, and the number of folds.

    Raises:
        InputError: the model has no linear head named `score`.
    """
    if not isinstance(getattr(reader.model, "score", None), torch.nn.Linear):
        raise InputError(
            f"{type(reader.model).__name__} has no linear head named score to be fitted; use --head random"
        )
    chosen_PH = reader.features([chosen for chosen, _ in dialogues], progress=True)
    rejected_PH = reader.features([rejected for _, rejected in dialogues], progress=True)
    differences_PH = chosen_PH - rejected_PH
    scale_H = differences_PH.std(axis=0) + 1e-6
    x_PH = differences_PH / scale_H
    results = {penalty: _cross_validated(x_PH, penalty, seed) for penalty in PENALTIES}
    penalty = min(results, key=lambda p: results[p][0])
    weights_H = _fit(x_PH, penalty) / scale_H
    head = reader.model.score.weight
    with torch.no_grad():
        head.copy_(torch.tensor(weights_H[None], dtype=head.dtype))
    loss, accuracy = results[penalty]
    log.info("head fitted on %d pairs: cross-validated accuracy %.3f, penalty %g", len(x_PH), accuracy, penalty)
    return {"penalty": penalty, "cross_validated_loss": loss, "cross_validated_accuracy": accuracy, "folds": FOLDS}


def _cross_validated(x_PH: np.ndarray, penalty: float, seed: int) -> tuple[float, float]:
    """(mean loss, accuracy) on the pairs that each fit leaves out."""
    order = list(range(len(x_PH)))
    random.Random(seed).shuffle(order)
    folds = np.argsort(order) % FOLDS
    margins = np.concatenate([x_PH[folds == k] @ _fit(x_PH[folds != k], penalty) for k in range(FOLDS)])
    return float(np.logaddexp(0, -margins).mean()), float((margins > 0).mean())


def _fit(x_PH: np.ndarray, penalty: float) -> np.ndarray:
    """The weights (H,) that minimise mean log(1 + exp(-x w)) + penalty |w|^2."""

    def loss(w_H: np.ndarray) -> tuple[float, np.ndarray]:
        margins = x_PH @ w_H
        value = np.logaddexp(0, -margins).mean() + penalty * (w_H @ w_H)
        return value, 2 * penalty * w_H - x_PH.T @ expit(-margins) / len(x_PH)

    return minimize(loss, np.zeros(x_PH.shape[1]), jac=True, method="L-BFGS-B").x
