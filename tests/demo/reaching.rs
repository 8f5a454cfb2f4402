//! A second proxy whose file lacks the shard that a reshard would join: it is named before anything begins, and goes on
//! serving if it comes later.

use crate::stage::{Demo, SHARDWAY, Typed, said, until};
use serde_json::Value;
use std::{fs, process::Command};

const START: [&str; 5] = ["start", "--group", "customers", "--to", "s0,s1,s2,s3"];

/// Another process before the same servers.
struct Other {
    config: std::path::PathBuf,
    port: u16,
    whole: String,
}

impl Other {
    fn new(demo: &Demo) -> Self {
        let whole = fs::read_to_string(demo.config()).unwrap();
        let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = free.local_addr().unwrap().port();
        let whole = whole.replacen(
            &format!("127.0.0.1:{}\"", demo.port),
            &format!("127.0.0.1:{port}\""),
            1,
        );
        let http = |line: &&str| !line.starts_with("http = ");
        let whole = whole
            .lines()
            .filter(http)
            .map(|line| format!("{line}\n"))
            .collect();
        let config = demo.config().with_file_name("other.toml");
        Self {
            config,
            port,
            whole,
        }
    }

    fn write(&self, with_spare: bool) {
        let lines = self.whole.lines();
        let kept = lines.filter(|line| with_spare || !line.starts_with("shards.s3 = "));
        let text: String = kept.map(|line| format!("{line}\n")).collect();
        fs::write(&self.config, text).unwrap();
    }

    fn serve(&self) -> Typed {
        Typed::begin(&format!(
            "{SHARDWAY} serve --config {}",
            self.config.display()
        ))
    }

    /// Whether it serves what is on several shards; what it says.
    fn serves(&self) -> Result<String, String> {
        let url = format!("postgres://app:app@127.0.0.1:{}/shop", self.port);
        let sql = "SELECT count(*) FROM customers";
        let asked = Command::new("psql")
            .args(["-X", "-A", "-t", "-c", sql, &url])
            .output()
            .unwrap();
        if asked.status.success() {
            Ok(said(&asked))
        } else {
            Err(said(&asked))
        }
    }
}

fn status(demo: &Demo) -> Value {
    let output = demo.reshard(&["status", "--output", "json"]);
    assert!(output.status.success(), "{}", said(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// One that was begun and has told nobody of the shard that joins.
fn paused_before_anybody_is_told(demo: &Demo) {
    loop {
        let started = demo.reshard(&START);
        assert!(started.status.success(), "{}", said(&started));
        let paused = demo.reshard(&["pause"]);
        assert!(paused.status.success(), "{}", said(&paused));
        until("it stands still", || {
            status(demo)["progress"]["waiting_for"] == "paused"
        });
        if status(demo)["state"] == "prepare" {
            return;
        }
        assert!(demo.reshard(&["abort", "--watch"]).status.success());
    }
}

#[test]
fn a_proxy_that_lacks_the_new_shard_is_named_and_goes_on_serving() {
    let demo = Demo::start();
    let other = Other::new(&demo);
    until("there are records", || {
        demo.reshard(&["status"]).status.success()
    });
    paused_before_anybody_is_told(&demo);
    other.write(false);
    let process = other.serve();
    until("the other proxy serves", || other.serves().is_ok());
    until("it is known", || status(&demo)["proxies"] == 2);
    assert!(demo.reshard(&["resume"]).status.success());
    until("the run waits for it", || {
        let waits = status(&demo)["waiting_for"].to_string();
        waits.contains("has no shards.s3 in its configuration") && waits.contains("reload")
    });
    assert_eq!(status(&demo)["state"], "prepare");
    other.serves().unwrap();
    // As long as it is not told of the shard, nothing begins either.
    assert!(demo.reshard(&["abort", "--watch"]).status.success());
    for verb in ["plan", "start"] {
        let args = [&[verb], &START[1..]].concat();
        let refused = demo.reshard(&args);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(3), "{text}");
        assert!(
            text.contains("has no shards.s3 in its configuration"),
            "{text}"
        );
        assert!(
            text.contains("127.0.0.1 (") && text.contains("SIGHUP"),
            "{text}"
        );
    }
    other.serves().unwrap();
    // Mended as it was said.
    other.write(true);
    process.signal("HUP");
    until("it may begin", || demo.reshard(&START).status.success());
    until("it is ready", || {
        other.serves().unwrap();
        status(&demo)["waiting_for"] == "the operator: shardway reshard cutover"
    });
}
