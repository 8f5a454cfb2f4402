-- Form 1 of Shardway's own schema, made by its control role. Sessions of applications may call decide, nothing else.
GRANT USAGE ON SCHEMA shardway TO PUBLIC;

-- The forms that were made, by which process.
CREATE TABLE shardway.version (
    version int PRIMARY KEY,
    oldest int NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    made_by text NOT NULL
);

-- Which shard of which installation this is.
CREATE TABLE shardway.identity (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    installation text NOT NULL CHECK (installation ~ '^[0-9a-f]{16}$'),
    shard text NOT NULL
);

-- How transactions over several shards end that this shard decides: the first row wins.
CREATE TABLE shardway.decision (
    transaction text COLLATE "C" PRIMARY KEY
        CHECK (transaction ~ '^shardway:1:[0-9a-f]{16}:[0-9a-f]{16}:[0-9a-f]{1,16}:[A-Za-z0-9_.-]{1,63}$'),
    outcome text NOT NULL CHECK (outcome IN ('commit', 'abort')),
    owner name NOT NULL DEFAULT session_user,
    decided_at timestamptz NOT NULL DEFAULT now(),
    xid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE INDEX decision_decided_at ON shardway.decision (decided_at);

-- The processes that serve, on the home shard.
CREATE TABLE shardway.proxy (
    incarnation text PRIMARY KEY,
    number int NOT NULL,
    version text NOT NULL,
    address text,
    started timestamptz NOT NULL DEFAULT now(),
    heartbeat timestamptz NOT NULL DEFAULT now()
);

REVOKE ALL ON ALL TABLES IN SCHEMA shardway FROM PUBLIC;

-- Decides, together with the caller's own transaction, that it commits. The row says who: nobody else's row counts.
CREATE FUNCTION shardway.decide(transaction text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'INSERT INTO shardway.decision (transaction, outcome, owner) VALUES ($1, ''commit'', session_user)';
GRANT EXECUTE ON FUNCTION shardway.decide(text) TO PUBLIC;
