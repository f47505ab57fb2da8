//! The specification's data structures, as far as this controller has them: NVM Express Base 2.0 (named by section) and the NVM Command
//! Set 1.0 ("NVM").

pub(crate) mod command;
mod page;
pub(crate) mod register;
mod status;

pub(crate) use command::{Command, CompletionEntry, EVERY_NAMESPACE, admin, io};
pub(crate) use page::Page;
pub(crate) use status::Status;
