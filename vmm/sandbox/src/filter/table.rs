//! System calls that each kind of thread may make while a guest runs.
//!
//! `build.rs` compiles the tables to BPF programs; at run time they are data. Anything that is not listed kills the
//! process.

use libc::c_long;

use super::thread::Thread;

impl Thread {
    /// The rules of its table, those for all threads first.
    pub(crate) fn rules(self) -> impl Iterator<Item = &'static Rule> {
        let own: &[&[Rule]] = match self {
            Self::Main => &[MAIN],
            Self::Io => &[IO, DEVICES],
            Self::Vcpu => &[VCPU, DEVICES],
            Self::Writer => &[WRITER],
            Self::Serial => &[SERIAL],
            Self::Check => &[CHECK],
            Self::Quote => &[QUOTE, NEW_THREADS],
            Self::Teardown => &[TEARDOWN, DEVICES],
            Self::Broker => &[BROKER, NEW_THREADS],
        };
        ALL_THREADS.iter().chain(own.iter().copied().flatten())
    }
}

/// A system call that is allowed if all `conditions` hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) call: c_long,
    pub(crate) conditions: [Option<Condition>; 2],
}

/// Argument `index` has `value` in the bits of `mask`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) index: u8,
    pub(crate) mask: u64,
    pub(crate) value: u64,
}

const fn any(call: c_long) -> Rule {
    Rule { call, conditions: [None, None] }
}

/// `call` if its argument `index`, an int, is `value`.
const fn int(call: c_long, index: u8, value: u64) -> Rule {
    Rule { call, conditions: [Some(is(index, value)), None] }
}

const fn is(index: u8, value: u64) -> Condition {
    Condition { index, mask: u32::MAX as u64, value }
}

/// The kernel takes a request's low 32 bits.
const fn ioctl(request: u64) -> Rule {
    int(libc::SYS_ioctl, 1, request)
}

const fn fcntl(command: i32) -> Rule {
    int(libc::SYS_fcntl, 1, command.cast_unsigned() as u64)
}

const fn socket(family: i32) -> Rule {
    int(libc::SYS_socket, 0, family.cast_unsigned() as u64)
}

/// An option of all kinds of sockets.
const fn socket_option(name: i32) -> Rule {
    let level = is(1, libc::SOL_SOCKET.cast_unsigned() as u64);
    let name = is(2, name.cast_unsigned() as u64);
    Rule { call: libc::SYS_setsockopt, conditions: [Some(level), Some(name)] }
}

/// Limits of this process or another one, which stay as they are.
const fn only_read_limits() -> Rule {
    let nothing = Condition { index: 2, mask: u64::MAX, value: 0 };
    Rule { call: libc::SYS_prlimit64, conditions: [Some(nothing), None] }
}

/// Memory that is not to be executed.
const fn not_executable(call: c_long) -> Rule {
    let execute = libc::PROT_EXEC.cast_unsigned() as u64;
    Rule { call, conditions: [Some(Condition { index: 2, mask: execute, value: 0 }), None] }
}

/// Allocation, locks, the end of a thread, and the message of a panic.
const ALL_THREADS: &[Rule] = &[
    any(libc::SYS_futex),
    any(libc::SYS_write),
    any(libc::SYS_close),
    // A build for development looks whether what it closes is open.
    fcntl(libc::F_GETFD),
    any(libc::SYS_munmap),
    not_executable(libc::SYS_mmap),
    not_executable(libc::SYS_mprotect),
    any(libc::SYS_mremap),
    any(libc::SYS_brk),
    any(libc::SYS_madvise),
    any(libc::SYS_sigaltstack),
    any(libc::SYS_rt_sigprocmask),
    any(libc::SYS_rt_sigreturn),
    any(libc::SYS_restart_syscall),
    any(libc::SYS_sched_yield),
    any(libc::SYS_clock_nanosleep),
    // Where the vDSO has no clock that it trusts.
    any(libc::SYS_clock_gettime),
    // Keys of hash maps.
    any(libc::SYS_getrandom),
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
];

