//! What the tests of devices share: a log of what they do to the outside, and lines that are noted in it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::{IrqLine, LineDescription, LineTarget, Polarity, Trigger};

/// Everything that happens, in its order.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    /// Adds an event.
    pub fn note(&self, event: impl Into<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event.into());
    }

    /// What has happened since it was last asked.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A line whose changes are noted as `NAME+` and `NAME-`.
    pub fn line(&self, name: impl Into<String>) -> IrqLine {
        let description = LineDescription { number: 0, trigger: Trigger::Level, polarity: Polarity::High };
        IrqLine::to(Arc::new(Wire { name: name.into(), log: self.clone() }), description)
    }
}

struct Wire {
    name: String,
    log: Log,
}

impl LineTarget for Wire {
    fn set_level(&self, _line: u32, asserted: bool) {
        self.log.note(format!("{}{}", self.name, if asserted { '+' } else { '-' }));
    }
}
