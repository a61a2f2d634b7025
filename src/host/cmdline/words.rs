//! The words of a line.

use super::{CmdlineError, Problem, Whose};

/// One word of a command line.
#[derive(Clone, Copy)]
pub(super) struct Word<'a> {
    pub(super) key: &'a str,
    pub(super) value: Option<&'a str>,
}

impl<'a> Word<'a> {
    fn new(text: &'a str) -> Self {
        match text.split_once('=') {
            Some((key, value)) => Self {
                key,
                value: Some(value),
            },
            None => Self {
                key: text,
                value: None,
            },
        }
    }
    pub(super) fn needs_value(self) -> Result<&'a str, Problem> {
        self.value
            .filter(|value| !value.is_empty())
            .ok_or(Problem::NeedsValue)
    }
    pub(super) fn takes_no_value(self) -> Result<(), Problem> {
        match self.value {
            None => Ok(()),
            Some(_) => Err(Problem::TakesNoValue),
        }
    }
    pub(super) fn blame(self, whose: Whose, problem: Problem) -> CmdlineError<'a> {
        CmdlineError {
            whose,
            key: self.key,
            value: self.value,
            problem,
        }
    }
}

/// The words of a line.
#[derive(Clone, Copy)]
pub(super) struct WordIter<'a>(pub(super) &'a str);

impl<'a> Iterator for WordIter<'a> {
    type Item = Word<'a>;
    fn next(&mut self) -> Option<Word<'a>> {
        let (word, rest) = split_word(self.0)?;
        self.0 = rest;
        Some(Word::new(word))
    }
}

/// The first word and what follows it. Command lines from firmware may end in NULs.
fn split_word(line: &str) -> Option<(&str, &str)> {
    let blank = |c: char| c.is_ascii_whitespace() || c == '\0';
    let line = line.trim_start_matches(blank);
    if line.is_empty() {
        return None;
    }
    Some(line.split_at(line.find(blank).unwrap_or(line.len())))
}

/// Splits off a first word that is the file's path: GRUB leaves it out, others do not. It has a slash or a dot
/// before any `=`, or is one for a reason of the caller's.
pub(super) fn split_path<'a>(
    line: &'a str,
    or: impl Fn(Word<'a>) -> bool,
) -> (Option<&'a str>, &'a str) {
    if let Some((text, rest)) = split_word(line) {
        let word = Word::new(text);
        if word.key.contains(['/', '.']) || or(word) {
            return (Some(text), rest);
        }
    }
    (None, line)
}
