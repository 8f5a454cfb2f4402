//! From the file to the settings: every problem is gathered, and settings come out only when there is none.

use super::{
    database,
    error::{AddressProblem, ConfigError, ConfigErrors, Problem, most_like},
    options::Section,
    reader::{Node, Place, Reader},
    rules,
    settings::{
        Address, BackendProof, ClientAuth, ClientCertificates, ConsoleRole, Credentials, Listen,
        ListenGap, LogFormat, Pool, PoolMode, Secret, Server, ServerTls, Settings, TlsIdentity,
        TlsMode, User,
    },
};
use crate::{auth::scram::Verifier, clock::Duration};
use rustls_pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject,
};
use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc};
use toml::de::{DeTable, DeValue};

/// Reads a configuration file.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(path: &Path) -> Result<Settings, ConfigErrors> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => load_str(
            &name,
            &text,
            path.parent().unwrap_or_else(|| Path::new(".")),
        ),
        Err(error) => {
            let problem = Problem::Unreadable {
                path: name.clone(),
                reason: error.to_string(),
            };
            let errors = vec![ConfigError {
                problem,
                span: 0..0,
                earlier: None,
                source: None,
            }];
            Err(ConfigErrors {
                file: name,
                text: String::new(),
                errors,
            })
        }
    }
}

/// Reads a configuration from its text; `name` is what errors call it, relative paths begin at `base`.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load_str(name: &str, text: &str, base: &Path) -> Result<Settings, ConfigErrors> {
    let fail = |errors| {
        Err(ConfigErrors {
            file: name.to_owned(),
            text: text.to_owned(),
            errors,
        })
    };
    let (root, syntax) = DeTable::parse_recoverable(text);
    if !syntax.is_empty() {
        let error = |error: &toml::de::Error| ConfigError {
            problem: Problem::Syntax(error.message().to_owned()),
            span: error.span().unwrap_or(0..0),
            earlier: None,
            source: None,
        };
        return fail(syntax.iter().map(error).collect());
    }
    let mut reader = Reader::new(base);
    let file = reader.file(&root);
    let server_node = reader.child(&file, "server", Section::Server);
    let server = read_server(&mut reader, &server_node);
    let pool_node = reader.child(&file, "pool", Section::Pool);
    let pool = read_pool(&mut reader, &pool_node, None);
    let databases = database::read_all(&mut reader, &file, &pool);
    let mut users = read_users(&mut reader, &file, &databases, &server.tls);
    let found_users = users.remove("*").unwrap_or_else(|| Arc::new(User::found()));
    let rules = rules::read::read(&mut reader, &file, &server_node);
    if server.tls.clients.is_none()
        && let Some(rules) = &rules
    {
        let place = match file.has("rules") {
            true => file.place("rules"),
            false => server_node.place("rules_file"),
        };
        rules::read::need_authority(&mut reader, rules, &place);
    }
    if !reader.errors.is_empty() {
        reader.errors.sort_by(|one, other| {
            let place = |error: &ConfigError| error.span.start;
            let file = |error: &ConfigError| error.source.clone().map(|source| source.file.clone());
            (file(one), place(one)).cmp(&(file(other), place(other)))
        });
        return fail(reader.errors);
    }
    let mut databases: BTreeMap<_, _> = databases
        .into_iter()
        .map(|(name, database)| (name, Arc::new(database)))
        .collect();
    let wildcard = databases.remove("*");
    Ok(Settings {
        server,
        databases,
        wildcard,
        users,
        found_users,
        rules,
    })
}

