-- Form 3 of Shardway's own schema: what resharding keeps.

-- ---- On the home shard ----
-- Which process runs reshards. The token grows with every change of holder: what an earlier holder still does is refused.
CREATE TABLE shardway.leader (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    holder text,
    token bigint NOT NULL DEFAULT 0,
    until timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO shardway.leader DEFAULT VALUES;

-- Reshards. Changed by compare-and-swap of version and token alone.
CREATE TABLE shardway.workflow (
    id text PRIMARY KEY CHECK (id ~ '^[a-z][a-z0-9_]{0,19}$'),
    state text NOT NULL,
    -- Of the cutover: which of its steps was recorded.
    step text,
    attempt int NOT NULL DEFAULT 0,
    -- 'forward', or 'back' while and after a rollback.
    direction text NOT NULL DEFAULT 'forward' CHECK (direction IN ('forward', 'back')),
    -- How often the owners have changed because of it, and the round of verification.
    flips int NOT NULL DEFAULT 0,
    round int NOT NULL DEFAULT 0,
    token bigint NOT NULL,
    version bigint NOT NULL DEFAULT 1,
    -- What the operator wants next: 'cutover', 'rollback', 'finish', 'abort', 'verify'; and whether it stands still.
    wanted text,
    paused boolean NOT NULL DEFAULT false,
    plan jsonb NOT NULL,
    knobs jsonb NOT NULL DEFAULT '{}',
    -- What is shown; nothing is decided by it.
    progress jsonb NOT NULL DEFAULT '{}',
    error jsonb,
    made_at timestamptz NOT NULL DEFAULT now(),
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- One at a time.
CREATE UNIQUE INDEX workflow_one ON shardway.workflow ((true)) WHERE state NOT IN ('done', 'aborted');

-- Every transition, in order. Nothing is ever taken away.
CREATE TABLE shardway.journal (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workflow text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    token bigint NOT NULL,
    event text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX journal_workflow ON shardway.journal (workflow, id);

-- Statements that proxies hold back during a cutover. 'held' to 'released' or 'committed', each once per attempt.
CREATE TABLE shardway.hold (
    workflow text PRIMARY KEY,
    attempt int NOT NULL,
    state text NOT NULL CHECK (state IN ('held', 'released', 'committed')),
    -- A list of sets of keys, by group.
    moving jsonb NOT NULL,
    begun timestamptz NOT NULL DEFAULT clock_timestamp(),
    deadline timestamptz NOT NULL,
    -- Committed, and the new owners do not know it yet; or released by its deadline, and guards may be on. Statements are
    -- held until that is settled, or the deadline; since when somebody is at it.
    activating boolean NOT NULL DEFAULT false,
    helped timestamptz,
    -- When statements were let go, attempts since the last commit, and for how many milliseconds the earlier of them held.
    ended timestamptz,
    tries int NOT NULL DEFAULT 1,
    spent float8 NOT NULL DEFAULT 0
);

-- What each proxy says of a hold: it holds, and nothing that touches the keys is under way.
CREATE TABLE shardway.held (
    workflow text NOT NULL,
    attempt int NOT NULL,
    incarnation text NOT NULL,
    drained boolean NOT NULL,
    -- Who is still at it, for people.
    waiting_for text,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Once its statements were let go: how many have waited and how many of them failed, and their waits in milliseconds,
    -- the longest and all together.
    statements bigint,
    failed bigint,
    longest float8,
    waited float8,
    PRIMARY KEY (workflow, attempt, incarnation)
);

-- What was found when both sides were compared.
CREATE TABLE shardway.verify (
    workflow text NOT NULL,
    source text NOT NULL,
    destination text NOT NULL,
    relation text NOT NULL,
    part int NOT NULL,
    rows bigint NOT NULL,
    found jsonb NOT NULL DEFAULT '[]',
    round int NOT NULL DEFAULT 1,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (workflow, source, destination, relation, part)
);

-- What a reshard makes on servers, written down before it is made; gone when it is gone.
CREATE TABLE shardway.cleanup (
    workflow text NOT NULL,
    shard text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('publication', 'slot', 'guard', 'table', 'rows', 'records', 'sequence')),
    name text NOT NULL,
    detail jsonb NOT NULL DEFAULT '{}',
    PRIMARY KEY (workflow, shard, kind, name)
);

-- Which servers take part: whoever answers at their addresses has to be these.
CREATE TABLE shardway.server (
    workflow text NOT NULL,
    shard text NOT NULL,
    -- As IDENTIFY_SYSTEM tells them.
    system text NOT NULL,
    timeline bigint NOT NULL,
    PRIMARY KEY (workflow, shard)
);

-- Where the chunks of a table begin, settled once: src/replication/chunks.rs says how.
CREATE TABLE shardway.chunk (
    workflow text NOT NULL,
    source text NOT NULL,
    relation text NOT NULL,
    chunk int NOT NULL,
    -- The text of each column of the primary key; NULL: no bound. The first is in it, the second is not.
    low text[],
    high text[],
    token bigint NOT NULL,
    PRIMARY KEY (workflow, source, relation, chunk)
);

-- ---- On each destination, written with the data ----
CREATE TABLE shardway.chunk_done (
    workflow text NOT NULL,
    source text NOT NULL,
    relation text NOT NULL,
    chunk int NOT NULL,
    -- As in shardway.chunk.
    low text[],
    high text[],
    -- pg_current_snapshot() on the source.
    snapshot text NOT NULL,
    rows bigint NOT NULL,
    -- As they were copied.
    bytes bigint NOT NULL,
    token bigint NOT NULL,
    PRIMARY KEY (workflow, source, relation, chunk)
);
CREATE TABLE shardway.apply_progress (
    workflow text NOT NULL,
    source text NOT NULL,
    lsn pg_lsn NOT NULL,
    token bigint NOT NULL,
    -- The last fence of this source that was seen.
    fence int NOT NULL DEFAULT 0,
    PRIMARY KEY (workflow, source)
);
-- What a reshard makes of the schema of a shard that joins: statements for when the rows are there, in their order, each
-- marked in its own transaction.
CREATE TABLE shardway.schema_step (
    workflow text NOT NULL,
    place int NOT NULL,
    phase text NOT NULL CHECK (phase IN ('key', 'index', 'foreign', 'validate', 'rest')),
    statement text NOT NULL,
    done boolean NOT NULL DEFAULT false,
    PRIMARY KEY (workflow, place)
);
-- What it has made there, written with it: objects as pg_identify_object names them.
CREATE TABLE shardway.made (
    workflow text NOT NULL,
    kind text NOT NULL,
    name text NOT NULL,
    place int NOT NULL,
    PRIMARY KEY (workflow, kind, name)
);
-- From which number of the map on this shard owns what it was given.
CREATE TABLE shardway.activation (
    workflow text NOT NULL,
    attempt int NOT NULL,
    -- Of the cutover.
    direction text NOT NULL CHECK (direction IN ('forward', 'back')),
    epoch bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (workflow, attempt)
);

-- ---- On each source ----
-- Heartbeats (attempt 0) and fences; part of the publication.
CREATE TABLE shardway.fence (
    workflow text NOT NULL,
    attempt int NOT NULL,
    token bigint NOT NULL,
    beat bigint NOT NULL DEFAULT 0,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (workflow, attempt)
);
-- On each source and destination: who may change guards and copy rows. A lower token may not.
CREATE TABLE shardway.runner (
    workflow text PRIMARY KEY,
    token bigint NOT NULL,
    -- What guards let its sessions pass by that may not say that their rows are a replica's: another one for each token.
    pass text NOT NULL DEFAULT gen_random_uuid()::text
);

REVOKE ALL ON shardway.leader, shardway.workflow, shardway.journal, shardway.hold, shardway.held, shardway.verify,
    shardway.cleanup, shardway.server, shardway.chunk, shardway.chunk_done, shardway.apply_progress, shardway.schema_step, shardway.made,
    shardway.activation, shardway.fence, shardway.runner FROM PUBLIC;
