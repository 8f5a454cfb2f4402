//! The state machine of a reshard in a world of fake servers: every effect fails before and after it has happened, runners
//! die, sleep, wake when another has long taken over, deadlines pass, operators change their minds, and the home shard fails
//! over to a standby that lacks what came last.
//!
//! What must stay true, and is looked at after every single thing that happens: never two owners take writes of a key; the
//! map never changes without the fences of all sources; it changes once per attempt at most; no acknowledged write is
//! missing anywhere it is looked for; every run ends, with nothing left behind.
//!
//! `SHARDWAY_SEEDS` says how many runs are made by chance.

#![cfg(test)]
#![expect(
    clippy::disallowed_methods,
    reason = "a test reads how long it is to run"
)]

mod runner;
mod world;

use runner::{Came, Fault, Runner};
use shardway::reshard::state::{State, Step, Waiting, Wish};
use std::panic::{AssertUnwindSafe, catch_unwind};
use world::{BYPASS, Held, KEYS, OLD, Sabotage, WRITERS, World};

/// Numbers by chance, the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % limit
    }

    fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
}

fn seeds() -> u64 {
    let said = std::env::var("SHARDWAY_SEEDS").ok();
    said.map_or(1_500, |said| said.parse().expect("a number"))
}

fn wish(world: &mut World, wish: Wish) {
    if let Ok(record) = world.record.wish(wish)
        && record != world.record
    {
        world.record = record;
        world.version += 1;
    }
}

/// Everybody else has a turn.
fn others(world: &mut World, chance: &mut Chance) {
    for writer in 0..WRITERS {
        match chance.below(4) {
            0 if writer != BYPASS => world.look_at_hold(writer),
            1 if chance.below(8) == 0 => world.refresh(writer),
            _ => {
                world.write(writer, chance.below(KEYS));
            }
        }
        world.judge();
    }
}

/// Everybody looks at once: nothing waits for them any more.
fn all_look(world: &mut World) {
    for writer in 0..WRITERS {
        world.look_at_hold(writer);
        world.refresh(writer);
        if writer != BYPASS {
            world.look_at_hold(writer);
        }
    }
    for key in 0..KEYS {
        world.write(BYPASS, key);
    }
    world.judge();
}

/// One runner without faults brings it to its end.
fn bring_to_an_end(world: &mut World) {
    let mut runner = Runner::new();
    for turn in 0..2_000 {
        all_look(world);
        if let Some(came) = runner.stream(world, turn / 7) {
            runner.fail(world, came);
        }
        // What a home shard has forgotten may have been the end of a hold.
        if turn == 1_000 {
            world.expire();
        }
        match runner.step(world, Fault::None) {
            Came::Done => {}
            Came::Ended => break,
            Came::Waits(Waiting::Paused | Waiting::Stopped) => {
                world.record = world.record.resume().expect("it is not over");
            }
            Came::Waits(Waiting::Operator) => {
                let last = if world.record.flips % 2 == 1 {
                    Wish::Finish
                } else {
                    Wish::Abort
                };
                wish(world, last);
            }
        }
        world.judge();
    }
    if world.forgot {
        // Nobody knows of the hold any more; it has a deadline.
        world.expire();
    }
    world.judge_end();
}

/// Whether nobody has read the copies yet: after that a source that is lost is no matter of copying again.
fn before_cutover(world: &World) -> bool {
    world.flips == 0 && !matches!(world.record.state, State::Cutover | State::Abort)
}

/// A run by chance.
fn by_chance(seed: u64, sabotage: Sabotage) {
    let mut chance = Chance::of(seed);
    let mut world = World::new(sabotage);
    let mut runners = vec![Runner::new()];
    for _ in 0..600 {
        let at = chance.below(runners.len());
        let fault = match chance.below(40) {
            0 => Fault::Before,
            1 => Fault::After,
            _ => Fault::None,
        };
        runners[at].step(&mut world, fault);
        world.judge();
        if let Some(came) = runners[at].stream(&mut world, chance.below(4)) {
            runners[at].fail(&world, came);
        }
        others(&mut world, &mut chance);
        if before_cutover(&world) && chance.below(50) == 0 {
            match chance.below(3) {
                0 => world.fail_over(OLD[chance.below(2)]),
                _ => world.lose_slot(OLD[chance.below(2)]),
            }
        }
        match chance.below(80) {
            0 => world.replicate(),
            1 => world.forget(),
            _ => {}
        }
        match chance.below(60) {
            // It dies, or sleeps while another takes over.
            0 => {
                runners.remove(at);
                runners.push(Runner::new());
            }
            1 | 2 if runners.len() < 4 => runners.push(Runner::new()),
            3 => world.expire(),
            4 => {
                if let Ok(paused) = world.record.pause() {
                    let wanted = world.record.wanted;
                    world.record = paused;
                    world.version += 1;
                    // Some ask for it again at once, for when it is resumed.
                    if let Some(wanted) = wanted.filter(|_| !world.record.is_attempt()) {
                        wish(&mut world, wanted);
                    }
                }
            }
            5..=8 if world.record.paused || world.record.stopped.is_some() => {
                world.record = world.record.resume().expect("it is not over");
                world.version += 1;
            }
            9 if chance.below(3) == 0 => wish(&mut world, Wish::Abort),
            10 => wish(&mut world, Wish::Finish),
            11 => wish(&mut world, Wish::Verify),
            12..=24 => wish(&mut world, Wish::Cutover),
            25..=32 => wish(&mut world, Wish::Rollback),
            _ => {}
        }
        runners.retain(|runner| !runner.is_gone());
        if runners.is_empty() {
            runners.push(Runner::new());
        }
    }
    bring_to_an_end(&mut world);
}

