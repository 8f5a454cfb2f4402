"""Servers, proxies before them, clients at work and the commands of a reshard, for benches that time one.

All servers wait for their disk, so that commits cost what they cost. Which proxy leads is read from what proxies log.
"""
import glob, json, math, os, re, shutil, subprocess, sys, tempfile, time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from servers import Server, build_shardway, drop_rights, free_port, launch, own, stop, tool, wait_for

PROXIES = 2
PATIENCE = 300


class Stage:
    """Two servers and two proxies. `groups` is the configuration of what is sharded."""

    def __init__(self, args, groups, *settings):
        self.work = tempfile.mkdtemp(prefix="shardway-reshard-")
        os.chmod(self.work, 0o755)
        self.started, self.proxies, self.sessions = [], [None] * PROXIES, {}
        self.args, self.groups = args, groups
        try:
            self.servers = [Server(self.work, f"pg{number}", self.started, "max_prepared_transactions=100", "fsync=on",
                                   "synchronous_commit=on", "wal_level=logical", "max_wal_senders=20",
                                   "max_replication_slots=20", *settings)
                            for number in range(2)]
            self.ports = [free_port() for _ in range(PROXIES)]
            self.binary = args.binary or build_shardway()
            for number in range(PROXIES):
                self.serve(number)
        except BaseException:
            self.end()
            raise

    def end(self):
        for process in reversed(self.started):
            stop(process)
        shutil.rmtree(self.work, ignore_errors=True)

    # Proxies.

    def serve(self, number):
        """Starts a proxy at its place."""
        config = self.configure(number)
        proxy = launch([self.binary, "serve", "--config", config], self.log(number))
        self.started.append(proxy)
        self.proxies[number] = proxy
        wait_for(self.ports[number], proxy, self.work)

    def kill(self, number):
        """As kill -9; when that was, in seconds since 1970."""
        when = time.time()
        self.proxies[number].kill()
        self.proxies[number].wait()
        self.started.remove(self.proxies[number])
        return when

    def log(self, number):
        return os.path.join(self.work, f"proxy{number}.log")

    def configure(self, number):
        path = os.path.join(self.work, f"shardway{number}.toml")
        shards = "".join(f'shards.s{at} = {{ primary = "postgres://127.0.0.1:{server.port}/bench" }}\n'
                         for at, server in enumerate(self.servers))
        with open(path, "w") as file:
            file.write(f'[server]\nlisten = ["127.0.0.1:{self.ports[number]}"]\nworkers = {self.args.workers}\n'
                       f'[pool]\nsize = 32\n[databases.bench]\ncontrol = {{ user = "bench" }}\n{shards}{self.groups}'
                       '[users.bench]\nauth = "trust"\n')
        return path

    def leader(self):
        """The place of the proxy that began to lead last."""
        found = []
        for number in range(PROXIES):
            tokens = re.findall(r"runs the reshards from now on.*?token=(\d+)", open(self.log(number)).read())
            found.append(max(map(int, tokens), default=0))
        return found.index(max(found))

    # What is asked.

    def sql(self, server, text):
        asked = subprocess.run([tool("psql"), "-XAtqc", text, server.url()], capture_output=True, text=True)
        if asked.returncode != 0:
            sys.exit(asked.stderr)
        return asked.stdout.strip()

    def when(self, server, condition):
        """Waits on the server until this is so; when it was, in seconds since 1970."""
        loop = ("DO $$ BEGIN FOR i IN 1..%d LOOP EXIT WHEN %s; PERFORM pg_sleep(0.001); END LOOP; "
                "IF NOT coalesce(%s, false) THEN RAISE 'in vain'; END IF; END $$; "
                "SELECT extract(epoch FROM clock_timestamp())") % (PATIENCE * 1000, condition, condition)
        return float(self.sql(server, loop))

    def reshard(self, *args):
        done = subprocess.run([self.binary, "reshard", args[0], "--config", os.path.join(self.work, "shardway0.toml"),
                               "--database", "bench", *args[1:]], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"reshard {args}: {done.stdout}{done.stderr}")
        return done.stdout

    def status(self):
        return json.loads(self.reshard("status", "--output", "json"))

    def until(self, state, step="made"):
        deadline = time.monotonic() + PATIENCE
        while (status := self.status())["state"] != state or status["step"] != step:
            if time.monotonic() > deadline:
                sys.exit(f"never {state}: {status}")
            time.sleep(0.05)
        return status

    # Clients.

    def clients(self, number, clients, logs, scripts, *options):
        """pgbench at a proxy, logging each statement to files whose names begin so."""
        own(self.work)
        files = []
        for name, text in scripts.items():
            path = os.path.join(self.work, f"{name}.sql")
            with open(path, "w") as file:
                file.write(text)
            files += ["-f", path]
        each = max(1, clients // PROXIES)
        with open(f"{logs}-{number}.err", "ab") as file:
            return subprocess.Popen(
                [tool("pgbench"), "-n", "-M", "prepared", "-c", str(each), "-j", "1", "-T", "100000", "-l",
                 f"--log-prefix={logs}-{number}", "--max-tries=1", *options, *files,
                 f"host=127.0.0.1 port={self.ports[number]} user=bench dbname=bench"],
                stdout=file, stderr=file, cwd=self.work, **drop_rights())


class ThereAndBack(Stage):
    """Both servers serve. Half of the keys of the first go to the second and back, again and again, while clients change one
    row per transaction: of keys that move (script 0), and of keys that stay."""

    KEYS = 100_000
    UPDATE = "UPDATE account SET balance = balance + 1 WHERE id = :id;\n"
    SCRIPTS = {"moves": f"\\set id random({KEYS // 4}, {KEYS // 2 - 1})\n{UPDATE}",
               "stays": f"\\set id random(1, {KEYS // 4 - 1})\n{UPDATE}"}
    GROUPS = ('[databases.bench.groups.g]\nmethod = "range"\nkey_type = "bigint"\n'
              f'ranges = [{{ to = {KEYS // 2}, shard = "s0" }}, {{ shard = "s1" }}]\n'
              'tables = { "public.account" = "id" }\n')

    def __init__(self, args):
        super().__init__(args, self.GROUPS)
        self.back = False
        for number, server in enumerate(self.servers):
            self.sql(server, "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL DEFAULT 0)")
            low, high = ((1, self.KEYS // 2 - 1), (self.KEYS // 2, self.KEYS))[number]
            self.sql(server, f"INSERT INTO account SELECT generate_series({low}, {high})")

    def start(self, *settings):
        self.reshard("start", "--group", "g", "--move", f"range=[{self.KEYS // 4},{self.KEYS // 2}):s1", *settings)

    def cut_over(self, *options):
        self.reshard("rollback" if self.back else "cutover", *options)
        self.back = not self.back

    def finish(self):
        if not self.back:
            self.cut_over()
            self.until("reverse")
        self.reshard("finish")
        self.until("done", None)
        rows = [self.sql(server, "SELECT count(*) FROM account") for server in self.servers]
        if sum(int(one) for one in rows) != self.KEYS:
            sys.exit(f"rows were lost or doubled: {rows}")


def statements(logs):
    """Of all clients that logged to files whose names begin so: when each ended, how long it took (None: it failed), both in
    microseconds, and the number of its script."""
    for log in glob.glob(f"{logs}*"):
        if log.endswith(".err"):
            continue
        for line in open(log):
            fields = line.split()
            if len(fields) < 6:
                continue  # It was being written when the client was stopped.
            _client, _number, took, script, seconds, micros = fields[:6]
            yield int(seconds) * 1_000_000 + int(micros), int(took) if took.isdigit() else None, int(script)


def errors(logs):
    return sum(open(log).read().count("ERROR") for log in glob.glob(f"{logs}*.err"))


def at(figures, percent):
    ordered = sorted(figures)
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * percent / 100) - 1)]
