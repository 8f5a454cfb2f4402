//! Writes of tables that every shard has say which shards they reach: guards of such tables ask for it while shards join, so
//! that none is made by a map that lacks them.

use crate::{
    client::{Client, batch, query},
    three::{Stand, Three},
};

/// As a reshard makes it: refuses what does not reach these shards.
fn guard(reached: &str) -> String {
    let passes = format!(
        "(string_to_array(current_setting('shardway.reaches', true), ',') @> array[{reached}]) is not true"
    );
    format!(
        "create function refuse() returns trigger language plpgsql as $$ begin \
             raise exception using errcode = 'SWG01', message = 'rows of this table are elsewhere too'; end $$; \
         create trigger refuse after insert or update or delete on r for each row when ({passes}) execute function refuse(); \
         create trigger refuse_all before truncate on r for each statement when ({passes}) execute function refuse()"
    )
}

fn stand(name: &str, reached: &str) -> Stand {
    let mut stand = Three {
        ddl: "create table t (id bigint primary key, n int); create table r (id bigint primary key, n int)",
        reference: &["public.r"],
        ..Three::new(name)
    }
    .start();
    for shard in &mut stand.shards {
        let found = shard.ask(&query(&guard(reached)));
        assert!(!found[0].starts_with('E'), "{found:?}");
    }
    stand
}

fn fault(client: &mut Client, bytes: &[u8]) -> Option<String> {
    let found = client.ask(bytes);
    found.into_iter().find(|line| line.starts_with('E'))
}

#[test]
fn a_write_of_a_reference_table_says_which_shards_it_reaches() {
    let mut stand = stand("reaching", "'s0', 's1', 's2'");
    let mut shard = stand.shards.swap_remove(1);
    let past = fault(&mut shard, &query("insert into r values (9, 9)"));
    assert!(past.is_some_and(|line| line.contains("SWG01")));
    stand.shards.insert(1, shard);
    let client = &mut stand.sharded;
    let writes = [
        query("insert into r values (1, 0), (2, 0), (3, 0)"),
        batch()
            .run("update r set n = n + $1 where id > 1", &["5"])
            .sync()
            .0,
        query("begin"),
        query("select n from t where id = 150"),
        query("savepoint s"),
        query("update r set n = n + 1"),
        query("rollback to s"),
        query("update r set n = n + 10"),
        query("insert into t values (250, 0)"),
        query("commit"),
        query("delete from r where id = 3"),
    ];
    for write in &writes {
        let fault = fault(client, write);
        assert_eq!(fault, None, "{}", String::from_utf8_lossy(write));
    }
    let copy = batch()
        .query("copy r from stdin")
        .copy_data("7\t7\n")
        .bare(b'c');
    let copied = client.ask(&copy.0);
    assert!(copied.contains(&"C COPY 1\\0".to_owned()), "{copied:?}");
    let rows = "select string_agg(id || ' ' || n, ', ' order by id) from r";
    assert_eq!(stand.seen(rows), ["1 10, 2 15, 7 7"; 3]);
    let found = stand.ask("truncate r");
    assert!(found[0].starts_with('C'), "{found:?}");
    assert_eq!(stand.seen("select count(*) from r"), ["0"; 3]);
}

#[test]
fn a_write_that_does_not_reach_a_shard_that_has_joined_is_refused_and_made_nowhere() {
    let mut stand = stand("reaching_not", "'s0', 's3'");
    for text in [
        "insert into r values (1, 0)",
        "begin; insert into r values (1, 0)",
    ] {
        for one in text.split("; ") {
            if one == "begin" {
                stand.ask(one);
            } else {
                stand.fails(one, "(SW404)");
            }
        }
    }
    stand.ask("rollback");
    assert_eq!(stand.seen("select count(*) from r"), ["0"; 3]);
}
