"""The tables of the ledger and how an older file becomes a newer one. A migration is never edited once released: add another."""

from __future__ import annotations

FIRST = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID",
    """CREATE TABLE updates (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        parent TEXT REFERENCES updates(id),
        created_at TEXT NOT NULL,
        before TEXT,
        after TEXT,
        certificate TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('committed', 'rejected', 'reverted')),
        expired INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    """CREATE TABLE head (
        single INTEGER PRIMARY KEY CHECK (single = 1),
        state TEXT,
        update_id TEXT NOT NULL REFERENCES updates(id)
    ) STRICT""",
    """CREATE TABLE documents (
        sequence INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL,
        source TEXT NOT NULL,
        domain TEXT NOT NULL,
        importance REAL NOT NULL CHECK (importance BETWEEN 0 AND 1),
        kind TEXT NOT NULL,
        blob TEXT NOT NULL,
        chars INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('pending', 'learning', 'committed', 'rejected', 'failed', 'forgotten')),
        reason TEXT NOT NULL DEFAULT '',
        attempts INTEGER NOT NULL DEFAULT 0,
        signature BLOB NOT NULL,
        added_at TEXT NOT NULL,
        update_id TEXT REFERENCES updates(id)
    ) STRICT""",
    "CREATE INDEX documents_by_status ON documents(status, sequence)",
    """CREATE TABLE update_documents (
        update_id TEXT NOT NULL REFERENCES updates(id),
        ordinal INTEGER NOT NULL,
        document TEXT NOT NULL REFERENCES documents(id),
        PRIMARY KEY (update_id, ordinal)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX updates_by_document ON update_documents(document)",
    """CREATE TABLE probes (
        id INTEGER PRIMARY KEY,
        document TEXT REFERENCES documents(id),
        question TEXT NOT NULL,
        answer TEXT NOT NULL,
        baseline REAL,
        importance REAL NOT NULL CHECK (importance BETWEEN 0 AND 1),
        held_out INTEGER NOT NULL
    ) STRICT""",
    "CREATE INDEX probes_by_document ON probes(document)",
    """CREATE TABLE study (
        document TEXT PRIMARY KEY REFERENCES documents(id),
        digest TEXT NOT NULL
    ) STRICT, WITHOUT ROWID""",
    "CREATE TABLE checkpoints (name TEXT PRIMARY KEY, state TEXT NOT NULL, created_at TEXT NOT NULL) STRICT, WITHOUT ROWID",
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY,
        at TEXT NOT NULL,
        kind TEXT NOT NULL,
        subject TEXT NOT NULL,
        detail TEXT NOT NULL
    ) STRICT""",
    "CREATE INDEX events_by_subject ON events(subject, id)",
    """CREATE TABLE chunks (
        id INTEGER PRIMARY KEY,
        document TEXT NOT NULL REFERENCES documents(id),
        ordinal INTEGER NOT NULL,
        heading TEXT NOT NULL,
        text TEXT NOT NULL,
        UNIQUE (document, ordinal)
    ) STRICT""",
    """CREATE VIRTUAL TABLE chunks_fts USING fts5(
        heading, text, content='chunks', content_rowid='id', tokenize='porter unicode61 remove_diacritics 2'
    )""",
    """CREATE TRIGGER chunks_added AFTER INSERT ON chunks BEGIN
        INSERT INTO chunks_fts(rowid, heading, text) VALUES (new.id, new.heading, new.text);
    END""",
    """CREATE TRIGGER chunks_removed AFTER DELETE ON chunks BEGIN
        INSERT INTO chunks_fts(chunks_fts, rowid, heading, text) VALUES ('delete', old.id, old.heading, old.text);
    END""",
)

INBOX = (
    """CREATE TABLE inbox (
        sequence INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        source TEXT NOT NULL,
        domain TEXT NOT NULL,
        importance REAL NOT NULL CHECK (importance BETWEEN 0 AND 1),
        body BLOB NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('pending', 'learning', 'done', 'failed', 'held')),
        reason TEXT NOT NULL DEFAULT '',
        attempts INTEGER NOT NULL DEFAULT 0,
        not_before REAL NOT NULL DEFAULT 0,
        owner TEXT NOT NULL DEFAULT '',
        leased_until REAL NOT NULL DEFAULT 0,
        documents TEXT NOT NULL DEFAULT '[]',
        received_at TEXT NOT NULL
    ) STRICT""",
    "CREATE INDEX inbox_by_turn ON inbox(status, importance DESC, sequence)",
)

WAITING = ("CREATE INDEX inbox_waiting ON inbox(source) WHERE status IN ('pending', 'learning')",)

RELEASED = ("ALTER TABLE inbox ADD COLUMN released INTEGER NOT NULL DEFAULT 0",)

MIGRATIONS: list[tuple[str, ...]] = [FIRST, INBOX, RELEASED, WAITING]
"""`MIGRATIONS[n]` turns version n into version n + 1; the version is SQLite's `user_version`. Each runs in one transaction."""
