# What scripts/quickstart shows from inside the guest.
cd "$SHARE" || exit 1
run() {
    echo "\$ $*"
    sh -c "$*" || failed=1
}
run 'uname -sr'
run 'mount | grep virtiofs'
run 'cat from-the-host.txt'
run 'mkdir -p notes && echo "written in the guest" >notes/hello.txt'
run 'seq 1 200000 >notes/numbers.txt && sed -i 1d notes/numbers.txt'
run 'cp -r notes copy && mv copy moved && rm moved/numbers.txt'
echo "@@PUT while-running.txt"
tries=0
until [ -s while-running.txt ] || [ $tries -eq 50 ]; do
    sleep 0.2
    tries=$((tries + 1))
done
run 'cat while-running.txt'
run 'ls -lR .'
find . -type f -exec md5sum {} + | sed 's,^\([0-9a-f]*\)  \./,@@SUM \1 ,'
exit "${failed:-0}"
