"""The suites: what each needs, how it is run against a target, and what each of its tests came to.

`run(target, report)` gives a dictionary from the name of a test to "passed", "failed" or "skipped"; the words of failures
go to the file `report`.
"""

import pathlib
import re
import shutil
import subprocess
import xml.etree.ElementTree as xml

import fetch
import stage

PASSWORD_USERS = (("pass", "password"), ("md5", "md5"), ("scram", "scram"))
SERVER_RULES = (("pass", "password"), ("md5", "md5"), ("scram", "scram-sha-256"))
TOKIO_POSTGRES = """
tokio-postgres = "=VERSION"
postgres-types = "0.2"
bytes = "1"
futures-channel = { version = "0.3", features = ["sink"] }
futures-util = { version = "0.3", features = ["sink"] }
pin-project-lite = "0.2"
tokio = { version = "1", features = ["full"] }

[features]
default = ["runtime"]
runtime = []
"""
SQLX = """
sqlx = { version = "=VERSION", features = ["postgres", "runtime-tokio", "macros", "migrate", "json"] }
sqlx-core = "=VERSION"
sqlx-macros = "=VERSION"
anyhow = "1"
futures = "0.3"
serde = { version = "1", features = ["derive"] }
serde_json = "1"
url = "2"
dotenvy = "0.15"
tokio = { version = "1", features = ["full"] }

[lib]
name = "sqlx_test"

[features]
default = ["json", "_rt-tokio"]
json = []
_rt-tokio = []

""" + "".join(
    f'[[test]]\nname = "{name}"\npath = "tests/postgres/{name}.rs"\n'
    for name in ("postgres", "describe", "error", "query_builder")
)
# What the tests have from a crate that is not published.
SQLX_LIBRARY = """
use sqlx::{Connection, Database, Pool, pool::PoolOptions};

pub fn setup_if_needed() {}

fn url() -> String {
    std::env::var("DATABASE_URL").unwrap()
}

pub async fn new<D: Database>() -> anyhow::Result<D::Connection> {
    Ok(D::Connection::connect(&url()).await?)
}

pub async fn pool<D: Database>() -> anyhow::Result<Pool<D>> {
    Ok(PoolOptions::<D>::new().min_connections(0).max_connections(5).connect(&url()).await?)
}
"""
LIMIT = 60  # seconds for one test


class Suite:
    """One suite. Its attributes say how the target must be."""

    name = ""
    users = ""  # sections of the proxy's configuration besides that of postgres
    hba = ""  # rules of the server before the one that trusts everybody
    port = None  # where the suite looks for its server, if it cannot be told
    alternate = "postgres"  # the database in which backends alternate, if any
    pool = ""  # lines for the proxy's section `pool`

    def prepare(self):
        """Fetches and builds what is missing."""

    def run(self, target, report):
        raise NotImplementedError


def pytest(python, directory, arguments, environment, report):
    """Runs pytest; what each test came to."""
    results = report.with_suffix(".xml")
    results.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={LIMIT}", f"--junitxml={results.resolve()}"]
    with open(report, "w") as log:
        subprocess.run([*command, *arguments], cwd=directory, env=environment, stdout=log, stderr=log)
    return junit(results)


def junit(results):
    found = {}
    for case in xml.parse(results).iter("testcase"):
        name = f"{case.get('classname')}.{case.get('name')}"
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            found[name] = "failed"
        elif "skipped" in kinds:
            found.setdefault(name, "skipped")
        else:
            found.setdefault(name, "passed")
    return found


class Psycopg2(Suite):
    name = "psycopg2"

    def prepare(self):
        version = fetch.PINNED["psycopg2"]
        self.python = fetch.venv("psycopg2", f"psycopg2-binary=={version}", *fetch.pinned("pytest", "pytest-timeout"))
        self.source = fetch.source_of("psycopg2")

    def run(self, target, report):
        target.psql("CREATE EXTENSION hstore")
        environment = target.environment() | {"PSYCOPG2_TESTDB": "postgres"}
        return pytest(self.python, self.source, ["tests", "-o", "python_files=test_*.py"], environment, report)


