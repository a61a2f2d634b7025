//! A serial port (16550A) that is always ready to send and never receives.

/// Line control: the first two registers are the divisor.
const DIVISOR_LATCH: u8 = 1 << 7;
/// Modem control: what is sent is received.
const LOOPBACK: u8 = 1 << 4;
/// Line status: transmitter empty and ready.
const TRANSMITTER_READY: u8 = 3 << 5;
const DATA_READY: u8 = 1 << 0;
/// Modem status: carrier, data set ready, clear to send.
const LINE_UP: u8 = 0xb0;
/// Interrupt identification: none pending.
const NO_INTERRUPT: u8 = 1 << 0;
const FIFO_ENABLED: u8 = 3 << 6;

/// The registers that a driver may write and read back, and a byte in loopback.
#[derive(Clone, Debug, Default)]
pub struct Uart {
    divisor: [u8; 2],
    interrupt_enable: u8,
    fifo: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    looped: Option<u8>,
}

impl Uart {
    /// Reads a register.
    pub fn read(&mut self, register: u8) -> u8 {
        let [divisor_low, divisor_high] = self.divisor;
        match register {
            0 if self.divisor_latch() => divisor_low,
            1 if self.divisor_latch() => divisor_high,
            0 => self.looped.take().unwrap_or(0),
            1 => self.interrupt_enable,
            2 if self.fifo => NO_INTERRUPT | FIFO_ENABLED,
            2 => NO_INTERRUPT,
            3 => self.line_control,
            4 => self.modem_control,
            5 if self.looped.is_some() => TRANSMITTER_READY | DATA_READY,
            5 => TRANSMITTER_READY,
            6 if self.loopback() => self.looped_modem_status(),
            6 => LINE_UP,
            7 => self.scratch,
            _ => 0xff,
        }
    }

    /// Writes a register. Returns what is sent over the line.
    pub fn write(&mut self, register: u8, value: u8) -> Option<u8> {
        match register {
            0 if self.divisor_latch() => self.divisor[0] = value,
            1 if self.divisor_latch() => self.divisor[1] = value,
            0 if self.loopback() => self.looped = Some(value),
            0 => return Some(value),
            1 => self.interrupt_enable = value & 0xf,
            2 => self.fifo = value & 1 != 0,
            3 => self.line_control = value,
            4 => self.modem_control = value & 0x1f,
            7 => self.scratch = value,
            _ => {}
        }
        None
    }

    fn divisor_latch(&self) -> bool {
        self.line_control & DIVISOR_LATCH != 0
    }
    fn loopback(&self) -> bool {
        self.modem_control & LOOPBACK != 0
    }
    /// In loopback the outputs DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
    fn looped_modem_status(&self) -> u8 {
        let outputs = self.modem_control;
        (outputs & 1) << 5 | (outputs & 2) << 3 | (outputs & 0xc) << 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_polls_sends_at_once() {
        let mut uart = Uart::default();
        assert_eq!(uart.read(5) & 0x20, 0x20);
        assert_eq!(uart.write(0, b'x'), Some(b'x'));
        assert_eq!(uart.read(0), 0, "nothing is ever received");
        assert_eq!(uart.read(5) & 1, 0);
    }

    #[test]
    fn the_divisor_is_not_sent() {
        let mut uart = Uart::default();
        uart.write(3, 0x83);
        assert_eq!((uart.write(0, 1), uart.write(1, 2)), (None, None));
        assert_eq!((uart.read(0), uart.read(1)), (1, 2));
        uart.write(3, 0x03);
        assert_eq!((uart.read(1), uart.write(0, b'y')), (0, Some(b'y')));
    }

    /// What the Linux driver does to find out whether there is a port, and the crate `uart_16550` to test it.
    #[test]
    fn probes_find_a_16550a() {
        let mut uart = Uart::default();
        uart.write(1, 0x0f);
        assert_eq!(uart.read(1), 0x0f);
        uart.write(4, LOOPBACK | 0x0a);
        assert_eq!(uart.read(6) & 0xf0, 0x90);
        assert_eq!(uart.write(0, 0xae), None);
        assert_eq!((uart.read(5) & 1, uart.read(0)), (1, 0xae));
        uart.write(4, 0x0b);
        uart.write(2, 0x01);
        assert_eq!(uart.read(2) >> 6, 3);
        uart.write(7, 0x5a);
        assert_eq!(uart.read(7), 0x5a);
    }
}