#[test]
fn whatever_happens_no_write_is_lost_and_everything_ends() {
    for seed in 1..=seeds() {
        let run = catch_unwind(|| by_chance(seed, Sabotage::Nothing));
        assert!(run.is_ok(), "seed {seed}");
    }
}

/// Cutover, rollback, cutover, then finish or abort.
struct Script {
    left: Vec<Wish>,
}

impl Script {
    fn new(last: Wish) -> Self {
        let left = match last {
            Wish::Finish => vec![Wish::Finish, Wish::Cutover, Wish::Rollback, Wish::Cutover],
            Wish::Abort | Wish::Cutover | Wish::Rollback | Wish::Verify => {
                vec![Wish::Abort, Wish::Rollback, Wish::Cutover]
            }
        };
        Self { left }
    }

    fn next(&mut self, world: &mut World) {
        if let Some(next) = self.left.pop() {
            wish(world, next);
            assert_eq!(world.record.wanted, Some(next), "{:?}", world.record);
        }
    }
}

/// What happens to a runner after so many things that it did.
#[derive(Clone, Copy)]
enum Blow {
    Dies,
    /// It goes on after another has taken over and done so much.
    Sleeps(usize),
    Fails(Fault),
}

/// A run of the script in which the first runner has one blow, and its follower dies too, after so many things.
fn with_blows(last: Wish, first: (usize, Blow), second: Option<usize>) -> usize {
    let mut world = World::new(Sabotage::Nothing);
    let mut script = Script::new(last);
    let mut chance = Chance::of(7);
    let mut runner = Runner::new();
    let mut zombie: Option<(Runner, usize)> = None;
    let mut second = second;
    let (mut did, mut since) = (0, None);
    for _ in 0..3_000 {
        let fault = match first {
            (at, Blow::Fails(fault)) if at == did => fault,
            _ => Fault::None,
        };
        match runner.step(&mut world, fault) {
            Came::Waits(Waiting::Operator) => script.next(&mut world),
            Came::Ended if world.record.is_over() => break,
            Came::Waits(Waiting::Stopped | Waiting::Paused) | Came::Ended | Came::Done => {}
        }
        did += 1;
        world.judge();
        runner.stream(&mut world, chance.below(4));
        all_look(&mut world);
        match first {
            (at, Blow::Dies) if at == did => (runner, since) = (Runner::new(), Some(did)),
            (at, Blow::Sleeps(while_)) if at == did => {
                zombie = Some((std::mem::replace(&mut runner, Runner::new()), while_));
            }
            _ => {}
        }
        if matches!((since, second), (Some(since), Some(after)) if did == since + after) {
            (runner, second) = (Runner::new(), None);
        }
        if let Some((sleeper, left)) = &mut zombie {
            if *left == 0 {
                sleeper.step(&mut world, Fault::None);
                sleeper.stream(&mut world, chance.below(4));
                world.judge();
            } else {
                *left -= 1;
            }
        }
    }
    assert!(world.record.is_over(), "{:?}", world.record);
    assert!(script.left.is_empty());
    world.judge_end();
    did
}

#[test]
fn a_runner_may_die_or_fail_anywhere() {
    for last in [Wish::Finish, Wish::Abort] {
        let whole = with_blows(last, (usize::MAX, Blow::Dies), None);
        assert!(whole > 60, "{whole} things are a whole run");
        for at in 0..whole {
            with_blows(last, (at, Blow::Dies), None);
            with_blows(last, (at, Blow::Fails(Fault::Before)), None);
            with_blows(last, (at, Blow::Fails(Fault::After)), None);
        }
    }
}

