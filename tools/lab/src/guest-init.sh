mount -t configfs configfs /sys/kernel/config 2>/dev/null
set -- $(grep MemTotal /proc/meminfo)
echo
echo "A guest: Linux $(uname -r), $(nproc) processor(s), $(($2 / 1024)) MiB of memory, up after $(cut -d' ' -f1 /proc/uptime) s"
dmesg | grep 'Memory Encryption Features active'
echo "Its devices: $(ls /sys/bus/virtio/devices 2>/dev/null | wc -l) virtio, $(ls /sys/bus/pci/devices 2>/dev/null | wc -l) PCI"
if grep -qw casemate.report /proc/cmdline; then
	# The challenge is the first disk.
	challenge=$(sha512sum </dev/vda)
	echo "REPORT $(report ${challenge%% *})"
fi
if ! grep -qw -e casemate.hello -e casemate.report /proc/cmdline; then
	echo "This is a shell in the guest; its end powers the guest off. \`report HEX\` prints evidence."
	setsid -c sh <>/dev/console >&0 2>&1
fi
