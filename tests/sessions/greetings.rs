//! What is told before the first ReadyForQuery.

use crate::{
    client::{Client, query},
    harness::{Proxy, postgres},
};
use shardway::wire::startup;

/// The tags of what a login is answered with, runs of one tag once.
fn greeting(port: u16, level: &str) -> Vec<char> {
    let mut packet = Vec::new();
    let pairs = [
        ("user", "postgres"),
        ("database", "postgres"),
        ("client_min_messages", level),
        ("work_mem", "5MB"),
    ];
    let pairs = pairs.map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    startup::put_message(&mut packet, 0, &pairs);
    let mut client = Client::open(port);
    client.send(&packet);
    let mut tags = Vec::new();
    while let Some((tag, _)) = client.frame() {
        let tag = char::from(tag);
        if tags.last() != Some(&tag) {
            tags.push(tag);
        }
        if tag == 'Z' {
            break;
        }
    }
    tags
}

#[test]
fn notices_about_startup_settings_are_told_and_the_settings_once() {
    let proxy = Proxy::start("size = 1");
    for _ in 0..2 {
        let talkative = greeting(proxy.port, "debug5");
        assert_eq!(talkative, ['R', 'N', 'S', 'K', 'Z']);
        assert!(greeting(postgres().port(), "debug5").contains(&'N'));
        assert_eq!(greeting(proxy.port, "notice"), ['R', 'S', 'K', 'Z']);
        // What a backend says while it is made ready for a session that has begun is nobody's.
        let mut client = Client::connect(proxy.port, &[("client_min_messages", "debug5")]);
        let mut other = Client::connect(proxy.port, &[]);
        let seen = other.ask(&query("set work_mem = '6MB'"));
        assert_eq!(seen, ["C SET\\0", "Z I"]);
        client.ask(&query("select 1"));
        assert_eq!(other.ask(&query("show work_mem"))[1], "D 6MB");
    }
}
