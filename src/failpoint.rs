//! Points at which a test may stop a process. Nothing is here without the feature `failpoints`, which no release has.
//!
//! A point is armed by `SET shardway.failpoint = '<point>@<address>'` in the session that reaches it: there it connects to
//! the address, and waits until that connection is closed. Who listens there knows that the point was reached, and does
//! what it wants with the process, a server or a connection meanwhile.

/// The setting that arms a point.
pub const SETTING: &str = "shardway.failpoint";

/// Whether the session's setting arms this point.
#[cfg(feature = "failpoints")]
#[must_use]
pub fn is_armed(point: &str, armed: Option<&str>) -> bool {
    address(point, armed).is_some()
}

/// Whether the session's setting arms this point: never.
#[cfg(not(feature = "failpoints"))]
#[must_use]
pub fn is_armed(_point: &str, _armed: Option<&str>) -> bool {
    false
}

/// Where somebody waits for this point.
#[cfg(feature = "failpoints")]
fn address<'a>(point: &str, armed: Option<&'a str>) -> Option<&'a str> {
    let (name, address) = armed?.split_once('@')?;
    (name == point).then_some(address)
}

/// A point is reached; `armed` is the session's setting.
#[cfg(feature = "failpoints")]
pub async fn hit(point: &str, armed: Option<&str>) {
    use tokio::io::AsyncReadExt as _;
    let Some(address) = address(point, armed) else {
        return;
    };
    if let Ok(mut waiting) = tokio::net::TcpStream::connect(address).await {
        drop(waiting.read(&mut [0]).await);
    }
}

/// A point is reached: nothing happens.
#[cfg(not(feature = "failpoints"))]
pub fn hit(_point: &str, _armed: Option<&str>) -> std::future::Ready<()> {
    std::future::ready(())
}
