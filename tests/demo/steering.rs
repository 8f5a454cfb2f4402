//! A reshard that is watched, paused, resumed and set while clients write: it does what it was told, and is seen everywhere.

use crate::stage::{Demo, SHARDWAY, Typed, said, until};
use serde_json::Value;
use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
};

#[test]
fn a_reshard_stands_still_goes_on_and_is_set_while_it_runs() {
    let demo = Demo::start();
    let load = demo.commands("From 3 shards to 4").remove(0);
    let load = Typed::begin(&load);
    until("the load runs", || load.said().contains("progress: "));

    // Slow enough that it would take an hour.
    let start = format!(
        "{SHARDWAY} reshard start --config {} --group customers --to s0,s1,s2,s3 --set bytes_per_second=200 \
         --set chunk_rows=10 --set copies=1 --set drain_ms=1000 --set hold_ms=5000 --set lock_ms=500 --watch",
        demo.config().display()
    );
    let watching = Typed::begin(&start);
    until("rows are copied", || rows(&status(&demo)) > 0);
    until("it is told in lines", || {
        watching.said().contains("state=copy")
    });
    is_seen_while_it_copies(&demo);
    let (told, code) = watching.end("INT");
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("goes on without being watched"), "{told}");
    assert!(
        told.lines().all(|line| !line.contains("percent=100")),
        "{told}"
    );
    let at = rows(&status(&demo));
    until("it goes on", || rows(&status(&demo)) > at);

    must(&demo, &["pause"]);
    until("it stands still", || {
        let now = status(&demo);
        now["progress"]["waiting_for"] == "paused" && now["waiting_for"] == "resume: it is paused"
    });
    let (told, there) = (rows(&status(&demo)), copied(&demo));
    let lines = load.said().matches("progress: ").count();
    until("clients went on", || {
        load.said().matches("progress: ").count() > lines
    });
    assert_eq!(rows(&status(&demo)), told);
    assert_eq!(copied(&demo), there);
    assert_eq!(status(&demo)["state"], "copy");

    must(&demo, &["resume"]);
    until("it goes on again", || rows(&status(&demo)) > told);
    must(
        &demo,
        &["set", "bytes_per_second=0", "copies=4", "chunk_rows=1000"],
    );
    until("it is ready", || status(&demo)["state"] == "ready");
    assert_eq!(status(&demo)["knobs"]["copies"], 4);
    let told = must(&demo, &["cutover", "--output", "json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["done"], true, "{told}");
    assert!(
        told["pause_ms"].as_f64().is_some_and(|pause| pause > 0.0),
        "{told}"
    );
    assert!(
        told["attempts"]
            .as_u64()
            .is_some_and(|attempts| attempts > 0),
        "{told}"
    );
    is_seen_after_its_cutover(&demo);
    must(&demo, &["finish", "--watch"]);
    assert_eq!(status(&demo)["state"], "done");
    let keeps = |page: &str| page.contains("shardway_reshard_wal_kept_bytes{");
    until("nothing is kept for it", || !keeps(&metrics(&demo)));
    assert_eq!(status(&demo)["sources"], serde_json::json!([]));
    let (told, _) = load.end("TERM");
    assert!(
        !told.contains("aborted") && !told.contains("rror"),
        "{told}"
    );
}

fn is_seen_while_it_copies(demo: &Demo) {
    let shown = show(demo);
    let column = |name: &str| {
        shown
            .iter()
            .find(|(column, _)| column == name)
            .unwrap()
            .1
            .clone()
    };
    assert_eq!(
        (column("reshard"), column("state")),
        ("r1".to_owned(), "copy".to_owned())
    );
    let number = |name: &str| -> u64 { column(name).parse().unwrap() };
    assert!(number("rows") < number("rows_of"), "{shown:?}");
    assert!(number("percent") < 100, "{shown:?}");
    assert!(
        column("waits_for").contains("200 bytes a second"),
        "{shown:?}"
    );
    assert!(
        column("next_steps").contains("shardway reshard abort"),
        "{shown:?}"
    );
    assert!(!column("leader").is_empty(), "{shown:?}");
    let page = metrics(demo);
    let labels = r#"{database="shop",reshard="r1""#;
    for begins in [
        format!("shardway_reshard_state{labels},state=\"copy\"}} 1"),
        format!("shardway_reshard_led{labels}}} 1"),
        format!("shardway_reshard_copied_rows{labels},table=\"public.orders\"}} "),
        format!("shardway_reshard_wal_kept_bytes{labels},shard=\"s0\"}} "),
    ] {
        assert!(
            page.lines().any(|line| line.starts_with(&begins)),
            "{begins} in {page}"
        );
    }
}

fn is_seen_after_its_cutover(demo: &Demo) {
    let counted = r#"shardway_reshard_cutover_pause_seconds_count{database="shop"} 1"#;
    until("the pause is counted", || {
        metrics(demo).lines().any(|line| line == counted)
    });
    let shown = show(demo);
    let pause = shown
        .iter()
        .find(|(column, _)| column == "pause_ms")
        .unwrap();
    assert!(
        pause.1.parse::<f64>().is_ok_and(|pause| pause > 0.0),
        "{shown:?}"
    );
    let p99 = shown.iter().find(|(column, _)| column == "p99_ms").unwrap();
    assert!(p99.1.parse::<f64>().is_ok_and(|p99| p99 > 0.0), "{shown:?}");
}

fn must(demo: &Demo, args: &[&str]) -> String {
    let output = demo.reshard(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn status(demo: &Demo) -> Value {
    serde_json::from_str(&must(demo, &["status", "--output", "json"])).unwrap()
}

/// Rows that were copied, as it is told.
fn rows(status: &Value) -> u64 {
    let tables = status["tables"].as_array();
    let each = tables.into_iter().flatten();
    each.map(|table| table["rows"].as_u64().unwrap()).sum()
}

/// Rows on the server that joins.
fn copied(demo: &Demo) -> String {
    let spare = *demo.servers().last().unwrap();
    let count = "SELECT (SELECT count(*) FROM customers), (SELECT count(*) FROM orders), (SELECT count(*) FROM order_items)";
    demo.ask_at(spare, count)
}

/// SHOW RESHARD's row, column by column.
fn show(demo: &Demo) -> Vec<(String, String)> {
    let url = format!("postgres://ops:ops@127.0.0.1:{}/shardway", demo.port);
    let output = std::process::Command::new("psql")
        .args(["-X", "-A", "-x", "-t", "-c", "SHOW RESHARD", &url])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('|'));
    pairs
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

pub(crate) fn metrics(demo: &Demo) -> String {
    let mut page = TcpStream::connect(("127.0.0.1", demo.port + 1)).unwrap();
    page.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    page.read_to_string(&mut text).unwrap();
    text
}
