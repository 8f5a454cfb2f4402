//! LISTEN as a session sees it in transaction mode: PostgreSQL judges and confirms LISTEN and UNLISTEN on whatever backend
//! the session has, the shared listeners (`pool::listener`) hear for it, and the backend is told UNLISTEN * before it
//! goes back.
//!
//! What must stay true: LISTEN reaches a backend only when every shard's listener has the channel, so that what is
//! notified after its answer is heard; notifications go out between batches and outside transactions only, those of the
//! batch itself before its ReadyForQuery; a session that does not listen pays one comparison for all this.

use super::{
    link::Hold,
    reply::session as reply,
    request::Stop,
    session::{End, Phase, Session, told},
};
use crate::{
    config::settings::{ListenGap, PoolMode},
    net::stream::HIGH_WATER,
    plan::StatementPlan,
    pool::listener::{Member, mailbox::Mail},
    protocol::listening::{Action, Channels, put_command},
    sql::statement::{Access, Effect, PinReason},
    wire::backend::{Status, put_ready},
};
use std::{
    future::poll_fn,
    task::{Context, Poll},
};

/// What a session that listens has beside the rest.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one thing that is still to be done"
)]
pub(super) struct Listening {
    channels: Channels,
    member: Member,
    /// Channels were asked for, or LISTEN or UNLISTEN confirmed, since the last transaction ended.
    changed: bool,
    /// ReadyForQuery is owed to the client, when everything that was notified before it has arrived.
    ready: bool,
    /// There are other listeners to join.
    moved: bool,
}

impl Listening {
    /// What was notified before now on channels that the session does not listen on yet is not for it.
    async fn forget_earlier(&self, new: impl Fn(&str) -> bool) {
        let early = |channel: &str| new(channel) && !self.channels.contains(channel);
        self.member.forget_earlier(early).await;
    }

    /// As [`Member::poll`].
    pub(super) fn poll(&self, cx: &Context<'_>, takes: bool) -> Poll<()> {
        if takes && self.moved {
            return Poll::Ready(());
        }
        self.member.poll(cx, takes)
    }
}

impl Session {
    // ---- before and at the backend ----

    /// Whether a statement is LISTEN or UNLISTEN and the session need not keep the backend that answers it.
    pub(super) fn listens_anywhere(&self, effect: &Effect) -> bool {
        matches!(effect, Effect::Listen(_) | Effect::Unlisten(_))
            && self.mode == PoolMode::Transaction
    }

    /// Whether statements have to do with listening.
    pub(super) fn concerns_listening(&self, statements: &[StatementPlan]) -> bool {
        self.mode == PoolMode::Transaction
            && (self.listening.is_some() || statements.iter().any(listens))
    }

    /// Before LISTEN reaches a backend: every shard's listener has the channel. Before `pg_listening_channels()` does:
    /// nothing has begun there.
    pub(super) async fn hear_first(&mut self, statements: &[StatementPlan]) -> Result<(), Stop> {
        if statements.iter().any(asks_for_channels) {
            self.leave_what_has_not_begun().await?;
        }
        for statement in statements {
            let Effect::Listen(channel) = &statement.effect else {
                continue;
            };
            // What a failed transaction answers is PostgreSQL's to say.
            if self.status() != Status::Failed {
                self.hear(channel).await?;
            }
        }
        Ok(())
    }

    async fn hear(&mut self, channel: &str) -> Result<(), Stop> {
        let encoding = self.defaults.reported.get(b"server_encoding");
        if !channel.is_ascii() && encoding.is_some_and(|encoding| encoding != b"UTF8") {
            // The server would fold and cut the name in its own encoding.
            return Err(reply::listening::channel_not_ascii(channel).into());
        }
        let joined = match &mut self.listening {
            Some(listening) => listening,
            empty @ None => {
                let hub = self.database.hub(&self.user, &self.info.database);
                empty.insert(Box::new(Listening {
                    channels: Channels::default(),
                    member: hub.join(self.info.pid),
                    changed: false,
                    ready: false,
                    moved: false,
                }))
            }
        };
        joined.changed = true;
        let heard = joined.member.want(channel).await;
        heard.map_err(|problem| reply::listening::cannot_listen(&problem))?;
        joined.forget_earlier(|new| new == channel).await;
        Ok(())
    }

    /// Before a COMMIT: what others notified since LISTEN in this transaction is not the session's, because LISTEN takes
    /// effect only now.
    pub(super) async fn listens_from_now(&self, statements: &[StatementPlan]) {
        let commits = |statement: &StatementPlan| matches!(statement.effect, Effect::Commit { .. });
        if let Some(listening) = &self.listening
            && listening.channels.has_pending()
            && statements.iter().any(commits)
        {
            listening.forget_earlier(|_| true).await;
        }
    }

