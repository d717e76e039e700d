//! Standard output.

use std::io::{self, StdoutLock, Write};
use std::process;

/// As a shell counts an end by SIGPIPE. Not 0, so that a verdict that nobody read is no good one.
const EXIT_NO_READER: i32 = 141;

/// Standard output of commands that print and end. Where nobody reads it any more, as behind `| head`,
/// the command ends, without a word.
pub(crate) struct Output(StdoutLock<'static>);

/// Where a command prints. One at a time: it is locked.
pub(crate) fn output() -> Output {
    Output(io::stdout().lock())
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).inspect_err(end_if_nobody_reads)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().inspect_err(end_if_nobody_reads)
    }
}

fn end_if_nobody_reads(error: &io::Error) {
    if error.kind() == io::ErrorKind::BrokenPipe {
        process::exit(EXIT_NO_READER);
    }
}
