//! Several backends at work on one statement: links that are written, read and awaited together with the client.
//!
//! Whose statement it is gives bytes for each member and says how many ReadyForQuery they bring ([`Fan::ask`]); it takes
//! each member's messages in their order ([`Fan::next`], [`Fan::take`]) and waits when there is none
//! ([`Session::wait_fan`]). The session owns the fan, so that its end ends the members too.
//!
//! What must stay true:
//! - of each member no more is held than a window and one message: a member whose messages nobody takes is not read, so
//!   that a client that does not take its rows holds the servers back;
//! - a cancel request goes to every member, and a client that leaves is noticed while any of them works;
//! - whatever ends the statement, each member is at rest before it is given back, or it is closed
//!   ([`Session::rest_fan`]); a cancel that may still come closes it too.

mod rest;

use super::{
    link::{Hold, Link},
    place::Place,
    reply::session as reply,
    request::Stop,
    session::{CANCEL_PATIENCE, End, Session, told},
    waits::Seen,
};
use crate::{
    catalog::shard::{ShardId, ShardSet},
    metrics::sessions::Wanted,
    net::stream::{HIGH_WATER, Stream},
    wire::{
        backend::{Status, parameter_status},
        frame::{self, HEADER, Header},
        frontend::put_bare,
        notice::Words,
    },
};
use rest::Hit;
use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::timeout;

/// Bytes that are held of a member before it is read no further.
pub(super) const WINDOW: usize = 256 << 10;
/// Longest message that is held whole.
pub(super) const LONGEST: usize = 64 << 20;

/// Links that work on one statement at once.
#[derive(Debug, Default)]
pub(super) struct Fan {
    members: Vec<Member>,
    long: Long,
    /// Outside of a transaction over several shards, which is seen itself: whoever looks for rings of waits sees them.
    seen: Option<Seen>,
    stands: Stands,
}

/// What the members' backends are of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stands {
    /// Leased for the statement, or beside the transaction.
    #[default]
    Apart,
    /// The client's transaction, to which they go back.
    Within,
    /// As [`Stands::Within`], and the statement has failed there: what members still do is not waited for.
    GivenUp,
}

/// What happens to messages longer than a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Long {
    /// They are held until they are whole.
    #[default]
    Whole,
    /// Their user takes them as they come.
    Parts,
}

#[derive(Debug)]
struct Member {
    link: Box<Link>,
    /// ReadyForQuery that are still to come.
    owed: usize,
    /// Something was asked that no Sync is behind of.
    open: bool,
    /// The server has closed the connection, or its bytes make no sense.
    lost: bool,
    /// Bytes to come of a message that was taken in part.
    rest: usize,
}

/// What a member says next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// This message, which is the first of what is held.
    Message(Header),
    /// A message that is longer than may be held; with [`Long::Parts`] it is taken in parts.
    TooLong(Header),
    /// So many bytes, at least one, of a message that was taken in part.
    More(usize),
    /// Nothing yet.
    Pending,
    /// Nothing: it has answered all that it was asked.
    Rest,
    /// Nothing: the connection is gone.
    Lost,
}

impl Member {
    fn stream(&mut self) -> &mut Stream {
        self.link.stream()
    }

    fn next(&mut self, long: Long) -> Next {
        loop {
            let held = self.link.lease.stream.buffered();
            if self.rest > 0 && !held.is_empty() {
                return Next::More(held.len().min(self.rest));
            }
            let Ok(header) = frame::backend(held) else {
                self.lost = true;
                return Next::Lost;
            };
            if let Some(header) = header.filter(|header| header.size > limit(header.tag, long)) {
                return Next::TooLong(header);
            }
            let Some(header) = header.filter(|header| held.len() >= header.size && self.rest == 0)
            else {
                return match self {
                    Self { lost: true, .. } => Next::Lost,
                    Self { owed: 0, open, .. } if !*open => Next::Rest,
                    _ => Next::Pending,
                };
            };
            match header.tag {
                b'S' => self.reports(header),
                // The session's listeners hear it as well.
                b'A' => {}
                b'Z' => self.is_ready(header),
                _ => return Next::Message(header),
            }
            self.stream().consume(header.size);
        }
    }

