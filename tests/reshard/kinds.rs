//! Every kind of reshard from plan to finish, with the way back, while clients write through two proxies.

use crate::{
    harness::{Proxy, block_on, open_session},
    ledger::{Clients, Keys, TENANTS, Told, fill, map},
    stage::{Setting, Stage, to},
};
use std::{collections::BTreeSet, sync::Arc};

/// On a busy machine a transaction takes longer than a lock is waited for by default.
const KNOBS: [&str; 6] = [
    "--set",
    "lock_ms=300",
    "--set",
    "drain_ms=1000",
    "--set",
    "hold_ms=3000",
];

/// A group of the ledger's tables.
fn group(keys: Keys, more: &str) -> String {
    format!(
        "[databases.postgres.groups.g]\nkey_type = \"{}\"\n{more}\n{}",
        keys.key_type().name(),
        Keys::TABLES
    )
}

/// So many servers, of which some have the tables.
fn open(keys: Keys, servers: usize, filled: usize, more: &str) -> Stage {
    Stage::of(Setting {
        servers,
        filled,
        shards: servers,
        tables: keys.tables(),
        sections: group(keys, more),
        ..Setting::default()
    })
}

/// A stage with rows, two proxies and clients at work.
struct Show {
    stage: Stage,
    keys: Keys,
    proxies: [Proxy; 2],
    clients: Clients,
}

impl Show {
    async fn begin(keys: Keys, stage: Stage) -> Self {
        let proxies = [stage.proxy(""), stage.proxy("")];
        stage.ready(&proxies[0]).await;
        fill(keys, &open_session(&to(&proxies[0])).await.unwrap()).await;
        let clients = Clients::start(keys, &[to(&proxies[0]), to(&proxies[1])], 4);
        Self {
            stage,
            keys,
            proxies,
            clients,
        }
    }

    /// A whole run: there, back, and there again.
    async fn run(&self, wish: &[&str]) {
        let stage = &self.stage;
        let plan = stage.must(&[&["plan"], wish].concat()).await;
        assert!(plan.contains("it can begin"), "{plan}");
        stage.must(&[&["start"], wish, &KNOBS[..]].concat()).await;
        stage.until("ready").await;
        stage.must(&["verify"]).await;
        stage.until("ready").await;
        for verb in ["cutover", "rollback", "cutover"] {
            self.clients.more(20).await;
            stage.must(&[verb]).await;
            stage.until("reverse").await;
        }
        self.clients.more(20).await;
        stage.must(&["finish"]).await;
        stage.until("done").await;
        self.clients.more(20).await;
        stage.has_nothing_left().await;
    }

    /// Ends the clients, none of whose statements failed; everything is where it belongs.
    async fn end(self) -> (Stage, [Proxy; 2], Arc<Told>) {
        let told = self.clients.stop().await;
        told.adds_up(&self.stage, "g").await;
        (self.stage, self.proxies, told)
    }

    async fn owner(&self, tenant: usize) -> String {
        let key = self.keys.of(tenant);
        let key = self.keys.key_type().from_text(key.as_bytes()).unwrap();
        let map = map(&self.stage).await;
        map.owners.owner("g", &key).unwrap().to_owned()
    }
}

