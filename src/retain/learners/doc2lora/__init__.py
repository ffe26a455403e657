"""Doc-to-LoRA: a hypernetwork reads a document and writes its adapter; the same network for descriptions of tasks; its training."""

from retain.learners.doc2lora.files import load_network, save_network
from retain.learners.doc2lora.hypernetwork import PRESETS, Hypernetwork, NetworkConfig, Places, preset
from retain.learners.doc2lora.learner import Doc2Lora, describe_adapter
from retain.learners.doc2lora.run import Plan, Run, Trained, train_hypernetwork
from retain.learners.doc2lora.settings import HypernetworkSettings, load_settings
from retain.learners.doc2lora.trainer import Progress

__all__ = [
    "PRESETS",
    "Doc2Lora",
    "Hypernetwork",
    "HypernetworkSettings",
    "NetworkConfig",
    "Places",
    "Plan",
    "Progress",
    "Run",
    "Trained",
    "describe_adapter",
    "load_network",
    "load_settings",
    "preset",
    "save_network",
    "train_hypernetwork",
]
