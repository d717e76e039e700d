//! Commands recorded, replayed, or made to fail.
//!
//! A thread that runs within [`Interposer::run`] has each command of this crate written down as an
//! [`Event`]. What answers it is the kernel, a recorded trace, or success without a kernel, and any
//! command can be made to fail instead. This is what `casemate run --record` writes, and how tests
//! go through a launch on a machine that has none of the platforms.
//!
//! What is written down is each command to /dev/kvm, to VMs and their vCPUs, and to /dev/sev, whether
//! this crate makes it or kvm-ioctls for it, and that the two devices were opened; not KVM_RUN. A file
//! descriptor is never part of it.
//!
//! **Where no kernel answers, objects are stand-ins.** Later commands need something to be made on:
//! KVM_CREATE_VM then gives a plain VM of this machine's /dev/kvm, KVM_CREATE_VCPU a vCPU of that,
//! KVM_CREATE_GUEST_MEMFD an ordinary file, and /dev/sev is /dev/null. They are never asked anything: all commands on them are
//! answered as this one was. So a trace that is replayed shows that the same is asked, with the same
//! arguments and in the same order, and what becomes of the answers, such as the host's CPUID. That a
//! kernel would take it, the machine has shown on which it was recorded.
//!
//! ```
//! # use casemate_kvm::trace::{Interposer, Reply};
//! let denied = Reply::errno(libc::EBUSY);
//! let (outcome, events) = Interposer::succeeding()
//!     .failing("KVM_SEV_INIT2", 1, denied)
//!     .run(|| { /* launch */ });
//! ```

use std::cell::RefCell;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::boundary::Argument;
pub use crate::boundary::Reply;

/// One command, as it was asked for and answered. A trace is a list of them, a JSON object each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// The command's name in the kernel's headers.
    pub command: String,
    /// Its arguments in words, without addresses of the process and without secrets.
    pub arguments: String,
    /// How it ended.
    pub reply: Reply,
    /// What the kernel wrote into the argument.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub written: Vec<Written>,
}

/// Bytes that the kernel changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Where in the argument.
    pub offset: usize,
    /// The bytes that are there now; hexadecimal digits in a trace.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
}

mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        to.serialize_str(&digits)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Vec<u8>, D::Error> {
        let digits = String::deserialize(from)?;
        let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
        let byte = |pair: &[u8; 2]| {
            let pair = str::from_utf8(pair).ok().filter(|_| pair.iter().all(u8::is_ascii_hexdigit));
            u8::from_str_radix(pair?, 16).ok()
        };
        let bytes: Option<Vec<u8>> = pairs.iter().map(byte).collect();
        bytes.filter(|_| rest.is_empty()).ok_or_else(|| D::Error::custom("no hexadecimal digits"))
    }
}

/// Who answers commands.
enum Answers {
    Kernel,
    Success,
    Trace(VecDeque<Event>),
}

/// A command that fails.
struct Failure {
    command: String,
    countdown: usize,
    reply: Reply,
}

/// Stands between a thread's commands and the kernel.
pub struct Interposer {
    answers: Answers,
    failures: Vec<Failure>,
    events: Vec<Event>,
}

thread_local! {
    static ACTIVE: RefCell<Option<Interposer>> = const { RefCell::new(None) };
}

impl Interposer {
    /// The kernel answers; commands are only written down.
    #[must_use]
    pub fn recording() -> Self {
        Self::new(Answers::Kernel)
    }

    /// Every command succeeds at once and changes nothing. Those that ask for something get zeroes.
    #[must_use]
    pub fn succeeding() -> Self {
        Self::new(Answers::Success)
    }

    /// `events` answer, in their order. A command that is not the next one, or has other
    /// arguments, fails with EPROTO; what was asked for is in the events that [`Self::run`] returns.
    #[must_use]
    pub fn replaying(events: Vec<Event>) -> Self {
        Self::new(Answers::Trace(events.into()))
    }

    fn new(answers: Answers) -> Self {
        Self { answers, failures: Vec::new(), events: Vec::new() }
    }

    /// Lets the `nth` (from 1) run of `command` end with `reply`, without a call into the kernel.
    #[must_use]
    pub fn failing(mut self, command: &str, nth: usize, reply: Reply) -> Self {
        self.failures.push(Failure { command: command.to_owned(), countdown: nth, reply });
        self
    }

    /// Runs `work` on this thread under the interposer, and returns what it returned and every
    /// command it ran. Threads that `work` starts are not covered.
    pub fn run<T>(self, work: impl FnOnce() -> T) -> (T, Vec<Event>) {
        // What was active before is so again afterwards, also when `work` panics.
        struct Restore(Option<Interposer>);
        impl Drop for Restore {
            fn drop(&mut self) {
                ACTIVE.set(self.0.take());
            }
        }
        let _restore = Restore(ACTIVE.replace(Some(self)));
        let outcome = work();
        let events = ACTIVE.take().map(|active| active.events).unwrap_or_default();
        (outcome, events)
    }

    /// The reply that is not the kernel's, and what it writes; None if the kernel is to answer. A
    /// command that has done all that is asked returns `whole`.
    fn answer(&mut self, name: &str, arguments: &str, whole: i32) -> Option<(Reply, Vec<Written>)> {
        for failure in self.failures.iter_mut().filter(|failure| failure.command == name) {
            failure.countdown = failure.countdown.wrapping_sub(1);
            if failure.countdown == 0 {
                return Some((failure.reply, Vec::new()));
            }
        }
        match &mut self.answers {
            Answers::Kernel => None,
            Answers::Success => Some((Reply { value: whole, ..Reply::default() }, Vec::new())),
            Answers::Trace(events) => Some(match events.pop_front() {
                Some(event) if event.command == name && event.arguments == arguments => {
                    (event.reply, event.written)
                }
                _ => (Reply::errno(libc::EPROTO), Vec::new()),
            }),
        }
    }
}

