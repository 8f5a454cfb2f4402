//! While a reshard moves rows, they are also on shards that do not own them: no statement sees or changes them there.

use crate::{
    client::{Client, batch, query},
    harness::until,
    three::{Stand, Three},
};

const DDL: &str = "create table t (id bigint primary key, n int, note text); \
    create table item (id bigint, what text, price numeric, twice numeric generated always as (price * 2) stored); \
    create table log (id bigint not null, at int not null, what text, primary key (id, at)) partition by range (at); \
    create table log_1 partition of log for values from (0) to (10); \
    create table log_2 partition of log for values from (10) to (maxvalue); \
    create table colours (n int primary key, name text); \
    insert into colours values (0, 'red'), (1, 'green'), (2, 'blue'); \
    create view named as select id as who, n + 1 as more, note from t where n < 6; \
    create view plain as select id, n from t; \
    create view hidden as select n, note from t; \
    create view spent as select t.id, count(*) as items, sum(i.price) as total from t join item i on i.id = t.id group by t.id";
/// What each shard has of its own, and what it has of others.
const OWN: [&str; 3] = ["id < 100", "id >= 100 and id < 200", "id >= 200"];
const KEYS: [i64; 14] = [1, 2, 3, 7, 8, 50, 101, 102, 108, 109, 150, 201, 207, 208];

fn stand(name: &str) -> Stand {
    let mut stand = Three {
        ddl: DDL,
        tables: &["public.t", "public.item", "public.log"],
        reference: &["public.colours"],
        ..Three::new(name)
    }
    .start();
    let keys = KEYS.map(|key| key.to_string()).join(", ");
    for sql in [
        "insert into t select i, i % 8, 'note ' || i from unnest(array[KEYS]::bigint[]) i",
        "insert into item (id, what, price) select i, 'item ' || i || '.' || j, i % 5 + j from unnest(array[KEYS]::bigint[]) i, \
         generate_series(1, 2) j where i % 3 > 0",
        "insert into log select i, j * 7, 'log ' || i || '.' || j from unnest(array[KEYS]::bigint[]) i, generate_series(0, 2) j",
    ] {
        let sql = sql.replace("KEYS", &keys);
        stand.whole.ask(&query(&sql));
        for (at, shard) in stand.shards.iter_mut().enumerate() {
            let word = if sql.contains(" where ") {
                "and"
            } else {
                "where"
            };
            let own = format!("{sql} {word} {}", OWN[at].replace("id", "i"));
            let made = shard.ask(&query(&own));
            assert!(made[0].starts_with('C'), "{made:?}");
        }
    }
    for _ in 0..2 {
        stand.alike(&query("select id from t where id = 1"), 1);
        stand.alike(&query("select who from named where who = 1"), 1);
    }
    add_strangers(&mut stand, &keys);
    double(&mut stand);
    stand
}

/// Rows of others: of keys that have rows, and of keys that have none; wrong in all but the key.
fn add_strangers(stand: &mut Stand, keys: &str) {
    let from = "from unnest(array[KEYS, 4, 104, 204]::bigint[]) i where not (OWN)";
    for (at, shard) in stand.shards.iter_mut().enumerate() {
        let from = from
            .replace("KEYS", keys)
            .replace("OWN", &OWN[at].replace("id", "i"));
        for sql in [
            format!("insert into t select i, 1000000, 'stranger' {from}"),
            format!("insert into item (id, what, price) select i, 'stranger', 1000000 {from}"),
            format!("insert into log select i, 0, 'stranger' {from}"),
        ] {
            let made = shard.ask(&query(&sql));
            assert!(made[0].starts_with('C'), "{made:?}");
        }
    }
}

/// Says in the map that each shard has keys of the two others, and waits until the proxy acts on it.
pub(crate) fn double(stand: &mut Stand) {
    double_to(stand, 3);
}

