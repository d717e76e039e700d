//! The firmware image: from 64-bit mode to the kernel. No port I/O and no devices: inputs lie in
//! memory. Decisions are made in the `casemate_firmware_logic` library; here is what touches addresses.

#![no_std]
#![no_main]

mod hash;
mod log;
mod mem;
mod memory;
mod snp;
mod tdx;
mod traps;

use core::arch::{asm, global_asm};
use core::convert::Infallible;

use casemate_firmware_logic::accept::{Accepted, first};
use casemate_firmware_logic::acpi::{self, Wakeup};
use casemate_firmware_logic::config::{CONFIG_SIZE, Config, Platform};
use casemate_firmware_logic::fatal::Fatal;
use casemate_firmware_logic::handoff::Handoff;
use casemate_firmware_logic::kernel::{HEADER, Kernel, setup_size};
use casemate_firmware_logic::layout::{
    GRANULE, HANDOFF, HANDOFF_SIZE, HOB, HOB_SIZE, IMAGE, KERNEL, MAILBOX, PAGE, WINDOW,
};
use casemate_firmware_logic::memory_map::MemoryMap;
use casemate_firmware_logic::window::{HEADER_SIZE, Header, Payload, Range};
use log::log;
use memory::Memory;

global_asm!(include_str!("entry.s"), options(att_syntax, raw));

unsafe extern "C" {
    /// Clears the memory that the firmware worked with, and jumps to the kernel.
    fn enter_kernel(entry: u64, boot_parameters: u64) -> !;
}

/// Everything that changes, in the work area; zeroes at first, and at last. There are no mutable statics.
#[repr(C, align(4096))]
pub struct State {
    header: [u8; HEADER_SIZE],
    tables: traps::Tables,
}

/// Offset of the 64-bit entry from the load address (Linux, Documentation/arch/x86/boot.rst).
const ENTRY: u64 = 0x200;

/// The linker script leaves so much for [`State`].
const _: () = assert!(size_of::<State>() <= 0x4000);

/// Where the first code jumps: `c_bit` is the one in its page tables, 0 for none.
#[unsafe(no_mangle)]
extern "C" fn main(_platform: u32, c_bit: u32, state: &'static mut State) -> ! {
    let State { header, tables } = state;
    tables.load();
    match boot(header, c_bit) {
        Ok(never) => match never {},
        Err(fatal) => stop(fatal),
    }
}

fn boot(header: &mut [u8; HEADER_SIZE], c_bit: u32) -> Result<Infallible, Fatal> {
    let config = Config::from_page(config_page());
    let config = config.filter(|config| config.flags.log == cfg!(firmware_log));
    let config = config.ok_or(Fatal::Config)?;
    let platform = config.platform;
    let memory = Memory::start(&config, c_bit)?;
    copy_from_window(Payload { offset: 0, size: HEADER_SIZE as u64 }, header.as_mut_ptr());
    let copy = &*header;
    // The page that the header was in is free now: the development image makes it its GHCB.
    log!(platform, "an image for development, of a guest that nobody should trust");
    let header = Header::from_copy(copy, &config, memory.address_bits())?;
    log!(platform, "vCPUs: {}", header.vcpus);
    header.ranges().for_each(|range| log!(platform, "memory: {range}"));
    if let Memory::Tdx(domain) = memory {
        if header.vcpus != domain.vcpus {
            return Err(Fatal::Machine);
        }
        tdx::extend(0, &hash::digest(platform, copy))?;
    }

    let mut accepted = Accepted::at_start(platform);
    for range in first(platform) {
        memory.accept(&mut accepted, range)?;
    }
    if platform == Platform::Tdx {
        // The host added the list of resources. Nobody reads it, and the kernel does not get it.
        memory::clear(HOB, HOB_SIZE);
    }
    let (file, kernel, used) = load_kernel(&config, &header, memory, &mut accepted)?;
    log!(platform, "kernel: {used}");
    let initrd = load_initrd(&config, &header, &kernel, used, memory, &mut accepted)?;
    log!(platform, "initrd: {initrd}");

    // SAFETY: the area has been accepted, and nobody else uses it.
    let area =
        unsafe { core::slice::from_raw_parts_mut(HANDOFF as *mut u8, HANDOFF_SIZE as usize) };
    let map = MemoryMap::new(&header);
    let mut handoff = Handoff::new(area);
    handoff.boot_parameters(file, &kernel, &map);
    handoff.initrd(initrd);
    let mut line = [0; casemate_firmware_logic::window::MOST_COMMAND_LINE as usize];
    handoff.command_line(command_line(&config, &header, &mut line)?);
    acpi::write(handoff.acpi(), header.vcpus, wakeup(memory))?;
    if platform == Platform::Snp {
        handoff.snp_pages();
    }
    if config.flags.accept_all {
        accept_all(&header, memory, &mut accepted)?;
    } else if platform != Platform::Plain {
        handoff.unaccepted(&map, &accepted)?;
    }
    accepted.ranges().for_each(|range| log!(platform, "accepted: {range}"));
    log!(platform, "starting the kernel");
    memory.open_to_kernel();
    // SAFETY: the kernel was checked and is where it expects to be, as is what it is given. Nothing of
    // the memory that is cleared is used again.
    unsafe { enter_kernel(KERNEL + ENTRY, HANDOFF) }
}

/// Accepts what has not been yet. The kernel hears nothing of acceptance then.
fn accept_all(header: &Header, memory: Memory, accepted: &mut Accepted) -> Result<(), Fatal> {
    for range in header.ranges() {
        while let Some(gap) = accepted.gap(range) {
            memory.accept(accepted, gap)?;
        }
    }
    Ok(())
}

