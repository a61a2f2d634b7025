//! Lines that wait for the console.
//!
//! The console is slow, and whoever prints does not wait for it: lines stand in a queue, in the order in which they were
//! printed, and go out when nobody else has use for the time. There is room for so many of the guests' lines and for so
//! much of the host's text. Where guests have more, those who have the most lose their oldest lines, so each has
//! an equal part for sure, and of each the last lines are kept. How many were lost is said in their place. The host's
//! text is never lost: where there is no room for it, it is for the caller to put something out first.
//!
//! All work is bounded: a line that is taken costs a look at the guests that have lines waiting, at most.

use core::fmt::Write;

use arrayvec::ArrayVec;

use crate::vm::console::{LINE_MAX, Printer, write_line};
use crate::vm::name::Name;

/// So many lines of guests can wait.
pub const LINES: usize = 1024;
/// So many guests can have lines waiting: any other has its lines among those of one of its name, or none.
const GUESTS: usize = 256;
/// So many bytes of the host's can.
const HOST_BYTES: usize = 64 << 10;
/// The longest line that goes out, with the name before it and each byte written as `\u{1b}`.
const OUT_MAX: usize = 2048;
/// No slot, no guest.
const NONE: u16 = u16::MAX;
const _: () = assert!(LINES <= NONE as usize && LINE_MAX <= u8::MAX as usize);

/// A line of a guest.
#[derive(Debug)]
struct Slot {
    text: [u8; LINE_MAX],
    len: u8,
    /// The next line of the same guest, or the next free slot.
    next: u16,
    /// When it was printed.
    number: u64,
}

/// A guest that has lines here.
#[derive(Clone, Copy, Debug)]
struct Guest {
    from: Option<Printer>,
    /// Its oldest line and its newest.
    first: u16,
    last: u16,
    /// How many there are.
    waiting: u16,
    /// How many it has lost before the oldest.
    lost: u64,
}

impl Guest {
    const NOBODY: Self = Self {
        from: None,
        first: NONE,
        last: NONE,
        waiting: 0,
        lost: 0,
    };
}

/// Lines that wait for the console. It is too large for a stack.
#[derive(Debug)]
pub struct Queue {
    lines: Lines,
    /// The line that goes out, of which so many bytes are gone.
    out: ArrayVec<u8, OUT_MAX>,
    gone: usize,
}

/// The lines that have not begun to go out.
#[derive(Debug)]
struct Lines {
    slots: [Slot; LINES],
    free: u16,
    guests: [Guest; GUESTS],
    /// How many guests have lines here.
    present: usize,
    /// Who printed last.
    recent: usize,
    /// Who had the most lines when that was looked for.
    loudest: usize,
    /// Lines that were lost of guests that have none here.
    lost: u64,
    host: HostText,
    /// The number of the next line.
    next: u64,
}

impl Queue {
    /// An empty one.
    pub const fn new() -> Self {
        Self {
            lines: Lines::new(),
            out: ArrayVec::new_const(),
            gone: 0,
        }
    }

    /// Takes a line of a guest. Returns who has lost one for it.
    pub fn print(&mut self, from: &Printer, line: &[u8]) -> Option<Name> {
        self.lines.print(from, line)
    }

    /// Takes text of the host, of whole lines. `false`: there is no room for it now.
    pub fn tell(&mut self, text: &str) -> bool {
        self.lines.tell(text)
    }

    /// So many bytes of the host's have room.
    pub const fn room(&self) -> usize {
        HOST_BYTES - self.lines.host.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.gone >= self.out.len() && self.lines.is_empty()
    }

    /// What is to go out next: at least a byte, if anything waits.
    pub fn pending(&mut self) -> &[u8] {
        if self.gone >= self.out.len() {
            self.gone = 0;
            self.out.clear();
            self.lines.render(&mut Bytes(&mut self.out));
        }
        self.out.get(self.gone..).unwrap_or_default()
    }

