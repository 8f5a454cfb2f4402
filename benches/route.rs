//! What finding a statement's plan and its shard costs. `cargo bench --bench route`.

mod timing;

use shardway::{
    catalog::{
        hash::{HashFunction, bucket},
        key::Key,
        shard::ShardId,
        snapshot::{Epoch, Snapshot, Unlisted},
    },
    plan::{
        Context, Plan, Route, StatementPlan, Target,
        cache::{PlanCache, Request, Scratch},
    },
    sql::statement::{Access, Effect},
};
use std::{collections::HashMap, hint::black_box};

const BUCKETS: u32 = 1024;

fn main() {
    let keys = [
        ("bigint", Key::Bigint(4711)),
        ("uuid", Key::Uuid(*b"sixteen bytes, =")),
        ("text of 12 bytes", Key::Text(b"tenant-00042"[..].into())),
    ];
    for function in [HashFunction::Postgres, HashFunction::Xxh3] {
        for (name, key) in &keys {
            timing::time(&format!("bucket of {name}, {function:?}"), || {
                bucket(function, BUCKETS, black_box(key))
            });
        }
    }
    let (context, snapshot) = (context(), snapshot());
    let cache = PlanCache::new(64 << 20, 1);
    let mut scratch = Scratch::default();
    for other in 0..10_000 {
        let text = format!("SELECT * FROM table_{other} WHERE id = 1");
        let request = Request {
            text: text.as_bytes(),
            types: &[],
            context: &context,
            snapshot: &snapshot,
        };
        drop(cache.plan_with(&request, &mut scratch, |_| plan()));
    }
    let parameter = "SELECT abalance FROM pgbench_accounts WHERE aid = $1";
    let request = Request {
        text: parameter.as_bytes(),
        types: &[23],
        context: &context,
        snapshot: &snapshot,
    };
    timing::time("cached plan of a point select, by text", || {
        cache.plan_with(black_box(&request), &mut scratch, |_| plan())
    });
    let texts: Vec<String> = (0..1000)
        .map(|id| format!("SELECT abalance FROM pgbench_accounts WHERE aid = {id};"))
        .collect();
    let mut texts = texts.iter().cycle();
    timing::time("cached plan of a point select, by template", || {
        let text = texts.next().map_or("", |text| text);
        let request = Request {
            text: text.as_bytes(),
            types: &[],
            context: &context,
            snapshot: &snapshot,
        };
        cache.plan_with(black_box(&request), &mut scratch, |_| plan())
    });
}

fn plan() -> Plan {
    let target = Target::Fixed(Route::Any);
    Plan {
        statements: vec![StatementPlan {
            start: 0,
            end: 0,
            effect: Effect::None,
            access: Access::Read,
            target,
        }],
        structural: Vec::new(),
    }
}

fn context() -> Context {
    Context {
        search_path: vec!["public".to_owned()],
        standard_conforming_strings: true,
        utf8: true,
        transform_null_equals: false,
        pinned: None,
        digest: 1,
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        epoch: Epoch(1),
        schema: 0,
        database: "shop".to_owned(),
        shards: vec!["s0".to_owned()],
        home: ShardId(0),
        groups: Vec::new(),
        tables: HashMap::default(),
        key_columns: Vec::new(),
        unlisted: Unlisted::Error,
        others: HashMap::default(),
        per_shard: Vec::new(),
        code: shardway::catalog::code::Code::Unknown,
    }
}