/// A pool; what the table does not say is as in `base`, or else the option's default.
pub(super) fn read_pool(reader: &mut Reader, node: &Node<'_>, base: Option<&Pool>) -> Pool {
    let given = |key| base.filter(|_| !node.has(key));
    let mut integer = |key, of: fn(&Pool) -> usize| match given(key) {
        Some(base) => of(base),
        None => reader.integer(node, key).unwrap_or_default(),
    };
    let size = integer("size", |pool| pool.size);
    let reserve_size = integer("reserve_size", |pool| pool.reserve_size);
    let replication_size = integer("replication_size", |pool| pool.replication_size);
    let min_size = integer("min_size", |pool| pool.min_size);
    let connect_limit = integer("connect_limit", |pool| pool.connect_limit);
    let prepared_statements = integer("prepared_statements", |pool| pool.prepared_statements);
    let listen_queue = integer("listen_queue", |pool| pool.listen_queue);
    let mut duration = |key, of: fn(&Pool) -> Duration| match given(key) {
        Some(base) => of(base),
        None => reader.duration(node, key).unwrap_or_default(),
    };
    let idle_timeout = duration("idle_timeout", |pool| pool.idle_timeout);
    let lifetime = duration("lifetime", |pool| pool.lifetime);
    let wait_timeout = duration("wait_timeout", |pool| pool.wait_timeout);
    let connect_timeout = duration("connect_timeout", |pool| pool.connect_timeout);
    let mode = match given("mode") {
        Some(base) => base.mode,
        None => pool_mode(reader, node).unwrap_or(PoolMode::Transaction),
    };
    let listen_gap = match given("listen_gap") {
        Some(base) => base.listen_gap,
        None => match reader.text(node, "listen_gap").as_deref() {
            Some("warn") => ListenGap::Warn,
            _ => ListenGap::End,
        },
    };
    if min_size > size && (base.is_none() || node.is_given()) {
        let key = if node.has("min_size") {
            "min_size"
        } else {
            "size"
        };
        reader.fail(&node.place(key), Problem::PoolSizes);
    }
    Pool {
        mode,
        size,
        reserve_size,
        replication_size,
        min_size,
        idle_timeout,
        lifetime,
        wait_timeout,
        connect_timeout,
        connect_limit,
        prepared_statements,
        listen_gap,
        listen_queue,
    }
}

/// An address of a server.
pub(super) fn read_address(
    reader: &mut Reader,
    text: &str,
    span: &Place,
    database: &str,
) -> Option<Address> {
    let read = |path: &str| std::fs::read(reader.resolve(path)).ok();
    match super::address::parse(text, database, read) {
        Ok(address) => Some(address),
        Err(reason) => {
            // What may be a password is not shown again.
            let value = if reason == AddressProblem::Credentials {
                "postgres://…@…"
            } else {
                text
            };
            reader.fail(
                span,
                Problem::NotAServer {
                    value: value.to_owned(),
                    reason,
                },
            );
            None
        }
    }
}

/// A secret given as itself, in a file or in an environment variable, under three keys of which one may be used.
pub(super) fn read_secret(
    reader: &mut Reader,
    node: &Node<'_>,
    keys: [&'static str; 3],
) -> Option<Secret> {
    let given: Vec<&'static str> = keys.into_iter().filter(|key| node.has(key)).collect();
    if let [first, second, ..] = given[..] {
        reader.fail(&node.place(second), Problem::Exclusive { first, second });
    }
    let key = *given.first()?;
    let text = reader.text(node, key)?;
    let span = node.place(key);
    if key == keys[0] {
        return Some(Secret(text));
    }
    if key == keys[1] {
        let contents = reader.read_file(&text, &span)?;
        let Ok(secret) = String::from_utf8(contents) else {
            reader.fail(
                &span,
                Problem::Unreadable {
                    path: text,
                    reason: "it is not UTF-8".to_owned(),
                },
            );
            return None;
        };
        return Some(Secret(secret.trim_end_matches(['\r', '\n']).to_owned()));
    }
    #[expect(
        clippy::disallowed_methods,
        reason = "the configuration is what reads the environment"
    )]
    let value = std::env::var(&text).ok();
    if value.is_none() {
        reader.fail(&span, Problem::NoVariable(text));
    }
    value.map(Secret)
}

