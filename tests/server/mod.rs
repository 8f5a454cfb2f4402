//! One throw-away PostgreSQL server for tests of what needs no cluster.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A throw-away server on a socket only, gone when dropped.
pub(crate) struct Server {
    pub(crate) directory: PathBuf,
    binaries: PathBuf,
}

impl Server {
    pub(crate) fn start() -> Self {
        static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let directory =
            std::env::temp_dir().join(format!("shardway-test-{}-{number}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let server = Self {
            directory,
            binaries: binaries(),
        };
        if is_root() {
            let owned = Command::new("chown")
                .arg("postgres")
                .arg(&server.directory)
                .status()
                .unwrap();
            assert!(owned.success());
        }
        let data = server.directory.join("data");
        let initdb = [
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--pgdata",
        ];
        server.run("initdb", &initdb, Some(&data), "");
        let options = format!(
            "-c listen_addresses= -c fsync=off -k {}",
            server.directory.display()
        );
        let log = server.directory.join("log");
        let start = [
            "start",
            "--wait",
            "--silent",
            "--options",
            &options,
            "--log",
            log.to_str().unwrap(),
            "--pgdata",
        ];
        server.run("pg_ctl", &start, Some(&data), "");
        server
    }

    /// What the statements print.
    pub(crate) fn psql(&self, input: &str) -> String {
        let host = format!("--host={}", self.directory.display());
        let arguments = [
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--set=ON_ERROR_STOP=1",
            "--username=postgres",
            &host,
            "postgres",
        ];
        self.run("psql", &arguments, None, input)
    }

    fn run(&self, program: &str, arguments: &[&str], path: Option<&Path>, input: &str) -> String {
        let mut command = if is_root() {
            let mut command = Command::new("setpriv");
            command
                .args([
                    "--reuid=postgres",
                    "--regid=postgres",
                    "--clear-groups",
                    "--",
                ])
                .arg(self.program(program));
            command
        } else {
            Command::new(self.program(program))
        };
        let quiet = self.directory.join(format!("{program}.out"));
        let output = fs::File::create(&quiet).unwrap();
        command
            .current_dir(&self.directory)
            .args(arguments)
            .args(path)
            .stdin(Stdio::piped());
        // A file, because a started server would keep a pipe open.
        let mut child = command
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .unwrap();
        let status = child.wait().unwrap();
        let said = fs::read_to_string(quiet).unwrap();
        assert!(status.success(), "{program}: {said}");
        said
    }

    /// Beside the server, else the machine's: some builds of the server come without psql.
    fn program(&self, name: &str) -> PathBuf {
        let own = self.binaries.join(name);
        if name == "psql" && !own.exists() {
            return name.into();
        }
        own
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.run(
            "pg_ctl",
            &["stop", "--silent", "--mode=immediate", "--pgdata"],
            Some(&self.directory.join("data")),
            "",
        );
        fs::remove_dir_all(&self.directory).unwrap();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test is told by the environment which servers to use"
)]
fn binaries() -> PathBuf {
    if let Ok(directory) = std::env::var("SHARDWAY_PG_BIN") {
        return directory.into();
    }
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap();
    versions
        .map(|version| version.unwrap().path().join("bin"))
        .max()
        .unwrap()
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().unwrap().stdout == b"0\n"
}
