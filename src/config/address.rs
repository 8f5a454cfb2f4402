//! Addresses of servers: `postgres://host:port/database?sslmode=…&sslrootcert=…`, with
//! libpq's names and meanings.
//!
//! Users and passwords are refused here: who opens a backend is said by `users` and `control`.

use super::{
    error::AddressProblem,
    settings::{Address, Host, TlsMode, TlsStart},
};
use crate::auth::scram::ChannelBinding;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{path::PathBuf, sync::Arc};

/// Reads an address. `database`: the name where the address gives none. `read` reads a file that the address names.
pub(super) fn parse(
    text: &str,
    database: &str,
    read: impl Fn(&str) -> Option<Vec<u8>>,
) -> Result<Address, AddressProblem> {
    let rest = text
        .strip_prefix("postgres://")
        .or_else(|| text.strip_prefix("postgresql://"));
    let rest = rest.ok_or(AddressProblem::Scheme)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.contains('@') {
        return Err(AddressProblem::Credentials);
    }
    let (host, port) = split_port(authority)?;
    let mut parameters = Parameters {
        host: unescape(host)?,
        port: port.to_owned(),
        tls: None,
        root_cert: None,
        tls_start: TlsStart::Request,
        channel_binding: ChannelBinding::Prefer,
    };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').ok_or(AddressProblem::Parameter)?;
        parameters.set(name, unescape(value)?, &read)?;
    }
    let port = match parameters.port.as_str() {
        "" => 5432,
        port => port
            .parse()
            .ok()
            .filter(|port| *port > 0)
            .ok_or(AddressProblem::Port)?,
    };
    let host = match parameters.host.as_str() {
        "" => return Err(AddressProblem::Host),
        host if host.starts_with('/') => Host::Unix(PathBuf::from(host)),
        host => Host::Tcp(host.to_owned()),
    };
    let default_tls = match host {
        Host::Tcp(_) => TlsMode::Prefer,
        Host::Unix(_) => TlsMode::Disable,
    };
    let tls = parameters.tls.unwrap_or(default_tls);
    check_tls(&parameters, &host, tls)?;
    let name = unescape(path)?;
    Ok(Address {
        host,
        port,
        database: if name.is_empty() {
            database.to_owned()
        } else {
            name
        },
        tls,
        root_cert: parameters.root_cert,
        tls_start: parameters.tls_start,
        channel_binding: parameters.channel_binding,
    })
}

/// What can never work, or only seems to protect, is refused here.
fn check_tls(parameters: &Parameters, host: &Host, tls: TlsMode) -> Result<(), AddressProblem> {
    let certain = matches!(
        (host, tls),
        (Host::Tcp(_), TlsMode::Require | TlsMode::VerifyFull)
    );
    if parameters.tls_start == TlsStart::Direct && !certain {
        return Err(AddressProblem::DirectWithoutTls);
    }
    if parameters.channel_binding == ChannelBinding::Require && !certain {
        return Err(AddressProblem::BindingWithoutTls);
    }
    Ok(())
}

struct Parameters {
    host: String,
    port: String,
    tls: Option<TlsMode>,
    root_cert: Option<Arc<Vec<u8>>>,
    tls_start: TlsStart,
    channel_binding: ChannelBinding,
}

impl Parameters {
    fn set(
        &mut self,
        name: &str,
        value: String,
        read: impl Fn(&str) -> Option<Vec<u8>>,
    ) -> Result<(), AddressProblem> {
        match name {
            "host" => self.host = value,
            "port" => self.port = value,
            "sslmode" => {
                self.tls = Some(match value.as_str() {
                    "disable" => TlsMode::Disable,
                    "prefer" => TlsMode::Prefer,
                    "require" => TlsMode::Require,
                    "verify-full" => TlsMode::VerifyFull,
                    _ => return Err(AddressProblem::SslMode),
                });
            }
            "sslrootcert" => {
                let pem = read(&value).ok_or(AddressProblem::RootCert)?;
                if CertificateDer::pem_slice_iter(&pem)
                    .flatten()
                    .next()
                    .is_none()
                {
                    return Err(AddressProblem::RootCert);
                }
                self.root_cert = Some(Arc::new(pem));
            }
            "sslnegotiation" => {
                self.tls_start = match value.as_str() {
                    "postgres" => TlsStart::Request,
                    "direct" => TlsStart::Direct,
                    _ => return Err(AddressProblem::SslNegotiation),
                };
            }
            "channel_binding" => {
                self.channel_binding = match value.as_str() {
                    "disable" => ChannelBinding::Disable,
                    "prefer" => ChannelBinding::Prefer,
                    "require" => ChannelBinding::Require,
                    _ => return Err(AddressProblem::ChannelBinding),
                };
            }
            "user" | "password" => return Err(AddressProblem::Credentials),
            _ => return Err(AddressProblem::Parameter),
        }
        Ok(())
    }
}

