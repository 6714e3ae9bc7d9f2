"""k-nearest-neighbour accuracy, the quickest probe: nothing is trained."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_ELEMENTS = 2**24
"""Elements of the largest temporary tensor (cosines, or votes by class): 64 MiB."""


def knn(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int = 10,
    temperature: float = 0.07,
) -> float:
    """Accuracy, 0 to 1, of the vote of the k nearest neighbours by cosine, weighted by exp(cosine / temperature).

    Wu, Xiong, Yu, Lin, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination" (CVPR 2018,
    arXiv 1805.01978). Raw pixels get the same vote; a majority by Euclidean distance would not do better on them.
    """
    bank, queries = F.normalize(train_features), F.normalize(test_features)
    train_labels, test_labels = train_labels.to(bank.device), test_labels.to(bank.device)
    one_hot = F.one_hot(train_labels).to(bank.dtype)
    rows = max(1, MAX_ELEMENTS // max(len(bank), k * one_hot.shape[1]))
    correct = 0
    for chunk, labels in zip(torch.split(queries, rows), torch.split(test_labels, rows), strict=True):
        nearest, index = (chunk @ bank.T).topk(k, dim=1)
        weights = torch.exp((nearest - 1) / temperature)  # at most 1, so that it cannot overflow
        votes = torch.einsum("nk,nkc->nc", weights, one_hot[index])
        correct += int((votes.argmax(1) == labels).sum())
    return correct / len(queries)
