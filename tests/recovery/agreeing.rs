//! What proxies hear of each other's schema changes, and who waits for whom.

use crate::harness::{DECIDER, Proxy, Stage, block_on};
use shardway::clock::{Clock, Duration};
use tokio_postgres::error::SqlState;

/// Longer than it takes to ask, shorter than any wait.
const SOON: Duration = Duration::from_millis(300);

/// The proxies that have not taken this number over.
async fn late(proxy: &Proxy, epoch: i64) -> Vec<String> {
    let late = proxy.coordinator.taken_over(epoch, SOON).await.unwrap();
    late.into_iter().map(|late| late.incarnation).collect()
}

fn name(proxy: &Proxy) -> String {
    format!("{:016x}", proxy.incarnation.id())
}

/// The last number that a proxy has heard of.
fn heard(proxy: &Proxy) -> i64 {
    let agreement = proxy.coordinator.agreement().unwrap();
    *agreement.numbers().borrow()
}

#[test]
fn a_change_is_waited_for_until_every_proxy_has_it_or_relies_on_nothing() {
    block_on(async {
        let stage = Stage::new().await;
        let (one, other) = (stage.ready().await, stage.ready().await);
        let change = one.coordinator.change_begins().await.unwrap().unwrap();
        assert_eq!(heard(&other), 1);
        let epoch = one.coordinator.change_ends(change).await.unwrap();
        assert_eq!(epoch, 2);
        assert_eq!(late(&one, epoch).await, [name(&other)]);
        // It has heard, and taken nothing over.
        other.coordinator.beat(None).await;
        assert_eq!(heard(&other), 2);
        assert_eq!(late(&one, epoch).await, [name(&other)]);
        other.coordinator.takes_over(epoch, None).await;
        assert_eq!(late(&one, epoch).await, [""; 0]);
        // A frozen one is not waited for once its lease is over, and then relies on nothing.
        let change = one.coordinator.change_begins().await.unwrap().unwrap();
        let epoch = one.coordinator.change_ends(change).await.unwrap();
        assert_eq!(late(&one, epoch).await, [name(&other)]);
        let frozen = format!(
            "UPDATE shardway.proxy SET heartbeat = now() - interval '7 s' WHERE incarnation = '{}'",
            name(&other)
        );
        stage.execute(DECIDER, &frozen).await;
        assert_eq!(late(&one, epoch).await, [""; 0]);
        let later = Clock.now() + Duration::from_secs(7);
        assert!(!other.coordinator.is_lapsed(Clock.now()));
        assert!(other.coordinator.is_lapsed(later));
        // Beating alone does not help: it does not know of the change.
        other.coordinator.beat(None).await;
        assert!(other.coordinator.is_lapsed(later));
        other.coordinator.takes_over(epoch, None).await;
        assert!(!other.coordinator.is_lapsed(later - Duration::from_secs(2)));
    });
}

#[test]
fn a_change_is_numbered_whoever_dies() {
    block_on(async {
        let stage = Stage::new().await;
        let (gone, other) = (stage.ready().await, stage.ready().await);
        // Its session dies between announcement and number: its own heartbeat says so.
        drop(gone.coordinator.change_begins().await.unwrap());
        gone.coordinator.beat(None).await;
        assert_eq!(heard(&gone), 2);
        // What was rolled back is not numbered.
        let change = gone.coordinator.change_begins().await.unwrap().unwrap();
        gone.coordinator.change_abandoned(change).await;
        gone.coordinator.beat(None).await;
        assert_eq!(heard(&gone), 2);
        // The process dies: another says so, once its silence tells.
        let _held = gone.coordinator.change_begins().await.unwrap();
        other.coordinator.beat(None).await;
        assert_eq!(heard(&other), 2);
        let silent = format!(
            "UPDATE shardway.change SET begun = now() - interval '16 s'; \
             UPDATE shardway.proxy SET heartbeat = now() - interval '16 s' WHERE incarnation = '{}'",
            name(&gone)
        );
        stage.execute(DECIDER, &silent).await;
        other.coordinator.beat(None).await;
        assert_eq!(heard(&other), 3);
        let left = stage
            .ask(DECIDER, "SELECT count(*) FROM shardway.change")
            .await;
        assert_eq!(left, ["0"]);
    });
}

#[test]
fn only_its_owner_says_where_a_table_lives() {
    block_on(async {
        let stage = Stage::new().await;
        stage.ready().await;
        let (app, other) = (
            stage.session(DECIDER, "app").await,
            stage.session(DECIDER, "other").await,
        );
        let make = format!(
            "GRANT CREATE ON SCHEMA public TO app; GRANT CREATE ON DATABASE {} TO app",
            stage.name
        );
        stage.execute(DECIDER, &make).await;
        app.batch_execute("CREATE TABLE mine (a int)")
            .await
            .unwrap();
        let place = "SELECT shardway.place('mine', 'sharded', 'g', 'a')";
        let refused = other.batch_execute(place).await.unwrap_err();
        assert_eq!(refused.code().map(SqlState::code), Some("23514"));
        app.batch_execute(place).await.unwrap();
        for forbidden in [
            "SELECT FROM shardway.placement",
            "UPDATE shardway.epoch SET epoch = 0",
            "DELETE FROM shardway.change",
            "UPDATE shardway.map SET epoch = 0",
        ] {
            let refused = app.batch_execute(forbidden).await.unwrap_err();
            assert_eq!(
                refused.code().map(SqlState::code),
                Some("42501"),
                "{forbidden}"
            );
        }
    });
}
