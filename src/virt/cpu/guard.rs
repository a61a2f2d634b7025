//! What is asked for against the side channels of the CPU. Which of it is needed is not decided here, and how it is done is the
//! entry routine's.

use super::area::EntryArea;

/// Bits of `guards` in [`EntryArea`]: what is done before every entry.
pub(crate) const FLUSH_BY_COMMAND: u32 = 1 << 0;
pub(crate) const FLUSH_BY_READING: u32 = 1 << 1;
pub(crate) const CLEAR_BUFFERS: u32 = 1 << 2;
pub(crate) const IBRS_OFF: u32 = 1 << 3;

/// What is to be done at entries and exits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    /// The L1 data cache is flushed by IA32_FLUSH_CMD where an entry follows code that may have read what is not the guest's.
    pub flush_by_command: bool,
    /// The same by reading.
    pub flush_by_reading: bool,
    /// VERW before every entry.
    pub verw: bool,
    /// The return stack buffer is filled after every exit.
    pub fill_returns: bool,
    /// One call and a barrier after every exit.
    pub one_call: bool,
    /// IA32_SPEC_CTRL.IBRS is set after every exit and cleared before every entry.
    pub ibrs_at_exits: bool,
    /// The branch history is cleared after every exit: how often it is gone over, and with how many branches.
    pub history_loops: Option<(u32, u32)>,
    /// What IA32_SPEC_CTRL is to be, in the guests too.
    pub spec_ctrl: u32,
}

impl Guard {
    /// What is done before every entry: for [`EntryArea::guard`].
    fn at_entry(&self) -> u32 {
        bits(&[
            (self.flush_by_command, FLUSH_BY_COMMAND),
            (self.flush_by_reading, FLUSH_BY_READING),
            (self.verw, CLEAR_BUFFERS),
            (self.ibrs_at_exits, IBRS_OFF),
        ])
    }
}

/// The bits of what is on.
pub(crate) fn bits(of: &[(bool, u32)]) -> u32 {
    of.iter()
        .filter(|(on, _)| *on)
        .fold(0, |all, (_, bit)| all | bit)
}

impl EntryArea {
    /// Has entries do what is to be done before every one, as the guest comes onto the CPU.
    #[inline]
    pub fn guard(&mut self, guard: &Guard) {
        self.guards = guard.at_entry();
        self.flush_is_due();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_guard_nothing_is_done() {
        assert_eq!(Guard::default().at_entry(), 0);
        let mut area = EntryArea::new();
        area.guard(&Guard::default());
        area.flush_is_due();
        assert_eq!(area.guards_and_due(), (0, 1));
    }

    #[test]
    fn each_guard_has_its_bit() {
        let all = Guard {
            flush_by_command: true,
            flush_by_reading: true,
            verw: true,
            ibrs_at_exits: true,
            ..Guard::default()
        };
        assert_eq!(all.at_entry(), 0b1111);
        let verw = Guard {
            verw: true,
            ..Guard::default()
        };
        let mut area = EntryArea::new();
        area.guard(&verw);
        assert_eq!(area.guards_and_due(), (CLEAR_BUFFERS, 1));
    }
}
