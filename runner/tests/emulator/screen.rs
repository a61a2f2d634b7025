//! Machines that show their screen and are switched off by ACPI, as a PC is that was started from a stick. They are QEMU's,
//! without the device by which other tests end it, and their screen is read off a screenshot.

use crate::booted::{image, sample, with_slot};
use noto_sans_mono_bitmap::{FontWeight, RasterHeight, get_raster, get_raster_width};
use offshoot_runner::iso;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(120);

/// A machine that is on. It is switched off when dropped.
struct Machine {
    dir: PathBuf,
    qemu: Child,
    begun: Instant,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Machine {
    /// Boots the image, which runs no guest as the CPU cannot.
    fn start(name: &str, cmdline: &str, options: &[&str]) -> Self {
        let dir = image().root.join("target/run").join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        let (path, tree) = (dir.join("offshoot.iso"), dir.join("iso"));
        let guests = [sample("hello")];
        iso::make(&path, &tree, &image().kernel, cmdline, &guests).unwrap();
        let log = fs::File::create(dir.join("emulator.log")).unwrap();
        let qemu = Command::new("qemu-system-x86_64")
            .current_dir(&dir)
            .args([
                "-accel", "tcg", "-cpu", "Nehalem", "-m", "256", "-nic", "none",
            ])
            .args([
                "-display",
                "none",
                "-vga",
                "std",
                "-serial",
                "file:serial.log",
            ])
            .args([
                "-monitor",
                "unix:monitor,server=on,wait=off",
                "-cdrom",
                "offshoot.iso",
            ])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            dir,
            qemu,
            begun: Instant::now(),
        }
    }