    /// The link is there and the statements are about to be sent.
    pub(super) async fn at_backend(&mut self, statements: &[StatementPlan]) -> Result<(), Stop> {
        self.own_notifications(statements).await;
        if statements.iter().any(asks_for_channels) {
            self.tell_channels().await?;
        }
        Ok(())
    }

    /// A batch that has only parsed and described on its backend loses nothing by a Sync of ours.
    async fn leave_what_has_not_begun(&mut self) -> Result<(), Stop> {
        let Some(link) = self.link.as_ref().filter(|_| self.phase == Phase::Batch) else {
            return Ok(());
        };
        if link.hold > Hold::Aside {
            return Err(reply::listening::channels_within().into());
        }
        Ok(self.leave_link().await?)
    }

    /// Before `pg_listening_channels()`: the backend listens on what the session listens on.
    async fn tell_channels(&mut self) -> Result<(), Stop> {
        let (Some(link), Some(listening)) = (&mut self.link, &self.listening) else {
            return Ok(());
        };
        if link.status == Status::Failed {
            return Ok(());
        }
        if link.status != Status::Idle || !self.pipeline.is_empty() {
            return Err(reply::listening::channels_within().into());
        }
        link.listens = true;
        let mut sql = String::from("UNLISTEN *;");
        for channel in listening.channels.iter() {
            put_command(&mut sql, "LISTEN", channel);
        }
        self.prelude(sql.as_bytes()).await??;
        Ok(())
    }

    /// What the statements notify is the session's own.
    pub(super) async fn own_notifications(&mut self, statements: &[StatementPlan]) {
        let (Some(link), Some(listening)) = (&mut self.link, &mut self.listening) else {
            return;
        };
        let listens = statements.iter().any(listens);
        link.listens |= listens;
        let writes = |statement: &StatementPlan| statement.access == Access::Write;
        let begun = link.status != Status::Idle || self.phase == Phase::Batch;
        if statements.iter().any(writes) || statements.is_empty() || (listens && begun) {
            let backend = link.lease.target.pid;
            listening.member.claim(link.shard.index(), backend).await;
        }
    }

    /// Before the link is given back or parked: it listens on nothing, and nothing that it notifies is the session's.
    pub(super) async fn stop_listening_there(&mut self) {
        if let Some(listening) = &mut self.listening {
            listening.member.settle().await;
        }
        if !self.link.as_ref().is_some_and(|link| link.listens) {
            return;
        }
        // The client need not wait for this to have its answer. What is wrong with it is found where it is waited for.
        poll_fn(|cx| {
            drop(self.client.poll_flush(cx));
            Poll::Ready(())
        })
        .await;
        let done = matches!(self.prelude(b"UNLISTEN *").await, Ok(Ok(())));
        match &mut self.link {
            Some(link) if done => link.listens = false,
            _ => self.link = None,
        }
    }

    /// Whether notifications of the link are the client's: code that may have listened there keeps it, and LISTEN was not
    /// sent to it for the session.
    pub(super) fn hears_there(&self) -> bool {
        let Some((PinReason::Code, shard)) = self.pinned else {
            return false;
        };
        self.link
            .as_ref()
            .is_some_and(|link| link.shard == shard && !link.listens)
    }

    // ---- what has been confirmed ----

