//! Files that Landlock leaves, and the error of each part of the sandbox that the kernel refuses.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{ErrorKind, pipe};
use std::net::TcpStream;
use std::path::Path;
use std::thread;

use casemate_sandbox::{Access, Child, End, Mode, Sandbox, Thread, User};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

fn main() {
    let folder = tempfile::tempdir().unwrap();
    landlock_leaves_the_listed_folders(folder.path());
    if !rustix::process::getuid().is_root() {
        println!("parts: only root can take all of them");
        return;
    }
    assert_eq!(refused(None), None, "a part is refused though nothing forbids it");
    for (call, first, words) in PARTS {
        let error = refused(Some((call, first))).unwrap_or_else(|| panic!("{words}: no error"));
        assert!(error.contains(words), "system call {call}, {first:?}: {error}");
    }
    println!("parts: {} system calls refused", PARTS.len());
}

/// Filters of system calls only log here, or they would come first.
fn landlock_leaves_the_listed_folders(folder: &Path) {
    let (read, sockets) = (folder.join("read"), folder.join("sockets"));
    for (folder, file) in [(&read, "certificates"), (&sockets, "guest")] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join(file), "text").unwrap();
    }
    let (_reader, keep) = pipe().unwrap();
    let accesses = vec![Access::Read(read.clone()), Access::Sockets(sockets.clone())];
    let denied = |outcome: std::io::Result<()>, what: &str| {
        let kind = outcome.expect_err(what).kind();
        assert_eq!(kind, ErrorKind::PermissionDenied, "{what}");
    };
    let attempts = move || {
        assert_eq!(fs::read(read.join("certificates")).unwrap(), b"text");
        denied(fs::read("/etc/passwd").map(drop), "read a file of the host");
        denied(fs::read(sockets.join("guest")).map(drop), "read beside a socket");
        denied(fs::write(read.join("certificates"), ""), "write certificates");
        denied(File::create(read.join("new")).map(drop), "make a file");
        denied(fs::remove_file(read.join("certificates")), "remove certificates");
        denied(fs::create_dir(sockets.join("new")), "make a folder");
        // Linux 6.7.
        denied(TcpStream::connect("127.0.0.1:9").map(drop), "connect by TCP");
        fs::remove_file(sockets.join("guest")).unwrap();
    };
    let life = || {
        let sandbox = Sandbox::begin(Mode::Log, None, accesses.clone(), &keep).unwrap();
        let attempts = attempts.clone();
        let thread = thread::spawn(move || {
            sandbox.enter(Thread::Quote).unwrap();
            attempts();
        });
        u8::from(thread.join().is_err())
    };
    assert_eq!(Child::spawn(life).unwrap().wait().unwrap(), End::Status(0));
}

/// System calls, with the first argument where it matters, and words of the error when the kernel refuses them.
const PARTS: [(libc::c_long, Option<i32>, &str); 16] = {
    const CAPABILITIES: &str = "lower the bounding set of capabilities";
    const ROOT: &str = "enter an empty root directory";
    const USER: &str = "change its user";
    [
        (libc::SYS_landlock_create_ruleset, None, "Landlock"),
        (libc::SYS_landlock_restrict_self, None, "restrict its files"),
        (libc::SYS_unshare, None, "make mounts of its own"),
        (libc::SYS_prctl, Some(libc::PR_SET_NO_NEW_PRIVS), CAPABILITIES),
        (libc::SYS_prctl, Some(libc::PR_CAP_AMBIENT), CAPABILITIES),
        (libc::SYS_prctl, Some(libc::PR_CAPBSET_DROP), CAPABILITIES),
        (libc::SYS_mount, None, "make mounts of its own"),
        (libc::SYS_pivot_root, None, ROOT),
        (libc::SYS_chdir, None, ROOT),
        (libc::SYS_prctl, Some(libc::PR_SET_DUMPABLE), "keep memory out of core files"),
        (libc::SYS_setgroups, None, USER),
        (libc::SYS_setresgid, None, USER),
        (libc::SYS_setresuid, None, USER),
        (libc::SYS_capset, None, "drop its capabilities"),
        (libc::SYS_prctl, Some(libc::PR_SET_PDEATHSIG), USER),
        (libc::SYS_seccomp, None, "filter its system calls"),
    ]
};

/// The error of a sandbox whose process is refused a system call.
fn refused(call: Option<(libc::c_long, Option<i32>)>) -> Option<String> {
    let (mut reader, writer) = pipe().unwrap();
    let life = || {
        if let Some((call, first)) = call {
            apply_filter(&refusing(call, first)).unwrap();
        }
        let Err(error) = sandboxed(&writer) else { return 0 };
        std::io::Write::write_all(&mut &writer, error.as_bytes()).unwrap();
        1
    };
    let end = Child::spawn(life).unwrap().wait().unwrap();
    drop(writer);
    let mut error = String::new();
    std::io::Read::read_to_string(&mut reader, &mut error).unwrap();
    match end {
        End::Status(0) => None,
        End::Status(1) => Some(error),
        end => panic!("{call:?}: {end:?}"),
    }
}

/// Takes all rights that a sandbox takes, on a thread of this process.
fn sandboxed(keep: &std::io::PipeWriter) -> Result<(), String> {
    let user: User = "12345:23456".parse().unwrap();
    let sandbox = Sandbox::begin(Mode::On, Some(user), Vec::new(), keep).map_err(chain)?;
    sandbox.seal().map_err(chain)?;
    thread::spawn(move || sandbox.enter(Thread::Vcpu).map_err(chain)).join().unwrap()
}

fn chain(error: impl Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// A filter that answers `call` with EIO.
fn refusing(call: libc::c_long, first: Option<i32>) -> BpfProgram {
    let condition = first.map(|value| {
        let value = value.try_into().unwrap();
        SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap()
    });
    let rules = condition.map(|condition| SeccompRule::new(vec![condition]).unwrap());
    let rules = BTreeMap::from([(call, rules.into_iter().collect())]);
    let refuse = SeccompAction::Errno(libc::EIO.try_into().unwrap());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64);
    filter.unwrap().try_into().unwrap()
}
