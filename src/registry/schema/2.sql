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
-- ---- Ids ----
-- Ids are 41 bits of milliseconds since 2024, 10 bits of a node, 12 bits that count.

-- On the home shard: who gives ids as which node, and the first millisecond that nobody has used as it yet.
CREATE TABLE shardway.node (
    node int PRIMARY KEY CHECK (node BETWEEN 0 AND 1023),
    holder text NOT NULL UNIQUE,
    until bigint NOT NULL
);

-- On each shard: the node that it is itself.
CREATE TABLE shardway.this_node (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    node int NOT NULL CHECK (node BETWEEN 0 AND 1023)
);
REVOKE ALL ON shardway.node, shardway.this_node FROM PUBLIC;

-- What this shard gave last: milliseconds, then the count. Never goes back.
CREATE SEQUENCE shardway.id_clock;
REVOKE ALL ON SEQUENCE shardway.id_clock FROM PUBLIC;

-- An id that nobody else gives. The lock is let go with the inner block, which always ends with an error: two callers never
-- move the clock at once, and what a sequence has given is not undone.
CREATE FUNCTION shardway.next_id() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS '
DECLARE
    own int;
    shown bigint;
    given bigint;
BEGIN
    SELECT node INTO own FROM shardway.this_node;
    IF own IS NULL THEN
        RAISE EXCEPTION ''this shard has no number for ids yet''
            USING ERRCODE = ''object_not_in_prerequisite_state'', HINT = ''A proxy gives it one when it has reached all shards.'';
    END IF;
    BEGIN
        PERFORM pg_advisory_xact_lock(1936219250, 1684108385);
        shown := floor(extract(epoch FROM clock_timestamp() - ''2024-01-01 00:00:00+00''::timestamptz) * 1000)::bigint << 12;
        given := nextval(''shardway.id_clock'');
        IF given < shown THEN
            given := setval(''shardway.id_clock'', shown);
        END IF;
        RAISE EXCEPTION USING ERRCODE = ''SWID0'';
    EXCEPTION WHEN SQLSTATE ''SWID0'' THEN
        NULL;
    END;
    RETURN ((given >> 12) << 22) | (own::bigint << 12) | (given & 4095);
END';
GRANT EXECUTE ON FUNCTION shardway.next_id() TO PUBLIC;

-- What PostgreSQL's functions of these names gave, with their names: a session's last numbers, which its proxy knows.
CREATE FUNCTION shardway.currval(drawn bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT drawn';
CREATE FUNCTION shardway.lastval(drawn bigint) RETURNS bigint LANGUAGE sql IMMUTABLE AS 'SELECT drawn';
GRANT EXECUTE ON FUNCTION shardway.currval(bigint), shardway.lastval(bigint) TO PUBLIC;

-- Up to so many numbers of a sequence, as the caller may draw them: fewer where it ends.
CREATE FUNCTION shardway.draw(sequence regclass, wanted int) RETURNS bigint[]
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS '
DECLARE
    drawn bigint[] := ''{}'';
BEGIN
    BEGIN
        FOR at IN 1 .. wanted LOOP
            drawn := drawn || nextval(sequence);
        END LOOP;
    EXCEPTION WHEN sequence_generator_limit_exceeded THEN
        IF cardinality(drawn) = 0 THEN
            RAISE;
        END IF;
    END;
    RETURN drawn;
END';
GRANT EXECUTE ON FUNCTION shardway.draw(regclass, int) TO PUBLIC;

-- Lends a node to a holder: the one it has, else one that was never used, else that whose time ended longest ago. Nobody
-- else gives ids as it from "from" until "until"; "shown" is this server's clock.
CREATE FUNCTION shardway.lend(holder text, length bigint, OUT node int, OUT "from" bigint, OUT until bigint, OUT shown bigint)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS '
BEGIN
    LOCK TABLE shardway.node IN SHARE ROW EXCLUSIVE MODE;
    shown := floor(extract(epoch FROM clock_timestamp() - ''2024-01-01 00:00:00+00''::timestamptz) * 1000)::bigint;
    SELECT n.node, n.until INTO node, "from" FROM shardway.node n WHERE n.holder = lend.holder;
    IF node IS NULL THEN
        SELECT free, 0 INTO node, "from" FROM generate_series(0, 1023) free
            WHERE NOT EXISTS (SELECT FROM shardway.node n WHERE n.node = free) ORDER BY free LIMIT 1;
    END IF;
    IF node IS NULL THEN
        SELECT n.node, n.until INTO node, "from" FROM shardway.node n
            WHERE n.until < 2199023255552 ORDER BY n.until LIMIT 1;
    END IF;
    IF node IS NULL THEN
        RAISE EXCEPTION ''all numbers for ids belong to shards'';
    END IF;
    "from" := greatest("from", shown);
    until := least("from" + length, 2199023255552);
    INSERT INTO shardway.node AS n (node, holder, until) VALUES (lend.node, lend.holder, lend.until)
        ON CONFLICT ON CONSTRAINT node_pkey DO UPDATE SET holder = excluded.holder, until = excluded.until;
END';
REVOKE ALL ON FUNCTION shardway.lend(text, bigint) FROM PUBLIC;

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

-- ---- where tables live that only their CREATE TABLE says: on each shard that has the table ----

-- Follows the table, whatever it is called; what is dropped is forgotten.
CREATE TABLE shardway.placement (
    relation regclass PRIMARY KEY,
    kind text NOT NULL CHECK (kind IN ('sharded', 'reference', 'single')),
    "group" text,
    key_column text,
    owned boolean NOT NULL CHECK (owned),
    placed_at timestamptz NOT NULL DEFAULT now(),
    CHECK ((kind = 'sharded') = ("group" IS NOT NULL) AND ("group" IS NULL) = (key_column IS NULL))
);
REVOKE ALL ON shardway.placement FROM PUBLIC;

-- Says where a table lives, as part of the caller's transaction. Only who owns the table may.
CREATE FUNCTION shardway.place(relation regclass, kind text, "group" text, key_column text) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS 'INSERT INTO shardway.placement AS p (relation, kind, "group", key_column, owned)
    SELECT $1, $2, $3, $4, pg_has_role(session_user, c.relowner, ''MEMBER'') FROM pg_class c WHERE c.oid = $1
    ON CONFLICT (relation) DO UPDATE SET kind = excluded.kind, "group" = excluded."group",
        key_column = excluded.key_column, placed_at = now()';
GRANT EXECUTE ON FUNCTION shardway.place(regclass, text, text, text) TO PUBLIC;

-- ---- which keys each shard owns: one row on the home shard ----

-- Changed by compare-and-swap of the number alone. The shards' own copies, by which a mistaken one is found, come with
-- moves of keys between shards.
CREATE TABLE shardway.map (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL,
    content jsonb NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    made_by text NOT NULL
);
REVOKE ALL ON shardway.map FROM PUBLIC;
