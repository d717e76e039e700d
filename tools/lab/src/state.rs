//! Saving the state of a machine that waits.

use std::io::{BufRead as _, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::machine::spawn;
use crate::patience::Patience;
use crate::process::last_lines;
use crate::script;

/// A first boot takes some ten seconds on a quiet machine.
const LIMIT: Duration = Duration::from_secs(180);
/// What the machine prints when it waits.
const READY: &str = "lab: ready";

/// Starts a machine by `command`, which has QMP on its standard streams, waits until it is ready,
/// and saves its state to `file`. An error is in words.
pub(crate) fn save(mut command: Command, console: &Path, file: &Path) -> Result<(), String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = spawn(&mut command).map_err(|error| error.to_string())?;
    let result = save_running(&mut child, console, file);
    let _ = child.kill();
    let _ = child.wait();
    result
}

fn save_running(child: &mut Child, console: &Path, file: &Path) -> Result<(), String> {
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("no standard streams".into());
    };
    let mut patience = Patience::new(child.id(), LIMIT);
    let read = || {
        std::fs::read(console)
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    };
    while !read().contains(READY) {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(format!("the emulator ended with {status}:\n{}", last_lines(&read(), 20)));
        }
        if patience.is_over() {
            return Err(format!("the host was not ready in time:\n{}", last_lines(&read(), 20)));
        }
        thread::sleep(Duration::from_millis(50));
    }
    let mut monitor = Monitor { input, output: BufReader::new(output) };
    monitor.ask("qmp_capabilities", &json!({}))?;
    // Nobody else uses the link: as fast as the disk.
    monitor.ask("migrate-set-parameters", &json!({ "max-bandwidth": 1_u64 << 40 }))?;
    // QEMU before 8.2 cannot write a file by itself.
    let uri = format!("exec:cat >{}", script::quote_path(file));
    monitor.ask("migrate", &json!({ "uri": uri }))?;
    loop {
        let answer = monitor.ask("query-migrate", &json!({}))?;
        match answer.get("status").and_then(Value::as_str) {
            Some("completed") => return Ok(()),
            Some("failed" | "cancelled") => return Err(answer.to_string()),
            _ if patience.is_over() => return Err("it takes too long".into()),
            _ => thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// QEMU's monitor protocol: a line of JSON each way, and events between.
struct Monitor {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Monitor {
    fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let failed = |error: std::io::Error| format!("{command}: {error}");
        let line = json!({ "execute": command, "arguments": arguments });
        writeln!(self.input, "{line}").map_err(failed)?;
        let mut line = String::new();
        while self.output.read_line(&mut line).map_err(failed)? > 0 {
            let mut answer: Value = serde_json::from_str(&line).unwrap_or_default();
            if let Some(error) = answer.get("error") {
                return Err(format!("{command}: {error}"));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            line.clear();
        }
        Err(format!("{command}: the emulator has gone"))
    }
}
