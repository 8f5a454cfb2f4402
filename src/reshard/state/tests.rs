//! What comes of a record by wishes, faults, and what servers know.

use super::*;

fn stopped(state: State, step: Option<Step>) -> Record {
    let stopped = Stopped {
        what: "a row was not there".to_owned(),
        remedy: "put it back".to_owned(),
        then: Then::GoOn,
    };
    Record {
        state,
        step,
        round: 1,
        stopped: Some(stopped),
        ..Record::new()
    }
}

/// Waits for the operator.
fn at(state: State, flips: i32) -> Record {
    Record {
        state,
        step: Some(Step::Made),
        round: 1,
        flips,
        ..Record::new()
    }
}

#[test]
fn a_pause_withdraws_what_was_asked_for_and_has_not_begun() {
    for (state, flips, asked) in [
        (State::Ready, 0, Wish::Cutover),
        (State::Ready, 0, Wish::Verify),
        (State::Reverse, 1, Wish::Rollback),
        (State::Reverse, 1, Wish::Finish),
    ] {
        let wanted = at(state, flips).wish(asked).expect("its time has come");
        let resumed = wanted.pause().and_then(|it| it.resume());
        let next = resumed.expect("it is not over").next();
        assert_eq!(next, Next::Wait(Waiting::Operator), "{asked:?}");
    }
    // It waits for nothing, so it is not withdrawn either.
    let abort = at(State::Ready, 0).wish(Wish::Abort);
    let paused = abort.and_then(|it| it.pause()).expect("it is not over");
    assert!(matches!(paused.next(), Next::Turn(it) if it.state == State::Abort));
}

#[test]
fn who_resumes_it_does_not_change_owners_by_that() {
    let stop = stopped(State::Ready, None).stopped.expect("it has stopped");
    for (state, flips, asked) in [
        (State::Ready, 0, Wish::Cutover),
        (State::Ready, 0, Wish::Verify),
        (State::Reverse, 1, Wish::Rollback),
    ] {
        let paused = at(state, flips).pause().expect("it is not over");
        assert_eq!(paused.wish(asked), Err(Refusal::Paused), "{asked:?}");
        let stands = Record {
            stopped: Some(stop.clone()),
            ..at(state, flips)
        };
        assert_eq!(stands.wish(asked), Err(Refusal::Stopped), "{asked:?}");
        // It was asked for, and something stopped it before it began.
        let wanted = at(state, flips).wish(asked).expect("its time has come");
        let stands = wanted.after(&Event::Halt(stop.clone()));
        let resumed = stands.expect("it stops").resume();
        assert_eq!(resumed.expect("it is not over").wanted, None, "{asked:?}");
    }
    // An end changes no owners: where the way back could not be made it is asked for before it goes on.
    let paused = at(State::Reverse, 1).pause().expect("it is not over");
    assert!(paused.wish(Wish::Finish).is_ok());
}

#[test]
fn an_attempt_that_is_paused_goes_to_its_end_and_no_other_follows() {
    let fencing = Record {
        state: State::Cutover,
        step: Some(Step::Fence),
        attempt: 1,
        round: 1,
        wanted: Some(Wish::Cutover),
        ..Record::new()
    };
    let paused = fencing.pause().expect("it is not over");
    assert_eq!(paused.next(), Next::Run(Effect::Fence));
    let undoing = paused.after(&Event::Again).expect("it is undone");
    assert_eq!(undoing.next(), Next::Run(Effect::Undo));
    let undone = undoing.after(&Event::Done(Effect::Undo));
    let undone = undone.expect("it is recorded");
    assert_eq!(undone.next(), Next::Wait(Waiting::Paused));
    let ready = Record {
        step: Some(Step::Made),
        ..undone
    };
    let resumed = ready.resume().expect("it is not over");
    assert_eq!(resumed.next(), Next::Wait(Waiting::Operator));
}

#[test]
fn what_somebody_has_mended_is_compared_before_owners_may_change() {
    for (state, step) in [
        (State::Verify, None),
        (State::Ready, None),
        (State::Ready, Some(Step::Made)),
    ] {
        let resumed = stopped(state, step).resume().expect("it is not over");
        assert_eq!((resumed.state, resumed.round), (State::Verify, 2));
        assert_eq!(resumed.next(), Next::Run(Effect::Verify));
        let refused = resumed.wish(Wish::Cutover).unwrap_err();
        assert_eq!(refused, Refusal::NotReady);
    }
    let reverse = stopped(State::Reverse, Some(Step::Made)).resume();
    assert_eq!(reverse.expect("it is not over").state, State::Reverse);
    let mut paused = stopped(State::Ready, Some(Step::Made));
    (paused.paused, paused.stopped) = (true, None);
    let resumed = paused.resume().expect("it is not over");
    assert_eq!(resumed.state, State::Ready, "nothing was mended");
}

