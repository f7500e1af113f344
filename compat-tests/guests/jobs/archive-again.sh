# What `archive` left, found by a daemon that has seen none of it.
. "$JOB/lib.sh"
if [ "$POSIX" = 1 ]; then keeps=-a; else keeps=-r; fi
mkdir "$TMPDIR/unpacked"
step "tar x of what the share holds" tar -C "$TMPDIR/unpacked" -xpf archive/share.tar
step "rsync sees no difference" sh -c "rsync $keeps --checksum --dry-run --delete --itemize-changes \
    '$TMPDIR/unpacked/' archive/rsync/ >'$TMPDIR/rsync.out' 2>&1; cat '$TMPDIR/rsync.out'; [ ! -s '$TMPDIR/rsync.out' ]"
finish
