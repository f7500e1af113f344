# What `compile` left, found by a daemon that has seen none of it.
. "$JOB/lib.sh"
cd compile || exit 1
step "the program still runs" sh -c 'cp program "$TMPDIR/program" && chmod 755 "$TMPDIR/program" && "$TMPDIR/program"'
step "make does nothing" sh -c 'make >"$TMPDIR/make.out" 2>&1 && grep -q "up to date" "$TMPDIR/make.out" ||
    { cat "$TMPDIR/make.out"; ls -l --time-style=full-iso . out; exit 1; }'
step "make clean" make clean
step "make" make
finish