    /// LISTEN, UNLISTEN or DISCARD ALL has been confirmed.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "called with the effects named here"
    )]
    pub(super) fn listening_took_effect(&mut self, effect: &Effect) {
        let listen = matches!(effect, Effect::Listen(_));
        if self.mode == PoolMode::Session {
            if listen {
                self.pin(PinReason::Listen);
            }
            return;
        }
        let action = match effect {
            Effect::Listen(channel) => Action::Listen(channel.clone()),
            Effect::Unlisten(Some(channel)) => Action::Unlisten(channel.clone()),
            _ => Action::UnlistenAll,
        };
        let depth = self.parameters.depth();
        if let Some(listening) = &mut self.listening {
            listening.changed = true;
            listening.channels.act(action, depth);
        }
    }

    /// ROLLBACK TO or RELEASE was followed by the settings: by the channels too.
    pub(super) fn savepoint_of_listening(&mut self, undone: Undone) {
        let depth = self.parameters.depth();
        if let Some(listening) = &mut self.listening {
            match undone {
                Undone::Undone => listening.channels.rolled_back_to(depth),
                Undone::Kept => listening.channels.released_to(depth),
            }
        }
    }

    /// A transaction has ended.
    pub(super) fn listening_ends(&mut self, committed: bool) {
        if let Some(listening) = &mut self.listening {
            listening.channels.end(committed);
        }
    }

    /// A batch has ended, and no transaction is open: what is not listened on is given up.
    pub(super) fn listening_rests(&mut self) {
        let committed = !self.failed;
        let Some(listening) = &mut self.listening else {
            return;
        };
        if !std::mem::take(&mut listening.changed) {
            return;
        }
        listening.channels.end(committed);
        if listening.channels.is_empty() {
            self.listening = None;
        } else {
            let Listening {
                channels, member, ..
            } = &**listening;
            member.keep_only(|channel| channels.contains(channel));
        }
    }

    // ---- delivery ----

    /// The batch is over: its ReadyForQuery waits until its own notifications have arrived. False when the session does
    /// not listen.
    pub(super) fn hold_ready(&mut self) -> bool {
        let Some(listening) = &mut self.listening else {
            return false;
        };
        listening.ready = true;
        self.phase = Phase::Answering;
        true
    }

    /// Whether a ReadyForQuery is held.
    pub(super) fn holds_ready(&self) -> bool {
        self.listening
            .as_ref()
            .is_some_and(|listening| listening.ready)
    }

    /// Gives the ReadyForQuery that was held, behind what was notified before it.
    pub(super) async fn give_ready(&mut self) -> Result<(), End> {
        let Some(listening) = &mut self.listening else {
            return Ok(());
        };
        listening.ready = false;
        listening.member.settle().await;
        self.batch_ends(Status::Idle);
        self.deliver()?;
        put_ready(self.client.out(), Status::Idle);
        Ok(())
    }

    /// Whether there are other listeners to join, and the session may leave its own.
    pub(super) fn must_join_others(&self) -> bool {
        self.may_deliver()
            && self
                .listening
                .as_ref()
                .is_some_and(|listening| listening.moved)
    }

    /// A reload has replaced the database: the session listens there from now on. What is notified meanwhile may come
    /// from both.
    pub(super) async fn join_others(&mut self) -> Result<(), End> {
        self.refresh();
        // Not the session's own: it stays with what it was while it keeps a backend, and may hear elsewhere.
        let now = self.shared.database(&self.info.database);
        let database = now.as_ref().unwrap_or(&self.database);
        let hub = database.hub(&self.user, &self.info.database);
        let pid = self.info.pid;
        let Some(listening) = &mut self.listening else {
            return Ok(());
        };
        listening.moved = false;
        if listening.member.is_of(&hub) {
            return Ok(());
        }
        let member = hub.join(pid);
        for channel in listening.channels.iter() {
            if let Err(problem) = member.want(channel).await {
                return Err(told(reply::listening::listening_ended(&problem)));
            }
        }
        // Until now the old ones have heard, but what was notified just before may still be on its way.
        listening.member.hear_all().await;
        member.take_over(&listening.member);
        listening.member = member;
        Ok(())
    }

    /// Whether the client may be told about notifications now.
    pub(super) fn may_deliver(&self) -> bool {
        self.phase == Phase::Idle
            && self.pipeline.is_empty()
            && self.backend_rest.bytes == 0
            && self.status() == Status::Idle
    }

    /// Tells the client what has arrived for it, if it may be told now.
    pub(super) fn deliver(&mut self) -> Result<(), End> {
        let may = self.may_deliver();
        let Some(listening) = &mut self.listening else {
            return Ok(());
        };
        let overflown = |overflown| told(reply::listening::too_many_notifications(overflown));
        if !may {
            // Looked at for its error only: nothing is taken.
            return listening.member.check().map_err(overflown);
        }
        while self.client.unsent() < HIGH_WATER
            && let Some(mail) = listening.member.take().map_err(overflown)?
        {
            match mail {
                Mail::Notification(notification) => {
                    if listening.channels.contains(&notification.channel) {
                        if !(self.context.utf8 || notification.is_ascii()) {
                            return Err(told(reply::listening::notification_not_ascii()));
                        }
                        self.client.out().extend_from_slice(&notification.frame);
                    }
                }
                Mail::Lost(shard) => {
                    if self.database.settings.pool.listen_gap == ListenGap::End {
                        return Err(told(reply::listening::listener_lost(&shard)));
                    }
                }
                Mail::Restored { shard, after } => {
                    reply::listening::listener_restored(&shard, after).put(self.client.out());
                }
                Mail::Moved => listening.moved = true,
            }
        }
        Ok(())
    }
}

/// Whether a savepoint's end undid what was done since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undone {
    Undone,
    Kept,
}

fn asks_for_channels(statement: &StatementPlan) -> bool {
    statement.effect == Effect::Channels
}

fn listens(statement: &StatementPlan) -> bool {
    matches!(statement.effect, Effect::Listen(_))
}
