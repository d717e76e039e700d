//! A file in words.

use std::io::{Read, Seek};

use serde::Serialize;

use super::steps::{Step, ZeroPages, walk};
use super::{IgvmError, IgvmFile, Platform};
use crate::{Digest384, Gpa};

/// One thing that a file does to a guest, in file order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// What, in words.
    pub what: String,
    /// Where it is in the guest's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Gpa>,
    /// How many bytes it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// What else there is to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// Lists what a file does on one of its platforms. Neighbouring pages that are alike are one item.
///
/// # Errors
/// If the file cannot be read as it claims to be.
pub fn inspect<R: Read + Seek>(
    file: &mut IgvmFile<R>,
    platform: Platform,
) -> Result<Vec<Item>, IgvmError> {
    let mut items = Vec::new();
    walk(file, platform, ZeroPages::Normal, &mut |step| {
        items.push(item(&step));
        Ok(())
    })?;
    Ok(items)
}

fn item(step: &Step) -> Item {
    let plain = |what: &str, detail: Option<String>| Item {
        what: what.to_owned(),
        address: None,
        length: None,
        detail,
    };
    match step {
        Step::Pages { import, parameters } => Item {
            what: import.tag.to_owned(),
            address: Some(import.range.start()),
            length: Some(import.range.len()),
            detail: (!parameters.is_empty()).then(|| {
                let names = parameters.iter().map(|place| format!("{:?}", place.kind));
                names.collect::<Vec<_>>().join(", ")
            }),
        },
        Step::VpContext { at, gpa, index, .. } => Item {
            address: Some(*gpa),
            ..plain("VP context", Some(format!("vCPU {index}, header at offset {at:#x}")))
        },
        Step::RequiredMemory(range) => Item {
            address: Some(range.start()),
            length: Some(range.len()),
            ..plain("required memory", None)
        },
        Step::Policy(policy) => plain("guest policy", Some(format!("{policy:#x}"))),
        Step::IdBlock(block) => {
            plain("ID block", Some(format!("for the launch digest {}", Digest384(block.ld))))
        }
        Step::ErrorRange { at } => plain("error range", Some(format!("header at offset {at:#x}"))),
    }
}
