//! The control queue (section 5.1.6.5).

use std::sync::Arc;

use super::card::{Card, LONGEST};
use crate::ActiveQueue;
use crate::engine::{Engine, Queues};

/// Does the next command, and says whether there was one.
pub(super) fn control(card: &Card, queue: &mut ActiveQueue) -> bool {
    let Some(chain) = queue.pop() else { return false };
    let Some(memory) = queue.memory() else {
        queue.complete(chain, 0);
        return true;
    };
    let mut bytes = [0; LONGEST + 1];
    let read = chain.readable().read(&memory, 0, &mut bytes);
    let done = read.and_then(|len| {
        let ack = u8::from(!card.control(bytes.get(..len).unwrap_or_default()));
        chain.writable().write(&memory, 0, &[ack])
    });
    queue.complete(chain, done.as_ref().map_or(0, |written| *written as u32));
    if let Err(error) = done {
        queue.fail(&error);
    }
    true
}

/// The thread of a control queue whose card's other queues are worked elsewhere.
pub(super) struct ControlEngine(pub(super) Arc<Card>);

impl Engine for ControlEngine {
    type Command = ();

    fn command(&mut self, (): (), _queues: &mut Queues) {}

    fn work(&mut self, queues: &mut Queues) -> bool {
        queues.iter().map(|queue| control(&self.0, queue)).filter(|done| *done).count() > 0
    }
}
