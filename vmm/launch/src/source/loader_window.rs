//! The loader window of our own firmware: shared memory through which kernel, initial RAM disk and
//! command line come in, and what the host says of the machine. The firmware believes none of it: it
//! checks the payloads against the digests in its measured config page.

use casemate_firmware_logic::layout::{LOW_MEMORY_END, WINDOW, WINDOW_END};
use casemate_firmware_logic::sha256;
use casemate_firmware_logic::window::{
    HEADER_SIZE, Header, MAGIC, MOST_COMMAND_LINE, MOST_RANGES, Payload, Range,
};

use crate::{Bytes, Contents, Gpa, GpaError, GpaRange, Import, PAGE_SIZE, PageCount, PageKind};

/// Kernel, initial RAM disk and command line for the firmware, with the size of the machine.
#[derive(Clone, Debug)]
pub struct Payloads {
    /// The kernel, a bzImage, unmodified.
    pub kernel: Bytes,
    /// The initial RAM disk; empty if there is none.
    pub initrd: Bytes,
    /// The command line, without its NUL.
    pub cmdline: Bytes,
    /// Guest memory in bytes, a number of pages. What does not fit below 3 GiB is above 4 GiB.
    pub memory: u64,
    /// Number of vCPUs, at least 1.
    pub vcpus: u32,
}

/// Why payloads do not fit the window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum LoaderWindowError {
    #[error(
        "a command line of {0} bytes is too long for the firmware: at most {most} fit",
        most = MOST_COMMAND_LINE - 1
    )]
    CommandLine(usize),
    #[error("the command line has a zero byte at {0}, where the kernel would end it")]
    ZeroByte(usize),
    #[error(
        "kernel and initial RAM disk have {bytes} bytes together, and the loader window has room \
         for {room}"
    )]
    Payloads { bytes: u64, room: u64 },
    #[error("guest memory: {0}")]
    Memory(#[from] GpaError),
}

/// The imports of the window: its header, then the payloads, without a gap.
///
/// # Errors
/// If they do not fit.
pub(crate) fn imports(payloads: &Payloads) -> Result<Vec<Import>, LoaderWindowError> {
    let line = &payloads.cmdline;
    if line.len() as u64 >= MOST_COMMAND_LINE {
        return Err(LoaderWindowError::CommandLine(line.len()));
    }
    if let Some(at) = line.iter().position(|byte| *byte == 0) {
        return Err(LoaderWindowError::ZeroByte(at));
    }
    let line: Bytes = [line, &[0][..]].concat().into();
    let mut header = Header { vcpus: payloads.vcpus, ..Header::default() };
    header.memory = memory(payloads.memory)?;
    let mut imports = Vec::new();
    let mut offset = HEADER_SIZE as u64;
    for (place, bytes, tag) in [
        (&mut header.command_line, &line, "command line, checked by the firmware"),
        (&mut header.kernel, &payloads.kernel, "kernel, checked by the firmware"),
        (&mut header.initrd, &payloads.initrd, "initial RAM disk, checked by the firmware"),
    ] {
        let size = bytes.len() as u64;
        *place = Payload { offset, size };
        let pages = PageCount::covering(size);
        let end = pages.bytes().and_then(|bytes| offset.checked_add(bytes));
        let room = WINDOW_END - WINDOW;
        let Some(end) = end.filter(|end| *end <= room) else {
            let bytes = payloads.kernel.len() as u64 + payloads.initrd.len() as u64;
            return Err(LoaderWindowError::Payloads { bytes, room });
        };
        if size > 0 {
            imports.push(shared(offset, pages, bytes.clone(), tag)?);
        }
        offset = end;
    }
    let bytes = header.to_bytes().as_slice().into();
    imports.insert(0, shared(0, PageCount(1), bytes, "loader window, checked by the firmware")?);
    Ok(imports)
}

/// Says anew, in the header of a window that is among the imports, what memory (ascending) and how
/// many vCPUs there are.
pub(crate) fn tell(imports: &mut [Import], memory: &[GpaRange], vcpus: u32) {
    /// Bytes of the header with the payloads' addresses, which do not change.
    const PAYLOADS: std::ops::Range<usize> = 0x18..0x48;
    let window = imports
        .iter_mut()
        .find(|import| import.kind == PageKind::Shared && import.range.start() == Gpa(WINDOW));
    let Some(import) = window else { return };
    let Contents::Bytes(bytes) = &import.contents else { return };
    if bytes.len() < HEADER_SIZE || !bytes.starts_with(&MAGIC) {
        return;
    }
    let mut header = Header { vcpus, ..Header::default() };
    for (place, range) in header.memory.iter_mut().zip(memory) {
        *place = Range { start: range.start().0, size: range.len() };
    }
    let mut header = header.to_bytes();
    header[PAYLOADS].copy_from_slice(&bytes[PAYLOADS]);
    let mut bytes = bytes.to_vec();
    bytes[..HEADER_SIZE].copy_from_slice(&header);
    import.contents = Contents::Bytes(bytes.into());
}