/// Whether the thread has an interposer.
pub(crate) fn is_active() -> bool {
    ACTIVE.with_borrow(Option::is_some)
}

/// Answers a command: by the thread's interposer if there is one, else by `kernel`.
pub(crate) fn through<A: Argument>(
    name: &str,
    arguments: &str,
    argument: &mut A,
    kernel: impl FnOnce(&mut A) -> Reply,
) -> Reply {
    if !is_active() {
        return kernel(argument);
    }
    let before = argument.bytes().to_vec();
    let whole = argument.whole();
    let answer = ACTIVE.with_borrow_mut(|active| active.as_mut()?.answer(name, arguments, whole));
    let reply = match answer {
        None => kernel(argument),
        Some((reply, written)) => {
            apply(argument, reply, &written);
            reply
        }
    };
    let event = Event {
        command: name.to_owned(),
        arguments: arguments.to_owned(),
        reply,
        written: difference(&before, argument.bytes(), A::HOST_ADDRESSES),
    };
    ACTIVE.with_borrow_mut(|active| {
        if let Some(active) = active {
            active.events.push(event);
        }
    });
    reply
}

/// Writes what the kernel wrote, or, where nothing is said of that, what it does on success.
fn apply<A: Argument>(argument: &mut A, reply: Reply, written: &[Written]) {
    let bytes = argument.bytes();
    if reply.errno == 0
        && written.is_empty()
        && let Some(left) = A::REMAINING.and_then(|offset| bytes.get_mut(offset..offset + 8))
    {
        left.fill(0);
    }
    for Written { offset, bytes: new } in written {
        let end = offset.saturating_add(new.len());
        if let Some(old) = bytes.get_mut(*offset..end) {
            old.copy_from_slice(new);
        }
    }
}

/// The runs of bytes that differ, without those that are `addresses`. What is the same between two that
/// differ is in the run if it is short: that takes less room than another run.
fn difference(before: &[u8], after: &[u8], addresses: &[usize]) -> Vec<Written> {
    const SHORT: usize = 32;
    let hidden =
        |offset: &usize| addresses.iter().any(|start| (*start..start + 8).contains(offset));
    let mut runs: Vec<Written> = Vec::new();
    for (offset, (old, new)) in before.iter().zip(after).enumerate() {
        if old == new || hidden(&offset) {
            continue;
        }
        if let Some(run) = runs.last_mut() {
            let mut between = run.offset + run.bytes.len()..offset;
            if between.len() <= SHORT && !between.any(|offset| hidden(&offset)) {
                run.bytes.extend(&after[run.offset + run.bytes.len()..=offset]);
                continue;
            }
        }
        runs.push(Written { offset, bytes: vec![*new] });
    }
    runs
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::Kvm;

    use super::*;
    use crate::vm::{SevAttributes, enable_map_gpa_range_exits, enable_split_irqchip};

    /// Commands that any KVM answers, one of them with an error on every one without SEV.
    fn commands() -> (SevAttributes, bool) {
        let kvm = Kvm::new().expect("these tests need a /dev/kvm that this user may open");
        let vm = kvm.create_vm().expect("a plain VM");
        let enabled = enable_map_gpa_range_exits(&vm).and_then(|()| enable_split_irqchip(&vm, 24));
        (SevAttributes::of(&kvm), enabled.is_ok())
    }

    #[test]
    fn what_was_recorded_can_be_replayed() {
        let plain = commands();
        let (recorded, trace) = Interposer::recording().run(commands);
        assert_eq!((recorded, trace.len()), (plain, 5));
        let text = serde_json::to_string(&trace).expect("JSON");
        let trace_again: Vec<Event> = serde_json::from_str(&text).expect("the same JSON");
        assert_eq!(trace_again, trace);
        let (replayed, trace_again) = Interposer::replaying(trace.clone()).run(commands);
        assert_eq!((replayed, trace_again), (plain, trace));
    }

    #[test]
    fn another_command_than_the_recorded_one_fails() {
        let ((_, enabled), _) = Interposer::replaying(Vec::new()).run(commands);
        assert!(!enabled);
    }

    #[test]
    fn addresses_are_not_written_down() {
        let before = [0; 72];
        let mut after = [0; 72];
        after[3] = 1;
        after[8..16].fill(0xff);
        after[17..19].fill(2);
        after[21] = 3;
        after[70] = 4;
        let runs = difference(&before, &after, &[8]);
        let run = |offset, bytes: &[u8]| Written { offset, bytes: bytes.to_vec() };
        assert_eq!(runs, [run(3, &[1]), run(17, &[2, 2, 0, 0, 3]), run(70, &[4])]);
    }

    #[test]
    fn bytes_are_hexadecimal_digits_and_nothing_else_is_taken() {
        let written = Written { offset: 1, bytes: vec![0, 0xaf] };
        let text = serde_json::to_string(&written).expect("JSON");
        assert_eq!(text, r#"{"offset":1,"bytes":"00af"}"#);
        for (digits, good) in
            [("00af", true), ("", true), ("0", false), ("+1", false), ("gg", false)]
        {
            let text = format!(r#"{{"offset":1,"bytes":"{digits}"}}"#);
            assert_eq!(serde_json::from_str::<Written>(&text).is_ok(), good, "{digits}");
        }
    }

    #[test]
    fn a_panic_leaves_no_interposer_behind() {
        let panicked = std::panic::catch_unwind(|| {
            Interposer::succeeding().run(|| panic!("as a test does"));
        });
        assert!(panicked.is_err());
        assert!(ACTIVE.with_borrow(Option::is_none));
    }
}
