//! PREPARE, EXECUTE and DEALLOCATE as SQL: they are the protocol's statements by other words, and keep no backend.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, Stage, Way, postgres, same},
};

/// The answers to these texts, each a Query of its own.
fn all(stage: &mut Stage, texts: &[&str]) -> Vec<String> {
    texts.iter().flat_map(|text| stage.query(text)).collect()
}

/// A name that this way alone uses.
fn own(stage: &Stage, name: &str) -> String {
    format!("{name}_{:?}", stage.way).to_lowercase()
}

/// The lines without descriptions of rows, which name tables by their numbers.
fn rows(mut lines: Vec<String>) -> Vec<String> {
    lines.retain(|line| !line.starts_with('T'));
    lines
}

/// The lines without what tells the ways apart.
fn without(lines: Vec<String>, name: &str, plain: &str) -> Vec<String> {
    rows(lines)
        .into_iter()
        .map(|line| line.replace(name, plain))
        .collect()
}

#[test]
fn what_sql_prepares_follows_its_session_from_backend_to_backend() {
    same(|stage| {
        let seen = all(
            stage,
            &[
                "prepare one as select $1::int + 1 as n, 'one'",
                "execute one(1)",
                "execute one(2)",
                "  /* with a remark */ EXECUTE  One ( 3 ) ;",
                "prepare \"Two\" (int, numeric(10, 2), text) as select $1, $2, $3",
                "execute \"Two\"(1, 2.5, 'it''s')",
                "execute \"Two\"('7', 1, E'a\\nb')",
                "prepare none as select 'none'",
                "execute none",
                "execute none",
                "deallocate one",
                "execute one(1)",
                "deallocate prepare \"Two\"",
                "execute \"Two\"(1, 2, '3')",
                "deallocate all",
                "execute none",
            ],
        );
        stage.assert_moves();
        seen
    });
}

#[test]
fn errors_of_sql_statements_are_postgresqls() {
    same(|stage| {
        all(
            stage,
            &[
                "execute nobody",
                "deallocate nobody",
                "explain execute nobody(1)",
                "prepare a as select $1::int",
                "prepare a as select 2",
                "execute a",
                "execute a(1, 2)",
                "execute a('x')",
                "execute a(nosuch)",
                "execute a((select 1))",
                "execute a(sum(1))",
                "execute a(current_date)",
                "execute a(1 + 1)",
                "prepare b as create table never (n int)",
                "prepare b as select nosuch",
                "prepare b (nosuchtype) as select $1",
                "prepare b as select $1",
                "execute b('text')",
                "prepare \"\" as select 1",
                "prepare c as select 1 from",
                "prepare c as select $2::int",
                "execute a(1)",
            ],
        )
    });
}

/// Every field of an error but the file and line: the place in the text among them.
fn fields(stage: &mut Stage, sql: &str) -> Vec<String> {
    let bytes = stage.raw_step(&query(sql));
    let mut rest = &bytes[..];
    let mut seen = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_be_bytes(rest[1..5].try_into().unwrap()) as usize;
        let body = &rest[5..=length];
        if rest[0] == b'E' {
            seen.extend(
                body.split(|byte| *byte == 0)
                    .map(String::from_utf8_lossy)
                    .filter(|field| !field.is_empty() && !field.starts_with(['F', 'L', 'R']))
                    .map(String::from),
            );
        }
        rest = &rest[length + 1..];
    }
    seen
}

#[test]
fn errors_stand_where_they_stand_in_the_clients_text() {
    same(|stage| {
        let table = own(stage, "dropped");
        let mut seen = Vec::new();
        stage.query(&format!("create table {table} (n int)"));
        for sql in [
            "prepare p as select nosuch",
            "prepare p(int) as\n select $1 +  'x'",
            "prepare p (int,  nosuch) as select 1",
            "prepare p(int, text) as select $1, $2",
            "execute p('x', 'y')",
            "execute p(1, 'ä', 3)",
            "/* ä */ execute p(1,    nosuch)",
            "select 1; execute p(1, 2); execute p('x', 1)",
            "explain (verbose) execute p('x', 1)",
        ] {
            seen.extend(fields(stage, sql));
        }
        seen.extend(fields(
            stage,
            &format!("prepare q as select * from {table}"),
        ));
        seen.extend(fields(stage, "execute q"));
        seen.extend(fields(stage, &format!("drop table {table}")));
        seen.extend(fields(stage, "execute q"));
        seen.extend(fields(stage, "explain execute q"));
        let long = own(stage, "");
        without(seen, &long, "")
    });
}

