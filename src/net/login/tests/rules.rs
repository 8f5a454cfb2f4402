//! Rules and client certificates: one pg_hba.conf before a real PostgreSQL and before us, psql in the same ways, and the
//! same words or the same way in.

use super::*;
use crate::{config::load::load_str, net::testing::Server};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

const HBA: &str = r#"
# Comments, blanks, lists, quotes, joined lines.
hostssl  app,"other"  ann  127.0.0.1/32  scram-sha-256
hostnossl app ann all reject
host other "bob" 127.0.0.0 255.0.0.0 md5
host sameuser ann,carl all trust
host far all 10.0.0.0/8 trust
host far all ::1/128 trust
hostssl cert all all cert
hostssl mapped all all \
    cert map=people
hostssl titled all all cert clientname=DN map=people
hostssl signed all all scram-sha-256 clientcert=verify-ca
hostssl named all all scram-sha-256 clientcert=verify-full
host open ann,nobody all trust
hostssl replication bob all reject
local all postgres trust
"#;

const IDENT: &str = r#"
# map  name  user
people "ann" bob
people ann_at_home carl
people "CN=ann,O=Works" carl
other  ann  carl
"#;

const DATABASES: [&str; 10] = [
    "app", "other", "far", "cert", "mapped", "titled", "signed", "named", "ann", "open",
];

/// Certificates of clients, as files that psql is shown.
struct Clients {
    directory: Directory,
    authority: String,
    revoked: String,
}

