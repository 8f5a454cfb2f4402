#!/bin/sh
# Proxies of two versions before the same servers, in the middle of a reshard too:  mixed.sh COMMIT [TEST...]
#
# COMMIT is of this repository, and stands for the version before. Its program is built, with the points at which tests
# kill, in a worktree of its own; both are kept in target/before. Then the tests run twice: with the older program as the
# second proxy, and as the first, which leads at first, and the commands of the reshard are its program's.
# A TEST is a part of a name of those in tests/reshard.
set -u
cd "$(dirname "$0")/../.."

fail() {
    echo "shardway: $*" >&2
    exit 1
}

[ -n "${1:-}" ] || fail "which version before? make mixed BEFORE=COMMIT"
commit=$(git rev-parse --verify --quiet "$1^{commit}") || fail "this repository has no commit $1"
shift
[ $# -gt 0 ] || set -- rows_move_there_and_back_and_there_again a_run_goes_on_in_the_other_process

short=$(git rev-parse --short=12 "$commit")
kept=$PWD/target/before/$short
before=$kept/target/debug/shardway
if [ ! -e "$kept/source/Cargo.toml" ]; then
    # What a cleared target has left of it in git.
    git worktree prune
    git worktree add --quiet --detach "$kept/source" "$commit" || fail "no worktree of $short"
fi
echo "shardway: building $short: minutes the first time, seconds later" >&2
(cd "$kept/source" && cargo build --locked --quiet --features failpoints --target-dir "$kept/target" --bin shardway) ||
    fail "$short does not build"
cargo test --locked --quiet --features failpoints --test reshard --no-run || fail "the tests do not compile"

failed=0 report=
try() { # WHAT PROGRAMS TEST...
    what=$1 programs=$2
    shift 2
    log=$kept/$(echo "$what" | tr -c 'a-z0-9\n' -).log
    echo "== $what: $log"
    begun=$(date +%s)
    # That nothing ran is no success.
    if SHARDWAY_PROGRAMS=$programs cargo test --locked --features failpoints --test reshard -- --nocapture "$@" \
        >"$log" 2>&1 </dev/null && grep -q '^test result: ok. [1-9]' "$log"; then
        word=ok
    else
        word=FAILED failed=1
        tail -n 40 "$log" | cut -c 1-300
    fi
    report="$report$(printf '%-45s %-6s %4ss' "$what" "$word" $(($(date +%s) - begun)))
"
}

try "second proxy of $short" ":$before" "$@"
try "first proxy and commands of $short" "$before:" "$@"
echo
printf '%s' "$report"
[ "$failed" = 0 ]