    fn reports(&mut self, header: Header) {
        let lease = &mut *self.link.lease;
        if let Ok((name, value)) = parameter_status(&lease.stream.buffered()[HEADER..header.size]) {
            lease.reported.set(name, value);
        }
    }

    fn is_ready(&mut self, header: Header) {
        let held = self.link.lease.stream.buffered();
        match Status::decode(&held[HEADER..header.size]) {
            Ok(status) => self.link.status = status,
            Err(_malformed) => self.lost = true,
        }
        match self.owed.checked_sub(1) {
            Some(owed) => self.owed = owed,
            None => self.lost = true,
        }
    }

    /// Sends and reads, as far as there is room; whether there is something new.
    fn poll(&mut self, cx: &mut Context<'_>, long: Long) -> bool {
        if self.lost {
            return false;
        }
        let wants = (self.owed > 0 || self.open) && self.has_room(long);
        let stream = self.stream();
        let was_full = stream.unsent() >= HIGH_WATER;
        if !stream.is_flushed() && matches!(stream.poll_flush(cx), Poll::Ready(Err(_))) {
            self.lost = true;
            return true;
        }
        // There is room again for what it is sent.
        let has_room = was_full && stream.unsent() < HIGH_WATER;
        if !wants {
            return has_room;
        }
        match self.stream().poll_fill(cx) {
            Poll::Ready(Ok(0) | Err(_)) => {
                self.lost = true;
                true
            }
            Poll::Ready(Ok(_)) => true,
            Poll::Pending => has_room,
        }
    }

    /// Whether more of it may be held.
    fn has_room(&self, long: Long) -> bool {
        let held = self.link.lease.stream.buffered();
        let lacks = || match frame::backend(held) {
            Ok(Some(header)) => held.len() < header.size && header.size <= limit(header.tag, long),
            Ok(None) | Err(_) => false,
        };
        held.len() < WINDOW || (self.rest == 0 && lacks())
    }

    fn is_at_rest(&self) -> bool {
        self.owed == 0 && !self.open && !self.lost && self.rest == 0
    }

    /// Ends what was asked without a Sync.
    fn sync(&mut self) {
        if self.open {
            put_bare(self.stream().out(), b'S');
            self.open = false;
            self.owed += 1;
        }
    }

    /// The first `count` bytes of what is held are done with.
    fn take(&mut self, count: usize) {
        let held = self.link.lease.stream.buffered();
        let mut at = self.rest.min(count);
        self.rest -= at;
        while at < count {
            let Ok(Some(header)) = frame::backend(&held[at..]) else {
                self.lost = true;
                break;
            };
            self.rest = (at + header.size).saturating_sub(count);
            at += header.size;
        }
        self.stream().consume(count);
    }
}

/// Longest message of this type that is taken whole.
fn limit(tag: u8, long: Long) -> usize {
    if long == Long::Parts && tag == b'D' {
        WINDOW
    } else {
        LONGEST
    }
}

impl Fan {
    /// These links, which are at rest or within a transaction and owe nothing, in the order of their shards.
    pub(super) fn of(links: Vec<Box<Link>>) -> Self {
        let members = links.into_iter().map(|link| Member {
            link,
            owed: 0,
            open: false,
            lost: false,
            rest: 0,
        });
        Self {
            members: members.collect(),
            long: Long::Whole,
            seen: None,
            stands: Stands::Apart,
        }
    }

    /// The members are the transaction's.
    pub(super) fn set_within(&mut self) {
        self.stands = Stands::Within;
    }

    /// The statement has failed: what members still do is not needed.
    pub(super) fn give_up(&mut self) {
        if self.stands == Stands::Within {
            self.stands = Stands::GivenUp;
        }
    }

