//! Commands of a reshard where they make no sense: each says why, and what to do, and how it exits.

use crate::stage::{Demo, SHARDWAY, said, until};
use std::{fmt::Write as _, fs, path::Path, process::Command};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/reshard.txt");
const TO: [&str; 4] = ["--group", "customers", "--to", "s0,s1,s2,s3"];

/// Room for a machine that others use as well.
const ROOMY: [&str; 6] = [
    "--set",
    "drain_ms=1000",
    "--set",
    "hold_ms=5000",
    "--set",
    "lock_ms=500",
];

/// Before there is a reshard.
const NEVER_BEGUN: [&str; 38] = [
    "status",
    "status --run r9",
    "pause",
    "resume",
    "cutover",
    "cutover --dry-run",
    "cutover --dry-run --no-wait",
    "rollback",
    "finish",
    "abort",
    "verify",
    "set copies=4",
    "set",
    "status --database nowhere",
    "plan",
    "start",
    "start --to s0,s9",
    "start --to s0,s3,s0",
    "start --group clients --to s0",
    "start --group customers --to s0,s1,s2",
    "start --move buckets=1-2 --group customers",
    "start --move buckets=a-b:s3 --group customers",
    "start --move buckets=9-3:s3 --group customers",
    "start --move buckets=0-1024:s3 --group customers",
    "start --move buckets=1-2:s9 --group customers",
    "start --move buckets=1-2:s0 --group customers",
    "start --move range=[1,5):s3 --group customers",
    "start --move customers:s3",
    "start --pin x=s3 --group customers",
    "start --pin 5 --group customers",
    "start --group customers --to s3 --set speed=3",
    "start --group customers --to s3 --set hold_ms=60000",
    "start --group customers --to s3 --set hold_ms=90",
    "start --group customers --to s3 --set drain_ms=900",
    "start --group customers --to s3 --set copies=many",
    "start --group customers --to",
    "start --group customers --to s3 --sideways",
    "turn",
];

/// While rows are copied.
const COPYING: [&str; 15] = [
    "status --run r2",
    "cutover",
    "rollback",
    "finish",
    "verify",
    "set speed=3",
    "set copies=0",
    "set copies",
    "set copies=65",
    "set batch=-1",
    "set hold_ms=10001",
    "set hold_ms=0",
    "set lock_ms=501",
    "set answer_ms=5s",
    "set compare_ms=99999999999999999999",
];

#[test]
fn what_makes_no_sense_is_refused_with_its_reason_and_what_to_do() {
    let demo = Demo::start();
    until("there are records", || {
        demo.reshard(&["status"]).status.success()
    });
    let mut told = String::new();
    let mut tell = |args: &[&str]| {
        let output = demo.reshard(args);
        note(&mut told, args, &output);
        output
    };
    for args in NEVER_BEGUN {
        tell(&args.split(' ').collect::<Vec<_>>());
    }
    // So slow that it is at it until it is aborted.
    let slow = ["--set", "bytes_per_second=1", "--set", "chunk_rows=10"];
    let start = [&["start"], &TO[..], &slow].concat();
    let output = demo.reshard(&start);
    assert!(output.status.success(), "{}", said(&output));
    until("it copies", || {
        said(&demo.reshard(&["status"])).contains("r1: copy")
    });
    tell(&[&["start"], &TO[..]].concat());
    for args in COPYING {
        tell(&args.split(' ').collect::<Vec<_>>());
    }
    let gates = demo.reshard(&["cutover", "--dry-run"]);
    assert_eq!(gates.status.code(), Some(3), "{}", said(&gates));
    assert!(
        said(&gates).contains("closed  state: it is not ready"),
        "{}",
        said(&gates)
    );
    let aborted = demo.reshard(&["abort", "--watch"]);
    assert!(aborted.status.success(), "{}", said(&aborted));
    let mut tell_all = |all: &[&str]| {
        for args in all {
            tell(&args.split(' ').collect::<Vec<_>>());
        }
    };
    tell_all(&["resume", "abort", "cutover", "rollback", "set copies=2"]);
    let start = [&["start"], &TO[..], &ROOMY[..]].concat();
    for (args, state) in [
        (&start[..], "r2: ready; the former"),
        (&["cutover"][..], "r2: reverse; the new"),
    ] {
        let output = demo.reshard(args);
        assert!(output.status.success(), "{}", said(&output));
        until(state, || said(&demo.reshard(&["status"])).contains(state));
        let wrong: &[&str] = match args {
            ["cutover"] => &["cutover", "abort", "verify", "start --to s0"],
            _ => &["rollback", "finish", "start --to s0"],
        };
        tell_all(wrong);
    }
    let finished = demo.reshard(&["finish", "--watch"]);
    assert!(finished.status.success(), "{}", said(&finished));
    tell_all(&[
        "rollback",
        "finish",
        "abort",
        "verify",
        "pause",
        "cutover --dry-run",
    ]);
    elsewhere(&demo, &mut told);
    let told = told.replace(&demo.config().display().to_string(), "shardway.toml");
    alike(&told);
}

