//! The keys of `guest.toml`: each line is a key's type, default, reference entry, flag and help.

use std::path::PathBuf;

use crate::keys::{choice, table};
use crate::platform::PlatformChoice;
use crate::quote_service::QuoteService;
use crate::reference::section;
use crate::size::{ByteSize, Hex, Mac};
use crate::td_bits::{TdAttributes, Xfam};
use crate::vcpu_type::VcpuType;

/// The kernel speaks on the serial port. Whatever goes wrong in it ends the guest, and no shell of an
/// initial RAM disk opens on the host's line. It calls no services of EFI's, of which our firmware has
/// none, and looks for PCI by the host's tables alone, not by ports before it has read them.
pub(crate) const DEFAULT_CMDLINE: &str =
    "console=ttyS0 panic=-1 oops=panic rd.shell=0 efi=noruntime pci=noearly";
/// About what Linux accepts before its first process.
pub(crate) const DEFAULT_PREFAULT: ByteSize = ByteSize(512 << 20);

choice! {
    /// Action when the guest resets or panics.
    pub enum Ending {
        /// End the VMM with the exit status of the event.
        Exit = "exit",
        /// Start the guest again from the same launch plan.
        Restart = "restart",
    }
    default Exit
}

choice! {
    /// Whether images of other formats are refused.
    pub enum DiskFormat {
        /// Recognize and refuse images of other formats, such as qcow2 and VMDK.
        Auto = "auto",
        /// Take the image as raw bytes, whatever they look like.
        Raw = "raw",
    }
    default Auto
}

choice! {
    /// Action when the host fails a request of the guest.
    pub enum OnError {
        /// Report an I/O error to the guest.
        Report = "report",
        /// End the run with status 124 before the guest sees an error.
        Stop = "stop",
    }
    default Report
}

choice! {
    /// Time of memory acceptance.
    pub enum Acceptance {
        /// The kernel accepts memory on first use.
        Lazy = "lazy",
        /// The firmware accepts all memory before the kernel starts.
        Eager = "eager",
    }
    default Lazy
}

table! {
    /// The guest. These keys stand at the top of the file, before any table.
    pub struct GuestConfig {
        /// Linux kernel, a bzImage. Without firmware also an uncompressed ELF kernel, with or without a PVH entry.
        kernel: Option<PathBuf> = None,
        /// Initial RAM disk of the kernel.
        initrd: Option<PathBuf> = None,
        /// Kernel command line, at most 2047 bytes. It replaces the default, so name the serial port again.
        cmdline: String = String::from(DEFAULT_CMDLINE),
        /// Guest memory, in whole MiB.
        memory: ByteSize = ByteSize(512 << 20),
        /// Number of vCPUs, 1 to 255.
        vcpus: u32 = 1,
        /// Platform of the launch. `"auto"` selects SEV-SNP or TDX and never falls back to `"plain"`: plain guests are not protected from the host, so you must request them.
        platform: PlatformChoice = PlatformChoice::Auto,
        /// Guest firmware: OVMF, a TDVF, or an edition of Casemate's own. One file with code and variables. Left out: Casemate's own firmware, and none for plain guests. OVMF starts the kernel if there is one, otherwise the system on the disks.
        firmware: Option<PathBuf> = None,
        /// IGVM file, which brings its own firmware and kernel. For SEV-SNP it holds the registers of one vCPU, and the guest gets no more.
        igvm: Option<PathBuf> = None,
        /// Accept memory lazily (by the kernel) or eagerly (by the firmware, before boot). Lazy acceptance starts large guests fast; eager acceptance also works with kernels that cannot accept memory. Part of the measurement; only for confidential guests of Casemate's firmware.
        accept_memory: Acceptance = Acceptance::Lazy,
        /// Log the steps of Casemate's firmware on the serial port, for development. Uses another image with another measurement, also for plain guests. A `firmware` that is named must be such an edition.
        firmware_log: bool = false,
        /// Add an entropy device.
        rng: bool = true,
        /// Add a balloon that returns free pages to the host; plain guests only.
        balloon: bool = false,
        /// Limit of memory that a confidential guest may share with the host at a time. In whole pages of 4 KiB. Requests beyond the limit are refused; without the key there is no limit.
        shared_memory: Option<ByteSize> = None,
        /// Private memory to populate before the guest accepts it, from the lowest address. Faster than page by page, but the host also spends it on a guest that never uses it. Linux 6.12 and 7.2 accept about 600 MiB before their first process. With `accept_memory = "eager"` all memory is populated.
        prefault: ByteSize = DEFAULT_PREFAULT,
        /// Add a virtio console beside the serial port.
        console: bool = false,
        /// Action when the guest resets.
        on_reset: Ending = Ending::Exit,
        /// Action when the guest's kernel panics.
        on_panic: Ending = Ending::Exit,
    }
    tables {
        /// Arrangement of the vCPUs, like `sockets=2,cores=4,threads=2`. Keys are those of `[cpu]`.
        cpu: Option<Cpu>,
        /// Disk, may be repeated. Keys are those of `[[disk]]`.
        disk: Vec<Disk>,
        /// Network interface on an existing tap, may be repeated. Keys are those of `[[net]]`.
        net: Vec<Net>,
        /// Sockets between host and guest. Keys are those of `[vsock]`.
        vsock: Option<Vsock>,
        /// Place of the serial port, instead of standard input and output. Keys are those of `[serial]`.
        serial: Option<Serial>,
        /// SEV-SNP policy and identity. Keys are those of `[snp]`.
        snp: Option<Snp>,
        /// TDX policy and identity. Keys are those of `[tdx]`.
        tdx: Option<Tdx>,
    }
}

