# tar and rsync: what they unpacked must not differ from what they packed, in modes, times and links too where the share
# keeps those (POSIX=1).
. "$JOB/lib.sh"
source=$TMPDIR/archive-source
make_tree() (
    mkdir -p "$source/a/b/c" "$source/empty" "$source/with space" && cd "$source" || exit 1
    n=0
    while [ $n -lt "$ARCHIVE_FILES" ]; do
        numbers $((n * 7 % 3000)) >"a/b/file-$n"
        touch -d "2021-01-$((n % 27 + 1)) 10:$((n % 60)):$((n % 59))" "a/b/file-$n"
        n=$((n + 1))
    done
    : >a/nothing
    numbers 500000 | head -c 3000001 >a/b/c/large
    echo one >"with space/Grüße"
    if [ "$POSIX" = 1 ]; then
        echo '#!/bin/sh' >a/script && chmod 755 a/script
        echo secret >a/secret && chmod 600 a/secret && chown 12:34 a/secret
        echo setgid >a/setgid && chmod 2755 a/setgid
        mkdir -m 2770 a/shared && chmod 700 empty
        ln -s b/file-1 a/link && ln -s ../nowhere a/dangling && ln -s /etc/passwd a/absolute
        mkfifo a/fifo
    fi
    touch -d "2020-02-03 04:05:06.123456789" a/nothing
    find . -depth -type d -exec touch -d "2019-05-06 07:08:09" {} +
)
# What rsync would still copy: nothing. It compares content by checksum, and with -a all that it keeps of a file.
if [ "$POSIX" = 1 ]; then keeps=-a; else keeps=-r; fi
no_difference() {
    rsync $keeps --checksum --dry-run --delete --itemize-changes "$1/" "$2/" >"$TMPDIR/rsync.out" 2>&1 &&
        [ ! -s "$TMPDIR/rsync.out" ] || {
        head -n 20 "$TMPDIR/rsync.out"
        return 1
    }
}
step "a tree" make_tree
mkdir archive
step "tar c" tar -C "$source" -cf "$TMPDIR/archive.tar" .
mkdir archive/tar
step "tar x" tar -C archive/tar -xpf "$TMPDIR/archive.tar"
step "rsync sees no difference after tar" no_difference "$source" archive/tar
[ "$POSIX" = 0 ] || step "tar d" tar -C archive/tar -df "$TMPDIR/archive.tar"
step "rsync -a" rsync -a "$source/" archive/rsync/
step "rsync sees no difference after rsync" no_difference "$source" archive/rsync
step "rsync -a again, over it" rsync -a --checksum --delete "$source/" archive/rsync/
step "cp -a" cp -a "$source" archive/cp
step "rsync sees no difference after cp" no_difference "$source" archive/cp
step "cp -a within the share" cp -a archive/cp archive/cp-cp
step "rsync sees no difference after that" no_difference archive/cp archive/cp-cp
step "an update" sh -c 'echo changed >>"$1/a/b/file-1" && rm "$1/a/b/file-2" && rsync -a --delete "$1/" archive/rsync/' \
    sh "$source"
step "rsync sees no difference after the update" no_difference "$source" archive/rsync
# A store takes a changed file as a new one under the old name, which makes its directory new; on a disk it does not, and
# rsync counts on that. So the directory's times are set once more.
step "rsync --inplace" sh -c 'echo inplace >>"$1/a/b/c/large" && rsync -a --inplace "$1/" archive/rsync/ &&
    { [ "$KIND" = passthrough ] || rsync -a "$1/" archive/rsync/; }' sh "$source"
step "rsync sees no difference after --inplace" no_difference "$source" archive/rsync
step "tar of the share" tar -C archive/rsync -cf archive/share.tar .
mkdir "$TMPDIR/unpacked"
step "tar x in memory" tar -C "$TMPDIR/unpacked" -xpf archive/share.tar
step "no difference" no_difference "$source" "$TMPDIR/unpacked"
step "gzip, gunzip" sh -c 'gzip -k archive/share.tar && gunzip -t archive/share.tar.gz &&
    gunzip -c archive/share.tar.gz | cmp - archive/share.tar'
# How long it is depends on the times in the archive, which no two runs have in common.
step "rm of the compressed archive" rm archive/share.tar.gz
finish
