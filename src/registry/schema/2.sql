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