fn names(shards: &[&str]) -> BTreeSet<String> {
    shards.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_tenant_gets_a_shard_of_its_own_and_comes_back() {
    let stage = open(
        Keys::Bigint,
        3,
        2,
        "method = \"hash\"\nbuckets = 16\nshards = [\"s0\", \"s1\"]",
    );
    block_on(async {
        let show = Show::begin(Keys::Bigint, stage).await;
        let key = Keys::Bigint.of(3);
        let home = show.owner(3).await;
        show.run(&["--pin", &format!("{key}=s2")]).await;
        for tenant in 0..TENANTS {
            let owner = show.owner(tenant).await;
            assert_eq!(owner == "s2", tenant == 3, "{tenant}");
        }
        show.run(&["--pin", &format!("{key}={home}")]).await;
        assert_eq!(map(&show.stage).await.owners.shards(), names(&["s0", "s1"]));
        show.end().await;
    });
}

#[test]
fn ranges_of_text_go_by_their_bytes_whatever_their_collation() {
    let stage = open(
        Keys::Text,
        3,
        2,
        "method = \"range\"\nranges = [{ to = \"a\", shard = \"s0\" }, { shard = \"s1\" }]",
    );
    block_on(async {
        let show = Show::begin(Keys::Text, stage).await;
        // Umlauts lie behind all of these, `Z` before.
        show.run(&["--move", "range=[Z,b):s2", "--move", "range=[i,j):s0"])
            .await;
        for (tenant, owner) in [
            (0, "s2"),
            (1, "s0"),
            (2, "s1"),
            (3, "s2"),
            (4, "s1"),
            (5, "s0"),
        ] {
            assert_eq!(show.owner(tenant).await, owner, "{}", Keys::Text.of(tenant));
        }
        show.end().await;
    });
}

#[test]
fn values_of_a_list_go_to_another_shard() {
    let listed: Vec<String> = (0..20)
        .map(|it| format!("{:?}", Keys::Text.of(it)))
        .collect();
    let stage = open(
        Keys::Text,
        2,
        2,
        &format!(
            "method = \"list\"\nlists.s0 = [{}]\nlists.s1 = [\"*\"]",
            listed.join(", ")
        ),
    );
    block_on(async {
        let show = Show::begin(Keys::Text, stage).await;
        let value = |tenant, shard| format!("value={}:{shard}", Keys::Text.of(tenant));
        // From the list, and from what is not in it.
        let moves = [value(1, "s1"), value(5, "s1"), value(33, "s0")];
        let wish: Vec<&str> = moves
            .iter()
            .flat_map(|it| ["--move", it.as_str()])
            .collect();
        show.run(&wish).await;
        for (tenant, owner) in [(0, "s0"), (1, "s1"), (5, "s1"), (33, "s0"), (34, "s1")] {
            assert_eq!(show.owner(tenant).await, owner, "{}", Keys::Text.of(tenant));
        }
        show.end().await;
    });
}

#[test]
fn shards_that_leave_own_nothing_and_need_not_be_configured_any_more() {
    let mut stage = open(
        Keys::Uuid,
        4,
        4,
        "method = \"hash\"\nbuckets = 32\nshards = [\"s0\", \"s1\", \"s2\", \"s3\"]",
    );
    block_on(async {
        let show = Show::begin(Keys::Uuid, stage).await;
        show.run(&["--to", "s0,s1"]).await;
        let (stage_then, proxies, told) = show.end().await;
        stage = stage_then;
        let kept = map(&stage).await;
        assert_eq!(kept.owners.shards(), names(&["s0", "s1"]));
        assert_eq!(kept.members, names(&["s0", "s1"]));
        drop(proxies);
        stage.setting.shards = 2;
        stage.setting.sections = group(
            Keys::Uuid,
            "method = \"hash\"\nbuckets = 32\nshards = [\"s0\", \"s1\"]",
        );
        let proxy = stage.proxy("");
        stage.ready(&proxy).await;
        let clients = Clients::resume(told, &[to(&proxy)], 2);
        clients.more(100).await;
        clients.stop().await.adds_up(&stage, "g").await;
    });
}

#[test]
fn chosen_buckets_go_between_shards_that_both_serve() {
    let stage = open(
        Keys::Uuid,
        2,
        2,
        "method = \"hash\"\nbuckets = 16\nshards = [\"s0\", \"s1\"]",
    );
    block_on(async {
        let show = Show::begin(Keys::Uuid, stage).await;
        // Both give and are given at once.
        show.run(&["--move", "buckets=2-5:s1", "--move", "buckets=8:s0"])
            .await;
        show.end().await;
    });
}
