-- Where a host's SSH server listens, JSON, as its agent last said.
ALTER TABLE hosts ADD COLUMN ssh_ports TEXT NOT NULL DEFAULT '[]';
-- What a run is to make of the port of SSH, open or closed: NULL for all other runs. The last of a host's that ended
-- well says what is declared.
ALTER TABLE runs ADD COLUMN ssh_port TEXT;
CREATE INDEX runs_ssh_port ON runs (host, no) WHERE ssh_port IS NOT NULL;
