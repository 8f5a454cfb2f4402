//! Which servers a reshard works with: each is recorded when it is prepared, and asked who it is at every connection.
//!
//! What must stay true: nothing is read from or written to a server that is not the one that was recorded; one that has
//! failed over, which may lack what it had, is not gone on with as if it had not.

use crate::inspect::AskError;
use deadpool_postgres::Client;
use tokio_postgres::SimpleQueryMessage;

/// A server, as `IDENTIFY_SYSTEM` tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Of the data directory, and of every copy of it.
    pub system: String,
    /// Another one after each failover, and when it was restored.
    pub timeline: u32,
}

/// What is known of who answers at an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Known {
    #[default]
    Nothing,
    /// This system, whatever became of it.
    System(Identity),
    /// This one.
    Exactly(Identity),
}

/// A standby has no timeline of its own yet.
pub(super) const ASK: &str = "\
SELECT system_identifier::text, \
  CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END FROM pg_control_system()";

/// Why another answers than before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    System { was: String, is: String },
    Timeline { was: u32, is: u32 },
}

impl Known {
    /// Whether it is who answers.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub fn compare(&self, system: &str, timeline: Option<u32>) -> Result<(), Mismatch> {
        let (Self::System(known) | Self::Exactly(known)) = self else {
            return Ok(());
        };
        if known.system != system {
            return Err(Mismatch::System {
                was: known.system.clone(),
                is: system.to_owned(),
            });
        }
        match (self, timeline) {
            (Self::Exactly(_), Some(is)) if is != known.timeline => Err(Mismatch::Timeline {
                was: known.timeline,
                is,
            }),
            _ => Ok(()),
        }
    }
}

impl From<Mismatch> for AskError {
    fn from(mismatch: Mismatch) -> Self {
        match mismatch {
            Mismatch::System { was, is } => Self::Another { was, is },
            Mismatch::Timeline { was, is } => Self::FailedOver { was, is },
        }
    }
}

/// Who a server is; `None`: a standby, or one that does not tell this role.
///
/// # Errors
/// [`AskError`].
pub async fn identify(client: &Client) -> Result<Option<Identity>, AskError> {
    match client.simple_query(ASK).await {
        Ok(answer) => Ok(read(&answer).and_then(|(system, timeline)| {
            let timeline = timeline?;
            Some(Identity { system, timeline })
        })),
        Err(error) if error.code().is_some_and(|code| code.code() == "42501") => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The system and the timeline of an answer to [`ASK`].
pub(super) fn read(answer: &[SimpleQueryMessage]) -> Option<(String, Option<u32>)> {
    let row = answer.iter().rev().find_map(|message| {
        let SimpleQueryMessage::Row(row) = message else {
            return None;
        };
        Some(row)
    })?;
    let timeline = row.get(1).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    Some((row.get(0)?.to_owned(), timeline))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_is_told_from_one_that_failed_over() {
        let was = Identity {
            system: "1".to_owned(),
            timeline: 3,
        };
        let failed_over = Err(Mismatch::Timeline { was: 3, is: 4 });
        let exactly = Known::Exactly(was.clone());
        assert_eq!(exactly.compare("1", Some(3)), Ok(()));
        assert_eq!(exactly.compare("1", Some(4)), failed_over);
        assert_eq!(exactly.compare("1", None), Ok(()), "a standby");
        let another = Err(Mismatch::System {
            was: "1".to_owned(),
            is: "2".to_owned(),
        });
        assert_eq!(exactly.compare("2", Some(3)), another);
        assert_eq!(Known::System(was.clone()).compare("1", Some(4)), Ok(()));
        assert_eq!(Known::System(was).compare("2", Some(3)), another);
        assert_eq!(Known::Nothing.compare("2", Some(3)), Ok(()));
    }
}
