//! Compiles the tables of system calls to BPF programs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

#[path = "src/filter/table.rs"]
mod table;
#[allow(unreachable_pub, reason = "the library exports it")]
#[path = "src/filter/thread.rs"]
mod thread;

use table::Condition;
use thread::Thread;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome<()> {
    println!("cargo::rerun-if-changed=src/filter");
    println!("cargo::rerun-if-changed=build.rs");
    let mut text = String::new();
    for thread in Thread::ALL {
        let name = format!("{thread:?}").to_uppercase();
        let program = program(thread)?;
        let length = program.len();
        writeln!(text, "pub(super) static {name}: [Instruction; {length}] = [")?;
        for instruction in program {
            let seccompiler::sock_filter { code, jt, jf, k } = instruction;
            writeln!(text, "    Instruction {{ code: {code}, jt: {jt}, jf: {jf}, k: {k:#x} }},")?;
        }
        writeln!(text, "];")?;
    }
    let folder = env::var("OUT_DIR")?;
    Ok(fs::write(Path::new(&folder).join("programs.rs"), text)?)
}

/// The program of a kind of thread.
fn program(thread: Thread) -> Outcome<BpfProgram> {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for rule in thread.rules() {
        let of_call = rules.entry(rule.call).or_default();
        let conditions: Outcome<Vec<_>> = rule.conditions.iter().flatten().map(condition).collect();
        let conditions = conditions?;
        if !conditions.is_empty() {
            of_call.push(SeccompRule::new(conditions)?);
        }
    }
    let (otherwise, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, otherwise, listed, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

fn condition(condition: &Condition) -> Outcome<SeccompCondition> {
    let Condition { index, mask, value } = *condition;
    let (length, operator) = if mask == u64::from(u32::MAX) {
        (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq)
    } else {
        (SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask))
    };
    Ok(SeccompCondition::new(index, length, operator, value)?)
}
