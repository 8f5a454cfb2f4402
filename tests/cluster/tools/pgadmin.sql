-- What pgAdmin 4 asks when it connects, opens its tree and its dashboard: the same catalogs, functions and constructs in
-- short statements of our own. Facts from pgadmin-org/pgadmin4: utils/driver/psycopg3/connection.py, the templates of
-- browser/server_groups/servers/databases, and of dashboard.

-- Its settings, in one message.
SET DateStyle=ISO; SET client_min_messages=notice; SELECT set_config('bytea_output','hex',false) FROM pg_settings WHERE name = 'bytea_output'; SET client_encoding='UTF8';

-- The same, as newer versions say it.
SET DateStyle=ISO; SET client_min_messages=notice; SELECT set_config('bytea_output','hex',false) FROM pg_show_all_settings() WHERE name = 'bytea_output'; SET client_encoding='utf-8';

SHOW bytea_output;

SELECT version();

-- The database it is in.
SELECT db.datname, db.datallowconn, pg_encoding_to_char(db.encoding) AS encoding,
    has_database_privilege(db.oid, 'CREATE') AS may_create, datistemplate
FROM pg_catalog.pg_database db WHERE db.datname = current_database();

SELECT gss_authenticated, encrypted FROM pg_catalog.pg_stat_gssapi WHERE pid = pg_backend_pid();

-- Who it is, with every role that this is a member of.
SELECT r.rolname, r.rolsuper, CASE WHEN r.rolsuper THEN true ELSE r.rolcreatedb END AS may_create_databases,
    'pg_signal_backend' = ANY (ARRAY(WITH RECURSIVE up AS (
        SELECT oid, rolname FROM pg_roles WHERE oid = r.oid
        UNION ALL SELECT m.roleid, p.rolname FROM up JOIN pg_auth_members m ON m.member = up.oid JOIN pg_roles p ON p.oid = m.roleid)
        SELECT rolname FROM up)) AS may_signal
FROM pg_catalog.pg_roles AS r WHERE rolname = current_user;

-- Whether its agent is installed.
SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'pgagent' AND c.relname = 'pga_job') AS agent;

-- Databases.
-- differs: did, owner
SELECT db.oid AS did, db.datname AS name, ta.spcname, db.datallowconn, db.datdba AS owner,
    pg_catalog.has_database_privilege(db.oid, 'CREATE') AS may_create
FROM pg_catalog.pg_database db LEFT OUTER JOIN pg_catalog.pg_tablespace ta ON db.dattablespace = ta.oid
WHERE db.oid = {database}::oid ORDER BY datname;

-- Schemas.
SELECT n.oid, n.nspname, has_schema_privilege(n.oid, 'CREATE') AS may_create, has_schema_privilege(n.oid, 'USAGE') AS may_use
FROM pg_namespace n WHERE n.nspname NOT LIKE 'pg\_%' AND NOT (n.nspname = 'information_schema'
    AND EXISTS (SELECT 1 FROM pg_class WHERE relname = 'tables' AND relnamespace = n.oid LIMIT 1)) ORDER BY nspname;

-- Tables.
SELECT rel.oid, rel.relname AS name, (SELECT count(*) FROM pg_trigger WHERE tgrelid = rel.oid AND NOT tgisinternal) AS triggers,
    (SELECT count(1) FROM pg_inherits WHERE inhrelid = rel.oid LIMIT 1) AS is_child, rel.relkind, des.description
FROM pg_class rel LEFT JOIN pg_description des ON des.objoid = rel.oid AND des.objsubid = 0 AND des.classoid = 'pg_class'::regclass
WHERE rel.relkind IN ('r','s','t','p') AND rel.relnamespace = {schema}::oid AND NOT rel.relispartition ORDER BY rel.relname;

-- A table's properties.
-- differs: reltuples
SELECT rel.oid, rel.relname, rel.reltuples::bigint, con.conname, con.conkey, pg_get_userbyid(rel.relowner) AS owner,
    (SELECT nspname FROM pg_namespace WHERE oid = {schema}::oid) AS schema, rel.relacl::text,
    substring(array_to_string(rel.reloptions, ',') FROM 'fillfactor=([0-9]*)') AS fillfactor,
    (SELECT array_agg(provider || '=' || label) FROM pg_seclabels l WHERE l.objoid = rel.oid AND l.objsubid = 0) AS labels,
    CASE WHEN rel.reltoastrelid = 0 THEN false ELSE true END AS has_toast
