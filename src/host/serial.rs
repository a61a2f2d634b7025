//! A serial port that is written to, whatever it is: nobody waits for ever for one that is broken, slow or not there.
//!
//! The driver is the crate `uart_16550`. It waits for two bits of the line status, that the transmitter is empty: for each
//! byte, and when the port is set up. What it reads passes through [`Patient`], which says that they are set once it
//! was asked too often. So a port that never has them set loses what it is sent and takes no time.

use uart_16550::backend::Backend;
use uart_16550::spec::registers::{LSR, offsets};
use uart_16550::{BaudRate, Config, Uart16550};

/// How often the line status may be asked for before a byte is sent nevertheless. A read of a port takes a microsecond or
/// so, the 16 bytes of a FIFO 1.4 ms; the other side may hold them up for some time.
const PATIENCE: u32 = 200_000;

/// The registers of a port, as the driver is to see them.
#[derive(Debug)]
struct Patient<B> {
    registers: B,
    /// Takes more bytes.
    ready: Wait,
    /// Has sent all it had.
    idle: Wait,
    /// Nobody needs it, and the first UARTs do not have it: what the driver writes there is kept here.
    scratch: u8,
}

/// A bit of the line status that is waited for.
#[derive(Debug)]
struct Wait {
    bit: LSR,
    /// How often in a row it was not set.
    asked: u32,
}

impl Wait {
    const fn of(bit: LSR) -> Self {
        Self { bit, asked: 0 }
    }
    /// The line status with the bit set, if it is or was waited for too long.
    fn seen(&mut self, status: LSR) -> LSR {
        if status.contains(self.bit) {
            self.asked = 0;
        } else if self.asked < PATIENCE {
            self.asked += 1;
        } else {
            return status | self.bit;
        }
        status
    }
    /// It went on, so whoever waits begins anew; but not with one that was given up.
    fn begin(&mut self) {
        if self.asked < PATIENCE {
            self.asked = 0;
        }
    }
}

impl<B: Backend> Backend for Patient<B> {
    unsafe fn read(&mut self, register: u8) -> u8 {
        if register == offsets::SPR as u8 {
            return self.scratch;
        }
        // SAFETY: the caller's promise is the same.
        let value = unsafe { self.registers.read(register) };
        if register != offsets::LSR as u8 {
            return value;
        }
        let status = self.ready.seen(LSR::from_bits_retain(value));
        self.idle.seen(status).bits()
    }

    unsafe fn write(&mut self, register: u8, value: u8) {
        if register == offsets::SPR as u8 {
            self.scratch = value;
            return;
        }
        if register == offsets::DATA as u8 {
            self.idle.begin();
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.registers.write(register, value) };
    }
}

/// A serial port at 115200 baud, 8N1.
#[derive(Debug)]
pub struct Serial<B: Backend>(Uart16550<Patient<B>>);

impl<B: Backend> Serial<B> {
    /// Sets the port up, if there is one: where none is, all registers read all ones. There is no self-test: it would
    /// take a port without loop-back for broken, and wait for it.
    ///
    /// # Safety
    /// The registers must be those of a serial port, or of nothing, that is the caller's alone.
    pub unsafe fn new(mut registers: B) -> Option<Self> {
        // SAFETY: the register is one of a UART's.
        if unsafe { registers.read(offsets::LSR as u8) } == u8::MAX {
            return None;
        }
        let patient = Patient {
            registers,
            ready: Wait::of(LSR::THR_EMPTY),
            idle: Wait::of(LSR::TRANSMITTER_EMPTY),
            scratch: 0,
        };
        // SAFETY: as the caller promises.
        let mut uart = unsafe { Uart16550::new_with_backend(patient) };
        let config = Config {
            baud_rate: BaudRate::Baud115200,
            ..Config::DEFAULT
        };
        uart.init(config).ok()?;
        Some(Self(uart))
    }

    /// Sends all of it, waiting for the port as long as that makes sense.
    pub fn send(&mut self, bytes: &[u8]) {
        self.0.send_bytes_exact(bytes);
    }

    /// Sends as much of it as the port takes at once, at most what its FIFO has room for. Returns how much that is.
    pub fn offer(&mut self, bytes: &[u8]) -> usize {
        self.0.send_bytes(bytes)
    }

