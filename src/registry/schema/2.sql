-- Form 2 of Shardway's own schema.

-- Transactions over several shards that wait for somebody's lock, on the home shard: what proxies tell each other so that
-- rings of waits over shards are found. Nothing in it outlives the wait; what its proxy does not renew is removed.
CREATE UNLOGGED TABLE shardway.waiting (
    -- A database of a process.
    owner text NOT NULL CHECK (owner ~ '^[0-9a-f]{16}$'),
    number bigint NOT NULL,
    shard text NOT NULL,
    -- The backend there, and the server's name of its transaction.
    pid int NOT NULL,
    virtual text NOT NULL,
    -- What its prepared parts are called, while it is being committed.
    transaction text,
    begun timestamptz NOT NULL,
    seen timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, number, shard)
);
REVOKE ALL ON shardway.waiting FROM PUBLIC;
