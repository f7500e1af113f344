#!/bin/sh
# First process of the User Mode Linux guest. Its root is the host's root directory, read-only, through hostfs: every
# program of the host runs in the guest and no image is needed.
#
# From the kernel command line (the kernel hands unknown name=value words to init as environment):
#   OVFS_JOB      directory on the host that holds the job to run, `run`
#   OVFS_MODULES  directory that holds fuse.ko and virtiofs.ko
#   OVFS_TAG      tag of the share
#   OVFS_BUSYBOX  a static busybox
# The job's output goes to /dev/tty1, apart from the kernel's own words, and ends with a line `@@STATUS n`.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /mnt
mount -n -t devtmpfs devtmpfs /dev
mkdir -p /mnt/share
exec </dev/null >/dev/tty1 2>&1
stty -opost 2>/dev/null </dev/tty1
end() {
    echo "@@STATUS $1"
    sync
    "$OVFS_BUSYBOX" poweroff -f
}
# The job and this script lie on the host's root; /tmp becomes the guest's own after they have been copied.
mkdir /mnt/job && cp -r "$OVFS_JOB/." /mnt/job || end 121
mount -t tmpfs tmpfs /tmp
export HOME=/tmp TMPDIR=/tmp SHARE=/mnt/share JOB=/mnt/job GUEST=uml LC_ALL=C
"$OVFS_BUSYBOX" insmod "$OVFS_MODULES/fuse.ko" || end 122
"$OVFS_BUSYBOX" insmod "$OVFS_MODULES/virtiofs.ko" || end 123
mount -t virtiofs "$OVFS_TAG" /mnt/share || end 124
sh /mnt/job/run
status=$?
cd /
umount /mnt/share || status=125
end "$status"
