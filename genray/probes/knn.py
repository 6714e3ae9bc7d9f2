"""The vote of the nearest neighbours, the quickest word on a representation: nothing is trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITIES = 2**24
"""Cosines, or votes for every class, that are held at once: 64 MiB."""


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 10,
    temperature: float = 0.07,
) -> float:
    """Accuracy, 0 to 1, of the k nearest neighbours' vote by cosine, each weighted by exp(cosine / temperature).

    Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018,
    arXiv 1805.01978). Raw pixels are judged by the same vote; a plain majority by Euclidean distance is no kinder to
    them.
    """
    bank, judged = F.normalize(train_features), F.normalize(test_features)
    train_labels, test_labels = train_labels.to(bank.device), test_labels.to(bank.device)
    votes_for = F.one_hot(train_labels).to(bank.dtype)
    rows = max(1, SIMILARITIES // max(len(bank), k * votes_for.shape[1]))
    correct = 0
    for chunk, labels in zip(torch.split(judged, rows), torch.split(test_labels, rows), strict=True):
        nearest, index = (chunk @ bank.T).topk(k, dim=1)
        weights = torch.exp((nearest - 1) / temperature)  # at most 1: cannot overflow
        votes = torch.einsum("nk,nkc->nc", weights, votes_for[index])
        correct += int((votes.argmax(1) == labels).sum())
    return correct / len(judged)
