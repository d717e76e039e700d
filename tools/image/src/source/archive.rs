//! Index of an archive that contains an image.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use super::SourceError;
use crate::tar::{MemberKind, TarReader};
use crate::tree::show;

/// Most members of an archive: three per layer, and some more.
const MAX_MEMBERS: usize = 1 << 16;
/// Most links that lead from one member to the next.
const MAX_LINKS: usize = 8;

/// Place of a file in an archive, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset of its content.
    pub offset: u64,
    /// Length of its content.
    pub size: u64,
}

/// Reads names and places of all regular files of an archive. Links, by which `docker save` shares layers,
/// are followed within the archive. `path` is for messages.
///
/// # Errors
///
/// If the archive is refused, or a name is absolute, contains `..`, is there twice, or differs from another
/// only in case.
pub fn read_index(
    path: &Path,
    archive: impl Read,
) -> Result<BTreeMap<String, Extent>, SourceError> {
    let mut reader = TarReader::new(archive);
    let mut index = BTreeMap::new();
    let mut links = BTreeMap::new();
    let mut folded = BTreeMap::new();
    let refuse = |name: &str, problem| SourceError::ArchiveName {
        path: path.into(),
        name: show(name.as_bytes()),
        problem,
    };
    loop {
        let member = reader.next_member();
        let member = member.map_err(|source| SourceError::Archive { path: path.into(), source })?;
        let Some(member) = member else { break };
        let stored = String::from_utf8_lossy(&member.path);
        let name = normal(&stored, "").ok_or_else(|| refuse(&stored, "a path leads out of it:"))?;
        if member.kind == MemberKind::Directory {
            continue;
        }
        if folded.insert(name.to_lowercase(), ()).is_some() {
            return Err(refuse(&name, "a name is there twice, apart from case:"));
        }
        if folded.len() > MAX_MEMBERS {
            return Err(refuse(&name, "more than 65536 members; the last is"));
        }
        let target = match &member.kind {
            MemberKind::Regular => {
                index.insert(name, Extent { offset: member.offset, size: member.size });
                continue;
            }
            MemberKind::Symlink(target) => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                normal(&String::from_utf8_lossy(target), folder)
            }
            MemberKind::HardLink(target) => normal(&String::from_utf8_lossy(target), ""),
            _ => return Err(refuse(&name, "a member is neither a file, a directory nor a link:")),
        };
        let target = target.ok_or_else(|| refuse(&name, "a link leads out of it:"))?;
        links.insert(name, target);
    }
    for (name, mut target) in &links {
        for _ in 0..MAX_LINKS {
            target = links.get(target).unwrap_or(target);
        }
        let extent = index.get(target).copied();
        let extent = extent.ok_or_else(|| refuse(name, "a link does not lead to a file:"))?;
        index.insert(name.clone(), extent);
    }
    Ok(index)
}

/// A path relative to the archive, of one in `folder`. `None` if it is absolute or leads out.
fn normal(path: &str, folder: &str) -> Option<String> {
    if path.starts_with('/') {
        return None;
    }
    let mut names: Vec<&str> = folder.split('/').filter(|name| !name.is_empty()).collect();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()?),
            _ => names.push(name),
        }
    }
    Some(names.join("/"))
}
