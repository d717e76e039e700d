//! What `core` expects of a C library. String instructions, so that there are no loops that the
//! compiler could recognise as the very function they are in.

use core::arch::asm;

/// Copies upwards and reads each byte once: eight by eight (processors do either at once, but an
/// emulator takes a step for each), then the rest.
///
/// # Safety
/// `n` bytes can be read at `source` and written at `target`, which does not begin inside of them.
pub unsafe fn copy(target: *mut u8, source: *const u8, n: usize) {
    // SAFETY: reads and writes what the caller vouches for; DF is clear by the ABI.
    unsafe {
        asm!("rep movsq", "mov ecx, {rest:e}", "rep movsb", rest = in(reg) n % 8,
             inout("rcx") n / 8 => _, inout("rdi") target => _, inout("rsi") source => _,
             options(nostack, preserves_flags));
    }
}

/// # Safety
/// As C's: `n` bytes can be read at `source` and written at `target`, which do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(target: *mut u8, source: *const u8, n: usize) -> *mut u8 {
    // SAFETY: the same contract.
    unsafe { copy(target, source, n) };
    target
}

/// # Safety
/// As C's: `n` bytes can be read at `source` and written at `target`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(target: *mut u8, source: *const u8, n: usize) -> *mut u8 {
    if (target as usize).wrapping_sub(source as usize) >= n {
        // SAFETY: the caller vouches for both, and `target` does not begin inside of the source.
        unsafe { copy(target, source, n) };
        return target;
    }
    // SAFETY: as the caller vouches, backwards, so that nothing is written before it is read. DF is
    // cleared again, as the ABI demands.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") n => _,
             inout("rdi") target.wrapping_add(n).wrapping_sub(1) => _,
             inout("rsi") source.wrapping_add(n).wrapping_sub(1) => _, options(nostack));
    }
    target
}

/// Makes `n` bytes zero.
///
/// # Safety
/// `n` bytes can be written at `target`.
pub unsafe fn clear(target: *mut u8, n: usize) {
    // SAFETY: the same contract.
    unsafe { memset(target, 0, n) };
}

/// # Safety
/// As C's: `n` bytes can be written at `target`.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(target: *mut u8, value: i32, n: usize) -> *mut u8 {
    let eight = u64::from(value as u8) * 0x0101_0101_0101_0101;
    // SAFETY: writes what the caller vouches for; DF is clear by the ABI.
    unsafe {
        asm!("rep stosq", "mov ecx, {rest:e}", "rep stosb", rest = in(reg) n % 8,
             inout("rcx") n / 8 => _, inout("rdi") target => _, in("rax") eight,
             options(nostack, preserves_flags));
    }
    target
}

/// # Safety
/// As C's: `n` bytes can be read at both.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, n: usize) -> i32 {
    for index in 0..n {
        // SAFETY: `index` is below `n`. Volatile, or the loop would be made a call of memcmp.
        let (a, b) = unsafe { (left.add(index).read_volatile(), right.add(index).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// # Safety
/// As C's: `n` bytes can be read at both.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, n: usize) -> i32 {
    // SAFETY: the same contract.
    unsafe { memcmp(left, right, n) }
}