#[test]
fn sql_and_the_protocol_share_one_namespace() {
    same(|stage| {
        let parsed = batch().parse("p", "select $1::int * 2 as twice").sync();
        let mut seen = stage.step(&parsed.0, 1);
        seen.extend(all(
            stage,
            &[
                "execute p(21)",
                "prepare p as select 1",
                "explain (costs off, verbose) execute p(1)",
                "prepare s(text) as select $1 || '!' as loud",
            ],
        ));
        for _ in 0..2 {
            let step = batch()
                .describe("s")
                .bind("", "s", &["hello"])
                .describe_portal("")
                .execute("", 0)
                .sync();
            seen.extend(stage.step(&step.0, 1));
        }
        seen.extend(stage.step(&batch().parse("s", "select 2").sync().0, 1));
        seen.extend(stage.step(&batch().close("s").sync().0, 1));
        seen.extend(stage.query("execute s('gone')"));
        seen.extend(stage.query("deallocate p"));
        seen.extend(stage.step(&batch().call("p", &["1"]).sync().0, 1));
        let both = batch()
            .parse("in_batch", "select 'in a batch'")
            .query("execute in_batch")
            .sync();
        seen.extend(stage.step(&both.0, 2));
        seen.extend(stage.query("execute in_batch"));
        stage.assert_moves();
        seen
    });
}

