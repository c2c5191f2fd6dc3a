//! Writes past the page cache (O_DIRECT): which files take them, and from where.
//!
//! Owns: the other description of a file that such writes need, memory for them. Never: what is
//! written.
//!
//! They take whole blocks ([`BLOCK_OCTETS`]), in the file and in memory. What the kernel has cached
//! of the range it drops.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{AtFlags, OFlags, StatxFlags};

use crate::limits::{BLOCK, BLOCK_OCTETS};

/// Another description of an open file, to write past the page cache, where its file system says
/// (statx(2), since Linux 6.1) that it takes whole blocks so; opened for appending as the file is.
/// `None`: it does not, or the system has no description to give. Nothing is read from the disk
/// for that.
#[must_use]
pub fn open_direct(file: &(impl AsFd + AsRawFd)) -> Option<File> {
    let known = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let fits = |octets: u32| (1..=BLOCK_OCTETS).contains(&u64::from(octets));
    if !fits(known.stx_dio_mem_align) || !fits(known.stx_dio_offset_align) {
        return None;
    }
    let is_appended_to = rustix::fs::fcntl_getfl(file).ok()?.contains(OFlags::APPEND);
    // By its number: the file may have lost its name.
    let name = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut options = OpenOptions::new();
    options.write(true).append(is_appended_to).custom_flags(libc::O_DIRECT).open(name).ok()
}

/// Fills `buffer`, which is empty, up to the first whole block of its memory: octets that are not
/// to be written. They stand there as long as it does not grow beyond its capacity.
pub(super) fn fill_to_block(buffer: &mut Vec<u8>) -> usize {
    let lead = buffer.as_ptr().align_offset(BLOCK).min(BLOCK);
    buffer.resize(lead, 0);
    lead
}
