//! Words for whoever waits.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// How often a long step says how far it is.
const EVERY: Duration = Duration::from_secs(20);

/// One line on the standard error: what is being done that takes a while.
pub(crate) fn say(what: fmt::Arguments<'_>) {
    eprintln!("lab: {what}");
}

/// Waits for a program and now and then says what it wrote last to its log.
pub(crate) fn watch(mut child: Child, log: &Path, what: &str) -> io::Result<ExitStatus> {
    let start = Instant::now();
    let mut said = start;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if said.elapsed() >= EVERY {
            said = Instant::now();
            let line = last_line(log).unwrap_or_default();
            say(format_args!("{what}: {} s: {line}", start.elapsed().as_secs()));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn last_line(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(1000)))?;
    let mut end = Vec::new();
    file.read_to_end(&mut end)?;
    let end = String::from_utf8_lossy(&end);
    let line = end.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    Ok(line.chars().take(100).collect())
}
