//! Points at which a test may stop a process. Nothing is here without the feature `failpoints`, which no release has.
//!
//! A point is armed by `SET shardway.failpoint = '<point>@<address>'` in the session that reaches it: there it connects to
//! the address, and waits until that connection is closed. Who listens there knows that the point was reached, and does
//! what it wants with the process, a server or a connection meanwhile. Points that no session reaches are armed for the
//! whole process, by its environment.

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

/// A point of the process is reached, which `SHARDWAY_FAILPOINT` may arm: `name:kill` ends the process at once,
/// `name:wait@address` waits as a session's point does, and `ask@address` says at every point which one it is and waits.
#[cfg(feature = "failpoints")]
pub async fn reached(point: &str) {
    let armed = armed();
    if let Some(address) = armed.as_deref().and_then(|it| it.strip_prefix("ask@")) {
        return ask(point, address).await;
    }
    match armed.as_deref().and_then(|armed| armed.split_once(':')) {
        Some((name, "kill")) if name == point => std::process::abort(),
        Some((name, does)) if name == point => {
            if let Some(address) = does.strip_prefix("wait@") {
                hit(point, Some(&format!("{point}@{address}"))).await;
            }
        }
        Some(_) | None => {}
    }
}

/// Says that a point was reached, and waits until whoever listens closes the connection.
#[cfg(feature = "failpoints")]
async fn ask(point: &str, address: &str) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let Ok(mut waiting) = tokio::net::TcpStream::connect(address).await else {
        return;
    };
    if waiting
        .write_all(format!("{point}\n").as_bytes())
        .await
        .is_ok()
    {
        drop(waiting.read(&mut [0]).await);
    }
}

/// What whoever started the process has armed.
#[cfg(feature = "failpoints")]
#[expect(
    clippy::disallowed_methods,
    reason = "armed by whoever starts a test, and nothing that is configured"
)]
fn armed() -> Option<String> {
    std::env::var("SHARDWAY_FAILPOINT").ok()
}

/// A point of the process is reached: nothing happens.
#[cfg(not(feature = "failpoints"))]
pub fn reached(_point: &str) -> std::future::Ready<()> {
    std::future::ready(())
}