    /// So many bytes of it are out.
    pub fn sent(&mut self, bytes: usize) {
        self.gone = self.gone.saturating_add(bytes);
    }
}

impl Lines {
    const fn new() -> Self {
        let mut slots = [const {
            Slot {
                text: [0; LINE_MAX],
                len: 0,
                next: NONE,
                number: 0,
            }
        }; LINES];
        let mut at = 0;
        while at + 1 < LINES {
            slots[at].next = at as u16 + 1;
            at += 1;
        }
        Self {
            slots,
            free: 0,
            guests: [Guest::NOBODY; GUESTS],
            present: 0,
            recent: 0,
            loudest: 0,
            lost: 0,
            host: HostText::new(),
            next: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.present == 0 && self.lost == 0 && self.host.is_empty()
    }

    fn print(&mut self, from: &Printer, line: &[u8]) -> Option<Name> {
        let Some(at) = self.guest(from) else {
            // So many others are here.
            self.lost += 1;
            return Some(from.name);
        };
        let mut loser = None;
        if self.free == NONE {
            loser = self.make_room(at);
        }
        let (number, free) = (self.number(), self.free);
        let Some(slot) = self.slots.get_mut(usize::from(free)) else {
            self.guests[at].lost += 1;
            return Some(from.name);
        };
        self.free = slot.next;
        let len = line.len().min(LINE_MAX);
        if let (Some(to), Some(from)) = (slot.text.get_mut(..len), line.get(..len)) {
            to.copy_from_slice(from);
        }
        (slot.len, slot.next, slot.number) = (len as u8, NONE, number);
        let guest = &mut self.guests[at];
        let last = core::mem::replace(&mut guest.last, free);
        guest.waiting += 1;
        match self.slots.get_mut(usize::from(last)) {
            Some(slot) => slot.next = free,
            None => guest.first = free,
        }
        loser
    }

    fn tell(&mut self, text: &str) -> bool {
        let number = self.next;
        let taken = self.host.push(number, text.as_bytes());
        self.next += u64::from(taken);
        taken
    }

    fn number(&mut self) -> u64 {
        let number = self.next;
        self.next += 1;
        number
    }

    /// The place of a guest, which is made where there is none.
    fn guest(&mut self, from: &Printer) -> Option<usize> {
        let is = |guest: &Guest| guest.from.as_ref() == Some(from);
        if !self.guests.get(self.recent).is_some_and(is) {
            let found = self.guests.iter().position(is);
            let free = || self.guests.iter().position(|one| one.from.is_none());
            let related = |guest: &Guest| guest.from.is_some_and(|other| other.name == from.name);
            let found = found.or_else(free);
            let found = found.or_else(|| self.guests.iter().position(related))?;
            self.recent = found;
        }
        let guest = self.guests.get_mut(self.recent)?;
        if guest.from.is_none() {
            guest.from = Some(*from);
            self.present += 1;
        }
        Some(self.recent)
    }

    /// Has the guest with the most lines lose its oldest: `at` itself, where it has its part. Returns who that was.
    fn make_room(&mut self, at: usize) -> Option<Name> {
        let part = LINES.div_ceil(self.present.max(1));
        let has_more = |guest: &Guest| usize::from(guest.waiting) > part;
        let mut most = at;
        if usize::from(self.guests[at].waiting) >= part {
            // It is its own turn to lose one.
        } else if has_more(&self.guests[self.loudest]) {
            most = self.loudest;
        } else {
            for (number, guest) in self.guests.iter().enumerate() {
                if guest.waiting > self.guests[most].waiting {
                    most = number;
                }
            }
            self.loudest = most;
        }
        self.take(most)?;
        let guest = &mut self.guests[most];
        guest.lost += 1;
        guest.from.map(|from| from.name)
    }

    /// Takes the oldest line of a guest out: its slot is free.
    fn take(&mut self, at: usize) -> Option<u16> {
        let guest = self.guests.get_mut(at)?;
        let first = guest.first;
        let slot = self.slots.get_mut(usize::from(first))?;
        guest.first = core::mem::replace(&mut slot.next, self.free);
        self.free = first;
        guest.waiting = guest.waiting.saturating_sub(1);
        if guest.first == NONE {
            guest.last = NONE;
        }
        Some(first)
    }

    /// Writes the next line, and forgets it.
    fn render(&mut self, text: &mut Bytes<'_>) {
        let number = |slot: u16| self.slots.get(usize::from(slot)).map(|slot| slot.number);
        let oldest = (0..GUESTS)
            .filter_map(|at| Some((number(self.guests[at].first)?, at)))
            .min();
        let host = self.host.oldest();
        match (oldest, host) {
            (Some((number, at)), host) if host.is_none_or(|host| number < host) => {
                self.render_guest(at, text);
            }
            (_, Some(_)) => {
                // It comes in pieces.
                let before = oldest.map_or(u64::MAX, |(number, _)| number);
                while !text.ends_line() && self.host.oldest().is_some_and(|next| next < before) {
                    self.host.pop(text);
                }
            }
            _ => self.render_lost(text),
        }
    }

    fn render_guest(&mut self, at: usize, text: &mut Bytes<'_>) {
        let guest = self.guests[at];
        let Some(from) = guest.from else {
            return;
        };
        if guest.lost != 0 {
            self.guests[at].lost = 0;
            let _ = write!(text, "[{}] ... {} lines lost\r\n", from.name, guest.lost);
            return;
        }
        if let Some(slot) = self.take(at)
            && let Some(slot) = self.slots.get(usize::from(slot))
        {
            let line = slot.text.get(..usize::from(slot.len)).unwrap_or_default();
            let _ = write_line(&from.name, line, text);
            let _ = text.write_str("\r\n");
        }
        if self.guests[at].waiting == 0 {
            self.guests[at] = Guest::NOBODY;
            self.present = self.present.saturating_sub(1);
        }
    }

    /// What is left to be said when all lines are out.
    fn render_lost(&mut self, text: &mut Bytes<'_>) {
        let lost = core::mem::take(&mut self.lost);
        if lost != 0 {
            let _ = write!(text, "... {lost} lines of guests lost\r\n");
        }
        // Nobody is left who has one.
        self.guests = [Guest::NOBODY; GUESTS];
        self.present = 0;
    }
}

impl Default for Queue {
    fn default() -> Self {
        Self::new()
    }
}

/// The bytes of a line. What is too long is cut.
struct Bytes<'a>(&'a mut ArrayVec<u8, OUT_MAX>);