impl Clients {
    fn new() -> Self {
        let directory = Directory::new();
        let (authority, issuer) = authority("clients");
        let revoked_serial = SerialNumber::from(77_u64);
        let made = [
            ("ann", SerialNumber::from(1_u64), "ann"),
            ("bob", SerialNumber::from(2_u64), "bob"),
            ("badge", SerialNumber::from(3_u64), "badge"),
            ("revoked", revoked_serial.clone(), "ann"),
        ];
        for (file, serial, name) in made {
            write_client(&directory.0, file, name, serial, &issuer);
        }
        let (_, stranger) = self::authority("clients");
        let serial = SerialNumber::from(1_u64);
        write_client(&directory.0, "stranger", "ann", serial, &stranger);
        let at = |year| rcgen::date_time_ymd(year, 1, 1);
        let list = CertificateRevocationListParams {
            this_update: at(2020),
            next_update: at(2100),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: revoked_serial,
                revocation_time: at(2020),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let revoked = list.signed_by(&issuer).unwrap().pem().unwrap();
        Self {
            directory,
            authority,
            revoked,
        }
    }

    /// What psql is told to show a certificate, or none.
    fn shown(&self, name: Option<&str>) -> String {
        let path = |name: &str, end| self.directory.0.join(format!("{name}.{end}"));
        match name {
            Some(name) => format!(
                "sslcert={} sslkey={}",
                path(name, "crt").display(),
                path(name, "key").display()
            ),
            None => "sslcert=/nowhere sslkey=/nowhere".into(),
        }
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.directory.0.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pem = params.self_signed(&key).unwrap().pem();
    (pem, Issuer::new(params, key))
}

fn write_client(
    directory: &Path,
    file: &str,
    name: &str,
    serial: SerialNumber,
    issuer: &Issuer<'_, KeyPair>,
) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.serial_number = Some(serial);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Works");
    params.distinguished_name.push(DnType::CommonName, name);
    let certificate = params.signed_by(&key, issuer).unwrap();
    fs::write(directory.join(format!("{file}.crt")), certificate.pem()).unwrap();
    let path = directory.join(format!("{file}.key"));
    fs::write(&path, key.serialize_pem()).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Our own server with these rules; `extra` goes into its section `server.tls`.
fn ours(
    clients: &Clients,
    rules: &str,
    extra: &str,
) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let certificates = testing::certificates();
    let path = |name: &str, pem: &[u8]| clients.write(name, std::str::from_utf8(pem).unwrap());
    let mut text = format!(
        "[server]\n{rules}\n[server.tls]\ncert = \"{}\"\nkey = \"{}\"\nclient_ca = \"{}\"\n{extra}\n",
        path("server.crt", &certificates.identity.cert_pem),
        path("server.key", &certificates.identity.key_pem),
        clients.write("clients.crt", &clients.authority),
    );
    for name in DATABASES {
        text += &format!("[databases.{name}]\nshards.s0 = {{ primary = \"postgres://h/x\" }}\n");
    }
    for name in ["ann", "bob", "carl"] {
        text += &format!("[users.{name}]\npassword = \"{PASSWORD}\"\n");
    }
    text += "[users.badge]\nauth = \"cert\"\n";
    let settings =
        load_str("test", &text, &clients.directory.0).unwrap_or_else(|errors| panic!("{errors}"));
    let identity = settings.server.tls.identity.as_ref().unwrap();
    let tls = ServerTls::new(identity, settings.server.tls.clients.as_ref()).unwrap();
    let entrance = Entrance::new([5; 32], Clock, Metrics::new());
    tcp(LoginContext::new(&settings, Some(Arc::new(tls)), entrance))
}

fn theirs(clients: &Clients) -> Server {
    let server = Server::start(HBA, Some(&testing::certificates().identity));
    for name in DATABASES {
        server.run(&format!("CREATE DATABASE {name}"));
    }
    for name in ["ann", "bob", "carl"] {
        server.run(&format!("CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'"));
    }
    let authority = clients.write("theirs.crt", &clients.authority);
    server.run(&format!("ALTER SYSTEM SET ssl_ca_file = '{authority}'"));
    let ident = clients.write("theirs.ident", IDENT);
    server.run(&format!("ALTER SYSTEM SET ident_file = '{ident}'"));
    server.restart();
    server
}

/// What psql is told last: nothing when it got in.
async fn told(port: u16, connection: &str, password: &str) -> String {
    let words = psql(
        &format!("host=127.0.0.1 port={port} {connection}"),
        password,
    )
    .await;
    words
        .split_once("FATAL: ")
        .map_or_else(|| words.clone(), |(_, fatal)| fatal.trim().to_owned())
}

#[tokio::test]
async fn rules_decide_as_the_same_file_does_before_postgresql() {
    let clients = Clients::new();
    let server = theirs(&clients);
    clients.write("pg_hba.conf", HBA);
    clients.write("pg_ident.conf", IDENT);
    let rules = "rules_file = \"pg_hba.conf\"\nident_file = \"pg_ident.conf\"";
    let (address, _logins) = ours(&clients, rules, "");
    let crowd = [Some("ann"), Some("bob"), Some("stranger"), None];
    let mut seen = std::collections::BTreeSet::new();
    for database in DATABASES {
        let certified = ["cert", "mapped", "titled", "signed", "named"].contains(&database);
        let shown = if certified { &crowd[..] } else { &crowd[3..] };
        for user in ["ann", "bob", "carl", "nobody"] {
            let mut ways: Vec<(&str, Option<&str>, &str)> = shown
                .iter()
                .map(|certificate| ("require", *certificate, PASSWORD))
                .collect();
            ways.push(("disable", None, PASSWORD));
            if ["app", "named"].contains(&database) {
                ways.push(("require", Some("ann"), "wrong"));
            }
            for (tls, certificate, password) in ways {
                let shown = clients.shown(certificate);
                let connection = format!("dbname={database} user={user} sslmode={tls} {shown}");
                let theirs = told(server.port(), &connection, password).await;
                let ours = told(address.port(), &connection, password).await;
                assert_eq!(refusal(&ours), refusal(&theirs), "{connection} {password}");
                let kind = refusal(&ours);
                seen.insert(kind.split('"').next().unwrap_or_default().to_owned());
            }
        }
    }
    // The whole server is not one of the databases that a rule names, nor all of them.
    for (user, tls) in [("ann", "disable"), ("bob", "require")] {
        let connection = format!("dbname=app user={user} sslmode={tls} replication=true");
        let theirs = told(server.port(), &connection, PASSWORD).await;
        assert_eq!(told(address.port(), &connection, PASSWORD).await, theirs);
        assert!(theirs.contains(user), "{theirs}");
    }
    // Every end was among them.
    assert_eq!(
        Vec::from_iter(seen),
        [
            "",
            "TLS alert",
            "certificate authentication failed for user ",
            "connection requires a valid client certificate",
            "no pg_hba.conf entry for host ",
            "password authentication failed for user ",
            "pg_hba.conf rejects connection for host ",
            "role ",
        ]
    );
}

/// The words that must be the same. How a certificate of a strange authority is refused is TLS' own matter.
fn refusal(words: &str) -> String {
    if words.contains("alert")
        || words.contains("SSL SYSCALL error")
        || words.contains("server closed the connection")
    {
        return "TLS alert".into();
    }
    words.to_owned()
}

#[tokio::test]
async fn a_user_may_enter_by_its_certificate_alone() {
    let clients = Clients::new();
    let (address, mut logins) = ours(&clients, "", "");
    for (user, certificate, expected) in [
        ("badge", Some("badge"), ""),
        ("ann", None, ""),
        (
            "badge",
            None,
            "connection requires a valid client certificate",
        ),
        (
            "badge",
            Some("ann"),
            "certificate authentication failed for user \"badge\"",
        ),
    ] {
        let shown = clients.shown(certificate);
        let connection = format!("dbname=app user={user} sslmode=require {shown}");
        assert_eq!(told(address.port(), &connection, PASSWORD).await, expected);
        logins.recv().await.unwrap();
    }
    let connection = "dbname=app user=badge sslmode=disable";
    let words = told(address.port(), connection, PASSWORD).await;
    assert_eq!(words, "connection requires a valid client certificate");
}

#[tokio::test]
async fn a_revoked_certificate_opens_nothing() {
    let clients = Clients::new();
    clients.write("revoked.pem", &clients.revoked);
    let rules = "rules_file = \"pg_hba.conf\"";
    clients.write("pg_hba.conf", "hostssl all all all cert");
    for (list, opens) in [("", true), ("client_crl = \"revoked.pem\"", false)] {
        let (address, _logins) = ours(&clients, rules, list);
        for (certificate, enters) in [("ann", true), ("revoked", opens)] {
            let shown = clients.shown(Some(certificate));
            let connection = format!("dbname=app user=ann sslmode=require {shown}");
            let words = told(address.port(), &connection, "").await;
            assert_eq!(words.is_empty(), enters, "{list} {certificate}: {words}");
        }
    }
}