table! {
    /// Arrangement of the vCPUs, as the guest's CPUID reports it. Left out: one socket of as many cores as there are vCPUs. It is not measured: the host decides.
    pub struct Cpu {
        /// Sockets. With several, each has a power of two of threads.
        sockets: u32 = 1,
        /// Cores of each socket. Left out: as many as `vcpus` needs. Sockets, cores and threads multiply to `vcpus`.
        cores: Option<u32> = None,
        /// Threads of each core, 1 or 2.
        threads: u32 = 1,
    }
}

table! {
    /// A disk (virtio-blk). May be repeated; the first is the guest's first.
    pub struct Disk(path) {
        /// Raw image or block device. Required. In a flag write two commas for one in the path.
        path: PathBuf = PathBuf::new(),
        /// Refuse images of other formats, such as qcow2 and VMDK (`auto`), or take any image as raw bytes (`raw`).
        format: DiskFormat = DiskFormat::Auto,
        /// Action when the host fails a request, for example on a full file system: report an I/O error to the guest (`report`), or end the run with status 124 (`stop`).
        on_error: OnError = OnError::Report,
        /// The guest cannot write.
        read_only: bool = false,
        /// Serial number that the guest sees, 1 to 20 printable ASCII characters.
        serial: Option<String> = None,
        /// Request queues, 1 to 16.
        queues: u16 = 1,
        /// Go past the host's page cache.
        direct: bool = false,
        /// Limit of bytes per second, both directions together.
        bytes_per_second: Option<ByteSize> = None,
        /// Limit of requests per second.
        requests_per_second: Option<u32> = None,
    }
}

table! {
    /// A network interface (virtio-net). May be repeated.
    pub struct Net(tap) {
        /// Name of an existing tap interface. Required.
        tap: String = String::new(),
        /// MAC address of the guest's interface; made from the interface's position if left out.
        mac: Option<Mac> = None,
        /// Pairs of queues, 1 to 8.
        queues: u16 = 1,
        /// Limit of bytes per second, each direction.
        bytes_per_second: Option<ByteSize> = None,
    }
}

table! {
    /// Sockets between host and guest (virtio-vsock).
    pub struct Vsock(socket) {
        /// Context identifier of the guest, 3 to 4294967294.
        cid: u32 = 3,
        /// Unix socket on the host, at most 96 bytes. A guest's connection to port P goes to `<socket>_P`. Required without `vhost`.
        socket: PathBuf = PathBuf::new(),
        /// The host's kernel serves the sockets instead (vhost-vsock): on the host they are its own, of AF_VSOCK. Plain guests only.
        vhost: bool = false,
    }
}

table! {
    /// The serial port's place, instead of standard input and output: a file or a socket.
    pub struct Serial(file) {
        /// File to which the guest's output is appended. There is no input.
        file: Option<PathBuf> = None,
        /// Unix socket at which a process of the host listens. Casemate connects when the guest starts, and again after a reset; the socket gets the output and gives the input.
        socket: Option<PathBuf> = None,
    }
}

table! {
    /// SEV-SNP: policy and identity. Not allowed with another platform than `"snp"` or `"auto"`.
    pub struct Snp {
        /// The host may debug the guest, that is, read its memory.
        debug: bool = false,
        /// The guest may run where SMT is on.
        smt: bool = true,
        /// The guest stays on one socket.
        single_socket: bool = false,
        /// CPU model whose signature the vCPUs of an OVMF guest start with. A name as QEMU's `-cpu` has it, like `"EPYC-Milan"`, or CPUID leaf 1 EAX as a number, like `"0x00a00f11"`. `"host"` is the processor of the machine on which the guest runs, or is measured. Part of the measurement. Required for OVMF; Casemate's firmware needs none.
        vcpu_type: Option<VcpuType> = None,
        /// HOST_DATA of attestation reports. Left out: SHA-256 of the machine's canonical form (memory, vCPUs, devices).
        host_data: Option<Hex<32>> = None,
        /// ID block, a file of 96 bytes; needs `id_authentication`.
        id_block: Option<PathBuf> = None,
        /// ID authentication page, a file of 4096 bytes; needs `id_block`.
        id_authentication: Option<PathBuf> = None,
        /// Certificates that the guest gets with its reports: a file with a certificate table as the GHCB specification has it (GUID, offset and length of each, then zeroes, then the certificates). It is read at each request, under a shared lock (F_OFD_SETLK). Needs Linux 7.0 on the host.
        certificates: Option<PathBuf> = None,
        /// The guest gets no reports that are signed by the VCEK.
        vcek_disabled: bool = false,
    }
}