#[test]
fn an_execute_is_run_by_the_extended_protocol_too() {
    same(|stage| {
        let mut seen = stage.query("prepare one as select $1::int + 1 as n");
        for _ in 0..2 {
            seen.extend(stage.step(&batch().run("execute one(1)", &[]).sync().0, 1));
            let named = batch()
                .parse("named", "execute one(2)")
                .describe("named")
                .bind("", "named", &[])
                .describe_portal("")
                .execute("", 0)
                .close("named")
                .sync();
            seen.extend(stage.step(&named.0, 1));
        }
        // What it names is looked up when it is bound.
        seen.extend(stage.step(&batch().parse("late", "execute later").sync().0, 1));
        seen.extend(stage.step(&batch().call("late", &[]).sync().0, 1));
        seen.extend(stage.query("prepare later as select 'first'"));
        seen.extend(stage.step(&batch().call("late", &[]).sync().0, 1));
        seen.extend(stage.query("deallocate later"));
        seen.extend(stage.step(&batch().call("late", &[]).sync().0, 1));
        seen.extend(stage.query("prepare later as select 'second'"));
        seen.extend(stage.step(&batch().call("late", &[]).call("late", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().run("execute one('x')", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().run("execute one(1, 2)", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().run("deallocate one", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().run("execute one(1)", &[]).sync().0, 1));
        stage.assert_moves();
        seen
    });
}

#[test]
fn a_driver_learns_what_may_be_null_from_explain_execute() {
    same(|stage| {
        let parse = batch()
            .parse(
                "sqlx_s_1",
                "select relname, $1::int from pg_class where oid = $2",
            )
            .describe("sqlx_s_1")
            .sync();
        let mut seen = stage.step(&parse.0, 1);
        let explain = "EXPLAIN (VERBOSE, FORMAT JSON, COSTS OFF) EXECUTE sqlx_s_1(NULL, NULL)";
        for name in ["sqlx_s_2", "sqlx_s_3"] {
            let step = batch().parse(name, explain).describe(name).sync();
            seen.extend(stage.step(&step.0, 1));
            seen.extend(stage.step(&batch().call(name, &[]).close(name).sync().0, 1));
        }
        seen.extend(stage.query(explain));
        stage.assert_moves();
        seen
    });
}

#[test]
fn prepared_statements_outlive_the_transaction_that_made_them() {
    same(|stage| {
        all(
            stage,
            &[
                "begin",
                "prepare kept as select 'kept'",
                "rollback",
                "execute kept",
                "begin",
                "savepoint s",
                "deallocate kept",
                "rollback to s",
                "execute kept",
                "rollback",
                "begin",
                "prepare lost as select nosuch",
                "execute lost",
                "prepare lost as select 1",
                "rollback",
                "execute lost",
                "begin",
                "prepare again as select 'again'",
                "execute again(1)",
                "execute again",
                "rollback",
                "execute again",
                "begin; prepare more as select 'more'; execute more; rollback",
                "execute more",
                "deallocate more",
                "prepare twice as select 1; prepare twice as select 2",
                "execute twice",
                "discard all",
                "execute again",
            ],
        )
    });
}

#[test]
fn several_statements_of_one_message_prepare_execute_and_forget() {
    same(|stage| {
        let table = own(stage, "within");
        let mut seen = all(
            stage,
            &[
                "prepare a as select 'a', $1::int; execute a(1); execute a(2)",
                "execute a(3)",
                "deallocate a; select 1",
                "execute a(4)",
                "prepare b(int, text) as select $1, $2; select 1/0; prepare c as select 'c'",
                "execute b(1, 'x'); execute c",
                "deallocate b; prepare b as select 'another b'; execute b",
                "execute b; deallocate b; execute b",
                "prepare d as select 'd'; deallocate all; execute d",
                "prepare e(nosuch) as select 1; select 2",
                "prepare f as select 'f'; prepare f as select 'g'",
                "execute f; execute nobody; select 3",
                "prepare h as select 'alike'",
                "prepare i as select 'alike'",
                "deallocate h; execute i; deallocate i; execute i",
                "prepare h as select 'alike'",
                "prepare i as select 'alike'; execute h; execute i",
                "execute h; execute i; execute h",
                "prepare j as select 'alike'; execute h; execute i",
                "prepare k as select 'alike'; execute h; execute j; deallocate h; execute j; execute h",
            ],
        );
        seen.extend(stage.query(&format!(
            "create table {table} (n int); prepare g as insert into {table} values ($1) returning n; execute g(1)"
        )));
        seen.extend(stage.query("execute g(2); execute g(3)"));
        seen.extend(stage.query(&format!("select array_agg(n) from {table}")));
        stage.assert_moves();
        rows(seen)
    });
}

#[test]
fn what_an_execute_does_to_the_session_is_followed() {
    same(|stage| {
        let table = own(stage, "made_by_execute");
        let mut seen = all(
            stage,
            &[
                "prepare s as select set_config('work_mem', '7MB', false)",
                "execute s",
                "show work_mem",
                "show work_mem",
                "begin",
                "prepare l as select set_config('work_mem', '9MB', true)",
                "execute l",
                "show work_mem",
                "commit",
                "show work_mem",
                "prepare copied as select generate_series(1, $1) as n",
            ],
        );
        seen.extend(stage.query(&format!("create table {table} as execute copied(3)")));
        seen.extend(stage.query(&format!("select sum(n) from {table}")));
        seen.extend(stage.query(&format!(
            "explain (costs off) create table {table}x as execute copied(3)"
        )));
        stage.assert_moves();
        seen.extend(all(
            stage,
            &[
                "create temp table kept_here as execute copied(4)",
                "select sum(n) from kept_here",
                "select sum(n) from kept_here",
                "prepare k as select pg_advisory_lock(7), $1::int",
                "execute k(1)",
                "select count(*) from pg_locks where locktype = 'advisory' and objid = 7 and pid = pg_backend_pid()",
                "select pg_advisory_unlock(7)",
            ],
        ));
        seen
    });
}

#[test]
fn a_statement_means_what_the_settings_and_tables_say_when_it_is_executed() {
    same(|stage| {
        let (a, b) = (own(stage, "path_a"), own(stage, "path_b"));
        for schema in [&a, &b] {
            stage.query(&format!("create schema {schema}"));
            stage.query(&format!(
                "create table {schema}.t as select '{schema}' as name"
            ));
        }
        let mut seen = Vec::new();
        for sql in [
            format!("set search_path = {a}"),
            "prepare p as select name from t".to_owned(),
            "execute p".to_owned(),
            format!("set search_path = {b}"),
            "execute p".to_owned(),
            "set plan_cache_mode = force_generic_plan".to_owned(),
            "execute p".to_owned(),
            "alter table t add more int".to_owned(),
            "execute p".to_owned(),
            "prepare q as select * from t".to_owned(),
            "execute q".to_owned(),
            "begin".to_owned(),
            "execute q".to_owned(),
            "alter table t add yet int".to_owned(),
            "execute q".to_owned(),
            "rollback".to_owned(),
            "execute q".to_owned(),
            "alter table t alter name type varchar(70)".to_owned(),
            "execute p".to_owned(),
            "deallocate p".to_owned(),
            "prepare p as select name from t".to_owned(),
            "execute p".to_owned(),
        ] {
            seen.extend(stage.query(&sql));
        }
        let seen = without(seen, &a, "a");
        without(seen, &b, "b")
    });
}

#[test]
fn a_query_parsed_by_name_and_a_set_of_it_are_executed() {
    same(|stage| {
        let parsed = batch()
            .parse("show", "show work_mem")
            .parse("values", "values ($1::int), (2)")
            .sync();
        let mut seen = stage.step(&parsed.0, 1);
        seen.extend(all(stage, &["execute show", "execute values(1)"]));
        seen
    });
}

/// The same table on one server and on two shards behind a proxy: ids below 100 on the first.
fn whole_and_sharded(table: &str) -> (Client, Client) {
    let server = postgres().port();
    let mut whole = Client::connect(server, &[]);
    let name = |at: usize| format!("{table}_{at}");
    for at in 0..3 {
        whole.ask(&query(&format!("create database {}", name(at))));
        Client::connect_to(server, &name(at), &[])
            .ask(&query("create table t (id bigint primary key, n int)"));
    }
    let shard = |at: usize| {
        format!(
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{server}/{}?sslmode=disable\" }}\n",
            name(at)
        )
    };
    let databases = format!(
        "[databases.postgres]\n{}{}[databases.postgres.groups.g]\nmethod = \"range\"\nkey_type = \"bigint\"\n\
         ranges = [{{ to = 100, shard = \"s0\" }}, {{ shard = \"s1\" }}]\ntables = {{ \"public.t\" = \"id\" }}\n",
        shard(0),
        shard(1)
    );
    let proxy = Proxy::with("size = 2", &databases);
    let whole = Client::connect_to(server, &name(2), &[]);
    (whole, proxy.only_client())
}

#[test]
fn an_execute_runs_on_the_shard_of_its_values() {
    let (mut whole, mut sharded) = whole_and_sharded("executed");
    for sql in [
        "prepare put(bigint, int) as insert into t (id, n) values ($1, $2)",
        "prepare look as select n from t where id = $1",
        "prepare add as update t set n = n + $2 where id = $1",
        "execute put(1, 10)",
        "execute put(500, 20)",
        "execute put('2', 30)",
        "execute put(501::bigint, 40)",
        "execute put(-7, 50)",
        "execute look(1)",
        "execute look(500)",
        "execute look('501')",
        "execute look(NULL)",
        "execute look(-7)",
        "execute look(1, 2)",
        "execute add(500, (select 5))",
        "execute look(500)",
        "begin",
        "execute look(500)",
        "execute put(502, 1)",
        "rollback",
        "execute look(502)",
        "begin",
        "prepare inside as delete from t where id = $1 returning n",
        "execute inside(2)",
        "commit",
        "execute look(2)",
        "execute look(1); execute look(2)",
        "prepare pair as select n from t where id = $1; execute pair(500); execute look(500)",
        "execute pair(1)",
        "execute pair(1); execute pair(500)",
        "deallocate look",
        "execute look(1)",
    ] {
        let expected = rows(whole.ask(&query(sql)));
        let found = rows(sharded.ask(&query(sql)));
        assert_eq!(found, expected, "PostgreSQL's is on the right, to {sql}");
    }
    let twice = batch()
        .run("execute pair(500)", &[])
        .run("execute pair(501)", &[])
        .sync();
    assert_eq!(rows(sharded.ask(&twice.0)), rows(whole.ask(&twice.0)));
    for (sql, code) in [
        ("execute put(1 + 1, 2)", "SW101"),
        ("create table x as execute pair(1)", "SW113"),
    ] {
        let found = sharded.ask(&query(sql));
        assert!(
            found[0].starts_with("E ERROR 0A000"),
            "{code} {sql}: {found:?}"
        );
    }
    let explained = sharded.ask(&query("explain (route) execute pair(500)"));
    assert!(
        explained.iter().any(|line| line == "D shards: s1"),
        "{explained:?}"
    );
}

#[test]
fn a_transaction_keeps_its_backend_and_the_session_none() {
    let mut stage = Stage::open(Way::Alternating, &[]);
    stage.query("prepare who as select pg_backend_pid()");
    let pid = |stage: &mut Stage| stage.query("execute who")[1].clone();
    assert_ne!(pid(&mut stage), pid(&mut stage));
    stage.query("begin");
    assert_eq!(pid(&mut stage), pid(&mut stage));
    stage.query("commit");
    assert_ne!(pid(&mut stage), pid(&mut stage));
}

#[test]
fn statements_of_other_sessions_cannot_be_used_by_their_names_on_the_backend() {
    let proxy = Proxy::start("size = 1");
    let (mut one, mut other) = (proxy.client(), proxy.client());
    one.ask(&query(
        "prepare mine as select set_config('work_mem', '6MB', false)",
    ));
    one.ask(&query("execute mine"));
    let name = other.value("select name from pg_prepared_statements where statement like '%6MB%'");
    let missing = format!("E ERROR 26000 prepared statement \"{name}\" does not exist");
    for sql in [
        format!("execute {name}"),
        format!("explain analyze execute {name}"),
        format!("deallocate {name}"),
        format!("select 1; execute {name}"),
        format!("select 1; deallocate {name}"),
    ] {
        assert_eq!(other.ask(&query(&sql))[0], missing, "{sql}");
    }
    for sql in [format!("execute {name}"), format!("deallocate {name}")] {
        assert_eq!(
            other.ask(&batch().run(&sql, &[]).sync().0)[0],
            missing,
            "{sql}"
        );
    }
    assert_eq!(one.ask(&query("execute mine"))[1], "D 6MB");
}

#[test]
fn an_execute_that_is_prepared_itself_outlives_an_error_behind_it() {
    same(|stage| {
        let mut seen = stage.query("prepare one as select 'one'");
        let step = batch()
            .parse("named", "execute one")
            .describe("named")
            .call("named", &[])
            .run("select 1/0", &[])
            .sync();
        seen.extend(stage.step(&step.0, 1));
        seen.extend(stage.step(&batch().call("named", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().parse("named", "select 2").sync().0, 1));
        seen
    });
}

#[test]
fn an_execute_of_a_command_is_refused_and_changes_nothing() {
    let mut stage = Stage::open(Way::Alternating, &[]);
    let parsed = batch()
        .parse("begin", "begin")
        .parse("set", "reset all")
        .parse("one", "select 1")
        .parse("nested", "execute one")
        .sync();
    stage.step(&parsed.0, 1);
    for name in ["begin", "set", "nested"] {
        let seen = stage.query(&format!("execute {name}"));
        assert!(seen[0].starts_with("E ERROR 0A000"), "{name}: {seen:?}");
        assert_eq!(seen[1], "Z I");
    }
    stage.assert_moves();
}
