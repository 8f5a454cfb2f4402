#!/usr/bin/env python3
"""Third-party suites against PostgreSQL and against Shardway before it:  run.py [--show] [SUITE...]

Every suite is run twice: directly, which gives its baseline, and through the proxy in transaction mode. A test that passes
directly and fails through the proxy fails this program, unless docs/guarantees.md names it with the reason. Outcomes and
logs are left below target/clients/suites/results.
"""

import argparse
import fnmatch
import os
import pathlib
import re
import sys
import time

import stage
import suites

ROOT = pathlib.Path(__file__).resolve().parents[2]
RESULTS = pathlib.Path("target/clients/suites/results")
GUARANTEES = pathlib.Path("docs/guarantees.md")
HEADING = "## Third-party suites"


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("suites", nargs="*", metavar="SUITE", help="all, or some of: " + " ".join(known()))
    options.add_argument("--baseline", choices=("make", "keep"), default="make", help="keep: compare with the last one")
    asked = options.parse_args()
    os.chdir(ROOT)
    unknown = set(asked.suites) - set(known())
    if unknown:
        options.error(f"no such suite: {' '.join(sorted(unknown))}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    listed = differences()
    rows = [compare(suite, asked.baseline, listed) for suite in suites.ALL if suite.name in (asked.suites or known())]
    sys.exit(0 if report(rows) else 1)


def known():
    return [suite.name for suite in suites.ALL]


def differences():
    """From a suite to the patterns of tests that may differ: the first two columns of the table in docs/guarantees.md."""
    text = GUARANTEES.read_text() if GUARANTEES.exists() else ""
    section = re.split(r"^## ", text.partition(HEADING)[2], flags=re.MULTILINE)[0]
    found = {}
    for row in re.findall(r"^\| *([\w.-]+) *\|([^|]*)\|", section, flags=re.MULTILINE):
        found.setdefault(row[0], []).extend(re.findall(r"`([^`]+)`", row[1]))
    return found


def compare(suite, baseline, listed):
    print(f"== {suite.name}", flush=True)
    suite.prepare()
    kept = RESULTS / f"{suite.name}.direct.txt"
    direct = read(kept) if baseline == "keep" and kept.exists() else outcomes(suite, "direct")
    through = outcomes(suite, "through")
    passed = {name for name, outcome in direct.items() if outcome == "passed"}
    worse = sorted(name for name in passed if through.get(name) != "passed")
    patterns = listed.get(suite.name, [])
    told = [name for name in worse if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    new = [name for name in worse if name not in told]
    for name in new:
        print(f"   only through: {name} ({through.get(name, 'not run')})", flush=True)
    both = sum(through.get(name) == "passed" for name in passed)
    return suite.name, len(passed), both, told, new


def outcomes(suite, way):
    """Runs the suite one way and keeps what every test came to."""
    begun = time.monotonic()
    with stage.target(way, suite) as target:
        found = suite.run(target, RESULTS / f"{suite.name}.{way}.log")
    lines = [f"{outcome} {name}\n" for name, outcome in sorted(found.items())]
    (RESULTS / f"{suite.name}.{way}.txt").write_text("".join(lines))
    counts = ", ".join(f"{sum(o == kind for o in found.values())} {kind}" for kind in ("passed", "failed", "skipped"))
    print(f"   {way}: {counts} in {time.monotonic() - begun:.0f} s", flush=True)
    return found


def read(path):
    pairs = (line.rstrip("\n").split(" ", 1) for line in path.open())
    return {name: outcome for outcome, name in pairs}


def report(rows):
    """Prints the table; whether nothing failed only through the proxy but what is listed."""
    print(f"\n{'suite':<16}{'passed direct':>14}{'of them through':>17}{'listed':>8}{'only through':>14}")
    for name, direct, both, told, new in rows:
        print(f"{name:<16}{direct:>14}{both:>17}{len(told):>8}{len(new):>14}")
    bad = sum(len(row[4]) for row in rows) + sum(row[1] == 0 for row in rows)
    good = sum(row[2] for row in rows)
    print(f"\ntest result: {'ok' if bad == 0 else 'FAILED'}. {good} passed; {bad} failed; by third-party suites")
    return bad == 0


if __name__ == "__main__":
    main()
