# A 64 MiB file, written, changed in the middle, appended to, cut and stretched. Every operation is done twice, on the
# share and in the guest's memory, and the two must stay equal. Files named in `durable` are not touched again: the
# host looks at them while the job goes on.
. "$JOB/lib.sh"
mkdir -p rewrite
ours=rewrite/big.bin
twin=$TMPDIR/big.bin

numbers 170000 | head -c 1048560 >"$TMPDIR/block"
make_big() {
    n=0
    while [ $n -lt 64 ]; do
        printf 'block %09d\n' $n
        cat "$TMPDIR/block"
        n=$((n + 1))
    done
}
# both NAME COMMAND: the command, on either file as $FILE; their sizes must agree afterwards.
both() {
    both_name=$1
    shift
    for file in "$twin" "$ours"; do
        FILE=$file sh -c "$*" >"$TMPDIR/both.out" 2>&1 || {
            echo "FAIL $both_name: $file: exit $?"
            sed 's/^/     /' "$TMPDIR/both.out"
            failures=$((failures + 1))
        }
    done
    same "$both_name" "$(stat -c %s "$twin")" "$(stat -c %s "$ours")"
}
export TMPDIR
numbers 20000 | head -c 100000 >"$TMPDIR/patch"
make_big >"$twin"
step "cp of 64 MiB" cp "$twin" rewrite/whole.bin
same "size" 67108864 "$(stat -c %s rewrite/whole.bin)"
durable rewrite/whole.bin
step "cp within the share" cp rewrite/whole.bin "$ours"
both "dd conv=notrunc in the middle" 'dd if=$TMPDIR/patch of=$FILE bs=4096 seek=8191 conv=notrunc'
both "dd conv=notrunc, odd offset" 'dd if=$TMPDIR/patch of=$FILE bs=777 seek=42899 count=1 conv=notrunc'
both "dd conv=notrunc, first byte" 'printf X | dd of=$FILE bs=1 conv=notrunc'
both ">>" 'cat $TMPDIR/patch >>$FILE'
both ">> again" 'echo the last line >>$FILE'
step "cmp" cmp "$twin" "$ours"
step "mv of the result" mv "$ours" rewrite/patched.bin
durable rewrite/patched.bin
step "cp of the result" cp rewrite/patched.bin "$ours"
both "truncate down" 'truncate -s 20000001 $FILE'
both "truncate up" 'truncate -s 30000000 $FILE'
both ">> after truncate" 'echo after the hole >>$FILE'
both "dd past the end" 'dd if=$TMPDIR/patch of=$FILE bs=1000000 seek=35 conv=notrunc'
both "dd conv=fsync" 'dd if=$TMPDIR/patch of=$FILE bs=50000 seek=100 conv=notrunc,fsync'
step "cmp" cmp "$twin" "$ours"
durable "$ours"
ours=rewrite/small.bin
cp "$TMPDIR/patch" "$ours" && cp "$TMPDIR/patch" "$twin"
both "> (to nothing)" ': >$FILE'
both "refill" 'cat $TMPDIR/patch $TMPDIR/patch >$FILE'
step "cmp" cmp "$twin" "$ours"
both "truncate to nothing and >>" 'truncate -s 0 $FILE && echo short >>$FILE'
step "cmp" cmp "$twin" "$ours"
durable "$ours"
rm -f "$twin"
finish
