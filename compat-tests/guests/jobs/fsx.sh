# Random reads, writes, maps, truncations and copies of one file, every byte checked. Once with a close or a sync every
# few operations, each of which stores the file, and once, for longer, with few of them: then all that has changed is in
# the cache.
. "$JOB/lib.sh"
mkdir fsx
# fsx_run NAME OPERATIONS SEED NO_MSYNC SYNC_WEIGHT
fsx_run() {
    cat >"$TMPDIR/fsx.toml" <<END
flen = 1048576
nomsyncafterwrite = $4
[opsize]
max = 131072
[weights]
close_open = $5
read = 10
write = 10
mapread = 5
mapwrite = 5
invalidate = 1
truncate = 3
fsync = $5
fdatasync = $5
posix_fallocate = 1
punch_hole = 1
sendfile = 1
posix_fadvise = 1
copy_file_range = $5
END
    step "$2 operations, seed $3, $1" "$JOB/fsx" -f "$TMPDIR/fsx.toml" -N "$2" -S "$3" -P "$TMPDIR" "fsx/file-$1"
    durable "fsx/file-$1"
}
fsx_run stored-often "$FSX_STORED_OFTEN" 1 false 1
fsx_run stored-seldom "$FSX_STORED_SELDOM" 2 true 0.1
finish
