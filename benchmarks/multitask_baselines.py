"""What scikit-learn alone makes of the records of :mod:`benchmarks.multitask`. Each function gives test metrics by the arm's name."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, IsolationForest
from sklearn.feature_extraction import DictVectorizer
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from retain.multitask.tasks.metrics import best_threshold, entity_scores, multi_label, spans_of

Records = list[dict[str, Any]]
Found = dict[str, dict[str, Any]]


def matrix(part: Records, numbers: Sequence[str], categories: Sequence[str]) -> Any:
    """The columns as an array of objects, numbers as floats, numbers first."""
    return np.array([[*(float(row[name]) for name in numbers), *(str(row[name]) for name in categories)] for row in part], dtype=object)


def encoded(numbers: Sequence[str], categories: Sequence[str]) -> Any:
    """Standardised numbers, a place for each category."""
    places = range(len(numbers)), range(len(numbers), len(numbers) + len(categories))
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_column_transformer((StandardScaler(), list(places[0])), (one_hot, list(places[1])))


def classes(parts: Sequence[Records], numbers: Sequence[str], categories: Sequence[str], seed: int, positive: str = "") -> Found:
    """Logistic regression and histogram gradient boosting, with their defaults. With ``positive`` also AUROC, average precision, and F1 at
    the threshold that is best on the validation records."""
    inputs = [matrix(part, numbers, categories) for part in parts]
    truths = [np.array([row["label"] for row in part]) for part in parts]
    made = {
        "logistic regression": LogisticRegression(max_iter=2000),
        "gradient boosting": HistGradientBoostingClassifier(random_state=seed),
    }
    found: Found = {}
    for name, model in made.items():
        started = time.process_time()
        pipe = make_pipeline(encoded(numbers, categories), model).fit(inputs[0], truths[0])
        found[name] = {"accuracy": float(pipe.score(inputs[2], truths[2])), "cpu_seconds": time.process_time() - started}
        if positive:
            place = list(pipe.classes_).index(positive)
            chosen, scores = (pipe.predict_proba(part)[:, place] for part in inputs[1:])
            wanted = truths[2] == positive
            threshold = best_threshold(chosen, truths[1] == positive)
            found[name] |= {**ranked(scores, wanted), "f1": float(f1_score(wanted, scores >= threshold))}
    return found


def ranked(scores: Any, wanted: Any) -> dict[str, float]:
    """AUROC and average precision."""
    return {"auroc": float(roc_auc_score(wanted, scores)), "average_precision": float(average_precision_score(wanted, scores))}


def forest(parts: Sequence[Records], numbers: Sequence[str], categories: Sequence[str], normal: str, seed: int) -> dict[str, Any]:
    """IsolationForest with its defaults on the normal training records."""
    learned = [row for row in parts[0] if row["label"] == normal]
    pipe = make_pipeline(encoded(numbers, categories), IsolationForest(random_state=seed)).fit(matrix(learned, numbers, categories))
    scores = -pipe.score_samples(matrix(parts[2], numbers, categories))
    return ranked(scores, np.array([row["label"] != normal for row in parts[2]]))


def labels(parts: Sequence[Records], columns: Sequence[str], names: Sequence[str], seed: int) -> Found:
    """One-vs-rest logistic regression and gradient boosting, with the thresholds that are best on the validation records."""
    inputs = [matrix(part, columns, []).astype(float) for part in parts]
    truths = [np.array([[row[name] for name in names] for row in part], dtype=bool) for part in parts]
    made = {
        "logistic regression": make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression(max_iter=2000))),
        "gradient boosting": OneVsRestClassifier(HistGradientBoostingClassifier(random_state=seed)),
    }
    found: Found = {}
    for name, model in made.items():
        started = time.process_time()
        model.fit(inputs[0], truths[0])
        chosen, scores = (model.predict_proba(part) for part in inputs[1:])
        limits = np.array([best_threshold(chosen[:, place], truths[1][:, place]) for place in range(len(names))])
        found[name] = {**multi_label(scores, truths[2], scores >= limits), "cpu_seconds": time.process_time() - started}
    return found


def words(parts: Sequence[Records]) -> dict[str, Any]:
    """Logistic regression on TF-IDF of words and pairs of words."""
    started = time.process_time()
    bag = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(max_iter=2000, C=10.0))
    bag.fit([row["text"] for row in parts[0]], [row["label"] for row in parts[0]])
    wanted, given = [row["label"] for row in parts[2]], bag.predict([row["text"] for row in parts[2]])
    return {
        "accuracy": float(np.mean(np.array(wanted) == given)),
        "macro_f1": float(f1_score(wanted, given, average="macro")),
        "cpu_seconds": time.process_time() - started,
    }


def shape(word: str) -> str:
    """Capital letters, small ones, digits and the rest, each run once: "Oslo-2" is "Xx-d"."""
    marks = ("X" if c.isupper() else "x" if c.islower() else "d" if c.isdigit() else c for c in word)
    found = ""
    for mark in marks:
        found += "" if found.endswith(mark) else mark
    return found


def traits(sentence: Sequence[str], place: int) -> dict[str, Any]:
    """A word, its shape, beginnings and ends, and its neighbours."""
    found: dict[str, Any] = {"bias": 1}
    for step in (-2, -1, 0, 1, 2):
        word = sentence[place + step] if 0 <= place + step < len(sentence) else "<edge>"
        found |= {f"{step} word": word.lower(), f"{step} shape": shape(word)}
        if abs(step) < 2:
            found |= {f"{step} begins {n}": word[:n] for n in (2, 3, 4)} | {f"{step} ends {n}": word[-n:] for n in (2, 3, 4)}
    return found


def narrow(rows: Any) -> csr_matrix:
    """A sparse matrix with the short indices that scikit-learn's solvers take."""
    return csr_matrix((rows.data, rows.indices.astype(np.int32), rows.indptr.astype(np.int32)), shape=rows.shape)


