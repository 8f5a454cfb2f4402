//! Resharding from three shards to four while clients write: nothing that was acknowledged is lost or there twice, nothing
//! fails that need not, whatever dies in between.
//!
//! Needs the feature `failpoints`. `SHARDWAY_RESHARD_PART=i/n` takes a part of every victim, fault and point, which takes
//! long (`make reshard-matrix`).

#![cfg(test)]
#![expect(
    clippy::disallowed_methods,
    reason = "clients and faults run on their own, and how long they took is what is claimed"
)]

mod changing;
mod direct;
mod emptying;
mod faults;
mod gone;
#[expect(
    dead_code,
    reason = "the harness of another suite, of which this one uses a part"
)]
#[path = "../cluster/harness.rs"]
mod harness;
mod kinds;
mod ledger;
mod load;
mod points;
mod relay;
mod runs;
mod slow;
mod stage;
mod units;

use harness::{block_on, open_session};
use load::Load;
use stage::{Stage, to};
use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio_postgres::Config;
use units::{Combination, Ending, Fault, Leg, Unit, Victim};

/// What moves: an even split over four shards.
const TO: [&str; 4] = ["--group", "g", "--to", "s0,s1,s2,s3"];
/// On a machine where everything is started again all the time, locks are waited for for longer than by default.
const PATIENTLY: [&str; 6] = [
    "--set",
    "lock_ms=300",
    "--set",
    "drain_ms=1000",
    "--set",
    "hold_ms=3000",
];
/// Longer than statements are held for then.
const HELD: Duration = Duration::from_millis(3500);

#[test]
fn rows_move_there_and_back_and_there_again_while_clients_write() {
    let stage = Stage::open();
    let (first, second) = (stage.proxy(0), stage.proxy(1));
    block_on(async {
        stage.fill(&first).await;
        let proxies = [to(&first), to(&second)];
        let load = Load::start(&proxies, 6);
        let raised = AtomicBool::new(true);
        let raises = raises(&proxies, &raised);
        let run = async {
            // It does not begin to lead: the first one does.
            second.signal("STOP");
            stage.must(&[&["start"], &TO[..]].concat()).await;
            stage.led_since(0).await;
            second.signal("CONT");
            let lead = stage.lead().await;
            stage.until("ready").await;
            for verb in ["cutover", "rollback", "cutover"] {
                println!("{}", stage.must(&[verb]).await);
                stage.until("reverse").await;
                let pause = &stage.status().await["progress"]["cutover.pause_ms"];
                println!("{verb}: statements were held for {pause} ms at most");
            }
            stage.must(&["finish"]).await;
            stage.until("done").await;
            println!("leads: {lead} at first, {} at last", stage.lead().await);
            raised.store(false, Ordering::Relaxed);
        };
        let ((), raised) = tokio::join!(run, raises);
        stage.has_rates(raised).await;
        let seen = load.stop().await;
        stage.adds_up(&proxies[0], &seen).await;
        stage.adds_up(&proxies[1], &seen).await;
        stage.is_clean().await;
        nothing_failed(&seen.errors());
    });
}

#[test]
fn an_aborted_reshard_leaves_nothing_behind() {
    let stage = Stage::open();
    let proxy = stage.proxy(0);
    block_on(async {
        stage.fill(&proxy).await;
        let load = Load::start(&[to(&proxy)], 4);
        stage.must(&[&["start"], &TO[..]].concat()).await;
        stage.until("ready").await;
        // A shard that has joined leaves with it.
        for verb in ["cutover", "rollback"] {
            stage.must(&[verb]).await;
            stage.until("reverse").await;
        }
        stage.must(&["abort"]).await;
        stage.until("aborted").await;
        let seen = load.stop().await;
        nothing_failed(&seen.errors());
        stage.adds_up(&to(&proxy), &seen).await;
        stage.is_clean().await;
    });
}

/// The parts of the matrix that were asked for; without, one death at every point.
#[test]
fn whatever_is_killed_at_whatever_point_until_a_finish_nothing_is_lost() {
    let Some((part, of)) = part() else {
        let [finished, _] = units::quick();
        return runs::run(&finished, frozen()).must_be_good();
    };
    let units: Vec<Unit> = units::all()
        .into_iter()
        .skip(part - 1)
        .step_by(of)
        .collect();
    assert_eq!(runs::all(&units, frozen()), 0, "failures");
}

#[test]
fn whatever_is_killed_at_whatever_point_until_an_abort_nothing_is_lost() {
    let [_, aborted] = units::quick();
    runs::run(&aborted, frozen()).must_be_good();
}

/// Proxies of two versions are such processes (`make mixed`).
#[test]
fn a_run_goes_on_in_the_other_process_whenever_the_one_that_leads_dies() {
    let ran = runs::run(&units::takeovers(), frozen());
    ran.must_be_good();
    for place in 0..2 {
        let died = |it: &&faults::Done| it.place == Some(place);
        let deaths = ran.faults.iter().filter(died).count();
        assert!(deaths > 1, "proxy {place} died {deaths} times");
    }
}

#[test]
fn who_was_frozen_or_cut_off_during_a_cutover_does_no_harm_afterwards() {
    let of = |victim, fault, point, leg| Combination {
        victim,
        fault,
        point,
        leg,
    };
    let unit = Unit {
        name: "frozen".to_owned(),
        takes: vec![
            of(
                Victim::Destination,
                Fault::Cut,
                "after_apply_commit",
                Leg::Start,
            ),
            // It has the map of before when it goes on.
            of(Victim::Other, Fault::Stop, "begin_hold", Leg::Forward),
            of(Victim::Leader, Fault::Stop, "after_guard", Leg::Back),
            of(Victim::Catalog, Fault::Cut, "after_flip", Leg::Back),
            of(Victim::Leader, Fault::Stop, "after_flip", Leg::Again),
            of(Victim::Source, Fault::Cut, "begin_finish", Leg::End),
        ],
        ending: Ending::Finish,
    };
    runs::run(&unit, frozen()).must_be_good();
}

/// Writes a table that every shard has whole, through each proxy in turn, as long as it is to; how often.
async fn raises(proxies: &[Config], goes_on: &AtomicBool) -> i32 {
    let (mut clients, mut raised) = (Vec::new(), 0);
    for proxy in proxies {
        clients.push(open_session(proxy).await.unwrap());
    }
    while goes_on.load(Ordering::Relaxed) {
        for (proxy, client) in clients.iter().enumerate() {
            let raise = "update rate set rate = rate + 1 where id = 1";
            if let Err(error) = client.batch_execute(raise).await {
                panic!("proxy {proxy}, after {raised} times: {error:?}");
            }
            raised += 1;
        }
    }
    raised
}

fn nothing_failed(errors: &[String]) {
    let some = &errors[..errors.len().min(5)];
    assert!(errors.is_empty(), "{} errors: {some:?}", errors.len());
}

/// `i/n` of the environment.
fn part() -> Option<(usize, usize)> {
    let text = std::env::var("SHARDWAY_RESHARD_PART").ok()?;
    let (part, of) = text.split_once('/')?;
    Some((part.parse().unwrap(), of.parse().unwrap()))
}

/// For how long somebody is frozen: longer than a lease at least.
fn frozen() -> Duration {
    let text = std::env::var("SHARDWAY_RESHARD_FROZEN").ok();
    let seconds = text.map_or(9, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Runs a future to its end on several threads, with tasks beside it.
fn block_on_all<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = { runtime }.worker_threads(2).enable_all().build().unwrap();
    let done = runtime.block_on(future);
    runtime.shutdown_background();
    done
}
