# A clone, what checks and packs it, commits, branches: git's own verdict after each. `git-again` looks once more later.
. "$JOB/lib.sh"
export HOME="$TMPDIR" GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_DATE='1600000000 +0000' GIT_COMMITTER_DATE='1600000000 +0000'
git config --global user.name Guest
git config --global user.email guest@example.org
git config --global init.defaultBranch main
git config --global gc.auto 0
git config --global advice.detachedHead false
source=$TMPDIR/source
# Files of 40 to 4,000 bytes in a tree three deep.
make_source() (
    git init -q "$source" && cd "$source" && awk -v count="$GIT_FILES" 'BEGIN {
        for (n = 0; n < count; n++) {
            dir = sprintf("d%d/e%d", n % 20, int(n / 20) % 10)
            if (!(dir in made)) { system("mkdir -p " dir); made[dir] = 1 }
            file = sprintf("%s/file-%d.txt", dir, n)
            for (line = 0; line <= n % 100; line++) printf "file %d line %d, some text\n", n, line >file
            close(file)
        }
    }' && echo '#!/bin/sh' >script && chmod +x script && ln -s script symlink && git add . && git commit -q -m first &&
        git branch other && sed -i 's/some text/other text/' d1/e1/*.txt && git rm -q d2/e2/file-42.txt &&
        mv d3/e3/file-63.txt d3/moved.txt && git add -A . && git commit -q -m second
)
clean() {
    [ -z "$(git -C "$1" status --porcelain)" ] || {
        git -C "$1" status --porcelain | head
        return 1
    }
}
step "a source of $GIT_FILES files" make_source
step "clone" git clone -q "file://$source" git
cd git || exit 1
same "as many files" "$(git -C "$source" ls-files | wc -l)" "$(git ls-files | wc -l)"
step "status is clean" clean .
step "fsck" git fsck --strict --full
same "the same commit" "$(git -C "$source" rev-parse HEAD)" "$(git rev-parse HEAD)"
step "the content" sh -c 'git ls-files -s -z >"$TMPDIR/index" && git checkout-index -a -f && git diff --exit-code HEAD'
step "checkout of a branch" git checkout -q origin/other
step "status is clean after checkout" clean .
step "and back" git checkout -q main
step "status is clean after the way back" clean .
step "gc" git gc -q
step "fsck after gc" git fsck --strict --full
step "commit" sh -c 'echo more >>d0/e0/file-0.txt && git commit -q -a -m third'
step "commit on a branch, merge" sh -c 'git checkout -q -b feature HEAD~1 && echo new >new.txt && git add new.txt &&
    git commit -q -m fourth && git checkout -q main && git merge -q -m merged feature'
step "stash" sh -c 'echo change >>new.txt && git stash -q && git stash pop -q && git checkout -q new.txt'
step "rebase" sh -c 'git checkout -q -b topic HEAD~1 && echo topic >topic.txt && git add topic.txt &&
    git commit -q -m fifth && git rebase -q main && git checkout -q main && git merge -q --ff-only topic'
step "repack" git repack -q -a -d -f
step "prune" git prune
step "worktree" sh -c 'git worktree add -q ../git-worktree feature && git worktree remove ../git-worktree'
step "push to a bare one" sh -c 'git clone -q --bare . ../git-bare.git && git commit -q --allow-empty -m sixth &&
    git push -q ../git-bare.git main && git -C ../git-bare.git fsck --strict'
step "status is clean at the end" clean .
step "fsck at the end" git fsck --strict --full
git rev-parse HEAD >../git-head.txt
finish
