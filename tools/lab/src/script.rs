//! The command as a shell script for the other side.

use std::env;
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

use crate::host::Host;
use crate::process;

/// What is passed on of the environment, besides everything of ours and of Rust's.
const PASSED: &[&str] = &["HOME", "LANG", "TERM"];

/// What is said where the current directory is not on the other side.
const ABSENT: &str = "is not in the emulated host: start from another directory";

/// Directories that the other side has of its own.
const FRESH: &[&str] = &["/tmp", "/run"];

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

/// What of this machine's `/tmp` and `/run` the command needs there: one line for each entry of those with
/// the current directory, this program, or a path that the command names.
pub(crate) fn visible(command: &[&str]) -> String {
    let own = [env::current_dir().ok(), env::current_exe().ok()].into_iter().flatten();
    let named = command.iter().map(PathBuf::from);
    let mut entries: Vec<_> = own.chain(named).filter_map(|path| fresh_entry(&path)).collect();
    entries.sort();
    entries.dedup();
    entries.retain(|entry| Path::new(entry).exists());
    entries.iter().map(|entry| format!("{entry}\n")).collect()
}

/// `/tmp/a` of `/tmp/a/b`.
fn fresh_entry(path: &Path) -> Option<String> {
    let place = FRESH.iter().find(|place| path.starts_with(place))?;
    match path.strip_prefix(place).ok()?.components().next()? {
        Component::Normal(name) => {
            let name = name.to_str().filter(|name| !name.contains('\n'))?;
            Some(format!("{place}/{name}"))
        }
        _ => None,
    }
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
    fn entries_of_tmp_and_run_are_those_above_what_is_named() {
        let entry = |path: &str| fresh_entry(Path::new(path));
        assert_eq!(entry("/tmp/a b/c/d").as_deref(), Some("/tmp/a b"));
        assert_eq!(entry("/run/a").as_deref(), Some("/run/a"));
        for path in ["/tmp", "/tmp/", "/tmp/../etc", "/tmpfs/a", "/etc/tmp", "tmp/a"] {
            assert_eq!(entry(path), None, "{path}");
        }
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        let inside = directory.path().join("file").display().to_string();
        let listed = visible(&["cat", &inside, &inside, "/tmp/not-there-for-certain"]);
        let expected = format!("{}\n", directory.path().display());
        assert_eq!(listed.matches(&expected).count(), 1, "{listed}");
        assert!(!listed.contains("not-there"), "{listed}");
    }

    #[test]
    fn a_shell_reads_the_words_that_were_given() {
        let words = ["printf", "%s|", "a b", "it's", "$HOME", "", "\\", "*\n;"];
        let script = command(&words, Host::Kvm);
        let out = process::run("sh", ["-c", &script]).unwrap();
        assert_eq!(out, "a b|it's|$HOME||\\|*\n;|");
    }
}
