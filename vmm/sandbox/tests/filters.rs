//! Each kind of thread is killed for what no kind needs, and goes on after what it needs.

#![allow(clippy::unwrap_used, unsafe_code, reason = "system calls as an intruder makes them")]

use std::io::pipe;
use std::ptr::null;
use std::thread;

use casemate_sandbox::{Child, End, Mode, Sandbox, Thread};

/// System calls that no kind of thread makes, by name.
const ATTACKS: [(&str, [libc::c_long; 5]); 19] = {
    const CURRENT: libc::c_long = libc::AT_FDCWD as libc::c_long;
    const ANONYMOUS: libc::c_long = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as libc::c_long;
    const EXECUTABLE: libc::c_long = (libc::PROT_READ | libc::PROT_EXEC) as libc::c_long;
    const INTERNET: libc::c_long = libc::AF_INET as libc::c_long;
    const STREAM: libc::c_long = libc::SOCK_STREAM as libc::c_long;
    [
        ("execve", [libc::SYS_execve, 0, 0, 0, 0]),
        ("execveat", [libc::SYS_execveat, CURRENT, 0, 0, 0]),
        ("open", [libc::SYS_open, 0, libc::O_RDONLY as libc::c_long, 0, 0]),
        ("openat", [libc::SYS_openat, CURRENT, 0, libc::O_RDONLY as libc::c_long, 0]),
        ("socket(AF_INET)", [libc::SYS_socket, INTERNET, STREAM, 0, 0]),
        ("socket(AF_NETLINK)", [libc::SYS_socket, libc::AF_NETLINK as libc::c_long, STREAM, 0, 0]),
        ("mprotect(PROT_EXEC)", [libc::SYS_mprotect, 0, 4096, EXECUTABLE, 0]),
        ("pkey_mprotect", [libc::SYS_pkey_mprotect, 0, 4096, EXECUTABLE, 0]),
        ("mmap(PROT_EXEC)", [libc::SYS_mmap, 0, 4096, EXECUTABLE, ANONYMOUS]),
        ("ioctl(TIOCSTI)", [libc::SYS_ioctl, 0, libc::TIOCSTI.cast_signed(), 0, 0]),
        ("ioctl(KVM_CREATE_VM)", [libc::SYS_ioctl, 0, 0xae01, 0, 0]),
        ("ptrace", [libc::SYS_ptrace, 0, 0, 0, 0]),
        ("kill", [libc::SYS_kill, 1, 0, 0, 0]),
        ("tgkill(SIGKILL)", [libc::SYS_tgkill, 1, 1, libc::SIGKILL as libc::c_long, 0]),
        ("fork", [libc::SYS_fork, 0, 0, 0, 0]),
        ("io_uring_setup", [libc::SYS_io_uring_setup, 1, 0, 0, 0]),
        ("bpf", [libc::SYS_bpf, 0, 0, 0, 0]),
        ("setns", [libc::SYS_setns, 0, 0, 0, 0]),
        ("process_vm_readv", [libc::SYS_process_vm_readv, 1, 0, 0, 0]),
    ]
};

fn main() {
    for kind in Thread::ALL {
        for (name, call) in ATTACKS {
            let end = in_thread(kind, Mode::On, move || attack(call));
            assert_eq!(end, End::Killed(libc::SIGSYS), "{kind:?} survived {name}");
        }
        let end = in_thread(kind, Mode::On, work);
        assert_eq!(end, End::Status(0), "{kind:?} cannot do what all threads do");
    }
    // These tests see a sandbox that is missing.
    let open = ATTACKS[3].1;
    assert_eq!(in_thread(Thread::Vcpu, Mode::Off, move || attack(open)), End::Status(0));
    assert_eq!(in_thread(Thread::Vcpu, Mode::Log, move || attack(open)), End::Status(0));
    println!("filters: {} system calls of {} kinds of threads", ATTACKS.len(), Thread::ALL.len());
}

/// The end of a process one of whose threads, in a sandbox, does `work`.
fn in_thread(kind: Thread, mode: Mode, work: impl FnOnce() + Send + 'static) -> End {
    let (_reader, keep) = pipe().unwrap();
    let life = || {
        let sandbox = Sandbox::begin(mode, None, Vec::new(), &keep).unwrap();
        let thread = thread::spawn(move || {
            sandbox.enter(kind).unwrap();
            work();
        });
        u8::from(thread.join().is_err())
    };
    Child::spawn(life).unwrap().wait().unwrap()
}

fn attack([number, a, b, c, d]: [libc::c_long; 5]) {
    // SAFETY: with these arguments the calls fail, or what they make is never used.
    unsafe { libc::syscall(number, a, b, c, d, -1, null::<u8>()) };
}

/// Allocates, and locks; the thread then ends.
fn work() {
    let large: Vec<Vec<u8>> = (0..64).map(|index| vec![1; index << 12]).collect();
    let (sender, receiver) = std::sync::mpsc::channel();
    sender.send(large.len()).unwrap();
    assert_eq!(receiver.recv(), Ok(64));
    thread::sleep(std::time::Duration::from_millis(1));
}