table! {
    /// TDX: attributes and identity. Not allowed with another platform than `"tdx"` or `"auto"`.
    pub struct Tdx {
        /// The host may debug the guest, that is, read its memory. Casemate's firmware starts no such guest.
        debug: bool = false,
        /// Attributes beside SEPT_VE_DISABLE, which is always set, and DEBUG: `"LASS"`, `"PKS"`, `"KL"`, `"PERFMON"`. Quotes say them. Kernels up to 7.2 offer none.
        attributes: TdAttributes = TdAttributes::default(),
        /// Extended features beside x87 and SSE: `"AVX"`, `"AVX512"`, `"PT"`, `"PK"`, `"CET"`, `"UINTR"`, `"LBR"`, `"AMX"`; or `"auto"`, all of these that the host offers, which `casemate run` prints. Quotes have them as XFAM, and a policy for several hosts lists the values that it allows. Without AVX a guest cannot run programs that are built for x86-64-v3.
        xfam: Xfam = Xfam::default(),
        /// MRCONFIGID of quotes. Left out: SHA-384 of the machine's canonical form (memory, vCPUs, devices).
        mrconfigid: Option<Hex<48>> = None,
        /// MROWNER of quotes.
        mrowner: Option<Hex<48>> = None,
        /// MROWNERCONFIG of quotes.
        mrownerconfig: Option<Hex<48>> = None,
        /// The service that turns the guest's reports into quotes.
        quote_service: QuoteService = QuoteService::default(),
    }
}

impl GuestConfig {
    /// Bytes of private memory that a confidential guest has before it accepts them.
    #[must_use]
    pub fn prefaulted(&self) -> u64 {
        match self.accept_memory {
            Acceptance::Lazy => self.prefault.0,
            Acceptance::Eager => u64::MAX,
        }
    }
}

impl Snp {
    /// The guest policy (SEV-SNP firmware ABI, table "Guest Policy Structure").
    #[must_use]
    pub const fn guest_policy(&self) -> u64 {
        const SMT: u64 = 1 << 16;
        const RESERVED_ONE: u64 = 1 << 17;
        const DEBUG: u64 = 1 << 19;
        const SINGLE_SOCKET: u64 = 1 << 20;
        let mut policy = RESERVED_ONE;
        if self.smt {
            policy |= SMT;
        }
        if self.debug {
            policy |= DEBUG;
        }
        if self.single_socket {
            policy |= SINGLE_SOCKET;
        }
        policy
    }
}

impl Tdx {
    /// TD attributes (TDX module ABI, "ATTRIBUTES"). SEPT_VE_DISABLE is always set: without it
    /// the host could inject #VE on any private page.
    #[must_use]
    pub const fn attributes(&self) -> u64 {
        const DEBUG: u64 = 1;
        const SEPT_VE_DISABLE: u64 = 1 << 28;
        let debug = if self.debug { DEBUG } else { 0 };
        SEPT_VE_DISABLE | debug | self.attributes.0
    }

    /// XFAM (TDX module ABI, "XFAM"). x87 and SSE are always set. `None`: the host resolves it.
    #[must_use]
    pub const fn xfam(&self) -> Option<u64> {
        const X87_AND_SSE: u64 = 3;
        match self.xfam {
            Xfam::Bits(bits) => Some(X87_AND_SSE | bits),
            Xfam::Auto => None,
        }
    }
}

/// The configuration reference, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = String::from(
        "# Configuration\n\nA TOML file describes a guest. This page is generated from the table of keys.\n\
         Unknown keys are errors. Relative paths start at the folder of the file.\n\
         Each key at the top of the file is also a flag (`accept_memory`: `--accept-memory`), and so is \
         each table: `--disk root.img,read_only=true`. In the value of a table's flag two commas stand for one.\n",
    );
    section::<GuestConfig>(&mut page, "The guest", None);
    section::<Cpu>(&mut page, "Arrangement of vCPUs", Some("[cpu]"));
    section::<Disk>(&mut page, "Disks", Some("[[disk]]"));
    section::<Net>(&mut page, "Network interfaces", Some("[[net]]"));
    section::<Vsock>(&mut page, "Vsock", Some("[vsock]"));
    section::<Serial>(&mut page, "Serial port", Some("[serial]"));
    section::<Snp>(&mut page, "SEV-SNP", Some("[snp]"));
    section::<Tdx>(&mut page, "TDX", Some("[tdx]"));
    page
}
