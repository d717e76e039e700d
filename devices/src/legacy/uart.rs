//! The registers of a 16550A.
//!
//! Source: Texas Instruments, PC16550D datasheet, section 8. The interrupt line follows the state of the
//! FIFOs; [`Uart::is_interrupting`] is its level.

use std::collections::VecDeque;

/// Bytes of each FIFO.
pub(super) const FIFO: usize = 16;

/// Offsets of the registers (table II).
const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
/// Interrupt identification when read, FIFO control when written.
const INTERRUPT_ID: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const MODEM_STATUS: u8 = 6;
const SCRATCH: u8 = 7;

/// Interrupt enable register.
const ENABLE_RECEIVED: u8 = 1 << 0;
const ENABLE_TRANSMIT_EMPTY: u8 = 1 << 1;
const ENABLE_LINE_STATUS: u8 = 1 << 2;
const ENABLES: u8 = 0x0f;

/// Interrupt identification register, in order of priority.
const ID_LINE_STATUS: u8 = 0x06;
const ID_RECEIVED: u8 = 0x04;
const ID_TIMEOUT: u8 = 0x0c;
const ID_TRANSMIT_EMPTY: u8 = 0x02;
const ID_NONE: u8 = 0x01;
const ID_FIFOS: u8 = 0xc0;

/// FIFO control register.
const FIFO_ENABLE: u8 = 1 << 0;
const FIFO_CLEAR_RECEIVE: u8 = 1 << 1;
/// Position of the receive trigger, two bits.
const FIFO_TRIGGER: u8 = 6;
const TRIGGERS: [usize; 4] = [1, 4, 8, 14];

/// Line control register: divisor latch access.
const DIVISOR_ACCESS: u8 = 1 << 7;

/// Modem control register.
const LOOP: u8 = 1 << 4;
const MODEM_CONTROLS: u8 = 0x1f;

/// Line status register.
const DATA_READY: u8 = 1 << 0;
const OVERRUN: u8 = 1 << 1;
const TRANSMIT_EMPTY: u8 = 1 << 5 | 1 << 6;

/// Modem status: data carrier, data set ready, clear to send.
const MODEM_READY: u8 = 0xb0;

/// Emptied FIFOs in a row whose interrupt comes at once: as many bytes as Linux's driver buffers for a
/// port (UART_XMIT_SIZE).
pub(super) const BURST: usize = 4096 / FIFO;

/// A driver that clears the receive FIFO is about to set the port up, and would drop what it finds
/// until then. Input waits until the driver enables its interrupt, or has looked for it so often.
const LOOKS: u8 = 16;

/// One port's registers. Bytes that the guest sent wait in `transmit` for whoever carries them away.
pub(super) struct Uart {
    pub(super) transmit: VecDeque<u8>,
    receive: VecDeque<u8>,
    interrupt_enable: u8,
    fifo_control: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    /// The interrupt of an emptied transmit FIFO, until it is seen or the FIFO is filled.
    transmit_pending: bool,
    /// The transmit FIFO was emptied, and its interrupt is to come.
    emptied: bool,
    /// Interrupts of emptied FIFOs that may still come at once.
    burst: usize,
    overrun: bool,
    /// How often the driver looked for input since it cleared the FIFO.
    looks: u8,
    /// Bytes that the guest sent when there was no room.
    pub(super) overwritten: usize,
}

impl Uart {
    pub(super) fn new() -> Self {
        Self {
            transmit: VecDeque::with_capacity(FIFO),
            receive: VecDeque::with_capacity(FIFO),
            interrupt_enable: 0,
            fifo_control: 0,
            // Eight bits, no parity; 9600 bits a second.
            line_control: 3,
            modem_control: 0,
            scratch: 0,
            divisor: [12, 0],
            transmit_pending: false,
            emptied: false,
            burst: BURST,
            overrun: false,
            looks: LOOKS,
            overwritten: 0,
        }
    }

    /// Level of the interrupt line.
    pub(super) fn is_interrupting(&self) -> bool {
        self.interrupt_id() != ID_NONE
    }

    /// Whether the driver waits for the interrupt of a transmit FIFO that was emptied.
    pub(super) fn owes_transmit_interrupt(&self) -> bool {
        self.interrupt_enable & ENABLE_TRANSMIT_EMPTY != 0 && self.emptied
    }

