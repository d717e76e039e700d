//! The monitor: a line of commands to the machine, on the guest's terminal.

use casemate_config::ByteSize;
use casemate_machine::{Control, Outcome, Outlet};

const HELP: &str = "\
status        what the guest does
power-button  press its power button
disks         tell it of disks whose size has changed
balloon SIZE  ask it for so much of its memory
reset         end the run as a reset would
quit          end the guest
Ctrl-A c      back to the guest
";
const PROMPT: &str = "> ";
const PAGE_SIZE: u64 = 4096;

/// A line that is typed.
pub(super) struct Monitor {
    line: String,
    /// To the terminal, beside the guest's own output.
    output: Outlet,
}

impl Monitor {
    pub(super) fn open(output: Outlet) -> Self {
        output.say(b"\nmonitor; help lists its commands\n");
        output.say(PROMPT.as_bytes());
        Self { line: String::new(), output }
    }

    /// Takes a key, and obeys when it completes a line.
    pub(super) fn key(&mut self, byte: u8, control: &Control) {
        let (echo, line) = self.edit(byte);
        self.output.say(echo.as_bytes());
        if let Some(line) = line {
            self.output.say(obey(line.trim(), control).as_bytes());
            self.output.say(PROMPT.as_bytes());
        }
    }

    /// What to echo, and the line when it is complete.
    fn edit(&mut self, byte: u8) -> (String, Option<String>) {
        const BACKSPACE: u8 = 0x08;
        const DELETE: u8 = 0x7f;
        match byte {
            b'\r' | b'\n' => ("\n".into(), Some(std::mem::take(&mut self.line))),
            BACKSPACE | DELETE if self.line.pop().is_some() => ("\x08 \x08".into(), None),
            b' '..=b'~' => {
                self.line.push(char::from(byte));
                (char::from(byte).into(), None)
            }
            _ => (String::new(), None),
        }
    }
}

/// Does what a line says; returns the answer.
fn obey(line: &str, control: &Control) -> String {
    match line.split_once(' ').unwrap_or((line, "")) {
        ("", _) => String::new(),
        ("status", "") => status(control),
        ("power-button", "") => match control.press_power_button() {
            Ok(()) => "pressed\n".into(),
            Err(error) => format!("KVM took no interrupt: {error}\n"),
        },
        ("disks", "") => disks(control),
        ("balloon", size) => balloon(size.trim(), control),
        ("reset", "") => stop(control, Outcome::Reset),
        ("quit", "") => stop(control, Outcome::Stopped),
        ("help", "") => HELP.into(),
        ("snapshot" | "restore" | "migrate", _) => copies(control.shared().is_some()).into(),
        _ => format!("no command {line:?}; help lists them\n"),
    }
}

fn stop(control: &Control, outcome: Outcome) -> String {
    control.stop(outcome);
    String::new()
}

fn status(control: &Control) -> String {
    let mut text = format!("running, {} exits so far\n", control.exits());
    if let Some(balloon) = control.balloon() {
        // A size has the quotation marks of configurations.
        let bytes = ByteSize(u64::from(balloon.actual()) * PAGE_SIZE).to_string();
        text.push_str(&format!("balloon: {}\n", bytes.trim_matches('"')));
    }
    if let Some(shared) = control.shared() {
        text.push_str(&format!("shared with the host: {}\n", super::report::shared(shared)));
    }
    text
}

/// Looks at the sizes of all disks again.
fn disks(control: &Control) -> String {
    let look = |disk: &casemate_machine::BlockHandle| match disk.look_again() {
        Ok(None) => format!("{}: {} bytes\n", disk.name(), disk.bytes()),
        Ok(Some(before)) => {
            format!("{}: {} bytes, before {before}; the guest is told\n", disk.name(), disk.bytes())
        }
        Err(error) => format!("{}: {error}\n", disk.name()),
    };
    let text: String = control.disks().iter().map(look).collect();
    if text.is_empty() { "the guest has no disk\n".into() } else { text }
}

fn balloon(size: &str, control: &Control) -> String {
    let Some(balloon) = control.balloon() else {
        return "the guest has no balloon; start it with --balloon true\n".into();
    };
    let pages = match size.parse::<ByteSize>() {
        Ok(size) => u32::try_from(size.0 / PAGE_SIZE).unwrap_or(u32::MAX),
        Err(error) => return format!("{error}\n"),
    };
    balloon.set_target(pages);
    "asked; status shows what it has given\n".into()
}

/// The answer to commands that would copy the guest's memory.
const fn copies(confidential: bool) -> &'static str {
    if confidential {
        "refused: the private memory of a confidential guest cannot be copied out of it; take a snapshot of \
         its disks after it has powered off, or launch it elsewhere with the same digest and let it attest \
         anew (casemate explain)\n"
    } else {
        "Casemate copies no guest's memory; take a snapshot of its disks after it has powered off\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_can_be_edited() {
        let mut monitor = Monitor::open(Outlet::sink().unwrap());
        let typed = b"\x7fstatux\x7fs\x1b\rx\x08quit\n";
        let lines: Vec<_> = typed.iter().filter_map(|byte| monitor.edit(*byte).1).collect();
        assert_eq!(lines, ["status", "quit"]);
    }

    #[test]
    fn copies_of_confidential_memory_are_refused_with_the_reason() {
        assert!(copies(true).contains("cannot be copied out") && copies(true).contains("digest"));
        assert!(!copies(false).contains("private memory"));
    }
}
