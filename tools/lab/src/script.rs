//! The command as a shell script for the other side.

use std::env;
use std::fmt::Write as _;
use std::path::Path;

use crate::host::Host;
use crate::process;

/// What is passed on of the environment, besides everything of ours and of Rust's.
const PASSED: &[&str] = &["HOME", "LANG", "TERM"];

/// What is said where the current directory is not on the other side.
const ABSENT: &str =
    "is not in the emulated host, whose /tmp and /run are its own: start from another directory";

/// A script that runs `command` in the current directory, with the part of the environment that
/// makes sense in another machine.
pub(crate) fn command(command: &[&str], host: Host) -> String {
    let mut script = String::new();
    let mut line = |text: String| {
        script.push_str(&text);
        script.push('\n');
    };
    for (name, value) in env::vars() {
        if PASSED.contains(&name.as_str())
            || name.starts_with("CASEMATE_")
            || name.starts_with("RUST_")
        {
            line(format!("export {name}={}", quote(&value)));
        }
    }
    line(format!("export PATH={}", quote(&search_path())));
    // So that whatever runs there can tell.
    line(format!("export CASEMATE_LAB={host}"));
    if let Ok(directory) = env::current_dir() {
        let directory = quote(&directory.display().to_string());
        line(format!(
            "cd {directory} 2>/dev/null || {{ echo lab: {directory} {ABSENT}; exit 125; }}"
        ));
    }
    let words: Vec<_> = command.iter().map(|word| quote(word)).collect();
    let _ = writeln!(script, "exec {}", words.join(" "));
    script
}

/// This program's own directory first, so that `casemate lab run -- casemate` runs this one.
fn search_path() -> String {
    let path = env::var("PATH").unwrap_or_default();
    let own = env::current_exe().ok().and_then(|program| Some(program.parent()?.to_owned()));
    let own = own.map_or(String::new(), |own| format!("{}:", own.display()));
    format!("{own}{path}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}

/// Rows and columns as `stty` takes them.
pub(crate) fn terminal_size() -> String {
    // The tool asks its standard input, which is the terminal only when it is inherited.
    let mut command = std::process::Command::new("stty");
    let size = command.args(["-F", "/dev/tty", "size"]);
    let size = process::output(size).unwrap_or_default();
    match size.split_whitespace().collect::<Vec<_>>()[..] {
        [rows, columns] => format!("rows {rows} cols {columns}\n"),
        _ => "rows 24 cols 80\n".into(),
    }
}

/// A path as one word for a shell.
pub(crate) fn quote_path(path: &Path) -> String {
    quote(&path.display().to_string())
}

/// One word for a shell.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_words_that_were_given() {
        let words = ["printf", "%s|", "a b", "it's", "$HOME", "", "\\", "*\n;"];
        let script = command(&words, Host::Kvm);
        let out = process::run("sh", ["-c", &script]).unwrap();
        assert_eq!(out, "a b|it's|$HOME||\\|*\n;|");
    }
}
