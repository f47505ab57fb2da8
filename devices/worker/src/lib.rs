//! Threads that work a device's queues, apart from vCPUs and from the control thread.
//!
//! A [`Worker`] is one thread and the [`Job`] that it does. It sleeps in epoll on the job's file descriptors (doorbells, backends) and on
//! its commands, which reach it in their order. Before it sleeps it polls, for a time that adapts to what polling earns ([`PollWindow`]):
//! under load neither the guest's doorbell nor the thread's sleep costs anything, and an idle guest costs no CPU.
//!
//! Descriptors are watched edge-triggered: a doorbell's eventfd is never read, which saves a system call per wake-up, and a backend whose
//! data nobody can take at the moment does not wake the thread again and again.
//!
//! A [`Limiter`] says how much such a thread may do in a second: token buckets, of requests and of bytes, that the queues of a device share.
//!
//! What it does not do: know of queues. It is for every kind of device; what a queue is, and how it is stopped, is the job's.

#![forbid(unsafe_code)]

mod limit;
mod poll;
mod worker;

pub use limit::{Limit, LimitTimer, Limiter, Limits};
pub use poll::PollWindow;
pub use vmm_sys_util::epoll::EventSet;
pub use worker::{Job, Sources, Worker};
