//! One stream between a process on the host and one in the guest: credit (VIRTIO 1.2, section
//! 5.10.6.3), data both ways, and the end (section 5.10.6.6).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::num::Wrapping;
use std::os::unix::net::UnixStream;

use super::packet::{Header, Operation, Ports, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};

/// A stream whose two ends are known.
pub(super) struct Connection {
    ports: Ports,
    stream: UnixStream,
    /// Bytes from the guest that the stream holds for a process that does not read them.
    window: u32,
    /// False while the guest has not answered the host's request.
    established: bool,
    /// No more packets will come or go; the entry can be forgotten.
    finished: bool,
    due: Due,
    to_guest: ToGuest,
    from_guest: FromGuest,
}

/// What a socket is ready for.
#[derive(Clone, Copy, Default)]
pub(super) struct Readiness {
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) hung_up: bool,
}

/// Packets that wait to be sent. Each at most once, so that they need no queue.
#[derive(Default)]
struct Due {
    request: bool,
    response: bool,
    reset: bool,
    shutdown: u32,
    credit_update: bool,
    credit_request: bool,
}

/// Data for the guest stays in the socket until the guest has room for it.
#[derive(Default)]
struct ToGuest {
    readable: bool,
    /// The process neither sends nor takes anything any more.
    hung_up: bool,
    closed: bool,
    /// The guest has been asked for credit, and has not answered.
    asked: bool,
    sent: Wrapping<u32>,
    guest_buf_alloc: u32,
    guest_fwd_cnt: Wrapping<u32>,
}

#[derive(Default)]
struct FromGuest {
    pending: VecDeque<u8>,
    /// The guest will send no more.
    ended: bool,
    /// The process takes no more: what comes is dropped.
    closed: bool,
    forwarded: Wrapping<u32>,
    announced: Wrapping<u32>,
}

impl Connection {
    /// A process on the host connected: asks the guest.
    pub(super) fn requested_by_host(ports: Ports, stream: UnixStream, window: u32) -> Self {
        let due = Due { request: true, ..Due::default() };
        Self::new(ports, stream, window, false, due)
    }

    /// The guest asked, and a process on the host listens.
    pub(super) fn requested_by_guest(request: &Header, stream: UnixStream, window: u32) -> Self {
        let due = Due { response: true, ..Due::default() };
        let mut connection = Self::new(request.ports, stream, window, true, due);
        connection.take_credit(request);
        connection
    }

    fn new(ports: Ports, stream: UnixStream, window: u32, established: bool, due: Due) -> Self {
        Self {
            ports,
            stream,
            window,
            established,
            finished: false,
            due,
            to_guest: ToGuest::default(),
            from_guest: FromGuest::default(),
        }
    }

    pub(super) const fn is_finished(&self) -> bool {
        self.finished
    }

    pub(super) const fn window(&self) -> u32 {
        self.window
    }

    pub(super) const fn ports(&self) -> Ports {
        self.ports
    }

    pub(super) const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// The socket has data or an end to read, has room to write, or the process is gone.
    pub(super) fn stream_ready(&mut self, readiness: Readiness) {
        self.to_guest.readable |= readiness.readable;
        self.to_guest.hung_up |= readiness.hung_up;
        if readiness.writable {
            self.flush();
        }
        // Nobody waits for the guest's answer any more.
        self.due.reset |= readiness.hung_up && !self.established;
    }

    /// A packet from the guest, with the `header.length` bytes of its payload.
    pub(super) fn receive(&mut self, header: &Header, payload: &[u8]) {
        self.take_credit(header);
        match header.operation {
            Operation::Response if !self.established => self.establish(),
            Operation::Payload if self.established && !self.from_guest.ended => {
                self.take_payload(payload);
            }
            Operation::CreditUpdate => {}
            Operation::CreditRequest => self.due.credit_update = true,
            Operation::Shutdown => self.shut_down(header.flags),
            Operation::Reset => self.finished = true,
            Operation::Request | Operation::Response | Operation::Payload => self.due.reset = true,
        }
    }

