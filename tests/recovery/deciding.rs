//! Who decides, and that recovery never decides otherwise.

use crate::harness::{DECIDER, OTHER, PATIENCE, Proxy, Stage, block_on};
use shardway::{
    clock::Duration,
    txn::{Finish, Finished},
};
use tokio_postgres::error::SqlState;

/// The rows of both shards, the decider's first.
async fn rows(stage: &Stage) -> [Vec<String>; 2] {
    [stage.rows(DECIDER).await, stage.rows(OTHER).await]
}

#[test]
fn what_has_a_commit_row_is_committed() {
    block_on(async {
        let stage = Stage::new().await;
        let proxy = stage.ready().await;
        let transaction = proxy.begin();
        stage.prepare(&transaction, 1).await;
        let decider = stage.decide(&transaction, 1).await;
        decider.batch_execute("COMMIT").await.unwrap();
        drop(transaction);
        proxy.round().await;
        assert_eq!(rows(&stage).await, [["1"], ["1"]]);
        assert_eq!(proxy.recovered(), (1, 0));
        assert_eq!(stage.prepared(OTHER).await, [""; 0]);
    });
}

#[test]
fn what_has_no_row_is_rolled_back_and_can_be_decided_no_more() {
    block_on(async {
        let stage = Stage::new().await;
        let proxy = stage.ready().await;
        let transaction = proxy.begin();
        stage.prepare(&transaction, 1).await;
        let late = stage.session(DECIDER, "app").await;
        late.batch_execute("BEGIN; INSERT INTO t VALUES (1)")
            .await
            .unwrap();
        let id = transaction.id().to_owned();
        drop(transaction);
        proxy.round().await;
        assert_eq!(stage.prepared(OTHER).await, [""; 0]);
        assert_eq!(proxy.recovered(), (0, 1));
        let decided = late
            .batch_execute(&format!("SELECT shardway.decide('{id}')"))
            .await;
        let refused = decided.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::UNIQUE_VIOLATION));
        late.batch_execute("COMMIT").await.unwrap();
        assert_eq!(rows(&stage).await, [[""; 0], [""; 0]]);
    });
}

#[test]
fn a_commit_row_of_another_role_means_nothing() {
    block_on(async {
        let stage = Stage::new().await;
        let proxy = stage.ready().await;
        let transaction = proxy.begin();
        stage.prepare(&transaction, 1).await;
        let forger = stage.session(DECIDER, "other").await;
        let forged = format!("SELECT shardway.decide('{}')", transaction.id());
        forger.batch_execute(&forged).await.unwrap();
        assert_eq!(proxy.settle(&transaction, PATIENCE).await, "aborted");
        drop(transaction);
        proxy.round().await;
        assert_eq!(proxy.recovered(), (0, 1));
        assert_eq!(rows(&stage).await, [[""; 0], [""; 0]]);
    });
}

#[test]
fn another_installation_is_left_alone() {
    block_on(async {
        let stage = Stage::new().await;
        let proxy = stage.ready().await;
        let ours = proxy.begin().gid(OTHER);
        let other = "shardway:1:0123456789abcdef:0123456789abcdef:1:s0:s1";
        let strangers = [other, "an application's", "shardway:1:"];
        for (row, gid) in strangers.iter().enumerate() {
            let gid = gid.replace('\'', "''");
            stage.prepare_as("app", &gid, row as i32).await;
        }
        stage.prepare_as("app", &ours, 9).await;
        proxy.round().await;
        assert_eq!(proxy.recovered(), (0, 1), "ours only");
        let mut left = strangers.map(str::to_owned).to_vec();
        left.sort();
        assert_eq!(stage.prepared(OTHER).await, left);
        for gid in strangers {
            let sql = format!("ROLLBACK PREPARED '{}'", gid.replace('\'', "''"));
            stage.execute(OTHER, &sql).await;
        }
    });
}

#[test]
fn a_decider_whose_commit_is_under_way_is_waited_for() {
    block_on(async {
        let stage = Stage::new().await;
        let proxy = stage.ready().await;
        let transaction = proxy.begin();
        stage.prepare(&transaction, 1).await;
        let decider = stage.decide(&transaction, 1).await;
        let moment = Duration::from_millis(1500);
        assert_eq!(proxy.settle(&transaction, moment).await, "unknown");
        drop(transaction);
        proxy.round().await;
        assert_eq!(proxy.recovered(), (0, 0));
        assert!(
            proxy.left()[0].contains("lock timeout"),
            "{:?}",
            proxy.left()
        );
        decider.batch_execute("COMMIT").await.unwrap();
        proxy.round().await;
        assert_eq!(proxy.recovered(), (1, 0));
        assert_eq!(rows(&stage).await, [["1"], ["1"]]);
    });
}

#[test]
fn what_a_session_is_at_is_left_to_it() {
    block_on(async {
        let stage = Stage::new().await;
        let (proxy, peer) = (stage.ready().await, stage.ready().await);
        let transaction = proxy.begin();
        stage.prepare(&transaction, 1).await;
        for recovering in [&proxy, &peer] {
            recovering.round().await;
            assert_eq!(recovering.left(), ["under way"]);
        }
        assert_eq!(stage.prepared(OTHER).await, [transaction.gid(OTHER)]);
        // The proxy falls silent: its peers finish what it was at.
        let long_ago =
            "UPDATE shardway.proxy SET heartbeat = now() - interval '16 s' WHERE incarnation = ";
        let silent = format!("{long_ago}'{:016x}'", proxy.incarnation.id());
        stage.execute(DECIDER, &silent).await;
        peer.round().await;
        assert_eq!(peer.recovered(), (0, 1));
        assert_eq!(proxy.settle(&transaction, PATIENCE).await, "aborted");
    });
}

