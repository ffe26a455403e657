"""Progressive networks (Rusu et al., 1606.04671) as adapters: every document gets a column of its own that reads the earlier ones.

The columns are those of :mod:`retain.adapters.column`. A document's adapter holds its column and frozen copies of what it reads of earlier
ones, so nothing that a later document does can reach it: an earlier document is answered as before for ever, by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from retain.adapters import Adapter, AdapterSpec, column_sites
from retain.adapters.column import KIND, earlier_columns, new_column
from retain.config import Config
from retain.data.examples import Example
from retain.learners.base import Aid, Form, Learned, LearnerError, Lesson, Memory, Passage, Tell
from retain.learners.chains import chain_of, cost_of, keeps_prefix, teller
from retain.learners.lora import check_layers, settings_of
from retain.lm.model import LanguageModel
from retain.lm.packing import Packed
from retain.retention.base import Params, Task
from retain.training.loop import TrainingError, train
from retain.training.objective import AdapterObjective


class Progressive:
    """A new column per document beside the MLPs of the layers ``learn.layers``, ``progressive.width`` wide, with lateral connections from
    all earlier columns, trained with ``progressive.learning_rate``. What a column adds is scaled by learn.alpha / learn.rank; targets and
    retention methods have no part in it."""

    name = "progressive"
    form: Form = "chain"
    studies = True
    injected = True

    def check(self, model: LanguageModel, config: Config) -> None:
        """Raise LearnerError for layers that the model does not have, and where it has no MLP."""
        check_layers(model, config)
        _places(model, config)

    def learn(self, model: LanguageModel, lesson: Lesson, config: Config, tell: Tell) -> Learned:
        """Train the column of ``lesson.document``. Raises TrainingError when it had no effect, LearnerError where the model has no MLP
        or the earlier adapters are no columns."""
        sites, width = _places(model, config), config.progressive.width
        name, chain = lesson.document.id, chain_of(model, lesson, KIND)
        earlier = {f"{site}.{key}": tensor for site in sites for key, tensor in earlier_columns(chain, site).items()}
        params = new_column(model, sites, width, earlier, lesson.seed + len(chain))
        scale = config.learn.alpha / config.learn.rank
        objective = ColumnObjective(model, sites, scale, earlier, lesson.skill, lesson.examples)
        settings = replace(settings_of(config.learn), learning_rate=config.progressive.learning_rate, seed=lesson.seed)
        report = train(Task(name, lesson.examples, objective), params, settings, on_step=teller(tell, lesson.document.title))
        lineage = {"task": name, "learner": self.name, "columns": len(chain) + 1}
        spec = AdapterSpec(KIND, model.fingerprint, sites, width, scale * width, lineage=lineage)
        adapter = Adapter({**params, **{key: tensor.to(model.device) for key, tensor in earlier.items()}}, spec).half()
        if not any(bool(adapter.tensors[f"{site}.B"].any()) for site in sites):
            raise TrainingError(f"task {name}: nothing of the column is left in half precision; raise progressive.learning_rate")
        copies = sum(tensor.nbytes for key, tensor in adapter.tensors.items() if key in earlier)
        cost = cost_of(
            adapter, [report], parameter_change=report.change, columns=len(chain) + 1, bytes_of_earlier_columns=copies,
            bytes_added_by_next=next_growth(adapter),
        )  # fmt: skip
        return Learned(adapter, cost)

    def aid(self, model: LanguageModel, question: str, memories: Sequence[Memory], passages: Sequence[Passage], config: Config) -> Aid:
        """Nothing: the adapter is all that helps."""
        return Aid()

    def without(self, memory: Memory, document: str) -> Memory | None:
        """Nothing: no memory is shared."""
        return None


def _places(model: LanguageModel, config: Config) -> tuple[str, ...]:
    """The MLPs that get a column. Raises LearnerError where there is none."""
    sites = column_sites(model, config.learn.layers)
    if not sites:
        raise LearnerError(f"the model {model.name} has no MLP that a column could sit beside: use the learner lora")
    return sites


class ColumnObjective(AdapterObjective):
    """The loss of examples under the base, a frozen ``skill`` and a column that reads the ``earlier`` ones, which stay as they are."""

    def __init__(
        self, model: LanguageModel, sites: Sequence[str], scale: float, earlier: Params, skill: Adapter | None, examples: Sequence[Example]
    ) -> None:
        frozen = [(skill, 1.0)] if skill else []
        super().__init__(model, sites, scale, frozen, kind=KIND, cache_prefix=keeps_prefix(model, examples))
        self.earlier = {name: tensor.to(model.device, model.dtype) for name, tensor in earlier.items()}

    def hidden(self, examples: Sequence[Example], params: Params, drop: bool = False) -> tuple[Tensor, Packed]:
        return super().hidden(examples, {**params, **self.earlier}, drop)


def next_growth(adapter: Adapter) -> int:
    """Bytes by which the adapter of the next document is larger than this one, with a column of the same width: a copy of this column's A,
    and a lateral connection that reads this column too."""
    width = adapter.spec.rank
    copies = [adapter.tensors[f"{site}.A"] for site in adapter.spec.sites]
    read = [adapter.tensors[f"{site}.U"].shape[1] for site in adapter.spec.sites if f"{site}.U" in adapter.tensors]
    return sum(tensor.nbytes for tensor in copies) + copies[0].element_size() * width * (sum(read) + width * len(copies))