    /// Throws away what members still say, within a transaction that goes on.
    pub(super) fn drain(&mut self) -> Drained {
        let mut waits = false;
        if self.stands != Stands::Within {
            return Drained::Rest;
        }
        self.long = Long::Parts;
        for member in &mut self.members {
            member.sync();
            loop {
                let count = match member.next(Long::Parts) {
                    Next::Message(header) if header.tag == b'E' => {
                        let body = &member.link.lease.stream.buffered()[HEADER..header.size];
                        return Drained::Failed(Some(Words::Servers(body.to_vec())));
                    }
                    Next::Message(header) => header.size,
                    Next::TooLong(_) => member.link.lease.stream.buffered().len(),
                    Next::More(count) => count,
                    Next::Pending => {
                        waits = true;
                        break;
                    }
                    Next::Rest if member.link.status == Status::Transaction => break,
                    Next::Rest | Next::Lost => return Drained::Failed(None),
                };
                member.take(count);
            }
        }
        if waits { Drained::Waits } else { Drained::Rest }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    /// A member's shard.
    pub(super) fn shard(&self, at: usize) -> ShardId {
        self.members[at].link.shard
    }

    /// A member's link, to note what becomes of it.
    pub(super) fn link(&mut self, at: usize) -> &mut Link {
        &mut self.members[at].link
    }

    /// Whether all members' servers report the same for these settings.
    pub(super) fn agree_in(&self, settings: &[&[u8]]) -> bool {
        let Some((first, rest)) = self.members.split_first() else {
            return true;
        };
        let value = |member: &Member, name: &[u8]| {
            let value = member.link.lease.reported.get(name);
            value.map(<[u8]>::to_vec)
        };
        settings.iter().all(|name| {
            let own = value(first, name);
            rest.iter().all(|member| value(member, name) == own)
        })
    }

    /// What is done with long messages from now on.
    pub(super) fn set_long(&mut self, long: Long) {
        self.long = long;
    }

    /// Asks a member; `ready`: how many ReadyForQuery these messages bring, 0 when no Sync is behind them yet.
    pub(super) fn ask(&mut self, at: usize, ready: usize, put: impl FnOnce(&mut Vec<u8>)) {
        let member = &mut self.members[at];
        put(member.stream().out());
        member.owed += ready;
        member.open = ready == 0;
        // What was behind the unnamed name may not be there any more.
        member.link.lease.unnamed = None;
    }

    /// What a member says next. ReadyForQuery, settings and notifications are dealt with here.
    pub(super) fn next(&mut self, at: usize) -> Next {
        self.members[at].next(self.long)
    }

    /// What is held of a member's answer, from the message that is next.
    pub(super) fn held(&self, at: usize) -> &[u8] {
        self.members[at].link.lease.stream.buffered()
    }

    /// The first `count` bytes of what is held are done with.
    pub(super) fn take(&mut self, at: usize, count: usize) {
        self.members[at].take(count);
    }

    /// Whether every member has answered all that it was asked.
    pub(super) fn is_at_rest(&self) -> bool {
        self.members.iter().all(Member::is_at_rest)
    }

    /// Whether a member has not taken what it was sent.
    pub(super) fn is_full(&mut self) -> bool {
        let mut members = self.members.iter_mut();
        members.any(|member| !member.lost && member.stream().unsent() >= HIGH_WATER)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let mut news = false;
        for member in &mut self.members {
            news |= member.poll(cx, self.long);
        }
        news
    }
}

/// What came of throwing answers away.
#[derive(Debug)]
pub(super) enum Drained {
    /// There are no more.
    Rest,
    Waits,
    /// One has failed, with the server's words if they have not been heard before.
    Failed(Option<Words>),
}

/// What ends a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum News {
    OfMembers,
    OfAnyone,
}

