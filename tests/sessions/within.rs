//! Reads over several shards wherever a statement can stand: what one PostgreSQL with all rows answers. In transactions
//! they see what these have written.

use crate::{
    client::{batch, query},
    three::{Stand, Three},
};

const DDL: &str = "create table t (id bigint primary key, n int, price numeric(12, 3), note text, ratio float8); \
    create table part (id bigint, at int, amount int, primary key (id, at)); \
    create table colours (n int primary key, name text)";

fn stand(name: &str) -> Stand {
    let mut stand = Three {
        ddl: DDL,
        tables: &["public.t", "public.part"],
        reference: &["public.colours"],
        ..Three::new(name)
    }
    .start();
    stand.all_alike(&[
        "insert into colours values (0, 'red'), (1, 'green'), (2, 'blue')",
        "insert into t values (1, 0, 1.5, 'one', 0.1), (2, 1, 2.25, null, 'NaN'), (101, 1, 0.125, 'a\"b\\c', 1e300), \
         (102, null, 10, 'Zoë', 3), (201, 2, 7, 'x{y}', 2.5), (202, 0, null, '', -0.3)",
        "insert into part values (1, 1, 5), (1, 2, 4), (101, 1, 7), (101, 2, 8), (201, 1, 9), (202, 1, 3)",
    ]);
    stand
}

/// Of each way in which a read over shards is computed, with an order that leaves nothing open.
const READS: [&str; 10] = [
    "select count(*), sum(n), avg(price), min(note), max(ratio) from t",
    "select n, count(*), string_agg(note, ',' order by id) from t group by n order by n nulls first",
    "select id, n, price, note, ratio from t order by id",
    "select note from t order by note nulls first, id limit 3 offset 1",
    "select id, rank() over (order by price desc nulls last, id) from t order by id",
    "select c.name, count(*) from t join colours c using (n) group by 1 order by 1",
    "select id from t where n = 1 order by id desc",
    "with x as (select n, max(id) as top from t group by n) select * from x where top > 50 order by top",
    "select a.id, b.id from t a join t b on b.id = a.id + 100 order by 1",
    "select id from t where exists (select from colours c where c.n = t.n and c.name like '%e%') order by id",
];

#[test]
fn a_read_sees_what_its_transaction_has_written() {
    let mut stand = stand("withinown");
    for writes in [
        &["insert into t values (3, 5, 1, 'new', 1)"][..],
        &[
            "update t set n = 9 where id = 101",
            "delete from t where id = 201",
        ],
        &[
            "insert into t values (4, 0, 2, 'four', 1), (104, 1, 2, 'more', 2), (204, 2, 3, null, 3)",
            "update t set price = price + 1",
            "insert into colours values (5, 'grey')",
        ],
    ] {
        stand.all_alike(&["begin"]);
        stand.all_alike(writes);
        stand.all_alike(&READS);
        stand.all_alike(&["savepoint a", "delete from t where n = 0"]);
        stand.all_alike(&READS);
        stand.all_alike(&["rollback to a"]);
        stand.all_alike(&READS);
        stand.all_alike(&["rollback"]);
        stand.all_alike(&READS);
    }
}
