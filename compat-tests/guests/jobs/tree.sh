# Trees of small files: cp -r, mv, tar, find, md5sum, ls -lR, rm -r, awkward names.
. "$JOB/lib.sh"
step "mkdir -p" mkdir -p tree/src/one/two/three tree/src/empty
i=0
while [ $i -lt 40 ]; do
    case $((i % 4)) in
    0) dir=tree/src ;;
    1) dir=tree/src/one ;;
    2) dir=tree/src/one/two ;;
    3) dir=tree/src/one/two/three ;;
    esac
    numbers $((i * 37)) >"$dir/file-$i.txt"
    i=$((i + 1))
done
: >tree/src/nothing
durable tree/src/one/file-37.txt
same "40 files and an empty one" 41 "$(find tree/src -type f | wc -l | tr -d ' ')"
same "6 directories" 5 "$(find tree/src -type d | wc -l | tr -d ' ')"
step "names: space" sh -c 'numbers() { seq 1 9; }; numbers >"tree/src/with a space.txt"'
step "names: dash" sh -c 'echo dash >tree/src/-rf'
step "names: not ASCII" sh -c 'echo unicode >"tree/src/Grüße-日本.txt"'
step "names: signs" sh -c 'echo signs >"tree/src/50%25 #+&=;?.txt"'
long=$(printf 'n%.0s' $(seq 1 200))
step "names: 200 bytes" sh -c "echo long >tree/src/$long"

step "cp -r" cp -r tree/src tree/copy
step "diff -r after cp -r" diff -r tree/src tree/copy
step "cp -p" cp -p tree/src/file-36.txt tree/cp-p.txt
step "cmp after cp -p" cmp tree/src/file-36.txt tree/cp-p.txt

step "mv a file" mv tree/copy/file-4.txt tree/copy/renamed.txt
step "mv a file, content" cmp tree/src/file-4.txt tree/copy/renamed.txt
same "mv a file, old name" 1 "$([ -e tree/copy/file-4.txt ]; echo $?)"
step "mv over a file" mv tree/copy/file-8.txt tree/copy/file-12.txt
step "mv over a file, content" cmp tree/src/file-8.txt tree/copy/file-12.txt
step "mv to another directory" mv tree/copy/file-16.txt tree/copy/one/two/
step "mv a directory" mv tree/copy tree/moved
step "mv a directory into one" sh -c 'mkdir tree/into && mv tree/moved/one tree/into/'
step "mv a directory, content" diff -r tree/src/one/two/three tree/into/one/two/three
same "mv a directory, old name" 1 "$([ -e tree/copy ]; echo $?)"
step "mv an empty directory" mv tree/moved/empty tree/moved/still-empty
durable tree/into/one/two/file-16.txt

step "tar c" tar cf tree/src.tar -C tree src
step "tar c elsewhere" tar cf "$TMPDIR/src.tar" -C tree src
mkdir tree/untarred
step "tar x" tar xf tree/src.tar -C tree/untarred
step "diff -r after tar x" diff -r tree/src tree/untarred/src
step "tar x from elsewhere" sh -c 'mkdir tree/again && tar xf "$TMPDIR/src.tar" -C tree/again'
step "diff -r after tar x from elsewhere" diff -r tree/src tree/again/src
same "tar t" "$(find tree/src | wc -l | tr -d ' ')" "$(tar tf tree/src.tar | wc -l | tr -d ' ')"

step "md5sum" sh -c 'cd tree/src && find . -type f -exec md5sum {} + | sort >"$TMPDIR/sums"'
step "md5sum -c" sh -c 'cd tree/again/src && md5sum -c "$TMPDIR/sums"'
ls -lR tree/src >"$TMPDIR/ls" 2>&1
same "ls -lR" 0 $?
same "ls -lR, files" 46 "$(grep -c '^-' "$TMPDIR/ls")"
same "find -name" 11 "$(find tree/src -name 'file-3*' | wc -l | tr -d ' ')"
same "find -size" 2 "$(find tree/src -type f -size 0 | wc -l | tr -d ' ')"
step "rm -r" rm -r tree/again
same "rm -r, gone" 1 "$([ -e tree/again ]; echo $?)"
refused "rmdir of a full directory" "not empty" rmdir tree/src
step "rmdir" rmdir tree/moved/still-empty
refused "cat of what is not there" "No such file" cat tree/nowhere
finish
