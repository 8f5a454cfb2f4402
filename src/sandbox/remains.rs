//! What earlier runs left behind: directories whose owner no longer holds their lock, and servers still running in
//! them. Only what is provably of a dead sandbox is touched: the name, the owner of the directory, the lock, and for
//! a process its program and the directory that it works in.

use super::account::Account;
use crate::clock::{Clock, Duration};
use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

/// How the name of a sandbox's directory begins.
pub(super) const PREFIX: &str = "shardway-sandbox-";
/// How long a stopped server may take to be gone before its directory is removed all the same.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// Removes dead sandboxes in `tmp`. What cannot be removed is left: it harms nobody.
pub(super) fn sweep(tmp: &Path, account: Account, clock: Clock) {
    let (Ok(entries), Ok(uid)) = (fs::read_dir(tmp), account.uid()) else {
        return;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let named = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(PREFIX));
        let ours = entry
            .metadata()
            .is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == uid);
        if named && ours && is_abandoned(&path) {
            remove(&path, clock);
        }
    }
}

fn is_abandoned(root: &Path) -> bool {
    match File::open(root.with_added_extension("lock")) {
        Ok(lock) => lock.try_lock().is_ok(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn remove(root: &Path, clock: Clock) {
    let homes = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let servers: Vec<(u32, PathBuf)> = homes
        .map(|home| home.join("data"))
        .filter_map(|data| Some((postmaster(&data)?, data)))
        .filter(|(pid, data)| works_in(*pid, data))
        .collect();
    for (pid, _) in &servers {
        signal(*pid, "QUIT");
    }
    let deadline = clock.now() + GONE_WITHIN;
    while servers.iter().any(|(pid, data)| works_in(*pid, data)) && clock.now() < deadline {
        thread::sleep(Duration::from_millis(20));
    }
    drop(fs::remove_dir_all(root));
    drop(fs::remove_file(root.with_added_extension("lock")));
}

/// The process that runs on a data directory, as the server wrote it there.
pub(super) fn postmaster(data: &Path) -> Option<u32> {
    fs::read_to_string(data.join("postmaster.pid"))
        .ok()?
        .lines()
        .next()?
        .trim()
        .parse()
        .ok()
}

/// Sends a signal, by name, to one process. It may be gone already.
pub(super) fn signal(pid: u32, name: &str) {
    let kill = "kill -s \"$1\" \"$2\"";
    drop(
        Command::new("sh")
            .args(["-c", kill, "kill", name, &pid.to_string()])
            .output(),
    );
}

fn works_in(pid: u32, data: &Path) -> bool {
    let of = |link: &str| fs::read_link(format!("/proc/{pid}/{link}"));
    of("exe").is_ok_and(|exe| {
        exe.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("postgres"))
    }) && of("cwd").is_ok_and(|cwd| cwd == data)
}
