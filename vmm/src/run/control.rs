//! The control thread: console, timers, signals, lifecycle.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use skep_clock::Clock;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

use super::signals::Signals;
use super::{Request, Requests};

#[cfg(test)]
#[path = "control_test.rs"]
mod test;

/// What the control thread waits for: one of its file descriptors, and what is done then.
pub type Subscriber = Box<dyn MutEventSubscriber>;

/// Why the control thread can't wait.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The host has no descriptor left, or refused one.
    #[error("the control thread's {what}: {source}")]
    Host {
        /// Which one.
        what: &'static str,
        /// The host's error.
        source: io::Error,
    },
    /// epoll failed.
    #[error("the control thread can't wait for events: {0}")]
    Wait(event_manager::Error),
}

/// The host's own error, where there is one.
fn wait(error: event_manager::Error) -> ControlError {
    match error {
        event_manager::Error::Epoll(source) => ControlError::Host { what: "epoll", source: source.into() },
        other => ControlError::Wait(other),
    }
}

fn host(what: &'static str) -> impl Fn(io::Error) -> ControlError {
    move |source| ControlError::Host { what, source }
}

/// The control thread's loop.
pub struct Control {
    manager: EventManager<Subscriber>,
    requests: Arc<Requests>,
}

impl Control {
    /// A loop that drives `clock` and hears of `requests`. Signals end the process until [`Control::hear_signals`].
    ///
    /// # Errors
    /// Where the host refuses a descriptor.
    pub fn new(clock: &Clock, requests: Arc<Requests>) -> Result<Self, ControlError> {
        let mut manager = EventManager::new().map_err(wait)?;
        manager.add_subscriber(Box::new(TimerDriver::new(clock.clone())?) as Subscriber);
        manager.add_subscriber(Box::new(RequestWatch(requests.clone())) as Subscriber);
        Ok(Self { manager, requests })
    }

    /// From here on signals are requests to stop, which [`Control::next_request`] gives on this thread. It comes last before vCPUs start:
    /// nobody looks at requests while a machine is being made, which takes long where its memory is touched first.
    ///
    /// # Errors
    /// Where the host refuses a descriptor.
    pub fn hear_signals(&mut self) -> Result<(), ControlError> {
        let signals = Signals::new(self.requests.clone()).map_err(host("signals"))?;
        self.add(Box::new(signals));
        Ok(())
    }

    /// Adds what else the thread waits for.
    pub fn add(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(subscriber);
    }

    /// Handles events until a request comes.
    ///
    /// # Errors
    /// Where the host can't wait.
    pub fn next_request(&mut self) -> Result<Request, ControlError> {
        loop {
            if let Some(request) = self.requests.take() {
                return Ok(request);
            }
            match self.manager.run() {
                Ok(_) => {}
                Err(event_manager::Error::Epoll(e)) if e.errno() == libc::EINTR => {}
                Err(error) => return Err(wait(error)),
            }
        }
    }
}

/// Wakes the loop; [`Control::next_request`] takes the requests.
struct RequestWatch(Arc<Requests>);

impl MutEventSubscriber for RequestWatch {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        // Edge-triggered: the event is read where requests are taken.
        watch(ops, Events::new(self.0.event(), EventSet::IN | EventSet::EDGE_TRIGGERED), "requests");
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {}
}

/// Waits for `events`, which are of `what` in messages.
pub(crate) fn watch(ops: &mut EventOps<'_>, events: Events, what: &'static str) {
    if let Err(error) = ops.add(events) {
        tracing::error!("the control thread can't wait for {what}: {error}");
    }
}

/// Waits for a descriptor no longer.
pub(crate) fn unwatch(ops: &mut EventOps<'_>, fd: &impl AsRawFd, what: &'static str) {
    if let Err(error) = ops.remove(Events::empty_raw(fd.as_raw_fd())) {
        tracing::debug!("the control thread did not wait for {what}: {error}");
    }
}

/// Runs the clock's timers when their deadlines have come.
struct TimerDriver {
    clock: Clock,
    timer: TimerFd,
    woken: EventFd,
}

const TIMER: u32 = 0;
const WOKEN: u32 = 1;

impl TimerDriver {
    fn new(clock: Clock) -> Result<Self, ControlError> {
        let timer = TimerFd::new().map_err(|e| host("timer")(e.into()))?;
        let woken = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("timer's wake-up"))?;
        let waker = woken.try_clone().map_err(host("timer's wake-up"))?;
        clock.set_waker(Box::new(move || {
            // It fails only when the counter is full, and then the thread is being woken already.
            let _ = waker.write(1);
        }));
        Ok(Self { clock, timer, woken })
    }

    fn rearm(&mut self) {
        let next = self.clock.until_next();
        let armed = match next {
            // A duration of 0 would disarm it.
            Some(wait) => self.timer.reset(wait.max(Duration::from_nanos(1)), None),
            None => self.timer.clear(),
        };
        if let Err(error) = armed {
            tracing::error!("the control thread's timer can't be set to {next:?}: {error}");
        }
    }
}

impl MutEventSubscriber for TimerDriver {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        watch(ops, Events::with_data(&self.timer, TIMER, EventSet::IN), "timers");
        watch(ops, Events::with_data(&self.woken, WOKEN, EventSet::IN), "timers");
        self.rearm();
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        // The timer is not read: setting it anew makes it unready. To read it would block when both events come at once, and the other one
        // has set it anew already.
        if events.data() == WOKEN {
            let _ = self.woken.read();
        }
        self.clock.run_due();
        self.rearm();
    }
}