/// The same, of so many of the shards.
fn double_to(stand: &mut Stand, shards: usize) {
    let ranges = [
        r#"[[["bigint", "100"], null]]"#,
        r#"[[null, ["bigint", "100"]], [["bigint", "200"], null]]"#,
        r#"[[null, ["bigint", "150"]], [["bigint", "150"], ["bigint", "200"]]]"#,
    ];
    let moving: Vec<String> = ranges
        .iter()
        .enumerate()
        .take(shards)
        .map(|(at, ranges)| {
            format!(
                r#"{{"workflow": "w", "group": "g", "shard": "s{at}", "keys": {{"part": {{"ranges": {ranges}}}}}}}"#
            )
        })
        .collect();
    let sql = format!(
        "begin; update shardway.map set epoch = epoch + 1, content = jsonb_set(content, '{{moving}}', '[{}]'); \
         update shardway.epoch set epoch = epoch + 1; \
         select pg_notify('shardway', epoch::text) from shardway.epoch; commit",
        moving.join(", ")
    );
    let said = stand.shards[0].ask(&query(&sql));
    assert!(said.iter().all(|line| !line.starts_with('E')), "{said:?}");
    let client = &mut stand.sharded;
    until("the proxy leaves out rows of others", || {
        let plan = client.ask(&query("explain select from t"));
        let told = plan.iter().filter(|line| line.contains("IS NOT TRUE"));
        told.count() == shards
    });
}

/// Whole contents of the tables, by what belongs to each shard.
fn contents(client: &mut Client, of: &str) -> Vec<String> {
    let tables = ["t", "item", "log"];
    let told = tables.map(|table| {
        client.value(&format!(
            "select coalesce(string_agg(x::text, '; ' order by x::text collate \"C\"), '') from {table} x where {of}"
        ))
    });
    told.to_vec()
}

/// Runs `acts`; strangers are then what they were, and every shard has what it owns as the whole database has it.
fn leaves_strangers(stand: &mut Stand, acts: impl FnOnce(&mut Stand)) {
    let strangers = |stand: &mut Stand| -> Vec<Vec<String>> {
        let shards = stand.shards.iter_mut().zip(OWN);
        shards
            .map(|(shard, own)| contents(shard, &format!("not ({own})")))
            .collect()
    };
    let before = strangers(stand);
    assert!(
        before
            .iter()
            .flatten()
            .all(|rows| rows.contains("stranger"))
    );
    acts(stand);
    assert_eq!(strangers(stand), before, "rows of others were changed");
    for (at, own) in OWN.iter().enumerate() {
        let expected = contents(&mut stand.whole, own);
        assert_eq!(
            contents(&mut stand.shards[at], own),
            expected,
            "of shard {at}"
        );
    }
}

/// What differs when both are asked for rows, in any order.
fn differing(stand: &mut Stand, sql: &str) -> Option<String> {
    let sorted = |mut lines: Vec<String>| {
        lines.retain(|line| !line.starts_with('T'));
        lines.sort();
        lines
    };
    let expected = sorted(stand.whole.ask(&query(sql)));
    let found = sorted(stand.ask(sql));
    (found != expected).then(|| format!("{sql}: {found:?}, PostgreSQL {expected:?}"))
}