const MAIN: &[Rule] = &[
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_ppoll),
    any(libc::SYS_read),
    any(libc::SYS_recvfrom),
    any(libc::SYS_sendto),
    // Threads that are left at the end.
    any(libc::SYS_getdents64),
    any(libc::SYS_lseek),
    // Sockets of --attest.
    any(libc::SYS_unlink),
    ioctl(kvm::SIGNAL_MSI),
    ioctl(libc::TIOCGWINSZ),
];

const IO: &[Rule] = &[
    any(libc::SYS_epoll_wait),
    any(libc::SYS_read),
    any(libc::SYS_readv),
    any(libc::SYS_writev),
    any(libc::SYS_pread64),
    any(libc::SYS_preadv2),
    any(libc::SYS_pwritev2),
    any(libc::SYS_fdatasync),
    any(libc::SYS_fallocate),
    any(libc::SYS_io_uring_enter),
    ioctl(BLKDISCARD),
    // Streams of a socket device.
    socket(libc::AF_UNIX),
    any(libc::SYS_connect),
    any(libc::SYS_accept4),
    any(libc::SYS_recvfrom),
    any(libc::SYS_sendto),
    any(libc::SYS_shutdown),
    socket_option(libc::SO_SNDBUF),
    ioctl(libc::FIONBIO),
    fcntl(libc::F_GETFL),
    fcntl(libc::F_SETFL),
];

const VCPU: &[Rule] = &[
    ioctl(kvm::RUN),
    // The process was stopped.
    ioctl(kvm::KVMCLOCK_CTRL),
    // A guest that uses memory in another way than before.
    ioctl(kvm::SET_MEMORY_ATTRIBUTES),
    ioctl(kvm::PRE_FAULT_MEMORY),
    any(libc::SYS_fallocate),
    any(libc::SYS_read),
    any(libc::SYS_io_uring_enter),
];

/// Devices start, stop and end on threads of vCPUs, on their own, and at the end of the run.
const DEVICES: &[Rule] = &[
    ioctl(kvm::SIGNAL_MSI),
    ioctl(kvm::IOEVENTFD),
    ioctl(kvm::IRQFD),
    ioctl(kvm::SET_GSI_ROUTING),
    any(libc::SYS_epoll_create1),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_eventfd2),
    any(libc::SYS_timerfd_create),
    any(libc::SYS_timerfd_settime),
    fcntl(libc::F_DUPFD_CLOEXEC),
    ioctl(libc::TUNGETIFF),
    ioctl(libc::TUNSETOFFLOAD),
    ioctl(libc::TUNSETQUEUE),
    ioctl(vhost::SET_FEATURES),
    ioctl(vhost::SET_MEM_TABLE),
    ioctl(vhost::SET_VRING_NUM),
    ioctl(vhost::SET_VRING_ADDR),
    ioctl(vhost::SET_VRING_BASE),
    ioctl(vhost::GET_VRING_BASE),
    ioctl(vhost::SET_VRING_KICK),
    ioctl(vhost::SET_VRING_CALL),
    ioctl(vhost::SET_VRING_ERR),
    ioctl(vhost::NET_SET_BACKEND),
    ioctl(vhost::VSOCK_SET_GUEST_CID),
    ioctl(vhost::VSOCK_SET_RUNNING),
];

const WRITER: &[Rule] = &[
    // A file that somebody made non-blocking.
    any(libc::SYS_epoll_create1),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_epoll_wait),
];

const SERIAL: &[Rule] = &[ioctl(kvm::SIGNAL_MSI)];

const CHECK: &[Rule] = &[
    any(libc::SYS_accept4),
    any(libc::SYS_read),
    any(libc::SYS_recvfrom),
    any(libc::SYS_sendto),
    ioctl(libc::FIONBIO),
];