FROM pg_class rel LEFT OUTER JOIN pg_constraint con ON con.conrelid = rel.oid AND con.contype = 'p'
    LEFT OUTER JOIN pg_class tst ON tst.oid = rel.reltoastrelid LEFT JOIN pg_type typ ON rel.reloftype = typ.oid
WHERE rel.oid = {table}::oid;

-- Its columns.
SELECT att.attname, att.attnum, format_type(ty.oid, att.atttypmod) AS type, pg_get_expr(def.adbin, def.adrelid) AS fallback,
    CASE WHEN length(coll.collname::text) > 0 THEN concat(quote_ident(nspc.nspname), '.', quote_ident(coll.collname)) ELSE '' END AS collation,
    EXISTS (SELECT 1 FROM pg_constraint WHERE conrelid = att.attrelid AND contype = 'f' AND att.attnum = ANY (conkey)) AS is_foreign
FROM pg_attribute att JOIN pg_type ty ON ty.oid = atttypid LEFT OUTER JOIN pg_attrdef def ON adrelid = att.attrelid AND adnum = att.attnum
    LEFT OUTER JOIN pg_collation coll ON att.attcollation = coll.oid LEFT OUTER JOIN pg_namespace nspc ON coll.collnamespace = nspc.oid
WHERE att.attrelid = {table}::oid AND att.attnum > 0 AND att.attisdropped IS FALSE ORDER BY att.attnum;

-- Its indexes and constraints, as statements that would make them.
SELECT cls.relname, pg_get_indexdef(idx.indexrelid) AS definition, indisunique, indisprimary, am.amname
FROM pg_index idx JOIN pg_class cls ON cls.oid = indexrelid JOIN pg_am am ON am.oid = cls.relam
WHERE indrelid = {table}::oid ORDER BY cls.relname;

SELECT conname, contype, pg_get_constraintdef(oid, true) AS definition, obj_description(oid, 'pg_constraint')
FROM pg_catalog.pg_constraint WHERE conrelid = {table}::oid ORDER BY conname;

-- The dashboard.
-- columns only
/*pga4dash*/ SELECT 'session_stats' AS chart_name, row_to_json(t)::jsonb AS chart_data FROM (SELECT
    (SELECT count(*) FROM pg_stat_activity WHERE datname = (SELECT datname FROM pg_database WHERE oid = {database})) AS "Total") t
UNION ALL SELECT 'tps_stats', row_to_json(t)::jsonb FROM (SELECT (SELECT sum(xact_commit) + sum(xact_rollback) FROM pg_stat_database) AS "Transactions") t;

-- columns only
/*pga4dash*/ SELECT pid, datname, usename, wait_event_type || ': ' || wait_event AS waits, pg_blocking_pids(pid) AS blocked_by,
    to_char(backend_start, 'YYYY-MM-DD HH24:MI:SS TZ') AS since, query, backend_type FROM pg_stat_activity
WHERE datname = (SELECT datname FROM pg_database WHERE oid = {database}) ORDER BY pid;

-- columns only
/*pga4dash*/ SELECT locktype, datname, relation::regclass, virtualxid, mode, granted FROM pg_locks l
LEFT OUTER JOIN pg_database d ON l.database = d.oid ORDER BY pid, locktype LIMIT 1;

SELECT name, category, setting IS NOT NULL AS is_set, context FROM pg_settings WHERE name IN ('work_mem', 'DateStyle', 'search_path') ORDER BY name;

-- "View data" of all rows has no key: they are those of all shards.
SELECT * FROM public.customers ORDER BY id ASC LIMIT 100;

-- With a filter on the key it is answered.
SELECT * FROM public.customers WHERE id = 5 ORDER BY id ASC;

-- A table that is whole everywhere.
SELECT * FROM public.countries ORDER BY code ASC;

-- EXPLAIN of its query tool.
SELECT 1 AS before_explain;

-- columns only
EXPLAIN (FORMAT JSON, ANALYZE FALSE, VERBOSE FALSE) SELECT * FROM customers WHERE id = 5;

-- Stopping another backend: a backend's number means something on one server only.
-- refused: SW112
SELECT pg_cancel_backend(0) AS stopped;
