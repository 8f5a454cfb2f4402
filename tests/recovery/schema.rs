//! Shardway's own schema: made once, by whom it may be used, and when it is not.

use crate::harness::{DECIDER, OTHER, Proxy, Stage, block_on};
use shardway::registry::{NotReady, SchemaFault};
use tokio_postgres::error::SqlState;

#[test]
fn proxies_that_start_at_once_make_it_once() {
    block_on(async {
        let stage = Stage::new().await;
        let proxies: Vec<Proxy> = (0..4).map(|_| stage.proxy()).collect();
        tokio::join!(
            proxies[0].round(),
            proxies[1].round(),
            proxies[2].round(),
            proxies[3].round()
        );
        let installation = |proxy: &Proxy| proxy.begin().id()[..27].to_owned();
        let first = installation(&proxies[0]);
        for proxy in &proxies {
            assert_eq!(installation(proxy), first, "one installation for all");
        }
        for (shard, name) in [(DECIDER, "s0"), (OTHER, "s1")] {
            let versions = stage
                .ask(shard, "SELECT version FROM shardway.version")
                .await;
            assert_eq!(versions, ["1", "2", "3", "4"]);
            let said = "SELECT 'shardway:1:' || installation || shard FROM shardway.identity";
            assert_eq!(stage.ask(shard, said).await, [format!("{first}{name}")]);
        }
        let there = "SELECT count(*) FROM shardway.proxy WHERE heartbeat > now() - interval '15 s'";
        assert_eq!(stage.ask(DECIDER, there).await, ["4"]);
        proxies[0].round().await;
        assert_eq!(proxies[0].view.proxies().len(), 4);
    });
}

#[test]
fn applications_decide_and_do_nothing_else_there() {
    block_on(async {
        let stage = Stage::new().await;
        let proxy = stage.ready().await;
        let app = stage.session(DECIDER, "app").await;
        let id = proxy.begin().id().to_owned();
        app.batch_execute(&format!("SELECT shardway.decide('{id}')"))
            .await
            .unwrap();
        let owner = "SELECT owner::text || outcome FROM shardway.decision";
        assert_eq!(stage.ask(DECIDER, owner).await, ["appcommit"]);
        for forbidden in [
            "INSERT INTO shardway.decision (transaction, outcome) VALUES ('x', 'commit')",
            "UPDATE shardway.decision SET outcome = 'abort'",
            "DELETE FROM shardway.decision",
            "SELECT FROM shardway.decision",
            "UPDATE shardway.proxy SET heartbeat = now()",
            "UPDATE shardway.identity SET shard = 's1'",
            "CREATE TABLE shardway.mine ()",
        ] {
            let refused = app.batch_execute(forbidden).await.unwrap_err();
            assert_eq!(
                refused.code(),
                Some(&SqlState::INSUFFICIENT_PRIVILEGE),
                "{forbidden}"
            );
        }
        let name = app
            .batch_execute("SELECT shardway.decide('anything')")
            .await;
        assert_eq!(name.unwrap_err().code(), Some(&SqlState::CHECK_VIOLATION));
    });
}

#[test]
fn a_schema_of_another_role_is_not_used() {
    block_on(async {
        let stage = Stage::new().await;
        stage
            .execute(OTHER, "CREATE SCHEMA shardway AUTHORIZATION other")
            .await;
        let fault = |owner: &str| SchemaFault::Owner {
            owner: owner.to_owned(),
        };
        assert_eq!(refusal(&stage.ready().await), Some(fault("other")));
        // Nor one in which another role could have put a trigger.
        let given = "ALTER SCHEMA shardway OWNER TO control; \
                     CREATE TABLE shardway.version (); ALTER TABLE shardway.version OWNER TO app";
        stage.execute(OTHER, given).await;
        assert_eq!(refusal(&stage.ready().await), Some(fault("app")));
        stage.execute(OTHER, "DROP TABLE shardway.version").await;
        assert_eq!(refusal(&stage.ready().await), None);
    });
}

#[test]
fn shards_that_were_swapped_or_belong_elsewhere_are_not_used() {
    block_on(async {
        let stage = Stage::new().await;
        assert_eq!(refusal(&stage.ready().await), None);
        let swapped = Proxy::of(&stage.settings([("s1", 0), ("s0", 1)], "").databases["app"]);
        swapped.round().await;
        let Some(SchemaFault::Identity { shard, .. }) = refusal(&swapped) else {
            panic!("{:?}", refusal(&swapped));
        };
        assert_eq!(shard, "s1", "what the shard is really called");
        let elsewhere = "UPDATE shardway.identity SET installation = '0123456789abcdef'";
        stage.execute(OTHER, elsewhere).await;
        let Some(SchemaFault::Identity { installation, .. }) = refusal(&stage.ready().await) else {
            panic!("another installation's shard is taken for ours");
        };
        assert_eq!(installation, 0x0123_4567_89ab_cdef);
    });
}

#[test]
fn a_newer_form_is_used_if_it_says_that_we_understand_it() {
    block_on(async {
        let stage = Stage::new().await;
        assert_eq!(refusal(&stage.ready().await), None);
        let newer = |version: i32, oldest: i32| {
            format!(
                "INSERT INTO shardway.version (version, oldest, made_by) VALUES ({version}, {oldest}, 'a test')"
            )
        };
        stage.execute(OTHER, &newer(1000, 2)).await;
        assert_eq!(refusal(&stage.ready().await), None);
        stage.execute(OTHER, &newer(1001, 1000)).await;
        let (version, oldest) = (1001, 1000);
        let expected = SchemaFault::TooNew { version, oldest };
        assert_eq!(refusal(&stage.ready().await), Some(expected));
    });
}

/// What is wrong with the schema of a shard, if anything.
fn refusal(proxy: &Proxy) -> Option<SchemaFault> {
    match proxy.coordinator.begin(DECIDER, &[OTHER], "app") {
        Ok(_) => None,
        Err(NotReady::NoSchema { fault, .. }) => Some(fault),
        Err(reason) => panic!("{reason}"),
    }
}