    /// The next packet for the guest; its payload goes into `payload`.
    pub(super) fn next_packet(&mut self, payload: &mut [u8]) -> Option<Header> {
        if std::mem::take(&mut self.due.reset) {
            self.finished = true;
            return Some(self.header(Operation::Reset, 0, 0));
        }
        if std::mem::take(&mut self.due.request) {
            return Some(self.header(Operation::Request, 0, 0));
        }
        if std::mem::take(&mut self.due.response) {
            return Some(self.header(Operation::Response, 0, 0));
        }
        if let Some(length) = self.read_stream(payload) {
            return Some(self.header(Operation::Payload, length, 0));
        }
        if self.due.shutdown != 0 {
            let flags = std::mem::take(&mut self.due.shutdown);
            return Some(self.header(Operation::Shutdown, 0, flags));
        }
        if std::mem::take(&mut self.due.credit_request) {
            return Some(self.header(Operation::CreditRequest, 0, 0));
        }
        if std::mem::take(&mut self.due.credit_update) {
            return Some(self.header(Operation::CreditUpdate, 0, 0));
        }
        None
    }

    fn header(&mut self, operation: Operation, length: u32, flags: u32) -> Header {
        // Every packet carries the count, so that a separate update is not needed any more.
        self.due.credit_update = false;
        self.from_guest.announced = self.from_guest.forwarded;
        let fwd_cnt = self.from_guest.forwarded.0;
        Header { ports: self.ports, operation, length, flags, buf_alloc: self.window, fwd_cnt }
    }

    /// Reads as much as the guest has room for; `None` if there is nothing to send.
    fn read_stream(&mut self, payload: &mut [u8]) -> Option<u32> {
        if !self.established || !self.to_guest.readable || self.to_guest.closed {
            return None;
        }
        let room = self.to_guest.room();
        if room == 0 {
            self.due.credit_request |= !std::mem::replace(&mut self.to_guest.asked, true);
            return None;
        }
        let most = payload.len().min(room as usize);
        loop {
            match self.stream.read(&mut payload[..most]) {
                Ok(0) => {
                    self.to_guest.closed = true;
                    self.due.shutdown |= SHUTDOWN_SEND;
                    if self.to_guest.hung_up {
                        self.due.shutdown |= SHUTDOWN_RECEIVE;
                    }
                    return None;
                }
                Ok(length) => {
                    let length = u32::try_from(length).unwrap_or(room);
                    self.to_guest.sent += length;
                    return Some(length);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.to_guest.readable = false;
                    return None;
                }
                Err(_) => {
                    self.to_guest.closed = true;
                    self.due.shutdown |= SHUTDOWN_SEND | SHUTDOWN_RECEIVE;
                    return None;
                }
            }
        }
    }

    fn take_credit(&mut self, header: &Header) {
        self.to_guest.guest_buf_alloc = header.buf_alloc;
        self.to_guest.guest_fwd_cnt = Wrapping(header.fwd_cnt);
        self.to_guest.asked = false;
    }

    /// Tells the process on the host in the words that Firecracker's users know.
    fn establish(&mut self) {
        self.established = true;
        let line = format!("OK {}\n", self.ports.host);
        if self.stream.write_all(line.as_bytes()).is_err() {
            self.due.reset = true;
        }
    }

    fn take_payload(&mut self, mut payload: &[u8]) {
        let pending = &mut self.from_guest.pending;
        let room = (self.window as usize).saturating_sub(pending.len());
        if payload.len() > room {
            // The guest sent more than it had credit for.
            self.due.reset = true;
            return;
        }
        if pending.is_empty() {
            let taken = self.hand_over(payload);
            payload = &payload[taken..];
        }
        let pending = &mut self.from_guest.pending;
        if pending.is_empty() && !payload.is_empty() {
            // All that it can ever need, and no more.
            pending.reserve_exact(self.window as usize);
        }
        pending.extend(payload);
        self.flush();
    }

