"""Training of any model on many tasks from one YAML file, and answers from what was trained.

    config = load_experiment("experiment.yaml")
    results = train(config, "runs/mine")
    answers = Predictor.load("runs/mine").predict(["a text"])

Backbones, tasks and callbacks are found by the names in the YAML: a kind is a class with a ``Config`` and a registration.
"""

from retain.multitask.assembly import Experiment, assemble
from retain.multitask.backbones import BACKBONES, Backbone, Encoded, States, model_kind
from retain.multitask.callbacks import CALLBACKS, Callback, Progress
from retain.multitask.config import BackboneConfig, ExperimentConfig, TaskConfig
from retain.multitask.loading import load_experiment, parse_experiment
from retain.multitask.plan import Plan, plan_experiment
from retain.multitask.predictor import Predictor
from retain.multitask.records import Row, read_rows
from retain.multitask.tasks import TASKS, Outputs, Task, View
from retain.multitask.trainer import train

__all__ = [
    "BACKBONES",
    "CALLBACKS",
    "TASKS",
    "Backbone",
    "BackboneConfig",
    "Callback",
    "Encoded",
    "Experiment",
    "ExperimentConfig",
    "Outputs",
    "Plan",
    "Predictor",
    "Progress",
    "Row",
    "States",
    "Task",
    "TaskConfig",
    "View",
    "assemble",
    "load_experiment",
    "model_kind",
    "parse_experiment",
    "plan_experiment",
    "read_rows",
    "train",
]
