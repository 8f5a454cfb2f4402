#!/bin/sh
# Makes sure that what a goal needs is on the machine:  tools.sh build|servers|clients...
#
# Installs Debian's packages when it may (root, or sudo without a password), else prints one line with the command
# to run and fails. Never changes what is there already, and never leaves a PostgreSQL server running.
set -eu

missing=

need() { # PACKAGE...: add to what is to be installed
    missing="$missing $*"
}

have() {
    command -v "$1" >/dev/null 2>&1
}

fail() {
    echo "shardway: $*" >&2
    exit 1
}

any_file() { # PATTERN...: whether a file matches one of them
    for file in "$@"; do
        if [ -e "$file" ]; then return 0; fi
    done
    return 1
}

build_tools() {
    have cargo || fail "Rust is missing: install the stable toolchain with rustup (https://rustup.rs), then run this again"
    if ! have gcc && ! have cc; then need gcc; fi
    any_file /usr/include/stdlib.h || need libc6-dev
    have make || need make
    # The parser's bindings are made with libclang, which needs the compiler's own headers too.
    if [ -z "${LIBCLANG_PATH:-}" ]; then
        any_file /usr/lib/llvm-*/lib/libclang*.so* /usr/lib/*-linux-gnu/libclang*.so* || need_clang=yes
        any_file /usr/lib/llvm-*/lib/clang/*/include/stddef.h /usr/lib/clang/*/include/stddef.h || need_clang=yes
    fi
}

server_programs() {
    if [ -n "${SHARDWAY_PG_BIN:-}" ]; then
        [ -x "$SHARDWAY_PG_BIN/initdb" ] || fail "SHARDWAY_PG_BIN is $SHARDWAY_PG_BIN, and there is no initdb in it"
    elif ! have initdb && ! any_file /usr/lib/postgresql/*/bin/initdb; then
        need_server=yes
    fi
    have psql || need postgresql-client
    have setpriv || need util-linux
}

client_programs() {
    if ! have python3; then
        need python3 python3-venv
    elif ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then
        need python3-venv
    fi
    have node || need nodejs
    have npm || need npm
    have javac || need default-jdk-headless
    any_file /usr/share/java/postgresql.jar /usr/share/java/postgresql-*.jar || need libpostgresql-jdbc-java
}

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_install() {
    have apt-get && { [ "$(id -u)" = 0 ] || { have sudo && sudo -n true 2>/dev/null; }; }
}

# Its hundreds of lines are worth reading only when it fails.
apt() {
    said=$(as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@" \
        2>&1 </dev/null) || {
        printf '%s\n' "$said" >&2
        return 1
    }
}

install_packages() {
    apt install "$@" || fail "apt-get could not install $* (its reasons are above)"
}

# Debian's default LLVM, told by the package that everybody depends on.
clang_packages() {
    version=$(apt-cache depends libclang-dev 2>/dev/null | sed -n 's/.*Depends: libclang-\([0-9]*\)-dev.*/\1/p' | head -n 1)
    [ -n "$version" ] || fail "no package list knows libclang-dev: is the mirror reachable? Else install libclang and set LIBCLANG_PATH"
    echo "libclang1-$version libclang-common-$version-dev"
}

install_server() {
    # Without this the package would start a server on port 5432.
    install_packages postgresql-common
    configuration=/etc/postgresql-common/createcluster.conf
    if ! grep -q '^create_main_cluster *= *false' "$configuration" 2>/dev/null; then
        as_root sh -c "sed -i '/^#*create_main_cluster/d' $configuration; echo 'create_main_cluster = false' >>$configuration"
    fi
    install_packages postgresql
}

need_clang= need_server=
[ $# -gt 0 ] || set -- build
for goal in "$@"; do
    case $goal in
        build) build_tools ;;
        servers) server_programs ;;
        clients) client_programs ;;
        *) fail "tools.sh knows build, servers and clients, not $goal" ;;
    esac
done
if [ -z "$missing$need_clang$need_server" ]; then exit 0; fi

if ! may_install; then
    all="$missing${need_clang:+ libclang1 libclang-dev}${need_server:+ postgresql}"
    fail "run this first, as root: apt-get install$all"
fi
echo "shardway: installing$missing${need_clang:+ libclang}${need_server:+ postgresql}" >&2
# Without the option a mirror that cannot be reached is no error. One of several need not stop the rest.
apt -o APT::Update::Error-Mode=any update ||
    echo "shardway: not every package list could be fetched (reasons above): going on with what is known" >&2
if [ -n "$need_clang" ]; then missing="$missing $(clang_packages)"; fi
if [ -n "$need_server" ]; then install_server; fi
# shellcheck disable=SC2086 # a list of packages
if [ -n "$missing" ]; then install_packages $missing; fi
