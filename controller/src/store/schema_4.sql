-- What a host has of memory and disk, MiB, as of its last hello; NULL where its agent did not say.
ALTER TABLE hosts ADD COLUMN memory_mb BIGINT;
ALTER TABLE hosts ADD COLUMN swap_mb BIGINT;
ALTER TABLE hosts ADD COLUMN disk_free_mb BIGINT;
ALTER TABLE hosts ADD COLUMN var_free_mb BIGINT;
