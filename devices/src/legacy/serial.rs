//! The serial port: a 16550A at COM1's place.
//!
//! ```text
//! vCPU ─► Uart ─► Outlet ─► (its thread) ─► terminal, pipe, file
//!           └───► wire thread: empties a transmit FIFO that the outlet refused, raises its interrupt
//! ```
//!
//! Within a burst the interrupt of an emptied FIFO comes from the vCPU itself, as soon as the driver's
//! handler is done: the guest's program goes on when all is sent. A guest that sends without pause
//! has the processor to itself now and then: after a burst, the interrupt comes when a real line
//! would have carried the FIFO.
//!
//! No vCPU ever waits for the other end. Where that is slow, the guest sees a transmit FIFO that is
//! not empty; where it does not take anything for a moment, bytes are lost, as on a line.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::uart::Uart;
use crate::bus::BusDevice;
use crate::interrupt::Line;
use crate::outlet::Outlet;

/// How long the other end may take nothing before the guest's bytes are dropped.
const PATIENCE: Duration = Duration::from_millis(100);

/// The time of 16 characters of ten bits at 115,200 bits a second.
const FIFO_TIME: Duration = Duration::from_micros(1_389);

/// The port as the guest sees it: eight registers.
pub struct Serial {
    port: Arc<Port>,
    wire: Option<JoinHandle<()>>,
}

/// The other end of the guest's input.
#[derive(Clone)]
pub struct SerialInput(Arc<Port>);

struct Port {
    uart: Mutex<Uart>,
    line: Arc<dyn Line>,
    outlet: Outlet,
    /// Counts up each time when the guest has taken all input.
    drained: EventFd,
    wire: Mutex<Wire>,
    wake: Condvar,
}

/// What the wire thread is to do.
#[derive(Default)]
struct Wire {
    wanted: bool,
    ended: bool,
}

impl Serial {
    /// The number of ports.
    pub const PORTS: u16 = 8;

    /// A port that interrupts through `line` and sends what the guest writes to `outlet`, by a thread on
    /// which `setup` runs first (the sandbox).
    ///
    /// # Errors
    /// No thread or file descriptor is free, or `setup` failed.
    pub fn new(
        line: Arc<dyn Line>,
        outlet: Outlet,
        setup: impl FnOnce() -> io::Result<()> + Send + 'static,
    ) -> io::Result<(Self, SerialInput)> {
        let port = Arc::new(Port {
            uart: Mutex::new(Uart::new()),
            line,
            outlet,
            drained: EventFd::new(EFD_NONBLOCK)?,
            wire: Mutex::default(),
            wake: Condvar::new(),
        });
        let carrier = Arc::clone(&port);
        let wire = crate::thread::spawn("serial", setup, move || carrier.carry())?;
        Ok((Self { port: Arc::clone(&port), wire: Some(wire) }, SerialInput(port)))
    }
}

impl Drop for Serial {
    fn drop(&mut self) {
        self.port.lock_wire().ended = true;
        self.port.wake.notify_one();
        // It gives up what the outlet does not take, so this takes a moment at most. A panic of the
        // thread has been reported by its own hook.
        drop(self.wire.take().map(JoinHandle::join));
    }
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the registers. A rising interrupt line is an edge.
    fn with_uart<T>(&self, access: impl FnOnce(&mut Uart) -> T) -> T {
        let mut uart = self.lock();
        let before = uart.is_interrupting();
        let result = access(&mut uart);
        let edge = !before && uart.is_interrupting();
        drop(uart);
        if edge && let Err(error) = self.line.trigger() {
            tracing::warn!(%error, "could not raise the serial port's interrupt");
        }
        result
    }

    /// What the guest sent goes on its way. Returns whether the wire thread has to do the rest.
    fn send(&self, uart: &mut Uart) -> bool {
        if uart.transmit.is_empty() {
            return false;
        }
        let taken = self.outlet.offer(uart.transmit.make_contiguous());
        uart.carried(taken);
        !uart.transmit.is_empty() || uart.owes_transmit_interrupt()
    }

    /// Wakes the wire thread, unless it is about to look anyway.
    fn want_wire(&self) {
        let was_wanted = std::mem::replace(&mut self.lock_wire().wanted, true);
        if !was_wanted {
            self.wake.notify_one();
        }
    }