    #[track_caller]
    fn poll<T>(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        loop {
            if let Some(found) = look(self) {
                return found;
            }
            assert!(
                self.begun.elapsed() < LIMIT,
                "waited {} s for {what}; kept in {}",
                LIMIT.as_secs(),
                self.dir.display()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the serial port has said, once these words are in it so often.
    #[track_caller]
    fn said(&mut self, words: &str, times: usize) -> String {
        self.poll(words, |machine| {
            let text = fs::read(machine.dir.join("serial.log")).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            (text.matches(words).count() >= times).then_some(text)
        })
    }

    /// What QEMU's monitor answers, up to its next prompt.
    #[track_caller]
    fn ask(&self, command: &str) -> String {
        let mut monitor = UnixStream::connect(self.dir.join("monitor")).unwrap();
        monitor
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut writer = monitor.try_clone().unwrap();
        let mut prompt = || {
            let (mut text, mut byte) = (Vec::new(), [0]);
            while !text.ends_with(b"(qemu) ") {
                monitor.read_exact(&mut byte).unwrap();
                text.push(byte[0]);
            }
            String::from_utf8_lossy(&text).into_owned()
        };
        prompt();
        writer.write_all(format!("{command}\n").as_bytes()).unwrap();
        prompt()
    }

    #[track_caller]
    fn screenshot(&self) -> Picture {
        self.ask("screendump screen.ppm");
        Picture::read(&self.dir.join("screen.ppm"))
    }

    #[track_caller]
    fn ended(&mut self) -> ExitStatus {
        self.poll("the end of QEMU", |machine| {
            machine.qemu.try_wait().unwrap()
        })
    }
}

/// A screenshot: three bytes a pixel.
struct Picture {
    width: usize,
    pixels: Vec<u8>,
}

impl Picture {
    #[track_caller]
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap();
        let mut header = bytes.splitn(4, |byte| byte.is_ascii_whitespace());
        let mut word = || String::from_utf8_lossy(header.next().unwrap()).into_owned();
        assert_eq!(word(), "P6");
        let width = word().parse().unwrap();
        let height: usize = word().parse().unwrap();
        let pixels = bytes[bytes.len() - 3 * width * height..].to_vec();
        Self { width, pixels }
    }

    /// The text on it, a line for each row, with the color of each line's first character.
    fn read_lines(&self) -> Vec<(String, [u8; 3])> {
        const HEIGHT: usize = RasterHeight::Size16.val();
        let width = get_raster_width(FontWeight::Regular, RasterHeight::Size16);
        let rows = self.pixels.len() / 3 / self.width / HEIGHT;
        let line = |row: usize| {
            let cell = |column: usize| {
                let pixel = |i: usize| {
                    let (x, y) = (column * width + i % width, row * HEIGHT + i / width);
                    let at = 3 * (y * self.width + x);
                    [0, 1, 2].map(|channel| self.pixels[at + channel])
                };
                let pixels: Vec<_> = (0..width * HEIGHT).map(pixel).collect();
                let brightest = pixels
                    .iter()
                    .copied()
                    .max_by_key(|pixel| pixel.iter().max().copied());
                (recognize(&pixels), brightest.unwrap())
            };
            let cells: Vec<_> = (0..self.width / width).map(cell).collect();
            let text: String = cells.iter().map(|(character, _)| character).collect();
            (text.trim_end().to_owned(), cells[0].1)
        };
        (0..rows).map(line).collect()
    }
}

/// The character whose raster is nearest.
fn recognize(pixels: &[[u8; 3]]) -> char {
    let intensity = |pixel: &[u8; 3]| pixel.iter().copied().max().unwrap_or(0);
    let full = pixels
        .iter()
        .map(intensity)
        .max()
        .filter(|full| *full > 0x20);
    let Some(full) = full else { return ' ' };
    let distance = |character: char| -> i64 {
        let raster = get_raster(character, FontWeight::Regular, RasterHeight::Size16).unwrap();
        let pairs = raster.pixels().iter().zip(pixels);
        let differ = |(want, have): (&u8, &[u8; 3])| {
            let have = i64::from(intensity(have)) * 255 / i64::from(full);
            (i64::from(*want) - have).pow(2)
        };
        pairs.map(differ).sum()
    };
    ('!'..='~')
        .min_by_key(|character| distance(*character))
        .unwrap()
}

/// UEFI has a frame buffer: all that the serial port says is on the screenshot, the verdict in red, and the machine is off
/// when the time is up that the screen shows.
#[test]
fn a_screenshot_shows_what_the_console_says() {
    with_slot(|| {
        let firmware = ["-bios", "/usr/share/ovmf/OVMF.fd", "-no-reboot"];
        let mut machine = Machine::start("screen-uefi", "end-after=6s", &firmware);
        let said = machine.said("power off in 6 s", 1);
        std::thread::sleep(Duration::from_millis(500));
        let lines = machine.screenshot().read_lines();
        let shown: Vec<_> = lines.iter().map(|(text, _)| text.as_str()).collect();
        let begin = said.find("Offshoot ").unwrap();
        let mut rows = shown.iter();
        for line in said[begin..].lines() {
            // A long line goes on in the next row.
            let mut text = String::new();
            while text.len() < line.trim_end().len() {
                let row = rows
                    .next()
                    .unwrap_or_else(|| panic!("`{line}` is not in {shown:#?}"));
                text.push_str(row);
            }
            assert_eq!(text, line.trim_end(), "{shown:#?}");
        }
        assert!(
            shown.iter().any(|line| line.starts_with("power off in")),
            "{shown:#?}"
        );
        let verdict = lines
            .iter()
            .find(|(text, _)| text.starts_with("OFFSHOOT-END failed"));
        let [red, green, blue] = verdict.expect("a verdict").1;
        assert!(
            red > 0xc0 && green < 0x90 && blue < 0x90,
            "{red} {green} {blue}"
        );
        assert!(machine.ended().success());
    });
}

/// A BIOS leaves VGA's text mode; and the machine starts anew.
#[test]
fn text_mode_shows_it_too_and_the_machine_is_reset() {
    with_slot(|| {
        let mut machine = Machine::start("screen-bios", "end=reset end-after=5s", &[]);
        let said = machine.said("reset in 5 s", 1);
        std::thread::sleep(Duration::from_millis(500));
        let picture = machine.screenshot();
        let lit = picture.pixels.iter().filter(|value| **value > 0x80).count();
        assert!(lit > 3000, "{lit}");
        let dump = machine.ask("xp /2000hx 0xb8000");
        let cells = dump
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("0x"));
        let cells: Vec<_> = cells
            .filter_map(|hex| u16::from_str_radix(hex, 16).ok())
            .collect();
        let text = |row: &[u16]| {
            let characters = row.iter().map(|cell| char::from(*cell as u8));
            characters.collect::<String>().trim_end().to_owned()
        };
        let rows: Vec<_> = cells.chunks(80).map(text).collect();
        let verdict = said
            .lines()
            .find(|line| line.starts_with("OFFSHOOT-END failed"))
            .unwrap();
        let at = rows
            .iter()
            .position(|row| row.starts_with("OFFSHOOT-END failed"));
        let at = at.unwrap_or_else(|| panic!("{rows:#?}"));
        assert!(verdict.starts_with(&rows[at]), "{rows:#?}");
        assert_eq!(cells[80 * at] >> 8, 0xc, "red");
        assert!(
            rows.iter().any(|row| row.starts_with("reset in")),
            "{rows:#?}"
        );
        // It says it all again.
        machine.said("OFFSHOOT-END failed", 2);
    });
}

/// Where the screen is to be left alone it is.
#[test]
fn nothing_is_drawn_where_that_is_asked_for() {
    with_slot(|| {
        let mut machine = Machine::start("screen-off", "screen=off end=halt", &[]);
        machine.said("the machine halts", 1);
        let dump = machine.ask("xp /2000hx 0xb8000");
        assert!(!dump.contains("0x0c4f"), "a red O: {dump}");
    });
}
