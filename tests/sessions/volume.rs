//! Long messages and slow peers: nothing stands still, and memory stays bounded.

use crate::{
    client::{batch, query},
    harness::{Proxy, same},
};

#[test]
fn a_long_parameter_does_not_hold_up_what_follows_it() {
    same(|stage| {
        let value = "x".repeat(3 << 20);
        let mut seen = Vec::new();
        for _ in 0..4 {
            let bytes = batch()
                .parse("", "select length($1)")
                .bind("", "", &[&value])
                .execute("", 0)
                .sync();
            seen.extend(stage.step(&bytes.0, 1));
        }
        seen
    });
}

#[test]
fn a_long_pipeline_is_answered_to_its_end() {
    same(|stage| {
        let value = "y".repeat(1000);
        let mut bytes = batch().parse("p", "select length($1), $1").sync();
        for _ in 0..3000 {
            bytes = bytes.call("p", &[&value]);
        }
        let bytes = bytes.sync();
        let mut writer = stage.client.writer();
        let sending =
            std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes.0).unwrap());
        let seen = stage.client.answers(2);
        sending.join().unwrap();
        vec![seen.len().to_string(), seen.last().unwrap().clone()]
    });
}

#[test]
fn long_copy_data_arrives_whole() {
    same(|stage| {
        let name = format!("long_{:?}", stage.way).to_lowercase();
        let mut seen = stage.query(&format!("create table {name} (t text)"));
        let line = format!("{}\n", "z".repeat(2 << 20));
        let bytes = batch()
            .query(&format!("copy {name} from stdin"))
            .copy_data(&line)
            .copy_data(&line)
            .copy_data("end\n")
            .bare(b'c');
        seen.extend(stage.step(&bytes.0, 1));
        seen.push(stage.query(&format!("select count(*), sum(length(t)) from {name}"))[1].clone());
        seen.into_iter()
            .map(|line| line.replace(&name, ""))
            .collect()
    });
}

#[test]
fn long_rows_notices_and_errors_pass() {
    same(|stage| {
        let mut seen = stage.query("select repeat('a', 5000000)");
        seen.extend(stage.query("do $$ begin raise notice '%', repeat('b', 300000); end $$"));
        seen.extend(stage.query("do $$ begin raise exception '%', repeat('c', 300000); end $$"));
        seen.extend(stage.query("select 1"));
        seen
    });
}

/// Bytes of this process in memory, which the proxy is part of.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<usize>()
        .unwrap()
        * 1024
}

#[test]
fn a_client_that_reads_slowly_costs_no_memory() {
    let proxy = Proxy::start("size = 1");
    let mut client = proxy.client();
    client.send(&query(
        "select repeat('r', 1000) from generate_series(1, 600000)",
    ));
    let before = resident();
    let (mut most, mut rows) = (0, 0);
    while let Some((tag, _)) = client.frame() {
        rows += usize::from(tag == b'D');
        if rows % 20000 == 0 {
            most = most.max(resident().saturating_sub(before));
        }
        if tag == b'Z' {
            break;
        }
    }
    assert_eq!(rows, 600_000);
    assert!(most < 300 << 20, "{most} bytes more than before");
}

#[test]
fn a_long_bind_that_is_refused_skipped_or_cut_short_harms_no_other_message() {
    same(|stage| {
        let value = "v".repeat(1 << 20);
        let mut seen = Vec::new();
        // To a named statement, in a batch that has failed already, of a statement that is not there, with too many values.
        for bytes in [
            batch()
                .parse("long", "select length($1)")
                .sync()
                .call("long", &[&value])
                .sync(),
            batch()
                .run("select 1 / 0", &[])
                .call("long", &[&value])
                .sync(),
            batch().call("nothing", &[&value]).sync(),
            batch().run("select length($1)", &[&value, "more"]).sync(),
            batch().bind("portal", "long", &[&value]).sync(),
            batch().run("select length($1), 2", &[&value]).sync(),
        ] {
            let readies = if seen.is_empty() { 2 } else { 1 };
            seen.extend(stage.step(&bytes.0, readies));
        }
        seen
    });
}