class Asyncpg(Suite):
    name = "asyncpg"

    def prepare(self):
        self.python = fetch.venv("asyncpg", *fetch.pinned("asyncpg", "pytest", "pytest-timeout", "distro"))
        source = fetch.source_of("asyncpg")
        # Beside its source the tests would import that, which is not compiled.
        self.tests = source.parent / "tests-alone"
        if not self.tests.exists():
            shutil.copytree(source / "tests", self.tests / "tests")

    def run(self, target, report):
        return pytest(self.python, self.tests, ["tests"], target.environment(), report)


class FromPostgres(Suite):
    """What PostgreSQL's own source package has; built against the source, run with the installed server and libpq."""

    built = ()  # (directory, target) of make

    def prepare(self):
        self.source = fetch.postgres_source(stage.version_told())
        for directory, goal in (("src/backend", "generated-headers"), ("src/port", "all"), ("src/common", "all"), *self.built):
            fetch.run("make", "-s", "-C", directory, goal, cwd=self.source)


class LibpqPipeline(FromPostgres):
    """Each test, and beside it the messages that it exchanged, compared with the traces that come with the source."""

    name = "libpq_pipeline"
    built = (("src/interfaces/libpq", "all"), ("src/test/modules/libpq_pipeline", "all"))
    # Later versions of the source name more.
    traced = (
        "simple_pipeline", "nosync", "multi_pipelines", "prepared", "singlerow", "pipeline_abort", "pipeline_idle",
        "transaction", "disallowed_in_pipeline",
    )  # fmt: skip

    def run(self, target, report):
        directory = self.source / "src/test/modules/libpq_pipeline"
        program = directory / "libpq_pipeline"
        tests = subprocess.run([program, "tests"], capture_output=True, text=True, check=True).stdout.split()
        found = {}
        with open(report, "w") as log:
            for test in tests:
                trace = report.with_suffix(f".{test}.trace")
                command = [program, "-r", "700", "-t", trace, test, "host=127.0.0.1"]
                found[test] = outcome(command, target.environment(), log)
                if test in self.traced:
                    expected = (directory / f"traces/{test}.trace").read_text()
                    same = trace.exists() and trace.read_text() == expected
                    found[f"{test} trace"] = "passed" if same else "failed"
        return found


def outcome(command, environment, log):
    print(f"== {command}", file=log, flush=True)
    try:
        done = subprocess.run(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, timeout=LIMIT)
    except subprocess.TimeoutExpired:
        print("== took too long", file=log, flush=True)
        return "failed"
    return "passed" if done.returncode == 0 else "failed"


