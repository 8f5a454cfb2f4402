//! TRUNCATE on a source when its slot is there and nothing is copied yet: a proxy that has not heard of the reshard may do
//! so.

use super::{
    applying::{WIDE, begin, reshard, shards, soon, tenant},
    following::arrived,
    shards::block_on,
};
use shardway::reshard::steps::{catch_up::Follower, copy};

#[test]
fn what_was_emptied_before_it_was_copied_is_copied_as_it_is() {
    block_on(async {
        let shards = shards("before").await;
        shards.on_all(WIDE).await;
        let [a, b] = [tenant(Some(0)), tenant(Some(1))];
        let reshard = reshard(&shards, "before", &["public.t"]).await;
        begin(&shards, &reshard.job).await;
        for id in 0..3 {
            for sql in [
                format!(
                    "INSERT INTO t VALUES ({a}, {id}, 0, 'early', ''), ({b}, {id}, 0, 'early', '')"
                ),
                "TRUNCATE t".to_owned(),
            ] {
                shards.run("s", &sql).await;
            }
        }
        shards
            .run(
                "s",
                &format!("INSERT INTO t VALUES ({a}, 7, 0, 'late', '')"),
            )
            .await;
        soon(copy::run(&reshard.job)).await;
        shards
            .run(
                "s",
                &format!("INSERT INTO t VALUES ({b}, 8, 0, 'later', '')"),
            )
            .await;
        let follower = Follower::start(&reshard.job, "s");
        soon(follower.consistent()).await;
        arrived(&shards, &reshard, &follower, 1).await;
        for (shard, there) in [("a", "7|late"), ("b", "8|later")] {
            assert_eq!(shards.rows(shard, "SELECT id, note FROM t").await, [there]);
        }
        soon(follower.stop()).await;
    });
}
