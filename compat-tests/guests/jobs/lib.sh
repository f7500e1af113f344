# What the jobs share. A job sources this, runs its steps in a directory of its own, and ends with `finish`.
# Steps print only what is the same on every correct file system, so that two runs can be compared line by line.
failures=0

# step NAME COMMAND...: the command must succeed.
step() {
    step_name=$1
    shift
    if "$@" >"$TMPDIR/step.out" 2>&1; then
        echo "ok   $step_name"
    else
        echo "FAIL $step_name: exit $?"
        sed 's/^/     /' "$TMPDIR/step.out"
        failures=$((failures + 1))
    fi
}

# refused NAME TEXT COMMAND...: the command must fail, and say TEXT.
refused() {
    step_name=$1
    text=$2
    shift 2
    if "$@" >"$TMPDIR/step.out" 2>&1; then
        echo "FAIL $step_name: accepted"
        failures=$((failures + 1))
    elif grep -q "$text" "$TMPDIR/step.out"; then
        echo "ok   $step_name"
    else
        echo "FAIL $step_name: refused, but not with: $text"
        sed 's/^/     /' "$TMPDIR/step.out"
        failures=$((failures + 1))
    fi
}

# same NAME EXPECTED FOUND
same() {
    if [ "$2" = "$3" ]; then
        echo "ok   $1"
    else
        echo "FAIL $1: expected '$2', found '$3'"
        failures=$((failures + 1))
    fi
}

# numbers COUNT: a text of that many lines, the same on every machine.
numbers() { seq 1 "$1"; }

md5_of() { md5sum <"$1" | cut -d' ' -f1; }

# durable PATH: what has been closed must be in the store; the host looks.
durable() { echo "@@CHECK $(md5_of "$1") $1"; }

finish() { exit $((failures > 0)); }
