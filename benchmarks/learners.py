"""Every learner on the same documents and questions, and beside them the package continual-learning-slm on the same model.

    python -m benchmarks.learners [--documents 3] [--learners all] [--resume]
    python -m benchmarks.learners --package DIR      # pip install --no-deps --target DIR continual-learning-slm==0.4.0

Documents and questions are those of the stream benchmark; the questions (both wordings) are never trained on. The runs of retain are
those of ``retain compare``, kept in ``runs/benchmark-learners``. The other package runs as its own comparison does: its default settings,
its prompt, greedy answers of 24 tokens in float32, one question at a time; calibrated as its command line calibrates, on the same
general texts for every engine. Results go to ``benchmarks/results/learners.json``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.recording import keep
from benchmarks.stream.run import written_stream
from retain.config import load_config
from retain.data.answers import contains, exact_match, f1
from retain.data.document import Document
from retain.evaluation.control import load_control
from retain.evaluation.runs import Run
from retain.lm.devices import machine_facts
from retain.lm.embedded import embedded_model_dir
from retain.lm.loading import load_model
from retain.workspace.comparison import Asked, arms_of, run_comparison

RESULTS = Path(__file__).parent / "results" / "learners.json"
TOKENS = 24
LAYERS = 8  # the last quarter of 30, as the package takes of its own default model


def theirs(package: Path, documents: Sequence[Document], asked: Sequence[Asked]) -> dict[str, Any]:
    """The engines of continual-learning-slm, each on a fresh model."""
    sys.path.insert(0, str(package))
    from continual_learning.checkpointing.manager import CheckpointManager
    from continual_learning.config import DEFAULT_CONFIG
    from continual_learning.jitrl.full.engine import JitRLFullEngine
    from continual_learning.jitrl.mvp.engine import JitRLMVPEngine
    from continual_learning.model.modified_qwen import inject_dual_mlps
    from continual_learning.training.calibration import calibrate_gates
    from continual_learning.training.ttt_engine import TTTEngine
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = str(embedded_model_dir())
    tokenizer = AutoTokenizer.from_pretrained(place)

    def fresh() -> Any:
        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()

    def plain(model: Any) -> Callable[[str], str]:
        def answer(question: str) -> str:
            inputs = tokenizer(question, return_tensors="pt")
            with torch.no_grad():
                ids = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
            return str(tokenizer.decode(ids[0][inputs["input_ids"].shape[1] :], skip_special_tokens=True))

        return answer

    found: dict[str, Any] = {}
    model, default = fresh(), DEFAULT_CONFIG["alpha"]
    layers = list(range(model.config.num_hidden_layers - LAYERS, model.config.num_hidden_layers))
    inject_dual_mlps(model, layers, alpha_initial=default["initial"])
    mlps = [model.model.layers[number].mlp for number in layers]
    calibrate_gates(model, tokenizer, list(load_control().prompts), mlps)
    engine = TTTEngine(model, tokenizer, mlps, alpha_decay_rate=default["decay_rate"], alpha_min=default["min_value"])
    found["ttt"] = measured(engine.learn, plain(model), documents, asked)
    with tempfile.TemporaryDirectory() as folder:
        CheckpointManager(folder).save("all", mlps, {})
        found["ttt"]["checkpoint_bytes"] = sum(path.stat().st_size for path in (Path(folder) / "all").iterdir())
    del engine, model, mlps
    for name, kind in (("jitrl", JitRLMVPEngine), ("jitrl-full", JitRLFullEngine)):
        made = kind(fresh(), tokenizer)
        found[name] = measured(made.learn, lambda question, made=made: made.generate(question, max_new_tokens=TOKENS), documents, asked)
    return found


def measured(
    learn: Callable[[str], Any], answer: Callable[[str], str], documents: Sequence[Document], asked: Sequence[Asked]
) -> dict[str, Any]:
    """Learn every document, then ask every question."""
    started = time.perf_counter()
    for document in documents:
        learn(f"{document.title}\n\n{document.text}")
    learned = time.perf_counter()
    said = [answer(f"Answer concisely: {one.question}") for one in asked]
    ended = time.perf_counter()
    return {
        "contains": sum(contains(text, one.answers) for text, one in zip(said, asked, strict=True)) / len(asked),
        "exact": sum(exact_match(text, one.answers) for text, one in zip(said, asked, strict=True)) / len(asked),
        "f1": sum(f1(text, one.answers) for text, one in zip(said, asked, strict=True)) / len(asked),
        "learn_seconds": (learned - started) / len(documents), "answer_seconds": (ended - learned) / len(asked),
        "said": {one.question: text for one, text in zip(asked[:5], said[:5], strict=True)},
    }  # fmt: skip


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=3)
    parser.add_argument("--learners", default="all")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--package", type=Path, help="folder that continual-learning-slm was installed into")
    parser.add_argument("--run", type=Path, default=Path("runs/benchmark-learners"))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()

    stream = written_stream(options.documents)
    asked = [Asked(key, probe.question, probe.answers) for key, probes in stream.questions.items() for probe in probes]
    config = load_config(None)
    model = load_model("smollm2-135m-instruct", precision=config.model.precision)
    arms = arms_of(options.learners)
    recorded = {
        "documents": [document.id for document in stream.documents], "questions": len(asked), "arms": arms, "seeds": options.seeds,
        "config": config.model_dump(mode="json", exclude={"workspace", "model"}),
    }  # fmt: skip
    with Run.create(options.run, recorded, resume=options.resume, seeds=range(options.seeds)) as run:
        results = run.results if run.results is not None else run_comparison(
            stream.documents, asked, arms, options.seeds, model, config, run,
            lambda at: print(f"{at.arm}: {at.document} learned, {at.contains:.0%} right ({at.done}/{at.total})", flush=True),
        )  # fmt: skip
    record = {
        "benchmark": "learners", "documents": len(stream.documents), "questions": len(asked), "seeds": options.seeds, "model": model.name,
        "learners": results["comparison"], "warnings": results["warnings"], "machine": machine_facts(),
    }  # fmt: skip
    if options.package:
        record["continual-learning-slm 0.4.0"] = theirs(options.package, stream.documents, asked)
    keep(record, options.out)


if __name__ == "__main__":
    main()
