//! Which rules fit which connections. What is wrong with rules is in `tests/golden/config`.

use super::*;
use crate::config::load::load_str;
use std::path::Path;

/// Rules of tables.
fn rules(tables: &str) -> Rules {
    let text = format!(
        "[databases.app]\nshards.s0 = {{ primary = \"postgres://h/app\" }}\n[users.app]\npassword = \"x\"\n{tables}"
    );
    let settings =
        load_str("test", &text, Path::new(".")).unwrap_or_else(|errors| panic!("{errors}"));
    Rules::clone(&settings.rules.unwrap())
}

#[track_caller]
fn check(rules: &Rules, from: From, database: &str, user: &str, expected: Option<Method>) {
    let asked = Asked {
        from,
        database: Some(database.as_bytes()),
        user: user.as_bytes(),
    };
    assert_eq!(rules.find(asked).map(|rule| rule.method), expected);
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn the_first_rule_that_fits_decides_and_none_is_none() {
    let rules = rules(
        r#"
        [[rules]]
        type = "hostssl"
        address = "10.1.0.0/16"
        users = ["ann"]
        method = "reject"
        [[rules]]
        type = "host"
        address = "10.0.0.0/8"
        databases = ["app", "sameuser"]
        method = "scram-sha-256"
        [[rules]]
        type = "hostnossl"
        address = "fd00::/8"
        users = ["\"all\""]
        method = "md5"
        [[rules]]
        type = "local"
        method = "trust"
        "#,
    );
    let (near, far) = (ip("10.1.2.3"), ip("10.2.2.3"));
    for (from, database, user, expected) in [
        (From::Tls(near), "app", "ann", Some(Method::Reject)),
        (From::Plain(near), "app", "ann", Some(Method::Scram)),
        (From::Tls(near), "app", "bob", Some(Method::Scram)),
        (From::Tls(far), "app", "ann", Some(Method::Scram)),
        (From::Tls(far), "bob", "bob", Some(Method::Scram)),
        (From::Tls(far), "bob", "ann", None),
        (From::Tls(ip("11.0.0.1")), "app", "bob", None),
        (From::Plain(ip("fd01::1")), "x", "all", Some(Method::Md5)),
        (From::Plain(ip("fd01::1")), "x", "bob", None),
        (From::Tls(ip("fd01::1")), "x", "all", None),
        (From::Plain(ip("fe01::1")), "x", "all", None),
        (From::Local, "x", "y", Some(Method::Trust)),
        // An IPv4 address written as IPv6 is that IPv4 address.
        (
            From::Plain(ip("::ffff:10.1.2.3")),
            "app",
            "bob",
            Some(Method::Scram),
        ),
    ] {
        check(&rules, from, database, user, expected);
    }
}

#[test]
fn a_network_of_every_length_holds_what_begins_like_it() {
    for (network, inside, outside) in [
        ("10.0.0.1/32", "10.0.0.1", Some("10.0.0.2")),
        ("10.0.0.1/31", "10.0.0.0", Some("10.0.0.2")),
        ("10.0.0.1/0", "192.0.2.1", Some("::1")),
        ("::1/128", "::1", Some("::2")),
        ("::/0", "fd00::1", Some("10.0.0.1")),
        ("all", "fd00::1", None),
    ] {
        let rules = rules(&format!(
            "[[rules]]\ntype = \"host\"\naddress = \"{network}\"\nmethod = \"trust\"\n"
        ));
        check(
            &rules,
            From::Plain(ip(inside)),
            "a",
            "b",
            Some(Method::Trust),
        );
        if let Some(outside) = outside {
            check(&rules, From::Plain(ip(outside)), "a", "b", None);
        }
    }
}

#[test]
fn physical_replication_is_for_those_whom_a_rule_names_it_for() {
    let rules = rules(
        r#"
        [[rules]]
        type = "host"
        address = "all"
        databases = ["all", "app", "sameuser"]
        method = "trust"
        [[rules]]
        type = "host"
        address = "all"
        users = ["copier"]
        databases = ["replication"]
        method = "scram-sha-256"
        "#,
    );
    for (user, expected) in [("copier", Some(Method::Scram)), ("app", None)] {
        let asked = Asked {
            from: From::Plain(ip("10.1.2.3")),
            database: None,
            user: user.as_bytes(),
        };
        assert_eq!(rules.find(asked).map(|rule| rule.method), expected);
    }
    check(
        &rules,
        From::Plain(ip("10.1.2.3")),
        "replication",
        "copier",
        Some(Method::Trust),
    );
}
