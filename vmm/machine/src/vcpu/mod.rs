//! vCPUs: the threads that run them.

mod kick;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use casemate_devices::bus::Bus;
use casemate_kvm::exit::{HypercallReply, MapGpaRange};
use casemate_launch::{Gpa, GpaRange};
use casemate_sandbox::{Sandbox, Thread};
use kvm_ioctls::{VcpuFd, VmFd};

use kick::Kickable;

use crate::arch::{self, Exit, RunPage};
use crate::outcome::{End, Outcome};
use crate::platform::{Answer, Caller, Platform};
use crate::prefault::{self, Gate, Key};
use crate::ram::GuestRam;

/// What vCPUs need of the machine while they run.
pub(crate) struct Surroundings {
    pub(crate) ports: Bus,
    pub(crate) memory: Bus,
    pub(crate) platform: Box<dyn Platform>,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) ram: GuestRam,
    pub(crate) end: End,
    /// What the guest has before it asks for it.
    pub(crate) prefault: Vec<GpaRange>,
    /// Exits of all vCPUs so far.
    pub(crate) exits: Arc<AtomicU64>,
}

/// The threads of a machine's vCPUs.
pub(crate) struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    /// Starts a thread for each vCPU. The guest's first instruction waits until the key is dropped.
    ///
    /// # Errors
    /// If the host has no more threads. Those that run already are stopped.
    pub(crate) fn start(
        vcpus: Vec<VcpuFd>,
        around: &Arc<Surroundings>,
        sandbox: &Sandbox,
    ) -> io::Result<(Self, Key)> {
        kick::allow()?;
        let mut threads = Self(Vec::with_capacity(vcpus.len()));
        let count = u32::try_from(vcpus.len()).unwrap_or(u32::MAX);
        let (gate, keys, other) = Gate::new(count);
        let mut keys = keys.into_iter();
        for (index, (vcpu, key)) in (0..).zip(vcpus.into_iter().zip(&mut keys)) {
            let name = format!("vcpu{index}");
            let (own, gate) = (around.clone(), gate.clone());
            let sandbox = sandbox.clone();
            let life = move || {
                let _last = DeclareEnd(&own.end);
                if let Err(error) = sandbox.enter(Thread::Vcpu) {
                    return own.end.declare(Outcome::Failed(chain(&error)));
                }
                key.give(&vcpu, &own.prefault, &own.end);
                gate.pass();
                live(index, vcpu, &own);
            };
            match thread::Builder::new().name(name).spawn(life) {
                Ok(thread) => threads.0.push(thread),
                Err(error) => {
                    around.end.declare(Outcome::Failed(error.to_string()));
                    drop((keys, other));
                    threads.join();
                    return Err(error);
                }
            }
        }
        Ok((threads, other))
    }

    /// Waits for all vCPUs to end, which they do once the end was declared.
    pub(crate) fn join(self) {
        for thread in &self.0 {
            kick::kick(thread);
        }
        for thread in self.0 {
            // A panic of the thread has been reported by its own hook.
            drop(thread.join());
        }
    }
}

/// vCPU `index`, from its first instruction to the end of the run.
fn live(index: u32, mut vcpu: VcpuFd, around: &Surroundings) {
    let page = RunPage::of(&mut vcpu);
    let _kickable = Kickable::new(page);
    while around.end.outcome().is_none() {
        match arch::run(&mut vcpu, page) {
            Ok(Exit::Unexpected(reason)) => {
                around.exits.fetch_add(1, Ordering::Relaxed);
                let caller = Caller { vcpu: index, vm: &around.vm, ram: &around.ram };
                match around.platform.answer(vcpu.get_kvm_run(), caller) {
                    Answer::Unknown => _ = around.handle(Exit::Unexpected(reason)),
                    Answer::Done => {}
                    Answer::Holding(held) => {
                        match arch::take_answer(&mut vcpu, page) {
                            Ok(exit) => _ = around.handle(exit),
                            Err(error) => around.end.declare(run_failed(error)),
                        }
                        drop(held);
                    }
                }
            }
            // By a kick at the end of the run, or because the process was stopped and goes on.
            Ok(Exit::Interrupted) => arch::tell_of_pause(&vcpu),
            Ok(exit) => {
                around.exits.fetch_add(1, Ordering::Relaxed);
                if let Some(range) = around.handle(exit) {
                    prefault::give(&vcpu, range, &around.end);
                }
            }
            Err(error) => around.end.declare(run_failed(error)),
        }
    }
}

