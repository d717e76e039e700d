//! MSI-X (PCI Local Bus 3.0, section 6.8.2): a table of messages that the guest fills and masks.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::{Message, MessageInterrupt, MessageInterrupts};

/// Its capability id.
pub const MSIX_CAPABILITY: u8 = 0x11;

/// Message control (section 6.8.2.3).
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// The bits of message control that the guest may change.
const WRITABLE: u16 = ENABLE | FUNCTION_MASK;

/// An entry: address (two words), data, vector control (section 6.8.2.6 to 6.8.2.9).
const ENTRY_SIZE: u32 = 16;
/// Vector control: the vector is masked.
const VECTOR_MASK: u32 = 1;

/// An entry that the guest has not written.
const EMPTY: [u32; 4] = [0, 0, 0, VECTOR_MASK];

/// The vectors of one device. Devices raise them from any thread, the guest programs them; each
/// vector has its own lock, which nobody else takes on the way of an interrupt.
pub struct Msix {
    vectors: Vec<Vector>,
    enabled: AtomicBool,
}

struct Vector {
    interrupt: Arc<dyn MessageInterrupt>,
    state: Mutex<State>,
}

struct State {
    entry: [u32; 4],
    /// MSI-X is enabled, and whether the whole function is masked.
    enabled: bool,
    function_masked: bool,
    /// Raised while it was masked.
    pending: bool,
    /// Where triggers go now.
    route: Option<Message>,
}

impl Msix {
    /// `count` vectors (1 to 2048), all masked.
    ///
    /// # Errors
    /// If the host has no more interrupts.
    pub fn new(interrupts: &dyn MessageInterrupts, count: u16) -> io::Result<Self> {
        let vectors = interrupts.allocate(count)?.into_iter().map(Vector::new).collect();
        Ok(Self { vectors, enabled: AtomicBool::new(false) })
    }

