//! The wording of LISTEN: what cannot be heard, and what may have been missed.
//!
//! A client that may have missed a notification is always told so.

use super::{error, fatal};
use crate::{
    clock::Duration,
    pool::listener::{ListenError, mailbox::Overflown},
    wire::notice::Notice,
};

/// A channel that the shared listeners do not have.
#[must_use]
pub fn cannot_listen(problem: &ListenError) -> Notice {
    Notice {
        detail: Some(format!("{problem}. (SW221)")),
        hint: Some("LISTEN again when every shard can be reached.".to_owned()),
        ..error("08006", "LISTEN cannot be put in force on every shard")
    }
}

/// As [`cannot_listen`], after a reload: what was listened on is not any more.
#[must_use]
pub fn listening_ended(problem: &ListenError) -> Notice {
    Notice {
        detail: Some(format!("{problem}. (SW222)")),
        hint: Some(AFTER_A_GAP.to_owned()),
        ..fatal(
            "08006",
            "terminating connection because notifications may be missing",
        )
    }
}

/// The shared listener of a shard is gone.
#[must_use]
pub fn listener_lost(shard: &str) -> Notice {
    Notice {
        detail: Some(format!(
            "The shared connection that listens on shard \"{shard}\" was lost. (SW222)"
        )),
        hint: Some(AFTER_A_GAP.to_owned()),
        ..fatal(
            "08006",
            "terminating connection because notifications may be missing",
        )
    }
}

/// The shared listener of a shard is back.
#[must_use]
pub fn listener_restored(shard: &str, after: Duration) -> Notice {
    Notice {
        severity: "WARNING",
        sqlstate: "01000",
        message: "notifications may be missing".to_owned(),
        detail: Some(format!(
            "Nothing was heard from shard \"{shard}\" for {} ms. (SW222)",
            after.as_millis()
        )),
        hint: Some("Read from the tables what notifications would have told.".to_owned()),
    }
}

/// A client that does not take its notifications.
#[must_use]
pub fn too_many_notifications(overflown: Overflown) -> Notice {
    Notice {
        detail: Some(format!(
            "More than {} bytes of notifications waited for this client. (SW223)",
            overflown.limit
        )),
        hint: Some(
            "Read the connection and end its transactions, or raise pool.listen_queue.".to_owned(),
        ),
        ..fatal(
            "53400",
            "terminating connection because the client does not take its notifications",
        )
    }
}

/// `pg_listening_channels()` where it cannot be answered.
#[must_use]
pub fn channels_within() -> Notice {
    Notice {
        detail: Some("The session's channels are kept by Shardway, and a server learns of them between transactions only. (SW225)".to_owned()),
        hint: Some("Ask before BEGIN, in a batch of its own.".to_owned()),
        ..error("0A000", "pg_listening_channels() is not supported within a transaction")
    }
}

/// A channel whose name means different bytes on the server.
#[must_use]
pub fn channel_not_ascii(channel: &str) -> Notice {
    Notice {
        detail: Some("The server's encoding is not UTF8. (SW224)".to_owned()),
        hint: Some("Use a name in ASCII, or session mode.".to_owned()),
        ..error("0A000", format!("cannot listen on channel \"{channel}\""))
    }
}

/// A notification that the client could not read.
#[must_use]
pub fn notification_not_ascii() -> Notice {
    Notice {
        detail: Some(
            "A notification beyond ASCII arrived, and client_encoding is not UTF8. (SW224)"
                .to_owned(),
        ),
        hint: Some("SET client_encoding = 'UTF8' before LISTEN.".to_owned()),
        ..fatal(
            "22P05",
            "terminating connection because a notification cannot be converted",
        )
    }
}

const AFTER_A_GAP: &str =
    "Connect and LISTEN again, then read from the tables what notifications would have told.";
