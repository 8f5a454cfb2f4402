//! Every protocol case and security finding has tests that hold it, and they exist: `cases.toml` says which.

use std::{collections::BTreeSet, fs, path::Path};
use toml::{Table, Value};

/// How many cases of the protocol, and of security, there are.
const CASES: usize = 55;
const FINDINGS: usize = 19;

fn table(name: &str) -> Table {
    let text = include_str!("cases.toml");
    let file: Table = text.parse().unwrap();
    file[name].as_table().unwrap().clone()
}

/// Whether the file has a test of that name.
fn has_test(place: &str) -> bool {
    let (file, name) = place.split_once("::").unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let Ok(text) = fs::read_to_string(path) else {
        return false;
    };
    let lines: Vec<&str> = text.lines().map(str::trim_start).collect();
    let is_it = |line: &str| {
        let line = line.strip_prefix("async ").unwrap_or(line);
        line.strip_prefix("fn ")
            .and_then(|rest| rest.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('('))
    };
    let marked = |line: &&str| line.starts_with("#[") && line.contains("test]");
    lines
        .iter()
        .enumerate()
        .any(|(at, line)| is_it(line) && lines[at.saturating_sub(4)..at].iter().any(marked))
}

fn tests(entry: &Value) -> Vec<&str> {
    let places = entry.as_array().into_iter().flatten();
    places.map(|place| place.as_str().unwrap()).collect()
}

#[test]
fn every_case_has_its_tests() {
    let cases = table("cases");
    let numbers: BTreeSet<usize> = cases.keys().map(|key| key.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=CASES).collect());
    let security = table("security");
    assert_eq!(security.len(), FINDINGS);
    for (name, entry) in cases.iter().chain(&security) {
        let absent = entry.get("absent").and_then(Value::as_str);
        assert_ne!(tests(entry).is_empty(), absent.is_none(), "{name}");
        for place in tests(entry) {
            assert!(has_test(place), "case {name}: there is no test {place}");
        }
    }
    assert!(cases.values().all(|entry| !tests(entry).is_empty()));
}

#[test]
fn a_test_that_was_renamed_is_missed() {
    let here = "tests/sessions/cases.rs";
    assert!(has_test(&format!("{here}::every_case_has_its_tests")));
    assert!(!has_test(&format!("{here}::every_case")));
    assert!(!has_test(&format!("{here}::has_test")));
    assert!(!has_test(
        "tests/sessions/nowhere.rs::every_case_has_its_tests"
    ));
}
