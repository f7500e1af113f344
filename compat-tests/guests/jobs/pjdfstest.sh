# The POSIX file system test suite. Which of its cases fail is compared with a list that the host has.
. "$JOB/lib.sh"
mkdir -m 755 pjdfstest
mkdir "$TMPDIR/second"
cat >"$TMPDIR/pjdfstest.toml" <<END
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = $NAPTIME
allow_remount = false

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"], ["bin", "bin"]]
END
if [ -n "$FILE_BYTES_MAX" ]; then
    # A write beyond is refused with EFBIG, and not with a signal.
    trap '' XFSZ
    ulimit -f $((FILE_BYTES_MAX / 512))
fi
NO_COLOR=1 "$JOB/pjdfstest" -c "$TMPDIR/pjdfstest.toml" -p "$SHARE/pjdfstest" -s "$TMPDIR/second" \
    $PJDFSTEST_CASES >"$TMPDIR/pjdfstest.out" 2>&1
awk '
    !/^\t/ && NF == 2 && ($2 == "ok" || $2 == "FAILED" || $2 == "skipped") {
        case_name = $1
        verdict = $2
        print "@@RESULT pjdfstest " verdict " " case_name
        next
    }
    verdict == "FAILED" { print "@@DETAIL pjdfstest " case_name "\t" $0 }
' "$TMPDIR/pjdfstest.out"
step "pjdfstest came to its end" grep -q '^Summary: ' "$TMPDIR/pjdfstest.out"
[ "$failures" = 0 ] || tail -n 20 "$TMPDIR/pjdfstest.out" | sed 's/^/     /'
step "what it left can be removed" rm -r pjdfstest
finish
