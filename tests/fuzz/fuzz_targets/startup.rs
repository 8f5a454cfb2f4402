//! Reads startup packets: nothing panics, what is read is written back as the same bytes, and `options` are settings.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shardway_fuzz::wire::startup::{
    CANCEL_KEY, Startup, decode, options, put_cancel_request, put_message, put_ssl_request,
    remaining,
};

fuzz_target!(|bytes: &[u8]| {
    if let Some(length) = bytes.first_chunk()
        && let Ok(size) = remaining(*length)
    {
        assert!((4..10_000).contains(&size));
    }
    let mut out = Vec::new();
    match decode(bytes) {
        Ok(Startup::Message(message)) => {
            let parameters: Vec<_> = message.parameters().collect();
            put_message(&mut out, message.minor, &parameters);
            assert_eq!(&out[4..], bytes);
            for (name, _) in &parameters {
                assert!(!name.is_empty() && message.parameter(name).is_some());
            }
            if let Some(text) = message.parameter(b"options") {
                let _ = options(text);
            }
        }
        Ok(Startup::CancelRequest { pid, key }) => {
            assert!(CANCEL_KEY.contains(&key.len()));
            put_cancel_request(&mut out, pid, key);
            assert_eq!(&out[4..], bytes);
        }
        Ok(Startup::SslRequest) => {
            put_ssl_request(&mut out);
            assert_eq!(&out[4..], bytes);
        }
        Ok(Startup::GssEncRequest) | Err(_) => {}
    }
    if let Ok(settings) = options(bytes) {
        assert!(
            settings
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
                <= bytes.len()
        );
    }
});
