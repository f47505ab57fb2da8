//! What a host can do, for a person to read (`skep doctor`).

use std::fmt;

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// All is well.
    Ok,
    /// It works, with a limit.
    Limited,
    /// It is missing; whether that matters depends on what is asked of skep.
    Missing,
    /// skep can't run a guest without it.
    Fatal,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
            Self::Fatal => "fatal",
        })
    }
}

/// One thing found out about the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is about, in a word or two.
    pub topic: String,
    /// What was found.
    pub text: String,
    /// How it is to be taken.
    pub verdict: Verdict,
    /// What would mend it: a command where there is one.
    pub mend: Option<String>,
}

impl Finding {
    /// A finding without a mend.
    pub fn new(topic: impl Into<String>, text: impl Into<String>, verdict: Verdict) -> Self {
        Self { topic: topic.into(), text: text.into(), verdict, mend: None }
    }

    /// Adds what would mend it.
    #[must_use]
    pub fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend = Some(mend.into());
        self
    }
}
