//! The lease of whoever runs reshards: one holder at a time, each with a token of its own, and nobody who has lost it keeps it.

use crate::reached::{OWN_SCHEMA, block_on};
use shardway::{
    config::load::load_str,
    registry::{Lease, Registry},
    reshard::leader::{BELIEVED, LEASE, RENEWAL, leave, renew, take},
    sandbox::Sandbox,
};
use std::path::Path;

async fn home(sandbox: &Sandbox) -> Lease {
    let port = sandbox.cluster(0).port();
    let shard = |at: usize| {
        format!(
            "shards.s{at} = {{ primary = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\" }}\n"
        )
    };
    let text = format!(
        "[databases.app]\ncontrol = {{ user = \"postgres\" }}\n{}{}\
         groups.g = {{ method = \"hash\", key_type = \"bigint\", tables = {{ \"public.t\" = \"id\" }} }}\n",
        shard(0),
        shard(1)
    );
    let settings = load_str("test", &text, Path::new("."))
        .unwrap_or_else(|errors| panic!("{}", errors.render()));
    let registry = Registry::new(&settings.databases["app"]).unwrap();
    registry.lease(registry.home()).await.unwrap()
}

/// As if so long had passed for the server.
async fn pass(lease: &Lease, seconds: u64) {
    let pass = format!("UPDATE shardway.leader SET until = until - interval '{seconds} s'");
    lease.batch_execute(&pass).await.unwrap();
}

#[test]
fn one_leads_at_a_time_and_never_again_with_an_old_token() {
    let sandbox = crate::shards::servers(1, &[]);
    block_on(async {
        sandbox
            .cluster(0)
            .execute("postgres", OWN_SCHEMA)
            .await
            .unwrap();
        let lease = home(&sandbox).await;
        let first = take(&lease, "a").await.unwrap().unwrap();
        assert_eq!(take(&lease, "b").await.unwrap(), None, "another has it");
        assert_eq!(take(&lease, "a").await.unwrap(), None, "nor twice");
        // It is kept as long as it is renewed, however long that is.
        for _ in 0..3 {
            pass(&lease, LEASE.as_secs() - 1).await;
            assert!(renew(&lease, "a", first).await.unwrap());
        }
        assert_eq!(take(&lease, "b").await.unwrap(), None);
        // Late, but nobody was there meanwhile.
        pass(&lease, LEASE.as_secs() + 1).await;
        assert!(renew(&lease, "a", first).await.unwrap());
        pass(&lease, LEASE.as_secs() + 1).await;
        let second = take(&lease, "b").await.unwrap().unwrap();
        assert!(second > first);
        // Whoever slept has lost it for good, and takes it from nobody.
        assert!(!renew(&lease, "a", first).await.unwrap());
        leave(&lease, "a", first).await.unwrap();
        assert_eq!(take(&lease, "a").await.unwrap(), None);
        assert!(
            !renew(&lease, "b", first).await.unwrap(),
            "of another token"
        );
        assert!(
            !renew(&lease, "a", second).await.unwrap(),
            "of another holder"
        );
        leave(&lease, "b", first).await.unwrap();
        assert_eq!(take(&lease, "c").await.unwrap(), None);
        // Given back, it need not be waited for, and gets another token all the same.
        leave(&lease, "b", second).await.unwrap();
        assert!(!renew(&lease, "b", second + 1).await.unwrap());
        let third = take(&lease, "b").await.unwrap().unwrap();
        assert!(third > second);
        let held =
            "SELECT until - clock_timestamp() <= make_interval(secs => $1) FROM shardway.leader";
        let row = lease
            .query_one(held, &[&LEASE.as_secs_f64()])
            .await
            .unwrap();
        assert!(
            row.get::<_, bool>(0),
            "by the server's clock, for as long as is said"
        );
        lease.done();
    });
}

#[test]
fn a_home_shard_that_failed_over_gives_no_token_twice() {
    let sandbox = crate::shards::servers(1, &[("restore_command", "false")]);
    block_on(async {
        let server = sandbox.cluster(0);
        server.execute("postgres", OWN_SCHEMA).await.unwrap();
        let lease = home(&sandbox).await;
        let given = take(&lease, "a").await.unwrap().unwrap();
        lease.done();
        // Promoted, it has not got what was given last.
        let forgets =
            "UPDATE shardway.leader SET holder = NULL, token = token - 1, until = '-infinity'";
        server.execute("postgres", forgets).await.unwrap();
        server.stop();
        std::fs::write(server.data_dir().join("recovery.signal"), "").unwrap();
        server.start().unwrap();
        let lease = home(&sandbox).await;
        let recovers = "SELECT pg_is_in_recovery()";
        while lease.query_one(recovers, &[]).await.unwrap().get(0) {}
        let next = take(&lease, "b").await.unwrap().unwrap();
        assert!(next > given, "{given} was given twice");
        assert!(renew(&lease, "b", next).await.unwrap());
        // Had it got them: who leads by the server that it was leads no more.
        let as_before = format!("UPDATE shardway.leader SET holder = 'a', token = {given}");
        lease.batch_execute(&as_before).await.unwrap();
        assert!(!renew(&lease, "a", given).await.unwrap());
        lease.done();
    });
}

#[test]
fn of_many_that_come_at_once_one_leads() {
    let sandbox = crate::shards::servers(1, &[]);
    block_on(async {
        sandbox
            .cluster(0)
            .execute("postgres", OWN_SCHEMA)
            .await
            .unwrap();
        let mut leases = Vec::new();
        for _ in 0..12 {
            leases.push(home(&sandbox).await);
        }
        for round in 1..=5 {
            let taking = leases.iter().enumerate().map(async |(at, lease)| {
                let taken = take(lease, &at.to_string()).await.unwrap();
                taken.map(|token| (at, token))
            });
            let taken = futures_util::future::join_all(taking).await;
            let winners: Vec<_> = taken.into_iter().flatten().collect();
            assert_eq!(winners.len(), 1, "{winners:?}");
            assert_eq!(winners[0].1, round);
            pass(&leases[0], LEASE.as_secs() + 1).await;
        }
        leases.into_iter().for_each(Lease::done);
    });
}

/// Who leads believes it for less time than others wait, and has several tries to renew meanwhile.
#[test]
fn who_leads_stops_before_another_begins() {
    assert!(BELIEVED < LEASE);
    assert!(RENEWAL * 3 < BELIEVED);
}
