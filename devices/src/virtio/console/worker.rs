//! Serves the queues: carries bytes between the guest and the descriptors.

use std::fs::File;
use std::io::ErrorKind;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice, WriteVolatile};

use super::output::{MOST_BYTES, Output};
use crate::virtio::{Chain, DeviceControl, QueueFault, Virtqueue};

/// Event data: what has happened.
const RECEIVE_KICK: u32 = 0;
const TRANSMIT_KICK: u32 = 1;
const INPUT: u32 = 2;
const OUTPUT: u32 = 3;

pub(super) struct Worker {
    receive: Virtqueue,
    transmit: Virtqueue,
    /// `None` when it has ended.
    input: Option<File>,
    /// Whether the thread waits for the input: only while the guest has room for it.
    input_awaited: bool,
    output: Output,
    /// Whether the thread waits for the output: only while there is something for it.
    output_awaited: bool,
    /// A buffer of the guest's for which there was no input yet.
    buffer: Option<Chain>,
    /// A chain of the guest's that is not all written, and how much of it is.
    unwritten: Option<(Chain, u32)>,
    control: DeviceControl,
}

/// What became of a read or write.
enum Moved {
    Bytes(u32),
    /// Not now.
    Nothing,
    /// Never again.
    End,
}

impl Worker {
    pub(super) fn new(
        receive: Virtqueue,
        transmit: Virtqueue,
        input: Option<File>,
        output: Output,
        control: DeviceControl,
    ) -> Self {
        Self {
            receive,
            transmit,
            input,
            input_awaited: false,
            output,
            output_awaited: false,
            buffer: None,
            unwritten: None,
            control,
        }
    }

    /// The guest has a buffer, or should have: waits for input as long as it does.
    fn serve_receive(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueFault> {
        while self.buffer.is_none() {
            self.buffer = self.receive.next_chain()?;
            if self.buffer.is_none() && !self.receive.enable_notification()? {
                break;
            }
        }
        self.await_input(self.buffer.is_some(), ops);
        Ok(())
    }

    /// There is input, and a buffer for it.
    fn serve_input(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueFault> {
        let (Some(chain), Some(input)) = (&self.buffer, &mut self.input) else { return Ok(()) };
        if chain.writable_len() == 0 {
            return Err(chain.malformed("a console buffer has no room for input"));
        }
        let mut moved = Moved::Nothing;
        // Into the first piece only: what is left comes with the next event.
        let len = chain.writable().first().map_or(0, |piece| piece.len as usize);
        let mut first = true;
        chain.for_each_writable(self.receive.memory(), 0, len, |mut piece| {
            if std::mem::take(&mut first) {
                moved = Moved::of(input.read_volatile(&mut piece));
            }
            Ok(())
        })?;
        match moved {
            Moved::Nothing => {}
            Moved::End | Moved::Bytes(0) => {
                self.await_input(false, ops);
                self.input = None;
            }
            Moved::Bytes(read) => {
                if let Some(chain) = self.buffer.take() {
                    self.receive.complete(chain, read)?;
                }
                self.receive.notify_if_needed()?;
                self.serve_receive(ops)?;
            }
        }
        Ok(())
    }

    /// Writes what the guest says, until there is no more or the output is full.
    fn serve_transmit(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueFault> {
        // As in `Virtqueue::serve`: others on the thread have their turn.
        for _ in 0..self.transmit.size() {
            let (chain, done) = match self.unwritten.take() {
                Some(unwritten) => unwritten,
                None => match self.transmit.next_chain()? {
                    Some(chain) => (chain, 0),
                    None if self.transmit.enable_notification()? => continue,
                    None => {
                        self.await_output(false, ops);
                        return self.transmit.notify_if_needed();
                    }
                },
            };
            if !self.output.is_ready() {
                self.unwritten = Some((chain, done));
                self.await_output(true, ops);
                return self.transmit.notify_if_needed();
            }
            let done = done + self.write(&chain, done)?;
            if done < chain.readable_len() {
                self.unwritten = Some((chain, done));
            } else {
                self.transmit.complete(chain, 0)?;
            }
        }
        self.transmit.wake_again();
        self.transmit.notify_if_needed()
    }

    /// Writes one piece of a chain, from byte `offset` on. Returns by how many bytes that is done.
    fn write(&mut self, chain: &Chain, offset: u32) -> Result<u32, QueueFault> {
        let mut moved = Moved::Bytes(0);
        let mut first = true;
        let file = &mut self.output.file;
        let memory = self.transmit.memory();
        chain.for_each_readable(memory, offset, MOST_BYTES, |piece: VolatileSlice<'_>| {
            if std::mem::take(&mut first) {
                moved = Moved::of(file.write_volatile(&piece));
            }
            Ok(())
        })?;
        Ok(match moved {
            Moved::Bytes(written) => written,
            Moved::Nothing => 0,
            // Nobody is there any more; the guest need not know.
            Moved::End => chain.readable_len() - offset,
        })
    }

    fn await_input(&mut self, wanted: bool, ops: &mut EventOps<'_>) {
        let Some(input) = &self.input else { return };
        if wanted == self.input_awaited {
            return;
        }
        let events = Events::with_data(input, INPUT, EventSet::IN);
        let result = if wanted { ops.add(events) } else { ops.remove(events) };
        self.input_awaited = wanted;
        if let Err(error) = result {
            tracing::info!(%error, "the console's input cannot be waited for and stays unread");
            self.input = None;
        }
    }

    fn await_output(&mut self, wanted: bool, ops: &mut EventOps<'_>) {
        let Some(ready) = self.output.ready() else { return };
        if wanted == self.output_awaited {
            return;
        }
        let events = Events::with_data(ready, OUTPUT, EventSet::IN);
        let result = if wanted { ops.add(events) } else { ops.remove(events) };
        self.output_awaited = wanted;
        if let Err(error) = result {
            tracing::error!(%error, "the console cannot wait for its output");
        }
    }

    fn serve(&mut self, event: u32, ops: &mut EventOps<'_>) -> Result<(), QueueFault> {
        match event {
            RECEIVE_KICK => {
                self.receive.drain_kick();
                self.serve_receive(ops)
            }
            TRANSMIT_KICK => {
                self.transmit.drain_kick();
                self.serve_transmit(ops)
            }
            INPUT => self.serve_input(ops),
            _ => self.serve_transmit(ops),
        }
    }
}

impl Moved {
    fn of(result: Result<usize, VolatileMemoryError>) -> Self {
        match result {
            Ok(bytes) => Self::Bytes(u32::try_from(bytes).unwrap_or(u32::MAX)),
            Err(VolatileMemoryError::IOError(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Self::Nothing
            }
            Err(_) => Self::End,
        }
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (queue, data) in [(&self.receive, RECEIVE_KICK), (&self.transmit, TRANSMIT_KICK)] {
            if let Err(error) = ops.add(Events::with_data(queue.kick(), data, EventSet::IN)) {
                tracing::error!(%error, "the console cannot wait for its driver");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if let Err(fault) = self.serve(events.data(), ops) {
            self.control.needs_reset(&fault);
            for queue in [&self.receive, &self.transmit] {
                // Fails only if it is not there any more.
                let _ = ops.remove(Events::empty(queue.kick()));
            }
            self.await_input(false, ops);
            self.await_output(false, ops);
        }
    }
}
