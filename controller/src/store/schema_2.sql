-- How a run's plan is to be executed, as JSON, instead of the one word that it checks only.
ALTER TABLE runs ADD COLUMN terms TEXT NOT NULL DEFAULT '{}';
UPDATE runs SET terms = '{"check":true}' WHERE check_only <> 0;
ALTER TABLE runs DROP COLUMN check_only;
-- The run that this one resumes or takes back.
ALTER TABLE runs ADD COLUMN resumes TEXT;
ALTER TABLE runs ADD COLUMN undoes TEXT;

-- Values for profiles' variables, JSON.
ALTER TABLE hosts ADD COLUMN vars TEXT NOT NULL DEFAULT '{}';
-- 1 after a restore from a backup: the agent may have seen higher epochs and numbers of dispatches than are
-- recorded here. The next session takes them over.
ALTER TABLE hosts ADD COLUMN behind BIGINT NOT NULL DEFAULT 0;

-- The profiles that a host is to have, in the order in which they compose.
CREATE TABLE assigned (
  host TEXT NOT NULL REFERENCES hosts (id),
  name TEXT NOT NULL,
  position BIGINT NOT NULL,
  bundle BLOB NOT NULL,
  vars TEXT NOT NULL,
  assigned_ms BIGINT NOT NULL,
  PRIMARY KEY (host, name)
);

-- Values of secrets, each encrypted with the key that lies apart from this file. The newest row of a secret
-- that was removed stays without its value, so that no version ever means two values.
CREATE TABLE secrets (
  name TEXT NOT NULL,
  version BIGINT NOT NULL,
  set_ms BIGINT NOT NULL,
  nonce BLOB,
  ciphertext BLOB,
  PRIMARY KEY (name, version)
);
