-- Form 4 of Shardway's own schema: which shards each proxy reaches.

-- The names of those in its configuration; NULL: a proxy of form 3, which does not say.
ALTER TABLE shardway.proxy ADD COLUMN shards text[];
