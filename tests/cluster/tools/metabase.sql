-- What Metabase asks through pgjdbc to connect, to sync tables, fields, keys and privileges, and to ask questions. Facts from
-- metabase/metabase: src/metabase/driver/postgres.clj and driver/sql_jdbc.

SELECT 1;

show timezone;

-- Each question's time zone.
SET SESSION TIMEZONE TO 'Europe/Berlin';

SELECT nspname, typname FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace WHERE t.oid IN (SELECT DISTINCT enumtypid FROM pg_enum e);

-- Tables.
-- differs: estimated_row_count
SELECT n.nspname AS schema, c.relname AS name, CASE c.relkind WHEN 'r' THEN 'TABLE' WHEN 'p' THEN 'PARTITIONED TABLE' WHEN 'v' THEN 'VIEW' ELSE NULL END AS type,
    d.description AS description, stat.n_live_tup AS estimated_row_count
FROM pg_catalog.pg_class AS c INNER JOIN pg_catalog.pg_namespace AS n ON c.relnamespace = n.oid
LEFT JOIN pg_catalog.pg_description AS d ON c.oid = d.objoid AND d.objsubid = 0 AND d.classoid = 'pg_class'::regclass
LEFT JOIN pg_stat_user_tables AS stat ON n.nspname = stat.schemaname AND c.relname = stat.relname
WHERE c.relnamespace = n.oid AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind IN ('r', 'p', 'v', 'f', 'm')
    AND n.nspname IN ('public') ORDER BY type ASC, schema ASC, name ASC;

-- Fields.
SELECT c.column_name AS name, CASE WHEN c.udt_schema IN ('public', 'pg_catalog') THEN FORMAT('%s', c.udt_name) ELSE FORMAT('"%s"."%s"', c.udt_schema, c.udt_name) END AS database_type,
    c.ordinal_position - 1 AS database_position, c.table_name, pk.column_name IS NOT NULL AS is_pk,
    COL_DESCRIPTION(CAST(CAST(FORMAT('%I.%I', CAST(c.table_schema AS TEXT), CAST(c.table_name AS TEXT)) AS REGCLASS) AS OID), c.ordinal_position) AS field_comment,
    (column_default IS NOT NULL AND column_default LIKE '%nextval(%') OR is_identity <> 'NO' AS is_auto_increment
FROM information_schema.columns AS c LEFT JOIN (SELECT tc.table_schema, tc.table_name, kc.column_name FROM information_schema.table_constraints AS tc
    INNER JOIN information_schema.key_column_usage AS kc ON tc.constraint_name = kc.constraint_name AND tc.table_schema = kc.table_schema AND tc.table_name = kc.table_name
    WHERE tc.constraint_type = 'PRIMARY KEY') AS pk ON c.table_schema = pk.table_schema AND c.table_name = pk.table_name AND c.column_name = pk.column_name
WHERE c.table_schema !~ '^information_schema|catalog_history|pg_' AND c.table_schema IN ('public')
UNION ALL SELECT pa.attname, FORMAT('%s', pt.typname), pa.attnum - 1, pc.relname, FALSE, NULL, FALSE
FROM pg_catalog.pg_class AS pc INNER JOIN pg_catalog.pg_namespace AS pn ON pn.oid = pc.relnamespace INNER JOIN pg_catalog.pg_attribute AS pa ON pa.attrelid = pc.oid
INNER JOIN pg_catalog.pg_type AS pt ON pt.oid = pa.atttypid WHERE pc.relkind = 'm' AND pa.attnum >= 1
ORDER BY table_name, database_position;

-- Foreign keys.
SELECT fk_ns.nspname, fk_table.relname, fk_column.attname, pk_table.relname AS to_table, pk_column.attname AS to_column
FROM pg_catalog.pg_constraint AS c INNER JOIN pg_class AS fk_table ON c.conrelid = fk_table.oid INNER JOIN pg_namespace AS fk_ns ON c.connamespace = fk_ns.oid
INNER JOIN pg_attribute AS fk_column ON c.conrelid = fk_column.attrelid INNER JOIN pg_class AS pk_table ON c.confrelid = pk_table.oid
INNER JOIN pg_attribute AS pk_column ON c.confrelid = pk_column.attrelid
WHERE fk_ns.nspname !~ '^information_schema|catalog_history|pg_' AND c.contype = 'f'::char AND fk_column.attnum = ANY (c.conkey) AND pk_column.attnum = ANY (c.confkey)
ORDER BY fk_table.relname, fk_column.attname, to_column;

-- Privileges.
WITH table_privileges AS (SELECT t.schemaname AS schema, t.objectname AS "table",
    pg_catalog.has_any_column_privilege(current_user, '"' || replace(t.schemaname, '"', '""') || '"' || '.' || '"' || replace(t.objectname, '"', '""') || '"', 'update') AS "update",
    pg_catalog.has_table_privilege(current_user, '"' || t.schemaname || '"."' || t.objectname || '"', 'delete') AS "delete"
    FROM (SELECT schemaname, tablename AS objectname FROM pg_catalog.pg_tables UNION SELECT schemaname, viewname FROM pg_catalog.pg_views
        UNION SELECT schemaname, matviewname FROM pg_catalog.pg_matviews) t
    WHERE t.schemaname !~ '^pg_' AND t.schemaname <> 'information_schema' AND pg_catalog.has_schema_privilege(current_user, t.schemaname, 'usage'))
SELECT * FROM table_privileges ORDER BY schema, "table";

-- What pgjdbc asks for getTables.
SELECT current_database() AS table_cat, n.nspname AS table_schem, c.relname AS table_name, CASE n.nspname ~ '^pg_' OR n.nspname = 'information_schema'
    WHEN true THEN CASE c.relkind WHEN 'r' THEN 'SYSTEM TABLE' ELSE NULL END WHEN false THEN CASE c.relkind WHEN 'r' THEN 'TABLE' WHEN 'v' THEN 'VIEW' ELSE NULL END ELSE NULL END AS table_type
FROM pg_catalog.pg_namespace n, pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_description d ON (c.oid = d.objoid AND d.objsubid = 0 AND d.classoid = 'pg_class'::regclass)
WHERE c.relnamespace = n.oid AND n.nspname LIKE 'public' AND c.relkind IN ('r', 'v') ORDER BY table_type, table_schem, table_name;

-- A question on one customer, with the comment that it puts before each.
-- Metabase:: userID: 1 queryType: MBQL queryHash: 5f4dcc3b
SELECT DATE_TRUNC('month', "public"."orders"."placed_at") AS "placed_at", SUM("public"."orders"."total") AS "sum" FROM "public"."orders"
WHERE "public"."orders"."customer_id" = 5 GROUP BY DATE_TRUNC('month', "public"."orders"."placed_at") ORDER BY DATE_TRUNC('month', "public"."orders"."placed_at") ASC;

-- Its look at a field's values, for fingerprints and filters: of all rows.
-- in any order
SELECT SUBSTRING("public"."customers"."name", 1, 1234) AS "substring" FROM "public"."customers" LIMIT 10000;

SELECT "public"."countries"."code" AS "code" FROM "public"."countries" GROUP BY "public"."countries"."code" ORDER BY "public"."countries"."code" ASC LIMIT 1001;
