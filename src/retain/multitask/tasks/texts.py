"""Metrics of texts that were written, against those that were wanted: ROUGE by rouge-score, chrF by sacrebleu."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from retain.multitask.tasks.metrics import MissingExtra


def check_tools() -> tuple[Any, Any]:
    """The modules that measure. Raises MissingExtra."""
    try:
        from rouge_score import rouge_scorer
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise MissingExtra("the metrics of generation need rouge-score and sacrebleu: pip install 'retain[multitask]'") from None
    return rouge_scorer, CHRF


def text_scores(written: Sequence[str], wanted: Sequence[str]) -> dict[str, float | None]:
    """From 0 to 1. ``rouge1``, ``rougeL``: mean F1 of single words and of the longest common subsequence of words (Lin 2004; rouge-score
    without stemming, whose words are Latin letters and digits, in lower case). ``chrf``: F2 of n-grams of up to 6 characters over all
    texts (Popović 2015; sacrebleu's chrF2, divided by 100), for any script. ``exact``: share of texts that are equal but for spaces."""
    scorer, chrf = check_tools()
    rouge = scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    found = [rouge.score(target, text) for target, text in zip(wanted, written, strict=True)]
    same = [text.split() == target.split() for target, text in zip(wanted, written, strict=True)]
    return {
        "rougeL": sum(float(score["rougeL"].fmeasure) for score in found) / len(found),
        "rouge1": sum(float(score["rouge1"].fmeasure) for score in found) / len(found),
        "chrf": float(chrf().corpus_score(list(written), [list(wanted)]).score) / 100.0,
        "exact": sum(same) / len(same),
    }
