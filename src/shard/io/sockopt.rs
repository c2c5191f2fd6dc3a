//! Socket options that no library offers.
//!
//! Owns: one setsockopt(2) call. Never: anything that has a safe form elsewhere.
#![allow(unsafe_code, reason = "one setsockopt(2) with a pointer to a local integer")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Leaves the choice of the port of a bound source address to connect(2) (ip(7)).
pub(super) fn bind_address_no_port(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    let octets = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the pointer is to a live integer of the length given; the kernel copies it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            octets,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
