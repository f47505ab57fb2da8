//! The program's own code in memory.
//!
//! Much of what a program has touched is for its start alone: parsing its words, building tables, naming errors. A kernel counts those pages as
//! resident until it is short of memory, and then takes them later than others, since they are mapped. Letting them go is one system call for each
//! segment; what runs on is mapped again from the page cache as it is met.
#![allow(unsafe_code)] // Segments are found, and given up, by address.

use std::ffi::{c_int, c_void};

#[cfg(test)]
#[path = "program_test.rs"]
mod test;

/// Lets go of the pages of code and constants that have been touched so far.
pub(crate) fn let_go_of_code() {
    // A debugger's breakpoints are private pages, and would go as well.
    if !cfg!(debug_assertions) {
        release();
    }
}

fn release() {
    // SAFETY: the function keeps nothing, and needs no data.
    unsafe { libc::dl_iterate_phdr(Some(release_segments), std::ptr::null_mut()) };
}

/// Lets go of one program's segments that nobody can have written to.
unsafe extern "C" fn release_segments(info: *mut libc::dl_phdr_info, _size: usize, _data: *mut c_void) -> c_int {
    // SAFETY: the loader hands a valid description, whose headers are part of the program.
    let info = unsafe { &*info };
    // SAFETY: as above.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let page = rustix::param::page_size() as u64;
    for header in headers.iter().filter(|one| one.p_type == libc::PT_LOAD && one.p_flags & libc::PF_W == 0) {
        let start = (info.dlpi_addr + header.p_vaddr).next_multiple_of(page);
        let end = (info.dlpi_addr + header.p_vaddr + header.p_memsz) / page * page;
        if start < end {
            let address = std::ptr::with_exposed_provenance_mut(start as usize);
            // What can't be let go stays.
            // SAFETY: pages of a file, mapped privately and never written to: they are read again from the same file, which cannot change while
            // it runs.
            let _ = unsafe { libc::madvise(address, (end - start) as usize, libc::MADV_DONTNEED) };
        }
    }
    // The first is the program itself; a shared library's are other programs' as well.
    1
}