#[test]
fn reads_see_only_what_the_shards_own() {
    let mut stand = stand("doubled_reads");
    let wrong = [
        "select * from t",
        "select * from only t as x where x.n > 2 or x.note like '%7'",
        "select * from t x(key, many) where many < 5",
        "select x, x.* from t x",
        "select id from t where id in (1, 4, 104, 150, 201)",
        "select id from t where id between 50 and 204",
        "select id from t where id = any (array[2, 108, 204])",
        "select t.id, what from t join item using (id)",
        "select t.id, what from t left join item on item.id = t.id and item.price > 2",
        "select t.id, i.what from item i right join t on i.id = t.id",
        "select t.id, c.name from t join colours c on c.n = t.n",
        "select id, (select c.name from colours c where c.n = t.n) from t",
        "select id from t where exists (select from item i where i.id = t.id and i.price > 3)",
        "select id from t where not exists (select from item i where i.id = t.id)",
        "select t.id, l.what from t, lateral (select what from item i where i.id = t.id) l",
        "select * from (select id, n * 2 as twice from t) s where twice > 4",
        "select id, at, what from log",
        "select id, what from log where at > 5",
        "select * from named",
        "select * from plain p join item i on i.id = p.id",
        "select * from spent where total > 3",
        "select n from t where note = 'stranger'",
        "select 'stranger' from t -- from t\n where /* where */ n = 3",
    ]
    .into_iter()
    .filter_map(|sql| differing(&mut stand, sql));
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    stand.all_alike(&[
        "select count(*), sum(n), min(id), max(n), avg(n) from t",
        "select n, count(*), string_agg(note, ',' order by id) from t group by n having count(*) > 1 order by n",
        "select id, note from t order by id limit 5 offset 3",
        "select id, n from t order by n desc, id limit 4",
        "select distinct n from t order by n",
        "select id, rank() over (order by n, id) from t order by id",
        "with x as (select * from t) select count(*) from x where n > 3",
        "with y as (select id from t where n < 3) select count(*) from y",
        "select id from t where n < 3 union all select id from t where n > 5 order by 1",
        "select count(*) from (select id from t except select id from t where n = 1) s",
        "select count(distinct note) from t",
        "select sum(total), max(items) from spent",
        "select count(*) from log_1",
        "select nonsense from t order by id",
        "select id from t x join item on item.id = x.id where wrong = 1",
    ]);
}

#[test]
fn writes_change_only_what_the_shards_own() {
    let mut stand = stand("doubled_writes");
    leaves_strangers(&mut stand, |stand| {
        stand.all_alike(&[
            "update t set n = n + 1",
            "update t set note = 'it''s new' where n > 2 or n < 1",
            "update only t as x set n = (select count(*) from item i where i.id = x.id)",
            "update t set note = c.name from colours c where c.n = t.n",
            "update t x set note = i.what from item i where i.id = x.id and i.price > 4",
            "update t set n = 9 where id in (1, 4, 101, 104, 204)",
            "update plain set n = 3 where n = 2",
            "delete from item where price > 5",
            "delete from log where at >= 10",
            "delete from item i using t where t.id = i.id and t.n = 1",
            "delete from t where id in (2, 102, 204)",
            "insert into item (id, what, price) select id, note, n from t",
            "insert into log select id, 99, note from t where n > 1 on conflict (id, at) do nothing",
            "insert into t values (60, 1, 'a'), (160, 1, 'b'), (260, 1, 'c') on conflict (id) do update set n = t.n + 1",
            "insert into t values (60, 1, 'a'), (4, 1, 'b'), (104, 1, 'c'), (204, 4, 'd') on conflict (id) do update set n = t.n + 1",
            "merge into t using item i on i.id = t.id and i.price > 8 when matched then update set note = i.what",
            "merge into t using colours c on c.n = t.n and c.name = 'red' when matched then delete",
            "delete from t where n = 77 or note = 'stranger'",
            "update t set n = 1 where wrong = 2",
        ]);
        stand.alike(
            &query("begin; update t set n = n + 1; select count(*), sum(n) from t; commit"),
            1,
        );
        let bound = batch()
            .parse("", "update t set note = $1 where n > $2 or note is null")
            .bind("", "", &["bound", "3"])
            .execute("", 0)
            .sync();
        stand.alike(&bound.0, 1);
        stand.all_alike(&["update item set price = price + 1", "delete from log"]);
    });
}

#[test]
fn keys_change_only_of_what_the_shards_own() {
    let mut stand = stand("doubled_keys");
    leaves_strangers(&mut stand, |stand| {
        stand.all_alike(&[
            "update t set id = id + 1000 where n = 7",
            "update t set id = 5 where id = 101",
            "update t set id = id - 40 where id > 100 and n < 3",
            "update item set id = id + 100 where what like '%1'",
        ]);
    });
}