    /// The wire thread.
    fn carry(&self) {
        // Bytes that the outlet had written when it was last seen to stand still.
        let mut stalled = None;
        while self.is_wanted() {
            while !self.with_uart(|uart| self.empty(uart)) {
                let waits = stalled != Some(self.outlet.written());
                if waits && self.outlet.wait_for_room(PATIENCE) {
                    stalled = None;
                } else {
                    if stalled.is_none() {
                        tracing::warn!(
                            "the serial port's output is not read: bytes of the guest are lost"
                        );
                    }
                    stalled = Some(self.outlet.written());
                    let lost = self.with_uart(|uart| {
                        let lost = uart.transmit.len();
                        uart.transmitted();
                        lost
                    });
                    self.outlet.lose(lost);
                }
            }
        }
    }

    /// Whether the transmit FIFO could be emptied.
    fn empty(&self, uart: &mut Uart) -> bool {
        self.send(uart);
        if uart.owes_transmit_interrupt() {
            uart.transmitted();
        }
        uart.transmit.is_empty()
    }

    /// Waits until the wire thread has something to do, and for the time of a FIFO then; `false` when
    /// it never will any more.
    fn is_wanted(&self) -> bool {
        let idle = |wire: &mut Wire| !wire.wanted && !wire.ended;
        let wire = self.wake.wait_while(self.lock_wire(), idle);
        let wire = wire.unwrap_or_else(PoisonError::into_inner);
        let runs = |wire: &mut Wire| !wire.ended;
        let wire = self.wake.wait_timeout_while(wire, FIFO_TIME, runs);
        let mut wire = wire.unwrap_or_else(PoisonError::into_inner).0;
        std::mem::take(&mut wire.wanted)
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The registers are bytes; wider accesses find what is there without a device.
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            let mut drained = false;
            *value = self.port.with_uart(|uart| {
                let before = uart.is_drained();
                let value = uart.read(offset);
                drained = !before && uart.is_drained();
                value
            });
            if drained {
                // Fails only if the count overflows, when nobody has listened 2^64 times.
                let _ = self.port.drained.write(1);
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            let wanted = self.port.with_uart(|uart| {
                uart.write(offset, *value);
                match std::mem::take(&mut uart.overwritten) {
                    0 => {}
                    lost => self.port.outlet.lose(lost),
                }
                self.port.send(uart)
            });
            if wanted {
                self.port.want_wire();
            }
        }
    }
}

impl SerialInput {
    /// Hands bytes to the guest and returns how many there was room for.
    pub fn send(&self, bytes: &[u8]) -> usize {
        self.0.with_uart(|uart| uart.receive(bytes))
    }

