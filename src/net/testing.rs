//! For the tests of this layer: a real PostgreSQL server, and certificates. Removed when dropped.

use crate::auth::scram::ChannelBinding;
use crate::config::settings::{Address, Credentials, Host, Secret, TlsIdentity, TlsMode, TlsStart};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// An authority and the certificate that it gave to `localhost`.
pub(super) struct Certificates {
    pub(super) authority: Arc<Vec<u8>>,
    pub(super) identity: TlsIdentity,
}

pub(super) fn certificates() -> Certificates {
    certificates_signed(&rcgen::PKCS_ECDSA_P256_SHA256)
}

/// With an authority that signs by this algorithm.
pub(super) fn certificates_signed(algorithm: &'static rcgen::SignatureAlgorithm) -> Certificates {
    let authority_key = KeyPair::generate_for(algorithm).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    // Otherwise both would bear the same name, which OpenSSL takes for a certificate that signed itself.
    params
        .distinguished_name
        .push(DnType::CommonName, "the authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(params, authority_key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    Certificates {
        authority: Arc::new(authority.pem().into_bytes()),
        identity: TlsIdentity {
            cert_pem: certificate.pem().into_bytes(),
            key_pem: key.serialize_pem().into_bytes(),
        },
    }
}

/// A directory of our own under the system's, which the server's user may enter.
pub(super) struct Directory(pub(super) PathBuf);

impl Directory {
    pub(super) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("shardway-net-{}-{count}", std::process::id()));
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left is under the system's temporary directory.
        let _removed = fs::remove_dir_all(&self.0);
    }
}

/// A server with one superuser `postgres`, who is trusted on the Unix socket.
pub(super) struct Server {
    directory: Directory,
    port: u16,
}

impl Server {
    /// `hba`: lines that come before the one that trusts `postgres`.
    pub(super) fn start(hba: &str, identity: Option<&TlsIdentity>) -> Self {
        let directory = Directory::new();
        let data = directory.0.join("data");
        succeed(&mut server_command(
            "initdb",
            &[
                "-D",
                text(&data),
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "--no-sync",
            ],
        ));
        fs::write(
            data.join("pg_hba.conf"),
            format!("{hba}\nlocal all postgres trust\n"),
        )
        .unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nfsync = off\n",
            text(&directory.0),
        );
        if let Some(identity) = identity {
            let key = directory.0.join("server.key");
            fs::write(directory.0.join("server.crt"), &identity.cert_pem).unwrap();
            // Written by the server's user, who must own it.
            fs::write(directory.0.join("key"), &identity.key_pem).unwrap();
            succeed(
                as_server_user(Command::new("install").args(["-m", "600"]))
                    .args([&directory.0.join("key"), &key]),
            );
            settings += &format!(
                "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n",
                text(&directory.0.join("server.crt")),
                text(&key),
            );
        }
        fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        let log = directory.0.join("log");
        succeed(&mut server_command(
            "pg_ctl",
            &["-D", text(&data), "-l", text(&log), "-w", "start"],
        ));
        Self { directory, port }
    }

    /// Runs SQL as `postgres`.
    pub(super) fn run(&self, sql: &str) -> String {
        let output = succeed(Command::new(program("psql")).args([
            "-X",
            "-At",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            text(&self.directory.0),
            "-p",
            &self.port.to_string(),
            "-U",
            "postgres",
            "-c",
            sql,
        ]));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The major version.
    pub(super) fn version(&self) -> u32 {
        let number: u32 = self.run("show server_version_num").parse().unwrap();
        number / 10_000
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// So that settings of the start take effect.
    pub(super) fn restart(&self) {
        let data = self.directory.0.join("data");
        let log = self.directory.0.join("log");
        succeed(&mut server_command(
            "pg_ctl",
            &[
                "-D",
                text(&data),
                "-l",
                text(&log),
                "-w",
                "-m",
                "fast",
                "restart",
            ],
        ));
    }

    pub(super) fn tcp(&self, host: &str, tls: TlsMode, root_cert: Option<Arc<Vec<u8>>>) -> Address {
        Address {
            tls,
            root_cert,
            ..plain(host, self.port)
        }
    }

    pub(super) fn unix(&self) -> Address {
        Address {
            host: Host::Unix(self.directory.0.clone()),
            tls: TlsMode::Require,
            ..plain("", self.port)
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let data = self.directory.0.join("data");
        let _stopped = server_command(
            "pg_ctl",
            &["-D", text(&data), "-m", "immediate", "-w", "stop"],
        )
        .output();
    }
}

/// The address of who may or may not be a server.
pub(super) fn plain(host: &str, port: u16) -> Address {
    Address {
        host: Host::Tcp(host.to_owned()),
        port,
        database: String::new(),
        tls: TlsMode::Disable,
        root_cert: None,
        tls_start: TlsStart::Request,
        channel_binding: ChannelBinding::Prefer,
    }
}

pub(super) fn credentials(user: &str, password: Option<&str>) -> Credentials {
    Credentials {
        user: user.to_owned(),
        password: password.map(|password| Secret(password.to_owned())),
    }
}

/// A program of the PostgreSQL that the environment names, or of the newest that is installed.
pub(super) fn program(name: &str) -> PathBuf {
    if let Some(directory) = std::env::var_os("SHARDWAY_PG_BIN") {
        let named = Path::new(&directory).join(name);
        // Some builds of the server come without its clients.
        if named.exists() {
            return named;
        }
    }
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let newest = versions
        .filter(|entry| entry.path().join("bin/initdb").exists())
        .max_by_key(|entry| {
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok())
        });
    newest.map_or_else(|| name.into(), |entry| entry.path().join("bin").join(name))
}

fn server_command(name: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program(name));
    command.args(arguments);
    as_server_user(&command)
}

/// Servers refuse to run as root.
fn as_server_user(command: &Command) -> Command {
    let root = fs::metadata("/proc/self")
        .is_ok_and(|found| std::os::unix::fs::MetadataExt::uid(&found) == 0);
    let mut wrapped = if root {
        let mut wrapped = Command::new("setpriv");
        wrapped
            .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
            .arg(command.get_program());
        wrapped
    } else {
        Command::new(command.get_program())
    };
    wrapped.args(command.get_args()).current_dir("/");
    wrapped
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