impl Bytes<'_> {
    /// Whether it is whole, or no more of it fits.
    fn ends_line(&self) -> bool {
        self.0.is_full() || self.0.last() == Some(&b'\n')
    }
}

impl Write for Bytes<'_> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.0.remaining_capacity();
        let text = text.as_bytes();
        let _ = self
            .0
            .try_extend_from_slice(text.get(..room.min(text.len())).unwrap_or_default());
        Ok(())
    }
}

/// Text of the host: pieces, each with its number and its length before it, one behind the other in a ring.
#[derive(Debug)]
struct HostText {
    bytes: [u8; HOST_BYTES],
    /// Where the oldest piece is, and how many bytes wait.
    start: usize,
    len: usize,
}

/// Before each piece: its number and its length.
const HEAD: usize = 10;

impl HostText {
    const fn new() -> Self {
        Self {
            bytes: [0; HOST_BYTES],
            start: 0,
            len: 0,
        }
    }
    const fn is_empty(&self) -> bool {
        self.len == 0
    }
    fn push(&mut self, number: u64, text: &[u8]) -> bool {
        let newlines = text.iter().filter(|byte| **byte == b'\n').count();
        let len = text.len() + newlines;
        let (true, Ok(short)) = (HEAD + len <= HOST_BYTES - self.len, u16::try_from(len)) else {
            return false;
        };
        number
            .to_le_bytes()
            .into_iter()
            .for_each(|byte| self.put(byte));
        short
            .to_le_bytes()
            .into_iter()
            .for_each(|byte| self.put(byte));
        for byte in text {
            if *byte == b'\n' {
                self.put(b'\r');
            }
            self.put(*byte);
        }
        true
    }
    fn put(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut((self.start + self.len) % HOST_BYTES) {
            *place = byte;
            self.len += 1;
        }
    }
    fn get(&self, at: usize) -> u8 {
        let place = (self.start + at) % HOST_BYTES;
        self.bytes.get(place).copied().unwrap_or(0)
    }
    fn oldest(&self) -> Option<u64> {
        let number = core::array::from_fn(|at| self.get(at));
        (self.len >= HEAD).then_some(u64::from_le_bytes(number))
    }
    fn length(&self) -> usize {
        u16::from_le_bytes([self.get(8), self.get(9)]).into()
    }
    /// Moves as much of the oldest piece as there is room for.
    fn pop(&mut self, out: &mut Bytes<'_>) {
        let len = self.length();
        let taken = len.min(out.0.remaining_capacity());
        for at in 0..taken {
            let _ = out.0.try_push(self.get(HEAD + at));
        }
        let left = len - taken;
        if left == 0 {
            self.drop_front(HEAD + taken);
            return;
        }
        // The rest keeps its number.
        let head: [u8; HEAD] = core::array::from_fn(|at| self.get(at));
        self.drop_front(taken);
        let rest = (left as u16).to_le_bytes();
        for (at, byte) in head.into_iter().take(8).chain(rest).enumerate() {
            if let Some(place) = self.bytes.get_mut((self.start + at) % HOST_BYTES) {
                *place = byte;
            }
        }
    }
    fn drop_front(&mut self, bytes: usize) {
        let bytes = bytes.min(self.len);
        self.start = (self.start + bytes) % HOST_BYTES;
        self.len -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn printer(name: &str, fork: u64) -> Printer {
        Printer {
            name: Name::new(name).unwrap(),
            generation: 1,
            fork,
        }
    }
    /// All that waits, `step` bytes at a time.
    fn out(queue: &mut Queue, step: usize) -> String {
        let mut bytes = vec![];
        while !queue.is_empty() {
            let pending = queue.pending();
            let some = pending.len().min(step);
            bytes.extend_from_slice(&pending[..some]);
            queue.sent(some);
        }
        assert!(queue.pending().is_empty());
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_go_out_in_their_order() {
        for step in [1, 16, 10_000] {
            let mut queue = Box::new(Queue::new());
            assert_eq!(queue.print(&printer("a", 0), b"one"), None);
            assert!(queue.tell("ho") && queue.tell("st\nsa") && queue.tell("ys\n"));
            assert_eq!(queue.print(&printer("a", 1), b"two\x07"), None);
            assert_eq!(queue.print(&printer("b", 0), b""), None);
            assert!(queue.tell("end\n"));
            assert_eq!(
                out(&mut queue, step),
                "[a] one\r\nhost\r\nsays\r\n[a] two\\u{7}\r\n[b] \r\nend\r\n"
            );
        }
    }

    #[test]
    fn one_that_floods_loses_its_own_oldest_lines() {
        let mut queue = Box::new(Queue::new());
        let (loud, calm) = (printer("loud", 0), printer("calm", 0));
        let mut lost = 0;
        for n in 0..3000 {
            let mut losers = vec![queue.print(&loud, format!("{n}").as_bytes())];
            if n % 300 == 0 {
                losers.push(queue.print(&calm, format!("calm {n}").as_bytes()));
            }
            for loser in losers.into_iter().flatten() {
                assert_eq!(loser, loud.name);
                lost += 1;
            }
        }
        let text = out(&mut queue, 16);
        let calm = text.lines().filter(|line| line.starts_with("[calm] calm"));
        assert_eq!(calm.count(), 10, "{text}");
        assert!(!text.contains("[calm] ..."));
        let first = text
            .lines()
            .find(|line| line.starts_with("[loud]"))
            .unwrap();
        let kept = text
            .lines()
            .filter(|line| line.starts_with("[loud]"))
            .count()
            - 1;
        assert_eq!(first, format!("[loud] ... {} lines lost", 3000 - kept));
        assert_eq!((kept + 10, lost + kept), (LINES, 3000));
        assert!(text.contains("[loud] 2999"));
    }

    #[test]
    fn more_guests_than_are_kept_apart_share_their_part() {
        let mut queue = Box::new(Queue::new());
        for fork in 0..2 * GUESTS as u64 {
            assert_eq!(queue.print(&printer("g", fork), b"x"), None);
        }
        // One of another name has no place, until lines are out.
        let other = printer("other", 0);
        assert_eq!(queue.print(&other, b"y"), Some(other.name));
        let text = out(&mut queue, 16);
        assert_eq!(text.matches("[g] x").count(), 2 * GUESTS);
        assert!(text.ends_with("... 1 lines of guests lost\r\n"));
        assert_eq!(queue.print(&other, b"y"), None);
        assert_eq!(out(&mut queue, 16), "[other] y\r\n");
    }

    #[test]
    fn the_longest_line_and_text_are_whole() {
        let mut queue = Box::new(Queue::new());
        let name = "n".repeat(32);
        queue.print(&printer(&name, 0), &[0x1b; LINE_MAX]);
        assert!(queue.tell(&format!("{}\n", "h".repeat(5000))));
        queue.print(&printer("b", 0), b"after");
        let text = out(&mut queue, 16);
        assert_eq!(text.matches("\\u{1b}").count(), LINE_MAX);
        assert_eq!(text.matches('h').count(), 5000);
        assert!(text.ends_with("h\r\n[b] after\r\n"));
    }

    #[test]
    fn the_hosts_text_is_refused_before_it_is_lost() {
        let mut queue = Box::new(Queue::new());
        let mut told = 0;
        while queue.tell("a line of the host\n") {
            told += 1;
        }
        assert!(told > 500);
        let text = out(&mut queue, 100);
        assert_eq!(text.matches("a line of the host\r\n").count(), told);
        assert!(queue.tell("again\n"));
        assert_eq!(out(&mut queue, 100), "again\r\n");
    }

    proptest! {
        /// Whatever is printed and put out meanwhile: each line goes out whole and in its order, or is counted, and who has less
        /// than its part loses nothing.
        #[test]
        fn every_line_is_out_or_counted(acts in prop::collection::vec((0u64..6, 0usize..900), 0..100)) {
            let mut queue = Box::new(Queue::new());
            let mut sent = String::new();
            let mut printed = BTreeMap::new();
            for (fork, many) in acts {
                if fork == 5 {
                    for _ in 0..many / 20 {
                        let pending = queue.pending();
                        let some = pending.len().min(16);
                        sent.push_str(std::str::from_utf8(&pending[..some]).unwrap());
                        queue.sent(some);
                    }
                    continue;
                }
                // Fork 4 prints a line at a time.
                for _ in 0..if fork == 4 { 1 } else { many } {
                    let count = printed.entry(fork).or_insert(0u64);
                    let name = format!("g{fork}");
                    queue.print(&printer(&name, fork), format!("{count}").as_bytes());
                    *count += 1;
                }
            }
            sent.push_str(&out(&mut queue, 16));
            for (fork, count) in printed {
                let mut next = 0;
                let name = format!("[g{fork}] ");
                for line in sent.lines().filter_map(|line| line.strip_prefix(&name)) {
                    match line.strip_prefix("... ") {
                        Some(lost) => next += lost.strip_suffix(" lines lost").unwrap().parse::<u64>().unwrap(),
                        None => {
                            prop_assert_eq!(line.parse::<u64>().unwrap(), next);
                            next += 1;
                        }
                    }
                }
                prop_assert_eq!(next, count);
            }
        }
    }
}
