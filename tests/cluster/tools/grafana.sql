-- What Grafana's PostgreSQL data source asks of a server, for its editor and its panels. Facts from grafana/grafana:
-- plugins/datasource/grafana-postgresql-datasource/postgresMetaQuery.ts, and from its documentation of macros.

SELECT current_setting('server_version_num')::int / 100 AS version;

SELECT extversion FROM pg_extension WHERE extname = 'timescaledb';

-- Schemas.
SELECT schema_name AS "name" FROM information_schema.schemata
WHERE schema_name NOT IN ('information_schema', 'pg_catalog', 'pg_toast', '_timescaledb_config') ORDER BY schema_name;

-- Tables, those of the search path without their schema.
SELECT CASE WHEN quote_ident(table_schema) IN (
        SELECT CASE WHEN trim(s[i]) = '"$user"' THEN user ELSE trim(s[i]) END
        FROM generate_series(array_lower(string_to_array(current_setting('search_path'), ','), 1),
            array_upper(string_to_array(current_setting('search_path'), ','), 1)) AS i, string_to_array(current_setting('search_path'), ',') s)
    THEN quote_ident(table_name) ELSE quote_ident(table_schema) || '.' || quote_ident(table_name) END AS "table"
FROM information_schema.tables WHERE quote_ident(table_schema) NOT IN ('information_schema', 'pg_catalog') ORDER BY 1;

-- Columns of a table.
SELECT quote_ident(column_name) AS "column", data_type AS "type" FROM information_schema.columns
WHERE CASE WHEN array_length(parse_ident('public.orders'), 1) = 2
    THEN quote_ident(table_schema) = (parse_ident('public.orders'))[1] AND quote_ident(table_name) = (parse_ident('public.orders'))[2]
    ELSE quote_ident(table_name) = 'public.orders' END ORDER BY ordinal_position;

-- "Save & test".
SELECT 1;

-- A panel on one customer, with what the macros become.
SELECT floor(extract(epoch from placed_at) / 86400) * 86400 AS "time", sum(total) AS value FROM orders
WHERE customer_id = 5 AND placed_at BETWEEN '1990-01-01T00:00:00Z' AND '2100-01-01T00:00:00Z' GROUP BY 1 ORDER BY 1;

-- A panel on all of them needs every shard.
SELECT date_trunc('day', placed_at) AS "time", count(*) FROM orders WHERE placed_at >= '1990-01-01T00:00:00Z' GROUP BY 1 ORDER BY 1;

-- A variable's list of values, of a table that is whole everywhere.
SELECT name AS __text, code AS __value FROM countries ORDER BY name;
