# What others put into the store becomes visible in the guest.
. "$JOB/lib.sh"
# appears NAME: waits, at most ten seconds, for a file that the host was asked to put.
appears() {
    tries=0
    while [ $tries -lt 50 ]; do
        [ "$(cat "$1" 2>/dev/null)" = "from outside: $1" ] && return 0
        sleep 0.2
        tries=$((tries + 1))
    done
    ls -la "$(dirname "$1")"
    return 1
}
same "put before the mount" "from outside: before.txt" "$(cat before.txt)"
echo "@@PUT late.txt"
step "put while mounted" appears late.txt
mkdir outside
echo ours >outside/mine.txt
ls outside >/dev/null
echo "@@PUT outside/theirs.txt"
step "put into a directory of ours" appears outside/theirs.txt
same "both are listed" "mine.txt theirs.txt" "$(ls outside | tr '\n' ' ' | sed 's/ $//')"
echo ours >outside/changed.txt
cat outside/changed.txt >/dev/null
echo "@@PUT outside/changed.txt"
step "changed by others" appears outside/changed.txt
finish
