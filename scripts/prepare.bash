# Installs what is missing: sourced by quickstart and test. Everything that is not a Debian package goes below target/
# (a Python environment, test programs), except Rust itself, which rustup puts where it always does.
#
# Sets: ROOT (the checkout), TOOLS (test programs), VENV (the Python environment); puts both on PATH.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
TOOLS=$ROOT/target/tools
VENV=$ROOT/target/venv
LOGS=$ROOT/target/logs
CARGO_BIN=${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
VIRTIOFSD_VERSION=1.14.0
S3S_FS_VERSION=0.14.1
mkdir -p "$LOGS"

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# Runs a long command with its output in a log, which is shown when the command fails.
quietly() {
    local log=$LOGS/$1.log
    shift
    if ! "$@" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        die "this failed: $* (the whole output: $log)"
    fi
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "root is needed for: $* (there is no sudo)"
    fi
}

# Installs those of the named Debian packages that are missing.
need_packages() {
    local missing=() package
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        die "this is not Debian; install what these packages hold, then call cargo yourself: $*"
    fi
    for package; do
        if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            missing+=("$package")
        fi
    done
    if [ ${#missing[@]} -gt 0 ]; then
        say "installing from Debian: ${missing[*]}"
        quietly apt-update as_root apt-get update
        quietly apt-install as_root env DEBIAN_FRONTEND=noninteractive \
            apt-get install -y --no-install-recommends "${missing[@]}"
    fi
}

# version_at_least HAVE WANT
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

wanted_rust() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml"; }

rust_is_usable() {
    local have
    command -v cargo >/dev/null || return 1
    have=$(rustc --version 2>/dev/null | cut -d' ' -f2) || return 1
    [ -n "$have" ] && version_at_least "${have%%-*}" "$(wanted_rust)"
}

# Makes a cargo that can build this crate available: what is there, else Debian's, else rustup's.
need_rust() {
    local wanted candidate
    wanted=$(wanted_rust)
    [ -d "$CARGO_BIN" ] && PATH=$CARGO_BIN:$PATH
    rust_is_usable && return
    if command -v rustup >/dev/null; then
        say "Rust here is older than $wanted: fetching the stable toolchain with rustup"
        quietly rustup rustup toolchain install stable --profile minimal
        export RUSTUP_TOOLCHAIN=stable
        rust_is_usable && return
    fi
    candidate=$(apt-cache policy rustc 2>/dev/null | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
    if [ -n "$candidate" ] && version_at_least "$candidate" "$wanted"; then
        need_packages cargo rustc
        rust_is_usable && return
    fi
    say "Debian's Rust (${candidate:-none}) is older than $wanted: installing the stable toolchain with rustup"
    need_packages ca-certificates curl
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs -o "$LOGS/rustup-init.sh" ||
        die "Rust $wanted or later is needed, Debian has ${candidate:-none}, and https://sh.rustup.rs cannot be reached"
    quietly rustup sh "$LOGS/rustup-init.sh" -y --no-modify-path --profile minimal --default-toolchain stable
    PATH=$CARGO_BIN:$PATH
    hash -r
    rust_is_usable || die "Rust $wanted or later is needed; rustup installed $(rustc --version 2>&1)"
}

# Formatter and linter, which the minimal profile leaves out.
need_rust_components() {
    if ! cargo fmt --version >/dev/null 2>&1 || ! cargo clippy --version >/dev/null 2>&1; then
        if command -v rustup >/dev/null; then
            quietly rustup-components rustup component add rustfmt clippy
        else
            need_packages rustfmt rust-clippy
        fi
    fi
}

# A Python environment with the S3 server and the S3 client of the tests.
need_python() {
    if ! "$VENV/bin/python" -c 'import boto3, flask, moto' 2>/dev/null; then
        say "installing moto (an S3 server) and boto3 (an S3 client) into ${VENV#"$ROOT/"}"
        rm -rf "$VENV"
        quietly venv python3 -m venv "$VENV"
        quietly pip "$VENV/bin/pip" install --disable-pip-version-check 'moto[server]>=5,<6' boto3
    fi
    PATH=$VENV/bin:$PATH
}

# need_program NAME VERSION CARGO-ARGUMENTS...: a program from crates.io in exactly this version.
need_program() {
    local name=$1 version=$2
    shift 2
    PATH=$TOOLS/bin:$PATH
    if ! "$name" --version 2>/dev/null | grep -qwF "$version"; then
        say "building $name $version (test program)"
        quietly "install-$name" cargo install --locked --root "$TOOLS" "$name" --version "=$version" "$@"
        hash -r
    fi
}
