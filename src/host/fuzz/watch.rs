//! The host of a guest that is fuzzed: it sees breakpoints, and keeps what would be printed until it is asked for.

use super::blocks::Blocks;
use super::page::Page;
use crate::addr::Gva;
use crate::frames::{FrameAllocator, FrameError, PhysMem};
use crate::vm::console::{Printer, write_line};
use crate::vm::figure::Figure;
use crate::vm::host::{Host, HostConsole};

/// A host in front of another one, which gets interrupts but no text.
pub(super) struct Watch<'h, 'i, 'f, M: PhysMem, H> {
    pub host: &'h mut H,
    pub blocks: Blocks<'i, 'f, M>,
    text: Page<'f, M>,
    /// Bytes of text.
    len: usize,
}

impl<'h, 'i, 'f, M: PhysMem, H: Host> Watch<'h, 'i, 'f, M, H> {
    pub fn new(
        host: &'h mut H,
        blocks: Blocks<'i, 'f, M>,
        frames: &'f FrameAllocator<M>,
    ) -> Result<Self, FrameError> {
        Ok(Self {
            host,
            blocks,
            text: Page::new(frames)?,
            len: 0,
        })
    }

    /// The beginning of what was printed since the text was cleared, as much as a page holds.
    pub fn text(&self) -> &str {
        let bytes = self.text.get(..self.len).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }

    pub fn clear_text(&mut self) {
        self.len = 0;
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
    fn print(&mut self, from: &Printer, line: &[u8]) -> u64 {
        let _ = write_line(&from.name, line, &mut HostConsole(self));
        self.tell("\n");
        // Nobody waits for it.
        1
    }
    fn tell(&mut self, text: &str) {
        // A run may print without end.
        let room = self.text.get_mut(self.len..).unwrap_or_default();
        let taken = text.floor_char_boundary(room.len());
        for (to, from) in room.iter_mut().zip(text.bytes().take(taken)) {
            *to = from;
        }
        self.len += taken;
    }
    fn figure(&mut self, _: Figure) -> bool {
        // Runs that are thrown away leave no figures.
        true
    }
    fn breakpoint(&mut self, at: Gva) -> Option<u8> {
        self.blocks.reach(at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::code::Codes;
    use super::super::dictionary::Dictionary;
    use super::*;
    use crate::frames::arena::Arena;
    use crate::vm::name::Name;

    struct Silent;
    impl Host for Silent {
        fn external_interrupt(&mut self, _: u8) {}
        fn non_maskable_interrupt(&mut self) {}
        fn machine_check(&mut self) {}
        fn print(&mut self, from: &Printer, _: &[u8]) -> u64 {
            panic!("{from:?}")
        }
        fn tell(&mut self, text: &str) {
            panic!("{text}")
        }
        fn figure(&mut self, figure: Figure) -> bool {
            panic!("{figure:?}")
        }
    }

    #[test]
    fn a_page_of_text_is_kept() {
        let frames = Arena::allocator(0x10_0000, 16);
        let blocks = Blocks::find(Codes::new(), &frames, &mut Dictionary::default()).unwrap();
        let mut host = Silent;
        let mut watch = Watch::new(&mut host, blocks, &frames).unwrap();
        watch.tell("first, ");
        watch.tell("second");
        assert_eq!(watch.text(), "first, second");
        watch.clear_text();
        assert_eq!(watch.text(), "");
        watch.tell("x");
        for _ in 0..4096 {
            watch.tell("ää");
        }
        assert_eq!(watch.text().len(), 4095, "whole characters");
        watch.clear_text();
        let from = Printer {
            name: Name::new("web").unwrap(),
            generation: 1,
            fork: 0,
        };
        watch.print(&from, b"a\x07");
        assert_eq!(watch.text(), "[web] a\\u{7}\n");
        assert_eq!(watch.breakpoint(Gva::new(0x1000)), None);
    }
}
