//! Points at which a test may stop a process. Nothing is here without the feature `failpoints`, which no release has.
//!
//! A point is armed by `SET shardway.failpoint = '<point>@<address>'` in the session that reaches it: there it connects to
//! the address, and waits until that connection is closed. Who listens there knows that the point was reached, and does
//! what it wants with the process, a server or a connection meanwhile.

/// The setting that arms a point.
pub const SETTING: &str = "shardway.failpoint";

/// A point is reached; `armed` is the session's setting.
#[cfg(feature = "failpoints")]
pub async fn hit(point: &str, armed: Option<&str>) {
    use tokio::io::AsyncReadExt as _;
    let address = armed
        .and_then(|armed| armed.split_once('@'))
        .filter(|(name, _)| *name == point)
        .map(|(_, address)| address);
    let Some(address) = address else { return };
    if let Ok(mut waiting) = tokio::net::TcpStream::connect(address).await {
        drop(waiting.read(&mut [0]).await);
    }
}

/// A point is reached: nothing happens.
#[cfg(not(feature = "failpoints"))]
pub async fn hit(_point: &str, _armed: Option<&str>) {}