def tags(parts: Sequence[Records], seed: int) -> Found:
    """Tags of words: regression that also sees the tag before, which it gave itself; a conditional random field where there is one."""
    seen = [[[traits(row["words"], place) for place in range(len(row["words"]))] for row in part] for part in (parts[0], parts[2])]
    wanted = [row["tags"] for row in parts[2]]
    started = time.process_time()
    flat = [
        {**word, "before": ["<start>", *row["tags"]][place]}
        for row, sentence in zip(parts[0], seen[0], strict=True)
        for place, word in enumerate(sentence)
    ]
    vectors = DictVectorizer()
    inputs = narrow(vectors.fit_transform(flat))
    model = SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=10, tol=None, average=True, random_state=seed)
    model.fit(inputs, [tag for row in parts[0] for tag in row["tags"]])
    before, given = ["<start>"] * len(seen[1]), [[] for _ in seen[1]]  # type: ignore[var-annotated]
    for place in range(max(map(len, seen[1]))):  # all sentences a word at a time
        alive = [number for number, sentence in enumerate(seen[1]) if place < len(sentence)]
        answers = model.predict(narrow(vectors.transform([{**seen[1][number][place], "before": before[number]} for number in alive])))
        for number, tag in zip(alive, answers, strict=True):
            before[number] = str(tag)
            given[number].append(str(tag))
    found: Found = {"logistic regression": {**scored(wanted, given), "cpu_seconds": time.process_time() - started}}
    try:
        from sklearn_crfsuite import CRF
    except ImportError:
        return found
    started = time.process_time()
    field = CRF(algorithm="lbfgs", c1=0.1, c2=0.1, max_iterations=100)
    field.fit(seen[0], [row["tags"] for row in parts[0]])
    found["random field"] = {**scored(wanted, field.predict(seen[1])), "cpu_seconds": time.process_time() - started}
    return found


def scored(wanted: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> dict[str, float | None]:
    """Scores of whole entities."""
    return entity_scores([spans_of(tags) for tags in wanted], [spans_of(tags) for tags in given])