    /// Waits until all has left the port, as long as that makes sense.
    pub fn drain(&mut self) {
        while !self.0.lsr().contains(LSR::TRANSMITTER_EMPTY) {
            core::hint::spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LCR: u8 = offsets::LCR as u8;
    const DLAB: u8 = 1 << 7;

    /// A UART that takes some time for a byte.
    #[derive(Clone, Debug)]
    struct Uart {
        registers: [u8; 8],
        divisor: [u8; 2],
        /// What LSR reads when the transmitter is empty, and when not.
        empty: u8,
        busy: u8,
        /// Looks at LSR that a byte takes, and those left.
        slow: u64,
        left: u64,
        fifo: bool,
        has_scratch: bool,
        reads: u64,
        sent: Vec<u8>,
    }

    impl Uart {
        fn new() -> Self {
            Self {
                registers: [0; 8],
                divisor: [0; 2],
                empty: 0x60,
                busy: 0,
                slow: 3,
                left: 0,
                fifo: true,
                has_scratch: true,
                reads: 0,
                sent: vec![],
            }
        }
    }

    impl Backend for &mut Uart {
        unsafe fn read(&mut self, register: u8) -> u8 {
            self.reads += 1;
            match register {
                // Loop-back is not there: nothing is ever received.
                0 => 0,
                2 if self.fifo => 0xc1,
                2 => 1,
                5 if self.left == 0 => self.empty,
                5 => {
                    self.left -= 1;
                    self.busy
                }
                7 if !self.has_scratch => 0xff,
                other => self.registers[usize::from(other)],
            }
        }
        unsafe fn write(&mut self, register: u8, value: u8) {
            let latch = self.registers[usize::from(LCR)] & DLAB != 0;
            match register {
                0 | 1 if latch => self.divisor[usize::from(register)] = value,
                0 => {
                    self.sent.push(value);
                    self.left = self.slow;
                }
                other => self.registers[usize::from(other)] = value,
            }
        }
    }

    fn serial(uart: &mut Uart) -> Option<Serial<&mut Uart>> {
        // SAFETY: it is no hardware.
        unsafe { Serial::new(uart) }
    }

    #[test]
    fn it_is_set_to_115200_baud_8n1() {
        for (fifo, has_scratch) in [(true, true), (false, true), (false, false)] {
            let mut uart = Uart::new();
            (uart.fifo, uart.has_scratch) = (fifo, has_scratch);
            let mut port = serial(&mut uart).unwrap();
            port.send(b"as it is\n");
            port.drain();
            // One of the 115200 that its clock has.
            assert_eq!(
                (uart.divisor, uart.registers[usize::from(LCR)]),
                ([1, 0], 3)
            );
            assert_eq!(uart.sent, b"as it is\n");
        }
    }

    #[test]
    fn it_takes_what_its_fifo_has_room_for() {
        for (fifo, room) in [(true, 16), (false, 1)] {
            let mut uart = Uart::new();
            uart.fifo = fifo;
            let mut port = serial(&mut uart).unwrap();
            assert_eq!(port.offer(&[b'x'; 40]), room);
            assert_eq!(port.offer(b"y"), 0, "it is busy");
            assert_eq!(port.offer(b""), 0);
            port.drain();
            assert_eq!(port.offer(b"y"), 1);
        }
    }

    #[test]
    fn where_there_is_none_nobody_waits() {
        let mut uart = Uart::new();
        (uart.empty, uart.busy) = (0xff, 0xff);
        assert!(serial(&mut uart).is_none());
        assert_eq!(uart.reads, 1);
    }

    #[test]
    fn a_broken_one_is_waited_for_once() {
        for stuck in [0, 0x20, 0x40] {
            let mut uart = Uart::new();
            (uart.empty, uart.busy) = (stuck, stuck);
            let mut port = serial(&mut uart).unwrap();
            for _ in 0..100 {
                port.send(&[b'x'; 1000]);
                port.drain();
            }
            let most = 2 * u64::from(PATIENCE) + 150_000;
            assert!(uart.reads < most, "{stuck:#x} {}", uart.reads);
        }
    }

    /// As long as there is more to send the transmitter is never idle, which says nothing about it.
    #[test]
    fn nothing_is_lost_in_a_long_text() {
        let mut uart = Uart::new();
        (uart.slow, uart.fifo) = (1000, false);
        let mut port = serial(&mut uart).unwrap();
        for _ in 0..1000 {
            port.send(b"x");
            port.0.backend_mut().registers.registers[1] = 0;
            // Ready, but not idle yet.
            port.0.backend_mut().registers.empty = 0x20;
        }
        let uart = &mut *port.0.backend_mut().registers;
        (uart.empty, uart.left) = (0x60, 5000);
        let before = uart.reads;
        port.drain();
        assert_eq!(port.0.backend().registers.reads - before, 5001);
    }

    #[test]
    fn one_that_was_held_up_goes_on() {
        let mut uart = Uart::new();
        uart.slow = u64::from(PATIENCE) + 5;
        uart.fifo = false;
        let mut port = serial(&mut uart).unwrap();
        // It takes too long for the second byte, which is sent nevertheless.
        port.send(b"ab");
        let uart = &mut *port.0.backend_mut().registers;
        (uart.left, uart.slow) = (0, 3);
        port.send(b"c");
        assert_eq!(port.offer(b"d"), 0, "it is waited for again");
        port.drain();
        assert_eq!(port.0.backend().registers.sent, b"abc");
    }
}
