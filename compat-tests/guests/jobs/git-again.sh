# What `git` left, found by a daemon that has seen none of it.
. "$JOB/lib.sh"
export HOME="$TMPDIR" GIT_CONFIG_NOSYSTEM=1
cd git || exit 1
step "fsck" git fsck --strict --full
same "the commit" "$(cat ../git-head.txt)" "$(git rev-parse HEAD)"
same "status is clean" "" "$(git status --porcelain | head)"
step "no difference to the commit" git diff --exit-code HEAD
step "the bare one" git -C ../git-bare.git fsck --strict
step "clone of the clone" git clone -q -n "file://$PWD" "$TMPDIR/clone"
finish
