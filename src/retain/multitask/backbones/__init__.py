"""Backbones by name: the network that all tasks of an experiment share. One module for each kind of input."""

from retain.multitask.backbones.audio import Audio
from retain.multitask.backbones.base import BACKBONES, Backbone, Encoded, States
from retain.multitask.backbones.seq2seq import Seq2Seq
from retain.multitask.backbones.sequential import Sequential
from retain.multitask.backbones.text import Text, model_kind
from retain.multitask.backbones.vision import Vision

__all__ = ["BACKBONES", "Audio", "Backbone", "Encoded", "Seq2Seq", "Sequential", "States", "Text", "Vision", "model_kind"]
