//! How a run ended.

use crate::watch::{Console, END};
use crate::{Error, Report};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// How a run ended, as the image has said it or because it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All guests ended well.
    Ok,
    /// The image said that the run failed, and why.
    Failed(String),
    /// The image did not say how it ended, or contradicted itself.
    Unclear(String),
}

/// What a run left behind.
#[derive(Debug)]
pub struct Outcome {
    /// The folder with its files.
    pub dir: PathBuf,
    /// How it ended.
    pub verdict: Verdict,
    /// The report, if the image printed one.
    pub report: Option<Report>,
    /// Lines of the emulator's log that tell of a defect of the image.
    pub complaints: Vec<String>,
    /// The places in the kernel named by the backtraces it printed.
    pub backtrace: Vec<String>,
}

/// Judges an image that has printed its last line.
pub(crate) fn judge_said(said: &str, report: &Option<Result<Report, String>>) -> Verdict {
    if let Some(reason) = said.strip_prefix("failed") {
        return Verdict::Failed(reason.trim_start_matches([':', ' ']).to_owned());
    }
    if said != "ok" {
        return Verdict::Unclear(format!("the image's last line is `{END} {said}`"));
    }
    match report {
        Some(Ok(report)) if report.ok => Verdict::Ok,
        Some(Ok(_)) => Verdict::Unclear("the image said ok, its report did not".into()),
        Some(Err(error)) => Verdict::Unclear(format!("the image's report is malformed: {error}")),
        None => Verdict::Unclear("the image printed no report".into()),
    }
}

/// Keeps the report's text in the run's folder and reads it.
pub(crate) fn keep_report(
    dir: &Path,
    console: &Console,
) -> Result<Option<Result<Report, String>>, Error> {
    let Some(text) = &console.report else {
        return Ok(None);
    };
    let path = dir.join("report.json");
    fs::write(&path, format!("{text}\n")).map_err(Error::io("write", &path))?;
    Ok(Some(
        serde_json::from_str(text).map_err(|error| error.to_string()),
    ))
}

impl Outcome {
    /// Whether the run ended well.
    pub fn ok(&self) -> bool {
        self.verdict == Verdict::Ok
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("ok"),
            Self::Failed(reason) | Self::Unclear(reason) => write!(f, "failed: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ok: bool) -> Option<Result<Report, String>> {
        let text = format!(
            r#"{{"ok":{ok},"guests":[],"frames":{{"total":1,"used":0,"peak":0,"leaked":0}}}}"#
        );
        Some(serde_json::from_str(&text).map_err(|error| error.to_string()))
    }

    #[test]
    fn ok_needs_both_the_line_and_the_report() {
        assert_eq!(judge_said("ok", &report(true)), Verdict::Ok);
        for (said, report) in [
            ("ok", report(false)),
            ("ok", None),
            ("ok", Some(Err("eof".into()))),
            ("okay", report(true)),
            ("", report(true)),
        ] {
            let verdict = judge_said(said, &report);
            assert!(matches!(verdict, Verdict::Unclear(_)), "{said}");
        }
    }

    #[test]
    fn the_image_s_reason_is_passed_on() {
        assert_eq!(
            judge_said("failed: no VMX", &report(false)),
            Verdict::Failed("no VMX".into())
        );
    }
}
