-- Times are milliseconds since the Unix epoch; 0 and NULL mean what the column says.
CREATE TABLE meta (
  key TEXT PRIMARY KEY,
  value TEXT NOT NULL
);

-- A forgotten host stays as a tombstone, so that its id and its runs keep their meaning.
CREATE TABLE hosts (
  id TEXT PRIMARY KEY,
  name TEXT NOT NULL,
  ssh_address TEXT NOT NULL,
  labels TEXT NOT NULL,
  state TEXT NOT NULL,
  detail TEXT NOT NULL,
  created_ms BIGINT NOT NULL,
  -- The owner epoch: raised by each session, carried by each of its writes.
  epoch BIGINT NOT NULL,
  -- The number the next dispatch gets.
  next_seq BIGINT NOT NULL,
  agent_version TEXT NOT NULL,
  os_id TEXT NOT NULL,
  os_version TEXT NOT NULL,
  arch TEXT NOT NULL,
  hostname TEXT NOT NULL,
  boot_id TEXT,
  last_seen_ms BIGINT NOT NULL
);
CREATE UNIQUE INDEX hosts_name ON hosts (name) WHERE state <> 'forgotten';
CREATE UNIQUE INDEX hosts_address ON hosts (ssh_address) WHERE state <> 'forgotten' AND ssh_address <> '';

CREATE TABLE tokens (
  hash BLOB PRIMARY KEY,
  host TEXT NOT NULL REFERENCES hosts (id),
  expires_ms BIGINT NOT NULL,
  -- NULL until it is used.
  used_ms BIGINT,
  used_key BLOB
);
CREATE INDEX tokens_host ON tokens (host);

-- Who an agent is: the hash of its public key.
CREATE TABLE keys (
  hash BLOB PRIMARY KEY,
  host TEXT NOT NULL REFERENCES hosts (id),
  created_ms BIGINT NOT NULL,
  -- NULL while it is good.
  revoked_ms BIGINT,
  revoked_why TEXT NOT NULL
);
CREATE INDEX keys_host ON keys (host);

CREATE TABLE certificates (
  serial TEXT PRIMARY KEY,
  key BLOB NOT NULL REFERENCES keys (hash),
  issued_ms BIGINT NOT NULL,
  not_after_ms BIGINT NOT NULL
);
CREATE INDEX certificates_key ON certificates (key);

CREATE TABLE runs (
  no INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  host TEXT NOT NULL REFERENCES hosts (id),
  state TEXT NOT NULL,
  origin TEXT NOT NULL,
  check_only BIGINT NOT NULL,
  created_ms BIGINT NOT NULL,
  finished_ms BIGINT NOT NULL,
  not_after_ms BIGINT NOT NULL,
  plan_sha256 BLOB NOT NULL,
  plan BLOB NOT NULL,
  message TEXT NOT NULL,
  cancel BIGINT NOT NULL,
  -- The dispatch's number: NULL until it was handed to a session.
  seq BIGINT,
  last_event BIGINT NOT NULL,
  last_cursor BIGINT NOT NULL,
  UNIQUE (host, seq)
);
CREATE INDEX runs_open ON runs (host, no) WHERE state IN ('queued', 'running', 'parked');
CREATE INDEX runs_waiting ON runs (not_after_ms) WHERE state = 'queued';
CREATE INDEX runs_host ON runs (host, no);

-- How much of each step's output there is, and how much there will be.
CREATE TABLE steps (
  run BIGINT NOT NULL REFERENCES runs (no),
  address TEXT NOT NULL,
  attempt BIGINT NOT NULL,
  step BIGINT NOT NULL,
  next_frame BIGINT NOT NULL,
  stdout BIGINT NOT NULL,
  stderr BIGINT NOT NULL,
  -- NULL until the step is over.
  frames BIGINT,
  PRIMARY KEY (run, address, attempt, step)
);

-- Events and output of a run in the order they were committed. Each event and each frame has a cursor; a
-- row of output holds several frames, of which last_cursor is the last one's.
CREATE TABLE updates (
  run BIGINT NOT NULL REFERENCES runs (no),
  last_cursor BIGINT NOT NULL,
  items BIGINT NOT NULL,
  kind TEXT NOT NULL,
  body BLOB NOT NULL,
  PRIMARY KEY (run, last_cursor)
);