#[test]
fn what_servers_know_is_gone_on_with_whatever_the_record_has_forgotten() {
    let ready = Record {
        state: State::Ready,
        step: Some(Step::Made),
        wanted: Some(Wish::Cutover),
        attempt: 2,
        ..Record::new()
    };
    let known = |tried, last| Known {
        tried,
        last,
        epoch: 0,
    };
    assert_eq!(ready.with(&known(0, None)), None);
    assert_eq!(
        ready.with(&known(2, None)),
        None,
        "an attempt that was undone"
    );
    // The attempt was forgotten, not what it has done.
    let undone = ready.with(&known(3, None)).expect("it was not known");
    assert_eq!((undone.attempt, undone.flips), (3, 0));
    assert_eq!(undone.next(), Next::Run(Effect::Undo));
    // The cutover was.
    let held = Record {
        state: State::Cutover,
        step: Some(Step::CaughtUp),
        attempt: 3,
        ..ready.clone()
    };
    for before in [&ready, &held] {
        let after = before.with(&known(3, Some((3, Direction::Forward))));
        let after = after.expect("it was not known");
        assert_eq!((after.attempt, after.flips), (3, 1));
        assert_eq!(after.next(), Next::Run(Effect::Activate));
        assert_eq!(after.with(&known(3, Some((3, Direction::Forward)))), None);
        let reverse = after.after(&Event::Done(Effect::Activate));
        assert_eq!(reverse.expect("it is done").state, State::Reverse);
    }
    // It was, and another attempt the other way was begun.
    let begun = ready.with(&known(4, Some((3, Direction::Forward))));
    let begun = begun.expect("it was not known");
    assert_eq!((begun.attempt, begun.flips), (4, 1));
    assert_eq!(begun.direction(), Direction::Back);
    assert_eq!(begun.next(), Next::Run(Effect::Undo));
    let reverse = begun.after(&Event::Done(Effect::Undo));
    assert_eq!(reverse.expect("it is done").state, State::Reverse);
    // It was, and taken back, and made again.
    let again = ready.with(&known(5, Some((5, Direction::Forward))));
    assert_eq!(again.map(|it| it.flips), Some(1));
    let back = ready.with(&known(4, Some((4, Direction::Back))));
    assert_eq!(back.map(|it| it.flips), Some(2));
    let reverse = Record {
        state: State::Reverse,
        attempt: 3,
        flips: 1,
        ..Record::new()
    };
    assert_eq!(reverse.with(&known(3, Some((3, Direction::Forward)))), None);
    let back = reverse.with(&known(4, Some((4, Direction::Back))));
    assert_eq!(back.map(|it| it.flips), Some(2));
    let twice = reverse.with(&known(5, Some((5, Direction::Forward))));
    assert_eq!(twice.map(|it| it.flips), Some(3));
}

#[test]
fn an_attempt_after_a_cutover_that_was_told_is_undone_and_not_taken_for_it() {
    let committed = Record {
        state: State::Cutover,
        step: Some(Step::Committed),
        attempt: 3,
        flips: 1,
        ..Record::new()
    };
    let known = |tried, last| Known {
        tried,
        last,
        epoch: 0,
    };
    let told = Some((3, Direction::Forward));
    assert_eq!(committed.with(&known(3, told)), None);
    let later = committed.with(&known(4, told)).expect("it was not known");
    assert_eq!((later.attempt, later.flips), (4, 1));
    assert_eq!(later.direction(), Direction::Back);
    assert_eq!(later.next(), Next::Run(Effect::Undo));
}

#[test]
fn who_owns_keys_by_a_map_that_came_back_is_told_so() {
    let known = |tried, last| Known {
        tried,
        last,
        epoch: 7,
    };
    let by = |mut known: Known, went| {
        known.by_map(went);
        known.last
    };
    let (forward, back) = (Direction::Forward, Direction::Back);
    // Only the map says so: a cutover of which no shard was told, and a rollback.
    assert_eq!(by(known(1, None), forward), Some((1, forward)));
    assert_eq!(by(known(2, Some((1, forward))), back), Some((2, back)));
    let fencing = Record {
        state: State::Cutover,
        step: Some(Step::Fence),
        attempt: 1,
        ..Record::new()
    };
    let went = fencing.with(&known(1, by(known(1, None), forward)));
    let went = went.expect("it was not known");
    assert_eq!(went.next(), Next::Run(Effect::Activate));
    assert_eq!(went.direction(), back, "of the next");
    // It says what the shards say.
    for last in [None, Some((2, back))] {
        assert_eq!(by(known(2, last), back), last);
    }
    assert_eq!(
        by(known(1, Some((1, forward))), forward),
        Some((1, forward))
    );
    // An attempt after it has fenced nothing yet.
    assert_eq!(by(known(0, None), forward), None);
}