/// INIT and SIPI do not reach the vCPUs of a trust domain: the first code has them wait.
fn wakeup(memory: Memory) -> Option<Wakeup> {
    let reset_vector;
    // SAFETY: loads a constant.
    unsafe {
        asm!("movabs {}, offset wait_again", out(reg) reset_vector, options(pure, nomem, nostack));
    }
    matches!(memory, Memory::Tdx(_)).then_some(Wakeup { mailbox: MAILBOX, reset_vector })
}

fn config_page() -> &'static [u8; CONFIG_SIZE] {
    // SAFETY: the image's first page, which nobody writes.
    unsafe { &*(IMAGE as *const [u8; CONFIG_SIZE]) }
}

/// Copies the kernel so that its protected-mode part lies where it is to run, and checks the copy.
/// Gives the file, what it says, and all the memory that it takes.
fn load_kernel(
    config: &Config,
    header: &Header,
    memory: Memory,
    accepted: &mut Accepted,
) -> Result<(&'static [u8], Kernel, Range), Fatal> {
    // Where the copy must begin depends on a byte of the file. It is not believed but used: with
    // another byte the copy lies elsewhere, and then the check below fails.
    let mut sectors = 0;
    if header.kernel.size > HEADER as u64 {
        let at = header.kernel.offset + HEADER as u64;
        copy_from_window(Payload { offset: at, size: 1 }, &mut sectors);
    }
    let start = KERNEL - setup_size(sectors);
    let file = Range { start, size: header.kernel.size };
    let mut used = file.granules();
    if used.end() > header.low_memory() {
        return Err(Fatal::Room);
    }
    memory.accept(accepted, used)?;
    let file = take(header.kernel, file.start);
    check(config, file, &config.kernel, 1, Fatal::Kernel)?;
    let kernel = Kernel::from_file(file)?;
    if file.get(HEADER) != Some(&sectors) {
        return Err(Fatal::Kernel);
    }
    let all = Range { start: KERNEL, size: kernel.memory }.granules();
    if all.end() > header.low_memory() {
        return Err(Fatal::Room);
    }
    if all.end() > used.end() {
        memory.accept(accepted, Range::between(used.end(), all.end()))?;
        used = Range::between(used.start, all.end());
    }
    Ok((file, kernel, used))
}

/// Copies the initrd to the end of low memory, and checks the copy.
fn load_initrd(
    config: &Config,
    header: &Header,
    kernel: &Kernel,
    used: Range,
    memory: Memory,
    accepted: &mut Accepted,
) -> Result<Range, Fatal> {
    if header.initrd.size == 0 {
        check(config, &[], &config.initrd, 2, Fatal::Initrd)?;
        return Ok(Range::default());
    }
    let end = header.low_memory().min(kernel.initrd_limit) & !(GRANULE - 1);
    let start = end.checked_sub(header.initrd.size).ok_or(Fatal::Room)? & !(PAGE - 1);
    let initrd = Range { start, size: header.initrd.size };
    let granules = initrd.granules();
    if granules.start < used.end() {
        return Err(Fatal::Room);
    }
    memory.accept(accepted, granules)?;
    check(config, take(header.initrd, start), &config.initrd, 2, Fatal::Initrd)?;
    Ok(initrd)
}

fn command_line<'a>(
    config: &Config,
    header: &Header,
    line: &'a mut [u8],
) -> Result<&'a [u8], Fatal> {
    let line = line.get_mut(..header.command_line.size as usize).ok_or(Fatal::Window)?;
    copy_from_window(header.command_line, line.as_mut_ptr());
    check(config, line, &config.command_line, 2, Fatal::CommandLine)?;
    if line.last() == Some(&0) { Ok(line) } else { Err(Fatal::CommandLine) }
}

/// Whether `data` is what was measured. In a plain guest nothing was. A trust domain also has what
/// it is in a run-time measurement register.
fn check(
    config: &Config,
    data: &[u8],
    expected: &[u8; 32],
    register: u64,
    fatal: Fatal,
) -> Result<(), Fatal> {
    if config.platform == Platform::Plain {
        return Ok(());
    }
    let digest = hash::digest(config.platform, data);
    if config.platform == Platform::Tdx {
        tdx::extend(register, &digest)?;
    }
    if config.flags.unmeasured_payload || digest == *expected { Ok(()) } else { Err(fatal) }
}

/// Copies a payload into accepted memory at `target`, where nothing else is.
fn take(payload: Payload, target: u64) -> &'static [u8] {
    copy_from_window(payload, target as *mut u8);
    // SAFETY: the range was accepted and has just been filled; nobody writes it any more.
    unsafe { core::slice::from_raw_parts(target as *const u8, payload.size as usize) }
}

/// Copies out of the window, which the host may be writing: each byte is read once, so that what is
/// checked is what is used.
fn copy_from_window(payload: Payload, target: *mut u8) {
    let source = (WINDOW + payload.offset) as *const u8;
    // SAFETY: `Header` keeps payloads in the window, and callers give as much of their own memory.
    unsafe { mem::copy(target, source, payload.size as usize) };
}

/// The end, with a reason. A plain guest cannot tell it but by a triple fault.
pub fn stop(fatal: Fatal) -> ! {
    let empty = [0_u16; 5];
    // SAFETY: an empty table of interrupts makes the next exception the last.
    unsafe { asm!("lidt [{}]", in(reg) &empty, options(readonly, nostack, preserves_flags)) };
    let platform = Platform::of_page(config_page());
    if let Some(platform) = platform {
        log!(platform, "stopped: {fatal}");
    }
    match platform {
        Some(Platform::Snp) => snp::terminate(fatal),
        Some(Platform::Tdx) => tdx::terminate(fatal),
        // SAFETY: an exception.
        _ => unsafe { asm!("ud2", options(noreturn)) },
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    stop(Fatal::Panic)
}