/// With configurations that cannot be right.
fn elsewhere(demo: &Demo, told: &mut String) {
    let text = fs::read_to_string(demo.config()).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let without = |begins: &str| -> String {
        let kept = lines.iter().filter(|line| !line.starts_with(begins));
        kept.map(|line| format!("{line}\n")).collect()
    };
    let home = demo.servers()[0];
    let silent = text.replacen(&format!("127.0.0.1:{home}/"), "127.0.0.1:1/", 1);
    let at_home = |database: &str| format!("127.0.0.1:{home}/{database}");
    let bare = text.replacen(&at_home("shop"), &at_home("postgres"), 1);
    // What a plan asks beside the home shard.
    let servers = demo.servers();
    for (name, port) in [
        ("silent", home),
        ("silent-source", servers[3]),
        ("silent-destination", servers[1]),
    ] {
        let path = demo.config().with_file_name(format!("{name}.toml"));
        let text = text.replacen(&format!("127.0.0.1:{port}/"), "127.0.0.1:1/", 1);
        fs::write(&path, text).unwrap();
        let mut command = Command::new(SHARDWAY);
        command.args(["reshard", "plan", "--config"]).arg(&path);
        // From the one that has joined.
        let back = ["--group", "customers", "--to", "s0,s1,s2"];
        let _infallible = writeln!(told, "# {name}.toml");
        let output = command.args(back).output().unwrap();
        note(told, &[&["plan"], &back[..]].concat(), &output);
    }
    for (name, text) in [
        ("no-control", without("control = ")),
        ("silent", silent),
        ("bare", bare),
    ] {
        let path = demo.config().with_file_name(format!("{name}.toml"));
        fs::write(&path, text).unwrap();
        for args in [&["status"][..], &["status", "--database", "shop"]] {
            let (verb, rest) = args.split_first().unwrap();
            let mut command = Command::new(SHARDWAY);
            command
                .args(["reshard", verb, "--config"])
                .arg(&path)
                .args(rest);
            let _infallible = writeln!(told, "# {name}.toml");
            note(told, args, &command.output().unwrap());
        }
    }
}

fn note(told: &mut String, args: &[&str], output: &std::process::Output) {
    let code = output.status.code();
    let _infallible = writeln!(
        told,
        "$ shardway reshard {}\n{}",
        args.join(" "),
        said(output).trim_end()
    );
    let _infallible = writeln!(
        told,
        "exit {}\n",
        code.map_or_else(String::new, |code| code.to_string())
    );
}

/// What was said is what is kept; `SHARDWAY_BLESS=1` keeps what is said now.
fn alike(told: &str) {
    if std::env::var_os("SHARDWAY_BLESS").is_some() {
        fs::write(GOLDEN, told).unwrap();
    }
    let kept = fs::read_to_string(Path::new(GOLDEN)).unwrap_or_default();
    let first = told
        .lines()
        .zip(kept.lines())
        .find(|(now, then)| now != then);
    assert!(told == kept, "{first:?}\n{told}");
}