    /// Counts up each time when the guest has read all that it was sent.
    #[must_use]
    pub fn drained(&self) -> &EventFd {
        &self.0.drained
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;
    use std::os::fd::OwnedFd;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Instant;

    use super::super::uart::FIFO;
    use super::*;
    use crate::outlet::CAPACITY;

    #[derive(Default)]
    struct Edges(AtomicUsize);

    impl Line for Edges {
        fn trigger(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    impl Edges {
        fn wait_for(&self, count: usize) {
            let began = Instant::now();
            while self.0.load(Ordering::Relaxed) < count {
                assert!(began.elapsed() < Duration::from_secs(30), "no interrupt {count}");
                thread::sleep(Duration::from_millis(1));
            }
        }
    }

    fn serial() -> (Serial, SerialInput, Arc<Edges>, io::PipeReader) {
        let line = Arc::new(Edges::default());
        let (reader, writer) = io::pipe().unwrap();
        let outlet = Outlet::new("out", File::from(OwnedFd::from(writer)), || Ok(())).unwrap();
        let (serial, input) = Serial::new(line.clone(), outlet, || Ok(())).unwrap();
        (serial, input, line, reader)
    }

    fn register(serial: &mut Serial, offset: u64) -> u8 {
        let mut value = [0];
        serial.read(offset, &mut value);
        value[0]
    }

    #[test]
    fn bytes_go_both_ways() {
        let (mut serial, input, line, mut output) = serial();
        serial.write(0, b"o");
        serial.write(0, b"too wide");
        serial.write(1 << 40, b"x");
        let mut byte = [0];
        output.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"o");
        // Interrupt on received data.
        serial.write(1, &[1]);
        assert_eq!(input.send(b"hi"), 2);
        assert_eq!(line.0.load(Ordering::Relaxed), 1);
        for expected in b"hi" {
            assert!(input.drained().read().is_err());
            assert_eq!(register(&mut serial, 0), *expected);
        }
        assert_eq!(input.drained().read().unwrap(), 1);
        assert_eq!(input.send(&[0; 100]), FIFO);
        assert_eq!(input.send(&[0]), 0);
    }

    #[test]
    fn driver_that_stops_early_gets_another_interrupt() {
        let (mut serial, input, line, _output) = serial();
        serial.write(1, &[1]);
        assert_eq!(input.send(b"abc"), 3);
        assert_eq!(register(&mut serial, 2) & 0x0f, 0x04);
        register(&mut serial, 0);
        assert_eq!(register(&mut serial, 2) & 0x0f, 0x04, "two bytes are left");
        register(&mut serial, 0);
        register(&mut serial, 0);
        assert_eq!(input.send(b"d"), 1);
        assert_eq!(line.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn driver_that_does_not_look_again_gets_an_interrupt_for_each_fifo() {
        let (mut serial, _input, line, mut output) = serial();
        serial.write(1, &[2]);
        line.wait_for(1);
        for round in 2..20 {
            // Where this test was held up, the interrupt was one of a part of the last FIFO; then the
            // first look brings that of the whole.
            let is_empty = (0..2).any(|_| register(&mut serial, 2) == 0x02);
            assert!(is_empty, "transmit FIFO empty");
            for _ in 0..FIFO {
                serial.write(0, b"x");
            }
            output.read_exact(&mut [0; FIFO]).unwrap();
            line.wait_for(round);
        }
        assert!(line.0.load(Ordering::Relaxed) < 20 * FIFO);
    }

    #[test]
    fn end_of_a_handler_is_the_next_interrupt() {
        let (mut serial, _input, line, _output) = serial();
        serial.write(1, &[2]);
        for round in 2..20 {
            // As Linux has it: until nothing is pending.
            while register(&mut serial, 2) == 0x02 {
                for _ in 0..FIFO {
                    serial.write(0, b"x");
                }
            }
            assert!(line.0.load(Ordering::Relaxed) >= round, "it comes without waiting");
        }
    }

    #[test]
    fn output_that_nobody_reads_does_not_hold_the_guest() {
        let (mut serial, _input, _line, mut output) = serial();
        let sent = 2 * CAPACITY;
        for _ in 0..sent {
            serial.write(0, b"x");
        }
        let outlet = serial.port.outlet.clone();
        let began = Instant::now();
        while register(&mut serial, 5) & 0x20 == 0 {
            assert!(began.elapsed() < Duration::from_secs(30), "the transmitter is empty again");
        }
        assert!(outlet.lost().0 > 0);
        drop(serial);
        drop(_input);
        let lost = usize::try_from(outlet.lost().0).unwrap();
        drop(outlet);
        let mut rest = Vec::new();
        output.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len() + lost, sent, "each byte is written or counted");
    }

    #[test]
    fn port_leaves_no_thread() {
        let (mut serial, input, _line, _output) = serial();
        for _ in 0..2 * CAPACITY {
            serial.write(0, b"x");
        }
        drop(serial);
        // The wire thread had a share of it.
        assert_eq!(Arc::strong_count(&input.0), 1);
    }

    #[test]
    fn slow_reader_loses_nothing_of_a_guest_that_looks() {
        let (mut serial, _input, _line, mut output) = serial();
        let sent = CAPACITY + (128 << 10);
        let reader = thread::spawn(move || {
            let (mut piece, mut total) = (vec![0; 4096], 0);
            while total < sent {
                total += output.read(&mut piece).unwrap();
                thread::sleep(Duration::from_millis(1));
            }
        });
        for _ in 0..sent {
            while register(&mut serial, 5) & 0x20 == 0 {
                thread::yield_now();
            }
            serial.write(0, b"x");
        }
        reader.join().unwrap();
        assert_eq!(serial.port.outlet.lost().0, 0);
    }
}
