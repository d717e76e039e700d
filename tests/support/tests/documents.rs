//! The repository's documents: what they name is there, and what is there is named.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: impl AsRef<Path>) -> String {
    let path = repository().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Folders of the book, one for each kind of page.
const KINDS: [&str; 4] = ["tutorial", "how-to", "reference", "explanation"];

/// The pages of the book, relative to its folder.
fn pages() -> Vec<String> {
    let within = |folder: &str| {
        let entries = fs::read_dir(repository().join("docs/src").join(folder)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let pages = names.filter(|name| name.ends_with(".md"));
        pages.map(|name| Path::new(folder).join(name)).collect::<Vec<_>>()
    };
    let paths = [""].into_iter().chain(KINDS).flat_map(within);
    paths.map(|path| path.to_str().unwrap().to_owned()).collect()
}

/// `path` without `.` and `..`, as a renderer resolves a link.
fn resolved(path: &Path) -> PathBuf {
    let mut resolved = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir if !resolved.pop() => resolved.push(".."),
            Component::ParentDir | Component::CurDir => {}
            other => resolved.push(other),
        }
    }
    resolved
}

/// The targets of a document's links, without those in blocks of code.
fn links(text: &str) -> Vec<String> {
    let prose = text.split("```").step_by(2).collect::<String>();
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}

/// The anchor of a heading, as both the book and code hosts make it.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

fn has_anchor(text: &str, wanted: &str) -> bool {
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    headings.map(|line| anchor(line.trim_start_matches('#').trim())).any(|have| have == wanted)
}

fn workspace() -> toml::Value {
    let manifest: toml::Value = toml::from_str(&read("Cargo.toml")).unwrap();
    manifest["workspace"].clone()
}

/// The folders of the crates.
fn crates() -> Vec<String> {
    let workspace = workspace();
    let members = workspace["members"].as_array().unwrap();
    members.iter().map(|member| member.as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_crate_is_in_the_table_of_the_architecture() {
    let table = read("docs/src/explanation/architecture.md");
    for folder in crates() {
        let own: toml::Value =
            toml::from_str(&read(Path::new(&folder).join("Cargo.toml"))).unwrap();
        let name = own["package"]["name"].as_str().unwrap();
        let row = table.lines().find(|line| line.starts_with(&format!("| `{folder}` | ")));
        let row = row.unwrap_or_else(|| panic!("architecture.md has no row for {folder}"));
        assert!(row.contains(&format!("`{name}`")), "{name} is not in {row}");
    }
}

/// A reader of a crate's folder finds its purpose, an example and the book.
/// Files that the architecture sends readers to.
#[test]
fn files_that_the_architecture_names_exist() {
    let page = read("docs/src/explanation/architecture.md");
    let is_file = |word: &&str| word.contains('/') && word.ends_with(".rs") && !word.contains(' ');
    let named: Vec<_> = page.split('`').skip(1).step_by(2).filter(is_file).collect();
    assert!(named.len() >= 15, "{named:?}");
    for file in named {
        // Files of the command's own folder are named from there.
        let command = repository().join("tools/casemate/src/commands");
        let exists = repository().join(file).is_file() || command.join(file).is_file();
        assert!(exists, "{file}");
    }
}

#[test]
fn every_crate_has_a_readme_with_example_and_link() {
    for folder in crates() {
        let text = read(Path::new(&folder).join("README.md"));
        assert!(text.contains("\n```"), "{folder}/README.md shows no example");
        assert!(!links(&text).is_empty(), "{folder}/README.md has no link");
    }
}

#[test]
fn changelog_describes_the_workspace_version() {
    let version = workspace()["package"]["version"].as_str().unwrap().to_owned();
    let heading = format!("\n## [{version}] - ");
    assert!(read("CHANGELOG.md").contains(&heading), "CHANGELOG.md does not describe {version}");
}

/// As `mdbook build` wants it: without the page it fails, and a page that is not named is not built.
#[test]
fn the_summary_of_the_book_names_each_page() {
    let mut named = links(&read("docs/src/SUMMARY.md"));
    let mut there = pages();
    there.retain(|page| page != "SUMMARY.md");
    named.sort();
    there.sort();
    assert_eq!(named, there);
}

#[test]
fn links_within_the_repository_lead_somewhere() {
    let pages = pages().into_iter().map(|page| format!("docs/src/{page}"));
    let others =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "tools/lab/qemu/README.md"];
    let mut count = 0;
    let readmes = crates().into_iter().map(|folder| format!("{folder}/README.md"));
    for document in others.into_iter().map(str::to_owned).chain(readmes).chain(pages) {
        let text = read(&document);
        let folder = Path::new(&document).parent().unwrap();
        for link in links(&text).iter().filter(|link| !link.contains(':')) {
            let (path, wanted) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                document.clone().into()
            } else {
                resolved(&folder.join(path))
            };
            let there = repository().join(&target);
            assert!(there.exists(), "{document}: {link} leads nowhere");
            // The book is built of its own folder alone.
            let within = !document.starts_with("docs/src/") || target.starts_with("docs/src");
            assert!(within, "{document}: {link} is not in the book");
            assert!(
                wanted.is_empty() || has_anchor(&read(&target), wanted),
                "{document}: {link}: there is no such heading"
            );
            count += 1;
        }
    }
    assert!(count > 20, "{count} links were found");
}

