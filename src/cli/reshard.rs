//! `shardway reshard`: asks for reshards and watches them. They run in the proxies, whether anybody watches or not.
//!
//! Exit codes: 0 done, 1 failed, 3 refused by a check and nothing changed. What must stay true: this process changes nothing
//! but an operator's wishes, by compare-and-swap; `plan` and `--dry-run` change nothing at all.

mod asking;
mod bars;
mod fault;
mod figures;
mod gates;
mod knobs;
mod outcome;
mod planning;
mod report;
mod watching;

use super::{Exit, output::Output};
use crate::{
    config::load::load,
    reshard::{
        record::word,
        state::{Record, Wish},
    },
};
use asking::{Seen, Site};
use fault::Fault;
use std::{cell::Cell, path::PathBuf};

/// Move keys between shards while the database serves
#[derive(Debug, clap::Args)]
pub(super) struct ReshardArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Print what would move, how much that is, and what stands in the way; changes nothing.
    Plan(PlanArgs),
    /// Begin to copy. Owners change at `cutover` only.
    Start(StartArgs),
    /// Tell where the latest reshard stands, and what can be done next.
    Status(StatusArgs),
    /// Stand still as soon as possible; what was asked for and has not begun is withdrawn.
    Pause(WhereArgs),
    /// Go on, also after a fault that somebody has mended.
    Resume(WhereArgs),
    /// Change how it runs: chunk_rows, copies, bytes_per_second, batch, wal_kept, load, answer_ms,
    /// xmin_age, replica_lag, drain_ms, hold_ms, lock_ms, rows_per_second, compare_ms. Without a value: show them.
    Set(SetArgs),
    /// Compare every row once more.
    Verify(WatchArgs),
    /// Give the keys to their new owners, and tell how long statements were held.
    Cutover(WishArgs),
    /// Give them back to the former owners, with all that was written meanwhile.
    Rollback(WishArgs),
    /// Delete the former owners' rows. No way back from there.
    Finish(WatchArgs),
    /// Give it up, before a cutover or after a rollback: the copies go.
    Abort(AbortArgs),
}

#[derive(Debug, clap::Args)]
struct WhereArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE", env = "SHARDWAY_CONFIG")]
    config: PathBuf,
    /// The logical database; may be left out if one only has a control role.
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
}

#[derive(Debug, clap::Args)]
struct WatchArgs {
    #[command(flatten)]
    place: WhereArgs,
    /// Show how it goes until there is nothing to wait for; Ctrl-C leaves it going.
    #[arg(long)]
    watch: bool,
}

#[derive(Debug, clap::Args)]
struct AbortArgs {
    #[command(flatten)]
    watch: WatchArgs,
    /// A shard that was to join and is gone for good: nothing is removed there.
    #[arg(long, value_name = "SHARD")]
    without: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    watch: WatchArgs,
    /// An earlier one, as r1.
    #[arg(long, value_name = "ID")]
    run: Option<String>,
}

#[derive(Debug, clap::Args)]
struct WishArgs {
    #[command(flatten)]
    place: WhereArgs,
    /// List every gate with its value; changes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not wait for it.
    #[arg(long, conflicts_with = "dry_run")]
    no_wait: bool,
}