#[test]
fn what_is_prepared_or_read_in_parts_sees_only_what_the_shards_own() {
    let mut stand = stand("doubled_parts");
    let prepared = batch()
        .parse("s", "select id, note from t where n < $1 order by id")
        .describe("s")
        .bind("", "s", &["6"])
        .execute("", 0)
        .bind("p", "s", &["8"])
        .execute("p", 3)
        .execute("p", 0)
        .sync();
    stand.alike(&prepared.0, 1);
    let gathered = batch()
        .parse("g", "select count(*), max(n) from t where n <> $1")
        .bind("", "g", &["1"])
        .execute("", 0)
        .sync();
    stand.alike(&gathered.0, 1);
    stand.all_alike(&[
        "begin",
        "declare c cursor for select id, n from t order by id",
        "fetch 3 from c",
        "update t set n = n + 1 where n > 3",
        "declare d cursor for select t.id, what from t join item using (id) order by id, what collate \"C\"",
        "fetch 2 from d",
        "fetch all from c",
        "move 1 in d",
        "fetch all from d",
        "select count(*) from t",
        "rollback",
        "prepare x as select id from t where n = $1 order by id",
        "execute x (1)",
        "execute x (3)",
    ]);
    // The plan of one key is as it always was.
    for sql in [
        "select * from t where id = 7",
        "select * from t where id = 104",
    ] {
        stand.alike(&query(sql), 1);
        let plan = stand.ask(&format!("explain {sql}"));
        assert!(
            plan.iter().all(|line| !line.contains("IS NOT TRUE")),
            "{plan:?}"
        );
    }
}

#[test]
fn explain_analyze_writes_only_what_the_shards_own() {
    let mut stand = stand("doubled_explained");
    leaves_strangers(&mut stand, |stand| {
        for sql in ["update t set n = n + 1 where n > 2", "delete from item"] {
            stand.whole.ask(&query(sql));
            let plan = stand.ask(&format!("explain (analyze, costs off, timing off) {sql}"));
            let told = plan.iter().filter(|line| line.contains("IS NOT TRUE"));
            assert_eq!(told.count(), 3, "{plan:?}");
        }
    });
}

/// The data of a copy, in order.
fn copied(client: &mut Client, sql: &str) -> Vec<String> {
    let mut lines: Vec<String> = client.ask(&query(sql));
    lines.sort();
    lines
}

#[test]
fn copies_give_only_what_the_shards_own() {
    let mut stand = stand("doubled_copies");
    for sql in [
        "copy t to stdout",
        "copy public.t (note, id) to stdout with (format csv, header, force_quote (note))",
        "copy item to stdout",
        "copy \"item\"(what , twice) to stdout",
        "copy log_1 to stdout",
        "copy (select id, note from t where n > 2) to stdout",
        "copy (select count(*), max(n) from t) to stdout",
        "copy named to stdout",
        "copy log to stdout",
        "copy t (wrong) to stdout",
    ] {
        let expected = copied(&mut stand.whole, sql);
        let plain = |lines: Vec<String>| -> Vec<String> {
            let rows = lines.into_iter().map(|line| line.replace("\\n", "\n"));
            let mut rows: Vec<String> = rows
                .flat_map(|line| line.lines().map(str::to_owned).collect::<Vec<_>>())
                .collect();
            rows.sort();
            rows
        };
        let found = copied(&mut stand.sharded, sql);
        assert_eq!(
            plain(found),
            plain(expected),
            "PostgreSQL's is on the right, to {sql}"
        );
    }
}

#[test]
fn what_cannot_tell_rows_apart_is_refused() {
    let mut stand = stand("doubled_refused");
    leaves_strangers(&mut stand, |stand| {
        for sql in [
            "select * from hidden",
            "select count(*) from hidden",
            "update hidden set n = 1",
            "/* shardway: key=7 */ select count(*) from t",
            "/* shardway: key=7 */ delete from t",
        ] {
            stand.fails(sql, "while a reshard moves rows of group");
        }
        // Whoever names a shard means all that is there.
        let all =
            stand.ask("/* shardway: shard=s0 */ select count(*) from t where note = 'stranger'");
        assert_eq!(all[1], "D 10");
        stand.all_alike(&["/* shardway: key=7 */ select n from t where id = 7"]);
    });
}

