//! Directories as sources.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use casemate_image::Selection;

use crate::archive::{Tar, digits};
use crate::support::{Folder, list, message};

/// A command that must succeed.
#[track_caller]
pub(crate) fn command(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; run make setup"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {text}");
    text
}

/// Files of all kinds that need no privileges.
fn fill(root: &Path, reverse: bool) {
    let mut names: Vec<_> = (0..300).map(|number| format!("file-{number:03}")).collect();
    if reverse {
        names.reverse();
    }
    fs::create_dir_all(root.join("many")).unwrap();
    for name in names {
        let path = root.join("many").join(&name);
        fs::write(&path, name.repeat(name.len() * 50)).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    }
    fs::hard_link(root.join("many/file-000"), root.join("other-name")).unwrap();
    symlink("many/file-001", root.join("link")).unwrap();
    for folder in [root.to_owned(), root.join("many")] {
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
    let root = root.to_str().unwrap();
    command("find", &[root, "-exec", "touch", "-h", "-d", "2024-01-02 03:04:05", "{}", "+"]);
}

#[test]
fn order_of_creation_and_file_system_do_not_matter() {
    let hashes = [(false, "/dev/shm"), (true, "/var/tmp")].map(|(reverse, place)| {
        let source = tempfile::tempdir_in(place).unwrap();
        fill(source.path(), reverse);
        let folder = Folder::new();
        folder.build(source.path()).unwrap();
        digits(&fs::read(folder.output()).unwrap())
    });
    assert_eq!(hashes[0], hashes[1]);
}

#[test]
fn directory_gives_the_bytes_of_an_archive_of_it() {
    let folder = Folder::new();
    let source = folder.path("source");
    fs::create_dir(&source).unwrap();
    fill(&source, false);
    let tar = folder.path("layer.tar");
    let (path, target) = (source.to_str().unwrap(), tar.to_str().unwrap());
    let selection = Selection { all_root: true, ..Selection::default() };
    let directory = folder.build_with(&source, &selection).unwrap().verity;
    for (format, sort) in [("gnu", "name"), ("posix", "none"), ("ustar", "inode")] {
        let format = format!("--format={format}");
        let sort = format!("--sort={sort}");
        command("tar", &[&format, &sort, "--owner=0", "--group=0", "-C", path, "-cf", target, "."]);
        let built = folder.build_layers(vec![fs::read(&tar).unwrap()]).unwrap();
        assert_eq!(built.verity, directory, "{format}");
    }
}

#[test]
fn users_and_umasks_do_not_matter() {
    let folder = Folder::new();
    let source = folder.path("source");
    fs::create_dir(&source).unwrap();
    fill(&source, false);
    let expected = folder.build(&source).unwrap().verity.root_hash_hex();
    // This test's own program builds again, with another user and umask, where it may change them.
    let program = std::env::current_exe().unwrap();
    let user = rustix_is_root().then_some("setpriv --reuid=65534 --regid=65534 --clear-groups ");
    let output = folder.path("foreign");
    fs::create_dir(&output).unwrap();
    fs::set_permissions(&output, Permissions::from_mode(0o777)).unwrap();
    command("chmod", &["-R", "a+rX", folder.path("").to_str().unwrap()]);
    // The change of permissions is one of the source, and part of the image.
    let expected_now = folder.build(&source).unwrap().verity.root_hash_hex();
    assert_ne!(expected, expected_now);
    let copy = folder.path("program");
    fs::copy(program, &copy).unwrap();
    let line = format!(
        "umask 0077; SOURCE={} OUTPUT={}/image exec {}{} --exact --nocapture directories::builds_for_another",
        source.display(),
        output.display(),
        user.unwrap_or_default(),
        copy.display()
    );
    let printed = command("sh", &["-c", &line]);
    assert!(printed.contains(&expected_now), "{printed}");
    assert_eq!(fs::read(output.join("image")).unwrap(), fs::read(folder.output()).unwrap());
}

fn rustix_is_root() -> bool {
    rustix::process::getuid().is_root()
}

/// Builds what the environment names, for the test above.
#[test]
fn builds_for_another() {
    let (Some(source), Some(output)) = (std::env::var_os("SOURCE"), std::env::var_os("OUTPUT"))
    else {
        return;
    };
    let selection = Selection::default();
    let built = casemate_image::build(source.as_ref(), output.as_ref(), &selection, &mut |_, _| {});
    println!("{}", built.unwrap().verity.root_hash_hex());
}

#[test]
fn links_out_of_a_directory_are_not_followed() {
    let folder = Folder::new();
    let source = folder.path("source");
    fs::create_dir(&source).unwrap();
    symlink("/etc", source.join("absolute")).unwrap();
    folder.build(&source).unwrap();
    assert_eq!(list(&folder.output()).len(), 2);
    symlink("../../etc", source.join("relative")).unwrap();
    let error = folder.build(&source).unwrap_err();
    assert!(message(&error).contains("leads out of the image"), "{}", message(&error));
    assert_eq!(folder.left(), ["image"]);
}

#[test]
fn huge_sparse_file_is_refused_before_it_is_read() {
    let folder = Folder::new();
    let source = folder.path("source");
    fs::create_dir(&source).unwrap();
    fs::File::create(source.join("sparse")).unwrap().set_len(1 << 40).unwrap();
    let error = folder.build(&source).unwrap_err();
    assert!(message(&error).contains("`sparse` is refused: the file has"), "{}", message(&error));
    assert_eq!(folder.left(), [""; 0]);
}

#[test]
fn file_that_is_too_short_is_noticed() {
    let folder = Folder::new();
    folder.build_layers(vec![Tar::new().file("a", b"1").finish()]).unwrap();
    let source = folder.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a"), vec![1; 5000]).unwrap();
    // The progress of the first file is the moment at which the second one is cut.
    fs::write(source.join("b"), vec![1; 5000]).unwrap();
    let cut = source.join("b");
    let result =
        casemate_image::build(&source, &folder.output(), &Selection::default(), &mut |_, _| {
            fs::write(&cut, b"short").unwrap();
        });
    let error = result.unwrap_err();
    assert!(message(&error).contains("`b` changed"), "{}", message(&error));
    assert_eq!(folder.left(), ["image"]);
}
