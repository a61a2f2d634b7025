//! What to do, from the data that was mapped with `map=`: words `seed=N`, `count=N` in each mode, `mode=NAME`, `first=N`,
//! the number of the first case, `print=N`, the most differences to print in each mode, and `trace`, to print every case.

use offshoot_guest::StartInfo;

/// Cases in each mode.
const COUNT: u64 = 1500;
const SEED: u64 = 1;

pub struct Options {
    pub seed: u64,
    pub count: u64,
    pub first: u64,
    pub print: Option<u64>,
    pub trace: bool,
    mode: &'static str,
}

impl Options {
    /// Reads them, or returns the word that is none.
    pub fn read(info: &StartInfo) -> Result<Self, &'static str> {
        let mut options = Self {
            seed: SEED,
            count: COUNT,
            first: 0,
            print: None,
            trace: false,
            mode: "",
        };
        if info.data == 0 {
            return Ok(options);
        }
        // SAFETY: the hypervisor maps so many bytes there, and nobody writes to them.
        let bytes =
            unsafe { core::slice::from_raw_parts(info.data as *const u8, info.data_len as usize) };
        let text = str::from_utf8(bytes).map_err(|_| "not text")?;
        for word in text.split_ascii_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            let number = || value.parse().map_err(|_| word);
            match key {
                "seed" => options.seed = number()?,
                "count" => options.count = number()?,
                "first" => options.first = number()?,
                "print" => options.print = Some(number()?),
                "trace" => options.trace = true,
                "mode" => options.mode = value,
                _ => return Err(word),
            }
        }
        Ok(options)
    }

    /// Whether cases are wanted in the mode of that name.
    pub fn wants(&self, mode: &str) -> bool {
        mode.contains(self.mode)
    }
}