#[test]
fn links_and_anchors_are_those_that_renderers_make() {
    let text = "# What it is made of\n[a](b.md#c) `x`\n```\n[no](code.md)\n```\n[d](#e)";
    assert_eq!(links(text), ["b.md#c", "#e"]);
    assert!(has_anchor(text, "what-it-is-made-of") && !has_anchor(text, "what"));
    assert_eq!(anchor("Guests: `a_b`, c"), "guests-a_b-c");
}

/// A merge that was cut short leaves lines of both sides, and a script that no longer parses.
#[test]
fn every_script_parses_and_no_file_has_marks_of_a_merge() {
    let git = |arguments: &[&str]| {
        let output =
            Command::new("git").args(arguments).current_dir(repository()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let marks = git(&["grep", "-InE", "^(<{7}|>{7}|[|]{7})( |$)"]);
    assert!(marks.is_empty(), "marks of a merge:\n{marks}");
    let scripts = git(&["grep", "-IlE", "^#!/(usr/bin/env bash|bin/(ba)?sh)"]);
    assert!(scripts.contains("tests/scripts/setup\n"), "{scripts}");
    for script in scripts.lines() {
        let parsed =
            Command::new("bash").args(["-n", script]).current_dir(repository()).output().unwrap();
        assert!(parsed.status.success(), "{script}: {}", String::from_utf8_lossy(&parsed.stderr));
    }
}

#[test]
fn pictures_are_named_readable_aloud_and_made_for_both_themes() {
    let text: String = pages().iter().map(|page| read(Path::new("docs/src").join(page))).collect();
    let mut count = 0;
    for kind in KINDS {
        for entry in fs::read_dir(repository().join("docs/src").join(kind)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.ends_with(".svg") {
                continue;
            }
            let picture = read(Path::new("docs/src").join(kind).join(&name));
            assert!(text.contains(&format!("]({name})")), "no page shows {name}");
            for part in ["role=\"img\"", "<title", "<desc", "<text", "prefers-color-scheme: dark"] {
                assert!(picture.contains(part), "{name} does not have {part}");
            }
            count += 1;
        }
    }
    assert!(count >= 3, "{count} pictures");
}

/// A second way to escape text from outside would differ from the first in what it lets through.
#[test]
fn foreign_text_is_escaped_by_one_crate() {
    let output = Command::new("git")
        .args(["grep", "-IlE", r"\.escape_(debug|default|unicode)\(", "--", "tools/*.rs"])
        .current_dir(repository())
        .output()
        .unwrap();
    let files = String::from_utf8(output.stdout).unwrap();
    assert_eq!(files, "tools/attest/foreign/src/lib.rs\n");
}

/// A verifier computes a guest's measurement on any operating system.
#[test]
fn crates_of_the_plan_use_one_operating_systems_parts_in_one_file() {
    let output = Command::new("git")
        .args(["grep", "-IlE", r"\bos::(unix|linux|fd)\b|\b(rustix|libc)::", "--"])
        .args(["vmm/launch/src", "vmm/config/src", "vmm/plan/src", "firmware/logic/src"])
        .current_dir(repository())
        .output()
        .unwrap();
    let files = String::from_utf8(output.stdout).unwrap();
    assert_eq!(files, "vmm/config/src/file_kind.rs\n");
}

/// Phrases that hide the acting subject or its name, and the plain ones that readers expect.
const VAGUE: [(&str, &str); 6] = [
    ("in the way of", "blocks"),
    ("is asked", "receives the request, or name who requests"),
    ("are asked", "receive the request, or name who requests"),
    ("its word", "its report"),
    ("to and fro", "between A and B"),
    ("of ours", "of Casemate"),
];

/// Headings name what a reader searches for: a noun or an imperative, no question.
#[test]
fn prose_of_the_book_is_plain() {
    let mut faults = Vec::new();
    for page in pages() {
        let text = read(Path::new("docs/src").join(&page));
        let prose: String = text.split("```").step_by(2).collect();
        for line in prose.lines().filter(|line| !line.starts_with("    ")) {
            for (phrase, plain) in VAGUE.iter().filter(|(phrase, _)| line.contains(phrase)) {
                faults.push(format!("{page}: \"{phrase}\": write \"{plain}\": {line}"));
            }
            let question = ["What", "Where", "Who", "How", "Why"].iter().any(|word| {
                let heading = line.trim_start_matches('#').trim_start();
                line.starts_with('#') && heading.split(' ').next() == Some(word)
            });
            if question || line.starts_with('#') && line.ends_with('?') {
                faults.push(format!("{page}: a heading is a noun or an imperative: {line}"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
