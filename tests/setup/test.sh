#!/bin/sh
# Everything that must hold, part by part, each with its time:  test.sh [PART...]
#
# A part that fails does not stop the others; the last line says how many tests passed and failed (a failed part
# without tests, as a lint, counts as one) and the exit code whether all is well.
set -u
cd "$(dirname "$0")/../.."

log=$(mktemp)
trap 'rm -f "$log"' EXIT
passed=0 failed=0 report=

part() { # NAME COMMAND...
    name=$1
    shift
    echo "== $name: $*"
    begun=$(date +%s)
    { "$@" 2>&1 </dev/null && echo "part-status 0" || echo "part-status 1"; } | tee "$log" | grep -v '^part-status'
    took=$(($(date +%s) - begun))
    good=$(sed -n 's/^test result: .* \([0-9]*\) passed; .*/\1/p' "$log" | awk '{ sum += $1 } END { print sum + 0 }')
    bad=$(sed -n 's/^test result: .* \([0-9]*\) failed; .*/\1/p' "$log" | awk '{ sum += $1 } END { print sum + 0 }')
    if grep -q '^part-status 0' "$log"; then word=ok; else word=FAILED; fi
    if [ "$word" = FAILED ] && [ "$bad" = 0 ]; then bad=1; fi
    if [ "$word" = ok ] && [ "$good" = 0 ]; then good=1; fi
    passed=$((passed + good)) failed=$((failed + bad))
    report="$report$(printf '%-12s %-6s %4ss  %s passed, %s failed' "$name" "$word" "$took" "$good" "$bad")
"
}

run() {
    case $1 in
        format) part format cargo fmt --check ;;
        lint)
            part lint cargo clippy --all-targets --locked -- -D warnings
            # What only kills at points of a commit need.
            part failpoints cargo clippy --all-targets --locked --features failpoints -- -D warnings
            ;;
        unit) part unit cargo test --locked --lib --bins ;;
        docs) part docs env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items ;;
        # A workspace of its own: PostgreSQL's own scanner, which may not be linked beside the parser.
        scanner) part scanner cargo test --locked --manifest-path tests/scanner_oracle/Cargo.toml ;;
        # What is quick of make clients.
        clients) part clients tests/clients/run.py node-postgres postgres.js pgjdbc ;;
        # A workspace of its own too: what the fuzz targets claim, for their seeds, without a fuzzer.
        seeds) part seeds cargo test --locked --manifest-path tests/fuzz/Cargo.toml --no-default-features --test seeds ;;
        # Kills at points of a commit: built with the feature that has them.
        transactions) part transactions cargo test --locked --features failpoints --test transactions ;;
        # A reshard while clients write, with points at which its leader dies.
        reshard) part reshard cargo test --locked --features failpoints --test reshard ;;
        *) part "$1" cargo test --locked --test "$1" ;;
    esac
}

tests/setup/tools.sh build servers clients && tests/setup/clients.sh || exit 1
if [ $# = 0 ]; then
    # Compiling is the longest part: shown by itself, so that the times of the tests are theirs.
    set -- format
    build=yes
    set -- "$@" lint unit
    # Each integration test that the package has, as cargo finds them; the slowest last.
    for found in tests/*.rs tests/*/main.rs; do
        if [ ! -e "$found" ]; then continue; fi
        name=$(basename "${found%/main.rs}" .rs)
        if [ "$name" != cluster ]; then set -- "$@" "$name"; fi
    done
    set -- "$@" docs scanner seeds
    if [ -e tests/cluster/main.rs ]; then set -- "$@" cluster; fi
    set -- "$@" clients
else
    build=no
fi
if [ "$build" = yes ]; then part build cargo test --locked --no-run; fi
for name in "$@"; do run "$name"; done

echo
printf '%s' "$report"
echo
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
