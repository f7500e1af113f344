# Many small files in one directory.
. "$JOB/lib.sh"
mkdir many
i=0
while [ $i -lt "$MANY" ]; do
    echo "small file number $i" >many/s$i
    i=$((i + 1))
done
same "ls" "$MANY" "$(ls many | wc -l | tr -d ' ')"
same "ls -lR" "$MANY" "$(ls -lR many | grep -c '^-')"
step "cat of all" sh -c 'cat many/* >"$TMPDIR/many.txt"'
same "content" "$(seq 0 $((MANY - 1)) | sed 's/^/small file number /' | sort | md5sum)" "$(sort "$TMPDIR/many.txt" | md5sum)"
step "rm of half" sh -c 'rm many/*[02468]'
same "half are left" $((MANY / 2)) "$(find many -type f | wc -l | tr -d ' ')"
durable many/s1
finish
