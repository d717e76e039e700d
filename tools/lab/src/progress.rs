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
            let left = left(&line, start.elapsed());
            say(format_args!("{what}: {} s{left}: {line}", start.elapsed().as_secs()));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// How long a step still takes whose line says `[done/all]`, as ninja's do.
fn left(line: &str, spent: Duration) -> String {
    let count = || {
        let (done, all) = line.strip_prefix('[')?.split_once(']')?.0.split_once('/')?;
        Some((done.parse::<u32>().ok()?, all.parse::<u32>().ok()?))
    };
    match count() {
        Some((done, all)) if 0 < done && done <= all => {
            format!(", about {} s left", (spent * (all - done) / done).as_secs())
        }
        _ => String::new(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_left_is_told_where_a_line_counts() {
        let left = |line| left(line, Duration::from_secs(30));
        assert_eq!(left("[300/900] Compiling"), ", about 60 s left");
        assert_eq!(left("[900/900] Linking"), ", about 0 s left");
        for line in ["[0/9] x", "[9/3] x", "[x/3]", "CC  mm/slub.o", ""] {
            assert_eq!(left(line), "", "{line}");
        }
    }
}