/// Tables with foreign keys and unique indexes, the rows of key 5 also on the second shard.
const REFERRING: &str = "create table colours (n int primary key, name text); \
    insert into colours values (0, 'red'), (1, 'green'), (2, 'blue'), (3, 'grey'); \
    create table kinds (k int primary key, name text); insert into kinds values (1, 'a'), (2, 'b'); \
    create table shades (n int primary key, name text, kind int references kinds on delete cascade); \
    insert into shades values (1, 'dark', 1), (2, 'light', 2); \
    create table frames (n int primary key); insert into frames values (1), (2); \
    create table t (id bigint primary key, n int references colours, late int references colours deferrable initially deferred, \
      shade int references shades on delete cascade on update cascade); \
    create table o (no uuid primary key default gen_random_uuid(), id bigint, n int); \
    create table p (id bigint primary key, mail text, \"on\" int); create unique index p_mail on p (mail); \
    create schema b; create table b.p (id bigint primary key, mail text); \
    create table w (tenant bigint primary key, frame int references frames on delete cascade)";
/// What refuses statements meanwhile.
const MEANWHILE: &str = "while a reshard moves rows of group";

fn referring(name: &str) -> Stand {
    let mut stand = Three {
        ddl: REFERRING,
        tables: &["public.t", "public.o", "public.p", "b.p"],
        reference: &["public.colours", "public.kinds", "public.shades", "public.frames"],
        database: "per_shard = [\"public.p.p_mail\"]\n\
            groups.h = { method = \"hash\", key_type = \"bigint\", buckets = 64, key_column = \"tenant\" }",
        ..Three::new(name)
    }
    .start();
    stand.all_alike(&[
        "insert into t values (5, 2, 3, 1), (6, 0, 0, 1), (150, 0, 0, 2), (250, 1, 1, 2)",
        "insert into o (id, n) values (5, 1), (6, 2), (150, 3)",
        "insert into p values (5, 'five', 5), (150, 'many', 9), (250, 'last', 1)",
        "insert into b.p values (5, 'b 5'), (150, 'b 150'), (250, 'b 250')",
        "insert into w values (1, 1), (2, 2), (3, 2)",
    ]);
    // The second shard has them too, as they were when they were copied.
    for table in ["t", "o", "p", "b.p"] {
        let rows =
            stand.shards[0].value(&format!("select json_agg(x) from {table} x where id = 5"));
        let copied = stand.shards[1].ask(&query(&format!(
            "insert into {table} select * from json_populate_recordset(null::{table}, '{rows}')"
        )));
        assert!(copied[0].starts_with("C INSERT 0 1"), "{copied:?}");
    }
    let double = |stand: &mut Stand| double_to(stand, 2);
    double(&mut stand);
    stand
}

#[test]
fn what_copied_rows_still_refer_to_is_told_as_such() {
    let mut stand = referring("doubled_referring");
    stand.all_alike(&["begin", "update t set n = 0 where n = 2"]);
    // One PostgreSQL has no row any more that refers to it.
    stand.fails("delete from colours where n = 2", MEANWHILE);
    stand.whole.ask(&query("delete from colours where n = 2"));
    stand.all_alike(&["rollback", "begin", "update t set late = 0 where late = 3"]);
    stand.all_alike(&["delete from colours where n = 3"]);
    stand.fails("commit", MEANWHILE);
    stand.whole.ask(&query("rollback"));
    // Of the third shard's rows it is known that they count; new rows say what they always said.
    for sql in [
        "delete from colours where n = 1",
        "insert into t values (7, 77, 0, 1)",
        "insert into t values (107, 77, 0, 1)",
        "insert into t values (8, 77, 0, 1), (207, 77, 0, 1)",
    ] {
        let told = stand.ask(sql);
        assert!(told[0].contains("23503 "), "{sql}: {told:?}");
    }
    stand.all_alike(&[
        "insert into colours values (9, 'new')",
        "update colours set name = 'old' where n = 9",
        "delete from colours where n = 9",
    ]);
}

