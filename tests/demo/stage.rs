//! A running demo, and commands typed beside it. It ends with the test process, however that ends.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

pub(crate) const SHARDWAY: &str = env!("CARGO_BIN_EXE_shardway");
/// What waits for a condition gives up after this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// What the demo prints last.
const READY: &str = "Ctrl-C stops everything and removes it.";
/// Runs a program until it ends, or the owner of the pipe does.
const WITH_OWNER: &str = r#"exec 3<&0 </dev/null
"$@" 3<&- &
program=$!
(while read -r _ <&3; do :; done; kill -INT "$program" 2>/dev/null) >/dev/null 2>&1 &
watcher=$!
wait "$program"
kill "$watcher" 2>/dev/null"#;

/// A demo, and what it printed.
pub(crate) struct Demo {
    pub(crate) printed: String,
    pub(crate) port: u16,
    child: Child,
    // One at a time: four servers each, and times are looked at.
    _turn: MutexGuard<'static, ()>,
}

impl Demo {
    /// Of three shards, and a server more.
    pub(crate) fn start() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let port = two_ports();
        let mut child = Command::new("/bin/sh")
            .args(["-c", WITH_OWNER, "demo", SHARDWAY, "demo", "--port"])
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut printed = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        while !printed.contains(READY) {
            let read = out.read_line(&mut printed).unwrap();
            assert!(read > 0, "the demo ended: {printed}");
        }
        Self {
            printed,
            port,
            child,
            _turn: turn,
        }
    }

    /// The lines to type of the part that begins so: whatever begins with a program.
    pub(crate) fn commands(&self, begins: &str) -> Vec<String> {
        let lines = self.printed.lines();
        let part = lines.skip_while(|line| !line.starts_with(begins));
        let typed = part.filter_map(|line| line.strip_prefix("    "));
        let is_program = |line: &&str| line.starts_with('/') || line.starts_with("psql ");
        typed.filter(is_program).map(str::to_owned).collect()
    }

    /// Where its configuration is.
    pub(crate) fn config(&self) -> PathBuf {
        let words = self.printed.split_whitespace();
        let mut after = words.skip_while(|word| *word != "--config");
        after.nth(1).unwrap().into()
    }

    /// `shardway reshard …` on it.
    pub(crate) fn reshard(&self, args: &[&str]) -> Output {
        let (verb, rest) = args.split_first().unwrap();
        let mut command = Command::new(SHARDWAY);
        command.args(["reshard", verb, "--config"]);
        command.arg(self.config()).args(rest).output().unwrap()
    }

    /// What the shop says, one row a line.
    pub(crate) fn ask(&self, sql: &str) -> String {
        self.ask_at(self.port, sql)
    }

    /// What the shop's part on a server says.
    pub(crate) fn ask_at(&self, port: u16, sql: &str) -> String {
        let url = format!("postgres://app:app@127.0.0.1:{port}/shop");
        let output = Command::new("psql")
            .args(["-X", "-A", "-t", "-c", sql, &url])
            .output()
            .unwrap();
        assert!(output.status.success(), "{sql}: {}", said(&output));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The ports of the servers, the spare one last.
    pub(crate) fn servers(&self) -> Vec<u16> {
        let lines = self.printed.lines();
        let urls = lines.filter(|line| line.ends_with("/shop") && line.starts_with("    "));
        let port = |line: &str| line.rsplit([':', '/']).nth(1)?.parse().ok();
        urls.filter_map(port).collect()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        drop(self.child.wait());
    }
}

/// A command line in the background; what it says goes to a file.
pub(crate) struct Typed {
    child: Child,
    said: PathBuf,
}

impl Typed {
    pub(crate) fn begin(line: &str) -> Self {
        static NUMBER: AtomicU16 = AtomicU16::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("typed-{}-{number}", std::process::id());
        let said = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        let file = File::create(&said).unwrap();
        let child = Command::new("/bin/sh")
            .args(["-c", &format!("exec {line}")])
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, said }
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(kill.unwrap().success());
    }

    /// By a signal; what it said by its end, and how it ended.
    pub(crate) fn end(mut self, signal: &str) -> (String, Option<i32>) {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        (self.said(), status.code())
    }
}

impl Drop for Typed {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.said));
    }
}

/// A command line to its end.
pub(crate) fn typed(line: &str) -> Output {
    Command::new("/bin/sh").args(["-c", line]).output().unwrap()
}

/// Both streams as text.
pub(crate) fn said(output: &Output) -> String {
    let both = [output.stdout.clone(), output.stderr.clone()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Two neighbouring ports that nobody has at this moment, and that no connection is given.
fn two_ports() -> u16 {
    const FIRST: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(std::process::id() % 5_000).unwrap() * 2;
    loop {
        let port = FIRST + (own + NEXT.fetch_add(2, Ordering::Relaxed)) % 10_000;
        let free = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
        if free(port) && free(port + 1) {
            return port;
        }
    }
}
