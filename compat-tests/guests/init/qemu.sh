#!/bin/busybox sh
# First process of the QEMU guest, from its initramfs: busybox, the modules listed in /modules/order, a job in /job.
#
# From the kernel command line: ovfs.tag (the share), ovfs.interactive=1 (a shell on the console after the job),
# ovfs.trial=1 (say hello and stop: does this accelerator work at all?).
# The job's output goes to the second serial port, apart from the kernel's own words, and ends with `@@STATUS n`.
/bin/busybox mkdir -p /proc /sys /dev /tmp /mnt/share /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
export PATH=/bin HOME=/root TMPDIR=/tmp SHARE=/mnt/share JOB=/job GUEST=qemu LC_ALL=C
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in
    ovfs.tag=*) tag=${word#*=} ;;
    ovfs.interactive=1) interactive=1 ;;
    ovfs.trial=1)
        echo "@@TRIAL" >/dev/console
        /bin/busybox poweroff -f
        ;;
    esac
done
/bin/busybox --install -s /bin
mount -t tmpfs tmpfs /tmp
stty -F /dev/ttyS1 -opost raw 2>/dev/null
end() {
    echo "@@STATUS $1" >/dev/ttyS1
    sync
    sleep 0.1
    poweroff -f
}
while read -r module; do
    insmod "/modules/$module" || end 122
done </modules/order
mount -t virtiofs "$tag" /mnt/share || end 124
sh /job/run </dev/null >/dev/ttyS1 2>&1
status=$?
if [ -n "$interactive" ]; then
    # The shell talks to the person at the terminal; the job's result is already out.
    echo "@@DONE $status" >/dev/ttyS1
    cd /mnt/share || end 125
    cat /job/welcome 2>/dev/null
    setsid cttyhack sh
    cd /
fi
cd /
umount /mnt/share || status=125
end "$status"
