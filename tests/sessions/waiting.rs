//! Transactions over several shards that wait for each other's rows.

use crate::three::Three;

#[test]
fn what_is_refused_within_leaves_the_other_shards_as_they_were() {
    let mut stand = Three::new("waiting").start();
    stand.all_alike(&[
        "insert into t values (1, 1), (101, 2), (201, 3)",
        "select * from t order by id",
        "begin",
        "update t set n = n + 1 where id = 1",
    ]);
    stand.ask("delete from t where id = 101");
    stand.fails("update t set n = 1 / 0 where id = 201", "22012");
    stand.ask("commit");
    assert_eq!(stand.seen("select sum(n) from t"), ["1", "2", "3"]);
}
