# A C program of several files, made with make: the second make must find nothing to do, and a change just its part.
. "$JOB/lib.sh"
mkdir -p compile/src compile/include
cd compile || exit 1
n=0
while [ $n -lt "$COMPILE_FILES" ]; do
    printf '#include "part%d.h"\n#include "common.h"\nint part%d(int n) { return n * %d + COMMON; }\n' $n $n $n >src/part$n.c
    printf 'int part%d(int n);\n' $n >include/part$n.h
    n=$((n + 1))
done
printf '#define COMMON 1\n' >include/common.h
{
    echo '#include <stdio.h>'
    n=0
    while [ $n -lt "$COMPILE_FILES" ]; do
        echo "#include \"part$n.h\""
        n=$((n + 1))
    done
    echo 'int main(void) { int sum = 0;'
    n=0
    while [ $n -lt "$COMPILE_FILES" ]; do
        echo "sum += part$n($n);"
        n=$((n + 1))
    done
    printf '%s\n' 'printf("%d\n", sum); return 0; }'
} >src/main.c
cat >Makefile <<'END'
sources := $(wildcard src/*.c)
objects := $(sources:src/%.c=out/%.o)
program: libparts.a out/main.o
	$(CC) -o $@ out/main.o libparts.a
libparts.a: $(filter-out out/main.o,$(objects))
	$(AR) rc $@ $?
out/%.o: src/%.c | out
	$(CC) -Iinclude -MMD -c -o $@ $<
	@echo $< >>compiled
out:
	mkdir out
clean:
	rm -rf out program libparts.a compiled
-include $(objects:.o=.d)
END
expected=$(awk -v count="$COMPILE_FILES" 'BEGIN { for (n = 0; n < count; n++) sum += n * n + 1; print sum }')
compiled() {
    sort compiled | tr '\n' ' ' | sed 's/ $//'
    rm compiled
}
# Without modes no file is executable: a copy elsewhere is.
execute() {
    if [ "$POSIX" = 1 ]; then
        "./$1"
    else
        cp "$1" "$TMPDIR/$1" && chmod 755 "$TMPDIR/$1" && "$TMPDIR/$1"
    fi
}
nothing_to_do() {
    make >"$TMPDIR/make.out" 2>&1 && grep -q 'up to date' "$TMPDIR/make.out" || {
        cat "$TMPDIR/make.out"
        ls -l --time-style=full-iso . out
        return 1
    }
}
step "make" make
same "all were compiled" $((COMPILE_FILES + 1)) "$(compiled | wc -w)"
same "the program's answer" "$expected" "$(execute program)"
step "the second make does nothing" nothing_to_do
# Times of a second's precision need a second between what was made and what is newer.
sleep 1.1
echo '/* changed */' >>src/part1.c
step "make after a change" make
same "one was compiled" src/part1.c "$(compiled)"
step "the next make does nothing" nothing_to_do
sleep 1.1
printf '#define COMMON 2\n' >include/common.h
step "make after a change of a header" make
same "all that include it were compiled" "$COMPILE_FILES" "$(compiled | wc -w)"
same "the program's new answer" $((expected + COMPILE_FILES)) "$(execute program)"
step "the last make does nothing" nothing_to_do
step "a shared library" sh -c 'gcc -shared -fPIC -Iinclude -o libparts.so src/part*.c &&
    gcc -Iinclude -o dynamic src/main.c -L. -lparts -Wl,-rpath,"$PWD"'
same "its answer" $((expected + COMPILE_FILES)) "$(execute dynamic)"
step "strip" strip program
same "the stripped program's answer" $((expected + COMPILE_FILES)) "$(execute program)"
finish
