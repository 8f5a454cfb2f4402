-- What DBeaver asks through pgjdbc when it connects and opens its tree. Facts from dbeaver/dbeaver:
-- ext.postgresql/model/PostgreDataSource.java, PostgreExecutionContext.java, PostgreSchema.java, PostgreDataTypeCache.java.

SET extra_float_digits = 3;

SET application_name = 'DBeaver 25 - Main';

-- Where it is, and as whom.
SELECT current_schema(), session_user;

SHOW search_path;

SELECT string_agg(word, ',') AS words FROM pg_catalog.pg_get_keywords() WHERE word <> ALL ('{a,select,from}'::text[]);

SELECT version();

-- Databases.
-- columns only
SELECT db.oid, db.* FROM pg_catalog.pg_database db WHERE NOT datistemplate AND datallowconn ORDER BY db.datname;

SELECT * FROM pg_catalog.pg_settings WHERE name = 'standard_conforming_strings';

-- Roles, tablespaces, languages, access methods.
SELECT a.rolname, a.rolcanlogin FROM pg_catalog.pg_roles a WHERE rolname IN ('app', 'postgres') ORDER BY a.rolname;

SELECT t.oid, t.*, pg_catalog.pg_tablespace_location(t.oid) AS loc FROM pg_catalog.pg_tablespace t ORDER BY t.oid;

SELECT l.oid, l.* FROM pg_catalog.pg_language l ORDER BY l.oid;

-- Schemas with what is said of them.
SELECT n.oid, n.*, d.description FROM pg_catalog.pg_namespace n
LEFT OUTER JOIN pg_catalog.pg_description d ON d.objoid = n.oid AND d.objsubid = 0 AND d.classoid = 'pg_namespace'::regclass
WHERE nspname IN ('public', 'pg_catalog') ORDER BY nspname;

-- Types of a schema.
SELECT t.oid, t.typname, c.relkind, format_type(nullif(t.typbasetype, 0), t.typtypmod) AS base_type_name, d.description
FROM pg_catalog.pg_type t LEFT OUTER JOIN pg_catalog.pg_type et ON et.oid = t.typelem
LEFT OUTER JOIN pg_catalog.pg_class c ON c.oid = t.typrelid LEFT OUTER JOIN pg_catalog.pg_description d ON t.oid = d.objoid
WHERE t.typname IS NOT NULL AND (c.relkind IS NULL OR c.relkind = 'c') AND (et.typcategory IS NULL OR et.typcategory <> 'C')
    AND t.typnamespace = 'pg_catalog'::regnamespace ORDER BY t.oid;

-- Tables of a schema, every column of their rows in the catalog.
-- differs: relpages, reltuples, relallvisible, relfilenode, relfrozenxid, relminmxid
SELECT c.oid, c.*, d.description, pg_catalog.pg_get_expr(c.relpartbound, c.oid) AS partition_expr, pg_catalog.pg_get_partkeydef(c.oid) AS partition_key,
    (SELECT array_agg(i.inhparent) FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid) parents
FROM pg_catalog.pg_class c LEFT OUTER JOIN pg_catalog.pg_description d ON d.objoid = c.oid AND d.objsubid = 0 AND d.classoid = 'pg_class'::regclass
WHERE c.relnamespace = {schema} AND c.relkind NOT IN ('i','I','c') ORDER BY c.oid;

-- Columns.
SELECT c.relname, a.*, pg_catalog.pg_get_expr(ad.adbin, ad.adrelid, true) AS def_value, dsc.description, dep.objid
FROM pg_catalog.pg_attribute a INNER JOIN pg_catalog.pg_class c ON a.attrelid = c.oid
LEFT OUTER JOIN pg_catalog.pg_attrdef ad ON a.attrelid = ad.adrelid AND a.attnum = ad.adnum
LEFT OUTER JOIN pg_catalog.pg_description dsc ON c.oid = dsc.objoid AND a.attnum = dsc.objsubid
LEFT OUTER JOIN pg_depend dep ON dep.refobjid = a.attrelid AND dep.deptype = 'i' AND dep.refobjsubid = a.attnum AND dep.classid = dep.refclassid
WHERE NOT a.attisdropped AND c.relkind NOT IN ('i','I','c') AND c.oid = {table} ORDER BY a.attnum;

-- Constraints and indexes.
SELECT c.oid, c.*, t.relname AS tabrelname, rt.relnamespace AS refnamespace, d.description, pg_catalog.pg_get_constraintdef(c.oid) AS definition
FROM pg_catalog.pg_constraint c INNER JOIN pg_catalog.pg_class t ON t.oid = c.conrelid
LEFT OUTER JOIN pg_catalog.pg_class rt ON rt.oid = c.confrelid LEFT OUTER JOIN pg_catalog.pg_description d ON d.objoid = c.oid
WHERE t.relnamespace = {schema} ORDER BY c.oid;

SELECT i.*, i.indkey AS keys, c.relname, tc.relname AS tabrelname, pg_catalog.pg_get_expr(i.indpred, i.indrelid) AS pred_expr,
    pg_catalog.pg_get_indexdef(i.indexrelid, 1, true) AS first_column
FROM pg_catalog.pg_index i INNER JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid INNER JOIN pg_catalog.pg_class tc ON tc.oid = i.indrelid
WHERE c.relnamespace = {schema} ORDER BY tc.relname, c.relname;

-- Sizes, of one server's share.
-- columns only
SELECT c.oid, pg_catalog.pg_total_relation_size(c.oid) AS total_size, pg_catalog.pg_relation_size(c.oid) AS size
FROM pg_class c WHERE c.relnamespace = {schema} AND c.relkind IN ('r', 'p') ORDER BY c.oid;

-- Functions and triggers.
SELECT p.oid, p.proname, l.lanname, pg_catalog.pg_get_expr(p.proargdefaults, 0) AS arg_defaults
FROM pg_catalog.pg_proc p LEFT OUTER JOIN pg_catalog.pg_language l ON l.oid = p.prolang WHERE p.pronamespace = {schema} ORDER BY p.proname;

SELECT x.oid, x.*, p.pronamespace AS func_schema_id FROM pg_catalog.pg_trigger x LEFT OUTER JOIN pg_catalog.pg_proc p ON p.oid = x.tgfoid
WHERE x.tgrelid = {table} AND NOT x.tgisinternal;

-- What pgjdbc asks for getPrimaryKeys.
SELECT result.table_name, result.column_name, result.key_seq, result.pk_name FROM (
    SELECT ct.relname AS table_name, a.attname AS column_name, (information_schema._pg_expandarray(i.indkey)).n AS key_seq,
        ci.relname AS pk_name, information_schema._pg_expandarray(i.indkey) AS keys, a.attnum AS a_attnum
    FROM pg_catalog.pg_class ct JOIN pg_catalog.pg_attribute a ON ct.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON ct.relnamespace = n.oid
    JOIN pg_catalog.pg_index i ON a.attrelid = i.indrelid JOIN pg_catalog.pg_class ci ON ci.oid = i.indexrelid
    WHERE n.nspname = 'public' AND ct.relname = 'orders' AND i.indisprimary) result
WHERE result.a_attnum = (result.keys).x ORDER BY result.table_name, result.pk_name, result.key_seq;

-- Opening a table's data: the rows of all shards.
-- in any order
SELECT x.* FROM public.orders x;

SELECT x.* FROM public.orders x WHERE customer_id = 5 ORDER BY id;
