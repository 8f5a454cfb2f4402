#!/bin/sh
# Installs the client libraries that the cluster tests drive under target/clients, at pinned versions.
#
# Done once: a stamp with the versions says that everything is there. A registry that cannot be reached is an error,
# never a reason to test less.
set -eu
cd "$(dirname "$0")/../.."
setup=tests/setup
clients=target/clients
stamp=$clients/stamp

fail() {
    echo "shardway: $*" >&2
    exit 1
}

driver=
for jar in /usr/share/java/postgresql.jar /usr/share/java/postgresql-*.jar; do
    if [ -e "$jar" ]; then driver=$jar && break; fi
done
[ -n "$driver" ] || fail "the Java driver is missing: run tests/setup/tools.sh clients"

wanted=$(cat "$setup/requirements.txt" "$setup/node/package.json" "$setup/node/package-lock.json" && readlink -f "$driver" && python3 --version && pwd)
if [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi

rm -rf "$clients"
mkdir -p "$clients/node" "$clients/java"
echo "shardway: installing test clients under $clients" >&2
python3 -m venv "$clients/python" || fail "python3 cannot make a virtual environment (Debian's package python3-venv)"
"$clients/python/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --requirement "$setup/requirements.txt" || fail "the Python clients could not be installed: is the package index reachable?"
cp "$setup/node/package.json" "$setup/node/package-lock.json" "$clients/node/"
npm ci --prefix "$clients/node" --no-audit --no-fund --ignore-scripts --loglevel=error >&2 ||
    fail "the Node.js client could not be installed: is the npm registry reachable?"
cp "$driver" "$clients/java/postgresql.jar"
printf '%s' "$wanted" >"$stamp"
