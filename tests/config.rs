//! The configuration: examples load, what is wrong is told with its place, the documentation is up to date.

use shardway::{
    catalog::{
        group::Map,
        key::{Key, KeyType},
        shard::ShardId,
        snapshot::{Placement, Unlisted},
    },
    config::{
        load, options,
        settings::{ClientAuth, Secret, Settings},
    },
    txn::gid,
};
use std::{fs, path::Path};

fn example(name: &str) -> Settings {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("config")
        .join(name);
    load::load(&path).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn every_example_loads() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            load::load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        }
    }
}

#[test]
fn one_shard_is_a_pooler_that_refuses_nothing() {
    let settings = example("minimal.toml");
    let app = &settings.databases["app"];
    assert!(app.snapshot.is_single());
    assert_eq!(app.snapshot.unlisted, Unlisted::On(ShardId(0)));
    assert!(matches!(settings.users["app"].auth, ClientAuth::Scram(_)));
    assert_eq!(
        settings.users["app"].backend.password,
        Some(Secret("change-me".to_owned()))
    );
}

#[test]
fn the_shop_is_spread_as_its_file_says() {
    let settings = example("shop.toml");
    let snapshot = &settings.databases["shop"].snapshot;
    assert_eq!(
        (snapshot.epoch.0, &snapshot.shards[..]),
        (1, &["s0", "s1", "s2"].map(String::from)[..])
    );
    let Placement::Sharded { group, key_column } =
        &snapshot.table("public", "orders").unwrap().placement
    else {
        panic!("orders is sharded");
    };
    assert_eq!(key_column, "customer_id");
    let Map::Hash { shards, .. } = &snapshot.group(*group).map else {
        panic!("by hash")
    };
    assert_eq!(
        (shards.len(), shards[0], shards[1023]),
        (1024, ShardId(0), ShardId(2))
    );
    let by_name = |name: &str| {
        snapshot
            .groups
            .iter()
            .find(|group| group.name == name)
            .unwrap()
    };
    let shard_of = |group: &str, key_type: KeyType, key: &str| {
        by_name(group)
            .shard_of(&key_type.from_text(key.as_bytes()).unwrap())
            .unwrap()
            .0
    };
    assert_eq!(shard_of("regions", KeyType::Text, "uk"), 0);
    assert_eq!(shard_of("regions", KeyType::Text, "de"), 2);
    assert_eq!(shard_of("months", KeyType::Date, "2025-12-31"), 0);
    assert_eq!(shard_of("months", KeyType::Date, "2026-01-01"), 1);
    assert_eq!(
        by_name("months").shard_of(&Key::Date(i32::MAX)),
        Some(ShardId(2))
    );
    assert_eq!(
        snapshot.table("public", "settings").unwrap().placement,
        Placement::Single(ShardId(0))
    );
}

#[test]
fn the_wildcard_is_every_database_not_listed() {
    let settings = example("sidecar.toml");
    assert!(settings.databases.is_empty());
    assert_eq!(
        settings.wildcard.as_ref().unwrap().shards[0]
            .primary
            .database,
        ""
    );
}

/// Each `tests/golden/config/NAME.toml` is refused with the text in `NAME.txt`.
/// `SHARDWAY_BLESS=1` writes what is said now.
#[test]
fn wrong_files_are_refused_with_place_and_way_out() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config");
    let mut count = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let errors = load::load_str(name, &text, &directory).expect_err(name);
        compare(
            &path.with_extension("txt"),
            &format!("{}\n", errors.render()),
        );
        for error in errors.to_json().as_array().unwrap() {
            let file = error["file"].as_str().unwrap();
            // Its own, or one that it names.
            assert!(file == name || text.contains(file), "{file}");
            assert!(error["line"].as_u64().unwrap() >= 1);
        }
        count += 1;
    }
    assert!(count >= 10, "{count} files");
}

#[test]
fn the_documentation_is_what_the_options_declare() {
    compare(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md"),
        &options::document(),
    );
}

#[test]
fn every_option_in_use_is_shown() {
    let rows = options::rows(&example("shop.toml"));
    let value = |key: &str| {
        rows.iter()
            .find(|row| row.key == key)
            .unwrap()
            .value
            .as_str()
    };
    assert_eq!(value("server.max_clients"), "5000");
    assert_eq!(value("databases.shop.pool.mode"), "transaction");
    assert_eq!(value("databases.shop.pool.idle_timeout"), "10m");
    assert!(rows.iter().all(|row| !row.value.contains("change-me")));
}

#[expect(
    clippy::disallowed_methods,
    reason = "blessing is asked for by an environment variable"
)]
fn compare(path: &Path, actual: &str) {
    if std::env::var("SHARDWAY_BLESS").is_ok() {
        fs::write(path, actual).expect("golden files can be written");
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(
        actual,
        expected,
        "{} is out of date: run with SHARDWAY_BLESS=1",
        path.display()
    );
}

#[test]
fn a_verifier_that_is_cut_short_is_refused_and_never_taken_for_a_password() {
    let whole = "SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$\
                 qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo=:qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo=";
    let file = |verifier: &str| {
        format!(
            "[databases.app]\nshards.s0 = {{ primary = \"postgres://db/app\" }}\n\
             [users.ann]\nverifier = \"{verifier}\"\nbackend_password = \"x\"\n"
        )
    };
    let accepted = |verifier| load::load_str("shardway.toml", &file(verifier), Path::new("."));
    accepted(whole).unwrap_or_else(|errors| panic!("{errors}"));
    // Still base64, and no key.
    for cut in [4, 8, 40] {
        let cut = &whole[..whole.len() - cut];
        let errors = accepted(cut).unwrap_err().to_string();
        assert!(errors.contains("verifier"), "{errors}");
    }
}

#[test]
fn shards_of_several_have_names_that_prepared_transactions_can_bear() {
    let with = |names: &[&str]| {
        let shard =
            |name: &&str| format!("shards.\"{name}\" = {{ primary = \"postgres://h/d\" }}\n");
        let shards: String = names.iter().map(shard).collect();
        let text = format!("[databases.app]\n{shards}[users.app]\nauth = \"trust\"\n");
        load::load_str("test.toml", &text, Path::new("."))
    };
    let long = "a".repeat(63);
    for name in ["s0", "eu-west.1_a", &long] {
        assert!(with(&[name, "other"]).is_ok(), "{name}");
        assert!(gid::fits(name), "{name}");
    }
    for name in ["a:b", "é", "it's", "", &format!("{long}a")] {
        let refused = with(&[name, "other"]).unwrap_err().render();
        assert!(
            refused.contains("cannot name one of several shards"),
            "{refused}"
        );
        assert!(!gid::fits(name), "{name}");
        assert!(with(&[name]).is_ok(), "{name} as the only shard");
    }
}
