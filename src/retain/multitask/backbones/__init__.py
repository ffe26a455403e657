"""Backbones by name: the network that all tasks of an experiment share. One module for each kind of input."""

from retain.multitask.backbones.base import BACKBONES, Backbone, Encoded, States
from retain.multitask.backbones.sequential import Sequential
from retain.multitask.backbones.text import Text, model_kind

__all__ = ["BACKBONES", "Backbone", "Encoded", "Sequential", "States", "Text", "model_kind"]
