//! Why a command did nothing, or not all: each with what to do.

use super::knobs;
use crate::{
    cli::Exit,
    clock::Duration,
    inspect::AskError,
    net::tls::TlsError,
    registry::Unflipped,
    reshard::{
        job::StepError, planning::PlanError, record::word, state::Refusal, state::State,
        wish::NoMoves,
    },
};

#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("{0}")]
    Database(String),
    #[error(
        "database {0} has no control role, as which resharding works: give it one (control = {{ user = ..., password_file = ... }}), \
         with REPLICATION, on every shard"
    )]
    NoControl(String),
    #[error(
        "database {0} has one shard: there is nothing to move between; add shards.NAME = {{ primary = ... }} to it"
    )]
    OneShard(String),
    #[error(
        "shard {home} ({address}), where reshards are recorded, cannot be asked: {error}; look whether it runs, and lets the \
         control role in"
    )]
    Ask {
        home: String,
        address: String,
        error: AskError,
    },
    #[error(
        "shard {home} has no records of reshards: no proxy of this version has served the database with its control role yet; \
         start one (shardway serve --config FILE)"
    )]
    NoSchema { home: String },
    #[error(
        "the map: {0}; a proxy that serves the database writes it: look whether one runs (SHOW PROXIES)"
    )]
    Map(Unflipped),
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Plan(#[from] PlanError),
    #[error("{0}")]
    Moves(#[from] NoMoves),
    #[error(
        "the configuration has no shard {name}: it has {known}; add it there first, and let every proxy reload"
    )]
    NoShard { name: String, known: String },
    #[error(
        "say what is to move: --to SHARD,... for an even spread, --move WHAT:SHARD, or --pin KEY=SHARD"
    )]
    NoWish,
    #[error("{}{}", .0, Remedy(.0))]
    Step(#[from] StepError),
    #[error("no reshard is under way; one begins with: shardway reshard start --to SHARD,...")]
    None,
    #[error(
        "reshard {id} is over ({}): nothing can be done with it any more; another begins with: shardway reshard start --to SHARD,...",
        word(.state)
    )]
    Over { id: String, state: State },
    #[error("there is no reshard {id}: there {}", Known(.known))]
    NoRun { id: String, known: Vec<String> },
    #[error(
        "reshard {0} is under way, and there is one at a time: finish or abort it first (shardway reshard status tells which)"
    )]
    UnderWay(String),
    #[error("{refusal}: reshard {id} is in state {}; possible now: {next}", word(.state))]
    Refused {
        refusal: Refusal,
        id: String,
        state: State,
        next: String,
    },
    #[error(
        "{text:?} is not understood: NAME=VALUE, with a number, and one of {}",
        knobs::names()
    )]
    Knob { text: String },
    #[error("{text:?} is not possible: a whole number {allowed}; it is {what}")]
    KnobValue {
        text: String,
        allowed: String,
        what: &'static str,
    },
    #[error(
        "{name}={} is not possible with hold_ms={}: it is a part of it, at most half of hold_ms, so that there is time for the rest \
         of a cutover; set both (hold_ms is 10000 at most)",
        .part.as_millis(), .hold.as_millis()
    )]
    Longer {
        name: &'static str,
        part: Duration,
        hold: Duration,
    },
    #[error(
        "shard {shard} does not join with this reshard, so it may not be left out when that is given up: {}; let its address lead \
         to a server that has its rows",
        Joining(.joining)
    )]
    NotJoining { shard: String, joining: Vec<String> },
    #[error(
        "shard {shard} answers, so it is not gone: what the reshard has made there would stay, a slot among it that keeps WAL until \
         its disk is full; abort without --without {shard}"
    )]
    StillThere { shard: String },
    #[error("others change it all the time: try again")]
    Busy,
}

/// What mends it.
struct Remedy<'a>(&'a StepError);

impl std::fmt::Display for Remedy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            StepError::Halt { remedy, .. } => write!(f, "; {remedy}"),
            StepError::Again { .. }
            | StepError::Lost { .. }
            | StepError::FailedOver { .. }
            | StepError::Grown { .. }
            | StepError::Replaced => Ok(()),
        }
    }
}

/// Which do.
struct Joining<'a>(&'a [String]);

impl std::fmt::Display for Joining<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            [] => write!(f, "none joins"),
            all => write!(f, "only {} may", all.join(", ")),
        }
    }
}

/// Which there are.
struct Known<'a>(&'a [String]);

impl std::fmt::Display for Known<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            [] => write!(f, "was none yet"),
            [one] => write!(f, "is {one}"),
            all => write!(f, "are {}", all.join(", ")),
        }
    }
}

impl Fault {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Database(_)
            | Self::Knob { .. }
            | Self::KnobValue { .. }
            | Self::Longer { .. }
            | Self::NoWish => Exit::Usage,
            Self::Moves(NoMoves::Syntax(_)) => Exit::Usage,
            // Nothing was refused: a server does not answer.
            Self::Plan(PlanError::Ask { .. }) => Exit::Failed,
            Self::NoControl(_)
            | Self::OneShard(_)
            | Self::Plan(_)
            | Self::Moves(_)
            | Self::NoShard { .. }
            | Self::None
            | Self::Over { .. }
            | Self::NoRun { .. }
            | Self::UnderWay(_)
            | Self::NotJoining { .. }
            | Self::StillThere { .. }
            | Self::Refused { .. } => Exit::Refused,
            Self::Ask { .. }
            | Self::NoSchema { .. }
            | Self::Map(_)
            | Self::Tls(_)
            | Self::Step(_)
            | Self::Busy => Exit::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stops_a_plan_is_told_with_what_mends_it() {
        let halt = Fault::Step(StepError::Halt {
            what: "table t has no key".to_owned(),
            remedy: "give it one".to_owned(),
        });
        assert_eq!(halt.to_string(), "table t has no key; give it one");
        assert_eq!(halt.exit(), Exit::Failed);
    }

    #[test]
    fn a_server_that_does_not_answer_refuses_nothing() {
        let silent = Fault::Plan(PlanError::Ask {
            shard: "s1".to_owned(),
            error: AskError::Timeout,
        });
        assert_eq!(silent.exit(), Exit::Failed);
        assert!(
            silent.to_string().contains("look whether it runs"),
            "{silent}"
        );
        let wrong = Fault::Plan(PlanError::NoTables("g".to_owned()));
        assert_eq!(wrong.exit(), Exit::Refused);
    }
}
