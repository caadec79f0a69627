-- Other addresses at which the host's SSH server was seen to answer, JSON: a guard watches it there too.
ALTER TABLE hosts ADD COLUMN also_at TEXT NOT NULL DEFAULT '[]';
