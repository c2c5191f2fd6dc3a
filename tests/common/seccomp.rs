//! A filter that refuses the system calls of io_uring, as containers have it.
#![allow(unsafe_code, reason = "the filter is installed between fork and exec")]

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The program behind `command` gets EPERM for the calls of io_uring.
pub fn refuse_io_uring(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes two system calls with pointers to its own
    // memory; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(install) };
}

fn install() -> io::Result<()> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    let op = |code: u32, jt, jf, k| {
        let code = u16::try_from(code).expect("codes have 16 bits");
        libc::sock_filter { code, jt, jf, k }
    };
    // io_uring_setup, io_uring_enter and io_uring_register are 425 to 427 on every architecture
    // but alpha.
    let mut filter = [
        // The number stands first in struct seccomp_data.
        op(LOAD, 0, 0, 0),
        op(AT_LEAST, 0, 2, 425),
        op(AT_LEAST, 1, 0, 428),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs()),
        op(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let length = u16::try_from(filter.len()).expect("five");
    let program = libc::sock_fprog { len: length, filter: filter.as_mut_ptr() };
    // SAFETY: prctl(2) with integers alone; it lets a process without privileges set a filter.
    let may = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if may != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `program` points to `filter`, both live until the call returns; the kernel copies.
    let set = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0)
    };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
