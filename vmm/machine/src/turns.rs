//! How often a confidential guest changes its mind about a page.

use std::collections::HashMap;

/// How often the accesses of vCPUs may change one page to and fro. Kernels do it a few times, for the
/// page where processors start and for a kernel that takes over; one page that two vCPUs use
/// differently would keep them busy for ever.
const MOST_TURNS: u32 = 1_000;

/// Pages whose turns are remembered. Where there are more, all counts begin again: what a guest can
/// make this process remember is bounded.
const REMEMBERED: usize = 4_096;

/// The turns of a guest's pages.
#[derive(Debug, Default)]
pub(crate) struct Turns(HashMap<u64, u32>);

impl Turns {
    /// Whether the page at `gpa` may once more be changed by an access.
    pub(crate) fn may_turn(&mut self, gpa: u64) -> bool {
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        let turns = self.0.entry(gpa).or_default();
        *turns += 1;
        *turns <= MOST_TURNS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_may_turn_often_but_not_for_ever() {
        let mut turns = Turns::default();
        assert!((0..MOST_TURNS).all(|_| turns.may_turn(0x1000)));
        assert!(!turns.may_turn(0x1000) && turns.may_turn(0x2000));
        for page in 0..3 * REMEMBERED as u64 {
            assert!(turns.may_turn(page << 13));
        }
        assert!(turns.0.len() <= REMEMBERED);
    }
}