#[derive(Debug, clap::Args)]
struct SetArgs {
    #[command(flatten)]
    place: WhereArgs,
    /// For instance copies=4 hold_ms=500.
    #[arg(value_name = "NAME=VALUE")]
    values: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct PlanArgs {
    #[command(flatten)]
    place: WhereArgs,
    /// The group that moves; may be left out if the database has one.
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Spread the keys of all groups, or of the one that --group names, evenly over these shards.
    #[arg(long, value_name = "SHARD,...", value_delimiter = ',')]
    to: Vec<String>,
    /// Move some: buckets=0-127:s3, range=[100,200):s3, value=eu:s3.
    #[arg(long = "move", value_name = "WHAT:SHARD")]
    moves: Vec<String>,
    /// Move one key: 42=s3.
    #[arg(long = "pin", value_name = "KEY=SHARD")]
    pins: Vec<String>,
}

#[derive(Debug, clap::Args)]
struct StartArgs {
    #[command(flatten)]
    plan: PlanArgs,
    /// How it runs, as `set` has it.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    values: Vec<String>,
    /// Print what would be done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Show how it goes until there is nothing to wait for; Ctrl-C leaves it going.
    #[arg(long)]
    watch: bool,
}

impl Verb {
    fn place(&self) -> &WhereArgs {
        match self {
            Self::Plan(args) => &args.place,
            Self::Start(args) => &args.plan.place,
            Self::Status(args) => &args.watch.place,
            Self::Verify(args) | Self::Finish(args) => &args.place,
            Self::Abort(args) => &args.watch.place,
            Self::Pause(args) | Self::Resume(args) => args,
            Self::Set(args) => &args.place,
            Self::Cutover(args) | Self::Rollback(args) => &args.place,
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &ReshardArgs, output: &Output) -> Exit {
    let place = args.verb.place();
    let settings = match load(&place.config) {
        Ok(settings) => settings,
        Err(errors) => return output.config_fault(&errors),
    };
    let runtime = match super::runtime() {
        Ok(runtime) => runtime,
        Err(error) => return output.fault(&error.to_string(), Exit::Failed),
    };
    let done = runtime.block_on(async {
        let site = Site::of(&settings, place.database.as_deref())?;
        Box::pin(obey(&args.verb, &site, output)).await
    });
    done.unwrap_or_else(|fault| output.fault(&fault.to_string(), fault.exit()))
}

async fn obey(verb: &Verb, site: &Site, output: &Output) -> Result<Exit, Fault> {
    match verb {
        Verb::Plan(args) => {
            let made = planning::make(site, args).await?;
            let exit = output.result(&made.text(), &made.json());
            Ok(if made.is_refused() {
                Exit::Refused
            } else {
                exit
            })
        }
        Verb::Start(args) => start(site, args, output).await,
        Verb::Status(args) if args.watch.watch => {
            watching::watch(site, args.run.as_deref(), output).await
        }
        Verb::Status(args) => {
            let seen = site.seen(args.run.as_deref()).await?;
            Ok(output.result(&report::text(seen.as_ref()), &report::json(seen.as_ref())))
        }
        Verb::Pause(_) => pause(site, output).await,
        Verb::Resume(_) => {
            let changed = site.change("resumed", Record::resume).await?;
            Ok(told(&changed, output))
        }
        Verb::Set(args) if args.values.is_empty() => {
            let knobs = site.unfinished().await?.stored.knobs;
            Ok(output.result(&knobs::text(&knobs), &knobs::json(&knobs)))
        }
        Verb::Set(args) => {
            let changed = site.set(&args.values).await?;
            Ok(told(&changed, output))
        }
        Verb::Verify(args) => wish(site, Wish::Verify, args.watch, output).await,
        Verb::Finish(args) => wish(site, Wish::Finish, args.watch, output).await,
        Verb::Abort(args) => {
            site.goes_without(&args.without).await?;
            wish(site, Wish::Abort, args.watch.watch, output).await
        }
        Verb::Cutover(args) => flip(site, Wish::Cutover, args, output).await,
        Verb::Rollback(args) => flip(site, Wish::Rollback, args, output).await,
    }
}

async fn start(site: &Site, args: &StartArgs, output: &Output) -> Result<Exit, Fault> {
    let knobs = knobs::changed(crate::reshard::job::Knobs::default(), &args.values)?;
    // Told before a plan is made that would not be begun.
    if let Some(other) = site
        .seen(None)
        .await?
        .filter(|it| !it.stored.record.is_over())
    {
        return Err(Fault::UnderWay(other.stored.id));
    }
    let made = planning::make(site, &args.plan).await?;
    if made.is_refused() {
        output.result(&made.text(), &made.json());
        return Ok(Exit::Refused);
    }
    if args.dry_run {
        return Ok(output.result(&made.text(), &made.json()));
    }
    site.start(&made.planned, &knobs).await?;
    if args.watch {
        return watching::watch(site, None, output).await;
    }
    let started = site.seen(None).await?;
    Ok(output.result(
        &report::text(started.as_ref()),
        &report::json(started.as_ref()),
    ))
}

/// Stands still; what was asked for and is withdrawn with it is said.
async fn pause(site: &Site, output: &Output) -> Result<Exit, Fault> {
    let withdrawn = Cell::new(None);
    let paused = |record: &Record| {
        let paused = record.pause()?;
        withdrawn.set(record.wanted.filter(|_| paused.wanted.is_none()));
        Ok(paused)
    };
    let changed = site.change("paused", paused).await?;
    let mut value = report::json(Some(&changed));
    let mut text = report::text(Some(&changed));
    if let Some(wish) = withdrawn.get() {
        let wish = word(&wish);
        let under_way = if changed.stored.record.is_attempt() {
            "; the attempt that is under way comes to its end, or is undone"
        } else {
            ""
        };
        text.push_str(&format!(
            "not wanted any more: {wish}{under_way}; it can be asked for again\n"
        ));
        value["withdrawn"] = wish.into();
    }
    Ok(output.result(&text, &value))
}

async fn wish(site: &Site, wish: Wish, watch: bool, output: &Output) -> Result<Exit, Fault> {
    let changed = ask(site, wish).await?;
    if watch {
        return watching::watch(site, Some(&changed.stored.id), output).await;
    }
    Ok(told(&changed, output))
}

async fn flip(site: &Site, wish: Wish, args: &WishArgs, output: &Output) -> Result<Exit, Fault> {
    if args.dry_run {
        let gates = gates::look(site, wish).await?;
        let exit = output.result(&gates::text(&gates), &gates::json(&gates));
        return Ok(if gates::open(&gates) {
            exit
        } else {
            Exit::Refused
        });
    }
    let changed = ask(site, wish).await?;
    if args.no_wait {
        return Ok(told(&changed, output));
    }
    // The wish was written together with the record that it was judged by.
    let asked = &changed.stored;
    watching::flipped(site, &asked.id, &asked.record, output).await
}

async fn ask(site: &Site, wish: Wish) -> Result<Seen, Fault> {
    let event = format!("{}{}", outcome::ASKED, word(&wish));
    site.change(&event, |record| record.wish(wish)).await
}

fn told(seen: &Seen, output: &Output) -> Exit {
    output.result(&report::text(Some(seen)), &report::json(Some(seen)))
}