#[test]
fn its_follower_may_die_too() {
    let whole = with_blows(Wish::Finish, (usize::MAX, Blow::Dies), None);
    for at in 0..whole {
        for after in 1..20 {
            with_blows(Wish::Finish, (at, Blow::Dies), Some(after));
        }
    }
}

#[test]
fn a_runner_that_was_replaced_does_nothing_any_more() {
    let whole = with_blows(Wish::Finish, (usize::MAX, Blow::Dies), None);
    for at in 0..whole {
        for slept in [0, 1, 2, 3, 5, 8, 12, 20, 40] {
            with_blows(Wish::Finish, (at, Blow::Sleeps(slept)), None);
        }
    }
}

#[test]
fn an_attempt_that_outlasts_its_deadline_is_undone_and_tried_again() {
    let mut world = World::new(Sabotage::Nothing);
    let mut script = Script::new(Wish::Finish);
    let mut runner = Runner::new();
    let mut expired = 0;
    while !world.record.is_over() {
        if runner.step(&mut world, Fault::None) == Came::Waits(Waiting::Operator) {
            script.next(&mut world);
        }
        let held = matches!(world.hold, Some((_, Held::Held)));
        if held && world.record.step == Some(Step::CaughtUp) && expired < 3 {
            world.expire();
            expired += 1;
        }
        all_look(&mut world);
    }
    world.judge_end();
    assert_eq!(world.record.state, State::Done);
    assert_eq!((world.flips, world.record.attempt), (3, 6));
}

/// What a run does, from its copy on, when a source loses its slot or fails over once it is in a state.
fn after_a_loss(state: State, lose: fn(&mut World, usize)) -> Vec<State> {
    let mut world = World::new(Sabotage::Nothing);
    let mut runner = Runner::new();
    let (mut lost, mut states) = (false, Vec::new());
    for _ in 0..2_000 {
        if !lost && world.record.state == state {
            (lost, states) = (true, vec![state]);
            lose(&mut world, OLD[1]);
        }
        match runner.step(&mut world, Fault::None) {
            Came::Waits(Waiting::Operator) => {
                let next = if world.record.flips == 0 {
                    Wish::Cutover
                } else {
                    Wish::Finish
                };
                wish(&mut world, next);
            }
            Came::Waits(Waiting::Stopped) => {
                world.record = world.record.resume().expect("it is not over");
                world.version += 1;
            }
            Came::Done | Came::Waits(_) | Came::Ended => {}
        }
        world.judge();
        for pick in 0..4 {
            if let Some(came) = runner.stream(&mut world, pick) {
                runner.fail(&world, came);
            }
        }
        all_look(&mut world);
        if lost && states.last() != Some(&world.record.state) {
            states.push(world.record.state);
        }
        if world.record.is_over() {
            break;
        }
    }
    world.judge_end();
    states
}

#[test]
fn rows_of_a_source_that_lost_its_slot_or_failed_over_are_copied_again() {
    for lose in [World::lose_slot, World::fail_over] {
        for state in [State::Copy, State::CatchUp, State::Verify, State::Ready] {
            let states = after_a_loss(state, lose);
            let again = states.iter().position(|it| *it == State::Prepare);
            assert!(again.is_some(), "{state:?}: {states:?}");
            let rest = &states[again.unwrap()..];
            let whole = [
                State::Prepare,
                State::Copy,
                State::CatchUp,
                State::Verify,
                State::Ready,
                State::Cutover,
            ];
            assert_eq!(rest[..6], whole, "{state:?}: {states:?}");
        }
    }
}

/// Whether something is found within so many seeds when the world is broken in this way.
fn is_found(sabotage: Sabotage, said: &str) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found = (1..=20_000).find_map(|seed| {
        let run = catch_unwind(AssertUnwindSafe(|| by_chance(seed, sabotage)));
        let panic = run.err()?;
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()));
        message.filter(|message| message.contains(said))
    });
    std::panic::set_hook(hook);
    assert!(found.is_some(), "{sabotage:?} is not found as {said:?}");
}

#[test]
fn what_is_broken_on_purpose_is_found() {
    is_found(Sabotage::NoGuards, "two owners take writes");
    is_found(Sabotage::Tokens, "two owners take writes");
    is_found(Sabotage::GuardsGoEarly, "two owners take writes");
    is_found(Sabotage::OneFenceMissing, "without the fence");
    is_found(Sabotage::NoDrain, "without the fence");
    is_found(Sabotage::Believes, "two owners take writes");
    is_found(Sabotage::LosesChanges, "not all earlier ones are");
    is_found(Sabotage::GuardsStay, "a guard is left");
}