fn read_server(reader: &mut Reader, node: &Node<'_>) -> Server {
    let tls_node = reader.child(node, "tls", Section::ServerTls);
    let log_node = reader.child(node, "log", Section::ServerLog);
    let listen = reader.texts(node, "listen");
    let listen = listen
        .iter()
        .filter_map(|(text, span)| read_listen(reader, text, span))
        .collect();
    let http = reader.text(node, "http").and_then(|text| {
        let address = text.parse::<SocketAddr>().ok();
        if address.is_none() {
            reader.fail(&node.place("http"), Problem::NotAnAddress { value: text });
        }
        address
    });
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let level = reader.text(&log_node, "level").unwrap_or_default();
    if !is_log_filter(&level) {
        let choices = "`error`, `warn`, `info`, `debug`, `trace`".to_owned();
        let like = most_like(&level, ["error", "warn", "info", "debug", "trace"]);
        reader.fail(
            &log_node.place("level"),
            Problem::NotAChoice {
                value: level.clone(),
                choices,
                like,
            },
        );
    }
    let id = reader
        .integer(node, "id")
        .and_then(|id| u8::try_from(id).ok());
    let peers = read_peers(reader, node, id);
    Server {
        id,
        peers,
        listen,
        http,
        tls: read_tls(reader, &tls_node),
        max_clients: reader.integer(node, "max_clients").unwrap_or_default(),
        max_logins: reader.integer(node, "max_logins").unwrap_or_default(),
        failed_logins: reader.integer(node, "failed_logins").unwrap_or_default(),
        failed_login_delay: reader
            .duration(node, "failed_login_delay")
            .unwrap_or_default(),
        login_timeout: reader.duration(node, "login_timeout").unwrap_or_default(),
        shutdown_timeout: reader
            .duration(node, "shutdown_timeout")
            .unwrap_or_default(),
        workers: reader.integer(node, "workers").unwrap_or(processors),
        plan_cache_bytes: reader.integer(node, "plan_cache").unwrap_or_default(),
        gather_limit: reader.integer(node, "gather_limit").unwrap_or_default(),
        gather_limit_total: reader
            .integer(node, "gather_limit_total")
            .unwrap_or_default(),
        log_format: match reader.text(&log_node, "format").as_deref() {
            Some("json") => LogFormat::Json,
            _ => LogFormat::Text,
        },
        log_level: level,
    }
}

/// The other proxies; who has some needs a number of its own.
fn read_peers(reader: &mut Reader, node: &Node<'_>, id: Option<u8>) -> BTreeMap<u8, Address> {
    let mut peers = BTreeMap::new();
    for (name, place, value) in reader.entries(node, "peers") {
        let Some(number) = name
            .parse()
            .ok()
            .filter(|number| (1..=127).contains(number))
        else {
            let (least, most) = (1, 127);
            reader.fail(
                &place,
                Problem::OutOfRange {
                    key: name,
                    least,
                    most,
                },
            );
            continue;
        };
        let DeValue::String(text) = value.get_ref() else {
            reader.wrong_type(&name, "a string: the address", value);
            continue;
        };
        let address = read_address(reader, text, &value.span(), "");
        peers.extend(
            address
                .filter(|_| Some(number) != id)
                .map(|address| (number, address)),
        );
    }
    if id.is_none() && node.has("peers") {
        let place = "server".to_owned();
        reader.fail(&node.place("peers"), Problem::Missing { place, key: "id" });
    }
    peers
}

/// Levels, alone or of a module: `info,shardway::pool=debug`.
fn is_log_filter(text: &str) -> bool {
    text.split(',').all(|part| {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        ["error", "warn", "info", "debug", "trace", "off"].contains(&level.trim())
    })
}

fn read_listen(reader: &mut Reader, text: &str, span: &Place) -> Option<Listen> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Some(Listen::Unix(reader.resolve(path)));
    }
    let address = text.parse().ok().map(Listen::Tcp);
    if address.is_none() {
        reader.fail(
            span,
            Problem::NotAnAddress {
                value: text.to_owned(),
            },
        );
    }
    address
}

