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

/// The names of all tests of this crate.
fn all_tests() -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    let mut places = vec![root.join("src"), root.join("tests")];
    while let Some(place) = places.pop() {
        if place.is_dir() {
            places.extend(
                fs::read_dir(&place)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if place.extension().is_some_and(|kind| kind == "rs") {
            names.extend(tests_in(&fs::read_to_string(&place).unwrap()));
        }
    }
    names
}

/// The names of functions below an attribute that makes them tests.
fn tests_in(text: &str) -> Vec<String> {
    let mut marked = false;
    let mut names = Vec::new();
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("#[") {
            marked |= line.contains("test]");
            continue;
        }
        let line = line.strip_prefix("async ").unwrap_or(line);
        if let (true, Some(rest)) = (marked, line.strip_prefix("fn ")) {
            names.extend(rest.split(['(', '<']).next().map(str::to_owned));
        }
        marked &= !line.contains("fn ");
    }
    names
}

fn tests(entry: &Value) -> Vec<&str> {
    let names = entry.as_array().into_iter().flatten();
    names.map(|name| name.as_str().unwrap()).collect()
}

#[test]
fn every_case_has_its_tests() {
    let (all, cases) = (all_tests(), table("cases"));
    let numbers: BTreeSet<usize> = cases.keys().map(|key| key.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=CASES).collect());
    let security = table("security");
    assert_eq!(security.len(), FINDINGS);
    for (name, entry) in cases.iter().chain(&security) {
        let absent = entry.get("absent").and_then(Value::as_str);
        assert_ne!(tests(entry).is_empty(), absent.is_none(), "{name}");
        for test in tests(entry) {
            assert!(all.contains(test), "case {name}: there is no test {test}");
        }
    }
    assert!(cases.values().all(|entry| !tests(entry).is_empty()));
}

#[test]
fn only_functions_that_are_tests_count() {
    let text = "#[test]\nfn a_claim() {}\nfn a_helper() {}\n    #[tokio::test]\n    #[cfg(unix)]\n    async fn another() {\n    }\n}";
    assert_eq!(tests_in(text), ["a_claim", "another"]);
    assert!(all_tests().contains("only_functions_that_are_tests_count"));
    assert!(!all_tests().contains("tests_in"));
}