#[test]
fn what_would_change_copied_rows_by_a_foreign_key_is_refused() {
    let mut stand = referring("doubled_cascading");
    for sql in [
        "delete from shades where n = 1",
        "update shades set n = 7 where n = 1",
        "insert into shades values (1, 'x', 1) on conflict (n) do update set n = 8",
        "delete from kinds where k = 1",
    ] {
        stand.fails(sql, MEANWHILE);
    }
    // What sets nothing off in the group, and other groups, go on.
    stand.all_alike(&[
        "update shades set name = 'darker' where n = 1",
        "update kinds set name = 'c' where k = 1",
        "insert into shades values (1, 'x', 1) on conflict (n) do update set name = 'y'",
        "insert into shades values (9, 'new', 2)",
        "delete from frames where n = 2",
        "select count(*) from w",
    ]);
    undouble(&mut stand);
    stand.all_alike(&[
        "update shades set n = 7 where n = 1",
        "select id, shade from t order by id",
        "delete from kinds where k = 2",
        "select id, shade from t order by id",
    ]);
}

/// The rows that were copied are gone, and the map says so.
fn undouble(stand: &mut Stand) {
    for table in ["t", "o", "p", "b.p"] {
        stand.shards[1].ask(&query(&format!("delete from {table} where id = 5")));
    }
    double_to(stand, 0);
}

#[test]
fn what_only_copied_rows_make_a_duplicate_is_told_as_such() {
    let mut stand = referring("doubled_unique");
    let strangers =
        |stand: &mut Stand| stand.shards[1].value("select json_agg(x)::text from o x where id = 5");
    let before = strangers(&mut stand);
    stand.fails("update o set id = 160 where id = 5", MEANWHILE);
    assert_eq!(strangers(&mut stand), before);
    // To a shard that has no rows of others; of a table whose unique indexes hold the key.
    stand.all_alike(&[
        "update o set id = 260 where id = 5",
        "select id, n from o order by id",
        "update t set id = 170 where id = 6",
        "select id, n from t order by id",
        "delete from p where id = 5",
    ]);
    let insert = "insert into p values (160, 'five', 1)";
    stand.fails(insert, MEANWHILE);
    let bound = batch()
        .parse("", "insert into p values ($1, $2, 1)")
        .bind("", "", &["160", "five"])
        .execute("", 0)
        .sync();
    stand.sharded.send(&bound.0);
    let told = stand.sharded.answers(1);
    assert!(told.iter().any(|line| line.contains(MEANWHILE)), "{told:?}");
    stand.fails(
        "insert into p values (160, 'five', 1), (260, 'more', 1)",
        MEANWHILE,
    );
    // Duplicates that are no copied row's, for certain.
    stand.all_alike(&[
        "insert into p values (150, 'other', 1)",
        "insert into p values (260, 'last', 1)",
        "insert into p values (160, 'other', 1)",
    ]);
    undouble(&mut stand);
    stand.all_alike(&[
        "insert into p values (161, 'five', 1)",
        "update o set id = 160 where id = 6",
    ]);
}

#[test]
fn tables_of_one_name_and_columns_that_are_called_like_keywords_are_told_apart() {
    let mut stand = referring("doubled_names");
    stand.all_alike(&[
        "update public.p set mail = 'of ' || b.p.mail from b.p where b.p.id = public.p.id and b.p.mail like 'b%'",
        "delete from public.p using b.p where b.p.id = public.p.id and b.p.mail = 'b 150'",
        "merge into public.p using b.p on b.p.id = public.p.id when matched then update set mail = 'merged ' || b.p.mail",
        "merge into b.p x using p on p.id = x.id and p.on > 1 when matched then update set mail = 'on'",
        "merge into b.p x using p on p.id = x.id and 1 < p.on when matched then update set mail = x.mail || '!'",
        "select id, mail from p order by id",
        "select id, mail from b.p order by id",
    ]);
    let copied = stand.shards[1].value("select mail from p where id = 5");
    assert_eq!(copied, "five");
}
