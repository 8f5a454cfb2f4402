"""What a suite runs against: a PostgreSQL server of its own, bare or with Shardway in transaction mode before it.

Each run gets a fresh server, so that what one leaves behind changes nothing for the next. The proxy's backends alternate:
a second client takes whichever backend is free, again and again, so that a session seldom has the same one twice.
"""

import contextlib
import dataclasses
import glob
import os
import pathlib
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time

PATIENCE = 30.0
HOLD = 0.004  # seconds that a backend is kept from the others

# Reachable over TCP only, so that every suite goes the same way; what suites demand of a server is switched on.
SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
fsync = off
max_connections = 200
max_prepared_transactions = 10
wal_level = logical
max_wal_senders = 4
max_replication_slots = 4
timezone = 'UTC'
log_timezone = 'UTC'
"""


@dataclasses.dataclass(frozen=True)
class Target:
    """Where a suite connects, as the superuser `postgres`, without a password."""

    way: str  # "direct" or "through"
    port: int
    direct_port: int  # the server itself, for setting up what no client may

    def environment(self, database="postgres"):
        """libpq's variables, over this process's environment."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        return kept | {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
            "PGDATABASE": database,
            "PGSSLMODE": "disable",
        }

    def psql(self, *commands, database="postgres"):
        """Runs statements on the server itself."""
        wanted = [argument for command in commands for argument in ("-c", command)]
        subprocess.run(
            [programs() / "psql", "-Xqv", "ON_ERROR_STOP=1", "-p", str(self.direct_port), *wanted],
            env=self.environment(database),
            check=True,
            stdout=subprocess.DEVNULL,
        )


def programs():
    """The directory of the server's programs."""
    named = os.environ.get("SHARDWAY_PG_BIN")
    found = [named] if named else sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=version_of, reverse=True)
    if not found:
        raise SystemExit("no PostgreSQL server: run tests/setup/tools.sh servers")
    return pathlib.Path(found[0])


def version_of(directory):
    return int(pathlib.Path(directory).parent.name)


def version_told():
    """The version of the installed server: `15.18`."""
    told = subprocess.run([programs() / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    return told.split()[2]


@contextlib.contextmanager
def target(way, suite):
    """A fresh server as the suite needs it, and before it the proxy when `way` is "through"."""
    with contextlib.ExitStack() as stack:
        directory = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shardway-suite-")))
        asked = suite.port or free_port()
        server = asked if way == "direct" else free_port()
        stack.enter_context(running_server(directory, server, suite.hba))
        if way == "through":
            stack.enter_context(running_proxy(directory, asked, server, suite))
            if suite.alternate:
                stack.enter_context(Alternation(asked, suite.alternate))
        yield Target(way, asked, server)


@contextlib.contextmanager
def running_server(directory, port, hba):
    # PostgreSQL refuses to run as root.
    runner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    data = directory / "data"
    if runner:
        directory.chmod(0o755)
        data.mkdir()
        shutil.chown(data, "postgres", "postgres")
    clean = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    subprocess.run(
        [*runner, programs() / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "-N"],
        check=True,
        env=clean,
        stdout=subprocess.DEVNULL,
        cwd="/",
    )
    with open(data / "postgresql.conf", "a") as settings:
        settings.write(SETTINGS + f"port = {port}\n")
    (data / "pg_hba.conf").write_text(hba + "host all,replication all 127.0.0.1/32 trust\n")
    with open(directory / "postgres.log", "w") as log:
        server = subprocess.Popen(
            [*runner, programs() / "postgres", "-D", data], env=clean, stdout=log, stderr=log, cwd="/"
        )
    try:
        wait_until(lambda: answers(port), server, directory / "postgres.log")
        yield
    finally:
        stop(server)


@contextlib.contextmanager
def running_proxy(directory, port, server, suite):
    config = directory / "shardway.toml"
    config.write_text(
        f'[server]\nlisten = ["127.0.0.1:{port}"]\nshutdown_timeout = "1s"\n'
        f'[pool]\nmode = "transaction"\n{suite.pool}\n'
        f'[databases."*"]\nshards.s0 = {{ primary = "postgres://127.0.0.1:{server}?sslmode=disable" }}\n'
        f'[users.postgres]\nauth = "trust"\n{suite.users.replace("SERVER", str(server))}'
    )
    log = pathlib.Path(os.environ.get("SHARDWAY_SUITE_LOG", directory / "shardway.log"))
    with open(log, "w") as written:
        proxy = subprocess.Popen(
            [pathlib.Path("target/debug/shardway").resolve(), "serve", "--config", config],
            stdout=written,
            stderr=written,
        )
    try:
        wait_until(lambda: answers(port), proxy, log)
        yield
        if proxy.poll() is not None:
            raise SystemExit(f"the proxy ended by itself:\n{log.read_text()[-4000:]}")
    finally:
        stop(proxy)


def stop(process):
    """The fast shutdown of both programs; only what does not heed it is killed."""
    process.send_signal(2)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(is_so, process, log):
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"a server did not start:\n{log.read_text()[-4000:]}")
        time.sleep(0.02)


def answers(port):
    try:
        Session(port).close()
        return True
    except OSError:
        return False


class Session:
    """As much of a client as alternation needs: simple queries, and whether they were answered."""

    def __init__(self, port, database="postgres"):
        self.socket = socket.create_connection(("127.0.0.1", port), PATIENCE)
        words = b"".join(word.encode() + b"\0" for word in ("user", "postgres", "database", database)) + b"\0"
        self.socket.sendall(struct.pack("!ii", len(words) + 8, 196608) + words)
        try:
            self.ready()
        except OSError:
            self.socket.close()
            raise

    def ask(self, sql):
        words = sql.encode() + b"\0"
        self.socket.sendall(b"Q" + struct.pack("!i", len(words) + 4) + words)
        self.ready()

    def ready(self):
        tag = b""
        while tag != b"Z":
            tag = self.exactly(1)
            body = self.exactly(struct.unpack("!i", self.exactly(4))[0] - 4)
            if tag == b"E":
                raise OSError(body.replace(b"\0", b" ").decode())

    def exactly(self, length):
        found = b""
        while len(found) < length:
            more = self.socket.recv(length - len(found))
            if not more:
                raise OSError("closed")
            found += more
        return found

    def close(self):
        self.socket.close()


class Alternation:
    """Takes the free backend that was used last, so that the others' next statement meets another."""

    def __init__(self, port, database):
        self.port, self.database = port, database
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_error):
        self.ended.set()
        self.thread.join()

    def run(self):
        while not self.ended.is_set():
            # A test may end every backend there is, or drop the database: then begin again.
            with contextlib.suppress(OSError):
                self.take_turns()
            self.ended.wait(HOLD)

    def take_turns(self):
        with contextlib.closing(Session(self.port, self.database)) as session:
            while not self.ended.is_set():
                session.ask("BEGIN")
                self.ended.wait(HOLD)
                session.ask("COMMIT")
                self.ended.wait(HOLD / 4)
