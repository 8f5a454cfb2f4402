//! TLS on both sides: clients may, must or need not encrypt as the configuration says, every driver works over it, and
//! servers are verified when that is asked for.

use crate::harness::{
    Proxy, Recipe, Target, block_on, customers_on, environment, fill, open_session, shop,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use shardway::sandbox::{Auth, Identity, Sandbox};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::atomic::{AtomicUsize, Ordering},
};
use tokio_postgres::error::SqlState;

/// An authority's certificate, and a server's with its key, all PEM.
pub(crate) struct Certificates {
    pub(crate) authority: String,
    pub(crate) cert: String,
    pub(crate) key: String,
}

/// A server's certificate for these names, signed by an authority of its own.
pub(crate) fn certificates(names: &[&str]) -> Certificates {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    // A name of its own: one that signs under the server's name is taken for the server itself.
    let name = &mut authority.distinguished_name;
    name.push(DnType::CommonName, "Test authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let signed = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let server = CertificateParams::new(names).unwrap();
    Certificates {
        authority: signed.pem(),
        cert: server.signed_by(&key, &issuer).unwrap().pem(),
        key: key.serialize_pem(),
    }
}

/// Files with an authority's certificate, and a proxy's certificate and key.
pub(crate) struct Files {
    pub(crate) authority: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// New ones, for this machine's names.
pub(crate) fn files() -> Files {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let made = certificates(&["localhost", "127.0.0.1"]);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = |name: &str| shop().dir().join(format!("tls-{number}-{name}"));
    let [authority, cert, key] = ["ca.crt", "server.crt", "server.key"].map(path);
    fs::write(&authority, made.authority).unwrap();
    fs::write(&cert, made.cert).unwrap();
    fs::write(&key, made.key).unwrap();
    Files {
        authority,
        cert,
        key,
    }
}

/// A proxy that speaks TLS to clients, and the file with its authority.
pub(crate) fn serve(mode: &str) -> (Proxy, PathBuf) {
    let made = files();
    let (cert, key) = (made.cert.display(), made.key.display());
    let recipe = Recipe {
        server: format!("tls = {{ mode = \"{mode}\", cert = \"{cert}\", key = \"{key}\" }}"),
        ..Recipe::default()
    };
    (shop().serve(&recipe), made.authority)
}

fn psql(target: &Target, sslmode: &str, authority: &Path) -> Output {
    let mut command = Command::new("psql");
    target.apply(&mut command);
    command
        .env("PGSSLMODE", sslmode)
        .env("PGSSLROOTCERT", authority)
        .args(["-X", "-At", "-c", "SELECT name FROM customers WHERE id = 5"])
        .args(["-c", "\\conninfo"]);
    command.output().unwrap()
}

#[track_caller]
fn check(proxy: &Proxy, sslmode: &str, authority: &Path, encrypted: bool) {
    let output = psql(&proxy.target(), sslmode, authority);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{sslmode}: {output:?}");
    assert!(printed.starts_with("Fatima Perez\n"), "{printed}");
    assert_eq!(printed.contains("SSL"), encrypted, "{sslmode}: {printed}");
}

#[test]
fn clients_that_must_encrypt_do_and_others_are_refused() {
    let (proxy, authority) = serve("require");
    for sslmode in ["prefer", "require", "verify-ca", "verify-full"] {
        check(&proxy, sslmode, &authority, true);
    }
    let refused = psql(&proxy.target(), "disable", &authority);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{refused:?}");
    assert!(said.contains("no encryption"), "{said}");
    // A certificate of somebody else's is noticed by the client, and nobody else's session is harmed.
    let stranger = shop().dir().join("stranger.crt");
    fs::write(&stranger, certificates(&["localhost"]).authority).unwrap();
    assert!(
        !psql(&proxy.target(), "verify-full", &stranger)
            .status
            .success()
    );
    check(&proxy, "verify-full", &authority, true);
}

#[test]
fn clients_that_may_encrypt_choose() {
    let (proxy, authority) = serve("prefer");
    check(&proxy, "disable", &authority, false);
    check(&proxy, "verify-full", &authority, true);
}

#[test]
fn servers_are_encrypted_to_and_verified_as_their_address_says() {
    let made = certificates(&["127.0.0.1"]);
    let sandbox = Sandbox::builder(environment())
        .auth(Auth::Scram)
        .tls(Identity {
            cert_pem: made.cert.into_bytes(),
            key_pem: made.key.into_bytes(),
        })
        .start()
        .unwrap();
    fill(sandbox.clusters());
    let [authority, stranger] = ["ca.crt", "stranger.crt"].map(|name| sandbox.root().join(name));
    fs::write(&authority, made.authority).unwrap();
    fs::write(&stranger, certificates(&["127.0.0.1"]).authority).unwrap();
    let ask = |address: &str| {
        let recipe = Recipe {
            address: address.to_owned(),
            ..Recipe::default()
        };
        let proxy = Proxy::start(sandbox.root(), &recipe.write(sandbox.clusters()));
        let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        block_on(async {
            let client = open_session(&proxy.target().config()).await?;
            Ok::<bool, tokio_postgres::Error>(client.query_one(sql, &[]).await?.get(0))
        })
    };
    let verified = |path: &Path| format!("?sslmode=verify-full&sslrootcert={}", path.display());
    for (address, encrypted) in [
        (String::new(), true),
        ("?sslmode=prefer".to_owned(), true),
        ("?sslmode=require".to_owned(), true),
        (verified(&authority), true),
        ("?sslmode=disable".to_owned(), false),
    ] {
        let answer = ask(&address).unwrap_or_else(|error| panic!("{address}: {error:?}"));
        assert_eq!(answer, encrypted, "{address}");
    }
    let refused = ask(&verified(&stranger)).unwrap_err();
    assert_eq!(
        refused.code(),
        Some(&SqlState::CONNECTION_FAILURE),
        "{refused:?}"
    );
}

#[test]
fn a_server_without_tls_is_used_only_when_that_may_be() {
    let shop = shop();
    let key = customers_on(&shop.settings, 0)[0];
    let sql = format!("SELECT name FROM customers WHERE id = {key}");
    for (mode, works) in [("prefer", true), ("require", false), ("verify-full", false)] {
        let proxy = shop.serve(&Recipe {
            address: format!("?sslmode={mode}"),
            ..Recipe::default()
        });
        let answer = block_on(async {
            let client = open_session(&proxy.target().config()).await?;
            client.simple_query(&sql).await
        });
        match answer {
            Ok(_) => assert!(works, "{mode}"),
            Err(error) => {
                assert!(!works, "{mode}: {error:?}");
                let code = error.code();
                assert_eq!(code, Some(&SqlState::CONNECTION_FAILURE), "{error:?}");
            }
        }
    }
}