class PgRegress(FromPostgres):
    """PostgreSQL's own schedule; a test is a file of statements, whose output must be the expected to the byte."""

    name = "pg_regress"
    built = (("src/test/regress", "regress.so"), ("contrib/spi", "refint.so"), ("contrib/spi", "autoinc.so"))
    alternate = "regression"
    pool = "size = 100"

    def run(self, target, report):
        settings = ("lc_messages = 'C'", "lc_monetary = 'C'", "lc_numeric = 'C'", "lc_time = 'C'", "bytea_output = 'hex'")
        target.psql("CREATE DATABASE regression TEMPLATE template0")
        target.psql(*(f"ALTER DATABASE regression SET {setting}" for setting in settings))
        source = self.source / "src/test/regress"
        libraries = self.source / "loaded"
        libraries.mkdir(exist_ok=True)
        for library in (source / "regress.so", *(self.source / "contrib/spi").glob("*.so")):
            shutil.copy(library, libraries)
        # The server writes there too.
        output = report.with_suffix(".out").resolve()
        shutil.rmtree(output, ignore_errors=True)
        for directory in (output, output / "results"):
            directory.mkdir()
            directory.chmod(0o777)
        with open(report, "w") as log:
            subprocess.run(
                [
                    stage.programs().parent / "lib/pgxs/src/test/regress/pg_regress", "--use-existing",
                    f"--dlpath={libraries}", f"--bindir={stage.programs()}", f"--inputdir={source}",
                    f"--outputdir={output}", f"--schedule={source / 'parallel_schedule'}", "--max-concurrent-tests=20",
                    "--dbname=regression", "--host=127.0.0.1", f"--port={target.port}", "--user=postgres",
                ],
                env=target.environment("regression"), stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        told = re.findall(r"^(?:test)? +(\S+) +\.\.\. (ok|failed|FAILED)", report.read_text(), flags=re.MULTILINE)
        return {name: "passed" if word == "ok" else "failed" for name, word in told}


class SqlAlchemy(Suite):
    """The dialect's own tests and the suite that every dialect must pass."""

    name = "sqlalchemy"

    def prepare(self):
        version = fetch.PINNED["psycopg2"]
        self.python = fetch.venv(
            "sqlalchemy", f"psycopg2-binary=={version}", *fetch.pinned("sqlalchemy", "pytest", "pytest-timeout")
        )
        self.source = fetch.source_of("sqlalchemy")

    def run(self, target, report):
        extensions = [f"CREATE EXTENSION {name}" for name in ("hstore", "citext", "pgcrypto")]
        target.psql("CREATE SCHEMA test_schema", "CREATE SCHEMA test_schema_2", *extensions)
        url = f"postgresql+psycopg2://postgres@127.0.0.1:{target.port}/postgres"
        arguments = ["test/dialect/postgresql", "test/dialect/test_suite.py", "--backend-only", f"--dburi={url}", "--maxfail=10000"]
        return pytest(self.python, self.source, arguments, target.environment(), report)


DJANGO_SETTINGS = """
DATABASES = {
    name: {"ENGINE": "django.db.backends.postgresql", "NAME": name, "HOST": "127.0.0.1", "USER": "postgres", "PORT": PORT}
    for name in ("default", "other")
}
SECRET_KEY = "not secret"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
"""


class Django(Suite):
    """The parts of Django's tests that are about databases."""

    name = "django"
    alternate = None  # it makes its databases itself and drops them, which nobody may be in then
    parts = ("backends", "transactions", "queries", "postgres_tests")

    def prepare(self):
        self.python = fetch.venv("django", *fetch.pinned("django", "psycopg", "psycopg-binary", "jinja2"))
        self.source = fetch.source_of("django")

    def run(self, target, report):
        settings = report.parent.resolve() / f"django_{target.way}.py"
        settings.write_text(f"PORT = {target.port}\n{DJANGO_SETTINGS}")
        environment = target.environment() | {"PYTHONPATH": str(settings.parent)}
        options = [f"--settings={settings.stem}", "--parallel=1", "--verbosity=2", "--noinput"]
        with open(report, "w") as log:
            subprocess.run(
                [self.python, "runtests.py", *options, *self.parts],
                cwd=self.source / "tests", env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        words = {"ok": "passed", "skipped": "skipped", "expected failure": "skipped", "FAIL": "failed", "ERROR": "failed"}
        told = re.findall(
            rf"^\w+ \(([\w.]+)\)(?:\n[^\n]*?)? \.\.\. .*?({'|'.join(words)})", report.read_text(), re.MULTILINE
        )
        return {name: words[word] for name, word in told}


class Smoke(Suite):
    """A program of ours that uses a driver as an application does, and says "ok" or "not ok" of each of its checks."""

    sources = pathlib.Path(__file__).resolve().parent / "smoke"

    def checks(self, command, target, report):
        with open(report, "w") as log:
            done = subprocess.run(
                command, env=target.environment(), stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL,
                text=True, timeout=10 * LIMIT,
            )  # fmt: skip
        told = re.findall(r"^(not ok|ok) (.+)$", done.stdout, flags=re.MULTILINE)
        return {name: "passed" if word == "ok" else "failed" for word, name in told}


class Node(Smoke):
    def __init__(self, name, program):
        self.name = name
        self.program = program

    def prepare(self):
        self.modules = fetch.node_modules(self.sources / "package.json")
        for source in self.sources.glob("*.js"):
            shutil.copy(source, self.modules)

    def run(self, target, report):
        return self.checks(["node", self.modules / self.program], target, report)


SHARDED = """
[databases.ids]
control = { user = "postgres" }
shards.s0 = { primary = "postgres://127.0.0.1:SERVER/ids_0?sslmode=disable" }
shards.s1 = { primary = "postgres://127.0.0.1:SERVER/ids_1?sslmode=disable" }
shards.s2 = { primary = "postgres://127.0.0.1:SERVER/ids_2?sslmode=disable" }
[databases.ids.groups.all]
method = "hash"
key_type = "bigint"
tables = { "public.author" = "id", "public.book" = "id" }
"""


class OrmIds(Smoke):
    """An ORM's models over three shards, whose ids are left to defaults."""

    users = SHARDED
    alternate = None

    def __init__(self, orm):
        self.name = f"{orm}-ids"
        self.orm = orm

    def prepare(self):
        # The environment of the ORM's own suite.
        own = next(suite for suite in ALL if suite.name == self.orm)
        own.prepare()
        self.python = own.python

    def run(self, target, report):
        for name in ("ids", "ids_0", "ids_1", "ids_2"):
            target.psql(f"CREATE DATABASE {name}")
        return self.checks([self.python, self.sources / "orm_ids.py", self.orm, str(target.port)], target, report)


class Pgjdbc(Smoke):
    name = "pgjdbc"

    def prepare(self):
        drivers = sorted(pathlib.Path("/usr/share/java").glob("postgresql*.jar"))
        if not drivers:
            raise SystemExit("the Java driver is missing: run tests/setup/tools.sh clients")
        self.driver = drivers[0]

    def run(self, target, report):
        command = ["java", "-Dfile.encoding=UTF-8", "-cp", self.driver, self.sources / "Pgjdbc.java"]
        return self.checks(command, target, report)


class Crate(Suite):
    """The tests of a crate, which are in its package."""

    def cargo(self, environment, report):
        with open(report, "w") as log:
            done = subprocess.run(
                ["cargo", "test", "--quiet", "--no-fail-fast", "--", "--test-threads=4", "--format=pretty"],
                cwd=self.directory, env=environment, stdout=subprocess.PIPE, stderr=log,
                stdin=subprocess.DEVNULL, text=True,
            )  # fmt: skip
            log.write(done.stdout)
        words = {"ok": "passed", "FAILED": "failed", "ignored": "skipped"}
        told = re.findall(r"^test (\S+) .*?\.\.\. (ok|FAILED|ignored)", done.stdout, flags=re.MULTILINE)
        return {name: words[word] for name, word in told}


class TokioPostgres(Crate):

    name = "tokio-postgres"
    port = 5433
    users = "".join(f'[users.{name}_user]\nauth = "{auth}"\npassword = "password"\n' for name, auth in PASSWORD_USERS)
    hba = "".join(f"host all {name}_user 127.0.0.1/32 {rule}\n" for name, rule in SERVER_RULES)

    def prepare(self):
        self.directory = fetch.cargo_tests("tokio-postgres", "tests/test", TOKIO_POSTGRES)

    def run(self, target, report):
        extensions = [f"CREATE EXTENSION {name}" for name in ("hstore", "citext", "ltree")]
        users = [
            f"SET password_encryption = '{kind}'; CREATE ROLE {name}_user PASSWORD 'password' LOGIN"
            for name, kind in (("pass", "scram-sha-256"), ("md5", "md5"), ("scram", "scram-sha-256"))
        ]
        target.psql(*extensions, *users)
        return self.cargo(target.environment(), report)


class Sqlx(Crate):
    """The tests of its macros are left out. A macro in the others asks the server while it is compiled."""

    name = "sqlx"

    def prepare(self):
        self.directory = fetch.cargo_tests("sqlx", "tests/postgres", SQLX, SQLX_LIBRARY)

    def run(self, target, report):
        psql = [stage.programs() / "psql", "-Xqv", "ON_ERROR_STOP=1", "-p", str(target.direct_port)]
        setup = self.directory / "tests/postgres/setup.sql"
        fetch.run(*psql, "-h", "127.0.0.1", "-U", "postgres", "-f", setup, "postgres")
        url = f"postgres://postgres@127.0.0.1:{target.port}/postgres?sslmode=disable"
        return self.cargo(target.environment() | {"DATABASE_URL": url}, report)


ALL = [Psycopg2(), Asyncpg(), LibpqPipeline(), PgRegress(), SqlAlchemy(), Django(),
    OrmIds("sqlalchemy"), OrmIds("django"), Node("node-postgres", "node_postgres.js"), Node("postgres.js", "postgres_js.js"), Pgjdbc(), TokioPostgres(), Sqlx()]
