-- What a run that assigned profiles found in their places: its undo puts that back.
CREATE TABLE assigned_before (
  run TEXT NOT NULL,
  host TEXT NOT NULL REFERENCES hosts (id),
  name TEXT NOT NULL,
  -- NULL where it was not assigned.
  position BIGINT,
  bundle BLOB,
  vars TEXT,
  assigned_ms BIGINT,
  -- The profile that took its place; an undo puts it back only where that one goes.
  covered_by TEXT,
  -- When the run assigned it, which tells whether it is still the run's; NULL where the run took it away.
  left_ms BIGINT,
  PRIMARY KEY (run, name)
);

-- Names of profiles, JSON, that are not assigned any more once this run has ended well.
ALTER TABLE runs ADD COLUMN unassigns TEXT NOT NULL DEFAULT '[]';