/// Host and port of an authority; an IPv6 address stands in brackets.
fn split_port(authority: &str) -> Result<(&str, &str), AddressProblem> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(AddressProblem::Host)?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, port)),
            None if rest.is_empty() => Ok((host, "")),
            None => Err(AddressProblem::Port),
        };
    }
    Ok(authority.rsplit_once(':').unwrap_or((authority, "")))
}

fn unescape(text: &str) -> Result<String, AddressProblem> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let (pair, after) = after.split_at_checked(2).ok_or(AddressProblem::Escape)?;
        let digit = |byte: u8| {
            char::from(byte)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else {
            return Err(AddressProblem::Escape);
        };
        bytes.push(high * 16 + low);
        rest = after;
    }
    String::from_utf8(bytes).or(Err(AddressProblem::Escape))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, host: &str, port: u16, database: &str, tls: TlsMode) {
        let address = parse(text, "app", |_| None).unwrap();
        let host = if host.starts_with('/') {
            Host::Unix(host.into())
        } else {
            Host::Tcp(host.to_owned())
        };
        assert_eq!(
            address,
            Address {
                host,
                port,
                database: database.to_owned(),
                tls,
                root_cert: None,
                tls_start: TlsStart::Request,
                channel_binding: ChannelBinding::Prefer,
            },
            "{text}"
        );
    }

    #[test]
    fn addresses_are_read_as_libpq_reads_them() {
        check(
            "postgres://10.0.0.1/shop",
            "10.0.0.1",
            5432,
            "shop",
            TlsMode::Prefer,
        );
        check(
            "postgresql://db.example:6000",
            "db.example",
            6000,
            "app",
            TlsMode::Prefer,
        );
        check(
            "postgres://[::1]:5433/a%20b?sslmode=require",
            "::1",
            5433,
            "a b",
            TlsMode::Require,
        );
        check(
            "postgres:///shop?host=/run/postgresql&port=5434",
            "/run/postgresql",
            5434,
            "shop",
            TlsMode::Disable,
        );
        check(
            "postgres://%2Frun%2Fpg/shop",
            "/run/pg",
            5432,
            "shop",
            TlsMode::Disable,
        );
    }

    #[test]
    fn how_tls_begins_and_whether_a_login_is_bound_to_it_is_read() {
        let text = "postgres://h/app?sslmode=require&sslnegotiation=direct&channel_binding=require";
        let address = parse(text, "app", |_| None).unwrap();
        assert_eq!(address.tls_start, TlsStart::Direct);
        assert_eq!(address.channel_binding, ChannelBinding::Require);
    }

    #[test]
    fn addresses_that_cannot_be_used_say_why() {
        for (text, problem) in [
            ("10.0.0.1:5432", AddressProblem::Scheme),
            (
                "postgres://me:secret@10.0.0.1/app",
                AddressProblem::Credentials,
            ),
            ("postgres://h/app?user=me", AddressProblem::Credentials),
            ("postgres://h:0/app", AddressProblem::Port),
            ("postgres://h:x/app", AddressProblem::Port),
            ("postgres:///app", AddressProblem::Host),
            ("postgres://h/a%zz", AddressProblem::Escape),
            ("postgres://h/app?sslmode=allow", AddressProblem::SslMode),
            (
                "postgres://h/app?sslrootcert=none.pem",
                AddressProblem::RootCert,
            ),
            ("postgres://h/app?colour=red", AddressProblem::Parameter),
            (
                "postgres://h/app?sslnegotiation=now",
                AddressProblem::SslNegotiation,
            ),
            (
                "postgres://h/app?channel_binding=always",
                AddressProblem::ChannelBinding,
            ),
            (
                "postgres://h/app?sslnegotiation=direct",
                AddressProblem::DirectWithoutTls,
            ),
            (
                "postgres://h/app?sslnegotiation=direct&sslmode=prefer",
                AddressProblem::DirectWithoutTls,
            ),
            (
                "postgres:///app?host=/run&sslnegotiation=direct&sslmode=require",
                AddressProblem::DirectWithoutTls,
            ),
            (
                "postgres://h/app?channel_binding=require&sslmode=prefer",
                AddressProblem::BindingWithoutTls,
            ),
        ] {
            assert_eq!(parse(text, "app", |_| None), Err(problem), "{text}");
        }
    }
}
