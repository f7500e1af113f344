# Links, modes and open files. With KIND=passthrough everything works. With KIND=backend the store has no hard links,
# and without POSIX=1 neither symlinks nor modes; it says so with the errno that tar and cp cope with.
. "$JOB/lib.sh"
mkdir posix
cd posix || exit 1
echo content >file

exec 3<file
rm file
same "unlinked and still open" content "$(cat <&3)"
exec 3<&-
echo first >old
echo second >new
exec 3<old
mv new old
same "replaced and still open" first "$(cat <&3)"
exec 3<&-
same "replaced" second "$(cat old)"
exec 3>written
echo before >&3
mv written moved
echo after >&3
exec 3>&-
same "renamed while open for writing" "before after" "$(cat moved | tr '\n' ' ' | sed 's/ $//')"
step "mkdir, rmdir" sh -c 'mkdir d && rmdir d'
refused "mkdir of what is there" "File exists" mkdir ../posix
step "cp -p keeps going" cp -p old kept
step "touch" touch old touched
step "touch made an empty file" [ -f touched -a ! -s touched ]
step "ls -la" ls -la .
step "df" df .
step "flock" sh -c 'which flock >/dev/null || exit 0; flock old true'

if [ "$KIND" = passthrough ]; then
    step "ln" ln old hardlink
    same "link count" 2 "$(stat -c %h old)"
    linked=hardlink
else
    refused "ln" "not permitted" ln old hardlink
    linked=
fi
if [ "$POSIX" = 1 ]; then
    step "ln -s" ln -s old symlink
    same "readlink" old "$(readlink symlink)"
    same "cat through a symlink" second "$(cat symlink)"
    step "chmod" chmod 640 old
    same "mode" 640 "$(stat -c %a old)"
    step "chmod of a directory" sh -c 'mkdir -m 700 private && chmod 2750 private'
    same "mode of a directory" 2750 "$(stat -c %a private)"
    step "chown" chown 12:34 old
    same "owner" 12:34 "$(stat -c %u:%g old)"
    step "mkfifo" mkfifo fifo
    step "touch -d" touch -d "2020-02-03 04:05:06" dated
    same "date" 1580702706 "$(TZ=UTC stat -c %Y dated)"
    step "cp -a" cp -a . "$TMPDIR/posix-copy"
    step "tar c, tar x with links" sh -c 'tar cf "$TMPDIR/links.tar" symlink '"$linked"' old private &&
        mkdir links && tar xpf "$TMPDIR/links.tar" -C links'
    same "symlink from tar" old "$(readlink links/symlink)"
    same "mode from tar" 2750 "$(stat -c %a links/private)"
else
    refused "ln -s" "not permitted" ln -s old symlink
    refused "mkfifo" "not permitted" mkfifo fifo
    same "mode of a file" 644 "$(stat -c %a old)"
    same "mode of a directory" 755 "$(stat -c %a .)"
    same "owner" 0:0 "$(stat -c %u:%g old)"
    step "tar x with modes and owners" sh -c 'mkdir "$TMPDIR/in" && cp old "$TMPDIR/in/f" && chmod 600 "$TMPDIR/in/f" &&
        tar cf "$TMPDIR/modes.tar" -C "$TMPDIR" in && mkdir out && tar xf "$TMPDIR/modes.tar" -C out && cmp old out/in/f'
fi
finish
