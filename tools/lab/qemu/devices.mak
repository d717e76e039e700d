# The devices of the emulated hosts. QEMU is configured without its default devices, so that nothing else is built
# but what these need.
CONFIG_Q35=y
CONFIG_AMD_IOMMU=y
CONFIG_VTD=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_RNG=y
CONFIG_VIRTIO_9P=y
