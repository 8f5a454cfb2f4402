//! As whom the servers run. PostgreSQL refuses root: then they run as `postgres` or `nobody`.

use super::{SandboxError, io_error, output};
use std::{
    os::unix::{fs::chown, process::CommandExt},
    path::Path,
    process::Command,
};

/// The account of the servers and of every program that touches their data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Account {
    /// The one that runs this process.
    Own,
    /// Another, because this process runs as root.
    Other { uid: u32, gid: u32 },
}

impl Account {
    /// The account that servers can run as.
    pub(super) fn of_servers() -> Result<Self, SandboxError> {
        if id(&["-u"])? != 0 {
            return Ok(Self::Own);
        }
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| {
                Some(Self::Other {
                    uid: id(&["-u", name]).ok()?,
                    gid: id(&["-g", name]).ok()?,
                })
            })
            .ok_or(SandboxError::NoAccount)
    }

    /// The number of the account.
    pub(super) fn uid(self) -> Result<u32, SandboxError> {
        match self {
            Self::Own => id(&["-u"]),
            Self::Other { uid, .. } => Ok(uid),
        }
    }

    /// Makes a program run as the account.
    pub(super) fn apply(self, command: &mut Command) {
        if let Self::Other { uid, gid } = self {
            command.uid(uid).gid(gid);
        }
    }

    /// Makes the account the owner of a file or directory.
    pub(super) fn give(self, path: &Path) -> Result<(), SandboxError> {
        match self {
            Self::Own => Ok(()),
            Self::Other { uid, gid } => {
                chown(path, Some(uid), Some(gid)).map_err(io_error("give away", path))
            }
        }
    }
}

fn id(arguments: &[&str]) -> Result<u32, SandboxError> {
    let printed = output(Command::new("id").args(arguments))?;
    printed.parse().map_err(|_error| SandboxError::Program {
        program: "id".to_owned(),
        output: printed,
    })
}
