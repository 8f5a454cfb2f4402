-- Form 2 of Shardway's own schema.

-- ---- what the proxies agree on: rows on the home shard alone ----

-- How often the schema has changed through a proxy. Whoever sees a number knows what was committed before it.
CREATE TABLE shardway.epoch (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL
);
INSERT INTO shardway.epoch (epoch) VALUES (1);
REVOKE ALL ON shardway.epoch FROM PUBLIC;

-- Schema changes under way: written before one is committed, deleted together with the next number.
CREATE TABLE shardway.change (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    incarnation text NOT NULL,
    begun timestamptz NOT NULL DEFAULT now()
);
REVOKE ALL ON shardway.change FROM PUBLIC;

-- The number up to which a process knows of all changes; null: of none.
ALTER TABLE shardway.proxy ADD COLUMN epoch bigint;