/// KVM says no more than an errno when it cannot run a guest; the guest may be the cause.
fn run_failed(error: kvm_ioctls::Error) -> Outcome {
    let words = match error.errno() {
        libc::EINVAL => {
            "; the guest may have asked for what KVM does not know: the kernel's log may say more"
        }
        libc::ENOMEM => "; the host, or the cgroup that this guest runs in, has no memory left",
        _ => "",
    };
    Outcome::Failed(format!("KVM_RUN: {error}{words}"))
}

/// A vCPU that is gone for no known reason (a panic of its thread) ends the run.
struct DeclareEnd<'a>(&'a End);

impl Drop for DeclareEnd<'_> {
    fn drop(&mut self) {
        self.0.declare(Outcome::Failed("a vCPU's thread is gone".into()));
    }
}

impl Surroundings {
    /// Answers an exit. Memory that the guest has made private is returned: it is about to accept it.
    fn handle(&self, exit: Exit<'_>) -> Option<GpaRange> {
        tracing::trace!(?exit);
        match exit {
            Exit::PortWrite { port, size, data } => {
                for value in data.chunks(size) {
                    self.ports.write(port.into(), value);
                }
            }
            Exit::PortRead { port, size, data } => {
                for value in data.chunks_mut(size) {
                    self.ports.read(port.into(), value);
                }
            }
            Exit::MemoryWrite { address, data } => self.memory.write(address, data),
            Exit::MemoryRead { address, data } => self.memory.read(address, data),
            Exit::MapGpaRange { arguments, reply } => {
                let (said, private) = self.map_gpa_range(&arguments);
                *reply = said as u64;
                return private;
            }
            Exit::MemoryFault { gpa, size, private } => {
                if let Err(error) = self.ram.convert_for_access(&self.vm, gpa, size, private) {
                    self.end.declare(Outcome::Failed(chain(&error)));
                }
            }
            Exit::Interrupted => {}
            Exit::TripleFault => self.end.declare(Outcome::TripleFault),
            exit => self.end.declare(self.platform.last_words(&exit)),
        }
        None
    }

    /// The guest's own request, and what is private by it. What it gets wrong is its own problem: it
    /// is told, and goes on.
    fn map_gpa_range(&self, arguments: &[u64; 6]) -> (HypercallReply, Option<GpaRange>) {
        /// Bits of guest-physical addresses that any platform has.
        const WIDTH: u32 = 52;
        let done = match MapGpaRange::decode(arguments, WIDTH) {
            Ok(MapGpaRange { gpa, size, private, .. }) => {
                let done = self.ram.convert(&self.vm, gpa, size, private);
                let range = GpaRange::from_bytes(Gpa(gpa), size).ok().filter(|_| private);
                done.map(|()| range).map_err(|error| chain(&error))
            }
            Err(error) => Err(error.to_string()),
        };
        match done {
            Ok(private) => (HypercallReply::Done, private),
            Err(error) => {
                tracing::warn!(error, "a conversion that the guest asked for is refused");
                (HypercallReply::Invalid, None)
            }
        }
    }
}

/// An error with its causes, for a guest's last words.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_that_cannot_run_names_the_errno_and_its_cause() {
        for (errno, words) in [
            (libc::EINVAL, Some("what KVM does not know")),
            (libc::ENOMEM, Some("no memory left")),
            (libc::EIO, None),
        ] {
            let error = kvm_ioctls::Error::new(errno);
            let Outcome::Failed(text) = run_failed(error) else { panic!("a failure") };
            let rest = text.strip_prefix(&format!("KVM_RUN: {error}")).unwrap();
            assert_eq!(words.is_none(), rest.is_empty(), "{text}");
            assert!(words.is_none_or(|words| rest.contains(words)), "{text}");
        }
    }
}
