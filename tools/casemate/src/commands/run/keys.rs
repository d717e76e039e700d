//! The escape keys of the terminal: Ctrl-A and what follows it.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What a key means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    /// It is for the guest, or for the monitor while that is open.
    Byte(u8),
    /// End the guest.
    Quit,
    /// Open the monitor, or close it.
    Monitor,
    /// Show the keys.
    Help,
}

/// Where in a sequence of keys we are.
#[derive(Default)]
pub(super) struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes a byte; `None` if its meaning depends on the next one, or it has none.
    pub(super) fn take(&mut self, byte: u8) -> Option<Key> {
        if !std::mem::take(&mut self.escaped) {
            self.escaped = byte == ESCAPE;
            return (!self.escaped).then_some(Key::Byte(byte));
        }
        match byte {
            b'x' => Some(Key::Quit),
            b'c' => Some(Key::Monitor),
            b'h' | b'?' => Some(Key::Help),
            b'a' | ESCAPE => Some(Key::Byte(ESCAPE)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_told_from_what_is_typed() {
        let mut keys = Keys::default();
        let typed = b"a\x01x\x01c\x01\x01\x01h\x01zb";
        let meant: Vec<_> = typed.iter().filter_map(|byte| keys.take(*byte)).collect();
        let expected =
            [Key::Byte(b'a'), Key::Quit, Key::Monitor, Key::Byte(1), Key::Help, Key::Byte(b'b')];
        assert_eq!(meant, expected);
    }
}
