"""Throw-away PostgreSQL servers and processes for benches, and what a process has used."""
import glob, os, pwd, re, shutil, signal, socket, subprocess, sys, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TICK = os.sysconf("SC_CLK_TCK")


# Processes.

def drop_rights():
    """PostgreSQL and PgBouncer refuse to run as root."""
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    return {}


def own(path):
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        os.chown(path, user.pw_uid, user.pw_gid)


def launch(command, log, **options):
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, **options)


def stop(process):
    process.send_signal(signal.SIGINT)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tree(process):
    """The process and its children: HAProxy's worker is a child."""
    if process is None:
        return []
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [process.pid] + [int(pid) for pid in children.stdout.split()]


def cpu(process):
    def one(pid):
        fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK
    return sum(one(pid) for pid in tree(process))


def sleeps(process):
    """How often its threads went to sleep by themselves: each costs two switches of the processor, which count as its own."""
    def one(status):
        return int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", open(status).read(), re.M).group(1))
    return sum(one(status) for pid in tree(process) for status in glob.glob(f"/proc/{pid}/task/*/status"))


def rss(process):
    def one(pid):
        found = re.search(r"VmRSS:\s+(\d+)", open(f"/proc/{pid}/status").read())
        return int(found.group(1)) if found else 0
    return sum(one(pid) for pid in tree(process)) if process else None


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(port, process, work):
    """Until a query is answered."""
    deadline = time.monotonic() + 20
    query = [tool("psql"), "-XAtqc", "SELECT 1", f"host=127.0.0.1 port={port} user=bench dbname=bench connect_timeout=2"]
    while subprocess.run(query, capture_output=True).returncode != 0:
        if time.monotonic() > deadline or (process and process.poll() is not None):
            for log in glob.glob(os.path.join(work, "*.log")):
                print(f"--- {log}\n{open(log).read()[-1500:]}", file=sys.stderr)
            sys.exit(f"no answer on port {port}")
        time.sleep(0.05)


def tool(name):
    places = glob.glob(f"/usr/lib/postgresql/*/bin/{name}")
    places.sort(key=lambda path: int(re.search(r"postgresql/(\d+)/", path).group(1)))
    found = os.path.join(os.environ["SHARDWAY_PG_BIN"], name) if "SHARDWAY_PG_BIN" in os.environ else None
    found = found or (places[-1] if places else shutil.which(name))
    if not found:
        sys.exit(f"{name} is missing: install PostgreSQL's server package")
    return found


# PostgreSQL.

class Server:
    def __init__(self, work, name, started, *settings):
        self.data, self.port = os.path.join(work, name), free_port()
        os.mkdir(self.data, 0o700)
        own(self.data)
        log = os.path.join(work, f"{name}.log")
        subprocess.run([tool("initdb"), "-D", self.data, "-A", "trust", "-U", "bench", "--no-sync"],
                       check=True, stdout=subprocess.DEVNULL, **drop_rights())
        started.append(launch([tool("postgres"), "-D", self.data, "-p", str(self.port), "-c", "listen_addresses=127.0.0.1",
                               "-c", f"unix_socket_directories={self.data}", "-c", "fsync=off", "-c", "shared_buffers=256MB",
                               "-c", "max_connections=300", "-c", "autovacuum=off",
                               *[part for setting in settings for part in ("-c", setting)]], log, **drop_rights()))
        deadline = time.monotonic() + 30
        while subprocess.run([tool("psql"), "-XAtqc", "CREATE DATABASE bench", self.url("postgres")],
                             capture_output=True).returncode != 0:
            if time.monotonic() > deadline:
                sys.exit(open(log).read())
            time.sleep(0.1)

    def url(self, database="bench"):
        return f"host=127.0.0.1 port={self.port} user=bench dbname={database}"

    def load(self, scale):
        # Every shard keeps all rows: what is measured is routing by key, and any shard's answer has the same size.
        subprocess.run([tool("pgbench"), "-i", "-q", "-s", str(scale), self.url()], check=True, capture_output=True)
        subprocess.run([tool("psql"), "-Xqc", "VACUUM ANALYZE pgbench_accounts", self.url()], check=True)


# Shardway.

def build_shardway():
    subprocess.run(["cargo", "build", "--release", "--locked"], cwd=ROOT, check=True)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target"))
    return os.path.join(target, "release", "shardway")