    /// Vectors there are.
    pub fn len(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(u16::MAX)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// Size of the table in bytes.
    pub fn table_size(&self) -> u32 {
        u32::from(self.len()) * ENTRY_SIZE
    }

    /// Body of the capability, with its writable bits: `table` and `pending` are offsets (multiples
    /// of 8) in BAR 0.
    pub fn capability(&self, table: u32, pending: u32) -> ([u8; 10], [u8; 10]) {
        let mut body = [0; 10];
        body[..2].copy_from_slice(&self.len().saturating_sub(1).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        let mut writable = [0; 10];
        writable[..2].copy_from_slice(&WRITABLE.to_le_bytes());
        (body, writable)
    }

    /// The guest wrote message control.
    pub fn set_control(&self, control: u16) {
        let enabled = control & ENABLE != 0;
        self.enabled.store(enabled, Ordering::Release);
        for vector in &self.vectors {
            let mut state = vector.lock();
            state.enabled = enabled;
            state.function_masked = control & FUNCTION_MASK != 0;
            vector.update(&mut state);
        }
    }

    /// Back to how it began: disabled, and all vectors empty and masked.
    pub fn reset(&self) {
        self.set_control(0);
        for vector in &self.vectors {
            vector.lock().entry = EMPTY;
        }
    }

    /// Whether the guest enabled MSI-X.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Raises a vector; while it is masked it becomes pending. Vectors that are not there (VIRTIO's
    /// NO_VECTOR) are silent.
    pub fn trigger(&self, vector: u16) {
        let Some(vector) = self.vectors.get(usize::from(vector)) else { return };
        let mut state = vector.lock();
        if state.route.is_some() {
            vector.trigger();
        } else {
            state.pending = state.enabled;
        }
    }

    /// An eventfd that raises a vector. While that is masked, the eventfd remembers.
    pub fn notifier(&self, vector: u16) -> Option<EventFd> {
        self.vectors.get(usize::from(vector))?.interrupt.notifier()?.try_clone().ok()
    }

    /// The guest reads the table: whole words, as section 6.8.2 asks; all else is zero.
    pub fn read_table(&self, offset: u32, data: &mut [u8]) {
        for (at, word) in words(offset, data.len()).zip(data.chunks_exact_mut(4)) {
            if let Some((vector, field)) = self.word(at) {
                word.copy_from_slice(&vector.lock().entry[field].to_le_bytes());
            }
        }
    }

    /// The guest writes the table: whole words; all else is ignored.
    pub fn write_table(&self, offset: u32, data: &[u8]) {
        for (at, word) in words(offset, data.len()).zip(data.chunks_exact(4)) {
            let Some((vector, field)) = self.word(at) else { continue };
            let value = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
            let mut state = vector.lock();
            state.entry[field] = match field {
                0 => value & !0b11,
                3 => value & VECTOR_MASK,
                _ => value,
            };
            vector.update(&mut state);
        }
    }

    /// The guest reads the pending bits, one per vector.
    pub fn read_pending(&self, offset: u32, data: &mut [u8]) {
        for (at, byte) in (offset as usize..).zip(data) {
            let vectors = self.vectors.iter().skip(at.saturating_mul(8)).take(8);
            *byte = vectors
                .enumerate()
                .fold(0, |bits, (bit, vector)| bits | u8::from(vector.lock().pending) << bit);
        }
    }

    fn word(&self, at: u32) -> Option<(&Vector, usize)> {
        let vector = self.vectors.get((at / ENTRY_SIZE) as usize)?;
        Some((vector, (at % ENTRY_SIZE / 4) as usize))
    }
}

/// The offsets of the words in an aligned access of 4 or 8 bytes, none for any other.
fn words(offset: u32, len: usize) -> impl Iterator<Item = u32> {
    let count = if offset.is_multiple_of(4) && len.is_multiple_of(4) { len / 4 } else { 0 };
    (offset..=u32::MAX).step_by(4).take(count)
}

impl Vector {
    fn new(interrupt: Arc<dyn MessageInterrupt>) -> Self {
        let state = State {
            entry: EMPTY,
            enabled: false,
            function_masked: false,
            pending: false,
            route: None,
        };
        Self { interrupt, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the route in line with entry and masks, and raises what was pending.
    fn update(&self, state: &mut State) {
        let [low, high, data, control] = state.entry;
        let open = state.enabled && !state.function_masked && control & VECTOR_MASK == 0;
        let message = Message { address: u64::from(high) << 32 | u64::from(low), data };
        let route = open.then_some(message);
        if route != state.route {
            state.route = route;
            if let Err(error) = self.interrupt.route(route) {
                tracing::error!(%error, ?route, "cannot route a device's message interrupt");
            }
        }
        if !state.enabled {
            state.pending = false;
        } else if open && std::mem::take(&mut state.pending) {
            self.trigger();
        }
    }

    fn trigger(&self) {
        if let Err(error) = self.interrupt.trigger() {
            tracing::error!(%error, "cannot raise a device's message interrupt");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::testing::MockInterrupts;

    const MESSAGE: Message = Message { address: 0x1_fee0_1000, data: 0x4041 };

    fn program(msix: &Msix, vector: u32) {
        let at = vector * 16;
        msix.write_table(at, &0xfee0_1003_u32.to_le_bytes());
        msix.write_table(at + 4, &0x1_u32.to_le_bytes());
        msix.write_table(at + 8, &0x0000_0000_0000_4041_u64.to_le_bytes());
    }

    fn pending(msix: &Msix) -> u8 {
        let mut data = [0; 8];
        msix.read_pending(0, &mut data);
        assert_eq!(data[1..], [0; 7]);
        data[0]
    }

    #[test]
    fn vectors_deliver_once_open() {
        let mock = MockInterrupts::default();
        let msix = Msix::new(&mock, 3).unwrap();
        msix.trigger(1);
        assert_eq!(pending(&msix), 0, "disabled: nothing is remembered");
        msix.set_control(ENABLE);
        assert!(msix.enabled());
        msix.trigger(1);
        msix.trigger(1);
        assert_eq!(pending(&msix), 0b010);
        program(&msix, 1);
        assert_eq!(mock.of(1).route(), Some(MESSAGE));
        assert_eq!((mock.of(1).count(), pending(&msix)), (1, 0), "pending interrupts are one");
        msix.trigger(1);
        assert_eq!(mock.of(1).count(), 2);
        msix.trigger(2);
        msix.trigger(0xffff);
        assert_eq!(mock.of(2).count(), 0);
    }

    #[test]
    fn masks_of_vector_and_function_hold_it_back() {
        let mock = MockInterrupts::default();
        let msix = Msix::new(&mock, 1).unwrap();
        msix.set_control(ENABLE | FUNCTION_MASK);
        program(&msix, 0);
        assert_eq!(mock.of(0).route(), None);
        msix.trigger(0);
        msix.write_table(12, &1_u32.to_le_bytes());
        msix.set_control(ENABLE);
        assert_eq!((mock.of(0).count(), pending(&msix)), (0, 1));
        msix.write_table(12, &0_u32.to_le_bytes());
        assert_eq!((mock.of(0).count(), pending(&msix)), (1, 0));
        msix.set_control(0);
        assert_eq!(mock.of(0).route(), None);
        msix.trigger(0);
        assert_eq!((mock.of(0).count(), pending(&msix)), (1, 0));
    }

    #[test]
    fn any_access_to_the_table() {
        let mock = MockInterrupts::default();
        let msix = Msix::new(&mock, 2).unwrap();
        for offset in (0..40).chain(u32::MAX - 8..=u32::MAX) {
            for len in [0, 1, 2, 4, 8] {
                msix.write_table(offset, &vec![0xff; len]);
                msix.read_table(offset, &mut vec![0; len]);
                msix.read_pending(offset, &mut vec![0; len]);
            }
        }
        let mut word = [0; 4];
        msix.read_table(16, &mut word);
        assert_eq!(u32::from_le_bytes(word), 0xffff_fffc);
        msix.read_table(28, &mut word);
        assert_eq!(u32::from_le_bytes(word), 1);
    }
}
