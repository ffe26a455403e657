"""Directories of runs: what an interruption leaves, what is refused, and what comes back as it was."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retain.evaluation import metrics
from retain.evaluation.runs import Run, RunError, command_line, environment
from retain.evaluation.writers import MissingExtra, MLflowWriter, TensorBoardWriter

CONFIG: dict[str, Any] = {"stream": "digits", "train": {"lr": 1e-5, "steps": 10}, "methods": ["naive", "ewc"]}


def python(code: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_an_interrupted_run_goes_on_at_the_last_finished_task(tmp_path: Path) -> None:
    code = """
        import os, sys
        from retain.evaluation.runs import Run
        with Run.create(sys.argv[1], {"tasks": 3}, resume=True) as run:
            done = []
            for task in ("a", "b", "c"):
                if run.finished(task) is None:
                    done.append(task)
                    run.event("step", task=task, loss=0.5)
                    if task == sys.argv[2]:
                        os._exit(9)
                    run.finish(task, {"score": len(done)})
            run.complete({"done": done})
    """
    assert python(code, tmp_path / "run", "b").wait() == 9
    half = Run.open(tmp_path / "run")
    assert half.results is None and half.tasks == ["a"] and half.finished("a") == {"score": 1} and half.finished("b") is None
    assert python(code, tmp_path / "run", "").wait() == 0
    assert half.results == {"done": ["b", "c"]}
    assert [event["event"] for event in half.events()] == [
        "started", "step", "task", "step", "resumed", "step", "task", "step", "task", "finished",
    ]  # fmt: skip


def test_values_and_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    weights = {"w": torch.randn(3, 4).T, "steps": torch.tensor([1, 2])}  # one is not contiguous
    value = {"matrix": np.array([[np.nan, 0.5]]), "joint": None, "loss": math.inf, "count": np.int64(3), "name": "a → b", "ok": True}
    with Run.create(tmp_path / "run", CONFIG) as run:
        run.finish("t+1.x", value, weights)
        run.finish("plain", {})
    read = Run.open(tmp_path / "run")
    found, tensors = read.finished("t+1.x"), read.tensors("t+1.x")
    assert found is not None and math.isnan(found["matrix"][0][0]) and found["matrix"][0][1] == 0.5
    assert found["joint"] is None and found["loss"] is None and found["count"] == 3 and found["name"] == "a → b" and found["ok"] is True
    assert set(tensors) == set(weights) and all(torch.equal(tensors[name], weights[name]) for name in weights)
    assert read.tensors("plain") == {} and read.config == CONFIG
    stored = (tmp_path / "run" / "tasks" / "t+1.x.json").read_text()
    assert "NaN" not in stored and json.loads(stored)["value"]["matrix"] == [[None, 0.5]]


def test_a_matrix_with_gaps_survives_the_results(tmp_path: Path) -> None:
    matrix = [[math.nan, math.nan], [0.9, 0.1], [0.6, 0.8]]
    with Run.create(tmp_path / "run", CONFIG) as run:
        run.complete({"methods": {"naive": {"seeds": {"0": {"matrix": matrix, "joint": None}}}}})
    results = Run.open(tmp_path / "run").results
    assert results is not None
    record = results["methods"]["naive"]["seeds"]["0"]
    assert record["joint"] is None and metrics.summarise(record["matrix"])["forgetting"] == pytest.approx(0.3)


def test_a_torn_last_event_is_left_out_and_cut_off(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", CONFIG) as run:
        run.event("step", loss=1.0)
    path = tmp_path / "run" / "events.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"time": "2026-01-01T00:00:00Z", "event": "st')
    assert [event["event"] for event in Run.open(tmp_path / "run").events()] == ["started", "step"]
    with Run.create(tmp_path / "run", CONFIG, resume=True) as run:
        assert [event["event"] for event in run.events()] == ["started", "step", "resumed"]
    assert path.read_bytes().startswith(whole) and all(json.loads(line) for line in path.read_text().splitlines())
    path.write_bytes(b"not json\n" + whole)
    with pytest.raises(RunError, match=r"events\.jsonl, line 1: not a JSON object"):
        Run.open(tmp_path / "run").events()


def test_another_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    place = tmp_path / "run"
    Run.create(place, CONFIG).close()
    before = {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()}
    other = {**CONFIG, "train": {"lr": 1e-4, "steps": 10}}
    for config, said in (
        (other, "train.lr: 1e-05 there, 0.0001 here"),
        ({"stream": "digits"}, "train: only there"),
        ({**CONFIG, "x": 1}, "x: only here"),
    ):
        with pytest.raises(RunError, match="another configuration") as caught:
            Run.create(place, config, resume=True)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(RunError, match="resume it, or choose another directory"):
        Run.create(place, CONFIG)
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.is_file()} == before
    Run.create(place, {**CONFIG, "methods": ("naive", "ewc")}, resume=True).close()  # the same once it is written


def test_true_is_not_one_and_nan_is_nan(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", {"flag": True, "limit": math.nan, "word": "1e-3"}).close()
    Run.create(tmp_path / "run", {"flag": True, "limit": math.nan, "word": "1e-3"}, resume=True).close()
    with pytest.raises(RunError, match="flag: true there, 1 here"):
        Run.create(tmp_path / "run", {"flag": 1, "limit": math.nan, "word": "1e-3"}, resume=True)


def test_two_processes_cannot_write_to_one_run(tmp_path: Path) -> None:
    code = """
        import sys
        from retain.evaluation.runs import Run
        run = Run.create(sys.argv[1], {"a": 1})
        run.event("step", loss=0.5)
        print("ready", flush=True)
        sys.stdin.read()
    """
    other = python(code, tmp_path / "run")
    assert other.stdin and other.stdout and other.stdout.readline() == "ready\n"
    with pytest.raises(RunError, match="another process is writing to this run"):
        Run.create(tmp_path / "run", {"a": 1}, resume=True)
    assert [event["event"] for event in Run.open(tmp_path / "run").events()] == ["started", "step"]  # reading is always possible
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    Run.create(tmp_path / "run", {"a": 1}, resume=True).close()  # the lock of a dead process does not hold


def test_what_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match=r"other files here \(notes\.txt\)"):
        Run.create(tmp_path, CONFIG)
    assert (tmp_path / "notes.txt").read_text() == "mine" and not (tmp_path / "config.yaml").exists()
    with pytest.raises(RunError, match="this is not a run"):
        Run.open(tmp_path)
    (tmp_path / "config.yaml").write_text("workspace: here\n")
    with pytest.raises(RunError, match=r"not a run \(there is no events\.jsonl"):
        Run.open(tmp_path)
    with pytest.raises(NotADirectoryError):
        Run.create(tmp_path / "notes.txt", CONFIG)


@pytest.mark.parametrize("key", ["", "../a", "a/b", ".a", "a b", "a\n", "é", "a" * 129])
def test_keys_are_names_and_never_paths(tmp_path: Path, key: str) -> None:
    with Run.create(tmp_path / "run", CONFIG) as run, pytest.raises(RunError, match="cannot be the key of a task"):
        run.finish(key, {})
    assert list((tmp_path / "run" / "tasks").iterdir()) == []


def test_a_crash_while_writing_leaves_the_task_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path / "run", CONFIG)
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target.name == "a.json":
            raise OSError("power cut")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="power cut"):
        run.finish("a", {"score": 1}, {"w": torch.zeros(2)})  # the tensors are there, the record is not
    monkeypatch.undo()
    assert run.finished("a") is None
    run.close()
    (tmp_path / "run" / "tasks" / ".tmp-1-left").write_bytes(b"half")
    with Run.create(tmp_path / "run", CONFIG, resume=True) as run:
        run.finish("a", {"score": 2}, {"w": torch.ones(2)})
        assert torch.equal(run.tensors("a")["w"], torch.ones(2))
        with pytest.raises(RunError, match="a is finished already"):
            run.finish("a", {"score": 3})
        assert run.finished("a") == {"score": 2}
    assert sorted(path.name for path in (tmp_path / "run" / "tasks").iterdir()) == ["a.json", "a.safetensors"]


def test_readers_do_not_write_and_mistakes_are_told(tmp_path: Path) -> None:
    with Run.create(tmp_path / "run", CONFIG) as run:
        with pytest.raises(RunError, match=r"step\.thing: a set cannot be written"):
            run.event("step", thing={1})
        with pytest.raises(RunError, match="neither time nor event"):
            run.event("step", time=3)
    for closed in (run, Run.open(tmp_path / "run")):
        assert not closed.writable
        with pytest.raises(RunError, match="opened for reading, or closed"):
            closed.complete({})
    assert run.results is None


def test_an_error_is_an_event(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="boom"), Run.create(tmp_path / "run", CONFIG):
        raise ValueError("boom")
    assert Run.open(tmp_path / "run").events()[-1]["error"] == "ValueError: boom"


def test_the_environment_names_versions_and_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Run.create(tmp_path / "run", CONFIG, seeds=[0, 1]) as run:
        here = run.environment
    assert (
        here["torch"] == torch.__version__
        and here["seeds"] == [0, 1]
        and {"retain", "python", "transformers", "cpu", "command"} <= set(here)
    )
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.chdir(tmp_path)
    words = ["/opt/x/bin/retain", "report", str(tmp_path / "a"), "--out=/home/ada/r.html", "/secret/place/c.yaml", "--n", "3", "two words"]
    assert command_line(words) == "retain report a --out=~/r.html c.yaml --n 3 'two words'"
    assert str(Path.home()) not in json.dumps(environment())


def test_a_resume_elsewhere_records_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run.create(tmp_path / "run", CONFIG, seeds=[0]).close()
    monkeypatch.setattr("retain.lm.devices.machine_facts", lambda: {"cpu": "another"})
    with Run.create(tmp_path / "run", CONFIG, resume=True, seeds=[0]) as run:
        assert run.events()[-1]["environment"]["cpu"] == "another" and run.environment["cpu"] != "another"


class Recorder:
    """A writer that remembers."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def start(self, name: str, config: Any) -> None:
        self.seen.append((name, config))

    def write(self, record: Any) -> None:
        self.seen.append(record["event"])

    def close(self) -> None:
        self.seen.append("closed")


