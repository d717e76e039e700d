//! Files of /proc, /sys and /dev below a root, so that tests can give recorded ones.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::facts::{Access, Misc};

pub(super) struct Files<'a>(pub(super) &'a Path);

impl Files<'_> {
    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    /// The file's text without white space around it; None if it cannot be read.
    pub(super) fn text(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim().to_owned())
    }

    /// The names in a folder; none if it is not there.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// The types of IOMMU groups, each once.
    pub(super) fn iommu_group_types(&self) -> Vec<String> {
        const GROUPS: &str = "sys/kernel/iommu_groups";
        let groups = self.names(GROUPS).into_iter();
        let mut types: Vec<String> =
            groups.filter_map(|group| self.text(&format!("{GROUPS}/{group}/type"))).collect();
        types.sort();
        types.dedup();
        types
    }

    /// Whether a device can be opened for reading and writing.
    pub(super) fn device(&self, path: &str) -> Access {
        let opened = fs::OpenOptions::new().read(true).write(true).open(self.path(path));
        access(opened.map(drop))
    }

    /// Whether a service listens on a Unix socket.
    pub(super) fn socket(&self, path: &str) -> Access {
        access(UnixStream::connect(self.path(path)).map(drop))
    }

    /// A loaded (or built-in) module's parameters; None if the kernel does not have it now.
    pub(super) fn module(&self, name: &str) -> Option<BTreeMap<String, String>> {
        let folder = format!("sys/module/{name}");
        if !self.path(&folder).is_dir() {
            return None;
        }
        let parameters = self.names(&format!("{folder}/parameters"));
        let value = |name: String| {
            let text = self.text(&format!("{folder}/parameters/{name}"))?;
            Some((name, text))
        };
        Some(parameters.into_iter().filter_map(value).collect())
    }

    /// The flags of the first processor that the kernel uses.
    pub(super) fn cpu_flags(&self) -> Vec<String> {
        let cpuinfo = self.text("proc/cpuinfo").unwrap_or_default();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
        let flags = flags.and_then(|line| line.split_once(':')).map_or("", |(_, flags)| flags);
        flags.split_whitespace().map(str::to_owned).collect()
    }

    /// What the `misc` cgroup controller counts, by resource: the machine's capacity, and of the
    /// groups from this process's up to the root the one with the least room.
    pub(super) fn misc(&self) -> BTreeMap<String, Misc> {
        const MOUNTS: [&str; 2] = ["sys/fs/cgroup", "sys/fs/cgroup/misc"];
        let table = |path: &str| self.text(path).map(|text| table(&text));
        let found = MOUNTS.iter().find_map(|mount| {
            table(&format!("{mount}/misc.capacity")).map(|capacity| (mount, capacity))
        });
        let Some((mount, capacities)) = found else { return BTreeMap::new() };
        let with_capacity = |(name, capacity)| (name, Misc { capacity, ..Misc::default() });
        let mut resources: BTreeMap<_, _> = capacities.into_iter().map(with_capacity).collect();
        let group = self.own_cgroup();
        for folder in Path::new(&group).ancestors().map(Path::display) {
            let folder = format!("{mount}/{folder}");
            let limits = table(&format!("{folder}/misc.max")).unwrap_or_default();
            let used = table(&format!("{folder}/misc.current")).unwrap_or_default();
            for (name, resource) in &mut resources {
                let used = used.get(name).copied().flatten().unwrap_or(0);
                if let Some(limit) = limits.get(name).copied().flatten() {
                    resource.tighten(limit, used);
                }
            }
        }
        resources
    }

    /// The path of this process's cgroup below the mount, without a slash before it.
    fn own_cgroup(&self) -> String {
        let groups = self.text("proc/self/cgroup").unwrap_or_default();
        let path = groups.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            (controllers.is_empty() || controllers == "misc").then_some(path)
        });
        path.unwrap_or("").trim_start_matches('/').to_owned()
    }
}

/// Lines of a name and a number; `max` is None.
fn table(text: &str) -> BTreeMap<String, Option<u64>> {
    let line = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()))
    };
    text.lines().filter_map(line).collect()
}

fn access(opened: std::io::Result<()>) -> Access {
    match opened {
        Ok(()) => Access::Opens,
        Err(error) => match error.kind() {
            ErrorKind::NotFound => Access::Missing,
            ErrorKind::PermissionDenied => Access::Denied,
            _ => Access::Fails { why: error.to_string() },
        },
    }
}
