"""What looks for records that were tampered with, while they are learned: outliers, flipped labels, triggers, unsteady decisions."""

from retain.multitask.sentinel.sentinel import SUSPECTS, Sentinel, Suspect

__all__ = ["SUSPECTS", "Sentinel", "Suspect"]