fn read_tls(reader: &mut Reader, node: &Node<'_>) -> ServerTls {
    let cert = reader.text(node, "cert");
    let key = reader.text(node, "key");
    let mode = match reader.text(node, "mode").as_deref() {
        Some("prefer") => TlsMode::Prefer,
        Some("require") => TlsMode::Require,
        Some(_) => TlsMode::Disable,
        None if cert.is_some() || key.is_some() => TlsMode::Prefer,
        None => TlsMode::Disable,
    };
    let none = ServerTls {
        mode,
        identity: None,
        clients: None,
    };
    if mode == TlsMode::Disable {
        return none;
    }
    let (Some(cert), Some(key)) = (cert, key) else {
        reader.fail(&node.place("mode"), Problem::TlsIncomplete);
        return none;
    };
    let cert_pem = reader.read_file(&cert, &node.place("cert"));
    let key_pem = reader.read_file(&key, &node.place("key"));
    let no_cert = |pem: &Vec<u8>| {
        CertificateDer::pem_slice_iter(pem)
            .flatten()
            .next()
            .is_none()
    };
    if cert_pem.as_ref().is_some_and(no_cert) {
        reader.fail(
            &node.place("cert"),
            Problem::NotPem {
                path: cert,
                what: "certificate",
            },
        );
    }
    if key_pem
        .as_ref()
        .is_some_and(|pem| PrivateKeyDer::from_pem_slice(pem).is_err())
    {
        reader.fail(
            &node.place("key"),
            Problem::NotPem {
                path: key,
                what: "private key",
            },
        );
    }
    let identity = cert_pem
        .zip(key_pem)
        .map(|(cert_pem, key_pem)| TlsIdentity { cert_pem, key_pem });
    ServerTls {
        mode,
        identity,
        clients: read_client_certificates(reader, node),
    }
}

/// By whom clients' certificates are signed, and which are revoked.
fn read_client_certificates(reader: &mut Reader, node: &Node<'_>) -> Option<ClientCertificates> {
    let mut pem = |key: &'static str, what, holds: fn(&[u8]) -> bool| {
        let path = reader.text(node, key)?;
        let contents = reader.read_file(&path, &node.place(key))?;
        if !holds(&contents) {
            reader.fail(&node.place(key), Problem::NotPem { path, what });
        }
        Some(contents)
    };
    let authority_pem = pem("client_ca", "certificate", |pem| {
        CertificateDer::pem_slice_iter(pem)
            .flatten()
            .next()
            .is_some()
    });
    let revoked_pem = pem("client_crl", "list of revoked certificates", |pem| {
        CertificateRevocationListDer::pem_slice_iter(pem)
            .flatten()
            .next()
            .is_some()
    });
    if node.has("client_crl") && !node.has("client_ca") {
        reader.fail(
            &node.place("client_crl"),
            Problem::Missing {
                place: "`server.tls` with `client_crl`".to_owned(),
                key: "client_ca",
            },
        );
    }
    Some(ClientCertificates {
        authority_pem: authority_pem?,
        revoked_pem,
    })
}

fn pool_mode(reader: &mut Reader, node: &Node<'_>) -> Option<PoolMode> {
    reader.text(node, "mode").map(|mode| match mode.as_str() {
        "session" => PoolMode::Session,
        _ => PoolMode::Transaction,
    })
}

fn read_users(
    reader: &mut Reader,
    file: &Node<'_>,
    databases: &BTreeMap<String, super::settings::Database>,
    tls: &ServerTls,
) -> BTreeMap<String, Arc<User>> {
    let mut users = BTreeMap::new();
    for (name, span, node) in reader.children(file, "users", Section::User) {
        let entered = reader.texts(&node, "databases");
        if entered.is_empty() && node.has("databases") {
            reader.fail(&node.place("databases"), Problem::NoDatabases);
        }
        for (database, span) in &entered {
            // Under the wildcard every name is a database.
            if !databases.contains_key(database) && !databases.contains_key("*") {
                let like = most_like(database, databases.keys().map(String::as_str));
                reader.fail(
                    span,
                    Problem::UnknownName {
                        what: "database",
                        name: database.clone(),
                        like,
                    },
                );
            }
        }
        let pool = reader.child(&node, "pool", Section::UserPool);
        let (auth, secret) = read_auth(reader, &node, &name, &span);
        let backend_proof = backend_proof(&node);
        refuse_what_cannot_be_found(reader, (&name, &span, &node), &auth, databases);
        if auth == ClientAuth::Cert && tls.clients.is_none() {
            let user = name.clone();
            reader.fail(&node.place("auth"), Problem::NoAuthority { user });
        }
        let backend_keys = [
            "backend_password",
            "backend_password_file",
            "backend_password_env",
        ];
        let backend_password = read_secret(reader, &node, backend_keys).or(secret);
        let backend_user = reader
            .text(&node, "backend_user")
            .unwrap_or_else(|| name.clone());
        let user = User {
            name: name.clone(),
            auth,
            backend: Credentials {
                user: backend_user,
                password: backend_password,
            },
            backend_proof,
            databases: entered.into_iter().map(|(database, _)| database).collect(),
            console: reader
                .text(&node, "console")
                .map(|role| match role.as_str() {
                    "admin" => ConsoleRole::Admin,
                    _ => ConsoleRole::Stats,
                }),
            pool_mode: pool_mode(reader, &pool),
            pool_size: reader.integer(&pool, "size"),
        };
        users.insert(name, Arc::new(user));
    }
    users
}

