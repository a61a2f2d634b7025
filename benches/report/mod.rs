//! `target/bench/report.json`: a list of figures that several programs write into.

use std::path::PathBuf;
use std::{fs, io};

use serde_json::{Value, json};

/// One figure.
pub struct Entry {
    name: String,
    value: f64,
    unit: &'static str,
}

impl Entry {
    /// The figure `value`, of a unit.
    pub fn new(name: String, value: f64, unit: &'static str) -> Self {
        Self { name, value, unit }
    }
    /// Whether there is no figure.
    #[allow(dead_code)] // not every program asks
    pub fn is_nan(&self) -> bool {
        self.value.is_nan()
    }
}

/// Puts the figures into the report, in place of older ones of the same name; what others wrote stays.
pub fn merge(entries: &[Entry]) -> io::Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target"),
        PathBuf::from,
    );
    let path = target.join("bench/report.json");
    let mut report: Vec<Value> = match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    report.retain(|old| !entries.iter().any(|new| old["name"] == new.name.as_str()));
    report.extend(entries.iter().map(|new| {
        let rounded = (new.value * 1000.0).round() / 1000.0;
        json!({"name": new.name, "value": rounded, "unit": new.unit})
    }));
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")
}
