# Many files at once: made, listed, copied, found by age, removed.
. "$JOB/lib.sh"
mkdir bulk
step "$BULK_FILES files in one directory" sh -c 'cd bulk && mkdir flat && cd flat &&
    awk -v count="$BULK_FILES" "BEGIN { for (n = 0; n < count; n++) { f = \"file-\" n; print \"content of \" n >f; close(f) } }"'
same "all are listed" "$BULK_FILES" "$(ls bulk/flat | wc -l | tr -d ' ')"
same "all are found" "$BULK_FILES" "$(find bulk/flat -type f -size -2 | wc -l | tr -d ' ')"
few=$((BULK_FILES / 10))
mkdir bulk/few
step "one in ten is moved" sh -c 'mv bulk/flat/file-*0 bulk/few/'
same "as many are left" $((BULK_FILES - few)) "$(find bulk/flat -type f | wc -l | tr -d ' ')"
step "cp -a" cp -a bulk/few bulk/copy
step "diff -r" diff -r bulk/few bulk/copy
: >"$TMPDIR/marker"
touch bulk/marker
same "find -newer, none" "" "$(find bulk/few -type f -newer bulk/marker)"
sleep 1.1
echo newer >bulk/few/newer
same "find -newer, one" bulk/few/newer "$(find bulk/few -type f -newer bulk/marker)"
step "sed -i of some" sh -c 'sed -i s/content/changed/ bulk/copy/file-1*0'
same "as many are changed" "$(ls bulk/copy | grep -c '^file-1')" "$(cat bulk/copy/* | grep -c changed)"
step "mv of the directory" mv bulk/copy bulk/moved
same "all of it came along" "$few" "$(ls bulk/moved | wc -l | tr -d ' ')"
step "du, df" sh -c 'du -s bulk && df bulk'
step "rm -r" rm -r bulk/flat
same "gone" "few marker moved" "$(ls bulk | tr '\n' ' ' | sed 's/ $//')"
finish
