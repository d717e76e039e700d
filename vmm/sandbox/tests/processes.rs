//! Processes, from a program of one thread: a test harness has several.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::{process, thread};

use casemate_sandbox::{Child, End, Signals, SpawnError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{
    Pid, Signal, getpid, getppid, kill_current_process_group, kill_process, setpgid,
};

fn main() {
    // Or signals to the group would reach whoever runs the tests.
    setpgid(None, None).unwrap();
    status_of_the_work_is_that_of_the_child();
    panic_of_the_work_is_a_status();
    signals_reach_the_parent_alone();
    child_that_is_killed_or_dropped_is_gone();
    child_ends_with_its_parent();
    spawn_beside_other_threads_is_refused();
    println!("processes: 6 tests passed");
}

fn status_of_the_work_is_that_of_the_child() {
    for status in [0, 7, 255] {
        let parent = getpid();
        let work = || if getppid() == Some(parent) { status } else { 99 };
        let mut child = Child::spawn(work).unwrap();
        poll(&mut [PollFd::new(&child, PollFlags::IN)], None).unwrap();
        assert_eq!(child.wait().unwrap(), End::Status(status));
    }
}

fn panic_of_the_work_is_a_status() {
    let work = || {
        std::panic::set_hook(Box::new(|_| ()));
        panic!("it cannot return into the parent's code")
    };
    assert_eq!(Child::spawn(work).unwrap().wait().unwrap(), End::Status(124));
}

/// Waits for a byte; `false` if the other end is closed.
fn ready(mut stream: &UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(1))
}

fn sleep_for_ever() -> ! {
    loop {
        thread::park();
    }
}

fn signals_reach_the_parent_alone() {
    let signals = Signals::block(&[libc::SIGTERM, libc::SIGINT]).unwrap();
    assert_eq!(signals.next(), None);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = Child::spawn(|| {
        (&theirs).write_all(&[1]).unwrap();
        if ready(&theirs) { 5 } else { 6 }
    })
    .unwrap();
    assert!(ready(&ours));
    kill_current_process_group(Signal::TERM).unwrap();
    kill_process(getpid(), Signal::INT).unwrap();
    let mut arrived = [signals.next(), signals.next()];
    arrived.sort();
    assert_eq!(arrived, [Some(libc::SIGINT), Some(libc::SIGTERM)]);
    (&ours).write_all(&[1]).unwrap();
    assert_eq!(child.wait().unwrap(), End::Status(5));
}

fn child_that_is_killed_or_dropped_is_gone() {
    let mut child = Child::spawn(|| sleep_for_ever()).unwrap();
    child.kill();
    assert_eq!(child.wait().unwrap(), End::Killed(libc::SIGKILL));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let child = Child::spawn(|| {
        (&theirs).write_all(&[1]).unwrap();
        sleep_for_ever()
    })
    .unwrap();
    drop(theirs);
    assert!(ready(&ours));
    drop(child);
    assert!(!ready(&ours), "it holds its end of the pair");
}

fn child_ends_with_its_parent() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut parent = Child::spawn(|| {
        let grandchild = Child::spawn(|| {
            let id = getpid().as_raw_nonzero().get();
            (&theirs).write_all(&id.to_ne_bytes()).unwrap();
            sleep_for_ever()
        });
        // This process ends without a destructor.
        std::mem::forget(grandchild);
        assert!(ready(&theirs));
        process::abort()
    })
    .unwrap();
    drop(theirs);
    let mut id = [0; 4];
    (&ours).read_exact(&mut id).unwrap();
    let grandchild = Pid::from_raw(i32::from_ne_bytes(id)).unwrap();
    assert!(kill_process(grandchild, Signal::CONT).is_ok());
    (&ours).write_all(&[1]).unwrap();
    assert_eq!(parent.wait().unwrap(), End::Killed(libc::SIGABRT));
    assert!(!ready(&ours), "the grandchild holds its end of the pair");
}

fn spawn_beside_other_threads_is_refused() {
    let other = thread::spawn(thread::park);
    let refused = Child::spawn(|| 0);
    assert!(matches!(refused, Err(SpawnError::Threads(2))), "{refused:?}");
    other.thread().unpark();
    other.join().unwrap();
}