    /// Hands bytes to the process, as far as it takes them. Returns how many those are.
    fn hand_over(&mut self, data: &[u8]) -> usize {
        let mut taken = 0;
        while taken < data.len() {
            if self.from_guest.closed {
                taken = data.len();
                break;
            }
            match self.stream.write(&data[taken..]) {
                Ok(more) => taken += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.from_guest.closed = true;
                    self.due.shutdown |= SHUTDOWN_RECEIVE;
                }
            }
        }
        self.from_guest.forwarded += u32::try_from(taken).unwrap_or(self.window);
        taken
    }

    /// Hands what is pending to the process, as far as it takes that.
    fn flush(&mut self) {
        let mut pending = std::mem::take(&mut self.from_guest.pending);
        while !pending.is_empty() {
            let taken = self.hand_over(pending.as_slices().0);
            if taken == 0 {
                break;
            }
            pending.drain(..taken);
        }
        if !pending.is_empty() {
            self.from_guest.pending = pending;
        }
        let unannounced = self.from_guest.forwarded - self.from_guest.announced;
        self.due.credit_update |= unannounced.0 >= self.window / 2;
        self.end_if_drained();
    }

    fn shut_down(&mut self, flags: u32) {
        if flags & SHUTDOWN_RECEIVE != 0 {
            self.to_guest.closed = true;
        }
        if flags & SHUTDOWN_SEND != 0 {
            self.from_guest.ended = true;
        }
        self.end_if_drained();
    }

    /// A stream that the guest has closed ends when all that it sent has been passed on.
    fn end_if_drained(&mut self) {
        if !self.from_guest.ended || !self.from_guest.pending.is_empty() {
            return;
        }
        if self.to_guest.closed {
            self.due.reset = true;
        } else if !std::mem::replace(&mut self.from_guest.closed, true) {
            // An error means that the process is gone, which reading from it will show.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }
}

impl ToGuest {
    /// Bytes that the guest says it can take.
    fn room(&self) -> u32 {
        let in_flight = (self.sent - self.guest_fwd_cnt).0;
        self.guest_buf_alloc.saturating_sub(in_flight)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::budget::LARGEST as BUFFER;
    use super::super::packet::MAX_PAYLOAD;
    use super::*;

    const PORTS: Ports = Ports { host: 5000, guest: 1234 };
    const READABLE: Readiness = Readiness { readable: true, writable: false, hung_up: false };
    const WRITABLE: Readiness = Readiness { readable: false, writable: true, hung_up: false };

    fn packet(operation: Operation, length: usize, flags: u32, fwd_cnt: u32) -> Header {
        let length = u32::try_from(length).unwrap();
        Header { ports: PORTS, operation, length, flags, buf_alloc: 10, fwd_cnt }
    }

    fn operation(connection: &mut Connection) -> Option<Operation> {
        connection.next_packet(&mut [0; MAX_PAYLOAD]).map(|header| header.operation)
    }

    /// A stream that the guest asked for, and the process at its other end.
    fn by_guest() -> (Connection, UnixStream) {
        let (ours, process) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        process.set_nonblocking(true).unwrap();
        let request = packet(Operation::Request, 0, 0, 0);
        let mut connection = Connection::requested_by_guest(&request, ours, BUFFER);
        assert_eq!(operation(&mut connection), Some(Operation::Response));
        (connection, process)
    }

    #[test]
    fn the_guest_gets_no_more_than_it_has_room_for() {
        let (mut connection, mut process) = by_guest();
        process.write_all(b"sixteen bytes...").unwrap();
        connection.stream_ready(READABLE);
        let mut payload = [0; MAX_PAYLOAD];
        let header = connection.next_packet(&mut payload).unwrap();
        assert_eq!((header.operation, header.length), (Operation::Payload, 10));
        assert_eq!(&payload[..10], b"sixteen by");
        assert_eq!(operation(&mut connection), Some(Operation::CreditRequest));
        assert_eq!(operation(&mut connection), None, "asked once, not again and again");
        connection.receive(&packet(Operation::CreditUpdate, 0, 0, 10), &[]);
        assert_eq!(connection.next_packet(&mut payload).unwrap().length, 6);
        assert_eq!(operation(&mut connection), None);
    }

    #[test]
    fn a_guest_that_counts_wrong_gets_nothing() {
        let (mut connection, mut process) = by_guest();
        process.write_all(b"x").unwrap();
        connection.stream_ready(READABLE);
        connection.receive(&packet(Operation::CreditUpdate, 0, 0, 99), &[]);
        assert_eq!(operation(&mut connection), Some(Operation::CreditRequest));
    }

    #[test]
    fn data_waits_for_a_slow_process_and_excess_is_a_reset() {
        let (mut connection, process) = by_guest();
        let chunk = [7; MAX_PAYLOAD];
        let mut sent = 0;
        while connection.from_guest.pending.len() + chunk.len() <= BUFFER as usize {
            connection.receive(&packet(Operation::Payload, chunk.len(), 0, 0), &chunk);
            sent += chunk.len();
        }
        connection.receive(&packet(Operation::Payload, chunk.len(), 0, 0), &chunk);
        assert_eq!(operation(&mut connection), Some(Operation::Reset));
        assert!(connection.is_finished());

        let mut got = 0;
        let mut reader = &process;
        let mut part = vec![0; 1 << 20];
        loop {
            connection.stream_ready(WRITABLE);
            match reader.read(&mut part) {
                Ok(length) => got += length,
                Err(_) => break,
            }
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn credit_is_announced_when_half_the_buffer_was_passed_on() {
        let (mut connection, mut process) = by_guest();
        let chunk = [7; MAX_PAYLOAD];
        let mut part = vec![0; 1 << 20];
        for _ in 0..2 {
            assert_eq!(operation(&mut connection), None);
            connection.receive(&packet(Operation::Payload, chunk.len(), 0, 0), &chunk);
            while process.read(&mut part).is_ok() {
                connection.stream_ready(WRITABLE);
            }
        }
        let header = connection.next_packet(&mut part).unwrap();
        assert_eq!((header.operation, header.fwd_cnt), (Operation::CreditUpdate, BUFFER / 2));
    }

    #[test]
    fn either_side_can_stop_sending_and_go_on_receiving() {
        let (mut connection, mut process) = by_guest();
        connection.receive(&packet(Operation::Payload, 3, 0, 0), b"bye");
        connection.receive(&packet(Operation::Shutdown, 0, SHUTDOWN_SEND, 0), &[]);
        let mut text = String::new();
        process.read_to_string(&mut text).unwrap();
        assert_eq!(text, "bye");
        process.write_all(b"answer").unwrap();
        process.shutdown(Shutdown::Write).unwrap();
        connection.stream_ready(READABLE);
        assert_eq!(operation(&mut connection), Some(Operation::Payload));
        let mut payload = [0; 16];
        let header = connection.next_packet(&mut payload).unwrap();
        assert_eq!((header.operation, header.flags), (Operation::Shutdown, SHUTDOWN_SEND));
        connection.receive(&packet(Operation::Shutdown, 0, SHUTDOWN_RECEIVE, 0), &[]);
        assert_eq!(operation(&mut connection), Some(Operation::Reset));
        assert!(connection.is_finished());
    }

    #[test]
    fn a_process_that_went_away_ends_the_stream() {
        let (mut connection, process) = by_guest();
        drop(process);
        connection.receive(&packet(Operation::Payload, 4, 0, 0), b"lost");
        connection.stream_ready(Readiness { readable: true, writable: true, hung_up: true });
        let header = connection.next_packet(&mut [0; 16]).unwrap();
        assert_eq!(header.operation, Operation::Shutdown);
        assert_eq!(header.flags, SHUTDOWN_RECEIVE | SHUTDOWN_SEND);
    }

    #[test]
    fn the_host_asks_and_is_told() {
        let (ours, mut process) = UnixStream::pair().unwrap();
        let mut connection = Connection::requested_by_host(PORTS, ours, BUFFER);
        assert_eq!(operation(&mut connection), Some(Operation::Request));
        connection.receive(&packet(Operation::Response, 0, 0, 0), &[]);
        let mut line = [0; 8];
        process.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"OK 5000\n");
        // An answer to nothing.
        connection.receive(&packet(Operation::Response, 0, 0, 0), &[]);
        assert_eq!(operation(&mut connection), Some(Operation::Reset));
    }

    proptest! {
        #[test]
        fn whatever_the_guest_sends_the_buffer_has_its_limit(
            packets in prop::collection::vec((1_u16..8, 0..MAX_PAYLOAD, any::<[u32; 3]>()), 0..40),
        ) {
            let (mut connection, mut process) = by_guest();
            let mut payload = vec![0; MAX_PAYLOAD];
            for (number, length, [flags, buf_alloc, fwd_cnt]) in packets {
                let operation = Operation::from_number(number).unwrap();
                let header = Header {
                    buf_alloc,
                    ..packet(operation, length, flags, fwd_cnt)
                };
                connection.receive(&header, &payload[..length]);
                let _ = process.write(b"something");
                connection.stream_ready(READABLE);
                prop_assert!(connection.from_guest.pending.len() <= BUFFER as usize);
                if let Some(sent) = connection.next_packet(&mut payload) {
                    prop_assert!(sent.length <= buf_alloc);
                }
                if connection.is_finished() {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_process_that_gives_up_waiting_takes_its_request_back() {
        let (ours, _process) = UnixStream::pair().unwrap();
        let mut connection = Connection::requested_by_host(PORTS, ours, BUFFER);
        assert_eq!(operation(&mut connection), Some(Operation::Request));
        connection.stream_ready(Readiness { hung_up: true, ..READABLE });
        assert_eq!(operation(&mut connection), Some(Operation::Reset));
        assert!(connection.is_finished());
    }
}