/// SHA-256 of the window's header, which is the first import.
pub(crate) fn header_digest(imports: &[Import]) -> [u8; 32] {
    match imports.first().map(|import| &import.contents) {
        Some(Contents::Bytes(header)) => sha256::digest(header),
        _ => sha256::digest(&[]),
    }
}

fn shared(
    offset: u64,
    pages: PageCount,
    bytes: Bytes,
    tag: &'static str,
) -> Result<Import, GpaError> {
    let range = GpaRange::new(Gpa(WINDOW + offset), pages)?;
    Ok(Import { range, kind: PageKind::Shared, contents: Contents::Bytes(bytes), tag })
}

/// The board's memory.
fn memory(bytes: u64) -> Result<[Range; MOST_RANGES], GpaError> {
    if !bytes.is_multiple_of(PAGE_SIZE) {
        return Err(GpaError::UnalignedLength(Gpa(0), bytes));
    }
    let mut ranges = [Range::default(); MOST_RANGES];
    let low = bytes.min(LOW_MEMORY_END);
    ranges[0] = Range { start: 0, size: low };
    ranges[1] = Range { start: 4 << 30, size: bytes - low };
    if bytes == low {
        ranges[1] = Range::default();
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use casemate_firmware_logic::config::{Config, Platform};

    use super::super::firmware::{Flags, Limits, config};
    use super::super::kernel_hashes::KernelHashes;
    use super::*;

    fn payloads() -> Payloads {
        Payloads {
            kernel: vec![1; 5000].into(),
            initrd: vec![2; 10].into(),
            cmdline: b"console=ttyS0".as_slice().into(),
            memory: 4 << 30,
            vcpus: 2,
        }
    }

    fn measured(payloads: &Payloads) -> Config {
        let hashes = KernelHashes::new(&payloads.kernel, &payloads.initrd, &payloads.cmdline);
        config(Platform::Snp, Flags::default(), &hashes, Limits::of(payloads))
    }

    #[test]
    fn the_firmware_reads_what_is_written_here() {
        let (payloads, imports) = (payloads(), imports(&payloads()).unwrap());
        let bytes = |index: usize| match &imports[index].contents {
            Contents::Bytes(bytes) => bytes.clone(),
            Contents::Zeroes => panic!("no bytes"),
        };
        let config = measured(&payloads);
        let header = Header::from_copy(bytes(0)[..].try_into().unwrap(), &config, 51).unwrap();
        assert_eq!(header.memory[1], Range { start: 4 << 30, size: 1 << 30 });
        assert_eq!(header.vcpus, 2);
        let checked = [
            (header.command_line, config.command_line),
            (header.kernel, config.kernel),
            (header.initrd, config.initrd),
        ];
        for (index, (payload, digest)) in (1..).zip(checked) {
            assert_eq!(imports[index].range.start().0, WINDOW + payload.offset);
            assert_eq!(bytes(index).len() as u64, payload.size);
            assert_eq!(casemate_firmware_logic::sha256::digest(&bytes(index)), digest);
        }
    }

    #[test]
    fn imports_follow_each_other_and_are_shared() {
        let imports = imports(&payloads()).unwrap();
        assert!(imports.iter().all(|import| import.kind == PageKind::Shared));
        assert!(imports.windows(2).all(|two| two[0].range.end() == two[1].range.start()));
    }

    #[test]
    fn payloads_that_the_window_cannot_carry_are_rejected() {
        let refused = |change: fn(&mut Payloads)| {
            let mut payloads = payloads();
            change(&mut payloads);
            imports(&payloads).map(|_| ()).unwrap_err()
        };
        let long = |payloads: &mut Payloads| payloads.cmdline = vec![1; 2048].into();
        assert_eq!(refused(long), LoaderWindowError::CommandLine(2048));
        let zero = |payloads: &mut Payloads| payloads.cmdline = vec![1, 0].into();
        assert_eq!(refused(zero), LoaderWindowError::ZeroByte(1));
        assert!(matches!(refused(|p| p.memory = 5), LoaderWindowError::Memory(_)));
        let large = |payloads: &mut Payloads| payloads.initrd = vec![0; 360 << 20].into();
        assert!(matches!(refused(large), LoaderWindowError::Payloads { .. }));
    }
}
