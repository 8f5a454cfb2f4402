//! The commands as a person types them: what they print, where, and how they exit.

use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn shardway(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_shardway"))
        .args(arguments)
        .current_dir(ROOT)
        .env_remove("SHARDWAY_CONFIG")
        .output()
        .expect("the binary runs")
}

fn route(arguments: &[&str]) -> (String, Option<i32>) {
    let output = shardway(&[&["route", "--config", "config/shop.toml"], arguments].concat());
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        output.status.code(),
    )
}

#[test]
fn a_route_is_told_by_the_value_of_its_key() {
    let by_constant = route(&["SELECT * FROM orders WHERE customer_id = 42"]);
    let by_parameter = route(&[
        "--param",
        "42",
        "SELECT * FROM orders WHERE customer_id = $1",
    ]);
    let shard = |(text, code): &(String, Option<i32>)| {
        assert_eq!(*code, Some(0), "{text}");
        text.lines()
            .find(|line| line.starts_with("  shards: "))
            .map(str::to_owned)
    };
    assert!(shard(&by_constant).is_some());
    assert_eq!(shard(&by_constant), shard(&by_parameter));
}

#[test]
fn no_shard_is_told_when_the_value_of_the_key_is_not_given() {
    let (text, code) = route(&["SELECT * FROM orders WHERE customer_id = $1"]);
    assert_eq!(code, Some(0));
    assert!(text.contains("reason: $1 is not given"), "{text}");
    assert!(!text.contains("shards:"), "{text}");
}

#[test]
fn a_refusal_is_told_with_its_code_and_exits_3() {
    for (sql, code) in [
        ("SELECT * FROM orders FOR UPDATE", "SW102"),
        ("SELECT * FROM nowhere", "SW104"),
    ] {
        let (text, exit) = route(&[sql]);
        assert_eq!(exit, Some(3));
        assert!(text.contains(code) && text.contains("hint: "), "{text}");
    }
}

#[test]
fn a_file_that_is_not_there_is_a_fault_of_the_arguments_everywhere() {
    for command in [
        &["serve", "--config", "nowhere.toml"][..],
        &["check", "--config", "nowhere.toml"],
        &["route", "--config", "nowhere.toml", "SELECT 1"],
    ] {
        let output = shardway(command);
        assert_eq!(output.status.code(), Some(2), "{command:?}");
        assert!(output.stdout.is_empty(), "{command:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("cannot read nowhere.toml"), "{said}");
    }
}

#[test]
fn every_command_has_help_that_ends_well() {
    let help = String::from_utf8(shardway(&["--help"]).stdout).expect("text");
    let commands = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty());
    // A command's own line is indented by two, the rest of its words by more.
    let names: Vec<&str> = commands
        .filter_map(|line| {
            line.strip_prefix("  ")
                .filter(|rest| !rest.starts_with(' '))
        })
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(names.len() >= 6, "{names:?}");
    for name in names {
        let output = shardway(&[name, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{name}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("Usage: shardway"), "{text}");
    }
}
