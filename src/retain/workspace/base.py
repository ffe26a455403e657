"""The base model that a workspace belongs to: the one that the first thing was learned with, found again and checked ever after."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from retain.config import Config
from retain.config.settings import place_of
from retain.lm.model import LanguageModel
from retain.workspace.errors import WorkspaceError
from retain.workspace.ledger import Ledger

log = logging.getLogger(__name__)


def base_of(ledger: Ledger) -> dict[str, Any]:
    """The base that what was learned belongs to: its "name", "fingerprint" and, where it is a folder or file, "place". Empty while nothing
    was learned: asking ties a workspace to nothing."""
    return dict(ledger.meta().get("base") or {}) if ledger.head() else {}


def name_of(ledger: Ledger, config: Config) -> str:
    """What to load: the base of the workspace, where it was last found; the configured one while nothing is learned, and when it moved.

    A configured name that was set and is another is told (log): it does not count here. Raises WorkspaceError for a base that is gone."""
    base, configured = base_of(ledger), config.model.name
    known: str = base.get("place") or base.get("name") or configured
    if base.get("place") and not Path(known).exists():
        if file_of(configured):
            return configured
        raise WorkspaceError(f"the base model is not at {known} any more: `retain config set model.name PATH` says where it is now")
    if other_than(base, config):
        log.warning(
            "model.name %s (%s) is not used: what was learned in this workspace belongs to %s; take another workspace for another base",
            configured, place_of(config, "model.name"), known,
        )  # fmt: skip
    return known


def other_than(base: dict[str, Any], config: Config) -> bool:
    """Whether model.name was set to another model than the workspace's base."""
    configured = config.model.name
    same = file_of(configured) == base["place"] if base.get("place") else configured.lower() == str(base.get("name")).lower()
    return bool(base) and "name" in config.model.model_fields_set and not same


def file_of(name: str) -> str:
    """The absolute path of a model that is a folder or a file here; empty for the name of another."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else ""


def check_base(ledger: Ledger, model: LanguageModel, place: str) -> None:
    """Raise Conflict when what was learned belongs to another base; remember where it is now."""
    if ledger.head():
        ledger.bind_base(model.name, model.fingerprint, place)


def bind(ledger: Ledger, model: LanguageModel, place: str) -> None:
    """Tie the workspace to its base before something is learned, with the writer lock held; while nothing is, another may take its place.
    Raises Conflict."""
    if not ledger.head():
        ledger.set_meta("base", None)
    ledger.bind_base(model.name, model.fingerprint, place)
