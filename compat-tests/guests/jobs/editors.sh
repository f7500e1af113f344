# How editors save: write, rename, keep a backup. The content must be right at every turn, also from outside.
. "$JOB/lib.sh"
mkdir editors
cd editors || exit 1
vim_save() {
    vi -es -u NONE -N --cmd 'set nomore directory=. swapfile viminfo=' -c "set $2" -c '%s/one/two/' -c '$put =\"added\"' \
        -c wq "$1" </dev/null
}
for how in "nobackup nowritebackup" "nobackup writebackup backupcopy=no" "nobackup writebackup backupcopy=yes" \
    "nobackup writebackup backupcopy=auto" "backup backupcopy=no backupext=~ backupdir=." \
    "backup backupcopy=yes backupext=~ backupdir=." "nofsync" "fsync"; do
    name=$(echo "vim $how" | tr ' =~' '---')
    printf 'one\nkept\n' >"$name"
    step "vim: $how" vim_save "$name" "$how"
    same "content" "two kept added" "$(tr '\n' ' ' <"$name" | sed 's/ $//')"
    case $how in
    backup\ *) same "backup" "one kept" "$(tr '\n' ' ' <"$name~" | sed 's/ $//')" ;;
    esac
    durable_here() { echo "@@CHECK $(md5_of "$1") editors/$1"; }
    durable_here "$name"
done
same "no swap files are left" "" "$(ls -A | grep '\.sw')"

# emacs: the file is renamed to file~ and written anew.
echo first >emacs
step "rename to a backup, write anew" sh -c 'mv emacs emacs~ && echo second >emacs && sync emacs'
same "content" "first second" "$(cat emacs~ emacs | tr '\n' ' ' | sed 's/ $//')"
# Most others: a temporary file beside, fsync, rename over.
n=0
while [ $n -lt 20 ]; do
    { echo "save $n" && numbers 3000; } >.tmp-save && sync .tmp-save && mv .tmp-save saved
    n=$((n + 1))
done
same "twenty saves by rename" "save 19" "$(head -n 1 saved)"
durable_here saved
# An exchange while a reader has the old one.
exec 3<saved
step "rename over an open file" sh -c 'echo new >.tmp-save && mv .tmp-save saved'
same "the reader's file" "save 19" "$(head -n 1 <&3)"
exec 3<&-
same "the new file" new "$(cat saved)"
printf 'aaa\nbbb\n' >stream
step "sed -i" sed -i s/aaa/ccc/ stream
same "sed -i, content" "ccc bbb" "$(tr '\n' ' ' <stream | sed 's/ $//')"
step "sed -i.orig" sed -i.orig s/ccc/ddd/ stream
same "sed -i.orig, content" "ddd bbb ccc bbb" "$(cat stream stream.orig | tr '\n' ' ' | sed 's/ $//')"
step "perl -i" perl -i -pe s/ddd/eee/ stream
same "perl -i, content" "eee bbb" "$(tr '\n' ' ' <stream | sed 's/ $//')"
step "patch" sh -c 'printf "%s\n" "--- stream" "+++ stream" "@@ -1,2 +1,2 @@" "-eee" "+fff" " bbb" | patch -s stream'
same "patch, content" "fff bbb" "$(tr '\n' ' ' <stream | sed 's/ $//')"
finish
