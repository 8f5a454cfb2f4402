//! What finding a statement's plan and its shard costs. `cargo bench --bench route`.

mod timing;

use shardway::{
    catalog::{
        hash::{HashFunction, bucket},
        key::Key,
        snapshot::Snapshot,
    },
    plan::{
        Context, Plan, Route, StatementPlan, Target,
        cache::{PlanCache, Request, Scratch},
    },
    sql::statement::{Access, Effect},
};
use std::hint::black_box;

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
    let (context, snapshot) = (Context::default(), snapshot());
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
        statements: vec![StatementPlan::new(0..0, Effect::None, Access::Read, target)],
        structural: Vec::new(),
    }
}

fn snapshot() -> Snapshot {
    Snapshot::new("shop", vec!["s0".to_owned()])
}
