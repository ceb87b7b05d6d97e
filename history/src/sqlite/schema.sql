-- The archive of one Weir. Nothing here is ever changed once written, except `held` (which grows)
-- and `streams` (the highest known); rows leave only by an order of erasure or by age. Offsets never
-- repeat, so (room, offset) pages across epochs.
CREATE TABLE IF NOT EXISTS meta (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS rooms (
    id      INTEGER PRIMARY KEY,
    log     TEXT NOT NULL,
    channel TEXT NOT NULL,
    -- Up to this offset rows may have left by age.
    expired_to INTEGER NOT NULL DEFAULT 0,
    UNIQUE (log, channel)
);

-- One row a generation of a slot: its epoch, where it begins, and the highest message known.
CREATE TABLE IF NOT EXISTS streams (
    id       INTEGER PRIMARY KEY,
    stream   TEXT NOT NULL UNIQUE,
    log      TEXT NOT NULL,
    slot     INTEGER NOT NULL,
    epoch    TEXT NOT NULL,
    from_seq INTEGER NOT NULL,
    created  TEXT NOT NULL,
    seq      INTEGER NOT NULL,
    msg_id   TEXT NOT NULL,
    time_ms  INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS messages (
    room    INTEGER NOT NULL,
    offset  INTEGER NOT NULL,
    stream  INTEGER NOT NULL,
    time_ms INTEGER NOT NULL,
    msg_id  TEXT NOT NULL,
    door    TEXT,
    user    TEXT NOT NULL,
    client  TEXT NOT NULL,
    info    BLOB,
    tags    TEXT,
    data    BLOB NOT NULL,
    PRIMARY KEY (room, offset, stream)
) WITHOUT ROWID;

-- So that what a user wrote is found without reading everything.
CREATE INDEX IF NOT EXISTS messages_by_user ON messages (user) WHERE user <> '';

-- Ranges of sequences that are held whole, both ends included. What lies between two is a hole; what
-- was erased is none.
CREATE TABLE IF NOT EXISTS held (
    stream   TEXT NOT NULL,
    from_seq INTEGER NOT NULL,
    to_seq   INTEGER NOT NULL,
    PRIMARY KEY (stream, from_seq)
) WITHOUT ROWID;

-- Messages that are no room's, or that could not become a row: kept whole, and in nobody's way.
CREATE TABLE IF NOT EXISTS quarantine (
    stream  TEXT NOT NULL,
    seq     INTEGER NOT NULL,
    subject TEXT NOT NULL,
    headers TEXT NOT NULL,
    data    BLOB NOT NULL,
    reason  TEXT NOT NULL,
    PRIMARY KEY (stream, seq)
) WITHOUT ROWID;

-- Orders to erase (JSON), which no append may undo: what they cover counts as held and is not kept.
CREATE TABLE IF NOT EXISTS erasures (
    nth     INTEGER PRIMARY KEY AUTOINCREMENT,
    id      TEXT NOT NULL UNIQUE,
    ordered TEXT NOT NULL,
    erased  INTEGER NOT NULL,
    done_ms INTEGER
);
