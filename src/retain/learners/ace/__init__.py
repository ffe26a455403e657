"""Learner ``ace``: a playbook of bullets that a Generator uses, a Reflector judges and a Curator edits (2510.04618)."""

from retain.learners.ace.learner import Playbooks
from retain.learners.ace.playbook import Add, Bullet, Patch, Playbook, Remove, Share, Update

__all__ = ["Add", "Bullet", "Patch", "Playbook", "Playbooks", "Remove", "Share", "Update"]