    /// The other end took the first `count` bytes of the transmit FIFO. The interrupt of an empty one
    /// comes when the driver has seen that no interrupt is pending, or by [`Uart::transmitted`]: a
    /// driver whose handler finds the FIFO empty again would fill it for ever.
    pub(super) fn carried(&mut self, count: usize) {
        self.transmit.drain(..count);
        self.emptied = self.transmit.is_empty();
    }

    /// All of the transmit FIFO has gone, and the time that it takes on a line has passed.
    pub(super) fn transmitted(&mut self) {
        self.transmit.clear();
        self.burst = BURST;
        self.raise_transmit_interrupt();
    }

    fn raise_transmit_interrupt(&mut self) {
        self.transmit_pending = true;
        self.emptied = false;
    }

    /// Bytes from the other end, as many as there is room for.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> usize {
        let room = FIFO.saturating_sub(self.receive.len()).min(bytes.len());
        self.receive.extend(&bytes[..room]);
        room
    }

    /// Whether the guest has taken all input.
    pub(super) fn is_drained(&self) -> bool {
        self.receive.is_empty()
    }

    fn has_data(&self) -> bool {
        !self.receive.is_empty() && self.looks >= LOOKS
    }

    fn interrupt_id(&self) -> u8 {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        let trigger = TRIGGERS[usize::from(self.fifo_control >> FIFO_TRIGGER)];
        if enabled(ENABLE_LINE_STATUS) && self.overrun {
            ID_LINE_STATUS
        } else if enabled(ENABLE_RECEIVED) && self.has_data() {
            // Below the trigger, the time of four characters has always passed already.
            if self.receive.len() >= trigger { ID_RECEIVED } else { ID_TIMEOUT }
        } else if enabled(ENABLE_TRANSMIT_EMPTY) && self.transmit_pending {
            ID_TRANSMIT_EMPTY
        } else {
            ID_NONE
        }
    }

    /// The guest reads a register.
    pub(super) fn read(&mut self, offset: u8) -> u8 {
        let divisor = self.line_control & DIVISOR_ACCESS != 0;
        match offset {
            DATA if divisor => self.divisor[0],
            INTERRUPT_ENABLE if divisor => self.divisor[1],
            DATA if self.has_data() => self.receive.pop_front().unwrap_or(0),
            DATA => 0,
            INTERRUPT_ENABLE => self.interrupt_enable,
            INTERRUPT_ID => self.read_interrupt_id(),
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => self.read_line_status(),
            MODEM_STATUS => self.modem_status(),
            SCRATCH => self.scratch,
            _ => 0xff,
        }
    }

    fn read_interrupt_id(&mut self) -> u8 {
        let id = self.interrupt_id();
        match id {
            ID_TRANSMIT_EMPTY => self.transmit_pending = false,
            // The end of a handler. The next interrupt finds the program that the last one held up
            // where it was: what it has sent is on the line before it goes on, if only to power off.
            ID_NONE if self.burst > 0 && self.owes_transmit_interrupt() => {
                self.burst -= 1;
                self.raise_transmit_interrupt();
            }
            _ => {}
        }
        if self.fifo_control & FIFO_ENABLE != 0 { id | ID_FIFOS } else { id }
    }

    fn read_line_status(&mut self) -> u8 {
        self.looks = self.looks.saturating_add(1).min(LOOKS);
        let mut status = 0;
        if self.has_data() {
            status |= DATA_READY;
        }
        if std::mem::take(&mut self.overrun) {
            status |= OVERRUN;
        }
        if self.transmit.is_empty() {
            status |= TRANSMIT_EMPTY;
        }
        status
    }

    /// In loopback the outputs are the inputs (section 8.6).
    fn modem_status(&self) -> u8 {
        if self.modem_control & LOOP == 0 {
            return MODEM_READY;
        }
        let output = |bit: u8| self.modem_control >> bit & 1;
        output(1) << 4 | output(0) << 5 | output(2) << 6 | output(3) << 7
    }

    /// The guest writes a register.
    pub(super) fn write(&mut self, offset: u8, value: u8) {
        let divisor = self.line_control & DIVISOR_ACCESS != 0;
        match offset {
            DATA if divisor => self.divisor[0] = value,
            INTERRUPT_ENABLE if divisor => self.divisor[1] = value,
            DATA => self.send(value),
            INTERRUPT_ENABLE => self.enable_interrupts(value & ENABLES),
            INTERRUPT_ID => self.control_fifos(value),
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value & MODEM_CONTROLS,
            SCRATCH => self.scratch = value,
            _ => {}
        }
    }

    fn send(&mut self, value: u8) {
        self.transmit_pending = false;
        self.emptied = false;
        if self.modem_control & LOOP != 0 {
            self.overrun |= self.receive(&[value]) == 0;
            self.transmit_pending = true;
        } else if self.transmit.len() < FIFO {
            self.transmit.push_back(value);
        } else {
            self.overwritten += 1;
        }
    }

    fn enable_interrupts(&mut self, enable: u8) {
        let new = enable & !self.interrupt_enable;
        self.interrupt_enable = enable;
        // Section 8.7: enabling the interrupt of an empty register raises it.
        if new & ENABLE_TRANSMIT_EMPTY != 0 && self.transmit.is_empty() {
            // The driver had nothing to send for a moment.
            self.burst = BURST;
            self.raise_transmit_interrupt();
        }
        if enable & ENABLE_RECEIVED != 0 {
            self.looks = LOOKS;
        }
    }

    /// Clearing the receive FIFO drops nothing: input comes from files and pipes as much as from
    /// keyboards, and waits for the driver.
    fn control_fifos(&mut self, value: u8) {
        self.fifo_control = value;
        if value & FIFO_CLEAR_RECEIVE != 0 && self.interrupt_enable & ENABLE_RECEIVED == 0 {
            self.looks = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With the interrupt of received data enabled.
    fn receiving(bytes: &[u8]) -> Uart {
        let mut uart = Uart::new();
        uart.write(INTERRUPT_ID, FIFO_ENABLE);
        uart.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
        assert_eq!(uart.receive(bytes), bytes.len());
        uart
    }

    #[test]
    fn receive_interrupt_follows_the_fifo() {
        let mut uart = receiving(b"abc");
        for expected in b"abc" {
            assert!(uart.is_interrupting());
            // Identifying the interrupt does not end it; a driver that stops early keeps it.
            assert_eq!(uart.read(INTERRUPT_ID) & 0x0f, ID_RECEIVED);
            assert_eq!(uart.read(DATA), *expected);
        }
        assert!(!uart.is_interrupting());
        assert_eq!(uart.read(INTERRUPT_ID), ID_NONE | ID_FIFOS);
    }

    #[test]
    fn bytes_below_the_trigger_are_a_timeout() {
        let mut uart = receiving(b"abcdefgh");
        uart.write(INTERRUPT_ID, FIFO_ENABLE | 2 << FIFO_TRIGGER);
        assert_eq!(uart.read(INTERRUPT_ID) & 0x0f, ID_RECEIVED);
        uart.read(DATA);
        assert_eq!(uart.read(INTERRUPT_ID) & 0x0f, ID_TIMEOUT);
    }

    #[test]
    fn transmit_interrupt_comes_when_the_fifo_is_empty_and_goes_when_seen() {
        let mut uart = Uart::new();
        uart.write(INTERRUPT_ENABLE, ENABLE_TRANSMIT_EMPTY);
        assert_eq!(uart.read(INTERRUPT_ID), ID_TRANSMIT_EMPTY);
        assert!(!uart.is_interrupting());
        for byte in 0..16 {
            uart.write(DATA, byte);
            assert!(!uart.is_interrupting());
        }
        assert_eq!(uart.read(LINE_STATUS) & TRANSMIT_EMPTY, 0);
        uart.write(DATA, 16);
        assert_eq!((uart.transmit.len(), uart.overwritten), (FIFO, 1));
        uart.carried(FIFO - 1);
        assert!(!uart.owes_transmit_interrupt());
        uart.carried(1);
        assert!(uart.owes_transmit_interrupt() && !uart.is_interrupting());
        uart.transmitted();
        assert!(uart.is_interrupting());
        uart.write(DATA, 0);
        assert!(!uart.is_interrupting());
    }

    /// A handler as Linux has it: it fills the FIFO once for each interrupt that it finds, until it
    /// finds none. The line takes all at once. Returns the bytes that the handler sent.
    fn handle(uart: &mut Uart, pending: usize) -> usize {
        let mut sent = 0;
        while uart.read(INTERRUPT_ID) == ID_TRANSMIT_EMPTY {
            for _ in 0..FIFO.min(pending - sent) {
                uart.write(DATA, b'x');
                uart.carried(1);
                sent += 1;
            }
            assert!(sent <= FIFO, "one handler keeps the processor");
        }
        sent
    }

    #[test]
    fn buffer_of_a_driver_is_sent_before_its_program_goes_on() {
        let mut uart = Uart::new();
        // Twice: a driver that had nothing to send for a moment has a whole burst again.
        for _ in 0..2 {
            let mut pending = BURST * FIFO;
            uart.write(INTERRUPT_ENABLE, ENABLE_TRANSMIT_EMPTY);
            while pending > 0 {
                assert!(uart.is_interrupting(), "{pending} bytes would be lost with the power");
                pending -= handle(&mut uart, pending);
            }
            uart.write(INTERRUPT_ENABLE, 0);
        }
    }

    #[test]
    fn sender_without_pause_leaves_the_processor_after_a_burst() {
        let mut uart = Uart::new();
        uart.write(INTERRUPT_ENABLE, ENABLE_TRANSMIT_EMPTY);
        for _ in 0..3 {
            let handlers = (0..2 * BURST).filter(|_| handle(&mut uart, usize::MAX) > 0).count();
            assert_eq!(handlers, 1 + BURST);
            // A driver that looks again finds nothing.
            assert_eq!(uart.read(INTERRUPT_ID), ID_NONE);
            assert!(uart.owes_transmit_interrupt() && !uart.is_interrupting());
            uart.transmitted();
            assert!(uart.is_interrupting());
        }
    }

    #[test]
    fn input_survives_a_driver_that_sets_the_port_up() {
        let mut uart = Uart::new();
        uart.receive(b"typed ahead");
        // As Linux starts a port: it clears the FIFOs and reads all registers.
        uart.write(INTERRUPT_ID, FIFO_ENABLE | FIFO_CLEAR_RECEIVE | 1 << 2);
        uart.write(INTERRUPT_ID, 0);
        for register in [LINE_STATUS, DATA, INTERRUPT_ID, MODEM_STATUS] {
            uart.read(register);
        }
        uart.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
        assert!(uart.is_interrupting());
        assert_eq!(uart.read(DATA), b't');
        // A driver without interrupts looks again and again.
        uart.write(INTERRUPT_ENABLE, 0);
        uart.write(INTERRUPT_ID, FIFO_CLEAR_RECEIVE);
        let looks = (0..100).take_while(|_| uart.read(LINE_STATUS) & DATA_READY == 0).count();
        assert!(looks < 100);
        assert_eq!(uart.read(DATA), b'y');
    }

    #[test]
    fn loopback_is_what_drivers_test_for() {
        let mut uart = Uart::new();
        // Linux: RTS and OUT2 come back as CTS and DCD.
        uart.write(MODEM_CONTROL, LOOP | 0x0a);
        assert_eq!(uart.read(MODEM_STATUS) & 0xf0, 0x90);
        for byte in 0..=16 {
            uart.write(DATA, byte);
        }
        assert_eq!(uart.read(LINE_STATUS) & (OVERRUN | DATA_READY), OVERRUN | DATA_READY);
        assert_eq!(uart.read(LINE_STATUS) & OVERRUN, 0);
        assert!(uart.transmit.is_empty());
        uart.write(MODEM_CONTROL, 0);
        assert_eq!(uart.read(MODEM_STATUS), MODEM_READY);
    }

    #[test]
    fn registers_keep_what_is_written() {
        let mut uart = Uart::new();
        uart.write(LINE_CONTROL, DIVISOR_ACCESS | 3);
        uart.write(DATA, 1);
        uart.write(INTERRUPT_ENABLE, 2);
        assert_eq!((uart.read(DATA), uart.read(INTERRUPT_ENABLE)), (1, 2));
        uart.write(LINE_CONTROL, 3);
        uart.write(INTERRUPT_ENABLE, 0xff);
        uart.write(SCRATCH, 0x5a);
        assert_eq!((uart.read(INTERRUPT_ENABLE), uart.read(SCRATCH)), (0x0f, 0x5a));
        assert!(uart.transmit.is_empty());
    }
}
