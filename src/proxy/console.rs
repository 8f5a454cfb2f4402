//! stub
use crate::net::stream::Stream; use std::sync::Arc;
pub async fn serve(_c: Stream, _u: &crate::config::settings::User, _s: &Arc<super::Shared>, _i: &crate::metrics::sessions::Registered) {}
