//! Whether a host can be taken: pure decisions over what the survey saw.

use std::fmt;

use crate::error::Code;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Worth knowing; the bootstrap goes on.
    Warning,
    /// The bootstrap stops before anything is changed.
    Refused,
}

/// One thing that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `os`, `memory`, `clock` and so on.
    pub subject: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found and what is wanted.
    pub text: String,
    /// For a refusal: its code.
    pub code: Option<Code>,
}

/// What was checked before anything was changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preflight {
    /// In a fixed order.
    pub findings: Vec<Finding>,
}

impl Preflight {
    /// The findings that stop a bootstrap.
    pub fn refusals(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Refused)
    }

    /// The findings worth knowing.
    pub fn warnings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|finding| finding.severity == Severity::Warning)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.subject, self.text)
    }
}
