//! What the control thread waits for, and what it hears meanwhile.

use crate::Error;
use crate::ctl::{Call, Reply};
use crate::run::{Control, Request, Requests, StopReason, Ticket};

/// How a wait has ended.
pub(super) enum Waited {
    /// What was waited for is done.
    Done,
    /// The user, or a signal, ends the machine without it.
    Ended(StopReason),
    /// A command has given it up, and is to be answered.
    GivenUp(Reply),
}

/// Waits until what `ticket` names is done. `hear` answers what clients ask for meanwhile, or gives back whom to answer that it is given up.
pub(super) fn wait(
    control: &mut Control,
    requests: &Requests,
    ticket: Ticket,
    mut hear: impl FnMut(Call) -> Option<Reply>,
) -> Result<Waited, Error> {
    let mut later = Vec::new();
    let waited = loop {
        match control.next_request()? {
            Request::Done(done) if done == ticket => break Waited::Done,
            // Of a wait that was given up.
            Request::Done(_) => {}
            Request::Stop(reason) => break Waited::Ended(reason),
            Request::Command(call) => {
                if let Some(reply) = hear(call) {
                    break Waited::GivenUp(reply);
                }
            }
            // Whoever saves or sends the machine waits for an answer.
            request if !request.freezes() => later.push(request),
            // The machine stands, and what its vCPUs asked for before has been heard.
            _ => {}
        }
    };
    later.into_iter().for_each(|request| requests.send(request));
    Ok(waited)
}
