//! Eventfds as borrowed descriptors, which vmm-sys-util does not offer.
#![allow(unsafe_code)] // One descriptor is borrowed for as long as its owner is.

use std::os::fd::{AsRawFd, BorrowedFd};

use vmm_sys_util::eventfd::EventFd;

/// The eventfd's descriptor.
pub(super) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor stays open for as long as the eventfd lives, which is borrowed for the result's lifetime.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
