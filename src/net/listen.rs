//! Sockets on which clients arrive.

use super::transport::Transport;
use crate::config::settings::Listen;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::{
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};
use tokio::net::{TcpListener, UnixListener};

/// Connections that wait to be accepted; the system may cut it down (`net.core.somaxconn`).
const BACKLOG: i32 = 4096;

/// Whether another process may listen on the same TCP port, as a handover needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortSharing {
    Exclusive,
    Shared,
}

/// A socket on which clients arrive.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket: removed with its listener, unless somebody else's has taken its place.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    inode: u64,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode);
        if ours {
            // Nothing depends on it: the next listener removes a stale file.
            let _gone_already = fs::remove_file(&self.path);
        }
    }
}

impl Listener {
    /// Binds and listens. Needs a runtime.
    ///
    /// # Errors
    /// When the address is taken, not ours, or not permitted.
    pub fn bind(listen: &Listen, sharing: PortSharing) -> io::Result<Self> {
        match listen {
            Listen::Tcp(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, Some(Protocol::TCP))?;
                socket.set_reuse_address(true)?;
                if address.is_ipv6() {
                    // So that 0.0.0.0 and [::] can be listened on side by side.
                    socket.set_only_v6(true)?;
                }
                if sharing == PortSharing::Shared {
                    socket.set_reuse_port(true)?;
                }
                socket.bind(&SockAddr::from(*address))?;
                socket.listen(BACKLOG)?;
                socket.set_nonblocking(true)?;
                TcpListener::from_std(socket.into()).map(Self::Tcp)
            }
            Listen::Unix(path) => {
                remove_stale(path)?;
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                socket.bind(&SockAddr::unix(path)?)?;
                // Who may enter is decided by the login, as with PostgreSQL's `unix_socket_permissions`.
                fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
                let file = SocketFile { path: path.clone(), inode: fs::symlink_metadata(path)?.ino() };
                socket.listen(BACKLOG)?;
                socket.set_nonblocking(true)?;
                UnixListener::from_std(socket.into()).map(|listener| Self::Unix(listener, file))
            }
        }
    }

    /// The next client. Safe to drop while waiting.
    ///
    /// # Errors
    /// When the process or the system is out of something (`EMFILE`), or the client is gone already.
    pub async fn accept(&self) -> io::Result<Transport> {
        match self {
            Self::Tcp(listener) => Transport::tcp(listener.accept().await?.0),
            Self::Unix(listener, _) => Ok(Transport::Unix(listener.accept().await?.0)),
        }
    }

    /// Where it listens: the port is known even when zero was asked for.
    ///
    /// # Errors
    /// When the socket no longer knows.
    pub fn address(&self) -> io::Result<Listen> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Listen::Tcp),
            Self::Unix(_, file) => Ok(Listen::Unix(file.path.clone())),
        }
    }
}

/// Removes a socket's file on which nobody listens any more.
fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        // Somebody listens, perhaps with a full backlog.
        Ok(()) | Err(_) => Err(io::ErrorKind::AddrInUse.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    #[tokio::test]
    async fn a_stale_socket_file_is_replaced_and_a_live_one_is_not() {
        let path = std::env::temp_dir().join(format!("shardway-listen-{}", std::process::id()));
        let listen = Listen::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a plain listener leaves its file");
        let listener = Listener::bind(&listen, PortSharing::Exclusive).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o777);
        let taken = Listener::bind(&listen, PortSharing::Exclusive).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        assert!(!path.exists(), "the file goes with the listener");
    }

    #[tokio::test]
    async fn a_port_is_shared_only_on_request() {
        let bind = |address: SocketAddr, sharing| Listener::bind(&Listen::Tcp(address), sharing);
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        for (sharing, shared) in [(PortSharing::Exclusive, false), (PortSharing::Shared, true)] {
            let first = bind(any, sharing).unwrap();
            let Listen::Tcp(address) = first.address().unwrap() else { panic!() };
            assert_eq!(bind(address, sharing).is_ok(), shared, "{sharing:?}");
        }
    }
}
