//! What a file's guest is told of its machine, where the file has a place for it. None of it is
//! measured.

use igvm_defs::{IGVM_VHS_MEMORY_MAP_ENTRY, MemoryMapEntryType};
use zerocopy::IntoBytes as _;

use super::{Imported, ParameterKind};
use crate::source::loader_window;
use crate::{Contents, GpaError, GpaRange, PAGE_SIZE};

/// Why a guest cannot be told what its file asks for.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum TellError {
    #[error(
        "the IGVM file asks for the parameter {0:?}; number of vCPUs, memory map and environment \
         are all that there is"
    )]
    Unknown(ParameterKind),
    #[error(
        "the IGVM file's parameter {kind:?} has {length} bytes and does not fit at offset \
         {offset:#x} of its area at {area}"
    )]
    Room { kind: ParameterKind, length: usize, offset: u32, area: GpaRange },
    #[error("the IGVM file needs memory at {required}, where the guest has none")]
    Required { required: GpaRange },
    #[error("the guest's memory")]
    Memory(#[from] GpaError),
}

impl Imported {
    /// Fills in the parameters for a guest with `vcpus` vCPUs and this memory (ascending). Where the
    /// file has a loader window of Casemate's firmware, its header is written anew.
    ///
    /// # Errors
    /// If the file asks for something else, has no room, or requires memory that is not there.
    pub fn tell(&mut self, memory: &[GpaRange], vcpus: u32) -> Result<(), TellError> {
        for required in &self.required {
            if !memory.iter().any(|range| range.contains(*required)) {
                return Err(TellError::Required { required: *required });
            }
        }
        for (index, parameter) in &self.parameters {
            let kind = parameter.kind;
            let value = match kind {
                ParameterKind::VpCount => vcpus.to_le_bytes().to_vec(),
                ParameterKind::MemoryMap => memory_map(memory),
                // Memory is private at first.
                ParameterKind::EnvironmentInfo => vec![0; 4],
                other => return Err(TellError::Unknown(other)),
            };
            let Some(import) = self.plan.imports.get_mut(*index) else { continue };
            let (offset, length, area) = (parameter.offset, value.len(), import.range);
            let room = TellError::Room { kind, length, offset, area };
            let mut bytes = match &import.contents {
                Contents::Zeroes => Vec::new(),
                Contents::Bytes(bytes) => bytes.to_vec(),
            };
            bytes.resize(usize::try_from(area.len()).unwrap_or(usize::MAX), 0);
            let place = usize::try_from(offset).ok().and_then(|start| bytes.get_mut(start..));
            let place = place.and_then(|place| place.get_mut(..length));
            place.ok_or(room)?.copy_from_slice(&value);
            import.contents = Contents::Bytes(bytes.into());
        }
        loader_window::tell(&mut self.plan.imports, memory, vcpus);
        Ok(())
    }
}

/// Entries in ascending order, the last of them empty.
fn memory_map(memory: &[GpaRange]) -> Vec<u8> {
    let entry = |first, number_of_pages| IGVM_VHS_MEMORY_MAP_ENTRY {
        starting_gpa_page_number: first,
        number_of_pages,
        entry_type: MemoryMapEntryType::MEMORY,
        flags: 0,
        reserved: 0,
    };
    let ranges = memory.iter().map(|range| (range.start().0 / PAGE_SIZE, range.pages().0));
    let entries = ranges.chain([(0, 0)]).map(|(first, count)| entry(first, count));
    entries.flat_map(|entry| entry.as_bytes().to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::igvm::Parameter;
    use crate::{Gpa, Import, LaunchPlan, PageKind, Policy, SnpIdentity};

    fn range(start: u64, bytes: u64) -> GpaRange {
        GpaRange::from_bytes(Gpa(start), bytes).unwrap()
    }

    /// A file with one area of a page, and a parameter in it.
    fn imported(kind: ParameterKind, offset: u32) -> Imported {
        let import = Import {
            range: range(0x1000, 0x1000),
            kind: PageKind::Unmeasured,
            contents: Contents::Bytes([7; 8].as_slice().into()),
            tag: "IGVM parameter area",
        };
        Imported {
            plan: LaunchPlan {
                imports: vec![import],
                vcpus: Vec::new(),
                policy: Policy::Plain,
                identity: SnpIdentity::default(),
            },
            required: vec![range(0x10_0000, 0x1000)],
            parameters: vec![(0, Parameter { kind, offset })],
        }
    }

    fn told(kind: ParameterKind, offset: u32) -> Result<Vec<u8>, TellError> {
        let mut imported = imported(kind, offset);
        imported.tell(&[range(0, 0x20_0000), range(1 << 32, 0x3000)], 3)?;
        match &imported.plan.imports[0].contents {
            Contents::Bytes(bytes) => Ok(bytes.to_vec()),
            Contents::Zeroes => panic!("nothing is there"),
        }
    }

    #[test]
    fn parameters_are_where_the_file_wants_them() {
        let bytes = told(ParameterKind::VpCount, 4).unwrap();
        assert_eq!(bytes[..9], [7, 7, 7, 7, 3, 0, 0, 0, 0]);
        let bytes = told(ParameterKind::MemoryMap, 0x10).unwrap();
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let entries: Vec<_> = (0x10..0x58).step_by(24).map(|at| (word(at), word(at + 8))).collect();
        assert_eq!(entries, [(0, 0x200), (1 << 20, 3), (0, 0)]);
        assert_eq!(told(ParameterKind::EnvironmentInfo, 0).unwrap()[..5], [0, 0, 0, 0, 7]);
    }

    #[test]
    fn parameters_without_room_or_memory_are_rejected() {
        let refused = |kind, offset| told(kind, offset).unwrap_err().to_string();
        assert!(refused(ParameterKind::Srat, 0).contains("asks for the parameter Srat"));
        let room = refused(ParameterKind::MemoryMap, 0xff0);
        assert!(room.contains("MemoryMap has 72 bytes and does not fit at offset 0xff0"), "{room}");
        let mut imported = imported(ParameterKind::VpCount, 0);
        let error = imported.tell(&[range(0, 0x10_0000)], 1).unwrap_err().to_string();
        assert!(error.contains("needs memory at 0x100000..0x101000"), "{error}");
    }
}
