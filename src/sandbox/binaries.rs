//! Where the server's programs are: the directory that the caller names, else Debian's newest, else the search path.

use super::{SandboxEnv, SandboxError, account::Account, output};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const DEBIAN: &str = "/usr/lib/postgresql";

/// A directory with `initdb` and `postgres`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    dir: PathBuf,
}

impl Binaries {
    /// Looks where [`SandboxEnv`] says. A directory named by the caller is the only place looked at.
    pub(super) fn find(env: &SandboxEnv) -> Result<Self, SandboxError> {
        let looked = match &env.pg_bin {
            Some(dir) => vec![dir.clone()],
            None => debian(Path::new(DEBIAN))
                .into_iter()
                .chain(env.path.iter().cloned())
                .collect(),
        };
        match looked.iter().find(|dir| {
            ["initdb", "postgres"]
                .iter()
                .all(|name| dir.join(name).is_file())
        }) {
            Some(dir) => Ok(Self { dir: dir.clone() }),
            None => Err(SandboxError::NoServer { looked }),
        }
    }

    /// A program of the server, run as the account with a clean environment.
    pub(super) fn command(&self, name: &str, account: Account) -> Command {
        let mut command = Command::new(self.dir.join(name));
        command.env_clear().env("LC_ALL", "C.UTF-8");
        account.apply(&mut command);
        command
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The program's path.
    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The server's version as it tells it, without spaces.
    pub(super) fn version(&self) -> Result<String, SandboxError> {
        let told = output(Command::new(self.program("postgres")).arg("--version"))?;
        Ok(told
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() || c == '.' {
                    c
                } else {
                    '-'
                }
            })
            .collect())
    }
}

/// Debian's directories, the newest version first.
fn debian(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else {
        return Vec::new();
    };
    let mut versions: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions
        .into_iter()
        .map(|version| root.join(version.to_string()).join("bin"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_directory_is_the_only_place_looked_at() {
        let env = SandboxEnv {
            pg_bin: Some("/nowhere".into()),
            path: vec!["/usr/bin".into()],
            tmp: "/tmp".into(),
            template_cache: None,
        };
        match Binaries::find(&env) {
            Err(SandboxError::NoServer { looked }) => {
                assert_eq!(looked, [PathBuf::from("/nowhere")]);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_newest_version_comes_first() {
        let root = std::env::temp_dir().join(format!("shardway-binaries-{}", std::process::id()));
        for name in ["9", "15", "18", "common"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        let found = debian(&root);
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            found,
            ["18", "15", "9"].map(|version| root.join(version).join("bin"))
        );
    }
}
