"""Tasks by name: what is learned from a backbone's states, how it is decided and measured. One module for each way of answering."""

from retain.multitask.tasks.anomaly import Anomaly
from retain.multitask.tasks.base import TASKS, Outputs, Task, View
from retain.multitask.tasks.classification import Classification, MultiHead, MultiLabel
from retain.multitask.tasks.generation import Generation
from retain.multitask.tasks.qa import QuestionAnswering
from retain.multitask.tasks.regression import Regression
from retain.multitask.tasks.tagging import Ner

__all__ = [
    "TASKS",
    "Anomaly",
    "Classification",
    "Generation",
    "MultiHead",
    "MultiLabel",
    "Ner",
    "Outputs",
    "QuestionAnswering",
    "Regression",
    "Task",
    "View",
]
