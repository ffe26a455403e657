"""Checkpoints of training: everything that going on needs, as safetensors and JSON.

    step-00000500/
      model.safetensors, config.json, tokenizer    a Hugging Face checkpoint, in float32
      optimizer.safetensors                        AdamW's moments, by the names of the parameters
      state.json                                   step, validation, best so far, tokens, seconds, what the data was made from

Nothing else is needed: which data a step learns and what is random in it follow from the seed and the step's number. A checkpoint is
written under a temporary name, synced, and renamed. The last two are kept, and the one with the lowest validation loss.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retain.pretraining.durable import sweep, whole_folder
from retain.pretraining.errors import PretrainingError
from retain.pretraining.processes import Processes, like, whole

Save = Callable[[Path, Mapping[str, Tensor]], None]  # writes a model of parameters by the module's names
LATEST = 2
_MOMENTS = ("exp_avg", "exp_avg_sq")


class Checkpoints:
    """The checkpoints in a folder; ``facts`` are written into each and have to be the same when training goes on."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self.folder, self.facts = folder, dict(facts)

    def all(self) -> list[Path]:
        """The checkpoints that are there, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / "state.json").is_file())

    def latest(self) -> Path | None:
        """The checkpoint to go on from. Raises PretrainingError when the facts are others by now."""
        found = self.all()
        if not found:
            return None
        known = state_of(found[-1]).get("facts", {})
        changed = next((name for name, value in self.facts.items() if known.get(name) != value), None)
        if changed:
            raise PretrainingError(f"{found[-1]}: the {changed} has changed since, so the run cannot go on: begin another with --out")
        return found[-1]

    def best(self) -> Path | None:
        """The checkpoint with the lowest validation loss, None where nothing was validated."""
        losses = {path: state_of(path)["validation"] for path in self.all()}
        measured = {path: loss for path, loss in losses.items() if loss is not None}
        return min(measured, key=measured.__getitem__) if measured else None

    def write(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], save: Save, here: Processes) -> None:
        """Keep everything after a step. All processes call it, the first one writes."""
        from safetensors.torch import save_file

        names = here.parameters(module)
        parameters = whole(names)
        moments = {f"{key}.{name}": optimizer.state[tensor][key] for name, tensor in names.items() for key in _MOMENTS}
        moments = {name: tensor.cpu().contiguous() for name, tensor in whole(moments).items()}
        if here.first:
            sweep(self.folder)
            with whole_folder(self.folder / f"step-{state['step']:08d}") as scratch:
                save(scratch, parameters)
                save_file(moments, scratch / "optimizer.safetensors")
                (scratch / "state.json").write_text(json.dumps({**state, "facts": self.facts}, indent=2) + "\n", encoding="utf-8")
            self._prune()
        here.wait()

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer, place: Path) -> dict[str, Any]:
        """Put the optimizer's state back, and give the rest; the weights come with the model. Raises PretrainingError
        where the file is damaged."""
        from safetensors import SafetensorError, safe_open

        state = {name: value for name, value in state_of(place).items() if name != "facts"}
        file = place / "optimizer.safetensors"
        try:
            with safe_open(file, "pt") as stored:
                for name, tensor in module.named_parameters():
                    moments = {key: like(tensor, stored.get_tensor(f"{key}.{name}")) for key in _MOMENTS}
                    optimizer.state[tensor] = {"step": torch.tensor(float(state["step"])), **moments}
        except (OSError, SafetensorError) as error:
            raise PretrainingError(f"{file}: cannot be read ({error}): remove {place}, the one before it goes on") from error
        if optimizer.defaults.get("fused"):
            for values in optimizer.state.values():
                values["step"] = values["step"].to(values["exp_avg"].device)
        return state

    def _prune(self) -> None:
        found, best = self.all(), self.best()
        for path in found[:-LATEST]:
            if path != best:
                shutil.rmtree(path)


def state_of(place: Path) -> dict[str, Any]:
    """state.json of a checkpoint."""
    return dict(json.loads((place / "state.json").read_text(encoding="utf-8")))
