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

LIMIT = 60  # seconds for one test


class Suite:
    """One suite. Its attributes say how the target must be."""

    name = ""
    roles = ()  # users of the proxy besides postgres
    alternate = "postgres"  # the database in which backends alternate, if any
    pool = ""  # lines for the proxy's section `pool`
    server_env = {}

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


ALL = [Psycopg2(), Asyncpg()]
