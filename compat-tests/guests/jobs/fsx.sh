# Random reads, writes, maps, truncations and copies of one file, every byte checked.
. "$JOB/lib.sh"
mkdir fsx
cat >"$TMPDIR/fsx.toml" <<END
flen = 1048576
[opsize]
max = 131072
[weights]
close_open = 1
read = 10
write = 10
mapread = 5
mapwrite = 5
invalidate = 1
truncate = 3
fsync = 0.5
fdatasync = 0.5
posix_fallocate = 1
punch_hole = 1
sendfile = 1
posix_fadvise = 1
copy_file_range = 1
END
seed=1
while [ $seed -le "$FSX_RUNS" ]; do
    step "$FSX_OPERATIONS operations, seed $seed" \
        "$JOB/fsx" -f "$TMPDIR/fsx.toml" -N "$FSX_OPERATIONS" -S "$seed" -P "$TMPDIR" "fsx/file-$seed"
    durable "fsx/file-$seed"
    seed=$((seed + 1))
done
finish