const QUOTE: &[Rule] = &[
    // The quote service.
    socket(libc::AF_UNIX),
    socket(libc::AF_VSOCK),
    any(libc::SYS_connect),
    socket_option(libc::SO_RCVTIMEO),
    socket_option(libc::SO_SNDTIMEO),
    any(libc::SYS_sendto),
    any(libc::SYS_recvfrom),
    ioctl(kvm::SIGNAL_MSI),
    // The certificates' file, below a directory that is open.
    any(libc::SYS_openat2),
    fcntl(libc::F_OFD_SETLK),
    any(libc::SYS_statx),
    any(libc::SYS_lseek),
    any(libc::SYS_read),
];

/// A thread for each quote, or for each connection.
const NEW_THREADS: &[Rule] = &[
    any(libc::SYS_clone3),
    any(libc::SYS_set_robust_list),
    any(libc::SYS_rseq),
    int(libc::SYS_prctl, 0, libc::PR_SET_NAME.cast_unsigned() as u64),
];

const BROKER: &[Rule] = &[
    // Connections, at listeners that are open.
    any(libc::SYS_accept4),
    any(libc::SYS_recvfrom),
    any(libc::SYS_sendto),
    any(libc::SYS_shutdown),
    socket_option(libc::SO_RCVTIMEO),
    socket_option(libc::SO_SNDTIMEO),
    // A connection's thread, and where its stack is.
    any(libc::SYS_gettid),
    any(libc::SYS_rt_sigaction),
    any(libc::SYS_sched_getaffinity),
    only_read_limits(),
    // Store and audit log, which are open.
    fcntl(libc::F_GETLK),
    fcntl(libc::F_SETLK),
    any(libc::SYS_pread64),
    any(libc::SYS_pwrite64),
    any(libc::SYS_fstat),
    any(libc::SYS_lseek),
    any(libc::SYS_ftruncate),
    any(libc::SYS_fdatasync),
    any(libc::SYS_fsync),
];

const TEARDOWN: &[Rule] = &[
    // Kicks vCPUs.
    any(libc::SYS_getpid),
    int(libc::SYS_tgkill, 2, KICK),
    any(libc::SYS_read),
    any(libc::SYS_io_uring_enter),
    // The socket of a socket device.
    any(libc::SYS_unlink),
];

/// SIGRTMIN of glibc, which keeps two signals before it to itself.
const KICK: u64 = 34;

/// linux/fs.h
const BLKDISCARD: u64 = 0x1277;

/// Requests of linux/kvm.h.
mod kvm {
    pub(super) const RUN: u64 = 0xae80;
    pub(super) const KVMCLOCK_CTRL: u64 = 0xaead;
    pub(super) const SET_GSI_ROUTING: u64 = 0x4008_ae6a;
    pub(super) const IRQFD: u64 = 0x4020_ae76;
    pub(super) const IOEVENTFD: u64 = 0x4040_ae79;
    pub(super) const SIGNAL_MSI: u64 = 0x4020_aea5;
    pub(super) const SET_MEMORY_ATTRIBUTES: u64 = 0x4020_aed2;
    pub(super) const PRE_FAULT_MEMORY: u64 = 0xc040_aed5;
}

/// Requests of linux/vhost.h.
mod vhost {
    pub(super) const SET_FEATURES: u64 = 0x4008_af00;
    pub(super) const SET_MEM_TABLE: u64 = 0x4008_af03;
    pub(super) const SET_VRING_NUM: u64 = 0x4008_af10;
    pub(super) const SET_VRING_ADDR: u64 = 0x4028_af11;
    pub(super) const SET_VRING_BASE: u64 = 0x4008_af12;
    pub(super) const GET_VRING_BASE: u64 = 0xc008_af12;
    pub(super) const SET_VRING_KICK: u64 = 0x4008_af20;
    pub(super) const SET_VRING_CALL: u64 = 0x4008_af21;
    pub(super) const SET_VRING_ERR: u64 = 0x4008_af22;
    pub(super) const NET_SET_BACKEND: u64 = 0x4008_af30;
    pub(super) const VSOCK_SET_GUEST_CID: u64 = 0x4008_af60;
    pub(super) const VSOCK_SET_RUNNING: u64 = 0x4004_af61;
}
