//! The serial port: a 16550A at COM1's place.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{Serial as Uart, SerialEvents};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bus::BusDevice;
use crate::interrupt::Line;

/// The interrupt line as vm-superio wants it.
struct Interrupt(Arc<dyn Line>);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// Says when the guest has read all there was.
struct Drained(EventFd);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        // Fails only if the count overflows, when nobody has listened 2^64 times.
        let _ = self.0.write(1);
    }
}

type Output = Box<dyn Write + Send>;

/// The port as the guest sees it: eight registers.
pub struct Serial(Arc<Mutex<Uart<Interrupt, Drained, Output>>>);

/// The other end of the guest's input.
#[derive(Clone)]
pub struct SerialInput {
    uart: Arc<Mutex<Uart<Interrupt, Drained, Output>>>,
    drained: Arc<EventFd>,
}

impl Serial {
    /// The number of ports.
    pub const PORTS: u16 = 8;

    /// A port that interrupts through `line` and writes what the guest sends to `output`, at once.
    ///
    /// # Errors
    /// If the process has no more file descriptors.
    pub fn new(line: Arc<dyn Line>, output: Output) -> io::Result<(Self, SerialInput)> {
        let drained = EventFd::new(EFD_NONBLOCK)?;
        let events = Drained(drained.try_clone()?);
        let uart = Arc::new(Mutex::new(Uart::with_events(Interrupt(line), events, output)));
        Ok((Self(uart.clone()), SerialInput { uart, drained: Arc::new(drained) }))
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The registers are bytes; wider accesses find what is there without a device.
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            *value = self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            let mut uart = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = uart.write(offset, *value) {
                tracing::debug!(%error, "serial port: a byte or an interrupt was lost");
            }
        }
    }
}

impl SerialInput {
    /// Hands bytes to the guest and returns how many there was room for.
    pub fn send(&self, bytes: &[u8]) -> usize {
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        // An error means that there is no room.
        uart.enqueue_raw_bytes(bytes).unwrap_or(0)
    }

    /// Counts up each time when the guest has read all that it was sent.
    #[must_use]
    pub fn drained(&self) -> &EventFd {
        &self.drained
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(Default)]
    struct Edges(AtomicUsize);

    impl Line for Edges {
        fn trigger(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    #[test]
    fn bytes_go_both_ways() {
        let (line, sink) = (Arc::new(Edges::default()), Sink::default());
        let (mut serial, input) = Serial::new(line.clone(), Box::new(sink.clone())).unwrap();
        serial.write(0, b"o");
        serial.write(0, b"too wide");
        serial.write(1 << 40, b"x");
        assert_eq!(*sink.0.lock().unwrap(), b"o");
        // Interrupt on received data.
        serial.write(1, &[1]);
        assert_eq!(input.send(b"hi"), 2);
        assert_eq!(line.0.load(Ordering::Relaxed), 1);
        let mut byte = [0];
        for expected in b"hi" {
            assert!(input.drained().read().is_err());
            serial.read(0, &mut byte);
            assert_eq!(byte, [*expected]);
        }
        assert_eq!(input.drained().read().unwrap(), 1);
        assert_eq!(input.send(&[0; 100]), 64);
        assert_eq!(input.send(&[0]), 0);
    }
}
