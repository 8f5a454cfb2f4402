//! What the demo prints about growing is typed as it stands, while its own load runs.

use crate::stage::{Demo, Typed, said, typed, until};

#[test]
fn the_demo_grows_by_a_shard_under_load_as_it_says() {
    let demo = Demo::start();
    let mut commands = demo.commands("From 3 shards to 4").into_iter();
    let load = commands.next().unwrap();
    assert!(load.contains("pgbench"), "{load}");
    let mut load = Typed::begin(&load);
    until("the load runs", || load.said().contains("progress: "));
    let mut verbs = Vec::new();
    for command in commands {
        let output = typed(&command);
        println!("$ {command}\n{}", said(&output));
        assert!(output.status.success(), "{command}: {}", said(&output));
        assert!(load.is_running(), "{command}: {}", load.said());
        let verb = command.split(" reshard ").nth(1);
        verbs.extend(verb.and_then(|rest| rest.split(' ').next().map(str::to_owned)));
    }
    let all = [
        "plan", "start", "cutover", "cutover", "rollback", "cutover", "finish",
    ];
    assert_eq!(verbs, all);
    let before = load.said().matches("progress: ").count();
    until("it goes on", || {
        load.said().matches("progress: ").count() > before
    });
    let (told, _) = load.end("TERM");
    for line in told.lines() {
        let fails = line.contains("aborted") || line.contains("rror");
        let failed = line.ends_with(" failed") && !line.ends_with(" 0 failed");
        assert!(!fails && !failed, "{told}");
    }
    adds_up(&demo);
}

/// Every row is on one shard, the fourth has its share, and the shop as a whole sees them all.
fn adds_up(demo: &Demo) {
    let servers = demo.servers();
    assert_eq!(servers.len(), 4, "{}", demo.printed);
    for table in ["customers", "orders", "order_items"] {
        let count = format!("SELECT count(*) FROM {table}");
        let each = servers.iter().map(|port| demo.ask_at(*port, &count));
        let each: Vec<u64> = each.map(|text| text.parse().unwrap()).collect();
        assert!(each.iter().all(|rows| *rows > 0), "{table}: {each:?}");
        let whole: u64 = demo.ask(&count).parse().unwrap();
        assert_eq!(whole, each.iter().sum::<u64>(), "{table}: {each:?}");
    }
    assert_eq!(demo.ask("SELECT count(*) FROM customers"), "1000");
}
