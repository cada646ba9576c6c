"""Whether more of a metric is better, by the words of its name."""

from __future__ import annotations

import re
from typing import Literal

MORE = {
    "acc", "accuracy", "ap", "auc", "aupr", "auprc", "auroc", "bleu", "chrf",
    "cider", "correlation", "dice", "elbo", "explained", "f1", "fbeta", "hits", "iou", "jaccard",
    "kappa", "map", "matthews", "mcc", "meteor", "miou", "mrr", "ndcg", "pearson",
    "pq", "precision", "psnr", "r2", "recall", "return", "returns", "reward", "rewards", "rouge",
    "sensitivity", "spearman", "specificity", "ssim", "top1", "top3", "top5", "wins",
}  # fmt: skip
LESS = {
    "bce", "bpc", "brier", "ce", "cer", "cost", "crps", "deviation", "distance", "divergence",
    "ece", "entropy", "err", "error", "errors", "fid", "hamming", "hinge", "inaccuracy", "kl",
    "logloss", "loss", "losses", "lpips", "mae", "mape", "mase", "mse", "msle", "nll",
    "perplexity", "pinball", "ppl", "rmse", "rmsle", "smape", "ter", "wer",
}  # fmt: skip


def direction_of(metric: str) -> Literal["min", "max"] | None:
    """Return whether a metric is to be small or large, None if its name does not tell.

    The last known word counts, as in `val_auc_loss`; a name with `neg` or `negative` does not tell.

    Example:
        >>> direction_of("val_mean_dice"), direction_of("val/loss"), direction_of("val_score")
        ('max', 'min', None)
    """
    words = re.findall(r"[a-z]+\d?", metric.lower())
    if "neg" in words or "negative" in words:
        return None
    for word in reversed(words):
        if word in MORE:
            return "max"
        if word in LESS:
            return "min"
    return None
