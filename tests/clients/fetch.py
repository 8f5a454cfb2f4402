"""Suites and what they need, fetched once into target/clients/suites by the ordinary clients of their registries.

Versions are pinned here. What cannot be fetched is an error, never a reason to test less.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tarfile

CACHE = pathlib.Path("target/clients/suites")

PINNED = {
    "psycopg2": "2.9.13",
    "asyncpg": "0.32.0",
    "sqlalchemy": "2.0.58",
    "django": "5.2.19",
    "psycopg": "3.3.9",
    "psycopg-binary": "3.3.9",
    "jinja2": "3.1.6",
    "tokio-postgres": "0.7.18",
    "sqlx": "0.8.6",
    "distro": "1.9.0",
    "pytest": "8.4.2",
    "pytest-timeout": "2.4.0",
}


def once(name, stamp, make):
    """The directory `name`, made anew by `make(directory)` unless it was made under the same stamp."""
    directory = (CACHE / name).resolve()
    mark = directory / ".stamp"
    if mark.exists() and mark.read_text() == stamp:
        return directory
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    print(f"fetching {name}", file=sys.stderr, flush=True)
    make(directory)
    mark.write_text(stamp)
    return directory


def run(*command, cwd=None):
    """Runs what must succeed; what it printed is worth reading only when it failed."""
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout.decode(errors='replace')[-4000:]}")
    return done.stdout.decode(errors="replace")


def pinned(*names):
    return [f"{name}=={PINNED[name]}" for name in names]


def venv(name, *requirements):
    """A virtual environment with these packages; its Python."""

    def make(directory):
        run(sys.executable, "-m", "venv", directory)
        run(directory / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements)

    return once(f"{name}-venv", "\n".join([sys.version, *requirements]), make) / "bin/python"


def source_of(package):
    """The unpacked source package of a Python distribution, which has the tests that its wheel lacks."""

    def make(directory):
        run(
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--no-binary", package, "--dest", directory / "archive", *pinned(package),
        )  # fmt: skip
        unpack(next((directory / "archive").iterdir()), directory)

    return unpacked(once(f"{package}-source", PINNED[package], make))


def node_modules(package):
    """A directory with what this package.json names."""

    def make(directory):
        shutil.copy(package, directory / "package.json")
        run("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", cwd=directory)

    return once("node", package.read_text(), make)


def cargo_tests(name, tests, dependencies, library=""):
    """A package with the tests that are in the crate's own; all but them is built. What it depends on is named here, and
    `library` is what the tests use that is not published."""

    def make(directory):
        manifest = f'[package]\nname = "suite"\nversion = "0.0.0"\nedition = "2024"\n[workspace]\n[dependencies]\n'
        (directory / "Cargo.toml").write_text(manifest + dependencies.replace("VERSION", PINNED[name]))
        (directory / "src").mkdir()
        (directory / "src/lib.rs").write_text(library)
        printed = run("cargo", "metadata", "--format-version=1", cwd=directory)
        told = json.loads(printed[printed.index("{") :])
        manifest = next(found["manifest_path"] for found in told["packages"] if found["name"] == name)
        shutil.copytree(pathlib.Path(manifest).parent / tests, directory / "tests" / pathlib.Path(tests).name)
        run("cargo", "build", cwd=directory)

    return once(f"{name}-tests", PINNED[name] + dependencies + library, make)


def postgres_source(version):
    """PostgreSQL's source in the version of the installed server, from Debian's source package; configured."""

    def make(directory):
        options = private_apt(directory)
        run("apt-get", "-qq", *options, "update")
        package = f"postgresql-{version.split('.')[0]}"
        known = run("apt-cache", *options, "showsrc", package).splitlines()
        versions = [line.removeprefix("Version: ") for line in known if line.startswith("Version: ")]
        same = [known for known in versions if known.startswith(f"{version}-")]
        if not same:
            raise SystemExit(f"no source package of PostgreSQL {version}, only of {versions}")
        run("apt-get", "-qq", *options, "source", "--download-only", f"{package}={same[0]}", cwd=directory)
        unpack(next(directory.glob("*.orig.tar.*")), directory)
        source = next(directory.glob(f"postgresql-{version}"))
        run("./configure", "--without-readline", "--without-zlib", "--without-icu", cwd=source)

    return next(once("postgres-source", version, make).glob(f"postgresql-{version}"))


def private_apt(directory):
    """Options for lists of its own with the sources of what the machine's lists name, which stay as they are."""
    (directory / "lists").mkdir()
    (directory / "cache").mkdir()
    sources = directory / "sources"
    sources.mkdir()
    for found in pathlib.Path("/etc/apt/sources.list.d").glob("debian*.sources"):
        text = found.read_text()
        (sources / found.name).write_text(text.replace("Types: deb\n", "Types: deb-src\n"))
    lines = pathlib.Path("/etc/apt/sources.list")
    if lines.exists():
        (sources / "lines.list").write_text(lines.read_text().replace("deb ", "deb-src "))
    wanted = {
        "Dir::Etc::SourceList": directory / "none",
        "Dir::Etc::SourceParts": sources,
        "Dir::State::Lists": directory / "lists",
        "Dir::Cache": directory / "cache",
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in wanted.items() for word in ("-o", f"{name}={value}")]


def unpack(archive, directory):
    with tarfile.open(archive) as packed:
        packed.extractall(directory, filter="data")


def unpacked(directory):
    return next(found for found in directory.iterdir() if found.is_dir() and found.name != "archive")