impl Session {
    /// Leases a backend on each of these shards, in their order so that two sessions never wait for each other, for a
    /// read outside of a transaction or beside one that has reached no shard; in another the transaction's own.
    ///
    /// # Errors
    /// One of them cannot be had: none is kept.
    pub(super) async fn lease_fan(&mut self, shards: &ShardSet) -> Result<(), Stop> {
        if self.is_within() {
            return self.enlist_fan(shards).await;
        }
        let hold = if self.deferred.is_some() {
            Hold::AsideTransaction
        } else {
            Hold::Loose
        };
        // What is held meanwhile is the session's, whatever ends the wait for the next.
        self.begin_fan(Vec::new());
        for shard in shards.iter() {
            let reached = self.reach(Place { shard, hold }).await;
            if let Err(Stop::Refused(words)) = reached {
                self.rest_fan().await?;
                return Err(Stop::Refused(words));
            }
            reached?;
            let Some(link) = self.link.take_if(|link| link.shard == shard) else {
                self.rest_fan().await?;
                return Err(reply::rows::shard_missing(self.database.shard_name(shard)).into());
            };
            self.join_fan(link);
        }
        Ok(())
    }

    /// Adds a link to the fan; cancels go to all of them.
    fn join_fan(&mut self, link: Box<Link>) {
        let fan = self.fan.get_or_insert_default();
        if let (Some(waits), None) = (&self.database.waits, self.several.seen()) {
            let now = self.shared.clock.now();
            let seen = fan
                .seen
                .get_or_insert_with(|| waits.enter(now, &self.cancel, now));
            seen.joins(link.shard, &link.lease.target);
        }
        fan.members.extend(Fan::of(vec![link]).members);
        for member in &fan.members {
            self.cancel.attach_also(&member.link.lease.target);
        }
    }

    /// These links work on one statement from now on.
    pub(super) fn begin_fan(&mut self, links: Vec<Box<Link>>) {
        self.fan = Some(Box::default());
        for link in links {
            self.join_fan(link);
        }
    }

    /// Waits until a member has said more, or the client has taken some of what it was sent.
    ///
    /// # Errors
    /// The session is over: the client has left, or an operator ends it.
    pub(super) async fn wait_fan(&mut self) -> Result<(), End> {
        self.wait_fan_for(News::OfMembers).await
    }

    /// As [`Session::wait_fan`], or until the client has sent more.
    ///
    /// # Errors
    /// As [`Session::wait_fan`].
    pub(super) async fn wait_fan_or_client(&mut self) -> Result<(), End> {
        self.wait_fan_for(News::OfAnyone).await
    }

    async fn wait_fan_for(&mut self, what: News) -> Result<(), End> {
        self.marks.waits();
        let info = Arc::clone(&self.info);
        if info.wanted() == Wanted::EndNow {
            return Err(told(reply::shutting_down()));
        }
        let Some(fan) = self.fan.as_deref_mut() else {
            return Ok(());
        };
        let (client, closed) = (&mut self.client, &mut self.client_closed);
        let was_full = client.unsent() >= HIGH_WATER;
        let mut asked = pin!(info.asked());
        poll_fn(|cx| {
            if let Poll::Ready(Err(error)) = client.poll_flush(cx) {
                return Poll::Ready(Err(End::from(error)));
            }
            let mut news = was_full && client.unsent() < HIGH_WATER;
            while asked.as_mut().poll(cx).is_ready() {
                if info.wanted() == Wanted::EndNow {
                    return Poll::Ready(Err(told(reply::shutting_down())));
                }
                asked.set(info.asked());
            }
            news |= fan.poll(cx);
            if !*closed && client.buffered().len() <= HIGH_WATER {
                match client.poll_fill(cx) {
                    // What it has said before it left is done first, as in PostgreSQL.
                    Poll::Ready(Ok(0)) if !client.buffered().is_empty() => {
                        *closed = true;
                        news |= what == News::OfAnyone;
                    }
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Err(End::Client)),
                    Poll::Ready(Ok(_)) if what == News::OfAnyone => news = true,
                    Poll::Ready(Ok(_)) => cx.waker().wake_by_ref(),
                    Poll::Pending => {}
                }
            }
            if news {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        })
        .await
    }

    /// Waits until the client has room for more rows.
    ///
    /// # Errors
    /// As [`Session::wait_fan`].
    pub(super) async fn wait_for_room(&mut self) -> Result<(), End> {
        while self.client.unsent() >= HIGH_WATER {
            self.wait_fan().await?;
        }
        Ok(())
    }