#[test]
fn settling_says_what_happened_and_finishing_does_it() {
    block_on(async {
        let stage = Stage::new().await;
        let proxy = stage.ready().await;
        let (committed, aborted) = (proxy.begin(), proxy.begin());
        stage.prepare(&committed, 1).await;
        stage.prepare(&aborted, 2).await;
        let decider = stage.decide(&committed, 1).await;
        decider.batch_execute("COMMIT").await.unwrap();
        for _ in 0..2 {
            assert_eq!(proxy.settle(&committed, PATIENCE).await, "committed");
            assert_eq!(proxy.settle(&aborted, PATIENCE).await, "aborted");
        }
        for (transaction, how) in [(&committed, Finish::Commit), (&aborted, Finish::Rollback)] {
            for expected in [Finished::Now, Finished::NotFound] {
                let finish = proxy.coordinator.finish(transaction, OTHER, how, PATIENCE);
                assert_eq!(finish.await.unwrap(), expected);
            }
        }
        assert_eq!(rows(&stage).await, [["1"], ["1"]]);
    });
}

#[test]
fn a_decision_stays_as_long_as_it_may_forbid_a_commit() {
    block_on(async {
        let stage = Stage::new().await;
        let proxy = stage.ready().await;
        let older = stage.session(DECIDER, "app").await;
        older
            .batch_execute("BEGIN; INSERT INTO t VALUES (1)")
            .await
            .unwrap();
        let transaction = proxy.begin();
        assert_eq!(proxy.settle(&transaction, PATIENCE).await, "aborted");
        let decisions = || stage.ask(DECIDER, "SELECT outcome FROM shardway.decision");
        let hasty = stage.proxy_with("two_phase_retention = \"1ms\"");
        hasty.round().await;
        assert_eq!(decisions().await, ["abort"], "older transactions are open");
        older.batch_execute("COMMIT").await.unwrap();
        rounds_until_nothing_is_decided(&stage, &hasty).await;
    });
}

#[test]
fn a_decision_stays_as_long_as_something_of_it_is_prepared() {
    block_on(async {
        let stage = Stage::new().await;
        let proxy = stage.ready().await;
        // A role that the control role may not act as.
        let role = format!("{}_app", stage.name);
        for shard in [DECIDER, OTHER] {
            let create = format!("CREATE ROLE {role} LOGIN; GRANT ALL ON t TO {role}");
            stage.execute(shard, &create).await;
        }
        let transaction = proxy.coordinator.begin(DECIDER, &[OTHER], &role).unwrap();
        stage.prepare_as(&role, &transaction.gid(OTHER), 1).await;
        let decider = stage.session(DECIDER, &role).await;
        let decide = format!("SELECT shardway.decide('{}')", transaction.id());
        decider.batch_execute(&decide).await.unwrap();
        drop(transaction);
        let hasty = stage.proxy_with("two_phase_retention = \"1ms\"");
        let silent = "UPDATE shardway.proxy SET heartbeat = now() - interval '1 h'";
        stage.execute(DECIDER, silent).await;
        hasty.round().await;
        let problem = format!("permission denied to set role \"{role}\"");
        assert!(hasty.left()[0].contains(&problem), "{:?}", hasty.left());
        let decisions = stage.ask(DECIDER, "SELECT outcome FROM shardway.decision");
        assert_eq!(decisions.await, ["commit"]);
        stage
            .execute(OTHER, &format!("GRANT {role} TO control"))
            .await;
        hasty.round().await;
        assert_eq!(hasty.recovered(), (1, 0));
        assert_eq!(rows(&stage).await, [vec![], vec!["1".to_owned()]]);
        rounds_until_nothing_is_decided(&stage, &hasty).await;
    });
}

/// Transactions of other tests on these servers hold decisions too, while they are open.
async fn rounds_until_nothing_is_decided(stage: &Stage, proxy: &Proxy) {
    let forgotten = async {
        loop {
            proxy.round().await;
            let decisions = stage.ask(DECIDER, "SELECT outcome FROM shardway.decision");
            if decisions.await.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.unwrap();
}

#[test]
fn what_is_older_than_decisions_are_kept_is_left_to_an_operator() {
    block_on(async {
        let stage = Stage::new().await;
        let hasty = stage.proxy_with("two_phase_retention = \"1ms\"");
        hasty.round().await;
        let transaction = hasty.begin();
        stage.prepare(&transaction, 1).await;
        let gid = transaction.gid(OTHER);
        drop(transaction);
        hasty.round().await;
        assert_eq!(
            hasty.left(),
            ["stuck: its decision may have been forgotten"]
        );
        assert_eq!(stage.prepared(OTHER).await, [gid.as_str()]);
        stage
            .execute(OTHER, &format!("ROLLBACK PREPARED '{gid}'"))
            .await;
        hasty.round().await;
        assert_eq!(hasty.left(), [""; 0]);
    });
}
