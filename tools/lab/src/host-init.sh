# What the emulated host's /init does after its modules are loaded: it runs one
# command in the file system of the machine that runs the emulator.
#
# Devices, all from outside: the console ttyS0, the command's terminal ttyS1, and
# three 9p file systems: host (that machine's, read-only), control (what to run;
# takes its exit status), share (the one directory that the command may write).
[ -c /dev/kvm ] || echo "lab: no /dev/kvm"
ip link set lo up
mkdir -p /dev/shm /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t debugfs debug /sys/kernel/debug 2>/dev/null
mount -t cgroup2 cgroup /sys/fs/cgroup 2>/dev/null
echo "lab: ready after $(cut -d' ' -f1 /proc/uptime) s"
if grep -qw lab.wait /proc/cmdline; then
	# The machine's state is saved here. File systems come later: one that is
	# mounted cannot be saved. A line on the console says that it goes on, as
	# often as it takes; its echo would cut the reply.
	stty -F /dev/ttyS0 -echo
	read -r _
	echo "lab: resumed"
fi

p9() {
	mount -t 9p -o "trans=virtio,version=9p2000.L,msize=512000,$3" "$1" "$2" ||
		echo "lab: the file system $1 cannot be mounted"
}
p9 host /mnt ro,cache=loose
mkdir /control /machine
p9 control /control cache=none
for directory in dev proc sys; do
	mount -o rbind /$directory /mnt/$directory
done
# Fresh, but for what the command needs of that machine's own.
for directory in tmp run; do
	mkdir /machine/$directory
	mount -o bind /mnt/$directory /machine/$directory
	mount -t tmpfs $directory /mnt/$directory
done
while IFS= read -r path; do
	if [ -d "/machine$path" ]; then
		mkdir -p "/mnt$path"
	else
		: >"/mnt$path"
	fi
	mount -o bind "/machine$path" "/mnt$path"
done </control/visible
chmod 1777 /mnt/tmp
mkdir /mnt/run/lab
mount -o bind /control /mnt/run/lab
# A resumed machine's clock stands where it was saved.
read -r clock </control/clock
date -s "@$clock" >/dev/null
read -r share </control/share
if [ -n "$share" ]; then
	mkdir -p "/mnt$share"
	p9 share "/mnt$share" cache=mmap
fi
# The command's root is the namespace's: a process in a chroot may make no user namespace.
enter() {
	cd /mnt
	mount -o move . /
	exec setsid "$@" chroot . /bin/sh /run/lab/command
}
read -r terminal </control/terminal
if [ -n "$terminal" ]; then
	stty -F /dev/ttyS1 sane $terminal
	(enter -c <>/dev/ttyS1 >&0 2>&1)
else
	# Byte for byte, not line by line.
	stty -F /dev/ttyS1 raw -echo
	(enter </dev/null >/dev/ttyS1 2>&1)
fi
status=$?
dmesg >/control/dmesg
echo $status >/control/status
sync