    /// Ends the fan: the links that are at rest. What members still do is cancelled; those that do not come to rest are
    /// closed.
    pub(super) async fn end_fan(&mut self) -> Vec<Box<Link>> {
        let Some(mut fan) = self.fan.take() else {
            return Vec::new();
        };
        self.several.was_seen(fan.seen.take());
        let mut hit = Hit::No;
        if self.cancel.detach() {
            hit = Hit::Maybe;
            if timeout(CANCEL_PATIENCE, self.quiet()).await.is_err() {
                // It may come at any time.
                fan.members.iter_mut().for_each(|member| member.lost = true);
            }
        }
        if hit == Hit::Maybe || !fan.is_at_rest() {
            let tls = Arc::clone(&self.shared.tls);
            let members = fan.members.iter_mut();
            let mut rests = pin!(all(members
                .map(|member| member.bring_to_rest(hit, &tls))
                .collect()));
            let client = &mut self.client;
            poll_fn(|cx| {
                // That it does not take its answer is noticed later.
                let _flushed = client.poll_flush(cx);
                rests.as_mut().poll(cx)
            })
            .await;
        }
        let at_rest = fan.members.into_iter().filter(Member::is_at_rest);
        at_rest.map(|member| member.link).collect()
    }

    /// Ends the fan and gives its backends back, or to the transaction whose parts they are.
    ///
    /// # Errors
    /// The session is over.
    pub(super) async fn rest_fan(&mut self) -> Result<(), End> {
        if self
            .fan
            .as_deref()
            .is_some_and(|fan| fan.stands != Stands::Apart)
        {
            return self.rest_within().await;
        }
        let links = self.end_fan().await;
        // One that is not the fan's.
        let apart = self.link.take();
        for link in links {
            let beside = link.hold == Hold::AsideTransaction;
            if link.status != Status::Idle && !beside {
                continue; // Closed: a transaction is open that nobody began.
            }
            self.cancel.attach(&link.lease.target);
            self.link = Some(link);
            self.end_aside().await?;
            self.park_or_release().await?;
        }
        if let Some(link) = apart {
            self.cancel.attach(&link.lease.target);
            self.link = Some(link);
        }
        Ok(())
    }

    /// Hears every member until it has answered all that it was asked, as they come; `each` is given a member's place,
    /// a message's tag and its body. Errors of the servers are among them.
    ///
    /// # Errors
    /// What `each` said; a member was lost. The others go on until the fan is ended.
    pub(super) async fn hear_fan(
        &mut self,
        mut each: impl FnMut(usize, u8, &[u8]) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        loop {
            let Some(fan) = self.fan.as_deref_mut() else {
                return Ok(());
            };
            let mut waits = false;
            for at in 0..fan.len() {
                loop {
                    match fan.next(at) {
                        Next::Message(header) => {
                            each(at, header.tag, &fan.held(at)[HEADER..header.size])?;
                            fan.take(at, header.size);
                        }
                        Next::More(count) => fan.take(at, count),
                        Next::TooLong(_) => return Err(reply::rows::too_many_rows(LONGEST).into()),
                        Next::Lost => {
                            let shard = self.database.shard_name(fan.shard(at));
                            return Err(reply::rows::shard_lost_at_work(shard).into());
                        }
                        Next::Pending => {
                            waits = true;
                            break;
                        }
                        Next::Rest => break,
                    }
                }
            }
            if !waits {
                return Ok(());
            }
            self.wait_fan().await?;
        }
    }
}

/// Futures that are awaited at once.
pub(super) type Several<'a> = Vec<Pin<Box<dyn Future<Output = ()> + Send + 'a>>>;

/// Awaits all of them at once.
pub(super) async fn all(futures: Vec<impl Future<Output = ()> + Send>) {
    let mut waiting: Several<'_> = Vec::with_capacity(futures.len());
    for future in futures {
        waiting.push(Box::pin(future));
    }
    poll_fn(|cx| {
        waiting.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if waiting.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}
