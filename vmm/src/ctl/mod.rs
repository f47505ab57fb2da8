//! The control socket: how a program of the host talks with a machine that runs.
//!
//! A client connects to the Unix socket of `--control`, which is its owner's alone. Each side writes JSON objects (RFC 8259), one to a line of at
//! most [`protocol::MOST_LINE`] bytes from the client:
//!
//! ```text
//! skep:   {"protocol":1,"skep":"0.1.0"}
//! client: {"id":1,"command":"disk-add","arguments":{"disk":"data.img,format=raw,id=data"}}
//! skep:   {"id":1,"result":{"id":"data","place":"port:0"}}
//! client: {"id":2,"command":"device-remove","arguments":{"id":"root"}}
//! skep:   {"id":2,"error":{"kind":"not-removable","message":"...","try":"..."}}
//! ```
//!
//! * The greeting's `protocol` rises only when what there was changes its meaning. Commands, arguments, keys of results and kinds of errors are
//!   added without that, so that a client ignores keys that it does not know. Lines without an `id` other than the greeting, and lines that
//!   have an `event`, are left to later versions: a client skips them.
//! * Each request has exactly one response, with its `id`, a number that the client chooses (`null` where there was none). Several may be under
//!   way on one connection; what takes long, a guest that is to let a device go, is answered when it is done, after later ones.
//! * An error says its [`protocol::ErrorKind`] for programs, and for people what failed, on what, and what would mend it.
//!
//! Clients are not trusted with more than the machine. A connection holds one line of input, a few unanswered requests, and little output: who
//! does not read is not listened to. There are a bounded number of connections, of which the one that was silent longest makes room. Nothing
//! here waits for a client.
//!
//! What it does not do yet: events.

mod client;
mod connection;
pub mod protocol;
mod reply;
mod server;

pub use client::{Client, ClientError};
pub use protocol::Command;
pub use reply::Reply;
pub use server::Server;

use std::fmt;

/// A request of a client's: what it wants, and the way to tell what came of it.
pub struct Call {
    /// What it wants.
    pub command: Command,
    /// To whom to answer.
    pub reply: Reply,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("command", &self.command).finish_non_exhaustive()
    }
}
