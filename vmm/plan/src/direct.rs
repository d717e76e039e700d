//! Plain guests that start in their kernel.

use casemate_config::GuestConfig;
use casemate_launch::linux::{DirectBoot, Kernel};
use casemate_launch::rules::Profile;

use crate::board::{ACPI_TABLES, Board, port, power};
use crate::{Boot, GuestPlan, PlanError, acpi, files};

pub(crate) fn plan(config: &GuestConfig) -> Result<GuestPlan, PlanError> {
    let file = config.kernel.clone().ok_or(PlanError::NoPlainKernel)?;
    let kernel = Kernel::parse(&files::kernel(&file)?).map_err(|source| {
        let wanted = "a bzImage or an ELF file";
        PlanError::Kernel { file: file.clone(), wanted, source }
    })?;
    let initrd = files::initrd(config)?;
    let board = Board::new(config.memory.0).map_err(|source| PlanError::memory(config, source))?;
    let boot = DirectBoot {
        kernel: &kernel,
        initrd: config.initrd.is_some().then_some(&initrd),
        cmdline: &config.cmdline,
        memory: &board.memory_map(),
        acpi: acpi::tables(ACPI_TABLES.start, config.vcpus),
        reset_code: &reset_code(),
    };
    let memory = config.memory;
    let launch = boot.plan().map_err(|source| PlanError::Boot { file, memory, source })?;
    Ok(GuestPlan { launch, board, boot: Boot::Direct, launcher: Profile::Casemate })
}

/// Writes to the reset register, and waits for the end.
fn reset_code() -> [u8; 9] {
    let [low, high] = (port::POWER + power::RESET).to_le_bytes();
    // mov dx, register; mov al, value; out dx, al; hlt; jmp to the hlt.
    [0xba, low, high, 0xb0, power::RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd]
}