def test_writers_receive_the_same_events(tmp_path: Path) -> None:
    writer = Recorder()
    with Run.create(tmp_path / "run", CONFIG, writers=[writer]) as run:
        run.event("step", loss=1.0)
    assert writer.seen == [("run", CONFIG), "started", "step", "closed"]


@pytest.mark.parametrize(("module", "make", "said"), [
    ("torch.utils.tensorboard", TensorBoardWriter, "pip install tensorboard"),
    ("mlflow.tracking", MLflowWriter, r"pip install 'retain\[mlflow\]'"),
])  # fmt: skip
def test_a_missing_package_is_told_with_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, make: Any, said: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=said):
        make(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_mlflow_keeps_numbers_and_configuration(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    with Run.create(tmp_path / "run", CONFIG, writers=[MLflowWriter(tmp_path / "mlflow.db")]) as run:
        run.event("step", step=3, loss=0.5, ignored=math.nan, nested={"a": 2})
        run.complete({})
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("retain")
    assert experiment is not None
    (stored,) = client.search_runs([experiment.experiment_id])
    assert stored.data.metrics == {"step/loss": 0.5, "step/nested.a": 2.0} and stored.info.status == "FINISHED"
    assert stored.data.params["train.lr"] == "1e-05"


def test_tensorboard_keeps_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Run.create(tmp_path / "run", CONFIG, writers=[TensorBoardWriter(tmp_path / "board")]) as run:
        for step in (1, 2):
            run.event("step", step=step, loss=1 / step)
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert [(point.step, point.value) for point in board.Scalars("step/loss")] == [(1, 1.0), (2, 0.5)]


def test_the_interval_over_seeds_is_that_of_student() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.81, 0.79, 0.9, 0.84, 0.7]
    for count in range(2, 6):
        for level in (0.5, 0.95, 0.99):
            found = metrics.seed_interval(values[:count], level)
            mean, error = np.mean(values[:count]), stats.sem(values[:count])
            assert (found.low, found.high) == pytest.approx(stats.t.interval(level, count - 1, mean, error), rel=1e-9)
    one, none = metrics.seed_interval([0.5]), metrics.seed_interval([])
    assert one.mean == 0.5 and math.isnan(one.low) and math.isnan(one.high) and math.isnan(none.mean)
    assert math.isnan(metrics.seed_interval([0.5, math.nan]).mean) and metrics.seed_interval([0.5, 0.5]).low == 0.5
    assert metrics.seed_interval([0.0, 1.0]).high == pytest.approx(0.5 + 12.7062047364 / 2)  # tables: 12.706 for one degree of freedom
    with pytest.raises(ValueError, match="level"):
        metrics.seed_interval(values, 1.0)


def test_importing_runs_and_reports_is_light() -> None:
    heavy = ("matplotlib", "mlflow", "tensorboard", "torch", "transformers")
    code = f"import sys, retain.evaluation.runs, retain.evaluation.report; print([m for m in {heavy[:3]} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    code = f"import sys, retain.cli.report; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
