"""Several processes (torchrun, gloo) compute what one process computes with the same batch."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.pretraining.material import configured

from retain.config.values import dump_yaml
from retain.pretraining import PretrainingError, pretrain

JOB = """
import sys
from retain.pretraining import PretrainConfig, pretrain, read_config
changes = dict(word.split("=") for word in sys.argv[4:])
results = pretrain(read_config(PretrainConfig, sys.argv[1], {"out": sys.argv[2], **changes}), sys.argv[3] == "resume")
print("results", results is not None)
"""


def two_processes(place: Path, out: str, *words: str) -> list[str]:
    """Two processes with the environment that torchrun gives them; what each wrote. (torchrun itself would be a third one.)"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", JOB, str(place / "little.yaml"), str(place / out), *words]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    try:
        written = [process.communicate(timeout=240) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], written
    return [out for out, _ in written]


def same_weights(first: Path, second: Path, files: tuple[str, ...] = ("model.safetensors", "optimizer.safetensors")) -> None:
    for file in files:
        one, two = (load_file(place / "checkpoints" / "step-00000012" / file) for place in (first, second))
        assert set(one) == set(two)
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, two[name], rtol=1e-3, atol=1e-4)


def test_two_processes_are_one(tmp_path: Path) -> None:
    """DDP, each process in two pieces: losses, validation, weights and moments are those of one process in one piece, within rounding."""
    pretrain(configured(tmp_path, "one"))
    assert two_processes(tmp_path, "two", "", "training.accumulation=2") == ["results True\n", "results False\n"]  # one process speaks
    first, second = ([json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()] for run in ("one", "two"))
    assert [(line["event"], line["step"]) for line in first] == [(line["event"], line["step"]) for line in second]
    for ours, theirs in zip(first, second, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)
        assert ours.get("validation") == pytest.approx(theirs.get("validation"), abs=1e-4)
    same_weights(tmp_path / "one", tmp_path / "two")


def test_two_that_share_the_weights_go_on_where_one_stopped(tmp_path: Path) -> None:
    """FSDP2: a checkpoint does not depend on how many processes wrote it or go on from it."""
    pretrain(configured(tmp_path, "one"))
    stopped = tmp_path / "stopped"
    config = configured(tmp_path, "stopped", training={"sharding": "fsdp2"})
    shutil.copytree(tmp_path / "one", stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-00000012")
    (stopped / "run.yaml").write_text(dump_yaml(config.model_dump(mode="json")))
    two_processes(tmp_path, "stopped", "resume")
    same_weights(tmp_path / "one", stopped)
    lines = [json.loads(line) for line in (stopped / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["event"] == "check"] == [6, 12] and lines[-1]["samples"]


@pytest.mark.parametrize(("batch", "accumulation"), [(5, 1), (4, 4)])
def test_a_batch_that_cannot_be_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, accumulation: int) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(PretrainingError, match=f"training.batch: {batch} cannot be divided evenly among 2 processes"):
        pretrain(configured(tmp_path, training={"batch": batch, "accumulation": accumulation}))
