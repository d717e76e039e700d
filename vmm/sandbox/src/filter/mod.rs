//! Filters of system calls (seccomp), one for each kind of thread: `build.rs` makes them of `table.rs`.

#[cfg(test)]
mod table;
mod thread;

use seccompiler::{BpfProgramRef, apply_filter, sock_filter as Instruction};
pub use thread::Thread;

use crate::Mode;

/// Made by `build.rs` of the tables.
mod programs {
    use super::Instruction;

    include!(concat!(env!("OUT_DIR"), "/programs.rs"));
}

/// Lets the calling thread make no system calls from now on but those of its kind.
pub(crate) fn install(thread: Thread, mode: Mode) -> Result<(), seccompiler::Error> {
    let program = program(thread);
    match mode {
        Mode::Off => Ok(()),
        Mode::On => apply_filter(program),
        Mode::Log => apply_filter(&logging(program)),
    }
}

fn program(thread: Thread) -> BpfProgramRef<'static> {
    match thread {
        Thread::Main => &programs::MAIN,
        Thread::Io => &programs::IO,
        Thread::Vcpu => &programs::VCPU,
        Thread::Writer => &programs::WRITER,
        Thread::Serial => &programs::SERIAL,
        Thread::Check => &programs::CHECK,
        Thread::Quote => &programs::QUOTE,
        Thread::Teardown => &programs::TEARDOWN,
        Thread::Broker => &programs::BROKER,
    }
}

/// The same program, which lets the kernel log what it would kill for.
fn logging(program: BpfProgramRef<'_>) -> Vec<Instruction> {
    let mut program = program.to_vec();
    for instruction in &mut program {
        if u32::from(instruction.code) == libc::BPF_RET | libc::BPF_K
            && instruction.k == libc::SECCOMP_RET_KILL_PROCESS
        {
            instruction.k = libc::SECCOMP_RET_LOG;
        }
    }
    program
}

#[cfg(test)]
mod tests {
    use super::table::Rule;
    use super::*;

    #[test]
    fn no_rule_is_redundant() {
        for thread in Thread::ALL {
            let rules: Vec<_> = thread.rules().collect();
            for (at, rule) in rules.iter().enumerate() {
                for other in &rules[at + 1..] {
                    let any = |rule: &Rule| rule.conditions.iter().all(Option::is_none);
                    let implied =
                        rule.call == other.call && (any(rule) || any(other) || rule == other);
                    assert!(!implied, "{thread:?} allows {rule:?} by {other:?} as well");
                }
            }
        }
    }

    #[test]
    fn programs_end_in_a_kill_and_log_only_where_asked() {
        for thread in Thread::ALL {
            let count = |program: &[Instruction], k| {
                program.iter().filter(|one| one.code == 6 && one.k == k).count()
            };
            let (kill, log) = (libc::SECCOMP_RET_KILL_PROCESS, libc::SECCOMP_RET_LOG);
            let logged = logging(program(thread));
            assert!(count(program(thread), kill) >= 1, "{thread:?}");
            assert_eq!(count(&logged, kill), 0, "{thread:?}");
            assert_eq!(count(&logged, log), count(program(thread), kill), "{thread:?}");
        }
    }
}
