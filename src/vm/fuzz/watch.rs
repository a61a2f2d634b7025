//! The host of a guest that is fuzzed: it sees breakpoints, and keeps what would be printed until it is asked for.

use arrayvec::ArrayString;

use super::super::Host;
use super::super::figures::Figure;
use super::blocks::Blocks;
use crate::addr::Gva;
use crate::frames::PhysMem;

/// As much text of one run is kept.
const TEXT_MAX: usize = 4096;

/// A host in front of another one, which gets interrupts but no text.
pub(super) struct Watch<'h, 'i, 'f, M: PhysMem, H> {
    pub host: &'h mut H,
    pub blocks: Blocks<'i, 'f, M>,
    text: ArrayString<TEXT_MAX>,
}

impl<'h, 'i, 'f, M: PhysMem, H: Host> Watch<'h, 'i, 'f, M, H> {
    pub fn new(host: &'h mut H, blocks: Blocks<'i, 'f, M>) -> Self {
        Self {
            host,
            blocks,
            text: ArrayString::new_const(),
        }
    }

    /// The beginning of what was printed since the text was cleared.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn clear_text(&mut self) {
        self.text.clear();
    }
}

impl<M: PhysMem, H: Host> Host for Watch<'_, '_, '_, M, H> {
    fn external_interrupt(&mut self, vector: u8) {
        self.host.external_interrupt(vector);
    }
    fn non_maskable_interrupt(&mut self) {
        self.host.non_maskable_interrupt();
    }
    fn machine_check(&mut self) {
        self.host.machine_check();
    }
    fn print(&mut self, text: &str) {
        // A run may print without end.
        let room = self.text.remaining_capacity();
        let end = text.floor_char_boundary(room.min(text.len()));
        self.text.push_str(text.get(..end).unwrap_or_default());
    }
    fn figure(&mut self, _: Figure) -> bool {
        // Runs that are thrown away leave no figures.
        true
    }
    fn breakpoint(&mut self, at: Gva) -> Option<u8> {
        self.blocks.reach(at)
    }
}
