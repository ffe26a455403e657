"""The durable side: a ledger of what was learned, and a content-addressed store of the objects that it names."""

from retain.workspace.atomic import FileSystem, write_file
from retain.workspace.errors import (
    Conflict,
    Damaged,
    DiskFull,
    DurabilityLost,
    InvalidName,
    Locked,
    NotFound,
    TooNew,
    WorkspaceError,
    check_name,
)
from retain.workspace.ledger import Ledger
from retain.workspace.lock import WriterLock
from retain.workspace.records import (
    ActiveAdapter,
    Checkpoint,
    Chunk,
    DocumentRecord,
    Event,
    Hit,
    Probe,
    State,
    UpdateRecord,
)
from retain.workspace.store import Store, digest_of

__all__ = [
    "ActiveAdapter",
    "Checkpoint",
    "Chunk",
    "Conflict",
    "Damaged",
    "DiskFull",
    "DocumentRecord",
    "DurabilityLost",
    "Event",
    "FileSystem",
    "Hit",
    "InvalidName",
    "Ledger",
    "Locked",
    "NotFound",
    "Probe",
    "State",
    "Store",
    "TooNew",
    "UpdateRecord",
    "WorkspaceError",
    "WriterLock",
    "check_name",
    "digest_of",
    "write_file",
]
