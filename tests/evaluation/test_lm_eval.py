"""The harness gets from RetainLM what it gets from its own Hugging Face backend with the same weights."""

from __future__ import annotations

import builtins
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from retain.adapters import Adapter, AdapterSpec, inject, new_lora, select_sites
from retain.data.choices import MMLU_SUBJECTS, Choice, letter_prompt
from retain.lm.decoder import DecoderLM

ROWS = [
    {"question": f"Which of these is said of number {n}?", "choices": [f"it is {n}", "a bridge", f"the year {1900 + n}"], "answer": n % 3}
    for n in range(12)
]
CHOICE = """
task: tiny_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}, dev: {file}}}}}
test_split: test
fewshot_split: dev
num_fewshot: 2
fewshot_config: {{sampler: first_n}}
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
WRITTEN = """
task: tiny_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n", "."], max_gen_toks: 12}}
metric_list: [{{metric: exact_match}}]
"""
ROLLING = """
task: tiny_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}} {{{{choices}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""


def test_without_the_harness_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.split(".")[0] == "lm_eval":
            raise ImportError("No module named 'lm_eval'")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    monkeypatch.delitem(sys.modules, "retain.evaluation.lm_eval", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'retain\[lm-eval\]'"):
        importlib.import_module("retain.evaluation.lm_eval")


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The harness with three tasks over a local file."""
    found = pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for number, text in enumerate((CHOICE, WRITTEN, ROLLING)):
        (tmp_path / f"task{number}.yaml").write_text(text.format(file=file))
    return found


def evaluate(harness: Any, model: Any, folder: Path, *tasks: str) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = harness.simple_evaluate(model, tasks=list(tasks), task_manager=manager, log_samples=True, bootstrap_iters=0)
    return dict(found)


def answers(found: dict[str, Any]) -> list[Any]:
    """What the model gave to every request."""
    return [sample["resps"] for task in sorted(found["samples"]) for sample in found["samples"][task]]


def scores(found: dict[str, Any]) -> dict[str, float]:
    """The tasks' figures."""
    return {
        f"{task} {name}": value
        for task, row in found["results"].items()
        for name, value in row.items()
        if isinstance(value, float) and "stderr" not in name
    }


def test_scores_are_those_of_the_harness_own_backend(harness: Any, tmp_path: Path, tiny_model: DecoderLM, tiny_model_dir: Path) -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    from retain.evaluation.lm_eval import RetainLM

    module = AutoModelForCausalLM.from_pretrained(str(tiny_model_dir), dtype=torch.float32)
    tasks = ("tiny_choice", "tiny_written", "tiny_rolling")
    for window in (None, 24):  # 24: contexts are truncated, and a text takes several windows
        theirs = HFLM(pretrained=module, tokenizer=tiny_model.tokenizer, device="cpu", max_length=window, batch_size=4)
        mine = RetainLM(tiny_model, max_length=window)
        expected = evaluate(harness, theirs, tmp_path, *tasks)
        found = evaluate(harness, mine, tmp_path, *tasks)
        assert scores(found) == pytest.approx(scores(expected), rel=1e-5)
        assert len(scores(found)) == 5
        for one, other in zip(answers(found), answers(expected), strict=True):
            flat, known = (json.loads(json.dumps(value)) for value in (one, other))
            for (a,), (b,) in zip(flat, known, strict=True):
                if isinstance(a, list):  # (log-likelihood, greedy)
                    assert a[0] == pytest.approx(b[0], rel=1e-4) and a[1] == b[1]
                else:
                    assert a == (b if isinstance(b, str) else pytest.approx(b, rel=1e-4))


def test_greedy_flags_and_empty_contexts(harness: Any, tiny_model: DecoderLM, tiny_model_dir: Path) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    from retain.evaluation.lm_eval import RetainLM

    mine = RetainLM(tiny_model)
    pairs = [("", "The bridge"), ("The bridge ", "is"), ("Who", " is the"), ("a", "b")]
    written = mine.generate_until([Instance("generate_until", {}, ("Who is the", {"until": [], "max_gen_toks": 3}), 0)])[0]
    pairs.append(("Who is the", written))
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    found = mine.loglikelihood(requests)
    assert found[-1][1] and not all(greedy for _, greedy in found)
    module = AutoModelForCausalLM.from_pretrained(str(tiny_model_dir), dtype=torch.float32)
    expected = HFLM(pretrained=module, tokenizer=tiny_model.tokenizer, device="cpu").loglikelihood(requests)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], rel=1e-4)


def test_adapters_for_all_or_by_request(harness: Any, tiny_model: DecoderLM) -> None:
    from lm_eval.api.instance import Instance
    from lm_eval.api.registry import get_model

    from retain.evaluation.lm_eval import RetainLM

    assert get_model("retain") is RetainLM
    tensors = new_lora(tiny_model, select_sites(tiny_model), rank=2, alpha=4.0, seed=1)
    filled = {name: torch.randn_like(value) * 0.1 for name, value in tensors.items()}
    adapter = Adapter(filled, AdapterSpec("lora", tiny_model.fingerprint, select_sites(tiny_model), 2, 4.0))
    injection = inject([(adapter, 1.0)], tiny_model.dtype)
    requests = [Instance("loglikelihood", {}, (text, " is it"), 0) for text in ("What", "The bridge", "Who")]
    base, always = RetainLM(tiny_model).loglikelihood(requests), RetainLM(tiny_model, injection).loglikelihood(requests)
    routed = RetainLM(tiny_model, route=lambda text: injection if "bridge" in text else None).loglikelihood(requests)
    assert [value for value, _ in routed] == pytest.approx([base[0][0], always[1][0], base[2][0]])
    assert base[1][0] != pytest.approx(always[1][0], rel=1e-4)
    with pytest.raises(ValueError, match="one of injection, route"):
        RetainLM(tiny_model, injection, route=lambda text: None)


def test_mmlu_prompts_are_the_harness_own(harness: Any) -> None:
    """The harness renders its task with our documents; its data set needs a hub and is left out."""
    import yaml
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    folder = Path(harness.__file__).parent / "tasks" / "mmlu" / "default"
    shared = yaml.safe_load((folder / "_default_template_yaml").read_text())
    dev = [Choice(f"  What is {n}? ", ("one", "two", " three", "four"), n % 4, "") for n in range(5)]
    asked = Choice("A question\nof two lines ", ("a", "b", "c", "d"), 2, "")
    documents = [{"question": item.question, "choices": list(item.options), "answer": item.correct} for item in (*dev, asked)]
    subjects = set()
    for file in sorted(folder.glob("mmlu_*.yaml")):
        own = yaml.safe_load(file.read_text())
        subject = own["dataset_name"]
        subjects.add(subject)
        assert letter_prompt(Choice("What?", ("a", "b", "c", "d"), 0, subject)).startswith(own["description"] + "What?\nA. a\n")
        if subject not in ("anatomy", "us_foreign_policy"):
            continue
        config = {**shared, **{key: own[key] for key in ("task", "description", "dataset_name")}}

        def local(**_: Any) -> dict[str, Any]:
            return {"test": Dataset.from_list(documents[-1:]), "dev": Dataset.from_list(documents[:-1])}

        task = ConfigurableTask(config={**config, "custom_dataset": local})
        task.set_fewshot_seed(0)
        for shots in (0, 1, 5):
            examples = [Choice(item.question, item.options, item.correct, subject) for item in dev[:shots]]
            mine = letter_prompt(Choice(asked.question, asked.options, asked.correct, subject), examples)
            assert mine == task.fewshot_context(documents[-1], shots)
        requests = task.construct_requests(documents[-1], ctx="x")
        assert [request.arguments[1] for request in requests] == [" A", " B", " C", " D"]
    assert subjects == set(MMLU_SUBJECTS)
