"""The study skill: an adapter that makes a small model able to write questions about a text and to answer from one.

A 135M model can do neither well by itself. The skill is trained once, on the corpus in ``corpora/study`` (invented facts, written for
this purpose, Apache-2.0), and ships as an ordinary adapter next to this file. It knows no document of the user's. Training it again:

    python -m retain.learners.skills corpora/study/a.jsonl corpora/study/b.jsonl --out skill.safetensors
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retain.adapters import Adapter, AdapterSpec, new_lora, select_sites
from retain.data.chat import user_turn
from retain.data.document import Message
from retain.data.examples import Example, dialogue_example
from retain.data.selfstudy import StudyPassage, load_study_corpus, writer_completion, writer_prompt
from retain.lm.model import LanguageModel
from retain.retention.base import Task
from retain.training.loop import Progress, TrainingSettings, train
from retain.training.objective import AdapterObjective

RANK, ALPHA = 16, 32.0
QUESTIONS_PER_DIALOGUE = 6


def skill_examples(tokenizer: Any, passages: Sequence[StudyPassage], seed: int = 0) -> list[Example]:
    """Reading (passage, then questions answered from it) and writing (sentence -> questions with answers) examples."""
    chooser = random.Random(seed)
    examples = []
    for passage in passages:
        examples += _reading(tokenizer, passage, chooser)
        examples += _writing(tokenizer, passage, chooser)
    return examples


def _reading(tokenizer: Any, passage: StudyPassage, chooser: random.Random) -> list[Example]:
    pairs = [(wording, q.answer) for q in passage.questions for wording in (q.question, q.reworded)]
    chooser.shuffle(pairs)
    context = f"{passage.title}\n\n{passage.text}"
    found = []
    for first in range(0, len(pairs), QUESTIONS_PER_DIALOGUE):
        turns: list[Message] = []
        for number, (question, answer) in enumerate(pairs[first : first + QUESTIONS_PER_DIALOGUE]):
            turns += user_turn(tokenizer, question, context if number == 0 else None)
            turns.append(Message("assistant", answer))
        found.append(dialogue_example(tokenizer, turns, kind="reading"))
    return found


def _writing(tokenizer: Any, passage: StudyPassage, chooser: random.Random) -> list[Example]:
    by_sentence: dict[str, list[tuple[str, str]]] = {}
    for question in passage.questions:
        by_sentence.setdefault(question.evidence, []).extend(
            (wording, question.answer) for wording in (question.question, question.reworded)
        )
    ordered = sorted(by_sentence, key=passage.text.find)
    found = []
    for place, sentence in enumerate(ordered):
        pairs = by_sentence[sentence]
        chooser.shuffle(pairs)
        prompt = writer_prompt(passage.title, ordered[place - 1] if place else "", sentence)
        completion = "Q:".join(writer_completion(question, answer) for question, answer in pairs)
        head, tail = tokenizer(prompt, add_special_tokens=False).input_ids, tokenizer(completion, add_special_tokens=False).input_ids
        tail = [*tail, tokenizer.eos_token_id]
        found.append(Example((*head, *tail), (False,) * len(head) + (True,) * len(tail), kind="writing"))
    return found


def train_skill(model: LanguageModel, passages: Sequence[StudyPassage], *, epochs: int = 2, learning_rate: float = 5e-4, seed: int = 0,
                on_step: Any = None) -> Adapter:  # fmt: skip
    """Train the skill adapter for ``model`` on study passages."""
    sites = select_sites(model, "all")
    params = new_lora(model, sites, RANK, ALPHA, seed)
    objective = AdapterObjective(model, sites, ALPHA / RANK)
    task = Task("study-skill", skill_examples(model.tokenizer, passages, seed), objective)
    train(task, params, TrainingSettings(learning_rate=learning_rate, epochs=epochs, batch_tokens=1024, seed=seed), on_step=on_step)
    spec = AdapterSpec(
        "lora", model.fingerprint, sites, RANK, ALPHA, lineage={"kind": "study-skill", "passages": len(passages), "seed": seed}
    )
    return Adapter(params, spec).half()


def save_adapter(adapter: Adapter, path: Path) -> None:
    """One safetensors file with the description in its metadata."""
    from safetensors.torch import save_file

    save_file(dict(adapter.tensors), str(path), metadata={"spec": adapter.spec.to_json()})


def load_adapter(path: Path) -> Adapter:
    """Inverse of :func:`save_adapter`."""
    from safetensors import safe_open

    with safe_open(str(path), "pt") as file:
        return Adapter({name: file.get_tensor(name) for name in list(file.keys())}, AdapterSpec.from_json(file.metadata()["spec"]))


def shipped_skill(model: LanguageModel) -> Adapter | None:
    """The study skill that comes with retain for this base model, or None."""
    path = Path(__file__).parent / "weights" / f"study-skill-{model.fingerprint[:12]}.safetensors"
    return load_adapter(path) if path.exists() else None


def _main() -> None:
    import argparse

    from retain.lm.loading import load_model

    parser = argparse.ArgumentParser(description="Train the study skill adapter.")
    parser.add_argument("corpus", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--leave-out", type=int, default=0, help="leave out the first N passages of every file, to measure on them")
    parser.add_argument("--limit", type=int, default=None, help="use at most N passages of every file")
    options = parser.parse_args()
    last = None if options.limit is None else options.leave_out + options.limit
    passages = [passage for file in options.corpus for passage in load_study_corpus(file)[options.leave_out : last]]

    def show(progress: Progress) -> None:
        if progress.step % 10 == 0 or progress.step == progress.steps:
            rate = progress.tokens / progress.seconds
            print(f"step {progress.step}/{progress.steps}  loss {progress.loss:.3f}  {rate:.0f} tokens/s", flush=True)

    adapter = train_skill(load_model(options.model), passages, epochs=options.epochs, on_step=show)
    save_adapter(adapter, Path(options.out))


if __name__ == "__main__":
    _main()