/// With passthrough what the client has shown opens its backends, unless it is said as whom else they are opened.
fn backend_proof(node: &Node<'_>) -> BackendProof {
    let passes = match node.get("auth") {
        Some((_, value)) => value
            .get_ref()
            .as_str()
            .is_some_and(|method| method.starts_with("passthrough")),
        None => false,
    };
    if passes && !node.has("backend_user") {
        BackendProof::Shown
    } else {
        BackendProof::Configured
    }
}

/// Who is to be looked up enters a database that looks up; `"*"` is only for such, and has no console.
fn refuse_what_cannot_be_found(
    reader: &mut Reader,
    (name, span, node): (&str, &Place, &Node<'_>),
    auth: &ClientAuth,
    databases: &BTreeMap<String, super::settings::Database>,
) {
    let found = matches!(auth, ClientAuth::Found | ClientAuth::FoundPassword);
    if name == "*" && (!found || node.has("console")) {
        reader.fail(span, Problem::FoundUsers);
    } else if found
        && !databases
            .values()
            .any(|database| database.auth_query.is_some())
    {
        let user = name.to_owned();
        reader.fail(span, Problem::NoAuthQuery { user });
    }
}

/// How the client proves who it is, and the password that servers may be told.
fn read_auth(
    reader: &mut Reader,
    node: &Node<'_>,
    user: &str,
    span: &Place,
) -> (ClientAuth, Option<Secret>) {
    let secret = read_secret(reader, node, ["password", "password_file", "password_env"]);
    let verifier = reader.text(node, "verifier").map(Secret);
    let method = reader.text(node, "auth").unwrap_or_default();
    if let Some(verifier) = &verifier {
        let verifier_place = node.place("verifier");
        if secret.is_some() {
            reader.fail(
                &verifier_place,
                Problem::Exclusive {
                    first: "password",
                    second: "verifier",
                },
            );
        }
        if !["scram", "passthrough", "passthrough-password"].contains(&method.as_str()) {
            reader.fail(&verifier_place, Problem::VerifierWithoutScram);
        }
        if !is_verifier(&verifier.0) {
            reader.fail(&verifier_place, Problem::NotAVerifier);
        }
    }
    match method.as_str() {
        "trust" => return (ClientAuth::Trust, secret),
        "cert" => return (ClientAuth::Cert, secret),
        _ => {}
    }
    if let "passthrough" | "passthrough-password" = method.as_str() {
        let clear = method == "passthrough-password";
        if let Some(first) = ["password", "password_file", "password_env"]
            .into_iter()
            .find(|key| node.has(key))
        {
            let second = "auth = \"passthrough\"";
            reader.fail(&node.place(first), Problem::Exclusive { first, second });
        }
        let auth = match (verifier, clear) {
            (Some(verifier), true) => ClientAuth::Password(verifier),
            (Some(verifier), false) => ClientAuth::Scram(verifier),
            (None, true) => ClientAuth::FoundPassword,
            (None, false) => ClientAuth::Found,
        };
        return (auth, None);
    }
    let proof = verifier.or_else(|| secret.clone());
    let secret_failed = ["password", "password_file", "password_env"]
        .iter()
        .any(|key| node.has(key));
    let Some(proof) = proof else {
        if !secret_failed {
            reader.fail(
                span,
                Problem::NoSecret {
                    user: user.to_owned(),
                },
            );
        }
        return (ClientAuth::Trust, None);
    };
    let auth = match method.as_str() {
        "password" => ClientAuth::Password(proof),
        "md5" => ClientAuth::Md5(proof),
        _ => ClientAuth::Scram(proof),
    };
    (auth, secret)
}

/// `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`, the last three in base64. What logins do not read as one
/// they would take for the password itself.
fn is_verifier(text: &str) -> bool {
    Verifier::parse(text).is_some()
}
